"""The engine: takes chunks, gives every row exactly one outcome, pays for each question once.

What belongs here: the order of admission, retries after passing failures, settling and stopping.
What does not: recovery from bad answers (recovery.py), SQL (ledger), rate arithmetic (limits),
wire formats (providers), threads (thread.py).

A row's way: lease its chunk -> cache -> single flight -> pack -> slot (a worker) -> limiter ->
write the attempt ahead -> send -> settle with the raw reply -> validate -> store results -> finish
the items -> chunk done.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import orjson

from batch_pipeline.clock import Clock
from batch_pipeline.engine.answers import Answers, is_valid, read_answers
from batch_pipeline.engine.job import ChunkDone, Event, FailedRow, Job, Progress, RunDone, Tally
from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.packing import Packer
from batch_pipeline.engine.records import (
    Asked,
    ChunkState,
    Finished,
    Flight,
    Member,
    Trip,
    chunks_of,
)
from batch_pipeline.engine.recovery import Recovery
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.batches import (
    FINISH_ITEMS,
    INPUT_ERROR,
    LEASE_CHUNK,
    UNLEASE_CHUNK,
    Chunk,
    FinishItems,
    Item,
    ItemOutcome,
    LeaseRequest,
    Unlease,
    find_chunks,
    read_items,
)
from batch_pipeline.ledger.calls import (
    ADMIT,
    BURY_DEAD,
    CLAIM,
    HEARTBEAT,
    OWNER_LEASE_S,
    RECORD_RUN,
    RELEASE,
    RETIRE,
    SETTLE,
    STORE_LATE,
    ClaimKeys,
    NewAttempt,
    Owner,
    PauseKey,
    ReleaseKeys,
    RunRecord,
    Settlement,
    StoredResult,
    StoreResults,
    UnderivedAttempt,
    find_results,
    find_underived,
    this_host,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO, AttemptState, Outcome
from batch_pipeline.ledger.writer import Operation
from batch_pipeline.limits.days import day_of
from batch_pipeline.limits.limiter import Gate, Ticket
from batch_pipeline.pricing.prices import find_pricer
from batch_pipeline.pricing.tokens import estimate_tokens
from batch_pipeline.providers.base import (
    ErrorKind,
    LlmRequest,
    ProviderError,
    Reply,
    Usage,
    WireCall,
    WireReply,
)
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline.providers.transport import Transport

_PARKED_POLL_S = 0.25
_HELD_POLL_S = 0.5
_MAX_FAILED_SHOWN = 20
_MAX_OPEN_COMMITS = 2_000
_REFUSED_ALONE = 3


class LeaseLostError(BatchPipelineError):
    """This run's own lease ran out: another run may ask the same questions, so this one stops."""


class ChunkHeldError(BatchPipelineError):
    """Another run holds a chunk, and did not let go of it within the bound."""


class Engine:
    """Runs one job on one event loop.

    Args:
        ledger: the ledger, bound to the run's realm.
        transport: sends the calls.
        clock: time and sleep.
        job: what to do.
        emit: called on the loop's thread with each event; the last one is RunDone.
        rng: jitter.
    """

    def __init__(
        self,
        ledger: Ledger,
        transport: Transport,
        clock: Clock,
        job: Job,
        emit: Callable[[Event], None],
        rng: random.Random | None = None,
    ) -> None:
        self._ledger = ledger
        self._writer = ledger.writer
        self._transport = transport
        self._clock = clock
        self._job = job
        self._step = job.step
        self._endpoint = job.endpoint
        self._emit = emit
        self._rng = rng or random.Random()
        self._owner = Owner.here(job.run_id)
        self._pricer = find_pricer(job.endpoint.provider, job.endpoint.model)
        pause_key = PauseKey(
            ledger.realm, job.endpoint.provider, job.endpoint.label, job.endpoint.key_id
        )
        self._gate = Gate(self._writer, clock, pause_key, self._owner.owner_id, job.settings.rates)
        self._keys = KeyMaker(job.step)
        self._recovery = Recovery(
            self._ask, self._finish_failed, lambda: self._stopping, job.step.content_tries
        )
        self._packer: Packer[Member] = Packer(job.step.max_items, job.step.max_input_tokens)
        self._packs: asyncio.Queue[list[Member] | None] = asyncio.Queue(
            maxsize=max(2, job.settings.workers)
        )
        self._put_off: list[list[Member]] = []
        self._members: dict[str, Member] = {}
        self._parked: dict[str, Member] = {}
        self._commits: set[asyncio.Future[Any]] = set()
        self._before_send: set[asyncio.Task[Any]] = set()
        self._tally = Tally()
        self._total = 0
        self._asked_rows = 0
        self._in_flight = 0
        self._attempt_count = 0
        self._request_count = 0
        self._system_tokens = estimate_tokens(job.step.system_prompt)
        self._output_per_item = 0.6 * job.step.output_tokens_per_item
        self._answered = False
        self._refused_alone = 0
        self._interrupted = False
        self._fatal = ""
        self._broken: BaseException | None = None
        self._note = ""

    # ---- what other threads may call ----

    def progress(self) -> Progress:
        """Where the run stands; safe to call from any thread (it may be a moment old)."""
        outcomes = self._tally.outcomes
        return Progress(
            total=self._total,
            done=sum(outcomes.values()) - outcomes[Outcome.PENDING],
            cached=self._tally.cache_hits,
            failed=outcomes[Outcome.FAILED],
            blocked=outcomes[Outcome.BLOCKED],
            requests=self._tally.requests,
            attempts=self._tally.attempts,
            cost_usd=self._tally.cost_usd,
            rate_wait_s=self._tally.rate_wait_s,
            in_flight=self._in_flight,
            note=self._note,
        )

    def stop(self) -> None:
        """Stop admitting; calls in flight are drained and settled. Call on the loop's thread."""
        if not self._interrupted:
            self._interrupted = True
            self._note = "stopping: waiting for calls in flight"
            self._cancel_waiting()

    # ---- the run ----

    async def run(self) -> RunDone:
        """Run the job to its end; emits ChunkDone events and, last, RunDone (also returned)."""
        began = self._clock.now()
        heart: asyncio.Task[None] | None = None
        try:
            await self._writer.post(HEARTBEAT, self._owner)
            await self._writer.post(BURY_DEAD, this_host())
            await self._record("running")
            heart = asyncio.create_task(self._beat())
            heart.add_done_callback(self._heart_stopped)
            await self._gate.open()
            await self._derive_what_was_paid()
            await self._work()
        except asyncio.CancelledError:
            self._interrupted = True
        except Exception as error:
            self._broken = error
        finally:
            if heart is not None:
                heart.cancel()
        ended = sum(self._tally.outcomes.values()) - self._tally.outcomes[Outcome.PENDING]
        self._tally.outcomes[Outcome.PENDING] = max(0, self._total - ended)
        done = RunDone(
            status=self._status(),
            message=str(self._broken) if self._broken is not None else self._fatal,
            tally=self._tally,
            wall_s=self._clock.now() - began,
            error=self._broken,
        )
        try:
            await self._record(done.status, done.message, summary=_summary(done))
            await self._writer.post(RETIRE, self._owner.owner_id)
        except Exception as error:
            # The ledger is gone: its lease runs out by itself. Say so unless something else already
            # stopped the run.
            if done.error is None:
                done = RunDone("stopped", str(error), done.tally, done.wall_s, error)
        self._emit(done)
        return done

    def _status(self) -> str:
        if self._broken is not None or self._fatal:
            return "stopped"
        return "interrupted" if self._interrupted else "done"

    @property
    def _stopping(self) -> bool:
        return self._interrupted or bool(self._fatal) or self._broken is not None

    async def _work(self) -> None:
        workers = [asyncio.create_task(self._worker()) for _ in range(self._job.settings.workers)]
        planner = asyncio.create_task(self._plan())
        self._before_send.add(planner)
        try:
            await self._until_done(planner, workers)
        finally:
            self._before_send.discard(planner)
            for task in (planner, *workers):
                task.cancel()
            await asyncio.gather(planner, *workers, return_exceptions=True)
            await self._commit_all()
            self._raise_broken()

    async def _until_done(
        self, planner: asyncio.Task[None], workers: list[asyncio.Task[None]]
    ) -> None:
        try:
            await planner
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except Exception as error:
            self._break(error)
        for _ in workers:
            await self._packs.put(None)
        if await self._drain(asyncio.gather(*workers)) and self._put_off and not self._stopping:
            await self._drain(asyncio.ensure_future(self._second_round()))

    async def _drain(self, work: asyncio.Future[Any]) -> bool:
        """Wait for calls in flight, after a stop no longer than `drain_s`: did all come back?"""
        stopped_at: float | None = None
        while True:
            await asyncio.wait([work], timeout=0.5)
            if work.done():
                work.result()
                return True
            if self._stopping:
                now = self._clock.now()
                stopped_at = now if stopped_at is None else stopped_at
                if now - stopped_at >= self._job.settings.drain_s:
                    self._note = "calls still in flight were left; they count at worst case"
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                    return False

    def _raise_broken(self) -> None:
        if self._broken is not None:
            raise self._broken

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
            self._break(error)

    def _cancel_waiting(self) -> None:
        for task in self._before_send:
            task.cancel()

    def _break(self, error: BaseException) -> None:
        """The ledger or the engine itself failed: admit nothing more."""
        if self._broken is None:
            self._broken = error
            self._cancel_waiting()

    def _stop_for_good(self, message: str) -> None:
        """Every further row would fail the same way: stop at once, leave them pending."""
        if not self._fatal:
            self._fatal = message
            self._cancel_waiting()

    # ---- planning ----

    async def _plan(self) -> None:
        """Feed the workers: lease, look up, claim, pack."""
        with self._ledger.read() as connection:
            chunks = find_chunks(connection, self._ledger.realm, list(self._job.chunk_keys))
        self._total = sum(chunk.row_count for chunk in chunks)
        for chunk in chunks:
            state = await self._lease(chunk)
            await self._load(state)
            await self._adopt_parked()
        await self._flush()
        while self._parked:
            await self._clock.sleep(_PARKED_POLL_S)
            await self._writer.post(BURY_DEAD, this_host())
            await self._adopt_parked()
            await self._flush()

    async def _lease(self, chunk: Chunk) -> ChunkState:
        request = LeaseRequest(self._ledger.realm, chunk.chunk_key, self._owner.owner_id)
        deadline = self._clock.now() + self._job.settings.chunk_wait_s
        while True:
            lease = await self._writer.post(LEASE_CHUNK, request)
            if lease.fence is not None:
                self._note = ""
                return ChunkState(chunk, lease.fence, self._clock.now())
            if self._clock.now() >= deadline:
                raise ChunkHeldError(
                    f"Chunk {chunk.chunk_key} is held by {lease.holder}.",
                    "Wait for that run to end, or terminate it, then run again: "
                    "nothing is paid twice.",
                )
            self._note = f"waiting for {chunk.chunk_key}, held by {lease.holder}"
            # Send what is packed so far: the other run may be waiting for one of our answers.
            await self._flush()
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
                self._count_as_done(state, item)
        members = await asyncio.to_thread(self._questions, state, todo)
        state.left = len(todo)
        stored = await asyncio.to_thread(self._look_up, [member.key for member in members])
        missed: list[Member] = []
        for member in members:
            hit = stored.get(member.key)
            if hit is not None and hit.created_at >= member.fresh_after:
                self._finish_cached(member, hit)
            else:
                missed.append(member)
        await self._claim(missed)
        state.loading = False
        self._close_if_done(state)

    def _needs_work(self, item: Item) -> bool:
        if item.outcome is Outcome.PENDING:
            return True
        if item.outcome is Outcome.FAILED:
            return item.error_kind != INPUT_ERROR
        return item.outcome is Outcome.BLOCKED and self._job.settings.include_blocked

    def _count_as_done(self, state: ChunkState, item: Item) -> None:
        for tally in (state.tally, self._tally):
            tally.outcomes[item.outcome] += 1
            if item.outcome is Outcome.SUCCEEDED:
                tally.cache_hits += 1
        if item.outcome in (Outcome.FAILED, Outcome.BLOCKED):
            self._show_failed(state, item, item.outcome, item.error or "")

    def _read_chunk(self, chunk: Chunk) -> list[Item]:
        with self._ledger.read() as connection:
            return read_items(
                connection,
                self._ledger.realm,
                chunk.batch_id,
                chunk.first_ordinal,
                chunk.row_count,
            )

    def _look_up(self, keys: Sequence[str]) -> dict[str, StoredResult]:
        if not keys:
            return {}
        with self._ledger.read() as connection:
            found = find_results(connection, self._ledger.realm, keys, [self._endpoint.label])
        return self._still_valid(found)

    def _still_valid(self, found: dict[str, StoredResult]) -> dict[str, StoredResult]:
        """Results that the output model accepts today: its rules may be stricter than they were."""
        return {key: result for key, result in found.items() if is_valid(self._step, result.output)}

    def _questions(self, state: ChunkState, items: Iterable[Item]) -> list[Member]:
        """One member for each distinct question among `items`."""
        found: dict[str, Member] = {}
        for item in items:
            content = self._step.content(item.row)
            key = self._keys.key(content)
            known = found.get(key)
            if known is not None:
                known.rows.append((state, item))
                known.fresh_after = max(known.fresh_after, item.fresh_after)
                continue
            found[key] = Member(
                key=key,
                content=content,
                tokens=estimate_tokens(orjson.dumps(content)) + 6,
                rows=[(state, item)],
                fresh_after=item.fresh_after,
            )
        return list(found.values())

    async def _claim(self, members: list[Member]) -> None:
        """Single flight: pack what is ours, follow what is asked already, park what others ask."""
        fresh: list[Member] = []
        for member in members:
            known = self._members.get(member.key)
            if known is not None:
                known.rows.extend(member.rows)
                known.fresh_after = max(known.fresh_after, member.fresh_after)
                continue
            if not self._within_limit(member):
                for state, _ in member.rows:
                    self._leave_pending(state)
                continue
            self._members[member.key] = member
            fresh.append(member)
        if not fresh:
            return
        claimed = await self._writer.post(
            CLAIM,
            ClaimKeys(
                self._ledger.realm,
                self._owner.owner_id,
                "realtime",
                [member.key for member in fresh],
                [self._endpoint.label],
            ),
        )
        answered = []
        stored = self._still_valid(claimed.results)
        for member in fresh:
            hit = stored.get(member.key)
            if hit is not None and hit.created_at >= member.fresh_after:
                if member.key in claimed.mine:
                    answered.append(member.key)
                del self._members[member.key]
                self._finish_cached(member, hit)
            elif member.key in claimed.mine:
                for pack in self._packer.add(member):
                    await self._packs.put(pack)
            else:
                self._parked[member.key] = member
        if answered:
            self._release(answered)

    def _within_limit(self, member: Member) -> bool:
        limit = self._job.settings.limit
        if limit is None:
            return True
        if self._asked_rows >= limit:
            return False
        self._asked_rows += len(member.rows)
        return True

    def _leave_pending(self, state: ChunkState) -> None:
        state.left -= 1
        for tally in (state.tally, self._tally):
            tally.outcomes[Outcome.PENDING] += 1

    async def _adopt_parked(self) -> None:
        """Finish parked questions that others have answered; ask those that others gave up."""
        if not self._parked:
            return
        stored = await asyncio.to_thread(self._look_up, list(self._parked))
        left: list[Member] = []
        for key, member in list(self._parked.items()):
            hit = stored.get(key)
            del self._parked[key]
            del self._members[key]
            if hit is not None and hit.created_at >= member.fresh_after:
                self._finish_cached(member, hit)
            else:
                self._asked_rows -= len(member.rows)
                left.append(member)
        await self._claim(left)

    async def _flush(self) -> None:
        for pack in self._packer.flush():
            await self._packs.put(pack)

    # ---- asking ----

    async def _worker(self) -> None:
        """A slot: at most one request of this worker is in flight."""
        while True:
            pack = await self._packs.get()
            if pack is None:
                return
            try:
                await self._recovery.process(pack, "first", last_round=False)
            except Exception as error:
                self._break(error)
            while len(self._commits) > _MAX_OPEN_COMMITS:
                await asyncio.wait(self._commits, return_when=asyncio.FIRST_COMPLETED)

    async def _second_round(self) -> None:
        """Ask once more what an outage kept from being answered: by now it may be over."""
        packs, self._put_off = self._put_off, []
        slots = asyncio.Semaphore(self._job.settings.workers)

        async def again(pack: list[Member]) -> None:
            async with slots:
                if not self._stopping:
                    await self._recovery.process(pack, "retry", last_round=True)

        await asyncio.gather(*(again(pack) for pack in packs))
        self._raise_broken()

    async def _ask(
        self, pack: list[Member], reason: str, parent: str | None, last_round: bool
    ) -> Asked:
        """Send one request, again after passing failures, and settle it.

        Members that it answers are finished.
        """
        settings = self._job.settings
        call, worst = self._build(pack)
        self._request_count += 1
        trip = Trip(f"{self._owner.owner_id}-r{self._request_count}", parent, reason)
        tries = 0
        refused_since: float | None = None
        pauses = 0
        while True:
            if self._stopping:
                return Asked(pack, ended=True)
            answer = await self._attempt(pack, trip, call, worst)
            if answer is None:
                continue
            if isinstance(answer, Answers):
                bad = [pack[place] for place in sorted(answer.problems)]
                return Asked(bad, failure=answer.failure, request_id=trip.request_id)
            kind = answer.kind.value
            self._tally.errors[kind] = self._tally.errors.get(kind, 0) + 1
            if answer.kind is ErrorKind.BATCH_FATAL:
                self._stop_for_good(_fatal_message(self._endpoint.label, answer))
                return Asked(pack, ended=True)
            if answer.kind is ErrorKind.RATE_LIMITED:
                now = self._clock.now()
                refused_since = now if refused_since is None else refused_since
                pause = answer.retry_after_s
                if pause is None:
                    pause = min(settings.max_backoff_s, 2.0**pauses) * self._rng.uniform(0.5, 1.0)
                pauses += 1
                if max(pause, now - refused_since) > settings.max_pause_s:
                    self._stop_for_good(
                        f"{self._endpoint.label} asks to wait {pause:,.0f} s: {answer.message} "
                        "Rows not done stay pending; run again later."
                    )
                    return Asked(pack, ended=True)
                await self._gate.pause(pause, answer.message)
            elif answer.kind is ErrorKind.TRANSIENT:
                tries += 1
                if tries >= settings.transient_tries:
                    return self._outage(pack, answer, last_round)
                await self._back_off(tries, answer.retry_after_s)
            else:
                return self._spoiled(pack, answer, trip.request_id)

    def _spoiled(self, pack: list[Member], error: ProviderError, request_id: str) -> Asked:
        """The request was refused for what is in it: find the row, or, if it is alone, end it."""
        for member in pack:
            member.asks += 1
            member.error = error.message
            member.refused = error.kind is ErrorKind.REFUSED
        if len(pack) == 1 and error.kind is ErrorKind.ITEM_PERMANENT:
            self._finish_failed(pack[0], error.kind.value)
            self._refused_alone += 1
            if not self._answered and self._refused_alone >= _REFUSED_ALONE:
                # Nothing was ever answered and row after row is refused: the request is at fault.
                self._stop_for_good(_fatal_message(self._endpoint.label, error))
            return Asked(pack, ended=True)
        return Asked(pack, failure=error.message, request_id=request_id)

    async def _attempt(
        self, pack: list[Member], trip: Trip, call: WireCall, worst: Usage
    ) -> Answers | ProviderError | None:
        """One wire call: wait for a turn, write it ahead, send, settle.

        None: it was not sent; try again.
        """
        ticket = await self._turn(worst.input_tokens, len(pack))
        if ticket is None:
            return None
        self._attempt_count += 1
        attempt_id = f"{self._owner.owner_id}-{self._attempt_count}"
        admission = await self._writer.post(
            ADMIT, self._new_attempt(attempt_id, pack, trip, call, worst, ticket)
        )
        self._gate.learn(admission.pause)
        if not admission.admitted:
            return None
        if self._gate.missed(ticket):
            refund = Settlement(attempt_id, AttemptState.REFUNDED, 0)
            self._post(SETTLE, refund)
            return None
        self._count_attempt(pack, ticket, first=not trip.sent)
        trip.sent = True
        left = ticket.go_at - self._clock.now()
        if left > 0:
            await self._clock.sleep(left)
        flight = Flight(attempt_id, pack, ticket, call, worst)
        began = self._clock.now()
        self._in_flight += 1
        wire: WireReply | None = None
        try:
            wire = await self._transport.send(call, timeout_s=self._step.timeout_s)
            reply = self._endpoint.codec.read(wire)
        except ProviderError as error:
            self._settle_error(flight, error, wire, self._clock.now() - began)
            return error
        finally:
            self._in_flight -= 1
        return self._settle_reply(flight, reply, wire, self._clock.now() - began)

    async def _turn(self, input_tokens: int, count: int) -> Ticket | None:
        """Wait at the gate; None when the run stops meanwhile."""
        task = asyncio.current_task()
        assert task is not None
        self._before_send.add(task)
        try:
            return await self._gate.acquire(input_tokens, self._output_per_item * count)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            return None
        finally:
            self._before_send.discard(task)

    async def _back_off(self, tries: int, retry_after_s: float | None) -> None:
        settings = self._job.settings
        longest = min(settings.max_backoff_s, settings.backoff_s * 2.0**tries)
        wait = max(self._rng.uniform(0.0, longest), min(retry_after_s or 0.0, settings.max_pause_s))
        task = asyncio.current_task()
        assert task is not None
        self._before_send.add(task)
        try:
            await self._clock.sleep(wait)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
        finally:
            self._before_send.discard(task)

    def _outage(self, pack: list[Member], error: ProviderError, last_round: bool) -> Asked:
        for member in pack:
            member.error = f"{self._endpoint.label} did not answer: {error.message}"
            member.refused = False
        if last_round:
            for member in pack:
                self._finish_failed(member, ErrorKind.TRANSIENT.value)
        else:
            self._put_off.append(pack)
        return Asked(pack, ended=True)

    def _build(self, pack: list[Member]) -> tuple[WireCall, Usage]:
        """The call for a pack, and the most it can use."""
        step = self._step
        note = "; ".join(
            f"earlier answer for id {place}: {member.error}"
            for place, member in enumerate(pack)
            if member.asks and member.error and not member.refused
        )
        bound = step.output_tokens_base + step.output_tokens_per_item * len(pack)
        if any(member.asks for member in pack):
            # The earlier answer may have been cut at the bound.
            bound *= 2
        request = LlmRequest(
            model=self._endpoint.model,
            system=step.system_prompt,
            user=step.user_message([member.content for member in pack], note[:1_000]),
            schema=step.request_schema,
            schema_name=step.name,
            max_output_tokens=bound,
            temperature=step.temperature,
        )
        call = self._endpoint.codec.build(
            request, key=self._endpoint.key, base_url=self._endpoint.base_url
        )
        estimated = self._system_tokens + sum(member.tokens for member in pack)
        return call, Usage(input_tokens=estimated, output_tokens=bound)

    def _new_attempt(
        self,
        attempt_id: str,
        pack: list[Member],
        trip: Trip,
        call: WireCall,
        worst: Usage,
        ticket: Ticket,
    ) -> NewAttempt:
        endpoint = self._endpoint
        members = [[member.rows[0][1].ordinal, member.key] for member in pack]
        return NewAttempt(
            attempt_id=attempt_id,
            realm=self._ledger.realm,
            workload=self._job.workload,
            step=self._step.name,
            batch_id=self._job.batch_id,
            run_id=self._job.run_id,
            request_id=trip.request_id,
            parent_request_id=trip.parent,
            reason="retry" if trip.sent else trip.reason,
            provider=endpoint.provider,
            model=endpoint.label,
            key_id=endpoint.key_id,
            lane="realtime",
            owner_id=self._owner.owner_id,
            item_count=len(pack),
            members=orjson.dumps(members).decode(),
            estimated_input_tokens=worst.input_tokens,
            worst_nano=self._cost_nano(worst),
            rate_wait_s=ticket.waited_s,
            workload_day=day_of("", self._clock.now()),
            provider_day=day_of(endpoint.provider, self._clock.now()),
            timeout_s=self._step.timeout_s,
        )

    def _cost_nano(self, usage: Usage) -> int:
        return 0 if self._pricer is None else self._pricer(usage, self._clock.now())

    # ---- settling ----

    def _settle_reply(
        self, flight: Flight, reply: Reply, wire: WireReply, latency_s: float
    ) -> Answers:
        """Validate a reply and settle it with all that follows; a validator's bug loses nothing."""
        pack, attempt_id = flight.pack, flight.attempt_id
        self._answered = True
        usage = reply.usage or Usage()
        cost = self._cost_nano(usage)
        if reply.provider_cost_usd is not None:
            cost = round(reply.provider_cost_usd * NANO)
        self._gate.correct(flight.ticket, usage.input_tokens, usage.output_tokens)
        self._output_per_item += 0.1 * (usage.output_tokens / len(pack) - self._output_per_item)
        self._count_usage(pack, usage, cost, latency_s)
        settlement = partial(
            Settlement,
            attempt_id=attempt_id,
            state=AttemptState.SETTLED,
            cost_nano=cost,
            status=wire.status,
            answered_model=reply.model,
            input_tokens=usage.input_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
            output_tokens=usage.output_tokens,
            thinking_tokens=usage.thinking_tokens,
            latency_s=latency_s,
            request=flight.call.body,
            reply=wire.body,
        )
        try:
            answers = read_answers(self._step, len(pack), reply)
        except Exception:
            # The reply is paid: keep it, so that a later run derives it once the bug is mended.
            self._post(SETTLE, settlement(derived=False))
            raise
        entries = self._succeeded(attempt_id, pack, answers)
        finishes = self._finishes(entries)
        results = StoreResults(
            realm=self._ledger.realm,
            workload=self._job.workload,
            step=self._step.name,
            model=self._endpoint.label,
            attempt_id=attempt_id,
            owner_id=self._owner.owner_id,
            outputs=[(pack[place].key, output) for place, output in answers.valid.items()],
        )
        self._post(
            SETTLE,
            settlement(
                derived=not answers.problems,
                results=results,
                finished=[request for request, _, _ in finishes],
            ),
            partial(self._settled, finishes),
        )
        return answers

    def _succeeded(self, attempt_id: str, pack: list[Member], answers: Answers) -> list[Finished]:
        """Mark what a reply says on its members; gives the rows that it ends."""
        for place, problem in answers.problems.items():
            member = pack[place]
            member.asks += 1
            member.error = problem
            member.refused = answers.refused
        entries = []
        for place in answers.valid:
            member = pack[place]
            self._members.pop(member.key, None)
            for rank, (state, item) in enumerate(member.rows):
                outcome = ItemOutcome(
                    ordinal=item.ordinal,
                    outcome=Outcome.SUCCEEDED,
                    cached=rank > 0,
                    cache_key=member.key,
                    model=self._endpoint.label,
                    attempt_id=attempt_id,
                    cost_nano=member.cost_nano if rank == 0 else 0,
                )
                entries.append((state, item, outcome))
        return entries

    def _settle_error(
        self, flight: Flight, error: ProviderError, wire: WireReply | None, latency_s: float
    ) -> None:
        usage = error.usage or Usage()
        lost = error.maybe_billed and error.usage is None
        cost = self._cost_nano(flight.worst if lost else usage)
        self._post(
            SETTLE,
            Settlement(
                attempt_id=flight.attempt_id,
                state=AttemptState.LOST if lost else AttemptState.SETTLED,
                cost_nano=cost,
                status=error.status,
                error_kind=error.kind.value,
                error=error.message[:2_000],
                input_tokens=usage.input_tokens,
                cached_input_tokens=usage.cached_input_tokens,
                cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
                output_tokens=usage.output_tokens,
                thinking_tokens=usage.thinking_tokens,
                latency_s=latency_s,
                request=flight.call.body,
                reply=None if wire is None else wire.body,
            ),
        )
        self._gate.correct(flight.ticket, usage.input_tokens, usage.output_tokens)
        if lost:
            self._tally.lost_nano += cost
        else:
            self._count_usage(flight.pack, usage, cost, latency_s)

    async def _derive_what_was_paid(self) -> None:
        """Turn paid replies of dead runs into results.

        A crash, or a validator's bug, came between settlement and derivation.
        """
        found = await asyncio.to_thread(self._read_underived)
        for attempt in found:
            codec = PROVIDERS[attempt.provider].codec
            try:
                reply = codec.read(WireReply(attempt.status, {}, attempt.reply))
                answers = read_answers(self._step, len(attempt.members), reply)
            except Exception:
                # It stays underived, for a run after the codec's or validator's bug is mended.
                continue
            if answers.valid:
                self._post(
                    STORE_LATE,
                    StoreResults(
                        realm=self._ledger.realm,
                        workload=self._job.workload,
                        step=self._step.name,
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
        await self._commit_all()

    def _read_underived(self) -> list[UnderivedAttempt]:
        with self._ledger.read() as connection:
            return find_underived(
                connection,
                self._ledger.realm,
                self._job.workload,
                self._step.name,
                self._ledger.now(connection),
            )

    # ---- finishing ----

    def _finish_cached(self, member: Member, hit: StoredResult) -> None:
        self._finish(
            [
                (
                    state,
                    item,
                    ItemOutcome(
                        ordinal=item.ordinal,
                        outcome=Outcome.SUCCEEDED,
                        cached=True,
                        cache_key=member.key,
                        model=hit.model,
                        attempt_id=hit.attempt_id,
                    ),
                )
                for state, item in member.rows
            ]
        )

    def _finish_failed(self, member: Member, kind: str = "content") -> None:
        """End a member without a result; rows that share the question end with it."""
        if self._members.pop(member.key, None) is None:
            return
        outcome = Outcome.BLOCKED if member.refused else Outcome.FAILED
        self._release([member.key])
        self._finish(
            [
                (
                    state,
                    item,
                    ItemOutcome(
                        ordinal=item.ordinal,
                        outcome=outcome,
                        cache_key=member.key,
                        model=self._endpoint.label,
                        error_kind="refused" if member.refused else kind,
                        error=f"Row {item.number} ({item.item_id}): {member.error}",
                        cost_nano=member.cost_nano if rank == 0 else 0,
                    ),
                )
                for rank, (state, item) in enumerate(member.rows)
            ]
        )

    def _finish(self, entries: list[Finished]) -> None:
        """Write what items came to without a call of their own; counts move once committed."""
        for request, state, ended in self._finishes(entries):
            self._post(FINISH_ITEMS, request, partial(self._finished, state, ended))

    def _finishes(
        self, entries: list[Finished]
    ) -> list[tuple[FinishItems, ChunkState, list[Finished]]]:
        """One write for each chunk that `entries` touch."""
        by_chunk: dict[str, list[Finished]] = {}
        for entry in entries:
            by_chunk.setdefault(entry[0].chunk.chunk_key, []).append(entry)
        return [
            (
                FinishItems(
                    realm=self._ledger.realm,
                    batch_id=ended[0][0].chunk.batch_id,
                    chunk_key=key,
                    fence=ended[0][0].fence,
                    outcomes=[outcome for _, _, outcome in ended],
                ),
                ended[0][0],
                ended,
            )
            for key, ended in by_chunk.items()
        ]

    def _settled(
        self,
        finishes: list[tuple[FinishItems, ChunkState, list[Finished]]],
        held: list[bool],
    ) -> None:
        for (_, state, ended), mine in zip(finishes, held, strict=True):
            self._finished(state, ended, mine)

    def _finished(self, state: ChunkState, ended: list[Finished], held: bool) -> None:
        if not held:
            self._break(
                ChunkHeldError(
                    f"Chunk {state.chunk.chunk_key} was taken over by another run.",
                    "Paid answers are kept; that run finishes the chunk.",
                )
            )
            return
        for _, item, outcome in ended:
            state.left -= 1
            for tally in (state.tally, self._tally):
                tally.outcomes[outcome.outcome] += 1
                tally.cache_hits += outcome.cached
            if outcome.outcome is not Outcome.SUCCEEDED:
                self._show_failed(state, item, outcome.outcome, outcome.error or "")
        self._close_if_done(state)

    def _show_failed(self, state: ChunkState, item: Item, outcome: Outcome, error: str) -> None:
        if len(state.failed) < _MAX_FAILED_SHOWN:
            state.failed.append(FailedRow(item.number, item.item_id, outcome, error))

    def _close_if_done(self, state: ChunkState) -> None:
        if state.loading or state.left > 0:
            return
        state.loading = True  # closes once
        outcomes = state.tally.outcomes
        self._post(
            UNLEASE_CHUNK,
            Unlease(self._ledger.realm, state.chunk.chunk_key, self._owner.owner_id, state.fence),
        )
        self._emit(
            ChunkDone(
                chunk_key=state.chunk.chunk_key,
                complete=outcomes[Outcome.FAILED] == 0 and outcomes[Outcome.PENDING] == 0,
                tally=state.tally,
                failed=state.failed,
                wall_s=self._clock.now() - state.began,
            )
        )

    def _release(self, keys: Sequence[str]) -> None:
        self._post(RELEASE, ReleaseKeys(self._ledger.realm, self._owner.owner_id, keys))

    # ---- bookkeeping ----

    def _count_attempt(self, pack: list[Member], ticket: Ticket, *, first: bool) -> None:
        tallies = [self._tally, *(state.tally for state in chunks_of(pack))]
        for tally in tallies:
            tally.attempts += 1
            tally.requests += first
            tally.rate_wait_s += ticket.waited_s

    def _count_usage(
        self, pack: list[Member], usage: Usage, cost_nano: int, latency_s: float
    ) -> None:
        self._tally.add_usage(usage, cost_nano, 1.0)
        self._tally.latencies_s.append(latency_s)
        for state in chunks_of(pack):
            state.tally.latencies_s.append(latency_s)
        # The stated rule: an attempt's cost is split equally over the rows it asked about; the
        # first takes the rest.
        share = cost_nano // len(pack)
        for place, member in enumerate(pack):
            member.cost_nano += share + (cost_nano - share * len(pack) if place == 0 else 0)
            member.rows[0][0].tally.add_usage(usage, cost_nano / len(pack), 1.0 / len(pack))

    def _post(
        self, operation: Operation[Any], parameters: Any, then: Callable[[Any], None] | None = None
    ) -> None:
        """Queue a write; `then` gets its answer once committed, and a failure stops the run."""
        future = self._writer.post(operation, parameters)
        self._commits.add(future)

        def done(_: asyncio.Future[Any]) -> None:
            self._commits.discard(future)
            if future.cancelled():
                return
            error = future.exception()
            if error is not None:
                self._break(error)
            elif then is not None:
                then(future.result())

        future.add_done_callback(done)

    async def _commit_all(self) -> None:
        """Wait until every posted write, and what follows from it, is committed."""
        while self._commits:
            await asyncio.wait(self._commits)
            await asyncio.sleep(0)


def _fatal_message(label: str, error: ProviderError) -> str:
    status = f"HTTP {error.status}: " if error.status else ""
    return (
        f"{label} refuses every call ({status}{error.message}). The run stopped at once; rows not "
        "done stay pending. Check the key, the model name and the account "
        "(`batch-pipeline keys check`), then run again."
    )


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
