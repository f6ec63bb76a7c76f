"""Chunk leases: whoever loses a chunk writes nothing about its rows any more, in any order."""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from batch_pipeline.ledger.batches import (
    FINISH_ITEMS,
    LEASE_CHUNK,
    UNLEASE_CHUNK,
    FinishItems,
    ItemOutcome,
    LeaseRequest,
    Unlease,
)
from batch_pipeline.ledger.calls import OWNER_LEASE_S
from batch_pipeline.ledger.tables import Outcome, chunks, items
from batch_pipeline_tests.ledger.machine import EXAMPLES, LedgerMachine, run_on_postgresql
from batch_pipeline_tests.postgres import Postgres

Place = tuple[str, str]
"""Realm and chunk."""

PLACES: tuple[Place, ...] = (("live", "b.0001"), ("simulated", "b.0001"), ("simulated", "b.0002"))
ROWS = 2

names_ = st.sampled_from(["ada", "bob", "eve"])
places_ = st.sampled_from(PLACES)


@dataclass
class Chunk:
    """What the model knows of a chunk.

    Attributes:
        fence: the last one that was granted.
        holder: the owner in the ledger.
        granted: for each fence, whom it was granted to.
        believers: owners that were granted the chunk and never heard otherwise.
        outcomes: of its rows: outcome and cost.
    """

    fence: int = 0
    holder: str | None = None
    granted: dict[int, str] = field(default_factory=dict)
    believers: dict[str, int] = field(default_factory=dict)
    outcomes: list[tuple[str, int]] = field(default_factory=lambda: [("pending", 0)] * ROWS)


class Leases(LedgerMachine):
    """The statements on chunks and their rows beside a model of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks = {place: Chunk() for place in PLACES}
        for realm, key in PLACES:
            first = 0 if key.endswith("1") else ROWS
            self.connection.execute(
                chunks.insert(),
                {
                    "realm": realm,
                    "chunk_key": key,
                    "batch_id": "b",
                    "position": first // ROWS + 1,
                    "first_ordinal": first,
                    "row_count": ROWS,
                    "fence": 0,
                },
            )
            self.connection.execute(
                items.insert(),
                [
                    {
                        "realm": realm,
                        "batch_id": "b",
                        "ordinal": at,
                        "item_id": f"item-{at}",
                        "number": at + 1,
                        "row": "{}",
                        "outcome": "pending",
                    }
                    for at in range(first, first + ROWS)
                ],
            )

    @rule(name=names_)
    def beats(self, name: str) -> None:
        self.beat(name)

    @rule(name=names_)
    def dies(self, name: str) -> None:
        dead = self.kill(name)
        for chunk in self.chunks.values():
            chunk.believers.pop(dead, None)

    @rule(name=names_)
    def ends(self, name: str) -> None:
        self.retire(name)

    @rule()
    def the_dead_are_buried(self) -> None:
        self.bury()

    @rule(seconds=st.sampled_from([0.5, OWNER_LEASE_S / 2, OWNER_LEASE_S + 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=names_, place=places_)
    def leases(self, name: str, place: Place) -> None:
        owner = self.owner(name)
        if not self.works(owner):
            owner = self.beat(name)
        chunk = self.chunks[place]
        other = chunk.holder is not None and chunk.holder != owner and self.alive(chunk.holder)
        [lease] = self.apply(LEASE_CHUNK, LeaseRequest(*place, owner))
        if other:
            assert lease.fence is None
            assert f"run {chunk.holder} " in lease.holder
            return
        assert lease.fence == chunk.fence + 1
        chunk.fence, chunk.holder = lease.fence, owner
        chunk.granted[lease.fence] = owner
        chunk.believers[owner] = lease.fence

    @rule(place=places_, back=st.integers(0, 3))
    def gives_back(self, place: Place, back: int) -> None:
        """With any fence that was granted, the word of a run that lost it long ago included."""
        chunk = self.chunks[place]
        fence = chunk.fence - back
        if fence not in chunk.granted:
            return
        owner = chunk.granted[fence]
        self.apply(UNLEASE_CHUNK, Unlease(*place, owner, fence))
        if chunk.believers.get(owner) == fence:
            del chunk.believers[owner]
        if not back and chunk.holder == owner:
            chunk.holder = None

    @rule(
        words=st.lists(
            st.tuples(
                places_,
                st.integers(0, 3),
                st.integers(0, ROWS - 1),
                st.sampled_from([Outcome.SUCCEEDED, Outcome.FAILED]),
                st.integers(0, 9),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def rows_end(self, words: list[tuple[Place, int, int, Outcome, int]]) -> None:
        """Several runs write about rows at once, each with a fence that it was granted."""
        requests = []
        expected = []
        for place, back, row, outcome, cost in words:
            realm, key = place
            chunk = self.chunks[place]
            first = 0 if key.endswith("1") else ROWS
            ended = ItemOutcome(first + row, outcome, cost_nano=cost)
            requests.append(FinishItems(realm, "b", key, chunk.fence - back, [ended]))
            expected.append(back == 0)
            if not back:
                chunk.outcomes[row] = (outcome.value, chunk.outcomes[row][1] + cost)
        assert self.apply(FINISH_ITEMS, *requests) == expected

    @invariant()
    def no_two_live_owners_believe_that_a_chunk_is_theirs(self) -> None:
        for chunk in self.chunks.values():
            live = [owner for owner in chunk.believers if self.works(owner)]
            assert len(live) <= 1
            assert all(chunk.believers[owner] == chunk.fence for owner in live)

    @invariant()
    def the_ledger_knows_the_holders_and_what_became_of_the_rows(self) -> None:
        held = self.connection.execute(_HELD)
        assert {(realm, key): (owner, fence) for realm, key, owner, fence in held} == {
            place: (chunk.holder, chunk.fence) for place, chunk in self.chunks.items()
        }
        rows = self.connection.execute(_OUTCOMES)
        assert [tuple(row) for row in rows] == [
            (realm, at + (0 if key.endswith("1") else ROWS), *outcome)
            for (realm, key), chunk in self.chunks.items()
            for at, outcome in enumerate(chunk.outcomes)
        ]


# Built once: the invariant runs after each of 25,000 steps.
_HELD = sa.select(chunks.c.realm, chunks.c.chunk_key, chunks.c.owner_id, chunks.c.fence)
_OUTCOMES = sa.select(items.c.realm, items.c.ordinal, items.c.outcome, items.c.cost_nano).order_by(
    items.c.realm, items.c.ordinal
)

TestLeases = Leases.TestCase
TestLeases.settings = EXAMPLES


def test_the_same_holds_on_postgresql(postgres: Postgres) -> None:
    run_on_postgresql(postgres, Leases)
