"""Local steps: they run among the LLM steps, their documents are kept, and their word is final."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from batch_pipeline.engine.job import Job
from batch_pipeline.engine.local import Tools
from batch_pipeline.engine.step import AnyStep, Done, LocalStep, LocalWork, Place, Row, Step
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, start_generation
from batch_pipeline.ledger.documents import KEEP_DOCUMENT, Document, KeepDocument, documents_of
from batch_pipeline.ledger.tables import Outcome, attempts
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine.test_steps import money_agrees
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

Work = Callable[[Row, Place], Awaitable[Done]]


class Text(BaseModel):
    text: str


class Steps:
    """prepare (local) -> tone (optional) -> draft and polish, or single -> check (local)."""

    def __init__(self, *, prepare: Work | None = None, check: Work | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.opened = self.closed = 0
        self._prepare = prepare
        self._check = check

    def make(self) -> tuple[AnyStep, ...]:
        return (
            LocalStep("prepare", self._open("prepare", self._prepare), checkpoint=True, at_once=4),
            Step("tone", "Say its tone.", Text, prepared, optional=True),
            Step("single", "Write at once.", Text, prepared, applies=is_single),
            Step("draft", "Write it.", Text, prepared, applies=is_double),
            Step("polish", "Polish it.", Text, drafted, applies=is_double),
            LocalStep("check", self._open("check", self._check)),
        )

    def _open(self, name: str, given: Work | None) -> Callable[[Tools], Any]:
        @asynccontextmanager
        async def opening(tools: Tools) -> AsyncIterator[LocalWork]:
            self.opened += 1

            async def work(row: Row, place: Place) -> Done:
                self.calls[f"{name} {row['Topic']}"] += 1
                if given is not None:
                    return await given(row, place)
                return Done({"subject": f"about {row['Topic']}", "model": place.model})

            yield work
            self.closed += 1

        return opening


def prepared(row: Row) -> dict[str, Any]:
    return {"subject": row["prepare"]["subject"]}


def drafted(row: Row) -> dict[str, Any]:
    return {"draft": row["draft"]["text"]}


def number(row: Row) -> int:
    return int(row["Topic"].split()[-1])


def is_single(row: Row) -> bool:
    return number(row) % 2 == 0


def is_double(row: Row) -> bool:
    return not is_single(row)


def rows_of(count: int) -> list[dict[str, str]]:
    return [{**row, "Topic": f"Topic {at}"} for at, row in enumerate(topics(count))]


def run(bench: Bench, batch: Batch, steps: Steps, run_id: str = "run", **settings: Any) -> Ran:
    job = with_steps(bench.job(batch, run_id, **settings), steps)
    return finish(bench.start(job), job)


def with_steps(job: Job, steps: Steps) -> Job:
    return replace(job, steps=steps.make())


def asked(bench: Bench) -> Counter[str]:
    with bench.open() as ledger, ledger.read() as connection:
        return Counter(connection.execute(sa.select(attempts.c.step)).scalars())


def document(bench: Bench, batch: Batch, ordinal: int, step: str) -> Document | None:
    with bench.open() as ledger:
        return documents_of(ledger, batch.batch_id, ordinal).get(step)


@pytest.mark.usefixtures("either_database")
def test_rows_take_the_steps_that_apply_and_local_steps_see_and_keep_what_there_is(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(20)))
    steps = Steps()
    ran = run(bench, batch, steps)
    assert asked == {
        ("shared", "google"): 1,
        ("own", "google"): 3,
        ("own", "openai"): 3,
        ("own", "anthropic"): 3,
    }


@pytest.mark.parametrize("wait", [True, False])
def test_local_steps_chain_with_provider_jobs(
    wait: bool, simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, lane="batch", wait=wait, poll_s=0.1)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(12)))
    for turn in range(60):
        ran = run(bench, batch, Steps(), f"run{turn}")
        if ran.done.status != "submitted":
            break
        time.sleep(0.1)
    assert ran.done.status == "done"
    assert [item.outcome.value for item in bench.items(batch)] == ["succeeded"] * 12
    assert asked(bench) == {"tone": 12, "single": 6, "draft": 6, "polish": 6}
    assert simulator.summary()["by_lane"]["realtime"]["attempts"] == 0
    money_agrees(bench, batch)
