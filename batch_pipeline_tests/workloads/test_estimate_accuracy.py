"""Estimates against the simulator's journal: tokens within 5 %, cost within 10 %.

The simulator counts by a vocabulary of its own (o200k), the estimator by none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.ledger.batches import Batch, unfinished_chunks
from batch_pipeline.limits.by_hand import Scope, set_limits
from batch_pipeline.pricing.calibration import FROM_CALLS, FROM_COUNTS, FROM_SCHEMA, FROM_TEXT
from batch_pipeline.workloads.compare import Target, compared_routes, estimate_target
from batch_pipeline.workloads.estimate import Estimate
from batch_pipeline_tests.engine.lanes.laning import lane_bench, lane_run
from batch_pipeline_tests.simulated import Bench, Simulator, finish

GOOGLE = "google/gemini-3.1-flash-lite"
CLAUDE = "anthropic/claude-haiku-5-5"
OPENAI = "openai/gpt-6-luna"

_LONG_RULES = "\n".join(
    f"Rule {number}: when a topic of area {number} names a tool, say what the tool is good for, "
    "not who made it, and keep to what the description of the topic states."
    for number in range(1, 61)
)


def estimates(
    bench: Bench, target: Target, routes: Sequence[str], *, offline: bool = False
) -> list[Estimate]:
    with bench.open() as ledger:
        found, _ = estimate_target(
            ledger,
            bench.config,
            target,
            routes,
            simulator=None if offline else lambda: bench.simulator.url,
        )
    return found


def table(source: Path) -> Target:
    return Target(str(source), None, {})


def run(bench: Bench, batch: Batch, run_id: str, **settings: Any) -> None:
    job = bench.job(batch, run_id, **settings)
    assert finish(bench.start(job), job).done.status == "done"


def run_sample(bench: Bench, batch: Batch) -> None:
    """100 rows: 20 each from five places of the batch, as `estimate --sample 100` takes them."""
    run(bench, batch, "sample", limit=20)
    with bench.open() as ledger, ledger.read() as connection:
        chunks = unfinished_chunks(connection, ledger.realm, batch.batch_id)
    for part in range(1, 5):
        chunk = chunks[len(chunks) * part // 5]
        run(bench, batch, f"sample-{part}", chunks=[chunk.chunk_key], limit=20)


def paid(journal: Sequence[dict[str, Any]]) -> dict[str, float]:
    names = ("input_tokens", "cached_input_tokens", "output_tokens", "price_usd")
    return {name: sum(record[name] or 0 for record in journal) for name in names}


@pytest.mark.parametrize("name", ["rows_1000.csv", "rows_all.csv"])
@pytest.mark.parametrize("route", [GOOGLE, CLAUDE])
def test_the_estimate_agrees_with_the_journal_of_the_whole_run(
    name: str, route: str, reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=route)
    source = reference_data / "roadmaps" / name
    before = estimates(bench, table(source), [route])[0]
    offline = estimates(bench, table(source), [route], offline=True)[0]
    assert not simulator.journal()
    batch = bench.ingest(source)
    run_sample(bench, batch)
    sampled = paid(simulator.journal())
    rest = estimates(bench, Target(None, batch.batch_id, {}), [route])[0]
    run(bench, batch, "whole")
    whole = paid(simulator.journal())

    # after 100 rows: all of it
    assert (rest.basis.input, rest.basis.output) == (FROM_CALLS, FROM_CALLS)
    assert rest.cost_usd is not None
    for named in ("input_tokens", "output_tokens"):
        expected = sampled[named] + getattr(rest.expected, named)
        assert expected == pytest.approx(whole[named], rel=0.05), named
        alone = whole[named] - sampled[named]
        assert getattr(rest.expected, named) == pytest.approx(alone, rel=0.05), named
    assert sampled["price_usd"] + rest.cost_usd == pytest.approx(whole["price_usd"], rel=0.1)

    # before anything was paid: prompt tokens, and a cost that lies between low and worst
    assert (before.basis.input, before.basis.output) == (FROM_COUNTS, FROM_SCHEMA)
    assert before.expected.input_tokens == pytest.approx(whole["input_tokens"], rel=0.05)
    assert offline.basis.input == FROM_TEXT
    assert offline.expected.input_tokens == pytest.approx(whole["input_tokens"], rel=0.05)
    for one in (before, offline):
        low, worst = one.low.cost_usd, one.worst.cost_usd
        assert low is not None and worst is not None
        assert low <= whole["price_usd"] <= worst
        assert one.low.output_tokens <= whole["output_tokens"] <= one.worst.output_tokens


@pytest.mark.parametrize("route", [CLAUDE, OPENAI, GOOGLE])
def test_a_cached_prompt_is_estimated_as_the_provider_bills_it(
    route: str, reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    """With a system prompt long enough for the providers' prompt caches."""
    folder = tmp_path / "roadmaps"
    folder.mkdir()
    (folder / "prompt.md").write_text(_LONG_RULES, encoding="utf-8")
    bench = Bench(tmp_path, simulator, route=route, workers=4)
    bench.config = bench.config.model_copy(update={"folder": folder})
    source = reference_data / "roadmaps" / "rows_1000.csv"
    before = estimates(bench, table(source), [route])[0]
    batch = bench.ingest(source)
    run_sample(bench, batch)
    sampled = paid(simulator.journal())
    rest = estimates(bench, Target(None, batch.batch_id, {}), [route])[0]
    run(bench, batch, "whole")
    whole = paid(simulator.journal())

    assert whole["cached_input_tokens"] > 0.5 * whole["input_tokens"]
    assert rest.cost_usd is not None
    assert sampled["input_tokens"] + rest.expected.input_tokens == pytest.approx(
        whole["input_tokens"], rel=0.05
    )
    assert sampled["price_usd"] + rest.cost_usd == pytest.approx(whole["price_usd"], rel=0.1)
    low, worst = before.low.cost_usd, before.worst.cost_usd
    assert low is not None and worst is not None and low <= whole["price_usd"] <= worst


def test_routes_are_compared_side_by_side_and_each_says_what_it_rests_on(
    reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=GOOGLE)
    source = reference_data / "roadmaps" / "rows_150.csv"
    batch = bench.ingest(source)
    run(bench, batch, "part", limit=40)
    found = {
        one.route: one
        for one in estimates(bench, Target(None, batch.batch_id, {}), compared_routes())
    }
    assert found[GOOGLE].basis.input == FROM_CALLS
    assert found[CLAUDE].basis.input == FROM_COUNTS
    assert found[OPENAI].basis.input == FROM_COUNTS
    router = found["openrouter/google/gemini-3.1-flash-lite"]
    assert router.basis.input == FROM_TEXT
    assert router.basis.notes == (
        "openrouter has no endpoint that counts tokens.",
        "openrouter has no Batch API: there is real time only.",
    )
    assert {len(one.lanes) for name, one in found.items() if name != router.route} == {2}
    assert "another model" in found[CLAUDE].basis.output
    assert {one.to_ask for one in found.values()} == {110}


@pytest.mark.parametrize("route", [GOOGLE, CLAUDE])
def test_the_batch_lanes_estimate_agrees_with_what_its_jobs_cost(
    route: str, reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, route=route, pack=20)
    batch = bench.ingest(reference_data / "roadmaps" / "rows_1000.csv")
    run(Bench(tmp_path, simulator, route=route), batch, "sample", limit=100)
    before = paid(simulator.journal())
    found = estimates(bench, Target(None, batch.batch_id, {}), [route])[0]
    assert (found.lane, found.to_ask) == ("batch", 900)
    lane_run(bench, batch)
    journal = [one for one in simulator.journal() if one["lane"] == "batch"]
    after = paid(journal)
    assert after["price_usd"] < 9 * before["price_usd"], "at half the price"
    assert found.requests == len(journal)
    assert found.expected.input_tokens == pytest.approx(after["input_tokens"], rel=0.05)
    assert found.expected.output_tokens == pytest.approx(after["output_tokens"], rel=0.05)
    assert found.cost_usd == pytest.approx(after["price_usd"], rel=0.1)


def test_a_provider_that_cannot_be_asked_leaves_a_note_and_the_local_count(
    reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route="google/gemini-99-nano")
    source = reference_data / "roadmaps" / "rows_150.csv"
    found = estimates(bench, table(source), ["google/gemini-99-nano"])[0]
    assert found.basis.input == FROM_TEXT
    assert found.basis.notes[0] == "google did not count tokens (HTTP 404)."
    assert found.cost_usd is None and "No price is known" in found.basis.notes[1]
    assert found.expected.input_tokens > 10_000


def test_a_limit_set_by_hand_bounds_the_time_of_a_run_to_come(
    reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=GOOGLE, rate_limit=600)
    source = table(reference_data / "roadmaps" / "rows_150.csv")
    assert "600 requests" in estimates(bench, source, [GOOGLE], offline=True)[0].bound_by
    with bench.open() as ledger, ledger.write() as connection:
        scope = Scope(ledger.realm, "google")
        set_limits(connection, ledger.now(connection), scope, {"requests": 6.0})
    found = estimates(bench, source, [GOOGLE], offline=True)[0]
    assert found.bound_by == "6 requests a minute" and found.seconds > 60
