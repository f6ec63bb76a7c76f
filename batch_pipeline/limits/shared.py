"""What all processes share about keys and models at one moment, for those who look on.

What belongs here: reading. What does not: how it is shown (cli/limits.py, component/resources.py),
and changing it (by_hand.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from batch_pipeline.ledger.calls import PauseKey
from batch_pipeline.ledger.tables import (
    day_counts,
    gates,
    limit_overrides,
    limit_rates,
    limits,
    owners,
    pauses,
    runs,
)
from batch_pipeline.limits.days import day_of, next_day_at
from batch_pipeline.limits.rates import BUCKETS, CONCURRENT, DIMENSIONS, REQUESTS_PER_DAY, Source
from batch_pipeline.limits.reservation import ANY, key_values, of_key, read_terms
from batch_pipeline.settings import Realm


@dataclass(frozen=True, slots=True)
class SharedLimit:
    """One limit and its present use.

    Attributes:
        dimension: one of DIMENSIONS.
        amount: in the dimension's unit; None is no limit.
        source: who says so; None without a limit.
        used: requests of the provider's day, or slots held; None for a limit per minute.
        free_in_s: seconds until the bucket is next free; None for other limits.
    """

    dimension: str
    amount: float | None
    source: Source | None
    used: int | None = None
    free_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class RunAtGate:
    """A run that works with the key now.

    Attributes:
        run_id: its id.
        batch_id: its batch; empty where it is not known.
        host: where it runs.
        pid: its process.
        held: slots that it holds.
        in_flight: calls on their way.
        waiting: calls that wait for a slot or a turn.
    """

    run_id: str
    batch_id: str
    host: str
    pid: int
    held: int
    in_flight: int
    waiting: int


@dataclass(frozen=True, slots=True)
class SharedKey:
    """One key and model.

    Attributes:
        provider: provider name.
        model: `provider/model`, or `*` where something was set for all of the provider's.
        key_id: the key, or `*`.
        limits: one for each dimension, in the order of DIMENSIONS.
        paused_s: seconds that nobody may call; infinite until someone resumes it.
        pause_reason: why.
        resets_at: when the provider's next day begins, in UTC seconds.
        runs: the live runs at its gate.
    """

    provider: str
    model: str
    key_id: str
    limits: tuple[SharedLimit, ...]
    paused_s: float
    pause_reason: str
    resets_at: float
    runs: tuple[RunAtGate, ...]

    def limit(self, dimension: str) -> SharedLimit:
        """The limit of a dimension."""
        return self.limits[DIMENSIONS.index(dimension)]


ENDLESS_S = 365 * 86_400.0
"""A pause that is longer than this was set without an end."""

_KEYED = (limits, limit_rates, limit_overrides, day_counts, gates, pauses)


def list_shared(connection: sa.Connection, now: float, realm: Realm) -> list[SharedKey]:
    """Every key and model that was called today, is worked with now, or was set something for."""
    live = sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > now)
    found: set[tuple[str, str, str]] = set()
    for table in _KEYED:
        statement = sa.select(
            table.c.provider, table.c.model, table.c.key_id, *_day_column(table)
        ).where(table.c.realm == realm)
        if table in (gates, limit_rates):
            statement = statement.where(table.c.owner_id.in_(live))
        elif table is pauses:
            statement = statement.where(pauses.c.paused_until > now)
        elif table is limits:
            statement = statement.where(limits.c.arrival_at > now)
        for row in connection.execute(statement.distinct()):
            if table is not day_counts or row.day == day_of(row.provider, now):
                found.add((row.provider, row.model, row.key_id))
    return [read_shared(connection, now, PauseKey(realm, *one)) for one in sorted(found)]


def _day_column(table: sa.Table) -> Iterable[sa.ColumnElement[str]]:
    return [day_counts.c.day] if table is day_counts else []


_SOURCES = (
    sa.select(limit_rates.c.dimension, limit_rates.c.amount, limit_rates.c.source)
    .join(owners, owners.c.owner_id == limit_rates.c.owner_id)
    .where(of_key(limit_rates), owners.c.lease_expires_at > sa.bindparam("now"))
    .order_by(limit_rates.c.amount.desc())
)
_BUSY = sa.select(limits.c.dimension, limits.c.arrival_at).where(of_key(limits))
_TODAY = sa.select(day_counts.c.requests).where(
    of_key(day_counts), day_counts.c.day == sa.bindparam("day")
)
_PAUSES = (
    sa.select(pauses.c.paused_until, pauses.c.reason)
    .where(
        pauses.c.realm == sa.bindparam("realm"),
        pauses.c.provider == sa.bindparam("provider"),
        pauses.c.model.in_([sa.bindparam("model"), ANY]),
        pauses.c.key_id.in_([sa.bindparam("key_id"), ANY]),
        pauses.c.paused_until > sa.bindparam("now"),
    )
    .order_by(pauses.c.paused_until.desc())
    .limit(1)
)
_RUNS = (
    sa.select(
        owners.c.run_id,
        owners.c.host,
        owners.c.pid,
        gates.c.held,
        gates.c.in_flight,
        gates.c.waiting,
        sa.select(sa.func.max(runs.c.batch_id))
        .where(runs.c.owner_id == owners.c.owner_id)
        .scalar_subquery()
        .label("batch_id"),
    )
    .join(owners, owners.c.owner_id == gates.c.owner_id)
    .where(of_key(gates), owners.c.lease_expires_at > sa.bindparam("now"))
    .order_by(owners.c.started_at, owners.c.owner_id)
)


def read_shared(connection: sa.Connection, now: float, key: PauseKey) -> SharedKey:
    """What holds for one key and model, and who works with it."""
    named = key_values(key)
    at_now = {**named, "now": now}
    terms = read_terms(connection, now, key)
    # The lowest comes last, and wins.
    declared = {row.dimension: Source(row.source) for row in connection.execute(_SOURCES, at_now)}
    arrivals = dict(connection.execute(_BUSY, named).tuples().all())
    today = connection.execute(_TODAY, {**named, "day": day_of(key.provider, now)}).scalar()
    working = tuple(
        RunAtGate(
            run_id=row.run_id,
            batch_id=row.batch_id or "",
            host=row.host.partition("/")[0],
            pid=row.pid,
            held=row.held,
            in_flight=row.in_flight,
            waiting=row.waiting,
        )
        for row in connection.execute(_RUNS, at_now)
    )
    used = {
        REQUESTS_PER_DAY: today or 0,
        CONCURRENT: sum(max(run.held, run.in_flight) for run in working),
    }
    allowed = terms.limits_of((None,) * len(DIMENSIONS))  # type: ignore[arg-type]
    paused = connection.execute(_PAUSES, at_now).first()
    paused_s = 0.0 if paused is None else paused.paused_until - now
    return SharedKey(
        provider=key.provider,
        model=key.model,
        key_id=key.key_id,
        limits=tuple(
            SharedLimit(
                dimension,
                allowed[place],
                Source.HAND if terms.by_hand[place] is not None else declared.get(dimension),
                used=used.get(dimension),
                free_in_s=max(0.0, arrivals.get(dimension, 0.0) - now)
                if dimension in BUCKETS
                else None,
            )
            for place, dimension in enumerate(DIMENSIONS)
        ),
        paused_s=math.inf if paused_s > ENDLESS_S else paused_s,
        pause_reason="" if paused is None else paused.reason,
        resets_at=next_day_at(key.provider, now),
        runs=working,
    )
