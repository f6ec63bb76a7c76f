"""How a table lies in a worksheet: header, columns, and texts as cells hold them.

What belongs here: pure functions over cells. What does not: calls, and what columns mean.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

MOST_CHARS = 50_000
"""Of a cell; Google refuses the whole request for a longer one."""

_CUT = " […]"


@dataclass(frozen=True, slots=True)
class SheetLayout:
    """Where header and columns are.

    Attributes:
        columns: names by position from column A, whatever the header says; empty takes the names
            from the header. Columns beyond them go by their header.
        header_rows: rows above the data; the first of them is the header.
    """

    columns: tuple[str, ...] = ()
    header_rows: int = 1

    def names(self, header: Sequence[str]) -> list[str]:
        """Column names from A on; empty where a column has none."""
        read = [text.strip() for text in header] if self.header_rows else []
        return [*self.columns, *read[len(self.columns) :]]


def same_name(name: str) -> str:
    """What two spellings of a column's name have in common: case and outer spaces do not count."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def same_text(text: str) -> str:
    """What two spellings of a key have in common: composition and the number of spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def cell_text(text: str) -> str:
    """`text` as a cell keeps it: line ends of one kind, valid Unicode, at most MOST_CHARS long."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    text = text.encode("utf-8", "replace").decode("utf-8")
    # Google counts UTF-16 units, of which a character has at most two.
    if len(text) * 2 <= MOST_CHARS or _units(text) <= MOST_CHARS:
        return text
    room = MOST_CHARS - len(_CUT)
    cut = text.encode("utf-16-le")[: 2 * room].decode("utf-16-le", "ignore")
    return cut + _CUT


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2
