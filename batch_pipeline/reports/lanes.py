"""The report's lanes: provider jobs, what each lane cost, what the batch lane saved and lost.

What belongs here: reading and arithmetic. What does not: fields (model.py), statements on jobs
(ledger/jobs.py), prices (pricing/), looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import sqlalchemy as sa

from batch_pipeline.engine.searching import STEP as SEARCH_STEP
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.jobs import (
    BATCH_LANE,
    REALTIME_LANE,
    ProviderJob,
    list_jobs,
    rows_under_way,
)
from batch_pipeline.ledger.tables import (
    NANO,
    AttemptState,
    JobState,
    attempts,
    provider_jobs,
    runs,
)
from batch_pipeline.pricing.prices import find_model_pricer
from batch_pipeline.providers.base import Usage
from batch_pipeline.reports.fallback import bare_label
from batch_pipeline.reports.model import (
    JobReport,
    LaneSaving,
    LaneUse,
    ProviderJobs,
    Tokens,
    UnansweredLines,
)

MAX_JOBS = 100

_WENT_OUT = [AttemptState.SENT.value, AttemptState.SETTLED.value, AttemptState.LOST.value]


# ---- provider jobs -------------------------------------------------------------------------------


def read_provider_jobs(connection: sa.Connection, realm: str, batch: Batch) -> ProviderJobs | None:
    """The batch's provider jobs; None where it has none."""
    jobs = list_jobs(connection, realm, batch_id=batch.batch_id)
    if not jobs:
        return None
    lines = _lines_by_job(connection, realm, batch)
    took = sorted(
        job.ended_at - job.submitted_at
        for job in jobs
        if job.ended_at is not None and job.submitted_at is not None
    )
    return ProviderJobs(
        total=len(jobs),
        open=sum(job.is_open for job in jobs),
        ended=sum(job.state is JobState.ENDED for job in jobs),
        collected=sum(job.state is JobState.COLLECTED for job in jobs),
        abandoned=sum(job.state is JobState.ABANDONED for job in jobs),
        failed=sum(_ended_as(job) not in ("", "succeeded") for job in jobs),
        cancelling=sum(job.is_open and job.cancel_wanted for job in jobs),
        rows_under_way=rows_under_way(connection, realm, batch.batch_id),
        took_p50_s=_percentile(took, 0.5),
        took_p90_s=_percentile(took, 0.9),
        jobs=[_job(job, lines.get(job.job_id, {})) for job in jobs[-MAX_JOBS:]],
        unanswered=_unanswered(connection, realm, batch),
    )


def _job(job: ProviderJob, lines: dict[str, int]) -> JobReport:
    open_lines = lines.get("open", 0)
    # Until its lines are collected, the provider's own counts say more than ours.
    answered, failed = lines.get("answered", 0), lines.get("failed", 0)
    if open_lines:
        answered += min(open_lines, job.succeeded or 0)
        failed += min(open_lines, job.failed or 0)
    ended = job.submitted_at is not None and job.ended_at is not None
    return JobReport(
        job_id=job.job_id,
        provider=job.provider,
        model=job.model,
        remote_name=job.remote_name,
        state=job.state.value,
        ended_as=_ended_as(job),
        rows=job.item_count,
        lines=job.line_count,
        lines_answered=answered,
        lines_failed=failed,
        lines_not_asked=lines.get("refunded", 0),
        lines_lost=lines.get("lost", 0),
        tokens=job.tokens,
        submitted_at=_moment(job.submitted_at),
        ended_at=_moment(job.ended_at),
        collected_at=_moment(job.collected_at),
        took_s=(job.ended_at or 0.0) - (job.submitted_at or 0.0) if ended else None,
        cost_usd=lines.get("cost_nano", 0) / NANO,
        lost_cost_usd=lines.get("lost_nano", 0) / NANO,
        error=job.error[:500],
    )


def _ended_as(job: ProviderJob) -> str:
    """How the provider says that a job ended; empty while it has not."""
    if job.state is JobState.ABANDONED:
        return "never created"
    return job.remote_state if job.state in (JobState.ENDED, JobState.COLLECTED) else ""


def _lines_by_job(connection: sa.Connection, realm: str, batch: Batch) -> dict[str, dict[str, int]]:
    """How the lines of each job stand, and what they cost."""
    settled = attempts.c.state == AttemptState.SETTLED.value
    how = {
        "open": attempts.c.state == AttemptState.SENT.value,
        "answered": sa.and_(settled, attempts.c.error_kind.is_(None)),
        "failed": sa.and_(settled, attempts.c.error_kind.is_not(None)),
        "refunded": attempts.c.state == AttemptState.REFUNDED.value,
        "lost": attempts.c.state == AttemptState.LOST.value,
    }
    statement = (
        sa.select(
            attempts.c.job_id,
            *(_count(condition).label(name) for name, condition in how.items()),
            _sum(attempts.c.cost_nano, AttemptState.SETTLED).label("cost_nano"),
            _sum(attempts.c.cost_nano, AttemptState.LOST).label("lost_nano"),
        )
        .where(*_lines_of(realm, batch))
        .group_by(attempts.c.job_id)
    )
    return {
        row["job_id"]: {name: int(value) for name, value in row.items() if name != "job_id"}
        for row in connection.execute(statement).mappings()
    }


def _percentile(ascending: list[float], share: float) -> float | None:
    """Nearest rank, as everywhere in the report."""
    if not ascending:
        return None
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


# ---- lines without an answer ---------------------------------------------------------------------

_Cause = Literal["expired", "cancelled", "failed", "gone", "missing", "not_submitted"]

_GIVEN_BACK: dict[str, str] = {
    "expired": "expired at the provider before they were asked; they cost nothing",
    "cancelled": "were cancelled before they were asked; they cost nothing",
    "failed": "were in jobs that failed before they began; they cost nothing",
    "not_submitted": "were in jobs that the provider never took; they cost nothing",
}
_LOST: dict[str, str] = {
    "expired": "were in jobs that expired, which shows no results; they may have been billed",
    "cancelled": "were in jobs that were cancelled half-way; they may have been billed",
    "failed": "were in jobs that failed half-way; they may have been billed",
    "gone": "were answered, but the provider no longer has the results; they may have been billed",
    "missing": "are missing from the results of their jobs; they may have been billed",
}


def _unanswered(connection: sa.Connection, realm: str, batch: Batch) -> list[UnansweredLines]:
    """Lines that ended without an answer, by cause; those given back cost nothing."""
    kind, remote = attempts.c.error_kind, provider_jobs.c.remote_state
    cause = sa.case(
        (provider_jobs.c.state == JobState.ABANDONED.value, "not_submitted"),
        (kind.in_(["expired", "gone", "missing", "failed", "cancelled"]), kind),
        (remote.in_(["failed", "expired"]), remote),
        else_="cancelled",
    )
    statement = (
        sa.select(
            attempts.c.state,
            cause.label("cause"),
            sa.func.count().label("lines"),
            sa.func.sum(attempts.c.item_count).label("rows"),
            sa.func.sum(attempts.c.cost_nano).label("nano"),
        )
        .select_from(
            attempts.join(
                provider_jobs,
                sa.and_(
                    provider_jobs.c.realm == attempts.c.realm,
                    provider_jobs.c.job_id == attempts.c.job_id,
                ),
            )
        )
        .where(
            *_lines_of(realm, batch),
            attempts.c.state.in_([AttemptState.LOST.value, AttemptState.REFUNDED.value]),
        )
        .group_by(attempts.c.state, "cause")
        .order_by(attempts.c.state, "cause")
    )
    found = []
    for row in connection.execute(statement):
        lost = row.state == AttemptState.LOST.value
        words = (_LOST if lost else _GIVEN_BACK)[row.cause]
        found.append(
            UnansweredLines(
                cause=row.cause,
                lost=lost,
                lines=int(row.lines),
                rows=int(row.rows),
                worst_usd=int(row.nano) / NANO if lost else 0.0,
                text=words,
            )
        )
    return found


# ---- what lanes cost -----------------------------------------------------------------------------


def read_lanes(connection: sa.Connection, realm: str, batch: Batch) -> list[LaneUse]:
    """What went through each lane, real time first; lanes that were not used are left out."""
    columns = {
        "input": attempts.c.input_tokens,
        "cached_input": attempts.c.cached_input_tokens,
        "cache_write": attempts.c.cache_write_tokens,
        "output": attempts.c.output_tokens,
        "thinking": attempts.c.thinking_tokens,
    }
    statement = (
        sa.select(
            attempts.c.lane,
            sa.func.count().label("attempts"),
            _sum(attempts.c.cost_nano, AttemptState.SETTLED).label("cost_nano"),
            _sum(attempts.c.cost_nano, AttemptState.LOST).label("lost_nano"),
            _sum(attempts.c.worst_nano, AttemptState.SENT).label("open_nano"),
            *(sa.func.sum(column).label(name) for name, column in columns.items()),
        )
        .where(
            attempts.c.realm == realm,
            attempts.c.batch_id == batch.batch_id,
            attempts.c.state.in_(_WENT_OUT),
            attempts.c.step != SEARCH_STEP,
        )
        .group_by(attempts.c.lane)
        .order_by(attempts.c.lane.desc())
    )
    return [
        LaneUse(
            lane=row["lane"],
            attempts=int(row["attempts"]),
            tokens=Tokens(**{name: int(row[name]) for name in columns}),
            cost_usd=int(row["cost_nano"]) / NANO,
            lost_cost_usd=int(row["lost_nano"]) / NANO,
            reserved_usd=int(row["open_nano"]) / NANO,
        )
        for row in connection.execute(statement).mappings()
    ]


def read_saving(connection: sa.Connection, realm: str, batch: Batch) -> LaneSaving | None:
    """What the batch lane saved: each line's tokens at the standard price of its moment.

    Returns:
        None where no line has both prices.
    """
    statement = sa.select(
        attempts.c.provider,
        attempts.c.model,
        attempts.c.sent_at,
        attempts.c.input_tokens,
        attempts.c.cached_input_tokens,
        attempts.c.cache_write_tokens,
        attempts.c.output_tokens,
        attempts.c.cost_nano,
    ).where(
        *_lines_of(realm, batch),
        attempts.c.state == AttemptState.SETTLED.value,
        # Without a batch price a line counts as free, and what was billed by hand has no tokens.
        attempts.c.cost_nano > 0,
        attempts.c.reconciled_at.is_(None),
    )
    pricers: dict[str, Any] = {}
    lines = standard = paid = 0
    for row in connection.execution_options(yield_per=5_000).execute(statement):
        if row.model not in pricers:
            name = bare_label(row.model).removeprefix(f"{row.provider}/")
            pricers[row.model] = find_model_pricer(row.provider, name, "realtime")
        pricer = pricers[row.model]
        if pricer is None:
            continue
        usage = Usage(
            input_tokens=row.input_tokens,
            cached_input_tokens=row.cached_input_tokens,
            cache_write_tokens=row.cache_write_tokens,
            output_tokens=row.output_tokens,
        )
        lines += 1
        standard += pricer.cost_nano(usage, row.sent_at)
        paid += row.cost_nano
    if not lines:
        return None
    return LaneSaving(
        lines=lines,
        standard_usd=standard / NANO,
        paid_usd=paid / NANO,
        saved_usd=(standard - paid) / NANO,
        saved_share=(standard - paid) / standard if standard else None,
    )


def lanes_of_runs(connection: sa.Connection, realm: str, batch: Batch, since: float) -> set[str]:
    """The lanes of the runs that made calls since a moment (UTC seconds).

    A run of lane `batch` that asked what was left in real time counts as `batch`; one of lane
    `auto` by whether it had provider jobs.
    """
    statement = (
        sa.select(runs.c.settings, sa.func.max(_in_jobs()).label("in_jobs"))
        .select_from(runs.join(attempts, attempts.c.run_id == runs.c.run_id))
        .where(
            runs.c.realm == realm,
            runs.c.batch_id == batch.batch_id,
            runs.c.started_at >= since,
            attempts.c.realm == realm,
            attempts.c.batch_id == batch.batch_id,
            attempts.c.state.in_(_WENT_OUT),
            attempts.c.step != SEARCH_STEP,
        )
        .group_by(runs.c.run_id, runs.c.settings)
    )
    return set(_lanes(connection.execute(statement)))


def _lanes(found: Any) -> Iterator[str]:
    for settings, in_jobs in found:
        lane = orjson.loads(settings).get("lane", REALTIME_LANE)
        yield (BATCH_LANE if in_jobs else REALTIME_LANE) if lane == "auto" else lane


def _in_jobs() -> sa.ColumnElement[int]:
    return sa.case((attempts.c.lane == BATCH_LANE, 1), else_=0)


def _lines_of(realm: str, batch: Batch) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        attempts.c.realm == realm,
        attempts.c.batch_id == batch.batch_id,
        attempts.c.lane == BATCH_LANE,
    )


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, 1), else_=0))


def _sum(column: sa.ColumnElement[int], state: AttemptState) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((attempts.c.state == state.value, column), else_=0))


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
