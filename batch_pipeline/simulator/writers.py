"""Which answers are written from the content of an item, and by what: cards, votes, brands.

What does not live here: the writing (`cards`, `plans`, `brands`), articles (`prose`), all other
answers (`schema`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from batch_pipeline.simulator.brands import (
    write_catalog,
    write_categorization,
    write_insights,
    write_relationships,
)
from batch_pipeline.simulator.cards import write_cards
from batch_pipeline.simulator.plans import write_findings, write_synthesis, write_vote
from batch_pipeline.simulator.web_pages import Page


@dataclass(frozen=True)
class Background:
    """What answers depend on beside the request's own text.

    Attributes:
        pages: what a web search found for it.
        slips: share of cards and of answers about brands that are not quite as asked for.
    """

    pages: tuple[Page, ...] = ()
    slips: float = 0.0


PLAIN = Background()


@dataclass(frozen=True)
class Asked:
    """One item to write for.

    Attributes:
        salt: another one gives another answer.
        flaws: kinds of faults that hit it.
    """

    content: Mapping[str, Any]
    background: Background
    salt: str
    flaws: Collection[str]


@dataclass(frozen=True)
class Writer:
    """Writes the answer where the schema asks for these fields and the content has this key.

    Attributes:
        kind: of what it writes, which faults go by.
        inside: of a list among the fields, and a field that its entries have.
    """

    kind: str
    fields: frozenset[str]
    key: str
    write: Callable[[Asked], dict[str, Any]]
    inside: tuple[str, str] | None = None

    def suits(self, fields: Mapping[str, Any]) -> bool:
        """Whether these fields, resolved, are such as it fills."""
        if self.inside is None:
            return True
        outer, inner = self.inside
        return inner in ((fields[outer].get("items") or {}).get("properties") or {})


def _cards(asked: Asked) -> dict[str, Any]:
    share = asked.background.slips
    return {"flashcards": write_cards(asked.content, asked.salt, asked.flaws, share)}


WRITERS = (
    Writer("cards", frozenset({"flashcards"}), "topic", _cards, ("flashcards", "question_text")),
    Writer(
        "vote",
        frozenset({"decision", "confidence", "reasoning", "suggestions"}),
        "voter",
        lambda asked: write_vote(asked.content, asked.salt, asked.flaws),
    ),
    Writer(
        "synthesis",
        frozenset({"system_prompt", "objectives", "active_learning", "scaffolding"}),
        "topic",
        lambda asked: write_synthesis(asked.content, asked.salt, asked.flaws),
        ("objectives", "bloom_level"),
    ),
    Writer(
        "findings",
        frozenset({"findings", "objectives", "points"}),
        "topic",
        lambda asked: write_findings(
            asked.content, asked.salt, asked.background.pages, asked.flaws
        ),
        ("findings", "fact"),
    ),
    Writer(
        "brand",
        frozenset({"competitors", "complementary_brands", "parent_company_verification"}),
        "brand_name",
        lambda asked: write_relationships(asked.content, asked.salt, asked.background.slips),
        ("competitors", "cross_sell_potential"),
    ),
    Writer(
        "brand",
        frozenset({"primary_industry", "product_categories", "target_audiences"}),
        "brand_name",
        lambda asked: write_categorization(asked.content, asked.salt, asked.background.slips),
    ),
    Writer(
        "brand",
        frozenset({"products", "services", "total_products"}),
        "brand_name",
        lambda asked: write_catalog(asked.content, asked.salt, asked.background.slips),
        ("products", "target_market"),
    ),
    Writer(
        "insights",
        frozenset({"executive_summary", "cross_promotion_opportunities", "campaign_timing"}),
        "brand_name",
        lambda asked: write_insights(
            asked.content, asked.salt, asked.flaws, asked.background.slips
        ),
        ("cross_promotion_opportunities", "partner_brand"),
    ),
)


def writer_for(fields: Collection[str], content: Mapping[str, Any]) -> Writer | None:
    """The writer of an answer with fields of these names, if there is one."""
    for writer in WRITERS:
        if writer.key in content and writer.fields.issubset(fields):
            return writer
    return None
