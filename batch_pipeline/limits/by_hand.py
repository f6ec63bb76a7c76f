"""What an operator does to limits while runs go on: set, clear, pause, resume.

What belongs here: the writes, and whether a limit is above what the provider grants. What does not:
what holds now (shared.py), and how gates come to know (limiter.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from batch_pipeline.ledger.store import upsert
from batch_pipeline.ledger.tables import limit_overrides, limit_rates, limits, owners, pauses
from batch_pipeline.limits.rates import BUCKETS, DIMENSIONS, UNITS, Source
from batch_pipeline.limits.reservation import ANY
from batch_pipeline.limits.tiers import granted
from batch_pipeline.settings import Realm

FOREVER = 4_102_444_800.0
"""Until when a pause without an end lasts (2100-01-01)."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What an operator means: a provider, one of its models, one key; `*` is all of them.

    Attributes:
        realm: `live` or `simulated`.
        provider: provider name.
        model: `provider/model`.
        key_id: as `keys check` shows it.
    """

    realm: Realm
    provider: str
    model: str = ANY
    key_id: str = ANY

    @property
    def name(self) -> str:
        """For messages."""
        name = self.provider if self.model == ANY else self.model
        return name if self.key_id == ANY else f"{name} with key {self.key_id}"

    def within(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Rows of `table` that are part of this."""
        found = [table.c.realm == self.realm, table.c.provider == self.provider]
        if self.model != ANY:
            found.append(table.c.model == self.model)
        if self.key_id != ANY:
            found.append(table.c.key_id == self.key_id)
        return sa.and_(*found)

    def _exactly(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return sa.and_(
            table.c.realm == self.realm,
            table.c.provider == self.provider,
            table.c.model == self.model,
            table.c.key_id == self.key_id,
        )

    @property
    def columns(self) -> dict[str, str]:
        """The columns that name it."""
        return {
            "realm": self.realm,
            "provider": self.provider,
            "model": self.model,
            "key_id": self.key_id,
        }


def set_limits(
    connection: sa.Connection, now: float, scope: Scope, amounts: Mapping[str, float]
) -> list[str]:
    """Set limits that hold for every run until they are cleared.

    Args:
        connection: within a transaction.
        now: ledger time.
        scope: for what.
        amounts: by dimension, in its unit.

    Returns:
        A warning for each limit above what the provider grants, as far as that is known.
    """
    if amounts:
        connection.execute(
            upsert(
                connection.dialect.name,
                limit_overrides,
                ["realm", "provider", "model", "key_id", "dimension"],
                update=["amount", "set_at"],
            ),
            [
                {**scope.columns, "dimension": dimension, "amount": amount, "set_at": now}
                for dimension, amount in amounts.items()
            ],
        )
    _begin_anew(connection, scope, amounts)
    return _above_tier(connection, now, scope, amounts)


def clear_limits(connection: sa.Connection, scope: Scope) -> int:
    """Take back what was set for exactly `scope`; gives how many limits that were."""
    found = connection.execute(
        sa.select(limit_overrides.c.dimension).where(scope._exactly(limit_overrides))
    ).scalars()
    dimensions = list(found)
    connection.execute(limit_overrides.delete().where(scope._exactly(limit_overrides)))
    _begin_anew(connection, scope, dict.fromkeys(dimensions, 0.0))
    return len(dimensions)


def pause(
    connection: sa.Connection, now: float, scope: Scope, seconds: float | None, reason: str
) -> float:
    """Let no call pass for `seconds`, or until `resume` where it is None; gives the end."""
    until = FOREVER if seconds is None else now + seconds
    connection.execute(
        upsert(
            connection.dialect.name,
            pauses,
            ["realm", "provider", "model", "key_id"],
            update=["paused_until", "reason"],
        ),
        {**scope.columns, "paused_until": until, "reason": reason},
    )
    return until


def resume(connection: sa.Connection, now: float, scope: Scope) -> tuple[int, list[str]]:
    """End the pauses of `scope`, those that a provider asked for included.

    Returns:
        How many were going on, and the models or providers whose wider pause still holds it.
    """
    ended = connection.execute(
        sa.select(sa.func.count())
        .select_from(pauses)
        .where(scope.within(pauses), pauses.c.paused_until > now)
    ).scalar_one()
    connection.execute(pauses.delete().where(scope.within(pauses)))
    wider = connection.execute(
        sa.select(pauses.c.provider, pauses.c.model)
        .where(
            pauses.c.realm == scope.realm,
            pauses.c.provider == scope.provider,
            pauses.c.model.in_([scope.model, ANY]),
            pauses.c.key_id.in_([scope.key_id, ANY]),
            pauses.c.paused_until > now,
        )
        .order_by(pauses.c.model)
    )
    return ended, [row.provider if row.model == ANY else row.model for row in wider]


def _begin_anew(connection: sa.Connection, scope: Scope, dimensions: Mapping[str, float]) -> None:
    # How full a bucket was at its former rate says nothing about the new one: a large request at a
    # small rate would hold everyone back for as long as before.
    buckets = [dimension for dimension in dimensions if dimension in BUCKETS]
    connection.execute(limits.delete().where(scope.within(limits), limits.c.dimension.in_(buckets)))


def _above_tier(
    connection: sa.Connection, now: float, scope: Scope, amounts: Mapping[str, float]
) -> list[str]:
    live = sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > now)
    declared = dict(
        connection.execute(
            sa.select(limit_rates.c.dimension, sa.func.min(limit_rates.c.amount))
            .where(
                scope.within(limit_rates),
                limit_rates.c.source == Source.TIER.value,
                limit_rates.c.owner_id.in_(live),
            )
            .group_by(limit_rates.c.dimension)
        )
        .tuples()
        .all()
    )
    warnings = []
    for dimension, amount in amounts.items():
        if dimension in declared:
            tier, most = "the tier that runs work with", declared[dimension]
        else:
            tier, most = _most_granted(scope, dimension)
        if amount > most:
            warnings.append(
                f"{amount:,.0f} {UNITS[dimension]} are more than the {most:,.0f} of {tier}: the "
                "provider may refuse calls (429)."
            )
    return warnings


def _most_granted(scope: Scope, dimension: str) -> tuple[str, float]:
    """The tier that grants most; infinite where one does not say how much."""
    model = "" if scope.model == ANY else scope.model.partition("/")[2]
    tiers = granted(scope.provider, model)
    place = DIMENSIONS.index(dimension)
    amounts = [(rates.amounts[place], name) for name, rates in tiers]
    known = [(amount, f"{scope.provider} {name}") for amount, name in amounts if amount is not None]
    if not known or len(known) < len(amounts):
        return "", float("inf")
    most, name = max(known)
    return name, most
