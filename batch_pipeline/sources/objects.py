"""JSON and JSONL: rows that come as objects.

What belongs here: finding the list of rows and where the text is broken. What does not: encodings
(text.py).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.table import (
    InputRow,
    InputTable,
    TableSpec,
    checked_rows,
    match_columns,
    object_row,
)
from batch_pipeline.sources.text import BlankLines, TextFile

ROW_KEYS = ("rows", "items", "jobs", "topics")
_MAX_JSON_BYTES = 512 << 20
_COLUMN_ROWS = 1000


def open_json(file: TextFile, spec: TableSpec) -> InputTable:
    """Open a JSON file: a list of objects, or an object with that list under one of `ROW_KEYS`.

    Raises:
        UsageError: for broken JSON (with line and column), no list of rows, no rows, a missing
            column, or a file over 512 MB (JSON is read whole; JSONL is not).
    """
    if file.size > _MAX_JSON_BYTES:
        raise UsageError(
            f"{spec.source} has {file.size >> 20:,} MB, and JSON is read whole up to "
            f"{_MAX_JSON_BYTES >> 20} MB.",
            "Store it as JSONL, one object per line.",
        )
    records = _record_list(_parse_whole(file, spec), spec)
    if not records:
        raise UsageError(f"{spec.source} has no rows.", "Add at least one object to its list.")
    columns = _columns(records, spec)
    warnings = [file.note] if file.note else []
    rows = (object_row(n, None, record, spec) for n, record in enumerate(records, start=1))
    return InputTable(spec.name, spec.source, columns, checked_rows(rows, spec, warnings), warnings)


def open_jsonl(file: TextFile, spec: TableSpec) -> InputTable:
    """Open a JSONL file, one object per line; a line that is none becomes a problem row.

    Raises:
        UsageError: for a JSON array, no object in the first 1,000 lines, or a missing column.
    """
    first = [record for _, record in itertools.islice(_lines(file, BlankLines()), _COLUMN_ROWS)]
    with file.open() as stream:
        array = stream.read(4096).lstrip("\ufeff \t\r\n").startswith("[")
    is_list = array and isinstance(first[0], json.JSONDecodeError)
    if is_list or not any(isinstance(record, dict) for record in first):
        hint = (
            "It looks like one JSON list: name it .json." if array else "Write one object a line."
        )
        raise UsageError(f"{spec.source} is not JSONL, which has one object per line.", hint)
    columns = _columns(first, spec)
    warnings = [file.note] if file.note else []

    def rows() -> Iterator[InputRow]:
        blank = BlankLines()
        yield from checked_rows(_line_rows(file, spec, blank), spec, warnings)
        blank.report(warnings)

    return InputTable(spec.name, spec.source, columns, rows(), warnings)


def parse_json(text: str, source: str) -> Any:
    """`text` as JSON.

    Raises:
        UsageError: naming line and column where it is broken.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UsageError(
            f"{source} is not valid JSON: {error.msg} at {place}.",
            "Mend it there, or export the file again.",
        ) from error


def _parse_whole(file: TextFile, spec: TableSpec) -> Any:
    with file.open() as stream:
        return parse_json(stream.read().removeprefix("\ufeff"), spec.source)


def _record_list(data: Any, spec: TableSpec) -> list[Any]:
    if isinstance(data, list):
        return data
    if isinstance(data, dict):
        for key in ROW_KEYS:
            if isinstance(data.get(key), list):
                found: list[Any] = data[key]
                return found
        keys = ", ".join(f"'{key}'" for key in list(data)[:10]) or "none"
        raise UsageError(
            f"{spec.source} is an object without a list of rows; its keys: {keys}.",
            'Use a list of objects, or {"rows": [...]}.',
        )
    raise UsageError(f"{spec.source} holds no list of rows.", "Use a list of objects.")


def _columns(records: list[Any], spec: TableSpec) -> list[str]:
    names: dict[str, str] = {}
    for record in records[:_COLUMN_ROWS]:
        if isinstance(record, dict):
            for key in record:
                names.setdefault(key.strip().casefold(), spec.spell(key))
    return match_columns(list(names.values()), spec)


def _lines(file: TextFile, blank: BlankLines) -> Iterator[tuple[int, Any]]:
    """Line number and parsed line; what does not parse comes as the error."""
    with file.open() as stream:
        for number, line in enumerate(stream, start=1):
            text = line.strip("\ufeff \t\r\n")
            if not text:
                blank.add(number)
                continue
            try:
                yield number, orjson.loads(text)
            except json.JSONDecodeError as error:
                yield number, error


def _line_rows(file: TextFile, spec: TableSpec, blank: BlankLines) -> Iterator[InputRow]:
    for number, (line, record) in enumerate(_lines(file, blank), start=1):
        if isinstance(record, json.JSONDecodeError):
            row = InputRow(number, line, {})
            wrong = f"{record.msg} at column {record.colno}"
            yield replace(row, problem=f"{row.place} is not valid JSON: {wrong}. Mend the line.")
        else:
            yield object_row(number, line, record, spec)
