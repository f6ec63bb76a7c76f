"""Budgets: what was spent, what is in flight, and whether one more call still fits.

What belongs here: the sums in `spend`, their moves with an attempt's state, and the check at
admission. What does not: attempts themselves (calls.py), prices (pricing/), what a run does when
nothing fits (engine).

A budget bounds settled + lost + reserved: what was paid, what may have been paid, and the worst
case of what is in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from batch_pipeline.ledger.store import execute_many
from batch_pipeline.ledger.tables import AttemptState, attempts, owners, spend


class Scope(StrEnum):
    """What a budget is for."""

    BATCH = "batch"
    WORKLOAD = "workload"
    PROVIDER = "provider"


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """One row of `spend`; `day` is empty for a batch."""

    realm: str
    scope: Scope
    scope_id: str
    day: str = ""


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account holds, in nano-USD.

    Attributes:
        settled: paid.
        lost: worst case of calls whose reply never came, until they are reconciled.
        reserved: worst case of calls in flight.
    """

    settled: int = 0
    lost: int = 0
    reserved: int = 0

    @property
    def spent(self) -> int:
        """Paid, or possibly paid."""
        return self.settled + self.lost

    @property
    def taken(self) -> int:
        """What nobody else may spend."""
        return self.settled + self.lost + self.reserved


@dataclass(frozen=True, slots=True)
class Budget:
    """No attempt is admitted that could take `account` beyond `limit_nano`."""

    account: Account
    limit_nano: int


@dataclass(frozen=True, slots=True)
class Short:
    """An attempt does not fit into a budget.

    Attributes:
        budget: the budget.
        balance: what its account holds now.
        worst_nano: what the attempt could cost.
        may_ease: calls of live runs are in flight there, so their settlement may make room.
    """

    budget: Budget
    balance: Balance
    worst_nano: int
    may_ease: bool

    @property
    def left_nano(self) -> int:
        """What an attempt may still cost at worst."""
        return max(0, self.budget.limit_nano - self.balance.taken)


@lru_cache(maxsize=1_024)
def accounts_of(
    realm: str, batch_id: str, workload: str, workload_day: str, provider: str, provider_day: str
) -> tuple[Account, Account, Account]:
    """The accounts that an attempt counts against."""
    return (
        Account(realm, Scope.BATCH, batch_id),
        Account(realm, Scope.WORKLOAD, workload, workload_day),
        Account(realm, Scope.PROVIDER, provider, provider_day),
    )


_OF_ACCOUNT = (
    spend.c.realm == sa.bindparam("realm"),
    spend.c.scope == sa.bindparam("scope"),
    spend.c.scope_id == sa.bindparam("scope_id"),
    spend.c.day == sa.bindparam("day"),
)
_BALANCE = sa.select(spend.c.settled_nano, spend.c.lost_nano, spend.c.reserved_nano).where(
    *_OF_ACCOUNT
)


def read_balance(connection: sa.Connection, account: Account) -> Balance:
    """What an account holds."""
    row = connection.execute(_BALANCE, _key(account)).first()
    return Balance() if row is None else Balance(*row)


def read_balances(connection: sa.Connection, accounts: Iterable[Account]) -> dict[Account, Balance]:
    """What each of `accounts` holds."""
    return {account: read_balance(connection, account) for account in set(accounts)}


@lru_cache
def _add(dialect: str) -> Any:
    insert: Any
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    statement = insert(spend)
    return statement.on_conflict_do_update(
        index_elements=["realm", "scope", "scope_id", "day"],
        set_={
            name: spend.c[name] + statement.excluded[name]
            for name in ("reserved_nano", "settled_nano", "lost_nano")
        },
    )


def move(connection: sa.Connection, changes: Mapping[Account, Balance]) -> None:
    """Add `changes` (which may be negative) to the balances."""
    rows = [
        {
            **_key(account),
            "reserved_nano": change.reserved,
            "settled_nano": change.settled,
            "lost_nano": change.lost,
        }
        for account, change in sorted(changes.items())
        if change != Balance()
    ]
    execute_many(connection, _add(connection.dialect.name), rows)


Accounts = tuple[Account, Account, Account]


class Changes:
    """Collects what a transaction changes in balances, for one `move`."""

    def __init__(self) -> None:
        # By the identity of `accounts_of`, which gives one tuple for all attempts that share it.
        self._sums: dict[int, tuple[Accounts, list[int]]] = {}

    def touches(self, account: Account) -> bool:
        """Whether anything was noted for `account`."""
        return any(account in accounts for accounts, _ in self._sums.values())

    def change_state(
        self,
        accounts: Accounts,
        before: AttemptState | None,
        before_nano: int,
        after: AttemptState,
        after_nano: int,
    ) -> None:
        """Note that an attempt passed from one state to another.

        Args:
            accounts: the attempt's, as `accounts_of` gives them.
            before: its state; None when it is new.
            before_nano: what it counted in that state.
            after: its new state.
            after_nano: what it counts from now on.
        """
        known = self._sums.get(id(accounts))
        if known is None:
            known = self._sums[id(accounts)] = (accounts, [0, 0, 0])
        sums = known[1]
        if before in _PLACES:
            sums[_PLACES[before]] -= before_nano
        if after in _PLACES:
            sums[_PLACES[after]] += after_nano

    def write(self, connection: sa.Connection) -> None:
        """Add everything up in the ledger."""
        totals: dict[Account, Balance] = {}
        for accounts, (settled, lost, reserved) in self._sums.values():
            for account in accounts:
                known = totals.get(account, Balance())
                totals[account] = Balance(
                    known.settled + settled, known.lost + lost, known.reserved + reserved
                )
        move(connection, totals)


_PLACES: Mapping[AttemptState | None, int] = {
    AttemptState.SETTLED: 0,
    AttemptState.LOST: 1,
    AttemptState.SENT: 2,
}


def find_short(
    connection: sa.Connection,
    now: float,
    budgets: Sequence[Budget],
    balances: Mapping[Account, Balance],
    worst_nano: int,
    changes: Changes,
) -> Short | None:
    """The first budget that an attempt of `worst_nano` does not fit into; None when it fits.

    Args:
        connection: within the admitting transaction.
        now: the ledger's time.
        budgets: what the attempt must fit into.
        balances: of their accounts, with what this transaction has admitted so far.
        worst_nano: what the attempt can cost.
        changes: what this transaction has admitted so far.
    """
    for budget in budgets:
        account = budget.account
        balance = balances[account]
        if balance.taken + worst_nano > budget.limit_nano:
            easing = changes.touches(account) or may_ease(connection, now, account)
            return Short(budget, balance, worst_nano, easing)
    return None


def may_ease(connection: sa.Connection, now: float, account: Account) -> bool:
    """Whether calls of live owners are in flight on the account's cost."""
    live_owners = sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > now)
    column = {
        Scope.BATCH: attempts.c.batch_id,
        Scope.WORKLOAD: attempts.c.workload,
        Scope.PROVIDER: attempts.c.provider,
    }[account.scope]
    statement = (
        sa.select(attempts.c.attempt_id)
        .where(
            attempts.c.state == AttemptState.SENT.value,
            attempts.c.owner_id.in_(live_owners),
            # a provider job settles in hours: nobody waits for that
            attempts.c.lane == "realtime",
            attempts.c.realm == account.realm,
            column == account.scope_id,
            attempts.c.worst_nano > 0,
        )
        .limit(1)
    )
    return connection.execute(statement).first() is not None


def _key(account: Account) -> dict[str, str]:
    return {
        "realm": account.realm,
        "scope": account.scope.value,
        "scope_id": account.scope_id,
        "day": account.day,
    }
