"""What a report tells of steps, searches, rows that wait and decisions, on every face."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from batch_pipeline.ledger.batches import Item, stream_items
from batch_pipeline.ledger.reviews import DecisionKind
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.reports.build import build_report
from batch_pipeline.reports.console import print_summary
from batch_pipeline.reports.html import render_html
from batch_pipeline.reports.markdown import render_markdown
from batch_pipeline.reports.model import BatchReport
from batch_pipeline.workloads.reviews import Verdict, decide_rows
from batch_pipeline_tests.reports.conftest import SCRIPT, Reported
from batch_pipeline_tests.workloads.articles.ended import START, Books

MARKUP = f"{SCRIPT} | [x](javascript:alert(1)) `rm`"
SEARCH = {
    "provider": "ahrefs",
    "model": "ahrefs/serp-overview",
    "input_tokens": 0,
    "cached_input_tokens": 0,
    "output_tokens": 0,
    "cost_nano": 0,
}


@pytest.fixture
def books(tmp_path: Path) -> Books:
    """Six jobs: two delivered, four blocked; three searches, one of which met a 429."""
    books = Books(tmp_path, 6)
    books.run("run-1", 0, 60)
    for ordinal in range(6):
        books.write(ordinal, at=10 * ordinal, status="BLOCKED" if ordinal > 1 else "PASS")
    for at in (1, 2):
        books.call([0], "search", at, **SEARCH)
    books.call([0], "search", 3, **SEARCH, status=429, error_kind="rate_limited", reason="retry")
    return books


def decide(books: Books, ordinal: int, kind: DecisionKind, reason: str = MARKUP) -> None:
    verdict = Verdict(kind, f"Anna {SCRIPT}", reason, sign_off=kind is DecisionKind.OVERRIDE)
    books.clock.at = START + 200 + ordinal
    decide_rows(books.ledger, books.batch, [row(books, ordinal)], verdict)


def row(books: Books, ordinal: int) -> Item:
    return list(stream_items(books.ledger, books.batch.batch_id))[ordinal]


def faces(report: BatchReport) -> tuple[str, str, str]:
    """HTML, Markdown and what a terminal shows."""
    out = io.StringIO()
    print_summary(report, Console(file=out, width=200, color_system=None))
    return render_html(report, []), render_markdown(report, []), out.getvalue()


def test_steps_add_up_to_the_batch_in_the_workloads_order_without_the_searches(
    books: Books,
) -> None:
    report = build_report(books.ledger, books.batch)
    assert [(use.step, use.requests) for use in report.steps] == [
        ("single_shot", 3),
        ("outline", 3),
        ("draft", 3),
        ("polish", 3),
    ]
    assert sum(use.requests for use in report.steps) == report.requests == 12
    assert sum(use.attempts for use in report.steps) == report.attempts == 12
    assert sum(use.tokens.output for use in report.steps) == report.tokens.output
    assert sum(use.cost_usd for use in report.steps) == pytest.approx(report.cost_usd)
    assert {use.latency.p95_s for use in report.steps} == {2.0}
    assert [use.model for use in report.models] == ["anthropic/claude-haiku-4-5"]
    (searched,) = report.searches
    assert (searched.endpoint, searched.requests) == ("ahrefs/serp-overview", 3)
    assert (searched.attempts, searched.attempts_failed) == (3, 1)
    assert (searched.cost_usd, searched.rate_wait_s) == (0.0, 1.5)
    for face in faces(report):
        assert "draft" in face.replace("\\", "")
        assert (
            "3 queries (3 calls, 1 failed)" in face.replace("\\", "")
            or 'ahrefs/serp-overview</td><td class="n">3</td><td class="n">3</td>'
            '<td class="n warn">1</td>'
            in face
        )


def test_the_cost_of_searches_is_part_of_the_batchs_cost_and_of_no_models(books: Books) -> None:
    books.call([0], "search", 4, **{**SEARCH, "cost_nano": 5_000_000})
    report = build_report(books.ledger, books.batch)
    (searched,) = report.searches
    assert searched.cost_usd == pytest.approx(0.005)
    models = sum(use.cost_usd for use in report.models)
    assert report.cost_usd == pytest.approx(models + searched.cost_usd)
    assert report.money.settled_usd == pytest.approx(report.cost_usd)
    assert sum(lane.cost_usd for lane in report.lanes) == pytest.approx(models)


def test_a_batch_of_one_step_has_no_table_of_steps(clean: Reported) -> None:
    (only,) = clean.report.steps
    assert (only.requests, only.latency) == (clean.report.requests, clean.report.latency)
    assert clean.report.searches == [] and clean.report.decisions is None
    html, markdown, terminal = faces(clean.report)
    assert "Step by step" not in html + markdown and "Steps" not in terminal


def test_rows_that_wait_are_shown_with_what_blocks_them_and_the_command(books: Books) -> None:
    report = build_report(books.ledger, books.batch)
    assert [waiting.number for waiting in report.waiting] == [3, 4, 5, 6]
    first = report.waiting[0]
    assert first.name == books.job_id(2)
    assert first.why == "HIGH trust_sources: Too few sources."
    assert first.headline == "publisher-2.se → https://example.com/p2 (länk 2)"
    assert first.command == "batch-pipeline review show client 3"
    html, markdown, terminal = faces(report)
    for command in (waiting.command for waiting in report.waiting):
        assert f"<code>{command}</code>" in html
        assert f"`{command}`" in markdown
    assert "4 rows wait for a person's decision. First: " + first.command in terminal
    (cause,) = report.errors
    assert (cause.kind, cause.rows) == ("qc", 4)
    assert "`batch-pipeline review show client 3`" in cause.next_step
    assert "`batch-pipeline review override`" in cause.next_step


def test_decisions_are_told_with_who_why_and_what_came_of_it(books: Books) -> None:
    decide(books, 2, DecisionKind.OVERRIDE)
    decide(books, 3, DecisionKind.REGENERATE)
    decide(books, 4, DecisionKind.SKIP, "Not wanted.")
    report = build_report(books.ledger, books.batch)
    found = report.decisions
    assert found is not None
    assert (found.total, found.override, found.regenerate, found.skip) == (3, 1, 1, 1)
    assert found.signed_off == 1
    newest = found.rows[0]
    assert (newest.number, newest.decision, newest.reason) == (5, "skip", "Not wanted.")
    assert [(one.outcome_before, one.outcome) for one in found.rows] == [
        ("blocked", "skipped"),
        ("blocked", "pending"),
        ("blocked", "succeeded"),
    ]
    assert [one.signed_off for one in found.rows] == [False, False, True]
    assert [waiting.number for waiting in report.waiting] == [6]
    html, markdown, terminal = faces(report)
    assert "3 rows: 1 overridden (1 signed off), 1 to be made anew, 1 skipped" in terminal
    assert "Not wanted." in html and "Not wanted" in markdown


def test_of_several_decisions_about_a_row_the_last_one_counts(books: Books) -> None:
    decide(books, 2, DecisionKind.REGENERATE, "Too thin.")
    books.end(2, Outcome.BLOCKED, 250, error="Too few sources.", error_kind="qc")
    decide(books, 2, DecisionKind.SKIP, "Still too thin.")
    found = build_report(books.ledger, books.batch).decisions
    assert found is not None
    (only,) = found.rows
    assert (found.total, found.skip, found.regenerate) == (1, 1, 0)
    assert (only.decision, only.reason, only.times) == ("skip", "Still too thin.", 2)


def test_what_people_write_is_shown_as_text(books: Books) -> None:
    decide(books, 2, DecisionKind.SKIP)
    books.end(3, Outcome.BLOCKED, 30, error=f"Declined: {MARKUP}", error_kind="refused")
    html, markdown, terminal = faces(build_report(books.ledger, books.batch))
    assert SCRIPT not in html and "&lt;script&gt;" in html
    assert "<script" not in markdown and "](javascript" not in markdown
    assert "Anna <script>" in html.replace("&lt;", "<").replace("&gt;", ">")
    assert "1 row: 1 skipped" in terminal


def test_what_failed_in_preflight_is_advised_about(books: Books) -> None:
    said = "The target https://shop.example/{} cannot be read: The server answers 403 Forbidden."
    for ordinal in (2, 3):
        books.end(ordinal, Outcome.FAILED, 30, error=said.format(ordinal), error_kind="preflight")
    causes = {cause.kind: cause for cause in build_report(books.ledger, books.batch).errors}
    assert causes["preflight"].rows == 2, "addresses tell no causes apart"
    assert "Look at the target page" in causes["preflight"].next_step
    assert "`batch-pipeline review show client 3`" in causes["preflight"].next_step


def test_both_databases_tell_the_same(ledger_url: str) -> None:
    books = Books(ledger_url, 3)
    with books.ledger:
        books.run("run-1", 0, 60)
        for ordinal in range(3):
            books.write(ordinal, at=10 * ordinal, status="BLOCKED")
        books.call([0], "search", 1, **SEARCH)
        decide(books, 0, DecisionKind.SKIP)
        report = build_report(books.ledger, books.batch)
    assert [use.step for use in report.steps] == ["single_shot", "outline", "draft", "polish"]
    assert [(use.endpoint, use.attempts) for use in report.searches] == [(SEARCH["model"], 1)]
    assert [waiting.number for waiting in report.waiting] == [2, 3]
    assert report.decisions is not None and report.decisions.skip == 1
