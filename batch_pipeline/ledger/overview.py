"""What the read commands ask the ledger, aggregated in the database.

What belongs here: SELECTs, and the one deletion of `cache clear`. What does not: how answers are
shown. Both realms live in one database, so functions take the realm they look at; nothing here
imports more than SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import SAME_BATCH, Batch, Item, find_batch
from batch_pipeline.ledger.calls import unpack_bytes
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import (
    AttemptState,
    Outcome,
    attempts,
    batches,
    items,
    owners,
    replies,
    results,
    runs,
)
from batch_pipeline.settings import Realm, Settings

REALMS: tuple[Realm, ...] = ("live", "simulated")


def find_realm(settings: Settings, batch_id: str, simulate: bool | None) -> tuple[Ledger, Batch]:
    """The ledger and the batch: in the realm asked for, else in the one where it exists.

    Without a wish, the environment's realm comes first. The caller closes the ledger.

    Raises:
        UsageError: there is no such batch.
    """
    first = settings.realm(simulate)
    wanted = [first] if simulate is not None else [first, *(r for r in REALMS if r != first)]
    for realm in wanted:
        ledger = Ledger(settings.ledger_url, realm)
        with ledger.read() as connection:
            batch = find_batch(connection, realm, batch_id)
        if batch is not None:
            return ledger, batch
        ledger.close()
    where = f" in the {first} realm" if simulate is not None else ""
    raise UsageError(
        f"There is no batch {batch_id!r}{where}.", "`batch-pipeline status` lists them."
    )


@dataclass(frozen=True, slots=True)
class LastRun:
    """The latest run of a batch. `status` is `crashed` for a run whose process is gone."""

    run_id: str
    status: str
    message: str
    started_at: float
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One batch in the list."""

    batch_id: str
    workload: str
    realm: str
    rows: int
    outcomes: dict[Outcome, int]
    cost_nano: int
    lost_nano: int
    created_at: float
    last_run: LastRun | None


def list_lines(connection: sa.Connection, now: float, realm: Realm) -> list[BatchLine]:
    """Every batch of a realm with its outcomes, cost and last run; newest first."""
    outcomes: dict[str, dict[Outcome, int]] = {}
    for batch_id, outcome, count in connection.execute(
        sa.select(items.c.batch_id, items.c.outcome, sa.func.count())
        .where(items.c.realm == realm)
        .group_by(items.c.batch_id, items.c.outcome)
    ):
        outcomes.setdefault(batch_id, {})[Outcome(outcome)] = int(count)
    costs: dict[tuple[str, str], int] = {
        (batch_id, state): int(cost)
        for batch_id, state, cost in connection.execute(
            sa.select(attempts.c.batch_id, attempts.c.state, sa.func.sum(attempts.c.cost_nano))
            .where(attempts.c.realm == realm)
            .group_by(attempts.c.batch_id, attempts.c.state)
        )
    }
    latest = last_runs(connection, now, realm)
    return [
        BatchLine(
            batch_id=row.batch_id,
            workload=row.workload,
            realm=realm,
            rows=row.row_count,
            outcomes={kind: outcomes.get(row.batch_id, {}).get(kind, 0) for kind in Outcome},
            cost_nano=costs.get((row.batch_id, AttemptState.SETTLED.value), 0),
            lost_nano=costs.get((row.batch_id, AttemptState.LOST.value), 0),
            created_at=row.created_at,
            last_run=latest.get(row.batch_id),
        )
        for row in connection.execute(
            sa.select(
                batches.c.batch_id, batches.c.workload, batches.c.row_count, batches.c.created_at
            )
            .where(batches.c.realm == realm)
            .order_by(batches.c.created_at.desc(), batches.c.batch_id)
        )
    ]


def last_runs(
    connection: sa.Connection, now: float, realm: Realm, batch_id: str | None = None
) -> dict[str, LastRun]:
    """The latest run of each batch (or of one) by batch id."""
    newest = (
        sa.select(runs.c.batch_id, sa.func.max(runs.c.started_at).label("started_at"))
        .where(runs.c.realm == realm)
        .group_by(runs.c.batch_id)
    )
    if batch_id is not None:
        newest = newest.where(runs.c.batch_id == batch_id)
    latest = newest.subquery()
    statement = (
        sa.select(runs, owners.c.lease_expires_at)
        .join(
            latest,
            sa.and_(runs.c.batch_id == latest.c.batch_id, runs.c.started_at == latest.c.started_at),
        )
        .outerjoin(owners, owners.c.owner_id == runs.c.owner_id)
        .where(runs.c.realm == realm)
    )
    return {
        row.batch_id: LastRun(
            run_id=row.run_id,
            # A process that died could not say so: its lease tells.
            status="crashed"
            if row.status == "running" and (row.lease_expires_at or 0) < now
            else row.status,
            message=row.message,
            started_at=row.started_at,
            settings=orjson.loads(row.settings),
        )
        for row in connection.execute(statement)
    }


def chunk_outcomes(
    connection: sa.Connection, batch: Batch, realm: Realm
) -> dict[int, dict[Outcome, int]]:
    """Outcomes by chunk position (from 0)."""
    position = (items.c.ordinal // batch.chunk_size).label("position")
    found: dict[int, dict[Outcome, int]] = {}
    for place, outcome, count in connection.execute(
        sa.select(position, items.c.outcome, sa.func.count())
        .where(items.c.realm == realm, items.c.batch_id == batch.batch_id)
        .group_by(position, items.c.outcome)
    ):
        found.setdefault(int(place), {})[Outcome(outcome)] = int(count)
    return found


def batch_costs(connection: sa.Connection, realm: Realm, batch_id: str) -> tuple[int, int]:
    """Nano-USD paid for a batch, and nano-USD of calls whose reply never came (worst case)."""
    found = {
        state: int(cost)
        for state, cost in connection.execute(
            sa.select(attempts.c.state, sa.func.sum(attempts.c.cost_nano))
            .where(attempts.c.realm == realm, attempts.c.batch_id == batch_id)
            .group_by(attempts.c.state)
        )
    }
    return found.get(AttemptState.SETTLED.value, 0), found.get(AttemptState.LOST.value, 0)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A failed or blocked row."""

    number: int
    item_id: str
    outcome: Outcome
    error_kind: str
    error: str


def bad_rows(connection: sa.Connection, realm: Realm, batch_id: str) -> list[BadRow]:
    """Failed and blocked rows of a batch, in order."""
    return [
        BadRow(row.number, row.item_id, Outcome(row.outcome), row.error_kind or "", row.error or "")
        for row in connection.execute(
            sa.select(
                items.c.number, items.c.item_id, items.c.outcome, items.c.error_kind, items.c.error
            )
            .where(
                items.c.realm == realm,
                items.c.batch_id == batch_id,
                items.c.outcome.in_([Outcome.FAILED.value, Outcome.BLOCKED.value]),
            )
            .order_by(items.c.ordinal)
        )
    ]


def item_by_number(
    connection: sa.Connection, realm: Realm, batch_id: str, number: int
) -> str | None:
    """The item id of a batch's data row `number` (from 1), or None."""
    found = connection.execute(
        sa.select(items.c.item_id).where(
            items.c.realm == realm, items.c.batch_id == batch_id, items.c.number == number
        )
    ).scalar()
    return None if found is None else str(found)


@dataclass(frozen=True, slots=True)
class AttemptLine:
    """One attempt that held an item, with the bodies as sent and received."""

    attempt_id: str
    batch_id: str
    run_id: str
    step: str
    lane: str
    reason: str
    model: str
    key_id: str
    state: str
    item_count: int
    place: int | None
    sent_at: float
    status: int | None
    error_kind: str | None
    error: str | None
    answered_model: str | None
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost_nano: int
    latency_s: float | None
    rate_wait_s: float
    request: bytes
    reply: bytes | None


def attempts_of(
    connection: sa.Connection, realm: Realm, batch_id: str, item: Item
) -> list[AttemptLine]:
    """The batch's attempts about the item, at any of its steps, and the one that answered it.

    In order of time. A question that another row asked is among them only at the item's last step.
    """
    # members is JSON like [[12,"<cache key>"], ...]
    marks = [f'[{item.ordinal},"', *([f'"{item.cache_key}"'] if item.cache_key else [])]
    asked = sa.and_(
        attempts.c.batch_id == batch_id,
        sa.or_(*(attempts.c.members.contains(mark, autoescape=True) for mark in marks)),
    )
    statement = (
        sa.select(attempts, replies.c.request, replies.c.reply)
        .join(replies, replies.c.attempt_id == attempts.c.attempt_id)
        .where(
            attempts.c.realm == realm,
            sa.or_(asked, attempts.c.attempt_id == (item.attempt_id or "")),
        )
        .order_by(attempts.c.sent_at)
    )
    lines = []
    for row in connection.execute(statement):
        values = {
            name: getattr(row, name)
            for name in AttemptLine.__slots__
            if name not in ("place", "request", "reply")
        }
        members = [tuple(member) for member in orjson.loads(row.members)]
        place = next(
            (
                at
                for at, (ordinal, key) in enumerate(members)
                if key == item.cache_key or ordinal == item.ordinal
            ),
            None,
        )
        lines.append(
            AttemptLine(
                **values,
                place=place,
                request=unpack_bytes(row.request),
                reply=None if row.reply is None else unpack_bytes(row.reply),
            )
        )
    return lines


@dataclass(frozen=True, slots=True)
class CacheLine:
    """Stored results of one workload by one model. `output_bytes` is their JSON's size."""

    workload: str
    step: str
    model: str
    entries: int
    latest: float
    output_bytes: int


def cache_lines(connection: sa.Connection, realm: Realm) -> list[CacheLine]:
    """Stored results of a realm by workload, step and model."""
    group = (results.c.workload, results.c.step, results.c.model)
    return [
        CacheLine(row[0], row[1], row[2], int(row[3]), float(row[4]), int(row[5]))
        for row in connection.execute(
            sa.select(
                *group,
                sa.func.count(),
                sa.func.max(results.c.created_at),
                sa.func.sum(sa.func.length(results.c.output)),
            )
            .where(results.c.realm == realm)
            .group_by(*group)
            .order_by(*group)
        )
    ]


@dataclass(frozen=True, slots=True)
class Clearance:
    """What `cache clear` would remove, or has removed.

    Attributes:
        entries: stored results.
        rows: finished rows whose result is among them: they are open again afterwards.
        batches: batches that these rows belong to.
        cost_nano: what the results cost when they were asked.
    """

    entries: int
    rows: int
    batches: int
    cost_nano: int


def _clearing(realm: Realm, workload: str | None, before: float | None) -> sa.ColumnElement[bool]:
    chosen = results.c.realm == realm
    if workload is not None:
        chosen = sa.and_(chosen, results.c.workload == workload)
    if before is not None:
        chosen = sa.and_(chosen, results.c.created_at < before)
    return chosen


def _rows_of(realm: Realm, chosen: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Finished rows that stand on one of the chosen results."""
    stands_on = (
        sa.select(sa.literal(1))
        .where(chosen, results.c.cache_key == items.c.cache_key, results.c.model == items.c.model)
        .correlate(items)
        .exists()
    )
    return sa.and_(items.c.realm == realm, items.c.outcome == Outcome.SUCCEEDED.value, stands_on)


def plan_clearance(
    connection: sa.Connection, realm: Realm, workload: str | None, before: float | None
) -> Clearance:
    """What `clear` would remove: results of `workload` and before `before` (UTC s); None is any."""
    chosen = _clearing(realm, workload, before)
    entries, cost = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.sum(attempts.c.cost_nano / sa.func.max(attempts.c.item_count, 1))
            if connection.dialect.name == "sqlite"
            else sa.func.sum(attempts.c.cost_nano / sa.func.greatest(attempts.c.item_count, 1)),
        )
        .select_from(results)
        .outerjoin(attempts, attempts.c.attempt_id == results.c.attempt_id)
        .where(chosen)
    ).one()
    rows, of_batches = connection.execute(
        sa.select(sa.func.count(), sa.func.count(sa.distinct(items.c.batch_id))).where(
            _rows_of(realm, chosen)
        )
    ).one()
    return Clearance(int(entries), int(rows), int(of_batches), round(cost or 0))


def clear(
    connection: sa.Connection, now: float, realm: Realm, workload: str | None, before: float | None
) -> None:
    """Remove stored results; rows that stand on them are pending again, the spend stays on record.

    Raises:
        UsageError: a run of the realm is going on; it holds results that are only here.
    """
    busy = connection.execute(
        sa.select(runs.c.run_id, runs.c.batch_id)
        .join(owners, owners.c.owner_id == runs.c.owner_id)
        .where(runs.c.realm == realm, runs.c.status == "running", owners.c.lease_expires_at > now)
        .limit(1)
    ).first()
    if busy is not None:
        raise UsageError(
            f"Run {busy.run_id} of batch {busy.batch_id} is going on and uses the cache.",
            "Wait for it to end, or terminate it, then clear.",
        )
    chosen = _clearing(realm, workload, before)
    connection.execute(
        items.update()
        .where(_rows_of(realm, chosen))
        .values(
            outcome=Outcome.PENDING.value,
            cached=False,
            cache_key=None,
            model=None,
            # The attempt stays: it tells that the row has ended once (batches.ended_once).
            settled_at=None,
        )
    )
    connection.execute(results.delete().where(chosen))


def answered_models(connection: sa.Connection, realm: Realm, keys: Sequence[str]) -> dict[str, str]:
    """By cache key, a model that has answered it."""
    found: dict[str, str] = {}
    for start in range(0, len(keys), 500):
        found.update(
            (key, model)
            for key, model in connection.execute(
                sa.select(results.c.cache_key, results.c.model).where(
                    results.c.realm == realm, results.c.cache_key.in_(keys[start : start + 500])
                )
            )
        )
    return found


def asked_item_ids(
    connection: sa.Connection, realm: Realm, workload: str, item_ids: Sequence[str]
) -> set[str]:
    """Those of `item_ids` that have succeeded in some batch of `workload`."""
    found: set[str] = set()
    for start in range(0, len(item_ids), 500):
        found.update(
            connection.execute(
                sa.select(items.c.item_id)
                .join(batches, SAME_BATCH)
                .where(
                    items.c.realm == realm,
                    batches.c.workload == workload,
                    items.c.item_id.in_(item_ids[start : start + 500]),
                    items.c.outcome == Outcome.SUCCEEDED.value,
                )
            ).scalars()
        )
    return found


@dataclass(frozen=True, slots=True)
class PastCall:
    """One answered call.

    Attributes:
        model: which was called.
        request: the body as sent.
        outputs: in the order of its items, each one's stored result as JSON; None where there is
            none.
        input_tokens: as billed, cached ones included.
        cached_input_tokens: of these, read from the provider's cache.
        cache_write_tokens: of these, written to it.
        output_tokens: as billed.
        latency_s: seconds.
    """

    model: str
    request: bytes
    outputs: tuple[str | None, ...]
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    latency_s: float


def call_history(
    connection: sa.Connection,
    realm: Realm,
    workload: str,
    step: str,
    models: Sequence[str] | None = None,
    count: int = 60,
) -> list[PastCall]:
    """The latest answered first calls of a step, newest first.

    Args:
        connection: to read with.
        realm: live or simulated.
        workload: its name.
        step: its name.
        models: only calls of these; None is any.
        count: so many at most.
    """
    wanted = sa.and_(
        attempts.c.realm == realm,
        attempts.c.workload == workload,
        attempts.c.step == step,
        attempts.c.state == AttemptState.SETTLED.value,
        attempts.c.error_kind.is_(None),
        attempts.c.parent_request_id.is_(None),
        attempts.c.input_tokens > 0,
        attempts.c.output_tokens > 0,
    )
    if models is not None:
        wanted = sa.and_(wanted, attempts.c.model.in_(models))
    rows = connection.execute(
        sa.select(
            attempts.c.attempt_id,
            attempts.c.model,
            attempts.c.members,
            attempts.c.input_tokens,
            attempts.c.cached_input_tokens,
            attempts.c.cache_write_tokens,
            attempts.c.output_tokens,
            attempts.c.latency_s,
            replies.c.request,
        )
        .join(replies, replies.c.attempt_id == attempts.c.attempt_id)
        .where(wanted)
        .order_by(attempts.c.sent_at.desc())
        .limit(count)
    ).all()
    asked = {row.attempt_id: [key for _, key in orjson.loads(row.members)] for row in rows}
    stored: dict[tuple[str, str], str] = {}
    for attempt_keys in asked.values():
        for attempt_id, key, output in connection.execute(
            sa.select(results.c.attempt_id, results.c.cache_key, results.c.output).where(
                results.c.realm == realm, results.c.cache_key.in_(attempt_keys)
            )
        ):
            stored[(attempt_id, key)] = output
    return [
        PastCall(
            model=row.model,
            request=unpack_bytes(row.request),
            outputs=tuple(stored.get((row.attempt_id, key)) for key in asked[row.attempt_id]),
            input_tokens=int(row.input_tokens),
            cached_input_tokens=int(row.cached_input_tokens),
            cache_write_tokens=int(row.cache_write_tokens),
            output_tokens=int(row.output_tokens),
            latency_s=float(row.latency_s or 0.0),
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """A call whose reply never came: it may have been billed, and counts at its worst case.

    Attributes:
        attempt_id: the attempt; sent to the provider as `x-client-request-id`.
        batch_id: its batch.
        workload: its workload.
        provider: whom it was sent to.
        model: the model, as results are stored under.
        rows: rows it asked about.
        sent_at: UTC seconds.
        worst_nano: what it counts, in nano-USD.
        error: why no reply came; empty where the process was gone.
    """

    attempt_id: str
    batch_id: str
    workload: str
    provider: str
    model: str
    rows: int
    sent_at: float
    worst_nano: int
    error: str


def lost_attempts(
    connection: sa.Connection, realm: Realm, batch_id: str | None = None
) -> list[LostAttempt]:
    """Attempts that wait to be reconciled, oldest first."""
    statement = (
        sa.select(
            attempts.c.attempt_id,
            attempts.c.batch_id,
            attempts.c.workload,
            attempts.c.provider,
            attempts.c.model,
            attempts.c.item_count,
            attempts.c.sent_at,
            attempts.c.cost_nano,
            sa.func.coalesce(attempts.c.error, ""),
        )
        .where(attempts.c.realm == realm, attempts.c.state == AttemptState.LOST.value)
        .order_by(attempts.c.sent_at, attempts.c.attempt_id)
    )
    if batch_id is not None:
        statement = statement.where(attempts.c.batch_id == batch_id)
    return [LostAttempt(*row) for row in connection.execute(statement)]
