"""Stops, forced runs, bounded runs: what they do while provider jobs are open."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.ledger.batches import Batch, start_generation
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.simulator.launch import URL_VARIABLE
from batch_pipeline.workloads.lane import cancel, due_batches
from batch_pipeline_tests.engine.lanes.laning import (
    GOOGLE,
    OPENAI,
    SLOW_JOBS,
    assert_asked_once,
    assert_books_are_right,
    attempts_of,
    jobs_of,
    lane_bench,
    lane_job,
    lane_run,
    lane_start,
    states_of,
    until,
)
from batch_pipeline_tests.engine.test_branches import voted
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator, finish

ROWS = 40


def test_a_stop_while_jobs_are_awaited_is_prompt_and_the_next_run_collects(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, job_items=20)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    thread, job = lane_start(bench, batch, "stopped")
    until(lambda: len(jobs_of(bench)) == 2 and all(one.remote_name for one in jobs_of(bench)))
    began = time.monotonic()
    thread.stop()
    ran = finish(thread, job)
    assert (ran.done.status, ran.outcomes) == ("interrupted", {"pending": ROWS})
    assert time.monotonic() - began < 60, "the jobs take ten minutes"
    assert states_of(bench) == {"sent": 4}, "the jobs go on"
    simulator.configure()
    simulator.advance(700.0)
    assert lane_run(bench, batch, "collects").outcomes == {"succeeded": ROWS}
    assert_asked_once(bench, simulator, ROWS)
    assert_books_are_right(bench, simulator)


def test_a_run_that_is_stopped_before_it_starts_makes_no_jobs(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, job_items=20)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    job = lane_job(bench, batch, "stopped")
    thread = EngineThread(bench.open, job)
    thread.stop()
    ran = finish(thread.start(), job)
    assert (ran.done.status, ran.outcomes) == ("interrupted", {"pending": ROWS})
    assert jobs_of(bench) == []


def test_a_row_with_branches_in_provider_jobs_is_counted_once(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, wait=False, chunk_size=2)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(4)))
    job = voted(lane_job(bench, batch, "submits"))
    ran = finish(bench.start(job), job)
    assert (ran.done.status, ran.outcomes) == ("submitted", {"pending": 4})
    assert ran.done.message.startswith("4 rows are in provider jobs")
    assert [chunk.tally.outcomes[Outcome.PENDING] for chunk in ran.chunks] == [2, 2]


def test_a_forced_run_over_open_jobs_takes_their_answers_and_one_after_them_asks_anew(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, wait=False)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    lane_run(bench, batch, "submits")
    with bench.open() as ledger:
        start_generation(ledger, batch.batch_id)
    assert lane_run(bench, batch, "forced").done.status == "submitted"
    assert len(jobs_of(bench)) == 1, "what is under way is fresh enough"
    simulator.configure()
    simulator.advance(700.0)
    bench.config = bench.config.model_copy(update={"wait": True})
    assert lane_run(bench, batch, "collects").outcomes == {"succeeded": ROWS}
    assert_asked_once(bench, simulator, ROWS)

    with bench.open() as ledger:
        start_generation(ledger, batch.batch_id)
    assert lane_run(bench, batch, "forced again").outcomes == {"succeeded": ROWS}
    assert len(jobs_of(bench)) == 2
    assert_books_are_right(bench, simulator)


def test_a_limit_bounds_the_rows_that_go_up(simulator: Simulator, tmp_path: Path) -> None:
    bench = lane_bench(tmp_path, simulator, limit=15)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    ran = lane_run(bench, batch, "first")
    assert ran.outcomes == {"succeeded": 15, "pending": 25}
    assert lane_run(bench, batch, "second").outcomes == {"succeeded": 30, "pending": 10}
    assert_asked_once(bench, simulator, 30)


def test_a_run_that_only_submits_collects_nothing_and_asks_nothing_in_real_time(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, wait=False)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    assert lane_run(bench, batch, "submits", submit_only=True).done.status == "submitted"
    simulator.advance(700.0)
    ran = lane_run(bench, batch, "submits again", submit_only=True)
    assert (ran.done.status, ran.outcomes) == ("submitted", {"pending": ROWS})
    assert [job.state.value for job in jobs_of(bench)] == ["ended"]
    assert lane_run(bench, batch, "collects").outcomes == {"succeeded": ROWS}
    assert_asked_once(bench, simulator, ROWS)


def cancel_batch(bench: Bench, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `batches cancel` does."""
    monkeypatch.setenv(URL_VARIABLE, bench.simulator.url)
    with bench.open() as ledger:
        assert cancel(bench.settings, ledger, batch) == 1


def test_a_cancelled_batch_is_collected_and_not_submitted_again_until_somebody_runs_it(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, route=OPENAI, wait=False)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    lane_run(bench, batch, "submits")
    cancel_batch(bench, batch, monkeypatch)
    simulator.advance(700.0)
    ran = lane_run(bench, batch, "collects")
    assert (ran.done.status, ran.outcomes) == ("submitted", {"pending": ROWS})
    assert "its provider jobs were cancelled" in ran.done.message
    assert [job.state.value for job in jobs_of(bench)] == ["collected"]
    with bench.open() as ledger:
        assert due_batches(ledger, "roadmaps") == [], "nothing goes on by itself"
    simulator.configure()
    bench.config = bench.config.model_copy(update={"wait": True})
    assert lane_run(bench, batch, "again").outcomes == {"succeeded": ROWS}
    assert_books_are_right(bench, simulator)


def test_a_cancellation_that_came_while_the_job_was_being_made_reaches_the_provider(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.configure(
        batches=SLOW_JOBS, faults=[{"kind": "batch_create", "made": True, "count": 1}]
    )
    bench = lane_bench(tmp_path, simulator, route=GOOGLE, wait=False)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(ROWS)))
    lane_run(bench, batch, "submits")
    assert [job.state.value for job in jobs_of(bench)] == ["creating"]
    cancel_batch(bench, batch, monkeypatch)
    until(lambda: lane_run(bench, batch, f"run {time.time()}") and is_cancelled(bench), 20)
    assert len({entry["job"] for entry in simulator.journal()}) <= 1
    assert all(attempt["state"] != "settled" for attempt in attempts_of(bench))


def is_cancelled(bench: object) -> bool:
    return jobs_of(bench)[0].remote_state == "cancelled"  # type: ignore[arg-type]
