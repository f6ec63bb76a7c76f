"""Results that nobody was asked for: plausible, the same every time, never a real site."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.search.base import SearchAnswer
from batch_pipeline.search.heuristic import heuristic_results
from batch_pipeline.search.intents import intent_of, intents_of_results

TOPICS = ["löparskor", "dämpning", "terräng"]


def _results(
    query: str, entity: str = "Asics", language: Literal["sv", "en"] = "sv"
) -> SearchAnswer:
    return heuristic_results(query, entity=entity, topics=TOPICS, language=language, country="SE")


@pytest.mark.parametrize("language", ["sv", "en"])
@pytest.mark.parametrize(
    "query",
    [
        "löparskor",
        "hur väljer man löparskor",
        "bästa löparskor",
        "asics vs nike",
        "köp löparskor",
        "Asics",
        "asics kundtjänst",
        "skobutik nära mig",
        "how to run",
        "running shoes review",
        "buy shoes",
    ],
)
def test_the_results_serve_what_the_query_wants(query: str, language: Literal["sv", "en"]) -> None:
    results = _results(query, language=language).results
    assert intents_of_results(results, "Asics")[0] == intent_of(query, "Asics")


def test_titles_name_the_topics_and_the_entity_and_begin_with_a_capital() -> None:
    titles = [result["title"] for result in _results("löparskor").results]
    assert all(any(word in title.lower() for word in [*TOPICS, "asics"]) for title in titles)
    assert all(title[0] == title[0].upper() for title in titles)
    assert all(any(topic in title.lower() for title in titles) for topic in TOPICS)


def test_each_language_has_its_own_titles() -> None:
    swedish, english = (_results("skor", language=one).results for one in ("sv", "en"))
    assert {r["title"] for r in swedish}.isdisjoint(r["title"] for r in english)


def test_without_entity_and_topics_the_query_itself_is_the_topic() -> None:
    answer = heuristic_results("bästa elcykel", entity="", topics=[], language="sv", country="se")
    assert all("elcykel" in result["title"].lower() for result in answer.results)
    assert not any("bästa elcykel" in result["title"].lower() for result in answer.results)
    assert all(result["title"].lower().count("elcykel") == 1 for result in answer.results)


@settings(deadline=None)
@given(
    st.text(max_size=60),
    st.text(max_size=30),
    st.lists(st.text(max_size=40), max_size=5),
    st.sampled_from(["sv", "en"]),
    st.sampled_from(["se", "US"]),
)
def test_there_are_always_ten_whole_results_at_reserved_hosts(
    query: str, entity: str, topics: list[str], language: Literal["sv", "en"], country: str
) -> None:
    answer = heuristic_results(
        query, entity=entity, topics=topics, language=language, country=country
    )
    assert [result["position"] for result in answer.results] == list(range(1, 11))
    assert len({result["title"] for result in answer.results}) == 10
    for result in answer.results:
        host = urlsplit(result["url"]).hostname or ""
        assert host == result["domain"] and host.endswith(".example")
        assert result["title"] and result["snippet"]
        assert f"/{country.lower()}/" in result["url"]
    again = heuristic_results(
        query, entity=entity, topics=topics, language=language, country=country
    )
    assert again == answer
