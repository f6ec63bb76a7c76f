"""Packing: which rows share a request.

Pure. What belongs here: the packer and how a failed pack is halved. What does not: asking
(engine.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything with an estimated size in tokens."""

    @property
    def tokens(self) -> int:
        """Estimated tokens."""
        ...


S = TypeVar("S", bound=Sized)


class Packer(Generic[S]):
    """Collects rows into packs of at most `max_items` rows and `max_tokens` estimated tokens.

    A row that is larger than `max_tokens` by itself gets a pack of its own: the provider, not we,
    decides whether it fits.
    """

    def __init__(self, max_items: int, max_tokens: int) -> None:
        self._max_items = max_items
        self._max_tokens = max_tokens
        self._open: list[S] = []
        self._tokens = 0

    def add(self, row: S) -> Iterator[list[S]]:
        """Add a row; gives the packs that are full by it (none, one or two)."""
        if self._open and self._tokens + row.tokens > self._max_tokens:
            yield self._take()
        self._open.append(row)
        self._tokens += row.tokens
        if len(self._open) >= self._max_items:
            yield self._take()

    def flush(self) -> Iterator[list[S]]:
        """Give what is left, if anything."""
        if self._open:
            yield self._take()

    def _take(self) -> list[S]:
        pack, self._open, self._tokens = self._open, [], 0
        return pack


def first_split(pack: Sequence[S]) -> tuple[list[S], list[S]]:
    """Two parts of a pack that failed as a whole, the first one slightly larger.

    With the larger part first, asking both parts and then halving the failing one finds a single
    bad row of 20 within 2 + ceil(log2(20)) requests, the one for the rows set aside included.
    """
    cut = len(pack) - max(1, len(pack) * 9 // 20)
    return list(pack[:cut]), list(pack[cut:])


def halve(pack: Sequence[S]) -> tuple[list[S], list[S]]:
    """Two halves, the first one not smaller."""
    cut = -(-len(pack) // 2)
    return list(pack[:cut]), list(pack[cut:])
