"""ArticlesWorkload: jobs in, articles out that were researched, written and controlled.

What belongs here: what component, CLI and reports know of articles. What does not: the steps
(steps.py), reading the table (jobs.py), the files (files.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from batch_pipeline.engine.step import AnyStep, Row
from batch_pipeline.ledger.batches import Batch, Item
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.sources.table import InputTable
from batch_pipeline.workloads.articles.batch_report import write_batch_report
from batch_pipeline.workloads.articles.files import write_files
from batch_pipeline.workloads.articles.jobs import REQUIRED, open_jobs
from batch_pipeline.workloads.articles.options import ArticleOptions
from batch_pipeline.workloads.articles.qc.rules import load_rules
from batch_pipeline.workloads.articles.record import QC, QcRecord
from batch_pipeline.workloads.articles.review import edited_documents, facts_of, name_of
from batch_pipeline.workloads.articles.steps import ArticleSteps
from batch_pipeline.workloads.base import no_packs
from batch_pipeline.workloads.config import DEFS_FOLDER
from batch_pipeline.workloads.operator_files import Prompts, read_options
from batch_pipeline.workloads.results import RowResult
from batch_pipeline.workloads.reviews import Documents, ReviewFacts
from batch_pipeline.workloads.summary import Summary, outcome_figures, table_of


class ArticlesWorkload:
    """What to do with backlink jobs."""

    name = "articles"
    title = "Articles: researched, written around one link, controlled"
    required_columns: Sequence[str] = REQUIRED
    item_id_column: str | None = None
    deliverable_columns: Sequence[str] = (
        "job_id", "publisher", "target", "anchor", "title", "words", "qc_status", "qc_issues",
        "strategy", "model", "decision", "reviewer", "reason", "item_id", "outcome", "error",
    )  # fmt: skip
    deliverable_formats: Sequence[str] = ("csv", "jsonl", "sqlite")
    search_columns: Sequence[str] = ("title", "publisher", "target", "anchor")
    result_step = QC
    has_review_queue = True

    def open_input(self, source: str, options: Mapping[str, Any]) -> InputTable:
        """Open a table of jobs: CSV, TSV, JSON (`{"jobs": [...]}`), JSONL or Parquet.

        Raises:
            UsageError: when the source as a whole cannot be used.
        """
        return open_jobs(Path(source).expanduser(), options)

    def skip_reason(self, row: Row) -> str:
        """No job is skipped: what cannot be done is an error that names the cell."""
        return ""

    def steps(self, prompt: str, knobs: Mapping[str, Any]) -> Sequence[AnyStep]:
        """Preflight, profiles, package; writing in one step or three; quality control.

        Args:
            prompt: what all writing steps are told.
            knobs: `timeout_s` (default 120), `folder` (prompts and rules), `options`.

        Raises:
            UsageError: an option, a prompt file or a rules file cannot be used, or `pack` is set.
        """
        no_packs(knobs, "articles are written one by one")
        folder = Path(knobs["folder"])
        return ArticleSteps(
            Prompts(prompt, folder),
            load_rules(folder),
            read_options(ArticleOptions, knobs.get("options", {}), "articles"),
            float(knobs.get("timeout_s", 120.0)),
        ).make()

    def deliverable_row(self, row: Row, output: Mapping[str, Any] | None) -> dict[str, Any]:
        """The job, and what its article came to; without one, those fields are null.

        `article` is the Markdown that may be published: for those who read results over HTTP. It
        is no column of the tables, where each article is a file.
        """
        done = None if output is None else QcRecord.model_validate(output)
        article = None if done is None else done.article
        return {
            "job_id": None if done is None else done.report.job_id,
            **{name: row.get(name) for name in REQUIRED},
            "title": None if article is None else article.title,
            "article": None if article is None else article.markdown,
            "words": None if done is None else done.report.checks["word_count"].get("words"),
            "qc_status": None if done is None else done.report.status,
            "qc_issues": None
            if done is None
            else "; ".join(f"{one.severity} {one.category}" for one in done.report.issues),
            "strategy": None if done is None else done.strategy,
            "model": None if done is None else done.model,
        }

    def deliverable_stem(self, batch_id: str, table_name: str, stamp: str) -> str:
        """`articles_<batch>`; a later run of the batch replaces the files."""
        return f"articles_{batch_id}"

    def deliver_files(self, ledger: Ledger, batch: Batch, folder: Path) -> list[Path]:
        """Five files for each job, and the batch report."""
        write_files(ledger, batch, folder)
        return [write_batch_report(ledger, batch, folder, ledger.clock.now())]

    @property
    def signers(self) -> Sequence[str]:
        """Who may sign off, by policies.yaml."""
        return load_rules(DEFS_FOLDER / self.name).policies.signoff.signers

    def review_name(self, batch: Batch, item: Item) -> str:
        """The job's id."""
        return name_of(batch, item)

    def review_facts(self, batch: Batch, item: Item, documents: Documents) -> ReviewFacts:
        """Why a job waits, and what it is."""
        return facts_of(batch, item, documents)

    def edit(
        self,
        batch: Batch,
        item: Item,
        documents: Documents,
        edited: Mapping[str, Any] | None,
        accepted: Sequence[str],
    ) -> Mapping[str, Mapping[str, Any]]:
        """The job package as a person wants it."""
        return edited_documents(batch, item, documents, edited, accepted)

    def summarize(self, rows: Iterator[RowResult]) -> Summary:
        """How many jobs were delivered, blocked, aborted; how, and with which warnings."""
        outcomes: Counter[Outcome] = Counter()
        strategies: Counter[str] = Counter()
        models: Counter[str] = Counter()
        issues: Counter[str] = Counter()
        for result in rows:
            outcomes[result.item.outcome] += 1
            if result.output is None:
                continue
            done = QcRecord.model_validate(result.output)
            strategies[done.strategy] += 1
            models[done.model] += 1
            issues.update({f"{one.severity} {one.category}" for one in done.report.issues})
        words = {
            "Delivered": Outcome.SUCCEEDED,
            "Blocked": Outcome.BLOCKED,
            "Aborted": Outcome.FAILED,
            "Skipped": Outcome.SKIPPED,
            "Pending": Outcome.PENDING,
        }
        return Summary(
            title="What became of the jobs",
            figures=outcome_figures(outcomes, words, "jobs", ("Delivered", "Blocked", "Aborted")),
            tables=[
                table_of("Writing strategy", strategies, "delivered jobs"),
                table_of("Models", models, "delivered jobs"),
                table_of("QC notes", issues, "delivered jobs", of=outcomes[Outcome.SUCCEEDED]),
            ],
        )
