"""Brands in: a table with names, addresses and owners, by its headers or by its columns' places.

What belongs here: which column is what, what a cell may hold, warnings about repeated brands. What
does not: file formats (sources/), what is done with a brand that is known already (registry.py).

The system writes status and output path itself (columns D and E, by their headers), so that they
are no part of a row: the ledger is the truth about what a brand came to, and a table is the same
after a write-back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.excel import SUFFIX, open_excel
from batch_pipeline.sources.files import open_table
from batch_pipeline.sources.table import FirstWarnings, InputRow, InputTable
from batch_pipeline.workloads.brands.text import comparable, line

BRAND, WEBSITE, PARENT = "brand_name", "website", "parent_company"
INPUT_COLUMNS = (BRAND, WEBSITE, PARENT)
STATUS, OUTPUT = "status", "output"

MAX_NAME_CHARS = 200
MAX_URL_CHARS = 2_000

_HEADERS: Mapping[str, Sequence[str]] = {
    BRAND: ("brand name", "brand", "name", "company", "نام برند", "برند", "نام"),
    WEBSITE: ("website", "web site", "url", "site", "brand website", "وب سایت", "سایت", "آدرس"),
    PARENT: ("parent company", "parent", "owner", "شرکت مادر", "شرکت", "مالک", "هلدینگ"),
    STATUS: ("status", "وضعیت"),
    OUTPUT: ("output path", "output", "outputs", "output paths", "output folder", "خروجی"),
}
_SHOWN_CHARS = 80

OpenSource = Callable[[str, Mapping[str, Any]], InputTable]
"""Opens a table of any kind by what the user named; `options` as of `open_brands`."""


@dataclass(frozen=True, slots=True)
class BrandColumns:
    """Which of a table's columns is what, by the table's own names; empty for a missing one.

    Attributes:
        brand: names of brands.
        website: their addresses.
        parent: their owners.
        status: where the system writes how a brand ended.
        output: where it writes what came of it.
        by_place: whether the headers said nothing and columns A to C were taken.
    """

    brand: str
    website: str
    parent: str
    status: str
    output: str
    by_place: bool


def open_file(source: str, options: Mapping[str, Any]) -> InputTable:
    """Open a table file of any format; of a workbook, the worksheet that `options` names."""
    path = Path(source).expanduser()
    if path.name.lower().endswith(SUFFIX):
        return open_excel(path, worksheet=options.get("worksheet") or "", name=options.get("name"))
    return open_table(
        path,
        name=options.get("name"),
        encoding=options.get("encoding"),
        delimiter=options.get("delimiter"),
    )


def open_brands(
    source: str, options: Mapping[str, Any], open_source: OpenSource = open_file
) -> InputTable:
    """Open a table of brands.

    Rows have `brand_name`, `website` and `parent_company`, as written (NFC; ZWNJ and letters are
    kept), a missing one empty. Rows without a brand are left out. Their numbers are those of the
    source, so that a sheet's rows are found again.

    Args:
        source: a file, or what `open_source` understands.
        options: `name`, `encoding` and `delimiter`, of a workbook `worksheet`; what is absent or
            None is found out.
        open_source: opens it; sheets come in by another one.

    Raises:
        UsageError: the source as a whole cannot be used.
    """
    table = open_source(source, options)
    columns = find_columns(table.columns, table.source)
    if columns.by_place:
        shown = ", ".join(f"'{name}'" for name in table.columns[:3])
        table.warnings.append(
            "No header names the brands: columns were taken by their place, A brand, B website, "
            f"C parent company ({shown})."
        )
    rows = _brands(table.rows, columns, table.warnings)
    return InputTable(table.name, table.source, list(INPUT_COLUMNS), rows, table.warnings)


def find_columns(headers: Sequence[str], source: str) -> BrandColumns:
    """What each column of a table of brands is, by its header, else by its place.

    Raises:
        UsageError: the first line is a brand, not a header.
    """
    if any(_is_address(header) for header in headers):
        raise UsageError(
            f"{source}: its first line is no header, it holds the address "
            f"'{next(filter(_is_address, headers))[:_SHOWN_CHARS]}'.",
            "Put a line above it: Brand Name,Website,Parent Company,Status.",
        )
    named = _by_header(headers)
    by_place = BRAND not in named
    found = dict(zip(INPUT_COLUMNS, headers, strict=False)) if by_place else named
    return BrandColumns(
        brand=found[BRAND],
        website=found.get(WEBSITE, ""),
        parent=found.get(PARENT, ""),
        # Never by their place: what stands there may be somebody's own, and they are written.
        status=named.get(STATUS, ""),
        output=named.get(OUTPUT, ""),
        by_place=by_place,
    )


def _by_header(headers: Sequence[str]) -> dict[str, str]:
    """The first column of each role that a header names."""
    known = {comparable(name): role for role, names in _HEADERS.items() for name in names}
    found: dict[str, str] = {}
    for header in headers:
        role = known.get(comparable(re.sub(r"[_\-]+", " ", header)), "")
        if role and role not in found:
            found[role] = header
    return found


def brand_key(values: Mapping[str, Any]) -> str:
    """Under which rows of one brand are found, however it is spelled."""
    return comparable(str(values.get(BRAND) or ""))


def _brands(
    rows: Iterator[InputRow], columns: BrandColumns, warnings: list[str]
) -> Iterator[InputRow]:
    said = FirstWarnings(warnings)
    # brand -> where it was first, and as what
    seen: dict[str, tuple[InputRow, str]] = {}
    for row in rows:
        cells = {
            BRAND: _cell(row, columns.brand),
            WEBSITE: _cell(row, columns.website),
            PARENT: _cell(row, columns.parent),
        }
        if row.problem:
            yield replace(row, values=cells)
            continue
        if not cells[BRAND]:
            if cells[WEBSITE] or cells[PARENT]:
                said.add("rows without a brand", f"{row.place} has no brand and is left out.")
            continue
        cells[WEBSITE], ignored = _website(cells[WEBSITE])
        if ignored:
            said.add("ignored websites", f"{row.place}: {ignored}")
        made = replace(row, values=cells, problem=_problem(row, cells))
        key = comparable(cells[BRAND])
        first = seen.setdefault(key, (made, cells[BRAND]))
        if first[0] is not made:
            said.add("repeated brands", _twice(*first, made, cells[BRAND]))
        yield made
    said.finish()


def _twice(first: InputRow, written: str, row: InputRow, name: str) -> str:
    same = first.values == row.values
    shown = f"'{written[:_SHOWN_CHARS]}'"
    if name != written:
        shown += f" (also written '{name[:_SHOWN_CHARS]}')"
    how = "the same entries" if same else "other entries"
    return (
        f"{first.place} and {row.place} are both the brand {shown}, with {how}: both are kept, "
        "each with its own results."
    )


def _cell(row: InputRow, column: str) -> str:
    value = row.values.get(column) if column else None
    return "" if value is None else line(str(value))


def _website(text: str) -> tuple[str, str]:
    """An address that can be used, or empty and why."""
    if not text:
        return "", ""
    if not _is_address(text):
        return "", (
            f"the website '{text[:_SHOWN_CHARS]}' does not begin with http:// or https:// and is "
            "ignored."
        )
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return "", f"the website '{text[:_SHOWN_CHARS]}' is no web address and is ignored."
    if url.userinfo:
        # not repeated: it holds somebody's password
        return "", "the website holds a user name or password and is ignored."
    if not url.host or len(text) > MAX_URL_CHARS or re.search(r"\s", text):
        return "", f"the website '{text[:_SHOWN_CHARS]}' is no web address and is ignored."
    return text, ""


def _problem(row: InputRow, cells: Mapping[str, str]) -> str:
    for name, what in ((BRAND, "brand"), (PARENT, "parent company")):
        if len(cells[name]) > MAX_NAME_CHARS:
            return (
                f"{row.place}: the {what} '{cells[name][:_SHOWN_CHARS]}…' has "
                f"{len(cells[name]):,} characters, the limit is {MAX_NAME_CHARS}. Give the name "
                "alone."
            )
    return ""


def _is_address(text: str) -> bool:
    return text.strip().casefold().startswith(("http://", "https://"))
