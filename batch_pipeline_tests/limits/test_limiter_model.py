"""The limiter's statements in any order: no window, day or number of calls at once is passed.

Two machines: turns (rates and days) and slots, each with several processes that come, die and end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

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

# Built once: invariants run after each of 25,000 steps.
_DAYS = sa.select(day_counts.c.day, day_counts.c.requests)
_ARRIVALS = sa.select(limits.c.dimension, limits.c.arrival_at)
_GATES = sa.select(gates.c.owner_id, gates.c.held, gates.c.in_flight, gates.c.wanted)

# Few values, far apart: the buckets take turns at being the one that all wait for.
rates_ = st.builds(
    Rates,
    requests=st.sampled_from([None, 60.0, 150.0, 600.0]),
    input_tokens=st.sampled_from([None, 6_000.0, 30_000.0]),
    output_tokens=st.sampled_from([None, 1_200.0]),
    requests_per_day=st.sampled_from([None, None, 2.0, 9.0]),
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
        for count, (earlier, moved) in enumerate(reversed(self.events), 1):
            between += moved
            if earlier is not None:
                # What the window holds but for its last request fits into its length.
                assert between <= go - earlier + count * FUZZ_S
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

    # a moment before midnight in California, so that turns of two days are within reach
    start = datetime(2026, 11, 22, 8, tzinfo=UTC).timestamp() - 0.6

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
    def beats(self, name: str) -> None:
        self.beat(name)

    @rule(name=names_)
    def ends(self, name: str) -> None:
        self.retire(name)

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

    def handed_out(self, owner: str, answer: Reserved, costs: list[Cost], allowed: Amounts) -> None:
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

    @rule(
        words=st.lists(
            st.tuples(st.integers(0, 5), st.floats(0.0, 500.0), st.floats(0.0, 30.0)),
            min_size=1,
            max_size=3,
        )
    )
    def calls_used_something_else(self, words: list[tuple[int, float, float]]) -> None:
        """Calls that end in one group tell what they really used."""
        corrections = []
        for back, *used in words:
            if not self.turns:
                return
            turn = self.turns[-1 - back % len(self.turns)]
            moved = [0.0, 0.0, 0.0]
            for place, real in enumerate(used, 1):
                rate = turn.per_second[place]
                if rate is not None:
                    moved[place] = (real - turn.cost[place]) / rate
            corrections.append(Correct(KEY, (moved[0], moved[1], moved[2])))
        self.apply(CORRECT, *corrections)
        for correction in corrections:
            for bucket, seconds in zip(self.buckets, correction.seconds, strict=True):
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

    @rule()
    def nearly_a_day_passes(self) -> None:
        self.now = next_day_at(KEY.provider, self.now + 10.0) - 0.6

    @invariant()
    def no_turn_is_forgotten_or_counted_twice(self) -> None:
        rows = self.connection.execute(_DAYS)
        assert {day: count for day, count in rows if count} == {
            day: count for day, count in self.counted.items() if count
        }
        assert sum(self.counted.values()) == len(self.turns)

    @invariant()
    def the_buckets_are_free_when_the_model_says(self) -> None:
        rows = self.connection.execute(_ARRIVALS)
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
    wanted: int = 0
    good_until: float = 0.0
    limited: bool = False


class SlotLeases(Limited):
    """Processes lease slots, start and end calls; how many fly at once is counted here."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[str, Process] = {}
        for name in NAMES[:2]:
            self.begin(name, 3.0)

    @property
    def limit(self) -> float | None:
        """How many calls may fly at once."""
        return self.allowed((None,) * 5)[DIMENSIONS.index(CONCURRENT)]

    def look(self, owner: str) -> None:
        """One lease, as a process makes it when calls wait, and every so often."""
        process = self.processes[owner]
        wanted = process.wanted
        own = self.declared[owner]
        others = [row for row in self.stored() if row.owner_id != owner]
        lease = Lease(KEY, owner, own, process.held, process.inside, wanted)
        [answer] = self.apply(LEASE, lease)
        limit = self.allowed(own)[DIMENSIONS.index(CONCURRENT)]
        assert answer.limit == limit
        process.held, process.usable = answer.held, answer.usable
        process.good_until = self.now + answer.good_s
        process.limited = answer.limit is not None
        if not self.alive(owner) or limit is None:
            assert answer.held == answer.usable == 0
            return
        assert answer.usable <= limit
        need = process.inside + wanted
        if need and not any(row.held or row.in_flight or row.wanted for row in others):
            assert answer.usable >= min(limit, need), "what is free may be used"

    def stored(self) -> list[Any]:
        """What live owners hold and want, as the ledger has it."""
        return [row for row in self.connection.execute(_GATES) if self.alive(row.owner_id)]

    def everyone_looks(self) -> None:
        """Within a second each process comes by, tells what it has, and sees what holds now."""
        present = [owner for owner in self.processes if self.works(owner)]
        uncounted = any(one.inside > one.held for one in self.processes.values())
        # Calls that began without a limit are known once their process has been there.
        for owner in present * (2 if uncounted else 1):
            self.look(owner)

    def begin(self, name: str, concurrent: float | None) -> None:
        owner = self.declare(name, Rates(concurrent=concurrent))
        self.processes.setdefault(owner, Process())
        self.everyone_looks()

    @rule(
        name=names_,
        what=st.sampled_from(["begins", "beats", "ends", "dies"]),
        concurrent=st.sampled_from([None, 1.0, 3.0, 5.0]),
    )
    def a_process(self, name: str, what: str, concurrent: float | None) -> None:
        """One rule for four events, so that calls come and go more often than processes."""
        if what == "begins":
            self.begin(name, concurrent)
        elif what == "beats":
            self.beat(name)
        elif what == "ends":
            self.processes.pop(self.retire(name), None)
        else:
            # Its slots are held until its lease ends: its calls may still be on their way.
            process = self.processes.get(self.kill(name))
            if process is not None and self.limit is None:
                process.inside = 0  # nobody counted them

    @rule(
        steps=st.lists(
            st.tuples(
                names_, st.sampled_from(["lease", "start", "end", "wait"]), st.integers(0, 6)
            ),
            min_size=1,
            max_size=8,
        )
    )
    def calls_come_and_go(self, steps: list[tuple[str, str, int]]) -> None:
        for name, step, count in steps:
            owner = self.owner(name)
            process = self.processes.get(owner)
            if process is None or owner in self.killed:
                continue
            if step == "lease":
                process.wanted = count
                self.look(owner)
            elif step == "start":
                self.start_calls(owner, process, count)
            elif step == "wait":
                self.now += 2.0 * count
            else:
                process.inside = max(0, process.inside - count)

    def start_calls(self, owner: str, process: Process, count: int) -> None:
        """As many as the process believes that it may; it does not know who else is alive."""
        if not process.limited:
            process.inside += count if self.alive(owner) else 0
            return
        for _ in range(count):
            if process.inside < process.usable and self.now < process.good_until:
                process.inside += 1
                process.wanted = max(0, process.wanted - 1)
                assert self.alive(owner), "its slots are others' by now"
                live = [one for name, one in self.processes.items() if self.alive(name)]
                assert self.limit is None or sum(one.inside for one in live) <= self.limit

    @rule(amount=st.sampled_from([None, 1.0, 2.0, 4.0, 8.0]))
    def an_operator_sets_or_clears_the_limit(self, amount: float | None) -> None:
        if amount is None:
            clear_limits(self.connection, EVERYWHERE)
            self.by_hand = {}
        else:
            set_limits(self.connection, self.now, EVERYWHERE, {CONCURRENT: amount})
            self.by_hand[CONCURRENT] = amount
        self.everyone_looks()

    @rule()
    def leases_run_out(self) -> None:
        self.now += OWNER_LEASE_S + 0.5

    @invariant()
    def who_holds_slots_is_in_the_ledger(self) -> None:
        for row in self.stored():
            process = self.processes[row.owner_id]
            assert row.held == process.held
            assert process.inside <= process.held or self.limit is None


TestSlotLeases = SlotLeases.TestCase
TestSlotLeases.settings = EXAMPLES


def test_slots_are_the_same_on_postgresql(postgres: Postgres) -> None:
    run_on_postgresql(postgres, SlotLeases)
