"""A stop is prompt wherever the run stands, and the books say what became of every call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batch_pipeline.engine.job import Progress
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.ledger.batches import LEASE_CHUNK, LeaseRequest, list_chunks
from batch_pipeline.ledger.calls import HEARTBEAT, Owner
from batch_pipeline.ledger.tables import AttemptState
from batch_pipeline_tests.engine.test_crash import states, wait_for_attempts
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator, finish

STUCK = {"base_s": 120.0, "per_output_token_s": 0.0, "jitter_s": 0.0}
PROMPT_S = 60.0
"""Ample on a busy machine; what a run would have to wait for here takes ten minutes, or two."""


@pytest.fixture
def bench(simulator: Simulator, tmp_path: Path) -> Iterator[Bench]:
    """A bench whose simulator holds no calls of this test when it ends."""
    yield Bench(tmp_path, simulator, workers=3)
    simulator.reset()


def wait_until(
    thread: EngineThread, reached: Callable[[Progress], bool], bound_s: float = 20.0
) -> None:
    deadline = time.monotonic() + bound_s
    while not reached(thread.progress()):
        assert time.monotonic() < deadline, thread.progress()
        time.sleep(0.01)


def test_a_run_that_is_stopped_before_it_starts_asks_nothing(bench: Bench, tmp_path: Path) -> None:
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(40)))
    job = bench.job(batch)
    thread = EngineThread(bench.open, job)
    thread.stop()
    ran = finish(thread.start(), job)
    assert ran.done.status == "interrupted"
    assert ran.outcomes == {"pending": 40}
    assert bench.simulator.journal() == []


def test_a_call_that_does_not_come_back_in_time_is_left_in_the_books_as_sent(
    bench: Bench, tmp_path: Path
) -> None:
    bench.simulator.configure(latency=STUCK)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(20)))
    job = bench.job(batch, "stuck", drain_s=0.3)
    thread = bench.start(job)
    wait_until(thread, lambda progress: progress.in_flight == 1)
    began = time.monotonic()
    thread.stop()
    ran = finish(thread, job)
    assert time.monotonic() - began < PROMPT_S
    assert ran.done.status == "interrupted"
    assert ran.outcomes == {"pending": 20}
    known = states(bench)
    del known[AttemptState.REFUNDED.value]
    assert known == {AttemptState.SENT.value: 1}, "nobody can say that it was not billed"

    bench.simulator.configure()
    assert bench.run(batch, "resumed").outcomes == {"succeeded": 20}


def test_a_stop_during_a_pause_is_prompt(bench: Bench, tmp_path: Path) -> None:
    bench.simulator.configure(
        faults=[{"kind": "status", "status": 429, "share": 1.0, "retry_after_s": 600.0}]
    )
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(80)))
    job = bench.job(batch)
    thread = bench.start(job)
    wait_for_attempts(bench.simulator, 1)
    began = time.monotonic()
    thread.stop()
    ran = finish(thread, job)
    assert time.monotonic() - began < PROMPT_S
    assert (ran.done.status, ran.outcomes) == ("interrupted", {"pending": 80})


def test_a_stop_between_tries_is_prompt(bench: Bench, tmp_path: Path) -> None:
    bench.simulator.configure(faults=[{"kind": "status", "status": 503, "share": 1.0}])
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(80)))
    job = bench.job(batch, backoff_s=6_000.0, max_backoff_s=60_000.0, drain_s=600.0)
    thread = bench.start(job)
    wait_for_attempts(bench.simulator, 3)
    began = time.monotonic()
    thread.stop()
    ran = finish(thread, job)
    assert time.monotonic() - began < PROMPT_S
    assert (ran.done.status, ran.outcomes) == ("interrupted", {"pending": 80})


def test_a_call_that_fails_after_the_stop_is_not_waited_for_again(
    bench: Bench, tmp_path: Path
) -> None:
    bench.simulator.configure(
        faults=[{"kind": "status", "status": 503, "share": 1.0}],
        latency={"base_s": 1.0, "per_output_token_s": 0.0, "jitter_s": 0.0},
    )
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(80)))
    job = bench.job(batch, backoff_s=6_000.0, max_backoff_s=60_000.0, drain_s=600.0)
    thread = bench.start(job)
    wait_until(thread, lambda progress: progress.in_flight > 0)
    began = time.monotonic()
    thread.stop()
    ran = finish(thread, job)
    assert time.monotonic() - began < PROMPT_S
    assert (ran.done.status, ran.outcomes) == ("interrupted", {"pending": 80})
    assert len(bench.simulator.journal()) > 0


def test_a_stop_while_another_run_holds_the_chunk_is_prompt_and_leaves_it_its_chunk(
    bench: Bench, tmp_path: Path
) -> None:
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(20)))
    with bench.open() as ledger:
        with ledger.read() as connection:
            [chunk] = list_chunks(connection, "simulated", batch.batch_id)
        holder = Owner.here("the other run")
        ledger.writer.submit(HEARTBEAT, holder).result(30)
        request = LeaseRequest("simulated", chunk.chunk_key, holder.owner_id)
        assert ledger.writer.submit(LEASE_CHUNK, request).result(30).fence == 1

        job = bench.job(batch, "waiting", chunk_wait_s=600.0)
        thread = bench.start(job)
        wait_until(thread, lambda progress: "held by run the other run" in progress.note)
        began = time.monotonic()
        thread.stop()
        ran = finish(thread, job)
        assert time.monotonic() - began < PROMPT_S
        assert (ran.done.status, ran.outcomes) == ("interrupted", {"pending": 20})
        assert ledger.writer.submit(LEASE_CHUNK, request).result(30).fence == 2


def test_after_a_stop_the_next_run_need_not_wait_for_anything(bench: Bench, tmp_path: Path) -> None:
    bench.simulator.configure(latency={"base_s": 0.3, "per_output_token_s": 0.0, "jitter_s": 0.0})
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(200)))
    job = bench.job(batch, "stopped")
    thread = bench.start(job)
    wait_for_attempts(bench.simulator, 2)
    done = thread.stop_and_drain()
    assert done.status == "interrupted"
    ended = states(bench)
    # What was written down and not yet on the wire is refunded; all else is answered.
    assert set(ended) <= {AttemptState.SETTLED.value, AttemptState.REFUNDED.value}
    assert ended[AttemptState.SETTLED.value] == len(bench.simulator.journal())

    bench.simulator.configure()
    # It waits for no lease; one that waited for claims would have asked after their owner died.
    assert bench.run(batch, "next", chunk_wait_s=0.0).outcomes == {"succeeded": 200}
    assert len(bench.simulator.journal()) == 10
