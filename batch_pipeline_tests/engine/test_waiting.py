"""Rows that wait for something: it comes, or they are sent on; nobody waits for nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, field_validator

from batch_pipeline.clock import SystemClock
from batch_pipeline.engine.breaker import BreakerRules
from batch_pipeline.engine.engine import Engine
from batch_pipeline.engine.job import Job
from batch_pipeline.engine.step import Step
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.tables import AttemptState
from batch_pipeline.limits.rates import Rates
from batch_pipeline.providers.base import ErrorKind, ProviderError, WireCall, WireReply
from batch_pipeline_tests.engine.test_crash import states
from batch_pipeline_tests.engine.test_local import Text, rows_of
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine.test_stop import wait_until
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

DRAFT = Step("draft", "Write it.", Text, lambda row: {"topic": row["Topic"]})
POLISH = Step("polish", "Polish it.", Text, lambda row: {"draft": row["draft"]["text"]})


def run(bench: Bench, job: Job, rows: int) -> Ran:
    """Run a job that ends all its rows: one that hung would be seen by its progress."""
    thread = bench.start(job)
    wait_until(thread, lambda progress: progress.done == rows, 60.0)
    return finish(thread, job)


def batch_of(bench: Bench, folder: Path, *numbers: int) -> Batch:
    rows = [dict(rows_of(max(numbers) + 1)[number]) for number in numbers]
    for place, row in enumerate(rows):
        row["Resources"] = f"https://example.org/{place}"
    return bench.ingest(write_rows(folder / "rows.csv", rows))


class Scripted:
    """Answers as told: what comes in one turn of the loop cannot be had from a server.

    Args:
        before: awaited before each answer, with the number of the call from 1.
    """

    def __init__(self, before: Callable[[int], Any]) -> None:
        self._before = before
        self._count = count(1)

    async def send(self, call: WireCall, *, timeout_s: float, request_id: str = "") -> WireReply:
        await self._before(next(self._count))
        asked = orjson.loads(orjson.loads(call.body)["contents"][0]["parts"][0]["text"])
        items = next(value for value in asked.values() if isinstance(value, list))
        text = orjson.dumps({"results": [{"id": item["id"], "text": "Yes."} for item in items]})
        reply = {
            "candidates": [
                {"content": {"parts": [{"text": text.decode()}]}, "finishReason": "STOP"}
            ],
            "usageMetadata": {"promptTokenCount": 50, "candidatesTokenCount": 10},
        }
        return WireReply(200, {}, orjson.dumps(reply))


@pytest.mark.parametrize("steps", [(DRAFT,), (DRAFT, POLISH)], ids=["one step", "two steps"])
def test_workers_sent_on_by_a_breaker_that_closes_in_the_same_moment_go_on(
    steps: tuple[Step, ...], simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(40)))
    job = bench.job(batch, check_keys=False, workers=20, breaker=BreakerRules(failures=5))
    endpoint = replace(job.route[0], rates=Rates(1_200.0))
    job = replace(job, steps=steps, route=[endpoint])

    async def asked() -> Any:
        all_at_once = asyncio.Event()

        async def before(number: int) -> None:
            if number > 6:
                return
            if number == 6:
                asyncio.get_running_loop().call_later(0.05, all_at_once.set)
            await all_at_once.wait()
            if number < 6:
                raise ProviderError(ErrorKind.TRANSIENT, "down", status=503)

        with bench.open() as ledger:
            transport: Any = Scripted(before)
            engine = Engine(ledger, transport, SystemClock(), job, lambda _: None, random.Random(1))
            return await asyncio.wait_for(engine.run(), 60)

    done = asyncio.run(asked())
    assert (done.status, done.tally.outcomes["succeeded"]) == ("done", 40)


def test_a_row_that_shares_a_question_which_was_put_off_waits_for_the_second_round(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, pack=1, chunk_size=3)
    batch = batch_of(bench, tmp_path, 0, 1, 2, 0, 3, 4)
    simulator.configure(
        faults=[{"kind": "status", "status": 503, "match": '"Topic 0"', "count": 3}]
    )
    job = bench.job(batch, transient_tries=3, chunk_interval_s=1.0)
    job = replace(job, steps=(DRAFT, POLISH))
    assert run(bench, job, 6).outcomes == {"succeeded": 6}
    assert bench.asked()["draft"] == 5 + 3


def routed(bench: Bench, batch: Batch, first: set[int], per_day: float | None = None) -> Job:
    """A job whose rows at these places ask another model than the others."""
    job = bench.job(batch, workers=1)
    one = replace(job.route[0], rates=Rates(requests_per_day=per_day))
    other = replace(one, model="gemini-3.5-flash", label="google/gemini-3.5-flash", rates=Rates())
    places = {place: one if place in first else other for place in range(batch.row_count)}
    return replace(
        job,
        steps=(DRAFT,),
        route=[other],
        route_of=lambda row: [places[int(row["Resources"].rpartition("/")[2])]],
    )


def test_a_row_whose_question_another_model_cannot_be_asked_any_more_asks_its_own(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, pack=1)
    batch = batch_of(bench, tmp_path, 0, 1, 1, 2)
    job = routed(bench, batch, {0, 1}, per_day=1.0)
    ran = run(bench, job, 3)
    assert (ran.done.status, ran.outcomes) == ("daily_limit", {"succeeded": 3, "pending": 1})


def test_a_row_whose_question_another_model_answers_in_the_second_round_asks_its_own(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, pack=1)
    batch = batch_of(bench, tmp_path, 0, 0, 1)
    simulator.configure(
        faults=[{"kind": "status", "status": 503, "match": '"Topic 0"', "count": 3}]
    )
    ran = run(bench, routed(bench, batch, {0}), 3)
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 3})


def test_a_fault_of_the_program_in_the_second_round_cuts_no_other_call_off(
    simulator: Simulator, tmp_path: Path
) -> None:
    calls = count()

    class Fragile(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def once(cls, value: str) -> str:
            if next(calls) == 0:
                raise RuntimeError("a fault of a validator")
            return value

    bench = Bench(tmp_path, simulator, pack=1)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(8)))
    simulator.configure(
        faults=[{"kind": "status", "status": 503, "count": 24}],
        latency={"base_s": 0.2, "per_output_token_s": 0.0, "jitter_s": 1.0},
    )
    job = bench.job(batch, transient_tries=3, breaker=BreakerRules(failures=100))
    job = replace(job, steps=(replace(DRAFT, output_model=Fragile),))
    thread = bench.start(job)
    with pytest.raises(RuntimeError, match="a fault of a validator"):
        finish(thread, job)
    assert set(states(bench)) <= {AttemptState.SETTLED.value, AttemptState.REFUNDED.value}
