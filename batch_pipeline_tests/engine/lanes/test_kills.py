"""`kill -9` at every point of a provider job's life: submitted once, none forgotten, nothing lost.

Another process goes on each time.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.tables import runs
from batch_pipeline_tests.engine.lanes import mortal
from batch_pipeline_tests.engine.lanes.laning import (
    ANTHROPIC,
    GOOGLE,
    OPENAI,
    assert_asked_once,
    assert_books_are_right,
    jobs_of,
    lane_bench,
    lane_run,
    states_of,
)
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator

LOST_REPLY = {"kind": "batch_create", "made": True, "count": 1}


def die(bench: Bench, batch_id: str, point: str, run_id: str = "killed") -> None:
    """Let a process take up the batch, and die at a point."""
    if point == "create without a reply":
        bench.simulator.configure(faults=[LOST_REPLY])
    mortal.wait_for_death(mortal.start(bench, batch_id, run_id, point))
    bench.simulator.configure()


@pytest.mark.parametrize("point", mortal.POINTS)
def test_after_a_kill_another_process_goes_on_and_nothing_is_submitted_twice(
    point: str, simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, route=GOOGLE, job_items=30)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(60)))
    die(bench, batch.batch_id, point)
    ran = lane_run(bench, batch, "goes on")
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 60})
    assert len(jobs_of(bench)) == 2
    assert states_of(bench) == {"settled": 6}
    assert_asked_once(bench, simulator, 60)
    assert_books_are_right(bench, simulator)


@pytest.mark.parametrize("route", [ANTHROPIC, OPENAI])
def test_processes_that_die_one_after_the_other_bring_one_batch_to_its_end(
    route: str, simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, route=route, job_items=20, max_jobs=1)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(100)))
    # Anthropic's jobs have no file that is deleted in the end.
    points = [point for point in mortal.POINTS if point != "after the job is closed"]
    for number, point in enumerate(points):
        die(bench, batch.batch_id, point, f"killed {number}")
    ran = lane_run(bench, batch, "goes on")
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 100})
    assert len(jobs_of(bench)) == 5
    assert_asked_once(bench, simulator, 100)
    assert_books_are_right(bench, simulator)
    with bench.open() as ledger, ledger.read() as connection:
        ended = Counter(connection.execute(sa.select(runs.c.status)).scalars())
    assert ended == {"crashed": len(points), "done": 1}


@pytest.mark.parametrize("route", [GOOGLE, OPENAI])
@pytest.mark.parametrize("point", ["before the upload", "before create"])
def test_a_job_of_the_same_name_in_another_ledger_is_not_taken_for_the_lost_one(
    point: str, route: str, simulator: Simulator, tmp_path: Path
) -> None:
    table = write_rows(tmp_path / "rows.csv", topics(40))
    other = lane_bench(tmp_path / "other", simulator, route=route, wait=False)
    bench = lane_bench(tmp_path / "ours", simulator, route=route)
    assert lane_run(other, other.ingest(table, "same-name")).done.status == "submitted"
    batch = bench.ingest(table, "same-name")
    die(bench, batch.batch_id, point)
    ran = lane_run(bench, batch, "goes on")
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 40})
    assert states_of(bench) == {"settled": 4}
    theirs, ours = jobs_of(other)[0].remote_name, jobs_of(bench)[0].remote_name
    assert theirs != ours
