"""Requests a day: counted for every run, never above the limit, and new at midnight."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.clock import ManualClock
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import day_counts
from batch_pipeline.limits.limiter import DayLimitReached, Rates
from batch_pipeline.limits.reservation import DayLeft, plan_reservation
from batch_pipeline_tests.limits.offices import Office, drive, offices, settle

# Saturday, 21 November 2026, 23:59 in California
BEFORE_MIDNIGHT = datetime(2026, 11, 22, 7, 59, tzinfo=UTC).timestamp()
MIDNIGHT = BEFORE_MIDNIGHT + 60.0


def counted(ledger: Ledger) -> dict[str, int]:
    with ledger.read() as connection:
        found = connection.execute(sa.select(day_counts.c.day, day_counts.c.requests))
        return {row.day: row.requests for row in found}


async def ask(clock: ManualClock, all_: list[Office], *calls: Any) -> tuple[int, int]:
    """How many calls got a turn, and how many were told that the day is full."""

    async def one(call: Any) -> bool:
        try:
            await call
        except DayLimitReached:
            return False
        return True

    done = await drive(clock, all_, *(one(call) for call in calls))
    return done.count(True), done.count(False)


def test_two_processes_never_go_beyond_the_day_and_go_on_after_midnight(ledger_url: str) -> None:
    clock = ManualClock(BEFORE_MIDNIGHT)

    async def main() -> None:
        rates = Rates(requests=6_000, requests_per_day=10)
        with offices(ledger_url, clock, rates, rates) as both:
            for office in both:
                await office.open()
            calls = [office.gate.acquire(1, 1) for _ in range(8) for office in both]
            assert await ask(clock, both, *calls) == (10, 6)
            assert counted(both[0].ledger) == {"2026-11-21": 10}
            with pytest.raises(DayLimitReached) as caught:
                await both[0].gate.acquire(1, 1)
            assert caught.value.resets_at == pytest.approx(MIDNIGHT)
            assert "run again after 2026-11-22 08:00 UTC" in str(caught.value)

            await clock.advance(61.0)
            for office in both:
                await office.beat()
            calls = [office.gate.acquire(1, 1) for _ in range(6) for office in both]
            assert await ask(clock, both, *calls) == (10, 2)
            assert counted(both[0].ledger) == {"2026-11-21": 10, "2026-11-22": 10}

    asyncio.run(main())


def test_just_before_midnight_the_next_day_is_waited_for(ledger_url: str) -> None:
    clock = ManualClock(MIDNIGHT - 0.5)

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests_per_day=2)) as [office]:
            await office.open()
            calls = [office.gate.acquire(1, 1) for _ in range(3)]
            tickets = await drive(clock, [office], *calls)
            assert [ticket.go_at >= MIDNIGHT for ticket in tickets] == [False, False, True]
            assert counted(office.ledger) == {"2026-11-21": 2, "2026-11-22": 1}

    asyncio.run(main())


def test_requests_are_counted_where_nothing_is_limited_so_that_a_later_limit_knows(
    ledger_url: str,
) -> None:
    clock = ManualClock(BEFORE_MIDNIGHT)

    async def main() -> None:
        with offices(ledger_url, clock, Rates(), Rates(requests_per_day=9)) as [free, bound]:
            await free.open()
            await bound.open()
            used = [await free.gate.acquire(1, 1) for _ in range(7)]
            free.gate.give_up(used[0])
            await free.gate.close()
            assert counted(free.ledger) == {"2026-11-21": 6}
            calls = [bound.gate.acquire(1, 1) for _ in range(5)]
            assert await ask(clock, [free, bound], *calls) == (3, 2)

    asyncio.run(main())


def test_a_ticket_that_was_given_up_makes_room_in_the_day(ledger_url: str) -> None:
    clock = ManualClock(BEFORE_MIDNIGHT)

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=600, requests_per_day=1)) as [office]:
            await office.open()
            [ticket] = await drive(clock, [office], office.gate.acquire(1, 1))
            office.gate.give_up(ticket)
            [again] = await drive(clock, [office], office.gate.acquire(1, 1))
            assert again.go_at >= ticket.go_at
            with pytest.raises(DayLimitReached):
                await office.gate.acquire(1, 1)

    asyncio.run(main())


def test_turns_taken_ahead_go_back_when_the_gate_closes(ledger_url: str) -> None:
    clock = ManualClock(BEFORE_MIDNIGHT)

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=24_000)) as [office]:
            await office.open()
            calls = [office.gate.acquire(1, 1) for _ in range(5)]
            await drive(clock, [office], *calls)
            await settle([office])
            assert 5 < sum(counted(office.ledger).values()) <= 5 + 8
            await office.gate.close()
            assert sum(counted(office.ledger).values()) == 5

    asyncio.run(main())


@settings(deadline=None, max_examples=300)
@given(
    st.floats(0.5, 500.0) | st.none(),
    st.floats(0.0, 3.0),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(1, 20),
)
def test_no_day_gets_more_turns_than_are_left_of_it(
    rate: float | None, until_midnight: float, today: int, tomorrow: int, waiting: int
) -> None:
    now = 1_800_000_000.0
    day = DayLeft(now + until_midnight, today, tomorrow)
    costs = [(1.0, 0.0, 0.0)] * waiting
    answer, _ = plan_reservation(now, [0.0] * 3, [rate, None, None], costs, day=day)
    gos = [now + delay for delay in answer.delays]
    assert sum(1 for go in gos if go < day.ends_at) <= today
    assert sum(1 for go in gos if go >= day.ends_at) <= tomorrow
    if len(gos) < waiting:
        assert answer.day_full or answer.retry_s > 0
