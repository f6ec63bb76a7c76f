"""The simulated Ahrefs as its documents describe it: parameters, columns, units, journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from batch_pipeline.simulator.journal import Journal
from batch_pipeline_tests.simulator.running import Running

SERP = "/ahrefs/v3/serp-overview/serp-overview"
KEYWORDS = "/ahrefs/v3/keywords-explorer/overview"
LIMITS = "/ahrefs/v3/subscription-info/limits-and-usage"


def _get(simulator: Running, path: str, key: str = "ahrefs-key", **query: Any) -> httpx.Response:
    return simulator.http.get(path, params=query, headers={"authorization": f"Bearer {key}"})


def _serp(simulator: Running, keyword: str = "elcykel", **query: Any) -> httpx.Response:
    asked = {"select": "position,title,url,type", "country": "se", "keyword": keyword, **query}
    return _get(simulator, SERP, **asked)


def test_only_the_selected_columns_come_back_and_they_set_the_price(simulator: Running) -> None:
    reply = _serp(simulator, select="position,traffic", top_positions=10)
    rows = reply.json()["positions"]
    assert {tuple(row) for row in rows} == {("position", "traffic")}
    assert reply.headers["x-api-units-cost-row"] == "11"
    assert int(reply.headers["x-api-rows"]) == len(rows)
    assert int(reply.headers["x-api-units-cost-total-actual"]) == 11 * len(rows)
    assert not {name for name in reply.headers if "ratelimit" in name or name == "retry-after"}


def test_a_call_costs_at_least_fifty_units(simulator: Running) -> None:
    assert _serp(simulator, top_positions=1).headers["x-api-units-cost-total"] == "50"


@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        (SERP, {"country": "se", "keyword": "x"}, "select"),
        (SERP, {"select": "position", "keyword": "x"}, "country"),
        (SERP, {"select": "position", "country": "se"}, "keyword"),
        (SERP, {"select": "position,wrong", "country": "se", "keyword": "x"}, "'wrong'"),
        (SERP, {"select": "position", "country": "SE", "keyword": "x"}, "'SE'"),
        (
            SERP,
            {"select": "position", "country": "se", "keyword": "x", "top_positions": "ten"},
            "top_positions",
        ),
        (KEYWORDS, {"select": "position", "country": "se", "keywords": "x"}, "'position'"),
        (KEYWORDS, {"select": "volume", "country": "se"}, "keywords"),
    ],
)
def test_a_wrong_parameter_is_a_400_in_words(
    simulator: Running, path: str, query: dict[str, str], words: str
) -> None:
    reply = _get(simulator, path, **query)
    assert reply.status_code == 400
    assert words in reply.json()["error"]


def test_a_call_needs_a_good_bearer_key(simulator: Running) -> None:
    assert simulator.http.get(SERP).status_code == 401
    assert simulator.http.get(LIMITS, headers={"x-api-key": "k"}).status_code == 401
    assert _get(simulator, LIMITS, key="bad-key").json() == {
        "error": "the API key is not valid or has expired"
    }


def test_the_same_question_has_the_same_answer_in_every_country_its_own(
    simulator: Running,
) -> None:
    assert _serp(simulator).content == _serp(simulator).content
    assert _serp(simulator).content != _serp(simulator, country="us").content


def test_metrics_come_for_each_keyword_of_the_list(simulator: Running) -> None:
    reply = _get(
        simulator, KEYWORDS, select="keyword,volume,intents", country="se", keywords="a, b,c"
    )
    assert [row["keyword"] for row in reply.json()["keywords"]] == ["a", "b", "c"]
    assert reply.headers["x-api-units-cost-total"] == "63"


def test_every_call_stands_in_the_journal_and_money_stays_what_models_cost(
    simulator: Running,
) -> None:
    simulator.chat("hello")
    before = simulator.summary()
    _serp(simulator, top_positions=1)
    _get(simulator, KEYWORDS, select="keyword", country="se", keywords="x")
    _serp(simulator, "")
    after = simulator.summary()
    entries = simulator.journal()[1:]
    assert [
        (e["provider"], e["model"], e["status"], e["units"], e["price_usd"]) for e in entries
    ] == [
        ("ahrefs", "serp-overview", 200, 50, 0),
        ("ahrefs", "keywords-overview", 200, 50, 0),
        ("ahrefs", "serp-overview", 400, 0, 0),
    ]
    assert after["units"] == 100
    for total in ("price_usd", "unpriced", "billed", "items", "input_tokens", "output_tokens"):
        assert after[total] == before[total]
    assert after["by_provider"] == {"ahrefs": 3, "openai": 1}
    assert (before["units"], simulator.journal()[0]["units"]) == (0, 0)


def test_the_free_check_counts_units_by_key_and_stands_beside_the_journal(
    simulator: Running,
) -> None:
    _serp(simulator, top_positions=1)
    assert _get(simulator, LIMITS).json()["limits_and_usage"]["units_usage_api_key"] == 50
    other = _get(simulator, LIMITS, key="other-key").json()["limits_and_usage"]
    assert other["units_usage_api_key"] == 0
    assert simulator.summary()["other_calls"] == {"ahrefs limits-and-usage": 2}
    simulator.http.post("/_sim/reset")
    assert _get(simulator, LIMITS).json()["limits_and_usage"]["units_usage_api_key"] == 0


def test_the_limit_is_sixty_a_minute_for_each_key(simulator: Running) -> None:
    statuses = [_serp(simulator).status_code for _ in range(70)]
    assert statuses[:60] == [200] * 60
    assert 429 in statuses[60:]
    refused = _serp(simulator)
    assert refused.status_code == 429 and "retry-after" not in refused.headers
    assert _get(simulator, LIMITS, key="another-key").status_code == 200


def test_a_fault_finds_the_words_searched_for(simulator: Running) -> None:
    simulator.configure(
        faults=[
            {"kind": "status", "status": 400, "provider": "ahrefs", "match": "elcykel"},
            {"kind": "html", "model": "keywords-overview"},
            {"kind": "drop_id"},
            {"kind": "status", "status": 500, "lane": "batch"},
        ]
    )
    assert _serp(simulator, "bästa elcykel").status_code == 400
    assert _serp(simulator, "bil").status_code == 200
    keywords = _get(simulator, KEYWORDS, select="keyword", country="se", keywords="bil")
    assert (keywords.status_code, keywords.headers["content-type"][:9]) == (503, "text/html")
    assert [entry["fault"] for entry in simulator.journal()] == ["status", None, "html"]


def test_what_breaks_after_the_work_has_used_its_units(simulator: Running) -> None:
    simulator.configure(
        faults=[
            {"kind": "cut", "provider": "ahrefs", "count": 1},
            {"kind": "status", "status": 500, "provider": "ahrefs", "count": 1},
            {"kind": "error_body", "provider": "ahrefs", "count": 1, "billed": True},
        ]
    )
    with pytest.raises(httpx.TransportError):
        _serp(simulator)
    _serp(simulator)
    assert _serp(simulator).json() == {"error": "internal server error"}
    units = [entry["units"] for entry in simulator.journal()]
    assert units[0] > 0 and units[1] == 0 and units[2] == units[0]
    assert [entry["status"] for entry in simulator.journal()] == [0, 500, 200]


def test_limits_and_jobs_of_models_are_not_for_ahrefs(simulator: Running) -> None:
    reply = simulator.http.put("/_sim/config", json={"limits": [{"provider": "ahrefs"}]})
    assert reply.status_code == 400
    assert "ahrefs_per_minute" in reply.json()["error"]


def test_searches_in_the_journal_of_an_earlier_process_are_read_again(
    simulator: Running, tmp_path: Path
) -> None:
    _serp(simulator, top_positions=1)
    written = (simulator.state_dir / "journal.jsonl").read_bytes()
    earlier = written.replace(b'"units":50,', b"")
    (tmp_path / "journal.jsonl").write_bytes(earlier + written)
    journal = Journal(tmp_path / "journal.jsonl")
    assert [entry["units"] for entry in journal.since(0, 10)] == [0, 50]
    journal.close()
