"""The output model takes what can be used and refuses the rest, with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from batch_pipeline.workloads.news.model import NewsClassification

GOOD: dict[str, Any] = {
    "is_financial": "Yes",
    "country": ["Türkiye"],
    "sector": ["Banking"],
    "companies": ["Ege Bank"],
    "sentiment": "Positive",
    "confident_score": 9.5,
    "summary_en": "The bank earned more. It pays a dividend.",
    "summary_tr": "Banka daha çok kazandı. Temettü ödüyor.",
}


def test_a_good_answer_is_kept_as_it_is() -> None:
    assert NewsClassification.model_validate(GOOD).model_dump(mode="json") == GOOD


def test_names_come_out_once_each_and_without_empty_ones() -> None:
    given = {**GOOD, "companies": [" Ege  Bank", "", "ege bank", "Kuzey", "  "], "country": []}
    found = NewsClassification.model_validate(given)
    assert (found.companies, found.country) == (["Ege Bank", "Kuzey"], [])


def test_a_whole_number_is_a_score() -> None:
    assert NewsClassification.model_validate({**GOOD, "confident_score": 7}).confident_score == 7.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("is_financial", "yes"),
        ("is_financial", True),
        ("sentiment", "Mixed"),
        ("confident_score", 0.9),
        ("confident_score", 10.1),
        ("confident_score", "9"),
        ("confident_score", float("nan")),
        ("country", "Türkiye"),
        ("companies", [None]),
        ("summary_en", "  "),
        ("summary_tr", ""),
        ("extracted_characters", 5),
    ],
)
def test_what_is_out_of_range_or_empty_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as error:
        NewsClassification.model_validate({**GOOD, field: value})
    assert field in str(error.value)


def test_every_field_is_required() -> None:
    for name in GOOD:
        with pytest.raises(ValidationError):
            NewsClassification.model_validate({k: v for k, v in GOOD.items() if k != name})
    assert set(NewsClassification.model_json_schema()["required"]) == set(GOOD)
