"""A finished brand in Persian and one in English, invented for the tests.

What belongs here: answers as models give them, records made from them. What does not: assertions.
"""

from __future__ import annotations

from typing import Any

from batch_pipeline.workloads.brands.models import (
    Categorization,
    Insights,
    ProductCatalog,
    Relationships,
)
from batch_pipeline.workloads.brands.record import BrandRecord, Source

RELATIONSHIPS: dict[str, Any] = {
    "parent_company": "گروه صنعتی آبان",
    "ultimate_parent": "هلدینگ آبان",
    "subsidiaries": [],
    "sister_brands": [{"name": "پونا", "category": "غذا > لبنیات > پنیر"}],
    "shareholders": [{"name": "هلدینگ آبان", "share": "۵۱٫۵٪"}, {"name": "بورس", "share": 48.5}],
    "affiliates": None,
    "brand_family": "مهرسا کلاسیک، مهرسا لایت",
    "competitors": [
        {
            "name": "Danette",
            "name_fa": "دنت",
            "parent_company": "Danone",
            "category": "Food > Dairy > Desserts",
            "market_position": "Market Leader",
            "price_tier": "پریمیوم",
            "cross_sell_potential": "کم",
            "reason": "دسر Danette برای همان خریداران است.",
        },
        {"name": '=HYPERLINK("http://x.example")', "price_tier": "luxury"},
    ],
    "similar_brands": [],
    "complementary_brands": [{"brand": "نان سحر", "cross_sell": "زیاد", "why": "صبحانه"}],
    "parent_company_verification": {
        "verified": True,
        "evidence": "صفحهٔ «درباره ما» از گروه آبان نام می‌برد.",
        "sources": ["https://mehrsa.example/about"],
    },
}
CATEGORIZATION: dict[str, Any] = {
    "primary_industry": {
        "name_en": "Dairy",
        "name_fa": "لبنیات",
        "isic_code": "C1050",
        "level_1": "صنایع غذایی",
        "level_2": "لبنیات",
        "level_3": "ماست و پنیر",
    },
    "sub_industries": ["پنیر", "ماست"],
    "product_categories": ["ماست", "پنیر", "شیر"],
    "business_model": "B2C",
    "price_tier": "میان‌رده",
    "target_audiences": ["خانواده‌های شهری", "دانشجویان"],
    "distribution_channels": ["سوپرمارکت", "Digikala", "اسنپ"],
    "market_position": "challenger",
}
CATALOG: dict[str, Any] = {
    "products": [
        {
            "name": "ماست پروبیوتیک Mehrsa Plus",
            "category": "ماست",
            "description": "ماست با ۳ نوع باکتری مفید، در بستهٔ 500 g.",
            "target_market": "خانواده‌ها",
        },
        {"name": "<script>alert(1)</script>", "description": "**نه** [x](javascript:alert(1))"},
    ],
    "services": [],
    "categories": ["ماست", "پنیر"],
    "total_products": "حدود ۱۲۰",
}
INSIGHTS: dict[str, Any] = {
    "executive_summary": "Mehrsa یکی از برندهای شناخته‌شدهٔ لبنیات ایران است و زیر نظر گروه صنعتی "
    "آبان کار می‌کند.\n\nرقیب اصلی آن Danette (Danone) است؛ مهرسا با قیمت میانه و پخش گسترده در "
    "Digikala و سوپرمارکت‌ها رقابت می‌کند.",
    "cross_promotion_opportunities": [
        {
            "partner_brand": "نان سحر",
            "rationale": "هر دو بر سر سفرهٔ صبحانه‌اند.",
            "potential_reach": "۲ میلیون خانوار",
            "recommended_approach": "بستهٔ مشترک در Digikala",
            "timing": "مهر",
        }
    ],
    "campaign_timing": [{"occasion": "نوروز", "period": "۱ تا ۲۰ اسفند", "why": "خرید عید"}],
    "audience_insights": ["خریداران جوان برچسب را می‌خوانند.", "Instagram کانال نخست آنان است."],
    "competitive_strategy": "- قیمت ثابت\n- بستهٔ خانواده",
    "budget_recommendations": {"Instagram": "40%", "تلویزیون": {"share": 35, "reason": "پوشش"}},
    "channel_recommendations": ["Instagram", "تلویزیون"],
    "creative_direction": ["سفرهٔ صبحانه، نور صبح"],
    "success_metrics": ["شناخت برند", "سهم بازار"],
}


def persian_brand(**changes: Any) -> BrandRecord:
    """A dairy brand whose texts are Persian with Latin names in them."""
    given: dict[str, Any] = {
        "brand_name": "مهرسا",
        "website": "https://mehrsa.example/",
        "parent_company": "گروه صنعتی آبان",
        "batch_id": "iran-1",
        "item_id": "a1b2c3",
        "number": 7,
        "made_at": 1_793_880_000.0,
        "simulated": False,
        "relationships": Relationships.model_validate(RELATIONSHIPS),
        "categorization": Categorization.model_validate(CATEGORIZATION),
        "product_catalog": ProductCatalog.model_validate(CATALOG),
        "insights": Insights.model_validate(INSIGHTS),
        "sources": (
            Source("درباره مهرسا | Mehrsa", "https://mehrsa.example/about"),
            Source("click <b>me</b>", "javascript:alert(1)"),
        ),
        "models": {"insights": "google/gemini-3.1-flash-lite"},
    }
    return BrandRecord(**{**given, **changes})


def bare_brand(**changes: Any) -> BrandRecord:
    """A brand of which hardly anything is known, in English."""
    return persian_brand(
        **{
            "brand_name": ".NET",
            "website": "",
            "parent_company": "",
            "relationships": Relationships.model_validate({"competitors": []}),
            "categorization": Categorization.model_validate({"primary_industry": "Software"}),
            "product_catalog": ProductCatalog.model_validate({"products": []}),
            "insights": Insights.model_validate({"executive_summary": "A platform for programs."}),
            "sources": (),
            **changes,
        }
    )
