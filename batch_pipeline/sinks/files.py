"""The writers of deliverable files: beside the target, then renamed, so nobody sees half a file.

What belongs here: formats, and the formula guard of CSV. What does not: the meaning of rows,
reports.
"""

from __future__ import annotations

import csv
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from batch_pipeline.errors import UsageError

FORMATS = ("csv", "jsonl", "parquet", "sqlite")
TABLE = "items"

# A spreadsheet runs a cell that starts so; the apostrophe makes it text.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_BATCH_ROWS = 1000
_FILE_ENDINGS = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet", "sqlite": ".db"}

DeliverableRow = Mapping[str, Any]


def write_deliverables(
    folder: Path,
    stem: str,
    columns: Sequence[str],
    rows_factory: Callable[[], Iterable[DeliverableRow]],
    *,
    search_columns: Sequence[str],
    formats: Sequence[str] = FORMATS,
    bom: bool = False,
) -> list[Path]:
    """Write one table in several formats.

    Args:
        folder: created where absent, for its owner only.
        stem: file name without ending.
        columns: columns in order; a row may lack some and have others, which are left out.
        rows_factory: gives a fresh stream of the same rows for each format.
        search_columns: columns that SQLite indexes for full-text search.
        formats: of `FORMATS`.
        bom: whether CSV starts with a byte order mark, which older Excel needs.

    Returns:
        The files in the order of `formats`.

    Raises:
        UsageError: for an unknown format or a stem that is no file name.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UsageError(
            f"Unknown output format '{unknown[0]}'.", f"Choose among {', '.join(FORMATS)}."
        )
    if not stem or Path(stem).name != stem or stem.startswith("."):
        raise UsageError(f"'{stem}' is not a file name.", "Use letters, digits, - and _.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths: list[Path] = []
    for name in formats:
        path = folder / f"{stem}{_FILE_ENDINGS[name]}"
        match name:
            case "csv":
                write_csv(path, columns, rows_factory(), bom=bom)
            case "jsonl":
                write_jsonl(path, columns, rows_factory())
            case "parquet":
                write_parquet(path, columns, rows_factory())
            case _:
                write_sqlite(path, columns, rows_factory(), search_columns=search_columns)
        paths.append(path)
    return paths


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[DeliverableRow], *, bom: bool = False
) -> int:
    r"""Write CSV: UTF-8, every cell quoted, lines end in \n.

    Text that a spreadsheet would run as a formula gets an apostrophe in front.

    Returns:
        Rows written.
    """
    count = 0
    with (
        _beside(path) as temporary,
        temporary.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow([_guarded(name) for name in columns])
        for row in rows:
            writer.writerow([_guarded(_as_text(row.get(name))) for name in columns])
            count += 1
    return count


def write_jsonl(path: Path, columns: Sequence[str], rows: Iterable[DeliverableRow]) -> int:
    """Write one JSON object per line, UTF-8, with exactly `columns`; what is absent is null.

    Returns:
        Rows written.
    """
    count = 0
    with _beside(path) as temporary, temporary.open("wb") as stream:
        for row in rows:
            stream.write(_json_line(row, columns))
            count += 1
    return count


def write_parquet(path: Path, columns: Sequence[str], rows: Iterable[DeliverableRow]) -> int:
    """Write Parquet. A column is bool, int64 or float64 if all its values are, else text.

    Returns:
        Rows written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _spooled(path.parent, columns, rows) as spool, _beside(path) as temporary:
        arrow = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
        schema = pa.schema([pa.field(name, arrow[spool.types[name]]) for name in columns])
        records = spool.records()
        with pq.ParquetWriter(temporary, schema) as writer:
            while batch := list(itertools.islice(records, _BATCH_ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    return spool.count


def write_sqlite(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[DeliverableRow],
    *,
    search_columns: Sequence[str] = (),
    table: str = TABLE,
) -> int:
    """Write an SQLite database with one table and, for `search_columns`, its full-text index.

    Returns:
        Rows written.
    """
    import sqlite_utils

    with _spooled(path.parent, columns, rows) as spool, _beside(path) as temporary:
        database = sqlite_utils.Database(temporary)
        try:
            target = database.table(table)
            target.create(spool.types)
            target.insert_all(spool.records(), batch_size=_BATCH_ROWS)
            if search_columns:
                target.enable_fts(list(search_columns))
        finally:
            database.close()
    return spool.count


@dataclass(slots=True)
class _Spool:
    """Rows on disk, and the type of each column, which only the end of the stream tells."""

    types: dict[str, type]
    count: int
    stream: IO[bytes]

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows again, each value in its column's type."""
        self.stream.seek(0)
        for line in self.stream:
            record: dict[str, Any] = orjson.loads(line)
            yield {
                name: _as_text(value) if value is not None and self.types[name] is str else value
                for name, value in record.items()
            }


@contextmanager
def _spooled(
    folder: Path, columns: Sequence[str], rows: Iterable[DeliverableRow]
) -> Iterator[_Spool]:
    count = 0
    seen: dict[str, set[type]] = {name: set() for name in columns}
    with tempfile.TemporaryFile(dir=folder) as stream:
        for row in rows:
            stream.write(_json_line(row, columns))
            for name in columns:
                if (value := row.get(name)) is not None:
                    seen[name].add(type(value))
            count += 1
        yield _Spool({name: _common_type(kinds) for name, kinds in seen.items()}, count, stream)


def _common_type(kinds: set[type]) -> type:
    if len(kinds) == 1 and (kind := next(iter(kinds))) in (bool, int, float):
        return kind
    return float if kinds == {int, float} else str


def _json_line(row: DeliverableRow, columns: Sequence[str]) -> bytes:
    record = {name: row.get(name) for name in columns}
    return orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value, default=str).decode().strip('"')


def _guarded(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when the block ends well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
