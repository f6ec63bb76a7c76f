"""Rate limits that hold across processes, as reservations in the ledger database.

What belongs here: the reservation arithmetic, the gate that one run waits at, and pauses. What
does not: how many calls fly at once (the engine's slots), and what to do after a 429 but wait
(engine).

Each limit is a generic cell rate algorithm: a row holds the time at which its bucket is next
free. One transaction finds the *joint* go-time of a request over all its buckets and moves every
bucket to it. No burst is spent on purpose: a provider's own bucket then has its whole depth left
for jitter on the way.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from batch_pipeline.clock import Clock
from batch_pipeline.ledger.calls import PAUSE, Pause, PauseKey, PauseState
from batch_pipeline.ledger.store import execute_many, upsert
from batch_pipeline.ledger.tables import limit_rates, limits, owners
from batch_pipeline.ledger.writer import Operation, Writer

_MAX_MISSES = 3
_DEEP_BUCKET_PER_MIN = 6_000.0

_AHEAD_S = 0.02
_MAX_AHEAD = 100

LOOK_AHEAD_S = 1.0
"""Go-times are handed out at most this far ahead, so that processes share fairly and pauses
bite."""

REQUESTS = "requests"
INPUT_TOKENS = "input_tokens"
OUTPUT_TOKENS = "output_tokens"
DIMENSIONS = (REQUESTS, INPUT_TOKENS, OUTPUT_TOKENS)


@dataclass(frozen=True, slots=True)
class Rates:
    """What one key may do with one model, per minute; None is no limit.

    Attributes:
        requests: requests per minute.
        input_tokens: prompt tokens per minute.
        output_tokens: billable output tokens per minute.
    """

    requests: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None

    def per_second(self) -> tuple[float | None, float | None, float | None]:
        """The rates in the order of DIMENSIONS, per second."""
        minute = (self.requests, self.input_tokens, self.output_tokens)
        return tuple(None if rate is None else rate / 60.0 for rate in minute)  # type: ignore[return-value]

    @property
    def unlimited(self) -> bool:
        """Whether nothing is limited."""
        return self.requests is None and self.input_tokens is None and self.output_tokens is None


NO_LIMITS = Rates()


@dataclass(frozen=True, slots=True)
class Reserve:
    """Waiters of one process at one gate ask for go-times.

    Attributes:
        key: whose buckets.
        owner_id: whose rates these are, for as long as the owner lives.
        rates: per second, in the order of DIMENSIONS; None is no limit.
        costs: for each waiter, in order, what it takes from each bucket.
    """

    key: PauseKey
    owner_id: str
    rates: tuple[float | None, float | None, float | None]
    costs: Sequence[tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class Reserved:
    """The answer.

    Attributes:
        now: the ledger's time of the transaction, in UTC seconds.
        delays: seconds from `now` until the go-time, for as many waiters (from the first) as fit
            into LOOK_AHEAD_S.
        retry_s: seconds until it makes sense to ask again for the rest.
    """

    now: float
    delays: list[float]
    retry_s: float


def plan_reservation(
    now: float,
    arrivals: list[float],
    rates: Sequence[float | None],
    costs: Sequence[tuple[float, float, float]],
    look_ahead_s: float = LOOK_AHEAD_S,
) -> tuple[Reserved, list[float]]:
    """Hand out go-times, purely: the arithmetic of one reservation transaction.

    Args:
        now: UTC seconds.
        arrivals: when each bucket is next free.
        rates: units per second of each bucket; None is no limit.
        costs: what each waiter takes from each bucket, in waiting order.
        look_ahead_s: how far ahead go-times may lie.

    Returns:
        The answer, and when each bucket is next free afterwards.
    """
    free_at = list(arrivals)
    delays: list[float] = []
    retry_s = 0.0
    for cost in costs:
        go = now
        for place, rate in enumerate(rates):
            if rate is not None:
                go = max(go, free_at[place])
        if go > now + look_ahead_s:
            retry_s = go - now - look_ahead_s
            break
        for place, rate in enumerate(rates):
            if rate is not None:
                free_at[place] = go + cost[place] / rate
        delays.append(go - now)
    return Reserved(now, delays, retry_s), free_at


_ARRIVALS = sa.select(limits.c.dimension, limits.c.arrival_at).where(
    limits.c.realm == sa.bindparam("realm"),
    limits.c.provider == sa.bindparam("provider"),
    limits.c.model == sa.bindparam("model"),
    limits.c.key_id == sa.bindparam("key_id"),
)
_LOWEST_RATES = (
    sa.select(limit_rates.c.dimension, sa.func.min(limit_rates.c.per_second))
    .where(
        limit_rates.c.realm == sa.bindparam("realm"),
        limit_rates.c.provider == sa.bindparam("provider"),
        limit_rates.c.model == sa.bindparam("model"),
        limit_rates.c.key_id == sa.bindparam("key_id"),
        limit_rates.c.owner_id.in_(
            sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > sa.bindparam("now"))
        ),
    )
    .group_by(limit_rates.c.dimension)
)


@lru_cache
def _upsert_limit(dialect: str) -> Any:
    return upsert(
        dialect,
        limits,
        ["realm", "provider", "model", "key_id", "dimension"],
        update=["arrival_at"],
    )


def _reserve(connection: sa.Connection, now: float, requests: Sequence[Reserve]) -> list[Reserved]:
    answers = []
    arrivals_of = _ARRIVALS
    if connection.dialect.name != "sqlite":
        # On SQLite the transaction holds the only write lock already.
        arrivals_of = arrivals_of.with_for_update()
    for request in requests:
        bucket = _bucket_values(request.key)
        arrivals = [0.0] * len(DIMENSIONS)
        for dimension, arrival_at in connection.execute(arrivals_of, bucket):
            arrivals[DIMENSIONS.index(dimension)] = arrival_at
        found = connection.execute(_LOWEST_RATES, {**bucket, "now": now})
        lowest: dict[str, float] = dict(found.tuples().all())
        # The lowest rate that any live owner holds counts for everyone.
        rates = [
            None if rate is None else min(rate, lowest.get(dimension, rate))
            for dimension, rate in zip(DIMENSIONS, request.rates, strict=True)
        ]
        answer, free_at = plan_reservation(now, arrivals, rates, request.costs)
        if answer.delays:
            execute_many(
                connection,
                _upsert_limit(connection.dialect.name),
                [
                    {**bucket, "dimension": dimension, "arrival_at": at}
                    for dimension, at, rate in zip(DIMENSIONS, free_at, rates, strict=True)
                    if rate is not None
                ],
            )
        answers.append(answer)
    return answers


RESERVE: Operation[Reserved] = Operation("reserve", 6, _reserve, overtakes=True)


@dataclass(frozen=True, slots=True)
class Declare:
    """An owner says what rates it works with; they count until its lease ends."""

    key: PauseKey
    owner_id: str
    rates: tuple[float | None, float | None, float | None]


def _declare(connection: sa.Connection, now: float, requests: Sequence[Declare]) -> list[None]:
    for request in requests:
        rows = [
            {
                **_bucket_values(request.key),
                "dimension": dimension,
                "owner_id": request.owner_id,
                "per_second": rate,
            }
            for dimension, rate in zip(DIMENSIONS, request.rates, strict=True)
            if rate is not None
        ]
        if rows:
            connection.execute(
                upsert(
                    connection.dialect.name,
                    limit_rates,
                    ["realm", "provider", "model", "key_id", "dimension", "owner_id"],
                    update=["per_second"],
                ),
                rows,
            )
    return [None] * len(requests)


DECLARE: Operation[None] = Operation("declare rates", 2, _declare)


@dataclass(frozen=True, slots=True)
class Correct:
    """A call used more or less than its estimate: move its buckets by so many seconds."""

    key: PauseKey
    seconds: tuple[float, float, float]


_CORRECT = (
    limits.update()
    .where(
        limits.c.realm == sa.bindparam("b_realm"),
        limits.c.provider == sa.bindparam("b_provider"),
        limits.c.model == sa.bindparam("b_model"),
        limits.c.key_id == sa.bindparam("b_key"),
        limits.c.dimension == sa.bindparam("b_dimension"),
    )
    .values(arrival_at=limits.c.arrival_at + sa.bindparam("b_seconds"))
)


def _correct(connection: sa.Connection, now: float, requests: Sequence[Correct]) -> list[None]:
    total: dict[tuple[PauseKey, str], float] = {}
    for request in requests:
        for dimension, seconds in zip(DIMENSIONS, request.seconds, strict=True):
            if seconds:
                at = request.key, dimension
                total[at] = total.get(at, 0.0) + seconds
    if total:
        execute_many(
            connection,
            _CORRECT,
            [
                {
                    "b_realm": key.realm,
                    "b_provider": key.provider,
                    "b_model": key.model,
                    "b_key": key.key_id,
                    "b_dimension": dimension,
                    "b_seconds": seconds,
                }
                for (key, dimension), seconds in total.items()
            ],
        )
    return [None] * len(requests)


CORRECT: Operation[None] = Operation("correct limits", 21, _correct, patient=True)


def _tolerated_lateness_s(rates: Rates) -> float:
    """Half the spacing of two requests, which a bucket of two forgives.

    Where requests may follow each other within a few milliseconds, buckets are deep and an event
    loop is never that punctual: a quarter of a second is tolerated.
    """
    if rates.unlimited:
        return math.inf
    if rates.requests is None or rates.requests >= _DEEP_BUCKET_PER_MIN:
        return 0.25
    return max(0.02, 30.0 / rates.requests)


def _bucket_values(key: PauseKey) -> dict[str, str]:
    return {
        "realm": key.realm,
        "provider": key.provider,
        "model": key.model,
        "key_id": key.key_id,
    }


_Cost = tuple[float, float, float]


@dataclass(slots=True)
class Ticket:
    """Leave to send, not before `go_at` (UTC seconds); `cost` is what was reserved for it."""

    go_at: float
    waited_s: float
    cost: tuple[float, float, float]


class Gate:
    """Where the calls of one run with one key to one model wait for their turn.

    Args:
        writer: the process's ledger writer.
        clock: time and sleep.
        key: provider, model and key.
        owner_id: this run's owner.
        rates: what this run believes the limits to be.
    """

    def __init__(
        self, writer: Writer, clock: Clock, key: PauseKey, owner_id: str, rates: Rates
    ) -> None:
        self.key = key
        self._writer = writer
        self._clock = clock
        self._owner_id = owner_id
        self._rates = rates
        self._per_second = rates.per_second()
        self._waiters: deque[tuple[_Cost, asyncio.Future[tuple[float, _Cost]]]] = deque()
        self._reserver: asyncio.Task[None] | None = None
        self._pause = PauseState()
        # Where many calls a second are allowed, turns are taken ahead for the next few moments, so
        # that most calls wait for no transaction; at worst so much of the rate goes unused.
        self._ahead = 0 if rates.requests is None else int(rates.requests / 60.0 * _AHEAD_S)
        self._ahead = min(self._ahead, _MAX_AHEAD)
        self._turns: deque[tuple[float, _Cost]] = deque()
        self._recent: _Cost = (1.0, 0.0, 0.0)
        # Host time minus ledger time, at its smallest seen: the clocks' difference plus the
        # quickest commit.
        self._offset_s = float("inf")
        self._late_s = _tolerated_lateness_s(rates)
        self._misses = 0

    async def open(self) -> None:
        """Tell the other processes this run's rates; call once before `acquire`."""
        if not self._rates.unlimited:
            await self._writer.post(DECLARE, Declare(self.key, self._owner_id, self._per_second))

    async def acquire(self, input_tokens: float, output_tokens: float) -> Ticket:
        """Wait for a turn.

        Args:
            input_tokens: estimated prompt tokens.
            output_tokens: expected output tokens.

        Returns:
            A ticket. The caller may still have to sleep until `go_at`, which is at most a few
            milliseconds away.
        """
        began = self._clock.now()
        cost = (1.0, input_tokens, output_tokens)
        while True:
            left = self._pause.paused_until - self._clock.now()
            if left > 0:
                await self._clock.sleep(left)
                continue
            if self._rates.unlimited:
                now = self._clock.now()
                return Ticket(now, now - began, cost)
            go_at, cost = await self._turn(cost)
            # Wake a little early: the write-ahead of the attempt fits into the rest of the wait.
            now = self._clock.now()
            if go_at - now > 0.01:
                await self._clock.sleep(go_at - now - 0.01)
                now = self._clock.now()
            ticket = Ticket(go_at, max(now, go_at) - began, cost)
            # A turn that falls into a pause is given up; one after it stays good.
            if self._pause.paused_until <= now and not self.missed(ticket):
                return ticket

    def missed(self, ticket: Ticket) -> bool:
        """Whether the ticket's turn has passed, so that a new one must be taken.

        A stalled process would otherwise send in bunches. One that is late all the time sends late.
        """
        if self._clock.now() <= ticket.go_at + self._late_s or self._misses >= _MAX_MISSES:
            self._misses = 0
            return False
        self._misses += 1
        return True

    def learn(self, pause: PauseState) -> None:
        """Take note of the shared pause, as the ledger told it at an admission."""
        if pause.paused_until > self._pause.paused_until:
            self._pause = pause

    async def pause(self, seconds: float, reason: str) -> None:
        """Stop every process's calls with this key to this model for `seconds`."""
        until = self._clock.now() + seconds
        self.learn(await self._writer.post(PAUSE, Pause(self.key, until, reason)))

    def correct(self, ticket: Ticket, input_tokens: float, output_tokens: float) -> None:
        """Replace the ticket's estimates by the real usage."""
        _, input_rate, output_rate = self._per_second
        moved = (
            0.0,
            0.0 if input_rate is None else (input_tokens - ticket.cost[1]) / input_rate,
            0.0 if output_rate is None else (output_tokens - ticket.cost[2]) / output_rate,
        )
        if any(moved):
            self._writer.post(CORRECT, Correct(self.key, moved))

    async def _turn(self, cost: _Cost) -> tuple[float, _Cost]:
        """A go-time, and the cost that was reserved for it."""
        self._recent = cost
        while self._turns:
            turn = self._turns.popleft()
            if self._clock.now() <= turn[0] + self._late_s:
                if len(self._turns) < self._ahead // 2:
                    self._wake_reserver()
                return turn
        waiter: asyncio.Future[tuple[float, _Cost]] = asyncio.get_running_loop().create_future()
        self._waiters.append((cost, waiter))
        self._wake_reserver()
        return await waiter

    def _wake_reserver(self) -> None:
        if self._reserver is None or self._reserver.done():
            self._reserver = asyncio.create_task(self._reserve_for_waiters())

    async def _reserve_for_waiters(self) -> None:
        """Reserve for everyone who waits and some turns ahead, one shared statement at a time."""
        try:
            while self._waiters or len(self._turns) < self._ahead // 2:
                while self._waiters and self._waiters[0][1].done():
                    self._waiters.popleft()
                costs = [cost for cost, _ in self._waiters] + [self._recent] * self._ahead
                if not costs:
                    return
                answer = await self._writer.post(
                    RESERVE, Reserve(self.key, self._owner_id, self._per_second, costs)
                )
                self._offset_s = min(self._offset_s, self._clock.now() - answer.now)
                for delay, cost in zip(answer.delays, costs, strict=False):
                    turn = answer.now + self._offset_s + delay, cost
                    # Who came meanwhile takes a turn that was reserved ahead.
                    waiter = self._waiters.popleft()[1] if self._waiters else None
                    if waiter is None:
                        self._turns.append(turn)
                    elif not waiter.done():
                        waiter.set_result(turn)
                if not self._waiters:
                    return
                if answer.retry_s > 0:
                    await self._clock.sleep(answer.retry_s)
        except Exception as error:
            while self._waiters:
                _, waiter = self._waiters.popleft()
                if not waiter.done():
                    waiter.set_exception(error)
