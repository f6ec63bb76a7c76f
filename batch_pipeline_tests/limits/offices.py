"""Processes that share a ledger, on a clock that only the tests move.

What belongs here: opening them, and letting them run. What does not: assertions.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from batch_pipeline.clock import ManualClock
from batch_pipeline.ledger.calls import HEARTBEAT, Owner, PauseKey
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.writer import Operation, Writer
from batch_pipeline.limits.limiter import Gate, Rates, Ticket

KEY = PauseKey("simulated", "google", "google/gemini-3.1-flash-lite", "…abcd")

# Runs after everything that was queued before it: when it is answered, that is committed.
BARRIER: Operation[None] = Operation("barrier", 1_000, lambda _, __, asked: [None] * len(asked))


class StallingClock(ManualClock):
    """A clock on which a process can be late."""

    def stall(self, seconds: float) -> None:
        """Let time pass while nobody runs."""
        self._now += seconds


class CountingWriter(Writer):
    """The ledger's own writer, counting what is asked of it."""

    def __init__(self, inner: Writer) -> None:
        self.inner = inner
        self.posted: Counter[str] = Counter()

    def post(self, operation: Operation[Any], parameters: Any) -> asyncio.Future[Any]:
        """Count and pass on."""
        self.posted[operation.name] += 1
        return self.inner.post(operation, parameters)


class Office:
    """One process with its ledger handle, its owner and its gate."""

    def __init__(self, ledger: Ledger, clock: ManualClock, rates: Rates) -> None:
        self.ledger = ledger
        self.owner = Owner.here("run")
        self.writer = CountingWriter(ledger.writer)
        self.gate = Gate(self.writer, clock, KEY, self.owner.owner_id, rates)

    async def open(self) -> None:
        await self.beat()
        await self.gate.open()

    async def beat(self) -> None:
        await self.ledger.writer.post(HEARTBEAT, self.owner)


@contextmanager
def offices(url: str, clock: ManualClock, *rates: Rates) -> Iterator[list[Office]]:
    """Processes on one ledger, each with a handle and rates of its own."""
    opened: list[Office] = []
    try:
        for each in rates:
            ledger = Ledger(url, "simulated", clock)
            opened.append(Office(ledger, clock, each))
        yield opened
    finally:
        for office in opened:
            office.ledger.close()


async def settle(offices: Sequence[Office]) -> None:
    """Let everything run that does not wait for time to pass."""
    for _ in range(3):
        for office in offices:
            await office.ledger.writer.post(BARRIER, None)
        for _ in range(10):
            await asyncio.sleep(0)


async def drive(
    clock: ManualClock, offices: Sequence[Office], *work: Coroutine[Any, Any, Any]
) -> list[Any]:
    """Run `work` to its end, moving time on from one sleeper to the next."""
    tasks = [asyncio.ensure_future(each) for each in work]
    for _ in range(2_000):
        await settle(offices)
        if all(task.done() for task in tasks):
            return [task.result() for task in tasks]
        if clock.next_wake is not None:
            await clock.advance(max(0.0, clock.next_wake - clock.now()))
    raise AssertionError("the waiters never got their turns")


def gos(tickets: Sequence[Ticket]) -> list[float]:
    return sorted(ticket.go_at for ticket in tickets)


def gaps(tickets: Sequence[Ticket]) -> list[float]:
    times = gos(tickets)
    return [later - earlier for earlier, later in itertools.pairwise(times)]
