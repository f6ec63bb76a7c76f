"""A worksheet of Google Sheets as a table.

What belongs here: header and rows of a worksheet. What does not: calls (google_sheets/), and what
is written back (sinks/sheets.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from batch_pipeline.errors import UsageError
from batch_pipeline.google_sheets.access import SheetAddress, SheetsAccess, parse_address
from batch_pipeline.google_sheets.client import Grid, SheetsError, Worksheet, read_worksheet
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.sources.table import (
    InputRow,
    InputTable,
    TableSpec,
    checked_rows,
    match_columns,
    table_name,
)


@dataclass(frozen=True, slots=True)
class SheetCells:
    """A worksheet as it was read; tables are made of it as often as needed.

    Attributes:
        address: what the user named.
        worksheet: what was found there.
        grid: all its cells from A1 on, rows padded to the same width.
    """

    address: SheetAddress
    worksheet: Worksheet
    grid: Grid

    def table(self, name: str | None = None) -> InputTable:
        """The worksheet as a table of texts, as the sheet shows them.

        Args:
            name: see `open_table`; default: the worksheet's title.

        Raises:
            UsageError: it has no header or no rows.
        """
        spec = TableSpec(table_name(name or self.worksheet.title), str(self.address))
        return grid_table(self.grid, spec)


def read_cells(source: str, access: SheetsAccess, ledger: Ledger) -> SheetCells:
    """Read `sheets:<id>/<worksheet>` whole, once.

    Args:
        source: the worksheet; without `/<worksheet>` the first one.
        access: as whom.
        ledger: whose limits the reads keep to.

    Raises:
        UsageError: it is no address of a worksheet that this account can read.
        SheetsError: it cannot be read for now.
    """
    address = parse_address(source)
    try:
        return SheetCells(address, *read_worksheet(access, ledger, address))
    except SheetsError as error:
        if error.passing:
            raise
        # Somebody must name, share or add something: as with a file that is not there.
        raise UsageError(error.message, error.next_step) from error


def grid_table(grid: Grid, spec: TableSpec) -> InputTable:
    """The cells of a worksheet as a table of texts, its first row the header.

    A row's number is its number in the sheet, by which write-back finds it again. Empty rows are
    skipped, and columns without a name where they hold nothing.

    Args:
        grid: all cells from A1 on, rows padded to the same width.
        spec: the caller's wishes.

    Raises:
        UsageError: it has no header or no rows, or lacks a column.
    """
    if not any(any(cell.strip() for cell in row) for row in grid):
        raise UsageError(f"{spec.source} is empty.", "Name a worksheet that has a header and rows.")
    names = [text.strip() for text in grid[0]]
    body = list(enumerate(grid[1:], start=2))
    used = {place for _, row in body for place, cell in enumerate(row) if cell.strip()}
    taken = [place for place, column in enumerate(names) if column or place in used]
    # Unnamed columns are called by their place in the sheet, not by that among those taken.
    columns = match_columns([names[place] or f"column_{place + 1}" for place in taken], spec)
    cut = ((number, [row[place] for place in taken]) for number, row in body)
    filled = [(number, cells) for number, cells in cut if any(cell.strip() for cell in cells)]
    if not filled:
        raise UsageError(
            f"{spec.source} has a header and no rows.", "Add at least one row below the header."
        )
    warnings: list[str] = []

    def rows() -> Iterator[InputRow]:
        for number, cells in filled:
            yield InputRow(number, None, dict(zip(columns, cells, strict=True)))

    return InputTable(
        spec.name, spec.source, columns, checked_rows(rows(), spec, warnings), warnings
    )
