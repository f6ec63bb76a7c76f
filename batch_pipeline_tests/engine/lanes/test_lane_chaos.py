"""Three processes drive the provider jobs of their batches and die at random, again and again.

No job is submitted twice, none is forgotten, and every row is paid once.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.tables import runs
from batch_pipeline.settings import LEDGER_VARIABLE
from batch_pipeline_tests.engine.lanes import mortal
from batch_pipeline_tests.engine.lanes.laning import (
    ROUTES,
    assert_asked_once,
    assert_books_are_right,
    lane_bench,
    lane_run,
    states_of,
    until,
)
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator

ROWS = 120
TROUBLE = [
    {"kind": "batch_create", "made": True, "share": 0.1, "count": 6},
    {"kind": "upload", "share": 0.1, "count": 6},
    {"kind": "poll", "share": 0.1, "count": 20},
    {"kind": "download", "part": 0.5, "share": 0.1, "count": 6},
]


class Crowd:
    """One process for each batch; one that is killed is started again at once."""

    def __init__(self, benches: list[Bench], batches: list[Batch]) -> None:
        self.benches = benches
        self.batches = batches
        self.starts = 0
        self.run_ids: dict[int, str] = {}
        self.running = [self.launch(place) for place in range(len(batches))]

    def launch(self, place: int) -> ForkServerProcess:
        self.starts += 1
        self.run_ids[place] = f"run {place}.{self.starts}"
        return mortal.start(self.benches[place], self.batches[place].batch_id, self.run_ids[place])

    def at_work(self) -> list[int]:
        """Processes whose run goes on."""
        statement = sa.select(runs.c.run_id).where(runs.c.status == "running")
        with self.benches[0].open() as ledger, ledger.read() as connection:
            running = set(connection.execute(statement).scalars())
        return [place for place, run_id in self.run_ids.items() if run_id in running]

    def kill(self, place: int) -> None:
        """Kill a process and start it again."""
        mortal.end(self.running[place])
        self.running[place] = self.launch(place)


@pytest.mark.parametrize(("database", "kills"), [("sqlite", 10), ("postgresql", 4)])
def test_kills_at_random_submit_no_job_twice_forget_none_and_lose_no_result(
    database: str,
    kills: int,
    simulator: Simulator,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if database == "postgresql":
        monkeypatch.setenv(LEDGER_VARIABLE, request.getfixturevalue("postgres_url"))
    rng = random.Random(kills)
    simulator.configure(
        faults=TROUBLE, batches=[{"duration_s": 0.8, "per_line_s": 0.0, "duration_jitter": 0.5}]
    )
    rows = topics(ROWS * len(ROUTES))
    benches = [
        lane_bench(tmp_path, simulator, route=route, job_items=20, max_jobs=2) for route in ROUTES
    ]
    batches = [
        bench.ingest(write_rows(tmp_path / f"{place}.csv", rows[place * ROWS : (place + 1) * ROWS]))
        for place, bench in enumerate(benches)
    ]
    crowd = Crowd(benches, batches)
    try:
        for _ in range(kills):
            until(crowd.at_work)
            time.sleep(rng.random() * 0.4)  # any moment of a job's life
            crowd.kill(rng.choice(crowd.at_work()))
        simulator.configure()
        for process in crowd.running:
            process.join(90)
            assert process.exitcode == 0
    finally:
        for process in crowd.running:
            mortal.end(process)
    for bench, batch in zip(benches, batches, strict=True):
        ran = lane_run(bench, batch, f"last {batch.batch_id}")
        assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": ROWS})
    bench = benches[0]
    assert states_of(bench) == {"settled": 3 * 12}
    assert_asked_once(bench, simulator, ROWS * len(ROUTES))
    assert_books_are_right(bench, simulator)
    with bench.open() as ledger, ledger.read() as connection:
        ended = Counter(connection.execute(sa.select(runs.c.status)).scalars())
    assert ended["crashed"] >= kills - 2, "most kills were to meet a run at work"
