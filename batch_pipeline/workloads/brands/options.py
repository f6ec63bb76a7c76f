"""What an operator chooses for a whole batch of brands.

What belongs here: the options' model, and reading it. What does not: what an option does
(steps.py, research.py, delivery.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batch_pipeline.errors import UsageError
from batch_pipeline.search.tavily import MOST_RESULTS


class BrandOptions(BaseModel):
    """Options of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    research: bool = Field(
        default=True,
        description="Whether the web is searched; without, models say what they know by heart.",
    )
    results: int = Field(
        default=10, ge=1, le=MOST_RESULTS, description="Pages of each of the three searches."
    )
    language: Literal["auto", "fa", "en"] = Field(
        default="auto",
        description="Of the texts; `auto`: Persian where the name or the owner is written in "
        "Persian letters or the website ends in .ir, else English.",
    )
    csv_bom: bool = Field(
        default=False,
        description="Whether the CSV files of a brand start with a byte order mark, which older "
        "Excel needs for Persian.",
    )


def read_options(given: Mapping[str, Any]) -> BrandOptions:
    """The options of a run.

    Raises:
        UsageError: one is unknown, or has a value that it cannot have.
    """
    try:
        return BrandOptions.model_validate(dict(given))
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: "
            + ("there is no such option" if one["type"] == "extra_forbidden" else one["msg"])
            for one in error.errors(include_url=False, include_context=False)
        )
        raise UsageError(
            f"The options of the brands cannot be used: {said}.",
            f"There are: {', '.join(BrandOptions.model_fields)}.",
        ) from error
