"""Provider jobs: what went up to a Batch API, where it stands, and the lines in it.

What belongs here: statements on `provider_jobs`, and on the attempts that are lines of a job. What
does not: attempts in general (calls.py), budgets (spend.py), what to do next (engine/lanes).

A job's lines are attempts with lane `batch`. They, and the claims on their questions, belong to an
owner of the job's own, which lives until the job is closed: no process has to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.ledger.calls import (
    NewAttempt,
    admit_lines,
    pack_bytes,
    retire_owners,
    unpack_bytes,
)
from batch_pipeline.ledger.spend import Short
from batch_pipeline.ledger.store import execute_many
from batch_pipeline.ledger.tables import (
    OPEN_JOB_STATES,
    AttemptState,
    JobState,
    attempts,
    claims,
    owners,
    provider_jobs,
    replies,
)
from batch_pipeline.ledger.writer import Operation

BATCH_LANE = "batch"
REALTIME_LANE = "realtime"

_OWNER_LEASE_S = 400 * 86_400.0
"""A job's owner has no heartbeat: it outlives every provider's patience, and is ended by hand."""

_PAGE = 500


@dataclass(frozen=True, slots=True)
class ProviderJob:
    """One job; field names are columns of `provider_jobs`."""

    realm: str
    job_id: str
    batch_id: str
    workload: str
    step: str
    provider: str
    model: str
    key_id: str
    owner_id: str
    holder_id: str | None
    state: JobState
    remote_name: str | None
    remote_state: str
    file: str | None
    results: tuple[str, ...]
    line_count: int
    item_count: int
    tokens: int
    body_bytes: int
    worst_nano: int
    succeeded: int | None
    failed: int | None
    cancel_wanted: bool
    error_code: str
    error: str
    created_at: float
    creating_at: float | None
    submitted_at: float | None
    polled_at: float | None
    next_poll_at: float
    expires_at: float | None
    ended_at: float | None
    collected_at: float | None

    @property
    def is_open(self) -> bool:
        """Whether its tokens count as enqueued."""
        return self.state in OPEN_JOB_STATES


_COLUMNS = [provider_jobs.c[name] for name in ProviderJob.__slots__]


def _job(row: sa.RowMapping) -> ProviderJob:
    values = dict(row)
    values["state"] = JobState(values["state"])
    values["results"] = tuple(orjson.loads(values["results"]))
    return ProviderJob(**values)


def find_job(connection: sa.Connection, realm: str, job_id: str) -> ProviderJob | None:
    """The job of that id (ours)."""
    found = list_jobs(connection, realm, job_ids=[job_id])
    return found[0] if found else None


def find_job_by_name(connection: sa.Connection, realm: str, remote_name: str) -> ProviderJob | None:
    """The job that a provider calls by this name."""
    row = (
        connection.execute(
            sa.select(*_COLUMNS).where(
                provider_jobs.c.realm == realm, provider_jobs.c.remote_name == remote_name
            )
        )
        .mappings()
        .first()
    )
    return None if row is None else _job(row)


def list_jobs(
    connection: sa.Connection,
    realm: str,
    *,
    batch_id: str | None = None,
    workload: str | None = None,
    states: Sequence[JobState] | None = None,
    job_ids: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[ProviderJob]:
    """Jobs of a realm, oldest first; each argument narrows them.

    Args:
        connection: the ledger's.
        realm: the realm.
        batch_id: of this batch.
        workload: of this workload.
        states: in one of these states.
        job_ids: with one of these ids.
        limit: the newest so many.
    """
    statement = sa.select(*_COLUMNS).where(provider_jobs.c.realm == realm)
    if batch_id is not None:
        statement = statement.where(provider_jobs.c.batch_id == batch_id)
    if workload is not None:
        statement = statement.where(provider_jobs.c.workload == workload)
    if states is not None:
        statement = statement.where(provider_jobs.c.state.in_([state.value for state in states]))
    if job_ids is not None:
        statement = statement.where(provider_jobs.c.job_id.in_(job_ids))
    statement = statement.order_by(provider_jobs.c.created_at.desc(), provider_jobs.c.job_id.desc())
    if limit is not None:
        statement = statement.limit(limit)
    return [_job(row) for row in connection.execute(statement).mappings()][::-1]


@dataclass(frozen=True, slots=True)
class Window:
    """What may be enqueued with one key at one model.

    Attributes:
        tokens: prompt tokens in open jobs; None where no limit is known.
        jobs: open jobs; None where no limit is known.
    """

    tokens: int | None = None
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What is enqueued with one key at one model."""

    tokens: int
    jobs: int


def enqueued(
    connection: sa.Connection, realm: str, provider: str, model: str, key_id: str
) -> Enqueued:
    """What open jobs hold of a key's window at a model; jobs count over all its models."""
    of_key = (
        provider_jobs.c.realm == realm,
        provider_jobs.c.provider == provider,
        provider_jobs.c.key_id == key_id,
        provider_jobs.c.state.in_([state.value for state in OPEN_JOB_STATES]),
    )
    tokens = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(provider_jobs.c.tokens), 0)).where(
            *of_key, provider_jobs.c.model == model
        )
    ).scalar_one()
    jobs = connection.execute(
        sa.select(sa.func.count()).select_from(provider_jobs).where(*of_key)
    ).scalar_one()
    return Enqueued(int(tokens), int(jobs))


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job to be written down before anything of it is sent.

    Attributes:
        lines: its attempts and their request bodies; `owner_id` of each is the job's owner, and
            `job_id` is filled in here.
        keys: the cache keys that its lines ask about: claims of `holder_id`, handed to the job.
        tokens: estimated prompt tokens of all lines.
        body_bytes: length of its file.
        window: what may be enqueued; the job is not opened beyond it, unless nothing else is open.
        holder_id: owner of the run that opens it.
    """

    realm: str
    batch_id: str
    workload: str
    step: str
    provider: str
    model: str
    key_id: str
    owner_id: str
    holder_id: str
    lines: Sequence[tuple[NewAttempt, bytes]]
    keys: Sequence[str]
    tokens: int
    body_bytes: int
    window: Window


@dataclass(frozen=True, slots=True)
class Opened:
    """Whether a job was written down.

    Attributes:
        job_id: its id; None when it was not.
        full: what is enqueued, where that is why.
        short: the budget that it does not fit into, where that is why.
    """

    job_id: str | None
    full: Enqueued | None = None
    short: Short | None = None


def _open(connection: sa.Connection, now: float, requests: Sequence[OpenJob]) -> list[Opened]:
    return [_open_one(connection, now, request) for request in requests]


def _open_one(connection: sa.Connection, now: float, request: OpenJob) -> Opened:
    held = enqueued(connection, request.realm, request.provider, request.model, request.key_id)
    window = request.window
    too_many_tokens = window.tokens is not None and held.tokens + request.tokens > window.tokens
    if window.jobs is not None and held.jobs >= window.jobs:
        return Opened(None, full=held)
    if too_many_tokens and held.tokens > 0:
        return Opened(None, full=held)
    count = connection.execute(
        sa.select(sa.func.count())
        .select_from(provider_jobs)
        .where(provider_jobs.c.realm == request.realm, provider_jobs.c.batch_id == request.batch_id)
    ).scalar_one()
    job_id = f"{request.batch_id}.j{count + 1:04d}"
    short = admit_lines(connection, now, job_id, [attempt for attempt, _ in request.lines])
    if short is not None:
        return Opened(None, short=short)
    connection.execute(
        owners.insert(),
        {
            "owner_id": request.owner_id,
            "host": "provider",
            "pid": 0,
            "run_id": job_id[:64],
            "started_at": now,
            "lease_expires_at": now + _OWNER_LEASE_S,
        },
    )
    execute_many(
        connection,
        replies.insert(),
        [
            {"attempt_id": attempt.attempt_id, "request": pack_bytes(body), "reply": None}
            for attempt, body in request.lines
        ],
    )
    execute_many(
        connection,
        _HAND_OVER,
        [
            {
                "b_realm": request.realm,
                "b_key": key,
                "b_holder": request.holder_id,
                "b_owner": request.owner_id,
            }
            for key in request.keys
        ],
    )
    connection.execute(
        provider_jobs.insert(),
        {
            "realm": request.realm,
            "job_id": job_id,
            "batch_id": request.batch_id,
            "workload": request.workload,
            "step": request.step,
            "provider": request.provider,
            "model": request.model,
            "key_id": request.key_id,
            "owner_id": request.owner_id,
            "holder_id": request.holder_id,
            "state": JobState.INTENDED.value,
            "line_count": len(request.lines),
            "item_count": sum(attempt.item_count for attempt, _ in request.lines),
            "tokens": request.tokens,
            "body_bytes": request.body_bytes,
            "worst_nano": sum(attempt.worst_nano for attempt, _ in request.lines),
            "created_at": now,
        },
    )
    return Opened(job_id)


_HAND_OVER = (
    claims.update()
    .where(
        claims.c.realm == sa.bindparam("b_realm"),
        claims.c.cache_key == sa.bindparam("b_key"),
        claims.c.owner_id == sa.bindparam("b_holder"),
    )
    .values(owner_id=sa.bindparam("b_owner"), lane=BATCH_LANE)
)

OPEN_JOB: Operation[Opened] = Operation("open provider job", 64, _open)
"""Write a job, its lines and what they may cost, before anything of it is sent."""


@dataclass(frozen=True, slots=True)
class HoldJobs:
    """A process wants to be the one that works on these jobs."""

    realm: str
    holder_id: str
    job_ids: Sequence[str]


def _hold(connection: sa.Connection, now: float, requests: Sequence[HoldJobs]) -> list[set[str]]:
    live_owners = sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > now)
    answers = []
    for request in requests:
        mine: set[str] = set()
        for start in range(0, len(request.job_ids), _PAGE):
            page = (
                provider_jobs.c.realm == request.realm,
                provider_jobs.c.job_id.in_(request.job_ids[start : start + _PAGE]),
            )
            connection.execute(
                provider_jobs.update()
                .where(
                    *page,
                    sa.or_(
                        provider_jobs.c.holder_id.is_(None),
                        provider_jobs.c.holder_id.not_in(live_owners),
                    ),
                )
                .values(holder_id=request.holder_id)
            )
            mine.update(
                connection.execute(
                    sa.select(provider_jobs.c.job_id).where(
                        *page, provider_jobs.c.holder_id == request.holder_id
                    )
                ).scalars()
            )
        answers.append(mine)
    return answers


HOLD_JOBS: Operation[set[str]] = Operation("hold provider jobs", 63, _hold)
"""Answers which of the jobs this process holds now; the others are held by a live one."""


@dataclass(frozen=True, slots=True)
class MarkJob:
    """New values of some columns of a job.

    Attributes:
        values: by column name; `state` a JobState.
        only_in: nothing is written unless the job is in one of these states.
        holder_id: nothing is written unless this process holds the job; None does not ask.
    """

    realm: str
    job_id: str
    values: Mapping[str, Any]
    only_in: Sequence[JobState] = tuple(JobState)
    holder_id: str | None = None


def _mark(connection: sa.Connection, now: float, requests: Sequence[MarkJob]) -> list[bool]:
    answers = []
    for request in requests:
        where = [
            provider_jobs.c.realm == request.realm,
            provider_jobs.c.job_id == request.job_id,
            provider_jobs.c.state.in_([state.value for state in request.only_in]),
        ]
        if request.holder_id is not None:
            where.append(provider_jobs.c.holder_id == request.holder_id)
        values = dict(request.values)
        if isinstance(values.get("state"), JobState):
            values["state"] = values["state"].value
        if "results" in values:
            values["results"] = orjson.dumps(list(values["results"])).decode()
        done = connection.execute(provider_jobs.update().where(*where).values(values))
        answers.append(done.rowcount == 1)
    return answers


MARK_JOB: Operation[bool] = Operation("mark provider job", 66, _mark)
"""Answers whether the job was as expected, and written."""


@dataclass(frozen=True, slots=True)
class CloseJob:
    """Nothing more will come of a job: its claims are free and its owner ends.

    Attributes:
        state: `collected` or `abandoned`.
        values: other columns to set.
    """

    realm: str
    job_id: str
    state: JobState
    values: Mapping[str, Any] = field(default_factory=dict)


def _close(connection: sa.Connection, now: float, requests: Sequence[CloseJob]) -> list[None]:
    for request in requests:
        job = find_job(connection, request.realm, request.job_id)
        if job is None or job.state in (JobState.COLLECTED, JobState.ABANDONED):
            continue
        connection.execute(
            provider_jobs.update()
            .where(
                provider_jobs.c.realm == request.realm,
                provider_jobs.c.job_id == request.job_id,
            )
            .values(
                {
                    **request.values,
                    "state": request.state.value,
                    "collected_at": now,
                    "holder_id": None,
                }
            )
        )
        retire_owners(connection, now, [job.owner_id])
    return [None] * len(requests)


CLOSE_JOB: Operation[None] = Operation("close provider job", 90, _close)
"""Runs after every settlement that was posted before it."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a job, as its attempt has it.

    Attributes:
        attempt_id: the attempt, and the line's `custom_id`.
        members: `(ordinal, cache_key)` of each item, in pack order.
        state: the attempt's.
        worst_nano: the most it can cost.
        cost_nano: what it cost, once it is settled.
        input_tokens, cached_input_tokens, output_tokens: as billed, once it is settled.
        sent_at: when it was written down.
    """

    attempt_id: str
    members: tuple[tuple[int, str], ...]
    state: AttemptState
    worst_nano: int
    cost_nano: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    sent_at: float


_LINE_COLUMNS = [attempts.c[name] for name in Line.__slots__]


def _line(row: sa.RowMapping) -> Line:
    values = dict(row)
    values["members"] = tuple((int(at), str(key)) for at, key in orjson.loads(values["members"]))
    values["state"] = AttemptState(values["state"])
    return Line(**values)


def lines_of(connection: sa.Connection, job_id: str) -> list[Line]:
    """All lines of a job, in the order of its file."""
    statement = (
        sa.select(*_LINE_COLUMNS).where(attempts.c.job_id == job_id).order_by(attempts.c.attempt_id)
    )
    return [_line(row) for row in connection.execute(statement).mappings()]


def lines_paid_for(
    connection: sa.Connection, realm: str, batch_id: str, attempt_ids: Sequence[str]
) -> dict[str, Line]:
    """Those of `attempt_ids` that are lines of this batch's jobs."""
    found: dict[str, Line] = {}
    for start in range(0, len(attempt_ids), _PAGE):
        statement = sa.select(*_LINE_COLUMNS).where(
            attempts.c.attempt_id.in_(attempt_ids[start : start + _PAGE]),
            attempts.c.realm == realm,
            attempts.c.batch_id == batch_id,
            attempts.c.lane == BATCH_LANE,
        )
        for row in connection.execute(statement).mappings():
            found[row["attempt_id"]] = _line(row)
    return found


def bodies_of(connection: sa.Connection, job_id: str) -> list[tuple[str, bytes]]:
    """Each line's name and request body, in the order of the job's file."""
    statement = (
        sa.select(attempts.c.attempt_id, replies.c.request)
        .join(replies, replies.c.attempt_id == attempts.c.attempt_id)
        .where(attempts.c.job_id == job_id)
        .order_by(attempts.c.attempt_id)
    )
    return [
        (attempt_id, unpack_bytes(request)) for attempt_id, request in connection.execute(statement)
    ]


def durations(
    connection: sa.Connection, realm: str, provider: str, model: str, limit: int = 50
) -> list[float]:
    """How long the last jobs took from submission to end, in seconds, shortest first."""
    rows = connection.execute(
        sa.select(provider_jobs.c.submitted_at, provider_jobs.c.ended_at)
        .where(
            provider_jobs.c.realm == realm,
            provider_jobs.c.provider == provider,
            provider_jobs.c.model == model,
            provider_jobs.c.ended_at.is_not(None),
            provider_jobs.c.submitted_at.is_not(None),
        )
        .order_by(provider_jobs.c.ended_at.desc())
        .limit(limit)
    ).all()
    return sorted(ended_at - submitted_at for submitted_at, ended_at in rows)


def rows_under_way(connection: sa.Connection, realm: str, batch_id: str) -> int:
    """Rows of a batch that lines of open or uncollected jobs ask about."""
    total = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(attempts.c.item_count), 0)).where(
            attempts.c.realm == realm,
            attempts.c.batch_id == batch_id,
            attempts.c.lane == BATCH_LANE,
            attempts.c.state == AttemptState.SENT.value,
        )
    ).scalar_one()
    return int(total)
