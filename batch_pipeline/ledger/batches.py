"""Batches, chunks and items: ingest, chunk leases, and what each item came to.

What belongs here: statements on those three tables. What does not: attempts, results and claims
(calls.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.store import Ledger, execute_many
from batch_pipeline.ledger.tables import Outcome, batches, chunks, items, owners
from batch_pipeline.ledger.writer import Operation

MAX_CHUNKS = 200
"""Chunks per batch at most: Dagster emits about 100 partitions in 4 s (DESIGN 3)."""

TRIAL = "trial"
"""`launch` of a batch that `try` made: a few rows without Dagster partitions."""

REFUSED = "refused"
"""`error_kind` of a row that a model declined."""

INPUT_ERROR = "input"
"""`error_kind` of a row that could not be read: retrying cannot help, a corrected file can."""

UNCHANGED = "unchanged"
"""`error_kind` of a row that is skipped because of what came of it before."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """One row to ingest: `problem` makes it failed, `skip` and `unchanged` skipped; else pending.

    Attributes:
        item_id: its id in the batch.
        number: its number in the table.
        row: its values.
        problem: why it cannot be used.
        skip: why there is nothing to ask about it.
        unchanged: why it need not be asked about again.
    """

    item_id: str
    number: int
    row: Mapping[str, Any]
    problem: str = ""
    skip: str = ""
    unchanged: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """One ingested input table."""

    batch_id: str
    workload: str
    table_name: str
    source: str
    content_hash: str
    row_count: int
    chunk_size: int
    chunk_count: int
    columns: list[str]
    options: dict[str, Any]
    warnings: list[str]
    notes: list[str]
    launch: str
    launched_run_id: str | None
    generation: int
    fresh_after: float
    budget_nano: int | None
    estimate: dict[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """A contiguous slice of a batch: rows `first_ordinal` to `first_ordinal + row_count - 1`."""

    chunk_key: str
    batch_id: str
    position: int
    first_ordinal: int
    row_count: int


class BatchExistsError(UsageError):
    """A batch of that id exists, and its content is another."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row and what it came to so far."""

    ordinal: int
    item_id: str
    number: int
    row: dict[str, Any]
    outcome: Outcome
    cached: bool
    cache_key: str | None
    model: str | None
    error_kind: str | None
    error: str | None
    cost_nano: int
    fresh_after: float
    attempt_id: str | None
    lane_tries: int = 0
    kept_steps: Mapping[str, float] = field(default_factory=dict)

    def fresh_at(self, step: str) -> float:
        """From when on answers and documents of a step count for the row, UTC seconds; 0: all."""
        return self.kept_steps.get(step, self.fresh_after)


def chunk_key(batch_id: str, position: int) -> str:
    """The Dagster partition key of a chunk; `position` counts from 1."""
    return f"{batch_id}.{position:04d}"


def batch_of(key: str) -> str:
    """The batch id inside a chunk key.

    Raises:
        UsageError: when `key` is not `<batch>.<nnnn>`.
    """
    batch_id, dot, position = key.rpartition(".")
    if not dot or not position.isdigit():
        raise UsageError(f"{key!r} is no chunk key.", "Chunk keys look like nov-backlinks.0001.")
    return batch_id


_INSERT_ITEM = items.insert()
_SPOOL_BYTES = 32 * 1024 * 1024


def _spool_items(rows: Iterable[NewItem], spool: SpooledTemporaryFile[bytes]) -> tuple[int, str]:
    """Write rows to a spool, a JSON list in each line; gives their number and content hash."""
    digest = hashlib.sha256()
    count = 0
    for item in rows:
        count += 1
        row = orjson.dumps(item.row, option=orjson.OPT_NON_STR_KEYS).decode()
        digest.update(f"{item.item_id}\x1f{row}\x1f{item.problem}\x1e".encode())
        facts = [item.item_id, item.number, row, item.problem, item.skip, item.unchanged]
        spool.write(orjson.dumps(facts))
        spool.write(b"\n")
    return count, digest.hexdigest()


def _insert_items(
    connection: sa.Connection,
    realm: str,
    batch_id: str,
    now: float,
    fresh_after: float,
    lines: Iterable[bytes],
) -> None:
    """Insert spooled rows, a thousand at a time."""
    buffer: list[dict[str, Any]] = []
    for ordinal, line in enumerate(lines):
        item_id, number, row, problem, skip, unchanged = orjson.loads(line)
        outcome, kind, error = Outcome.PENDING, None, None
        if problem:
            outcome, kind, error = Outcome.FAILED, INPUT_ERROR, problem
        elif skip:
            outcome, kind, error = Outcome.SKIPPED, "skipped", skip
        elif unchanged:
            outcome, kind, error = Outcome.SKIPPED, UNCHANGED, unchanged
        buffer.append(
            {
                "realm": realm,
                "batch_id": batch_id,
                "ordinal": ordinal,
                "item_id": item_id,
                "number": number,
                "row": row,
                "outcome": outcome.value,
                "error_kind": kind,
                "error": error,
                "settled_at": None if outcome is Outcome.PENDING else now,
                "fresh_after": fresh_after,
            }
        )
        if len(buffer) >= 1_000:
            execute_many(connection, _INSERT_ITEM, buffer)
            buffer = []
    execute_many(connection, _INSERT_ITEM, buffer)


def ingest(
    ledger: Ledger,
    *,
    batch_id: str,
    workload: str,
    table_name: str,
    source: str,
    columns: Sequence[str],
    rows: Iterable[NewItem],
    options: Mapping[str, Any],
    chunk_size: int,
    launch: str,
    warnings: list[str],
    notes: Sequence[str] = (),
    forced: bool = False,
) -> tuple[Batch, bool]:
    """Write a batch, its chunks and its items; a batch is immutable afterwards.

    The same id with the same content is found again and nothing is written; with other content it
    is an error. Rows are written as they come, in one transaction, so memory does not grow with the
    table.

    Args:
        ledger: where to.
        batch_id: the new batch's id.
        workload: the workload's name.
        table_name: short name of the table, for file names.
        source: what the user named.
        columns: column names of the table.
        rows: the rows, in order; consumed once.
        options: what later runs need to know of how the table was read.
        chunk_size: rows per chunk; raised so that a batch has at most MAX_CHUNKS chunks.
        launch: `door`, `sensor` or TRIAL: who starts the LLM run.
        warnings: read after the rows are consumed, so the reader may still be filling it.
        notes: like them: what is worth knowing and no trouble.
        forced: a new batch is a generation of its own: answers from before it are no hits.

    Returns:
        The batch, and whether it is new.

    Raises:
        BatchExistsError: the id exists with other content.
        UsageError: the table has no rows.
    """
    realm = ledger.realm
    # The source may be slow: it is read to its end before the write lock is taken, because other
    # runs' heartbeats wait for that lock.
    with SpooledTemporaryFile(_SPOOL_BYTES) as spool:
        count, content_hash = _spool_items(rows, spool)
        if count == 0:
            raise UsageError(f"{source} has no rows.", "Check that it is the file you meant.")
        spool.seek(0)
        # Nobody else writes rows of a batch that is not there yet.
        with ledger.write(lock=f"ingest {realm}/{batch_id}") as connection:
            now = ledger.now(connection)
            existing = find_batch(connection, realm, batch_id)
            if existing is not None:
                if existing.content_hash == content_hash and existing.workload == workload:
                    return existing, False
                raise BatchExistsError(
                    f"Batch {batch_id!r} exists with other content: it was read from "
                    f"{existing.source} ({existing.row_count:,} rows), this is {source} "
                    f"({count:,} rows).",
                    "Choose another --batch name, or leave it out: one is made from the content.",
                )
            fresh_after = now if forced else 0.0
            _insert_items(connection, realm, batch_id, now, fresh_after, spool)
            size = max(chunk_size, -(-count // MAX_CHUNKS))
            chunk_count = -(-count // size)
            connection.execute(
                batches.insert(),
                {
                    "realm": realm,
                    "batch_id": batch_id,
                    "workload": workload,
                    "table_name": table_name,
                    "source": source,
                    "content_hash": content_hash,
                    "row_count": count,
                    "chunk_size": size,
                    "chunk_count": chunk_count,
                    "columns": orjson.dumps(list(columns)).decode(),
                    "options": orjson.dumps(dict(options)).decode(),
                    "warnings": orjson.dumps(warnings).decode(),
                    "notes": orjson.dumps(list(notes)).decode(),
                    "launch": launch,
                    "generation": int(forced),
                    "fresh_after": fresh_after,
                    "created_at": now,
                },
            )
            connection.execute(
                chunks.insert(),
                [
                    {
                        "realm": realm,
                        "chunk_key": chunk_key(batch_id, position + 1),
                        "batch_id": batch_id,
                        "position": position,
                        "first_ordinal": position * size,
                        "row_count": min(size, count - position * size),
                        "fence": 0,
                    }
                    for position in range(chunk_count)
                ],
            )
            batch = find_batch(connection, realm, batch_id)
            assert batch is not None
            return batch, True


def find_batch(connection: sa.Connection, realm: str, batch_id: str) -> Batch | None:
    """The batch of that id in `realm`, or None."""
    statement = sa.select(batches).where(batches.c.realm == realm, batches.c.batch_id == batch_id)
    row = connection.execute(statement).mappings().first()
    return None if row is None else _batch(row)


def list_batches(
    connection: sa.Connection, realm: str, workload: str | None = None, limit: int = 1_000
) -> list[Batch]:
    """Batches of `realm`, newest first."""
    statement = sa.select(batches).where(batches.c.realm == realm)
    if workload is not None:
        statement = statement.where(batches.c.workload == workload)
    statement = statement.order_by(batches.c.created_at.desc(), batches.c.batch_id).limit(limit)
    return [_batch(row) for row in connection.execute(statement).mappings()]


def _batch(row: sa.RowMapping) -> Batch:
    values = {name: row[name] for name in Batch.__slots__}
    for name in ("columns", "options", "warnings", "notes", "estimate"):
        values[name] = orjson.loads(values[name])
    return Batch(**values)


def set_budget(ledger: Ledger, batch_id: str, budget_nano: int) -> None:
    """Bound what a batch may cost in all its runs, from now on."""
    _set_on_batch(ledger, batch_id, {"budget_nano": budget_nano})


def set_options(ledger: Ledger, batch_id: str, options: Mapping[str, Any]) -> None:
    """Replace what later runs of a batch need to know."""
    _set_on_batch(ledger, batch_id, {"options": orjson.dumps(dict(options)).decode()})


def set_estimate(ledger: Ledger, batch_id: str, estimate: Mapping[str, Any]) -> None:
    """Keep what a batch was estimated to take, for its report."""
    _set_on_batch(ledger, batch_id, {"estimate": orjson.dumps(dict(estimate)).decode()})


def _set_on_batch(ledger: Ledger, batch_id: str, values: dict[str, Any]) -> None:
    with ledger.write() as connection:
        connection.execute(
            batches.update()
            .where(batches.c.realm == ledger.realm, batches.c.batch_id == batch_id)
            .values(values)
        )


def list_chunks(connection: sa.Connection, realm: str, batch_id: str) -> list[Chunk]:
    """A batch's chunks in order."""
    statement = (
        sa.select(*(chunks.c[name] for name in Chunk.__slots__))
        .where(chunks.c.realm == realm, chunks.c.batch_id == batch_id)
        .order_by(chunks.c.position)
    )
    return [Chunk(**row) for row in connection.execute(statement).mappings()]


def find_chunks(connection: sa.Connection, realm: str, keys: Sequence[str]) -> list[Chunk]:
    """The chunks with these keys, by batch and position; unknown keys are left out."""
    statement = (
        sa.select(*(chunks.c[name] for name in Chunk.__slots__))
        .where(chunks.c.realm == realm, chunks.c.chunk_key.in_(keys))
        .order_by(chunks.c.batch_id, chunks.c.position)
    )
    return [Chunk(**row) for row in connection.execute(statement).mappings()]


ITEM_COLUMNS = [items.c[name] for name in Item.__slots__]
SAME_BATCH = sa.and_(batches.c.realm == items.c.realm, batches.c.batch_id == items.c.batch_id)
"""Joins rows with their batches."""

_ENDED = [Outcome.SUCCEEDED.value, Outcome.FAILED.value, Outcome.BLOCKED.value]


def read_items(
    connection: sa.Connection, realm: str, batch_id: str, first: int, count: int
) -> list[Item]:
    """Items `first` to `first + count - 1` of a batch, in order."""
    statement = (
        sa.select(*ITEM_COLUMNS)
        .where(
            items.c.realm == realm,
            items.c.batch_id == batch_id,
            items.c.ordinal >= first,
            items.c.ordinal < first + count,
        )
        .order_by(items.c.ordinal)
    )
    return [item_of(row) for row in connection.execute(statement)]


def stream_items(ledger: Ledger, batch_id: str, *, page: int = 1_000) -> Iterator[Item]:
    """All items of a batch, in order, read page by page so that memory stays flat."""
    first = 0
    while True:
        with ledger.read() as connection:
            found = read_items(connection, ledger.realm, batch_id, first, page)
        if not found:
            return
        yield from found
        first = found[-1].ordinal + 1


def find_items(connection: sa.Connection, realm: str, item_id: str) -> list[tuple[str, Item]]:
    """Items with that id, in any batch of `realm`, newest batch first: (batch id, item)."""
    statement = (
        sa.select(items.c.batch_id, *ITEM_COLUMNS)
        .join(batches, SAME_BATCH)
        .where(items.c.realm == realm, items.c.item_id == item_id)
        .order_by(batches.c.created_at.desc())
    )
    return [(row[0], item_of(row[1:])) for row in connection.execute(statement)]


def find_ended(
    connection: sa.Connection, realm: str, batch_ids: Sequence[str], item_ids: Sequence[str]
) -> list[tuple[str, float, Item]]:
    """Items with these ids that have come to something in these batches: (batch id, when, item)."""
    statement = sa.select(items.c.batch_id, items.c.settled_at, *ITEM_COLUMNS).where(
        items.c.realm == realm,
        items.c.item_id.in_(item_ids),
        items.c.batch_id.in_(batch_ids),
        items.c.outcome.in_(_ENDED),
    )
    return [(row[0], row[1] or 0.0, item_of(row[2:])) for row in connection.execute(statement)]


def ended_once(
    connection: sa.Connection, realm: str, batch_ids: Sequence[str]
) -> dict[str, set[int]]:
    """By batch, the numbers of rows that have ended, also where they were made pending again."""
    ended = sa.or_(
        items.c.outcome != Outcome.PENDING.value,
        # Asked anew, or its answer was cleared: no row has either before it ends.
        items.c.fresh_after > batches.c.created_at,
        items.c.attempt_id.is_not(None),
    )
    statement = (
        sa.select(items.c.batch_id, items.c.number)
        .join(batches, SAME_BATCH)
        .where(items.c.realm == realm, items.c.batch_id.in_(batch_ids), ended)
    )
    found: dict[str, set[int]] = {batch_id: set() for batch_id in batch_ids}
    for batch_id, number in connection.execute(statement):
        found[batch_id].add(number)
    return found


def item_of(row: Sequence[Any]) -> Item:
    """The item of what was selected by ITEM_COLUMNS."""
    values = dict(zip(Item.__slots__, row, strict=True))
    values["row"] = orjson.loads(values["row"])
    values["outcome"] = Outcome(values["outcome"])
    values["kept_steps"] = orjson.loads(values["kept_steps"])
    return Item(**values)


def count_outcomes(
    connection: sa.Connection, realm: str, batch_id: str, chunk: Chunk | None = None
) -> dict[Outcome, int]:
    """How many items of a batch (or of one chunk) have each outcome; every outcome is a key."""
    statement = (
        sa.select(items.c.outcome, sa.func.count())
        .where(items.c.realm == realm, items.c.batch_id == batch_id)
        .group_by(items.c.outcome)
    )
    if chunk is not None:
        statement = statement.where(
            items.c.ordinal >= chunk.first_ordinal,
            items.c.ordinal < chunk.first_ordinal + chunk.row_count,
        )
    found = {Outcome(name): int(count) for name, count in connection.execute(statement)}
    return {outcome: found.get(outcome, 0) for outcome in Outcome}


def unfinished_chunks(connection: sa.Connection, realm: str, batch_id: str) -> list[Chunk]:
    """Chunks of a batch with a pending or failed row, in order."""
    open_item = (
        sa.select(sa.literal(1))
        .where(
            items.c.realm == realm,
            items.c.batch_id == batch_id,
            items.c.ordinal >= chunks.c.first_ordinal,
            items.c.ordinal < chunks.c.first_ordinal + chunks.c.row_count,
            items.c.outcome.in_([Outcome.PENDING.value, Outcome.FAILED.value]),
        )
        .exists()
    )
    statement = (
        sa.select(*(chunks.c[name] for name in Chunk.__slots__))
        .where(chunks.c.realm == realm, chunks.c.batch_id == batch_id, open_item)
        .order_by(chunks.c.position)
    )
    return [Chunk(**row) for row in connection.execute(statement).mappings()]


def start_generation(ledger: Ledger, batch_id: str, limit: int | None = None) -> int:
    """Make finished rows of a batch pending again (`--force`); old results are no hits for them.

    Rows that were skipped as unchanged are among them.

    A forced generation that has not ended is continued, not started over, so that a killed forced
    run resumes.

    Args:
        ledger: the ledger.
        batch_id: the batch.
        limit: only the first so many rows.

    Returns:
        How many rows were reset; 0 when an unfinished generation goes on.
    """
    realm = ledger.realm
    mine = sa.and_(items.c.realm == realm, items.c.batch_id == batch_id)
    with ledger.write() as connection:
        batch = find_batch(connection, realm, batch_id)
        if batch is None:
            raise UsageError(
                f"There is no batch {batch_id!r}.", "`batch-pipeline status` lists them."
            )
        if batch.generation:
            open_rows = connection.execute(
                sa.select(sa.func.count())
                .select_from(items)
                .where(
                    mine,
                    items.c.outcome == Outcome.PENDING.value,
                    items.c.fresh_after == batch.fresh_after,
                )
            ).scalar_one()
            if open_rows:
                return 0
        now = ledger.now(connection)
        connection.execute(
            batches.update()
            .where(batches.c.realm == realm, batches.c.batch_id == batch_id)
            .values(generation=batch.generation + 1, fresh_after=now)
        )
        kind = sa.func.coalesce(items.c.error_kind, "")
        ended = items.c.outcome.in_(_ENDED)
        unchanged = sa.and_(items.c.outcome == Outcome.SKIPPED.value, kind == UNCHANGED)
        reset = sa.and_(mine, sa.or_(ended, unchanged), kind != INPUT_ERROR)
        return ask_anew(connection, reset, limit, now)


def renew_blocked(ledger: Ledger, batch_id: str, limit: int | None = None) -> int:
    """Make rows pending again that a check of ours has blocked; their old answers are no hits.

    Rows that a model declined have no answer: asking them again needs nothing of the kind.

    Args:
        ledger: the ledger.
        batch_id: the batch.
        limit: only the first so many.

    Returns:
        How many rows were made pending.
    """
    blocked = sa.and_(
        items.c.realm == ledger.realm,
        items.c.batch_id == batch_id,
        items.c.outcome == Outcome.BLOCKED.value,
        sa.func.coalesce(items.c.error_kind, "") != REFUSED,
    )
    with ledger.write() as connection:
        return ask_anew(connection, blocked, limit, ledger.now(connection))


def ask_anew(
    connection: sa.Connection, chosen: sa.ColumnElement[bool], limit: int | None, now: float
) -> int:
    """Make rows pending, the first so many; answers from before `now` are no hits for them."""
    if limit is not None:
        first = sa.select(items.c.ordinal).where(chosen).order_by(items.c.ordinal).limit(limit)
        chosen = sa.and_(chosen, items.c.ordinal.in_(first))
    done = connection.execute(
        items.update()
        .where(chosen)
        .values(
            outcome=Outcome.PENDING.value,
            cached=False,
            error=None,
            error_kind=None,
            settled_at=None,
            fresh_after=now,
            kept_steps="{}",
            lane_tries=0,
        )
    )
    return int(done.rowcount)


def mark_launched(ledger: Ledger, batch_id: str, run_id: str) -> None:
    """Record which Dagster run carries a batch, so that a sensor launches it once."""
    with ledger.write() as connection:
        connection.execute(
            batches.update()
            .where(batches.c.realm == ledger.realm, batches.c.batch_id == batch_id)
            .values(launched_run_id=run_id)
        )


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """An owner wants a chunk."""

    realm: str
    chunk_key: str
    owner_id: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The answer: `fence` when granted, else who holds the chunk.

    Attributes:
        fence: grows with each lease of the chunk; None when another live owner holds it.
        holder: that owner's host, pid and run, in words.
    """

    fence: int | None
    holder: str = ""


def _lease_chunks(
    connection: sa.Connection, now: float, requests: Sequence[LeaseRequest]
) -> list[Lease]:
    answers = []
    for request in requests:
        mine = sa.and_(chunks.c.realm == request.realm, chunks.c.chunk_key == request.chunk_key)
        row = connection.execute(sa.select(chunks.c.owner_id, chunks.c.fence).where(mine)).first()
        if row is None:
            raise UsageError(
                f"There is no chunk {request.chunk_key!r} in the {request.realm} realm.",
                "Ingest its batch first; `batch-pipeline status` lists batches.",
            )
        holder = None
        if row.owner_id is not None and row.owner_id != request.owner_id:
            holder = connection.execute(
                sa.select(owners).where(
                    owners.c.owner_id == row.owner_id, owners.c.lease_expires_at > now
                )
            ).first()
        if holder is not None:
            answers.append(Lease(None, f"run {holder.run_id} (pid {holder.pid} on {holder.host})"))
            continue
        connection.execute(
            chunks.update().where(mine).values(owner_id=request.owner_id, fence=row.fence + 1)
        )
        answers.append(Lease(row.fence + 1))
    return answers


LEASE_CHUNK: Operation[Lease] = Operation("lease chunk", 60, _lease_chunks)


@dataclass(frozen=True, slots=True)
class Unlease:
    """An owner is done with a chunk; nothing happens when the fence has moved on."""

    realm: str
    chunk_key: str
    owner_id: str
    fence: int


def _unlease_chunks(
    connection: sa.Connection, now: float, requests: Sequence[Unlease]
) -> list[None]:
    for request in requests:
        connection.execute(
            chunks.update()
            .where(
                chunks.c.realm == request.realm,
                chunks.c.chunk_key == request.chunk_key,
                chunks.c.owner_id == request.owner_id,
                chunks.c.fence == request.fence,
            )
            .values(owner_id=None)
        )
    return [None] * len(requests)


UNLEASE_CHUNK: Operation[None] = Operation("unlease chunk", 61, _unlease_chunks)


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What an item came to; all fields but `ask_anew` are columns of `items`.

    `ask_anew`: answers and documents from before are of no use to it when it is asked again, but
    for those of `kept_steps`, which count from the moments that it gives.
    """

    ordinal: int
    outcome: Outcome
    cached: bool = False
    cache_key: str | None = None
    model: str | None = None
    attempt_id: str | None = None
    error_kind: str | None = None
    error: str | None = None
    cost_nano: int = 0
    ask_anew: bool = False
    kept_steps: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FinishItems:
    """Items of one chunk have ended; the `cost_nano` of each adds to what it cost before."""

    realm: str
    batch_id: str
    chunk_key: str
    fence: int
    outcomes: Sequence[ItemOutcome]


_ITEM = sa.and_(
    items.c.realm == sa.bindparam("b_realm"),
    items.c.batch_id == sa.bindparam("b_batch"),
    items.c.ordinal == sa.bindparam("b_ordinal"),
)
_FINISH = (
    items.update()
    .where(_ITEM)
    .values(
        outcome=sa.bindparam("outcome"),
        cached=sa.bindparam("cached"),
        cache_key=sa.bindparam("cache_key"),
        model=sa.bindparam("model"),
        attempt_id=sa.bindparam("attempt_id"),
        error_kind=sa.bindparam("error_kind"),
        error=sa.bindparam("error"),
        cost_nano=items.c.cost_nano + sa.bindparam("b_cost"),
        settled_at=sa.bindparam("settled_at"),
        lane_tries=0,
    )
)
_FORGET = (
    items.update()
    .where(_ITEM)
    .values(fresh_after=sa.bindparam("b_now"), kept_steps=sa.bindparam("b_kept"))
)


def finish_items(
    connection: sa.Connection, now: float, requests: Sequence[FinishItems]
) -> list[bool]:
    """Write what items came to; False for a request whose fence has moved on (nothing written)."""
    by_realm: dict[str, set[str]] = {}
    for request in requests:
        by_realm.setdefault(request.realm, set()).add(request.chunk_key)
    fences = {
        (realm, key): fence
        for realm, keys in by_realm.items()
        for key, fence in connection.execute(
            sa.select(chunks.c.chunk_key, chunks.c.fence).where(
                chunks.c.realm == realm, chunks.c.chunk_key.in_(sorted(keys))
            )
        )
    }
    held = [fences.get((request.realm, request.chunk_key)) == request.fence for request in requests]
    rows = [
        {
            "b_realm": request.realm,
            "b_batch": request.batch_id,
            "b_ordinal": outcome.ordinal,
            "outcome": outcome.outcome.value,
            "cached": outcome.cached,
            "cache_key": outcome.cache_key,
            "model": outcome.model,
            "attempt_id": outcome.attempt_id,
            "error_kind": outcome.error_kind,
            "error": outcome.error,
            "b_cost": outcome.cost_nano,
            "settled_at": now,
        }
        for request, mine in zip(requests, held, strict=True)
        if mine
        for outcome in request.outcomes
    ]
    execute_many(connection, _FINISH, rows)
    anew = [
        {
            "b_realm": request.realm,
            "b_batch": request.batch_id,
            "b_ordinal": outcome.ordinal,
            "b_now": now,
            "b_kept": orjson.dumps(dict(outcome.kept_steps)).decode(),
        }
        for request, mine in zip(requests, held, strict=True)
        if mine
        for outcome in request.outcomes
        if outcome.ask_anew
    ]
    execute_many(connection, _FORGET, anew)
    return held


FINISH_ITEMS: Operation[bool] = Operation("finish items", 50, finish_items)
"""Answers False for a request whose fence has moved on: another run owns that chunk now."""
