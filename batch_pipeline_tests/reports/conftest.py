"""Real batches, filled by the real engine against the real simulator: one clean, one troubled."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.engine.job import RunDone
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.ledger.batches import Batch, list_chunks
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.reports.build import build_report
from batch_pipeline.reports.model import BatchReport
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.runner import deliver, ingest_batch, plan_job
from batch_pipeline_tests.simulator.running import INSTANT, Running, running

SCRIPT = "<script>alert(1)</script>"
PERSIAN = "سلام دنیا"
COLUMNS = ["Category", "Subcategory", "Topic", "Description", "Resources"]


@dataclass(frozen=True)
class Room:
    """A ledger, a simulator, and a way to run a table through both."""

    folder: Path
    simulator: Running
    url: str

    def ledger(self) -> Ledger:
        return Ledger(self.url, "simulated")

    def ingest(self, ledger: Ledger, name: str, rows: list[dict[str, str]], **knobs: Any) -> Batch:
        path = self.folder / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        config = load_workload_config("roadmaps").with_options(knobs)
        return ingest_batch(ledger, config, str(path), batch_id=name)[0]

    def run(self, ledger: Ledger, batch: Batch, run_id: str, **knobs: Any) -> RunDone:
        with ledger.read() as connection:
            keys = [c.chunk_key for c in list_chunks(connection, "simulated", batch.batch_id)]
        job = plan_job(
            load_workload_config("roadmaps").with_options(
                {"rate_limit": 60_000, "workers": 8, **knobs}
            ),
            run_id=run_id,
            batch=batch,
            chunk_keys=keys,
            realm="simulated",
            simulator=self.simulator.url,
        )
        done = None
        for event in EngineThread(self.ledger, job).start().events():
            if isinstance(event, RunDone):
                done = event
        assert done is not None
        return done


@dataclass(frozen=True)
class Reported:
    """A batch, its last run's end, its report, and what the simulator's journal says was paid."""

    report: BatchReport
    done: RunDone
    journal: dict[str, Any]


def topics(count: int) -> list[dict[str, str]]:
    return [
        {
            "Category": f"Area {at % 5}",
            "Subcategory": "General",
            "Topic": f"Topic number {at}",
            "Description": f"Why topic {at} matters and how to learn it.",
            "Resources": "",
        }
        for at in range(count)
    ]


@pytest.fixture(scope="package")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    folder = tmp_path_factory.mktemp("reports")
    with running(folder / "simulator") as simulator:
        yield Room(folder, simulator, f"sqlite:///{folder / 'ledger.db'}")


def _reset(room: Room, faults: list[dict[str, Any]]) -> None:
    room.simulator.http.post("/_sim/reset")
    room.simulator.configure(
        seed="reports", limits=[], latency=INSTANT, faults=faults, key_marks={}
    )


@pytest.fixture(scope="package")
def clean(room: Room) -> Iterator[Reported]:
    """150 topics, no trouble, in one run."""
    _reset(room, [])
    with room.ledger() as ledger:
        batch = room.ingest(ledger, "clean", topics(150))
        done = room.run(ledger, batch, "clean-run")
        config = load_workload_config("roadmaps")
        files = deliver(ledger, config, batch, room.folder / "out")
        report = build_report(ledger, batch, run_id="clean-run", deliverables=files)
        yield Reported(report, done, room.simulator.summary())


@pytest.fixture(scope="package")
def again(room: Room, clean: Reported) -> BatchReport:
    """`clean` once more, when every row of it is known."""
    with room.ledger() as ledger:
        batch = room.ingest(ledger, "clean", topics(150))
        room.run(ledger, batch, "clean-again")
        return build_report(ledger, batch, run_id="clean-again")


@pytest.fixture(scope="package")
def troubled(room: Room, clean: Reported) -> Iterator[Reported]:
    """100 topics: 30 known from `clean`, 2 duplicates, a poison, a refused, a bad, an empty row."""
    rows = topics(130)[100:] + [{**row, "Topic": f"Other {row['Topic']}"} for row in topics(70)]
    rows[40]["Topic"] = f"POISON {SCRIPT} {PERSIAN}"
    rows[50]["Topic"] = f"DECLINED {PERSIAN}"
    rows[60]["Topic"] = ""
    rows[61] = dict.fromkeys(COLUMNS, "")
    rows[70] = rows[71] = dict(rows[72])
    _reset(
        room,
        [
            {"kind": "invalid_item", "match": "POISON"},
            {"kind": "refusal", "match": "DECLINED"},
            {"kind": "status", "status": 503, "count": 1},
        ],
    )
    with room.ledger() as ledger:
        batch = room.ingest(ledger, "troubled", rows, chunk_size=40)
        done = room.run(ledger, batch, "troubled-run")
        report = build_report(ledger, batch, run_id="troubled-run")
        yield Reported(report, done, room.simulator.summary())
