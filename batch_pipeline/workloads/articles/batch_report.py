"""The batch report of articles: `batch_report_<UTC stamp>.json`, with the guide's fields.

What belongs here: its models, writing it job by job, reading it again. What does not: how a person
sees it (cli/job_report.py), the report that every workload has (reports/).
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO, attempts, owners, runs
from batch_pipeline.sinks.files import replaced_file
from batch_pipeline.workloads.articles.files import NOT_RUN, file_names
from batch_pipeline.workloads.articles.history import generation
from batch_pipeline.workloads.articles.reading import JobRecord, Status, read_jobs
from batch_pipeline.workloads.articles.record import iso

SCHEMA = "article-batch-report-1"


class _Part(BaseModel):
    # Reports of other versions, and those of the system that this replaces, can be read as well.
    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class BatchMeta(_Part):
    """When and how a batch ran."""

    started_at: str | None = Field(
        default=None, description="Start of its first run, ISO 8601 in UTC."
    )
    completed_at: str | None = Field(
        default=None, description="End of its last run; null: it goes on."
    )
    duration_seconds: float = Field(
        default=0.0, description="All runs together; the time between runs is not in it."
    )
    max_workers: int | str | None = Field(default=None, description="`workers` of the last run.")
    rate_limit: float | None = Field(
        None, description="Model calls per minute that the last run was given; null: none was."
    )
    batch_id: str | None = None
    simulated: bool | None = Field(
        default=None, description="No provider was called, nothing was paid."
    )
    source: str | None = Field(default=None, description="What the user named as input.")
    runs: int = Field(default=0, description="How many runs there were.")
    created_at: str | None = Field(default=None, description="When this report was made.")
    format: str | None = Field(default=None, description=f"`{SCHEMA}`.")


class Tokens(_Part):
    """Tokens of model calls."""

    input: int = 0
    output: int = 0
    cached_input: int = Field(default=0, description="Of `input`.")


class ModelUse(_Part):
    """What one model, or one endpoint of a search provider, was used for."""

    model: str = Field(description="`provider/model`, or `provider/endpoint`.")
    jobs: int = Field(description="Jobs that it was called for.")
    attempts: int
    tokens: Tokens = Field(default_factory=Tokens)
    cost_usd: float = 0.0


class ReportSummary(_Part):
    """The batch in numbers; those of `results` add up to these."""

    total: int = 0
    delivered: int = 0
    blocked: int = 0
    aborted: int = 0
    pending: int = 0
    skipped: int = 0
    cost_usd: float = Field(default=0.0, description="Attempts that came back, searches included.")
    lost_cost_usd: float = Field(
        default=0.0, description="Worst case of attempts whose reply never came; not in `cost_usd`."
    )
    tokens: Tokens = Field(default_factory=Tokens)
    attempts: int = Field(default=0, description="Wire calls, searches included.")
    rate_wait_seconds: float = Field(
        default=0.0,
        description="Waiting for rate limits, summed over attempts, which wait side by side.",
    )
    cached: int = Field(default=0, description="Jobs with an article that no model was called for.")
    models: list[ModelUse] = Field(default_factory=list, description="The dearest first.")


class JobConfig(_Part):
    """What a job asked for: under the names of the guide's report, and of its input."""

    publisher_domain: str = ""
    target_url: str = ""
    anchor_text: str = ""
    llm_provider: str | None = None
    writing_strategy: str | None = None
    country: str | None = None
    use_ahrefs: bool | None = None
    enable_llm_profiling: bool | None = None
    publisher: str = ""
    target: str = ""
    anchor: str = ""
    strategy: str | None = None


class GenerationMetrics(_Part):
    """What the models' part of a job took."""

    provider: str | None = None
    model: str | None = None
    stages_completed: Any = Field(
        default=None, description="Names of the writing steps that answered."
    )
    duration_seconds: float = Field(default=0.0, description="The model calls' own time.")
    retries: int = 0
    tokens: Tokens = Field(default_factory=Tokens)
    cost_usd: float = 0.0
    cached: bool = False


class JobMetrics(_Part):
    """What a job took."""

    generation: GenerationMetrics = Field(default_factory=GenerationMetrics)
    attempts: int = Field(default=0, description="Wire calls, searches included.")
    search_calls: int = 0
    cost_usd: float = Field(default=0.0, description="Models and searches.")
    lost_cost_usd: float = 0.0
    rate_wait_seconds: float = 0.0


class QcNote(_Part):
    """What quality control said."""

    status: str | None = None
    issues: list[dict[str, Any]] = Field(default_factory=list)


class ReviewNote(_Part):
    """What a person decided."""

    decision: str
    reviewer: str
    reason: str
    decided_at: str
    signed_off: bool


class JobResult(_Part):
    """One job."""

    job_id: str = ""
    status: Status = Field(description="A job that a person let through is DELIVERED.")
    batch_id: str | None = None
    row: int | None = Field(default=None, description="Its row in the input, from 1.")
    item_id: str | None = None
    duration: float = Field(
        default=0.0,
        description="Seconds from its first trace to its last, over the runs that took it up.",
    )
    error: str | None = None
    job_config: JobConfig = Field(default_factory=JobConfig)
    metrics: JobMetrics = Field(default_factory=JobMetrics)
    qc_report: QcNote | None = None
    review: ReviewNote | None = None
    files: list[str] = Field(default_factory=list, description="Below the report's folder.")


class ArticleReport(_Part):
    """The whole report."""

    batch_meta: BatchMeta
    summary: ReportSummary
    results: list[JobResult]


def job_result(job: JobRecord, folder: Path | None = None) -> JobResult:
    """One job as reports have it.

    Args:
        job: the job.
        folder: where its files are, if any are; those that are there are named.
    """
    return JobResult(
        job_id=job.job_id,
        status=job.status,
        batch_id=job.batch.batch_id,
        row=job.item.number,
        item_id=job.item.item_id,
        duration=round(job.duration_s, 3),
        error=job.item.error if job.status != "DELIVERED" else None,
        job_config=_config(job),
        metrics=JobMetrics(
            generation=GenerationMetrics.model_validate(generation(job)),
            attempts=len(job.calls),
            search_calls=len(job.search_calls),
            cost_usd=_nano(job, "cost_nano") / NANO,
            lost_cost_usd=_nano(job, "lost_nano") / NANO,
            rate_wait_seconds=round(sum(call.rate_wait_s for call in job.calls), 6),
        ),
        qc_report=_qc_note(job),
        review=_review_note(job),
        files=[
            name
            for name in file_names(job.job_id, job.item.outcome)
            if folder and (folder / name).is_file()
        ],
    )


def write_batch_report(ledger: Ledger, batch: Batch, folder: Path, now: float) -> Path:
    """Write the report of a batch as it stands; memory does not grow with its jobs.

    Args:
        ledger: the ledger, bound to the batch's realm.
        batch: a batch of the workload articles.
        folder: where to; created where absent, for its owner only.
        now: UTC seconds; they name the file.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d_%H%M%S")
    path = folder / f"batch_report_{stamp}.json"
    tally = Tally()
    # The sums stand before the jobs that they are made of: those go to disk meanwhile.
    with (
        replaced_file(path) as temporary,
        temporary.open("wb") as stream,
        tempfile.TemporaryFile(dir=folder) as spool,
    ):
        for number, job in enumerate(read_jobs(ledger, batch)):
            tally.add(job)
            spool.write(b",\n" if number else b"")
            spool.write(orjson.dumps(job_result(job, folder).model_dump(mode="json")))
        stream.write(b'{"batch_meta": ' + _indented(batch_meta(ledger, batch, now)))
        stream.write(b',\n"summary": ' + _indented(tally.summary()))
        stream.write(b',\n"results": [\n')
        spool.seek(0)
        shutil.copyfileobj(spool, stream)
        stream.write(b"\n]}\n")
    return path


def read_batch_report(path: Path) -> ArticleReport:
    """Read a report again, also one of the system that this replaces.

    Raises:
        UsageError: it is none.
    """
    try:
        return ArticleReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the path."
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"{path} is no batch report of article jobs: {where}: {first['msg']}.",
            "Name a batch_report_<stamp>.json, or a batch by its id.",
        ) from error


def batch_meta(ledger: Ledger, batch: Batch, now: float) -> BatchMeta:
    """When and how a batch ran so far."""
    mine = sa.and_(runs.c.realm == ledger.realm, runs.c.batch_id == batch.batch_id)
    last_sign = (
        sa.select(sa.func.max(sa.func.coalesce(attempts.c.settled_at, attempts.c.sent_at)))
        .where(
            attempts.c.run_id == runs.c.run_id,
            attempts.c.realm == ledger.realm,
            attempts.c.batch_id == batch.batch_id,
        )
        .scalar_subquery()
    )
    statement = (
        sa.select(
            runs.c.started_at,
            runs.c.ended_at,
            runs.c.status,
            runs.c.settings,
            owners.c.lease_expires_at,
            last_sign.label("last_sign"),
        )
        .select_from(runs.outerjoin(owners, owners.c.owner_id == runs.c.owner_id))
        .where(mine)
        .order_by(runs.c.started_at, runs.c.run_id)
    )
    with ledger.read() as connection:
        found = connection.execute(statement).all()
    duration = 0.0
    completed: float | None = None
    for row in found:
        completed = row.ended_at
        if row.status == "running":
            alive = (row.lease_expires_at or 0.0) > now
            # A process that died could not say when: its last call tells.
            completed = None if alive else row.last_sign or row.started_at
        duration += max(0.0, (now if completed is None else completed) - row.started_at)
    settings = orjson.loads(found[-1].settings) if found else {}
    return BatchMeta(
        started_at=iso(found[0].started_at if found else batch.created_at),
        completed_at=None if completed is None else iso(completed),
        duration_seconds=round(duration, 3),
        max_workers=settings.get("workers"),
        rate_limit=settings.get("rate_limit"),
        batch_id=batch.batch_id,
        simulated=ledger.realm == "simulated",
        source=batch.source,
        runs=len(found),
        created_at=iso(now),
        format=SCHEMA,
    )


@dataclass(slots=True)
class _Use:
    jobs: int = 0
    attempts: int = 0
    cost_nano: int = 0
    tokens: Tokens = field(default_factory=Tokens)


class Tally:
    """Adds jobs up, in whole nano-USD, so that the sums are the ledger's."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._cost = self._lost = self._attempts = self._cached = 0
        self._waited = 0.0
        self._tokens = Tokens()
        self._models: dict[str, _Use] = {}

    def add(self, job: JobRecord) -> None:
        """Count a job with all its calls."""
        self._counts[job.status] = self._counts.get(job.status, 0) + 1
        self._cached += job.cached
        for call in job.calls:
            self._cost += call.cost_nano
            self._lost += call.lost_nano
            self._attempts += call.counts
            self._waited += call.rate_wait_s
            use = self._models.setdefault(call.model, _Use())
            use.attempts += call.counts
            use.cost_nano += call.cost_nano
            # Search providers count no tokens.
            for tokens in (use.tokens,) if call.is_search else (use.tokens, self._tokens):
                tokens.input += call.input_tokens
                tokens.output += call.output_tokens
                tokens.cached_input += call.cached_input_tokens
        for model in {call.model for call in job.calls}:
            self._models[model].jobs += 1

    def summary(self) -> ReportSummary:
        """What it came to."""

        def counted(status: Status) -> int:
            return self._counts.get(status, 0)

        return ReportSummary(
            total=sum(self._counts.values()),
            delivered=counted("DELIVERED"),
            blocked=counted("BLOCKED"),
            aborted=counted("ABORTED"),
            pending=counted("PENDING"),
            skipped=counted("SKIPPED"),
            cost_usd=self._cost / NANO,
            lost_cost_usd=self._lost / NANO,
            tokens=self._tokens,
            attempts=self._attempts,
            rate_wait_seconds=round(self._waited, 6),
            cached=self._cached,
            models=[
                ModelUse(
                    model=model,
                    jobs=use.jobs,
                    attempts=use.attempts,
                    tokens=use.tokens,
                    cost_usd=use.cost_nano / NANO,
                )
                for model, use in sorted(
                    self._models.items(), key=lambda one: (-one[1].cost_nano, one[0])
                )
            ],
        )


def _nano(job: JobRecord, column: Literal["cost_nano", "lost_nano"]) -> int:
    return sum(getattr(call, column) for call in job.calls)


def _config(job: JobRecord) -> JobConfig:
    publisher, target, anchor = (str(job.value(name)) for name in ("publisher", "target", "anchor"))
    return JobConfig(
        publisher_domain=publisher,
        target_url=target,
        anchor_text=anchor,
        llm_provider=str(job.value("llm_provider")) or None,
        writing_strategy=job.strategy,
        country=str(job.value("country")) or None,
        use_ahrefs=_flag(job.value("use_ahrefs")),
        enable_llm_profiling=_flag(job.value("enable_llm_profiling")),
        publisher=publisher,
        target=target,
        anchor=anchor,
        strategy=str(job.value("strategy")) or None,
    )


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _qc_note(job: JobRecord) -> QcNote:
    if job.report is None:
        return QcNote(status=NOT_RUN)
    return QcNote(
        status=job.report.status,
        issues=[issue.model_dump(mode="json") for issue in job.report.issues],
    )


def _review_note(job: JobRecord) -> ReviewNote | None:
    if job.decision is None:
        return None
    return ReviewNote(
        decision=job.decision.kind.value,
        reviewer=job.decision.reviewer,
        reason=job.decision.reason,
        decided_at=iso(job.decision.decided_at),
        signed_off=job.decision.signed_off,
    )


def _indented(part: BaseModel) -> bytes:
    return orjson.dumps(part.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
