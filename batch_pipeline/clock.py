"""Time as every room sees it: UTC seconds, monotone, and injectable.

What belongs here: the Clock protocol, the wall clock and the one that tests drive. What does not:
schedules and time zones (defs), or durations measured for a benchmark.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Where `now` and waiting come from; seconds everywhere."""

    def now(self) -> float:
        """UTC seconds since the epoch; never steps backward within a process."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once `seconds` have passed on this clock."""
        ...


class SystemClock:
    """The host's clock, clamped.

    A step backward (NTP, a resumed machine) must not reopen a limit.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def now(self) -> float:
        """UTC seconds since the epoch; never steps backward within a process."""
        self._last = max(self._last, time.time())
        return self._last

    async def sleep(self, seconds: float) -> None:
        """Return once `seconds` have passed."""
        await asyncio.sleep(max(0.0, seconds))


class ManualClock:
    """A clock for tests: time moves only by `advance`, and sleepers wake in order."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        """The time that `advance` has reached, in UTC seconds."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Return once `advance` has moved the time on by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move time forward, waking each sleeper at its own moment and letting it run."""
        target = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            due, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, due)
            if not future.done():
                future.set_result(None)
            for _ in range(5):
                await asyncio.sleep(0)
        self._now = target
        await asyncio.sleep(0)

    @property
    def next_wake(self) -> float | None:
        """When the earliest sleeper is due, or None."""
        return self._sleepers[0][0] if self._sleepers else None
