"""The Ahrefs codecs: against the simulator over HTTP, and against replies it would not give."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from batch_pipeline.providers.base import ErrorKind, ProviderError, WireReply
from batch_pipeline.search.base import SearchAnswer, SearchQuery
from batch_pipeline.search.intents import intents_of_results
from batch_pipeline.search.registry import SEARCH_PROVIDERS
from batch_pipeline_tests.search.asking import ask
from batch_pipeline_tests.simulated import Simulator

SERP, KEYWORDS = SEARCH_PROVIDERS["ahrefs"].codec, SEARCH_PROVIDERS["ahrefs-keywords"].codec
RESULT_FIELDS = {"position", "title", "url", "snippet", "domain", "type"}


def _ask(
    simulator: Simulator,
    text: str,
    *,
    country: str = "se",
    limit: int = 10,
    provider: str = "ahrefs",
    **how: Any,
) -> SearchAnswer:
    return ask(simulator, provider, SearchQuery(text, country, limit), **how)


def _failure(simulator: Simulator, text: str = "skor", **how: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        _ask(simulator, text, **how)
    return caught.value


def _refused(status: int, body: bytes, **headers: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        SERP.read(WireReply(status, headers, body))
    return caught.value


def test_a_search_gives_ten_results_with_every_field_and_what_it_used_up(
    simulator: Simulator,
) -> None:
    answer = _ask(simulator, "bästa löparskor")
    assert [result["position"] for result in answer.results] == list(range(1, 11))
    assert all(set(result) == RESULT_FIELDS for result in answer.results)
    assert all("bästa löparskor" in result["title"].lower() for result in answer.results)
    assert all(result["domain"].endswith(".example") for result in answer.results)
    assert not any(result["domain"].startswith("www.") for result in answer.results)
    assert answer.facts["units"] >= 50 and answer.facts["rows"] >= 10
    assert answer.cost_usd is None
    entry = simulator.journal()[-1]
    assert entry["units"] == answer.facts["units"]
    assert entry["client_request_id"] == "attempt-1"


def test_the_limit_of_a_query_is_what_is_asked_for(simulator: Simulator) -> None:
    assert len(_ask(simulator, "elcykel", limit=3).results) == 3


@pytest.mark.parametrize(
    "text",
    ["åäö & co", "100 % bomull", "c++ vs c#", "a,b;c", "q?x=1&y=2", "日本 🙂", "two\nlines\t tabs"],
)
def test_search_words_arrive_as_they_are_on_one_line(simulator: Simulator, text: str) -> None:
    words = " ".join(text.split())
    first = _ask(simulator, text).results[0]["title"]
    assert words.lower() in first.lower()
    metrics = _ask(simulator, text, provider="ahrefs-keywords").facts
    assert metrics["rows"] == 1, "a comma makes no second keyword"


def test_advertisements_and_rows_without_an_address_are_no_results(simulator: Simulator) -> None:
    answers = [_ask(simulator, f"köp skor {n}") for n in range(8)]
    assert {len(answer.results) for answer in answers} == {10}
    rows = {answer.facts["rows"] for answer in answers}
    assert rows == {11, 13}, "an advertisement on every page, an overview and a question on some"


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("köp elcykel", "transactional"),
        ("elcykel", "info_primary"),
        ("bästa elcykel", "commercial_research"),
        ("cykelverkstad nära mig", "local"),
        ("elcykel kundtjänst", "support"),
        ("how to charge a battery", "info_primary"),
        ("battery review", "commercial_research"),
        ("buy battery", "transactional"),
    ],
)
def test_results_of_the_simulator_serve_the_intent_of_their_keyword(
    simulator: Simulator, text: str, intent: str
) -> None:
    country = "se" if "elcykel" in text or "nära" in text else "us"
    assert intents_of_results(_ask(simulator, text, country=country).results)[0] == intent


def test_metrics_of_a_keyword_are_facts_without_results(simulator: Simulator) -> None:
    facts = _ask(simulator, "köp löparskor", provider="ahrefs-keywords").facts
    assert facts["volume"] > 0 and 0 <= facts["difficulty"] <= 100
    assert 0 < facts["cpc_usd"] < 10
    assert facts["intents"] == "transactional"
    assert facts["units"] == 50
    assert not _ask(simulator, "köp löparskor", provider="ahrefs-keywords").results


def test_a_keyword_that_was_never_seen_has_no_metrics(simulator: Simulator) -> None:
    unseen = {"keyword": "x", "volume": 0, "difficulty": None, "cpc": None, "intents": None}
    answer = KEYWORDS.read(WireReply(200, {}, json.dumps({"keywords": [unseen]}).encode()))
    expected = {"volume": 0, "difficulty": None, "cpc_usd": None, "intents": None}
    assert answer == SearchAnswer([], expected)
    nothing = KEYWORDS.read(WireReply(200, {}, b'{"keywords": []}'))
    assert nothing.facts["volume"] is None


def test_a_row_of_another_form_is_left_out_and_the_others_are_kept() -> None:
    good = {"position": 2, "title": None, "url": "https://www.a.example/x", "type": ["organic"]}
    rows = [
        "text", {"position": "1", "url": "https://a.example"}, {"position": 1, "url": None},
        {"position": 1, "url": "https://[broken"}, {**good, "type": ["paid_top"]}, good,
    ]  # fmt: skip
    answer = SERP.read(
        WireReply(200, {"x-api-rows": "6"}, json.dumps({"positions": rows}).encode())
    )
    found = {"position": 2, "title": "", "url": "https://www.a.example/x", "snippet": ""}
    assert answer.results == [{**found, "domain": "a.example", "type": "organic"}]
    assert answer.facts == {"rows": 6}


def test_an_unknown_keyword_has_an_answer_without_results() -> None:
    assert SERP.read(WireReply(200, {}, b'{"positions": []}')).results == []


def test_units_are_those_really_used_where_ahrefs_says_both() -> None:
    headers = {"x-api-units-cost-total": "50", "x-api-units-cost-total-actual": "0"}
    assert SERP.read(WireReply(200, headers, b'{"positions": []}')).facts == {"units": 0}


def test_a_call_is_a_get_with_the_key_in_its_header_only() -> None:
    call = SERP.build(SearchQuery("a b", "SE", 5), key="the-key", base_url="https://x.example/v3")
    assert (call.method, call.body) == ("GET", b"")
    assert call.headers["authorization"] == "Bearer the-key"
    assert "the-key" not in call.url
    parts = urlsplit(call.url)
    assert parts.path == "/v3/serp-overview/serp-overview"
    assert parse_qs(parts.query) == {
        "select": ["position,title,url,type"],
        "country": ["se"],
        "keyword": ["a b"],
        "top_positions": ["5"],
    }


def test_words_that_are_no_text_are_that_rows_own_fault() -> None:
    for codec in (SERP, KEYWORDS):
        with pytest.raises(ProviderError) as caught:
            codec.build(SearchQuery("\ud800", "se"), key="k", base_url="https://x.example")
        assert caught.value.kind is ErrorKind.ITEM_PERMANENT


@pytest.mark.parametrize("provider", ["ahrefs", "ahrefs-keywords"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ErrorKind.ITEM_PERMANENT),
        (401, ErrorKind.BATCH_FATAL),
        (403, ErrorKind.BATCH_FATAL),
        (429, ErrorKind.RATE_LIMITED),
        (500, ErrorKind.TRANSIENT),
        (503, ErrorKind.TRANSIENT),
    ],
)
def test_each_status_says_what_comes_next(
    simulator: Simulator, provider: str, status: int, kind: ErrorKind
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": status, "provider": "ahrefs"}])
    error = _failure(simulator, provider=provider)
    assert (error.kind, error.status, error.retry_after_s) == (kind, status, None)
    assert error.message and "{" not in error.message, "Ahrefs' own words"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"kind": "html"}, ErrorKind.TRANSIENT),
        ({"kind": "html", "status": 200}, ErrorKind.TRANSIENT),
        ({"kind": "error_body"}, ErrorKind.TRANSIENT),
        ({"kind": "malformed_json"}, ErrorKind.CONTENT),
        ({"kind": "cut"}, ErrorKind.TRANSIENT),
        ({"kind": "cut_body"}, ErrorKind.TRANSIENT),
        ({"kind": "refuse"}, ErrorKind.TRANSIENT),
    ],
)
def test_each_fault_of_a_reply_says_what_comes_next(
    simulator: Simulator, fault: dict[str, Any], kind: ErrorKind
) -> None:
    simulator.configure(faults=[{**fault, "provider": "ahrefs", "count": 1}])
    assert _failure(simulator).kind is kind
    assert len(simulator.journal()) == 1, "nothing is asked twice behind the limiter's back"
    assert len(_ask(simulator, "skor").results) == 10


def test_a_call_that_hangs_ends_with_its_timeout(simulator: Simulator) -> None:
    simulator.configure(faults=[{"kind": "hang", "provider": "ahrefs"}])
    error = _failure(simulator, timeout_s=0.3)
    assert error.kind is ErrorKind.TRANSIENT and error.maybe_billed


def test_a_country_without_data_is_that_rows_own_fault(simulator: Simulator) -> None:
    error = _failure(simulator, country="ir")
    assert error.kind is ErrorKind.ITEM_PERMANENT
    assert "'ir'" in error.message


def test_empty_search_words_are_that_rows_own_fault(simulator: Simulator) -> None:
    assert _failure(simulator, "  ").kind is ErrorKind.ITEM_PERMANENT
    assert _failure(simulator, ",", provider="ahrefs-keywords").kind is ErrorKind.ITEM_PERMANENT


def test_a_bad_key_and_a_spent_plan_are_every_rows_fault(simulator: Simulator) -> None:
    bad = _failure(simulator, environ={"BATCH_PIPELINE_SIM_KEY": "bad-key-0123456789"})
    assert (bad.kind, bad.status) == (ErrorKind.BATCH_FATAL, 401)
    simulator.configure(key_marks={"sim-ahrefs-key": "no_credit"})
    spent = _failure(simulator)
    assert (spent.kind, spent.status) == (ErrorKind.BATCH_FATAL, 403)


def test_one_limit_holds_for_both_endpoints_of_a_key(simulator: Simulator) -> None:
    simulator.configure(ahrefs_per_minute=2)
    _ask(simulator, "skor")
    _ask(simulator, "skor", provider="ahrefs-keywords")
    error = _failure(simulator)
    assert (error.kind, error.retry_after_s) == (ErrorKind.RATE_LIMITED, None)
    _ask(simulator, "skor", environ={"BATCH_PIPELINE_SIM_KEY": "another-key-0123456"})


def test_a_key_that_a_gateway_quotes_reaches_no_error(simulator: Simulator) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 401, "provider": "ahrefs", "echo_key": True}]
    )
    key = "quoted-key-0123456789"
    assert key not in str(_failure(simulator, environ={"BATCH_PIPELINE_SIM_KEY": key}))


def test_an_answer_that_is_neither_list_nor_error_cannot_be_used() -> None:
    for body in (b"{}", b"[]", b'{"positions": {}}', b'"text"', b'{"positions": ['):
        assert _refused(200, body).kind is ErrorKind.CONTENT
    assert _refused(200, b"").kind is ErrorKind.TRANSIENT
    assert _refused(200, b" <!doctype html>").kind is ErrorKind.TRANSIENT


def test_a_redirect_ends_the_search_because_keys_do_not_follow() -> None:
    assert _refused(302, b"", location="https://elsewhere.example").kind is ErrorKind.BATCH_FATAL


def test_a_wait_that_is_told_after_all_is_kept() -> None:
    assert _refused(429, b'{"error": "slow down"}', **{"retry-after": "7"}).retry_after_s == 7.0


def test_the_free_check_of_a_key_says_what_searches_used_up(simulator: Simulator) -> None:
    units = _ask(simulator, "skor").facts["units"]
    found = httpx.get(
        f"{simulator.url}/ahrefs/v3/subscription-info/limits-and-usage",
        headers={"authorization": "Bearer sim-ahrefs-key"},
        timeout=20,
    ).json()["limits_and_usage"]
    assert found["units_usage_api_key"] == units
