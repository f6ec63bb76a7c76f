"""An installation of its own for a test: data folder, tables, runs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa

from batch_pipeline.doors import RunRequest, RunResult, run_batch
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import attempts
from batch_pipeline.settings import Realm, load_settings
from batch_pipeline.workloads.runner import open_ledger
from batch_pipeline_tests.simulated import WENT_OUT, Simulator

OUTPUTS = dg.AssetKey(["roadmaps", "llm_outputs"])
KNOBS = {"rate_limit": 60_000.0, "workers": 8}
POISON = "plutonium"


@dataclass(frozen=True)
class Installation:
    """Where a test works.

    Attributes:
        data: what BATCH_PIPELINE_DATA names.
        simulator: what plays the providers.
    """

    data: Path
    simulator: Simulator

    def table(self, rows: int, poison: tuple[int, ...] = (), name: str = "topics") -> Path:
        """A CSV of topics; rows numbered in `poison` (from 1) hold what faults look for."""
        path = self.data / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["Category", "Topic", "Description"])
            for number in range(1, rows + 1):
                word = POISON if number in poison else "learning"
                writer.writerow(["Testing", f"{name} {number}", f"About {word} number {number}."])
        return path

    def poison(self) -> None:
        """Let every answer for a poisoned row be invalid."""
        self.simulator.configure(faults=[{"kind": "invalid_item", "match": POISON}])

    def run(
        self, source: Path | None = None, *, knobs: dict[str, Any] | None = None, **request: Any
    ) -> RunResult:
        """Run a roadmaps batch through the door."""
        progress = request.pop("on_progress", None)
        wanted = RunRequest(
            "roadmaps",
            source=None if source is None else str(source),
            knobs={**KNOBS, **(knobs or {})},
            **request,
        )
        return run_batch(wanted, on_progress=progress)

    def ledger(self, realm: Realm = "simulated") -> Ledger:
        """The ledger in a realm."""
        return open_ledger(load_settings(), realm)

    def count_attempts(self, realm: Realm = "simulated", state: str | None = None) -> int:
        """Attempts in the ledger."""
        return self._count(realm, sa.true() if state is None else attempts.c.state == state)

    def count_sent(self) -> int:
        """Attempts that went onto the wire."""
        return self._count("simulated", WENT_OUT)

    def _count(self, realm: Realm, which: sa.ColumnElement[bool]) -> int:
        statement = sa.select(sa.func.count()).where(attempts.c.realm == realm, which)
        with self.ledger(realm) as ledger, ledger.read() as connection:
            return int(connection.execute(statement).scalar_one())

    def statuses(self, instance: dg.DagsterInstance) -> dict[str, str | None]:
        """What the UI shows for each chunk."""
        keys = instance.get_dynamic_partitions("roadmaps_chunks")
        found = instance.get_status_by_partition(
            OUTPUTS, keys, dg.DynamicPartitionsDefinition(name="roadmaps_chunks")
        )
        return {
            key.rpartition(".")[2]: None if status is None else status.value
            for key, status in (found or {}).items()
        }


def once(action: Callable[[], None]) -> Callable[[], None]:
    """`action`, at most once."""
    left = [action]

    def run() -> None:
        if left:
            left.pop()()

    return run
