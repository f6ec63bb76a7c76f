"""The engine: takes chunks, gives every row exactly one outcome, pays for each question once.

What belongs here: the life of a run, its workers and its last words. What does not: which rows
need a call (planning.py), one request (calling.py), recovery from bad answers (recovery.py), how
rows end (finishing.py), SQL (ledger), rate arithmetic (limits), wire formats (providers), threads
(thread.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from batch_pipeline.clock import Clock
from batch_pipeline.engine.answers import read_answers
from batch_pipeline.engine.calling import Caller
from batch_pipeline.engine.finishing import Finisher
from batch_pipeline.engine.job import Event, Job, Progress, RunDone
from batch_pipeline.engine.lanes.batch import BatchLane
from batch_pipeline.engine.lanes.collect import Collector
from batch_pipeline.engine.lanes.desk import JobDesk
from batch_pipeline.engine.local import LocalDesk
from batch_pipeline.engine.planning import Planner
from batch_pipeline.engine.queueing import PackQueue
from batch_pipeline.engine.records import Member
from batch_pipeline.engine.recovery import Recovery
from batch_pipeline.engine.routes import Routes
from batch_pipeline.engine.searching import Searcher
from batch_pipeline.engine.state import Log, RunState
from batch_pipeline.engine.step import llm_steps
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.calls import (
    BURY_DEAD,
    HEARTBEAT,
    OWNER_LEASE_S,
    RECORD_RUN,
    RETIRE,
    STORE_LATE,
    RunRecord,
    StoreResults,
    UnderivedAttempt,
    find_underived,
    this_host,
)
from batch_pipeline.ledger.spend import Scope, Short, read_balance
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO, Outcome
from batch_pipeline.providers.base import WireReply
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline.providers.transport import Transport

_MAX_OPEN_COMMITS = 2_000
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
        finisher = Finisher(self._state)
        routes = Routes(self._state, finisher)
        self._known = routes.known
        rng = rng or random.Random()
        self._caller = Caller(self._state, transport, finisher, self._known, rng)
        self._recovery = Recovery(self._caller.ask, finisher.failed, lambda: self._state.stopping)
        self._searcher = Searcher(self._state, transport, rng)
        self._local = LocalDesk(
            self._state, finisher, self._searcher, lambda more: self._planner.has_room(more)
        )
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
            lambda member: self._planner.went_up(member),
            finisher.wait_for_room,
        )
        self._packs = PackQueue(job.steps)
        self._planner = Planner(
            self._state,
            finisher,
            routes,
            self._lane,
            self._local,
            self._caller.look_ahead,
            lambda: self._packs,
        )
        self._staff: set[asyncio.Task[None]] = set()
        self._working = False
        self._stopped_at: float | None = None
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
            searches=tally.searches,
            cost_usd=tally.cost_usd,
            rate_wait_s=tally.rate_wait_s,
            in_flight=self._state.in_flight,
            note=self._state.note,
            succeeded=outcomes[Outcome.SUCCEEDED],
            chunks_done=self._state.chunks_done,
            chunks=len(self._job.chunk_keys),
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
            state.log.event("run started", models=[one.label for one in self._job.route])
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
            searches=tally.searches,
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
        self._working = True
        planner = self._start_planning(self._planner.plan())
        try:
            await self._until_done(planner)
            while (state.advanced or self._planner.has_later) and not state.stopping:
                # What an outage had put off is through a step, or answered, after all.
                self._packs = PackQueue(self._job.steps)
                planner = self._start_planning(self._planner.finish())
                await self._until_done(planner)
        finally:
            self._working = False
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
            worker.add_done_callback(self._has_left)

    def _has_left(self, worker: asyncio.Task[None]) -> None:
        self._staff.discard(worker)
        if worker.cancelled() and self._working and not self._state.stopping:
            self._state.break_off(RuntimeError("a worker was cancelled, and its requests with it"))

    async def _all_left(self) -> None:
        while self._staff:
            done, _ = await asyncio.wait(self._staff, return_when=asyncio.FIRST_COMPLETED)
            for worker in done:
                if not worker.cancelled():
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
            await self._planner.finish_collected()
        self._packs.close()
        await self._drain(asyncio.ensure_future(self._searcher.finish()))
        await self._drain(asyncio.ensure_future(self._lane.finish()))
        everyone = asyncio.ensure_future(self._all_left())
        if await self._drain(everyone) and state.put_off and not state.stopping:
            await self._drain(asyncio.ensure_future(self._second_round()))
            await state.commit_all()

    async def _drain(self, work: asyncio.Future[Any]) -> bool:
        """Wait for calls in flight, after a stop no longer than `drain_s`: did all come back?"""
        while True:
            await asyncio.wait([work], timeout=0.5)
            if work.done():
                work.result()
                return True
            if self._state.stopping:
                now = self._clock.now()
                if self._stopped_at is None:
                    self._stopped_at = now
                if now - self._stopped_at >= self._job.settings.drain_s:
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
                return
            self._planner.look()
            self._local.look()
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
                    try:
                        await self._recovery.process(pack, "retry", last_round=True)
                    except Exception as error:
                        # The others are on the wire, and paid.
                        self._state.break_off(error)

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


def _summary(done: RunDone) -> dict[str, Any]:
    tally = done.tally
    return {
        "outcomes": {outcome.value: count for outcome, count in tally.outcomes.items()},
        "cache_hits": tally.cache_hits,
        "requests": tally.requests,
        "attempts": tally.attempts,
        "searches": tally.searches,
        "searches_known": dict(tally.searches_known),
        "input_tokens": round(tally.input_tokens),
        "cached_input_tokens": round(tally.cached_input_tokens),
        "output_tokens": round(tally.output_tokens),
        "cost_nano": round(tally.cost_nano),
        "lost_nano": round(tally.lost_nano),
        "wall_s": done.wall_s,
        "rate_wait_s": tally.rate_wait_s,
        "errors": tally.errors,
    }
