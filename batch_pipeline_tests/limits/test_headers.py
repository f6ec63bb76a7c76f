"""What a provider's headers say of its limits: read by the codecs, obeyed by the gate."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.clock import ManualClock
from batch_pipeline.limits.limiter import Rates
from batch_pipeline.limits.shared import read_shared
from batch_pipeline.providers.base import RateSignal, RateSignals
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline_tests.limits.offices import KEY, drive, gaps, offices, settle

ANTHROPIC = {
    "date": "Sun, 22 Nov 2026 01:00:00 GMT",
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-11-22T01:00:02Z",
    "anthropic-ratelimit-input-tokens-limit": "30000",
    "anthropic-ratelimit-input-tokens-remaining": "29000",
    "anthropic-ratelimit-output-tokens-limit": "8000",
    "anthropic-ratelimit-tokens-limit": "38000",
}
OPENAI = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-tokens": "6m0s",
}


def test_anthropics_headers_are_read_with_the_reset_against_their_own_date() -> None:
    assert PROVIDERS["anthropic"].codec.rate_signals(ANTHROPIC) == RateSignals(
        RateSignal(50, 49, 2.0), RateSignal(30_000, 29_000, None), RateSignal(8_000, None, None)
    )


@pytest.mark.parametrize("provider", ["openai", "openai-compatible"])
def test_openais_headers_are_read_with_their_durations(provider: str) -> None:
    assert PROVIDERS[provider].codec.rate_signals(OPENAI) == RateSignals(
        RateSignal(60, 59, 1.0), RateSignal(150_000, 149_984, 360.0)
    )


@pytest.mark.parametrize("provider", PROVIDERS)
def test_headers_without_limits_say_nothing(provider: str) -> None:
    assert PROVIDERS[provider].codec.rate_signals({"content-type": "application/json"}) is None


@given(st.sampled_from(sorted(PROVIDERS)), st.dictionaries(
    st.sampled_from(sorted({*ANTHROPIC, *OPENAI})), st.text(max_size=20)
))  # fmt: skip
def test_no_header_makes_a_codec_fail(provider: str, headers: dict[str, str]) -> None:
    PROVIDERS[provider].codec.rate_signals(headers)


def test_a_limit_in_a_header_counts_where_nobody_gave_one_and_every_process_keeps_to_it(
    ledger_url: str,
) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(), Rates()) as [one, other]:
            await one.open()
            await other.open()
            await drive(clock, [one, other], one.gate.acquire(1, 1), other.gate.acquire(1, 1))
            assert one.gate.observe(RateSignals(RateSignal(60, 55, 5.0)), 0) is None
            await settle([one, other])
            await clock.advance(1.0)
            await drive(clock, [one, other], other.gate.acquire(1, 1))
            await settle([one, other])
            calls = [office.gate.acquire(1, 1) for _ in range(3) for office in (one, other)]
            tickets = await drive(clock, [one, other], *calls)
            assert gaps(tickets) == pytest.approx([1.0] * 5, abs=0.02)
            with one.ledger.read() as connection:
                shown = read_shared(connection, clock.now(), KEY).limit("requests")
            assert (shown.amount, shown.source) == (60, "header")

    asyncio.run(main())


def test_a_lower_limit_in_a_header_wins_and_says_so_once(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=600)) as [office]:
            await office.open()
            said = office.gate.observe(RateSignals(RateSignal(120, 110, 5.0)), 0)
            assert said is not None and "120 requests a minute" in said and "600" in said
            assert office.gate.observe(RateSignals(RateSignal(110, 100, 5.0)), 0) is None
            assert office.gate.requests_per_s == pytest.approx(110 / 60)
            await clock.advance(1.0)
            calls = [office.gate.acquire(1, 1) for _ in range(3)]
            assert gaps(await drive(clock, [office], *calls)) == pytest.approx(
                [60 / 110] * 2, abs=1e-3
            )

    asyncio.run(main())


def test_a_header_never_raises_what_was_given(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=60)) as [office]:
            await office.open()
            assert office.gate.observe(RateSignals(RateSignal(6_000, 5_999, 0.1)), 3) is None
            assert office.gate.requests_per_s == pytest.approx(1.0)
            calls = [office.gate.acquire(1, 1) for _ in range(3)]
            assert gaps(await drive(clock, [office], *calls)) == pytest.approx([1.0] * 2, abs=1e-3)

    asyncio.run(main())


def test_an_empty_bucket_holds_every_process_back_until_it_can_serve_again(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(), Rates(requests=600)) as [one, other]:
            await one.open()
            await other.open()
            began = clock.now()
            # nothing is left, and four calls are on their way that it has not counted
            one.gate.observe(RateSignals(RateSignal(120, 0, 60.0)), in_flight=4)
            await settle([one, other])
            await clock.advance(0.6)
            [ticket] = await drive(clock, [one, other], other.gate.acquire(1, 1))
            assert ticket.go_at - began == pytest.approx(5 * 0.5, abs=0.01)

    asyncio.run(main())


def test_a_run_that_keeps_to_a_rate_is_not_slowed_by_what_is_left_of_its_bucket(
    ledger_url: str,
) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=600)) as [office]:
            await office.open()

            async def call() -> float:
                ticket = await office.gate.acquire(1, 1)
                office.gate.observe(RateSignals(RateSignal(600, 0, 0.1)), in_flight=5)
                return ticket.go_at

            times = sorted(await drive(clock, [office], *(call() for _ in range(30))))
            assert times[-1] - times[0] <= 29 * 0.1 * 1.05

    asyncio.run(main())


def test_a_reset_far_away_is_not_believed(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates()) as [office]:
            await office.open()
            began = clock.now()
            office.gate.observe(RateSignals(RateSignal(1, 0, 86_400.0)), in_flight=50)
            await settle([office])
            [ticket] = await drive(clock, [office], office.gate.acquire(1, 1))
            assert ticket.go_at - began <= 10.1

    asyncio.run(main())


def test_a_rate_learned_from_refusals_holds_until_it_is_forgotten(ledger_url: str) -> None:
    clock = ManualClock()

    async def main() -> None:
        with offices(ledger_url, clock, Rates(requests=600)) as [office]:
            await office.open()
            office.gate.pace(120.0)
            assert office.gate.requests_per_s == pytest.approx(2.0)
            await settle([office])
            with office.ledger.read() as connection:
                shown = read_shared(connection, clock.now(), KEY).limit("requests")
            assert (shown.amount, shown.source) == (120, "learned")
            office.gate.pace(None)
            assert office.gate.requests_per_s == pytest.approx(10.0)

    asyncio.run(main())
