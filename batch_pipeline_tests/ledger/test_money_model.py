"""Attempts and budgets: each call is counted once, and no budget is passed, in any order.

Two machines: one watches what an attempt's row may become, the other keeps the balances beside the
ledger's and says in advance what is admitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from batch_pipeline.ledger.calls import (
    ADMIT,
    OWNER_LEASE_S,
    REAP_GRACE_S,
    RECONCILE,
    SETTLE,
    STORE_LATE,
    Reconcile,
    Settlement,
    StoreResults,
    unpack_bytes,
)
from batch_pipeline.ledger.spend import Account, Balance, Budget, Scope, accounts_of
from batch_pipeline.ledger.tables import AttemptState, attempts, replies, spend
from batch_pipeline.limits.days import day_of
from batch_pipeline_tests.ledger.books import MODEL, new_attempt
from batch_pipeline_tests.ledger.machine import EXAMPLES, LedgerMachine, run_on_postgresql
from batch_pipeline_tests.postgres import Postgres

SENT, SETTLED = AttemptState.SENT, AttemptState.SETTLED
LOST, REFUNDED = AttemptState.LOST, AttemptState.REFUNDED

TIMEOUT_S = 5.0
"""Calls whose deadline and grace are past while their owner still lives are part of the game."""

names_ = st.sampled_from(["ada", "bob"])
places_ = st.integers(0, 11)
ends_ = st.sampled_from([SETTLED, SETTLED, LOST, REFUNDED])


class WithProcesses(LedgerMachine):
    """What both machines have: processes that come, die and end."""

    @rule(name=names_)
    def beats(self, name: str) -> None:
        self.beat(name)

    @rule(name=names_)
    def dies(self, name: str) -> None:
        self.kill(name)

    @rule(name=names_)
    def ends(self, name: str) -> None:
        self.retire(name)

    def worker(self, name: str) -> str:
        """The owner of a process that is at work."""
        owner = self.owner(name)
        return owner if self.works(owner) else self.beat(name)


# ---- attempt states ----

ALLOWED = {
    (SENT, SETTLED),
    (SENT, LOST),
    (SENT, REFUNDED),
    (LOST, SETTLED),
    # A process that stood still learns late that it never sent what others gave up.
    (LOST, REFUNDED),
}


class States(WithProcesses):
    """What becomes of the rows of attempts; the machine looks at each before and after a step."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.seen: dict[str, dict[str, Any]] = {}
        self.given: dict[str, bytes] = {}

    def name_of(self, place: int) -> str | None:
        return f"attempt-{place % self.count}" if self.count else None

    @rule(name=names_, count=st.integers(1, 2))
    def admit(self, name: str, count: int) -> None:
        owner = self.worker(name)
        new = [
            new_attempt(f"attempt-{self.count + at}", owner, timeout_s=TIMEOUT_S)
            for at in range(count)
        ]
        assert all(answer.admitted for answer in self.apply(ADMIT, *new))
        self.count += count

    @rule(words=st.lists(st.tuples(places_, ends_, st.integers(0, 9)), min_size=1, max_size=3))
    def settle(self, words: list[tuple[int, AttemptState, int]]) -> None:
        """Several settlements in one group, of one attempt, too; each brings another reply."""
        settlements = []
        for place, state, cost in words:
            attempt = self.name_of(place)
            if attempt is None:
                return
            reply = f"{attempt} {len(self.given)} {cost}".encode() if state is SETTLED else None
            if reply is not None:
                self.given.setdefault(attempt, reply)
            settlements.append(
                Settlement(
                    attempt,
                    state,
                    5_000 if state is LOST else cost if state is SETTLED else 0,
                    derived=cost > 4,
                    request=None if state is REFUNDED else b"request",
                    reply=reply,
                )
            )
        self.apply(SETTLE, *settlements)
        for settlement in settlements:
            # What was paid is known from here on, however late: nothing turns it back.
            row = self.row(settlement.attempt_id)
            if settlement.state is SETTLED:
                assert row["state"] in (SETTLED, REFUNDED)
                assert row["reply"] == self.given[settlement.attempt_id]
            assert row["state"] != SENT

    @rule(place=places_, cost=st.integers(0, 9))
    def reconcile(self, place: int, cost: int) -> None:
        attempt = self.name_of(place)
        if attempt is None:
            return
        before = self.row(attempt)
        [done] = self.apply(RECONCILE, Reconcile(attempt, cost))
        after = self.row(attempt)
        assert done == (before["state"] == LOST)
        if done:
            assert (after["state"], after["cost_nano"]) == (SETTLED, cost)
            assert after["reconciled_at"] == self.now

    @rule(place=places_, complete=st.booleans())
    def derive_late(self, place: int, complete: bool) -> None:
        attempt = self.name_of(place)
        if attempt is None or self.row(attempt)["state"] != SETTLED:
            return
        answers = [("key-0", {"of": attempt})]
        stored = StoreResults(
            "simulated", "roadmaps", "enrich", MODEL, attempt, "late", answers, complete=complete
        )
        self.apply(STORE_LATE, stored)
        if complete:
            assert self.row(attempt)["derived"]

    @rule()
    def the_dead_are_buried(self) -> None:
        before = self.read()
        lost = self.bury()
        gone = {
            name
            for name, row in before.items()
            if row["state"] == SENT
            and not self.alive(row["owner_id"])
            and row["deadline_at"] + REAP_GRACE_S < self.now
        }
        after = self.read()
        assert {name for name in before if after[name]["state"] != before[name]["state"]} == gone
        assert all(
            (after[name]["state"], after[name]["cost_nano"]) == (LOST, 5_000) for name in gone
        )
        assert lost == len(gone)

    @rule(seconds=st.sampled_from([1.0, OWNER_LEASE_S - 2.0, OWNER_LEASE_S + 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_attempt_becomes_what_it_may_not(self) -> None:
        rows = self.read()
        assert len(rows) == self.count
        for name, row in rows.items():
            old = self.seen.get(name, row)
            before, after = AttemptState(old["state"]), AttemptState(row["state"])
            assert before is after or (before, after) in ALLOWED
            if before in (SETTLED, REFUNDED):
                # But for what is derived from it, and the reply of a call that was reconciled.
                kept = {**row, "derived": old["derived"]}
                if old["reply"] is None:
                    kept |= {"reply": None, "request": old["request"]}
                assert kept == old
                assert row["derived"] >= old["derived"]
            if old["reply"] is not None:
                assert row["reply"] == old["reply"]
            assert (after is REFUNDED) <= (row["cost_nano"] == 0)
        self.seen = rows

    def row(self, attempt: str) -> dict[str, Any]:
        return self.read()[attempt]

    def read(self) -> dict[str, dict[str, Any]]:
        rows = self.connection.execute(_ROWS).mappings()
        return {
            row["attempt_id"]: {
                **row,
                "request": row["request"] and unpack_bytes(row["request"]),
                "reply": row["reply"] and unpack_bytes(row["reply"]),
            }
            for row in rows
        }


_ROWS = sa.select(
    *(
        attempts.c[name]
        for name in (
            "attempt_id",
            "state",
            "owner_id",
            "worst_nano",
            "cost_nano",
            "sent_at",
            "deadline_at",
            "settled_at",
            "reconciled_at",
            "derived",
        )
    ),
    replies.c.request,
    replies.c.reply,
).outerjoin(replies, replies.c.attempt_id == attempts.c.attempt_id)

TestStates = States.TestCase
TestStates.settings = EXAMPLES


def test_attempts_become_the_same_on_postgresql(postgres: Postgres) -> None:
    run_on_postgresql(postgres, States)


# ---- budgets ----


@dataclass(frozen=True)
class Call:
    """What the model knows of an attempt."""

    owner: str
    accounts: tuple[Account, Account, Account]
    worst: int
    deadline_at: float
    state: AttemptState = SENT
    nano: int = 0

    @property
    def counts(self) -> Balance:
        """What it counts in its accounts."""
        if self.state is SENT:
            return Balance(reserved=self.worst)
        if self.state is SETTLED:
            return Balance(settled=self.nano)
        return Balance(lost=self.nano) if self.state is LOST else Balance()


Wish = tuple[str, str, int, list[Scope]]
"""Batch, workload, worst case, and the scopes that have a budget."""


class Budgets(WithProcesses):
    """Admission, settlement, loss and reconciliation beside a model that adds up by itself."""

    # a minute before the day turns over in UTC; eight hours later it does in California
    start = datetime(2026, 11, 21, 23, 59, tzinfo=UTC).timestamp()

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Call] = {}
        self.limits = {Scope.BATCH: 60, Scope.WORKLOAD: 80, Scope.PROVIDER: 100}
        self.unbounded: set[Account] = set()

    def balance(self, account: Account) -> Balance:
        counted = [call.counts for call in self.calls.values() if account in call.accounts]
        return Balance(
            sum(each.settled for each in counted),
            sum(each.lost for each in counted),
            sum(each.reserved for each in counted),
        )

    def taken(self, account: Account) -> int:
        """What was paid, may have been paid, or may still have to be."""
        balance = self.balance(account)
        return balance.settled + balance.lost + balance.reserved

    @rule(
        name=names_,
        wishes=st.lists(
            st.tuples(
                st.sampled_from(["one", "two"]),
                st.sampled_from(["roadmaps", "news"]),
                st.integers(0, 50),
                st.sampled_from([list(Scope), list(Scope), *([scope] for scope in Scope)]),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def admit(self, name: str, wishes: list[Wish]) -> None:
        owner = self.worker(name)
        days = day_of("", self.now), day_of("google", self.now)
        new = []
        for at, (batch, workload, worst, scopes) in enumerate(wishes):
            accounts = accounts_of("simulated", batch, workload, days[0], "google", days[1])
            bounds = [
                Budget(account, self.limits[account.scope])
                for account in accounts
                if account.scope in scopes
            ]
            attempt = new_attempt(
                f"attempt-{len(self.calls)}-{at}",
                owner,
                batch_id=batch,
                workload=workload,
                workload_day=days[0],
                provider_day=days[1],
                worst_nano=worst,
                timeout_s=TIMEOUT_S,
                budgets=tuple(bounds),
            )
            new.append((attempt, accounts))
        answers = self.apply(ADMIT, *(attempt for attempt, _ in new))
        together: set[Account] = set()
        for (attempt, accounts), answer in zip(new, answers, strict=True):
            worst = attempt.worst_nano
            short = next(
                (
                    budget
                    for budget in attempt.budgets
                    if self.taken(budget.account) + worst > budget.limit_nano
                ),
                None,
            )
            assert answer.admitted == (short is None)
            if short is None:
                call = Call(owner, accounts, worst, self.now + TIMEOUT_S)
                self.calls[attempt.attempt_id] = call
                bounded = {budget.account for budget in attempt.budgets}
                self.unbounded |= set(accounts) - bounded
                together |= set(accounts)
            else:
                assert answer.short is not None
                assert answer.short.budget == short
                assert answer.short.balance == self.balance(short.account)
                if answer.short.balance.reserved and self.anyone_in_flight(short.account):
                    assert answer.short.may_ease, "there is something to wait for"
                if not answer.short.balance.reserved and not self.in_flight_at_all():
                    assert answer.short.may_ease <= (short.account in together)

    def anyone_in_flight(self, account: Account) -> bool:
        return any(
            call.state is SENT
            and call.worst
            and account in call.accounts
            and self.alive(call.owner)
            for call in self.calls.values()
        )

    def in_flight_at_all(self) -> bool:
        return any(call.state is SENT and self.alive(call.owner) for call in self.calls.values())

    @rule(words=st.lists(st.tuples(places_, ends_, st.floats(0.0, 1.0)), min_size=1, max_size=3))
    def settle(self, words: list[tuple[int, AttemptState, float]]) -> None:
        """Several settlements in one group, of one attempt, too; also of calls given up before."""
        names = list(self.calls)
        if not names:
            return
        settlements = []
        for place, state, share in words:
            name = names[-1 - place % len(names)]
            call = self.calls[name]
            cost = {SETTLED: int(call.worst * share), LOST: call.worst, REFUNDED: 0}[state]
            settlements.append(Settlement(name, state, cost))
            if call.state in (SENT, LOST):
                self.calls[name] = replace(call, state=state, nano=cost)
        self.apply(SETTLE, *settlements)

    @rule(words=st.lists(st.tuples(places_, st.floats(0.0, 1.0)), min_size=1, max_size=3))
    def reconcile(self, words: list[tuple[int, float]]) -> None:
        lost = [name for name, call in self.calls.items() if call.state is LOST]
        names = [*lost, *list(self.calls)[-1:], "unknown"]
        requests = []
        expected = []
        for place, share in words:
            name = names[place % len(names)]
            call = self.calls.get(name)
            cost = int(call.worst * share) if call else 0
            requests.append(Reconcile(name, cost))
            expected.append(call is not None and call.state is LOST)
            if call is not None and call.state is LOST:
                self.calls[name] = replace(call, state=SETTLED, nano=cost)
        assert self.apply(RECONCILE, *requests) == expected

    @rule()
    def the_dead_are_buried(self) -> None:
        lost = self.bury()
        gone = [
            name
            for name, call in self.calls.items()
            if call.state is SENT
            and not self.alive(call.owner)
            and call.deadline_at + REAP_GRACE_S < self.now
        ]
        for name in gone:
            self.calls[name] = replace(self.calls[name], state=LOST, nano=self.calls[name].worst)
        assert lost == len(gone)

    @rule(scope=st.sampled_from(list(Scope)), more=st.integers(1, 40))
    def a_budget_is_raised(self, scope: Scope, more: int) -> None:
        self.limits[scope] += more

    @rule(seconds=st.sampled_from([1.0, OWNER_LEASE_S - 2.0, OWNER_LEASE_S + 0.5, 28_800.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def every_balance_is_the_sum_of_its_calls_and_within_its_budget(self) -> None:
        rows = self.connection.execute(_BALANCES)
        stored = {
            Account(realm, Scope(scope), scope_id, day): Balance(*sums)
            for realm, scope, scope_id, day, *sums in rows
        }
        known = {account for call in self.calls.values() for account in call.accounts}
        assert set(stored) <= known
        for account in known:
            balance = self.balance(account)
            assert stored.get(account, Balance()) == balance
            if account not in self.unbounded:
                assert self.taken(account) <= self.limits[account.scope]

    @invariant()
    def the_attempts_say_the_same(self) -> None:
        rows = self.connection.execute(_STATES)
        assert {name: (state, nano) for name, state, nano in rows} == {
            name: (call.state.value, call.nano) for name, call in self.calls.items()
        }


_BALANCES = sa.select(
    spend.c.realm,
    spend.c.scope,
    spend.c.scope_id,
    spend.c.day,
    spend.c.settled_nano,
    spend.c.lost_nano,
    spend.c.reserved_nano,
)
_STATES = sa.select(attempts.c.attempt_id, attempts.c.state, attempts.c.cost_nano)

TestBudgets = Budgets.TestCase
TestBudgets.settings = EXAMPLES


def test_budgets_hold_on_postgresql(postgres: Postgres) -> None:
    run_on_postgresql(postgres, Budgets)
