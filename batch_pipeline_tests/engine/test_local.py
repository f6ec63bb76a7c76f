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
from batch_pipeline.engine.step import AnyStep, Done, LocalStep, LocalWork, Row, Step
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, start_generation
from batch_pipeline.ledger.documents import KEEP_DOCUMENT, Document, KeepDocument, documents_of
from batch_pipeline.ledger.tables import Outcome, attempts
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine.test_steps import money_agrees
from batch_pipeline_tests.simulated import WENT_OUT, Bench, Ran, Simulator, finish

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
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 20})
    assert bench.asked() == {"tone": 20, "single": 10, "draft": 10, "polish": 10}
    assert set(steps.calls.values()) == {1}
    assert (steps.opened, steps.closed) == (2, 2)
    money_agrees(bench, batch)
    kept = document(bench, batch, 3, "check")
    assert kept is not None
    assert kept.content == {"subject": "about Topic 3", "model": bench.items(batch)[3].model}
    assert not any(item.cached for item in bench.items(batch))

    again = run(bench, batch, Steps(), "again")
    assert again.done.tally.attempts == 0


@pytest.mark.usefixtures("either_database")
def test_a_local_step_ends_rows_and_nothing_is_paid_for_what_it_ends_early(
    simulator: Simulator, tmp_path: Path
) -> None:
    async def prepare(row: Row, place: Place) -> Done:
        if number(row) == 4:
            return Done({"why": "403"}, Outcome.FAILED, "preflight", "The page is 403.")
        if number(row) == 6:
            raise ValueError("a fault of ours")
        if number(row) == 7:
            raise UsageError("This cell is wrong.", "Mend it.")
        return Done({"subject": row["Topic"]})

    async def check(row: Row, place: Place) -> Done:
        good = number(row) != 5
        return Done({}) if good else Done({}, Outcome.BLOCKED, "qc", "Two terms are missing.")

    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(10)))
    ran = run(bench, batch, Steps(prepare=prepare, check=check))
    assert ran.outcomes == {"succeeded": 6, "blocked": 1, "failed": 3}
    items = bench.items(batch)
    kinds = {at: items[at].error_kind for at in (4, 5, 6, 7)}
    assert kinds == {4: "preflight", 5: "qc", 6: "prepare", 7: "prepare"}
    assert items[4].error is not None and items[4].error.endswith("The page is 403.")
    assert "ValueError in the step prepare: a fault of ours" in (items[6].error or "")
    assert "This cell is wrong. Mend it." in (items[7].error or "")
    assert items[5].cache_key is not None
    assert items[5].cost_nano > 0
    assert items[4].cost_nano == 0
    assert bench.asked()["tone"] == 7
    money_agrees(bench, batch)

    # Failed rows are tried again; blocked ones wait for a person.
    again = Steps()
    second = run(bench, batch, again, "second")
    assert second.outcomes == {"succeeded": 9, "blocked": 1}
    assert {name for name in again.calls if name.startswith("prepare")} == {
        "prepare Topic 4", "prepare Topic 6", "prepare Topic 7",
    }  # fmt: skip


def test_a_row_whose_content_cannot_be_made_ends_alone(
    simulator: Simulator, tmp_path: Path
) -> None:
    def content(row: Row) -> dict[str, Any]:
        return {"tenth": 10 / (number(row) - 2)}

    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(5)))
    job = replace(bench.job(batch), steps=(Step("only", "Say it.", Text, content),))
    ran = finish(bench.start(job), job)
    assert ran.outcomes == {"succeeded": 4, "failed": 1}
    spoiled = bench.items(batch)[2]
    assert spoiled.error_kind == "only"
    assert "ZeroDivisionError" in (spoiled.error or "")


def test_a_row_goes_on_without_the_answer_of_an_optional_step(
    simulator: Simulator, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    async def check(row: Row, place: Place) -> Done:
        seen[row["Topic"]] = row["tone"]
        return Done({})

    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(4)))
    simulator.configure(faults=[{"kind": "refusal", "match": "Say its tone."}])
    ran = run(bench, batch, Steps(check=check))
    assert ran.outcomes == {"succeeded": 4}
    assert seen == {f"Topic {at}": None for at in range(4)}
    money_agrees(bench, batch)


def test_a_row_behind_a_checkpoint_begins_there_unless_it_is_asked_anew(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(4)))
    simulator.configure(faults=[{"kind": "status", "status": 400, "match": "Write"}])
    first = run(bench, batch, Steps())
    assert first.outcomes == {"failed": 4}
    tones = bench.asked()["tone"]

    simulator.configure()
    second = Steps()
    assert run(bench, batch, second, "second").outcomes == {"succeeded": 4}
    assert not [name for name in second.calls if name.startswith("prepare")]
    assert bench.asked()["tone"] == tones

    # --force prepares anew, but what a person has edited stays as it is.
    with bench.open() as ledger:
        edited = KeepDocument(
            ledger.realm, batch.batch_id, 1, "prepare", Outcome.SUCCEEDED,
            {"subject": "what the editor wants"}, "run", "Ada",
        )  # fmt: skip
        ledger.writer.submit(KEEP_DOCUMENT, edited).result()
        start_generation(ledger, batch.batch_id)
    third = Steps()
    assert run(bench, batch, third, "third").outcomes == {"succeeded": 4}
    prepared_anew = {name for name in third.calls if name.startswith("prepare")}
    assert prepared_anew == {"prepare Topic 0", "prepare Topic 2", "prepare Topic 3"}
    kept = document(bench, batch, 1, "prepare")
    assert kept is not None
    assert (kept.editor, kept.content["subject"]) == ("Ada", "what the editor wants")


def test_rows_whose_answers_are_stored_do_not_use_up_the_limit_at_a_check(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    said = Step("draft", "Write it.", Text, lambda row: {"topic": row["Topic"]})
    checked = LocalStep("check", Steps()._open("check", None))

    def limited(rows: int, run_id: str, limit: int | None) -> Ran:
        batch = bench.ingest(write_rows(tmp_path / f"{rows}.csv", rows_of(rows)))
        job = replace(bench.job(batch, run_id, limit=limit), steps=(said, checked))
        return finish(bench.start(job), job)

    assert limited(6, "first", None).outcomes == {"succeeded": 6}
    assert limited(9, "grown", 1).outcomes == {"succeeded": 7, "pending": 2}
    assert limited(9, "on", 1).outcomes == {"succeeded": 8, "pending": 1}


def test_a_stop_leaves_rows_at_local_steps_pending_and_the_next_run_takes_them_up(
    simulator: Simulator, tmp_path: Path
) -> None:
    started = asyncio.Event()

    async def prepare(row: Row, place: Place) -> Done:
        started.set()
        if number(row) >= 2:
            await asyncio.sleep(3_600)
        return Done({"subject": row["Topic"]})

    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(30)))
    steps = Steps(prepare=prepare)
    thread = bench.start(with_steps(bench.job(batch, "first", drain_s=600.0), steps))
    deadline = time.monotonic() + 20
    while bench.asked()["polish"] < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    began = time.monotonic()
    done = thread.stop_and_drain()
    assert time.monotonic() - began < 60
    assert done.status == "interrupted"
    assert done.tally.outcomes[Outcome.SUCCEEDED] <= 2
    assert steps.opened == steps.closed
    second = run(bench, batch, Steps(), "second")
    assert second.outcomes == {"succeeded": 30}
    money_agrees(bench, batch)


def test_rows_that_are_begun_end_before_others_begin(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(latency={"base_s": 0.05, "per_output_token_s": 0.0, "jitter_s": 0.0})
    bench = Bench(tmp_path, simulator, workers=2, chunk_size=10)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(60)))
    thread = bench.start(with_steps(bench.job(batch, "first"), Steps()))
    deadline = time.monotonic() + 30
    while len(simulator.journal()) < 60 and time.monotonic() < deadline:
        time.sleep(0.02)
    done = thread.stop_and_drain()
    # 60 calls are what 20 to 24 rows take from end to end; some are under way at any time.
    assert done.tally.outcomes[Outcome.SUCCEEDED] >= 8
    money_agrees(bench, batch)


def test_a_limit_counts_the_rows_that_are_worked_on(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(10)))
    steps = Steps()
    ran = run(bench, batch, steps, limit=3)
    assert ran.outcomes == {"succeeded": 3, "pending": 7}
    assert len([name for name in steps.calls if name.startswith("prepare")]) == 3


def test_a_step_by_the_runs_route_is_shared_by_rows_that_name_their_own(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    own_routes = ("openai", "anthropic", "")
    rows = [{**row, "route": own_routes[at % 3]} for at, row in enumerate(rows_of(9))]
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows))
    shared = Step("shared", "Say it.", Text, lambda row: {"what": "the same"}, by_run_route=True)
    own = Step("own", "Say it yourself.", Text, lambda row: {"topic": row["Topic"]})
    job = replace(bench.job(batch), steps=(shared, own))
    ran = finish(bench.start(job), job)
    assert ran.outcomes == {"succeeded": 9}
    with bench.open() as ledger, ledger.read() as connection:
        found = connection.execute(sa.select(attempts.c.step, attempts.c.provider).where(WENT_OUT))
        calls = Counter((step, provider) for step, provider in found)
    assert calls == {
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
    assert bench.asked() == {"tone": 12, "single": 6, "draft": 6, "polish": 6}
    assert simulator.summary()["by_lane"]["realtime"]["attempts"] == 0
    money_agrees(bench, batch)
