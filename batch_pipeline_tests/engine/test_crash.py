"""After `kill -9`, a stop or a takeover nothing finished is lost.

Only calls that were in flight are paid again.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa

from batch_pipeline.engine.job import RunDone
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.tables import AttemptState, attempts, items, results, runs
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine_process import outcome, start
from batch_pipeline_tests.simulated import Bench, Simulator, finish

pytestmark = pytest.mark.usefixtures("either_database")

SLOW = {"base_s": 0.15, "per_output_token_s": 0.0, "jitter_s": 0.1}


def wait_for_attempts(simulator: Simulator, count: int, bound_s: float = 60.0) -> None:
    deadline = time.monotonic() + bound_s
    while int(simulator.summary()["attempts"]) < count:
        assert time.monotonic() < deadline, f"the journal never reached {count} attempts"
        time.sleep(0.01)


def states(bench: Bench) -> Counter[str]:
    with bench.open() as ledger, ledger.read() as connection:
        return Counter(connection.execute(sa.select(attempts.c.state)).scalars())


def keys_settled(bench: Bench) -> Counter[tuple[str, str]]:
    """How often each question to each model was settled."""
    with bench.open() as ledger, ledger.read() as connection:
        rows = connection.execute(
            sa.select(attempts.c.members, attempts.c.model).where(
                attempts.c.state == AttemptState.SETTLED.value
            )
        )
        return Counter((key, model) for row, model in rows for _, key in orjson.loads(row))


def test_after_ten_kills_every_row_is_done_once_and_only_calls_in_flight_were_paid_again(
    reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    rng = random.Random(9)
    simulator.configure(latency=SLOW)
    bench = Bench(tmp_path, simulator, workers=6, pack=10)
    batch = bench.ingest(reference_data / "roadmaps" / "rows_1000.csv")
    for kill in range(10):
        process = start(bench, batch.batch_id, f"killed {kill}")
        before = int(simulator.summary()["attempts"])
        wait_for_attempts(simulator, before + rng.randint(2, 10))
        time.sleep(rng.random() * 0.1)  # the moment within a call is random, too
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    ran = outcome(start(bench, batch.batch_id, "last"))
    assert ran["outcomes"] == {"succeeded": 1000}

    with bench.open() as ledger, ledger.read() as connection:
        ended = Counter(connection.execute(sa.select(runs.c.status)).scalars())
    assert ended == {"crashed": 10, "done": 1}
    known = states(bench)
    in_flight = known[AttemptState.SENT.value] + known[AttemptState.LOST.value]
    assert in_flight, "no kill met a call in flight: the test proves nothing"
    journal = simulator.summary()["attempts"]
    assert journal <= known[AttemptState.SETTLED.value] + in_flight
    assert set(keys_settled(bench).values()) == {1}, "no settled question was asked again"


def test_a_stop_settles_calls_in_flight_and_the_next_run_asks_only_for_the_rest(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency=SLOW)
    bench = Bench(tmp_path, simulator, workers=3)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(400)))
    job = bench.job(batch, "stopped")
    thread = bench.start(job)
    wait_for_attempts(simulator, 2)
    thread.stop()
    ran = finish(thread, job)
    assert ran.done.status == "interrupted"
    assert 0 < ran.outcomes["succeeded"] < 400
    assert ran.outcomes["succeeded"] + ran.outcomes["pending"] == 400
    # one that was written ahead and not sent any more is refunded
    known = set(states(bench)) - {AttemptState.REFUNDED.value}
    assert known == {AttemptState.SETTLED.value}, "what was in flight is settled"

    simulator.configure()
    assert bench.run(batch, "resumed").outcomes == {"succeeded": 400}
    assert len(simulator.journal()) == 20


def test_a_stop_while_waiting_for_the_rate_limit_or_a_pause_is_quick(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, workers=3, rate_limit=2)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(100)))
    job = bench.job(batch)
    thread = bench.start(job)
    wait_for_attempts(simulator, 1)
    began = time.monotonic()
    thread.stop()
    ran = finish(thread, job)
    assert ran.done.status == "interrupted"
    assert time.monotonic() - began < 25, "the next turn was 30 s away"


def test_a_paid_reply_that_was_never_derived_is_derived_by_the_next_run_for_nothing(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(40)))
    bench.run(batch, "first")
    # as if the process had died right after the settlement
    with bench.open() as ledger, ledger.write() as connection:
        connection.execute(results.delete())
        connection.execute(items.update().values(outcome="pending", cache_key=None, model=None))
        connection.execute(attempts.update().values(derived=False))
    ran = bench.run(batch, "second")
    assert ran.outcomes == {"succeeded": 40}
    assert ran.done.tally.attempts == 0
    assert len(simulator.journal()) == 2


def test_a_second_run_waits_for_a_chunk_that_another_holds_and_fails_naming_it(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency={"base_s": 3.0, "per_output_token_s": 0.0, "jitter_s": 0.0})
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(20)))
    holding = start(bench, batch.batch_id, "the-holder")
    wait_for_attempts_sent(bench, 1)
    job = bench.job(batch, "impatient", chunk_wait_s=0.5)
    last = list(bench.start(job).events())[-1]
    assert isinstance(last, RunDone)
    assert last.status == "stopped"
    assert "the-holder" in last.message and f"pid {holding.pid}" in last.message

    patient = bench.run(batch, "patient")
    assert patient.outcomes == {"succeeded": 20}
    assert patient.done.tally.attempts == 0, "the other run had done it"
    assert outcome(holding)["outcomes"] == {"succeeded": 20}
    assert len(simulator.journal()) == 1


def wait_for_attempts_sent(bench: Bench, count: int, bound_s: float = 30.0) -> None:
    deadline = time.monotonic() + bound_s
    while sum(states(bench).values()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [4])
def test_processes_that_share_questions_ask_each_of_them_once(
    processes: int, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency=SLOW)
    bench = Bench(tmp_path, simulator, workers=4)
    shared = topics(20)
    batches: list[Batch] = []
    for index in range(processes):
        rows = [dict(row) for row in shared for _ in range(5)]
        for place, row in enumerate(rows):
            row["Resources"] = f"https://example.org/{index}/{place}"
        batches.append(bench.ingest(write_rows(tmp_path / f"rows{index}.csv", rows)))
    running = [start(bench, batch.batch_id, f"run {batch.batch_id}") for batch in batches]
    done = [outcome(process) for process in running]
    assert [entry["outcomes"] for entry in done] == [{"succeeded": 100}] * processes
    journal = simulator.journal()
    assert sum(entry["items"] for entry in journal) == 20
    assert set(keys_settled(bench).values()) == {1}
