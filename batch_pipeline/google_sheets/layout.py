"""Texts of a worksheet: what two spellings have in common, and what a cell can hold.

What belongs here: pure functions over texts. What does not: calls, and what columns mean.
"""

from __future__ import annotations

import unicodedata

MOST_CHARS = 50_000
"""Of a cell; Google refuses the whole request for a longer one."""

_CUT = " […]"


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
