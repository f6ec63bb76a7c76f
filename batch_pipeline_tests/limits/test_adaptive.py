"""Limits that nobody told us, in model runs: what is refused, and how long it takes."""

from __future__ import annotations

import pytest

from batch_pipeline.limits.adaptive import Concurrency, Pacer
from batch_pipeline_tests.limits.model import Model, Outcome, RetryAfter, Server

RATES = [0.25, 1.0, 5.0, 20.0, 67.0, 500.0]
LATENCIES_S = [0.02, 0.05, 0.3, 2.0]
PROMPT: list[RetryAfter] = ["none", "exact"]


def run(server: Server, requests: int, seed: int = 1) -> Outcome:
    outcome = Model(server, requests, seed=seed).run()
    assert len(outcome.accepted_at) == requests
    return outcome


def ideal_s(server: Server, requests: int) -> float:
    return max(0.0, (requests - server.depth) / server.rate) + server.latency_s


def requests_for(rate: float) -> int:
    return max(300, int((10 if rate > 100 else 20) * rate))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("retry_after", PROMPT)
def test_the_reference_limit_is_found_with_few_429s_and_little_time(
    retry_after: RetryAfter, seed: int
) -> None:
    server = Server(20.0, 2.0, 0.05, retry_after)
    outcome = run(server, 300, seed)
    assert outcome.refused_share <= 0.05
    assert outcome.seconds <= 1.06 * ideal_s(server, 300)


@pytest.mark.parametrize("retry_after", PROMPT)
@pytest.mark.parametrize("latency_s", LATENCIES_S)
@pytest.mark.parametrize("rate", RATES)
def test_an_unknown_limit_costs_a_tenth_at_most_beside_the_ramp(
    rate: float, latency_s: float, retry_after: RetryAfter
) -> None:
    for depth in {2.0, max(2.0, rate)}:
        server = Server(rate, depth, latency_s, retry_after)
        outcome = run(server, requests_for(rate))
        assert outcome.refused_share <= 0.10
        # Ten round trips: that long doubling takes, and finding the rate where it met the limit
        # early because the bucket was shallow.
        ideal = ideal_s(server, requests_for(rate))
        assert outcome.seconds <= 1.1 * ideal + 10.0 * latency_s


@pytest.mark.parametrize("retry_after", PROMPT)
@pytest.mark.parametrize("latency_s", LATENCIES_S)
@pytest.mark.parametrize("rate", RATES)
def test_a_bucket_of_one_request_costs_more_time_but_no_more_429s(
    rate: float, latency_s: float, retry_after: RetryAfter
) -> None:
    # Every pause and every call below the limit is lost there.
    server = Server(rate, 1.0, latency_s, retry_after)
    outcome = run(server, requests_for(rate))
    assert outcome.refused_share <= 0.10
    ideal = ideal_s(server, requests_for(rate))
    assert outcome.seconds <= 1.5 * ideal + 20.0 * latency_s


@pytest.mark.parametrize("latency_s", LATENCIES_S)
@pytest.mark.parametrize("rate", RATES)
def test_whole_seconds_of_retry_after_are_obeyed(rate: float, latency_s: float) -> None:
    for depth in {2.0, max(2.0, rate)}:
        server = Server(rate, depth, latency_s, "seconds")
        outcome = run(server, requests_for(rate))
        assert outcome.refused_share <= 0.101
        if rate <= 1.0 or depth == rate:
            # A bucket that holds a second's worth makes the rounded wait good.
            ideal = ideal_s(server, requests_for(rate))
            assert outcome.seconds <= 1.1 * ideal + 10.0 * latency_s


@pytest.mark.parametrize("latency_s", LATENCIES_S)
@pytest.mark.parametrize("rate", [5.0, 20.0, 67.0, 500.0])
def test_a_minutes_worth_is_spent_as_fast_as_the_ramp_allows(rate: float, latency_s: float) -> None:
    outcome = run(Server(rate, rate * 60.0, latency_s), 300)
    assert outcome.refused == 0
    assert outcome.seconds <= 10.0 * latency_s


@pytest.mark.parametrize("retry_after", PROMPT)
@pytest.mark.parametrize("seed", range(6))
def test_four_processes_share_a_limit_that_none_of_them_knows(
    seed: int, retry_after: RetryAfter
) -> None:
    for depth in (2.0, 20.0):
        server = Server(20.0, depth, 0.05, retry_after)
        outcome = Model(server, 150, processes=4, seed=seed).run()
        assert len(outcome.accepted_at) == 600
        assert outcome.refused_share <= 0.10
        assert outcome.seconds <= 1.35 * ideal_s(server, 600)


@pytest.mark.parametrize("retry_after", PROMPT)
@pytest.mark.parametrize("seed", range(3))
def test_a_limit_that_halves_is_followed(seed: int, retry_after: RetryAfter) -> None:
    def halve(server: Server) -> None:
        server.rate /= 2.0

    server = Server(20.0, 2.0, 0.05, retry_after)
    outcome = Model(server, 900, seed=seed, later=[(20.0, halve)]).run()
    assert outcome.refused_share <= 0.10
    assert outcome.rate_between(25.0, 45.0) >= 9.5


@pytest.mark.parametrize("retry_after", PROMPT)
@pytest.mark.parametrize("seed", range(3))
def test_a_limit_that_doubles_is_used_within_fifteen_seconds(
    seed: int, retry_after: RetryAfter
) -> None:
    def double(server: Server) -> None:
        server.rate *= 2.0

    server = Server(20.0, 2.0, 0.05, retry_after)
    outcome = Model(server, 2_000, seed=seed, later=[(20.0, double)]).run()
    assert outcome.refused_share <= 0.05
    assert outcome.rate_between(35.0, 50.0) >= 0.8 * 40.0


def test_where_nothing_is_refused_nothing_is_paced() -> None:
    outcome = Model(Server(1e6, 1e6, 0.05), 5_000, cap=200).run()
    assert outcome.processes[0].pacer.rate is None


def test_the_ramp_reaches_two_hundred_in_eight_round_trips() -> None:
    model = Model(Server(1e6, 1e6, 0.05), 5_000, cap=200)
    model.run()
    reached = next(at for at, _, change in model.processes[0].changes if change.after == 200.0)
    assert reached <= 9.0 * 0.05
    assert model.processes[0].concurrency.limit == 200


def test_a_server_that_limits_calls_in_flight_is_met_as_a_rate() -> None:
    outcome = run(Server(1e6, 1e6, 0.5, concurrent=10), 1_000)
    assert outcome.refused_share <= 0.10
    assert outcome.seconds <= 1.3 * 1_000 * 0.5 / 10


def test_the_rest_of_a_volley_changes_nothing() -> None:
    pacer = Pacer()
    for at in (0.0, 0.05, 0.1, 0.1, 0.1, 0.1):
        pacer.sent(at)
    first = pacer.refused(0.105, 0.1, None)
    assert first is not None and "first 429" in first.reason
    rate = pacer.rate
    assert pacer.refused(0.106, 0.1, None) is None
    assert pacer.refused(0.107, 0.1, 0.5) is None
    assert pacer.rate == rate
    assert pacer.pause_s() == 0.5


def test_a_named_wait_is_kept_and_an_unnamed_one_is_an_interval() -> None:
    pacer = Pacer()
    pacer.sent(0.0)
    pacer.sent(1.0)
    pacer.refused(1.005, 1.0, 7.0)
    assert pacer.pause_s() == 7.0
    pacer.sent(9.0)
    pacer.sent(10.0)
    pacer.refused(10.005, 10.0, None)
    assert pacer.rate is not None
    assert pacer.pause_s() == pytest.approx(1.0 / pacer.rate)


def test_a_process_begins_at_the_rate_that_another_found() -> None:
    pacer = Pacer()
    pacer.sent(0.0)
    change = pacer.sent(0.1, shared_rate=20.0)
    assert change is not None and change.after == 20.0
    assert pacer.rate == 20.0


def test_a_known_rate_times_latency_is_the_target() -> None:
    concurrency = Concurrency(cap=1_000)
    concurrency.follow(0.0, 20.0)
    for call in range(64):
        at = call / 20.0
        concurrency.sent(at, 26)
        concurrency.accepted(at + 1.0, at)
    assert concurrency.limit == 26  # 20/s x 1 s and a quarter, and one
    change = concurrency.follow(10.0, 10.0)
    assert change is not None and change.after == 14.0
    assert "10 requests/s" in change.reason


def test_what_is_not_used_does_not_grow() -> None:
    concurrency = Concurrency(cap=100)
    for at in range(50):
        concurrency.sent(float(at), 1)
        concurrency.accepted(at + 0.5, float(at))
    assert concurrency.limit == 2


def test_a_429_shrinks_once_and_ends_the_doubling() -> None:
    concurrency = Concurrency(cap=100)
    for at in range(15):
        concurrency.sent(float(at), concurrency.limit)
        concurrency.accepted(at + 0.5, float(at))
    assert concurrency.limit == 16
    change = concurrency.refused(20.0, 19.9)
    assert change is not None and (change.before, change.after) == (16.0, 8.0)
    assert concurrency.refused(20.1, 19.9) is None
    concurrency.sent(21.0, 8)
    concurrency.accepted(21.5, 21.0)
    assert concurrency.limit == 8


def test_an_outage_stops_growth_for_a_while_and_shrinks_nothing() -> None:
    concurrency = Concurrency(cap=100)
    concurrency.failed(0.0)
    concurrency.sent(0.1, 1)
    concurrency.accepted(0.2, 0.1)
    assert concurrency.limit == 1
    concurrency.sent(3.0, 1)
    concurrency.accepted(3.1, 3.0)
    assert concurrency.limit == 2


def test_a_storm_of_short_waits_does_not_slow_a_key_for_hours() -> None:
    pacer, now = Pacer(), 100.0
    pacer.sent(now)
    for _ in range(40):
        now += 0.3
        pacer.sent(now)
        pacer.refused(now + 0.01, now, 0.2)
        pacer.paused(now + 0.01, now + 0.21)
    assert pacer.rate is not None and pacer.rate > 0.1, "a call in ten seconds, not in years"
