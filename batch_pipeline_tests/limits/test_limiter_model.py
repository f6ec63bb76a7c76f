"""The limiter's statements in any order: no window, day or number of calls at once is passed.

Two machines: turns (rates and days) and slots, each with several processes that come, die and end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from batch_pipeline.ledger.calls import OWNER_LEASE_S
from batch_pipeline.ledger.tables import day_counts, gates, limits
from batch_pipeline.limits.by_hand import Scope, clear_limits, set_limits
from batch_pipeline.limits.days import day_of, next_day_at
from batch_pipeline.limits.rates import BUCKETS, CONCURRENT, DIMENSIONS, Amounts, Rates
from batch_pipeline.limits.reservation import (
    CORRECT,
    COUNT,
    DECLARE,
    HOLD_BACK,
    LOOK_AHEAD_S,
    RESERVE,
    TERMS_GOOD_S,
    Correct,
    Cost,
    Count,
    Declare,
    HoldBack,
    Reserve,
    Reserved,
    Terms,
)
from batch_pipeline.limits.slots import LEASE, Lease
from batch_pipeline_tests.ledger.machine import EXAMPLES, LedgerMachine, run_on_postgresql
from batch_pipeline_tests.limits.offices import KEY
from batch_pipeline_tests.postgres import Postgres

# Times are near 2e9: a float keeps them to a quarter of a microsecond.
FUZZ_S = 2e-6

EVERYWHERE = Scope("simulated", KEY.provider, KEY.model)

NAMES = ("ada", "bob", "eve")
names_ = st.sampled_from(NAMES)

# Few values, far apart: the buckets take turns at being the one that all wait for.
rates_ = st.builds(
    Rates,
    requests=st.sampled_from([None, 60.0, 150.0, 600.0]),
    input_tokens=st.sampled_from([None, 6_000.0, 30_000.0]),
    output_tokens=st.sampled_from([None, 1_200.0]),
    requests_per_day=st.sampled_from([None, None, 3.0, 9.0]),
)
costs_ = st.tuples(st.just(1.0), st.sampled_from([0.0, 40.0, 300.0]), st.sampled_from([0.0, 10.0]))


class Limited(LedgerMachine):
    """Processes that declare what limits they work with, and an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.declared: dict[str, Amounts] = {}
        self.by_hand: dict[str, float] = {}

    def declare(self, name: str, rates: Rates) -> str:
        owner = self.owner(name)
        if not self.works(owner):
            owner = self.beat(name)
        self.apply(DECLARE, Declare(KEY, owner, rates))
        self.declared[owner] = rates.amounts
        return owner

    def allowed(self, own: Amounts) -> Amounts:
        """The operator's word, or the lowest that any live process works with."""
        found: list[float | None] = []
        for place, dimension in enumerate(DIMENSIONS):
            said = [own[place]]
            said += [known[place] for owner, known in self.declared.items() if self.alive(owner)]
            amounts = [amount for amount in said if amount is not None]
            found.append(self.by_hand.get(dimension, min(amounts, default=None)))
        return tuple(found)  # type: ignore[return-value]

    @rule(name=names_)
    def beats(self, name: str) -> None:
        self.beat(name)

    @rule(name=names_)
    def ends(self, name: str) -> None:
        self.retire(name)


# ---- turns ----


@dataclass
class Bucket:
    """What was done to one bucket, in order: `taken` and `moved` in seconds of its rate.

    Attributes:
        free_at: when it is next free; None where the ledger has no row for it.
        events: (go-time or None, seconds).
    """

    free_at: float | None = None
    events: list[tuple[float | None, float]] = field(default_factory=list)

    def take(self, go: float, seconds: float) -> None:
        """Check that every window that ends with this turn has room for it."""
        between = 0.0
        for earlier, moved in reversed(self.events):
            between += moved
            if earlier is not None:
                # What the window holds but for its last request fits into its length.
                assert between <= go - earlier + FUZZ_S
        self.events.append((go, seconds))
        self.free_at = go + seconds


@dataclass(frozen=True)
class Turn:
    """A turn that was handed out: to whom, when, for what, and what of each bucket's seconds."""

    owner: str
    go: float
    cost: Cost
    per_second: tuple[float | None, ...]


class Turns(Limited):
    """Reservations, corrections and the day's count beside a model with buckets of its own."""

    # three seconds before midnight in California
    start = datetime(2026, 11, 22, 7, 59, 57, tzinfo=UTC).timestamp()

    def __init__(self) -> None:
        super().__init__()
        self.buckets = [Bucket() for _ in BUCKETS]
        self.terms: dict[str, tuple[Terms, Amounts]] = {}
        self.turns: list[Turn] = []
        self.counted: dict[str, int] = {}

    @rule(name=names_, rates=rates_)
    def declares(self, name: str, rates: Rates) -> None:
        owner = self.declare(name, rates)
        # As a gate does: what was read before may hold its own former limit.
        self.terms.pop(owner, None)

    @rule(name=names_)
    def dies(self, name: str) -> None:
        self.kill(name)

    @rule()
    def the_dead_are_buried(self) -> None:
        self.bury()

    @rule(
        name=names_,
        asks=st.lists(st.lists(costs_, min_size=1, max_size=6), min_size=1, max_size=2),
    )
    def reserve(self, name: str, asks: list[list[Cost]]) -> None:
        """One or two gates of a process ask in one group."""
        owner = self.owner(name)
        if owner not in self.declared or not self.works(owner):
            owner = self.declare(name, Rates(requests=600.0))
        own = self.declared[owner]
        terms, allowed = self.terms.get(owner, (Terms(), own))
        fresh = self.now - terms.read_at >= TERMS_GOOD_S
        if fresh:
            allowed = self.allowed(own)
        requests = [Reserve(KEY, own, costs, terms) for costs in asks]
        for answer, costs in zip(self.apply(RESERVE, *requests), asks, strict=True):
            assert answer.terms.limits_of(own) == allowed
            assert answer.terms.read_at == (self.now if fresh else terms.read_at)
            self.handed_out(owner, answer, costs, allowed)
            self.terms[owner] = answer.terms, allowed

    def handed_out(
        self, owner: str, answer: Reserved, costs: list[Cost], allowed: Amounts
    ) -> None:
        assert answer.now == self.now
        assert list(answer.delays) == sorted(answer.delays)
        assert all(0.0 <= delay <= LOOK_AHEAD_S + FUZZ_S for delay in answer.delays)
        rates = [None if amount is None else amount / 60.0 for amount in allowed[: len(BUCKETS)]]
        per_day = allowed[DIMENSIONS.index("requests_per_day")]
        for delay, cost in zip(answer.delays, costs, strict=False):
            due, day_free = self.due(rates, per_day)
            assert day_free
            go = self.now + delay
            assert go == pytest.approx(due, abs=FUZZ_S), "neither too early nor too late"
            for bucket, rate, amount in zip(self.buckets, rates, cost, strict=True):
                if rate is not None:
                    bucket.take(go, amount / rate)
            day = day_of(KEY.provider, go)
            self.counted[day] = self.counted.get(day, 0) + 1
            assert per_day is None or self.counted[day] <= per_day
            self.turns.append(Turn(owner, go, cost, tuple(rates)))
        assert len(answer.delays) <= len(costs)
        if len(answer.delays) < len(costs):
            due, day_free = self.due(rates, per_day)
            too_far = due > self.now + LOOK_AHEAD_S - FUZZ_S
            assert answer.day_full or answer.retry_s > 0, "it says when to ask again, or that not"
            assert too_far or not day_free, "whoever fits is served"
            if answer.retry_s:
                assert self.now + answer.retry_s + LOOK_AHEAD_S == pytest.approx(due, abs=FUZZ_S)

    def due(self, rates: list[float | None], per_day: float | None) -> tuple[float, bool]:
        """The next go-time by the model's buckets, and whether its day has room."""
        due = self.now
        for bucket, rate in zip(self.buckets, rates, strict=True):
            if rate is not None and bucket.free_at is not None:
                due = max(due, bucket.free_at)
        if per_day is None:
            return due, True
        ends_at = next_day_at(KEY.provider, self.now)
        if self.counted.get(day_of(KEY.provider, self.now), 0) + 1 > per_day:
            due = max(due, ends_at)
        return due, self.counted.get(day_of(KEY.provider, due), 0) + 1 <= per_day

    @rule(back=st.integers(0, 5), used=st.tuples(st.floats(0.0, 500.0), st.floats(0.0, 30.0)))
    def a_call_used_something_else(self, back: int, used: tuple[float, float]) -> None:
        if back >= len(self.turns):
            return
        turn = self.turns[-1 - back]
        moved = [0.0, 0.0, 0.0]
        for place, real in enumerate(used, 1):
            rate = turn.per_second[place]
            if rate is not None:
                moved[place] = (real - turn.cost[place]) / rate
        self.apply(CORRECT, Correct(KEY, (moved[0], moved[1], moved[2])))
        for bucket, seconds in zip(self.buckets, moved, strict=True):
            if bucket.free_at is not None and seconds:
                bucket.free_at += seconds
                bucket.events.append((None, seconds))

    @rule(seconds=st.tuples(*[st.sampled_from([0.0, 0.0, 0.7, 4.0])] * 3))
    def the_provider_says_that_it_is_empty(self, seconds: Cost) -> None:
        self.apply(HOLD_BACK, HoldBack(KEY, seconds))
        for bucket, held in zip(self.buckets, seconds, strict=True):
            if held:
                bucket.free_at = max(self.now + held, bucket.free_at or -math.inf)

    @rule()
    def a_turn_is_given_up(self) -> None:
        if self.turns:
            turn = self.turns.pop()
            day = day_of(KEY.provider, turn.go)
            self.apply(COUNT, Count(KEY, {day: -1}))
            self.counted[day] -= 1

    @rule(place=st.integers(0, 3), amount=st.sampled_from([6.0, 60.0, 1_200.0]))
    def an_operator_sets_a_limit(self, place: int, amount: float) -> None:
        dimension = DIMENSIONS[place]
        set_limits(self.connection, self.now, EVERYWHERE, {dimension: amount})
        self.by_hand[dimension] = amount
        self.begin_anew([dimension])

    @rule()
    def an_operator_clears_the_limits(self) -> None:
        assert clear_limits(self.connection, EVERYWHERE) == len(self.by_hand)
        self.begin_anew(list(self.by_hand))
        self.by_hand = {}

    def begin_anew(self, dimensions: list[str]) -> None:
        for place, dimension in enumerate(BUCKETS):
            if dimension in dimensions:
                self.buckets[place] = Bucket()

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 2.5, OWNER_LEASE_S + 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_turn_is_forgotten_or_counted_twice(self) -> None:
        rows = self.connection.execute(sa.select(day_counts.c.day, day_counts.c.requests))
        assert {day: count for day, count in rows if count} == {
            day: count for day, count in self.counted.items() if count
        }
        assert sum(self.counted.values()) == len(self.turns)

    @invariant()
    def the_buckets_are_free_when_the_model_says(self) -> None:
        rows = self.connection.execute(sa.select(limits.c.dimension, limits.c.arrival_at))
        assert dict(rows.tuples().all()) == pytest.approx(
            {
                dimension: bucket.free_at
                for dimension, bucket in zip(BUCKETS, self.buckets, strict=True)
                if bucket.free_at is not None
            },
            abs=FUZZ_S,
            rel=0,
        )


TestTurns = Turns.TestCase
TestTurns.settings = EXAMPLES


def test_turns_are_the_same_on_postgresql(postgres: Postgres) -> None:
    run_on_postgresql(postgres, Turns)


# ---- slots ----


@dataclass
class Process:
    """One process's own idea of its slots."""

    held: int = 0
    usable: int = 0
    inside: int = 0
    good_until: float = 0.0


class SlotLeases(Limited):
    """Processes lease slots, start and end calls; how many fly at once is counted here."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[str, Process] = {}

    @property
    def limit(self) -> float | None:
        """How many calls may fly at once."""
        return self.allowed((None,) * 5)[DIMENSIONS.index(CONCURRENT)]

    def look(self, owner: str, wanted: int) -> None:
        """One lease, as a process makes it when calls wait, and every so often."""
        process = self.processes[owner]
        own = self.declared[owner]
        lease = Lease(KEY, owner, own, process.held, process.inside, wanted)
        [answer] = self.apply(LEASE, lease)
        assert answer.limit == self.limit
        process.held, process.usable = answer.held, answer.usable
        process.good_until = self.now + answer.good_s
        if answer.limit is None:
            # Without a limit nobody counts; the next limit finds no call of this model in flight.
            process.inside = process.held = process.usable = 0
            return
        assert answer.usable <= answer.limit
        others = [other for other in self.processes if other != owner and self.alive(other)]
        if not any(max(self.processes[one].held, self.processes[one].inside) for one in others):
            need = process.inside + wanted
            hungry = any(self.wanted(one) for one in others)
            if need and not hungry:
                assert answer.usable >= min(answer.limit, need), "what is free may be used"

    def wanted(self, owner: str) -> int:
        found = self.connection.execute(
            sa.select(gates.c.wanted).where(gates.c.owner_id == owner)
        ).scalar()
        return found or 0

    def everyone_looks(self) -> None:
        """Within a second each process comes by, and sees the limit that holds now."""
        for owner in self.processes:
            if self.works(owner):
                self.look(owner, 0)

    @rule(name=names_, concurrent=st.sampled_from([None, 1.0, 3.0, 5.0]))
    def begins(self, name: str, concurrent: float | None) -> None:
        owner = self.declare(name, Rates(concurrent=concurrent))
        self.processes.setdefault(owner, Process())
        self.everyone_looks()

    @rule(name=names_, wanted=st.integers(0, 6))
    def leases(self, name: str, wanted: int) -> None:
        owner = self.owner(name)
        if owner in self.processes and owner not in self.killed:
            self.look(owner, wanted)

    @rule(name=names_, calls=st.integers(1, 6))
    def calls_start(self, name: str, calls: int) -> None:
        process = self.processes.get(self.owner(name))
        if process is None or self.owner(name) in self.killed or self.limit is None:
            return
        for _ in range(calls):
            if process.inside < process.usable and self.now < process.good_until:
                process.inside += 1
                flying = sum(
                    one.inside for owner, one in self.processes.items() if self.alive(owner)
                )
                assert flying <= self.limit

    @rule(name=names_, calls=st.integers(1, 6))
    def calls_end(self, name: str, calls: int) -> None:
        process = self.processes.get(self.owner(name))
        if process is not None and self.owner(name) not in self.killed:
            process.inside = max(0, process.inside - calls)

    @rule(amount=st.sampled_from([1.0, 2.0, 4.0, 8.0]))
    def an_operator_sets_the_limit(self, amount: float) -> None:
        set_limits(self.connection, self.now, EVERYWHERE, {CONCURRENT: amount})
        self.by_hand[CONCURRENT] = amount
        self.everyone_looks()

    @rule()
    def an_operator_clears_the_limit(self) -> None:
        clear_limits(self.connection, EVERYWHERE)
        self.by_hand = {}
        self.everyone_looks()

    @rule(name=names_)
    def dies(self, name: str) -> None:
        """Its slots are held until its lease ends: its calls may still be on their way."""
        self.kill(name)

    @rule(seconds=st.sampled_from([0.25, 1.0, OWNER_LEASE_S / 2, OWNER_LEASE_S + 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def who_holds_slots_is_in_the_ledger(self) -> None:
        rows = self.connection.execute(sa.select(gates.c.owner_id, gates.c.held))
        stored = dict(rows.tuples().all())
        for owner, process in self.processes.items():
            if self.alive(owner):
                assert stored.get(owner, 0) == process.held
                assert process.inside <= process.held or self.limit is None


TestSlotLeases = SlotLeases.TestCase
TestSlotLeases.settings = EXAMPLES


def test_slots_are_the_same_on_postgresql(postgres: Postgres) -> None:
    run_on_postgresql(postgres, SlotLeases)
