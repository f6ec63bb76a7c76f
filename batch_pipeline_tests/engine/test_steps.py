"""Rows of several steps: each step is asked, cached and paid by itself, in both lanes."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from batch_pipeline.engine.breaker import BreakerRules
from batch_pipeline.engine.job import Job
from batch_pipeline.engine.step import Row, Step
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.calls import find_results
from batch_pipeline.ledger.tables import NANO, AttemptState, attempts
from batch_pipeline_tests.engine.test_crash import wait_for_attempts
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish


class Outline(BaseModel):
    outline: str


class Draft(BaseModel):
    draft: str


def outline_content(row: Row) -> dict[str, Any]:
    return {"topic": row["Topic"]}


def draft_content(row: Row) -> dict[str, Any]:
    return {"topic": row["Topic"], "outline": row["outline"]["outline"]}


def polish_content(row: Row) -> dict[str, Any]:
    return {"draft": row["draft"]["draft"], "outline": row["outline"]["outline"]}


STEPS = (
    Step("outline", "Outline it.", Outline, outline_content, max_items=5),
    Step("draft", "Write it.", Draft, draft_content, max_items=2),
    Step("polish", "Polish it.", Draft, polish_content),
)


def stepped(job: Job) -> Job:
    return replace(job, steps=STEPS)


def run(bench: Bench, batch: Batch, run_id: str, **settings: Any) -> Ran:
    job = stepped(bench.job(batch, run_id, **settings))
    return finish(bench.start(job), job)


def settled(bench: Bench) -> Counter[str]:
    """Answered requests by step."""
    answered = sa.select(attempts.c.step).where(attempts.c.state == AttemptState.SETTLED.value)
    with bench.open() as ledger, ledger.read() as connection:
        return Counter(connection.execute(answered).scalars())


def money_agrees(bench: Bench, batch: Batch) -> None:
    with bench.open() as ledger, ledger.read() as connection:
        spent = connection.execute(sa.select(sa.func.sum(attempts.c.cost_nano))).scalar_one()
    assert spent == sum(item.cost_nano for item in bench.items(batch))
    assert spent / NANO == pytest.approx(bench.simulator.summary()["price_usd"])


@pytest.mark.usefixtures("either_database")
def test_each_step_sees_the_answers_of_those_before_and_the_last_one_is_the_rows(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(20)))
    ran = run(bench, batch, "first")
    assert ran.outcomes == {"succeeded": 20}
    assert ran.done.status == "done"
    assert bench.asked() == {"outline": 4, "draft": 10, "polish": 20}
    money_agrees(bench, batch)
    items = bench.items(batch)
    assert not any(item.cached for item in items)
    with bench.open() as ledger, ledger.read() as connection:
        keys = [item.cache_key or "" for item in items]
        stored = find_results(connection, ledger.realm, keys, [items[0].model or ""])
    # The simulator quotes what it is given: the last answer quotes the draft, which quotes the row.
    assert len(stored) == 20
    assert all("draft" in stored[item.cache_key or ""].output for item in items)

    again = run(bench, batch, "again")
    assert again.done.tally.attempts == 0


def test_a_run_that_was_stopped_pays_for_no_step_again(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, workers=4)
    simulator.configure(latency={"base_s": 0.2, "per_output_token_s": 0.0, "jitter_s": 0.0})
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(60)))
    for turn in range(4):
        thread = bench.start(stepped(bench.job(batch, f"run{turn}")))
        before = len(simulator.journal())
        wait_for_attempts(simulator, before + 5)
        assert thread.stop_and_drain().status == "interrupted"
    last = run(bench, batch, "last")
    assert last.outcomes == {"succeeded": 60}
    # A stop may leave a pack that was not full: each adds a request to a step, and none is paid.
    most = {"outline": 12 + 4, "draft": 30 + 4 * 3, "polish": 60}
    assert all(asked_times <= most[step] for step, asked_times in settled(bench).items())
    assert sum(settled(bench).values()) == len(simulator.journal())
    money_agrees(bench, batch)


@pytest.mark.parametrize("wait", [True, False])
def test_steps_chain_through_provider_jobs(
    wait: bool, simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, lane="batch", wait=wait, poll_s=0.1)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(20)))
    for turn in range(40):
        ran = run(bench, batch, f"run{turn}")
        if ran.done.status != "submitted":
            break
        time.sleep(0.1)
    assert ran.done.status == "done"
    assert [item.outcome.value for item in bench.items(batch)] == ["succeeded"] * 20
    assert bench.asked() == {"outline": 4, "draft": 10, "polish": 20}
    money_agrees(bench, batch)
    lanes = simulator.summary()["by_lane"]
    assert lanes["realtime"]["attempts"] == 0
    assert lanes["batch"]["attempts"] == 34


def test_a_row_that_fails_at_a_step_is_failed_and_a_retry_begins_there(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    rows = topics(10)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows))
    simulator.configure(faults=[{"kind": "status", "status": 400, "match": "Write it."}])
    first = run(bench, batch, "first")
    assert first.outcomes.get("succeeded", 0) == 0
    simulator.configure()
    before = bench.asked()["outline"]
    second = run(bench, batch, "second")
    assert second.outcomes == {"succeeded": 10}
    assert bench.asked()["outline"] == before == 2
    money_agrees(bench, batch)


def test_an_outage_between_steps_leaves_nobody_waiting(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(10)))
    simulator.configure(
        faults=[{"kind": "status", "status": 503, "match": "Outline it.", "count": 6}]
    )
    ran = run(bench, batch, "first", breaker=BreakerRules(failures=100))
    assert ran.outcomes == {"succeeded": 10}
