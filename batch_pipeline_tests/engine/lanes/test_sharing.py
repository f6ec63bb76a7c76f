"""Single flight holds between batches, processes and lanes: a question is paid once."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_pipeline_tests.engine.lanes import mortal
from batch_pipeline_tests.engine.lanes.laning import (
    SLOW_JOBS,
    assert_books_are_right,
    jobs_of,
    lane_bench,
    lane_run,
    lane_start,
    until,
)
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator, finish

ROWS = 40


def two_tables(folder: Path) -> tuple[Path, Path]:
    """The same questions in two tables that are not the same."""
    rows = topics(ROWS)
    other = [dict(row, Resources=f"{row['Resources']}/other") for row in rows]
    return write_rows(folder / "one.csv", rows), write_rows(folder / "two.csv", other)


def asked(simulator: Simulator) -> int:
    return sum(entry["items"] for entry in simulator.journal())


def test_two_processes_with_the_same_questions_submit_them_once(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, job_items=10)
    one, two = (bench.ingest(table) for table in two_tables(tmp_path))
    process = mortal.start(bench, two.batch_id, "other process")
    assert lane_run(bench, one, "this process").outcomes == {"succeeded": ROWS}
    process.join(60)
    assert process.exitcode == 0
    assert lane_run(bench, two, "all done").outcomes == {"succeeded": ROWS}
    assert asked(simulator) == ROWS
    assert_books_are_right(bench, simulator)


@pytest.mark.parametrize("lane", ["batch", "realtime"])
def test_a_run_follows_questions_that_are_enqueued_for_another_batch(
    lane: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, wait=False)
    one, two = (bench.ingest(table) for table in two_tables(tmp_path))
    assert lane_run(bench, one, "submits").done.status == "submitted"
    bench.config = bench.config.model_copy(update={"lane": lane})
    follows = lane_run(bench, two, "follows")
    assert (follows.done.status, follows.outcomes) == ("submitted", {"pending": ROWS})
    simulator.configure()
    simulator.advance(700.0)
    bench.config = bench.config.model_copy(update={"lane": "batch", "wait": True})
    waits = lane_run(bench, two, "waits")
    assert (waits.outcomes, waits.done.tally.cost_usd) == ({"succeeded": ROWS}, 0.0)
    assert lane_run(bench, one, "collects").outcomes == {"succeeded": ROWS}
    assert asked(simulator) == ROWS
    assert [job.batch_id for job in jobs_of(bench)] == [one.batch_id]


def test_a_run_that_waits_brings_up_the_jobs_that_a_dead_process_left_to_another_batch(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator)
    one, two = (bench.ingest(table) for table in two_tables(tmp_path))
    mortal.wait_for_death(mortal.start(bench, one.batch_id, "killed", "before create"))
    assert lane_run(bench, two, "waits for its rows").outcomes == {"succeeded": ROWS}
    assert lane_run(bench, one, "goes on").outcomes == {"succeeded": ROWS}
    assert asked(simulator) == ROWS
    assert_books_are_right(bench, simulator)


def test_rows_that_are_asked_in_real_time_elsewhere_are_not_submitted_as_well(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency={"base_s": 1.0, "per_output_token_s": 0.0, "jitter_s": 0.0})
    bench = lane_bench(tmp_path, simulator)
    one, two = (bench.ingest(table) for table in two_tables(tmp_path))
    quick = Bench(tmp_path, simulator, lane="realtime", route=bench.config.route, pack=10)
    thread, job = lane_start(quick, one, "real time")
    until(lambda: thread.progress().in_flight > 0)
    assert lane_run(bench, two, "batch lane").outcomes == {"succeeded": ROWS}
    assert finish(thread, job).outcomes == {"succeeded": ROWS}
    assert asked(simulator) == ROWS
    assert jobs_of(bench) == []
