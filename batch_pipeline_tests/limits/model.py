"""A model run: workers, turns, pauses and a strict server, as events on a drawn timeline.

What belongs here: the engine's and the gate's order of events, without I/O. What does not: the
arithmetic under test (batch_pipeline/limits/adaptive.py).
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from batch_pipeline.limits.adaptive import Change, Concurrency, Pacer
from batch_pipeline.limits.reservation import LOOK_AHEAD_S

RetryAfter = Literal["none", "exact", "seconds"]
_REFUSAL_S = 0.004


@dataclass
class Server:
    """A token bucket that refuses what it cannot serve at once."""

    rate: float
    depth: float
    latency_s: float
    retry_after: RetryAfter = "none"
    jitter: float = 0.15
    concurrent: float = math.inf
    in_flight: int = 0
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.depth

    def take(self, now: float) -> float | None:
        """None when admitted, else the seconds until one more would be."""
        self.level = min(self.depth, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level >= 1.0 - 1e-9 and self.in_flight < self.concurrent:
            self.level -= 1.0
            self.in_flight += 1
            return None
        return max((1.0 - self.level) / self.rate, 0.0)

    def header(self, wait_s: float) -> float | None:
        """What the reply says about it."""
        if self.retry_after == "none":
            return None
        if self.retry_after == "seconds":
            return float(max(1, math.ceil(wait_s)))
        return math.ceil(wait_s * 1000.0) / 1000.0


@dataclass
class Process:
    """One run: its own pacer and workers."""

    pacer: Pacer
    concurrency: Concurrency
    waiting: int
    busy: int = 0
    in_flight: int = 0
    changes: list[tuple[float, str, Change]] = field(default_factory=list)


@dataclass
class Outcome:
    """What a model run came to."""

    seconds: float
    sent: int
    refused: int
    accepted_at: list[float]
    processes: list[Process]

    @property
    def refused_share(self) -> float:
        return self.refused / self.sent

    def rate_between(self, start: float, end: float) -> float:
        """Accepted calls per second in a stretch of the run."""
        return sum(start <= at < end for at in self.accepted_at) / (end - start)


class Model:
    """Runs `requests` requests in each process against one server."""

    def __init__(
        self,
        server: Server,
        requests: int,
        *,
        processes: int = 1,
        cap: int = 4000,
        seed: int = 1,
        later: list[tuple[float, Callable[[Server], None]]] | None = None,
        until: float = math.inf,
    ) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.processes = [Process(Pacer(), Concurrency(cap), requests) for _ in range(processes)]
        self.left = requests * processes
        self.until = until
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._now = 0.0
        self._free_at = 0.0
        self._paused_until = 0.0
        self._epoch = 0
        self._sent = 0
        self._refused = 0
        self._accepted_at: list[float] = []
        for at, change in later or []:
            self._at(at, lambda change=change: change(server))  # type: ignore[misc]

    def run(self) -> Outcome:
        for process in self.processes:
            self._fill(process)
        while self.left and self._now < self.until:
            self._now, _, event = heapq.heappop(self._events)
            event()
        return Outcome(self._now, self._sent, self._refused, self._accepted_at, self.processes)

    def _at(self, at: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, event))

    def _fill(self, process: Process) -> None:
        while process.waiting and process.busy < process.concurrency.limit:
            process.waiting -= 1
            process.busy += 1
            self._acquire(process)

    def _shared_rate(self) -> float | None:
        rates = [p.pacer.rate for p in self.processes if p.pacer.rate is not None]
        return min(rates, default=None)

    def _acquire(self, process: Process) -> None:
        if self._paused_until > self._now:
            self._at(self._paused_until, lambda: self._acquire(process))
            return
        rate = self._shared_rate()
        if rate is None:
            self._send(process)
            return
        go = max(self._now, self._free_at)
        if go > self._now + LOOK_AHEAD_S + 1e-6:
            self._at(go - LOOK_AHEAD_S, lambda: self._acquire(process))
            return
        self._free_at = go + 1.0 / rate
        epoch = self._epoch
        self._at(go, lambda: self._turn(process, epoch))

    def _turn(self, process: Process, epoch: int) -> None:
        # A pause that began meanwhile takes the turn back.
        if epoch != self._epoch:
            self._acquire(process)
        else:
            self._send(process)

    def _send(self, process: Process) -> None:
        now = self._now
        self._sent += 1
        process.in_flight += 1
        shared = self._shared_rate() if len(self.processes) > 1 else None
        self._note(process, "rate", process.pacer.sent(now, shared))
        process.concurrency.sent(now, process.in_flight)
        self._at(now + 0.001, lambda: self._arrive(process, now))

    def _arrive(self, process: Process, sent_at: float) -> None:
        server = self.server
        wait_s = server.take(self._now)
        if wait_s is not None:
            at = self._now + _REFUSAL_S
            self._at(at, lambda: self._refuse(process, sent_at, server.header(wait_s)))
            return
        self._accepted_at.append(self._now)
        latency_s = server.latency_s * self.rng.uniform(1 - server.jitter, 1 + server.jitter)
        self._at(sent_at + latency_s, lambda: self._answer(process, sent_at))

    def _refuse(self, process: Process, sent_at: float, retry_after_s: float | None) -> None:
        self._refused += 1
        process.in_flight -= 1
        self._note(process, "rate", process.pacer.refused(self._now, sent_at, retry_after_s))
        self._note(process, "limit", process.concurrency.refused(self._now, sent_at))
        self._note(process, "limit", process.concurrency.follow(self._now, self._shared_rate()))
        until = self._now + process.pacer.pause_s()
        if until > self._paused_until:
            self._epoch += 1
            self._paused_until = self._free_at = until
        for other in self.processes:
            other.pacer.paused(self._now, self._paused_until)
        self._acquire(process)

    def _answer(self, process: Process, sent_at: float) -> None:
        self.server.in_flight -= 1
        concurrency = process.concurrency
        self._note(process, "limit", concurrency.follow(self._now, self._shared_rate()))
        self._note(process, "limit", concurrency.accepted(self._now, sent_at))
        process.in_flight -= 1
        process.busy -= 1
        self.left -= 1
        self._fill(process)

    def _note(self, process: Process, what: str, change: Change | None) -> None:
        if change is not None:
            process.changes.append((self._now, what, change))
