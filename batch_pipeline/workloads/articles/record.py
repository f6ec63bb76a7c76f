"""What the ledger keeps of an article job: the documents of its local steps.

What belongs here: their models, which all that reads a job later goes by (files, reviews, reports).
What does not: making them (steps.py), storing them (ledger/documents.py).
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.workloads.articles.models import Article
from batch_pipeline.workloads.articles.package import (
    AnchorProfile,
    JobPackage,
    PublisherProfile,
    Strategy,
    TargetProfile,
)
from batch_pipeline.workloads.articles.qc.report import QcReport

PREFLIGHT = "preflight"
PACKAGE = "package"
QC = "qc"
"""Names of the local steps: their documents go by them."""

EntryType = Literal["info", "warning", "error", "state_transition", "qc_result", "autofix"]


class LogEntry(BaseModel):
    """One line of a job's execution log."""

    model_config = ConfigDict(frozen=True)

    at: str = Field(description="ISO 8601 in UTC.")
    type: EntryType
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


class PackageRecord(BaseModel):
    """Document of the step `package`: the job package, and how it came about.

    The step `preflight` leaves one as well where it ends the job: a package that says what was
    known.

    Attributes:
        package: valid, whatever became of the job.
        report: what QC says of the package, where the job was blocked before anything was written.
        log: what happened in this step.
    """

    package: JobPackage
    report: QcReport | None = None
    log: list[LogEntry] = Field(default_factory=list)


class PreflightRecord(BaseModel):
    """Document of the step `preflight` of a job that goes on: what the pages say."""

    publisher: PublisherProfile
    target: TargetProfile
    anchor: AnchorProfile
    log: list[LogEntry] = Field(default_factory=list)


class QcRecord(BaseModel):
    """Document of the step `qc`: the article as it is delivered, and what QC said of it.

    Attributes:
        article: after the automatic repair, where there was one; None where the job was blocked
            before an article was written.
        report: the last one.
        first_report: the one before the automatic repair; None where nothing was repaired.
        strategy: how it was written.
        model: `provider/model` that wrote its last step.
        log: what happened in this step.
    """

    article: Article | None
    report: QcReport
    first_report: QcReport | None = None
    strategy: Strategy
    model: str = ""
    log: list[LogEntry] = Field(default_factory=list)


def job_id(batch_id: str, batch_created_at: float, item_id: str) -> str:
    """A job's id: `job_<UTC YYYYMMDD_HHMMSS>_<8 hex>`, the same each time."""
    stamp = datetime.fromtimestamp(batch_created_at, UTC).strftime("%Y%m%d_%H%M%S")
    digest = hashlib.blake2b(f"{batch_id}\x1f{item_id}".encode(), digest_size=4).hexdigest()
    return f"job_{stamp}_{digest}"


def iso(at: float) -> str:
    """A time as the records write it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
