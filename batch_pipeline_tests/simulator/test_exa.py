"""The simulated Exa as its documents describe it: parameters, prices, limit, journal."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from batch_pipeline_tests.simulator.running import Running

SEARCH = "/exa/search"


def _post(simulator: Running, key: str = "exa-key", **body: Any) -> httpx.Response:
    return simulator.http.post(SEARCH, json=body, headers={"x-api-key": key})


def _search(simulator: Running, query: str = "zero trust", **more: Any) -> httpx.Response:
    return _post(simulator, query=query, **more)


def test_a_reply_has_the_fields_of_the_real_one(simulator: Running) -> None:
    reply = _search(simulator, numResults=2, contents={"text": True, "highlights": True}).json()
    assert set(reply) == {"requestId", "resolvedSearchType", "results", "searchTime", "costDollars"}
    assert reply["costDollars"] == {"total": 0.007, "search": {"neural": 0.007}}
    assert len(reply["results"]) == 2
    for row in reply["results"]:
        assert set(row) == {
            "id", "title", "url", "publishedDate", "author", "text", "highlights",
            "highlightScores",
        }  # fmt: skip
        assert row["text"].startswith(row["highlights"][0])


def test_contents_come_only_where_they_are_asked_for(simulator: Running) -> None:
    row = _search(simulator, numResults=1).json()["results"][0]
    assert "text" not in row and "highlights" not in row
    cut = _search(simulator, numResults=1, contents={"text": {"maxCharacters": 90}}).json()
    assert len(cut["results"][0]["text"]) == 90


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "query"),
        ({"query": " "}, "query"),
        ({"query": 5}, "query"),
        ({"query": "q", "type": "wrong"}, "type"),
        ({"query": "q", "numResults": 101}, "numResults"),
        ({"query": "q", "numResults": "5"}, "numResults"),
        ({"query": "q", "userLocation": "iran"}, "userLocation"),
        ({"query": "q", "contents": "text"}, "contents"),
    ],
)
def test_a_wrong_parameter_is_a_400_in_words(
    simulator: Running, body: dict[str, Any], words: str
) -> None:
    reply = _post(simulator, **body)
    assert reply.status_code == 400
    assert words in reply.json()["error"] and reply.json()["tag"].startswith("INVALID_")


def test_a_body_that_is_no_json_object_is_a_400(simulator: Running) -> None:
    for raw in (b"{", b"[1]"):
        reply = simulator.http.post(SEARCH, content=raw, headers={"x-api-key": "k"})
        assert reply.status_code == 400


def test_a_call_needs_a_good_key_in_either_header(simulator: Running) -> None:
    assert simulator.http.post(SEARCH, json={"query": "q"}).status_code == 401
    assert _post(simulator, key="bad-key", query="q").json()["tag"] == "INVALID_API_KEY"
    bearer = {"authorization": "Bearer exa-key"}
    assert simulator.http.post(SEARCH, json={"query": "q"}, headers=bearer).status_code == 200


def test_the_same_question_has_the_same_answer_in_every_country_its_own(
    simulator: Running,
) -> None:
    assert _search(simulator).json()["results"] == _search(simulator).json()["results"]
    other = _search(simulator, userLocation="IR").json()["results"]
    assert _search(simulator).json()["results"] != other


def test_persian_words_find_persian_pages(simulator: Running) -> None:
    row = _search(simulator, "برند دیجی‌کالا", contents={"text": True}).json()["results"][0]
    assert "برند دیجی‌کالا" in row["title"] and "برند دیجی‌کالا" in row["text"]
    assert "This page" not in row["text"]


def test_what_a_search_costs_is_money_in_the_journal(simulator: Running) -> None:
    simulator.chat("hello")
    before = simulator.summary()
    _search(simulator)
    _search(simulator, type="deep", numResults=12)
    _search(simulator, "")
    after = simulator.summary()
    entries = simulator.journal()[1:]
    assert [(e["provider"], e["status"], e["billed"]) for e in entries] == [
        ("exa", 200, True), ("exa", 200, True), ("exa", 400, False)
    ]  # fmt: skip
    assert [entry["price_usd"] for entry in entries] == pytest.approx([0.007, 0.014, 0.0])
    assert after["price_usd"] == pytest.approx(before["price_usd"] + 0.021)
    assert after["unpriced"] == 0 and after["billed"] == before["billed"] + 2
    assert after["by_provider"]["exa"] == 3


def test_the_limit_is_ten_a_second_for_each_key_and_says_no_wait(simulator: Running) -> None:
    replies = [_search(simulator) for _ in range(60)]
    statuses = [reply.status_code for reply in replies]
    assert statuses[:10] == [200] * 10
    assert 429 in statuses
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.json()["tag"] == "RATE_LIMIT_EXCEEDED"
    assert not {name for name in refused.headers if "ratelimit" in name or name == "retry-after"}
    assert _post(simulator, key="another-key", query="q").status_code == 200


def test_a_spent_account_answers_402(simulator: Running) -> None:
    simulator.configure(key_marks={"exa-key": "no_credit"})
    assert _search(simulator).json()["tag"] == "NO_MORE_CREDITS"
    simulator.configure(key_marks={"exa-key": "spend_limit"})
    reply = _search(simulator)
    assert (reply.status_code, reply.json()["tag"]) == (402, "API_KEY_BUDGET_EXCEEDED")


def test_a_fault_finds_the_words_searched_for(simulator: Running) -> None:
    fault = {"kind": "status", "status": 503, "provider": "exa", "match": "zero trust"}
    simulator.configure(faults=[fault, {"kind": "drop_id"}])
    assert _search(simulator, "what is zero trust").status_code == 503
    assert _search(simulator, "phishing").status_code == 200
    assert [entry["fault"] for entry in simulator.journal()] == ["status", None]


def test_a_fault_can_be_billed_against_the_rule(simulator: Running) -> None:
    fault = {"kind": "status", "status": 500, "provider": "exa", "billed": True}
    simulator.configure(faults=[fault])
    _search(simulator)
    assert simulator.journal()[0]["price_usd"] == pytest.approx(0.007)


def test_search_providers_take_no_limits_of_models(simulator: Running) -> None:
    for provider in ("exa", "tavily"):
        reply = simulator.http.put("/_sim/config", json={"limits": [{"provider": provider}]})
        assert reply.status_code == 400 and "exa_per_second" in reply.text
