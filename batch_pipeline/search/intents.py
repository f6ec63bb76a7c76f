"""What a searcher wants, told from the words of a query, a title or the results of a search.

What belongs here: reading the word lists (intents.yaml) and applying them. What does not: whether
two intents fit together (workloads/articles).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict

Intent = Literal[
    "info_primary",
    "commercial_research",
    "transactional",
    "navigational_brand",
    "support",
    "local",
    "mixed",
]

INTENTS: tuple[Intent, ...] = get_args(Intent)

# Results further down count less; all of those after the tenth count the same.
_RANKS = 10
# Below this share no intent leads.
_LEADING = 0.4
# What a second intent needs to be named.
_SECOND = 0.2

_WORD = re.compile(r"[^\W_]+")

_Phrase = tuple[str, ...]


class _ByLanguage(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sv: tuple[str, ...]
    en: tuple[str, ...]

    @property
    def both(self) -> tuple[str, ...]:
        return self.sv + self.en


class _Lists(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    intents: dict[Intent, _ByLanguage]
    questions: _ByLanguage
    paths: dict[Intent, tuple[str, ...]]
    result_types: dict[str, Intent]


@cache
def _lists() -> _Lists:
    text = Path(__file__).with_name("intents.yaml").read_text(encoding="utf-8")
    return _Lists.model_validate(yaml.safe_load(text))


@cache
def _phrases(*, path: bool) -> Mapping[str, tuple[tuple[_Phrase, Intent], ...]]:
    """Every phrase by its first word, the longest first."""
    found: dict[str, list[tuple[_Phrase, Intent]]] = {}
    for intent, words in _lists().intents.items():
        extra = _lists().paths.get(intent, ()) if path else ()
        for phrase in map(_words, words.both + extra):
            found.setdefault(phrase[0], []).append((phrase, intent))
    return {
        word: tuple(sorted(entries, key=lambda entry: -len(entry[0])))
        for word, entries in found.items()
    }


@cache
def _questions() -> frozenset[str]:
    return frozenset(_lists().questions.both)


def intent_of(text: str, entity: str = "") -> Intent:
    """What somebody who searches for `text`, or wrote it as a title, wants.

    The kinds of intents.yaml are tried in order: support, local, transactional,
    commercial_research, info_primary, navigational_brand. A text that begins with a question word
    is never transactional. The entity's own name says nothing ("Best Buy login" is support), and a
    text of nothing else is navigational_brand. A text without any sign is info_primary.

    Args:
        text: a query, a title or an anchor; Swedish or English.
        entity: the brand or thing that it is about, where known.
    """
    return _sign(text, entity) or "info_primary"


def subject_of(text: str) -> str:
    """What a query is about: its words without those that say what is wanted, in lower case.

    Empty where there are no others.
    """
    _, rest = _found(_words(text), (), path=False)
    return " ".join(rest)


def intents_of_results(
    results: Iterable[Mapping[str, Any]], entity: str = ""
) -> tuple[Intent, Intent | None]:
    """What the results of a search serve: the leading intent and the second one.

    Each result counts by its rank (the first ten times as much as the tenth) for what its type,
    else its title, else its address says; a result that says nothing does not count. `mixed` leads
    where no intent has 40 % of the weight, with the heaviest one as second; else a second intent
    has at least 20 %, or it is None.

    Args:
        results: as in SearchAnswer.
        entity: the brand or thing that was searched for: its own home page is navigational_brand.
    """
    weights: Counter[Intent] = Counter()
    for rank, result in enumerate(results):
        intent = _result_sign(result, entity)
        if intent is not None:
            weights[intent] += max(1, _RANKS - rank)
    if not weights:
        return "info_primary", None
    total = weights.total()
    # equal weights: in the order of the kinds, so that the same results always say the same
    ranked = sorted(weights, key=lambda intent: (-weights[intent], INTENTS.index(intent)))
    if weights[ranked[0]] < _LEADING * total:
        return "mixed", ranked[0]
    if len(ranked) > 1 and weights[ranked[1]] >= _SECOND * total:
        return ranked[0], ranked[1]
    return ranked[0], None


@lru_cache(maxsize=4_096)
def _words(text: str) -> _Phrase:
    return tuple(_WORD.findall(unicodedata.normalize("NFC", text).casefold()))


def _sign(text: str, entity: str, *, path: bool = False) -> Intent | None:
    words = _words(text)
    name = _words(entity)
    if not words:
        return None
    found, rest = _found(words, name, path=path)
    named_first = bool(name) and words[: len(name)] == name
    if not path and words[0] in _questions() and not named_first:
        found.discard("transactional")
        found.add("info_primary")
    for intent in _lists().intents:
        if intent in found:
            return intent
    return "navigational_brand" if name and set(rest) <= set(name) else None


def _found(words: _Phrase, name: _Phrase, *, path: bool) -> tuple[set[Intent], list[str]]:
    """The intents whose phrases occur in `words`, and the words that are in no phrase."""
    phrases = _phrases(path=path)
    found: set[Intent] = set()
    rest: list[str] = []
    at = 0
    while at < len(words):
        if name and words[at : at + len(name)] == name:
            at += len(name)
            continue
        for phrase, intent in phrases.get(words[at], ()):
            if words[at : at + len(phrase)] == phrase:
                found.add(intent)
                at += len(phrase)
                break
        else:
            rest.append(words[at])
            at += 1
    return found, rest


def _result_sign(result: Mapping[str, Any], entity: str) -> Intent | None:
    by_type = _lists().result_types.get(str(result.get("type") or ""))
    if by_type is not None:
        return by_type
    try:
        path = urlsplit(str(result.get("url") or "")).path
    except ValueError:
        path = ""
    if entity and path in ("", "/") and _is_of(str(result.get("domain") or ""), _words(entity)):
        return "navigational_brand"
    return _sign(str(result.get("title") or ""), entity) or _sign(unquote(path), "", path=True)


def _is_of(domain: str, name: Sequence[str]) -> bool:
    """Whether a domain is named after an entity: `volvo-cars.com`, `volvocars.se`."""
    label = "".join(_words(domain.removeprefix("www.").partition(".")[0]))
    return bool(name) and label == "".join(name)
