"""Runs of the batch lane for tests, and what the simulator and the ledger say of them.

What belongs here: short ways to run and to read. What does not: the tests.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.engine.job import Job
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.jobs import ProviderJob, list_jobs
from batch_pipeline.ledger.tables import NANO, AttemptState, attempts, items, results
from batch_pipeline_tests.engine.test_budget import assert_sums_equal_the_attempts
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

GOOGLE = "google/gemini-3.1-flash-lite"
ANTHROPIC = "anthropic/claude-haiku-5-5"
OPENAI = "openai/gpt-5.4-mini"
ROUTES = (GOOGLE, ANTHROPIC, OPENAI)

SLOW_JOBS = [{"duration_s": 600.0, "per_line_s": 0.0, "duration_jitter": 0.0}]
"""Jobs that do not end while a test goes on, unless it moves the simulator's clock."""


def lane_bench(folder: Path, simulator: Simulator, **knobs: Any) -> Bench:
    """An installation whose runs go through provider jobs and wait for them."""
    folder.mkdir(exist_ok=True)
    quick = {"route": GOOGLE, "lane": "batch", "wait": True, "poll_s": 0.1, "pack": 10}
    return Bench(folder, simulator, **{**quick, **knobs})


def lane_job(bench: Bench, batch: Batch, run_id: str, **lane: Any) -> Job:
    """A job over a whole batch; `lane` are fields of LaneSettings."""
    job = bench.job(batch, run_id)
    settings = replace(job.settings.lane, **{"settle_s": 0.3, **lane})
    return replace(job, settings=replace(job.settings, lane=settings))


def lane_run(bench: Bench, batch: Batch, run_id: str = "run", **lane: Any) -> Ran:
    """Run a batch to the end of the run; `lane` are fields of LaneSettings."""
    job = lane_job(bench, batch, run_id, **lane)
    return finish(bench.start(job), job)


def lane_start(bench: Bench, batch: Batch, run_id: str, **lane: Any) -> tuple[EngineThread, Job]:
    """Start a run."""
    job = lane_job(bench, batch, run_id, **lane)
    return bench.start(job), job


def jobs_of(bench: Bench, batch: Batch | None = None) -> list[ProviderJob]:
    """Provider jobs, oldest first."""
    with bench.open() as ledger, ledger.read() as connection:
        batch_id = None if batch is None else batch.batch_id
        return list_jobs(connection, ledger.realm, batch_id=batch_id)


def attempts_of(bench: Bench, lane: str | None = None) -> list[dict[str, Any]]:
    """Attempts, as the ledger has them."""
    statement = sa.select(attempts)
    if lane is not None:
        statement = statement.where(attempts.c.lane == lane)
    with bench.open() as ledger, ledger.read() as connection:
        return [dict(row) for row in connection.execute(statement).mappings()]


def states_of(bench: Bench, lane: str | None = None) -> Counter[str]:
    """How many attempts are in which state."""
    return Counter(attempt["state"] for attempt in attempts_of(bench, lane))


def outputs_of(bench: Bench, batch: Batch) -> dict[str, Any]:
    """The answer of each row."""
    statement = (
        sa.select(items.c.item_id, results.c.output)
        .join(
            results,
            sa.and_(
                results.c.realm == items.c.realm,
                results.c.cache_key == items.c.cache_key,
                results.c.model == items.c.model,
            ),
        )
        .where(items.c.batch_id == batch.batch_id)
    )
    with bench.open() as ledger, ledger.read() as connection:
        return {item_id: orjson.loads(output) for item_id, output in connection.execute(statement)}


def assert_books_are_right(bench: Bench, simulator: Simulator) -> None:
    """Journal, attempts, rows and balances agree, to the nano-dollar; every job is closed."""
    journal = simulator.journal()
    known = {attempt["attempt_id"]: attempt for attempt in attempts_of(bench)}
    billed: dict[str, int] = {}
    for entry in journal:
        name = entry.get("custom_id") or entry["client_request_id"]
        assert name not in billed, f"{name} was asked twice"
        billed[name] = round(entry["price_usd"] * NANO)
    assert set(billed) <= set(known), "something was sent that was not written down before"
    for name, attempt in known.items():
        if attempt["state"] == AttemptState.SETTLED:
            assert attempt["cost_nano"] == billed[name], name
        elif attempt["state"] == AttemptState.REFUNDED:
            assert not billed.get(name), f"{name} was paid, and given back"
        else:
            assert attempt["state"] == AttemptState.LOST, name
            assert attempt["cost_nano"] >= billed.get(name, 0), "lost at worst case"
    settled = sum(
        attempt["cost_nano"]
        for attempt in known.values()
        if attempt["state"] == AttemptState.SETTLED
    )
    with bench.open() as ledger, ledger.read() as connection:
        borne = connection.execute(sa.select(sa.func.sum(items.c.cost_nano))).scalar_one()
    assert borne == settled, "the rows bear what the attempts cost"
    assert_sums_equal_the_attempts(bench)
    assert {job.state.value for job in jobs_of(bench)} <= {"collected", "abandoned"}


def assert_asked_once(bench: Bench, simulator: Simulator, rows: int) -> None:
    """Each row was in one line of one job of the provider's, and each of those is known to us."""
    journal = simulator.journal()
    assert sum(entry["items"] for entry in journal) == rows
    assert len({entry["custom_id"] for entry in journal}) == len(journal)
    known = {str(job.remote_name).removeprefix("batches/") for job in jobs_of(bench)}
    assert {entry["job"] for entry in journal} == known


def until(reached: Callable[[], object], bound_s: float = 20.0) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + bound_s
    while not reached():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)
