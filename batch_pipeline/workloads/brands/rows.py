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

_HEADERS: Mapping[str, Sequence[Sequence[str]]] = {
    BRAND: (
        (
            "brand name", "brand", "نام برند", "برند", "نام تجاری",
            "varumärke", "varumärkesnamn", "marke", "markenname",
        ),
        ("name", "company", "company name", "نام"),
        ("شرکت", "نام شرکت", "företag", "firma"),
    ),
    WEBSITE: (
        (
            "website", "website url", "website address", "url", "site", "site url", "homepage",
            "web address", "brand website", "brand url", "official website",
            "وب سایت", "سایت", "آدرس وب سایت", "آدرس سایت", "آدرس اینترنتی", "وبگاه",
            "webbplats", "hemsida", "webbadress", "webseite", "webadresse",
        ),
        ("آدرس",),
    ),
    PARENT: (
        (
            "parent company", "parent company name", "parent", "parent name", "شرکت مادر",
            "نام شرکت مادر", "moderbolag", "muttergesellschaft", "mutterkonzern",
        ),
        (
            "owner", "brand owner", "holding", "holding company", "مالک", "هلدینگ",
            "ägare", "koncern", "konzern", "eigentümer",
        ),
        ("company", "company name", "شرکت", "نام شرکت", "företag", "firma"),
    ),
}  # fmt: skip
"""What columns are called that are read: names that say exactly that, then more general ones."""

_WRITTEN_HEADERS: Mapping[str, Sequence[str]] = {
    STATUS: ("status", "وضعیت"),
    OUTPUT: ("output path", "output", "outputs", "output paths", "output folder", "خروجی"),
}
"""And that are written: no other names, since what is called differently may be somebody's own."""

_FIRST_ONLY = 2
"""Rank of names that say brand of the first column alone: elsewhere they are a brand's owner."""

_CALLED = {BRAND: "Brand Name", WEBSITE: "Website", PARENT: "Parent Company"}
_IN_WORDS = {BRAND: "brand", WEBSITE: "website", PARENT: "parent company"}
_BETWEEN_NAMES = re.compile(r"[/|,،;()]")
_SHOWN_COLUMNS = 10
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
        by_place: of the first three, those whose header says nothing and whose place was taken.
        unread: columns that are none of these.
    """

    brand: str
    website: str
    parent: str
    status: str
    output: str
    by_place: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def inputs(self) -> Mapping[str, str]:
        """The columns that are read, by role."""
        return {BRAND: self.brand, WEBSITE: self.website, PARENT: self.parent}


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
    table.warnings += _about_columns(columns)
    rows = _brands(table.rows, columns, table.warnings)
    return InputTable(table.name, table.source, list(INPUT_COLUMNS), rows, table.warnings)


def find_columns(headers: Sequence[str], source: str) -> BrandColumns:
    """What each column of a table of brands is, by its header, else by its place.

    No column is two things. Places count where no header names the brands: otherwise a column with
    another name is somebody's own. Those of website and parent company count only if all known
    columns stand as in a sheet of A brand, B website, C parent company.

    Raises:
        UsageError: the first line is a brand, not a header; or no column holds the brands.
    """
    if any(_is_address(header) for header in headers):
        raise UsageError(
            f"{source}: its first line is no header, it holds the address "
            f"'{next(filter(_is_address, headers))[:_SHOWN_CHARS]}'.",
            "Put a line above it: Brand Name,Website,Parent Company,Status.",
        )
    written = _written_columns(headers)
    says = {header: _ranks(header, first=at == 0) for at, header in enumerate(headers)}
    named = _named_columns(says)
    placed = {} if BRAND in named else _placed_columns(says, written)
    found = {**placed, **named}
    if BRAND not in found:
        raise UsageError(
            f"{source}: no column is known to hold the brands; found: "
            f"{_listed(headers) or 'none'}.",
            "Write Brand Name above the brands.",
        )
    taken = {*found.values(), *written.values()}
    return BrandColumns(
        brand=found[BRAND],
        website=found.get(WEBSITE, ""),
        parent=found.get(PARENT, ""),
        # Never by their place: what stands there may be somebody's own, and they are written.
        status=written.get(STATUS, ""),
        output=written.get(OUTPUT, ""),
        by_place=tuple(placed),
        unread=tuple(name for name in headers if name not in taken),
    )


def _written_columns(headers: Sequence[str]) -> dict[str, str]:
    """The first column of each role that is written."""
    known = {comparable(name): role for role, names in _WRITTEN_HEADERS.items() for name in names}
    found: dict[str, str] = {}
    for header in headers:
        role = known.get(comparable(re.sub(r"[_\-]+", " ", header)), "")
        if role and role not in found:
            found[role] = header
    return found


def _ranks(header: str, *, first: bool) -> dict[str, int]:
    """The roles that a header says, and how exactly, from 0; names in one must all say it."""
    parts = [_spelled(part) for part in _BETWEEN_NAMES.split(header)]
    found = {}
    for role, known in _KNOWN.items():
        ranks = [known.get(part) for part in parts if part]
        if ranks and None not in ranks:
            found[role] = min(rank for rank in ranks if rank is not None)
    if not first and found.get(BRAND) == _FIRST_ONLY:
        del found[BRAND]
    return found


def _spelled(name: str) -> str:
    return "".join(comparable(re.sub(r"[_\-*:.]+", " ", name)).split())


_KNOWN = {
    role: {_spelled(name): rank for rank, names in enumerate(ranks) for name in names}
    for role, ranks in _HEADERS.items()
}


def _named_columns(says: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Of each role that is read, the first column whose header says it the most exactly."""
    found: dict[str, str] = {}
    for role in INPUT_COLUMNS:
        known = [name for name in says if role in says[name] and name not in found.values()]
        if known:
            found[role] = min(known, key=lambda name: says[name][role])
    return found


def _placed_columns(
    says: Mapping[str, Mapping[str, int]], written: Mapping[str, str]
) -> dict[str, str]:
    """Columns A to C whose headers say nothing, as far as the table is laid out that way."""
    headers = [*says]
    elsewhere = any(
        roles and not {*roles} & {*INPUT_COLUMNS[at : at + 1]}
        for at, roles in enumerate(says.values())
    )
    # Behind a column that is written nothing is where it belongs.
    end = min((headers.index(name) for name in written.values()), default=len(headers))
    return {
        role: header
        for role, header in zip(INPUT_COLUMNS, headers[:end], strict=False)
        if not says[header] and (role == BRAND or not elsewhere)
    }


def _about_columns(columns: BrandColumns) -> list[str]:
    """Warnings: what was taken by its place, and what is not read though something is missing."""
    found = columns.inputs
    said = []
    if columns.by_place:
        taken = ", ".join(
            f"{'ABC'[INPUT_COLUMNS.index(role)]} {_IN_WORDS[role]} ('{found[role][:_SHOWN_CHARS]}')"
            for role in columns.by_place
        )
        said.append(
            f"Columns were taken by their place, since no header says what they are: {taken}. "
            f"{_write_above(columns.by_place)} the right ones if these are not."
        )
    missing = [role for role in INPUT_COLUMNS if not found[role]]
    if missing and columns.unread:
        names = " or ".join(f"the {_IN_WORDS[role]}" for role in missing)
        count = len(columns.unread)
        said.append(
            f"No header names {names}, and {count:,} column{'s are' if count > 1 else ' is'} not "
            f"read: {_listed(columns.unread)}. {_write_above(missing)} the one that is meant."
        )
    return said


def _write_above(roles: Sequence[str]) -> str:
    return f"Write {' or '.join(_CALLED[role] for role in roles)} above"


def _listed(headers: Sequence[str]) -> str:
    shown = ", ".join(f"'{name[:_SHOWN_CHARS]}'" for name in headers[:_SHOWN_COLUMNS])
    return shown + (" …" if len(headers) > _SHOWN_COLUMNS else "")


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
        cells = {role: _cell(row, column) for role, column in columns.inputs.items()}
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
