"""Persian and Latin text: compared without the differences that nobody sees, shown as written.

What belongs here: pure functions on text. What does not: what a text is about.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from batch_pipeline.workloads.text import one_line

Direction = Literal["rtl", "ltr"]

# Overrides and isolates turn what follows around: a name may not bring them along.
_BIDI_CONTROLS = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
_JOINERS = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad\u0640]")
_VOWEL_MARKS = re.compile("[\u064b-\u0652\u0670]")
_INSIDE_ARABIC = re.compile(r"(?<=[\u0600-\u06ff])\s+(?=[\u0600-\u06ff])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BLANK_LINES = re.compile(r"\n\s*\n+")

# Arabic keyboards write these for Persian letters.
_LETTERS = str.maketrans(
    {
        "ي": "ی", "ى": "ی", "ك": "ک", "ة": "ه", "ۀ": "ه", "أ": "ا", "إ": "ا", "ٱ": "ا", "ؤ": "و",
        "ٔ": None,
    }
)  # fmt: skip
_DIGITS = str.maketrans("۰۱۲۳۴۵۶۷۸۹٠١٢٣٤٥٦٧٨٩٫٬٪", "01234567890123456789.,%")

_PERSIAN_SHARE = 1 / 3
"""Persian sentences are full of Latin names: from this share of letters on, a text is Persian."""


def as_written(value: str) -> str:
    """`value` as NFC, without control characters and bidi controls; ZWNJ and letters stay."""
    text = unicodedata.normalize("NFC", value.replace("\r\n", "\n").replace("\r", "\n"))
    return _CONTROLS.sub(" ", _BIDI_CONTROLS.sub("", text)).strip(" \t\n\u00a0\ufeff\u200b\u200c")


def line(value: str) -> str:
    """`value` as written, on one line."""
    return one_line(as_written(value))


def paragraphs(value: str) -> str:
    """`value` as written, its paragraphs apart by one blank line."""
    return _BLANK_LINES.sub("\n\n", as_written(value))


def latin_digits(value: str) -> str:
    """`value` with Persian and Arabic digits, decimal marks and percent signs as ASCII."""
    return value.translate(_DIGITS)


def comparable(value: str) -> str:
    """A key under which spellings of one name are equal.

    Arabic and Persian letters and digits, case, width, vowel marks and tatweel do not matter;
    between Persian letters neither do ZWNJ and spaces.
    """
    text = unicodedata.normalize("NFKC", as_written(value)).translate(_LETTERS)
    text = _VOWEL_MARKS.sub("", _JOINERS.sub("", latin_digits(text)))
    return _INSIDE_ARABIC.sub("", one_line(text)).casefold()


def direction(value: str) -> Direction:
    """How a text is laid out, by its letters: the first one alone may be a Latin name's."""
    arabic = latin = 0
    for char in value:
        if char.isalpha():
            if "\u0600" <= char <= "\u06ff" or "\ufb50" <= char <= "\ufeff":
                arabic += 1
            else:
                latin += 1
    return "rtl" if arabic and arabic >= _PERSIAN_SHARE * (arabic + latin) else "ltr"
