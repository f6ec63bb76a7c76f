"""Text for terminals that know no Unicode.

What belongs here: what stands for our own marks there. What does not: any text.
"""

from __future__ import annotations

import codecs
import unicodedata
from typing import TextIO

_MARKS = {
    "…": "...",
    "·": "-",
    "–": "-",
    "—": "-",
    "−": "-",
    "→": "->",
    "×": "x",
    "±": "+/-",
    "≥": ">=",
    "≤": "<=",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "µ": "u",
}
_HANDLER = "batch_pipeline.plain"


def make_plain(stream: TextIO) -> None:
    """Have a stream write what it cannot encode in plain words, instead of failing or escaping."""
    reconfigure = getattr(stream, "reconfigure", None)
    encoding = (stream.encoding or "").lower().replace("-", "")
    if reconfigure is not None and not encoding.startswith("utf"):
        codecs.register_error(_HANDLER, _replaced)
        reconfigure(errors=_HANDLER)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(map(_plain, text)), error.end


def _plain(mark: str) -> str:
    """A mark of ours in ASCII, a letter without its accent, and `?` for all others."""
    if mark in _MARKS:
        return _MARKS[mark]
    bare = unicodedata.normalize("NFKD", mark).encode("ascii", "ignore").decode()
    return bare or "?"
