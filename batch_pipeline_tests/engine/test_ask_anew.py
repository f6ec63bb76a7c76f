"""Rows that a local step ends and wants asked anew: old answers do not count, new ones do.

Run as a program it runs one job of the test, so that it can be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.engine.job import Job
from batch_pipeline.engine.step import AnyStep, Done, LocalStep, LocalWork, Row, Step
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.ledger.batches import Batch, Item, start_generation
from batch_pipeline.ledger.documents import documents_of
from batch_pipeline.ledger.tables import AttemptState, Outcome, attempts
from batch_pipeline.settings import LEDGER_VARIABLE
from batch_pipeline.workloads.runner import require_batch
from batch_pipeline_tests.engine.test_local import Text, rows_of
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine.test_searching import QUERIES, calls, searched, searching
from batch_pipeline_tests.engine.test_steps import money_agrees
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

ANEW = Done({}, Outcome.FAILED, "weak", "It is too weak.", ask_anew=True)
BLOCKED = replace(ANEW, outcome=Outcome.BLOCKED)
KEPT = replace(ANEW, ask_anew=False)
WORDING = replace(ANEW, keep=("brief", "draft"))
VERDICTS = {
    "anew": ANEW, "blocked": BLOCKED, "kept": KEPT, "wording": WORDING, "good": Done({}),
}  # fmt: skip


def steps(folder: Path) -> tuple[AnyStep, ...]:
    """Search, a checkpoint, two LLM steps, and a check that says what the file `verdict` says."""

    @asynccontextmanager
    async def briefing(tools: Tools) -> AsyncIterator[LocalWork]:
        async def work(row: Row, place: Place) -> Done:
            with (folder / "briefed").open("a", encoding="utf-8") as file:
                file.write("x")
            return Done({"found": row["look"]["found"]})

        yield work

    @asynccontextmanager
    async def checking(tools: Tools) -> AsyncIterator[LocalWork]:
        async def work(row: Row, place: Place) -> Done:
            verdict = (folder / "verdict").read_text("utf-8")
            if verdict == "hang":
                await asyncio.sleep(3_600)
            return VERDICTS[verdict]

        yield work

    return (
        LocalStep("look", searching),
        LocalStep("brief", briefing, checkpoint=True),
        Step("draft", "Write it.", Text, lambda row: {"topic": row["Topic"], **row["brief"]}),
        Step("polish", "Polish it.", Text, lambda row: {"topic": row["Topic"], **row["draft"]}),
        LocalStep("check", checking),
    )


def job_of(bench: Bench, batch: Batch, run_id: str, **settings: Any) -> Job:
    job = searched(bench, bench.job(batch, run_id, **settings))
    return replace(job, steps=steps(bench.settings.data))


def run(bench: Bench, batch: Batch, verdict: str, run_id: str, **settings: Any) -> Ran:
    (bench.settings.data / "verdict").write_text(verdict, "utf-8")
    job = job_of(bench, batch, run_id, **settings)
    return finish(bench.start(job), job)


def settled(bench: Bench) -> int:
    with bench.open() as ledger, ledger.read() as connection:
        done = sa.select(sa.func.count()).where(
            attempts.c.step == "polish", attempts.c.state == AttemptState.SETTLED.value
        )
        return int(connection.execute(done).scalar_one())


def briefed(bench: Bench) -> int:
    """How often the checkpoint's work was done."""
    return len((bench.settings.data / "briefed").read_text("utf-8"))


def start(bench: Bench, batch: Batch, verdict: str, run_id: str) -> subprocess.Popen[bytes]:
    (bench.settings.data / "verdict").write_text(verdict, "utf-8")
    module = "batch_pipeline_tests.engine.test_ask_anew"
    ledger_url = os.environ.get(LEDGER_VARIABLE, "")
    terms = [str(bench.settings.data), bench.simulator.url, batch.batch_id, run_id, ledger_url]
    return subprocess.Popen([sys.executable, "-m", module, json.dumps(terms)])


def kill_when(process: subprocess.Popen[bytes], met: Any) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)


@pytest.mark.usefixtures("either_database")
def test_a_row_that_is_to_be_asked_anew_is_so_once_by_all_steps_but_not_searched_again(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(6)))
    assert run(bench, batch, "anew", "first").outcomes == {"failed": 6}
    assert bench.asked("draft", "polish") == {"draft": 6, "polish": 6}
    assert (briefed(bench), calls(simulator)) == (6, QUERIES)
    with bench.open() as ledger:
        document = documents_of(ledger, batch.batch_id, 0)["check"]
    item = bench.items(batch)[0]
    assert document.made_at < item.fresh_after

    # a second failure asks anew once more, a success is the end of it
    assert run(bench, batch, "anew", "second").outcomes == {"failed": 6}
    assert bench.asked("draft", "polish") == {"draft": 12, "polish": 12}
    assert run(bench, batch, "good", "third").outcomes == {"succeeded": 6}
    assert bench.asked("draft", "polish") == {"draft": 18, "polish": 18}
    assert run(bench, batch, "good", "fourth").done.tally.attempts == 0
    assert briefed(bench) == 18
    assert calls(simulator) == QUERIES, "what searches have found still counts"
    money_agrees(bench, batch)


@pytest.mark.usefixtures("either_database")
def test_steps_that_did_their_part_are_not_asked_anew(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(6)))
    assert run(bench, batch, "wording", "first").outcomes == {"failed": 6}
    assert run(bench, batch, "wording", "second").outcomes == {"failed": 6}
    assert (bench.asked("draft", "polish"), briefed(bench)) == ({"draft": 6, "polish": 12}, 6)
    # what is kept counts from the moment that held for it before
    assert run(bench, batch, "anew", "third").outcomes == {"failed": 6}
    assert (bench.asked("draft", "polish"), briefed(bench)) == ({"draft": 6, "polish": 18}, 6)
    whole = {item.fresh_after for item in bench.items(batch)}
    assert run(bench, batch, "wording", "fourth").outcomes == {"failed": 6}
    assert (bench.asked("draft", "polish"), briefed(bench)) == ({"draft": 12, "polish": 24}, 12)
    assert {item.fresh_at("draft") for item in bench.items(batch)} == whole
    assert {item.fresh_at("polish") for item in bench.items(batch)}.isdisjoint(whole)
    assert run(bench, batch, "good", "fifth").outcomes == {"succeeded": 6}
    assert (bench.asked("draft", "polish"), briefed(bench)) == ({"draft": 12, "polish": 30}, 12)
    with bench.open() as ledger:
        assert start_generation(ledger, batch.batch_id) == 6
    assert {item.fresh_at("draft") for item in bench.items(batch)}.isdisjoint(whole)
    assert run(bench, batch, "good", "forced").outcomes == {"succeeded": 6}
    assert (bench.asked("draft", "polish"), briefed(bench)) == ({"draft": 18, "polish": 36}, 18)
    money_agrees(bench, batch)


def test_what_the_next_model_answered_anew_is_not_hidden_by_the_old_answer_of_the_first(
    simulator: Simulator, tmp_path: Path
) -> None:
    route = "anthropic/claude-haiku-4-5, google/gemini-3.1-flash-lite"
    bench = Bench(tmp_path, simulator, route=route)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(6)))
    assert run(bench, batch, "anew", "first").outcomes == {"failed": 6}
    simulator.configure(faults=[{"kind": "refuse", "provider": "anthropic"}])
    assert run(bench, batch, "kept", "second").outcomes == {"failed": 6}
    simulator.configure()
    before = bench.asked("draft", "polish")
    assert run(bench, batch, "good", "third").outcomes == {"succeeded": 6}
    assert bench.asked("draft", "polish") == before, "it is there, and paid for"
    assert {item.model for item in bench.items(batch)} == {"google/gemini-3.1-flash-lite"}


def test_a_row_that_is_not_replays_for_free(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(6)))
    assert run(bench, batch, "kept", "first").outcomes == {"failed": 6}
    assert run(bench, batch, "good", "second").outcomes == {"succeeded": 6}
    assert bench.asked("draft", "polish") == {"draft": 6, "polish": 6}
    assert briefed(bench) == 6
    assert [item.fresh_after for item in bench.items(batch)] == [0.0] * 6


def test_a_blocked_row_waits_until_it_is_included_and_is_then_asked_anew(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(4)))
    assert run(bench, batch, "blocked", "first").outcomes == {"blocked": 4}
    assert run(bench, batch, "good", "plain").outcomes == {"blocked": 4}
    assert bench.asked("draft", "polish") == {"draft": 4, "polish": 4}
    included = run(bench, batch, "good", "included", include_blocked=True)
    assert included.outcomes == {"succeeded": 4}
    assert bench.asked("draft", "polish") == {"draft": 8, "polish": 8}


@pytest.mark.usefixtures("either_database")
def test_kills_neither_lose_that_it_is_to_be_asked_anew_nor_make_it_so_twice(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency={"base_s": 0.05, "per_output_token_s": 0.0, "jitter_s": 0.1})
    bench = Bench(tmp_path, simulator, workers=4)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(16)))

    def failed() -> list[Item]:
        return [item for item in bench.items(batch) if item.outcome is Outcome.FAILED]

    # while rows end: each that has failed says so itself
    kill_when(start(bench, batch, "anew", "killed"), lambda: len(failed()) >= 4)
    assert all(item.fresh_after > 0 for item in failed())
    assert run(bench, batch, "anew", "ended").outcomes == {"failed": 16}
    before, again = settled(bench), bench.asked("draft", "polish")
    # a row whose first end was before the kill has met the second run as a retry
    assert 16 <= before <= 32

    # when all are asked anew, and none has ended
    kill_when(start(bench, batch, "hang", "retried"), lambda: settled(bench) == before + 16)
    assert bench.asked("draft", "polish") == {step: count + 16 for step, count in again.items()}
    assert run(bench, batch, "good", "resumed").outcomes == {"succeeded": 16}
    assert bench.asked("draft", "polish") == {step: count + 16 for step, count in again.items()}


if __name__ == "__main__":
    data, url, batch_id, run_id, ledger_url = json.loads(sys.argv[1])
    if ledger_url:
        # what is set by the environment is taken away when the tests' helpers are imported
        os.environ[LEDGER_VARIABLE] = ledger_url
    bench = Bench(Path(data), Simulator(url), workers=4)
    with bench.open() as ledger:
        job = job_of(bench, require_batch(ledger, batch_id), run_id)
    finish(bench.start(job), job)
