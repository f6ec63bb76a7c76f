"""The one writer of a process: many small writes, few commits.

What belongs here: the queue, the group commit and its failure handling. What does not: what a
write means; each operation is a function of (connection, parameters) given by its room.

Throughput comes from grouping: everything queued while the last commit ran goes into the next
transaction, and operations of one kind become one executemany.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

T = TypeVar("T")

_MAX_GROUP = 2_000

_PATIENCE_S = 0.01
_MAX_HELD = 500


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

    Args:
        engine: engine whose transactions take the write lock when they begin.
        now: gives the time of a transaction, in UTC seconds.
    """

    def __init__(self, engine: sa.Engine, now: Callable[[sa.Connection], float]) -> None:
        self._engine = engine
        self._now = now
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()
        self._closed = False

    def submit(self, operation: Operation[T], parameters: Any) -> Future[T]:
        """Queue a write from any thread.

        The future ends once it is committed, or with the error that stopped it.
        """
        future: Future[T] = Future()
        self._queue.put(_Job(operation, parameters, future, None, None))
        return future

    def post(self, operation: Operation[T], parameters: Any) -> asyncio.Future[T]:
        """Queue a write from a running event loop.

        Cheaper than `submit`, because a group wakes the loop once.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Job(operation, parameters, None, waiter, loop))
        return waiter

    def close(self) -> None:
        """Commit what is queued and stop the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        with self._engine.connect() as connection:
            held: list[_Job] = []
            due = 0.0
            closing = False
            while not closing:
                taken, closing = self._take(max(0.0, due - time.monotonic()) if held else None)
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
                    self._commit(connection, group)

    def _take(self, timeout_s: float | None) -> tuple[list[_Job], bool]:
        """Everything that is queued, after waiting for the first; and whether the writer closes."""
        taken: list[_Job] = []
        try:
            job = self._queue.get(timeout=timeout_s)
            while job is not None:
                taken.append(job)
                if len(taken) >= _MAX_GROUP:
                    return taken, False
                job = self._queue.get_nowait()
        except queue.Empty:
            return taken, False
        return taken, True

    def _commit(self, connection: sa.Connection, group: list[_Job]) -> None:
        try:
            outcome = self._transact(connection, group)
        except BaseException as error:
            if len(group) == 1:
                _deliver(group, [(None, error)])
                return
            # One bad operation must not take the others with it: each gets its own transaction.
            for job in group:
                self._commit(connection, [job])
            return
        _deliver(group, [(value, None) for value in outcome])

    def _transact(self, connection: sa.Connection, group: list[_Job]) -> list[Any]:
        positions: dict[str, list[int]] = {}
        for index, job in enumerate(group):
            positions.setdefault(job.operation.name, []).append(index)
        kinds = sorted(positions.values(), key=lambda at: (group[at[0]].operation.order, at[0]))
        values: list[Any] = [None] * len(group)
        with connection.begin():
            now = self._now(connection)
            for at in kinds:
                operation = group[at[0]].operation
                done = operation.apply(connection, now, [group[index].parameters for index in at])
                for index, value in zip(at, done, strict=True):
                    values[index] = value
        return values


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
