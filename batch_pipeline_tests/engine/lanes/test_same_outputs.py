"""Whichever way rows travel, the answers are the same; through provider jobs at half the price."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_pipeline.ledger.tables import NANO
from batch_pipeline_tests.engine.lanes.laning import (
    GOOGLE,
    ROUTES,
    assert_asked_once,
    assert_books_are_right,
    jobs_of,
    lane_bench,
    lane_run,
    outputs_of,
)
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Simulator

ROWS, DOUBLES = 120, 15


def table(folder: Path) -> Path:
    rows = topics(ROWS)
    return write_rows(folder / "rows.csv", rows + rows[:DOUBLES])


def test_every_provider_gives_the_same_outputs_in_both_lanes_and_jobs_cost_half(
    simulator: Simulator, tmp_path: Path
) -> None:
    source = table(tmp_path)
    outputs = []
    for route in ROUTES:
        paid = {}
        for lane in ("realtime", "batch"):
            simulator.reset()
            folder = tmp_path / f"{route.partition('/')[0]} {lane}"
            bench = lane_bench(folder, simulator, route=route, lane=lane, job_items=50)
            batch = bench.ingest(source)
            ran = lane_run(bench, batch)
            assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": ROWS + DOUBLES})
            assert ran.done.tally.cache_hits == DOUBLES
            outputs.append(outputs_of(bench, batch))
            assert len(outputs[-1]) == ROWS + DOUBLES
            assert sum(row.cached for row in bench.items(batch)) == DOUBLES
            assert_books_are_right(bench, simulator)
            summary = simulator.summary()
            assert summary["items"] == ROWS
            assert ran.done.tally.cost_usd == pytest.approx(summary["price_usd"])
            paid[lane] = summary["by_lane"][lane]["price_usd"]
            assert paid[lane] == pytest.approx(summary["price_usd"]), "all in the lane"
            if lane == "batch":
                assert_asked_once(bench, simulator, ROWS)
                assert len(jobs_of(bench)) == 3
        assert paid["batch"] * 2 == pytest.approx(paid["realtime"], abs=200 / NANO), route
    assert all(output == outputs[0] for output in outputs)


@pytest.mark.usefixtures("either_database")
def test_a_run_that_does_not_wait_submits_and_the_next_one_collects(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, route=GOOGLE, wait=False, job_items=50)
    batch = bench.ingest(table(tmp_path))
    ran = lane_run(bench, batch, "submits")
    assert (ran.done.status, ran.outcomes) == ("submitted", {"pending": ROWS + DOUBLES})
    assert f"{ROWS + DOUBLES} rows are in provider jobs" in ran.done.message
    for number in range(50):
        ran = lane_run(bench, batch, f"collects {number}")
        if ran.done.status != "submitted":
            break
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": ROWS + DOUBLES})
    assert all(chunk.complete for chunk in ran.chunks)
    assert_asked_once(bench, simulator, ROWS)
    assert_books_are_right(bench, simulator)
