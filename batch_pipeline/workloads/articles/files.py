"""A job's five files, written anew after each run and each decision.

What belongs here: names, folders, atomic writing. What does not: what is in a log or a set of
metrics (history.py), the batch's report (batch_report.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.sinks.files import replaced_file
from batch_pipeline.workloads.articles.history import execution_log, metrics
from batch_pipeline.workloads.articles.package import SPEC_VERSION
from batch_pipeline.workloads.articles.reading import JobRecord, read_jobs
from batch_pipeline.workloads.articles.record import iso

SUFFIXES = (
    "_job_package.json",
    "_article.md",
    "_qc_report.json",
    "_execution_log.json",
    "_metrics.json",
)

FOLDER_OF: Mapping[Outcome, str | None] = {
    Outcome.SUCCEEDED: "",
    Outcome.BLOCKED: "blocked",
    Outcome.FAILED: "aborted",
    Outcome.SKIPPED: "skipped",
    Outcome.PENDING: None,
}
"""Where a job's files stand, below the batch's folder: in the folder itself is exactly what may be
delivered. A pending job has none: what its last pass left is not what it will come to."""

NOT_RUN = "NOT_RUN"
"""`status` in the QC report of a job that never came to quality control."""

SIMULATED_COMMENT = "<!-- SIMULATED: no model wrote this article; do not publish it. -->"


def file_names(job_id: str, outcome: Outcome) -> list[str]:
    """A job's files, relative to the batch's folder; none while it is pending."""
    folder = FOLDER_OF[outcome]
    if folder is None:
        return []
    prefix = f"{folder}/" if folder else ""
    return [f"{prefix}{job_id}{suffix}" for suffix in SUFFIXES]


def write_job_files(folder: Path, job: JobRecord) -> list[Path]:
    """Write a job's files, each whole or not at all, and remove those of an earlier outcome.

    Args:
        folder: the batch's folder; created where absent, for its owner only.
        job: the job.

    Returns:
        The files, in the order of SUFFIXES; none for a pending job.
    """
    paths = [folder / name for name in file_names(job.job_id, job.item.outcome)]
    for path, content in zip(paths, _contents(job) if paths else (), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replaced_file(path) as temporary, temporary.open("wb") as stream:
            stream.write(content)
    for other in {name for name in FOLDER_OF.values() if name is not None}:
        for suffix in SUFFIXES:
            stale = folder / other / f"{job.job_id}{suffix}"
            if stale not in paths:
                stale.unlink(missing_ok=True)
    return paths


def write_files(ledger: Ledger, batch: Batch, folder: Path) -> None:
    """Write the files of all jobs of a batch; see `write_job_files`."""
    for job in read_jobs(ledger, batch):
        write_job_files(folder, job)


def article_text(job: JobRecord) -> str:
    """The article as its file has it: in the live realm unchanged, to be published as it is."""
    if job.article is not None:
        text = job.article.markdown.rstrip() + "\n"
    else:
        reason = " ".join((job.item.error or "its row was skipped").split())
        text = f"No article was written ({job.status}): {reason}\n"
    return f"{SIMULATED_COMMENT}\n\n{text}" if job.simulated else text


def _contents(job: JobRecord) -> Iterator[bytes]:
    yield _json(_package(job))
    yield article_text(job).encode()
    yield _json(_qc_report(job))
    yield _json(execution_log(job))
    yield _json(metrics(job))


def _package(job: JobRecord) -> dict[str, Any]:
    if job.package is not None:
        return job.package.model_dump(mode="json")
    # A row that could not be read, or a run that broke off in preflight: what was asked for is all.
    return {
        "job_meta": {
            "job_id": job.job_id,
            "created_at": iso(job.batch.created_at),
            "spec_version": SPEC_VERSION,
            "mode": job.strategy,
            "llm_provider": str(job.value("llm_provider") or "auto"),
        },
        "input_minimal": {
            "publisher_domain": job.value("publisher"),
            "target_url": job.value("target"),
            "anchor_text": job.value("anchor"),
        },
        "incomplete": job.item.error or "Preflight did not come to an end.",
    }


def _qc_report(job: JobRecord) -> dict[str, Any]:
    if job.report is not None:
        return job.report.model_dump(mode="json")
    return {
        "job_id": job.job_id,
        "status": NOT_RUN,
        "issues": [],
        "reason": job.item.error or "The job did not come to quality control.",
    }


def _json(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
