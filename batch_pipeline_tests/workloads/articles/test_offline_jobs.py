"""The 36 offline jobs from end to end: each ends as was written down before, with all its files."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa

from batch_pipeline.engine.job import SearchAccessOf
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.documents import Document, read_documents
from batch_pipeline.ledger.tables import NANO, AttemptState, attempts, documents
from batch_pipeline.search.registry import resolve_search_access
from batch_pipeline.workloads.articles.package import JobPackage
from batch_pipeline.workloads.articles.qc.report import QcReport
from batch_pipeline.workloads.articles.record import job_id
from batch_pipeline.workloads.runner import deliver
from batch_pipeline_tests.engine.test_crash import SLOW, keys_settled
from batch_pipeline_tests.engine_process import outcome, start
from batch_pipeline_tests.fetch.archive import Archive, shared_archive
from batch_pipeline_tests.fetch.site import Request, Site
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

PDF = "application/pdf"

# What goes wrong on purpose, and how each job must end therefore. Written before the run; a job
# that is not named is delivered at once.
PAGES: dict[int, dict[str, Any]] = {
    5: {"status": 403},
    12: {"body": b""},
    16: {"body": b"%PDF-1.7", "content_type": PDF},
    21: {"body": b"<html><head></head><body><p>Hi.</p></body></html>"},
}
ARTICLES = {
    3: "article_no_sources",
    8: "article_wrong_target",
    11: "article_no_link",
    14: "article_other_language",
    18: "article_link_in_heading",
    20: "article_no_disclaimer",
    24: "article_link_thrice",
    26: "article_few_terms",
    30: "article_short",
}
ABORTED = {5: "403", 12: "empty", 16: "application/pdf", 21: "text"}
BLOCKED = {3: "trust_sources", 8: "link", 11: "link", 14: "language"}
REPAIRED = {18: "placement", 20: "compliance", 24: "link", 26: "lsi"}
WARNED = {30: "word_count"}
MAIN_QUERY_OF_JOB_1 = "this api is so fetching"
FILES = ("job_package.json", "article.md", "qc_report.json", "execution_log.json", "metrics.json")


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with shared_archive() as running:
        monkeypatch.setenv("BATCH_PIPELINE_FETCH_ARCHIVE", running.url)
        yield running


@pytest.fixture
def table(reference_data: Path) -> Path:
    return reference_data / "articles" / "jobs_offline_36.csv"


def targets(table: Path) -> list[str]:
    with table.open(encoding="utf-8", newline="") as stream:
        return [row["target"] for row in csv.DictReader(stream)]


def sabotage(simulator: Simulator, archive: Archive, table: Path) -> None:
    """Make the pages and articles of PAGES and ARTICLES bad."""
    urls = targets(table)
    for number, answer in PAGES.items():
        archive.override(urls[number - 1], **answer)
    simulator.configure(
        faults=[{"kind": kind, "match": urls[number - 1]} for number, kind in ARTICLES.items()]
    )


def articles(folder: Path, simulator: Simulator, **options: Any) -> Bench:
    return Bench(folder, simulator, workload="articles", options=options)


def run(bench: Bench, batch: Batch, run_id: str = "run") -> Ran:
    job = bench.job(batch, run_id)
    return finish(bench.start(job), job)


def kept(bench: Bench, batch: Batch) -> dict[int, dict[str, Document]]:
    with bench.open() as ledger, ledger.read() as connection:
        return read_documents(connection, ledger.realm, batch.batch_id)


def money_agrees(bench: Bench) -> None:
    """The ledger's attempts and the simulator's journal say the same."""
    with bench.open() as ledger, ledger.read() as connection:
        settled = attempts.c.state == AttemptState.SETTLED.value
        spent = connection.execute(
            sa.select(sa.func.sum(attempts.c.cost_nano)).where(settled)
        ).scalar_one()
        count = connection.execute(
            sa.select(sa.func.count()).select_from(attempts).where(settled)
        ).scalar_one()
    assert spent / NANO == pytest.approx(bench.simulator.summary()["price_usd"])
    assert count == len(bench.simulator.journal())


@pytest.mark.parametrize("strategy", ["multi_stage", "single_shot"])
def test_each_of_the_36_jobs_ends_in_the_state_that_was_expected_with_all_its_files(
    strategy: str, simulator: Simulator, archive: Archive, table: Path, tmp_path: Path
) -> None:
    sabotage(simulator, archive, table)
    bench = articles(tmp_path, simulator, strategy=strategy)
    batch = bench.ingest(table)
    run(bench, batch)
    items = bench.items(batch)
    expected = {
        number: "failed" if number in ABORTED else "blocked" if number in BLOCKED else "succeeded"
        for number in range(1, 37)
    }
    assert {item.number: item.outcome.value for item in items} == expected
    found = kept(bench, batch)
    for number, word in ABORTED.items():
        item = items[number - 1]
        assert item.error_kind == "preflight"
        assert word.casefold() in (item.error or "").casefold()
        assert item.cost_nano == 0
    for number, category in BLOCKED.items():
        report = QcReport.model_validate(found[number - 1]["qc"].content["report"])
        assert report.status == "BLOCKED"
        assert category in {one.category for one in report.issues if one.severity != "LOW"}
    for number, category in REPAIRED.items():
        content = found[number - 1]["qc"].content
        first = QcReport.model_validate(content["first_report"])
        report = QcReport.model_validate(content["report"])
        assert report.autofix_done and report.autofix_logs
        assert category in {one.category for one in first.issues if one.severity != "LOW"}
        assert category not in {one.category for one in report.issues if one.severity != "LOW"}
    for number, category in WARNED.items():
        report = QcReport.model_validate(found[number - 1]["qc"].content["report"])
        assert report.status == "WARNING"
        assert category in {one.category for one in report.issues}
    modes = {
        one["package"].content["package"]["job_meta"]["mode"]
        for one in found.values()
        if "package" in one
    }
    assert modes == {strategy}
    money_agrees(bench)
    # A page is fetched once, however many jobs there are of its publisher, with retries of those
    # that may pass.
    assert max(archive.asked(url) for url in targets(table)) == 1

    with bench.open() as ledger:
        deliver(ledger, bench.config, batch, tmp_path / "out")
    folders = {"succeeded": "", "blocked": "blocked", "failed": "aborted"}
    for item in items:
        name = job_id(batch.batch_id, batch.created_at, item.item_id)
        folder = tmp_path / "out" / folders[item.outcome.value]
        assert {path.name for path in folder.glob(f"{name}_*")} == {
            f"{name}_{one}" for one in FILES
        }
        package = json.loads((folder / f"{name}_job_package.json").read_text("utf-8"))
        checked = JobPackage.model_validate(package)
        assert checked.job_meta.job_id == name
        assert "Untitled" not in (folder / f"{name}_article.md").read_text("utf-8")
    delivered = list((tmp_path / "out").glob("*_article.md"))
    assert len(delivered) == 28


def test_with_ahrefs_on_results_are_real_and_each_query_is_asked_once(
    simulator: Simulator, archive: Archive, table: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.csv"
    lines = table.read_text("utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:7]), "utf-8")
    bench = articles(tmp_path, simulator, use_ahrefs=True)
    bench.config = bench.config.model_copy(update={"search_rate_limit": 6_000.0})
    batch = bench.ingest(few)
    ran = run(bench, batch)
    assert ran.outcomes == {"succeeded": 6}
    packages = [
        JobPackage.model_validate(one["package"].content["package"])
        for one in kept(bench, batch).values()
    ]
    for package in packages:
        assert package.job_meta.serp_source == "ahrefs"
        assert package.serp_research_extension.data_confidence == "high"
        assert {one.data_source for one in package.serp_research_extension.serp_sets} == {"ahrefs"}
        assert package.serp_research_extension.serp_sets[0].keyword_metrics
    calls = Counter(
        entry["model"] for entry in simulator.journal() if entry["provider"] == "ahrefs"
    )
    queries = {
        (one.query, package.input_minimal.publisher_domain in ("aclu.org", "seattletimes.com"))
        for package in packages
        for one in package.serp_research_extension.serp_sets
    }
    assert calls["serp-overview"] == len(queries)
    assert calls["keywords-overview"] == len(packages)
    money_agrees(bench)

    # A second batch of the same jobs finds everything.
    before = len(simulator.journal())
    again = bench.ingest(few, "again")
    assert run(bench, again, "again").outcomes == {"succeeded": 6}
    assert len(simulator.journal()) == before


def ahrefs_that_knows(site: Site, keywords: Collection[str] | None) -> SearchAccessOf:
    """Play Ahrefs on a site: results for these keywords, an empty page for all others.

    Args:
        site: where.
        keywords: in lower case; None stands for all.
    """

    async def overview(request: Request, writer: asyncio.StreamWriter) -> None:
        keyword = parse_qs(urlsplit(request.path).query)["keyword"][0]
        known = [{"position": 1, "title": "Guide", "url": "https://a.example/", "type": []}]
        # An advertisement is no result.
        paid = [{**known[0], "type": ["paid_top"]}]
        rows = known if keywords is None or keyword.casefold() in keywords else paid
        body = json.dumps({"positions": rows})
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write((head + body).encode())

    site.on("/serp-overview/serp-overview", overview)
    site.put("/keywords-explorer/overview", '{"keywords": [{"volume": 0}]}')
    environ = {"AHREFS_API_KEY": "own-key", "AHREFS_BASE_URL": site.url("")}
    return lambda name: resolve_search_access(name, environ)


@pytest.mark.parametrize("known", ["all", "main", "none"])
def test_where_ahrefs_knows_no_results_made_up_ones_stand_in_and_the_job_says_so(
    known: str, simulator: Simulator, archive: Archive, table: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one.csv"
    one.write_text("".join(table.read_text("utf-8").splitlines(keepends=True)[:2]), "utf-8")
    bench = articles(
        tmp_path, simulator, strategy="single_shot", enable_llm_profiling=False, use_ahrefs=True
    )
    keywords = {"all": None, "main": {MAIN_QUERY_OF_JOB_1}, "none": set[str]()}[known]
    with Site() as site:
        batch = bench.ingest(one)
        job = replace(bench.job(batch), search_access=ahrefs_that_knows(site, keywords))
        assert finish(bench.start(job), job).outcomes == {"succeeded": 1}

    content = kept(bench, batch)[0]["package"].content
    package = JobPackage.model_validate(content["package"])
    research = package.serp_research_extension
    assert research.main_query == MAIN_QUERY_OF_JOB_1
    sources = {one.query: one.data_source for one in research.serp_sets}
    real = {query for query in sources if keywords is None or query in keywords}
    assert sources == {query: "ahrefs" if query in real else "mock" for query in sources}
    assert all(one.results_count for one in research.serp_sets)
    assert package.job_meta.serp_source == ("ahrefs" if known == "all" else "mock")
    sure = "high" if known == "all" else "medium"
    assert research.data_confidence == package.intent_extension.notes.data_confidence == sure
    warnings = [entry["message"] for entry in content["log"] if entry["type"] == "warning"]
    assert warnings == [
        f"Ahrefs knows no results for {query!r}: heuristic ones stand in."
        for query in sources
        if query not in real
    ]


def test_a_retry_with_another_strategy_keeps_the_package_and_says_how_it_wrote(
    simulator: Simulator, archive: Archive, table: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one.csv"
    one.write_text("".join(table.read_text("utf-8").splitlines(keepends=True)[:2]), "utf-8")
    simulator.configure(faults=[{"kind": "status", "status": 400}])
    bench = articles(tmp_path, simulator, strategy="multi_stage", enable_llm_profiling=False)
    batch = bench.ingest(one)
    assert run(bench, batch).outcomes == {"failed": 1}
    package = kept(bench, batch)[0]["package"]

    simulator.configure(faults=[])
    bench.config = bench.config.with_options({"options": {"strategy": "single_shot"}})
    assert run(bench, batch, "retry").outcomes == {"succeeded": 1}
    found = kept(bench, batch)[0]
    assert found["package"] == package
    assert found["qc"].content["strategy"] == "single_shot"


STAGES = (
    "preflight", "profile_publisher", "profile_target", "package", "search", "outline", "draft",
    "polish", "single_shot", "qc",
)  # fmt: skip


def test_killed_at_every_stage_and_resumed_nothing_settled_is_paid_again(
    simulator: Simulator, archive: Archive, table: Path, tmp_path: Path
) -> None:
    simulator.configure(latency=SLOW)
    bench = articles(tmp_path, simulator, use_ahrefs=True)
    bench.config = bench.config.model_copy(update={"workers": 4, "search_rate_limit": 6_000.0})
    batch = bench.ingest(table)
    for stage in STAGES:
        before = _done(bench, stage)
        process = start(bench, batch.batch_id, f"killed at {stage}")
        deadline = time.monotonic() + 60
        while _done(bench, stage) <= before and process.poll() is None:
            assert time.monotonic() < deadline, f"{stage} was never reached"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    ran = outcome(start(bench, batch.batch_id, "last"))
    assert ran["outcomes"] == {"succeeded": 36}
    with bench.open() as ledger, ledger.read() as connection:
        known = Counter(connection.execute(sa.select(attempts.c.state)).scalars())
    in_flight = known[AttemptState.SENT.value] + known[AttemptState.LOST.value]
    assert in_flight, "no kill met a call in flight: the test proves nothing"
    assert simulator.summary()["attempts"] <= known[AttemptState.SETTLED.value] + in_flight
    assert set(keys_settled(bench).values()) == {1}, "no settled question was asked again"


def _done(bench: Bench, stage: str) -> int:
    """How often a stage was done so far: settled attempts, or kept documents."""
    with bench.open() as ledger, ledger.read() as connection:
        if stage in ("preflight", "package", "qc"):
            count = (
                sa.select(sa.func.count()).select_from(documents).where(documents.c.step == stage)
            )
        else:
            count = (
                sa.select(sa.func.count())
                .select_from(attempts)
                .where(attempts.c.step == stage, attempts.c.state == AttemptState.SETTLED.value)
            )
        return int(connection.execute(count).scalar_one())
