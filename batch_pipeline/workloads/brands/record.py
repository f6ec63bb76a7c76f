"""A finished brand: its row, and what the steps found out.

What belongs here: BrandRecord, which all files of a brand are made from. What does not: the files,
reading the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from batch_pipeline.workloads.brands.models import (
    Categorization,
    Insights,
    ProductCatalog,
    RelatedBrand,
    Relationships,
)
from batch_pipeline.workloads.brands.text import Direction, direction

CATEGORY_LEVELS = 3
LEVEL_MARK = ">"

RELATED_FIELDS: Mapping[str, str] = {
    "subsidiaries": "subsidiary",
    "sister_brands": "sister_brand",
    "affiliates": "affiliate",
    "competitors": "competitor",
    "similar_brands": "similar",
    "complementary_brands": "complementary",
}
"""Lists of related brands in `Relationships` -> what an entry is to the brand."""


@dataclass(frozen=True, slots=True)
class Source:
    """A page that the research found."""

    title: str
    url: str


@dataclass(frozen=True)
class BrandRecord:
    """All that is known of a brand that succeeded.

    Attributes:
        brand_name: as written in the table.
        website: its address in the table, or empty.
        parent_company: its owner in the table, or empty.
        batch_id: the batch.
        item_id: the row's id.
        number: the row's number in the table.
        made_at: when it ended (UTC seconds).
        simulated: whether no provider was called for it.
        relationships: answer of the step.
        categorization: answer of the step.
        product_catalog: answer of the step.
        insights: answer of the step.
        sources: what the research found.
        models: step -> `provider/model` that answered.
    """

    brand_name: str
    website: str
    parent_company: str
    batch_id: str
    item_id: str
    number: int
    made_at: float
    simulated: bool
    relationships: Relationships
    categorization: Categorization
    product_catalog: ProductCatalog
    insights: Insights
    sources: Sequence[Source] = ()
    models: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def direction(self) -> Direction:
        """How its reports are laid out: as its summary reads."""
        return direction(self.insights.executive_summary)

    @property
    def language(self) -> str:
        """The language of our own words beside its texts: `fa` or `en`."""
        return "fa" if self.direction == "rtl" else "en"

    @property
    def made(self) -> str:
        """When it ended, as ISO 8601 in UTC."""
        return datetime.fromtimestamp(self.made_at, UTC).isoformat(timespec="seconds")

    @property
    def parent(self) -> str:
        """Its owner: as the research has it, else as given."""
        return self.relationships.parent_company or self.parent_company

    @property
    def levels(self) -> list[str]:
        """Its category from general to particular; empty ones are left out."""
        industry = self.categorization.primary_industry
        return [level for level in (industry.level_1, industry.level_2, industry.level_3) if level]

    @cached_property
    def related(self) -> list[tuple[str, RelatedBrand]]:
        """Every related brand, and what it is to the brand."""
        return [
            (relation, one)
            for name, relation in RELATED_FIELDS.items()
            for one in getattr(self.relationships, name)
        ]

    @property
    def set_aside(self) -> dict[str, int]:
        """Step -> how many parts of its answer could not be read or were not asked for."""
        answers = {
            "relationships": self.relationships,
            "categorization": self.categorization,
            "product_catalog": self.product_catalog,
            "insights": self.insights,
        }
        return {step: len(answer.set_aside) for step, answer in answers.items()}


def category_levels(category: str) -> list[str]:
    """A related brand's category as exactly three levels, general to particular."""
    parts = [part.strip() for part in category.split(LEVEL_MARK)]
    levels = [part for part in parts if part][:CATEGORY_LEVELS]
    return levels + [""] * (CATEGORY_LEVELS - len(levels))
