"""Rows as every room sees them, and the checks that hold for a table of any format.

What belongs here: InputRow, InputTable, column matching, row checks, the content hash. What does
not: file formats.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import orjson

from batch_pipeline.errors import UsageError

# A giant cell of a refused row is kept only as far as a person needs to recognize it.
_SHOWN_CHARS = 200
_SHOWN_WARNINGS = 20


@dataclass(frozen=True, slots=True)
class InputRow:
    """One row of an input table.

    Attributes:
        number: 1-based position among the data rows, as a user counts them (the header is not
            counted).
        line: 1-based line in the file where the row starts, or None where lines mean nothing
            (Parquet, a folder).
        values: column name -> value; text columns are `str`.
        problem: why the row cannot be used, in plain words with the next step; empty for a good
            row.
    """

    number: int
    line: int | None
    values: Mapping[str, Any]
    problem: str = ""

    @property
    def place(self) -> str:
        """Where the row is, for messages: `row 3 (line 5)`."""
        return f"row {self.number}" + (f" (line {self.line})" if self.line else "")


@dataclass(slots=True)
class InputTable:
    """An input table, read lazily.

    Attributes:
        name: short name for batch ids and file names, for example `rows_150`.
        source: what the user named, for messages.
        columns: column names in order.
        rows: the rows; consumed once.
        warnings: filled while `rows` is consumed: plain sentences with row numbers.
        notes: filled like them: what is worth knowing and no trouble.
    """

    name: str
    source: str
    columns: Sequence[str]
    rows: Iterator[InputRow]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """What the caller wants of a table, whatever its format.

    Attributes:
        name: see `InputTable.name`.
        source: see `InputTable.source`.
        required_columns: columns without which the table as a whole is refused.
        optional_columns: columns that may be absent; where present, they get this spelling.
        id_column: the column of row ids, or None.
        max_cell_chars: longest cell in characters; a longer one makes its row a problem row.
    """

    name: str
    source: str
    required_columns: Sequence[str] = ()
    optional_columns: Sequence[str] = ()
    id_column: str | None = None
    max_cell_chars: int = 1_000_000

    @property
    def needed(self) -> list[str]:
        """The columns that must be there: the required ones and the id column."""
        extra = [self.id_column] if self.id_column else []
        return list(dict.fromkeys([*self.required_columns, *extra]))

    @property
    def spellings(self) -> dict[str, str]:
        """Matching key of a column -> the spelling the caller uses."""
        return {_key(name): name for name in [*self.optional_columns, *self.needed]}

    def spell(self, header: str) -> str:
        """A header as the caller spells it: case and outer spaces do not matter."""
        return self.spellings.get(_key(header), header.strip())


def canonical_hash(values: Mapping[str, Any]) -> str:
    """Hash of a row's content, for item ids: 32 hex digits.

    Order of columns, Unicode composition, line endings and outer spaces do not change it. Identical
    rows get the same hash; the caller tells them apart where it must.
    """
    canonical = orjson.dumps(
        {_nfc(key): _canonical(value) for key, value in values.items()},
        option=orjson.OPT_SORT_KEYS,
        default=str,
    )
    return hashlib.sha256(canonical).hexdigest()[:32]


def table_name(text: str) -> str:
    """`text` as a name that is safe in batch ids and file names."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:60] or "table"


def match_columns(headers: Sequence[str], spec: TableSpec) -> list[str]:
    """Column names in order, in the caller's spelling.

    Raises:
        UsageError: when two headers are the same or a needed column is missing.
    """
    columns: list[str] = []
    seen: dict[str, int] = {}
    for position, header in enumerate(headers, start=1):
        name = spec.spell(header) or f"column_{position}"
        if (first := seen.setdefault(_key(name), position)) != position:
            raise UsageError(
                f"{spec.source}: the column '{name}' occurs twice, as columns {first} and "
                f"{position}.",
                "Rename or remove one of them.",
            )
        columns.append(name)
    missing = [name for name in spec.needed if name not in columns]
    if missing:
        raise UsageError(*_missing_columns(missing, columns, spec))
    return columns


def checked_rows(
    rows: Iterable[InputRow], spec: TableSpec, warnings: list[str]
) -> Iterator[InputRow]:
    """`rows` with the checks that hold in every format: cell sizes, NUL characters, row ids.

    Args:
        rows: rows in file order; those that have a problem already pass unchanged.
        spec: the caller's wishes.
        warnings: receives sentences about empty and repeated ids.
    """
    said = FirstWarnings(warnings)
    with _SeenIds() as seen:
        for row in rows:
            if row.problem:
                yield row
                continue
            row = _check_cells(row, spec)
            if spec.id_column and not row.problem:
                row_id = str(row.values.get(spec.id_column) or "").strip()
                if not row_id:
                    said.add(
                        "rows without an id",
                        f"{row.place} has no '{spec.id_column}': a hash of its content stands in.",
                    )
                elif (first := seen.first_row(row_id, row.number)) != row.number:
                    said.add(
                        "repeated ids",
                        f"row {row.number} repeats the {spec.id_column} '{row_id[:80]}' of row "
                        f"{first}.",
                    )
            yield row
    said.finish()


def object_row(number: int, line: int | None, record: Any, spec: TableSpec) -> InputRow:
    """A row from a JSON-like object; anything else becomes a problem row."""
    row = InputRow(number, line, {})
    if not isinstance(record, dict):
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(record), "a single value")
        wrong = f"{row.place} is {kind}, not an object of columns."
        return replace(row, problem=f'{wrong} Write it as {{"column": value, ...}}.')
    spellings = spec.spellings
    values: dict[str, Any] = {}
    for key, value in record.items():
        name = spellings.get(_key(key), key.strip())
        values[name] = "" if value is None and _key(key) in spellings else plain_value(value)
    missing = [name for name in spec.required_columns if name not in values]
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing)
        return InputRow(number, line, values, f"{row.place} has no {listed}. Add it to the row.")
    return InputRow(number, line, values)


def plain_value(value: Any) -> Any:
    """`value` in JSON's types: dates and decimals become text, NaN None; bytes stay as they are."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain_value(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): plain_value(entry) for key, entry in value.items()}
    return value


def _check_cells(row: InputRow, spec: TableSpec) -> InputRow:
    for column, value in row.values.items():
        if isinstance(value, str):
            text = value
        elif isinstance(value, list | dict):
            text = orjson.dumps(value, default=str).decode()
        elif isinstance(value, bytes):
            kept = {**row.values, column: ""}
            problem = f"{row.place}, column '{column}' holds binary data. Store text there."
            return replace(row, values=kept, problem=problem)
        else:
            continue
        if len(text) > spec.max_cell_chars:
            problem = (
                f"{row.place}, column '{column}': the cell has {len(text):,} characters, the "
                "limit is "
                f"{spec.max_cell_chars:,}. Shorten it or split the row."
            )
            kept = {
                name: cell[:_SHOWN_CHARS]
                if isinstance(cell, str) and len(cell) > spec.max_cell_chars
                else cell
                for name, cell in row.values.items()
            }
            kept[column] = text[:_SHOWN_CHARS]
            return replace(row, values=kept, problem=problem)
        if "\0" in text:
            wrong = f"{row.place}, column '{column}' has a NUL character."
            return replace(row, problem=f"{wrong} Remove it, or export the file again.")
    return row


def _missing_columns(
    missing: Sequence[str], columns: Sequence[str], spec: TableSpec
) -> tuple[str, str]:
    word = "column" if len(missing) == 1 else "columns"
    wanted = ", ".join(f"'{name}'" for name in missing)
    found = ", ".join(f"'{name}'" for name in columns[:40]) or "none"
    keys = {_key(name): name for name in columns}
    near = {
        name: keys[match[0]]
        for name in missing
        if (match := difflib.get_close_matches(_key(name), list(keys), n=1, cutoff=0.6))
    }
    hints = [
        f"Rename '{found_name}' to '{name}' if that is the one."
        for name, found_name in near.items()
    ]
    return (
        f"{spec.source}: the required {word} {wanted} is missing; found: {found}."
        if len(missing) == 1
        else f"{spec.source}: the required {word} {wanted} are missing; found: {found}.",
        " ".join(hints) or f"Add the {word}, or check the delimiter with --delimiter.",
    )


def _key(name: str) -> str:
    return name.strip().casefold()


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _canonical(value: Any) -> Any:
    if isinstance(value, str):
        return _nfc(value)
    if isinstance(value, dict):
        return {_nfc(str(key)): _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    return value


class FirstWarnings:
    """Warnings, cut off after the first few of a kind: a bad file must not fill the memory.

    Args:
        warnings: receives the sentences.
    """

    def __init__(self, warnings: list[str]) -> None:
        self._warnings = warnings
        self._counts: dict[str, int] = {}

    def add(self, kind: str, sentence: str) -> None:
        """Note a `sentence`; `kind` names many of them, in the plural."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= _SHOWN_WARNINGS:
            self._warnings.append(sentence)

    def finish(self) -> None:
        """Say how many of each kind were cut off."""
        for kind, count in self._counts.items():
            if count > _SHOWN_WARNINGS:
                self._warnings.append(f"and {count - _SHOWN_WARNINGS:,} more {kind}.")


class _SeenIds:
    """Which row had an id first, in SQLite's private temporary file to keep memory flat."""

    def __enter__(self) -> _SeenIds:
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        self._db.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def first_row(self, row_id: str, number: int) -> int:
        """The number of the row that had `row_id` first; `number` itself if there was none."""
        added = self._db.execute(
            "INSERT OR IGNORE INTO seen VALUES (?, ?)", (row_id, number)
        ).rowcount
        if added:
            return number
        return int(
            self._db.execute("SELECT number FROM seen WHERE id = ?", (row_id,)).fetchone()[0]
        )
