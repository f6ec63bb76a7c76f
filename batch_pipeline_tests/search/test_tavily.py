"""The Tavily codec: against the simulator over HTTP, and replies that it would not give."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from batch_pipeline.providers.base import ErrorKind, ProviderError, WireReply
from batch_pipeline.search.base import SearchQuery
from batch_pipeline.search.registry import SEARCH_PROVIDERS
from batch_pipeline_tests.search.asking import ask, failure
from batch_pipeline_tests.simulated import Simulator

TAVILY = SEARCH_PROVIDERS["tavily"]
CODEC = TAVILY.codec


def _body(query: SearchQuery) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(CODEC.build(query, key="k", base_url="https://x").body)
    return body


def _refused(status: int, body: bytes, **headers: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        CODEC.read(WireReply(status, headers, body))
    return caught.value


def test_a_search_gives_pages_with_scores_and_what_it_cost(simulator: Simulator) -> None:
    answer = ask(simulator, "tavily", SearchQuery("digikala", "ir", 10, text_chars=900))
    assert [result["position"] for result in answer.results] == list(range(1, 11))
    for result in answer.results:
        assert set(result) == {
            "position", "title", "url", "snippet", "domain", "type", "text", "score"
        }  # fmt: skip
        assert "digikala" in result["snippet"] and len(result["text"]) == 900
    scores = [result["score"] for result in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert answer.facts == {"credits": 1.0}
    assert answer.cost_usd == pytest.approx(0.008)
    entry = simulator.journal()[-1]
    assert (entry["provider"], entry["units"]) == ("tavily", 1)
    assert (entry["price_usd"], entry["billed"]) == (pytest.approx(0.008), True)


def test_without_text_there_are_extracts_only(simulator: Simulator) -> None:
    results = ask(simulator, "tavily", SearchQuery("digikala", "ir", 3)).results
    assert all(result["snippet"] and "text" not in result for result in results)


@pytest.mark.parametrize(
    ("depth", "usd"), [("", 0.008), ("basic", 0.008), ("ultra-fast", 0.008), ("advanced", 0.016)]
)
def test_a_query_never_costs_more_than_the_price_list_says(
    simulator: Simulator, depth: str, usd: float
) -> None:
    query = SearchQuery("digikala", "ir", 5, depth=depth)
    assert ask(simulator, "tavily", query).cost_usd == pytest.approx(usd)
    assert TAVILY.worst_usd(query) == pytest.approx(usd)


def test_a_call_is_a_post_with_the_key_in_its_header_only() -> None:
    query = SearchQuery(" برند \n دیجی‌کالا ", "IR", 30, 2_000, "advanced", ("a.example",))
    call = CODEC.build(query, key="tvly-the-key", base_url="https://api.tavily.com")
    assert (call.method, call.url) == ("POST", "https://api.tavily.com/search")
    assert call.headers["authorization"] == "Bearer tvly-the-key"
    assert b"the-key" not in call.body
    assert orjson.loads(call.body) == {
        "query": "برند دیجی‌کالا",
        "search_depth": "advanced",
        "max_results": 20,
        "include_usage": True,
        "include_raw_content": "text",
        "include_domains": ["a.example"],
        "country": "iran",
    }


@pytest.mark.parametrize(
    ("code", "name"),
    [("se", "sweden"), ("NO", "norway"), ("us", "united states"), ("gb", "united kingdom")],
)
def test_countries_are_named_as_tavily_names_them(code: str, name: str) -> None:
    assert _body(SearchQuery("q", code))["country"] == name


def test_a_country_that_tavily_does_not_know_is_left_out(simulator: Simulator) -> None:
    assert "country" not in _body(SearchQuery("q", "gl"))
    assert "country" not in _body(SearchQuery("q", ""))
    assert ask(simulator, "tavily", SearchQuery("q", "gl")).results


def test_only_the_named_sites_are_searched(simulator: Simulator) -> None:
    query = SearchQuery("q", "us", 4, domains=("shop.example",))
    found = {result["domain"] for result in ask(simulator, "tavily", query).results}
    assert found == {"shop.example"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ErrorKind.ITEM_PERMANENT),
        (401, ErrorKind.BATCH_FATAL),
        (403, ErrorKind.BATCH_FATAL),
        (429, ErrorKind.RATE_LIMITED),
        (432, ErrorKind.BATCH_FATAL),
        (433, ErrorKind.BATCH_FATAL),
        (500, ErrorKind.TRANSIENT),
        (503, ErrorKind.TRANSIENT),
    ],
)
def test_each_status_says_what_comes_next(
    simulator: Simulator, status: int, kind: ErrorKind
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": status, "provider": "tavily"}])
    error = failure(simulator, "tavily")
    assert (error.kind, error.status, error.retry_after_s) == (kind, status, None)
    assert error.message and "{" not in error.message, "Tavily's own words"
    assert not error.maybe_billed and simulator.journal()[-1]["price_usd"] == 0


@pytest.mark.parametrize(
    ("fault", "paid"),
    [
        ({"kind": "html"}, False),
        ({"kind": "html", "status": 200}, False),
        ({"kind": "error_body"}, False),
        ({"kind": "malformed_json"}, True),
        ({"kind": "cut"}, True),
        ({"kind": "cut_body"}, True),
        ({"kind": "refuse"}, False),
    ],
)
def test_a_broken_reply_is_worth_another_try_and_may_have_been_paid(
    simulator: Simulator, fault: dict[str, Any], paid: bool
) -> None:
    simulator.configure(faults=[{**fault, "provider": "tavily", "count": 1}])
    error = failure(simulator, "tavily")
    assert error.kind is ErrorKind.TRANSIENT
    assert (simulator.journal()[-1]["price_usd"] > 0) is paid
    assert error.maybe_billed or not paid, "what was paid is never taken to be free"
    assert len(simulator.journal()) == 1


def test_a_bad_key_and_spent_plans_are_every_querys_fault(simulator: Simulator) -> None:
    bad = failure(simulator, "tavily", environ={"BATCH_PIPELINE_SIM_KEY": "bad-key-0123456789"})
    assert (bad.kind, bad.status) == (ErrorKind.BATCH_FATAL, 401)
    for mark, status in (("no_credit", 432), ("spend_limit", 433), ("daily_quota", 432)):
        simulator.configure(key_marks={"sim-tavily-key": mark})
        spent = failure(simulator, "tavily")
        assert (spent.kind, spent.status) == (ErrorKind.BATCH_FATAL, status)


def test_a_key_that_a_gateway_quotes_reaches_no_error(simulator: Simulator) -> None:
    fault = {"kind": "status", "status": 401, "provider": "tavily", "echo_key": True}
    simulator.configure(faults=[fault])
    key = "quoted-key-0123456789"
    error = failure(simulator, "tavily", environ={"BATCH_PIPELINE_SIM_KEY": key})
    assert key not in str(error)


def test_an_empty_query_is_that_rows_own_fault(simulator: Simulator) -> None:
    assert failure(simulator, "tavily", SearchQuery(" ", "se")).kind is ErrorKind.ITEM_PERMANENT


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"detail": {"error": "no"}}', "no"),
        (b'{"detail": "no"}', "no"),
        (b'{"detail": [{"msg": "no", "loc": ["body"]}]}', "no"),
        (b'{"error": {"code": "rate", "message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
    ],
)
def test_errors_are_read_in_each_of_their_forms(body: bytes, words: str) -> None:
    assert _refused(422, body).message == words


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"results": null}', b'"x"', b"", b"<html>"])
def test_a_200_without_results_is_no_answer_and_may_have_been_paid(body: bytes) -> None:
    error = _refused(200, body)
    assert error.kind is ErrorKind.TRANSIENT and error.maybe_billed


def test_without_stated_usage_the_cost_is_left_to_the_price_list() -> None:
    assert CODEC.read(WireReply(200, {}, b'{"results": []}')).cost_usd is None
    free = CODEC.read(WireReply(200, {}, b'{"results": [], "usage": {"credits": 0}}'))
    assert (free.cost_usd, free.facts) == (0.0, {"credits": 0.0})


def test_a_wait_that_is_told_after_all_is_kept() -> None:
    assert _refused(429, b'{"detail": "slow"}', **{"retry-after": "7"}).retry_after_s == 7.0
