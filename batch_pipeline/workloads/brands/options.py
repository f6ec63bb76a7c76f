"""What an operator chooses for a whole batch of brands.

What belongs here: the options' model, and reading it. What does not: what an option does
(steps.py, research.py, delivery.py).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
