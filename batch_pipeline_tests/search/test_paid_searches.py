"""Searches that cost money, in a run: the ledger's books equal the provider's, at its own limit."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from batch_pipeline.engine.job import Job, Spending
from batch_pipeline.engine.searching import STEP
from batch_pipeline.engine.step import Done, LocalStep, LocalWork, Row
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.tables import NANO, attempts
from batch_pipeline.search.base import SearchAccess, SearchQuery
from batch_pipeline.search.registry import resolve_search_access
from batch_pipeline_tests.engine.test_local import rows_of
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

ROWS = 12
QUERY = SearchQuery("", "ir", 5, text_chars=400)


@asynccontextmanager
async def _researching(tools: Tools) -> AsyncIterator[LocalWork]:
    async def work(row: Row, place: Place) -> Done:
        query = replace(QUERY, text=row["Topic"])
        found = [await tools.search(name, query, place) for name in ("exa", "tavily")]
        return Done({"titles": [answer.results[0]["title"] for answer in found]})

    yield work


def _job(bench: Bench, batch: Batch, per_minute: float, **settings: object) -> Job:
    def access(name: str) -> SearchAccess | None:
        found = resolve_search_access(name, {}, bench.simulator.url)
        assert found is not None
        return replace(found, provider=replace(found.provider, requests_per_minute=per_minute))

    job = bench.job(batch, **settings)  # type: ignore[arg-type]
    return replace(job, steps=(LocalStep("look", _researching),), search_access=access)


def _run(bench: Bench, batch: Batch, per_minute: float = 60_000, **settings: object) -> Ran:
    job = _job(bench, batch, per_minute, **settings)
    return finish(bench.start(job), job)


def _booked(bench: Bench) -> tuple[dict[str, int], dict[str, int]]:
    """Nano-USD by endpoint, settled and lost."""
    with bench.open() as ledger, ledger.read() as connection:
        found = connection.execute(
            sa.select(attempts.c.model, attempts.c.state, sa.func.sum(attempts.c.cost_nano))
            .where(attempts.c.step == STEP)
            .group_by(attempts.c.model, attempts.c.state)
        ).all()
    settled = {model: int(nano) for model, state, nano in found if state == "settled"}
    return settled, {model: int(nano) for model, state, nano in found if state == "lost"}


def _paid(simulator: Simulator) -> float:
    return float(simulator.summary()["price_usd"])


def test_the_ledger_books_what_the_providers_charge(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(ROWS)))
    ran = _run(bench, batch)
    assert ran.outcomes == {"succeeded": ROWS}
    settled, lost = _booked(bench)
    assert settled == {
        "exa/search": round(ROWS * 0.007 * NANO),
        "tavily/search": round(ROWS * 0.008 * NANO),
    }
    assert not lost
    assert _paid(simulator) * NANO == pytest.approx(sum(settled.values()))
    assert ran.done.tally.cost_nano == sum(settled.values())


def test_what_was_charged_for_a_lost_reply_is_booked_as_lost(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(
        faults=[
            {"kind": "cut", "provider": "exa", "count": 2},
            {"kind": "malformed_json", "provider": "tavily", "count": 1},
            {"kind": "status", "status": 503, "provider": "exa", "count": 1, "after": 4},
        ]
    )
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(ROWS)))
    assert _run(bench, batch).outcomes == {"succeeded": ROWS}
    settled, lost = _booked(bench)
    assert lost == {"exa/search": round(0.014 * NANO), "tavily/search": round(0.008 * NANO)}
    booked = sum(settled.values()) + sum(lost.values())
    assert _paid(simulator) * NANO == pytest.approx(booked)


def test_a_budget_counts_searches_and_is_not_passed(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(ROWS)))
    ran = _run(bench, batch, spending=Spending(batch_nano=round(0.09 * NANO)))
    assert ran.done.status == "budget"
    assert 0.075 <= _paid(simulator) <= 0.09


def test_a_strict_limit_is_kept_without_a_refusal(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(exa_per_second=5, tavily_per_minute=300)
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(ROWS)))
    began = time.monotonic()
    assert _run(bench, batch, per_minute=300).outcomes == {"succeeded": ROWS}
    assert time.monotonic() - began >= (ROWS - 2) / 5
    assert simulator.summary()["rate_limited"] == 0
