"""The batch lane of a run: rows go up in provider jobs, and what comes back ends them.

What belongs here: which rows go up, in which jobs, when there is room; looking after the run's jobs
while it waits for them. What does not: one job and its provider (desk.py), its results
(collect.py), how rows end (finishing.py).

There are no waves: a job goes up as soon as there is room for it. Unless the run waits, nothing of
it is left once its jobs are submitted: the ledger says what is to be done next, and whoever runs
the batch again does it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import orjson

from batch_pipeline.engine.job import LaneSettings
from batch_pipeline.engine.lanes.choice import (
    expected_job_s,
    must_leave,
    takes_batch_lane,
)
from batch_pipeline.engine.lanes.collect import NO_ROOM_CODE, Collected, Collector
from batch_pipeline.engine.lanes.desk import Advance, JobDesk, JobTakenError
from batch_pipeline.engine.packing import Packer, halve
from batch_pipeline.engine.records import Built, Member
from batch_pipeline.engine.state import RunState
from batch_pipeline.engine.step import llm_steps
from batch_pipeline.engine.upstream import Route, Upstream, budgets_of
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.calls import NewAttempt
from batch_pipeline.ledger.jobs import (
    BATCH_LANE,
    HOLD_JOBS,
    OPEN_JOB,
    HoldJobs,
    OpenJob,
    ProviderJob,
    Window,
    durations,
    enqueued,
    list_jobs,
)
from batch_pipeline.ledger.spend import Short
from batch_pipeline.ledger.tables import UNFINISHED_JOB_STATES, JobState
from batch_pipeline.providers.base import ErrorKind, Usage
from batch_pipeline.providers.batches import BatchLimits
from batch_pipeline.providers.registry import batch_limits

JOBS_OF_A_WINDOW = 20
"""Small enough that a job that ends frees room at once, large enough that 90 of them hold a lot."""

MOST_ITEMS = 1_000
_MOST_BYTES = 64 * 1024 * 1024
_AROUND_BODY = 200
_FEWEST_TOKENS = 1_000
_SUBMITTING = 3
_SHORTEST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0
_CANCEL_WAIT_S = 60.0
_NO_ROOM_FOR_S = 600.0
_DEADLINE_MARGIN_S = 300.0
_UNPACED_PER_S = 5.0
_TO_BRING_UP = (JobState.INTENDED, JobState.UPLOADED, JobState.CREATING)
_OF_THE_ROW = frozenset({ErrorKind.CONTENT, ErrorKind.REFUSED, ErrorKind.ITEM_PERMANENT})
"""What a row, or the answer about it, can be to blame for."""


class Full(StrEnum):
    """Why nothing more goes up in a run."""

    WINDOW = "window"
    BUDGET = "budget"
    PROVIDER = "provider"
    CANCELLED = "cancelled"


_WAITS_FOR = {
    Full.WINDOW: "room under the limit of enqueued tokens and jobs",
    Full.BUDGET: "room in the budget",
    Full.PROVIDER: "the provider to take jobs",
    Full.CANCELLED: "the batch to be run again, because its provider jobs were cancelled",
}


@dataclass(slots=True)
class _Draft:
    """A job in the making."""

    upstream: Upstream
    owner_id: str = field(default_factory=lambda: f"job{uuid.uuid4().hex[:20]}")
    members: list[Member] = field(default_factory=list)
    lines: list[tuple[NewAttempt, bytes]] = field(default_factory=list)
    packs: list[tuple[list[Member], Built]] = field(default_factory=list)
    tokens: int = 0
    body_bytes: int = 0
    items: int = 0


class BatchLane:
    """One run's way through the Batch APIs.

    Args:
        state: the run.
        desk: works on jobs.
        collector: reads their results.
        build: makes the request of a pack.
        look_at_keys: asks, once, whether keys and models are good.
        under_way: ends what this run has to do with rows that a provider job asks about.
        leave_pending: ends it with rows that wait for room.

    Attributes:
        full: why nothing more goes up in this run; None while there is room.
        generation: grows each time results were collected.
        used: the batch has, or had, provider jobs.
        short: the budget that the last job did not fit into.
    """

    def __init__(
        self,
        state: RunState,
        desk: JobDesk,
        collector: Collector,
        build: Callable[[list[Member], Upstream], Built],
        look_at_keys: Callable[[], Awaitable[None]],
        under_way: Callable[[Member], None],
        leave_pending: Callable[[Member], None],
    ) -> None:
        self._state = state
        self._settings: LaneSettings = state.job.settings.lane
        self._desk = desk
        self._collector = collector
        self._build = build
        self._look_at_keys = look_at_keys
        self._mark_under_way = under_way
        self._leave_pending = leave_pending
        self._clock = state.clock
        self._drafts: dict[tuple[str, str], _Draft] = {}
        self._packers: dict[tuple[str, str, bool], Packer[Member]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._submitting: set[str] = set()
        self._collecting: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(_SUBMITTING)
        self._news = asyncio.Event()
        self._came_up = asyncio.Event()
        self._tender: asyncio.Task[None] | None = None
        self._job_s: dict[str, float] = {}
        self._left_realtime = False
        self.full: Full | None = None
        self.generation = 0
        self.used = False
        self.short: Short | None = None

    # ---- which rows ----

    def upstream_of(self, route: Route) -> Upstream | None:
        """The model that a row goes up to; None where it is to be asked in real time."""
        if self._settings.lane == "realtime" or self._left_realtime:
            return None
        for upstream in route:
            if upstream.dead or batch_limits(upstream.endpoint.provider) is None:
                continue
            if self._settings.lane == "auto" and not self._worth_it(upstream):
                return None
            return upstream
        return None

    def gives_up(self, member: Member) -> bool:
        """Whether jobs have had their tries at a row."""
        return max(item.lane_tries for _, item in member.rows) >= self._settings.tries

    def _worth_it(self, upstream: Upstream) -> bool:
        label = upstream.label
        if label not in self._job_s:
            with self._state.ledger.read() as connection:
                took = durations(
                    connection, self._state.ledger.realm, upstream.endpoint.provider, label
                )
            self._job_s[label] = expected_job_s(took)
        return takes_batch_lane(
            self._clock.now(),
            self._settings.deadline_at,
            self._job_s[label],
            self._realtime_s(upstream),
            cheaper=_is_cheaper(upstream, self._clock.now()),
        )

    def _realtime_s(self, upstream: Upstream) -> float:
        """How long the run's rows would take in real time, generously."""
        rate = upstream.gate.requests_per_s or _UNPACED_PER_S
        steps = llm_steps(self._state.job.steps)
        requests = sum(self._state.total / step.max_items for step in steps)
        return requests / rate + _DEADLINE_MARGIN_S

    # ---- the life of the lane ----

    async def begin(self) -> None:
        """Take up what earlier runs of this batch left: submit, look, collect."""
        self.used = await asyncio.to_thread(self._was_used)
        jobs = await self._hold() if self.used else []
        if not jobs:
            return
        self._state.note = f"looking at {len(jobs)} provider jobs"
        await self._bring_up(jobs)
        await self._look(self._unfinished())
        if self._settings.submit_only:
            return
        await self._rescue()
        await self._collect_ended()

    def tend(self) -> None:
        """Look after the jobs while the run goes on, where it is to wait for them."""
        if self._settings.wait and self._tender is None:
            self._tender = asyncio.create_task(self._tend())
            self._tender.add_done_callback(self._tender_stopped)

    def _tender_stopped(self, tender: asyncio.Task[None]) -> None:
        if not tender.cancelled() and (error := tender.exception()) is not None:
            self._state.break_off(error)
        self._news.set()

    async def finish(self) -> None:
        """Wait until what was to go up is with the providers, or left for another run."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End the lane's tasks and connections."""
        if self._tender is not None:
            self._tender.cancel()
            await asyncio.gather(self._tender, return_exceptions=True)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._desk.aclose()

    async def news(self, timeout_s: float) -> None:
        """Wait until something was collected, or for `timeout_s` seconds."""
        await _until_set(self._news, timeout_s)
        # Not before the wait: what came while the caller was busy must not be missed.
        self._news.clear()

    # ---- rows in ----

    async def add(self, member: Member, upstream: Upstream) -> None:
        """Take a claimed row; it goes up, or, where there is no room, is left pending."""
        if self.full:
            self._leave_pending(member)
            return
        row = max((item for _, item in member.rows), key=lambda item: item.lane_tries)
        # What was wrong is told, and a row that may have spoiled its pack goes alone. Where its job
        # or the provider failed, rows share requests as before.
        alone = row.lane_tries > 0 and row.error_kind in _OF_THE_ROW
        if alone:
            member.asks, member.error = row.lane_tries, row.error or ""
        step = member.step
        place = (upstream.label, step.name, alone)
        packer = self._packers.get(place)
        if packer is None:
            packer = Packer(1 if alone else step.max_items, step.max_input_tokens)
            self._packers[place] = packer
        for pack in packer.add(member):
            await self._enter(pack, upstream)

    async def flush(self, steps: Container[str]) -> None:
        """Send up what is left over of `steps`, by name."""
        for (label, name, _), packer in list(self._packers.items()):
            for pack in packer.flush() if name in steps else ():
                upstream = next(one for one in pack[0].route if one.label == label)
                await self._enter(pack, upstream)
        for place in list(self._drafts):
            if place[1] in steps:
                await self._send(self._drafts.pop(place))

    async def _enter(self, pack: list[Member], upstream: Upstream) -> None:
        if self.full:
            self._leave(pack)
            return
        if not upstream.looked:
            await self._look_at_keys()
            if upstream.dead:
                self._stop_lane(Full.PROVIDER)
                self._state.left_behind = self._state.left_behind or ("stopped", upstream.dead)
                self._leave(pack)
                return
        limits = batch_limits(upstream.endpoint.provider)
        assert limits is not None
        built = self._build(pack, upstream)
        size = _line_bytes(built)
        place = (upstream.label, pack[0].step.name)
        draft = self._drafts.get(place)
        if draft is not None and self._is_full(draft, limits, built.input_tokens, size, len(pack)):
            await self._send(self._drafts.pop(place))
            draft = None
            if self.full:
                self._leave(pack)
                return
        if draft is None:
            draft = self._drafts[place] = _Draft(upstream)
        self._write_line(draft, pack, built)

    def _leave(self, members: Iterable[Member]) -> None:
        for member in members:
            self._leave_pending(member)

    def _is_full(
        self, draft: _Draft, limits: BatchLimits, tokens: int, size: int, items: int
    ) -> bool:
        most_items = self._settings.job_items or MOST_ITEMS
        window = draft.upstream.endpoint.enqueued_tokens
        if window is not None and self._settings.job_items is None:
            most_tokens = max(_FEWEST_TOKENS, window // JOBS_OF_A_WINDOW)
            if draft.tokens + tokens > most_tokens:
                return True
        if window is not None and draft.tokens + tokens > window:
            return True
        return (
            draft.items + items > most_items
            or len(draft.lines) >= limits.max_lines
            or draft.body_bytes + size > min(limits.max_bytes, _MOST_BYTES)
        )

    def _write_line(self, draft: _Draft, pack: list[Member], built: Built) -> None:
        state, upstream = self._state, draft.upstream
        job, endpoint, now = state.job, upstream.endpoint, self._clock.now()
        workload_day, provider_day = upstream.days(now)
        number = len(draft.lines) + 1
        spending = job.settings.spending
        realm = state.ledger.realm
        limits = batch_limits(endpoint.provider)
        assert limits is not None
        attempt = NewAttempt(
            attempt_id=f"{draft.owner_id}-{number:05d}",
            realm=realm,
            workload=job.workload,
            step=pack[0].step.name,
            batch_id=job.batch_id,
            run_id=job.run_id,
            request_id=f"{draft.owner_id}-r{number}",
            parent_request_id=None,
            reason="re-ask" if any(member.asks for member in pack) else "first",
            provider=endpoint.provider,
            model=endpoint.label,
            key_id=endpoint.key_id,
            lane=BATCH_LANE,
            owner_id=draft.owner_id,
            item_count=len(pack),
            members=orjson.dumps(
                [[member.rows[0][1].ordinal, member.key] for member in pack]
            ).decode(),
            estimated_input_tokens=built.input_tokens,
            worst_nano=upstream.worst_nano(
                pack[0].step,
                len(built.call.body),
                built.user_bytes,
                built.output_bound,
                now,
                batch=True,
            ),
            rate_wait_s=0.0,
            workload_day=workload_day,
            provider_day=provider_day,
            timeout_s=limits.expires_s + limits.results_kept_s,
            budgets=budgets_of(spending, realm, job.workload, job.batch_id, upstream, now)
            if spending.bounded
            else (),
        )
        draft.lines.append((attempt, built.call.body))
        draft.packs.append((pack, built))
        draft.members.extend(pack)
        draft.tokens += built.input_tokens
        draft.body_bytes += _line_bytes(built)
        draft.items += len(pack)

    # ---- jobs up ----

    async def _send(self, draft: _Draft) -> None:
        """Write a job down as soon as there is room for it, and bring it up."""
        while True:
            window = await asyncio.to_thread(self._window, draft.upstream)
            if window.tokens is not None and draft.tokens > window.tokens and draft.items > 1:
                # The provider has shown that it has less room than was thought.
                for part in self._halves(draft):
                    await self._send(part)
                return
            # Asked first: a job that settles after the refusal may have made the room.
            alone = not await asyncio.to_thread(self._has_jobs)
            opened = await self._state.writer.post(OPEN_JOB, self._open_request(draft, window))
            if opened.job_id is not None:
                break
            if opened.short is not None:
                # Smaller requests cost more: only when no job is left that settles for less.
                if len(draft.packs) > 1 or (draft.items > 1 and alone):
                    for part in self._halves(draft):
                        await self._send(part)
                    return
                self.short = opened.short
                if alone:
                    self._state.run_out("budget", "")
                full = Full.BUDGET
            else:
                full = Full.WINDOW
            if not self._settings.wait or self._state.stopping:
                self._stop_lane(full)
                self._leave(draft.members)
                return
            self._state.note = f"waiting for {_WAITS_FOR[full]}"
            await self.news(_LONGEST_WAIT_S)
        self.short = None
        for member in draft.members:
            self._mark_under_way(member)
        self._start(opened.job_id)

    def _stop_lane(self, why: Full) -> None:
        self.full = self.full or why

    @property
    def waits_for(self) -> str:
        """What rows wait for that did not go up, in words."""
        return "a run that asks in real time" if self.full is None else _WAITS_FOR[self.full]

    def _open_request(self, draft: _Draft, window: Window) -> OpenJob:
        endpoint, job = draft.upstream.endpoint, self._state.job
        return OpenJob(
            realm=self._state.ledger.realm,
            batch_id=job.batch_id,
            workload=job.workload,
            step=draft.members[0].step.name,
            provider=endpoint.provider,
            model=endpoint.label,
            key_id=endpoint.key_id,
            owner_id=draft.owner_id,
            holder_id=self._state.owner.owner_id,
            lines=draft.lines,
            keys=[member.key for member in draft.members],
            tokens=draft.tokens,
            body_bytes=draft.body_bytes,
            window=window,
        )

    def _halves(self, draft: _Draft) -> list[_Draft]:
        """Two jobs of a draft that no budget has room for as a whole."""
        parts = []
        packs = draft.packs
        if len(packs) == 1:
            [(pack, _)] = packs
            packs = [(half, self._build(half, draft.upstream)) for half in halve(pack)]
        for half in halve(packs):
            part = _Draft(draft.upstream)
            for pack, built in half:
                self._write_line(part, pack, built)
            parts.append(part)
        return parts

    def _window(self, upstream: Upstream) -> Window:
        """What may be enqueued at a model now: less where the provider just had no room."""
        endpoint, realm = upstream.endpoint, self._state.ledger.realm
        tokens = endpoint.enqueued_tokens
        with self._state.ledger.read() as connection:
            recent = [
                job
                for job in list_jobs(connection, realm, workload=self._state.job.workload, limit=50)
                if (job.provider, job.model, job.key_id)
                == (endpoint.provider, endpoint.label, endpoint.key_id)
            ]
            refused = [
                job
                for job in recent
                if job.error_code == NO_ROOM_CODE
                and (job.ended_at or 0.0) > self._clock.now() - _NO_ROOM_FOR_S
            ]
            if refused:
                held = enqueued(
                    connection, realm, endpoint.provider, endpoint.label, endpoint.key_id
                )
                learned = held.tokens or refused[-1].tokens // 2
                tokens = learned if tokens is None else min(tokens, learned)
        limits = batch_limits(endpoint.provider)
        jobs = self._settings.max_jobs
        if limits is not None and limits.max_jobs is not None:
            jobs = min(jobs, limits.max_jobs)
        return Window(tokens, jobs)

    def _was_used(self) -> bool:
        job = self._state.job
        with self._state.ledger.read() as connection:
            realm = self._state.ledger.realm
            return bool(list_jobs(connection, realm, batch_id=job.batch_id, limit=1))

    def _start(self, job_id: str, *, recovered: bool = False) -> None:
        self.used = True
        self._submitting.add(job_id)
        task = asyncio.create_task(self._advance(job_id, recovered))
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._state.break_off(error)

    async def _advance(self, job_id: str, recovered: bool) -> None:
        async with self._slots:
            job = self._desk.reread(job_id)
            try:
                how_far = await self._desk.advance(job, recovered=recovered)
            except JobTakenError:
                return
            finally:
                self._submitting.discard(job_id)
                self._came_up.set()
            if how_far is Advance.REFUSED:
                await self._refused(job)
            elif how_far is Advance.ABANDONED:
                why = self._desk.reread(job_id).error
                self._news.set()
                self.generation += 1
                if job.batch_id != self._state.job.batch_id:
                    return
                self._stop_lane(Full.CANCELLED if job.cancel_wanted else Full.PROVIDER)
                if not job.cancel_wanted:
                    self._state.left_behind = self._state.left_behind or (
                        "stopped",
                        f"{job.provider} refuses provider jobs: {why} Rows not done stay pending.",
                    )

    async def _refused(self, job: ProviderJob) -> None:
        """The provider takes no more: wait, or, where this job is all there is, make it smaller."""
        realm = self._state.ledger.realm
        with self._state.ledger.read() as connection:
            held = enqueued(connection, realm, job.provider, job.model, job.key_id)
        if held.jobs > 1 or job.item_count == 1:
            if not self._settings.wait:
                self._stop_lane(Full.PROVIDER)
            return
        await self._desk.abandon(job, self._desk.reread(job.job_id).error, NO_ROOM_CODE)
        if self._settings.wait:
            self.generation += 1
            self._news.set()
        elif job.batch_id == self._state.job.batch_id:
            self._state.under_way -= job.item_count
            self._state.waiting += job.item_count
            self._stop_lane(Full.WINDOW)

    async def _bring_up(self, jobs: Sequence[ProviderJob]) -> None:
        now = self._clock.now()
        for job in jobs:
            due = job.next_poll_at <= now
            if job.state in _TO_BRING_UP and due and job.job_id not in self._submitting:
                self._start(job.job_id, recovered=True)
        while self._submitting:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    # ---- jobs that are up ----

    def _unfinished(self) -> list[ProviderJob]:
        """This batch's jobs of which something is to come."""
        with self._state.ledger.read() as connection:
            return list_jobs(
                connection,
                self._state.ledger.realm,
                batch_id=self._state.job.batch_id,
                states=UNFINISHED_JOB_STATES,
            )

    def _has_jobs(self) -> bool:
        return bool(self._unfinished())

    def _ended_jobs(self) -> list[ProviderJob]:
        job = self._state.job
        with self._state.ledger.read() as connection:
            found = list_jobs(
                connection,
                self._state.ledger.realm,
                workload=job.workload,
                batch_id=None if self._settings.wait else job.batch_id,
                states=[JobState.ENDED],
            )
        names = {step.name for step in llm_steps(job.steps)}
        return [one for one in found if one.step in names]

    async def _hold(self, find: Callable[[], list[ProviderJob]] | None = None) -> list[ProviderJob]:
        """Take hold of jobs, by default the batch's; those of another live run are left to it."""
        jobs = await asyncio.to_thread(find or self._unfinished)
        if not jobs:
            return []
        mine = await self._state.writer.post(
            HOLD_JOBS,
            HoldJobs(
                self._state.ledger.realm,
                self._state.owner.owner_id,
                [job.job_id for job in jobs],
            ),
        )
        return [job for job in jobs if job.job_id in mine]

    async def _look(self, jobs: Sequence[ProviderJob]) -> None:
        if await self._desk.look(jobs):
            # There is room again.
            self._news.set()
        for provider, said in self._desk.problems.items():
            self._state.note = f"{provider} does not say how its jobs stand: {said}"

    async def _collect_ended(self) -> None:
        """Read the results of every job of the batch that has ended.

        A run that waits reads those of other batches as well: its rows may be asked about there.
        """
        for job in await self._hold(self._ended_jobs):
            self._state.note = f"collecting {job.job_id}"
            try:
                came = await self._collector.collect(job)
            except UsageError as error:
                self._state.note = str(error)
                continue
            if job.batch_id == self._state.job.batch_id:
                self._count(came)
                if job.cancel_wanted and not self._left_realtime:
                    # Who cancelled it does not want the run that cleans up to submit it again.
                    self._stop_lane(Full.CANCELLED)
            if came.broken is not None:
                raise came.broken
            if came.complete:
                self.generation += 1
            else:
                self._state.note = came.message
        self._news.set()

    def _count(self, came: Collected) -> None:
        tally = self._state.tally
        usage = Usage(
            input_tokens=came.input_tokens,
            cached_input_tokens=came.cached_input_tokens,
            output_tokens=came.output_tokens,
        )
        tally.add_usage(usage, came.cost_nano, 1.0)
        tally.lost_nano += came.lost_nano
        tally.requests += came.lines
        tally.attempts += came.lines
        for kind, count in came.errors.items():
            tally.errors[kind] = tally.errors.get(kind, 0) + count

    async def _tend(self) -> None:
        """Look, collect and bring up, again and again."""
        while True:
            await self._bring_up(await self._hold(self._to_bring_up))
            await self._rescue()
            due = [
                job
                for job in await asyncio.to_thread(self._to_look_at)
                if job.next_poll_at <= self._clock.now()
            ]
            await self._look(due)
            if self._collecting is None or self._collecting.done():
                # Beside the looks: a long download must not keep freed room unused.
                self._collecting = asyncio.create_task(self._collect_ended())
                self._tasks.add(self._collecting)
                self._collecting.add_done_callback(self._task_done)
            self._came_up.clear()
            await _until_set(self._came_up, await asyncio.to_thread(self._next_look_s))

    def _to_bring_up(self) -> list[ProviderJob]:
        """Jobs that are not submitted yet; those of other batches may ask about rows of this one.

        Those are held by a live run, unless it died.
        """
        with self._state.ledger.read() as connection:
            return list_jobs(
                connection,
                self._state.ledger.realm,
                workload=self._state.job.workload,
                states=_TO_BRING_UP,
            )

    def _to_look_at(self) -> list[ProviderJob]:
        """Open jobs of this workload, and others that hold the room it waits for.

        Jobs of other batches may ask the questions of this one.
        """
        with self._state.ledger.read() as connection:
            found = list_jobs(connection, self._state.ledger.realm, states=[JobState.SUBMITTED])
        mine = self._state.job.workload
        keys = {(one.endpoint.provider, one.endpoint.key_id) for one in self._state.upstreams}
        return [job for job in found if job.workload == mine or (job.provider, job.key_id) in keys]

    def _next_look_s(self) -> float:
        now = self._clock.now()
        me = self._state.owner.owner_id
        jobs = [*self._to_look_at(), *(job for job in self._to_bring_up() if job.holder_id == me)]
        waits = [job.next_poll_at - now for job in jobs if job.job_id not in self._submitting]
        idle_s = self._settings.poll_s or _LONGEST_WAIT_S
        return min(_LONGEST_WAIT_S, max(_SHORTEST_WAIT_S, min(waits, default=idle_s)))

    # ---- the deadline ----

    async def _rescue(self) -> None:
        """Near the deadline, take rows back from jobs that have not ended."""
        deadline_at = self._settings.deadline_at
        if self._settings.lane != "auto" or self._left_realtime:
            return
        jobs = [job for job in self._unfinished() if job.is_open]
        upstream = self._state.upstreams[0]
        if not jobs or not must_leave(self._clock.now(), deadline_at, self._realtime_s(upstream)):
            return
        self._state.log.event("deadline near", jobs=len(jobs), deadline_at=deadline_at)
        self._left_realtime = True
        for job in jobs:
            if not job.cancel_wanted:
                await self._desk.cancel(job)
        give_up_at = self._clock.now() + _CANCEL_WAIT_S
        while self._clock.now() < give_up_at and not self._state.stopping:
            await self._bring_up([job for job in self._unfinished() if job.state in _TO_BRING_UP])
            await self._look([job for job in self._unfinished() if job.is_open])
            if not any(job.is_open for job in self._unfinished()):
                return
            self._state.note = "the deadline is near: waiting for provider jobs to be cancelled"
            await self._clock.sleep(min(2.0, self._settings.poll_s or 2.0))


def _line_bytes(built: Built) -> int:
    """Length of a request as a line of a job's file: its body, and what goes around it."""
    return len(built.call.body) + _AROUND_BODY


async def _until_set(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, at most so long."""
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiter], timeout=timeout_s)
    finally:
        waiter.cancel()


def _is_cheaper(upstream: Upstream, at: float) -> bool:
    """Whether a thousand tokens each way cost less in a provider job."""
    pricer = upstream.batch_pricer
    if pricer is None:
        return False
    sample = Usage(input_tokens=1_000, output_tokens=1_000)
    return pricer.cost_nano(sample, at) < upstream.cost_nano(sample, at)
