"""A1 notation: which cells of which worksheet a range means. What does not live here: the cells."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"(?:'((?:[^']|'')*)'|([^'!]+))(?:!(.+))?", re.DOTALL)
_CORNERS = re.compile(r"([A-Za-z]*)(\d*)(?::([A-Za-z]*)(\d*))?")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Area:
    """Cells of a worksheet, from 1; an end that is not said is None.

    Attributes:
        title: the worksheet; empty where only cells were named.
    """

    title: str
    top: int = 1
    left: int = 1
    bottom: int | None = None
    right: int | None = None


def parse(text: str, titles: list[str]) -> Area | None:
    """Read a range; None where it cannot be one of these worksheets."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    quoted, plain, cells = match.groups()
    title = quoted.replace("''", "'") if quoted is not None else plain
    if title not in titles:
        # `A1:B2` alone is of the first worksheet
        title, cells = (titles[0], text) if cells is None and quoted is None else ("", cells)
    if not title:
        return None
    if cells is None:
        return Area(title)
    corners = _CORNERS.fullmatch(cells)
    if corners is None or not any(corners.groups()):
        return None
    left, top, right, bottom = corners.groups()
    alone = right is None and bottom is None
    first_row, first_column = int(top or 1), column_number(left) if left else 1
    if alone and left and top:
        return Area(title, first_row, first_column, first_row, first_column)
    return Area(
        title,
        first_row,
        first_column,
        int(bottom) if bottom else None,
        column_number(right) if right else None,
    )


def column_number(letters: str) -> int:
    """A is 1, AA is 27."""
    number = 0
    for letter in letters.upper():
        number = number * 26 + ord(letter) - 64
    return number


def column_letters(number: int) -> str:
    """1 is A, 27 is AA."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def cell_name(row: int, column: int) -> str:
    """Row 2, column 3 is C2."""
    return f"{column_letters(column)}{row}"


def name_of(title: str, top: int, left: int, bottom: int, right: int) -> str:
    """A range as replies write it."""
    shown = title if _PLAIN.fullmatch(title) else "'" + title.replace("'", "''") + "'"
    first, last = cell_name(top, left), cell_name(bottom, right)
    return f"{shown}!{first}" + (f":{last}" if last != first else "")
