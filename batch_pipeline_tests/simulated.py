"""A simulator for tests, and engine runs against it.

What belongs here: helpers that tests of several rooms use. What does not: assertions.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from batch_pipeline.engine.job import ChunkDone, Job, RunDone
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.ledger.batches import Batch, Item, list_chunks, stream_items
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import AttemptState, attempts
from batch_pipeline.settings import LEDGER_VARIABLE, Settings
from batch_pipeline.simulator.launch import ensure_simulator, stop_simulator
from batch_pipeline.workloads.config import WorkloadConfig, load_workload_config
from batch_pipeline.workloads.runner import ingest_batch, open_ledger, plan_job

QUICK: dict[str, Any] = {
    "seed": "simulator",
    "faults": [],
    "limits": [],
    "key_marks": {},
    "headers": True,
    "day": None,
    "latency": {"base_s": 0.01, "per_output_token_s": 0.0, "jitter_s": 0.01},
    "batches": [{"duration_s": 0.3, "per_line_s": 0.0, "duration_jitter": 0.0}],
    "clock": {"speed": 1.0, "frozen": False},
    "ahrefs_per_minute": 6_000,
    "exa_per_second": 1_000,
    "tavily_per_minute": 60_000,
}

WENT_OUT = attempts.c.state != AttemptState.REFUNDED.value
"""Of an attempt: one that was written ahead, and then came too late for its turn, is refunded."""


@cache
def http() -> httpx.Client:
    """The client of this process for its neighbours."""
    # `httpx.get` reads all certificate authorities anew: 25 ms for a word with a neighbour.
    return httpx.Client(timeout=30, verify=False)


@dataclass(frozen=True)
class Simulator:
    """A running simulator and its control endpoints."""

    url: str

    @classmethod
    @contextmanager
    def start(cls, state_dir: Path) -> Iterator[Simulator]:
        """Start one whose state is in `state_dir`; it ends with the context."""
        try:
            yield cls(ensure_simulator(state_dir))
        finally:
            stop_simulator(state_dir)

    def configure(self, **settings: Any) -> None:
        """Set limits, latency, faults or the seed; what is not named has its quick default."""
        reply = http().put(f"{self.url}/_sim/config", json={**QUICK, **settings})
        assert reply.status_code == 200, reply.text

    def reset(self) -> None:
        """Empty the journal and take back all faults and limits."""
        self.configure()
        reply = http().post(f"{self.url}/_sim/reset")
        assert reply.status_code == 200, reply.text
        self.configure()

    def advance(self, seconds: float) -> None:
        """Move the clock of provider jobs ahead."""
        reply = http().post(f"{self.url}/_sim/clock", json={"advance_s": seconds})
        assert reply.status_code == 200, reply.text

    def enqueued(self) -> list[dict[str, Any]]:
        """What provider jobs hold, by model."""
        return list(http().get(f"{self.url}/_sim/enqueued").json()["enqueued"])

    def summary(self) -> dict[str, Any]:
        """Totals of the journal."""
        return dict(http().get(f"{self.url}/_sim/summary").json())

    def journal(self) -> list[dict[str, Any]]:
        """Every attempt since the last reset."""
        entries: list[dict[str, Any]] = []
        while True:
            reply = (
                http()
                .get(
                    f"{self.url}/_sim/journal",
                    params={"since": entries[-1]["n"] if entries else 0, "limit": 1_000},
                )
                .json()
            )
            page = reply["records"]
            if not page:
                return entries
            entries.extend(page)


@dataclass(frozen=True)
class Ran:
    """What a run came to."""

    done: RunDone
    chunks: list[ChunkDone]
    job: Job

    @property
    def outcomes(self) -> dict[str, int]:
        """Outcomes with at least one row."""
        return {
            outcome.value: count for outcome, count in self.done.tally.outcomes.items() if count
        }


@cache
def _migrated() -> Path:
    """A ledger as the first opening leaves it: migrations take longer than most runs of tests."""
    folder = Path(tempfile.mkdtemp(prefix="bp-ledger-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    empty = folder / "ledger.db"
    with open_ledger(Settings(folder, f"sqlite:///{empty}", True), "simulated"):
        pass
    return empty


class Bench:
    """One installation in a folder of the test, working against the simulator.

    Its ledger is a file in the folder, or what the environment names (fixture `either_database`).

    Args:
        folder: the installation's data folder.
        simulator: what plays the providers.
        workload: what its batches are.
        knobs: the operator's, over those of the workload's defs.yaml.
    """

    def __init__(
        self, folder: Path, simulator: Simulator, *, workload: str = "roadmaps", **knobs: Any
    ) -> None:
        own = folder / "ledger.db"
        url = os.environ.get(LEDGER_VARIABLE)
        if not url:
            url = f"sqlite:///{own}"
            if not own.exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(_migrated(), own)
        self.settings = Settings(folder, url, True)
        self.simulator = simulator
        config = load_workload_config(workload)
        self.config: WorkloadConfig = config.model_copy(
            update={"rate_limit": None, "tier": None, "workers": 8, **knobs}
        )

    def open(self) -> Ledger:
        """The ledger, in the simulated realm."""
        return open_ledger(self.settings, "simulated")

    def ingest(self, source: Path, batch_id: str | None = None) -> Batch:
        """Ingest a table."""
        with self.open() as ledger:
            return ingest_batch(ledger, self.config, str(source), batch_id=batch_id)[0]

    def job(
        self,
        batch: Batch,
        run_id: str = "run",
        chunks: Sequence[str] | None = None,
        **settings: Any,
    ) -> Job:
        """A job over all chunks of a batch; `settings` are fields of RunSettings."""
        from dataclasses import replace

        if chunks is None:
            with self.open() as ledger, ledger.read() as connection:
                chunks = [
                    chunk.chunk_key
                    for chunk in list_chunks(connection, ledger.realm, batch.batch_id)
                ]
        job = plan_job(
            self.config,
            run_id=run_id,
            batch=batch,
            chunk_keys=chunks,
            realm="simulated",
            simulator=self.simulator.url,
        )
        quick = {"backoff_s": 0.02, "max_backoff_s": 0.2, **settings}
        return replace(job, settings=replace(job.settings, **quick))

    def start(self, job: Job) -> EngineThread:
        """Start a job on a thread of its own."""
        return EngineThread(self.open, job).start()

    def run(self, batch: Batch, run_id: str = "run", **settings: Any) -> Ran:
        """Run a batch to its end."""
        job = self.job(batch, run_id, **settings)
        return finish(self.start(job), job)

    def asked(self, *steps: str) -> Counter[str]:
        """Attempts that went onto the wire, by step; of all steps unless some are named."""
        statement = sa.select(attempts.c.step).where(WENT_OUT)
        if steps:
            statement = statement.where(attempts.c.step.in_(steps))
        with self.open() as ledger, ledger.read() as connection:
            return Counter(connection.execute(statement).scalars())

    def items(self, batch: Batch) -> list[Item]:
        """All items of a batch, in order."""
        with self.open() as ledger:
            return list(stream_items(ledger, batch.batch_id))


def finish(thread: EngineThread, job: Job) -> Ran:
    """Take a run's events to the end."""
    chunks: list[ChunkDone] = []
    for event in thread.events():
        if isinstance(event, RunDone):
            if event.error is not None:
                raise event.error
            return Ran(event, chunks, job)
        chunks.append(event)
    raise AssertionError("the run ended without RunDone")
