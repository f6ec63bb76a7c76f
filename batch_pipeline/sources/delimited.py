"""CSV and TSV: records as the csv module reads them, with the lines where they start.

What belongs here: delimiters, headers, records that do not fit the header. What does not: encodings
(text.py).
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.table import (
    InputRow,
    InputTable,
    TableSpec,
    checked_rows,
    match_columns,
)
from batch_pipeline.sources.text import BlankLines, TextFile

_DELIMITERS = (",", ";", "\t", "|")
_NAMED = {"tab": "\t", r"\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
_SNIFF_CHARS = 1 << 16
_SNIFF_RECORDS = 50
# An unclosed quote makes the rest of the file one record. Beyond this size only its quotes are
# kept.
_RECORD_CHARS = 1 << 26

# The csv module's own limit would stop the whole file; ours refuses one row
# (TableSpec.max_cell_chars).
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def open_delimited(file: TextFile, spec: TableSpec, delimiter: str | None) -> InputTable:
    """Open a CSV or TSV file whose first record is its header.

    Args:
        file: the text.
        spec: the caller's wishes.
        delimiter: one character, or a name such as `tab`; None sniffs among `, ; tab |`.

    Raises:
        UsageError: for a file that is not a table, has no rows, or lacks a needed column.
    """
    with file.open() as stream:
        sample = stream.read(_SNIFF_CHARS)
    _refuse_other_kinds(sample, spec)
    chosen = _delimiter(delimiter) if delimiter else _sniff(sample, spec)
    with file.open() as stream:
        records = _records(stream, chosen)
        header = next(records, None)
        if header is None:
            raise UsageError(f"{spec.source} is empty.", "Name a file that has a header and rows.")
        columns = match_columns(header.cells, spec)
        if next(records, None) is None:
            raise UsageError(
                f"{spec.source} has a header and no rows.", "Add at least one row below the header."
            )
    warnings = [file.note] if file.note else []

    def rows() -> Iterator[InputRow]:
        blank = BlankLines()
        with file.open() as again:
            records = itertools.islice(_records(again, chosen, blank), 1, None)
            numbered = (_row(n, record, columns) for n, record in enumerate(records, start=1))
            yield from checked_rows(numbered, spec, warnings)
        blank.report(warnings)

    return InputTable(spec.name, spec.source, columns, rows(), warnings)


@dataclass(frozen=True, slots=True)
class _Record:
    cells: list[str]
    line: int
    lines: int
    chars: int
    unclosed: bool


class _Lines:
    """Feeds csv.reader, and knows where the current record began and if it was cut short."""

    def __init__(self, stream: Iterable[str]) -> None:
        self._stream = iter(stream)
        self.taken = 0
        self.record_lines = 0
        self.record_chars = 0
        self.last = ""
        self.ended_inside = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._stream, None)
        if line is None:
            self.ended_inside = self.record_lines > 0
            raise StopIteration
        if self.taken == 0:
            line = line.removeprefix("\ufeff")
        self.taken += 1
        self.record_lines += 1
        self.last = line
        self.record_chars += len(line)
        return line if self.record_chars <= _RECORD_CHARS else '"' * line.count('"')

    def start_record(self) -> None:
        self.record_lines = self.record_chars = 0


def _records(
    stream: Iterable[str], delimiter: str, blank: BlankLines | None = None
) -> Iterator[_Record]:
    lines = _Lines(stream)
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        first = lines.taken + 1
        lines.start_record()
        cells = next(reader, None)
        if cells is None:
            return
        if lines.record_lines == 1 and not lines.last.strip(" \r\n"):
            if blank:
                blank.add(first)
            continue
        yield _Record(cells, first, lines.record_lines, lines.record_chars, lines.ended_inside)


def _row(number: int, record: _Record, columns: Sequence[str]) -> InputRow:
    cells = record.cells
    values = dict(itertools.zip_longest(columns, cells[: len(columns)], fillvalue=""))
    row = InputRow(number, record.line, values)
    if record.unclosed:
        problem = (
            f"{row.place} opens a quote that is never closed, so the {record.lines:,} lines from "
            "there to the end of the file are one row. Close the quote, or double it where it is "
            "part of the text."
        )
    elif record.chars > _RECORD_CHARS:
        problem = (
            f"{row.place} goes on for {record.lines:,} lines and {record.chars:,} characters. "
            "Look for a quote that opens there and should not."
        )
    elif len(cells) != len(columns):
        problem = (
            f"{row.place} has {len(cells)} cells, the header has {len(columns)}. Put cells that "
            "hold the delimiter "
            "or a line break in quotes."
        )
    else:
        return row
    shown = {name: value[:1000] for name, value in values.items()}
    return InputRow(number, record.line, shown, problem)


def _delimiter(text: str) -> str:
    delimiter = _NAMED.get(text.lower(), text)
    if len(delimiter) != 1 or delimiter in '"\r\n\0 ':
        raise UsageError(
            f"The delimiter '{text}' is not one character.", "Use for example , ; | or tab."
        )
    return delimiter


def _sniff(sample: str, spec: TableSpec) -> str:
    if spec.source.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    needed = {name.casefold() for name in spec.needed}
    best, best_score = ",", (False, 0.0, 1)
    for delimiter in _DELIMITERS:
        records = list(
            itertools.islice(
                _records(io.StringIO(sample, newline=""), delimiter), _SNIFF_RECORDS + 1
            )
        )
        if len(records) > 2 and len(sample) == _SNIFF_CHARS:
            records.pop()  # the last one is cut in the middle
        header = records[0].cells if records else []
        if len(header) < 2:
            continue
        named = bool(needed) and needed <= {cell.strip().casefold() for cell in header}
        widths = Counter(len(record.cells) for record in records)
        score = (named, widths[len(header)] / len(records), len(header))
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _refuse_other_kinds(sample: str, spec: TableSpec) -> None:
    start = sample.lstrip("\ufeff \t\r\n")[:200].lower()
    if re.match(r'\{\s*"|\[\s*[{\[]', start):
        raise UsageError(
            f"{spec.source} holds JSON, not a delimited table.",
            "Name it .json, or .jsonl if one per line.",
        )
    if start.startswith(("<!doctype", "<html", "<?xml")):
        raise UsageError(
            f"{spec.source} holds a web page or XML, not a table.",
            "A download that needed a login often gives such a page: export the table again.",
        )
