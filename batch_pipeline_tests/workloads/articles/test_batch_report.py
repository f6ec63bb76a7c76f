"""The batch report: the guide's fields, sums that are the ledger's, flat memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.tables import NANO, AttemptState, Outcome, attempts
from batch_pipeline.ledger.watching import look
from batch_pipeline.reports.build import build_report
from batch_pipeline.workloads.articles.batch_report import (
    ArticleReport,
    read_batch_report,
    write_batch_report,
)
from batch_pipeline.workloads.articles.files import write_files
from batch_pipeline.workloads.articles.reading import read_jobs
from batch_pipeline_tests.workloads.articles.ended import MODEL, START, Books

_NOW = START + 1_000


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    """Eight jobs: four delivered (one by a person), and one of each other state."""
    made = Books(tmp_path, 8)
    with made.ledger:
        made.run("run-1", 5, 125, workers=3, rate_limit=10)
        made.run("run-2", 305, 505, workers=2, rate_limit=None)
        for ordinal in (0, 1, 2):
            made.write(ordinal, at=10 + ordinal)
        made.write(3, at=30, status="BLOCKED")
        made.write(4, at=40, status="BLOCKED")
        made.decide(4, "override", 200)
        made.end(4, Outcome.SUCCEEDED, 60, error=None, error_kind=None)
        # one call about two jobs, with sums that do not divide evenly
        made.call([5, 6], "profile_publisher", 50, cost_nano=7, input_tokens=9)
        made.call([5], "draft", 60, state="lost", cost_nano=10_000_000, settled_at=None)
        made.call([5], "draft", 70, state="refunded", cost_nano=0, settled_at=None)
        made.call([6], "draft", 80, provider="google", model="google/gemini-3.1-flash-lite")
        error = "Row 6 (item-5): no model answered."
        made.end(5, Outcome.FAILED, 90, error=error, error_kind="transient")
        made.end(7, Outcome.SKIPPED, 0, error="Nothing to do.", error_kind="skipped")
        yield made


def written(books: Books, folder: Path) -> dict[str, Any]:
    path = write_batch_report(books.ledger, books.batch, folder, _NOW)
    assert path.name == "batch_report_20261105_121640.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def test_the_report_has_the_guides_fields(books: Books, tmp_path: Path) -> None:
    document = written(books, tmp_path / "out")
    meta = document["batch_meta"]
    assert meta["started_at"] == "2026-11-05T12:00:05.000+00:00"
    assert meta["completed_at"] == "2026-11-05T12:08:25.000+00:00"
    assert meta["duration_seconds"] == 320.0  # the time between the two runs is not in it
    assert (meta["max_workers"], meta["rate_limit"], meta["runs"]) == (2, None, 2)
    assert (meta["batch_id"], meta["simulated"]) == ("client", False)
    counts = ("total", "delivered", "blocked", "aborted", "pending", "skipped")
    assert [document["summary"][name] for name in counts] == [8, 4, 1, 1, 1, 1]
    statuses = [result["status"] for result in document["results"]]
    assert statuses == [
        "DELIVERED", "DELIVERED", "DELIVERED", "BLOCKED", "DELIVERED", "ABORTED", "PENDING",
        "SKIPPED",
    ]  # fmt: skip
    first, single = document["results"][:2]
    assert first["job_id"] == books.job_id(0) and first["batch_id"] == "client"
    assert first["duration"] == 20.0 and first["error"] is None
    assert first["metrics"]["generation"]["provider"] == "anthropic"
    assert single["job_config"] == {
        "publisher_domain": "publisher-1.se",
        "target_url": "https://example.com/p1",
        "anchor_text": "länk 1",
        "llm_provider": "anthropic",
        "writing_strategy": "single_shot",
        "country": "se",
        "use_ahrefs": None,
        "enable_llm_profiling": False,
        "publisher": "publisher-1.se",
        "target": "https://example.com/p1",
        "anchor": "länk 1",
        "strategy": "single_shot",
    }
    blocked, decided, aborted = document["results"][3:6]
    assert blocked["qc_report"]["status"] == "BLOCKED"
    assert blocked["qc_report"]["issues"][0]["category"] == "trust_sources"
    assert decided["review"]["decision"] == "override" and decided["review"]["reviewer"] == "Anna"
    assert decided["qc_report"]["status"] == "BLOCKED"
    assert aborted["error"] == "Row 6 (item-5): no model answered."
    assert aborted["qc_report"]["status"] == "NOT_RUN"


def test_its_sums_are_the_ledgers_to_the_nano_dollar(books: Books, tmp_path: Path) -> None:
    document = written(books, tmp_path)
    mine = sa.and_(attempts.c.batch_id == "client", attempts.c.state != "refunded")
    with books.ledger.read() as connection:

        def total(column: sa.ColumnElement[Any], *where: sa.ColumnElement[bool]) -> Any:
            return connection.execute(sa.select(sa.func.sum(column)).where(mine, *where)).scalar()

        paid = int(total(attempts.c.cost_nano, attempts.c.state == AttemptState.SETTLED.value))
        lost = int(total(attempts.c.cost_nano, attempts.c.state == AttemptState.LOST.value))
        tokens = {
            name: int(total(attempts.c[f"{name}_tokens"]))
            for name in ("input", "output", "cached_input")
        }
        count = int(total(sa.literal(1)))
    summary = document["summary"]
    assert round(summary["cost_usd"] * NANO) == paid == 12 * 1_000_003 - 1_000_003 + 1_000_003 + 7
    assert round(summary["lost_cost_usd"] * NANO) == lost == 10_000_000
    assert summary["tokens"] == tokens and summary["attempts"] == count == 14
    assert sum(use["attempts"] for use in summary["models"]) == count
    assert sum(round(use["cost_usd"] * NANO) for use in summary["models"]) == paid
    assert {use["model"]: use["jobs"] for use in summary["models"]} == {
        MODEL: 7,
        "google/gemini-3.1-flash-lite": 1,
    }
    results = document["results"]
    assert sum(round(r["metrics"]["cost_usd"] * NANO) for r in results) == paid
    for name, amount in tokens.items():
        shares = [r["metrics"]["generation"]["tokens"][name] for r in results]
        assert sum(shares) == amount
    waits = sum(r["metrics"]["rate_wait_seconds"] for r in results)
    assert waits == pytest.approx(summary["rate_wait_seconds"]) == 7.0
    report = build_report(books.ledger, books.batch)
    assert (report.cost_usd, report.attempts) == (summary["cost_usd"], summary["attempts"])
    assert report.lost_cost_usd == summary["lost_cost_usd"]
    assert report.wall_s == document["batch_meta"]["duration_seconds"]
    assert report.rate_wait_s == pytest.approx(summary["rate_wait_seconds"])


def test_both_databases_hold_it(ledger_url: str, tmp_path: Path) -> None:
    made = Books(ledger_url, 2)
    with made.ledger:
        made.run("run-1", 5, 125)
        made.write(0, at=10)
        made.write(1, at=20, status="BLOCKED")
        made.decide(1, "skip", 200)
        made.end(1, Outcome.SKIPPED, 40, error="Skipped by Anna.", error_kind="review")
        document = written(made, tmp_path)
        with made.ledger.read() as connection:
            (seen,) = look(connection, _NOW, "live", ["client", "unknown"], since=START)
    assert [result["status"] for result in document["results"]] == ["DELIVERED", "SKIPPED"]
    assert document["summary"]["attempts"] == seen.attempts == 4
    assert round(document["summary"]["cost_usd"] * NANO) == seen.cost_nano == 4 * 1_000_003
    assert (seen.done, seen.ended_count, len(seen.ended)) == (2, 2, 2)
    assert seen.run is not None and (seen.run.status, seen.per_minute) == ("done", None)


def test_the_guides_recipe_for_a_retry_works_on_it(books: Books, tmp_path: Path) -> None:
    (tmp_path / "batch_report.json").write_text(
        json.dumps(written(books, tmp_path)), encoding="utf-8"
    )
    # Load report
    with open(tmp_path / "batch_report.json") as f:
        report = json.load(f)
    # Extract failed jobs
    failed = [r for r in report["results"] if r["status"] == "ABORTED"]
    # Create retry batch
    retry_jobs = []
    for job in failed:
        config = job["job_config"]
        retry_jobs.append(
            {
                "publisher": config["publisher_domain"],
                "target": config["target_url"],
                "anchor": config["anchor_text"],
            }
        )
    assert retry_jobs == [
        {"publisher": "publisher-5.se", "target": "https://example.com/p5", "anchor": "länk 5"}
    ]


def test_every_column_of_a_job_can_be_taken_from_the_report_for_a_retry(
    books: Books, tmp_path: Path
) -> None:
    columns = tuple(read_row := next(iter(read_jobs(books.ledger, books.batch))).item.row)
    config = written(books, tmp_path)["results"][0]["job_config"]
    assert {name: config[name] for name in columns} == read_row


def test_the_report_names_the_files_that_are_there(books: Books, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_files(books.ledger, books.batch, folder)
    results = written(books, folder)["results"]
    assert [len(result["files"]) for result in results] == [5, 5, 5, 5, 5, 5, 0, 5]
    assert results[3]["files"][1] == f"blocked/{books.job_id(3)}_article.md"
    assert all((folder / name).is_file() for result in results for name in result["files"])
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []


def test_it_reads_its_own_reports_and_those_of_the_old_system(books: Books, tmp_path: Path) -> None:
    path = write_batch_report(books.ledger, books.batch, tmp_path, _NOW)
    read = read_batch_report(path)
    assert isinstance(read, ArticleReport) and len(read.results) == 8
    old = tmp_path / "batch_report_20251107_140000.json"
    old.write_bytes(
        orjson.dumps(
            {
                "batch_meta": {"started_at": "2025-11-07T14:00:00", "rate_limit": None},
                "summary": {"total": 1, "delivered": 0, "blocked": 0, "aborted": 1},
                "results": [
                    {"status": "ABORTED", "job_config": {"publisher_domain": "a.se"},
                     "metrics": None, "error": "x"}
                ],
            }
        )
    )  # fmt: skip
    (result,) = read_batch_report(old).results
    assert (result.status, result.error, result.metrics.cost_usd) == ("ABORTED", "x", 0.0)


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"jobs": []}', b'{"batch_meta": 3'])
def test_another_file_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"jobs\.json is no batch report of article jobs"):
        read_batch_report(path)


def test_memory_does_not_grow_with_the_jobs(tmp_path: Path) -> None:
    peaks = []
    for count in (300, 1_200):
        folder = tmp_path / str(count)
        folder.mkdir()
        books = Books(folder, count)
        with books.ledger:
            document = books.package(0).model_dump(mode="json")
            _fill(books, count, document)
            tracemalloc.start()
            path = write_batch_report(books.ledger, books.batch, folder, _NOW)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert len(json.loads(path.read_bytes())["results"]) == count
    assert peaks[1] < 1.5 * peaks[0]


def _fill(books: Books, count: int, document: dict[str, Any]) -> None:
    from batch_pipeline.ledger.calls import pack_bytes
    from batch_pipeline.ledger.tables import documents

    content = pack_bytes(orjson.dumps(document))
    books.call([0], "draft", 10)
    with books.ledger.write() as connection:
        base = dict(connection.execute(sa.select(attempts)).mappings().one())
        connection.execute(
            attempts.insert(),
            [
                {**base, "attempt_id": f"b{at}", "members": f'[[{at},"k{at}"]]'}
                for at in range(count)
            ],
        )
        connection.execute(
            documents.insert(),
            [
                {
                    "realm": "live",
                    "batch_id": "client",
                    "ordinal": at,
                    "step": "package",
                    "outcome": "succeeded",
                    "content": content,
                    "made_at": START,
                    "run_id": "run-1",
                }
                for at in range(count)
            ],
        )
