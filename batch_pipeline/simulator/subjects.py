"""The topic that a request is about, as far as its content says it, and points of it to write of.

What does not live here: what is written about it (`cards`, `plans`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from batch_pipeline.simulator.draws import fingerprint

_LONGEST_TITLE, _READ_CHARS = 200, 1_500
_MOST_POINTS, _FEWEST_POINTS = 10, 2
_PAIR = re.compile(r"(?<![\w-])([^\W\d_]{4,18}) ([^\W\d_]{4,18})(?![\w-])")
_ACRONYM = re.compile(r"\b[A-Z][A-Z0-9]{1,5}s?\b")
_EDGES = " .,;:!?…\"'“”‘’"
_PARENTHESIS = re.compile(r"\s*[(\[{][^()\[\]{}]*[)\]}]?")


@dataclass(frozen=True)
class Subject:
    """A topic to write about.

    Attributes:
        title: its name.
        field: what it stands in, without abbreviations.
        points: two-word phrases of its context in small letters, at least two.
        seed: short name of all that is said of it; the same topic has the same one.
    """

    title: str
    field: str
    points: tuple[str, ...]
    seed: str

    @classmethod
    def read(cls, content: Mapping[str, Any], salt: str = "") -> Subject:
        """Read an item's content; another salt gives another seed."""
        title = _line(content.get("topic"))[:_LONGEST_TITLE].strip(_EDGES)
        places = [content.get(name) for name in ("subdomain", "domain", "category")]
        entry = content.get("entry")
        names = [_line(name) for name in [*places, *(entry if isinstance(entry, list) else [])]]
        context = content.get("context")
        context = context if isinstance(context, str) else ""
        seed = "\x1f".join([title, *names, context, salt])
        return cls(
            title=title,
            field=next((plain for name in names if (plain := _plain(name))), "its field"),
            points=_points(context, title, names[len(places) :] + names[: len(places)]),
            seed=fingerprint(seed.encode("utf-8", "replace")),
        )

    def point(self, n: int) -> str:
        """The nth point; they begin anew after the last."""
        return self.points[n % len(self.points)]


def _points(context: str, title: str, names: list[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for match in _PAIR.finditer(context[:_READ_CHARS]):
        first, last = match[1], match[2]
        if first[:2].isupper() or last[:2].isupper():
            continue  # capitals are an abbreviation that a card would have to write out
        point = f"{first} {last}".lower()
        if not _loose().isdisjoint(point.split()):
            continue
        found.setdefault(point)
        if len(found) == _MOST_POINTS:
            return tuple(found)
    # a short context has too few of them: what the topic stands in, then anything
    known = title.lower()
    others = [plain for name in names if (plain := _plain(name).lower()) and plain != known]
    for point in (*others, "the goal", "the first step"):
        if len(found) < _FEWEST_POINTS:
            found.setdefault(point)
    return tuple(found)


@cache
def _loose() -> frozenset[str]:
    """Words that no point has."""
    text = Path(__file__).with_name("subjects.yaml").read_text(encoding="utf-8")
    return frozenset(yaml.safe_load(text)["loose"])


def _plain(name: str) -> str:
    """A name that can stand in a sentence; empty where it has abbreviations."""
    bare = _PARENTHESIS.sub("", name).strip(_EDGES)
    return "" if _ACRONYM.search(bare) or len(bare) > 60 else bare


def _line(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
