"""Down the route when a provider fails, back when it answers again; nothing is tried for ever."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.engine.breaker import BreakerRules
from batch_pipeline.ledger.tables import Outcome, attempts
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import WENT_OUT, Bench, Ran, Simulator

FIRST, SECOND = "anthropic/claude-haiku-4-5", "google/gemini-3.1-flash-lite"
ROUTE = f"{FIRST}, {SECOND}"
TIMEOUT_S = 1.0
BREAKER = BreakerRules(failures=5, refusals=3, cooldown_s=0.5, max_cooldown_s=2.0)

WAYS: dict[str, dict[str, Any]] = {
    "down": {"kind": "refuse"},
    "a storm of 429s": {"kind": "status", "status": 429, "retry_after_s": 0.2},
    "a storm of 429s that names no time": {"kind": "status", "status": 429},
    "a key that goes bad at the 100th call": {"kind": "status", "status": 401, "after": 100},
    "200 with HTML": {"kind": "html", "status": 200},
    "hanging": {"kind": "hang"},
}


def answered_by(bench: Bench, batch: Any) -> Counter[str]:
    return Counter(str(item.model) for item in bench.items(batch))


def tries_per_row(bench: Bench) -> int:
    """The most attempts that any question was sent with; one taken back was none."""
    sent = sa.select(attempts.c.members).where(WENT_OUT)
    with bench.open() as ledger, ledger.read() as connection:
        rows = connection.execute(sent).scalars()
        import orjson

        counts = Counter(key for row in rows for _, key in orjson.loads(row))
    return max(counts.values())


@pytest.mark.parametrize("way", WAYS)
def test_every_row_finishes_when_the_first_provider_fails(
    way: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{**WAYS[way], "provider": "anthropic"}])
    bench = Bench(tmp_path, simulator, route=ROUTE, pack=1, workers=16, timeout_s=TIMEOUT_S)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(400)))
    ran = bench.run(batch, breaker=BREAKER, patience_s=1.0)
    assert ran.outcomes == {"succeeded": 400}
    models = answered_by(bench, batch)
    if "100th" in way:
        assert 90 <= models[FIRST] <= 99 and models[SECOND] == 400 - models[FIRST]
    else:
        assert models == {SECOND: 400}
    # each upstream has three tries at most, 429s aside
    assert tries_per_row(bench) <= (3 + 3 if "429" not in way else 12)
    journal = simulator.journal()
    wasted = [one for one in journal if one["provider"] == "anthropic" and one["status"] != 200]
    # one round of workers finds out (three, where it asks to wait), then a probe now and then
    rounds = BREAKER.refusals if "429" in way else 1
    assert len(wasted) <= rounds * 16 + BREAKER.failures + ran.done.wall_s / BREAKER.cooldown_s + 1
    assert ran.done.wall_s <= 10 * TIMEOUT_S + 5


def test_after_an_outage_the_first_provider_is_used_again(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 503, "provider": "anthropic", "count": 6}]
    )
    bench = Bench(tmp_path, simulator, route=ROUTE, pack=1, workers=4, rate_limit=6_000)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(400)))
    ran = bench.run(batch, breaker=BREAKER)
    assert ran.outcomes == {"succeeded": 400}
    models = answered_by(bench, batch)
    assert models[FIRST] > 50 and models[SECOND] > 0


def test_a_provider_that_is_down_alone_stops_the_run_with_its_rows_pending(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 503}])
    bench = Bench(tmp_path, simulator, route=SECOND, pack=1, workers=8)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(400)))
    ran = bench.run(batch, breaker=BREAKER, max_outage_s=3.0)
    assert ran.done.status == "stopped"
    assert "has not answered" in ran.done.message
    assert ran.outcomes["pending"] >= 390
    assert len(simulator.journal()) <= 30


def test_when_both_keys_are_bad_nothing_is_failed_and_the_message_names_both(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 401}])
    bench = Bench(tmp_path, simulator, route=ROUTE, workers=4, pack=1)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(40)))
    ran = bench.run(batch)
    assert ran.done.status == "stopped"
    assert FIRST in ran.done.message and SECOND in ran.done.message
    assert ran.outcomes == {"pending": 40}
    assert len(simulator.journal()) <= 8


def test_fallback_false_forbids_leaving_the_first_model(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 401, "provider": "anthropic"}])
    bench = Bench(tmp_path, simulator, route=ROUTE, fallback=False)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(40)))
    ran = bench.run(batch)
    assert ran.outcomes == {"pending": 40}
    assert {entry["provider"] for entry in simulator.journal()} == {"anthropic"}


def with_routes(tmp_path: Path, *routes: str, each: int = 10) -> Path:
    rows = topics(each * len(routes))
    for place, row in enumerate(rows):
        row["route"] = routes[place // each]
    return write_rows(tmp_path / "routed.csv", rows)


def test_a_row_is_asked_of_the_model_that_it_names(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator, route=SECOND)
    table = with_routes(tmp_path, "", "auto", "anthropic", "openai/gpt-5.4-mini")
    batch = bench.ingest(table)
    assert bench.run(batch).outcomes == {"succeeded": 40}
    assert answered_by(bench, batch) == {
        SECOND: 20,
        "anthropic/claude-haiku-5-5": 10,
        "openai/gpt-5.4-mini": 10,
    }
    # rows of one route share requests, rows of two do not
    assert sorted(entry["items"] for entry in simulator.journal()) == [10, 10, 20]


@pytest.mark.parametrize("fallback", [None, True])
def test_a_rows_own_model_is_left_only_if_the_operator_allows_it(
    fallback: bool | None, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 401, "provider": "anthropic"}])
    bench = Bench(tmp_path, simulator, route=SECOND, fallback=fallback)
    batch = bench.ingest(with_routes(tmp_path, "", "anthropic"))
    ran = bench.run(batch)
    if fallback:
        assert ran.outcomes == {"succeeded": 20}
        assert answered_by(bench, batch) == {SECOND: 20}
    else:
        assert ran.outcomes == {"succeeded": 10, "pending": 10}
        assert ran.done.status == "stopped" and "anthropic" in ran.done.message


def test_a_row_with_an_unreadable_route_is_failed_by_itself_and_named(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=SECOND)
    batch = bench.ingest(with_routes(tmp_path, "", "gogle/gemini", each=5))
    ran = bench.run(batch)
    assert ran.outcomes == {"succeeded": 5, "failed": 5}
    bad = [item for item in bench.items(batch) if item.outcome is Outcome.FAILED]
    assert [item.number for item in bad] == [6, 7, 8, 9, 10]
    assert "Did you mean 'google'" in str(bad[0].error)


def test_a_longer_route_pays_nothing_again(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator, route=SECOND)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(40)))
    bench.run(batch, "first")
    paid = len(simulator.journal())
    other = Bench(tmp_path, simulator, route=ROUTE)
    again: Ran = other.run(other.ingest(write_rows(tmp_path / "again.csv", topics(40)), "again"))
    assert again.outcomes == {"succeeded": 40}
    assert again.done.tally.cache_hits == 40
    assert len(simulator.journal()) == paid


def test_auto_asks_the_cheapest_provider_that_has_a_key(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route="auto")
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(20)))
    job = bench.job(batch)
    assert {endpoint.provider for endpoint in job.route} == {
        "google",
        "anthropic",
        "openai",
        "openrouter",
    }
    assert bench.run(batch).outcomes == {"succeeded": 20}
    assert answered_by(bench, batch) == {job.route[0].label: 20}


def test_the_same_question_to_two_models_is_asked_of_both(
    simulator: Simulator, tmp_path: Path
) -> None:
    rows = [dict(topics(1)[0], route=route) for route in ("", "openai", "", "openai")]
    bench = Bench(tmp_path, simulator, route=SECOND)
    batch = bench.ingest(write_rows(tmp_path / "twice.csv", rows))
    assert bench.run(batch).outcomes == {"succeeded": 4}
    assert answered_by(bench, batch) == {SECOND: 2, "openai/gpt-6-luna": 2}
    assert len(simulator.journal()) == 2


def test_rows_of_another_route_go_on_when_one_models_day_is_used_up(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=SECOND, pack=1, requests_per_day=5, workers=2)
    batch = bench.ingest(with_routes(tmp_path, "", "openai", each=5))
    assert bench.run(batch).outcomes == {"succeeded": 10}
    more = bench.ingest(with_routes(tmp_path, "openai", "anthropic", each=4), "more")
    ran = bench.run(more, "more")
    assert ran.done.status == "daily_limit"
    assert ran.outcomes == {"succeeded": 4, "pending": 4}
