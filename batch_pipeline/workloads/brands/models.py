"""What models answer in the four LLM steps of a brand.

What belongs here: the output models. What does not: how a crooked answer is read (tolerant.py),
prompts (defs/brands).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from batch_pipeline.workloads.brands.tolerant import (
    Aside,
    Part,
    Reads,
    choice,
    names_a_field,
    number_between,
    read_count,
    read_isic,
    read_line,
    read_names,
    read_part,
    read_prose,
    read_sentences,
)

BusinessModel = Literal["B2C", "B2B", "B2B2C", "B2G", "C2C", "D2C", "hybrid", "unknown"]
PriceTier = Literal["economy", "mid_range", "upper_mid", "premium", "luxury", "unknown"]
MarketPosition = Literal["leader", "challenger", "follower", "niche", "new_entrant", "unknown"]
Potential = Literal["high", "medium", "low", "unknown"]
Verification = Literal["confirmed", "contradicted", "unverified"]

Line = Annotated[str, Reads(read_line)]
Prose = Annotated[str, Reads(read_prose)]
Names = Annotated[list[str], Reads(read_names)]
Sentences = Annotated[list[str], Reads(read_sentences)]
Share = Annotated[float | None, Reads(number_between(0, 100))]
AnyBusinessModel = Annotated[BusinessModel, Reads(choice("business_model", "unknown", "hybrid"))]
AnyPriceTier = Annotated[PriceTier, Reads(choice("price_tier", "unknown"))]
AnyMarketPosition = Annotated[MarketPosition, Reads(choice("market_position", "unknown"))]
AnyPotential = Annotated[Potential, Reads(choice("potential", "unknown"))]
AnyVerification = Annotated[Verification, Reads(choice("verification", "unverified"))]

_UNKNOWN = "empty where it is not known"


class Answer(Part):
    """A whole answer: tolerant of what comes in, strict about what goes out.

    Reading a stored answer again changes nothing.

    Attributes:
        wrapped_in: the step's name: some models put the answer under it.
    """

    wrapped_in: ClassVar[str] = ""

    # not in the schema that models see: what they said beyond it
    set_aside: SkipJsonSchema[dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _tolerate(cls, given: Any) -> Any:
        if isinstance(given, list) and len(given) == 1:
            given = given[0]
        if not isinstance(given, Mapping):
            return given  # pydantic says what is wrong
        inner = given.get(cls.wrapped_in)
        if len(given) == 1 and isinstance(inner, Mapping):
            given = inner
        kept = given.get("set_aside")
        aside: Aside = dict(kept) if isinstance(kept, Mapping) else {}
        rest = {key: value for key, value in given.items() if key != "set_aside"}
        if not names_a_field(cls, rest):
            # an empty answer is none: it must not be kept as if nothing were known
            wanted = ", ".join(name for name in cls.model_fields if name != "set_aside")
            raise ValueError(f"none of {wanted} is there")
        return {**read_part(cls, rest, "", aside), "set_aside": aside}


class RelatedBrand(Part):
    """A brand or company that stands in a relation to the brand."""

    named_by: ClassVar[str] = "name"
    told_in: ClassVar[str] = "reason"
    other_names: ClassVar[Mapping[str, str]] = {
        "brand": "name", "brand_name": "name", "company": "name", "company_name": "name",
        "title": "name", "rationale": "reason", "why": "reason", "description": "reason",
        "relationship": "reason", "parent": "parent_company", "owner": "parent_company",
        "industry": "category", "sector": "category", "position": "market_position",
        "price": "price_tier", "cross_sell": "cross_sell_potential", "persian_name": "name_fa",
        "potential": "cross_sell_potential", "synergy": "cross_sell_potential",
    }  # fmt: skip

    name: Line = Field(description="Name as it is usually written.")
    name_fa: Line = Field(description=f"Persian name; {_UNKNOWN}.")
    parent_company: Line = Field(description=f"Its owner; {_UNKNOWN}.")
    category: Line = Field(
        description="What it sells, from general to particular, at most three levels joined by "
        "' > ', for example 'Food > Dairy > Cheese'."
    )
    market_position: AnyMarketPosition
    price_tier: AnyPriceTier
    cross_sell_potential: AnyPotential = Field(
        description="How well a joint campaign with the brand would sell."
    )
    reason: Line = Field(description="Why it stands here, in one sentence.")


class Shareholder(Part):
    """Somebody who owns a part of the brand's company."""

    named_by: ClassVar[str] = "name"
    counted_in: ClassVar[str] = "share_percent"
    other_names: ClassVar[Mapping[str, str]] = {
        "shareholder": "name", "holder": "name", "owner": "name", "share": "share_percent",
        "percent": "share_percent", "percentage": "share_percent", "stake": "share_percent",
        "ownership": "share_percent", "ownership_percentage": "share_percent",
    }  # fmt: skip

    name: Line
    share_percent: Share = Field(description="From 0 to 100; null where it is not known.")


class ParentVerification(Part):
    """Whether the parent company of the input is right."""

    other_names: ClassVar[Mapping[str, str]] = {
        "status": "verdict", "verified": "verdict", "is_verified": "verdict", "result": "verdict",
        "found": "found_parent", "actual_parent": "found_parent", "reason": "evidence",
        "explanation": "evidence", "notes": "evidence", "urls": "sources", "source": "sources",
    }  # fmt: skip
    named_by: ClassVar[str] = "verdict"

    verdict: AnyVerification = Field(
        description="Whether the research confirms the given parent company."
    )
    found_parent: Line = Field(description=f"The parent company that it names; {_UNKNOWN}.")
    evidence: Line = Field(description="What says so, in one sentence.")
    sources: Names = Field(description="Addresses of the pages that say so, from the research.")


class Relationships(Answer):
    """Who owns the brand, whom it belongs with, whom it competes with."""

    wrapped_in: ClassVar[str] = "relationships"
    other_names: ClassVar[Mapping[str, str]] = {
        "parent": "parent_company", "ultimate_parent_company": "ultimate_parent",
        "sisters": "sister_brands", "owners": "shareholders", "family": "brand_family",
        "similar": "similar_brands", "complementary": "complementary_brands",
        "parent_verification": "parent_company_verification",
    }  # fmt: skip

    parent_company: Line = Field(description=f"The company that owns the brand; {_UNKNOWN}.")
    ultimate_parent: Line = Field(description=f"The group at the top; {_UNKNOWN}.")
    subsidiaries: list[RelatedBrand] = Field(description="Companies and brands that it owns.")
    sister_brands: list[RelatedBrand] = Field(description="Other brands of the same owner.")
    shareholders: list[Shareholder]
    affiliates: list[RelatedBrand] = Field(description="Companies tied to it without owning.")
    brand_family: Names = Field(description="Product lines and sub-brands under its name.")
    competitors: list[RelatedBrand] = Field(description="Brands that the same buyers consider.")
    similar_brands: list[RelatedBrand] = Field(description="Alike, without competing.")
    complementary_brands: list[RelatedBrand] = Field(description="Bought or used together with it.")
    parent_company_verification: ParentVerification


class Industry(Part):
    """An industry in both languages, with its place in a tree of three levels."""

    named_by: ClassVar[str] = "name_en"
    other_names: ClassVar[Mapping[str, str]] = {
        "name": "name_en", "industry": "name_en", "english_name": "name_en", "en": "name_en",
        "persian_name": "name_fa", "fa": "name_fa", "isic": "isic_code", "code": "isic_code",
        "level1": "level_1", "level2": "level_2", "level3": "level_3",
        "category_level_1": "level_1", "category_level_2": "level_2", "category_level_3": "level_3",
    }  # fmt: skip

    name_en: Line = Field(description="English name.")
    name_fa: Line = Field(description="Persian name.")
    isic_code: Annotated[str, Reads(read_isic)] = Field(
        description="Code of ISIC Rev. 4, such as C1071; empty where it is not certain."
    )
    level_1: Line = Field(description="Broadest category.")
    level_2: Line
    level_3: Line = Field(description="Narrowest category.")


class Categorization(Answer):
    """What kind of brand it is, for whom, at what price."""

    wrapped_in: ClassVar[str] = "categorization"
    other_names: ClassVar[Mapping[str, str]] = {
        "industry": "primary_industry", "subindustries": "sub_industries",
        "categories": "product_categories", "audiences": "target_audiences",
        "target_audience": "target_audiences", "channels": "distribution_channels",
        "price_segment": "price_tier", "position": "market_position",
    }  # fmt: skip

    primary_industry: Industry
    sub_industries: Names
    product_categories: Names
    business_model: AnyBusinessModel
    price_tier: AnyPriceTier
    target_audiences: Sentences = Field(description="Groups of buyers, one phrase each.")
    distribution_channels: Names
    market_position: AnyMarketPosition

    @model_validator(mode="after")
    def _has_an_industry(self) -> Categorization:
        industry = self.primary_industry
        if not (industry.name_en or industry.name_fa or industry.level_1):
            raise ValueError("primary_industry has no name")
        return self


class CatalogEntry(Part):
    """A product or a service."""

    named_by: ClassVar[str] = "name"
    told_in: ClassVar[str] = "description"
    other_names: ClassVar[Mapping[str, str]] = {
        "product": "name", "product_name": "name", "service": "name", "service_name": "name",
        "title": "name", "type": "category", "details": "description", "target": "target_market",
        "audience": "target_market", "target_audience": "target_market",
    }  # fmt: skip

    name: Line
    category: Line
    description: Line = Field(description="One sentence.")
    target_market: Line = Field(description="Who buys it.")


class ProductCatalog(Answer):
    """What the brand sells."""

    wrapped_in: ClassVar[str] = "product_catalog"
    other_names: ClassVar[Mapping[str, str]] = {
        "product_list": "products", "service_list": "services", "total": "total_products",
        "product_categories": "categories", "product_count": "total_products",
    }  # fmt: skip

    products: list[CatalogEntry]
    services: list[CatalogEntry]
    categories: Names
    total_products: Annotated[int | None, Reads(read_count)] = Field(
        description="How many products it has in all, also those not listed; null where it is not "
        "known."
    )


class CrossPromotion(Part):
    """A partner for a joint campaign."""

    named_by: ClassVar[str] = "partner_brand"
    told_in: ClassVar[str] = "rationale"
    other_names: ClassVar[Mapping[str, str]] = {
        "partner": "partner_brand", "brand": "partner_brand", "name": "partner_brand",
        "brand_name": "partner_brand", "reason": "rationale", "why": "rationale",
        "reach": "potential_reach", "approach": "recommended_approach",
        "recommendation": "recommended_approach", "when": "timing", "period": "timing",
    }  # fmt: skip

    partner_brand: Line
    rationale: Line
    potential_reach: Line
    recommended_approach: Line
    timing: Line


class CampaignTiming(Part):
    """A time of the year that is worth a campaign."""

    named_by: ClassVar[str] = "occasion"
    told_in: ClassVar[str] = "recommendation"
    other_names: ClassVar[Mapping[str, str]] = {
        "event": "occasion", "name": "occasion", "season": "occasion", "timing": "period",
        "when": "period", "date": "period", "reason": "recommendation", "why": "recommendation",
        "rationale": "recommendation", "description": "recommendation",
    }  # fmt: skip

    occasion: Line = Field(description="For example Nowruz, Yalda, back to school.")
    period: Line = Field(description="When to begin and to end.")
    recommendation: Line


class BudgetShare(Part):
    """Which part of a budget goes where."""

    named_by: ClassVar[str] = "channel"
    told_in: ClassVar[str] = "reason"
    counted_in: ClassVar[str] = "share_percent"
    other_names: ClassVar[Mapping[str, str]] = {
        "name": "channel", "item": "channel", "area": "channel", "percent": "share_percent",
        "percentage": "share_percent", "share": "share_percent", "allocation": "share_percent",
        "rationale": "reason", "why": "reason", "description": "reason",
    }  # fmt: skip

    channel: Line
    share_percent: Share = Field(description="From 0 to 100; null where it cannot be said.")
    reason: Line


class Insights(Answer):
    """What an advertiser should do with all this."""

    wrapped_in: ClassVar[str] = "insights"
    other_names: ClassVar[Mapping[str, str]] = {
        "summary": "executive_summary", "cross_promotion": "cross_promotion_opportunities",
        "timing": "campaign_timing", "audience": "audience_insights",
        "budget": "budget_recommendations", "channels": "channel_recommendations",
        "creative": "creative_direction", "metrics": "success_metrics", "kpis": "success_metrics",
    }  # fmt: skip

    executive_summary: Prose = Field(description="Two to four paragraphs for a decision maker.")
    cross_promotion_opportunities: list[CrossPromotion]
    campaign_timing: list[CampaignTiming]
    audience_insights: Sentences
    competitive_strategy: Sentences
    budget_recommendations: list[BudgetShare]
    channel_recommendations: Sentences
    creative_direction: Sentences
    success_metrics: Sentences

    @model_validator(mode="after")
    def _has_a_summary(self) -> Insights:
        if not self.executive_summary:
            raise ValueError("executive_summary is empty")
        return self


ANSWERS: Mapping[str, type[Answer]] = {
    "relationships": Relationships,
    "categorization": Categorization,
    "product_catalog": ProductCatalog,
    "insights": Insights,
}
"""By step, in the order in which they are asked."""
