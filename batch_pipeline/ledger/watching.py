"""What `watch` asks the ledger at each look: batches as they stand, and what ended meanwhile.

What belongs here: SELECTs that stay quick while runs write. What does not: how it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from batch_pipeline.ledger.overview import LastRun, last_runs
from batch_pipeline.ledger.tables import (
    UNFINISHED_JOB_STATES,
    AttemptState,
    Outcome,
    attempts,
    batches,
    items,
    provider_jobs,
)
from batch_pipeline.settings import Realm

PACE_S = 300.0
"""The pace is that of so many last seconds of the run."""


@dataclass(frozen=True, slots=True)
class EndedRow:
    """A row that has ended lately."""

    item_id: str
    number: int
    outcome: Outcome
    error_kind: str
    error: str
    at: float


@dataclass(frozen=True, slots=True)
class WatchedBatch:
    """One batch at one look.

    Attributes:
        batch_id: the batch.
        workload: its workload.
        realm: its realm.
        created_at: when it was ingested (UTC seconds).
        rows: its rows.
        outcomes: how they ended so far.
        run: its last run; None where there was none.
        in_flight: calls whose reply is awaited.
        in_jobs: of these, lines of provider jobs.
        attempts: calls so far.
        cost_nano: what came back, in nano-USD.
        lost_nano: worst case of what did not.
        rate_wait_s: waiting for rate limits, summed over calls.
        per_minute: rows that ended per minute lately; None while nothing can be said.
        left_s: seconds till the last row ends at that pace; None while nothing can be said.
        ended: rows that have ended lately, the newest first.
        ended_count: how many these are, also where not all are in `ended`.
    """

    batch_id: str
    workload: str
    realm: Realm
    created_at: float
    rows: int
    outcomes: dict[Outcome, int]
    run: LastRun | None
    in_flight: int
    in_jobs: int
    attempts: int
    cost_nano: int
    lost_nano: int
    rate_wait_s: float
    per_minute: float | None
    left_s: float | None
    ended: list[EndedRow]
    ended_count: int

    @property
    def done(self) -> int:
        """Rows that have ended."""
        return self.rows - self.outcomes[Outcome.PENDING]

    @property
    def running(self) -> bool:
        """Whether a process is at work on it."""
        return self.run is not None and self.run.status == "running"


def running_batches(connection: sa.Connection, now: float, realm: Realm) -> list[str]:
    """Batches that a run or a provider job is at work on, the newest first."""
    running = {
        batch_id: run.started_at
        for batch_id, run in last_runs(connection, now, realm).items()
        if run.status == "running"
    }
    in_jobs = connection.execute(
        sa.select(provider_jobs.c.batch_id, sa.func.max(provider_jobs.c.created_at))
        .where(
            provider_jobs.c.realm == realm,
            provider_jobs.c.state.in_([state.value for state in UNFINISHED_JOB_STATES]),
        )
        .group_by(provider_jobs.c.batch_id)
    )
    found = {**{batch_id: float(at) for batch_id, at in in_jobs}, **running}
    return sorted(found, key=lambda batch_id: (-found[batch_id], batch_id))


def look(
    connection: sa.Connection,
    now: float,
    realm: Realm,
    batch_ids: Sequence[str],
    *,
    since: float,
    most: int = 500,
) -> list[WatchedBatch]:
    """Batches as they stand, in the order given; unknown ones are left out.

    Args:
        connection: of the ledger.
        now: UTC seconds.
        realm: the realm.
        batch_ids: which.
        since: rows that ended later are named (UTC seconds).
        most: so many of them at most.
    """
    found = []
    for batch_id in batch_ids:
        row = connection.execute(
            sa.select(batches.c.workload, batches.c.row_count, batches.c.created_at).where(
                batches.c.realm == realm, batches.c.batch_id == batch_id
            )
        ).first()
        if row is None:
            continue
        run = last_runs(connection, now, realm, batch_id).get(batch_id)
        outcomes = _outcomes(connection, realm, batch_id)
        calls = _calls(connection, realm, batch_id)
        pace = _pace(connection, now, realm, batch_id, run)
        pending = outcomes[Outcome.PENDING]
        ended, ended_count = _ended(connection, realm, batch_id, since, most)
        found.append(
            WatchedBatch(
                batch_id=batch_id,
                workload=row.workload,
                realm=realm,
                created_at=row.created_at,
                rows=row.row_count,
                outcomes=outcomes,
                run=run,
                in_flight=int(calls.in_flight),
                in_jobs=int(calls.in_jobs),
                attempts=int(calls.attempts),
                cost_nano=int(calls.cost_nano),
                lost_nano=int(calls.lost_nano),
                rate_wait_s=float(calls.rate_wait_s),
                per_minute=pace,
                left_s=60.0 * pending / pace if pace and pending else None,
                ended=ended,
                ended_count=ended_count,
            )
        )
    return found


def _outcomes(connection: sa.Connection, realm: Realm, batch_id: str) -> dict[Outcome, int]:
    counts = {
        Outcome(outcome): int(count)
        for outcome, count in connection.execute(
            sa.select(items.c.outcome, sa.func.count())
            .where(items.c.realm == realm, items.c.batch_id == batch_id)
            .group_by(items.c.outcome)
        )
    }
    return {outcome: counts.get(outcome, 0) for outcome in Outcome}


def _calls(connection: sa.Connection, realm: Realm, batch_id: str) -> sa.Row[tuple[float, ...]]:
    def total(
        value: sa.ColumnElement[int] | int, *where: sa.ColumnElement[bool]
    ) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((sa.and_(*where), value), else_=0)), 0)

    sent = attempts.c.state == AttemptState.SENT.value
    return connection.execute(
        sa.select(
            sa.func.count().label("attempts"),
            total(1, sent).label("in_flight"),
            total(1, sent, attempts.c.job_id.is_not(None)).label("in_jobs"),
            total(attempts.c.cost_nano, attempts.c.state == AttemptState.SETTLED.value).label(
                "cost_nano"
            ),
            total(attempts.c.cost_nano, attempts.c.state == AttemptState.LOST.value).label(
                "lost_nano"
            ),
            sa.func.coalesce(sa.func.sum(attempts.c.rate_wait_s), 0.0).label("rate_wait_s"),
        ).where(
            attempts.c.realm == realm,
            attempts.c.batch_id == batch_id,
            attempts.c.state != AttemptState.REFUNDED.value,
        )
    ).one()


def _pace(
    connection: sa.Connection, now: float, realm: Realm, batch_id: str, run: LastRun | None
) -> float | None:
    """Rows per minute of the run that goes on; answers from the cache come at once and count."""
    if run is None or run.status != "running":
        return None
    begin = max(run.started_at, now - PACE_S)
    count = connection.execute(
        sa.select(sa.func.count()).where(
            items.c.realm == realm, items.c.batch_id == batch_id, items.c.settled_at >= begin
        )
    ).scalar_one()
    return 60.0 * count / (now - begin) if count and now > begin else None


def _ended(
    connection: sa.Connection, realm: Realm, batch_id: str, since: float, most: int
) -> tuple[list[EndedRow], int]:
    new = sa.and_(items.c.realm == realm, items.c.batch_id == batch_id, items.c.settled_at > since)
    count = connection.execute(sa.select(sa.func.count()).where(new)).scalar_one()
    rows = connection.execute(
        sa.select(
            items.c.item_id,
            items.c.number,
            items.c.outcome,
            items.c.error_kind,
            items.c.error,
            items.c.settled_at,
        )
        .where(new)
        .order_by(items.c.settled_at.desc(), items.c.ordinal.desc())
        .limit(most)
    )
    return [
        EndedRow(
            row.item_id,
            row.number,
            Outcome(row.outcome),
            row.error_kind or "",
            row.error or "",
            row.settled_at,
        )
        for row in rows
    ], int(count)
