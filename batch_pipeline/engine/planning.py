"""Which rows need a call, and in what order they get there: the planning side of a run.

What belongs here: leasing chunks, cache, single flight, steps, packs. What does not: workers and
the life of a run (engine.py), asking (calling.py), provider jobs (lanes/), SQL (ledger).

A row's way: lease its chunk -> cache -> single flight -> pack -> a worker; after each step again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import sqlalchemy as sa

from batch_pipeline.engine.answers import is_valid
from batch_pipeline.engine.finishing import ChunkHeldError, Finisher
from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.lanes.batch import BatchLane
from batch_pipeline.engine.local import LocalDesk
from batch_pipeline.engine.packing import Packer
from batch_pipeline.engine.queueing import PackQueue
from batch_pipeline.engine.records import ChunkState, Member
from batch_pipeline.engine.routes import Routes
from batch_pipeline.engine.state import RunState
from batch_pipeline.engine.step import AnyStep, Branches, LocalStep, Step, llm_steps, single_steps
from batch_pipeline.engine.upstream import Route
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
    ClaimKeys,
    StoredResult,
    claimed_keys,
    find_results,
    this_host,
)
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.jobs import Line, lines_paid_for
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.pricing.tokens import estimate_item_tokens
from batch_pipeline.providers.base import ErrorKind

_PARKED_POLL_S = 0.25
_ENQUEUED_POLL_S = 5.0
_HELD_POLL_S = 0.5
_FIRST_LEASE = 1
"""The fence of a chunk that no run had before."""
_MOST_WAITING = 256
"""Packs that wait for a worker, above which no further chunk is begun."""


class Planner:
    """Feeds the workers and the batch lane of one run.

    Args:
        state: the run.
        finisher: ends rows.
        routes: which models rows ask.
        lane: takes rows to Batch APIs.
        local: does local steps.
        look_ahead: told once there will be calls in real time.
        packs: gives the queue that the workers take packs from.
    """

    def __init__(
        self,
        state: RunState,
        finisher: Finisher,
        routes: Routes,
        lane: BatchLane,
        local: LocalDesk,
        look_ahead: Callable[[], None],
        packs: Callable[[], PackQueue],
    ) -> None:
        self._state = state
        self._ledger = state.ledger
        self._writer = state.writer
        self._clock = state.clock
        self._job = state.job
        self._owner = state.owner
        self._finisher = finisher
        self._routes = routes
        self._lane = lane
        self._local = local
        self._look_ahead = look_ahead
        self._packs = packs
        self._most_waiting = min(_MOST_WAITING, max(2, self._job.settings.workers))
        self._keys = {step.name: KeyMaker(step) for step in llm_steps(self._job.steps)}
        self._news = asyncio.Event()
        self._wants_room = False
        state.on_advance = self._news.set
        self._waits = self._job.settings.lane.wait
        self._enqueued: dict[str, Member] = {}
        self._lines: dict[str, Line] = {}
        self._collected = 0
        self._look_enqueued_at = 0.0
        self._packers: dict[tuple[str, Route], Packer[Member]] = {}
        self._parked: dict[str, Member] = {}
        self._later: list[Member] = []
        self._asked_rows: set[tuple[str, int]] = set()
        self._released_at: float | None = None

    async def plan(self) -> None:
        """Feed the workers: lease, look up, claim, pack."""
        with self._ledger.read() as connection:
            chunks = find_chunks(connection, self._ledger.realm, list(self._job.chunk_keys))
        self._state.total = sum(chunk.row_count for chunk in chunks)
        if self._state.stopping:
            # The stop came before there was anything to cancel.
            return
        await self._lane.begin()
        self._lane.tend()
        for chunk in chunks:
            await self._until_room()
            state = await self._lease(chunk)
            await self._load(state)
            await self._adopt_parked()
            await self._go_on()
        await self.finish()

    @property
    def has_later(self) -> bool:
        """Whether rows wait for an answer of their question by another route."""
        return bool(self._later)

    def has_room(self, more: int = 1) -> bool:
        """Whether the workers want so many more rows than wait for them already."""
        return len(self._packs()) + more <= self._most_waiting

    def look(self) -> None:
        """A worker has taken a pack: there may be room for more rows."""
        if self._wants_room:
            self._news.set()

    async def _until_room(self) -> None:
        """Wait until the workers want more rows; meanwhile those that are begun go on."""
        self._wants_room = True
        while not self.has_room():
            self._news.clear()
            if self._state.advanced:
                await self._go_on()
            else:
                await self._news.wait()
        self._wants_room = False

    async def finish(self) -> None:
        """Feed the workers until nothing is left that may still want a call."""
        self._news.clear()
        await self._go_on()
        await self._flush()
        while self._something_to_come():
            if self._parked or self._later:
                await self._clock.sleep(_PARKED_POLL_S)
                await self._writer.post(BURY_DEAD, this_host())
            elif self._enqueued:
                await self._lane.news(_ENQUEUED_POLL_S)
            elif not self._state.advanced:
                await self._news.wait()
            # Before what follows: a row that leaves its step meanwhile may be what the last rows
            # of another step are waiting for.
            self._news.clear()
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
        if todo and self._job.settings.chunk_interval_s and not self._limit_is_reached():
            await self._keep_interval(state)
        routed = await self._routes.of_rows(state, todo)
        behind = await asyncio.to_thread(self._checkpoints, state, [item for item, _ in routed])
        self._state.advanced += [
            (state, item, route, behind.get(item.ordinal)) for item, route in routed
        ]
        await self._go_on()
        state.loading = False
        self._finisher.close_if_done(state)

    async def _keep_interval(self, state: ChunkState) -> None:
        """Wait until rows of a chunk may be begun; meanwhile those before them go on."""
        interval_s, before = self._job.settings.chunk_interval_s, self._released_at
        if before is not None and state.fence == _FIRST_LEASE:
            while (left := before + interval_s - self._clock.now()) > 0:
                self._news.clear()
                await self._adopt_parked()
                await self._go_on()
                await self._flush()
                self._state.note = f"Waiting {interval_s:.1f} s before the next chunk"
                await self._news_within(min(left, _PARKED_POLL_S))
            self._state.note = ""
            # the time it took to get here is not the chunk's
            state.began = self._clock.now()
        self._released_at = self._clock.now()

    async def _news_within(self, seconds: float) -> None:
        """Wait for rows that have gone on, but no longer than so many seconds."""
        waiters = (
            asyncio.ensure_future(self._news.wait()),
            asyncio.ensure_future(self._clock.sleep(seconds)),
        )
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()

    async def _take_up(self, step: Step, rows: Sequence[tuple[ChunkState, Item, Route]]) -> None:
        """Bring rows to a step: end those whose answers are stored, ask the others."""
        if step.web_search is not None:
            rows = self._able_to_search(step, rows)
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

    def _able_to_search(
        self, step: Step, rows: Sequence[tuple[ChunkState, Item, Route]]
    ) -> list[tuple[ChunkState, Item, Route]]:
        """Rows all of whose models can search the web; the others end here."""
        found = []
        for state, item, route in rows:
            unable = [one.label for one in route if not one.endpoint.codec.web_search]
            if not unable:
                found.append((state, item, route))
                continue
            problem = (
                f"Its step {step.name} searches the web, and {' and '.join(unable)} cannot. Put "
                "models of OpenRouter into the route, such as `openrouter/openai/gpt-6-luna`."
            )
            self._finisher.unusable(state, item, problem)
        return found

    async def _go_on(self) -> None:
        """Take rows that are through a step to their next one."""
        while self._state.advanced:
            rows, self._state.advanced = self._state.advanced, []
            by_step: dict[str, list[tuple[ChunkState, Item, Route]]] = {}
            for state, item, route, through in rows:
                if not self._is_joined(state, item, through):
                    continue
                for step in self._next_of(state, item, through):
                    by_step.setdefault(step.name, []).append((state, item, route))
            for one in single_steps(self._job.steps):
                found = by_step.get(one.name, [])
                if isinstance(one, LocalStep):
                    for state, item, route in found:
                        # One that came here by stored answers, and searches nothing, costs nothing.
                        costs = bool(one.searches) or item.ordinal not in state.outputs
                        if not costs or self._takes_row(state, item):
                            await self._local.take(one, state, item, route)
                        else:
                            self._finisher.leave_pending(state, item)
                            self._finisher.close_if_done(state)
                elif one.by_run_route and found:
                    shared = [(state, item, self._routes.run) for state, item, _ in found]
                    await self._take_up(one, shared)
                elif found:
                    await self._take_up(one, found)

    def _next_of(
        self, state: ChunkState, item: Item, through: AnyStep | None
    ) -> Sequence[Step | LocalStep]:
        """The step, or the branches, that a row takes next; where there is none it ends."""
        row = state.known(item)
        for step in self._job.steps_after(through, row):
            return step.of(row) if isinstance(step, Branches) else [step]
        self._finisher.at_its_end(state, item)
        return []

    def _is_joined(self, state: ChunkState, item: Item, through: AnyStep | None) -> bool:
        """Whether a row goes on: behind branches once, when the last of them has ended."""
        branches = None if through is None else self._job.branches_of(through)
        if branches is None:
            return True
        row, mark = state.known(item), (item.ordinal, branches.name)
        if mark in state.joined or not all(step.name in row for step in branches.of(row)):
            return False
        state.joined.add(mark)
        return True

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
                if document.editor or document.made_at >= item.fresh_at(name):
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
            fresh_after = _fresh_after(members)
            with self._ledger.read() as connection:
                for route, keys in _keys_by_route(members).items():
                    models = [one.label for one in route]
                    found |= find_results(connection, self._ledger.realm, keys, models, fresh_after)
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
                known.fresh_after = max(known.fresh_after, item.fresh_at(step.name))
                continue
            found[key, route] = Member(
                step=step,
                key=key,
                content=content,
                tokens=estimate_item_tokens(content),
                rows=[(state, item)],
                route=route,
                fresh_after=item.fresh_at(step.name),
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
                for state, item in member.rows:
                    self._finisher.leave_pending(state, item)
                continue
            self._state.open(member)
            fresh.append(member)
        if not fresh:
            return
        if self._job.settings.lane.lane == "realtime":
            self._look_ahead()
        mine: set[str] = set()
        enqueued: set[str] = set()
        results: dict[str, StoredResult] = {}
        fresh_after = _fresh_after(fresh)
        for route, keys in _keys_by_route(fresh).items():
            claimed = await self._writer.post(
                CLAIM,
                ClaimKeys(
                    self._ledger.realm,
                    self._owner.owner_id,
                    "realtime",
                    keys,
                    [one.label for one in route],
                    fresh_after,
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
                self.went_up(member)
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
                self._packs().put(pack)

    def went_up(self, member: Member) -> None:
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
        if self._job.settings.limit is None:
            return True
        if rows - self._asked_rows and self._limit_is_reached():
            return False
        self._asked_rows |= rows
        return True

    def _limit_is_reached(self) -> bool:
        limit = self._job.settings.limit
        return limit is not None and len(self._asked_rows) >= limit

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

    async def finish_collected(self) -> None:
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
        ready = {step.name for step in llm_steps(self._job.steps)} - to_come
        for (name, _), packer in self._packers.items():
            for pack in packer.flush() if name in ready else ():
                self._packs().put(pack)
        await self._lane.flush(ready)

    def _on_the_way(self) -> set[frozenset[str]]:
        """Which steps rows have before them that are asked, or worked on, now."""
        return set(self._state.early.values())


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


def _fresh_after(members: Iterable[Member]) -> dict[str, float]:
    """Since when answers count, by cache key, where old ones do not."""
    found: dict[str, float] = {}
    for member in members:
        if member.fresh_after:
            found[member.key] = max(member.fresh_after, found.get(member.key, 0.0))
    return found
