"""Claims: two live owners never both believe that they are to ask the same question."""

from __future__ import annotations

import os
from typing import TypeVar

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from batch_pipeline.ledger.calls import (
    BURY_DEAD,
    CLAIM,
    HEARTBEAT,
    OWNER_LEASE_S,
    RELEASE,
    RETIRE,
    STORE_LATE,
    ClaimKeys,
    Owner,
    ReleaseKeys,
    StoreResults,
    this_host,
)
from batch_pipeline.ledger.tables import claims, metadata, owners
from batch_pipeline.ledger.writer import Operation
from batch_pipeline_tests.ledger.books import MODEL
from batch_pipeline_tests.postgres import Postgres

T = TypeVar("T")

KEYS = tuple(f"key-{index}" for index in range(4))
REALMS = ("live", "simulated")
NAMES = ("ada", "bob", "eve")

owners_ = st.sampled_from(NAMES)
realms_ = st.sampled_from(REALMS)
some_keys = st.lists(st.sampled_from(KEYS), unique=True, min_size=1)


class Claims(RuleBasedStateMachine):
    """The statements on claims beside a model of who may ask what."""

    @staticmethod
    def new_engine() -> sa.Engine:
        engine = sa.create_engine("sqlite://")
        metadata.create_all(engine)
        return engine

    @initialize()
    def open(self) -> None:
        self.engine = self.new_engine()
        self.connection = self.engine.connect()
        self.now = 1_800_000_000.0
        self.alive_until: dict[str, float] = {}
        self.held: dict[tuple[str, str], str] = {}
        self.answered: set[tuple[str, str]] = set()

    def teardown(self) -> None:
        """Close the database."""
        if hasattr(self, "connection"):
            self.connection.close()
            self.engine.dispose()

    def apply(self, operation: Operation[T], parameters: object) -> T:
        [answer] = operation.apply(self.connection, self.now, [parameters])
        return answer

    def alive(self, owner: str) -> bool:
        return self.alive_until.get(owner, 0.0) > self.now

    @rule(owner=owners_)
    def beat(self, owner: str) -> None:
        if self.alive_until.get(owner) and not self.alive(owner):
            # It stood still for longer than its lease; by the time it goes on, it holds nothing.
            self.held = {key: holder for key, holder in self.held.items() if holder != owner}
            self.apply(RETIRE, owner)
            assert self.apply(HEARTBEAT, Owner(owner, this_host(), os.getpid(), "late")) is False
            # It ends; a new run comes in its place, under a name that is used again here.
            self.connection.execute(owners.delete().where(owners.c.owner_id == owner))
        self.apply(HEARTBEAT, Owner(owner, this_host(), os.getpid(), f"run of {owner}"))
        self.alive_until[owner] = self.now + OWNER_LEASE_S

    @rule(owner=owners_, realm=realms_, keys=some_keys)
    def claim(self, owner: str, realm: str, keys: list[str]) -> None:
        if not self.alive(owner):
            return
        claimed = self.apply(CLAIM, ClaimKeys(realm, owner, "realtime", keys, [MODEL]))
        expected = set()
        for key in keys:
            holder = self.held.get((realm, key))
            if holder is None or holder == owner or not self.alive(holder):
                expected.add(key)
                self.held[realm, key] = owner
        assert claimed.mine == expected
        assert set(claimed.results) == {key for key in keys if (realm, key) in self.answered}

    @rule(owner=owners_, realm=realms_, keys=some_keys)
    def release(self, owner: str, realm: str, keys: list[str]) -> None:
        self.apply(RELEASE, ReleaseKeys(realm, owner, keys))
        for key in keys:
            if self.held.get((realm, key)) == owner:
                del self.held[realm, key]

    @rule(owner=owners_, realm=realms_, keys=some_keys)
    def answer(self, owner: str, realm: str, keys: list[str]) -> None:
        outputs = [(key, {"by": owner}) for key in keys]
        stored = StoreResults(realm, "roadmaps", "enrich", MODEL, "attempt", owner, outputs)
        self.apply(STORE_LATE, stored)
        for key in keys:
            self.answered.add((realm, key))
            if self.held.get((realm, key)) == owner:
                del self.held[realm, key]

    @rule(owner=owners_)
    def retire(self, owner: str) -> None:
        self.apply(RETIRE, owner)
        self.alive_until[owner] = min(self.alive_until.get(owner, 0.0), self.now)
        self.held = {key: holder for key, holder in self.held.items() if holder != owner}

    @rule(seconds=st.sampled_from([0.5, 5.0, OWNER_LEASE_S - 0.5, OWNER_LEASE_S + 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def bury(self) -> None:
        self.apply(BURY_DEAD, this_host())
        self.held = {key: holder for key, holder in self.held.items() if self.alive(holder)}

    @invariant()
    def the_ledger_knows_who_holds_what(self) -> None:
        if not hasattr(self, "connection"):
            return
        rows = self.connection.execute(
            sa.select(claims.c.realm, claims.c.cache_key, claims.c.owner_id)
        )
        assert {(realm, key): owner for realm, key, owner in rows} == self.held


TestClaims = Claims.TestCase
TestClaims.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


def test_the_same_holds_on_postgresql(postgres: Postgres) -> None:
    """Each example is a transaction that is never committed."""
    with postgres.database() as url:
        engine = sa.create_engine(url)
        metadata.create_all(engine)

        class OnPostgresql(Claims):
            @staticmethod
            def new_engine() -> sa.Engine:
                return engine

        run_state_machine_as_test(
            OnPostgresql, settings=settings(max_examples=50, stateful_step_count=30, deadline=None)
        )
        engine.dispose()
