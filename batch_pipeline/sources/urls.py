"""A list of web addresses as a table: each row is the page that an address leads to.

What belongs here: reading the list and making rows of pages. What does not: fetching (fetch/).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import tee
from pathlib import Path

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.pages import Page
from batch_pipeline.sources.table import (
    FirstWarnings,
    InputRow,
    InputTable,
    TableSpec,
    checked_rows,
    table_name,
)
from batch_pipeline.sources.text import TextFile, inspect_text

COLUMNS = ("id", "url", "title", "contents")

FetchPages = Callable[[Iterable[str]], Iterator[Page]]
"""URLs -> their pages, in the same order; a page that cannot be had has an `error`."""

Progress = Callable[[int, int], None]
"""Called with the pages done so far and the pages in all."""

_COMMENT = re.compile(r"(?:^|\s)#.*")
_WEB = re.compile(r"https?://[^\s/?#]+[^\s]*", re.IGNORECASE)
_LOGIN = re.compile(r"//[^/?#]*@")
_SHOWN_CHARS = 200


def open_urls(
    path: str | Path,
    *,
    fetch_pages: FetchPages,
    name: str | None = None,
    encoding: str | None = None,
    max_cell_chars: int = 1_000_000,
    progress: Progress | None = None,
) -> InputTable:
    """Open a text file of one URL per line as a stream of rows `id, url, title, contents`.

    Blank lines and what follows `#` (at the beginning or after a space) are ignored. A row's number
    is its line. A URL that comes again is kept once; a line that is no URL and a page that cannot
    be had are rows with a problem.

    Args:
        path: the list; `.gz` is unpacked.
        fetch_pages: gives the pages, in order.
        name: the table's name; default: from the file's name.
        encoding: of the file; default: UTF-8, or what its byte order mark says.
        max_cell_chars: longest article in characters.
        progress: told after each row.

    Raises:
        UsageError: the file cannot be read, or has no URLs.
    """
    path = Path(path)
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    spec = TableSpec(table_name(name or stem), str(path), max_cell_chars=max_cell_chars)
    file = inspect_text(path, spec.source, encoding)
    total = sum(1 for _ in _lines(file, []))
    if not total:
        raise UsageError(f"{path} has no URLs.", "Write one per line; # begins a comment.")
    warnings = [f"{spec.source} was {file.note}"] if file.note else []
    rows = _rows(file, fetch_pages, warnings)
    if progress is not None:
        rows = _counted(rows, total, progress)
    return InputTable(spec.name, spec.source, COLUMNS, checked_rows(rows, spec, warnings), warnings)


def _lines(file: TextFile, warnings: list[str]) -> Iterator[tuple[int, str]]:
    """Line numbers and what is written there, each text once."""
    seen: dict[str, int] = {}
    said = FirstWarnings(warnings)
    with file.open() as stream:
        for number, line in enumerate(stream, start=1):
            text = _COMMENT.sub("", line).strip("\ufeff \t\r\n")
            if not text:
                continue
            if (first := seen.setdefault(text, number)) != number:
                said.add(
                    "repeated URLs",
                    f"line {number} repeats the URL of line {first}, which is kept once: "
                    f"{text[:_SHOWN_CHARS]}",
                )
                continue
            yield number, text
    said.finish()


def _rows(file: TextFile, fetch_pages: FetchPages, warnings: list[str]) -> Iterator[InputRow]:
    # Two views of the list, one ahead of the other by as many lines as there are pages under way.
    lines, ahead = tee(_lines(file, warnings))
    pages = fetch_pages(text for _, text in ahead if _WEB.fullmatch(text))
    for number, text in lines:
        if _WEB.fullmatch(text):
            yield _row(number, text, next(pages))
        else:
            yield _no_url(number, text)


def _row(number: int, url: str, page: Page) -> InputRow:
    values = {"id": url, "url": url, "title": page.title, "contents": page.text}
    shown = _LOGIN.sub("//...@", url)[:_SHOWN_CHARS]
    problem = f"Row {number} ({shown}): {page.error}" if page.error else ""
    return InputRow(number, None, values, problem)


def _no_url(number: int, text: str) -> InputRow:
    shown = text[:_SHOWN_CHARS]
    values = {"id": shown, "url": shown, "title": "", "contents": ""}
    return InputRow(
        number,
        None,
        values,
        f"Row {number} ('{shown}') is no web address. Write it in full, for example "
        "https://example.com/page, or put # before it.",
    )


def _counted(rows: Iterator[InputRow], total: int, progress: Progress) -> Iterator[InputRow]:
    for done, row in enumerate(rows, start=1):
        progress(done, total)
        yield row
