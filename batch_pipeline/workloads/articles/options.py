"""What an operator chooses for a whole batch of articles, and what a job comes to with it.

What belongs here: the options' model, and cells against options. What does not: reading the cells
(jobs.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pycountry
from pydantic import BaseModel, ConfigDict, Field, field_validator

from batch_pipeline.engine.step import Row
from batch_pipeline.workloads.articles.package import Strategy


def _country(value: Any) -> Any:
    if value is False:
        raise ValueError("YAML reads no as false: write it in quotes")
    if not isinstance(value, str):
        return value
    found = pycountry.countries.get(alpha_2=value.strip().upper())
    if found is None:
        raise ValueError(f"{value!r} is no ISO 3166 country code such as se or us")
    return str(found.alpha_2).lower()


class ArticleOptions(BaseModel):
    """Options of a run: those named `default_...` fill empty cells, the others win over cells."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Strategy | None = Field(default=None, description="Wins over the column `strategy`.")
    country: str | None = Field(default=None, description="Wins over the column `country`.")
    use_ahrefs: bool | None = Field(default=None, description="Wins over the column `use_ahrefs`.")
    enable_llm_profiling: bool | None = Field(
        default=None, description="Wins over the column `enable_llm_profiling`."
    )
    default_strategy: Strategy = "multi_stage"
    default_country: str = "se"
    default_use_ahrefs: bool = True
    default_enable_llm_profiling: bool = True

    _countries = field_validator("country", "default_country", mode="before")(_country)


@dataclass(frozen=True, slots=True)
class Choices:
    """What holds for one job."""

    strategy: Strategy
    country: str
    use_ahrefs: bool
    enable_llm_profiling: bool


def choices_of(row: Row, options: ArticleOptions) -> Choices:
    """What a job comes to: the run's options win, then its cells, then the defaults."""

    def choose(name: str) -> Any:
        wins, cell = getattr(options, name), row.get(name)
        if wins is not None:
            return wins
        return getattr(options, f"default_{name}") if cell in (None, "") else cell

    return Choices(
        strategy=choose("strategy"),
        country=choose("country"),
        use_ahrefs=choose("use_ahrefs"),
        enable_llm_profiling=choose("enable_llm_profiling"),
    )
