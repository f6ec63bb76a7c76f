"""Slots: never more calls at once than allowed, over all processes, and a fair part for each."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.clock import ManualClock
from batch_pipeline.ledger.calls import OWNER_LEASE_S
from batch_pipeline.limits.by_hand import Scope, clear_limits, set_limits
from batch_pipeline.limits.limiter import Rates
from batch_pipeline.limits.slots import LEASE, Demand, fair_shares, plan_lease
from batch_pipeline_tests.limits.offices import KEY, Office, StallingClock, offices, settle

ROOT = Path(__file__).resolve().parents[2]


@settings(deadline=None, max_examples=1_000)
@given(st.integers(0, 40), st.lists(st.integers(0, 30), max_size=7), st.integers(0, 1_000))
def test_shares_use_every_slot_that_is_wanted_and_favour_nobody(
    slots: int, demands: list[int], turn: int
) -> None:
    shares = fair_shares(slots, demands, turn)
    assert sum(shares) == min(slots, sum(demands))
    for share, demand in zip(shares, demands, strict=True):
        assert 0 <= share <= demand
        if share < demand:
            assert all(other <= share + 1 for other in shares)


def test_a_slot_that_does_not_divide_goes_round() -> None:
    assert {tuple(fair_shares(1, [5, 5, 5], turn)) for turn in range(3)} == {
        (1, 0, 0), (0, 1, 0), (0, 0, 1),
    }  # fmt: skip


class Books:
    """Processes as the ledger sees them, and as they are."""

    def __init__(self, count: int) -> None:
        self.held = [0] * count
        self.wanted = [0] * count
        self.usable = [0] * count
        self.inside = [0] * count

    def lease(self, me: int, limit: int, wanted: int, turn: int) -> None:
        others = [
            Demand(str(one), self.held[one], self.wanted[one])
            for one in range(len(self.held))
            if one != me
        ]
        mine = Demand(str(me), self.inside[me], wanted)
        held, usable = plan_lease(limit, mine, self.held[me], others, turn)
        self.held[me], self.usable[me] = held, usable
        self.wanted[me] = max(0, self.inside[me] + wanted - usable)


@settings(deadline=None, max_examples=1_000)
@given(
    st.integers(2, 4),
    st.lists(
        st.tuples(
            st.sampled_from(["lease", "enter", "enter", "leave", "limit"]),
            st.integers(0, 3),
            st.integers(0, 12),
        ),
        max_size=60,
    ),
)
def test_no_sequence_of_leases_calls_and_new_limits_lets_more_calls_fly_than_allowed(
    count: int, steps: list[tuple[str, int, int]]
) -> None:
    books = Books(count)
    limit = 5
    for turn, (step, who, amount) in enumerate(steps):
        me = who % count
        if step == "lease":
            books.lease(me, limit, amount, turn)
        elif step == "enter" and books.inside[me] < books.usable[me]:
            books.inside[me] += 1
            assert sum(books.inside) <= limit
        elif step == "leave" and books.inside[me]:
            books.inside[me] -= 1
        elif step == "limit":
            limit = 1 + amount
            # every process looks once before anyone enters: that is within a second
            for one in range(count):
                books.lease(one, limit, 0, turn)
        assert all(inside <= held for inside, held in zip(books.inside, books.held, strict=True))


class Load:
    """Workers of several processes, each call as long as the next; counts what flies at once."""

    def __init__(self, clock: ManualClock, all_: list[Office]) -> None:
        self.clock = clock
        self.all = all_
        self.flying = 0
        self.most = 0
        self.done = [0] * len(all_)
        self.tasks: list[asyncio.Task[None]] = []

    def add(self, place: int, workers: int, took_s: float = 0.3, calls: int = 10_000) -> None:
        async def work() -> None:
            gate = self.all[place].gate
            for _ in range(calls):
                await gate.enter()
                self.flying += 1
                self.most = max(self.most, self.flying)
                await self.clock.sleep(took_s)
                self.flying -= 1
                gate.leave()
                self.done[place] += 1

        self.tasks += [asyncio.ensure_future(work()) for _ in range(workers)]

    async def go_on(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            await self.clock.advance(0.05)
            await settle(self.all)
            if self.clock.now() % 5 < 0.05:
                for office in self.all:
                    await office.beat()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for office in self.all:
            await office.gate.close()


def test_two_processes_share_the_slots_evenly_and_never_use_more(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(concurrent=4), Rates(concurrent=4)) as both:
            for office in both:
                await office.open()
            load = Load(clock, both)
            load.add(0, workers=8)
            await load.go_on(3.0)
            alone = load.done[0]
            load.add(1, workers=8)
            await load.go_on(2.0)
            load.done = [0, 0]
            await load.go_on(12.0)
            await load.stop()
            assert load.most == 4
            assert alone >= 0.85 * 4 * 3.0 / 0.35, "alone it uses every slot"
            assert sum(load.done) >= 0.8 * 4 * 12.0 / 0.35
            assert 0.7 <= load.done[0] / load.done[1] <= 1.4

    asyncio.run(main())


def test_more_processes_than_slots_all_get_their_turn(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, *[Rates(concurrent=1)] * 3) as all_:
            for office in all_:
                await office.open()
            load = Load(clock, all_)
            for place in range(3):
                load.add(place, workers=2)
            await load.go_on(20.0)
            await load.stop()
            assert load.most == 1
            assert min(load.done) >= 5

    asyncio.run(main())


def test_without_a_limit_and_with_a_free_slot_no_transaction_is_made(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates()) as [office]:
            await office.open()
            for _ in range(50):
                await office.gate.enter()
            assert office.writer.posted[LEASE.name] == 0
        with offices(ledger_url, clock, Rates(concurrent=4)) as [office]:
            await office.open()
            load = Load(clock, [office])
            load.add(0, workers=4, took_s=0.001, calls=200)
            await settle([office])
            for _ in range(400):
                await clock.advance(0.001)
                await asyncio.sleep(0)
            assert load.done == [800]
            assert office.writer.posted[LEASE.name] <= 4
            await load.stop()

    asyncio.run(main())


def test_a_lower_limit_lets_no_new_call_start_until_enough_have_ended(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(), Rates(concurrent=8)) as both:
            for office in both:
                await office.open()
            load = Load(clock, both)
            load.add(0, workers=6)
            load.add(1, workers=6)
            await load.go_on(3.0)
            scope = Scope("simulated", "google", KEY.model)
            with both[0].ledger.write() as connection:
                set_limits(connection, clock.now(), scope, {"concurrent": 3})
            await load.go_on(2.5)
            load.most = 0
            await load.go_on(4.0)
            assert load.most == 3
            with both[0].ledger.write() as connection:
                clear_limits(connection, scope)
            await load.go_on(3.0)
            assert 6 <= load.flying <= 8
            await load.stop()

    asyncio.run(main())


def test_a_process_that_stalled_past_its_lease_uses_none_of_its_former_slots(
    ledger_url: str,
) -> None:
    clock = StallingClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(concurrent=2), Rates(concurrent=2)) as [slow, quick]:
            await slow.open()
            await slow.gate.enter()
            slow.gate.leave()
            clock.stall(OWNER_LEASE_S + 1)
            await quick.open()
            await asyncio.gather(quick.gate.enter(), quick.gate.enter())
            late = asyncio.ensure_future(slow.gate.enter())
            for _ in range(8):
                await clock.advance(0.25)
                await settle([slow, quick])
            assert not late.done()
            late.cancel()
            quick.gate.leave()
            quick.gate.leave()

    asyncio.run(main())


@pytest.fixture
def killed_holder(ledger_url: str) -> float:
    """A process that held three of four slots and was killed; gives when."""
    words = [sys.executable, "-m", "batch_pipeline_tests.limits.holder", ledger_url, "3", "4"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        line = holder.stdout.readline()
        holder.kill()
    assert line == "held\n"
    return time.time()


def test_a_killed_process_keeps_its_slots_until_its_lease_ends(
    ledger_url: str, killed_holder: float
) -> None:
    clock = ManualClock(killed_holder)

    async def main() -> None:
        with offices(ledger_url, clock, Rates(concurrent=4)) as [office]:
            await office.open()
            entered = [asyncio.ensure_future(office.gate.enter()) for _ in range(4)]
            while clock.now() < killed_holder + OWNER_LEASE_S - 5.0:
                await clock.advance(1.0)
                await settle([office])
                await office.beat()
            assert sum(one.done() for one in entered) == 1, "three calls may still be on their way"
            await clock.advance(7.0)
            await office.beat()
            await clock.advance(1.0)
            await settle([office])
            assert all(one.done() for one in entered)
            await office.gate.close()

    asyncio.run(main())


def test_who_stops_waiting_leaves_no_slot_behind(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(concurrent=1)) as [office]:
            await office.open()
            await office.gate.enter()
            waiting = [asyncio.ensure_future(office.gate.enter()) for _ in range(3)]
            await settle([office])
            waiting[0].cancel()
            await settle([office])
            office.gate.leave()
            waiting[1].cancel()  # it has just been given the slot
            await settle([office])
            assert waiting[2].done() and not waiting[2].cancelled()
            office.gate.leave()
            await office.gate.close()

    asyncio.run(main())


@pytest.mark.parametrize("limit", [1, 3])
def test_a_closed_gate_holds_nothing(ledger_url: str, limit: int) -> None:
    clock = ManualClock()

    async def main() -> None:
        rates = Rates(concurrent=limit)
        with offices(ledger_url, clock, rates, rates) as [first, second]:
            await first.open()
            await second.open()
            await asyncio.gather(*(first.gate.enter() for _ in range(limit)))
            for _ in range(limit):
                first.gate.leave()
            await first.gate.close()
            await asyncio.wait_for(asyncio.gather(*(second.gate.enter() for _ in range(limit))), 10)
            for _ in range(limit):
                second.gate.leave()
            await second.gate.close()

    asyncio.run(main())
