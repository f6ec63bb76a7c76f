"""XLSX workbooks: a worksheet as a table of texts.

What belongs here: openpyxl's reader, and its values as texts. What does not: header and rows of a
worksheet, which are those of Google Sheets (sheets.py); the old XLS.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.sheets import grid_table
from batch_pipeline.sources.table import InputRow, InputTable, TableSpec, table_name

if TYPE_CHECKING:
    from openpyxl import Workbook

SUFFIX = ".xlsx"

_MAX_BYTES = 512 << 20
_MAX_CELLS = 10_000_000
# What a formula cell without a stored result stands for, until its row is known.
_UNCALCULATED = "\0uncalculated"


def open_excel(
    path: str | Path,
    *,
    worksheet: str = "",
    name: str | None = None,
    required_columns: Sequence[str] = (),
    optional_columns: Sequence[str] = (),
    id_column: str | None = None,
    max_cell_chars: int = 1_000_000,
) -> InputTable:
    """Open a worksheet of an XLSX workbook.

    Cells become text: `1` and not `1.0`, dates as `2026-11-21`, `TRUE` and `FALSE`. Of formulas,
    the result that the spreadsheet program stored is taken; a cell that has none makes its row a
    problem row. A row's number is its number in the sheet. Empty rows are skipped.

    Args:
        path: the workbook.
        worksheet: its title; empty is the first one.
        name: see `open_table`.
        required_columns: see `open_table`.
        optional_columns: see `open_table`.
        id_column: see `open_table`.
        max_cell_chars: see `open_table`.

    Raises:
        UsageError: when the workbook as a whole cannot be used.
    """
    path = Path(path)
    spec = TableSpec(
        name=table_name(name or path.stem),
        source=f"{path}, worksheet '{worksheet}'" if worksheet else str(path),
        required_columns=required_columns,
        optional_columns=optional_columns,
        id_column=id_column,
        max_cell_chars=max_cell_chars,
    )
    _check_file(path)
    with _opened(path, results=True) as results, _opened(path, results=False) as formulas:
        grid = _grid(_sheet(results, worksheet, path), _sheet(formulas, worksheet, path), spec)
    if grid and _UNCALCULATED in grid[0]:
        raise UsageError(
            f"{spec.source}: the header has a formula without a stored result.",
            "Open the workbook in a spreadsheet program and save it.",
        )
    table = grid_table(grid, spec)
    table.rows = _calculated(table.rows)
    return table


def _check_file(path: Path) -> None:
    """Refuse what is no workbook, before anything is unpacked."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", "Name a file.")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
            is_workbook = any(part.filename.startswith("xl/") for part in archive.infolist())
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.", "Check the path.") from None
    except zipfile.BadZipFile:
        raise UsageError(
            f"{path} is not an XLSX workbook.",
            "Save it as .xlsx without a password (an old .xls or a CSV file is something else).",
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Check the file.") from None
    if not is_workbook:
        raise UsageError(f"{path} is an archive and no workbook.", "Save it as .xlsx.")
    if size > _MAX_BYTES:
        raise UsageError(
            f"{path} has {size >> 20:,} MB unpacked; up to {_MAX_BYTES >> 20} MB are read.",
            "Save its worksheet as CSV.",
        )


@contextmanager
def _opened(path: Path, *, results: bool) -> Iterator[Workbook]:
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=results, keep_links=False)
    except Exception as error:
        # openpyxl raises whatever its parts stumble over.
        raise _broken(path, error) from error
    try:
        yield book
    finally:
        book.close()


def _sheet(book: Workbook, worksheet: str, path: Path) -> Any:
    titles = [sheet.title for sheet in book.worksheets]
    if worksheet and worksheet not in titles:
        raise UsageError(
            f"{path} has no worksheet '{worksheet}'.",
            "It has: " + ", ".join(f"'{title}'" for title in titles) + ".",
        )
    if not titles:
        raise UsageError(f"{path} has no worksheets.", "Save it with one.")
    sheet: Any = book[worksheet] if worksheet else book.worksheets[0]
    # The size that a program wrote down may be wrong.
    sheet.reset_dimensions()
    return sheet


def _grid(results: Any, formulas: Any, spec: TableSpec) -> list[list[str]]:
    grid: list[list[str]] = []
    count = 0
    try:
        pairs = zip(
            results.iter_rows(values_only=True), formulas.iter_rows(values_only=True), strict=True
        )
        for values, written in pairs:
            row = [_text(value, what) for value, what in zip(values, written, strict=True)]
            while row and not row[-1]:
                row.pop()
            count += len(row)
            if count > _MAX_CELLS:
                break
            grid.append(row)
    except Exception as error:
        raise _broken(Path(spec.source), error) from error
    if count > _MAX_CELLS:
        raise UsageError(
            f"{spec.source} has more than {_MAX_CELLS:,} cells.", "Save the worksheet as CSV."
        )
    width = max(map(len, grid), default=0)
    return [row + [""] * (width - len(row)) for row in grid]


def _text(value: Any, written: Any) -> str:
    if value is None:
        return "" if written is None else _UNCALCULATED
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime):
        midnight = value.time() == time()
        return value.date().isoformat() if midnight else value.isoformat(" ", "seconds")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)


def _calculated(rows: Iterator[InputRow]) -> Iterator[InputRow]:
    """Rows, with those that lack a formula's result as problems."""
    for row in rows:
        missing = [name for name, value in row.values.items() if value == _UNCALCULATED]
        if not missing:
            yield row
            continue
        values = {name: "" if name in missing else value for name, value in row.values.items()}
        yield replace(
            row,
            values=values,
            problem=f"{row.place}, column '{missing[0]}' is a formula without a stored result. "
            "Open the workbook in a spreadsheet program and save it.",
        )


def _broken(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{path} is not a readable XLSX workbook ({type(error).__name__}).",
        "Open it in a spreadsheet program and save it again as .xlsx.",
    )
