"""What Exa and Tavily grant and charge, from plans.yaml.

What belongs here: reading it, and the price of a query by it. What does not: the figures
(plans.yaml), what a call really cost (the codecs read it in the reply).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.search.base import SearchQuery


class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: float = Field(gt=0)
    source: str
    as_of: datetime.date


class ExaPlan(_Plan):
    """What Exa charges for a search.

    Attributes:
        usd_per_search: of a type without a price of its own.
        usd_by_type: of the others.
        results_included: in that price.
        usd_per_further_result: for each one above.
    """

    usd_per_search: float = Field(ge=0)
    usd_by_type: Mapping[str, float]
    results_included: int = Field(ge=0)
    usd_per_further_result: float = Field(ge=0)

    def price_usd(self, query: SearchQuery) -> float:
        """What a query costs if it finds all that it asks for."""
        further = max(0, query.limit - self.results_included)
        price = self.usd_by_type.get(query.depth, self.usd_per_search)
        return price + further * self.usd_per_further_result


class TavilyPlan(_Plan):
    """What Tavily charges for a search.

    Attributes:
        usd_per_credit: of the plan.
        credits: for a search of a depth without a price of its own.
        credits_by_depth: for the others.
    """

    usd_per_credit: float = Field(ge=0)
    credits: int = Field(ge=0)
    credits_by_depth: Mapping[str, int]

    def price_usd(self, query: SearchQuery) -> float:
        """What a query costs."""
        return self.credits_by_depth.get(query.depth, self.credits) * self.usd_per_credit


class Plans(BaseModel):
    """plans.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exa: ExaPlan
    tavily: TavilyPlan


@cache
def plans() -> Plans:
    """Read plans.yaml."""
    text = Path(__file__).with_name("plans.yaml").read_text(encoding="utf-8")
    return Plans.model_validate(yaml.safe_load(text))
