"""Where each topic stands, over all batches, by the ledger; and topics that are to be made anew.

What belongs here: reading that, resetting topics, exporting it. What does not: whether a topic's
content is complete (completion.py), commands (cli/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import INPUT_ERROR, SAME_BATCH, TRIAL, ask_anew
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import (
    NANO,
    AttemptState,
    Outcome,
    attempts,
    batches,
    chunks,
    items,
    owners,
)
from batch_pipeline.sinks.files import replaced_file, write_csv
from batch_pipeline.sources.table import canonical_hash
from batch_pipeline.workloads.flashcards.record import RECORD
from batch_pipeline.workloads.flashcards.times import TopicTimes, read_times

WORKLOAD = "flashcards"
TABLE = "topic_completions"

PENDING = "pending"
COMPLETED = "completed"
FAILED = "failed"
BLOCKED = "blocked"
SKIPPED = "skipped"

STATUS_OF: Mapping[Outcome, str] = {
    Outcome.PENDING: PENDING,
    Outcome.SUCCEEDED: COMPLETED,
    Outcome.FAILED: FAILED,
    Outcome.BLOCKED: BLOCKED,
    Outcome.SKIPPED: SKIPPED,
}

EXPORT_COLUMNS = (
    "id", "topic_path", "content_hash", "status", "started_at", "completed_at",
    "duration_seconds", "flashcard_count", "cost_usd", "error_message", "batch_id", "realm",
)  # fmt: skip

_PAGE = 500
_SQLITE_ENDINGS = (".db", ".sqlite", ".sqlite3")


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """A topic as its newest batch has it: that in which it ended, or was reset, last.

    Attributes:
        topic_path: its path.
        content_hash: of its row.
        status: `pending`, `completed`, `failed`, `blocked` or `skipped`.
        started_at: its first call in that batch, UTC seconds; None where none was made.
        completed_at: when it ended, UTC seconds; None while it is pending.
        duration_s: seconds from first call to last, summed over the runs that worked on it.
        flashcard_count: cards delivered.
        cost_usd: what it has cost so far, in all batches.
        error_message: why it is not completed; empty where it is.
        error_kind: the class of that error, as `failed BATCH` has it; empty where it is completed.
        batch_id: that batch.
        number: its row there, from 1.
    """

    topic_path: str
    content_hash: str
    status: str
    started_at: float | None
    completed_at: float | None
    duration_s: float
    flashcard_count: int
    cost_usd: float
    error_message: str
    error_kind: str
    batch_id: str
    number: int


@dataclass(frozen=True, slots=True)
class ResetTopic:
    """A topic that is to be made anew: its row in one batch, and what it was there."""

    topic_path: str
    batch_id: str
    number: int
    status: str


# ---- reading ----


def read_completion(ledger: Ledger) -> Iterator[TopicStatus]:
    """Where each topic of the realm stands, by batch and row; batches of `try` do not count.

    Topics come as they are read: memory does not grow with them but for 32 bytes for each row of a
    batch.
    """
    newest = _newest()
    columns = (
        newest.c.batch_id, newest.c.row_count, newest.c.ordinal, newest.c.item_id, newest.c.number,
        newest.c.row, newest.c.outcome, newest.c.error, newest.c.error_kind, newest.c.all_nano,
        newest.c.settled_at,
    )  # fmt: skip
    statement = (
        sa.select(*columns)
        .where(newest.c.realm == ledger.realm, newest.c.place == 1)
        .order_by(newest.c.batch_id, newest.c.ordinal)
    )
    batch_id, times = "", None
    with ledger.read() as connection:
        streamed = connection.execution_options(yield_per=_PAGE).execute(statement)
        for page in streamed.partitions(_PAGE):
            counts = _card_counts(ledger, page)
            for row in page:
                if times is None or row.batch_id != batch_id:
                    batch_id = row.batch_id
                    times = read_times(ledger, batch_id, row.row_count)
                yield _status(row, times, counts.get((row.batch_id, row.ordinal), 0))


def completion_counts(ledger: Ledger) -> dict[str, int]:
    """How many topics stand how; every status is a key."""
    newest = _newest()
    statement = (
        sa.select(newest.c.outcome, sa.func.count())
        .where(newest.c.realm == ledger.realm, newest.c.place == 1)
        .group_by(newest.c.outcome)
    )
    with ledger.read() as connection:
        found = {Outcome(name): int(count) for name, count in connection.execute(statement)}
    return {status: found.get(outcome, 0) for outcome, status in STATUS_OF.items()}


def _newest() -> sa.Subquery:
    """Rows of all batches, with `place` 1 for the one that each topic goes by.

    That is the one that ended, or was made pending again, last. A row of a new batch that has not
    ended does not hide what an earlier one came to.
    """
    ended = sa.func.coalesce(items.c.settled_at, 0.0)
    touched = sa.case((ended > items.c.fresh_after, ended), else_=items.c.fresh_after)
    topic = (items.c.realm, items.c.item_id)
    newest_first = (touched.desc(), batches.c.created_at.desc(), items.c.batch_id.desc())
    place = sa.func.row_number().over(partition_by=topic, order_by=newest_first).label("place")
    all_nano = sa.func.sum(items.c.cost_nano).over(partition_by=topic).label("all_nano")
    return (
        sa.select(*items.c, batches.c.row_count, place, all_nano)
        .join(batches, SAME_BATCH)
        .where(_counts())
        .subquery()
    )


def _counts() -> sa.ColumnElement[bool]:
    """Rows that are topics: one that could not be read names none, and no run asks about it."""
    return sa.and_(
        batches.c.workload == WORKLOAD,
        batches.c.launch != TRIAL,
        sa.func.coalesce(items.c.error_kind, "") != INPUT_ERROR,
    )


def _card_counts(ledger: Ledger, page: Sequence[sa.Row[Any]]) -> dict[tuple[str, int], int]:
    """Cards of the completed topics of a page."""
    done: dict[str, list[int]] = {}
    for row in page:
        if row.outcome == Outcome.SUCCEEDED.value:
            done.setdefault(row.batch_id, []).append(row.ordinal)
    counts: dict[tuple[str, int], int] = {}
    with ledger.read() as connection:
        for batch_id, ordinals in done.items():
            kept = read_documents(connection, ledger.realm, batch_id, ordinals, steps=[RECORD])
            for ordinal, documents in kept.items():
                counts[batch_id, ordinal] = len(documents[RECORD].content.get("cards", ()))
    return counts


def _status(row: sa.Row[Any], times: TopicTimes, cards: int) -> TopicStatus:
    return TopicStatus(
        topic_path=row.item_id,
        content_hash=canonical_hash(orjson.loads(row.row)),
        status=STATUS_OF[Outcome(row.outcome)],
        started_at=times.started_at(row.ordinal),
        completed_at=row.settled_at,
        duration_s=round(times.duration_s(row.ordinal), 3),
        flashcard_count=cards,
        cost_usd=round(int(row.all_nano) / NANO, 9),
        error_message=row.error or "",
        error_kind=row.error_kind or "",
        batch_id=row.batch_id,
        number=row.number,
    )


# ---- making anew ----


def reset_topics(ledger: Ledger, paths: Sequence[str]) -> list[ResetTopic]:
    """Make ended topics pending again, in every batch that has them; they are asked anew.

    Stored answers from before now do not count for them any more. What was spent stays on record.
    Batches that share a topic pay for it once, by whichever run comes first.

    Args:
        ledger: the ledger.
        paths: as `TopicStatus.topic_path` has them.

    Returns:
        What was reset; topics that are pending already are not among it.

    Raises:
        UsageError: there is no such topic, or a run is at work on one.
    """
    wanted = list(dict.fromkeys(paths))
    with ledger.write() as connection:
        known: set[str] = set()
        for page in _pages(wanted):
            statement = (
                sa.select(items.c.item_id)
                .join(batches, SAME_BATCH)
                .where(items.c.realm == ledger.realm, _counts(), items.c.item_id.in_(page))
            )
            known.update(connection.execute(statement).scalars())
        if unknown := [path for path in wanted if path not in known]:
            raise UsageError(
                f"There is no topic {unknown[0]!r} in the {ledger.realm} realm.",
                "`batch-pipeline completion export --output topics.csv` lists all.",
            )
        found: list[ResetTopic] = []
        for page in _pages(wanted):
            found += _reset(connection, ledger, items.c.item_id.in_(page))
    return found


def clear(ledger: Ledger) -> int:
    """Make all topics of the realm pending again; see `reset_topics`.

    Returns:
        Rows that were reset.

    Raises:
        UsageError: a run is at work on some.
    """
    with ledger.write() as connection:
        return len(_reset(connection, ledger, sa.true()))


def _reset(
    connection: sa.Connection, ledger: Ledger, chosen: sa.ColumnElement[bool]
) -> list[ResetTopic]:
    ended = [Outcome.SUCCEEDED.value, Outcome.FAILED.value, Outcome.BLOCKED.value]
    statement = (
        sa.select(
            items.c.item_id, items.c.batch_id, items.c.ordinal, items.c.number, items.c.outcome
        )
        .join(batches, SAME_BATCH)
        .where(
            items.c.realm == ledger.realm,
            _counts(),
            chosen,
            items.c.outcome.in_(ended),
        )
        .order_by(items.c.batch_id, items.c.ordinal)
    )
    rows = connection.execute(statement).all()
    now = ledger.now(connection)
    by_batch: dict[str, list[int]] = {}
    for row in rows:
        by_batch.setdefault(row.batch_id, []).append(row.ordinal)
    for batch_id, ordinals in by_batch.items():
        _take_from_runs(connection, now, ledger.realm, batch_id, ordinals)
        for page in _pages(ordinals):
            chosen_here = sa.and_(
                items.c.realm == ledger.realm,
                items.c.batch_id == batch_id,
                items.c.ordinal.in_(page),
            )
            ask_anew(connection, chosen_here, None, now)
    return [
        ResetTopic(row.item_id, row.batch_id, row.number, STATUS_OF[Outcome(row.outcome)])
        for row in rows
    ]


def _take_from_runs(
    connection: sa.Connection, now: float, realm: str, batch_id: str, ordinals: Sequence[int]
) -> None:
    """Let nobody reset what a run or a provider job is at work on.

    Raises:
        UsageError: one of them has such a row.
    """
    mine = set(ordinals)
    statement = (
        sa.select(chunks, owners.c.run_id, owners.c.lease_expires_at)
        .join(owners, owners.c.owner_id == chunks.c.owner_id)
        .where(chunks.c.realm == realm, chunks.c.batch_id == batch_id)
    )
    for chunk in connection.execute(statement).all():
        span = range(chunk.first_ordinal, chunk.first_ordinal + chunk.row_count)
        if mine.isdisjoint(span):
            continue
        if chunk.lease_expires_at > now:
            raise UsageError(
                f"Run {chunk.run_id} is at work on chunk {chunk.chunk_key}, which has such topics.",
                "Wait until it has ended, or terminate it. Nothing was reset.",
            )
        # An owner whose lease is over may still wake up: what it writes then names an old fence.
        connection.execute(
            chunks.update()
            .where(chunks.c.realm == realm, chunks.c.chunk_key == chunk.chunk_key)
            .values(owner_id=None, fence=chunks.c.fence + 1)
        )
    asked = connection.execute(
        sa.select(attempts.c.job_id, attempts.c.members).where(
            attempts.c.realm == realm,
            attempts.c.batch_id == batch_id,
            attempts.c.job_id.is_not(None),
            attempts.c.state == AttemptState.SENT.value,
        )
    )
    for job_id, members in asked:
        if not mine.isdisjoint(ordinal for ordinal, _ in orjson.loads(members)):
            raise UsageError(
                f"The provider job {job_id} asks about such topics.",
                f"Reset them once it is collected: `batch-pipeline batches status {batch_id}`. "
                "Nothing was reset.",
            )


def _pages(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _PAGE):
        yield list(values[start : start + _PAGE])


# ---- exporting ----


def export_completion(ledger: Ledger, path: Path) -> int:
    """Write where each topic stands to a file.

    Args:
        ledger: the ledger.
        path: its ending says what it is: .db, .sqlite or .sqlite3 with the table
            `topic_completions`, indexed by status and by completed_at; or .csv.

    Returns:
        Topics written.

    Raises:
        UsageError: another ending, or the file cannot be written.
    """
    ending = path.suffix.lower()
    if ending not in (*_SQLITE_ENDINGS, ".csv"):
        raise UsageError(
            f"'{path.name}' does not say what to write.", "End it in .db (SQLite) or .csv."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if ending == ".csv":
            return write_csv(path, EXPORT_COLUMNS, _export_rows(ledger))
        return _export_sqlite(ledger, path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}.", "Name another file."
        ) from error


def _export_sqlite(ledger: Ledger, path: Path) -> int:
    import sqlite_utils

    with replaced_file(path) as temporary:
        database = sqlite_utils.Database(temporary)
        try:
            table = database.table(TABLE)
            table.create(
                {
                    "id": int, "topic_path": str, "content_hash": str, "status": str,
                    "started_at": str, "completed_at": str, "duration_seconds": float,
                    "flashcard_count": int, "cost_usd": float, "error_message": str,
                    "batch_id": str, "realm": str,
                },
                pk="id",
                not_null={"topic_path", "status"},
            )  # fmt: skip
            table.insert_all(_export_rows(ledger), pk="id", batch_size=_PAGE)
            table.create_index(["topic_path"], unique=True)
            table.create_index(["status"])
            table.create_index(["completed_at"])
            return int(table.count)
        finally:
            database.close()


def _export_rows(ledger: Ledger) -> Iterator[dict[str, Any]]:
    for number, one in enumerate(read_completion(ledger), start=1):
        yield {
            "id": number,
            "topic_path": one.topic_path,
            "content_hash": one.content_hash,
            "status": one.status,
            "started_at": _iso(one.started_at),
            "completed_at": _iso(one.completed_at),
            "duration_seconds": one.duration_s,
            "flashcard_count": one.flashcard_count,
            "cost_usd": one.cost_usd,
            "error_message": one.error_message or None,
            "batch_id": one.batch_id,
            "realm": ledger.realm,
        }


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
