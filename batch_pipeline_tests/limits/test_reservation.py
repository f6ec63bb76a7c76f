"""The arithmetic of a reservation: what may be admitted, whatever is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.limits.reservation import LOOK_AHEAD_S, plan_reservation

START = 1_800_000_000.0
# Times are near 2e9: a float keeps them to a quarter of a microsecond.
FUZZ_S = 2e-6

Cost = tuple[float, float, float]
RatesPerSecond = tuple[float | None, float | None, float | None]


@st.composite
def crowds(draw: st.DrawFn) -> tuple[RatesPerSecond, list[list[Cost]], list[float]]:
    """Rates, groups of waiters that come one after another, and the pauses between the groups."""
    rates = draw(
        st.tuples(
            st.none() | st.floats(0.05, 200.0),
            st.none() | st.floats(10.0, 100_000.0),
            st.none() | st.floats(10.0, 100_000.0),
        )
    )
    cost = st.tuples(st.just(1.0), st.floats(0.0, 20_000.0), st.floats(0.0, 5_000.0))
    groups = draw(st.lists(st.lists(cost, min_size=1, max_size=8), min_size=1, max_size=6))
    gaps = draw(st.lists(st.floats(0.0, 3.0), min_size=len(groups), max_size=len(groups)))
    return rates, groups, gaps


def admit_all(
    rates: RatesPerSecond, groups: Sequence[Sequence[Cost]], gaps: Sequence[float]
) -> list[tuple[float, Cost]]:
    """Go-times and costs in the order of admission; each group asks until it is served."""
    now = START
    arrivals = [0.0, 0.0, 0.0]
    admitted: list[tuple[float, Cost]] = []
    for group, gap in zip(groups, gaps, strict=True):
        now += gap
        left = list(group)
        while left:
            answer, arrivals = plan_reservation(now, arrivals, rates, left)
            assert all(0.0 <= delay <= LOOK_AHEAD_S + FUZZ_S for delay in answer.delays)
            admitted += [
                (answer.now + delay, cost) for delay, cost in zip(answer.delays, left, strict=False)
            ]
            left = left[len(answer.delays) :]
            assert bool(left) == (answer.retry_s > 0)
            # The wait it names is enough for one more, so that nobody asks in vain for ever.
            now += answer.retry_s + FUZZ_S
    return admitted


@settings(deadline=None, max_examples=200)
@given(crowds())
def test_no_window_admits_more_than_its_rate_and_the_request_that_opens_it(
    crowd: tuple[RatesPerSecond, list[list[Cost]], list[float]],
) -> None:
    rates, groups, gaps = crowd
    admitted = admit_all(rates, groups, gaps)
    assert len(admitted) == sum(len(group) for group in groups)
    for place, rate in enumerate(rates):
        if rate is None:
            continue
        for first, last in itertools.combinations(range(len(admitted)), 2):
            window_s = admitted[last][0] - admitted[first][0] + FUZZ_S
            taken = sum(cost[place] for _, cost in admitted[first:last])
            assert taken <= rate * window_s * (1 + 1e-9) + 1e-6


@settings(deadline=None, max_examples=200)
@given(crowds())
def test_go_times_are_in_waiting_order(
    crowd: tuple[RatesPerSecond, list[list[Cost]], list[float]],
) -> None:
    gos = [go for go, _ in admit_all(*crowd)]
    assert gos == sorted(gos)


@settings(deadline=None)
@given(st.floats(0.5, 50.0), st.integers(2, 40))
def test_a_crowd_that_is_always_waiting_wastes_nothing_of_the_rate(rate: float, size: int) -> None:
    admitted = admit_all((rate, None, None), [[(1.0, 0.0, 0.0)] * size], [0.0])
    assert admitted[-1][0] - START == pytest.approx((size - 1) / rate, rel=0.01, abs=1e-3)


def test_the_slowest_bucket_says_when_and_every_bucket_moves_to_that_moment() -> None:
    rates = (10.0, 100.0, None)
    answer, free_at = plan_reservation(START, [0.0, START + 0.5, 0.0], rates, [(1.0, 20.0, 7.0)])
    assert answer.delays == pytest.approx([0.5])
    # a bucket that advanced from its own clock would be free again too early
    assert free_at[:2] == pytest.approx([START + 0.5 + 0.1, START + 0.5 + 0.2])
    assert free_at[2] == 0.0


def test_without_any_rate_everyone_goes_at_once() -> None:
    answer, _ = plan_reservation(START, [0.0] * 3, (None, None, None), [(1.0, 1e9, 1e9)] * 50)
    assert answer.delays == [0.0] * 50
    assert answer.retry_s == 0.0
