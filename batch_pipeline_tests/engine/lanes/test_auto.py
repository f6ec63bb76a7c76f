"""Lane `auto`: what can wait goes through provider jobs, and what cannot in real time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batch_pipeline_tests.engine.lanes.laning import (
    SLOW_JOBS,
    assert_books_are_right,
    jobs_of,
    lane_bench,
    lane_run,
    lane_start,
    states_of,
    until,
)
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator, finish

ROWS = 40


@pytest.mark.parametrize(
    ("deadline", "lane"), [(None, "batch"), ("48h", "batch"), ("2h", "realtime")]
)
def test_rows_go_by_the_time_that_is_left(
    deadline: str | None, lane: str, simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, lane="auto", deadline=deadline)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    assert lane_run(bench, batch).outcomes == {"succeeded": ROWS}
    assert {entry["lane"] for entry in simulator.journal()} == {lane}
    assert_books_are_right(bench, simulator)


def test_once_jobs_are_known_to_be_quick_a_nearer_deadline_is_met_by_them_too(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, job_items=10)
    assert lane_run(
        bench, bench.ingest(write_rows(tmp_path / "before.csv", topics(ROWS)[:30])), "before"
    ).outcomes == {"succeeded": 30}
    bench.config = bench.config.model_copy(update={"lane": "auto", "deadline": "2h"})
    other = [dict(row, Topic=f"Other {row['Topic']}") for row in topics(ROWS)]
    lane_run(bench, bench.ingest(write_rows(tmp_path / "rows.csv", other)), "auto")
    assert {entry["lane"] for entry in simulator.journal()} == {"batch"}


@pytest.mark.parametrize(
    "route",
    ["openrouter/google/gemini-3.1-flash-lite", "openai/gpt-6.2-sol"],
    ids=["no lane", "no price"],
)
def test_without_a_lower_price_rows_are_asked_in_real_time(
    route: str, simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, lane="auto", route=route)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    assert lane_run(bench, batch).outcomes == {"succeeded": ROWS}
    assert {entry["lane"] for entry in simulator.journal()} == {"realtime"}


def submitted_with_deadline(simulator: Simulator, tmp_path: Path, name: str) -> tuple[Bench, str]:
    """A batch whose jobs will not end, and a deadline that is too near for them."""
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, wait=False, job_items=20, lane="auto")
    batch = bench.ingest(write_rows(tmp_path / f"{name}.csv", topics(ROWS)), name)
    assert lane_run(bench, batch, "submits").done.status == "submitted"
    near = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    bench.config = bench.config.model_copy(update={"deadline": near, "wait": True})
    return bench, batch.batch_id


def test_jobs_that_would_miss_the_deadline_are_cancelled_and_their_rows_asked_in_real_time(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench, name = submitted_with_deadline(simulator, tmp_path, "late")
    batch = bench.ingest(tmp_path / "late.csv", name)
    began = time.monotonic()
    ran = lane_run(bench, batch, "rescues")
    assert time.monotonic() - began < 50, "before the deadline"
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": ROWS})
    assert all(job.cancel_wanted for job in jobs_of(bench))
    assert {entry["lane"] for entry in simulator.journal() if entry["billed"]} == {"realtime"}
    assert_books_are_right(bench, simulator)


def test_a_run_that_waits_leaves_the_lane_by_itself_when_the_deadline_comes_near(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, job_items=20, lane="auto", wait=True)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    # generous: five minutes and what real time takes; here the clock comes to that in a moment
    soon = time.time() + 302.5
    thread, job = lane_start(bench, batch, "run", lane="batch")
    until(lambda: len(jobs_of(bench)) == 2 and all(one.remote_name for one in jobs_of(bench)))
    thread.stop()
    finish(thread, job)
    ran = lane_run(bench, batch, "auto", deadline_at=soon)
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": ROWS})
    assert {entry["lane"] for entry in simulator.journal() if entry["billed"]} == {"realtime"}


def test_a_stop_while_jobs_are_being_cancelled_is_prompt(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench, name = submitted_with_deadline(simulator, tmp_path, "stopped")
    batch = bench.ingest(tmp_path / "stopped.csv", name)
    # the provider does not say how its jobs stand, so that the cancellation is waited for
    simulator.configure(batches=SLOW_JOBS, faults=[{"kind": "poll", "status": 500}])
    thread, job = lane_start(bench, batch, "stopped")
    until(lambda: "deadline is near" in thread.progress().note)
    began = time.monotonic()
    thread.stop()
    assert finish(thread, job).done.status == "interrupted"
    assert time.monotonic() - began < 45
    simulator.configure()
    assert lane_run(bench, batch, "next").outcomes == {"succeeded": ROWS}
    assert_books_are_right(bench, simulator)
    assert states_of(bench)["sent"] == 0
