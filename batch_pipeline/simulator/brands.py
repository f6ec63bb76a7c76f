"""Writes the four answers about a brand, in Persian or English, now and then in a crooked form.

What does not live here: words and made-up brands (brands.yaml), and where in an answer they go
(`writers`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.simulator.draws import draw, fingerprint, pick

Language = Literal["en", "fa"]
Made = dict[str, Any]

_POSITIONS = ("leader", "challenger", "challenger", "follower", "follower", "niche")
_TIERS = ("economy", "mid_range", "mid_range", "upper_mid", "premium")
_GOOD = ("high", "medium", "high")
_COMPETITORS, _SISTERS, _SIMILAR, _COMPLEMENTARY = 5, 2, 3, 4
_MAJORITY = 51
_PERSIAN_DIGITS = str.maketrans("0123456789", "۰۱۲۳۴۵۶۷۸۹")
_LONGEST = 120


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Name(_Table):
    en: str
    fa: str

    def of(self, language: Language) -> str:
        return self.fa if language == "fa" else self.en


class _Lists(_Table):
    en: tuple[str, ...]
    fa: tuple[str, ...]

    def of(self, language: Language) -> tuple[str, ...]:
        return self.fa if language == "fa" else self.en


class _Industry(_Table):
    name: _Name
    isic: str
    hints: tuple[str, ...]
    levels: _Lists
    model: str
    beside: str
    products: tuple[_Name, ...]
    services: tuple[_Name, ...]
    brands: tuple[tuple[str, str], ...]
    audiences: _Lists
    channels: _Lists
    season: _Lists


class _Words(_Table):
    group: str
    unlisted: str
    lines: tuple[str, ...]
    competitor: str
    similar: str
    complementary: str
    sister: str
    confirmed: str
    unverified: str
    product: str
    service: str
    summary: tuple[str, ...]
    partner: str
    reach: str
    approach: str
    timing: str
    occasions: tuple[tuple[str, str, str], ...]
    audience: tuple[str, ...]
    strategy: tuple[str, ...]
    budget: tuple[tuple[str, float, str], ...]
    media: tuple[str, ...]
    creative: tuple[str, ...]
    metrics: tuple[str, ...]


class _Tables(_Table):
    industries: tuple[_Industry, ...] = Field(min_length=1)
    words: dict[Language, _Words]


def write_relationships(content: Mapping[str, Any], salt: str, slips: float) -> Made:
    """Write who owns the brand of an item's content, and which brands stand around it."""
    brand = _Brand(content, salt)
    words, others = brand.words, brand.others
    checked = bool(brand.parent and brand.pages and pick(3, brand.seed, "parent"))
    page = brand.pages[pick(len(brand.pages), brand.seed, "page")] if checked else ("", "")
    parent = brand.parent
    group = words.group.format(n=parent) if parent and pick(2, brand.seed, "group") else parent
    first, second, third = _parts(others, _COMPETITORS, _SISTERS, _SIMILAR)
    made: Made = {
        "parent_company": parent,
        "ultimate_parent": group,
        "subsidiaries": [],
        "sister_brands": brand.related(second if parent else (), "sister", group),
        "shareholders": [
            {"name": parent, "share_percent": _MAJORITY},
            {"name": words.unlisted, "share_percent": 100 - _MAJORITY},
        ]
        if parent
        else [],
        "affiliates": [],
        "brand_family": [brand.said(line) for line in words.lines],
        "competitors": brand.related(first, "competitor"),
        "similar_brands": brand.related(third, "similar"),
        "complementary_brands": brand.related(brand.partners[:_COMPLEMENTARY], "complementary"),
        "parent_company_verification": {
            "verdict": "confirmed" if checked else "unverified",
            "found_parent": parent if checked else "",
            "evidence": words.confirmed.format(u=page[0], x=parent)
            if checked
            else words.unverified,
            "sources": [page[1]] if checked and page[1] else [],
        },
    }
    if brand.slips("relationships", slips):
        made["subsidiaries"] = None
        made["brand_family"] = brand.joined(made["brand_family"])
        for holder in made["shareholders"]:
            holder["share_percent"] = brand.number(f"{holder['share_percent']} %")
    return made


def write_categorization(content: Mapping[str, Any], salt: str, slips: float) -> Made:
    """Write what kind of brand it is."""
    brand = _Brand(content, salt)
    industry, language = brand.industry, brand.language
    levels = industry.levels.of(language)
    made: Made = {
        "primary_industry": {
            "name_en": industry.name.en,
            "name_fa": industry.name.fa,
            "isic_code": industry.isic,
            **{f"level_{n}": level for n, level in enumerate(levels, 1)},
        },
        "sub_industries": [levels[-1], brand.beside.name.of(language)],
        "product_categories": [one.of(language) for one in industry.products],
        "business_model": industry.model,
        "price_tier": _TIERS[pick(len(_TIERS), brand.seed, "tier")],
        "target_audiences": list(industry.audiences.of(language)),
        "distribution_channels": list(industry.channels.of(language)),
        "market_position": _POSITIONS[pick(len(_POSITIONS), brand.seed, "position")],
    }
    if brand.slips("categorization", slips):
        made["price_tier"] = "Mid-range"
        made["target_audiences"] = "\n".join(f"- {one}" for one in made["target_audiences"])
        made["distribution_channels"] = brand.joined(made["distribution_channels"])
    return made


def write_catalog(content: Mapping[str, Any], salt: str, slips: float) -> Made:
    """Write what the brand sells."""
    brand = _Brand(content, salt)
    industry, language = brand.industry, brand.language
    audiences = industry.audiences.of(language)
    shown = len(industry.products) - pick(2, brand.seed, "products")

    def entries(things: Iterable[_Name], sentence: str) -> list[Made]:
        return [
            {
                "name": brand.product(thing),
                "category": industry.levels.of(language)[-1],
                "description": brand.said(sentence, p=brand.in_a_sentence(thing)),
                "target_market": audiences[n % len(audiences)],
            }
            for n, thing in enumerate(things)
        ]

    total = 10 + pick(190, brand.seed, "total")
    made: Made = {
        "products": entries(industry.products[:shown], brand.words.product),
        "services": entries(industry.services, brand.words.service),
        "categories": [one.of(language) for one in industry.products[:shown]],
        "total_products": total if pick(3, brand.seed, "counted") else None,
    }
    if brand.slips("product_catalog", slips):
        about = "حدود" if language == "fa" else "about"
        made["total_products"] = brand.number(f"{about} {total}")
        made["services"] = None
        made["categories"] = brand.joined(made["categories"])
    return made


def write_insights(
    content: Mapping[str, Any], salt: str, flaws: Collection[str], slips: float
) -> Made:
    """Write what an advertiser should do; `brand_empty` leaves the summary empty."""
    brand = _Brand(content, salt)
    words = brand.words
    partners = _names_in(content, "complementary_brands") or [
        brand.shown(pair) for pair in brand.partners[:_COMPLEMENTARY]
    ]
    paragraphs = words.summary[: 2 + pick(len(words.summary) - 1, brand.seed, "paragraphs")]
    season = brand.industry.season.of(brand.language)
    made: Made = {
        "executive_summary": "\n\n".join(brand.said(one, m=partners[0]) for one in paragraphs),
        "cross_promotion_opportunities": [
            {
                "partner_brand": partner,
                "rationale": brand.said(words.partner, m=partner),
                "potential_reach": words.reach.format(
                    d=brand.number(str(50 + 10 * pick(195, brand.seed, "reach", partner)))
                ),
                "recommended_approach": words.approach,
                "timing": words.timing,
            }
            for partner in partners[:3]
        ],
        "campaign_timing": [
            {"occasion": name, "period": period, "recommendation": brand.said(what)}
            for name, period, what in (*words.occasions, season)
        ],
        "audience_insights": brand.all_said(words.audience),
        "competitive_strategy": brand.all_said(words.strategy),
        "budget_recommendations": [
            {"channel": name, "share_percent": share, "reason": brand.said(why)}
            for name, share, why in words.budget
        ],
        "channel_recommendations": list(words.media),
        "creative_direction": brand.all_said(words.creative),
        "success_metrics": list(words.metrics),
    }
    if brand.slips("insights", slips):
        made["success_metrics"] = "; ".join(words.metrics)
        made["competitive_strategy"] = "\n".join(f"- {one}" for one in made["competitive_strategy"])
        for share in made["budget_recommendations"]:
            share["share_percent"] = brand.number(f"{share['share_percent']:g} %")
    if "brand_empty" in flaws:
        made["executive_summary"] = ""
    return made


class _Brand:
    """A brand, and what the tables make of its name: the same in every step."""

    def __init__(self, content: Mapping[str, Any], salt: str) -> None:
        self.name = _line(content.get("brand_name")) or "Brand"
        self.parent = _line(content.get("parent_company"))
        self.language: Language = (
            "fa" if _line(content.get("language")).lower().startswith("fa") else "en"
        )
        # by the name alone: every step has it
        self.seed = fingerprint(f"{self.name.casefold()}\x1f{salt}".encode("utf-8", "replace"))
        self.words = _tables().words[self.language]
        self.industry = _industry_of(self.name, self.seed)
        self.beside = _by_name()[self.industry.beside]
        self.others = self._around(self.industry)
        self.partners = self._around(self.beside)
        self.pages = [
            (_line(page.get("title"))[:_LONGEST], _line(page.get("url")))
            for page in _list(content.get("research"))
            if isinstance(page, dict)
        ]
        products = self.industry.products
        competitors = _names_in(content, "competitors")
        self._said = {
            "n": self.name,
            "i": self.in_a_sentence(self.industry.name),
            "a": self.industry.audiences.of(self.language)[0],
            "p": self.in_a_sentence(products[pick(len(products), self.seed, "product")]),
            "c": competitors[0] if competitors else self.shown(self.others[0]),
        }

    def said(self, sentence: str, **words: str) -> str:
        """A sentence about the brand."""
        text = sentence.format_map({**self._said, **words})
        return text[0].upper() + text[1:] if self.language == "en" and text else text

    def in_a_sentence(self, name: _Name) -> str:
        """What stands in the tables with a capital, as it is written inside a sentence."""
        return name.fa if self.language == "fa" else name.en.lower()

    def product(self, thing: _Name) -> str:
        """The name of a product of the brand."""
        return f"{thing.fa} {self.name}" if self.language == "fa" else f"{self.name} {thing.en}"

    def all_said(self, sentences: Iterable[str]) -> list[str]:
        return [self.said(one) for one in sentences]

    def shown(self, pair: tuple[str, str]) -> str:
        """A brand's name in the script in which it writes itself."""
        latin, persian = pair
        return persian if self.language == "fa" and pick(2, "script", latin) else latin

    def related(
        self, pairs: Iterable[tuple[str, str]], relation: str, parent: str = ""
    ) -> list[Made]:
        """Brands in a relation to this one."""
        industry = self.beside if relation == "complementary" else self.industry
        good = relation in ("complementary", "sister")
        made = []
        for pair in pairs:
            seed = f"{self.seed}{pair[0]}"
            made.append(
                {
                    "name": self.shown(pair),
                    "name_fa": pair[1],
                    "parent_company": parent,
                    "category": " > ".join(industry.levels.of(self.language)),
                    "market_position": _POSITIONS[pick(len(_POSITIONS), seed, "position")],
                    "price_tier": _TIERS[pick(len(_TIERS), seed, "tier")],
                    "cross_sell_potential": _GOOD[pick(len(_GOOD), seed)] if good else "low",
                    "reason": self.said(getattr(self.words, relation)),
                }
            )
        return made

    def number(self, text: str) -> str:
        """A number in the digits of the language."""
        return text.translate(_PERSIAN_DIGITS) if self.language == "fa" else text

    def joined(self, texts: Sequence[str]) -> str:
        return ("، " if self.language == "fa" else ", ").join(texts)

    def slips(self, step: str, share: float) -> bool:
        """Whether the answer of a step has another form than was asked for."""
        return draw(self.seed, "slip", step) < share

    def _around(self, industry: _Industry) -> list[tuple[str, str]]:
        """The brands of an industry without this one, beginning anywhere."""
        start = pick(len(industry.brands), self.seed, industry.name.en)
        turned = [*industry.brands[start:], *industry.brands[:start]]
        own = {self.name.casefold(), self.parent.casefold()}
        return [pair for pair in turned if own.isdisjoint(name.casefold() for name in pair)]


def _industry_of(name: str, seed: str) -> _Industry:
    industries = _tables().industries
    known = name.casefold()
    hinted = [one for one in industries if any(hint in known for hint in one.hints)]
    chosen = hinted or industries
    return chosen[pick(len(chosen), seed, "industry")]


def _parts(pairs: Sequence[tuple[str, str]], *sizes: int) -> list[Sequence[tuple[str, str]]]:
    found, at = [], 0
    for size in sizes:
        found.append(pairs[at : at + size])
        at += size
    return found


def _names_in(content: Mapping[str, Any], field: str) -> list[str]:
    """Names in a list of the earlier answer `relationships`, where it is there."""
    earlier = content.get("relationships")
    given = _list(earlier.get(field)) if isinstance(earlier, dict) else []
    names = (_line(one.get("name") if isinstance(one, dict) else one) for one in given)
    return [name for name in names if name]


@cache
def _tables() -> _Tables:
    text = Path(__file__).with_name("brands.yaml").read_text(encoding="utf-8")
    return _Tables.model_validate(yaml.safe_load(text))


@cache
def _by_name() -> Mapping[str, _Industry]:
    return {one.name.en: one for one in _tables().industries}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _line(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
