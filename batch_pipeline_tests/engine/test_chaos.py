"""Three processes share a batch and die at random, again and again: nothing is lost.

Only calls that were in flight at a kill are paid twice.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO, AttemptState, attempts, runs
from batch_pipeline.settings import LEDGER_VARIABLE
from batch_pipeline_tests.conftest import REFERENCE
from batch_pipeline_tests.engine.test_budget import (
    assert_sums_equal_the_attempts,
    chunks_in_parts,
)
from batch_pipeline_tests.engine.test_crash import keys_settled
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine_process import outcome, start
from batch_pipeline_tests.forked import Forked
from batch_pipeline_tests.simulated import Bench, Simulator

PROCESSES = 3
SLOW = {"base_s": 0.7, "per_output_token_s": 0.0, "jitter_s": 0.5}
"""A process takes a second or two to start: the rows must last until the last kill."""


class Crowd:
    """Processes that work on parts of one batch; one that is killed is started again at once."""

    def __init__(self, bench: Bench, batch: Batch) -> None:
        self.bench = bench
        self.batch = batch
        self.parts = chunks_in_parts(bench, batch, PROCESSES)
        self.generations = [0] * PROCESSES
        self.running = [self.launch(place) for place in range(PROCESSES)]

    def launch(self, place: int) -> Forked:
        return start(
            self.bench, self.batch.batch_id, self.run_id(place), self.parts[place], chunk_wait_s=60
        )

    def run_id(self, place: int) -> str:
        return f"run {place}.{self.generations[place]}"

    def kill(self, place: int) -> None:
        self.running[place].send_signal(signal.SIGKILL)
        self.running[place].wait(30)
        self.generations[place] += 1
        self.running[place] = self.launch(place)

    def at_work(self, ledger: Ledger) -> list[int]:
        """Processes that have calls in flight."""
        statement = sa.select(attempts.c.run_id).where(attempts.c.state == AttemptState.SENT.value)
        with ledger.read() as connection:
            flying = set(connection.execute(statement).scalars())
        return [place for place in range(PROCESSES) if self.run_id(place) in flying]

    def end(self) -> None:
        """Kill what a failed test left."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait(30)


def kill_at_random(crowd: Crowd, kills: int, seed: int) -> None:
    """Kill processes that have calls in flight, at any moment within a call."""
    rng = random.Random(seed)
    with crowd.bench.open() as ledger:
        for kill in range(kills):
            deadline = time.monotonic() + 60
            while not (candidates := crowd.at_work(ledger)):
                assert time.monotonic() < deadline, f"nobody was at work after {kill} kills"
                time.sleep(0.02)
            time.sleep(rng.random() * 0.3)  # the moment within a call is random, too
            crowd.kill(rng.choice(candidates))


@pytest.mark.parametrize(("database", "kills"), [("sqlite", 50), ("postgresql", 10)])
def test_kills_at_random_lose_nothing_and_only_calls_in_flight_are_paid_twice(
    database: str,
    kills: int,
    simulator: Simulator,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if database == "postgresql":
        monkeypatch.setenv(LEDGER_VARIABLE, request.getfixturevalue("postgres_url"))
    table = REFERENCE / "data" / "roadmaps" / "rows_1000.csv"
    if not table.is_file():
        table = write_rows(tmp_path / "rows.csv", topics(1_000))
    simulator.configure(latency=SLOW)
    bench = Bench(tmp_path, simulator, workers=3, pack=2, chunk_size=50)
    batch = bench.ingest(table)
    crowd = Crowd(bench, batch)
    try:
        kill_at_random(crowd, kills, seed=kills)
        simulator.configure()
        done = [outcome(process, 180.0) for process in crowd.running]
    finally:
        crowd.end()
    assert sum(entry["outcomes"]["succeeded"] for entry in done) == 1_000
    rows = bench.items(batch)
    assert len({row.item_id for row in rows}) == len(rows) == 1_000
    assert Counter(row.outcome.value for row in rows) == {"succeeded": 1_000}

    known, ended = read_books(bench)
    assert ended == {"crashed": kills, "done": PROCESSES}
    journal = simulator.journal()
    calls = Counter(entry["client_request_id"] for entry in journal)
    settled = {name for name, (state, _, _) in known.items() if state == AttemptState.SETTLED}
    in_flight = {
        name
        for name, (state, _, _) in known.items()
        if state in (AttemptState.SENT, AttemptState.LOST)
    }
    assert set(calls.values()) == {1}
    assert settled <= set(calls) <= settled | in_flight, "each call was written down before"
    assert in_flight, "no kill met a call in flight"
    met = {known[name][2] for name in in_flight}
    assert len(met) >= kills / 2, "most kills were to meet a call in flight"
    assert set(keys_settled(bench).values()) == {1}, "no settled question was asked again"
    paid = sum(entry["price_usd"] for entry in journal)
    assert paid * NANO <= sum(nano for _, nano, _ in known.values()) + len(journal)
    assert_sums_equal_the_attempts(bench)


def read_books(bench: Bench) -> tuple[dict[str, tuple[str, int, str]], Counter[str]]:
    """State, cost (at worst) and run of each attempt; how runs ended."""
    cost = sa.case(
        (attempts.c.state == AttemptState.SENT.value, attempts.c.worst_nano),
        else_=attempts.c.cost_nano,
    )
    statement: Any = sa.select(attempts.c.attempt_id, attempts.c.state, cost, attempts.c.run_id)
    with bench.open() as ledger, ledger.read() as connection:
        known = {
            name: (state, nano, run) for name, state, nano, run in connection.execute(statement)
        }
        ended = Counter(connection.execute(sa.select(runs.c.status)).scalars())
    return known, ended
