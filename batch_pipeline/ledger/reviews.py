"""What people decided about rows that ended without success, and which rows wait for them.

What belongs here: statements on the table `reviews`, and the one transaction that decides. What
does not: what a decision means for a workload (workloads/reviews.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import ITEM_COLUMNS, SAME_BATCH, TRIAL, Item, item_of
from batch_pipeline.ledger.documents import KeepDocument, keep_documents
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import (
    AttemptState,
    Outcome,
    attempts,
    batches,
    chunks,
    items,
    owners,
    reviews,
)


class DecisionKind(StrEnum):
    """What a person may decide about a row."""

    OVERRIDE = "override"
    REGENERATE = "regenerate"
    SKIP = "skip"


class ReviewConflictError(UsageError):
    """The row cannot be decided now: it has been decided, has not ended, or a run is at it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided about a row.

    Attributes:
        ordinal: the row's place in the batch, from 0.
        sequence: 1, 2, ... of the row; the last one counts.
        kind: what was decided.
        reviewer: who.
        reason: why.
        signed_off: the reviewer vouches for the row.
        details: JSON object: what the row had come to (`outcome`, `error_kind`, `error`), and what
            the workload adds.
        decided_at: UTC seconds.
    """

    ordinal: int
    sequence: int
    kind: DecisionKind
    reviewer: str
    reason: str
    signed_off: bool
    details: dict[str, Any]
    decided_at: float

    @property
    def words(self) -> str:
        """Who decided what, when and why."""
        at = datetime.fromtimestamp(self.decided_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        vouched = ", signed off" if self.signed_off else ""
        return f"{self.kind.value} by {self.reviewer} at {at} UTC{vouched}: {self.reason}"


@dataclass(frozen=True, slots=True)
class NewDecision:
    """A decision to write, if the row is still as the person saw it.

    Attributes:
        item: the row as it was seen.
        earlier: how many decisions about it were seen.
        kind: what is decided.
        reviewer: who.
        reason: why.
        outcome: what the row is from now on.
        error: its error from now on; empty clears it.
        afresh: stored answers from before now do not count for the row any more.
        signed_off: the reviewer vouches for the row.
        details: to keep beside it.
        documents: the row's documents as they are from now on.
    """

    item: Item
    earlier: int
    kind: DecisionKind
    reviewer: str
    reason: str
    outcome: Outcome
    error: str = ""
    afresh: bool = False
    signed_off: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    documents: Sequence[KeepDocument] = ()


def decide(ledger: Ledger, batch_id: str, decisions: Sequence[NewDecision]) -> list[Decision]:
    """Write decisions about rows of a batch: all of them, or none.

    Raises:
        ReviewConflictError: a row is no more as it was seen, or something is at work on it.
    """
    with ledger.write() as connection:
        now = ledger.now(connection)
        return [_decide(connection, now, ledger.realm, batch_id, one) for one in decisions]


def _decide(
    connection: sa.Connection, now: float, realm: str, batch_id: str, new: NewDecision
) -> Decision:
    item = new.item
    mine = sa.and_(
        items.c.realm == realm, items.c.batch_id == batch_id, items.c.ordinal == item.ordinal
    )
    history = read_history(connection, realm, batch_id, item.ordinal)
    found = connection.execute(sa.select(items.c.outcome).where(mine)).scalar_one()
    if len(history) > new.earlier:
        raise ReviewConflictError(
            f"{place_of(item)} is decided already: {history[-1].words}",
            "Look at it again with `batch-pipeline review show` before you decide.",
        )
    if found != item.outcome.value:
        decided = f" The last decision: {history[-1].words}" if history else ""
        raise ReviewConflictError(
            f"{place_of(item)} has changed meanwhile: it is {found} now.{decided}",
            "Look at it again with `batch-pipeline review show` before you decide.",
        )
    _refuse_rows_at_work(connection, now, realm, batch_id, item)
    decision = Decision(
        ordinal=item.ordinal,
        sequence=len(history) + 1,
        kind=new.kind,
        reviewer=new.reviewer,
        reason=new.reason,
        signed_off=new.signed_off,
        details={
            "outcome": item.outcome.value,
            "error_kind": item.error_kind or "",
            "error": item.error or "",
            **new.details,
        },
        decided_at=now,
    )
    connection.execute(
        reviews.insert(),
        {
            "realm": realm,
            "batch_id": batch_id,
            "ordinal": decision.ordinal,
            "sequence": decision.sequence,
            "decision": decision.kind.value,
            "reviewer": decision.reviewer,
            "reason": decision.reason,
            "signed_off": decision.signed_off,
            "details": orjson.dumps(decision.details).decode(),
            "decided_at": now,
        },
    )
    values: dict[str, Any] = {
        "outcome": new.outcome.value,
        "error": new.error or None,
        "error_kind": "review" if new.error else None,
    }
    if new.outcome is Outcome.PENDING:
        values |= {"settled_at": None, "cached": False, "lane_tries": 0}
    if new.afresh:
        values |= {"fresh_after": now, "kept_steps": "{}"}
    connection.execute(items.update().where(mine).values(values))
    keep_documents(connection, now, new.documents)
    return decision


def _refuse_rows_at_work(
    connection: sa.Connection, now: float, realm: str, batch_id: str, item: Item
) -> None:
    """Let nobody decide what a run or a provider job is about to decide as well.

    Raises:
        ReviewConflictError: one of them has the row.
    """
    chunk = sa.and_(
        chunks.c.realm == realm,
        chunks.c.batch_id == batch_id,
        chunks.c.first_ordinal <= item.ordinal,
        chunks.c.first_ordinal + chunks.c.row_count > item.ordinal,
    )
    holder = connection.execute(
        sa.select(chunks.c.chunk_key, owners.c.run_id, owners.c.pid, owners.c.host)
        .join(owners, owners.c.owner_id == chunks.c.owner_id)
        .where(chunk, owners.c.lease_expires_at > now)
    ).first()
    if holder is not None:
        raise ReviewConflictError(
            f"{place_of(item)} is in chunk {holder.chunk_key}, which run {holder.run_id} (pid "
            f"{holder.pid} on {holder.host}) is at work on.",
            "Decide once that run is through with the chunk, or terminate it.",
        )
    asked = connection.execute(
        sa.select(attempts.c.job_id)
        .where(
            attempts.c.realm == realm,
            attempts.c.batch_id == batch_id,
            attempts.c.job_id.is_not(None),
            attempts.c.state == AttemptState.SENT.value,
            # JSON like [[12,"<cache key>"], ...]
            attempts.c.members.contains(f'[{item.ordinal},"', autoescape=True),
        )
        .limit(1)
    ).scalar()
    if asked is not None:
        raise ReviewConflictError(
            f"{place_of(item)} is being asked again in the provider job {asked}.",
            f"Decide once it is collected: `batch-pipeline batches status {batch_id}`.",
        )
    # An owner whose lease is over may still wake up: what it writes then names an old fence.
    connection.execute(
        chunks.update()
        .where(chunk, chunks.c.owner_id.is_not(None))
        .values(owner_id=None, fence=chunks.c.fence + 1)
    )


def place_of(item: Item) -> str:
    """A row as messages name it."""
    return f"Row {item.number:,} ({item.item_id})"


_DECISION_COLUMNS = (
    reviews.c.ordinal,
    reviews.c.sequence,
    reviews.c.decision,
    reviews.c.reviewer,
    reviews.c.reason,
    reviews.c.signed_off,
    reviews.c.details,
    reviews.c.decided_at,
)


def _decision(row: Sequence[Any]) -> Decision:
    ordinal, sequence, kind, reviewer, reason, signed_off, details, decided_at = row
    return Decision(
        ordinal,
        sequence,
        DecisionKind(kind),
        reviewer,
        reason,
        bool(signed_off),
        orjson.loads(details),
        decided_at,
    )


def read_history(
    connection: sa.Connection, realm: str, batch_id: str, ordinal: int
) -> list[Decision]:
    """All decisions about a row, the first one first."""
    statement = (
        sa.select(*_DECISION_COLUMNS)
        .where(
            reviews.c.realm == realm,
            reviews.c.batch_id == batch_id,
            reviews.c.ordinal == ordinal,
        )
        .order_by(reviews.c.sequence)
    )
    return [_decision(row) for row in connection.execute(statement)]


def decisions_of(ledger: Ledger, batch_id: str) -> dict[int, Decision]:
    """The decision that counts for each row of a batch, by ordinal; rows without one are absent."""
    statement = (
        sa.select(*_DECISION_COLUMNS)
        .where(reviews.c.realm == ledger.realm, reviews.c.batch_id == batch_id)
        .order_by(reviews.c.ordinal, reviews.c.sequence)
    )
    with ledger.read() as connection:
        return {row.ordinal: _decision(row) for row in connection.execute(statement)}


@dataclass(frozen=True, slots=True)
class WaitingRow:
    """A blocked row.

    Attributes:
        batch_id: its batch.
        since: when it was blocked, in UTC seconds.
        item: the row.
    """

    batch_id: str
    since: float
    item: Item


@dataclass(frozen=True, slots=True)
class Queue:
    """How many rows wait for a person; `oldest` is since when the first of them does."""

    rows: int
    oldest: float | None


def count_waiting(
    connection: sa.Connection,
    realm: str,
    *,
    batch_id: str | None = None,
    workload: str | None = None,
) -> Queue:
    """How long the queue is; see `waiting_rows` for the arguments."""
    rows, oldest = connection.execute(
        _waiting(sa.select(sa.func.count(), sa.func.min(items.c.settled_at)),
                 realm, batch_id, workload)
    ).one()  # fmt: skip
    return Queue(int(rows), oldest)


def waiting_rows(
    connection: sa.Connection,
    realm: str,
    *,
    batch_id: str | None = None,
    workload: str | None = None,
    offset: int = 0,
    limit: int | None = None,
) -> list[WaitingRow]:
    """Blocked rows, those that wait longest first.

    Args:
        connection: of the ledger.
        realm: the realm.
        batch_id: only this batch; None is all but the small ones of `try`.
        workload: only this workload.
        offset: rows to leave out.
        limit: rows at most.
    """
    statement = (
        _waiting(sa.select(items.c.batch_id, items.c.settled_at, *ITEM_COLUMNS),
                 realm, batch_id, workload)
        .order_by(items.c.settled_at, items.c.batch_id, items.c.ordinal)
        .offset(offset)
        .limit(limit)
    )  # fmt: skip
    return [
        WaitingRow(of_batch, float(since or 0.0), item_of(values))
        for of_batch, since, *values in connection.execute(statement)
    ]


def _waiting(
    columns: sa.Select[Any], realm: str, batch_id: str | None, workload: str | None
) -> sa.Select[Any]:
    statement = (
        columns.select_from(items)
        .join(batches, SAME_BATCH)
        .where(items.c.realm == realm, items.c.outcome == Outcome.BLOCKED.value)
    )
    if workload is not None:
        statement = statement.where(batches.c.workload == workload)
    if batch_id is not None:
        return statement.where(items.c.batch_id == batch_id)
    return statement.where(batches.c.launch != TRIAL)
