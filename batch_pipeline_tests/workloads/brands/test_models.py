"""Answers as models give them: read where they are nearly right, strict in what comes out."""

from __future__ import annotations

import copy
import json
from typing import Any, get_args

import jsonschema
import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from batch_pipeline.providers.schemas import anthropic_schema, openai_strict_schema
from batch_pipeline.workloads.brands import models, tolerant
from batch_pipeline.workloads.brands.models import (
    ANSWERS,
    Categorization,
    Insights,
    ProductCatalog,
    Relationships,
)
from batch_pipeline_tests.workloads.brands import samples

WHOLE = {
    "relationships": samples.RELATIONSHIPS,
    "categorization": samples.CATEGORIZATION,
    "product_catalog": samples.CATALOG,
    "insights": samples.INSIGHTS,
}


def relationships(**given: Any) -> Relationships:
    return Relationships.model_validate(given)


def categorization(**given: Any) -> Categorization:
    return Categorization.model_validate({"primary_industry": "Dairy", **given})


@pytest.mark.parametrize("step", ANSWERS)
def test_what_comes_out_satisfies_the_schema_and_reads_as_itself(step: str) -> None:
    model = ANSWERS[step]
    answer = model.model_validate(WHOLE[step])
    dumped = answer.model_dump(mode="json")
    assert model.model_validate(orjson.loads(orjson.dumps(dumped))) == answer
    jsonschema.validate(
        {key: value for key, value in dumped.items() if key != "set_aside"},
        model.model_json_schema(),
    )


@pytest.mark.parametrize("step", ANSWERS)
def test_providers_take_the_schema_and_it_asks_for_every_field(step: str) -> None:
    schema = ANSWERS[step].model_json_schema()
    anthropic_schema(copy.deepcopy(schema))
    assert openai_strict_schema(copy.deepcopy(schema))["required"] == schema["required"]
    text = json.dumps(schema)
    assert "set_aside" not in text and '"default"' not in text
    for part in (schema, *schema.get("$defs", {}).values()):
        if part.get("type") == "object":
            assert part["additionalProperties"] is False
            assert set(part["required"]) == set(part["properties"])


@pytest.mark.parametrize(
    "text",
    [
        "Nike, Adidas, Puma",
        "Nike؛ Adidas؛ Puma",
        "- Nike\n- Adidas\n- Puma",
        "1. Nike\n2. Adidas\n3. Puma",
        "Nike، Adidas، Puma",
        ["Nike", "Adidas", "Puma", "nike", "", None, "N/A"],
        [["Nike", "Adidas"], ["Puma"]],
        {"direct": ["Nike", "Adidas"], "indirect": ["Puma"]},
        [{"name": "Nike"}, {"name": "Adidas"}, {"name": "Puma"}],
    ],
)
def test_a_list_of_names_is_read_in_every_form(text: Any) -> None:
    assert relationships(brand_family=text).brand_family == ["Nike", "Adidas", "Puma"]


@pytest.mark.parametrize(
    "value",
    [
        "Nike, Puma",
        ["Nike", {"brand": "Puma"}],
        {"Nike": "same buyers", "Puma": {"reason": "same shelf"}},
        [{"Brand Name": "Nike"}, {"companyName": "Puma"}, {"brand_name": "NIKE"}],
    ],
)
def test_related_brands_are_read_in_every_form(value: Any) -> None:
    assert [one.name for one in relationships(competitors=value).competitors] == ["Nike", "Puma"]


def test_a_company_with_its_legal_form_is_one_name() -> None:
    assert relationships(brand_family="Nike, Inc., Puma").brand_family == ["Nike, Inc.", "Puma"]


def test_a_sentence_with_commas_is_one_sentence() -> None:
    answer = Insights.model_validate(
        {**samples.INSIGHTS, "audience_insights": "They are young, urban, and busy.\nThey cook."}
    )
    assert answer.audience_insights == ["They are young, urban, and busy.", "They cook."]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (51, 51.0),
        ("51", 51.0),
        ("51.5 %", 51.5),
        ("۵۱٫۵٪", 51.5),
        ("about 40 percent", 40.0),
        ("حدود ۴۰ درصد", 40.0),
        (None, None),
        ("unknown", None),
        ("40-50 %", None),
        (140, None),
        (-3, None),
        (True, None),
        ([51], None),
    ],
)
def test_shares_are_numbers_however_they_are_written(given: Any, read: float | None) -> None:
    answer = relationships(shareholders=[{"name": "Fund", "stake": given}])
    assert answer.shareholders[0].share_percent == read
    said_something = given not in (None, "unknown")
    assert bool(answer.set_aside) == (said_something and read is None)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (12, 12),
        (12.0, 12),
        ("1,200", 1200),
        ("حدود ۱٬۲۰۰ محصول", 1200),
        ("50+", 50),
        ("12.5", None),
        ("10-20", None),
        (-1, None),
        (10**30, None),
        ("many", None),
    ],
)
def test_the_number_of_products_is_a_count(given: Any, read: int | None) -> None:
    answer = ProductCatalog.model_validate({"products": [], "total_products": given})
    assert answer.total_products == read
    assert ("total_products" in answer.set_aside) == (read is None)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("luxury", "luxury"),
        ("LUXURY", "luxury"),
        ("High-End", "premium"),
        ("mid range", "mid_range"),
        ("Mid-Range", "mid_range"),
        ("midrange", "mid_range"),
        ("میان‌رده", "mid_range"),
        ("ميان رده", "mid_range"),
        ("اقتصادی", "economy"),
        ("لوکس", "luxury"),
        ("Premium segment", "premium"),
        ("mid-range to premium", "mid_range"),
        ("economy / mid-range", "economy"),
        (["premium"], "premium"),
        ({"value": "premium"}, "premium"),
        ("not premium", "unknown"),
        ("its price is hard to compare with a premium brand", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        ("N/A", "unknown"),
        (3, "unknown"),
        ({"a": {}}, "unknown"),
    ],
)
def test_price_tiers_are_read(given: Any, read: str) -> None:
    assert categorization(price_tier=given).price_tier == read


@pytest.mark.parametrize(
    ("field", "given", "read"),
    [
        ("business_model", "b2b", "B2B"),
        ("business_model", "B2C / B2B", "hybrid"),
        ("business_model", ["B2C", "B2B"], "hybrid"),
        ("business_model", "B2C and B2B", "hybrid"),
        ("business_model", "B2C و B2B", "hybrid"),
        ("business_model", "Direct-to-Consumer", "D2C"),
        ("business_model", "Business to Consumer", "B2C"),
        ("business_model", "franchise", "unknown"),
        ("market_position", "Market Leader", "leader"),
        ("market_position", "رهبر بازار", "leader"),
        ("market_position", "Niche player", "niche"),
        ("market_position", "Start-up", "new_entrant"),
    ],
)
def test_fixed_words_are_read(field: str, given: Any, read: str) -> None:
    answer = categorization(**{field: given})
    assert getattr(answer, field) == read
    assert (field in answer.set_aside) == (read == "unknown")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (True, "confirmed"),
        (False, "contradicted"),
        ("Verified", "confirmed"),
        ("not verified", "unverified"),
        ("تایید شده", "confirmed"),
        (None, "unverified"),
    ],
)
def test_a_verification_is_read(given: Any, read: str) -> None:
    answer = relationships(parent_company_verification={"verified": given})
    assert answer.parent_company_verification.verdict == read


def test_every_word_of_the_tables_is_one_of_its_models_and_no_spelling_has_two() -> None:
    tables = yaml.safe_load((tolerant._WORDS / "choices.yaml").read_text("utf-8"))
    types = {
        "business_model": models.BusinessModel,
        "price_tier": models.PriceTier,
        "market_position": models.MarketPosition,
        "potential": models.Potential,
        "verification": models.Verification,
    }
    assert tables.keys() == types.keys()
    for name, table in tables.items():
        assert set(table) == set(get_args(types[name])), name
        folded: dict[str, str] = {}
        for word, others in table.items():
            for spelling in (word, *others):
                assert folded.setdefault(tolerant._folded(spelling), word) == word, spelling


@pytest.mark.parametrize(
    ("given", "read"),
    [("C1071", "C1071"), ("c 10.71", "C1071"), (4711, "4711"), ("۴۷۱۱", "4711"),
     ("ISIC: C1071", "C1071"), ("food", ""), ("N/A", "")],
)  # fmt: skip
def test_isic_codes_are_read(given: Any, read: str) -> None:
    answer = categorization(primary_industry={"name": "Food", "isic": given})
    assert answer.primary_industry.isic_code == read


def test_what_was_not_asked_for_is_set_aside_under_its_path() -> None:
    answer = relationships(
        logo="x.png",
        competitors=[{"name": "Nike", "founded": 1964}, {"founded": 1948}],
        subsidiaries=7,
    )
    assert answer.set_aside == {
        "logo": "x.png",
        "competitors.0.founded": 1964,
        "competitors.1.founded": 1948,
        "competitors.1": {"founded": 1948},
        "subsidiaries": 7,
    }
    again = Relationships.model_validate(answer.model_dump())
    assert again == answer


def test_an_answer_may_stand_under_its_steps_name_or_in_a_list() -> None:
    assert Relationships.model_validate({"relationships": {"brand_family": "A"}}).brand_family
    assert Relationships.model_validate([{"brand_family": "A"}]).brand_family


@pytest.mark.parametrize("step", ANSWERS)
@pytest.mark.parametrize(
    "given", [None, "text", 7, [], {}, {"other": 1}, {"set_aside": {"a": 1}}, [{}, {}]]
)
def test_an_answer_that_says_nothing_is_refused_so_that_it_is_asked_again(
    step: str, given: Any
) -> None:
    with pytest.raises(ValidationError):
        ANSWERS[step].model_validate(given)


def test_an_answer_without_its_core_is_refused() -> None:
    with pytest.raises(ValidationError, match="primary_industry has no name"):
        Categorization.model_validate({**samples.CATEGORIZATION, "primary_industry": {}})
    with pytest.raises(ValidationError, match="executive_summary is empty"):
        Insights.model_validate({**samples.INSIGHTS, "executive_summary": "N/A"})


def test_texts_are_kept_in_persian_as_written() -> None:
    answer = Insights.model_validate(samples.INSIGHTS)
    assert "شناخته‌شدهٔ" in answer.executive_summary
    assert answer.executive_summary.count("\n\n") == 1


@pytest.mark.parametrize(
    "given", ["- 0", ["- 0"], {"name": "- 0"}, {"name": "1) - 0"}, ["- - 0", "- N/A"], [["• 0"]]]
)
def test_a_bullet_is_no_part_of_what_is_said(given: Any) -> None:
    answer = Insights.model_validate({**samples.INSIGHTS, "audience_insights": given})
    assert answer.audience_insights == ["0"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.sampled_from(["N/A", "B2B", "لوکس", "51 %", "a, b", "ندارد", "-", "- a\n- b"])
    | st.sampled_from(["- 1) c", "- N/A"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["name", "brand", "share", "category", "reason", "x", "verdict", "status"])
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("step", ANSWERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_a_field_holds_the_answer_is_whole_or_refused(
    step: str, data: st.DataObject
) -> None:
    model = ANSWERS[step]
    names = [name for name in model.model_fields if name != "set_aside"]
    changed = data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=4))
    given_answer = {**WHOLE[step], **changed}
    try:
        answer = model.model_validate(given_answer)
    except ValidationError:
        assert {"primary_industry", "executive_summary"} & changed.keys()
        return
    dumped = answer.model_dump(mode="json")
    assert model.model_validate(dumped) == answer
    asked = {key: value for key, value in dumped.items() if key != "set_aside"}
    jsonschema.validate(asked, model.model_json_schema())
