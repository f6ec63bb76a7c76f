"""The arithmetic of `estimate`: rows add up, requests are the engine's, force and history count."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.step import Step
from batch_pipeline.ledger.overview import History
from batch_pipeline.limits.limiter import Rates
from batch_pipeline.providers.base import Usage
from batch_pipeline.workloads.estimate import (
    Estimate,
    Lookup,
    Miss,
    Pace,
    PlannedRow,
    Standing,
    estimate_run,
)


class _Answer(BaseModel):
    text: str


_STEP = Step(
    name="answer",
    system_prompt="Answer.",
    output_model=_Answer,
    content=lambda row: {"topic": row["topic"]},
    max_items=20,
    output_tokens_per_item=100,
    output_tokens_base=50,
)
_KEYS = KeyMaker(_STEP)


def _key(topic: str) -> str:
    return _KEYS.key({"topic": topic})


def _estimate(
    rows: Iterable[PlannedRow],
    *,
    cached: Iterable[str] = (),
    otherwise: Iterable[str] = (),
    before: Iterable[str] = (),
    rates: Rates | None = None,
    history: History | None = None,
    limit: int | None = None,
    force: bool = False,
) -> Estimate:
    hits, other, ids = set(cached), set(otherwise), set(before)
    return estimate_run(
        rows,
        _STEP,
        Lookup(
            lambda keys: hits.intersection(keys),
            lambda keys: (hits | other).intersection(keys),
            lambda asked: ids.intersection(asked),
        ),
        Pace(rates or Rates(), 4),
        price=lambda usage: usage.input_tokens + 10 * usage.output_tokens,
        history=history,
        limit=limit,
        force=force,
    )


def _open(topics: Iterable[str]) -> list[PlannedRow]:
    return [PlannedRow(topic, {"topic": topic}, Standing.OPEN) for topic in topics]


@pytest.mark.parametrize(("cached", "requests"), [(0, 8), (75, 4), (50, 5), (150, 0)])
def test_150_rows_take_the_requests_that_the_engine_takes(cached: int, requests: int) -> None:
    topics = [f"topic {number}" for number in range(150)]
    found = _estimate(_open(topics), cached=map(_key, topics[:cached]))
    assert (found.requests, found.cached, found.to_ask) == (requests, cached, 150 - cached)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(Standing)), min_size=0, max_size=80),
    st.sets(st.integers(0, 30)),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_every_row_is_counted_once_and_the_bound_is_never_below_the_expectation(
    rows: list[tuple[int, Standing]], cached: set[int], limit: int | None
) -> None:
    planned = [PlannedRow(str(n), {"topic": str(n)}, standing) for n, standing in rows]
    found = _estimate(planned, cached=(_key(str(n)) for n in cached), limit=limit)
    parts = (
        found.done + found.cached + found.to_ask + found.left_pending
        + found.blocked + found.skipped + found.unusable
    )  # fmt: skip
    assert parts == found.rows == len(rows)
    assert sum(found.misses.values()) == found.questions <= found.to_ask
    assert found.requests == -(-found.questions // 20)
    assert found.cost_usd is not None and found.cost_worst_usd is not None
    assert found.cost_usd <= found.cost_worst_usd


def test_it_says_why_rows_have_no_stored_answer() -> None:
    found = _estimate(
        _open(["new", "other", "changed"]), otherwise=[_key("other")], before=["changed"]
    )
    assert found.misses == {Miss.NEW: 1, Miss.OTHER_MODEL: 1, Miss.CHANGED: 1}
    forced = _estimate(_open(["known"]), cached=[_key("known")], force=True)
    assert (forced.to_ask, forced.misses) == (1, {Miss.FORCED: 1})


def test_the_time_is_bound_by_the_slowest_limit_and_says_which() -> None:
    rows = _open(str(number) for number in range(200))
    history = History(calls=3, input_ratio=1.0, output_per_item=10.0, latency_s=2.0)
    free = _estimate(rows, history=history)
    assert (free.seconds, free.bound_by) == (6.0, "4 requests in flight")
    slow = _estimate(rows, history=history, rates=Rates(requests=15))
    assert (slow.seconds, slow.bound_by) == (9 * 4.0 + 2.0, "15 requests a minute")


def test_earlier_calls_scale_the_expectation_but_not_the_bound() -> None:
    rows = _open(str(number) for number in range(20))
    plain = _estimate(rows)
    learned = _estimate(
        rows, history=History(calls=9, input_ratio=2.0, output_per_item=7.0, latency_s=1.0)
    )
    assert learned.input_tokens == 2 * plain.input_tokens
    assert learned.output_tokens == 140
    assert learned.output_tokens_worst == plain.output_tokens_worst == 50 + 20 * 100
    price = Usage(input_tokens=learned.input_tokens, output_tokens=140)
    assert learned.cost_usd == (price.input_tokens + 10 * price.output_tokens) / 1e9
