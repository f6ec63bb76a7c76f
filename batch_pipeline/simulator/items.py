"""Finds the packed items in a request's text: a JSON object with an array of objects with `id`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from batch_pipeline.simulator.draws import fingerprint

_DECODER = json.JSONDecoder()
_OPENING = re.compile(r"[\[{]")
# A text full of brackets that are no JSON must not cost quadratic time.
_MAX_FAILED_PARSES = 2_000
_MAX_DEPTH = 3


@dataclass(frozen=True)
class Item:
    """One element that a request asks about.

    Attributes:
        id: as it was sent: a string or a number.
        content: everything but the id.
    """

    id: Any
    content: dict[str, Any]

    @cached_property
    def text(self) -> str:
        """All strings of the content, one per line: what `match` is searched in."""
        return "\n".join(_strings(self.content))

    @cached_property
    def content_sha(self) -> str:
        """Name of the content; the id has no part in it."""
        return fingerprint(json.dumps(self.content, sort_keys=True).encode())

    @property
    def voter(self) -> str | None:
        """Who is asked to vote, where a vote is asked for."""
        voter = self.content.get("voter")
        return voter if isinstance(voter, str) else None

    @property
    def subject(self) -> str:
        """What a web search is made for: the topic or brand, else the words."""
        for name in ("topic", "brand_name"):
            said = self.content.get(name)
            if isinstance(said, str) and said.strip():
                return said
        return " ".join(self.words)

    @cached_property
    def words(self) -> list[str]:
        """The words of the longest text field."""
        return max(_strings(self.content), key=len, default="").split()


def find_items(text: str) -> tuple[Item, ...]:
    """Return the items of the largest JSON value in `text` that holds objects with `id`.

    Returns nothing when there is no such array. A repeated id is kept once.
    """
    best: list[dict[str, Any]] = []
    best_size = 0
    position = failures = 0
    while failures < _MAX_FAILED_PARSES:
        opening = _OPENING.search(text, position)
        if opening is None:
            break
        start = opening.start()
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            failures += 1
            position = start + 1
            continue
        found = _array_with_ids(value, _MAX_DEPTH)
        if found and end - start > best_size:
            best, best_size = found, end - start
        position = end
    unique: dict[str, dict[str, Any]] = {}
    for row in best:
        unique.setdefault(json.dumps(row["id"]), row)
    return tuple(
        Item(row["id"], {k: v for k, v in row.items() if k != "id"}) for row in unique.values()
    )


def _array_with_ids(value: Any, depth: int) -> list[dict[str, Any]] | None:
    if isinstance(value, list):
        if value and all(isinstance(row, dict) and "id" in row for row in value):
            return value
        return None
    if isinstance(value, dict) and depth:
        for child in value.values():
            found = _array_with_ids(child, depth - 1)
            if found:
                return found
    return None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _strings(child)
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child)
