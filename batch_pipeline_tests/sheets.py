"""Spreadsheets in the simulator, and clients of them, for the tests of source, sink and simulator.

What belongs here: helpers. What does not: assertions about the code under test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batch_pipeline.google_sheets.access import SheetsAccess, resolve_sheets_access
from batch_pipeline.ledger.store import Ledger
from batch_pipeline_tests.simulated import Simulator, http

BOOK = "1AbC-dEf_2"
TITLE = "INPUT"
HEADER = ["Brand Name", "Website", "Parent Company", "Status", "Output Path"]


@dataclass(frozen=True)
class Book:
    """A spreadsheet, as a person sees it.

    It is made with no latency and limits that nobody meets.
    """

    simulator: Simulator
    name: str = BOOK

    def load(self, *rows: Sequence[Any], title: str = TITLE, **terms: Any) -> Book:
        """Replace it by one with these rows in its only worksheet."""
        return self.put({title: [list(row) for row in rows]}, **terms)

    def put(self, sheets: dict[str, list[list[Any]]], **terms: Any) -> Book:
        """Replace it."""
        reply = http().put(
            f"{self.simulator.url}/_sim/sheets/{self.name}", json={"sheets": sheets, **terms}
        )
        assert reply.status_code == 200, reply.text
        return self

    def all(self) -> dict[str, Any]:
        """Everything in it."""
        reply = http().get(f"{self.simulator.url}/_sim/sheets/{self.name}")
        assert reply.status_code == 200, reply.text
        return dict(reply.json()["sheets"])

    def rows(self, title: str = TITLE) -> list[list[Any]]:
        """What is in a worksheet; ragged."""
        return list(self.all()[title]["values"])

    def requests(self, method: str = "") -> list[dict[str, Any]]:
        """What was asked of the simulator's Sheets API since its last reset."""
        reply = http().get(f"{self.simulator.url}/_sim/sheets").json()
        return [one for one in reply["requests"] if not method or one["method"] == method]

    @property
    def writes(self) -> int:
        """Requests that wrote values."""
        return len(self.requests("values.batchUpdate"))

    def configure(self, **settings: Any) -> None:
        """Set faults, latency, limits."""
        latency = {"base_s": 0, "per_output_token_s": 0, "jitter_s": 0}
        quick = {"sheets_reads_per_minute": 1e6, "sheets_writes_per_minute": 1e6}
        self.simulator.configure(**{"latency": latency, **quick, **settings})

    @property
    def access(self) -> SheetsAccess:
        """A simulated account that may call as often as it likes."""
        found = resolve_sheets_access({}, self.simulator.url)
        return replace(
            found, reads_per_minute=1e6, writes_per_minute=1e6, timeout_s=10.0, backoff_s=0.002
        )


def fresh_book(simulator: Simulator) -> Book:
    """A spreadsheet to work with."""
    book = Book(simulator)
    book.configure()
    return book


def open_ledger(folder: Path) -> Ledger:
    """A ledger in a folder of the test."""
    return Ledger(f"sqlite:///{folder / 'ledger.db'}", "simulated")
