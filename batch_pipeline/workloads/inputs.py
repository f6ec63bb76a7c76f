"""What a user names as a table, opened for its workload as often as needed.

What belongs here: the choice between files and worksheets, and which reading options there are.
What does not: how a format is read (sources/), what the rows mean (the workloads), ingest
(runner.py).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from batch_pipeline.errors import UsageError
from batch_pipeline.google_sheets.access import is_sheet, resolve_sheets_access
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.sources.sheets import SheetCells, read_cells
from batch_pipeline.sources.table import InputTable, canonical_hash
from batch_pipeline.workloads.base import (
    ReadsSheets,
    Workload,
    WritesBack,
    reading_options,
)

WRITE_BACK = "write_back"
"""Reading option of workloads that write back to sheets; false leaves the sheet alone."""

_TEXT_OPTIONS = ("encoding", "delimiter")
_WORKSHEET = "worksheet"

SimulatorUrl = Callable[[], str | None]
"""Gives the simulator's address in the simulated realm, else None."""


def no_simulator() -> str | None:
    """For the live realm, and where nobody names a worksheet."""
    return None


class Input:
    """A table that a user named. A file is read each time it is opened, a worksheet once in all.

    Args:
        workload: whose table it is.
        source: a file's path, `sheets:<id>/<worksheet>`, or what else the workload understands.
        reading: how to read it; None values count as not given.
        ledger: whose realm and limits a worksheet is read in.
        simulator: called where a worksheet is read.

    Attributes:
        reading: the options that were given.

    Raises:
        UsageError: there is no such option, or the workload takes no worksheets.
    """

    def __init__(
        self,
        workload: Workload,
        source: str,
        reading: Mapping[str, Any],
        ledger: Ledger,
        simulator: SimulatorUrl,
    ) -> None:
        self.reading = {name: value for name, value in reading.items() if value is not None}
        _check_reading(workload, self.reading)
        if is_sheet(source):
            _check_sheet(workload, self.reading)
        self._workload = workload
        self._source = source
        self._ledger = ledger
        self._simulator = simulator
        self._cells: SheetCells | None = None

    def open(self) -> InputTable:
        """The table, from its first row on.

        Raises:
            UsageError: the source as a whole cannot be used.
            SheetsError: the worksheet cannot be read for now; that is never an empty table.
        """
        cells = self.cells()
        if cells is None:
            return self._workload.open_input(self._source, self.reading)
        assert isinstance(self._workload, ReadsSheets)
        return self._workload.open_sheet(cells.table(self.reading.get("name")), self.reading)

    def cells(self) -> SheetCells | None:
        """The worksheet behind it; None for what is none.

        Raises:
            UsageError: its address or the account cannot be used.
            SheetsError: it cannot be read for now.
        """
        if self._cells is None and is_sheet(self._source):
            url = self._simulator()
            assert url is not None or self._ledger.realm == "live", "rehearsals have a simulator"
            access = resolve_sheets_access(os.environ, url)
            self._cells = read_cells(self._source, access, self._ledger)
        return self._cells

    def content_id(self) -> str:
        """The batch id that it gets when none is given: its name and a hash of its content.

        Worksheets with the same rows are told apart: each is written back to itself.
        """
        table = self.open()
        digest = hashlib.sha256()
        if (cells := self.cells()) is not None:
            digest.update(f"{cells.address.spreadsheet_id}/{cells.worksheet.sheet_id}/".encode())
        for row in table.rows:
            digest.update(canonical_hash(row.values).encode())
            digest.update(row.problem.encode())
        stem = re.sub(r"[^A-Za-z0-9]+", "-", table.name).strip("-").lower()[:60] or "batch"
        return f"{stem}-{digest.hexdigest()[:8]}"


def _check_reading(workload: Workload, reading: Mapping[str, Any]) -> None:
    own = [*reading_options(workload)]
    if isinstance(workload, WritesBack):
        own.append(WRITE_BACK)
    unknown = sorted(set(reading) - {"name", *_TEXT_OPTIONS, *own})
    if unknown:
        also = f" besides {', '.join(own)}" if own else ""
        raise UsageError(
            f"The workload {workload.name} cannot read a table by {unknown[0]!r}.",
            f"It knows encoding and delimiter{also}.",
        )


def _check_sheet(workload: Workload, reading: Mapping[str, Any]) -> None:
    if not isinstance(workload, ReadsSheets):
        raise UsageError(
            f"The workload {workload.name} does not read Google Sheets.",
            "Download the worksheet as CSV (File, Download) and name that file.",
        )
    if senseless := sorted(set(reading) & {*_TEXT_OPTIONS, _WORKSHEET}):
        raise UsageError(
            f"{senseless[0]!r} says nothing about a worksheet of Google Sheets.",
            "Leave it out; the worksheet stands behind the id: sheets:<id>/<worksheet>.",
        )
