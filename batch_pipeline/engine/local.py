"""How the engine runs local steps.

What belongs here: running the steps of many rows at once. What does not: what a step does
(workloads/) and may use (tools.py), search calls (searching.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from batch_pipeline.engine.finishing import Finisher
from batch_pipeline.engine.records import ChunkState
from batch_pipeline.engine.searching import LeftPendingError, Searcher, SearchUnavailableError
from batch_pipeline.engine.state import RunState
from batch_pipeline.engine.step import Done, LocalStep, LocalWork
from batch_pipeline.engine.tools import Place
from batch_pipeline.engine.upstream import Route
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.batches import Item
from batch_pipeline.ledger.documents import KEEP_DOCUMENT, KeepDocument
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.search.base import SearchAnswer, SearchQuery

_MOST_AT_WORK = 200
"""Rows at local steps at once: bounds memory, not speed."""


class LocalDesk:
    """Runs the local steps of one run's rows; itself the steps' Tools.

    Args:
        state: the run.
        finisher: ends rows.
        searcher: asks search providers.
        has_room: whether the models want so many more rows than wait for them already.
    """

    def __init__(
        self,
        state: RunState,
        finisher: Finisher,
        searcher: Searcher,
        has_room: Callable[[int], bool],
    ) -> None:
        self.ledger = state.ledger
        self.clock = state.clock
        self.simulator = state.job.simulator
        self._state = state
        self._finisher = finisher
        self._searcher = searcher
        self._has_room = has_room
        self._room = asyncio.Event()
        self._searching = 0
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

    def look(self) -> None:
        """A worker has taken a pack: there may be room for more rows."""
        self._room.set()

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
                async with self._turn(step):
                    done = await self._one(work, step, state, item)
        except asyncio.CancelledError:
            # After a stop the row stays pending: what was asked for it is in the caches.
            if not self._state.stopping:
                raise
            return
        except (LeftPendingError, SearchUnavailableError) as error:
            if isinstance(error, SearchUnavailableError):
                # Rows that need no search go on.
                self._state.left_behind = self._state.left_behind or ("stopped", _mend(error))
            self._finisher.leave_pending(state, item)
            self._finisher.close_if_done(state)
            self._state.at_work_no_more(key)
            return
        except Exception as error:
            self._state.break_off(error)
            return
        self._state.before_send.discard(task)
        goes_on = step.checkpoint and done.outcome is Outcome.SUCCEEDED
        document = KeepDocument(
            realm=self._state.ledger.realm,
            batch_id=state.chunk.batch_id,
            ordinal=item.ordinal,
            step=step.name,
            outcome=done.outcome,
            content=done.output,
            run_id=self._state.job.run_id,
            # A later run that begins behind it does not see again what came before.
            cost_nano=state.carried_nano.pop(item.ordinal, 0) if goes_on else 0,
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

    @asynccontextmanager
    async def _turn(self, step: LocalStep) -> AsyncIterator[None]:
        """A row's time at a step; one that searches waits until the models want more rows.

        A budget that ends the run would otherwise have been spent on searches for rows that no
        model was asked about.
        """
        if not step.searches:
            yield
            return
        while not self._has_room(self._searching + 1):
            self._room.clear()
            await self._room.wait()
        self._searching += 1
        try:
            yield
        finally:
            self._searching -= 1
            self._room.set()

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
            models=dict(state.models.get(item.ordinal, {})),
        )
        try:
            return await work(state.known(item), place)
        except (LeftPendingError, SearchUnavailableError):
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


def _mend(error: SearchUnavailableError) -> str:
    """What a run says whose rows wait for a search provider."""
    return (
        f"No search: {error}. Rows not done stay pending. Look at the key and its account "
        "(`batch-pipeline keys check`), then run again."
    )
