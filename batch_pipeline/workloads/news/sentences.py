"""Where a long text may be cut: at the end of a sentence, within a bound of tokens.

What belongs here: pure functions on text. What does not: which texts are cut (articles.py).
"""

from __future__ import annotations

import re

from batch_pipeline.pricing.tokens import estimate_tokens
from batch_pipeline.workloads.text import cut_at_word

_CLOSING = "\"'”’»)\\]」』"
# The end of a paragraph; marks that need no space behind them; marks that do.
_ENDS = re.compile(rf"\n[^\S\n]*\n|[。！？][{_CLOSING}]*|(?P<mark>[.!?…؟]+)[{_CLOSING}]*(?=\s|$)")
_LAST_WORD = re.compile(r"[^\s\"'“”‘’«»()\[\]]+$")
_DOTTED = re.compile(r"(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,2}")
# A full stop behind these ends no sentence. English, Turkish, and titles of both.
_ABBREVIATIONS_TEXT = """
    mr mrs ms messrs dr prof st gen col lt capt sgt sen rep gov pres hon rev jr sr vs no nos art
    inc corp co ltd llc plc bros dept univ assn fig vol ed est approx ca cf al etc jan feb mar
    apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun av bkz örn vb vd yy yrd doç
    alb org cad sok mah apt tel şti bşk müd sn yön
"""
_ABBREVIATIONS = frozenset(_ABBREVIATIONS_TEXT.split())
_SHORTEST_SHARE = 0.25
_LONGEST_TOKEN_CHARS = 16


def shorten(text: str, max_tokens: int) -> str:
    """`text`, or its beginning of at most about `max_tokens` estimated tokens.

    It ends with a sentence; where its last three quarters have no end of one, with a word.
    """
    # No token is shorter than a character: most texts need no count.
    if len(text) <= max_tokens or estimate_tokens(text) <= max_tokens:
        return text
    return cut_at_sentence(text, _fitting_chars(text, max_tokens))


def cut_at_sentence(text: str, limit: int) -> str:
    """The beginning of `text` of at most `limit` characters that ends with a sentence.

    Where their last three quarters have no end of one, it ends with a word.
    """
    if len(text) <= limit:
        return text
    best = 0
    for match in _ENDS.finditer(text, int(limit * _SHORTEST_SHARE)):
        end = match.start() if match[0].isspace() else match.end()
        if end > limit:
            break
        if _is_end(text, match):
            best = end
    return text[:best].rstrip() if best else cut_at_word(text, limit)


def _fitting_chars(text: str, max_tokens: int) -> int:
    """The most characters whose estimate stays within `max_tokens`."""
    low, high = max_tokens, min(len(text), max_tokens * _LONGEST_TOKEN_CHARS)
    while low < high:
        middle = (low + high + 1) // 2
        if estimate_tokens(text[:middle]) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return low


def _is_end(text: str, match: re.Match[str]) -> bool:
    mark = match["mark"]
    if mark is None:
        return True
    following = text[match.end() : match.end() + 8].lstrip().lstrip("\"'“‘«([")
    # "Why?" she asked; 3. çeyrek; the U.S. economy
    if following[:1].islower():
        return False
    if mark != ".":
        return True
    found = _LAST_WORD.search(text, max(0, match.start() - 40), match.start())
    word = found[0] if found else ""
    # An initial, an ordinal or a day of the month: what follows may belong to it. A place that is
    # taken for no end costs a sentence; the other mistake would cut one.
    return not (
        word.casefold() in _ABBREVIATIONS
        or (len(word) == 1 and word.isalpha())
        or (len(word) <= 2 and word.isdigit())
        or _DOTTED.fullmatch(word)
    )
