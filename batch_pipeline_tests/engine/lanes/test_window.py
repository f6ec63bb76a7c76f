"""What is enqueued stays within the window, and what it may cost within the budget."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.engine.job import LaneSettings
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.tables import NANO
from batch_pipeline.workloads.lane import due_batches, refresh
from batch_pipeline_tests.engine.lanes import mortal
from batch_pipeline_tests.engine.lanes.laning import (
    ANTHROPIC,
    GOOGLE,
    OPENAI,
    SLOW_JOBS,
    assert_books_are_right,
    jobs_of,
    lane_bench,
    lane_job,
    lane_run,
    lane_start,
    states_of,
    until,
)
from batch_pipeline_tests.engine.test_budget import balance_of
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator, finish

LIMIT = 10_000
SHARE = 0.9
JOBS = [{"duration_s": 0.5, "per_line_s": 0.0, "duration_jitter": 0.5, "enqueued_tokens": LIMIT}]


def enqueued(simulator: Simulator) -> dict[str, Any]:
    """What the simulator counted of the one key and model that was used."""
    [one] = simulator.enqueued()
    return dict(one)


def test_jobs_roll_through_the_window_and_the_provider_never_counts_more_than_the_share(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=JOBS)
    bench = lane_bench(tmp_path, simulator, enqueued_tokens=LIMIT, enqueued_share=SHARE, max_jobs=7)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(400)))
    ran = lane_run(bench, batch)
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": batch.row_count})
    counted = enqueued(simulator)
    assert 0.5 * SHARE * LIMIT <= counted["peak"] <= SHARE * LIMIT
    assert 2 <= counted["peak_jobs"] <= 7
    assert simulator.summary()["by_lane"]["realtime"]["attempts"] == 0
    assert_books_are_right(bench, simulator)
    # Every token that the provider counted was estimated, and hardly more.
    estimated = sum(job.tokens for job in jobs_of(bench))
    real = simulator.summary()["input_tokens"]
    assert real <= estimated <= 1.5 * real


@pytest.mark.usefixtures("either_database")
def test_two_processes_with_two_batches_share_one_window(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=JOBS)
    bench = lane_bench(tmp_path, simulator, enqueued_tokens=LIMIT, enqueued_share=SHARE, max_jobs=5)
    rows = topics(200)
    one = bench.ingest(write_rows(tmp_path / "one.csv", rows[:100]))
    two = bench.ingest(write_rows(tmp_path / "two.csv", rows[100:]))
    process = mortal.start(bench, two.batch_id, "other process")
    ran = lane_run(bench, one, "this process")
    process.join(60)
    assert process.exitcode == 0
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 100})
    assert lane_run(bench, two, "all done").outcomes == {"succeeded": 100}
    counted = enqueued(simulator)
    assert counted["peak"] <= SHARE * LIMIT and counted["peak_jobs"] <= 5
    assert sum(entry["items"] for entry in simulator.journal()) == 200
    assert_books_are_right(bench, simulator)


def test_without_waiting_what_finds_no_room_stays_pending_and_goes_up_later(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, enqueued_tokens=6_000, wait=False)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(100)))
    ran = lane_run(bench, batch, "submits")
    assert (ran.done.status, ran.outcomes) == ("submitted", {"pending": 100})
    held = sum(job.item_count for job in jobs_of(bench))
    assert 0 < held < 100
    assert f"{100 - held} wait for room under the limit of enqueued tokens" in ran.done.message
    assert sum(job.tokens for job in jobs_of(bench)) <= SHARE * 6_000
    known = len(jobs_of(bench))
    assert lane_run(bench, batch, "no room yet").done.status == "submitted"
    assert len(jobs_of(bench)) == known
    simulator.advance(700.0)
    simulator.configure()
    bench.config = bench.config.model_copy(update={"wait": True})
    assert lane_run(bench, batch, "room").outcomes == {"succeeded": 100}
    assert_books_are_right(bench, simulator)


def test_what_is_enqueued_is_reserved_at_batch_price_and_the_budget_is_never_passed(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=SLOW_JOBS)
    table = write_rows(tmp_path / "rows.csv", topics(100))
    whole = lane_bench(tmp_path / "whole", simulator, route=ANTHROPIC, job_items=20, wait=False)
    lane_run(whole, whole.ingest(table))
    budget = 0.5 * sum(job.worst_nano for job in jobs_of(whole)) / NANO
    simulator.reset()
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(
        tmp_path, simulator, route=ANTHROPIC, job_items=20, wait=False, budget_usd=budget
    )
    batch = bench.ingest(table)
    ran = lane_run(bench, batch, "submits")
    assert ran.done.status == "submitted"
    assert "wait for room in the budget" in ran.done.message
    held = balance_of(bench, batch)
    assert 0.85 * budget * NANO <= held.reserved <= budget * NANO
    assert held.settled == held.lost == 0
    sizes = [job.item_count for job in jobs_of(bench)]
    assert max(sizes) == 20 and min(sizes) < 20, "near the end jobs are smaller"

    simulator.advance(700.0)
    simulator.configure()
    bench.config = bench.config.model_copy(update={"wait": True})
    last = lane_run(bench, batch, "goes on as jobs settle for less")
    assert last.outcomes == {"succeeded": 100}
    held = balance_of(bench, batch)
    assert held.reserved == 0 and held.taken <= budget * NANO
    assert_books_are_right(bench, simulator)


def test_a_budget_that_ends_within_the_batch_ends_the_run_and_is_nearly_all_used(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, route=ANTHROPIC, job_items=40, budget_usd=0.0012)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(200)))
    ran = lane_run(bench, batch)
    assert ran.done.status == "budget"
    assert "budget reached" in ran.done.message
    done = ran.outcomes["succeeded"]
    assert 0 < done < 200 and ran.outcomes == {"succeeded": done, "pending": 200 - done}
    paid = simulator.summary()["price_usd"]
    assert 0.0012 - 0.0003 <= paid <= 0.0012, "what is left does not hold one row's worst case"
    assert_books_are_right(bench, simulator)


def test_a_budget_too_small_for_one_row_ends_the_run_at_once(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, route=ANTHROPIC, budget_usd=0.000_1)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(30)))
    ran = lane_run(bench, batch)
    assert (ran.done.status, ran.outcomes) == ("budget", {"pending": 30})
    assert jobs_of(bench) == [] and simulator.journal() == []


def test_a_stop_while_waiting_for_room_is_prompt(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, route=GOOGLE, enqueued_tokens=6_000)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(100)))
    thread, job = lane_start(bench, batch, "stopped")
    until(lambda: "room" in thread.progress().note)
    thread.stop()
    assert finish(thread, job).done.status == "interrupted"
    assert states_of(bench).keys() == {"sent"}


def test_the_lane_settings_of_a_job_are_those_of_the_knobs(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, enqueued_tokens=1_000, max_jobs=3, lane_tries=4)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(1)))
    job = lane_job(bench, batch, "run", settle_s=60.0)
    assert job.settings.lane == replace(
        LaneSettings(), lane="batch", wait=True, max_jobs=3, tries=4, poll_s=0.1
    )
    assert job.route[0].enqueued_tokens == 900


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("route", [GOOGLE, OPENAI])
def test_a_job_that_is_larger_than_a_limit_nobody_knew_is_made_smaller(
    route: str,
    wait: bool,
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BATCH_PIPELINE_SIMULATOR_URL", simulator.url)
    simulator.configure(batches=[{"duration_s": 0.2, "per_line_s": 0.0, "enqueued_tokens": 3_000}])
    bench = lane_bench(tmp_path, simulator, route=route, wait=wait)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(100)))
    for turn in range(60):
        ran = lane_run(bench, batch, f"run{turn}")
        if ran.done.status != "submitted":
            break
        until(partial(something_is_due, bench, batch))
    assert ran.done.status == "done"
    assert [item.outcome.value for item in bench.items(batch)] == ["succeeded"] * 100
    assert enqueued(simulator)["peak"] <= 3_000
    assert simulator.summary()["by_lane"]["realtime"]["attempts"] == 0
    assert_books_are_right(bench, simulator)


def something_is_due(bench: Bench, batch: Batch) -> bool:
    """Look at the jobs, as the sensor does."""
    with bench.open() as ledger:
        refresh(bench.settings, ledger, batch)
        return bool(due_batches(ledger, "roadmaps"))
