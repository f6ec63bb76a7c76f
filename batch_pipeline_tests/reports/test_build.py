"""The report's numbers against the engine's own counts and the simulator's journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from batch_pipeline.ledger.calls import RECORD_RUN, RunRecord
from batch_pipeline.ledger.tables import NANO, items
from batch_pipeline.reports.build import MAX_BUCKETS, build_report
from batch_pipeline.reports.files import write_reports
from batch_pipeline.reports.model import BatchReport
from batch_pipeline_tests.reports.conftest import Reported, Room, topics


def test_the_report_agrees_with_the_journal_to_the_token_and_the_cent(clean: Reported) -> None:
    report, journal = clean.report, clean.journal
    assert report.requests == report.attempts == journal["attempts"] == 8
    assert report.tokens.input == journal["input_tokens"]
    assert report.tokens.output == journal["output_tokens"]
    assert report.tokens.cached_input == journal["cached_input_tokens"]
    assert report.cost_usd == pytest.approx(journal["price_usd"], abs=1e-9)
    assert report.lost_cost_usd == 0
    assert report.cost_per_1000_rows_usd == pytest.approx(report.cost_usd / 150 * 1_000)


def test_under_faults_the_report_still_agrees_with_the_journal(troubled: Reported) -> None:
    report, journal = troubled.report, troubled.journal
    assert report.attempts == journal["attempts"]
    assert report.tokens.input == sum(use.tokens.input for use in report.models)
    assert report.tokens.output == journal["output_tokens"]
    assert report.cost_usd == pytest.approx(journal["price_usd"], abs=1e-9)
    by_status = {group.name: group.attempts for group in report.attempts_by_status}
    assert by_status == journal["by_status"]


def test_the_report_agrees_with_what_the_engine_counted(troubled: Reported) -> None:
    report, tally = troubled.report, troubled.done.tally
    assert report.outcomes.model_dump() == {o.value: n for o, n in tally.outcomes.items()}
    assert report.requests == tally.requests
    assert report.attempts == tally.attempts
    assert report.cost_usd == tally.cost_nano / NANO
    assert report.rate_wait_s == pytest.approx(tally.rate_wait_s)
    assert report.latency.p50_s == tally.latency_s(0.5)
    assert report.latency.p95_s == tally.latency_s(0.95)
    assert report.this_run is not None and report.this_run.counts is not None
    assert report.this_run.counts.cache_hits == tally.cache_hits


def test_every_row_and_every_attempt_is_counted_once_in_every_breakdown(
    troubled: Reported,
) -> None:
    report = troubled.report
    assert report.outcomes.total == report.rows == 100
    assert sum(chunk.outcomes.total for chunk in report.chunks) == report.rows
    assert sum(use.rows for use in report.models) == report.outcomes.succeeded
    for groups in (report.attempts_by_reason, report.attempts_by_status, report.models):
        assert sum(group.attempts for group in groups) == report.attempts
    assert sum(bucket.attempts for bucket in report.latency.distribution) == report.latency.attempts
    assert sum(bucket.attempts for bucket in report.throughput.buckets) == report.attempts
    assert 0 < len(report.throughput.buckets) <= MAX_BUCKETS
    assert sum(chunk.cost_usd for chunk in report.chunks) == pytest.approx(report.cost_usd)


def test_rows_paid_for_by_another_batch_are_cache_hits_and_duplicates_are_not(
    troubled: Reported,
) -> None:
    assert troubled.report.cache_hits == 30
    assert troubled.report.duplicate_rows == 2
    assert troubled.report.success_rate == pytest.approx(96 / 99)


def test_failed_and_blocked_rows_are_named_with_cause_and_next_step(troubled: Reported) -> None:
    report = troubled.report
    assert [(row.number, row.outcome, row.kind) for row in report.problem_rows] == [
        (41, "failed", "content"),
        (51, "blocked", "refused"),
        (61, "failed", "input"),
    ]
    causes = {cause.kind: cause for cause in report.errors}
    assert {kind: cause.rows for kind, cause in causes.items()} == {
        "content": 1,
        "refused": 1,
        "input": 1,
    }
    assert "batch-pipeline show troubled:51" in causes["refused"].next_step
    assert "--include-blocked" in causes["refused"].next_step
    assert causes["input"].cause.startswith("The row has a description but no topic")
    assert not causes["content"].cause.startswith("Row 41")
    assert causes["content"].examples[0].number == 41


def test_causes_that_differ_only_in_numbers_and_quotes_are_one(room: Room) -> None:
    rows = [{**row, "Topic": ""} for row in topics(30)]
    with room.ledger() as ledger:
        batch = room.ingest(ledger, "all-bad", rows)
        report = build_report(ledger, batch)
        assert [(cause.rows, len(cause.examples)) for cause in report.errors] == [(30, 3)]
        with ledger.write() as connection:
            for ordinal in range(30):
                connection.execute(
                    items.update()
                    .where(items.c.batch_id == "all-bad", items.c.ordinal == ordinal)
                    .values(error=f"tldr: '{ordinal}x' has {ordinal} words", error_kind="content")
                )
        merged = build_report(ledger, batch)
    assert [cause.rows for cause in merged.errors] == [30]
    assert [row.number for row in merged.errors[0].examples] == [1, 2, 3]
    assert merged.success_rate == 0
    assert merged.cost_per_1000_rows_usd is None


def test_a_second_run_of_a_finished_batch_made_no_calls_and_says_so(
    clean: Reported, again: BatchReport
) -> None:
    report = again
    assert report.this_run is not None and report.this_run.counts is not None
    assert report.this_run.counts.attempts == 0
    assert report.this_run.counts.cache_hits == 150
    assert (report.requests, report.cache_hits) == (8, 0)
    assert report.cost_usd == clean.report.cost_usd
    assert [run.run_id for run in report.runs] == ["clean-again", "clean-run"]
    assert report.throughput.run_id == "clean-run"


def test_a_run_whose_process_died_is_reported_as_crashed(room: Room) -> None:
    with room.ledger() as ledger:
        batch = room.ingest(ledger, "crashed", topics(3))
        ledger.writer.submit(
            RECORD_RUN,
            RunRecord("crashed-run", "simulated", "roadmaps", "crashed", "nobody", {}, "running"),
        ).result()
        report = build_report(ledger, batch, run_id="crashed-run")
    assert report.this_run is not None
    assert (report.this_run.status, report.this_run.ended_at) == ("crashed", None)
    assert report.outcomes.pending == 3
    assert report.success_rate is None


def test_settings_left_out_of_the_requests_are_noted(room: Room) -> None:
    with room.ledger() as ledger:
        batch = room.ingest(ledger, "left-out", topics(1))
        used = {"route": "anthropic/x", "left_out": ["temperature"]}
        ledger.writer.submit(
            RECORD_RUN,
            RunRecord("left-out", "simulated", "roadmaps", "left-out", "nobody", used, "done"),
        ).result()
        report = build_report(ledger, batch)
    assert report.settings == used
    assert any("temperature" in note for note in report.notes)


def test_the_realms_never_mix(room: Room, clean: Reported) -> None:
    from batch_pipeline.ledger.store import Ledger

    with Ledger(room.url, "live") as live:
        batch = room.ingest(live, "clean", topics(150))
        report = build_report(live, batch, run_id="clean-run")
    assert report.simulated is False
    assert (report.outcomes.pending, report.attempts, report.cost_usd) == (150, 0, 0)
    assert (report.runs, report.this_run) == ([], None)


def test_the_json_file_follows_the_models_json_schema(troubled: Reported, tmp_path: Path) -> None:
    files = write_reports(troubled.report, tmp_path / "new" / "folder")
    document: dict[str, Any] = json.loads(files.json_path.read_text(encoding="utf-8"))
    jsonschema.validate(document, BatchReport.model_json_schema(mode="serialization"))
    assert document["schema_version"] == "1"
    assert BatchReport.model_validate(document) == troubled.report
    names = ["batch_report.html", "batch_report.json", "batch_report.md"]
    assert sorted(path.name for path in files.json_path.parent.iterdir()) == names
