"""Claims: two live owners never both believe that they are to ask the same question."""

from __future__ import annotations

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from batch_pipeline.ledger.calls import (
    CLAIM,
    OWNER_LEASE_S,
    RELEASE,
    STORE_LATE,
    ClaimKeys,
    ReleaseKeys,
    StoreResults,
)
from batch_pipeline.ledger.tables import claims
from batch_pipeline_tests.ledger.books import MODEL
from batch_pipeline_tests.ledger.machine import EXAMPLES, LedgerMachine, run_on_postgresql
from batch_pipeline_tests.postgres import Postgres

KEYS = tuple(f"key-{index}" for index in range(4))

names_ = st.sampled_from(["ada", "bob", "eve"])
realms_ = st.sampled_from(["live", "simulated"])
some_keys = st.lists(st.sampled_from(KEYS), unique=True, min_size=1)


class Claims(LedgerMachine):
    """The statements on claims beside a model of who may ask what."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[str, str], str] = {}
        self.answered: set[tuple[str, str]] = set()

    def drop(self, owner: str) -> None:
        self.held = {key: holder for key, holder in self.held.items() if holder != owner}

    @rule(name=names_)
    def beats(self, name: str) -> None:
        self.beat(name)

    @rule(name=names_)
    def dies(self, name: str) -> None:
        self.kill(name)

    @rule(name=names_)
    def ends(self, name: str) -> None:
        self.drop(self.retire(name))

    @rule()
    def the_dead_are_buried(self) -> None:
        self.bury()
        self.held = {key: holder for key, holder in self.held.items() if self.alive(holder)}

    @rule(seconds=st.sampled_from([0.5, 5.0, OWNER_LEASE_S - 0.5, OWNER_LEASE_S + 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=names_, realm=realms_, keys=some_keys)
    def claim(self, name: str, realm: str, keys: list[str]) -> None:
        owner = self.owner(name)
        if not self.works(owner):
            owner = self.beat(name)
        [claimed] = self.apply(CLAIM, ClaimKeys(realm, owner, "realtime", keys, [MODEL]))
        expected = set()
        for key in keys:
            holder = self.held.get((realm, key))
            if holder is None or holder == owner or not self.alive(holder):
                expected.add(key)
                self.held[realm, key] = owner
        assert claimed.mine == expected
        assert set(claimed.results) == {key for key in keys if (realm, key) in self.answered}

    @rule(name=names_, realm=realms_, keys=some_keys)
    def release(self, name: str, realm: str, keys: list[str]) -> None:
        owner = self.owner(name)
        self.apply(RELEASE, ReleaseKeys(realm, owner, keys))
        for key in keys:
            if self.held.get((realm, key)) == owner:
                del self.held[realm, key]

    @rule(name=names_, realm=realms_, keys=some_keys)
    def answer(self, name: str, realm: str, keys: list[str]) -> None:
        owner = self.owner(name)
        outputs = [(key, {"by": owner}) for key in keys]
        stored = StoreResults(realm, "roadmaps", "enrich", MODEL, "attempt", owner, outputs)
        self.apply(STORE_LATE, stored)
        for key in keys:
            self.answered.add((realm, key))
            if self.held.get((realm, key)) == owner:
                del self.held[realm, key]

    @invariant()
    def the_ledger_knows_who_holds_what(self) -> None:
        rows = self.connection.execute(_HELD)
        assert {(realm, key): owner for realm, key, owner in rows} == self.held


# Built once: the invariant runs after each of 25,000 steps.
_HELD = sa.select(claims.c.realm, claims.c.cache_key, claims.c.owner_id)

TestClaims = Claims.TestCase
TestClaims.settings = EXAMPLES


def test_the_same_holds_on_postgresql(postgres: Postgres) -> None:
    run_on_postgresql(postgres, Claims)
