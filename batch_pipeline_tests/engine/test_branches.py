"""Branches: LLM steps side by side; a row goes on once, when each of them has ended."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.engine.job import Job
from batch_pipeline.engine.step import Branches, Done, LocalStep, LocalWork, Row, Step
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline_tests.engine.test_crash import keys_settled, wait_for_attempts
from batch_pipeline_tests.engine.test_local import Text, number, rows_of
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine.test_steps import money_agrees
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

VOTERS = ("clarity", "scaffolding", "grounding", "connection")


def voter(name: str) -> Step:
    return Step(
        name,
        f"Vote on {name}.",
        Text,
        lambda row: {"research": row["research"]["text"]},
        optional=True,
        applies=lambda row: name != "connection" or number(row) % 2 == 0,
    )


@asynccontextmanager
async def counting(tools: Tools) -> AsyncIterator[LocalWork]:
    """Say which voters have answered; three are enough."""

    async def work(row: Row, place: Place) -> Done:
        votes = {name: row[name] is not None for name in VOTERS if name in row}
        enough = sum(votes.values()) >= 3
        outcome = Outcome.SUCCEEDED if enough else Outcome.FAILED
        return Done({"votes": votes}, outcome, "votes", "Too few voters have answered.")

    yield work


STEPS = (
    Step("research", "Look it up.", Text, lambda row: {"topic": row["Topic"]}),
    Branches("vote", tuple(voter(name) for name in VOTERS)),
    LocalStep("count", counting),
    Step("write", "Write it.", Text, lambda row: {"topic": row["Topic"], **row["count"]}),
)


def voted(job: Job) -> Job:
    return replace(job, steps=STEPS)


def run(bench: Bench, batch: Batch, run_id: str = "run", **settings: Any) -> Ran:
    job = voted(bench.job(batch, run_id, **settings))
    return finish(bench.start(job), job)


def votes(bench: Bench, batch: Batch) -> list[dict[str, bool]]:
    with bench.open() as ledger, ledger.read() as connection:
        kept = read_documents(connection, ledger.realm, batch.batch_id, steps=["count"])
    return [kept[at]["count"].content["votes"] for at in sorted(kept)]


def test_rows_beyond_a_limit_are_left_pending_once_whatever_their_branches(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(4)))
    ran = run(bench, batch, limit=1)
    assert ran.outcomes == {"succeeded": 1, "pending": 3}
    assert [chunk.tally.outcomes[Outcome.PENDING] for chunk in ran.chunks] == [3]


@pytest.mark.usefixtures("either_database")
def test_rows_take_the_branches_that_apply_side_by_side_and_go_on_once(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(10)))
    ran = run(bench, batch)
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 10})
    assert bench.asked() == {
        "research": 10, "clarity": 10, "scaffolding": 10, "grounding": 10, "connection": 5,
        "write": 10,
    }  # fmt: skip
    assert [len(one) for one in votes(bench, batch)] == [4, 3] * 5
    money_agrees(bench, batch)
    assert run(bench, batch, "again").done.tally.attempts == 0


def test_branches_fly_at_the_same_time(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(latency={"base_s": 0.5, "per_output_token_s": 0.0, "jitter_s": 0.0})
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(1)))
    ran = run(bench, batch)
    assert ran.outcomes == {"succeeded": 1}
    journal = {entry["n"]: entry for entry in simulator.journal()}
    began = sorted(entry["t"] for entry in journal.values())
    assert began[4] - began[1] < 0.4, "the four voters were asked within one reply's time"


def test_a_branch_without_an_answer_ends_nothing(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(4)))
    simulator.configure(faults=[{"kind": "refusal", "match": "Vote on clarity."}])
    ran = run(bench, batch)
    # with four voters three are left; with three, two
    assert ran.outcomes == {"succeeded": 2, "failed": 2}
    assert [one["clarity"] for one in votes(bench, batch)] == [False] * 4
    simulator.configure()
    assert run(bench, batch, "again").outcomes == {"succeeded": 4}
    assert set(keys_settled(bench).values()) <= {1, 2}
    money_agrees(bench, batch)


def test_a_stop_in_the_midst_of_branches_pays_for_none_again(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency={"base_s": 0.2, "per_output_token_s": 0.0, "jitter_s": 0.1})
    bench = Bench(tmp_path, simulator, workers=3)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(12)))
    for turn in range(4):
        thread = bench.start(voted(bench.job(batch, f"run {turn}")))
        wait_for_attempts(simulator, len(simulator.journal()) + 7)
        thread.stop_and_drain()
    last = run(bench, batch, "last")
    assert last.outcomes == {"succeeded": 12}
    assert set(keys_settled(bench).values()) == {1}
    money_agrees(bench, batch)


@pytest.mark.parametrize("wait", [True, False])
def test_branches_chain_through_provider_jobs(
    wait: bool, simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, lane="batch", wait=wait, poll_s=0.1)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(6)))
    for turn in range(60):
        ran = run(bench, batch, f"run {turn}")
        if ran.done.status != "submitted":
            break
        time.sleep(0.1)
    assert ran.done.status == "done"
    assert [item.outcome.value for item in bench.items(batch)] == ["succeeded"] * 6
    assert simulator.summary()["by_lane"]["realtime"]["attempts"] == 0
    assert bench.asked()["write"] == 6
    money_agrees(bench, batch)


def test_a_branch_must_be_optional() -> None:
    with pytest.raises(ValueError, match="needed is not"):
        Branches("vote", (replace(voter("clarity"), name="needed", optional=False),))
