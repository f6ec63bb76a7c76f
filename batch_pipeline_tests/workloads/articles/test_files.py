"""Each job's five files, in every outcome, and its way through the states."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.ledger.tables import Outcome, results
from batch_pipeline.workloads.articles.files import SIMULATED_COMMENT, SUFFIXES, write_job_files
from batch_pipeline.workloads.articles.history import ALLOWED, State
from batch_pipeline.workloads.articles.package import JobPackage
from batch_pipeline.workloads.articles.qc.report import QcReport
from batch_pipeline.workloads.articles.reading import JobRecord, read_jobs
from batch_pipeline_tests.workloads.articles.ended import ARTICLE, START, Books, package


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = Books(tmp_path, 8)
    with made.ledger:
        yield made


def jobs(books: Books) -> list[JobRecord]:
    return list(read_jobs(books.ledger, books.batch))


def load(folder: Path, job: JobRecord, suffix: str, below: str = "") -> Any:
    return json.loads((folder / below / f"{job.job_id}{suffix}").read_text(encoding="utf-8"))


def states_of(log: Any) -> list[State]:
    """The states of a log, each step of which the machine allows, in order of time."""
    entries = log["log_entries"]
    assert [e["at"] for e in entries] == sorted(e["at"] for e in entries)
    moves = [e["details"] for e in entries if e["type"] == "state_transition"]
    states: list[State] = [move["to"] for move in moves]
    for (before, after), move in zip(pairwise(states), moves[1:], strict=True):
        assert move["from"] == before and after in ALLOWED[before]
    assert log["summary"]["states"] == states
    assert log["summary"]["final_state"] == states[-1]
    return states


def test_a_delivered_job_has_five_files_in_the_folder_itself_for_its_owner_only(
    books: Books, tmp_path: Path
) -> None:
    books.write(0, at=10)
    job = jobs(books)[0]
    folder = tmp_path / "out"

    paths = write_job_files(folder, job)

    assert [path.name for path in paths] == [f"{job.job_id}{suffix}" for suffix in SUFFIXES]
    assert sorted(folder.rglob("*")) == sorted(paths)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    JobPackage.model_validate(load(folder, job, "_job_package.json"))
    assert QcReport.model_validate(load(folder, job, "_qc_report.json")).status == "PASS"
    assert (folder / f"{job.job_id}_article.md").read_text(encoding="utf-8") == ARTICLE
    log = load(folder, job, "_execution_log.json")
    assert states_of(log) == ["RECEIVE", "PREFLIGHT", "WRITE", "QC", "DELIVER"]
    digest = hashlib.sha256(ARTICLE.encode()).hexdigest()
    hashes = log["summary"]["article_sha256"]
    assert hashes == dict.fromkeys(("WRITE", "QC", "DELIVER"), digest)
    calls = [e for e in log["log_entries"] if e["details"].get("attempt_id")]
    assert [e["details"]["step"] for e in calls] == ["outline", "draft", "polish"]
    assert all(e["details"]["latency_s"] == 2.0 and e["details"]["cost_usd"] for e in calls)
    metrics = load(folder, job, "_metrics.json")
    made = metrics["generation"]
    assert (made["provider"], made["model"]) == ("anthropic", "claude-haiku-4-5")
    assert made["stages_completed"] == ["outline", "draft", "polish"]
    assert made["tokens"] == {"input": 3_003, "output": 1_503, "cached_input": 300}
    assert (made["duration_seconds"], made["retries"], made["cached"]) == (6.0, 0, False)
    assert metrics["cost_usd"] == made["cost_usd"] == pytest.approx(0.003000009)
    assert metrics["waits"] == {"rate_limit_seconds": 1.5}
    assert metrics["duration_seconds"] == 20.0


def test_only_what_may_be_delivered_stands_in_the_folder_itself(
    books: Books, tmp_path: Path
) -> None:
    books.write(0, at=10)
    books.write(1, at=40, status="BLOCKED")
    books.keep(2, "preflight", 70, {"package": package(books.job_id(2))}, Outcome.FAILED)
    books.end(2, Outcome.FAILED, 70, error="The target answered 403.", error_kind="preflight")
    books.end(3, Outcome.SKIPPED, 0, error="There is nothing to ask about.", error_kind="skipped")
    folder = tmp_path / "out"

    for job in jobs(books):
        write_job_files(folder, job)

    delivered, blocked, aborted, skipped = jobs(books)[:4]
    assert [p.name for p in folder.glob("*_article.md")] == [f"{delivered.job_id}_article.md"]
    places = {(p.parent.name, p.name.removesuffix("_article.md")) for p in folder.rglob("*.md")}
    assert places == {
        ("out", delivered.job_id),
        ("blocked", blocked.job_id),
        ("aborted", aborted.job_id),
        ("skipped", skipped.job_id),
    }
    assert len([p for p in folder.rglob("*") if p.is_file()]) == 4 * 5
    text = (folder / "aborted" / f"{aborted.job_id}_article.md").read_text(encoding="utf-8")
    assert text == "No article was written (ABORTED): The target answered 403.\n"
    JobPackage.model_validate(load(folder, aborted, "_job_package.json", "aborted"))
    report = load(folder, aborted, "_qc_report.json", "aborted")
    assert (report["status"], report["reason"]) == ("NOT_RUN", "The target answered 403.")
    log = load(folder, aborted, "_execution_log.json", "aborted")
    assert states_of(log) == ["RECEIVE", "PREFLIGHT", "ABORT"]
    assert [e["message"] for e in log["log_entries"] if e["type"] == "error"] == [
        "The target answered 403."
    ]
    log = load(folder, blocked, "_execution_log.json", "blocked")
    assert states_of(log) == ["RECEIVE", "PREFLIGHT", "WRITE", "QC", "BLOCK"]
    assert load(folder, blocked, "_qc_report.json", "blocked")["status"] == "BLOCKED"
    assert states_of(load(folder, skipped, "_execution_log.json", "skipped")) == ["RECEIVE", "SKIP"]
    unknown = load(folder, skipped, "_job_package.json", "skipped")
    assert unknown["input_minimal"]["publisher_domain"] == "publisher-3.se"
    assert unknown["incomplete"]


def test_a_repaired_article_passes_through_rescue(books: Books, tmp_path: Path) -> None:
    books.write(1, at=10, repaired=True)
    job = jobs(books)[1]
    write_job_files(tmp_path, job)
    log = load(tmp_path, job, "_execution_log.json")
    assert states_of(log) == ["RECEIVE", "PREFLIGHT", "WRITE", "QC", "RESCUE", "QC", "DELIVER"]
    results = [e["details"]["status"] for e in log["log_entries"] if e["type"] == "qc_result"]
    assert results == ["WARNING", "PASS"]
    assert set(log["summary"]["article_sha256"]) == {"RESCUE", "QC", "DELIVER"}


@pytest.mark.parametrize(
    ("decision", "outcome", "place", "last"),
    [
        ("override", Outcome.SUCCEEDED, "", "DELIVER"),
        ("skip", Outcome.SKIPPED, "skipped", "SKIP"),
    ],
)
def test_a_decision_moves_the_files_and_stands_in_the_log(
    books: Books, tmp_path: Path, decision: str, outcome: Outcome, place: str, last: State
) -> None:
    books.write(1, at=10, status="BLOCKED")
    folder = tmp_path / "out"
    write_job_files(folder, jobs(books)[1])
    assert len(list((folder / "blocked").iterdir())) == 5
    books.decide(1, decision, 500)
    books.end(1, outcome, 30)

    job = jobs(books)[1]
    paths = write_job_files(folder, job)

    assert {path.parent for path in paths} == {folder / place}
    assert [p for p in folder.rglob("*") if p.is_file() and p not in paths] == []
    log = load(folder, job, "_execution_log.json", place)
    assert states_of(log)[-2:] == ["BLOCK", last]
    assert any("Anna" in e["message"] and "good enough" in e["message"] for e in log["log_entries"])


def test_a_pending_job_has_no_files_and_those_of_its_last_pass_go(
    books: Books, tmp_path: Path
) -> None:
    books.write(1, at=10, status="BLOCKED")
    write_job_files(tmp_path / "out", jobs(books)[1])
    books.decide(1, "regenerate", 500)
    books.end(1, Outcome.PENDING, 0, fresh_after=START + 500, error=None, error_kind=None)
    assert write_job_files(tmp_path / "out", jobs(books)[1]) == []
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


def test_a_job_that_fails_anew_does_not_show_what_an_earlier_pass_wrote(
    books: Books, tmp_path: Path
) -> None:
    books.write(1, at=10, status="BLOCKED")
    books.end(1, Outcome.FAILED, 600, error="No model answered.", error_kind="transient")
    job = jobs(books)[1]
    assert (job.article, job.report) == (None, None)
    write_job_files(tmp_path, job)
    log = load(tmp_path, job, "_execution_log.json", "aborted")
    assert states_of(log) == ["RECEIVE", "PREFLIGHT", "WRITE", "ABORT"]


def test_a_package_that_is_blocked_before_writing_has_its_qc_report(
    books: Books, tmp_path: Path
) -> None:
    content = {
        **books.package(1).model_dump(mode="json"),
        "report": books.report(1, "BLOCKED").model_dump(mode="json"),
    }
    books.keep(1, "package", 20, content, Outcome.BLOCKED)
    books.end(1, Outcome.BLOCKED, 20, error="The intents are off.", error_kind="qc")
    job = jobs(books)[1]
    write_job_files(tmp_path, job)
    assert load(tmp_path, job, "_qc_report.json", "blocked")["status"] == "BLOCKED"
    log = load(tmp_path, job, "_execution_log.json", "blocked")
    assert states_of(log) == ["RECEIVE", "PREFLIGHT", "QC", "BLOCK"]
    article = (tmp_path / "blocked" / f"{job.job_id}_article.md").read_text(encoding="utf-8")
    assert article == "No article was written (BLOCKED): The intents are off.\n"


def test_an_answer_from_the_cache_is_told_as_such_and_costs_nothing(
    books: Books, tmp_path: Path
) -> None:
    books.write(0, at=10)
    books.write(2, at=40)
    with books.ledger.write() as connection:
        connection.exec_driver_sql("DELETE FROM attempts WHERE members LIKE '[[2,%'")
        connection.exec_driver_sql("DELETE FROM attempts WHERE step = 'outline'")
    first, cached = jobs(books)[0], jobs(books)[2]
    assert (first.cached_steps, first.cached) == (["outline"], False)
    assert cached.cached and cached.cached_steps == ["outline", "draft", "polish"]
    write_job_files(tmp_path, cached)
    entries = load(tmp_path, cached, "_execution_log.json")["log_entries"]
    assert sum(e["details"].get("cached", False) for e in entries) == 3
    made = load(tmp_path, cached, "_metrics.json")["generation"]
    assert (made["cost_usd"], made["cached"]) == (0, True)
    assert made["stages_completed"] == made["stages_cached"] == ["outline", "draft", "polish"]


def test_searches_are_told_apart_from_what_models_took(books: Books, tmp_path: Path) -> None:
    books.write(0, at=10)
    search = {"provider": "ahrefs", "model": "ahrefs/serp-overview", "cost_nano": 7}
    books.call([0], "search", 10, **search, input_tokens=0, output_tokens=0)
    books.call([0], "search", 11, **search, status=429, error_kind="rate_limited")
    with books.ledger.write() as connection:
        connection.execute(
            results.insert(),
            {
                "realm": "live",
                "cache_key": "search-0",
                "model": "ahrefs/serp-overview",
                "workload": "articles",
                "step": "search",
                "output": '{"results": [], "facts": {"units": "51"}}',
                "attempt_id": "a00004",
                "created_at": START,
            },
        )
    books.call([0], "draft", 14, reason="retry", status=503, error_kind="transient", error="Busy.")
    job = jobs(books)[0]
    write_job_files(tmp_path, job)
    metrics = load(tmp_path, job, "_metrics.json")
    assert (metrics["search"]["calls"], metrics["search"]["units"]) == (2, 51)
    assert metrics["search"]["cost_usd"] == pytest.approx(14e-9)
    assert metrics["generation"]["calls"] == 4 and metrics["generation"]["retries"] == 1
    assert metrics["cost_usd"] == pytest.approx(
        metrics["generation"]["cost_usd"] + metrics["search"]["cost_usd"]
    )
    log = load(tmp_path, job, "_execution_log.json")
    _, warned = [e for e in log["log_entries"] if e["type"] == "warning"]
    assert "Busy." in warned["message"] and warned["details"]["reason"] == "retry"


def test_what_is_simulated_says_so_and_a_live_article_can_be_published_as_it_is(
    tmp_path: Path,
) -> None:
    books = Books(tmp_path, 1, realm="simulated")
    with books.ledger:
        books.write(0, at=10)
        job = jobs(books)[0]
        write_job_files(tmp_path, job)
    text = (tmp_path / f"{job.job_id}_article.md").read_text(encoding="utf-8")
    assert text == f"{SIMULATED_COMMENT}\n\n{ARTICLE}"
    assert load(tmp_path, job, "_execution_log.json")["metadata"]["simulated"] is True
    assert load(tmp_path, job, "_metrics.json")["simulated"] is True
