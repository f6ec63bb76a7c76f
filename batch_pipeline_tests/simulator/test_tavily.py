"""The simulated Tavily as its documents describe it: parameters, credits, limit, journal, usage."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from batch_pipeline_tests.simulator.running import Running


def _post(simulator: Running, key: str = "tvly-key", **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return simulator.http.post("/tavily/search", json=body, headers=headers)


def _usage(simulator: Running, key: str = "tvly-key") -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"}
    return dict(simulator.http.get("/tavily/usage", headers=headers).json())


def test_a_reply_has_the_fields_of_the_real_one(simulator: Running) -> None:
    reply = _post(simulator, query="digikala", max_results=3).json()
    assert set(reply) == {
        "query", "follow_up_questions", "answer", "images", "results", "response_time",
        "request_id",
    }  # fmt: skip
    for row in reply["results"]:
        assert set(row) == {"url", "title", "content", "score", "raw_content"}
        assert row["raw_content"] is None
    raw = _post(simulator, query="digikala", include_raw_content="text", include_usage=True).json()
    assert raw["usage"] == {"credits": 1}
    assert len(raw["results"]) == 5
    assert all(row["raw_content"].startswith(row["content"]) for row in raw["results"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Query"),
        ({"query": ""}, "Query"),
        ({"query": "q", "search_depth": "deep"}, "search depth"),
        ({"query": "q", "max_results": 21}, "max_results"),
        ({"query": "q", "country": "ir"}, "country"),
        ({"query": "q", "country": "Iran"}, "country"),
    ],
)
def test_a_wrong_parameter_is_a_400_in_words(
    simulator: Running, body: dict[str, Any], words: str
) -> None:
    reply = _post(simulator, **body)
    assert reply.status_code == 400
    assert words in reply.json()["detail"]["error"]


def test_a_call_needs_a_good_bearer_key(simulator: Running) -> None:
    assert simulator.http.post("/tavily/search", json={"query": "q"}).status_code == 401
    assert _post(simulator, key="bad-key", query="q").status_code == 401
    assert "detail" in _usage(simulator, key="bad-key")


def test_what_a_search_costs_is_money_in_the_journal_and_credits_of_the_key(
    simulator: Running,
) -> None:
    _post(simulator, query="q")
    _post(simulator, query="q", search_depth="advanced")
    _post(simulator)
    entries = simulator.journal()
    assert [entry["units"] for entry in entries] == [1, 2, 0]
    assert [entry["price_usd"] for entry in entries] == pytest.approx([0.008, 0.016, 0.0])
    summary = simulator.summary()
    assert summary["price_usd"] == pytest.approx(0.024)
    assert (summary["units"], summary["unpriced"]) == (3, 0)
    assert _usage(simulator)["key"]["usage"] == 3
    assert _usage(simulator, "another-key")["key"]["usage"] == 0
    assert simulator.summary()["other_calls"] == {"tavily usage": 2}
    simulator.http.post("/_sim/reset")
    assert _usage(simulator)["account"]["plan_usage"] == 0


def test_the_limit_is_a_hundred_a_minute_for_each_key(simulator: Running) -> None:
    statuses = [_post(simulator, query="q").status_code for _ in range(20)]
    assert statuses[:10] == [200] * 10, "a burst of a tenth"
    assert 429 in statuses[10:]
    assert _post(simulator, key="another-key", query="q").status_code == 200
    assert "key" in _usage(simulator), "looking at the usage takes nothing of it"


@pytest.mark.parametrize(("mark", "status"), [("no_credit", 432), ("spend_limit", 433)])
def test_a_spent_plan_has_statuses_of_its_own(simulator: Running, mark: str, status: int) -> None:
    simulator.configure(key_marks={"tvly-key": mark})
    assert _post(simulator, query="q").status_code == status


def test_a_journal_that_is_read_again_keeps_its_prices(simulator: Running) -> None:
    from batch_pipeline.simulator.journal import Journal

    _post(simulator, query="q", search_depth="advanced")
    again = Journal(simulator.state_dir / "journal.jsonl")
    try:
        assert again.summary()["price_usd"] == pytest.approx(0.016)
    finally:
        again.close()
