"""Packing: which rows share a request.

Pure. What belongs here: the packer and how a failed pack is halved. What does not: asking
(engine.py, recovery.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything with an estimated size in tokens."""

    @property
    def tokens(self) -> int:
        """Estimated tokens."""
        ...


S = TypeVar("S", bound=Sized)
T = TypeVar("T")


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


def most_requests(size: int) -> int:
    """The bound on the requests that find one bad row in a pack of `size` that failed."""
    return 2 + math.ceil(math.log2(size))


def first_split(pack: Sequence[S]) -> tuple[list[S], list[S], bool]:
    """Two parts of a pack that failed as a whole.

    Returns:
        The parts, and whether the second one may be asked as a whole when the first is good. That
        shows in one request that the pack was spoiled by chance, but not every size leaves room for
        it within `most_requests`.
    """
    cut, spare = _first_cut(len(pack))
    return list(pack[:cut]), list(pack[cut:]), spare


def halve(pack: Sequence[T]) -> tuple[list[T], list[T]]:
    """Two halves, the first one not larger."""
    cut = len(pack) // 2
    return list(pack[:cut]), list(pack[cut:])


@cache
def _first_cut(size: int) -> tuple[int, bool]:
    allowed = most_requests(size)
    roomy = [
        cut
        for cut in range(1, size)
        if 1 + _worst(cut, failed=True, aside=True) <= allowed
        and 2 + _worst(size - cut, failed=True, aside=False) <= allowed
    ]
    if roomy:
        return min(roomy, key=lambda cut: abs(2 * cut - size)), True
    return size // 2, False


@cache
def _worst(size: int, *, failed: bool, aside: bool) -> int:
    """Requests that halving takes at most to find the bad one of `size` rows.

    Args:
        size: rows.
        failed: whether they failed when asked together; else one of them is only suspected, and is
            asked alone before it is given up.
        aside: whether rows were set aside, which takes a request at the end.
    """
    if size == 1:
        return (not failed) + aside
    half = size // 2
    return 1 + max(
        _worst(half, failed=True, aside=True), _worst(size - half, failed=False, aside=aside)
    )
