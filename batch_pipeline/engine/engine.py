"""The engine: takes chunks, gives every row exactly one outcome, pays for each question once.

What belongs here: the life of a run; which rows need a call; workers. What does not: one request
(calling.py), recovery from bad answers (recovery.py), how rows end (finishing.py), SQL (ledger),
rate arithmetic (limits), wire formats (providers), threads (thread.py).

A row's way: lease its chunk -> cache -> single flight -> pack -> a worker -> calling.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from batch_pipeline.clock import Clock
from batch_pipeline.engine.answers import is_valid, read_answers
from batch_pipeline.engine.calling import Caller
from batch_pipeline.engine.finishing import ChunkHeldError, Finisher
from batch_pipeline.engine.job import Endpoint, Event, Job, Progress, RunDone
from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.lanes.batch import BatchLane
from batch_pipeline.engine.lanes.collect import Collector
from batch_pipeline.engine.lanes.desk import JobDesk
from batch_pipeline.engine.local import LocalDesk
from batch_pipeline.engine.packing import Packer
from batch_pipeline.engine.records import ChunkState, Member
from batch_pipeline.engine.recovery import Recovery
from batch_pipeline.engine.searching import Searcher
from batch_pipeline.engine.state import Log, RunState
from batch_pipeline.engine.step import AnyStep, LocalStep, Step, llm_steps
from batch_pipeline.engine.upstream import Route, Upstream
from batch_pipeline.errors import BatchPipelineError, UsageError
from batch_pipeline.ledger.batches import (
    INPUT_ERROR,
    LEASE_CHUNK,
    Chunk,
    Item,
    LeaseRequest,
    find_chunks,
    read_items,
)
from batch_pipeline.ledger.calls import (
    BURY_DEAD,
    CLAIM,
    HEARTBEAT,
    OWNER_LEASE_S,
    RECORD_RUN,
    RETIRE,
    STORE_LATE,
    ClaimKeys,
    RunRecord,
    StoredResult,
    StoreResults,
    UnderivedAttempt,
    claimed_keys,
    find_results,
    find_underived,
    this_host,
)
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.jobs import Line, lines_paid_for
from batch_pipeline.ledger.spend import Scope, Short, read_balance
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO, Outcome
from batch_pipeline.pricing.tokens import estimate_item_tokens
from batch_pipeline.providers.base import ErrorKind, WireReply
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline.providers.transport import Transport

_PARKED_POLL_S = 0.25
_ENQUEUED_POLL_S = 5.0
_HELD_POLL_S = 0.5
_MAX_OPEN_COMMITS = 2_000
_MAX_QUEUED_PACKS = 256
_REPORT_S = 2.0

_AHEAD = 0.5
"""While a call is written ahead, nothing of it is on the wire: so many more workers make good for
the time that takes."""

_UNPACED_PER_S = 100.0
_MANY = 32


class LeaseLostError(BatchPipelineError):
    """This run's own lease ran out: another run may ask the same questions, so this one stops."""


class Engine:
    """Runs one job on one event loop.

    Args:
        ledger: the ledger, bound to the run's realm.
        transport: sends the calls.
        clock: time and sleep.
        job: what to do.
        emit: called on the loop's thread with each event; the last one is RunDone.
        rng: jitter.
        log: takes what happens on the way.
    """

    def __init__(
        self,
        ledger: Ledger,
        transport: Transport,
        clock: Clock,
        job: Job,
        emit: Callable[[Event], None],
        rng: random.Random | None = None,
        log: Log | None = None,
    ) -> None:
        self._ledger = ledger
        self._writer = ledger.writer
        self._clock = clock
        self._job = job
        self._state = RunState(ledger, clock, job, emit, log)
        self._owner = self._state.owner
        self._upstreams: dict[str, Upstream] = {}
        self._route = self._route_of(job.route)
        self._finisher = Finisher(self._state)
        self._known: list[Upstream] = list(self._upstreams.values())
        self._rng = rng or random.Random()
        self._caller = Caller(self._state, transport, self._finisher, self._known, self._rng)
        self._recovery = Recovery(
            self._caller.ask,
            self._finisher.failed,
            lambda: self._state.stopping,
        )
        self._keys = {step.name: KeyMaker(step) for step in llm_steps(job.steps)}
        self._searcher = Searcher(self._state, transport, self._rng)
        self._local = LocalDesk(self._state, self._finisher, self._searcher)
        self._advanced = asyncio.Event()
        self._state.on_advance = self._advanced.set
        self._state.upstreams = self._known
        lane = job.settings.lane
        desk = JobDesk(
            ledger,
            clock,
            job.open_batch_api,
            self._owner.owner_id,
            poll_s=lane.poll_s,
            settle_s=lane.settle_s,
            log=self._state.log,
        )
        self._lane = BatchLane(
            self._state,
            desk,
            Collector(ledger, desk, llm_steps(job.steps), self._state.log),
            self._caller.build,
            self._caller.look_at_keys,
            self._went_up,
            self._finisher.wait_for_room,
        )
        self._waits = lane.wait
        self._enqueued: dict[str, Member] = {}
        self._lines: dict[str, Line] = {}
        self._collected = 0
        self._look_enqueued_at = 0.0
        self._packers: dict[tuple[str, Route], Packer[Member]] = {}
        self._packs = self._new_queue()
        self._parked: dict[str, Member] = {}
        self._later: list[Member] = []
        self._asked_rows: set[tuple[str, int]] = set()
        self._staff: set[asyncio.Task[None]] = set()
        self._state.on_capacity = self._hire

    # ---- what other threads may call ----

    def progress(self) -> Progress:
        """Where the run stands; safe to call from any thread (it may be a moment old)."""
        tally = self._state.tally
        outcomes = tally.outcomes
        return Progress(
            total=self._state.total,
            done=sum(outcomes.values()) - outcomes[Outcome.PENDING],
            cached=tally.cache_hits,
            failed=outcomes[Outcome.FAILED],
            blocked=outcomes[Outcome.BLOCKED],
            requests=tally.requests,
            attempts=tally.attempts,
            cost_usd=tally.cost_usd,
            rate_wait_s=tally.rate_wait_s,
            in_flight=self._state.in_flight,
            note=self._state.note,
        )

    def stop(self) -> None:
        """Stop admitting; calls in flight are drained and settled. Call on the loop's thread."""
        self._state.stop()

    # ---- the run ----

    async def run(self) -> RunDone:
        """Run the job to its end; emits ChunkDone events and, last, RunDone (also returned)."""
        state = self._state
        began = self._clock.now()
        heart: asyncio.Task[None] | None = None
        reporter: asyncio.Task[None] | None = None
        try:
            # Posted together: one commit.
            await asyncio.gather(
                self._writer.post(HEARTBEAT, self._owner),
                self._writer.post(BURY_DEAD, this_host()),
                self._record("running"),
            )
            state.log.event("run started", models=[one.label for one in self._route])
            heart = asyncio.create_task(self._beat())
            heart.add_done_callback(self._heart_stopped)
            # Rows are read and looked up meanwhile; only a call waits for its gate.
            state.opening = asyncio.create_task(self._open_gates())
            state.opening.add_done_callback(self._heart_stopped)
            await self._derive_what_was_paid()
            reporter = asyncio.create_task(self._report())
            reporter.add_done_callback(self._heart_stopped)
            await self._work()
        except asyncio.CancelledError:
            state.interrupted = True
        except Exception as error:
            state.broken = error
        finally:
            for task in (heart, reporter, state.opening):
                if task is not None:
                    task.cancel()
        tally = state.tally
        ended = sum(tally.outcomes.values()) - tally.outcomes[Outcome.PENDING]
        tally.outcomes[Outcome.PENDING] = max(0, state.total - ended)
        status, message = self._how_it_ended()
        done = RunDone(
            status=status,
            message=message,
            tally=tally,
            wall_s=self._clock.now() - began,
            error=state.broken,
        )
        try:
            given_up = {one.label: one.dead for one in self._known if one.dead}
            await asyncio.gather(
                self._record(
                    done.status,
                    done.message,
                    summary={
                        **_summary(done),
                        "given_up": given_up,
                        "under_way": state.under_way,
                        "waiting": state.waiting,
                        "waits_for": self._lane.full or "",
                    },
                ),
                self._writer.post(RETIRE, self._owner.owner_id),
            )
        except Exception as error:
            # The ledger is gone: its lease runs out by itself. Say so unless something else already
            # stopped the run.
            if done.error is None:
                done = RunDone("stopped", str(error), done.tally, done.wall_s, error)
        state.log.event(
            "run ended",
            status=done.status,
            message=done.message,
            duration_s=round(done.wall_s, 3),
            cost_usd=round(tally.cost_usd, 9),
            lost_usd=round(tally.lost_nano / NANO, 9),
            requests=tally.requests,
            attempts=tally.attempts,
            **{outcome.value: count for outcome, count in tally.outcomes.items() if count},
        )
        state.emit(done)
        return done

    def _how_it_ended(self) -> tuple[str, str]:
        """The run's status and what to tell of it."""
        state = self._state
        if state.broken is not None:
            return "stopped", str(state.broken)
        if state.fatal:
            return "stopped", state.fatal
        if state.interrupted:
            return "interrupted", ""
        ran_out = state.ran_out or state.left_behind
        if ran_out is not None:
            status, message = ran_out
            short = self._caller.short or self._lane.short or self._searcher.short
            return status, message or self._budget_reached(short)
        if state.under_way or state.waiting:
            return "submitted", self._still_to_come()
        return "done", ""

    def _still_to_come(self) -> str:
        """What a run says whose rows are in provider jobs."""
        state = self._state
        parts = []
        if state.under_way:
            parts.append(f"{state.under_way:,} rows are in provider jobs")
        if state.waiting:
            parts.append(f"{state.waiting:,} wait for {self._lane.waits_for}")
        return (
            f"{' and '.join(parts)}. They go on by themselves while the Dagster daemon runs; "
            "`batch-pipeline batches collect` looks now."
        )

    def _budget_reached(self, short: Short | None) -> str:
        """What a run says that ends at a budget."""
        assert short is not None
        outcomes = self._state.tally.outcomes
        done = sum(outcomes.values()) - outcomes[Outcome.PENDING]
        account, limit = short.budget.account, short.budget.limit_nano
        with self._ledger.read() as connection:
            balance = read_balance(connection, account)
        whose = {
            Scope.BATCH: "",
            Scope.WORKLOAD: f" for {account.scope_id} on {account.day}",
            Scope.PROVIDER: f" with {account.scope_id} on {account.day}",
        }[account.scope]
        places = 2 if limit >= NANO // 10 else 6
        lost = (
            f" ({balance.lost / NANO:,.{places}f} of it for calls whose reply never came, at worst "
            "case: `batch-pipeline reconcile` settles them)"
            if balance.lost
            else ""
        )
        return (
            f"budget reached: {done:,} of {self._state.total:,} rows done, "
            f"{balance.spent / NANO:,.{places}f} of {limit / NANO:,.{places}f} USD{whose}{lost}. "
            "What is done is kept; raise the budget and run again to go on."
        )

    async def _open_gates(self) -> None:
        await asyncio.gather(*(upstream.gate.open() for upstream in self._known))

    async def _work(self) -> None:
        state = self._state
        planner = self._start_planning(self._plan())
        try:
            await self._until_done(planner)
            while state.advanced and not state.stopping:
                # What an outage had put off is through a step after all.
                self._packs = self._new_queue()
                planner = self._start_planning(self._finish_planning())
                await self._until_done(planner)
        finally:
            left = (planner, *self._staff)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await self._local.close()
            await self._caller.close()
            await self._lane.close()
            await self._state.commit_all()
            for upstream in self._known:
                await upstream.gate.close()
            await self._searcher.close()
            self._raise_broken()

    def _start_planning(self, plan: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._hire()
        planner = asyncio.create_task(plan)
        self._state.before_send.add(planner)
        planner.add_done_callback(self._state.before_send.discard)
        return planner

    def _new_queue(self) -> asyncio.Queue[list[Member] | None]:
        size = min(_MAX_QUEUED_PACKS, max(2, self._job.settings.workers))
        return asyncio.Queue(maxsize=size)

    def _wanted_workers(self) -> int:
        """Workers for the calls that may be on the wire, and some to write the next ones ahead.

        Where calls are paced there is time enough to write ahead, and who is ready too early would
        only be late for its turn.
        """
        live = [one for one in self._known if not one.dead]
        limits = [one.concurrency.limit for one in live if one.concurrency is not None]
        most = self._job.settings.workers
        wire = min(most, max(limits)) if limits else most
        self._state.wire_limit = wire
        rates = [one.gate.requests_per_s for one in live]
        paced = any(rate is not None and rate < _UNPACED_PER_S for rate in rates)
        return wire if paced or wire < _MANY else wire + int(wire * _AHEAD)

    def _hire(self) -> None:
        """Start workers until there are as many as wanted; they leave by themselves."""
        while len(self._staff) < self._wanted_workers():
            worker = asyncio.create_task(self._worker())
            self._staff.add(worker)
            worker.add_done_callback(self._staff.discard)

    async def _all_left(self) -> None:
        while self._staff:
            done, _ = await asyncio.wait(self._staff, return_when=asyncio.FIRST_COMPLETED)
            for worker in done:
                worker.result()

    async def _until_done(self, planner: asyncio.Task[None]) -> None:
        state = self._state
        try:
            await planner
        except asyncio.CancelledError:
            if not state.stopping:
                raise
        except Exception as error:
            state.break_off(error)
        if state.ran_out is not None:
            await self._finish_collected()
        await self._packs.put(None)
        await self._drain(asyncio.ensure_future(self._searcher.finish()))
        await self._drain(asyncio.ensure_future(self._lane.finish()))
        everyone = asyncio.ensure_future(self._all_left())
        if await self._drain(everyone) and state.put_off and not state.stopping:
            await self._drain(asyncio.ensure_future(self._second_round()))
            await state.commit_all()

    async def _drain(self, work: asyncio.Future[Any]) -> bool:
        """Wait for calls in flight, after a stop no longer than `drain_s`: did all come back?"""
        stopped_at: float | None = None
        while True:
            await asyncio.wait([work], timeout=0.5)
            if work.done():
                work.result()
                return True
            if self._state.stopping:
                now = self._clock.now()
                stopped_at = now if stopped_at is None else stopped_at
                if now - stopped_at >= self._job.settings.drain_s:
                    self._state.note = "calls still in flight were left; they count at worst case"
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                    return False

    def _raise_broken(self) -> None:
        if self._state.broken is not None:
            raise self._state.broken

    async def _record(self, status: str, message: str = "", summary: Any = None) -> None:
        record = RunRecord(
            run_id=self._job.run_id,
            realm=self._ledger.realm,
            workload=self._job.workload,
            batch_id=self._job.batch_id,
            owner_id=self._owner.owner_id,
            settings=self._job.used,
            status=status,
            message=message,
            summary=summary,
        )
        await self._writer.post(RECORD_RUN, record)

    async def _report(self) -> None:
        """Show others how this run stands at its gates."""
        while True:
            await self._clock.sleep(_REPORT_S)
            for upstream in self._known:
                await upstream.gate.report(upstream.in_flight)

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(OWNER_LEASE_S / 4)
            if not await self._writer.post(HEARTBEAT, self._owner):
                raise LeaseLostError(
                    f"This run stood still for more than {OWNER_LEASE_S:.0f} s (a suspended "
                    "machine?), and its leases may have gone to another run.",
                    "Run again: what is finished is kept.",
                )
            await self._writer.post(BURY_DEAD, this_host())

    def _heart_stopped(self, heart: asyncio.Task[None]) -> None:
        if not heart.cancelled() and (error := heart.exception()) is not None:
            self._state.break_off(error)

    # ---- routes ----

    def _route_of(self, endpoints: Sequence[Endpoint]) -> Route:
        """The upstreams of a route, each made once for the run."""
        found = []
        for endpoint in endpoints:
            upstream = self._upstreams.get(endpoint.label)
            if upstream is None:
                upstream = Upstream(
                    endpoint,
                    self._ledger,
                    self._clock,
                    self._owner,
                    self._job.settings,
                )
                self._upstreams[endpoint.label] = upstream
            found.append(upstream)
        return tuple(found)

    async def _routes(self, state: ChunkState, items: Sequence[Item]) -> list[tuple[Item, Route]]:
        """Each row's route; a row whose own route cannot be used ends here."""
        route_of = self._job.route_of
        if route_of is None:
            return [(item, self._route) for item in items]
        found = []
        for item in items:
            try:
                asked = route_of(item.row)
            except UsageError as error:
                self._finisher.unusable(state, item, str(error))
                continue
            known = len(self._upstreams)
            route = self._route
            if asked is not None:
                route = state.routes[item.ordinal] = self._route_of(asked)
            if len(self._upstreams) > known:
                fresh = list(self._upstreams.values())[known:]
                self._known.extend(fresh)
                for upstream in fresh:
                    await upstream.gate.open()
            found.append((item, route))
        return found

    # ---- planning ----

    async def _plan(self) -> None:
        """Feed the workers: lease, look up, claim, pack."""
        with self._ledger.read() as connection:
            chunks = find_chunks(connection, self._ledger.realm, list(self._job.chunk_keys))
        self._state.total = sum(chunk.row_count for chunk in chunks)
        await self._lane.begin()
        self._lane.tend()
        for chunk in chunks:
            state = await self._lease(chunk)
            await self._load(state)
            await self._adopt_parked()
            await self._go_on()
        await self._finish_planning()

    async def _finish_planning(self) -> None:
        """Feed the workers until nothing is left that may still want a call."""
        await self._go_on()
        await self._flush()
        while self._something_to_come():
            if self._parked or self._later:
                await self._clock.sleep(_PARKED_POLL_S)
                await self._writer.post(BURY_DEAD, this_host())
            elif self._enqueued:
                await self._lane.news(_ENQUEUED_POLL_S)
            else:
                self._advanced.clear()
                if not self._state.advanced:
                    await self._advanced.wait()
            await self._adopt_parked()
            await self._go_on()
            await self._flush()

    def _something_to_come(self) -> bool:
        """Whether rows wait for others, for provider jobs, or for an earlier step."""
        state = self._state
        return bool(
            self._parked
            or self._enqueued
            or state.early
            or state.advanced
            or (self._later and not state.put_off)
        )

    async def _lease(self, chunk: Chunk) -> ChunkState:
        request = LeaseRequest(self._ledger.realm, chunk.chunk_key, self._owner.owner_id)
        deadline = self._clock.now() + self._job.settings.chunk_wait_s
        while True:
            lease = await self._writer.post(LEASE_CHUNK, request)
            if lease.fence is not None:
                self._state.note = ""
                return ChunkState(chunk, lease.fence, self._clock.now())
            if self._clock.now() >= deadline:
                raise ChunkHeldError(
                    f"Chunk {chunk.chunk_key} is held by {lease.holder}.",
                    "Wait for that run to end, or terminate it, then run again: "
                    "nothing is paid twice.",
                )
            self._state.note = f"waiting for {chunk.chunk_key}, held by {lease.holder}"
            # Send what is packed so far: the other run may be waiting for one of our answers.
            await self._flush(everything=True)
            await self._clock.sleep(_HELD_POLL_S)
            await self._writer.post(BURY_DEAD, this_host())

    async def _load(self, state: ChunkState) -> None:
        """Read a chunk's rows, finish those that need no call and pack the others."""
        chunk = state.chunk
        items = await asyncio.to_thread(self._read_chunk, chunk)
        todo: list[Item] = []
        for item in items:
            if self._needs_work(item):
                todo.append(item)
            else:
                self._finisher.count_as_done(state, item)
        state.left = len(todo)
        routed = await self._routes(state, todo)
        behind = await asyncio.to_thread(self._checkpoints, state, [item for item, _ in routed])
        self._state.advanced += [
            (state, item, route, behind.get(item.ordinal)) for item, route in routed
        ]
        await self._go_on()
        state.loading = False
        self._finisher.close_if_done(state)

    async def _take_up(self, step: Step, rows: Sequence[tuple[ChunkState, Item, Route]]) -> None:
        """Bring rows to a step: end those whose answers are stored, ask the others."""
        members, spoiled = await asyncio.to_thread(self._questions, step, rows)
        for state, item, problem in spoiled:
            self._finisher.unusable(state, item, problem, step.name)
        stored = await asyncio.to_thread(self._look_up, members)
        missed: list[Member] = []
        for member in members:
            hit = stored.get(member.key)
            if hit is not None and hit.created_at >= member.fresh_after:
                self._finisher.cached(member, hit, self._lines.get(hit.attempt_id))
            else:
                missed.append(member)
        self._lines.clear()
        await self._claim(missed)

    async def _go_on(self) -> None:
        """Take rows that are through a step to their next one."""
        while self._state.advanced:
            rows, self._state.advanced = self._state.advanced, []
            by_step: dict[AnyStep, list[tuple[ChunkState, Item, Route]]] = {}
            for state, item, route, through in rows:
                step = next(self._job.steps_after(through, state.known(item)), None)
                if step is None:
                    self._finisher.at_its_end(state, item)
                else:
                    by_step.setdefault(step, []).append((state, item, route))
            for step in self._job.steps:
                if isinstance(step, LocalStep):
                    for state, item, route in by_step.get(step, ()):
                        if self._takes_row(state, item):
                            await self._local.take(step, state, item, route)
                        else:
                            self._finisher.leave_pending(state)
                            self._finisher.close_if_done(state)
                elif step in by_step and step.by_run_route:
                    found = [(state, item, self._route) for state, item, _ in by_step[step]]
                    await self._take_up(step, found)
                elif step in by_step:
                    await self._take_up(step, by_step[step])

    def _checkpoints(self, state: ChunkState, items: Sequence[Item]) -> dict[int, LocalStep]:
        """Find, by ordinal, the last checkpoint that rows are behind; their outputs are taken."""
        steps = {
            step.name: step
            for step in self._job.steps
            if isinstance(step, LocalStep) and step.checkpoint
        }
        if not steps or not items:
            return {}
        with self._ledger.read() as connection:
            kept = read_documents(
                connection,
                self._ledger.realm,
                state.chunk.batch_id,
                [item.ordinal for item in items],
                steps=list(steps),
            )
        found: dict[int, LocalStep] = {}
        for item in items:
            for name, step in steps.items():
                document = kept.get(item.ordinal, {}).get(name)
                if document is None or document.outcome is not Outcome.SUCCEEDED:
                    continue
                if document.editor or document.made_at >= item.fresh_after:
                    state.outputs.setdefault(item.ordinal, {})[name] = document.content
                    found[item.ordinal] = step
        return found

    def _needs_work(self, item: Item) -> bool:
        if item.outcome is Outcome.PENDING:
            return True
        if item.outcome is Outcome.FAILED:
            return item.error_kind != INPUT_ERROR
        return item.outcome is Outcome.BLOCKED and self._job.settings.include_blocked

    def _read_chunk(self, chunk: Chunk) -> list[Item]:
        with self._ledger.read() as connection:
            return read_items(
                connection,
                self._ledger.realm,
                chunk.batch_id,
                chunk.first_ordinal,
                chunk.row_count,
            )

    def _look_up(self, members: Sequence[Member]) -> dict[str, StoredResult]:
        """Stored answers by models that each member's route allows, by cache key."""
        found: dict[str, StoredResult] = {}
        if members:
            with self._ledger.read() as connection:
                for route, keys in _keys_by_route(members).items():
                    models = [one.label for one in route]
                    found |= find_results(connection, self._ledger.realm, keys, models)
                self._read_lines(connection, found)
        return _still_valid(found, members)

    def _read_lines_of(self, found: dict[str, StoredResult]) -> None:
        with self._ledger.read() as connection:
            self._read_lines(connection, found)

    def _read_lines(self, connection: sa.Connection, found: dict[str, StoredResult]) -> None:
        """Find out which answers came from provider jobs of this very batch."""
        if not self._lane.used:
            return
        ids = [hit.attempt_id for hit in found.values() if hit.attempt_id not in self._lines]
        if ids:
            realm, batch_id = self._ledger.realm, self._job.batch_id
            self._lines |= lines_paid_for(connection, realm, batch_id, ids)

    def _questions(
        self, step: Step, rows: Iterable[tuple[ChunkState, Item, Route]]
    ) -> tuple[list[Member], list[tuple[ChunkState, Item, str]]]:
        """One member for each distinct question of a step among `rows`.

        Beside them: rows of which nothing can be asked, and why. They end by themselves; the others
        go on.
        """
        found: dict[tuple[str, Route], Member] = {}
        spoiled: list[tuple[ChunkState, Item, str]] = []
        for state, item, route in rows:
            try:
                content = step.content(state.known(item))
            except Exception as error:
                problem = (
                    f"Its content for the step {step.name} cannot be made "
                    f"({type(error).__name__}: {error}). This is a fault of the workload."
                )
                spoiled.append((state, item, problem))
                continue
            key = self._keys[step.name].key(content)
            known = found.get((key, route))
            if known is not None:
                known.rows.append((state, item))
                known.fresh_after = max(known.fresh_after, item.fresh_after)
                continue
            found[key, route] = Member(
                step=step,
                key=key,
                content=content,
                tokens=estimate_item_tokens(content),
                rows=[(state, item)],
                route=route,
                fresh_after=item.fresh_after,
            )
        return list(found.values()), spoiled

    async def _claim(self, members: list[Member]) -> None:
        """Single flight: pack what is ours, follow what is asked already, park what others ask."""
        fresh: list[Member] = []
        for member in members:
            if self._ends_by_jobs(member):
                continue
            known = self._state.members.get(member.key)
            if known is not None and known.route != member.route:
                # The same question to another model: asked once this one is answered.
                self._later.append(member)
                continue
            if known is not None:
                known.rows.extend(member.rows)
                self._state.join(known, member.rows)
                known.fresh_after = max(known.fresh_after, member.fresh_after)
                continue
            if not self._within_limit(member):
                for state, _ in member.rows:
                    self._finisher.leave_pending(state)
                continue
            self._state.open(member)
            fresh.append(member)
        if not fresh:
            return
        if self._job.settings.lane.lane == "realtime":
            self._caller.look_ahead()
        mine: set[str] = set()
        enqueued: set[str] = set()
        results: dict[str, StoredResult] = {}
        for route, keys in _keys_by_route(fresh).items():
            claimed = await self._writer.post(
                CLAIM,
                ClaimKeys(
                    self._ledger.realm,
                    self._owner.owner_id,
                    "realtime",
                    keys,
                    [one.label for one in route],
                ),
            )
            mine |= claimed.mine
            enqueued |= claimed.enqueued
            results |= claimed.results
        answered = []
        if results and self._lane.used:
            await asyncio.to_thread(self._read_lines_of, results)
        stored = _still_valid(results, fresh)
        for member in fresh:
            hit = stored.get(member.key)
            if hit is not None and hit.created_at >= member.fresh_after:
                if member.key in mine:
                    answered.append(member.key)
                self._state.close(member.key)
                self._finisher.cached(member, hit, self._lines.get(hit.attempt_id))
            elif member.key in mine:
                await self._ask(member)
            elif member.key in enqueued:
                self._went_up(member)
            else:
                self._parked[member.key] = member
        if answered:
            self._finisher.release(answered)

    async def _ask(self, member: Member) -> None:
        """Give a claimed row to its lane."""
        lane = self._job.settings.lane
        upstream = self._lane.upstream_of(member.route)
        if upstream is not None and not self._lane.gives_up(member):
            await self._lane.add(member, upstream)
        elif lane.submit_only:
            # Rows for real time are left to the run that collects.
            self._finisher.wait_for_room(member)
        else:
            for pack in self._packer(member).add(member):
                await self._packs.put(pack)

    def _went_up(self, member: Member) -> None:
        """A provider job asks about a row: wait for it, or leave it to a later run."""
        if self._waits:
            self._enqueued[member.key] = member
        else:
            self._finisher.under_way(member)

    def _ends_by_jobs(self, member: Member) -> bool:
        """End a row that provider jobs gave no answer, where no other ask would."""
        item = max((item for _, item in member.rows), key=lambda item: item.lane_tries)
        lane = self._job.settings.lane
        if not item.lane_tries:
            return False
        refused = item.error_kind == ErrorKind.REFUSED.value
        permanent = item.error_kind == ErrorKind.ITEM_PERMANENT.value
        tired = self._lane.gives_up(member) and lane.lane != "realtime"
        if not (refused or permanent or (tired and not lane.realtime_fallback)):
            return False
        if lane.submit_only:
            return False
        member.refused, member.error = refused, item.error or "no answer"
        self._state.open(member)
        self._finisher.failed(member, item.error_kind or "content")
        return True

    def _within_limit(self, member: Member) -> bool:
        return self._take_rows(
            {
                (state.chunk.chunk_key, item.ordinal)
                for state, item in member.rows
                # Rows that a provider job gave no answer were within an earlier run's limit.
                if not item.lane_tries
            }
        )

    def _takes_row(self, state: ChunkState, item: Item) -> bool:
        """Whether a row is within the run's limit, and one of its rows from now on."""
        return self._take_rows({(state.chunk.chunk_key, item.ordinal)})

    def _take_rows(self, rows: set[tuple[str, int]]) -> bool:
        limit = self._job.settings.limit
        if limit is None:
            return True
        if rows - self._asked_rows and len(self._asked_rows) >= limit:
            return False
        self._asked_rows |= rows
        return True

    def _uncount(self, member: Member) -> None:
        self._asked_rows -= {(state.chunk.chunk_key, item.ordinal) for state, item in member.rows}

    async def _adopt_parked(self) -> None:
        """Finish parked questions that others have answered; ask those that others gave up."""
        await self._adopt_enqueued()
        if not self._parked and not self._later:
            return
        ready = [one for one in self._later if one.key not in self._state.members]
        self._later = [one for one in self._later if one.key in self._state.members]
        await self._claim(ready)
        stored = await asyncio.to_thread(self._look_up, list(self._parked.values()))
        left: list[Member] = []
        for key, member in list(self._parked.items()):
            hit = stored.get(key)
            del self._parked[key]
            self._state.close(key)
            if hit is not None and hit.created_at >= member.fresh_after:
                self._finisher.cached(member, hit, self._lines.get(hit.attempt_id))
            else:
                self._uncount(member)
                left.append(member)
        await self._claim(left)

    async def _adopt_enqueued(self) -> None:
        """Finish rows whose provider jobs were collected; ask the others again."""
        if not self._enqueued:
            return
        now = self._clock.now()
        # Jobs of another batch, which another run collects, may ask about some of them.
        if self._lane.generation == self._collected and now < self._look_enqueued_at:
            return
        self._collected = self._lane.generation
        self._look_enqueued_at = now + _ENQUEUED_POLL_S
        members = list(self._enqueued.values())
        stored, held = await asyncio.to_thread(self._look_up_enqueued, members)
        left: list[Member] = []
        for member in members:
            hit = stored.get(member.key)
            fresh = hit is not None and hit.created_at >= member.fresh_after
            if not fresh and member.key in held:
                continue
            del self._enqueued[member.key]
            self._state.close(member.key)
            if hit is not None and fresh:
                self._finisher.cached(member, hit, self._lines.get(hit.attempt_id))
            else:
                self._uncount(member)
                left.append(member)
        self._lines.clear()
        await asyncio.to_thread(self._reread, left)
        await self._claim(left)

    async def _finish_collected(self) -> None:
        """End rows whose jobs were collected while the planner waited for room in a budget."""
        stored = await asyncio.to_thread(self._look_up, list(self._enqueued.values()))
        for key, hit in stored.items():
            member = self._enqueued[key]
            if hit.created_at >= member.fresh_after:
                del self._enqueued[key]
                del self._state.members[key]
                self._finisher.cached(member, hit, self._lines.get(hit.attempt_id))

    def _look_up_enqueued(
        self, members: Sequence[Member]
    ) -> tuple[dict[str, StoredResult], set[str]]:
        """Stored answers, and the keys that provider jobs still ask about."""
        # In this order: between the two an answer may come, but none may go.
        with self._ledger.read() as connection:
            keys = [member.key for member in members]
            held = claimed_keys(connection, self._ledger.realm, keys)
        return self._look_up(members), held

    def _reread(self, members: Sequence[Member]) -> None:
        """Take note of what provider jobs said about rows that they did not answer."""
        with self._ledger.read() as connection:
            for member in members:
                member.rows = [
                    (
                        state,
                        read_items(
                            connection, self._ledger.realm, state.chunk.batch_id, item.ordinal, 1
                        )[0],
                    )
                    for state, item in member.rows
                ]

    def _packer(self, member: Member) -> Packer[Member]:
        """Rows of one step and route share requests."""
        step, route = member.step, member.route
        packer = self._packers.get((step.name, route))
        if packer is None:
            packer = Packer(step.max_items, step.max_input_tokens)
            self._packers[step.name, route] = packer
        return packer

    async def _flush(self, *, everything: bool = False) -> None:
        """Send packs that are not full, of steps that no row is on its way to any more.

        Rows that wait here wait for steps before theirs only, so nobody waits for himself.
        """
        to_come = frozenset[str]() if everything else frozenset().union(*self._on_the_way())
        ready = {step.name for step in self._job.steps} - to_come
        for (name, _), packer in self._packers.items():
            for pack in packer.flush() if name in ready else ():
                await self._packs.put(pack)
        await self._lane.flush(ready)

    def _on_the_way(self) -> set[frozenset[str]]:
        """Which steps rows have before them that are asked, or worked on, now."""
        return set(self._state.early.values())

    # ---- asking ----

    async def _worker(self) -> None:
        """A slot: at most one request of this worker is in flight."""
        myself = asyncio.current_task()
        assert myself is not None
        while True:
            if len(self._staff) > self._wanted_workers():
                # At once: the others count who is left.
                self._staff.discard(myself)
                return
            pack = await self._packs.get()
            if pack is None:
                # for the next one
                self._packs.put_nowait(None)
                return
            try:
                await self._recovery.process(pack, "first", last_round=False)
            except Exception as error:
                self._state.break_off(error)
            while len(self._state.commits) > _MAX_OPEN_COMMITS:
                await asyncio.wait(self._state.commits, return_when=asyncio.FIRST_COMPLETED)

    async def _second_round(self) -> None:
        """Ask once more what an outage kept from being answered: by now it may be over."""
        packs, self._state.put_off = self._state.put_off, []
        slots = asyncio.Semaphore(self._wanted_workers())

        async def again(pack: list[Member]) -> None:
            async with slots:
                if not self._state.stopping:
                    await self._recovery.process(pack, "retry", last_round=True)

        await asyncio.gather(*(again(pack) for pack in packs))
        self._raise_broken()

    async def _derive_what_was_paid(self) -> None:
        """Turn paid replies of dead runs into results.

        A crash, or a validator's bug, came between settlement and derivation.
        """
        found = await asyncio.to_thread(self._read_underived)
        for attempt in found:
            codec = PROVIDERS[attempt.provider].codec
            try:
                reply = codec.read(WireReply(attempt.status, {}, attempt.reply))
                answers = read_answers(
                    self._job.step_named(attempt.step), len(attempt.members), reply
                )
            except Exception:
                # It stays underived, for a run after the codec's or validator's bug is mended.
                continue
            if answers.valid:
                self._state.post(
                    STORE_LATE,
                    StoreResults(
                        realm=self._ledger.realm,
                        workload=self._job.workload,
                        step=attempt.step,
                        model=attempt.model,
                        attempt_id=attempt.attempt_id,
                        owner_id=self._owner.owner_id,
                        outputs=[
                            (attempt.members[place][1], output)
                            for place, output in answers.valid.items()
                        ],
                        complete=not answers.problems,
                        created_at=attempt.settled_at,
                    ),
                )
        await self._state.commit_all()

    def _read_underived(self) -> list[UnderivedAttempt]:
        with self._ledger.read() as connection:
            now = self._ledger.now(connection)
            return [
                attempt
                for step in llm_steps(self._job.steps)
                for attempt in find_underived(
                    connection, self._ledger.realm, self._job.workload, step.name, now
                )
            ]


def _still_valid(
    found: dict[str, StoredResult], members: Iterable[Member]
) -> dict[str, StoredResult]:
    """Results that the output models accept today: their rules may be stricter than they were."""
    steps = {member.key: member.step for member in members}
    return {key: hit for key, hit in found.items() if is_valid(steps[key], hit.output)}


def _keys_by_route(members: Iterable[Member]) -> dict[Route, list[str]]:
    found: dict[Route, list[str]] = {}
    for member in members:
        found.setdefault(member.route, []).append(member.key)
    return found


def _summary(done: RunDone) -> dict[str, Any]:
    tally = done.tally
    return {
        "outcomes": {outcome.value: count for outcome, count in tally.outcomes.items()},
        "cache_hits": tally.cache_hits,
        "requests": tally.requests,
        "attempts": tally.attempts,
        "input_tokens": round(tally.input_tokens),
        "cached_input_tokens": round(tally.cached_input_tokens),
        "output_tokens": round(tally.output_tokens),
        "cost_nano": round(tally.cost_nano),
        "lost_nano": round(tally.lost_nano),
        "wall_s": done.wall_s,
        "rate_wait_s": tally.rate_wait_s,
        "errors": tally.errors,
    }
