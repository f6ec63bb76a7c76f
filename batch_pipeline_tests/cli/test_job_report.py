"""`report FILE...` and `report BATCH --details`: the guide's blocks, and what it left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.workloads.articles.batch_report import write_batch_report
from batch_pipeline_tests.cli.conftest import Cli
from batch_pipeline_tests.workloads.articles.ended import START, Books


@pytest.fixture(scope="module")
def place(make_cli: Callable[[], Cli]) -> Cli:
    return make_cli()


def guides_example() -> dict[str, Any]:
    """A report like the one behind the guide's example output: 50 jobs, 47 delivered."""

    def job(number: int) -> dict[str, Any]:
        status = "DELIVERED" if number < 47 else "BLOCKED" if number < 49 else "ABORTED"
        provider, seconds = ("anthropic", 18.5) if number < 30 else ("openai", 22.3)
        return {
            "job_id": f"job_{number}",
            "status": status,
            "duration": {0: 11.3, 1: 45.7}.get(number, seconds),
            "error": "[bold]HTTP 500[/bold]" if status == "ABORTED" else None,
            "job_config": {
                "publisher_domain": "example.com",
                "target_url": f"https://client.com/p{number}",
                "anchor_text": "product",
                "strategy": "multi_stage" if number < 35 else "single_shot",
            },
            "metrics": {"generation": {"provider": provider}} if number < 47 else {},
            "qc_report": {
                "status": "BLOCKED",
                "issues": [{"category": "intent", "severity": "CRITICAL", "message": "Off."}],
            }
            if status == "BLOCKED"
            else None,
        }

    return {
        "batch_meta": {
            "started_at": "2025-11-07T14:00:00",
            "completed_at": "2025-11-07T14:15:23",
            "duration_seconds": 923.4,
            "max_workers": 3,
            "rate_limit": 10,
        },
        "summary": {"total": 50, "delivered": 47, "blocked": 2, "aborted": 1},
        "results": [job(number) for number in range(50)],
    }


def write(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_report_of_the_guide_shows_all_its_blocks_with_denominators(place: Cli) -> None:
    path = write(place.data / "batch_report_20251107_140000.json", guides_example())
    shown = place("report", str(path))
    assert shown.code == 0, shown.err
    blocks = """\
======================================================================
BATCH MONITOR
======================================================================

Started:    2025-11-07T14:00:00
Completed:  2025-11-07T14:15:23
Duration:   923.4s (15.4 minutes)

Configuration:
  Workers:      3
  Rate limit:   10

Results:
  Total:        50
  ✓ Delivered:  47 (94.0%)
  ⚠ Blocked:    2 (4.0%)
  ✗ Aborted:    1 (2.0%)

LLM Provider Usage: (of the 47 delivered jobs)
  anthropic: 30 jobs (avg 19.2s)
  openai: 17 jobs (avg 22.3s)

Writing Strategy: (of all 50 jobs)
  multi_stage: 35 jobs
  single_shot: 15 jobs

Performance: (of the 47 delivered jobs)
  Avg time:     20.3s
  Min time:     11.3s
  Max time:     45.7s

Cost: not in this report
"""
    assert blocks in shown.out
    assert "job_49" not in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80 and "\x1b" not in shown.out


def test_details_name_each_job_its_errors_and_issues(place: Cli) -> None:
    path = write(place.data / "batch_report_20251107_140001.json", guides_example())
    out = place("report", str(path), "--details").out
    assert (
        "✓ DELIVERED job_0\n    example.com -> https://client.com/p0\n    anthropic · multi" in out
    )
    assert "⚠ BLOCKED job_47" in out and "QC: CRITICAL intent: Off." in out
    # what came from outside is no markup
    assert "✗ ABORTED job_49" in out and "Error: [bold]HTTP 500[/bold]" in out


def test_a_glob_shows_each_report_oldest_first_and_sums_the_newest_of_each_batch(
    place: Cli,
) -> None:
    folder = place.data / "glob"
    folder.mkdir()
    for stamp, batch, delivered in (("140002", "b", 9), ("140000", "a", 1), ("140001", "a", 3)):
        write(
            folder / f"batch_report_20251107_{stamp}.json",
            {
                "batch_meta": {"batch_id": batch, "created_at": f"2025-11-07T{stamp}"},
                "summary": {
                    "total": 10,
                    "delivered": delivered,
                    "cost_usd": 0.5,
                    "models": [
                        {"model": "google/gemini-3.1-flash-lite", "jobs": 10, "attempts": 30}
                    ],
                },
                "results": [],
            },
        )
    files = sorted(map(str, folder.glob("batch_report_*.json")), reverse=True)
    shown = place("report", *files)
    assert shown.code == 0, shown.err
    stamps = [line for line in shown.out.splitlines() if line.endswith(".json")]
    assert [line[-11:-5] for line in stamps] == ["140000", "140001", "140002"]
    assert "3 reports of 2 batches (the newest of each counts): 20 jobs · 12 delivered" in shown.out
    assert "google/gemini-3.1-flash-lite" in shown.out and "$0.5000" in shown.out
    document = place("report", *files, "--json").document
    assert document["sums"]["delivered"] == 12 and document["sums"]["cost_usd"] == 1.0
    assert [one["batch_meta"]["batch_id"] for one in document["reports"]] == ["a", "a", "b"]


def test_a_batch_of_articles_gets_its_files_anew_and_its_jobs_in_detail(place: Cli) -> None:
    books = Books(place.data, 3, realm="simulated")
    with books.ledger:
        books.run("run-1", 0, 60, workers=4)
        books.write(0, at=5)
        books.write(1, at=5, status="BLOCKED")
        books.decide(1, "override", 100)
        books.end(1, Outcome.SUCCEEDED, 25, error=None, error_kind=None)
        books.end(2, Outcome.FAILED, 30, error="The target answered 403.", error_kind="preflight")
        path = write_batch_report(books.ledger, books.batch, place.data / "own", START + 200)
    shown = place("report", "client", "--details")
    assert shown.code == 0, shown.err
    assert f"✓ DELIVERED {books.job_id(1)}" in shown.out
    assert "Decision: override by Anna, signed off: good enough" in shown.out
    assert "✗ ABORTED" in shown.out and "Error: The target answered 403." in shown.out
    folder = place.data / "outputs" / "simulated" / "articles" / "client"
    assert len(list(folder.glob("*_article.md"))) == 2
    document = place("report", "client", "--details", "--json").document
    assert [job["status"] for job in document["jobs"]] == ["DELIVERED", "DELIVERED", "ABORTED"]
    assert any("batch_report_2" in name for name in document["report"]["deliverables"])
    own = place("report", str(path))
    assert "SIMULATED: no provider was called" in own.out
    assert "Cost and waiting: (of all jobs)\n  Cost:         $0.0040" in own.out


def test_what_cannot_be_shown_is_said_with_the_next_step(place: Cli) -> None:
    missing = place("report", "storage/batch_report_1.json")
    assert missing.code == 64 and "cannot be read: No such file" in missing.err
    mixed = place("report", "a-batch", "storage/batch_report_1.json")
    assert mixed.code == 64 and "Name one batch id" in mixed.err
    unknown = place("report", "a-batch")
    assert unknown.code == 64 and "There is no batch 'a-batch'" in unknown.err
