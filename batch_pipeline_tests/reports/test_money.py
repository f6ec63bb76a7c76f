"""Who answered what, what it cost, what bounded it, and what was expected; on both databases."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from rich.console import Console

from batch_pipeline.engine.breaker import BreakerRules
from batch_pipeline.ledger.batches import Batch, find_batch, set_estimate
from batch_pipeline.ledger.calls import RECONCILE, RECORD_RUN, Reconcile, RunRecord
from batch_pipeline.ledger.tables import NANO, attempts
from batch_pipeline.pricing.prices import find_pricer
from batch_pipeline.providers.base import Usage
from batch_pipeline.reports import words
from batch_pipeline.reports.build import build_report
from batch_pipeline.reports.console import print_summary
from batch_pipeline.reports.html import render_html
from batch_pipeline.reports.markdown import render_markdown
from batch_pipeline.reports.model import BatchReport, EstimateLine
from batch_pipeline.workloads.compare import estimate_ingested, stored_estimate
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator

FIRST, SECOND = "anthropic/claude-haiku-4-5", "google/gemini-3.1-flash-lite"
ROUTE = f"{FIRST}, {SECOND}"
BREAKER = BreakerRules(failures=3, refusals=2, cooldown_s=0.5, max_cooldown_s=2.0)

both = pytest.mark.usefixtures("either_database")


def ingest(bench: Bench, tmp_path: Path, count: int) -> Batch:
    return bench.ingest(write_rows(tmp_path / "rows.csv", topics(count)))


def report_of(bench: Bench, batch: Batch, run_id: str | None = None) -> BatchReport:
    with bench.open() as ledger:
        with ledger.read() as connection:
            found = find_batch(connection, "simulated", batch.batch_id)
        assert found is not None
        return build_report(ledger, found, run_id=run_id)


def every_face(report: BatchReport) -> dict[str, str]:
    out = io.StringIO()
    print_summary(report, Console(file=out, width=2_000, color_system=None))
    return {
        "html": render_html(report),
        "markdown": render_markdown(report).replace("\\", ""),
        "console": out.getvalue(),
    }


def kinds(use: Any) -> dict[str, int]:
    """A model's attempts by how they ended."""
    return {
        name.removeprefix("attempts_"): count
        for name, count in use.model_dump().items()
        if name.startswith("attempts_") and count
    }


@both
def test_a_key_that_goes_bad_is_told_as_the_reason_of_a_fallback(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 401, "provider": "anthropic", "after": 10}]
    )
    bench = Bench(tmp_path, simulator, route=ROUTE, pack=1, workers=4)
    batch = ingest(bench, tmp_path, 40)
    assert bench.run(batch).outcomes == {"succeeded": 40}
    report = report_of(bench, batch)
    uses = {use.model: use for use in report.models}
    assert sum(use.rows for use in uses.values()) == 40
    journal = [one for one in simulator.journal() if one["provider"] == "anthropic"]
    refused = sum(one["status"] == 401 for one in journal)
    assert kinds(uses[FIRST]) == {"answered": uses[FIRST].rows, "other_error": refused}
    assert kinds(uses[SECOND]) == {"answered": uses[SECOND].rows}
    [fallback] = report.fallbacks
    [cause] = fallback.causes
    assert (fallback.model, fallback.rows) == (SECOND, uses[SECOND].rows)
    assert (cause.model, cause.kind, cause.attempts) == (FIRST, "key", refused)
    assert f"answered by {SECOND} because {FIRST} refused the key from " in fallback.text
    assert [hint.title for hint in report.hints] == [f"{FIRST} refuses the key"]
    for face, text in every_face(report).items():
        assert "refused the key from" in text, face
        assert "batch-pipeline keys check" in text, face


@pytest.mark.parametrize(
    ("fault", "kind", "column"),
    [
        ({"kind": "status", "status": 503}, "no_answer", "server_error"),
        ({"kind": "status", "status": 429, "retry_after_s": 0.05}, "rate_limited", "rate_limited"),
        ({"kind": "hang"}, "no_answer", "timed_out"),
        ({"kind": "refuse"}, "no_answer", "other_error"),
        ({"kind": "html", "status": 200}, "no_answer", "other_error"),
    ],
    ids=["503", "429", "hanging", "down", "html"],
)
def test_every_way_to_fail_is_counted_by_its_name_and_told_as_the_reason(
    fault: dict[str, Any], kind: str, column: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{**fault, "provider": "anthropic"}])
    # Connecting may take half of it, which a busy machine does not always manage in a blink.
    timeout_s = 1.0 if fault["kind"] == "hang" else 10.0
    bench = Bench(tmp_path, simulator, route=ROUTE, pack=5, workers=4, timeout_s=timeout_s)
    batch = ingest(bench, tmp_path, 40)
    bench.run(batch, breaker=BREAKER, patience_s=0.1)
    report = report_of(bench, batch)
    uses = {use.model: use for use in report.models}
    failed = uses[FIRST]
    assert kinds(failed) == {column: failed.attempts}
    assert kinds(uses[SECOND]) == {"answered": uses[SECOND].attempts}
    [fallback] = report.fallbacks
    assert fallback.rows == 40
    assert [(cause.kind, cause.attempts) for cause in fallback.causes] == [(kind, failed.attempts)]
    assert fallback.text.startswith(f"40 rows were answered by {SECOND} because {FIRST} ")


def test_a_model_given_up_before_the_first_call_is_told_in_the_runs_own_words(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=SECOND, pack=5)
    batch = ingest(bench, tmp_path, 10)
    ran = bench.run(batch)
    used = {**ran.job.used, "route": ROUTE, "models": [FIRST, SECOND]}
    why = "The key …abcd of anthropic does not work: invalid x-api-key."
    told = f"{why} Rows not done stay pending. Check the key, then run again."
    [answered] = report_of(bench, batch).runs
    assert answered.given_up == {} and answered.counts is not None
    with bench.open() as ledger:
        summary = {**_summary(bench), "given_up": {FIRST: told}}
        record = RunRecord(
            "run", "simulated", "roadmaps", batch.batch_id, "nobody", used, "running", "", summary
        )
        ledger.writer.submit(RECORD_RUN, record).result()
        ledger.writer.submit(RECORD_RUN, _done(record)).result()
    report = report_of(bench, batch)
    assert report.runs[0].given_up == {FIRST: told}
    [fallback] = report.fallbacks
    assert [(cause.kind, cause.attempts, cause.error) for cause in fallback.causes] == [
        ("key", 0, why)
    ]
    assert "refused the key before the first call" in fallback.text


def _summary(bench: Bench) -> dict[str, Any]:
    import orjson

    from batch_pipeline.ledger.tables import runs

    with bench.open() as ledger, ledger.read() as connection:
        return dict(orjson.loads(connection.execute(sa.select(runs.c.summary)).scalar_one()))


def _done(record: RunRecord) -> RunRecord:
    from dataclasses import replace

    return replace(record, status="done")


def test_a_rows_own_model_is_no_fallback(simulator: Simulator, tmp_path: Path) -> None:
    rows = topics(20)
    for place, row in enumerate(rows):
        row["route"] = "" if place < 10 else FIRST
    bench = Bench(tmp_path, simulator, route=SECOND)
    batch = bench.ingest(write_rows(tmp_path / "routed.csv", rows))
    assert bench.run(batch).outcomes == {"succeeded": 20}
    report = report_of(bench, batch)
    assert {use.model: use.rows for use in report.models} == {FIRST: 10, SECOND: 10}
    assert report.fallbacks == []


@both
def test_a_rows_own_model_that_could_not_answer_is_one(
    simulator: Simulator, tmp_path: Path
) -> None:
    rows = topics(20)
    for place, row in enumerate(rows):
        row["route"] = "" if place < 10 else FIRST
    simulator.configure(faults=[{"kind": "status", "status": 503, "provider": "anthropic"}])
    bench = Bench(tmp_path, simulator, route=SECOND, fallback=True)
    batch = bench.ingest(write_rows(tmp_path / "routed.csv", rows))
    assert bench.run(batch, breaker=BREAKER).outcomes == {"succeeded": 20}
    report = report_of(bench, batch)
    [fallback] = report.fallbacks
    assert (fallback.rows, fallback.model) == (10, SECOND)
    assert [cause.model for cause in fallback.causes] == [FIRST]


@both
def test_a_budget_that_is_reached_is_told_with_what_to_do(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(
        tmp_path, simulator, route=SECOND, pack=2, workers=2, budget_usd=0.004,
        budget_usd_per_day=5.0, provider_budget_usd_per_day=2.0,
    )  # fmt: skip
    batch = ingest(bench, tmp_path, 60)
    ran = bench.run(batch)
    assert ran.done.status == "budget"
    report = report_of(bench, batch, "run")
    budgets = {budget.scope: budget for budget in report.money.budgets}
    assert set(budgets) == {"batch", "workload", "provider"}
    own = budgets["batch"]
    assert (own.name, own.day, own.limit_usd) == (batch.batch_id, None, 0.004)
    assert own.settled_usd == report.money.settled_usd == report.cost_usd
    assert own.used_share == pytest.approx(report.cost_usd / 0.004)
    assert 0.5 < own.used_share <= 1
    assert budgets["workload"].day and budgets["provider"].name == "google"
    assert budgets["provider"].settled_usd == report.cost_usd
    assert words.verdict(report).tone == "warn"
    assert words.verdict(report).text.startswith("Budget reached, ")
    first = words.problems(report)[0]
    assert first.title == "Budget reached" and "--budget USD" in first.next_step
    for face, text in every_face(report).items():
        assert words.percent(own.used_share) in text, face
        assert "Budget reached" in text, face
        assert "--daily-budget" in text, face


def test_a_daily_limit_that_is_reached_is_told_with_what_to_do(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=SECOND, pack=5, requests_per_day=2, rate_limit=6_000)
    batch = ingest(bench, tmp_path, 40)
    assert bench.run(batch).done.status == "daily_limit"
    report = report_of(bench, batch, "run")
    left = report.outcomes.pending
    assert words.verdict(report).text == f"Daily limit reached, {left} rows pending"
    first = words.problems(report)[0]
    assert first.title == "Daily limit reached" and "after the reset" in first.next_step
    limits = {limit.dimension: (limit.amount, limit.source) for limit in report.limits}
    assert limits == {"requests": (6_000, "user"), "requests_per_day": (2, "user")}


def test_limits_of_a_tier_are_named_as_such(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator, route=SECOND, tier="tier-1")
    batch = ingest(bench, tmp_path, 5)
    bench.run(batch)
    report = report_of(bench, batch)
    assert {limit.source for limit in report.limits} == {"tier"}
    assert "(tier)" in every_face(report)["html"]


@both
def test_lost_calls_stand_apart_until_they_are_reconciled(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "hang", "count": 3}])
    bench = Bench(tmp_path, simulator, route=SECOND, pack=5, workers=3, timeout_s=0.4,
                  budget_usd=5.0)  # fmt: skip
    batch = ingest(bench, tmp_path, 40)
    assert bench.run(batch).outcomes == {"succeeded": 40}
    report = report_of(bench, batch)
    spent = report.money
    assert spent.lost_calls == report.attempts_lost == report.models[0].attempts_timed_out == 3
    assert spent.lost_usd == report.lost_cost_usd > 0
    assert spent.budgets[0].lost_usd == spent.lost_usd
    titles = {hint.title: hint.next_step for hint in report.hints}
    assert f"`batch-pipeline reconcile {batch.batch_id}`" in titles["3 calls lost"]
    assert "`timeout_s`" in titles["3 calls timed out"]
    for face, text in every_face(report).items():
        assert f"reconcile {batch.batch_id}" in text, face
        assert words.money(spent.lost_usd) in text, face

    with bench.open() as ledger, ledger.read() as connection:
        lost = connection.execute(
            sa.select(attempts.c.attempt_id).where(attempts.c.state == "lost")
        ).scalars()
        for attempt_id in lost.all():
            ledger.writer.submit(RECONCILE, Reconcile(attempt_id, NANO // 1_000)).result()
    after = report_of(bench, batch).money
    assert (after.lost_calls, after.lost_usd) == (0, 0)
    assert after.reconciled_calls == 3
    assert after.reconciled_usd == pytest.approx(0.003)
    assert after.settled_usd == pytest.approx(spent.settled_usd + 0.003)


def long_prompt(tmp_path: Path) -> str:
    """A prompt file of more than 1,024 tokens."""
    path = tmp_path / "long.md"
    path.write_text("Describe each topic for a beginner. " * 200)
    return str(path)


@both
def test_what_the_prompt_cache_saved_is_the_journals_price_without_it(
    simulator: Simulator, tmp_path: Path
) -> None:
    long = long_prompt(tmp_path)
    bench = Bench(tmp_path, simulator, route=FIRST, pack=2, workers=2, prompt_file=long)
    batch = ingest(bench, tmp_path, 30)
    bench.run(batch)
    report = report_of(bench, batch)
    cache = report.prompt_cache
    journal = simulator.journal()
    assert cache.cached_tokens == sum(one["cached_input_tokens"] for one in journal) > 0
    assert cache.write_tokens == sum(one["cache_write_tokens"] for one in journal) > 0
    assert cache.hits == sum(one["cached_input_tokens"] > 0 for one in journal)
    price = find_pricer("anthropic", "claude-haiku-4-5")
    assert price is not None
    fresh = sum(
        price(Usage(input_tokens=one["input_tokens"], output_tokens=one["output_tokens"]), 1.8e9)
        for one in journal
    )
    assert cache.saved_usd == pytest.approx(fresh / NANO - report.cost_usd)
    assert cache.saved_usd is not None and cache.saved_usd > 0
    for face, text in every_face(report).items():
        assert f"saved {words.money(cache.saved_usd)}" in text, face


def test_a_cache_that_was_only_written_cost_more_than_it_saved(
    simulator: Simulator, tmp_path: Path
) -> None:
    long = long_prompt(tmp_path)
    bench = Bench(tmp_path, simulator, route=FIRST, pack=5, prompt_file=long)
    batch = ingest(bench, tmp_path, 5)
    bench.run(batch)
    report = report_of(bench, batch)
    saved = report.prompt_cache.saved_usd
    assert saved is not None and saved < 0
    [hint] = [one for one in report.hints if "prompt cache" in one.title]
    assert hint.title == f"The prompt cache cost {words.money(-saved)} more than it saved"
    assert f"cost {words.money(-saved)} more than it saved" in every_face(report)["markdown"]


def test_a_long_prompt_that_no_cache_served_is_pointed_out(
    simulator: Simulator, tmp_path: Path
) -> None:
    # Every call comes before the reply of the first: the prefix is not there yet.
    simulator.configure(latency={"base_s": 0.6, "per_output_token_s": 0, "jitter_s": 0})
    long = long_prompt(tmp_path)
    bench = Bench(tmp_path, simulator, route=SECOND, pack=1, workers=12, prompt_file=long)
    batch = ingest(bench, tmp_path, 12)
    bench.run(batch)
    report = report_of(bench, batch)
    assert (report.prompt_cache.models, report.prompt_cache.saved_usd) == ([], None)
    assert f"{SECOND} read nothing from its prompt cache" in [hint.title for hint in report.hints]


def test_many_429s_lead_to_a_hint_about_tier_and_rate(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 429, "retry_after_s": 0.05, "share": 0.4}]
    )
    bench = Bench(tmp_path, simulator, route=SECOND, pack=1, workers=2, rate_limit=60_000)
    batch = ingest(bench, tmp_path, 40)
    bench.run(batch)
    report = report_of(bench, batch)
    [use] = report.models
    refused = {group.name: group.attempts for group in report.attempts_by_status}["429"]
    assert use.attempts_rate_limited == refused > 2
    assert [hint for hint in report.hints if "for their rate" in hint.title]


@both
def test_the_estimate_stands_beside_what_the_batch_took(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=SECOND, pack=10)
    batch = ingest(bench, tmp_path, 40)
    assert report_of(bench, batch).estimate is None
    keep_estimate(bench, batch)
    bench.run(batch, limit=20)
    part = report_of(bench, batch).estimate
    assert part is not None and part.complete is False
    assert {line.deviation_percent for line in part.lines} == {None}
    bench.run(batch, "again")
    report = report_of(bench, batch)
    check = report.estimate
    assert check is not None and check.complete is True
    lines: dict[str, EstimateLine] = {line.name: line for line in check.lines}
    assert lines["requests"].expected == lines["requests"].actual == report.requests == 4
    assert lines["requests"].deviation_percent == 0
    assert lines["input_tokens"].actual == report.tokens.input
    cost = lines["cost_usd"]
    assert cost.actual == report.cost_usd
    assert cost.expected is not None and cost.low is not None and cost.worst is not None
    assert cost.low <= cost.expected <= cost.worst
    assert cost.deviation_percent == pytest.approx(
        (cost.actual / cost.expected - 1) * 100, abs=0.051
    )
    assert [hint.title for hint in report.hints] == (
        [f"The estimate was off by {cost.deviation_percent:+.0f} %"]
        if abs(cost.deviation_percent or 0.0) > 25
        else []
    )
    for face, text in every_face(report).items():
        assert words.deviation(cost.deviation_percent) in text, face
        assert words.money(cost.expected) in text, face


def test_an_estimate_for_another_route_is_not_compared(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=SECOND)
    batch = ingest(bench, tmp_path, 10)
    keep_estimate(bench, batch)
    Bench(tmp_path, simulator, route=FIRST).run(batch)
    report = report_of(bench, batch)
    assert report.estimate is None
    assert any(f"made for route {SECOND}" in note for note in report.notes)


def keep_estimate(bench: Bench, batch: Batch) -> None:
    with bench.open() as ledger:
        found = estimate_ingested(ledger, bench.config, batch)
        set_estimate(ledger, batch.batch_id, stored_estimate(found, "ingest", 1.8e9))
