"""What an operator sets, pauses and resumes reaches every gate within a second or so."""

from __future__ import annotations

import asyncio

import pytest

from batch_pipeline.clock import ManualClock
from batch_pipeline.limits import by_hand
from batch_pipeline.limits.by_hand import Scope, clear_limits, set_limits
from batch_pipeline.limits.limiter import Rates
from batch_pipeline.limits.rates import Source
from batch_pipeline.limits.shared import list_shared
from batch_pipeline_tests.limits.offices import KEY, Office, drive, gaps, offices, settle

GOOGLE = Scope("simulated", "google")
MODEL = Scope("simulated", "google", KEY.model)


def set_by_hand(office: Office, scope: Scope, **amounts: float) -> list[str]:
    with office.ledger.write() as connection:
        return set_limits(connection, office.ledger.now(connection), scope, amounts)


@pytest.mark.parametrize("rates", [Rates(), Rates(requests=6_000)], ids=["unlimited", "limited"])
def test_a_limit_set_by_hand_holds_for_runs_that_go_on_and_ends_when_it_is_cleared(
    ledger_url: str, rates: Rates
) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, rates) as [office]:
            await office.open()
            await drive(clock, [office], office.gate.acquire(1, 1))
            set_by_hand(office, GOOGLE, requests=60)
            await clock.advance(1.0)
            await drive(clock, [office], office.gate.acquire(1, 1))
            await settle([office])
            calls = [office.gate.acquire(1, 1) for _ in range(4)]
            assert gaps(await drive(clock, [office], *calls)) == pytest.approx([1.0] * 3, abs=0.01)

            with office.ledger.write() as connection:
                assert clear_limits(connection, GOOGLE) == 1
            await clock.advance(1.5)
            await drive(clock, [office], office.gate.acquire(1, 1))
            await settle([office])
            calls = [office.gate.acquire(1, 1) for _ in range(4)]
            assert max(gaps(await drive(clock, [office], *calls))) <= 0.011

    asyncio.run(main())


def test_the_more_exactly_a_limit_names_the_key_the_more_it_counts(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=10)) as [office]:
            set_by_hand(office, GOOGLE, requests=600)
            set_by_hand(office, MODEL, requests=1_200)
            set_by_hand(office, Scope("simulated", "google", KEY.model, "…other"), requests=1)
            await office.open()
            assert office.gate.requests_per_s == pytest.approx(20.0)
            calls = [office.gate.acquire(1, 1) for _ in range(4)]
            assert gaps(await drive(clock, [office], *calls)) == pytest.approx([0.05] * 3, abs=1e-3)

    asyncio.run(main())


@pytest.mark.parametrize("rates", [Rates(), Rates(requests=600)], ids=["unlimited", "limited"])
@pytest.mark.parametrize("scope", [GOOGLE, MODEL], ids=["provider", "model"])
def test_a_pause_by_hand_stops_runs_and_resume_lets_them_go(
    ledger_url: str, rates: Rates, scope: Scope
) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, rates) as [office]:
            await office.open()
            with office.ledger.write() as connection:
                by_hand.pause(connection, clock.now(), scope, None, "by hand")
            # The gate learns of it from the ledger: at the latest its second look is after that.
            for _ in range(2):
                await clock.advance(1.0)
                waiting = asyncio.ensure_future(office.gate.acquire(1, 1))
                await settle([office])
            assert office.gate.paused_s() > 1e6
            for _ in range(30):
                await clock.advance(1.0)
                await settle([office])
                await office.beat()
            assert not waiting.done()
            with office.ledger.write() as connection:
                ended, wider = by_hand.resume(connection, clock.now(), scope)
            assert (ended, wider) == (1, [])
            resumed_at = clock.now()
            [ticket] = await drive(clock, [office], asyncio.wait_for(waiting, None))
            assert ticket.go_at - resumed_at <= 1.2

    asyncio.run(main())


def test_resume_ends_a_pause_that_a_provider_asked_for(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=600)) as [office]:
            await office.open()
            await office.gate.pause(500.0, "429")
            began = clock.now()
            waiting = asyncio.ensure_future(office.gate.acquire(1, 1))
            await settle([office])
            with office.ledger.write() as connection:
                assert by_hand.resume(connection, clock.now(), MODEL) == (1, [])
            [ticket] = await drive(clock, [office], asyncio.wait_for(waiting, None))
            assert ticket.go_at - began <= 1.2

    asyncio.run(main())


def test_a_model_stays_paused_with_its_provider(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates()) as [office], office.ledger.write() as connection:
            by_hand.pause(connection, clock.now(), GOOGLE, 60.0, "by hand")
            by_hand.pause(connection, clock.now(), MODEL, 60.0, "by hand")
            assert by_hand.resume(connection, clock.now(), MODEL) == (1, ["google"])

    asyncio.run(main())


def test_a_limit_above_what_the_tier_grants_is_set_with_a_warning(ledger_url: str) -> None:
    clock = ManualClock()
    tier = Rates(requests=100, sources=(Source.TIER,) * 5)

    async def main() -> None:
        with offices(ledger_url, clock, tier) as [office]:
            assert set_by_hand(office, MODEL, requests=1_500) == []
            [warning] = set_by_hand(office, MODEL, requests=50_000)
            assert "2,000 of google tier-1" in warning
            await office.open()
            [warning] = set_by_hand(office, MODEL, requests=1_500)
            assert "100 of the tier that runs work with" in warning

    asyncio.run(main())


def test_what_is_set_lowest_or_used_can_be_seen(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        rates = Rates(requests=600, concurrent=8)
        with offices(ledger_url, clock, rates, Rates(requests=300)) as [one, other]:
            await one.open()
            await other.open()
            await clock.advance(1.0)
            set_by_hand(one, MODEL, requests_per_day=50)
            await drive(clock, [one, other], one.gate.enter(), one.gate.acquire(1, 1))
            await one.gate.report(1)
            await other.gate.report(0)
            with one.ledger.read() as connection:
                shown = {line.key_id: line for line in list_shared(connection, clock.now(), "live")}
                assert shown == {}
                shown = {
                    line.key_id: line for line in list_shared(connection, clock.now(), "simulated")
                }
            assert set(shown) == {"*", KEY.key_id}
            key = shown[KEY.key_id]
            found = {
                limit.dimension: (limit.amount, limit.source and limit.source.value, limit.used)
                for limit in key.limits
            }
            assert found["requests"] == (300, "user", None)
            assert found["requests_per_day"] == (50, "hand", 1)
            assert found["concurrent"] == (8, "user", 1)
            assert sorted((run.held, run.in_flight) for run in key.runs) == [(0, 0), (1, 1)]
            one.gate.leave()
            await one.gate.close()

    asyncio.run(main())
