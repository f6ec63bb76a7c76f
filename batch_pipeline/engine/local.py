"""Local steps: what they may use of a run, and how the engine runs them.

What belongs here: Tools, and running the steps of many rows at once. What does not: what a step
does (workloads/), search calls (searching.py).
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import Protocol

from batch_pipeline.clock import Clock
from batch_pipeline.engine.finishing import Finisher
from batch_pipeline.engine.records import ChunkState
from batch_pipeline.engine.searching import LeftPendingError, Searcher
from batch_pipeline.engine.state import RunState
from batch_pipeline.engine.step import Done, LocalStep, LocalWork, Place
from batch_pipeline.engine.upstream import Route
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.batches import Item
from batch_pipeline.ledger.documents import KEEP_DOCUMENT, KeepDocument
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.search.base import SearchAnswer, SearchQuery

_MOST_AT_WORK = 200
"""Rows at local steps at once: bounds memory, not speed."""


class Tools(Protocol):
    """What a local step may use; bound to the run's realm.

    Attributes:
        ledger: the ledger.
        clock: the run's clock.
        simulator: the simulator's address in the simulated realm, else None.
    """

    ledger: Ledger
    clock: Clock
    simulator: str | None

    async def search(self, provider: str, query: SearchQuery, place: Place) -> SearchAnswer:
        """Ask a search provider, through cache, single flight, limiter, budget and ledger.

        Raises:
            SearchUnavailableError: there is no key, or the provider refuses every call.
            ProviderError: this query cannot be answered.
        """
        ...


class LocalDesk:
    """Runs the local steps of one run's rows; itself the steps' Tools.

    Args:
        state: the run.
        finisher: ends rows.
        searcher: asks search providers.
    """

    def __init__(self, state: RunState, finisher: Finisher, searcher: Searcher) -> None:
        self.ledger = state.ledger
        self.clock = state.clock
        self.simulator = state.job.simulator
        self._state = state
        self._finisher = finisher
        self._searcher = searcher
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._open: dict[str, LocalWork] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._chunks: dict[int, ChunkState] = {}

    async def take(self, step: LocalStep, state: ChunkState, item: Item, route: Route) -> None:
        """Begin a row's local step; when it is done, the row goes on or has ended."""
        while len(self._tasks) >= _MOST_AT_WORK:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        key = f"{step.name}\x1f{item.ordinal}"
        self._chunks[item.ordinal] = state
        self._state.at_work(key, self._state.job.ahead(step, state.known(item)))
        task = asyncio.create_task(self._do(step, state, item, route, key))
        self._tasks.add(task)
        self._state.before_send.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._state.before_send.discard)

    async def search(self, provider: str, query: SearchQuery, place: Place) -> SearchAnswer:
        """See Tools."""
        return await self._searcher.search(
            provider, query, place.ordinal, self._chunks[place.ordinal]
        )

    async def close(self) -> None:
        """Drop what is at work, and close what steps have opened."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _do(
        self, step: LocalStep, state: ChunkState, item: Item, route: Route, key: str
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with self._slots.setdefault(step.name, asyncio.Semaphore(step.at_once)):
                work = await self._work_of(step)
                done = await self._one(work, step, state, item)
        except asyncio.CancelledError:
            # After a stop the row stays pending: what was asked for it is in the caches.
            if not self._state.stopping:
                raise
            return
        except LeftPendingError:
            self._finisher.leave_pending(state)
            self._finisher.close_if_done(state)
            self._state.at_work_no_more(key)
            return
        except Exception as error:
            self._state.break_off(error)
            return
        self._state.before_send.discard(task)
        document = KeepDocument(
            realm=self._state.ledger.realm,
            batch_id=state.chunk.batch_id,
            ordinal=item.ordinal,
            step=step.name,
            outcome=done.outcome,
            content=done.output,
            run_id=self._state.job.run_id,
        )
        then = partial(self._kept, step, state, item, route, key, done)
        self._state.post(KEEP_DOCUMENT, document, then)

    def _kept(
        self,
        step: LocalStep,
        state: ChunkState,
        item: Item,
        route: Route,
        key: str,
        done: Done,
        _: float,
    ) -> None:
        """The document is committed: the row goes on, or has ended."""
        if done.outcome is Outcome.SUCCEEDED:
            state.outputs.setdefault(item.ordinal, {})[step.name] = done.output
            self._state.advanced.append((state, item, route, step))
        else:
            self._finisher.at_its_end(state, item, done)
        self._state.at_work_no_more(key)

    async def _work_of(self, step: LocalStep) -> LocalWork:
        async with self._opening:
            work = self._open.get(step.name)
            if work is None:
                work = await self._stack.enter_async_context(step.open(self))
                self._open[step.name] = work
        return work

    async def _one(self, work: LocalWork, step: LocalStep, state: ChunkState, item: Item) -> Done:
        """Do a step for a row; trouble that nobody has foreseen ends that row alone."""
        newest = state.newest.get(item.ordinal)
        place = Place(
            batch_id=state.chunk.batch_id,
            batch_created_at=self._state.job.batch_created_at,
            ordinal=item.ordinal,
            number=item.number,
            item_id=item.item_id,
            run_id=self._state.job.run_id,
            model="" if newest is None else newest.model,
        )
        try:
            return await work(state.known(item), place)
        except LeftPendingError:
            raise
        except BatchPipelineError as error:
            message = str(error)
        except Exception as error:
            message = (
                f"{type(error).__name__} in the step {step.name}: {error}. This is a fault of the "
                "program; other rows go on. Run the row again once it is mended."
            )
        self._state.log.event("local step failed", item=item.item_id, step=step.name, text=message)
        return Done(outcome=Outcome.FAILED, kind=step.name, message=message)
