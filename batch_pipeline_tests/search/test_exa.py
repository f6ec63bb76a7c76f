"""The Exa codec: against the simulator over HTTP, captures, and replies neither would give."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from batch_pipeline.providers.base import ErrorKind, ProviderError, WireReply
from batch_pipeline.search.base import SearchQuery
from batch_pipeline.search.registry import SEARCH_PROVIDERS
from batch_pipeline_tests.conftest import REFERENCE
from batch_pipeline_tests.search.asking import ask, failure
from batch_pipeline_tests.simulated import Simulator

EXA = SEARCH_PROVIDERS["exa"]
CODEC = EXA.codec
CAPTURES = REFERENCE / "reference/captures"


def _body(query: SearchQuery) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(CODEC.build(query, key="k", base_url="https://x").body)
    return body


def _refused(status: int, body: bytes, **headers: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        CODEC.read(WireReply(status, headers, body))
    return caught.value


def test_a_search_gives_pages_with_their_text_and_what_it_cost(simulator: Simulator) -> None:
    answer = ask(simulator, "exa", SearchQuery("zero trust", "us", 5, text_chars=700))
    assert [result["position"] for result in answer.results] == [1, 2, 3, 4, 5]
    for result in answer.results:
        assert set(result) == {
            "position", "title", "url", "snippet", "domain", "type", "text", "published"
        }  # fmt: skip
        assert "zero trust" in result["title"].lower() and "zero trust" in result["text"]
        assert len(result["text"]) == 700
        assert result["text"].startswith(result["snippet"]) and len(result["snippet"]) <= 300
        assert result["domain"].endswith(".example")
    assert len({result["url"] for result in answer.results}) == 5
    assert answer.cost_usd == pytest.approx(0.007)
    assert answer.facts == {"search_type": "neural"}
    entry = simulator.journal()[-1]
    assert (entry["provider"], entry["model"], entry["status"]) == ("exa", "search", 200)
    assert (entry["price_usd"], entry["billed"]) == (pytest.approx(0.007), True)
    assert entry["client_request_id"] == "attempt-1"


def test_without_text_the_snippet_is_what_exa_finds_most_telling(simulator: Simulator) -> None:
    results = ask(simulator, "exa", SearchQuery("zero trust", "us", 3)).results
    assert all(len(result["snippet"]) > 100 and "text" not in result for result in results)


@pytest.mark.parametrize(
    ("query", "usd"),
    [
        (SearchQuery("q", "us", 10), 0.007),
        (SearchQuery("q", "us", 25), 0.022),
        (SearchQuery("q", "us", 10, depth="lite"), 0.004),
        (SearchQuery("q", "us", 11, depth="deep"), 0.013),
        (SearchQuery("q", "us", 3, depth="deep-reasoning"), 0.015),
    ],
)
def test_a_query_never_costs_more_than_the_price_list_says(
    simulator: Simulator, query: SearchQuery, usd: float
) -> None:
    assert ask(simulator, "exa", query).cost_usd == pytest.approx(usd)
    assert EXA.worst_usd(query) == pytest.approx(usd)


def test_the_usual_price_is_that_of_a_search_with_ten_results() -> None:
    assert EXA.cost_usd == pytest.approx(0.007)


def test_a_body_has_what_the_query_wants_and_nothing_else() -> None:
    assert _body(SearchQuery("  two\n words ", "", 5, text_chars=2_000)) == {
        "query": "two words",
        "type": "auto",
        "numResults": 5,
        "contents": {"text": {"maxCharacters": 2_000}},
    }
    narrow = SearchQuery("q", "ir", 500, depth="deep", domains=("a.example", "b.example"))
    assert _body(narrow) == {
        "query": "q",
        "type": "deep",
        "numResults": 100,
        "contents": {"highlights": True},
        "includeDomains": ["a.example", "b.example"],
        "userLocation": "IR",
    }


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the captures are not beside this checkout")
def test_the_request_and_the_reply_are_those_of_the_capture() -> None:
    capture = json.loads((CAPTURES / "exa.search.httpx.json").read_text())[0]
    call = CODEC.build(
        SearchQuery("acme", "", 5, text_chars=2_000), key="k", base_url="https://api.exa.ai"
    )
    assert (call.method, call.url) == ("POST", "https://api.exa.ai/search")
    assert orjson.loads(call.body) == capture["request"]["body"]
    sent = {name.lower(): value for name, value in capture["request"]["headers"]}
    assert call.headers["x-api-key"] == sent["x-api-key"]
    reply = capture["response"]
    answer = CODEC.read(WireReply(200, {}, orjson.dumps(reply["body"])))
    assert answer.results == [
        {
            "position": 1,
            "title": "A",
            "url": "https://example.com/a",
            "snippet": "h",
            "domain": "example.com",
            "type": "organic",
            "text": "full text",
            "published": "2026-01-01T00:00:00.000Z",
        }
    ]
    assert answer.cost_usd == 0.007


def test_only_the_named_sites_are_searched(simulator: Simulator) -> None:
    query = SearchQuery("q", "us", 4, domains=("nist.example", "owasp.example"))
    found = {result["domain"] for result in ask(simulator, "exa", query).results}
    assert found == {"nist.example", "owasp.example"}


@pytest.mark.parametrize("words", ["برند دیجی‌کالا", "åäö & co", "日本 🙂", 'say "hi"\\', "a\tb"])
def test_search_words_arrive_as_they_are(simulator: Simulator, words: str) -> None:
    answer = ask(simulator, "exa", SearchQuery(words, "ir", 2, text_chars=500))
    said = " ".join(words.split())
    assert all(said in result["title"] and said in result["text"] for result in answer.results)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ErrorKind.ITEM_PERMANENT),
        (401, ErrorKind.BATCH_FATAL),
        (402, ErrorKind.BATCH_FATAL),
        (403, ErrorKind.BATCH_FATAL),
        (429, ErrorKind.RATE_LIMITED),
        (500, ErrorKind.TRANSIENT),
        (503, ErrorKind.TRANSIENT),
    ],
)
def test_each_status_says_what_comes_next(
    simulator: Simulator, status: int, kind: ErrorKind
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": status, "provider": "exa"}])
    error = failure(simulator, "exa")
    assert (error.kind, error.status, error.retry_after_s) == (kind, status, None)
    assert error.message and "{" not in error.message and error.code.isupper()
    assert error.request_id and not error.maybe_billed
    assert simulator.journal()[-1]["price_usd"] == 0


def test_a_prohibited_query_is_its_own_fault_and_no_other_querys(simulator: Simulator) -> None:
    fault = {"kind": "status", "status": 403, "provider": "exa", "code": "PROHIBITED_CONTENT"}
    simulator.configure(faults=[fault])
    assert failure(simulator, "exa").kind is ErrorKind.ITEM_PERMANENT


def test_more_results_than_the_plan_grants_is_every_querys_fault() -> None:
    body = b'{"requestId": "r", "error": "too many", "tag": "NUM_RESULTS_EXCEEDED"}'
    assert _refused(400, body).kind is ErrorKind.BATCH_FATAL


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
    simulator.configure(faults=[{**fault, "provider": "exa", "count": 1}])
    error = failure(simulator, "exa")
    assert error.kind is ErrorKind.TRANSIENT
    entry = simulator.journal()[-1]
    assert (entry["price_usd"] > 0) is paid
    assert error.maybe_billed or not paid, "what was paid is never taken to be free"
    assert len(simulator.journal()) == 1, "nothing is asked twice behind the limiter's back"


def test_a_call_that_hangs_ends_with_its_timeout(simulator: Simulator) -> None:
    simulator.configure(faults=[{"kind": "hang", "provider": "exa"}])
    error = failure(simulator, "exa", timeout_s=0.3)
    assert error.kind is ErrorKind.TRANSIENT and error.maybe_billed


def test_a_bad_key_and_a_spent_account_are_every_querys_fault(simulator: Simulator) -> None:
    bad = failure(simulator, "exa", environ={"BATCH_PIPELINE_SIM_KEY": "bad-key-0123456789"})
    assert (bad.kind, bad.status) == (ErrorKind.BATCH_FATAL, 401)
    for mark, code in (
        ("no_credit", "NO_MORE_CREDITS"),
        ("spend_limit", "API_KEY_BUDGET_EXCEEDED"),
    ):
        simulator.configure(key_marks={"sim-exa-key": mark})
        spent = failure(simulator, "exa")
        assert (spent.kind, spent.status, spent.code) == (ErrorKind.BATCH_FATAL, 402, code)


def test_a_key_that_a_gateway_quotes_reaches_no_error_and_no_ledger(simulator: Simulator) -> None:
    key = "0f0f0f0f-1234-4321-aaaa-bbbbccccdddd"
    fault = {"kind": "status", "status": 401, "provider": "exa", "echo_key": True}
    simulator.configure(faults=[fault])
    error = failure(simulator, "exa", environ={"BATCH_PIPELINE_SIM_KEY": key})
    assert key not in error.message and "[key removed]" in error.message


def test_words_that_are_no_text_are_that_rows_own_fault() -> None:
    with pytest.raises(ProviderError) as caught:
        _body(SearchQuery("\ud800", "se"))
    assert caught.value.kind is ErrorKind.ITEM_PERMANENT


def test_an_empty_query_is_that_rows_own_fault(simulator: Simulator) -> None:
    error = failure(simulator, "exa", SearchQuery("  ", "se"))
    assert error.kind is ErrorKind.ITEM_PERMANENT


def test_results_of_another_form_are_left_out_and_the_others_keep_their_order() -> None:
    rows = [
        "text", {"url": None}, {"url": "ftp://a.example/x"}, {"url": "https://[broken"},
        {"url": "https://www.a.example/1", "title": " A \n B ", "publishedDate": None,
         "score": "high", "highlights": [1, "h1", "h2"], "text": 5},
        {"url": "https://b.example/2", "score": 0.5},
    ]  # fmt: skip
    body = {"results": rows, "costDollars": {"total": "free"}}
    answer = CODEC.read(WireReply(200, {}, orjson.dumps(body)))
    first = {"title": "A B", "url": "https://www.a.example/1", "snippet": "h1 … h2"}
    second = {"title": "", "url": "https://b.example/2", "snippet": "", "score": 0.5}
    assert answer.results == [
        {"position": 1, **first, "domain": "a.example", "type": "organic"},
        {"position": 2, **second, "domain": "b.example", "type": "organic"},
    ]
    assert answer.cost_usd is None, "what is not said is counted at the price list"


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"results": {}}', b'"x"', b"", b"<html>"])
def test_a_200_without_results_is_no_answer_and_may_have_been_paid(body: bytes) -> None:
    error = _refused(200, body)
    assert error.kind is ErrorKind.TRANSIENT and error.maybe_billed


def test_no_results_are_an_answer() -> None:
    answer = CODEC.read(WireReply(200, {}, b'{"results": [], "costDollars": {"total": 0.007}}'))
    assert (answer.results, answer.cost_usd) == ([], 0.007)


def test_an_answer_is_cut_to_what_the_query_wants() -> None:
    rows = [{"url": f"https://a.example/{n}", "text": "x" * 50} for n in range(5)]
    answer = CODEC.read(WireReply(200, {}, orjson.dumps({"results": rows})))
    cut = answer.within(SearchQuery("q", "us", 2, text_chars=10))
    assert [result["text"] for result in cut.results] == ["x" * 10] * 2


def test_a_wait_that_is_told_after_all_is_kept() -> None:
    assert _refused(429, b'{"error": "slow"}', **{"retry-after": "7"}).retry_after_s == 7.0


def test_a_redirect_ends_the_search_because_keys_do_not_follow() -> None:
    assert _refused(302, b"", location="https://elsewhere.example").kind is ErrorKind.BATCH_FATAL
