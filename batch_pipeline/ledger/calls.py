"""Owners, claims, attempts, replies and results: everything around one paid call.

What belongs here: statements on those tables. What does not: batches and items (batches.py), the
limiter's (limits/).

Order within one transaction: attempts are written before they are settled, results before the
claims on them go.
"""

from __future__ import annotations

import os
import socket
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.ledger.batches import FinishItems, finish_items
from batch_pipeline.ledger.spend import (
    Account,
    Balance,
    Budget,
    Changes,
    Short,
    accounts_of,
    find_short,
    read_balances,
)
from batch_pipeline.ledger.store import execute_many, upsert
from batch_pipeline.ledger.tables import (
    AttemptState,
    Outcome,
    attempts,
    claims,
    gates,
    items,
    limit_rates,
    owners,
    pauses,
    replies,
    results,
    runs,
)
from batch_pipeline.ledger.writer import Operation

OWNER_LEASE_S = 20.0
"""An owner whose heartbeat is older than this has lost its leases."""

REAP_GRACE_S = 10.0
"""An attempt counts as lost only this long after its own deadline, and after its owner's
lease."""


def this_host() -> str:
    """Host name and boot id: a pid means something only within one boot of one host."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    suffix = boot.read_text().strip()[:8] if boot.is_file() else ""
    return f"{socket.gethostname()}/{suffix}"


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that holds leases and claims while its heartbeat goes on."""

    owner_id: str
    host: str
    pid: int
    run_id: str

    @classmethod
    def here(cls, run_id: str) -> Owner:
        """A new owner for this process."""
        return cls(uuid.uuid4().hex[:20], this_host(), os.getpid(), run_id)


def _beat(connection: sa.Connection, now: float, requests: Sequence[Owner]) -> list[bool]:
    answers = []
    for owner in requests:
        expires_at = connection.execute(
            sa.select(owners.c.lease_expires_at).where(owners.c.owner_id == owner.owner_id)
        ).scalar()
        held = expires_at is None or expires_at > now
        answers.append(held)
        if not held:
            continue
        connection.execute(
            upsert(connection.dialect.name, owners, ["owner_id"], update=["lease_expires_at"]),
            {
                "owner_id": owner.owner_id,
                "host": owner.host,
                "pid": owner.pid,
                "run_id": owner.run_id,
                "started_at": now,
                "lease_expires_at": now + OWNER_LEASE_S,
            },
        )
    return answers


HEARTBEAT: Operation[bool] = Operation("heartbeat", 0, _beat)
"""Register an owner, or renew its lease; False when the lease has run out and is not renewed."""


def retire_owners(connection: sa.Connection, now: float, requests: Sequence[str]) -> list[None]:
    """End owners: their claims and leases are free at once."""
    for owner_id in requests:
        connection.execute(claims.delete().where(claims.c.owner_id == owner_id))
        connection.execute(limit_rates.delete().where(limit_rates.c.owner_id == owner_id))
        connection.execute(gates.delete().where(gates.c.owner_id == owner_id))
        connection.execute(
            owners.update().where(owners.c.owner_id == owner_id).values(lease_expires_at=now)
        )
    return [None] * len(requests)


RETIRE: Operation[None] = Operation("retire owner", 99, retire_owners)
"""End an owner: its claims and leases are free at once."""


def _bury(connection: sa.Connection, now: float, requests: Sequence[str]) -> list[int]:
    """Retire this host's owners whose process is gone; mark attempts lost that cannot settle."""
    answers = []
    for host in requests:
        live = connection.execute(
            sa.select(owners.c.owner_id, owners.c.pid).where(
                owners.c.host == host, owners.c.lease_expires_at > now
            )
        ).all()
        dead = [owner_id for owner_id, pid in live if not process_lives(pid)]
        retire_owners(connection, now, dead)
        live_owners = sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > now)
        connection.execute(claims.delete().where(claims.c.owner_id.not_in(live_owners)))
        connection.execute(limit_rates.delete().where(limit_rates.c.owner_id.not_in(live_owners)))
        connection.execute(gates.delete().where(gates.c.owner_id.not_in(live_owners)))
        connection.execute(
            runs.update()
            .where(runs.c.status == "running", runs.c.owner_id.not_in(live_owners))
            .values(status="crashed", ended_at=now, message="The process that ran it is gone.")
        )
        answers.append(_lose(connection, now, live_owners))
    return answers


def _lose(connection: sa.Connection, now: float, live_owners: Any) -> int:
    """Mark attempts lost whose owner is gone and whose reply can no longer come."""
    gone = connection.execute(
        sa.select(*_MONEY_COLUMNS)
        .where(
            attempts.c.state == AttemptState.SENT.value,
            attempts.c.owner_id.not_in(live_owners),
            attempts.c.deadline_at + REAP_GRACE_S < now,
        )
        .order_by(attempts.c.attempt_id)
    ).all()
    changes = Changes()
    for row in gone:
        changes.change_state(
            _accounts(row), AttemptState.SENT, row.worst_nano, AttemptState.LOST, row.worst_nano
        )
    execute_many(connection, _LOSE, [{"b_attempt": row.attempt_id} for row in gone])
    changes.write(connection)
    return len(gone)


_MONEY_COLUMNS = (
    attempts.c.attempt_id,
    attempts.c.state,
    attempts.c.worst_nano,
    attempts.c.cost_nano,
    attempts.c.realm,
    attempts.c.batch_id,
    attempts.c.workload,
    attempts.c.workload_day,
    attempts.c.provider,
    attempts.c.provider_day,
)
_LOSE = (
    attempts.update()
    .where(
        attempts.c.attempt_id == sa.bindparam("b_attempt"),
        attempts.c.state == AttemptState.SENT.value,
    )
    .values(state=AttemptState.LOST.value, cost_nano=attempts.c.worst_nano)
)


def _accounts(row: Any) -> tuple[Account, Account, Account]:
    """The accounts of an attempt, or of one about to be written."""
    return accounts_of(
        row.realm, row.batch_id, row.workload, row.workload_day, row.provider, row.provider_day
    )


BURY_DEAD: Operation[int] = Operation("bury dead owners", 1, _bury)
"""Answers how many attempts were marked lost.

Parameter: `this_host()`.
"""


def process_lives(pid: int) -> bool:
    """Whether a process of this host exists; its pid means something only within one boot."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A finished answer for one item."""

    cache_key: str
    model: str
    output: dict[str, Any]
    attempt_id: str
    created_at: float
    step: str = ""


_PAGE = 500

_COMPRESS_ABOVE = 4_096
"""Bytes; a body of 3 KB takes 0.04 ms to compress, a tenth of all a call costs us."""


def find_results(
    connection: sa.Connection,
    realm: str,
    keys: Sequence[str],
    models: Sequence[str],
    fresh_after: Mapping[str, float] | None = None,
) -> dict[str, StoredResult]:
    """Stored results by cache key; where several of `models` answered, the first of them wins.

    Args:
        connection: reads.
        realm: whose.
        keys: cache keys.
        models: whose answers count.
        fresh_after: by cache key, the time from which on answers count; others are passed over, so
            that a model's old one does not hide what another has answered since. None: any age.
    """
    rank = {model: place for place, model in enumerate(models)}
    since = fresh_after or {}
    found: dict[str, StoredResult] = {}
    columns = (
        results.c.cache_key,
        results.c.model,
        results.c.output,
        results.c.attempt_id,
        results.c.created_at,
        results.c.step,
    )
    for page in _pages(keys):
        statement = sa.select(*columns).where(
            results.c.realm == realm, results.c.cache_key.in_(page), results.c.model.in_(models)
        )
        for key, model, output, attempt_id, created_at, step in connection.execute(statement):
            known = found.get(key)
            if created_at < since.get(key, 0.0):
                continue
            if known is None or rank[model] < rank[known.model]:
                output = orjson.loads(output)
                found[key] = StoredResult(key, model, output, attempt_id, created_at, step)
    return found


@dataclass(frozen=True, slots=True)
class ClaimKeys:
    """An owner wants to be the one that asks about these keys, unless they are answered by now.

    `fresh_after`: see `find_results`.
    """

    realm: str
    owner_id: str
    lane: str
    keys: Sequence[str]
    models: Sequence[str]
    fresh_after: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to ClaimKeys: keys in neither set are claimed by another live owner.

    Attributes:
        mine: keys that this owner now holds.
        results: answers that were stored since the caller looked; the key may be in `mine` as well.
        enqueued: keys that lines of provider jobs ask about: their answers may take a day.
    """

    mine: frozenset[str]
    results: dict[str, StoredResult]
    enqueued: frozenset[str] = frozenset()


def _claim(connection: sa.Connection, now: float, requests: Sequence[ClaimKeys]) -> list[Claimed]:
    live_owners = sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > now)
    take = upsert(
        connection.dialect.name,
        claims,
        ["realm", "cache_key"],
        update=["owner_id", "lane", "taken_at"],
        where=claims.c.owner_id.not_in(live_owners),
    )
    answers = []
    for request in requests:
        keys = sorted(request.keys)
        connection.execute(
            take,
            [
                {
                    "realm": request.realm,
                    "cache_key": key,
                    "owner_id": request.owner_id,
                    "lane": request.lane,
                    "taken_at": now,
                }
                for key in keys
            ],
        )
        mine: set[str] = set()
        enqueued: set[str] = set()
        for page in _pages(keys):
            held = connection.execute(
                sa.select(claims.c.cache_key, claims.c.owner_id, claims.c.lane).where(
                    claims.c.realm == request.realm, claims.c.cache_key.in_(page)
                )
            )
            for key, owner_id, lane in held:
                if owner_id == request.owner_id:
                    mine.add(key)
                elif lane == "batch":
                    enqueued.add(key)
        stored = find_results(connection, request.realm, keys, request.models, request.fresh_after)
        answers.append(Claimed(frozenset(mine), stored, frozenset(enqueued)))
    return answers


CLAIM: Operation[Claimed] = Operation("claim", 62, _claim)


def claimed_keys(connection: sa.Connection, realm: str, keys: Sequence[str]) -> set[str]:
    """Those of `keys` that somebody asks about now."""
    found: set[str] = set()
    for page in _pages(keys):
        found.update(
            connection.execute(
                sa.select(claims.c.cache_key).where(
                    claims.c.realm == realm, claims.c.cache_key.in_(page)
                )
            ).scalars()
        )
    return found


@dataclass(frozen=True, slots=True)
class ReleaseKeys:
    """An owner gives up claims without a result."""

    realm: str
    owner_id: str
    keys: Sequence[str]


_RELEASE = claims.delete().where(
    claims.c.realm == sa.bindparam("b_realm"),
    claims.c.cache_key == sa.bindparam("b_key"),
    claims.c.owner_id == sa.bindparam("b_owner"),
)


def _release(connection: sa.Connection, now: float, requests: Sequence[ReleaseKeys]) -> list[None]:
    rows = [
        {"b_realm": request.realm, "b_key": key, "b_owner": request.owner_id}
        for request in requests
        for key in request.keys
    ]
    execute_many(connection, _RELEASE, rows)
    return [None] * len(requests)


RELEASE: Operation[None] = Operation("release claims", 45, _release)


@dataclass(frozen=True, slots=True)
class PauseKey:
    """What one pause stops: every call with this key to this model."""

    realm: str
    provider: str
    model: str
    key_id: str


@dataclass(frozen=True, slots=True)
class PauseState:
    """Until when nobody may call (UTC seconds)."""

    paused_until: float = 0.0


_PAUSE_STATE = sa.select(pauses.c.paused_until).where(
    pauses.c.realm == sa.bindparam("realm"),
    pauses.c.provider == sa.bindparam("provider"),
    pauses.c.model == sa.bindparam("model"),
    pauses.c.key_id == sa.bindparam("key_id"),
)


def _pause_states(
    connection: sa.Connection, keys: Iterable[PauseKey]
) -> dict[PauseKey, PauseState]:
    states = {}
    for key in keys:
        row = connection.execute(
            _PAUSE_STATE,
            {
                "realm": key.realm,
                "provider": key.provider,
                "model": key.model,
                "key_id": key.key_id,
            },
        ).first()
        states[key] = PauseState() if row is None else PauseState(row.paused_until)
    return states


@dataclass(frozen=True, slots=True)
class Pause:
    """A provider asked everyone to wait: no call of `key` before `until`."""

    key: PauseKey
    until: float
    reason: str


def _pause(connection: sa.Connection, now: float, requests: Sequence[Pause]) -> list[PauseState]:
    answers = []
    for request in requests:
        key = request.key
        state = _pause_states(connection, [key])[key]
        # Only a later end is news: a hundred 429s of one moment are one pause.
        if request.until > state.paused_until:
            state = PauseState(request.until)
            connection.execute(
                upsert(
                    connection.dialect.name,
                    pauses,
                    ["realm", "provider", "model", "key_id"],
                    update=["paused_until", "reason"],
                ),
                {
                    "realm": key.realm,
                    "provider": key.provider,
                    "model": key.model,
                    "key_id": key.key_id,
                    "paused_until": state.paused_until,
                    "reason": request.reason,
                },
            )
        answers.append(state)
    return answers


PAUSE: Operation[PauseState] = Operation("pause", 5, _pause)


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """An attempt about to be sent; field names are columns of `attempts`, but for two.

    Attributes:
        timeout_s: seconds until its deadline.
        budgets: what it must fit into.
    """

    attempt_id: str
    realm: str
    workload: str
    step: str
    batch_id: str
    run_id: str
    request_id: str
    parent_request_id: str | None
    reason: str
    provider: str
    model: str
    key_id: str
    lane: str
    owner_id: str
    item_count: int
    members: str
    estimated_input_tokens: int
    worst_nano: int
    rate_wait_s: float
    workload_day: str
    provider_day: str
    timeout_s: float
    budgets: tuple[Budget, ...] = ()
    job_id: str | None = None


_ATTEMPT_FIELDS = [name for name in NewAttempt.__slots__ if name not in ("timeout_s", "budgets")]


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether an attempt may be sent now.

    Attributes:
        admitted: it may, and is written as sent.
        pause: until when nobody may.
        short: the budget that it does not fit into.
    """

    admitted: bool
    pause: PauseState
    short: Short | None = None


_INSERT_ATTEMPT = attempts.insert()


def _admit(
    connection: sa.Connection, now: float, requests: Sequence[NewAttempt]
) -> list[Admission]:
    keys = [
        PauseKey(request.realm, request.provider, request.model, request.key_id)
        for request in requests
    ]
    states = _pause_states(connection, set(keys))
    sheet = _Sheet(connection, requests)
    answers = []
    for request, key in zip(requests, keys, strict=True):
        state = states[key]
        if state.paused_until > now:
            answers.append(Admission(False, state))
            continue
        short = sheet.enter(now, request)
        answers.append(Admission(short is None, state, short))
    sheet.write()
    return answers


class _Sheet:
    """Attempts that one transaction writes ahead, each within its budgets."""

    def __init__(self, connection: sa.Connection, requests: Sequence[NewAttempt]) -> None:
        self._connection = connection
        budgeted = [budget.account for request in requests for budget in request.budgets]
        self._balances = read_balances(connection, budgeted) if budgeted else {}
        self._changes = Changes()
        self._rows: list[dict[str, Any]] = []

    def enter(self, now: float, request: NewAttempt) -> Short | None:
        """Note an attempt as sent; the budget that it does not fit into, where it does not."""
        worst, balances = request.worst_nano, self._balances
        short = find_short(self._connection, now, request.budgets, balances, worst, self._changes)
        if short is not None:
            return short
        accounts = _accounts(request)
        self._changes.change_state(accounts, None, 0, AttemptState.SENT, worst)
        for account in accounts:
            if account in balances:
                held = balances[account]
                balances[account] = Balance(held.settled, held.lost, held.reserved + worst)
        row = {name: getattr(request, name) for name in _ATTEMPT_FIELDS}
        row["state"] = AttemptState.SENT.value
        row["sent_at"] = now
        row["deadline_at"] = now + request.timeout_s
        self._rows.append(row)
        return None

    def write(self) -> None:
        """Write what was noted."""
        execute_many(self._connection, _INSERT_ATTEMPT, self._rows)
        self._changes.write(self._connection)


def admit_lines(
    connection: sa.Connection, now: float, job_id: str, lines: Sequence[NewAttempt]
) -> Short | None:
    """Write the lines of a provider job ahead, all or none.

    Returns:
        The budget that they do not fit into together; None when they are written.
    """
    sheet = _Sheet(connection, lines)
    for line in lines:
        short = sheet.enter(now, replace(line, job_id=job_id))
        if short is not None:
            return short
    sheet.write()
    return None


ADMIT: Operation[Admission] = Operation("admit", 10, _admit, overtakes=True)
"""Write an attempt ahead of its call.

It counts as sent from here on, and its worst case as reserved: after a crash nobody can tell that
it was not.
"""


@dataclass(frozen=True, slots=True)
class StoreResults:
    """Answers derived from one settled attempt; the claims on them are released with it.

    Attributes:
        complete: whether every item of the attempt has an answer here: nothing is left to derive.
        created_at: when they were paid, for answers derived late; None is now.
    """

    realm: str
    workload: str
    step: str
    model: str
    attempt_id: str
    owner_id: str
    outputs: Sequence[tuple[str, dict[str, Any]]]
    complete: bool = True
    created_at: float | None = None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A row that an attempt has not brought to its end, and what the attempt cost it.

    Attributes:
        ordinal: the row.
        kind: what was wrong with a line of a provider job that gave a pending row no answer, as in
            `items.error_kind`; counts as a try unless it is empty.
        error: the same in words; empty where nothing was wrong.
        cost_nano: what the ask cost the row.
    """

    realm: str
    batch_id: str
    ordinal: int
    kind: str
    error: str
    cost_nano: int = 0


_NAMED = sa.and_(
    items.c.realm == sa.bindparam("b_realm"),
    items.c.batch_id == sa.bindparam("b_batch"),
    items.c.ordinal == sa.bindparam("b_ordinal"),
)
_UNANSWERED = (
    items.update()
    .where(_NAMED, items.c.outcome == Outcome.PENDING.value)
    .values(
        lane_tries=items.c.lane_tries + sa.bindparam("b_try"),
        error_kind=sa.bindparam("error_kind"),
        error=sa.bindparam("error"),
    )
)
# Whatever the row is: one that is tried again counts as failed until it has ended anew.
_COST = items.update().where(_NAMED).values(cost_nano=items.c.cost_nano + sa.bindparam("b_cost"))


@dataclass(frozen=True, slots=True)
class Settlement:
    """What came of an attempt, and everything that follows from it, for one transaction.

    An attempt already marked lost is settled all the same (late settlement).

    Attributes:
        attempt_id: the attempt.
        state: `settled`, or `lost` when the provider may have billed a call whose reply never came.
        cost_nano: nano-USD; for `lost` the worst case.
        derived: whether nothing (more) can be derived from the reply.
        request: the raw request body, or None where nothing was sent.
        reply: the raw reply body, or None where none came.
        results: answers derived from the reply, or None.
        finished: items that end with it.
        unanswered: rows that it has not brought to their end.
    """

    attempt_id: str
    state: AttemptState
    cost_nano: int
    status: int = 0
    error_kind: str | None = None
    error: str | None = None
    answered_model: str | None = None
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    latency_s: float | None = None
    derived: bool = True
    request: bytes | None = None
    reply: bytes | None = None
    results: StoreResults | None = None
    finished: Sequence[FinishItems] = ()
    unanswered: Sequence[Unanswered] = ()


_SETTLE_FIELDS = (
    "cost_nano",
    "status",
    "error_kind",
    "error",
    "answered_model",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "thinking_tokens",
    "latency_s",
    "derived",
)
_SETTLE = (
    attempts.update()
    .where(
        attempts.c.attempt_id == sa.bindparam("b_attempt"),
        attempts.c.state != AttemptState.SETTLED.value,
        attempts.c.state != AttemptState.REFUNDED.value,
    )
    .values(
        state=sa.bindparam("b_state"),
        settled_at=sa.bindparam("settled_at"),
        **{name: sa.bindparam(name) for name in _SETTLE_FIELDS},
    )
)


@lru_cache
def _insert_reply(dialect: str) -> Any:
    # A late settlement brings the reply of an attempt that was given up; a reply never changes.
    return upsert(
        dialect, replies, ["attempt_id"], update=["reply"], where=replies.c.reply.is_(None)
    )


def _settle(
    connection: sa.Connection, now: float, requests: Sequence[Settlement]
) -> list[list[bool]]:
    rows = []
    bodies = []
    stored = []
    finished: list[FinishItems] = []
    fresh = _settle_spend(connection, requests)
    _note_unanswered(
        connection,
        [row for one in requests if one.attempt_id in fresh for row in one.unanswered],
    )
    for request in requests:
        row = {name: getattr(request, name) for name in _SETTLE_FIELDS}
        row["b_attempt"] = request.attempt_id
        row["b_state"] = request.state.value
        row["settled_at"] = now
        rows.append(row)
        if request.request is not None:
            bodies.append(
                {
                    "attempt_id": request.attempt_id,
                    "request": pack_bytes(request.request),
                    "reply": None if request.reply is None else pack_bytes(request.reply),
                }
            )
        if request.results is not None:
            stored.append(request.results)
        finished.extend(request.finished)
    execute_many(connection, _SETTLE, rows)
    execute_many(connection, _insert_reply(connection.dialect.name), bodies)
    _write_results(connection, now, stored)
    held = iter(finish_items(connection, now, finished) if finished else [])
    return [[next(held) for _ in request.finished] for request in requests]


def _note_unanswered(connection: sa.Connection, rows: Sequence[Unanswered]) -> None:
    def named(row: Unanswered) -> dict[str, Any]:
        return {"b_realm": row.realm, "b_batch": row.batch_id, "b_ordinal": row.ordinal}

    execute_many(
        connection,
        _UNANSWERED,
        [
            {
                **named(row),
                "b_try": int(bool(row.kind)),
                "error_kind": row.kind or None,
                "error": row.error or None,
            }
            for row in rows
            if row.kind or row.error
        ],
    )
    execute_many(
        connection,
        _COST,
        [{**named(row), "b_cost": row.cost_nano} for row in rows if row.cost_nano],
    )


def _settle_spend(connection: sa.Connection, requests: Sequence[Settlement]) -> set[str]:
    """Move each attempt's worst case to its real cost, once; gives those that were moved."""
    changes = Changes()
    fresh: set[str] = set()
    counted: dict[str, tuple[Any, AttemptState, int]] = {}
    for page in _pages(sorted({request.attempt_id for request in requests})):
        statement = (
            sa.select(*_MONEY_COLUMNS)
            .where(attempts.c.attempt_id.in_(page))
            .order_by(attempts.c.attempt_id)
        )
        for row in connection.execute(statement):
            state = AttemptState(row.state)
            nano = row.worst_nano if state is AttemptState.SENT else row.cost_nano
            counted[row.attempt_id] = (row, state, nano)
    for request in requests:
        known = counted.get(request.attempt_id)
        if known is None or known[1] in (AttemptState.SETTLED, AttemptState.REFUNDED):
            continue
        row, state, nano = known
        fresh.add(request.attempt_id)
        changes.change_state(_accounts(row), state, nano, request.state, request.cost_nano)
        counted[request.attempt_id] = (row, request.state, request.cost_nano)
    changes.write(connection)
    return fresh


SETTLE: Operation[list[bool]] = Operation("settle", 20, _settle, patient=True)
"""Answers, for each of `finished`, whether this run still held the chunk."""


@dataclass(frozen=True, slots=True)
class Reconcile:
    """What a lost attempt really cost, by the provider's records or by hand."""

    attempt_id: str
    cost_nano: int


_RECONCILE = (
    attempts.update()
    .where(
        attempts.c.attempt_id == sa.bindparam("b_attempt"),
        attempts.c.state == AttemptState.LOST.value,
    )
    .values(
        state=AttemptState.SETTLED.value,
        cost_nano=sa.bindparam("b_cost"),
        reconciled_at=sa.bindparam("b_now"),
    )
)


def _reconcile(connection: sa.Connection, now: float, requests: Sequence[Reconcile]) -> list[bool]:
    changes = Changes()
    answers = []
    for request in requests:
        row = connection.execute(
            sa.select(*_MONEY_COLUMNS).where(
                attempts.c.attempt_id == request.attempt_id,
                attempts.c.state == AttemptState.LOST.value,
            )
        ).first()
        answers.append(row is not None)
        if row is None:
            continue
        changes.change_state(
            _accounts(row),
            AttemptState.LOST,
            row.cost_nano,
            AttemptState.SETTLED,
            request.cost_nano,
        )
        connection.execute(
            _RECONCILE,
            {"b_attempt": request.attempt_id, "b_cost": request.cost_nano, "b_now": now},
        )
    changes.write(connection)
    return answers


RECONCILE: Operation[bool] = Operation("reconcile", 25, _reconcile)
"""Replace a lost attempt's worst case by its real cost; False where it is not lost (any more)."""


_DERIVED = (
    attempts.update()
    .where(attempts.c.attempt_id == sa.bindparam("b_attempt"))
    .values(derived=sa.true())
)


@lru_cache
def _upsert_result(dialect: str) -> Any:
    return upsert(
        dialect,
        results,
        ["realm", "cache_key", "model"],
        update=["output", "attempt_id", "created_at", "workload", "step"],
        where=results.c.created_at <= sa.literal_column("excluded.created_at"),
    )


def _write_results(connection: sa.Connection, now: float, requests: Sequence[StoreResults]) -> None:
    # One row per key and model: of two answers in one group the later one stays, as in the table.
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    released = []
    for request in requests:
        for key, output in request.outputs:
            rows[request.realm, key, request.model] = {
                "realm": request.realm,
                "cache_key": key,
                "model": request.model,
                "workload": request.workload,
                "step": request.step,
                "output": orjson.dumps(output).decode(),
                "attempt_id": request.attempt_id,
                "created_at": now if request.created_at is None else request.created_at,
            }
            released.append({"b_realm": request.realm, "b_key": key, "b_owner": request.owner_id})
    execute_many(connection, _upsert_result(connection.dialect.name), list(rows.values()))
    execute_many(connection, _RELEASE, released)


def _store_late(
    connection: sa.Connection, now: float, requests: Sequence[StoreResults]
) -> list[None]:
    _write_results(connection, now, requests)
    derived = [{"b_attempt": request.attempt_id} for request in requests if request.complete]
    execute_many(connection, _DERIVED, derived)
    return [None] * len(requests)


STORE_LATE: Operation[None] = Operation("store late results", 30, _store_late)
"""Results of attempts that were settled before, by a run that died in between."""


@dataclass(frozen=True, slots=True)
class UnderivedAttempt:
    """A paid reply whose answers never reached `results`.

    A crash or a validator's bug came in between.
    """

    attempt_id: str
    workload: str
    step: str
    provider: str
    model: str
    owner_id: str
    members: list[tuple[int, str]]
    status: int
    settled_at: float
    reply: bytes


def find_underived(
    connection: sa.Connection, realm: str, workload: str, step: str, now: float
) -> list[UnderivedAttempt]:
    """Settled attempts with something left to derive whose owner is gone."""
    live_owners = sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > now)
    statement = (
        sa.select(attempts, replies.c.reply)
        .join(replies, replies.c.attempt_id == attempts.c.attempt_id)
        .where(
            attempts.c.realm == realm,
            attempts.c.workload == workload,
            attempts.c.step == step,
            attempts.c.state == AttemptState.SETTLED.value,
            attempts.c.derived.is_(sa.false()),
            attempts.c.owner_id.not_in(live_owners),
            replies.c.reply.is_not(None),
        )
        .order_by(attempts.c.sent_at)
    )
    return [
        UnderivedAttempt(
            attempt_id=row.attempt_id,
            workload=row.workload,
            step=row.step,
            provider=row.provider,
            model=row.model,
            owner_id=row.owner_id,
            members=[(int(at), str(key)) for at, key in orjson.loads(row.members)],
            status=row.status or 0,
            settled_at=row.settled_at,
            reply=unpack_bytes(row.reply),
        )
        for row in connection.execute(statement)
    ]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a batch, as `runs` keeps it."""

    run_id: str
    realm: str
    workload: str
    batch_id: str
    owner_id: str
    settings: dict[str, Any]
    status: str
    message: str = ""
    summary: dict[str, Any] | None = None


def _record(connection: sa.Connection, now: float, requests: Sequence[RunRecord]) -> list[None]:
    for request in requests:
        running = request.status == "running"
        connection.execute(
            upsert(
                connection.dialect.name,
                runs,
                ["run_id"],
                update=["status", "message", "summary"]
                + (["owner_id", "settings"] if running else ["ended_at"]),
            ),
            {
                "run_id": request.run_id,
                "realm": request.realm,
                "workload": request.workload,
                "batch_id": request.batch_id,
                "owner_id": request.owner_id,
                "settings": orjson.dumps(request.settings).decode(),
                "status": request.status,
                "message": request.message,
                "started_at": now,
                "ended_at": None if running else now,
                "summary": orjson.dumps(request.summary or {}).decode(),
            },
        )
    return [None] * len(requests)


RECORD_RUN: Operation[None] = Operation("record run", 70, _record)


def pack_bytes(body: bytes) -> bytes:
    """A stored body: compressed where that is worth its time, which for small bodies it is not."""
    return b"z" + zlib.compress(body, 1) if len(body) > _COMPRESS_ABOVE else b"r" + body


def unpack_bytes(stored: bytes) -> bytes:
    """The inverse of `pack_bytes`."""
    return zlib.decompress(stored[1:]) if stored[:1] == b"z" else stored[1:]


def _pages(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[start : start + _PAGE] for start in range(0, len(keys), _PAGE))
