"""Topics that are kept in a worksheet: a small workload that reads one and writes back to it.

What belongs here: the workload, and runs of it that follow the sheet, also in a process of their
own. What does not: assertions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from batch_pipeline.engine.job import ChunkDone
from batch_pipeline.ledger.batches import UNCHANGED, Batch, Item, find_items
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.limits.by_hand import Scope, set_limits
from batch_pipeline.sources.table import InputRow, InputTable, canonical_hash
from batch_pipeline.workloads.base import SHEET_OUTPUT, SHEET_STATUS, SheetColumns
from batch_pipeline.workloads.config import Knobs
from batch_pipeline.workloads.roadmaps.workload import RoadmapsWorkload
from batch_pipeline.workloads.runner import ingest_batch, require_batch
from batch_pipeline.workloads.write_back import SheetFollowing
from batch_pipeline_tests.forked import SERVER
from batch_pipeline_tests.sheets import BOOK, TITLE, Book, fresh_book
from batch_pipeline_tests.simulated import Bench, Simulator

WORKLOAD = "batch_pipeline_tests.workloads.sheeted:SheetedTopics"
SOURCE = f"sheets:{BOOK}/{TITLE}"
HEADER = ["Topic", "Description", "Status", "Output Path"]
COMPLETED = "Completed"
MOST_ROWS = 10
OUTPUT = "out"


class SheetedTopics(RoadmapsWorkload):
    """Topics of a worksheet, found again by their name."""

    reading_options: Sequence[str] = ("worksheet",)

    def open_sheet(self, table: InputTable, options: Mapping[str, Any]) -> InputTable:
        """Topic and description, whatever else stands there."""
        rows = (
            InputRow(row.number, None, {name: row.values[name] for name in HEADER[:2]}, row.problem)
            for row in table.rows
        )
        return InputTable(table.name, table.source, HEADER[:2], rows, table.warnings)

    def choose(
        self, table: InputTable, ledger: Ledger, batch_id: str, forced: bool
    ) -> Iterator[tuple[InputRow, str]]:
        """A topic that succeeded in another batch needs no work."""
        for row in table.rows:
            found = [] if forced else _elsewhere(ledger, canonical_hash(row.values)[:16], batch_id)
            yield row, f"Done in batch {found[0]}." if found else ""

    def sheet_columns(self, headers: Sequence[str], source: str) -> SheetColumns:
        """By their names; without a Status and an Output Path, new ones."""
        return SheetColumns(
            ("Topic",), *(name if name in headers else "" for name in ("Status", "Output Path"))
        )

    def sheet_cells(
        self,
        ledger: Ledger,
        batch: Batch,
        items: Iterable[Item],
        folder: Path,
        roles: Collection[str],
    ) -> Iterator[tuple[int, Mapping[str, str]]]:
        """How each row ended."""
        for item in items:
            if said := says(item):
                done = said == COMPLETED
                output = str(folder / item.item_id) if done else ""
                yield item.number, {SHEET_STATUS: said, SHEET_OUTPUT: output}

    def own_status(self, text: str) -> bool:
        """Completed or Error."""
        return text in (COMPLETED, "Error")


def says(item: Item) -> str:
    """What the sheet says of a row; empty for one that has not ended."""
    if item.outcome is Outcome.SUCCEEDED or item.error_kind == UNCHANGED:
        return COMPLETED
    return "Error" if item.outcome in (Outcome.FAILED, Outcome.BLOCKED) else ""


def _elsewhere(ledger: Ledger, item_id: str, batch_id: str) -> list[str]:
    with ledger.read() as connection:
        found = find_items(connection, ledger.realm, item_id)
    return [
        other for other, item in found if other != batch_id and item.outcome is Outcome.SUCCEEDED
    ]


class SheetBench(Bench):
    """An installation whose batches are worksheets of topics."""

    def __init__(self, folder: Path, simulator: Simulator, **knobs: Any) -> None:
        super().__init__(folder, simulator, **{"pack": 10, "chunk_size": 10, **knobs})
        self.config = self.config.model_copy(update={"workload": WORKLOAD})
        with self.open() as ledger, ledger.write() as connection:
            # The account's 60 a minute are for limits' tests.
            scope = Scope("simulated", "google-sheets")
            set_limits(connection, ledger.now(connection), scope, {"requests": 1e6})

    def url(self) -> str:
        """The simulator's address."""
        return self.simulator.url

    def take(self, source: str = SOURCE, **terms: Any) -> Batch:
        """Ingest a worksheet."""
        with self.open() as ledger:
            return ingest_batch(ledger, self.config, source, simulator=self.url, **terms)[0]

    def follow(self, batch: Batch, run_id: str = "run", *, most_rows: int = MOST_ROWS) -> list[str]:
        """Run a batch as llm_outputs does, its sheet in step; gives the warnings."""
        thread = self.start(self.job(batch, run_id))
        with self.open() as ledger:
            current = require_batch(ledger, batch.batch_id)
            sheet = SheetFollowing(
                self.open,
                self.config.domain,
                current,
                self.settings.data / OUTPUT,
                self.url,
                most_rows=most_rows,
            )
            with sheet:
                for event in thread.events():
                    if isinstance(event, ChunkDone):
                        sheet.chunk_done(ledger, event.chunk_key)
        return sheet.warnings

    def start_process(self, batch: Batch, run_id: str) -> ForkServerProcess:
        """The same in a process of its own, to be killed."""
        knobs = self.config.model_dump(include={*Knobs.model_fields})
        words = (self.settings.data, self.simulator.url, batch.batch_id, run_id, knobs)
        process = SERVER.Process(target=_follow, args=words, daemon=True)
        process.start()
        return process


def _follow(data: Path, url: str, batch_id: str, run_id: str, knobs: dict[str, Any]) -> None:
    bench = SheetBench(data, Simulator(url), **knobs)
    with bench.open() as ledger:
        batch = require_batch(ledger, batch_id)
    bench.follow(batch, run_id)


def topics(count: int, start: int = 1) -> list[list[str]]:
    """Rows of a worksheet."""
    return [[f"topic {n}", f"About learning number {n}."] for n in range(start, start + count)]


def topic_book(simulator: Simulator, rows: Sequence[Sequence[str]], **terms: Any) -> Book:
    """A spreadsheet of topics."""
    return fresh_book(simulator).load(HEADER, *rows, **terms)
