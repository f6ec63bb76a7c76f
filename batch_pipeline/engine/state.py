"""What the parts of one engine run share: its counts, its reasons to stop, its posted writes.

What belongs here: state and the few moves on it. What does not: planning (engine.py), calling
(calling.py), finishing (finishing.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from batch_pipeline.clock import Clock
from batch_pipeline.engine.job import Event, Job, Tally
from batch_pipeline.engine.records import ChunkState, Member
from batch_pipeline.engine.step import AnyStep
from batch_pipeline.engine.upstream import Route, Upstream
from batch_pipeline.ledger.batches import Item
from batch_pipeline.ledger.calls import Owner
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.writer import Operation


class Log(Protocol):
    """Takes the events of a run, for people and programs to read afterwards."""

    def event(self, name: str, **fields: Any) -> None:
        """Note that something happened now."""
        ...


class NoLog:
    """Forgets everything."""

    def event(self, name: str, **fields: Any) -> None:
        """Do nothing."""


def _nothing() -> None:
    """Nobody waits."""


class RunState:
    """One run, as its parts see it.

    Args:
        ledger: the ledger.
        clock: time.
        job: what to do.
        emit: takes the run's events.
        log: takes what happens on the way.

    Attributes:
        tally: what the run did so far.
        total: rows of its chunks.
        chunks_done: chunks without a row left to do.
        in_flight: calls on the wire.
        wire_limit: how many may be there.
        note: what it waits for, for people.
        members: open questions by cache key.
        early: keys of those, and of rows at a local step, that have steps before them, each with
            the names of these steps.
        advanced: rows that are through a step (None: through none yet), and go on to the next one.
        on_advance: called when there is one.
        put_off: packs to be asked once more, because of an outage.
        before_send: tasks that wait and may be cancelled without losing a paid answer.
        interrupted: somebody asked it to stop.
        fatal: why nothing more can succeed.
        left_behind: how the run ends because some rows could not be asked although others could:
            status and words.
        ran_out: why what is left must wait: `budget` or `daily_limit`, and the same in words.
        broken: what went wrong with the engine or the ledger.
        opening: ends when the gates are open.
        upstreams: every endpoint that a row of the run may ask.
        under_way: rows that are left to provider jobs.
        waiting: rows that wait for room there.
        on_capacity: called when more calls may be in flight.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        job: Job,
        emit: Callable[[Event], None],
        log: Log | None,
    ) -> None:
        self.ledger = ledger
        self.writer = ledger.writer
        self.clock = clock
        self.job = job
        self.emit = emit
        self.log: Log = log or NoLog()
        self.owner = Owner.here(job.run_id)
        self.tally = Tally()
        self.total = 0
        self.chunks_done = 0
        self.in_flight = 0
        self.wire_limit = job.settings.workers
        self.note = ""
        self.members: dict[str, Member] = {}
        self.early: dict[str, frozenset[str]] = {}
        self.advanced: list[tuple[ChunkState, Item, Route, AnyStep | None]] = []
        self.on_advance: Callable[[], None] = _nothing
        self.put_off: list[list[Member]] = []
        self.before_send: set[asyncio.Task[Any]] = set()
        self.interrupted = False
        self.fatal = ""
        self.left_behind: tuple[str, str] | None = None
        self.ran_out: tuple[str, str] | None = None
        self.broken: BaseException | None = None
        self.opening: asyncio.Task[None] | None = None
        self.upstreams: list[Upstream] = []
        self.under_way = 0
        self.waiting = 0
        self.on_capacity: Callable[[], None] = _nothing
        self.commits: set[asyncio.Future[Any]] = set()

    @property
    def stopping(self) -> bool:
        """Whether nothing more is to be admitted."""
        return (
            self.interrupted
            or bool(self.fatal)
            or self.ran_out is not None
            or self.broken is not None
        )

    @property
    def stopped_short(self) -> bool:
        """Whether even what is admitted should not be sent any more."""
        return self.interrupted or bool(self.fatal) or self.broken is not None

    def stop(self) -> None:
        """Somebody asks to stop: nothing more is admitted, calls in flight come back."""
        if not self.interrupted:
            self.interrupted = True
            self.note = "stopping: waiting for calls in flight"
            self._cancel_waiting()

    def stop_for_good(self, message: str) -> None:
        """Every further row would fail the same way: stop at once, leave them pending."""
        if not self.fatal:
            self.fatal = message
            self.log.event("stopped", message=message)
            self._cancel_waiting()

    def run_out(self, status: str, message: str) -> None:
        """What is left must wait for more money or another day."""
        if self.ran_out is None:
            self.ran_out = (status, message)
            self.log.event(f"{status} reached", message=message)
            self._cancel_waiting()

    def break_off(self, error: BaseException) -> None:
        """The ledger or the engine itself failed: admit nothing more."""
        if self.broken is None:
            self.broken = error
            self._cancel_waiting()

    def _cancel_waiting(self) -> None:
        for task in self.before_send:
            task.cancel()

    async def wait(self, seconds: float) -> None:
        """Sleep, but not beyond a stop."""
        if self.stopping:
            # It came while the caller had a call in flight: nobody will cancel this sleep.
            return
        task = asyncio.current_task()
        assert task is not None
        self.before_send.add(task)
        try:
            await self.clock.sleep(seconds)
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            task.uncancel()
        finally:
            self.before_send.discard(task)

    def open(self, member: Member) -> None:
        """A question is being asked."""
        self.members[member.key] = member
        if not self.job.is_last(member.step):
            self.early[member.key] = frozenset()
        self.join(member, member.rows)

    def join(self, member: Member, rows: Iterable[tuple[ChunkState, Item]]) -> None:
        """Rows share a question that is open."""
        # One that was put off or left is not waited for: it is no more early.
        if member.key in self.early:
            names = self.early[member.key]
            for chunk, item in rows:
                names |= self.job.ahead(member.step, chunk.known(item))
            self.early[member.key] = names

    def at_work(self, key: str, names: frozenset[str]) -> None:
        """A row is at a local step, with these steps before it; `at_work_no_more` when it is done.

        Args:
            key: names the row and the step.
            names: of the steps before it.
        """
        self.early[key] = names

    def at_work_no_more(self, key: str) -> None:
        """It is done with its local step."""
        self._no_more_early(key)

    def close(self, key: str) -> Member | None:
        """It is not any more; None where it was not."""
        self._no_more_early(key)
        return self.members.pop(key, None)

    def leave(self, pack: Iterable[Member]) -> None:
        """Questions of a pack are not asked any more for now: nothing waits for them."""
        for member in pack:
            self._no_more_early(member.key)

    def _no_more_early(self, key: str) -> None:
        if self.early.pop(key, None) is not None:
            self.on_advance()

    def post(
        self, operation: Operation[Any], parameters: Any, then: Callable[[Any], None] | None = None
    ) -> None:
        """Queue a write; `then` gets its answer once committed, and a failure stops the run."""
        future = self.writer.post(operation, parameters)
        self.commits.add(future)

        def done(_: asyncio.Future[Any]) -> None:
            self.commits.discard(future)
            if future.cancelled():
                return
            error = future.exception()
            if error is not None:
                self.break_off(error)
            elif then is not None:
                then(future.result())

        future.add_done_callback(done)

    async def commit_all(self) -> None:
        """Wait until every posted write, and what follows from it, is committed."""
        while self.commits:
            await asyncio.wait(self.commits)
            await asyncio.sleep(0)
