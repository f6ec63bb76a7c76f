"""What searchers want: word lists in two languages, and whole pages of results."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.search.intents import (
    INTENTS,
    intent_of,
    intents_of_results,
    subject_of,
)


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("köp löparskor", "transactional"),
        ("löparskor pris", "transactional"),
        ("buy running shoes", "transactional"),
        ("running shoe prices", "transactional"),
        ("bästa löparskor", "commercial_research"),
        ("löparskor test", "commercial_research"),
        ("asics vs nike", "commercial_research"),
        ("running shoes review", "commercial_research"),
        ("hur väljer man löparskor", "info_primary"),
        ("vad är pronation", "info_primary"),
        ("running guide", "info_primary"),
        ("bank login", "support"),
        ("telia kundtjänst", "support"),
        ("frisör nära mig", "local"),
        ("tandläkare Göteborg", "local"),
        ("dentist near me", "local"),
        ("löparskor", "info_primary"),
        ("", "info_primary"),
        ("…!", "info_primary"),
    ],
)
def test_the_words_of_a_text_say_what_is_wanted(text: str, intent: str) -> None:
    assert intent_of(text) == intent
    assert intent_of(text.upper()) == intent


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("bästa priset på löparskor", "transactional"),
        ("köp löparskor nära mig", "local"),
        ("logga in köp", "support"),
        ("what is the best guide", "commercial_research"),
    ],
)
def test_where_words_point_to_several_intents_the_more_special_one_wins(
    text: str, intent: str
) -> None:
    assert intent_of(text) == intent


def test_a_longer_phrase_takes_its_words_away_from_shorter_ones() -> None:
    assert intent_of("jämför priser på el") == "commercial_research"
    assert intent_of("a buying guide to shoes") == "commercial_research"


def test_a_question_is_never_a_purchase() -> None:
    assert intent_of("hur mycket kostar en begravning") == "info_primary"
    assert intent_of("How to program your mind to stop buying crap") == "info_primary"
    assert intent_of("Which laptop is best?") == "commercial_research"


@pytest.mark.parametrize(
    ("text", "entity", "intent"),
    [
        ("Volvo", "Volvo", "navigational_brand"),
        ("volvo", "Volvo Cars", "navigational_brand"),
        ("Volvo XC90", "Volvo", "info_primary"),
        ("Best Buy", "Best Buy", "navigational_brand"),
        ("best buy login", "Best Buy", "support"),
        ("best buy review", "Best Buy", "commercial_research"),
        ("Volvo hemsida", "Volvo", "navigational_brand"),
        ("Så", "Så", "navigational_brand"),
    ],
)
def test_a_name_says_nothing_but_itself(text: str, entity: str, intent: str) -> None:
    assert intent_of(text, entity) == intent


def test_what_a_query_is_about_is_what_remains() -> None:
    assert subject_of("Bästa löparskor i test") == "löparskor i"
    assert subject_of("köp") == ""


def _result(title: str, position: int = 1, **fields: Any) -> dict[str, Any]:
    return {"position": position, "title": title, "url": "", "type": "organic", **fields}


def test_results_lead_with_what_most_of_the_upper_ones_serve() -> None:
    results = [_result("Köp skor"), _result("Skor: pris"), _result("Skor: guide")]
    assert intents_of_results(results) == ("transactional", "info_primary")


def test_a_second_intent_needs_a_fifth_of_the_weight() -> None:
    results = [_result("Köp skor")] * 9 + [_result("Skor: guide")]
    assert intents_of_results(results) == ("transactional", None)


def test_results_without_a_leading_intent_are_mixed() -> None:
    titles = ["Guide", "Köp", "Test", "Kundtjänst", "Köp", "Guide", "Test", "Kundtjänst"]
    primary, secondary = intents_of_results([_result(title) for title in titles])
    assert primary == "mixed" and secondary in INTENTS


def test_a_result_says_what_it_serves_by_type_then_title_then_address() -> None:
    shopping = _result("A guide", type="shopping")
    assert intents_of_results([shopping]) == ("transactional", None)
    review = _result("Skor", url="https://a.example/recension/skor")
    assert intents_of_results([review]) == ("commercial_research", None)
    product = _result("Skor", url="https://a.example/produkter/1")
    assert intents_of_results([product]) == ("transactional", None)


def test_a_home_page_of_the_entity_is_the_brand() -> None:
    home = _result("Volvo Cars", url="https://www.volvocars.example/", domain="volvocars.example")
    assert intents_of_results([home], "Volvo Cars") == ("navigational_brand", None)


def test_results_that_say_nothing_do_not_count() -> None:
    assert intents_of_results([]) == ("info_primary", None)
    assert intents_of_results([_result("Skor"), _result("Köp skor")]) == ("transactional", None)
    odd: list[dict[str, Any]] = [{}, {"title": None, "url": "https://[broken", "type": None}]
    assert intents_of_results(odd) == ("info_primary", None)


@given(st.text(max_size=80), st.text(max_size=20))
def test_every_text_has_an_intent(text: str, entity: str) -> None:
    assert intent_of(text, entity) in INTENTS
