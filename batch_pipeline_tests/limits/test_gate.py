"""The gate: runs that share a ledger share a rate, on a clock that only the tests move."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.clock import ManualClock
from batch_pipeline.ledger.calls import OWNER_LEASE_S
from batch_pipeline.ledger.tables import limits
from batch_pipeline.ledger.writer import Operation
from batch_pipeline.limits.limiter import Rates, Ticket
from batch_pipeline.limits.reservation import RESERVE
from batch_pipeline_tests.limits.offices import (
    KEY,
    StallingClock,
    drive,
    gaps,
    gos,
    offices,
    settle,
)


def test_waiters_of_one_process_share_a_statement(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=6_000)) as [office]:
            await office.open()
            calls = [office.gate.acquire(100, 10) for _ in range(60)]
            tickets = await drive(clock, [office], *calls)
            assert office.writer.posted[RESERVE.name] == 1
            assert gaps(tickets) == pytest.approx([0.01] * 59, abs=1e-4)

    asyncio.run(main())


def test_turns_are_taken_at_most_a_second_ahead(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=60)) as [office]:
            await office.open()
            calls = [office.gate.acquire(100, 10) for _ in range(6)]
            tickets = await drive(clock, [office], *calls)
            assert gaps(tickets) == pytest.approx([1.0] * 5, abs=1e-4)
            assert 3 <= office.writer.posted[RESERVE.name] <= 6

    asyncio.run(main())


def test_a_token_limit_spaces_calls_by_their_size(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=600, input_tokens=60_000)) as [office]:
            await office.open()
            calls = [office.gate.acquire(500, 10) for _ in range(4)]
            tickets = await drive(clock, [office], *calls)
            assert gaps(tickets) == pytest.approx([0.5] * 3, abs=1e-4)

    asyncio.run(main())


def test_tokens_that_were_not_used_are_given_back(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(input_tokens=60_000)) as [office]:
            await office.open()
            [ticket] = await drive(clock, [office], office.gate.acquire(900, 10))
            office.gate.correct(ticket, 100, 10)
            await settle([office])
            [following] = await drive(clock, [office], office.gate.acquire(900, 10))
            assert following.go_at - ticket.go_at == pytest.approx(0.1, abs=1e-3)

    asyncio.run(main())


def test_a_turn_that_falls_into_a_pause_is_given_up(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=60)) as [office]:
            await office.open()
            await drive(clock, [office], office.gate.acquire(1, 1))
            waiting = asyncio.ensure_future(office.gate.acquire(1, 1))
            await settle([office])
            until = clock.now() + 5.0
            await office.gate.pause(5.0, "429")
            [ticket] = await drive(clock, [office], asyncio.wait_for(waiting, None))
            assert until <= ticket.go_at <= until + 1.1

    asyncio.run(main())


def test_a_pause_of_one_process_is_learned_by_the_others_at_their_next_admission(
    ledger_url: str,
) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(), Rates()) as [one, other]:
            await one.gate.pause(7.0, "429")
            until = clock.now() + 7.0
            shared = await other.ledger.writer.post(*_shorter_pause(clock.now()))
            assert shared.paused_until == pytest.approx(until), "a shorter pause ends no longer one"
            other.gate.learn(shared)
            [ticket] = await drive(clock, [one, other], other.gate.acquire(1, 1))
            assert ticket.go_at >= until
            assert ticket.waited_s == pytest.approx(7.0)

    asyncio.run(main())


def _shorter_pause(now: float) -> tuple[Operation[Any], Any]:
    from batch_pipeline.ledger.calls import PAUSE, Pause

    return PAUSE, Pause(KEY, now + 1.0, "429")


def test_the_lowest_rate_of_all_live_runs_counts_for_everyone(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=60), Rates(requests=30)) as [fast, slow]:
            await fast.open()
            await slow.open()
            await clock.advance(1.0)
            calls = [fast.gate.acquire(1, 1) for _ in range(4)]
            tickets = await drive(clock, [fast, slow], *calls)
            assert gaps(tickets) == pytest.approx([2.0] * 3, abs=1e-3)

    asyncio.run(main())


def test_the_rate_of_a_dead_run_counts_no_longer(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=60), Rates(requests=30)) as [fast, slow]:
            await fast.open()
            await slow.open()
            await clock.advance(OWNER_LEASE_S + 1.0)  # nobody renews the slow one's lease
            await fast.beat()
            calls = [fast.gate.acquire(1, 1) for _ in range(4)]
            tickets = await drive(clock, [fast, slow], *calls)
            assert gaps(tickets) == pytest.approx([1.0] * 3, abs=1e-3)

    asyncio.run(main())


def test_a_turn_that_was_missed_is_taken_anew(ledger_url: str) -> None:
    clock = StallingClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=60)) as [office]:
            await office.open()
            await drive(clock, [office], office.gate.acquire(1, 1))
            waiting = asyncio.ensure_future(office.gate.acquire(1, 1))
            await settle([office])
            began = clock.now()
            clock.stall(5.0)
            [ticket] = await drive(clock, [office], asyncio.wait_for(waiting, None))
            assert ticket.go_at >= began + 5.0, "the turn at 1 s has passed: others may have sent"

    asyncio.run(main())


def test_a_process_that_is_always_late_sends_late_instead_of_never(ledger_url: str) -> None:
    clock = StallingClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=60)) as [office]:
            await office.open()
            ticket = Ticket(clock.now(), 0.0, (1.0, 1.0, 1.0))
            assert not office.gate.missed(ticket)
            clock.stall(0.4)
            assert not office.gate.missed(ticket), "half the spacing of two requests is tolerated"
            clock.stall(0.2)
            missed = [office.gate.missed(ticket) for _ in range(5)]
            assert missed == [True, True, True, False, True]

    asyncio.run(main())


def test_without_a_limit_no_turn_is_ever_missed(ledger_url: str) -> None:
    clock = StallingClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates()) as [office]:
            ticket = await office.gate.acquire(1, 1)
            clock.stall(60.0)
            assert not office.gate.missed(ticket), "there is no slot that others could have taken"

    asyncio.run(main())


def test_two_processes_share_one_rate(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        rates = Rates(requests=600)
        with offices(ledger_url, clock, rates, rates) as both:
            for office in both:
                await office.open()
            calls = [office.gate.acquire(1, 1) for _ in range(15) for office in both]
            tickets = await drive(clock, both, *calls)
            assert gaps(tickets) == pytest.approx([0.1] * 29, abs=1e-3)

    asyncio.run(main())


def test_turns_taken_ahead_leave_at_most_two_percent_of_the_rate_unused(ledger_url: str) -> None:
    clock = ManualClock()
    per_second = 400.0

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=per_second * 60)) as [office]:
            await office.open()
            tickets: list[Ticket] = []

            async def caller() -> None:
                for _ in range(12):
                    tickets.append(await office.gate.acquire(1, 1))

            await drive(clock, [office], *(caller() for _ in range(25)))
            assert len(tickets) == 300
            took_s = gos(tickets)[-1] - gos(tickets)[0]
            assert took_s <= 300 / per_second * 1.02 + 0.01
            assert min(gaps(tickets)) >= 1 / per_second - 1e-6
            with office.ledger.read() as connection:
                free_at = connection.execute(
                    sa.select(sa.func.max(limits.c.arrival_at))
                ).scalar_one()
            # what is reserved and will never be used
            assert free_at - gos(tickets)[-1] <= 0.02 + 1 / per_second + 1e-6
            assert office.writer.posted[RESERVE.name] < 150, "most calls wait for no transaction"

    asyncio.run(main())


def test_an_error_of_the_ledger_reaches_every_waiter(tmp_path: Path) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(f"sqlite:///{tmp_path / 'ledger.db'}", clock, Rates(requests=60)) as [office]:
            await office.open()
            with office.ledger.write() as connection:
                limits.drop(connection)
            waiting = [asyncio.ensure_future(office.gate.acquire(1, 1)) for _ in range(3)]
            done = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
            assert all(isinstance(error, sa.exc.OperationalError) for error in done)

    asyncio.run(main())
