"""Words of cards and topics, by their stems.

What belongs here: taking texts apart. What does not: what their words mean for a card (checks.py).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_POSSESSIVE = re.compile("['’]s$")
_FOLDER = Path(__file__).with_name("words")
_MIN_STEM_CHARS = 2


@cache
def read_words(name: str) -> Any:
    """A file of words/, as it is."""
    return yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without 's; what is between them does not matter."""
    return [_POSSESSIVE.sub("", word) for word in _WORD.findall(text.casefold())]


def holds_phrase(words: Sequence[str], phrase: str) -> bool:
    """Whether the words of a phrase stand in a text one after the other."""
    wanted = _phrase_words(phrase)
    size = len(wanted)
    return any(
        tuple(words[start : start + size]) == wanted for start in range(len(words) - size + 1)
    )


@lru_cache(maxsize=4096)
def _phrase_words(phrase: str) -> tuple[str, ...]:
    return tuple(words_of(phrase))


def stems(text: str) -> frozenset[str]:
    """The stems of a text's words that tell something, numbers included."""
    found = (_stem(word) for word in words_of(text) if word not in _stop_words())
    return frozenset(stem for stem in found if len(stem) >= _MIN_STEM_CHARS)


def stems_of(texts: Iterable[str]) -> frozenset[str]:
    """The stems of several texts together."""
    return frozenset().union(*(stems(text) for text in texts))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared over all, from 0 to 1; two empty sets are the same."""
    if not left and not right:
        return 1.0
    return len(left & right) / len(left | right)


@cache
def _stop_words() -> frozenset[str]:
    import stopwordsiso

    # the package's English list also has words that name things
    return frozenset(stopwordsiso.stopwords("en")) - frozenset(
        read_words("content.yaml")["telling"]
    )


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    return str(_stemmer().stemWord(word))


# A stemmer holds the word that it is at: topics are checked in several threads.
_OF_THREAD = threading.local()


def _stemmer() -> Any:
    import snowballstemmer

    if not hasattr(_OF_THREAD, "stemmer"):
        _OF_THREAD.stemmer = snowballstemmer.stemmer("english")
    return _OF_THREAD.stemmer
