"""The arithmetic of estimates: rows add up, requests are the engine's, figures are bracketed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.step import Step
from batch_pipeline.ledger.batches import find_batch, set_estimate
from batch_pipeline.limits.rates import Rates
from batch_pipeline.pricing.calibration import (
    FROM_CALLS,
    FROM_SCHEMA,
    CachedPrefix,
    InputScale,
    OutputScale,
    output_of_schema,
)
from batch_pipeline.pricing.tokens import estimate_item_tokens
from batch_pipeline.workloads import compare
from batch_pipeline.workloads.counting import estimate_routes
from batch_pipeline.workloads.estimate import (
    Chain,
    Estimate,
    JobPlan,
    Lookup,
    Miss,
    Pace,
    PlannedRow,
    RoutePlan,
    Standing,
)
from batch_pipeline_tests.engine.lanes.laning import jobs_of, lane_bench, lane_run
from batch_pipeline_tests.simulated import Bench, Simulator


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
_BASE = 60


def _key(topic: str) -> str:
    return _KEYS.key({"topic": topic})


def _plan(
    *,
    cached: Iterable[str] = (),
    otherwise: Iterable[str] = (),
    before: Iterable[str] = (),
    rates: Rates | None = None,
    workers: int | None = 4,
    **changes: Any,
) -> RoutePlan:
    hits, other, ids = set(cached), set(otherwise), set(before)
    values = {
        "price": lambda usage: usage.input_tokens + 10 * usage.output_tokens,
        "input": InputScale(),
        "output": output_of_schema(_STEP.item_schema, _STEP.output_tokens_per_item),
    }
    return RoutePlan(
        route="google/m",
        model="google/m",
        lookup=Lookup(
            lambda keys: hits.intersection(keys),
            lambda keys: (hits | other).intersection(keys),
            lambda asked: ids.intersection(asked),
        ),
        pace=Pace(rates or Rates(), workers),
        base_tokens=_BASE,
        **{**values, **changes},
    )


def _estimate(
    rows: Iterable[PlannedRow],
    plan: RoutePlan | None = None,
    *,
    limit: int | None = None,
    force: bool = False,
) -> Estimate:
    chain = Chain((plan or _plan(),))
    return estimate_routes(rows, [_STEP], [chain], limit=limit, force=force)[0]


def _open(topics: Iterable[str]) -> list[PlannedRow]:
    return [PlannedRow(topic, {"topic": topic}, Standing.OPEN) for topic in topics]


@pytest.mark.parametrize(("cached", "requests"), [(0, 8), (75, 4), (50, 5), (150, 0)])
def test_150_rows_take_the_requests_that_the_engine_takes(cached: int, requests: int) -> None:
    topics = [f"topic {number}" for number in range(150)]
    found = _estimate(_open(topics), _plan(cached=map(_key, topics[:cached])))
    assert (found.requests, found.cached, found.to_ask) == (requests, cached, 150 - cached)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(Standing)), min_size=0, max_size=80),
    st.sets(st.integers(0, 30)),
    st.one_of(st.none(), st.integers(1, 40)),
    st.floats(0, 0.5),
)
def test_every_row_is_counted_once_and_low_expected_and_worst_are_in_order(
    rows: list[tuple[int, Standing]], cached: set[int], limit: int | None, margin: float
) -> None:
    planned = [PlannedRow(str(n), {"topic": str(n)}, standing) for n, standing in rows]
    plan = _plan(cached=(_key(str(n)) for n in cached), input=InputScale(1.1, margin, "x", 3))
    found = _estimate(planned, plan, limit=limit)
    parts = (
        found.done + found.cached + found.to_ask + found.left_pending
        + found.blocked + found.skipped + found.unusable
    )  # fmt: skip
    assert parts == found.rows == len(rows)
    assert sum(found.misses.values()) == found.questions <= found.to_ask
    assert found.requests == -(-found.questions // 20)
    low, expected, worst = found.low, found.expected, found.worst
    assert low.input_tokens <= expected.input_tokens <= worst.input_tokens
    assert low.output_tokens <= expected.output_tokens <= worst.output_tokens
    assert low.cost_usd is not None and worst.cost_usd is not None
    assert found.cost_usd is not None and low.cost_usd <= found.cost_usd <= worst.cost_usd


def test_it_says_why_rows_have_no_stored_answer() -> None:
    plan = _plan(otherwise=[_key("other")], before=["changed"])
    found = _estimate(_open(["new", "other", "changed"]), plan)
    assert found.misses == {Miss.NEW: 1, Miss.OTHER_MODEL: 1, Miss.CHANGED: 1}
    forced = _estimate(_open(["known"]), _plan(cached=[_key("known")]), force=True)
    assert (forced.to_ask, forced.misses) == (1, {Miss.FORCED: 1})


def test_the_time_is_bound_by_the_slowest_limit_and_says_which() -> None:
    rows = _open(str(number) for number in range(200))
    free = _estimate(rows, _plan(latency_s=2.0))
    assert (free.seconds, free.bound_by) == (6.0, "4 requests in flight")
    slow = _estimate(rows, _plan(latency_s=2.0, rates=Rates(requests=15)))
    assert (slow.seconds, slow.bound_by) == (9 * 4.0 + 2.0, "15 requests a minute")
    daily = _estimate(rows, _plan(latency_s=2.0, rates=Rates(requests_per_day=4)))
    assert (daily.seconds, daily.bound_by) == (2 * 86_400 + 2.0, "4 requests a day")
    one = _estimate(rows, _plan(latency_s=2.0, rates=Rates(concurrent=1)))
    assert (one.seconds, one.bound_by) == (20.0, "1 concurrent requests of the key")
    auto = _estimate(rows, _plan(latency_s=2.0, workers=None))
    assert auto.seconds == 2.0 and "workers: auto" in auto.bound_by


def test_what_earlier_calls_taught_sets_the_expectation_but_not_the_bound() -> None:
    rows = _open(str(number) for number in range(20))
    local = _BASE + sum(estimate_item_tokens({"topic": str(number)}) for number in range(20))
    learned = _estimate(
        rows,
        _plan(
            input=InputScale(2.0, 0.03, FROM_CALLS, 9),
            output=OutputScale((5.0,), (7.0,), 0.1, 6.0, FROM_CALLS, 9),
        ),
    )
    assert learned.expected.input_tokens == 2 * local
    assert learned.expected.output_tokens == 140
    assert learned.worst.output_tokens == 50 + 20 * 100
    assert learned.cost_usd == (2 * local + 1_400) / 1e9
    assert (learned.basis.input, learned.basis.output) == (FROM_CALLS, FROM_CALLS)
    assert _estimate(rows).basis.output == FROM_SCHEMA


def test_a_prefix_is_written_by_the_requests_of_the_first_moment_and_read_by_the_others() -> None:
    rows = _open(f"{number}" for number in range(200))
    price = lambda usage: (  # noqa: E731 - a price in one expression
        usage.input_tokens
        - usage.cached_input_tokens
        - usage.cache_write_tokens
        + 0.1 * usage.cached_input_tokens
        + 1.25 * usage.cache_write_tokens
    )
    prefix = CachedPrefix(50, billed_write=True, certain=True)
    found = _estimate(rows, _plan(price=price, prefix=prefix, input=InputScale(1.0, 0.0, "x", 1)))
    assert found.expected.cached_input_tokens == 6 * 50
    assert (found.low.cached_input_tokens, found.worst.cached_input_tokens) == (9 * 50, 0)
    plain = found.expected.input_tokens
    assert found.cost_usd == pytest.approx((plain + 4 * 50 * 0.25 - 6 * 50 * 0.9) / 1e9)


def test_a_prefix_that_nobody_has_seen_cached_only_lowers_the_low_figure() -> None:
    rows = _open(f"{number}" for number in range(200))
    found = _estimate(rows, _plan(prefix=CachedPrefix(50)))
    assert (found.expected.cached_input_tokens, found.low.cached_input_tokens) == (0, 9 * 50)


def test_several_routes_are_estimated_in_one_pass_each_with_its_own_hits() -> None:
    rows = iter(_open(["a", "b", "c"]))
    plans = [_plan(), _plan(cached=[_key("a")]), _plan(price=None)]
    found = estimate_routes(rows, [_STEP], [Chain((plan,)) for plan in plans])
    assert [one.to_ask for one in found] == [3, 2, 3]
    assert [one.cost_usd is None for one in found] == [False, False, True]
    assert found[2].worst.cost_usd is None


def test_an_estimate_is_json_and_scales_to_a_larger_table() -> None:
    found = _estimate(_open(str(number) for number in range(100)))
    document = orjson.loads(orjson.dumps(found.to_dict()))
    assert set(document) >= {"route", "rows", "requests", "low", "expected", "worst", "basis"}
    assert document["expected"]["input_tokens"] == found.expected.input_tokens
    larger = found.scaled_to(1_000)
    assert (larger.rows, larger.to_ask, larger.requests) == (1_000, 1_000, 50)
    assert larger.rows_read == 100
    assert larger.cost_usd == pytest.approx(10 * (found.cost_usd or 0))


def _topics(path: Path, count: int) -> Path:
    lines = ["Category,Subcategory,Topic,Description,Resources"]
    lines += [f"C,S,Topic {n},{'A description of it. ' * (n % 7)}," for n in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_large_batch_is_estimated_from_rows_spread_over_it(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(_topics(tmp_path / "t.csv", 3_000))
    with bench.open() as ledger:
        whole = compare.estimate_ingested(ledger, bench.config, batch)
        monkeypatch.setattr(compare, "MOST_ROWS_AT_INGEST", 800)
        part = compare.estimate_ingested(ledger, bench.config, batch)
    assert (whole.rows_read, part.rows_read, part.rows) == (3_000, 800, 3_000)
    assert part.basis.notes == ("Extrapolated from 800 rows spread over the table.",)
    assert part.requests == whole.requests == 150
    assert part.expected.input_tokens == pytest.approx(whole.expected.input_tokens, rel=0.03)
    assert part.cost_usd == pytest.approx(whole.cost_usd, rel=0.03)


def test_estimating_a_batch_of_20_000_rows_takes_seconds_not_minutes(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(_topics(tmp_path / "t.csv", 20_000))
    began = time.process_time()
    with bench.open() as ledger:
        found = compare.estimate_ingested(ledger, bench.config, batch)
    assert found.rows_read == 20_000
    assert time.process_time() - began < 15


def test_the_estimate_made_at_ingest_is_kept_with_the_batch(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(_topics(tmp_path / "t.csv", 50))
    with bench.open() as ledger:
        found = compare.estimate_ingested(ledger, bench.config, batch)
        stored = compare.stored_estimate(found, "ingest", 1_000.0)
        set_estimate(ledger, batch.batch_id, stored)
        with ledger.read() as connection:
            kept = find_batch(connection, ledger.realm, batch.batch_id)
    assert kept is not None and kept.estimate == orjson.loads(orjson.dumps(stored))
    assert (kept.estimate["made"], kept.estimate["made_at"]) == ("ingest", 1_000.0)


# ---- lanes ---------------------------------------------------------------------------------------


def _half(usage: Any) -> int:
    return int((usage.input_tokens + 10 * usage.output_tokens) // 2)


def _jobs(**changes: Any) -> JobPlan:
    return JobPlan(**{"price": _half, "job_s": 600.0, "jobs_known": 12, **changes})


def test_every_lane_of_a_route_stands_beside_the_other_and_the_runs_own_is_the_main_one() -> None:
    rows = _open(str(number) for number in range(100))
    plain = _estimate(rows, _plan(jobs=_jobs()))
    assert [one.lane for one in plain.lanes] == ["realtime", "batch"]
    assert plain.lane == "realtime" and plain.figures is plain.lanes[0]
    batch = _estimate(rows, _plan(jobs=_jobs(), lane="batch"))
    assert batch.lane == "batch" and batch.expected == plain.lanes[1].expected
    assert batch.cost_usd == pytest.approx((plain.cost_usd or 0) / 2, rel=0.01)
    assert (batch.seconds, batch.figures.seconds_known) == (600.0, True)
    assert "90 % of the last 12" in batch.bound_by
    document = orjson.loads(orjson.dumps(batch.to_dict()))
    assert document["lane"] == "batch" and document["seconds"] == 600.0
    assert [one["lane"] for one in document["lanes"]] == ["realtime", "batch"]
    assert document["expected"] == document["lanes"][1]["expected"]


def test_a_lane_without_a_known_price_never_shows_the_other_lanes() -> None:
    rows = _open(["a"])
    found = _estimate(rows, _plan(jobs=_jobs(price=None), lane="batch"))
    assert (found.lane, found.cost_usd, found.worst.cost_usd) == ("batch", None, None)
    assert found.lanes[0].expected.cost_usd is not None
    without = _estimate(rows, _plan(jobs=None, lane="batch"))
    assert without.lane == "realtime" and len(without.lanes) == 1


def test_more_tokens_than_may_be_enqueued_take_several_times_as_long() -> None:
    rows = _open(str(number) for number in range(100))
    tokens = _estimate(rows).expected.input_tokens
    found = _estimate(rows, _plan(jobs=_jobs(window=-(-tokens // 3)), lane="batch"))
    assert found.seconds == 3 * 600.0 and "3 times that, for" in found.bound_by
    larger = found.scaled_to(200)
    assert larger.seconds == 6 * 600.0 and "6 times that" in larger.bound_by
    one = _estimate(rows, _plan(jobs=_jobs(), lane="batch")).scaled_to(100_000)
    assert one.seconds == 2 * 600.0 and "90 unfinished jobs" in one.bound_by
    few = _estimate(rows, _plan(jobs=_jobs(job_items=10, max_jobs=4), lane="batch"))
    assert few.seconds == 3 * 600.0
    promised = _estimate(rows, _plan(jobs=JobPlan(_half), lane="batch"))
    assert (promised.seconds, promised.figures.seconds_known) == (86_400.0, False)
    assert _estimate([], _plan(jobs=_jobs(), lane="batch")).seconds == 0.0


@pytest.mark.parametrize(
    ("deadline_s", "price", "lane"),
    [
        (None, _half, "batch"),
        (3_600.0, _half, "batch"),
        (300.0, _half, "realtime"),
        (None, None, "realtime"),
        (None, lambda usage: 20 * usage.input_tokens, "realtime"),
    ],
)
def test_lane_auto_is_estimated_as_the_lane_that_it_would_take(
    deadline_s: float | None, price: Any, lane: str
) -> None:
    plan = _plan(jobs=_jobs(price=price), lane="auto", deadline_s=deadline_s)
    assert _estimate(_open(["a", "b"]), plan).lane == lane


def test_no_cache_hit_is_expected_in_a_provider_job() -> None:
    rows = _open(f"{number}" for number in range(200))
    prefix = CachedPrefix(50, billed_write=True, certain=True)
    realtime, jobs = _estimate(rows, _plan(prefix=prefix, jobs=_jobs())).lanes
    assert realtime.expected.cached_input_tokens == 6 * 50
    assert jobs.expected.cached_input_tokens == 0
    assert jobs.low.cached_input_tokens == 9 * 50


def test_the_batch_lane_is_estimated_for_the_first_model_that_has_a_batch_api(
    simulator: Simulator, tmp_path: Path
) -> None:
    google = "google/gemini-3.1-flash-lite"
    route = f"openrouter/{google}, {google}"
    bench = Bench(tmp_path, simulator, route=route, lane="batch")
    batch = bench.ingest(_topics(tmp_path / "t.csv", 20))
    with bench.open() as ledger:
        found = compare.estimate_ingested(ledger, bench.config, batch)
        realtime = bench.config.with_options({"lane": "realtime"})
        other = compare.estimate_ingested(ledger, realtime, batch)
    assert (found.model, [one.lane for one in found.lanes]) == (google, ["batch"])
    assert (other.model, [one.lane for one in other.lanes]) == (
        f"openrouter/{google}",
        ["realtime"],
    )
    assert other.basis.notes[-1] == "openrouter has no Batch API: there is real time only."


def test_the_time_of_provider_jobs_is_learned_from_the_last_ones(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, job_items=10)
    batch = bench.ingest(_topics(tmp_path / "t.csv", 40))
    with bench.open() as ledger:
        before = compare.estimate_ingested(ledger, bench.config, batch)
    assert (before.lane, before.seconds, before.figures.seconds_known) == ("batch", 86_400.0, False)
    lane_run(bench, batch)
    further = bench.ingest(_topics(tmp_path / "more.csv", 60), "more")
    with bench.open() as ledger:
        after = compare.estimate_ingested(ledger, bench.config, further)
    took = [(job.ended_at or 0.0) - (job.submitted_at or 0.0) for job in jobs_of(bench, batch)]
    assert after.figures.seconds_known and after.seconds == pytest.approx(max(took))
    # Lines have no latency of their own: real time is still guessed, and not as nothing.
    assert after.lanes[0].seconds > 1.0
    paid = sum(one["price_usd"] for one in simulator.journal())
    assert after.cost_usd == pytest.approx(paid * after.to_ask / before.to_ask, rel=0.35)
