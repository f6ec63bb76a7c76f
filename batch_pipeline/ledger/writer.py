"""The one writer of a process: many small writes, few commits.

What belongs here: the queue, the group commit and its failure handling. What does not: what a
write means; each operation is a function of (connection, parameters) given by its room.

Throughput comes from grouping: everything queued while the last commit ran goes into the next
transaction, and operations of one kind become one executemany.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from batch_pipeline.ledger.trouble import as_ledger_error, is_clash, is_gone

T = TypeVar("T")

_MAX_GROUP = 2_000

_PATIENCE_S = 0.01
_LINGER_S = 0.001
_BUSY_S = 0.02
_MAX_HELD = 500

_MAX_CLASHES = 5

OUTAGE_S = 10.0
"""How long a server that does not answer is waited for; leases outlast it (OWNER_LEASE_S)."""

_RECONNECT_S = 0.1
_MAX_RECONNECT_S = 1.0


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a transaction begins with.

    Attributes:
        now: its time, in UTC seconds.
        transaction_id: PostgreSQL's name for it, by which its end can be asked for later.
    """

    now: float
    transaction_id: str | None = None


@dataclass(frozen=True)
class Operation(Generic[T]):
    """A kind of write that can be grouped.

    Attributes:
        name: for messages.
        order: operations of lower order run first within one transaction.
        apply: writes all `parameters` of the group through `connection` at time `now` and returns
            one result for each.
        patient: nobody waits for it, so it may be held for 10 ms to make groups larger.
        overtakes: a call waits for it, and it depends on nothing that patient operations write, so
            it does not wait for them. Every other operation sees all that was queued before it.
    """

    name: str
    order: int
    apply: Callable[[sa.Connection, float, Sequence[Any]], Sequence[T]]
    patient: bool = False
    overtakes: bool = False


@dataclass(slots=True)
class _Job:
    operation: Operation[Any]
    parameters: Any
    future: Future[Any] | None
    waiter: asyncio.Future[Any] | None
    loop: asyncio.AbstractEventLoop | None


class Writer:
    """Runs operations on a thread of its own, grouped into transactions.

    A transaction that clashed with another, or whose connection broke, is tried again for a while;
    one whose commit was not answered is looked up first, so that nothing is written twice. When
    that does not help, everything queued fails with a LedgerError.

    Args:
        engine: engine whose transactions take the write lock when they begin.
        stamp: called first in each transaction.
    """

    def __init__(self, engine: sa.Engine, stamp: Callable[[sa.Connection], Stamp]) -> None:
        self._engine = engine
        self._stamp = stamp
        self._connection: sa.Connection | None = None
        # The transaction whose commit was asked for and not answered, and what it answers.
        self._unsure: tuple[str | None, list[Any]] | None = None
        self._outage_s = OUTAGE_S
        self._queue: deque[_Job | None] = deque()
        self._wake = threading.Event()
        # While nothing is held, the first patient write must wake the thread as well.
        self._resting = True
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()
        self._closed = False

    def submit(self, operation: Operation[T], parameters: Any) -> Future[T]:
        """Queue a write from any thread.

        The future ends once it is committed, or with the error that stopped it.
        """
        future: Future[T] = Future()
        self._put(_Job(operation, parameters, future, None, None))
        return future

    def post(self, operation: Operation[T], parameters: Any) -> asyncio.Future[T]:
        """Queue a write from a running event loop.

        Cheaper than `submit`, because a group wakes the loop once.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[T] = loop.create_future()
        self._put(_Job(operation, parameters, None, waiter, loop))
        return waiter

    def _put(self, job: _Job) -> None:
        self._queue.append(job)
        # Waking the thread for each patient write would cost more than the write.
        if self._resting or not job.operation.patient:
            self._wake.set()

    def close(self) -> None:
        """Commit what is queued and stop the thread."""
        if not self._closed:
            self._closed = True
            self._queue.append(None)
            self._wake.set()
            self._thread.join()

    def _run(self) -> None:
        held: list[_Job] = []
        due = 0.0
        committed_at = 0.0
        closing = False
        while not closing:
            self._resting = not held
            if held or not self._queue:
                self._wake.wait(max(0.0, due - time.monotonic()) if held else None)
            self._resting = False
            self._wake.clear()
            if time.monotonic() - committed_at < _BUSY_S:
                # Others are on their way: a moment's patience halves the number of commits.
                time.sleep(_LINGER_S)
            taken, closing = self._take()
            group = [job for job in taken if not job.operation.patient]
            if len(group) < len(taken):
                if not held:
                    due = time.monotonic() + _PATIENCE_S
                held += [job for job in taken if job.operation.patient]
            if (
                closing
                or len(held) >= _MAX_HELD
                or time.monotonic() >= due
                or not all(job.operation.overtakes for job in group)
            ):
                group, held = held + group, []
            if group:
                self._commit(group)
                committed_at = time.monotonic()
        self._disconnect()

    def _take(self) -> tuple[list[_Job], bool]:
        """What is queued, and whether the writer closes."""
        taken: list[_Job] = []
        while self._queue and len(taken) < _MAX_GROUP:
            job = self._queue.popleft()
            if job is None:
                return taken, True
            taken.append(job)
        return taken, False

    def _commit(self, group: list[_Job]) -> None:
        try:
            outcome = self._persist(group)
        except BaseException as error:
            trouble = as_ledger_error(error, "written")
            if trouble is not None:
                trouble.__cause__ = error
            if trouble is not None or len(group) == 1:
                _deliver(group, [(None, trouble or error)] * len(group))
                return
            # One bad operation must not take the others with it: each gets its own transaction.
            for job in group:
                self._commit([job])
            return
        _deliver(group, [(value, None) for value in outcome])

    def _persist(self, group: list[_Job]) -> list[Any]:
        """Write the group in one transaction, however often that must be tried."""
        clashes = 0
        wait_s = _RECONNECT_S
        give_up_at = None
        while True:
            try:
                if self._connection is None:
                    self._connection = self._engine.connect()
                values = self._finished(self._connection)
                if values is None:
                    values = self._transact(self._connection, group)
                self._outage_s = OUTAGE_S
                return values
            except BaseException as error:
                if is_clash(error) and clashes < _MAX_CLASHES:
                    clashes += 1
                    time.sleep(random.random() * 0.05 * clashes)
                    continue
                if is_gone(error):
                    self._disconnect()
                    if give_up_at is None:
                        give_up_at = time.monotonic() + self._outage_s
                    if time.monotonic() + wait_s < give_up_at:
                        time.sleep(wait_s)
                        wait_s = min(2 * wait_s, _MAX_RECONNECT_S)
                        continue
                    # Whoever comes next need not wait as long again to hear the same.
                    self._outage_s = 0.0
                self._unsure = None
                raise

    def _finished(self, connection: sa.Connection) -> list[Any] | None:
        """The answers of a transaction whose commit was not answered, if it was committed."""
        if self._unsure is None:
            return None
        transaction_id, values = self._unsure
        with connection.begin():
            # Under the write lock: whoever held it before has ended, one way or the other.
            status = connection.execute(_TRANSACTION_STATUS, {"id": transaction_id}).scalar()
        self._unsure = None
        return values if status == "committed" else None

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sa.exc.DBAPIError:
                # It was broken; the pool has dropped it.
                return

    def _transact(self, connection: sa.Connection, group: list[_Job]) -> list[Any]:
        positions: dict[str, list[int]] = {}
        for index, job in enumerate(group):
            positions.setdefault(job.operation.name, []).append(index)
        kinds = sorted(positions.values(), key=lambda at: (group[at[0]].operation.order, at[0]))
        values: list[Any] = [None] * len(group)
        with connection.begin():
            stamp = self._stamp(connection)
            for at in kinds:
                operation = group[at[0]].operation
                given = [group[index].parameters for index in at]
                done = operation.apply(connection, stamp.now, given)
                for index, value in zip(at, done, strict=True):
                    values[index] = value
            self._unsure = stamp.transaction_id, values
        self._unsure = None
        return values


_TRANSACTION_STATUS = sa.text("SELECT pg_xact_status(CAST(:id AS xid8))")


def _deliver(group: list[_Job], outcome: Sequence[tuple[Any, BaseException | None]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any, Any]]] = {}
    for job, (value, error) in zip(group, outcome, strict=True):
        if job.waiter is not None and job.loop is not None:
            by_loop.setdefault(job.loop, []).append((job.waiter, value, error))
        elif job.future is not None:
            if error is not None:
                job.future.set_exception(error)
            else:
                job.future.set_result(value)
    for loop, waiters in by_loop.items():
        try:
            loop.call_soon_threadsafe(_wake, waiters)
        except RuntimeError:
            # The loop has closed: nobody waits any more, and the write is committed all the same.
            continue


def _wake(waiters: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for waiter, value, error in waiters:
        if waiter.done():
            continue
        if error is not None:
            waiter.set_exception(error)
        else:
            waiter.set_result(value)
