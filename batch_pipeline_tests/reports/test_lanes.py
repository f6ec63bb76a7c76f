"""What a report says of provider jobs: where they stand, what they cost, saved and lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_pipeline.ledger.batches import Batch, set_estimate
from batch_pipeline.ledger.tables import NANO
from batch_pipeline.pricing.prices import find_pricer
from batch_pipeline.providers.base import Usage
from batch_pipeline.reports import words
from batch_pipeline.reports.charts import draw_charts
from batch_pipeline.reports.model import BatchReport
from batch_pipeline.workloads.compare import estimate_ingested, stored_estimate
from batch_pipeline_tests.engine.lanes.laning import (
    ANTHROPIC,
    GOOGLE,
    SLOW_JOBS,
    jobs_of,
    lane_bench,
    lane_run,
)
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.reports.test_money import every_face, report_of
from batch_pipeline_tests.simulated import Bench, Simulator

both = pytest.mark.usefixtures("either_database")


def ingest(bench: Bench, folder: Path, rows: int = 40) -> Batch:
    return bench.ingest(write_rows(folder / "rows.csv", topics(rows)))


def with_estimate(bench: Bench, batch: Batch) -> None:
    with bench.open() as ledger:
        found = estimate_ingested(ledger, bench.config, batch)
        made = stored_estimate(found, "ingest", ledger.clock.now())
        set_estimate(ledger, batch.batch_id, made)


def deviation_of(report: BatchReport, name: str) -> float | None:
    assert report.estimate is not None
    return next(one for one in report.estimate.lines if one.name == name).deviation_percent


@both
def test_rows_in_provider_jobs_are_under_way_and_nobody_is_told_to_retry(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(batches=SLOW_JOBS)
    bench = lane_bench(tmp_path, simulator, wait=False)
    batch = ingest(bench, tmp_path)
    assert lane_run(bench, batch).done.status == "submitted"
    report = report_of(bench, batch, "run")
    jobs = report.provider_jobs
    assert jobs is not None
    assert (jobs.total, jobs.open, jobs.rows_under_way, jobs.took_p50_s) == (1, 1, 40, None)
    assert (jobs.jobs[0].state, jobs.jobs[0].lines, jobs.jobs[0].rows) == ("submitted", 4, 40)
    assert words.verdict(report).text == "Submitted, 40 rows in provider jobs"
    [problem] = words.problems(report)
    assert words.heading([problem], report) == "What is under way"
    assert "the Dagster daemon" in problem.text
    assert not any("not known to have ended" in note for note in report.notes)
    [lane] = report.lanes
    assert (lane.lane, lane.attempts, lane.cost_usd) == ("batch", 4, 0.0)
    assert lane.reserved_usd == report.money.reserved_usd > 0
    for face, text in every_face(report).items():
        assert "40 rows in provider jobs" in text, face
        assert f"batch-pipeline batches collect {batch.batch_id}" in text, face
        assert f"retry {batch.batch_id}" not in text, face

    simulator.advance(700.0)
    assert lane_run(bench, batch, "again").done.status == "done"
    report = report_of(bench, batch, "again")
    assert report.provider_jobs is not None and report.provider_jobs.collected == 1
    assert words.verdict(report).text == "All rows done" and not words.problems(report)


@both
def test_a_collected_batch_shows_its_jobs_and_what_the_lane_saved(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = lane_bench(tmp_path, simulator, job_items=20)
    batch = ingest(bench, tmp_path)
    with_estimate(bench, batch)
    lane_run(bench, batch)
    report = report_of(bench, batch, "run")
    jobs, saving = report.provider_jobs, report.lane_saving
    assert jobs is not None and saving is not None
    assert (jobs.total, jobs.collected, jobs.failed, jobs.unanswered) == (2, 2, 0, [])
    assert sum(job.cost_usd for job in jobs.jobs) == pytest.approx(report.cost_usd)
    assert [(job.lines_answered, job.lines_failed) for job in jobs.jobs] == [(2, 0), (2, 0)]
    assert jobs.took_p90_s is not None and jobs.took_p90_s == max(
        job.took_s or 0.0 for job in jobs.jobs
    )
    journal = simulator.journal()
    price = find_pricer("google", GOOGLE.removeprefix("google/"))
    assert price is not None
    standard = sum(
        price(Usage(input_tokens=one["input_tokens"], output_tokens=one["output_tokens"]), 1.8e9)
        for one in journal
    )
    assert saving.standard_usd == pytest.approx(standard / NANO)
    assert saving.paid_usd == pytest.approx(sum(one["price_usd"] for one in journal))
    assert saving.saved_share == pytest.approx(0.5)
    assert report.latency.attempts == 0, "lines of jobs have no latency"
    assert "Provider jobs" in [chart.title for chart in draw_charts(report)]
    check = report.estimate
    assert check is not None and check.lane == "batch"
    assert deviation_of(report, "seconds") is None, "24 hours are a promise, no expectation"
    cost = next(one for one in check.lines if one.name == "cost_usd")
    assert cost.actual == report.cost_usd and cost.deviation_percent is not None
    for face, text in every_face(report).items():
        assert jobs.jobs[1].job_id in text or face == "console", face
        assert words.saving_line(saving) in text, face


@pytest.mark.parametrize(
    ("route", "lost", "said"),
    [
        (ANTHROPIC, False, "2 lines (20 rows) expired at the provider before they were asked"),
        (GOOGLE, True, "4 lines (40 rows) were in jobs that expired, which shows no results"),
    ],
)
def test_lines_without_an_answer_are_told_in_words(
    route: str, lost: bool, said: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "batch_expire", "part": 0.5, "count": 1}])
    bench = lane_bench(tmp_path, simulator, route=route)
    batch = ingest(bench, tmp_path)
    lane_run(bench, batch)
    report = report_of(bench, batch, "run")
    jobs = report.provider_jobs
    assert jobs is not None and jobs.failed == 1
    [lines] = jobs.unanswered
    assert (lines.cause, lines.lost) == ("expired", lost)
    assert lines.worst_usd == report.lost_cost_usd
    first = jobs.jobs[0]
    assert (first.lines_lost, first.lines_not_asked) == ((4, 0) if lost else (0, 2))
    assert words.job_state(first) == "expired"
    for face, text in every_face(report).items():
        assert said in text, face
    assert [hint.title for hint in report.hints if "lost" in hint.title] == (
        ["4 calls lost"] if lost else []
    )


def test_rows_that_jobs_failed_at_show_both_lanes(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(faults=[{"kind": "batch_fail"}])
    bench = lane_bench(tmp_path, simulator)
    batch = ingest(bench, tmp_path)
    with_estimate(bench, batch)
    lane_run(bench, batch)
    report = report_of(bench, batch, "run")
    # Nothing of the batch lane was paid, and lines that were given back are no attempts.
    assert [lane.lane for lane in report.lanes] == ["realtime"]
    assert report.lane_saving is None
    jobs = report.provider_jobs
    assert jobs is not None and (jobs.total, jobs.failed) == (2, 2)
    assert {(one.cause, one.lost, one.lines) for one in jobs.unanswered} == {("failed", False, 8)}
    assert report.latency.attempts == report.attempts
    assert report.estimate is not None, "a run of the batch lane asks what is left in real time"
    [hint] = report.hints
    assert hint.title == f"{report.attempts} calls in real time"
    assert words.money(report.cost_usd) in hint.text and "`realtime_fallback" in hint.next_step


def test_an_estimate_of_another_lane_is_not_compared(simulator: Simulator, tmp_path: Path) -> None:
    realtime, in_jobs = Bench(tmp_path, simulator, route=GOOGLE), lane_bench(tmp_path, simulator)
    batch = ingest(in_jobs, tmp_path, rows=10)
    with_estimate(realtime, batch)
    lane_run(in_jobs, batch)
    report = report_of(in_jobs, batch)
    assert jobs_of(in_jobs, batch) and report.estimate is None
    assert any("in real time, and not only that was used" in note for note in report.notes)


def test_a_report_of_a_batch_without_jobs_has_no_such_block(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = ingest(bench, tmp_path, rows=5)
    bench.run(batch)
    report = report_of(bench, batch)
    assert report.provider_jobs is None and report.lane_saving is None
    assert [lane.lane for lane in report.lanes] == ["realtime"]
    assert not [face for face, text in every_face(report).items() if "Provider jobs" in text]
