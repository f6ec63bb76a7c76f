"""How a batch stands in the batch lane, for every door: status, looks, cancelling, what is due.

What belongs here: reading and asking the providers without a run. What does not: submitting and
collecting (the engine, in a run), HTTP and consoles (api/, cli/).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.engine.lanes.batch import Full
from batch_pipeline.engine.lanes.desk import JobDesk
from batch_pipeline.engine.state import Log, NoLog
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, count_outcomes, find_batch, list_batches
from batch_pipeline.ledger.jobs import (
    ProviderJob,
    enqueued,
    find_job,
    find_job_by_name,
    list_jobs,
    rows_under_way,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import (
    UNFINISHED_JOB_STATES,
    JobState,
    Outcome,
    owners,
    runs,
)
from batch_pipeline.settings import Settings
from batch_pipeline.workloads.config import Knobs
from batch_pipeline.workloads.runner import batch_api_opener, deadline_at, simulator_url

ID_PREFIX = "batch_jobs/"
"""Job ids of the guides had it; ours are understood with and without."""

_NOT_KNOBS_OF_A_RUN = frozenset({"wait", "limit", "no_enrich", "chunk_size"})
"""What was meant for one run only."""

SUBMITTING = ".up"
"""In the id of a run that only submits."""

_ROOM = 0.05
"""Share of the enqueued tokens that must be free before rows that wait are taken up."""

_RESCUE_S = 1_800.0


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """How a batch stands.

    Attributes:
        job_id: what users call it: the batch's id.
        batch_id: the batch.
        workload: its workload.
        realm: `live` or `simulated`.
        state: in the words of the guides, for example `JOB_STATE_RUNNING`.
        completed: rows that have ended, and those that providers say they have answered.
        total: rows.
        outcomes: rows by outcome.
        under_way: rows in provider jobs.
        created_at: when it was ingested (UTC seconds).
        updated_at: when something last changed (UTC seconds).
        message: what the last run said, or what it waits for.
        provider_jobs: its jobs, oldest first.
    """

    job_id: str
    batch_id: str
    workload: str
    realm: str
    state: str
    completed: int
    total: int
    outcomes: dict[str, int]
    under_way: int
    created_at: float
    updated_at: float
    message: str = ""
    provider_jobs: list[ProviderJob] = field(default_factory=list)

    @property
    def percent(self) -> float:
        """Completed rows of a hundred, with one decimal; 100.0 only when all are."""
        if self.completed >= self.total:
            return 100.0
        return min(99.9, round(100.0 * self.completed / self.total, 1))

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless somebody asks for it."""
        return self.state in _ENDED_STATES


_ENDED_STATES = frozenset(
    {
        "JOB_STATE_SUCCEEDED",
        "JOB_STATE_PARTIALLY_SUCCEEDED",
        "JOB_STATE_FAILED",
        "JOB_STATE_CANCELLED",
    }
)


def resolve_job(ledger: Ledger, text: str) -> Batch:
    """The batch that a job id means.

    Args:
        ledger: the ledger.
        text: a batch id, also behind `batch_jobs/`; the id of one of its provider jobs, ours or the
            provider's.

    Raises:
        UsageError: nothing goes by that name in this realm.
    """
    name = text.strip().strip("/")
    with ledger.read() as connection:
        for candidate in (name.removeprefix(ID_PREFIX), name):
            batch = find_batch(connection, ledger.realm, candidate)
            if batch is not None:
                return batch
        job = find_job(connection, ledger.realm, name.removeprefix(ID_PREFIX))
        job = job or find_job_by_name(connection, ledger.realm, name)
        batch = None if job is None else find_batch(connection, ledger.realm, job.batch_id)
    if batch is None:
        raise UsageError(
            f"There is no job {text!r} in the {ledger.realm} realm.",
            "`batch-pipeline batches list` lists them.",
        )
    return batch


def read_status(ledger: Ledger, batch: Batch) -> LaneStatus:
    """How a batch stands by the ledger; `refresh` first to know what the providers say."""
    realm, batch_id = ledger.realm, batch.batch_id
    with ledger.read() as connection:
        counts = count_outcomes(connection, realm, batch_id)
        jobs = list_jobs(connection, realm, batch_id=batch_id)
        under_way = rows_under_way(connection, realm, batch_id)
        run = _last_run(connection, realm, batch_id)
        live = run is not None and _is_live(connection, run, ledger.now(connection))
    pending = counts[Outcome.PENDING]
    answered = sum(_answered_rows(job) for job in jobs if job.collected_at is None)
    times = [batch.created_at]
    times += [
        at for job in jobs for at in (job.polled_at, job.submitted_at, job.collected_at) if at
    ]
    if run is not None:
        times.append(run.ended_at or run.started_at)
    return LaneStatus(
        job_id=batch_id,
        batch_id=batch_id,
        workload=batch.workload,
        realm=realm,
        state=_state(counts, jobs, run, live=live),
        completed=batch.row_count - pending + min(answered, pending),
        total=batch.row_count,
        outcomes={outcome.value: count for outcome, count in counts.items() if count},
        under_way=under_way,
        created_at=batch.created_at,
        updated_at=max(times),
        message=_message(run, live=live),
        provider_jobs=jobs,
    )


def _answered_rows(job: ProviderJob) -> int:
    """Rows of a job that its provider says it is done with."""
    lines = (job.succeeded or 0) + (job.failed or 0)
    return min(job.item_count, lines * job.item_count // max(1, job.line_count))


def _state(counts: dict[Outcome, int], jobs: Sequence[ProviderJob], run: Any, *, live: bool) -> str:
    """The batch's state in the words of the guides."""
    unfinished = [job for job in jobs if job.state in UNFINISHED_JOB_STATES]
    if not counts[Outcome.PENDING] and not unfinished:
        bad = counts[Outcome.FAILED]
        if not bad:
            return "JOB_STATE_SUCCEEDED"
        good = sum(counts.values()) - bad
        return "JOB_STATE_PARTIALLY_SUCCEEDED" if good else "JOB_STATE_FAILED"
    if any(job.cancel_wanted for job in unfinished):
        return "JOB_STATE_CANCELLING"
    if live or unfinished:
        started = live or any(job.state is not JobState.INTENDED for job in unfinished)
        return "JOB_STATE_RUNNING" if started else "JOB_STATE_PENDING"
    if jobs and jobs[-1].cancel_wanted:
        return "JOB_STATE_CANCELLED"
    if run is None:
        return "JOB_STATE_PENDING"
    return {
        "submitted": "JOB_STATE_RUNNING",
        "done": "JOB_STATE_PENDING",
        "budget": "JOB_STATE_PAUSED",
        "daily_limit": "JOB_STATE_PAUSED",
        "interrupted": "JOB_STATE_PAUSED",
    }.get(run.status, "JOB_STATE_FAILED")


def _message(run: Any, *, live: bool) -> str:
    if run is None:
        return "No run has taken it up yet."
    return "A run is at work on it." if live else str(run.message)


def _last_run(connection: sa.Connection, realm: str, batch_id: str) -> Any:
    return connection.execute(
        sa.select(runs)
        .where(runs.c.realm == realm, runs.c.batch_id == batch_id)
        .order_by(runs.c.started_at.desc())
        .limit(1)
    ).first()


def _is_live(connection: sa.Connection, run: Any, now: float) -> bool:
    if run.status != "running":
        return False
    expires_at = connection.execute(
        sa.select(owners.c.lease_expires_at).where(owners.c.owner_id == run.owner_id)
    ).scalar()
    return expires_at is not None and expires_at > now


def last_knobs(ledger: Ledger, batch: Batch) -> dict[str, Any]:
    """The knobs of the batch's last run, so that the next one goes on as it did."""
    with ledger.read() as connection:
        run = _last_run(connection, ledger.realm, batch.batch_id)
    if run is None:
        return {}
    used = orjson.loads(run.settings)
    knobs = {
        name: used[name]
        for name in Knobs.model_fields
        if name not in _NOT_KNOBS_OF_A_RUN and used.get(name) is not None
    }
    limited = used.get("limit") is not None and used.get("items_per_day") is None
    if limited or _was_cancelled(ledger, batch, run, used):
        # What was asked for is under way, or somebody wants no more: going on means to collect.
        knobs["limit"] = 0
    return knobs


def _was_cancelled(ledger: Ledger, batch: Batch, run: Any, used: dict[str, Any]) -> bool:
    """Whether somebody cancelled the batch's jobs, and nobody has run it again since."""
    now = ledger.clock.now()
    at = deadline_at(used.get("deadline"), now) if used.get("lane") == "auto" else None
    if at is not None and now >= at - _RESCUE_S:
        # Near the deadline runs cancel jobs themselves, to ask in real time.
        return False
    with ledger.read() as connection:
        jobs = list_jobs(connection, ledger.realm, batch_id=batch.batch_id)
    return any(
        job.cancel_wanted and (job.collected_at is None or job.collected_at > run.started_at)
        for job in jobs
    )


# ---- asking the providers ------------------------------------------------------------------------


def refresh(settings: Settings, ledger: Ledger, batch: Batch | None) -> int:
    """Ask the providers where the submitted jobs of a batch (or of all) stand.

    Returns:
        How many jobs were looked at.
    """
    with ledger.read() as connection:
        jobs = list_jobs(
            connection,
            ledger.realm,
            batch_id=None if batch is None else batch.batch_id,
            states=[JobState.SUBMITTED],
        )
    look(settings, ledger, jobs)
    return len(jobs)


def look(
    settings: Settings,
    ledger: Ledger,
    jobs: Sequence[ProviderJob],
    *,
    timeout_s: float | None = None,
    log: Log | None = None,
) -> dict[str, str]:
    """Ask the providers where `jobs` stand, and write it down; gives what went wrong, by provider.

    It makes plain requests only, and holds nothing afterwards.

    Args:
        settings: the installation's.
        ledger: the ledger.
        jobs: submitted ones.
        timeout_s: jobs that were not seen by then are left to the next look; None is no bound.
        log: takes what happens.
    """
    if not jobs:
        return {}

    async def main() -> dict[str, str]:
        desk = _desk(settings, ledger, log)
        try:
            await asyncio.wait_for(desk.look(jobs), timeout_s)
            return dict(desk.problems)
        except TimeoutError:
            return {**desk.problems, "providers": f"not every job was seen in {timeout_s:.0f} s"}
        finally:
            await desk.aclose()

    return asyncio.run(main())


def cancel(settings: Settings, ledger: Ledger, batch: Batch) -> int:
    """Ask for a batch's open jobs to be cancelled; what was answered by then is still collected.

    Returns:
        How many jobs were asked to end.
    """
    with ledger.read() as connection:
        jobs = [
            job
            for job in list_jobs(connection, ledger.realm, batch_id=batch.batch_id)
            if job.is_open
        ]

    async def main() -> None:
        desk = _desk(settings, ledger, None)
        try:
            for job in jobs:
                await desk.cancel(job)
        finally:
            await desk.aclose()

    if jobs:
        asyncio.run(main())
    return len(jobs)


def _desk(settings: Settings, ledger: Ledger, log: Log | None) -> JobDesk:
    opener = batch_api_opener(simulator_url(settings, ledger.realm))
    return JobDesk(ledger, ledger.clock, opener, log=log or NoLog())


# ---- what is due ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """A batch whose lane has something to do.

    Attributes:
        batch: the batch.
        cause: what is to be done, unique for each occasion: a run is started once for it.
        why: the same for people.
        submit: rows are to go up, and that is all.
        knobs: of its last run.
    """

    batch: Batch
    cause: str
    why: str
    submit: bool
    knobs: dict[str, Any]


def due_batches(ledger: Ledger, workload: str) -> list[Due]:
    """Batches of a workload whose provider jobs want a run: to collect, to go on, or to go up.

    A batch that a live run works on is left to it.
    """
    realm = ledger.realm
    found: list[Due] = []
    with ledger.read() as connection:
        now = ledger.now(connection)
        jobs = list_jobs(connection, realm, workload=workload, states=UNFINISHED_JOB_STATES)
        candidates = {job.batch_id for job in jobs} | _batches_to_go_on(connection, realm, workload)
        known = {
            batch.batch_id: batch
            for batch in list_batches(connection, realm, workload)
            if batch.batch_id in candidates
        }
        for batch_id, batch in sorted(known.items()):
            run = _last_run(connection, realm, batch_id)
            if run is None or _is_live(connection, run, now):
                continue
            mine = [job for job in jobs if job.batch_id == batch_id]
            others = any(job.created_at <= (run.ended_at or now) for job in jobs)
            said = _what_is_due(connection, realm, batch, run, mine, now, others=others)
            if said is not None:
                cause, why, submit = said
                found.append(Due(batch, f"{run.run_id}:{cause}", why, submit, {}))
    return [replace(one, knobs=last_knobs(ledger, one.batch)) for one in found]


def _batches_to_go_on(connection: sa.Connection, realm: str, workload: str) -> set[str]:
    """Batches whose last run ended with rows in the batch lane."""
    last = (
        sa.select(runs.c.batch_id, sa.func.max(runs.c.started_at).label("at"))
        .where(runs.c.realm == realm, runs.c.workload == workload)
        .group_by(runs.c.batch_id)
        .subquery()
    )
    statement = (
        sa.select(runs.c.batch_id)
        .join(last, sa.and_(last.c.batch_id == runs.c.batch_id, last.c.at == runs.c.started_at))
        .where(
            runs.c.realm == realm,
            sa.or_(
                runs.c.status == "submitted",
                # Everything had an answer already: there is nothing to submit, but to finish.
                sa.and_(runs.c.status == "done", runs.c.run_id.like(f"%{SUBMITTING}%")),
            ),
        )
    )
    return set(connection.execute(statement).scalars())


def _what_is_due(
    connection: sa.Connection,
    realm: str,
    batch: Batch,
    run: Any,
    jobs: Sequence[ProviderJob],
    now: float,
    *,
    others: bool,
) -> tuple[str, str, bool] | None:
    """A cause, its words, and whether rows only go up; None when there is nothing but to wait."""
    ended = [job.job_id for job in jobs if job.state is JobState.ENDED]
    if ended:
        return f"ended:{ended[-1]}:{len(ended)}", f"{_jobs(ended)} ended", False
    stale = [job for job in jobs if job.state is not JobState.SUBMITTED and job.next_poll_at <= now]
    if stale:
        latest = int(max(job.next_poll_at for job in stale))
        names = _jobs([job.job_id for job in stale])
        return f"up:{stale[-1].job_id}:{latest}", f"{names} to submit", True
    used = orjson.loads(run.settings)
    at = deadline_at(used.get("deadline"), now) if used.get("lane") == "auto" else None
    submitted = [job for job in jobs if job.state is JobState.SUBMITTED]
    if submitted and at is not None and now >= at - _RESCUE_S and not _all_cancelled(submitted):
        return f"deadline:{int(now // 300)}", "the deadline is near", False
    summary = orjson.loads(run.summary)
    waiting = summary.get("waiting", 0)
    # A budget has room when a job has ended, a provider when it is tried again.
    on_the_window = summary.get("waits_for", "") in ("", Full.WINDOW)
    if run.status == "done" and SUBMITTING in run.run_id:
        return "finish", "nothing is left to submit", False
    if run.status == "submitted" and summary.get("under_way") and not jobs and not others:
        return "follow", "jobs of another batch, which asked about its rows, have ended", False
    if run.status != "submitted" or not waiting or not on_the_window:
        return None
    if not summary.get("waits_for"):
        return f"realtime:{waiting}", f"{waiting:,} rows to ask in real time", False
    if _has_room(connection, realm, used, batch.batch_id):
        return f"room:{waiting}", f"room for {waiting:,} rows that wait", True
    return None


def _all_cancelled(jobs: Iterable[ProviderJob]) -> bool:
    return all(job.cancel_wanted for job in jobs)


def _jobs(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} provider jobs"


def _has_room(connection: sa.Connection, realm: str, used: dict[str, Any], batch_id: str) -> bool:
    """Whether enough of the window is free for rows that wait to be taken up."""
    newest = list_jobs(connection, realm, batch_id=batch_id, limit=1)
    if not newest:
        return True
    job = newest[0]
    held = enqueued(connection, realm, job.provider, job.model, job.key_id)
    if held.jobs >= used.get("max_jobs", held.jobs + 1):
        return False
    limit = used.get("enqueued_limit")
    return limit is None or held.tokens <= limit * (1.0 - _ROOM)
