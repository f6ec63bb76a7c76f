"""Reservations in the ledger: buckets per minute, counts per day, and which limits hold.

What belongs here: the arithmetic of a reservation, and the statements of the gate. What does not:
waiting (limiter.py), slots (slots.py), limits set by hand (by_hand.py).

Each limit per minute is a generic cell rate algorithm: a row holds the time at which its bucket is
next free. One transaction finds the *joint* go-time of a request over all its buckets and moves
every bucket to it. No burst is spent on purpose: a provider's own bucket then has its whole depth
left for jitter on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from batch_pipeline.ledger.calls import PauseKey
from batch_pipeline.ledger.store import execute_many, upsert
from batch_pipeline.ledger.tables import (
    day_counts,
    gates,
    limit_overrides,
    limit_rates,
    limits,
    owners,
    pauses,
)
from batch_pipeline.ledger.writer import Operation
from batch_pipeline.limits.days import day_of, next_day_at
from batch_pipeline.limits.rates import (
    BUCKETS,
    DIMENSIONS,
    REQUESTS,
    REQUESTS_PER_DAY,
    Amounts,
    Rates,
)

LOOK_AHEAD_S = 1.0
"""Go-times are handed out at most this far ahead, so that processes share fairly and pauses
bite."""

TERMS_GOOD_S = 0.5
"""Terms read longer ago than this are read again before turns are given by them."""

ANY = "*"
"""Stands for every model, or every key, in what is set by hand."""

Cost = tuple[float, float, float]
"""What a request takes of each of BUCKETS."""

_NONE: Amounts = (None,) * len(DIMENSIONS)  # type: ignore[assignment]
_PER_DAY = DIMENSIONS.index(REQUESTS_PER_DAY)


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a key at one moment, as everyone sees it.

    Attributes:
        by_hand: limits that an operator set; they win.
        declared: the lowest limit that any live owner works with.
        sharers: live owners that work with a limit on requests a minute.
        paused_until: ledger time until which nobody may call.
        read_at: ledger time.
    """

    by_hand: Amounts = _NONE
    declared: Amounts = _NONE
    sharers: int = 0
    paused_until: float = 0.0
    read_at: float = -math.inf

    def limits_of(self, own: Amounts) -> Amounts:
        """The limits for an owner who works with `own`."""
        found: list[float | None] = []
        for hand, declared, mine in zip(self.by_hand, self.declared, own, strict=True):
            if hand is not None:
                found.append(hand)
            elif declared is None or mine is None:
                found.append(mine if declared is None else declared)
            else:
                found.append(min(declared, mine))
        return tuple(found)  # type: ignore[return-value]


_KEY_NAMES = ["realm", "provider", "model", "key_id"]


def key_values(key: PauseKey) -> dict[str, Any]:
    """The columns that name a key."""
    return {
        "realm": key.realm,
        "provider": key.provider,
        "model": key.model,
        "key_id": key.key_id,
    }


def of_key(table: sa.Table) -> sa.ColumnElement[bool]:
    """Rows of exactly the key in the parameters."""
    return sa.and_(*(table.c[name] == sa.bindparam(name) for name in _KEY_NAMES))


def covering_key(table: sa.Table) -> sa.ColumnElement[bool]:
    """Rows that hold for the key in the parameters, wildcards included."""
    return sa.and_(
        table.c.realm == sa.bindparam("realm"),
        table.c.provider == sa.bindparam("provider"),
        table.c.model.in_([sa.bindparam("model"), ANY]),
        table.c.key_id.in_([sa.bindparam("key_id"), ANY]),
    )


_LIVE_OWNERS = sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > sa.bindparam("now"))
_DECLARED = (
    sa.select(limit_rates.c.dimension, sa.func.min(limit_rates.c.amount), sa.func.count())
    .where(of_key(limit_rates), limit_rates.c.owner_id.in_(_LIVE_OWNERS))
    .group_by(limit_rates.c.dimension)
)
# The more exactly a row names the key, the later it comes, and wins.
_BY_HAND = (
    sa.select(limit_overrides.c.dimension, limit_overrides.c.amount)
    .where(covering_key(limit_overrides))
    .order_by(
        sa.case((limit_overrides.c.key_id == ANY, 0), else_=1),
        sa.case((limit_overrides.c.model == ANY, 0), else_=1),
    )
)
_PAUSED_UNTIL = sa.select(sa.func.max(pauses.c.paused_until)).where(covering_key(pauses))


def read_terms(connection: sa.Connection, now: float, key: PauseKey) -> Terms:
    """What holds for `key` at ledger time `now`."""
    named = key_values(key)
    declared = connection.execute(_DECLARED, {**named, "now": now}).all()
    by_hand = connection.execute(_BY_HAND, named).tuples().all()
    return Terms(
        by_hand=_in_order(dict(by_hand)),
        declared=_in_order({dimension: lowest for dimension, lowest, _ in declared}),
        sharers=next((count for dimension, _, count in declared if dimension == REQUESTS), 0),
        paused_until=connection.execute(_PAUSED_UNTIL, named).scalar() or 0.0,
        read_at=now,
    )


def _in_order(amounts: Mapping[str, float]) -> Amounts:
    return tuple(amounts.get(dimension) for dimension in DIMENSIONS)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Reserve:
    """Waiters of one process at one gate ask for go-times.

    Attributes:
        key: whose buckets.
        own: the limits that their owner works with.
        costs: for each waiter, in order, what it takes from each bucket.
        terms: what was read before; None reads anew.
    """

    key: PauseKey
    own: Amounts
    costs: Sequence[Cost]
    terms: Terms | None = None


@dataclass(frozen=True, slots=True)
class Reserved:
    """The answer.

    Attributes:
        now: the ledger's time of the transaction, in UTC seconds.
        delays: seconds from `now` until the go-time, for as many waiters (from the first) as fit
            into LOOK_AHEAD_S and into the day.
        retry_s: seconds until it makes sense to ask again for the rest.
        day_full: the rest does not fit into the day.
        terms: what holds.
    """

    now: float
    delays: list[float]
    retry_s: float
    day_full: bool = False
    terms: Terms = Terms()


@dataclass(frozen=True, slots=True)
class DayLeft:
    """How many more requests fit into a day.

    Attributes:
        ends_at: when the day ends, in UTC seconds.
        today: requests left until then.
        tomorrow: requests left in the day after.
    """

    ends_at: float = math.inf
    today: float = math.inf
    tomorrow: float = math.inf


_ENDLESS = DayLeft()


def plan_reservation(
    now: float,
    arrivals: Sequence[float],
    rates: Sequence[float | None],
    costs: Sequence[Cost],
    look_ahead_s: float = LOOK_AHEAD_S,
    day: DayLeft = _ENDLESS,
) -> tuple[Reserved, list[float]]:
    """Hand out go-times, purely: the arithmetic of one reservation transaction.

    Args:
        now: UTC seconds.
        arrivals: when each bucket is next free.
        rates: units per second of each bucket; None is no limit.
        costs: what each waiter takes from each bucket, in waiting order.
        look_ahead_s: how far ahead go-times may lie.
        day: what is left of the day.

    Returns:
        The answer, and when each bucket is next free afterwards.
    """
    free_at = list(arrivals)
    delays: list[float] = []
    retry_s = 0.0
    day_full = False
    today, tomorrow = day.today, day.tomorrow
    for cost in costs:
        go = now
        for place, rate in enumerate(rates):
            if rate is not None:
                go = max(go, free_at[place])
        if today < 1:
            # Close to midnight it is worth waiting for.
            go = max(go, day.ends_at)
        if go > now + look_ahead_s:
            day_full = today < 1
            retry_s = 0.0 if day_full else go - now - look_ahead_s
            break
        if go < day.ends_at:
            today -= 1
        elif tomorrow < 1:
            day_full = True
            break
        else:
            tomorrow -= 1
        for place, rate in enumerate(rates):
            if rate is not None:
                free_at[place] = go + cost[place] / rate
        delays.append(go - now)
    return Reserved(now, delays, retry_s, day_full), free_at


_ARRIVALS = sa.select(limits.c.dimension, limits.c.arrival_at).where(of_key(limits))
_COUNTED = sa.select(day_counts.c.requests).where(
    of_key(day_counts), day_counts.c.day == sa.bindparam("day")
)


@lru_cache
def _upsert_limit(dialect: str) -> Any:
    return upsert(dialect, limits, [*_KEY_NAMES, "dimension"], update=["arrival_at"])


@lru_cache
def _add_to_day(dialect: str) -> Any:
    insert: Any
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    statement = insert(day_counts)
    return statement.on_conflict_do_update(
        index_elements=[*_KEY_NAMES, "day"],
        set_={"requests": day_counts.c.requests + statement.excluded["requests"]},
    )


def _reserve(connection: sa.Connection, now: float, requests: Sequence[Reserve]) -> list[Reserved]:
    answers = []
    for request in requests:
        named = key_values(request.key)
        terms = request.terms
        if terms is None or now - terms.read_at >= TERMS_GOOD_S:
            terms = read_terms(connection, now, request.key)
        allowed = terms.limits_of(request.own)
        rates = [None if amount is None else amount / 60.0 for amount in allowed[: len(BUCKETS)]]
        arrivals = [0.0] * len(BUCKETS)
        limited = any(rate is not None for rate in rates)
        if limited:
            for dimension, arrival_at in connection.execute(_ARRIVALS, named):
                arrivals[BUCKETS.index(dimension)] = arrival_at
        day = _day_left(connection, now, named, allowed[_PER_DAY])
        answer, free_at = plan_reservation(now, arrivals, rates, request.costs, day=day)
        if answer.delays and limited:
            execute_many(
                connection,
                _upsert_limit(connection.dialect.name),
                [
                    {**named, "dimension": dimension, "arrival_at": at}
                    for dimension, at, rate in zip(BUCKETS, free_at, rates, strict=True)
                    if rate is not None
                ],
            )
        _count(connection, request.key, now, answer.delays)
        answers.append(Reserved(now, answer.delays, answer.retry_s, answer.day_full, terms))
    return answers


def _day_left(
    connection: sa.Connection, now: float, named: dict[str, Any], limit: float | None
) -> DayLeft:
    if limit is None:
        return _ENDLESS
    provider = named["provider"]
    ends_at = next_day_at(provider, now)
    left = []
    for at in (now, ends_at):
        counted = connection.execute(_COUNTED, {**named, "day": day_of(provider, at)}).scalar()
        left.append(limit - (counted or 0))
    return DayLeft(ends_at, *left)


def _count(connection: sa.Connection, key: PauseKey, now: float, delays: Sequence[float]) -> None:
    """Count turns in the day that they fall into."""
    if not delays:
        return
    ends_at = next_day_at(key.provider, now)
    today = len(delays)
    if now + delays[-1] >= ends_at:
        today = sum(1 for delay in delays if now + delay < ends_at)
    counts = {day_of(key.provider, now): today}
    if today < len(delays):
        counts[day_of(key.provider, ends_at)] = len(delays) - today
    add_to_days(connection, key, counts)


def add_to_days(connection: sa.Connection, key: PauseKey, counts: Mapping[str, int]) -> None:
    """Add requests (which may be negative: turns not used) to days."""
    rows = [
        {**key_values(key), "day": day, "requests": count} for day, count in counts.items() if count
    ]
    execute_many(connection, _add_to_day(connection.dialect.name), rows)


RESERVE: Operation[Reserved] = Operation("reserve", 6, _reserve, overtakes=True)


@dataclass(frozen=True, slots=True)
class Count:
    """Requests to add to a key's days; negative for turns that were not used."""

    key: PauseKey
    requests: Mapping[str, int]


def _count_all(connection: sa.Connection, now: float, requests: Sequence[Count]) -> list[None]:
    for request in requests:
        add_to_days(connection, request.key, request.requests)
    return [None] * len(requests)


COUNT: Operation[None] = Operation("count requests", 4, _count_all, overtakes=True)


@dataclass(frozen=True, slots=True)
class Look:
    """A gate that needs no turns writes down what it let pass, and sees what holds now."""

    key: PauseKey
    passed: int


def _look(connection: sa.Connection, now: float, requests: Sequence[Look]) -> list[Terms]:
    answers = []
    for request in requests:
        if request.passed:
            day = day_of(request.key.provider, now)
            add_to_days(connection, request.key, {day: request.passed})
        answers.append(read_terms(connection, now, request.key))
    return answers


LOOK: Operation[Terms] = Operation("look at limits", 7, _look, overtakes=True)


@dataclass(frozen=True, slots=True)
class Declare:
    """An owner says what limits it works with; they count until its lease ends."""

    key: PauseKey
    owner_id: str
    own: Rates


def _declare(connection: sa.Connection, now: float, requests: Sequence[Declare]) -> list[None]:
    for request in requests:
        named = {**key_values(request.key), "owner_id": request.owner_id}
        connection.execute(
            limit_rates.delete().where(
                of_key(limit_rates), limit_rates.c.owner_id == sa.bindparam("owner_id")
            ),
            named,
        )
        rows = [
            {**named, "dimension": dimension, "amount": amount, "source": source.value}
            for dimension, amount, source in zip(
                DIMENSIONS, request.own.amounts, request.own.sources, strict=True
            )
            if amount is not None
        ]
        if rows:
            connection.execute(limit_rates.insert(), rows)
    return [None] * len(requests)


DECLARE: Operation[None] = Operation("declare limits", 2, _declare)


@dataclass(frozen=True, slots=True)
class Correct:
    """A call used more or less than its estimate: move its buckets by so many seconds."""

    key: PauseKey
    seconds: Cost


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
        for dimension, seconds in zip(BUCKETS, request.seconds, strict=True):
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


@dataclass(frozen=True, slots=True)
class HoldBack:
    """The provider says that a bucket is empty: it is not free again before so many seconds.

    Attributes:
        key: whose buckets.
        seconds: for each of BUCKETS; 0 leaves it.
    """

    key: PauseKey
    seconds: Cost


def _hold_back(connection: sa.Connection, now: float, requests: Sequence[HoldBack]) -> list[None]:
    statement = _raise_limit(connection.dialect.name)
    for request in requests:
        named = key_values(request.key)
        execute_many(
            connection,
            statement,
            [
                {**named, "dimension": dimension, "arrival_at": now + seconds}
                for dimension, seconds in zip(BUCKETS, request.seconds, strict=True)
                if seconds > 0
            ],
        )
    return [None] * len(requests)


@lru_cache
def _raise_limit(dialect: str) -> Any:
    excluded = sa.literal_column("excluded.arrival_at", sa.Float)
    return upsert(
        dialect,
        limits,
        [*_KEY_NAMES, "dimension"],
        update=["arrival_at"],
        where=limits.c.arrival_at < excluded,
    )


HOLD_BACK: Operation[None] = Operation("hold back", 5, _hold_back, overtakes=True)


@dataclass(frozen=True, slots=True)
class Report:
    """How a run stands at a gate, for those who look on.

    Attributes:
        key: whose gate.
        owner_id: the run's owner.
        in_flight: calls on their way.
        waiting: calls that wait for a slot or a turn.
    """

    key: PauseKey
    owner_id: str
    in_flight: int
    waiting: int


@lru_cache
def upsert_gate(dialect: str, update: tuple[str, ...]) -> Any:
    """Write `update` columns of a run's row in `gates`."""
    return upsert(dialect, gates, [*_KEY_NAMES, "owner_id"], update=list(update))


def _report(connection: sa.Connection, now: float, requests: Sequence[Report]) -> list[None]:
    statement = upsert_gate(connection.dialect.name, ("in_flight", "waiting", "updated_at"))
    execute_many(
        connection,
        statement,
        [
            {
                **key_values(request.key),
                "owner_id": request.owner_id,
                "in_flight": request.in_flight,
                "waiting": request.waiting,
                "updated_at": now,
            }
            for request in requests
        ],
    )
    return [None] * len(requests)


REPORT: Operation[None] = Operation("report gate", 8, _report, overtakes=True)
