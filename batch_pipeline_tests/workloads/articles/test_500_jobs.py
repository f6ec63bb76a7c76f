"""500 jobs under faults: every number of the reports is what the simulator's journal says."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.engine.searching import STEP as SEARCH_STEP
from batch_pipeline.ledger.batches import Batch, Item
from batch_pipeline.ledger.tables import NANO, attempts
from batch_pipeline.reports.build import build_report
from batch_pipeline.reports.files import write_reports
from batch_pipeline.reports.model import BatchReport, Tokens
from batch_pipeline.workloads.articles.batch_report import ArticleReport, read_batch_report
from batch_pipeline.workloads.articles.jobs import INPUT_COLUMNS
from batch_pipeline.workloads.articles.record import job_id
from batch_pipeline.workloads.runner import deliver
from batch_pipeline_tests.fetch.archive import Archive, shared_archive
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

JOBS = 500
PROVIDERS = ("auto", "google", "anthropic", "openai")
COUNTRIES = ("se", "us", "gb", "de")
UNREADABLE = (
    {"anchor": ""},
    {"target": "no address"},
    {"country": "Sweden"},
    {"llm_provider": "nobody"},
    {"strategy": "at once"},
)
PAGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("https://refused.example/page", {"status": 403}),
    ("https://empty.example/page", {"body": b""}),
    ("https://paper.example/page", {"body": b"%PDF-1.7", "content_type": "application/pdf"}),
)
FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 429, "share": 0.02, "retry_after_s": 0},
    {"kind": "status", "status": 503, "share": 0.02},
    {"kind": "malformed_json", "share": 0.01, "provider": "google"},
    {"kind": "truncated", "share": 0.01, "provider": "anthropic"},
    {"kind": "refusal", "share": 0.01, "provider": "openai"},
    {"kind": "article_no_sources", "share": 0.02},
    {"kind": "article_no_link", "share": 0.02},
    {"kind": "article_link_in_heading", "share": 0.02},
]
FILES = ("job_package.json", "article.md", "qc_report.json", "execution_log.json", "metrics.json")
FOLDERS = {"succeeded": "", "blocked": "blocked", "failed": "aborted"}


@dataclass(frozen=True)
class Night:
    """The 500 jobs after their first run; `of_attempt` has the step and request of each attempt."""

    bench: Bench
    batch: Batch
    ran: Ran
    journal: list[dict[str, Any]]
    items: list[Item]
    report: BatchReport
    folder: Path
    of_attempt: dict[str, tuple[str, str]]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What models were asked."""
        return [entry for entry in self.journal if entry["provider"] != "ahrefs"]

    @property
    def searches(self) -> list[dict[str, Any]]:
        """What the search provider was asked."""
        return [entry for entry in self.journal if entry["provider"] == "ahrefs"]

    def count_requests(self, entries: Sequence[dict[str, Any]]) -> int:
        """Of how many requests these attempts are."""
        return len({self.of_attempt[entry["client_request_id"]][1] for entry in entries})

    @property
    def own_report(self) -> ArticleReport:
        """The report that articles have by themselves."""
        (path,) = self.folder.glob("batch_report_*.json")
        return read_batch_report(path)


def write_jobs(path: Path, data: Path, archive: Archive) -> Counter[str]:
    """Write the table; returns how many rows are to fail, by class of error."""
    with (data / "link_triples.csv").open(encoding="utf-8", newline="") as stream:
        triples = [
            (row["publisher_domain"], row["anchor_text"])
            for row in csv.DictReader(stream)
            if row["anchor_text"].strip() and not set("[]") & set(row["anchor_text"])
        ]
    with (data / "jobs_offline_36.csv").open(encoding="utf-8", newline="") as stream:
        targets = [row["target"] for row in csv.DictReader(stream)]
    for url, answer in PAGES:
        archive.override(url, **answer)
    expected: Counter[str] = Counter()
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, INPUT_COLUMNS)
        writer.writeheader()
        for at in range(JOBS):
            publisher, anchor = triples[at % len(triples)]
            job = {
                "publisher": publisher,
                "target": targets[at % len(targets)],
                "anchor": anchor[:150],
                "llm_provider": PROVIDERS[at % len(PROVIDERS)],
                "strategy": "single_shot" if at % 3 else "multi_stage",
                "country": COUNTRIES[at % len(COUNTRIES)],
                "use_ahrefs": str(at % 5 == 0).lower(),
                "enable_llm_profiling": str(at % 7 == 0).lower(),
            }
            if at % 50 == 49:
                job |= UNREADABLE[at // 50 % len(UNREADABLE)]
                expected["input"] += 1
            elif at % 40 == 20:
                job["target"] = PAGES[at // 40 % len(PAGES)][0]
                expected["preflight"] += 1
            writer.writerow(job)
    return expected


@pytest.fixture(scope="module")
def night(
    simulator_process: Simulator, reference_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    simulator_process.reset()
    simulator_process.configure(faults=FAULTS)
    with shared_archive() as archive, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCH_PIPELINE_FETCH_ARCHIVE", archive.url)
        table = folder / "night.csv"
        expected = write_jobs(table, reference_data / "articles", archive)
        bench = Bench(folder, simulator_process, workload="articles", chunk_size=50, workers=16)
        bench.config = bench.config.model_copy(update={"search_rate_limit": 60_000.0})
        batch = bench.ingest(table)
        ran = run(bench, batch, "night")
        items = bench.items(batch)
        failed = Counter(item.error_kind for item in items if item.outcome.value == "failed")
        assert {kind: failed[kind] for kind in expected} == expected
        with bench.open() as ledger:
            files = deliver(ledger, bench.config, batch, folder / "out")
            report = build_report(ledger, batch, run_id="night", deliverables=files)
            write_reports(report, folder / "out")
            columns = (attempts.c.attempt_id, attempts.c.step, attempts.c.request_id)
            with ledger.read() as connection:
                known = {
                    name: (step, of) for name, step, of in connection.execute(sa.select(*columns))
                }
        journal = simulator_process.journal()
        yield Night(bench, batch, ran, journal, items, report, folder / "out", known)


def run(bench: Bench, batch: Batch, run_id: str) -> Ran:
    job = bench.job(batch, run_id)
    return finish(bench.start(job), job)


def nano(entries: Sequence[dict[str, Any]]) -> int:
    return sum(round(entry["price_usd"] * NANO) for entry in entries)


def tokens(entries: Sequence[dict[str, Any]]) -> tuple[int, int, int, int]:
    names = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens")
    found = [sum(entry[name] for entry in entries) for name in names]
    return found[0], found[1], found[2], found[3]


def told(found: Tokens) -> tuple[int, int, int, int]:
    return found.input, found.cached_input, found.cache_write, found.output


def test_its_calls_tokens_and_costs_are_the_journals_to_the_nano_dollar(night: Night) -> None:
    report, calls = night.report, night.calls
    assert len(calls) > JOBS, "each job that was not given up needs at least one"
    assert report.attempts == len(calls)
    assert report.requests == night.count_requests(calls)
    assert told(report.tokens) == tokens(calls)
    assert round(report.cost_usd * NANO) == nano(calls)
    assert {group.name: group.attempts for group in report.attempts_by_status} == Counter(
        str(entry["status"]) for entry in calls
    )
    assert (report.attempts_lost, report.lost_cost_usd, report.attempts_in_flight) == (0, 0, 0)


def test_so_are_those_of_each_model_provider_and_step(night: Night) -> None:
    def of_model(entry: dict[str, Any]) -> str:
        return f"{entry['provider']}/{entry['model']}"

    def of_step(entry: dict[str, Any]) -> str:
        return night.of_attempt[entry["client_request_id"]][0]

    by_model = {use.model.partition("@http")[0]: use for use in night.report.models}
    by_step = {use.step: use for use in night.report.steps}
    assert {name.partition("/")[0] for name in by_model} == {"google", "anthropic", "openai"}
    assert set(by_step) == {
        "profile_publisher", "profile_target", "classify_anchor", "outline", "draft", "polish",
        "single_shot",
    }  # fmt: skip
    for key_of, found in ((of_model, by_model), (of_step, by_step)):
        for name, use in found.items():
            mine = [entry for entry in night.calls if key_of(entry) == name]
            assert (use.attempts, use.requests) == (len(mine), night.count_requests(mine)), name
            assert told(use.tokens) == tokens(mine), name
            assert round(use.cost_usd * NANO) == nano(mine), name
    steps = [use.step for use in night.report.steps]
    assert steps.index("outline") < steps.index("draft") < steps.index("polish")


def test_searches_are_counted_by_themselves(night: Night) -> None:
    assert night.searches, "one job in five is researched"
    found = {use.endpoint: use for use in night.report.searches}
    for endpoint, use in found.items():
        mine = [entry for entry in night.searches if f"ahrefs/{entry['model']}" == endpoint]
        assert use.attempts == len(mine)
        assert use.attempts_failed == sum(entry["status"] != 200 for entry in mine) > 0
        assert use.requests == night.count_requests(mine)
        assert use.cost_usd == use.lost_cost_usd == 0, "a subscription pays"
        assert use.rate_wait_s >= 0
    assert sum(use.attempts for use in found.values()) == len(night.searches)
    assert not any("ahrefs" in use.model for use in night.report.models)
    assert SEARCH_STEP not in {use.step for use in night.report.steps}
    run = night.report.this_run
    assert run is not None and run.counts is not None
    assert run.counts.searches == len(night.searches)
    assert (run.counts.attempts, run.counts.requests) == (
        night.report.attempts,
        night.report.requests,
    )


def test_every_row_is_counted_once_and_nothing_waits_a_negative_time(night: Night) -> None:
    report = night.report
    outcomes = Counter(item.outcome.value for item in night.items)
    assert {name: n for name, n in report.outcomes.model_dump().items() if n} == outcomes
    assert report.outcomes.total == report.rows == JOBS
    assert outcomes["pending"] == 0 and outcomes["succeeded"] > 400 and outcomes["blocked"] > 0
    assert sum(use.rows for use in report.models) == report.outcomes.succeeded
    assert sum(chunk.outcomes.total for chunk in report.chunks) == JOBS
    assert sum(chunk.cost_usd for chunk in report.chunks) == pytest.approx(report.cost_usd)
    assert len(report.waiting) == min(50, outcomes["blocked"])
    assert report.fallbacks == [], "a job's own provider is no fallback"
    assert report.rate_wait_s >= 0 and report.wall_s > 0
    with night.bench.open() as ledger, ledger.read() as connection:
        shortest = connection.execute(sa.select(sa.func.min(attempts.c.rate_wait_s))).scalar_one()
    assert shortest >= 0


def test_the_articles_own_report_says_the_same(night: Night) -> None:
    summary, report = night.own_report.summary, night.report
    assert (summary.total, summary.delivered, summary.blocked, summary.aborted) == (
        JOBS,
        report.outcomes.succeeded,
        report.outcomes.blocked,
        report.outcomes.failed,
    )
    assert summary.attempts == len(night.journal)
    assert (summary.tokens.input, summary.tokens.output) == (
        report.tokens.input,
        report.tokens.output,
    )
    assert round(summary.cost_usd * NANO) == nano(night.calls)
    results = night.own_report.results
    assert len(results) == JOBS
    assert sum(one.metrics.search_calls for one in results) == len(night.searches)
    assert sum(round(one.metrics.cost_usd * NANO) for one in results) == nano(night.calls)
    assert all(one.duration >= 0 and one.metrics.rate_wait_seconds >= 0 for one in results)


def test_every_job_has_its_files_where_its_outcome_puts_them(night: Night) -> None:
    there = {path.relative_to(night.folder).as_posix() for path in night.folder.rglob("job_*")}
    expected = set()
    for item in night.items:
        name = job_id(night.batch.batch_id, night.batch.created_at, item.item_id)
        folder = FOLDERS[item.outcome.value]
        expected |= {f"{folder}/{name}_{file}".lstrip("/") for file in FILES}
    assert there == expected
    report = json.loads((night.folder / "batch_report.json").read_text("utf-8"))
    assert BatchReport.model_validate(report) == night.report


def test_a_second_run_asks_nothing_of_jobs_that_are_done_or_wait(night: Night) -> None:
    blocked_or_done = {item.number for item in night.items if item.outcome.value != "failed"}
    before = len(night.bench.simulator.journal())
    night.bench.simulator.configure()
    again = run(night.bench, night.batch, "again")
    items = night.bench.items(night.batch)
    # What failed may be asked again; what is done or waits for a person is not.
    retried = night.bench.simulator.journal()[before:]
    failed = {item.number for item in night.items} - blocked_or_done
    assert {item.number for item in items if item.outcome.value == "failed"} <= failed
    asked = {entry["client_request_id"] for entry in retried}
    with night.bench.open() as ledger, ledger.read() as connection:
        members = connection.execute(
            sa.select(attempts.c.members).where(attempts.c.attempt_id.in_(asked))
        ).scalars()
        numbers = {ordinal + 1 for text in members for ordinal, _ in json.loads(text)}
    assert not numbers & blocked_or_done
    assert again.done.status == "done"
