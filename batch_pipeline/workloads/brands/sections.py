"""What the reports of a brand say, in twelve sections, before it is laid out in any way.

What belongs here: sections and their parts, in the language of the brand's texts. What does not:
text for a vector store (chunks.py), Markdown and HTML (pages.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from batch_pipeline.workloads.brands.models import CatalogEntry, RelatedBrand
from batch_pipeline.workloads.brands.record import BrandRecord
from batch_pipeline.workloads.brands.tolerant import Part

_LABELS = Path(__file__).parent / "words" / "labels.yaml"

SECTION_NAMES = (
    "overview", "executive_summary", "industry", "ownership", "brand_family", "competitors",
    "related_brands", "products", "services", "audience", "campaigns", "strategy",
)  # fmt: skip
"""In order; the chunks 001 to 012 are these."""

_LEVELS_JOINT = " › "
# mirrored by what lays out right-to-left text, as it should be
_RELATED_COLUMNS = (
    "name", "name_fa", "parent_company", "category", "market_position", "price_tier",
    "cross_sell_potential", "reason",
)  # fmt: skip
_CATALOG_COLUMNS = ("name", "category", "description", "target_market")
_PARTNER_COLUMNS = (
    "partner_brand", "rationale", "potential_reach", "recommended_approach", "timing",
)  # fmt: skip
_TIMING_COLUMNS = ("occasion", "period", "recommendation")
_BUDGET_COLUMNS = ("channel", "share_percent", "reason")
_NAME_COLUMNS = frozenset({"name", "name_fa", "parent_company", "partner_brand"})


@dataclass(frozen=True, slots=True)
class Labels:
    """Our own words in one language."""

    analysis: str
    summary_of: str
    simulated: str
    nothing_known: str
    made: str
    sections: dict[str, str]
    fields: dict[str, str]
    words: dict[str, str]


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, as a list of definitions; only those that are known."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts under a title; without bullets they are paragraphs."""

    title: str
    entries: Sequence[str]
    bullets: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title; columns without any value are left out.

    Attributes:
        names: which columns hold names, by place.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: Sequence[bool]


Block = Facts | Texts | Table


@dataclass(frozen=True, slots=True)
class Section:
    """One subject.

    Attributes:
        name: of SECTION_NAMES.
        title: in the language of the brand's texts.
        blocks: what is known; none where nothing is.
    """

    name: str
    title: str
    blocks: Sequence[Block]


@cache
def labels_in(language: str) -> Labels:
    """Our own words in `fa` or `en`."""
    return Labels(**yaml.safe_load(_LABELS.read_text("utf-8"))[language])


def sections_of(record: BrandRecord) -> list[Section]:
    """The twelve sections of a brand, each there even where nothing is known."""
    labels = labels_in(record.language)
    contents = _contents(record, labels)
    return [
        Section(name, labels.sections[name], [block for block in blocks if _says_something(block)])
        for name, blocks in zip(SECTION_NAMES, contents, strict=True)
    ]


def known_word(labels: Labels, word: str) -> str:
    """A fixed word of the models for people; empty for `unknown`."""
    return "" if word == "unknown" else labels.words.get(word, word)


def percent(value: float | None) -> str:
    """A share as text."""
    return "" if value is None else f"{value:g} %"


def _contents(record: BrandRecord, labels: Labels) -> list[list[Block]]:
    relations = record.relationships
    categories = record.categorization
    industry = categories.primary_industry
    catalog, insights = record.product_catalog, record.insights
    verified = relations.parent_company_verification
    comma = "، " if record.language == "fa" else ", "

    def facts(*entries: tuple[str, str]) -> Facts:
        return Facts([(labels.fields[name], value) for name, value in entries if value])

    def texts(name: str, entries: Sequence[str]) -> Texts:
        return Texts(labels.fields[name], entries)

    def table(name: str, columns: Sequence[str], rows: Sequence[Part]) -> Table:
        return _table(labels, name, columns, rows)

    def related(name: str) -> Table:
        found: list[RelatedBrand] = getattr(relations, name)
        return table(name, _RELATED_COLUMNS, found)

    def entries(name: str, found: list[CatalogEntry]) -> Table:
        return table(name, _CATALOG_COLUMNS, found)

    return [
        [
            facts(
                ("brand", record.brand_name),
                ("website", record.website),
                ("parent_company", record.parent),
                ("industry_fa", industry.name_fa),
                ("industry", industry.name_en),
                ("business_model", known_word(labels, categories.business_model)),
                ("price_tier", known_word(labels, categories.price_tier)),
                ("market_position", known_word(labels, categories.market_position)),
            )
        ],
        [Texts("", insights.executive_summary.split("\n\n"), bullets=False)],
        [
            facts(
                ("industry_fa", industry.name_fa),
                ("industry", industry.name_en),
                ("isic_code", industry.isic_code),
                ("levels", _LEVELS_JOINT.join(record.levels)),
                ("sub_industries", comma.join(categories.sub_industries)),
                ("product_categories", comma.join(categories.product_categories)),
                ("business_model", known_word(labels, categories.business_model)),
            )
        ],
        [
            facts(
                ("given_parent", record.parent_company),
                ("parent_company", relations.parent_company or verified.found_parent),
                ("ultimate_parent", relations.ultimate_parent),
                ("verification", labels.words[verified.verdict] if record.parent_company else ""),
                ("evidence", verified.evidence),
                ("evidence_pages", comma.join(verified.sources)),
            ),
            table("shareholders", ("name", "share_percent"), relations.shareholders),
        ],
        [
            related("subsidiaries"),
            related("sister_brands"),
            related("affiliates"),
            texts("brand_family", relations.brand_family),
        ],
        [related("competitors")],
        [related("similar_brands"), related("complementary_brands")],
        [
            facts(
                ("total_products", "" if (n := catalog.total_products) is None else f"{n:,}"),
            ),
            entries("products", catalog.products),
        ],
        [entries("services", catalog.services), texts("categories", catalog.categories)],
        [
            facts(
                ("price_tier", known_word(labels, categories.price_tier)),
                ("market_position", known_word(labels, categories.market_position)),
                ("distribution_channels", comma.join(categories.distribution_channels)),
            ),
            texts("target_audiences", categories.target_audiences),
            texts("audience_insights", insights.audience_insights),
        ],
        [
            table(
                "cross_promotion_opportunities",
                _PARTNER_COLUMNS,
                insights.cross_promotion_opportunities,
            ),
            table("campaign_timing", _TIMING_COLUMNS, insights.campaign_timing),
            table("budget_recommendations", _BUDGET_COLUMNS, insights.budget_recommendations),
            texts("channel_recommendations", insights.channel_recommendations),
        ],
        [
            texts("competitive_strategy", insights.competitive_strategy),
            texts("creative_direction", insights.creative_direction),
            texts("success_metrics", insights.success_metrics),
        ],
    ]


def _table(labels: Labels, name: str, columns: Sequence[str], rows: Sequence[Part]) -> Table:
    cells = {column: [_cell(labels, getattr(row, column)) for row in rows] for column in columns}
    shown = [column for column in columns if any(cells[column])]
    return Table(
        title=labels.fields[name],
        columns=[labels.fields[column] for column in shown],
        rows=list(zip(*(cells[column] for column in shown), strict=True)),
        names=[column in _NAME_COLUMNS for column in shown],
    )


def _cell(labels: Labels, value: Any) -> str:
    if isinstance(value, float):
        return percent(value)
    return "" if value is None else known_word(labels, value)


def _says_something(block: Block) -> bool:
    if isinstance(block, Table):
        return bool(block.rows)
    return any(block.entries) if isinstance(block, Texts) else bool(block.entries)
