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

FORMATS = ("csv", "json", "jsonl", "parquet", "sqlite")
DEFAULT_FORMATS = ("csv", "jsonl", "parquet", "sqlite")
TABLE = "items"

# A spreadsheet runs a cell that starts so; the apostrophe makes it text.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_BATCH_ROWS = 1000
_SQLITE_TYPES: dict[type, type] = {list: str}
_FILE_ENDINGS = {
    "csv": ".csv",
    "json": ".json",
    "jsonl": ".jsonl",
    "parquet": ".parquet",
    "sqlite": ".db",
}
LIST_SEPARATOR = "; "
"""Between the texts of a list in CSV; the other formats keep the list."""

DeliverableRow = Mapping[str, Any]


def write_deliverables(
    folder: Path,
    stem: str,
    columns: Sequence[str],
    rows_factory: Callable[[], Iterable[DeliverableRow]],
    *,
    search_columns: Sequence[str],
    formats: Sequence[str] = DEFAULT_FORMATS,
    bom: bool = False,
) -> list[Path]:
    """Write one table in several formats.

    Args:
        folder: created where absent, for its owner only.
        stem: file name without ending.
        columns: columns in order; a row may lack some and have others, which are left out.
        rows_factory: gives the stream of rows.
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
    paths = [folder / f"{stem}{_FILE_ENDINGS[name]}" for name in formats]
    # Rows come from a database: they are read once, and every format is written from the spool.
    with _spooled(folder, columns, rows_factory()) as spool:
        for name, path in zip(formats, paths, strict=True):
            match name:
                case "csv":
                    write_csv(path, columns, spool.rows(), bom=bom)
                case "json":
                    write_json(path, columns, spool.rows())
                case "jsonl":
                    write_jsonl(path, columns, spool.rows())
                case "parquet":
                    _write_parquet(path, spool)
                case _:
                    _write_sqlite(path, spool, search_columns, TABLE)
    return paths


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[DeliverableRow], *, bom: bool = False
) -> int:
    r"""Write CSV: UTF-8, every cell quoted, lines end in \n.

    Text that a spreadsheet would run as a formula gets an apostrophe in front. Lists of texts are
    joined by "; ".

    Returns:
        Rows written.
    """
    count = 0
    with (
        replaced_file(path) as temporary,
        temporary.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow([_guarded(name) for name in columns])
        for row in rows:
            writer.writerow([_guarded(_as_cell(row.get(name))) for name in columns])
            count += 1
    return count


def write_json(path: Path, columns: Sequence[str], rows: Iterable[DeliverableRow]) -> int:
    """Write one JSON array of objects with exactly `columns`, indented, UTF-8.

    Returns:
        Rows written.
    """
    count = 0
    with replaced_file(path) as temporary, temporary.open("wb") as stream:
        for row in rows:
            stream.write(b",\n  " if count else b"[\n  ")
            # Line breaks inside of texts are escaped, so that these are all the layout's own.
            stream.write(_json_object(row, columns, orjson.OPT_INDENT_2).replace(b"\n", b"\n  "))
            count += 1
        stream.write(b"\n]\n" if count else b"[]\n")
    return count


def write_jsonl(path: Path, columns: Sequence[str], rows: Iterable[DeliverableRow]) -> int:
    """Write one JSON object per line, UTF-8, with exactly `columns`; what is absent is null.

    Returns:
        Rows written.
    """
    count = 0
    with replaced_file(path) as temporary, temporary.open("wb") as stream:
        for row in rows:
            stream.write(_json_object(row, columns, orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def write_parquet(path: Path, columns: Sequence[str], rows: Iterable[DeliverableRow]) -> int:
    """Write Parquet. A column is bool, int64, float64 or a list of texts if all its values are.

    Every other column is text.

    Returns:
        Rows written.
    """
    with _spooled(path.parent, columns, rows) as spool:
        _write_parquet(path, spool)
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

    Lists are JSON text, which `json_each` reads.

    Returns:
        Rows written.
    """
    with _spooled(path.parent, columns, rows) as spool:
        _write_sqlite(path, spool, search_columns, table)
    return spool.count


@dataclass(slots=True)
class _Spool:
    """Rows on disk, and the type of each column, which only the end of the stream tells."""

    types: dict[str, type]
    count: int
    stream: IO[bytes]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows again, as they came."""
        self.stream.seek(0)
        for line in self.stream:
            yield orjson.loads(line)

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows again, each value in its column's type."""
        for record in self.rows():
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
            stream.write(_json_object(row, columns, orjson.OPT_APPEND_NEWLINE))
            for name in columns:
                if (value := row.get(name)) is not None:
                    seen[name].add(_kind(value))
            count += 1
        yield _Spool({name: _common_type(kinds) for name, kinds in seen.items()}, count, stream)


def _write_parquet(path: Path, spool: _Spool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = {
        bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(),
        list: pa.list_(pa.string()),
    }  # fmt: skip
    schema = pa.schema([pa.field(name, arrow[kind]) for name, kind in spool.types.items()])
    records = spool.records()
    with replaced_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while batch := list(itertools.islice(records, _BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _write_sqlite(path: Path, spool: _Spool, search_columns: Sequence[str], table: str) -> None:
    import sqlite_utils

    with replaced_file(path) as temporary:
        database = sqlite_utils.Database(temporary)
        try:
            target = database.table(table)
            types = {name: _SQLITE_TYPES.get(kind, kind) for name, kind in spool.types.items()}
            target.create(types)
            target.insert_all(spool.records(), batch_size=_BATCH_ROWS)
            if search_columns:
                target.enable_fts(list(search_columns))
        finally:
            database.close()


def _common_type(kinds: set[type]) -> type:
    if len(kinds) == 1 and (kind := next(iter(kinds))) in (bool, int, float, list):
        return kind
    return float if kinds == {int, float} else str


def _kind(value: Any) -> type:
    """The value's type; lists of anything but texts are text."""
    if isinstance(value, list) and not all(isinstance(entry, str) for entry in value):
        return str
    return type(value)


def _json_object(row: DeliverableRow, columns: Sequence[str], layout: int) -> bytes:
    record = {name: row.get(name) for name in columns}
    return orjson.dumps(record, default=str, option=layout)


def _as_cell(value: Any) -> str:
    """A value as a cell of a spreadsheet."""
    return LIST_SEPARATOR.join(value) if _kind(value) is list else _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value, default=str).decode().strip('"')


def _guarded(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when the block ends well.

    It is for its owner only.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
