"""So many rows a day: what a run may still ask, day by day."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.workloads import daily
from batch_pipeline.workloads.daily import Today, keep_to_day, read_today
from batch_pipeline_tests.cli.conftest import topics, write_topics
from batch_pipeline_tests.simulated import Bench, Simulator


@pytest.fixture
def bench(tmp_path: Path, simulator: Simulator, either_database: None) -> Bench:
    """Ten rows a request at most, twenty rows a day."""
    return Bench(tmp_path, simulator, items_per_day=20, pack=10)


def _ask_today(bench: Bench, batch: Batch, run_id: str) -> int:
    """Run a batch for what is left of today; gives how many rows were asked about."""
    with bench.open() as ledger:
        limit = keep_to_day(ledger, batch.batch_id, bench.config).limit
    before = _asked(bench)
    bench.run(batch, run_id, limit=limit)
    return _asked(bench) - before


def _asked(bench: Bench) -> int:
    return sum(int(record["items"]) for record in bench.simulator.journal())


def test_a_batch_is_asked_about_day_by_day_until_it_is_done(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = bench.ingest(write_topics(tmp_path / "t.csv", topics(50, "daily")))

    assert _ask_today(bench, batch, "day 1") == 20
    assert _ask_today(bench, batch, "day 1, again") == 0
    with bench.open() as ledger:
        today = read_today(ledger, batch.batch_id, bench.config)
    assert today is not None and today.is_full
    assert (today.asked, today.left, today.room) == (20, 30, 0)
    assert today.words.startswith("20 of 20 items of today are done; 30 left, again after 20")
    assert today.words.endswith(" 00:00 UTC.")

    for day, asked in ((2, 20), (3, 10), (4, 0)):
        # Tomorrow: what was asked up to now is no longer of today.
        with bench.open() as ledger:
            now = ledger.clock.now()
        monkeypatch.setattr(daily, "next_day_at", lambda zone, at, now=now: now + daily._DAY_S)
        assert _ask_today(bench, batch, f"day {day}") == asked
    with bench.open() as ledger:
        today = read_today(ledger, batch.batch_id, bench.config)
    assert today is not None and not today.is_full and today.left == 0


def test_a_limit_of_the_run_counts_where_it_is_lower_than_the_day(
    bench: Bench, tmp_path: Path
) -> None:
    batch = bench.ingest(write_topics(tmp_path / "t.csv", topics(30, "lower")))
    with bench.open() as ledger:
        for limit, kept in ((5, 5), (25, 20), (None, 20)):
            config = bench.config.model_copy(update={"limit": limit})
            assert keep_to_day(ledger, batch.batch_id, config).limit == kept
        unbound = bench.config.model_copy(update={"items_per_day": None})
        assert keep_to_day(ledger, batch.batch_id, unbound).limit is None


def test_a_day_is_full_only_while_rows_wait_for_the_next_one() -> None:
    today = Today(allowed=400, asked=400, left=11_600, resets_at=1_763_856_000.0)
    assert today.is_full
    assert today.words == (
        "400 of 400 items of today are done; 11,600 left, again after 2025-11-23 00:00 UTC."
    )
    assert not replace(today, left=0).is_full
    assert not replace(today, asked=399).is_full
