"""Time between chunks: rows are released chunk by chunk, where there is something to ask."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from batch_pipeline.ledger.batches import Batch
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_local import Steps, rows_of, with_steps
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator, finish

INTERVAL_S = 0.6


def bench_of(folder: Path, simulator: Simulator, count: int) -> tuple[Bench, Batch]:
    bench = Bench(folder, simulator, pack=20, chunk_size=2)
    return bench, bench.ingest(write_rows(folder / "rows.csv", topics(count)))


def test_chunks_are_released_one_interval_after_the_other(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench, batch = bench_of(tmp_path, simulator, 6)
    job = bench.job(batch, chunk_interval_s=INTERVAL_S)
    thread = bench.start(job)
    notes: set[str] = set()
    chunks = list(thread.events(lambda now: notes.add(now.note), tick_s=0.02))
    assert len(chunks) == 4
    journal = simulator.journal()
    assert [entry["items"] for entry in journal] == [2, 2, 2], "no pack waits for the next chunk"
    times = [entry["t"] for entry in journal]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(INTERVAL_S - 0.1 <= gap <= INTERVAL_S + 1.0 for gap in gaps)
    assert "Waiting 0.6 s before the next chunk" in notes
    # what a chunk waits for its turn is no time that it takes
    assert all(chunk.wall_s < INTERVAL_S for chunk in chunks[:-1])


def test_rows_with_steps_before_them_go_on_meanwhile(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator, chunk_size=2)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(4)))
    job = with_steps(bench.job(batch, chunk_interval_s=INTERVAL_S), Steps())
    assert finish(bench.start(job), job).outcomes == {"succeeded": 4}
    times = [entry["t"] for entry in simulator.journal()]
    # of two rows: tone, single; tone, draft, polish
    assert len(times) == 10
    assert times[5] - times[0] >= INTERVAL_S - 0.1
    assert times[4] - times[0] < INTERVAL_S, "the first chunk is done when the second begins"


def test_chunks_that_are_done_or_were_begun_before_do_not_wait(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench, batch = bench_of(tmp_path, simulator, 6)
    assert bench.run(batch, "begun", limit=1).outcomes == {"succeeded": 1, "pending": 5}
    again = bench.run(batch, "again", chunk_interval_s=60.0)
    assert again.outcomes == {"succeeded": 6}
    assert again.done.wall_s < 30
    done = bench.run(batch, "done", chunk_interval_s=60.0)
    assert (done.done.tally.attempts, done.outcomes) == (0, {"succeeded": 6})
    assert done.done.wall_s < 30


def test_chunks_beyond_the_limit_do_not_wait(simulator: Simulator, tmp_path: Path) -> None:
    bench, batch = bench_of(tmp_path, simulator, 8)
    limited = bench.run(batch, limit=2, chunk_interval_s=60.0)
    assert limited.outcomes == {"succeeded": 2, "pending": 6}
    assert limited.done.wall_s < 30


def test_a_stop_does_not_wait_for_the_next_chunk(simulator: Simulator, tmp_path: Path) -> None:
    bench, batch = bench_of(tmp_path, simulator, 6)
    job = bench.job(batch, chunk_interval_s=3_600.0)
    thread = bench.start(job)
    first = next(thread.events())
    assert first.wall_s < 30
    done = thread.stop_and_drain()
    assert done.status == "interrupted"
    assert len(simulator.journal()) == 1
