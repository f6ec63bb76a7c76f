"""The engine on a thread of its own, for callers that are not asyncio: Dagster assets, the CLI.

What belongs here: the thread, its event loop and HTTP session, and the queue of events. What does
not: what the engine does (engine.py).

The loop is never the caller's: a caller that is interrupted, or slow to take events, disturbs no
call in flight.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from batch_pipeline.clock import Clock, SystemClock
from batch_pipeline.engine.engine import Engine
from batch_pipeline.engine.job import Event, Job, Progress, RunDone
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.providers.transport import Transport
from batch_pipeline.providers.wire import redact

if TYPE_CHECKING:
    from batch_pipeline.runlog import RunLog

_SWITCH_INTERVAL_S = 0.0005


class EngineThread:
    """Runs one job; iterate over `events()` until it ends.

    Args:
        open_ledger: opens the ledger in the run's realm; called on the engine's thread, which
            closes it.
        job: what to do.
        clock: time.
    """

    def __init__(
        self, open_ledger: Callable[[], Ledger], job: Job, clock: Clock | None = None
    ) -> None:
        self._open_ledger = open_ledger
        self._job = job
        self._clock = clock or SystemClock()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_wanted = False
        self._thread = threading.Thread(target=self._run, name=f"engine {job.run_id}", daemon=True)

    def start(self) -> EngineThread:
        """Start the run."""
        self._thread.start()
        return self

    def events(
        self, on_tick: Callable[[Progress], None] | None = None, tick_s: float = 0.25
    ) -> Iterator[Event]:
        """Events as they come, RunDone last.

        Args:
            on_tick: called about every `tick_s` seconds with the progress, on the caller's thread.
            tick_s: seconds.
        """
        while True:
            try:
                event = self._events.get(timeout=tick_s)
            except queue.Empty:
                if on_tick is not None:
                    on_tick(self.progress())
                continue
            yield event
            if isinstance(event, RunDone):
                if on_tick is not None:
                    on_tick(self.progress())
                self._thread.join()
                return

    def progress(self) -> Progress:
        """Where the run stands."""
        engine = self._engine
        if engine is None:
            return Progress(0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0, "starting")
        return engine.progress()

    def stop(self) -> None:
        """Ask the run to stop: nothing more is admitted, calls in flight are drained.

        Returns at once.
        """
        self._stop_wanted = True
        loop, engine = self._loop, self._engine
        if loop is not None and engine is not None:
            try:
                loop.call_soon_threadsafe(engine.stop)
            except RuntimeError:
                # The loop has closed: the run is over.
                return

    def stop_and_drain(self) -> RunDone:
        """Stop and take events until the run has ended; gives its last event."""
        self.stop()
        done = None
        for event in self.events():
            if isinstance(event, RunDone):
                done = event
        assert done is not None
        return done

    def _run(self) -> None:
        # The loop and the ledger's writer hand the interpreter lock to each other at every system
        # call; with the default of 5 ms each handover makes calls in flight wait that long.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        try:
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(self._main())
        except BaseException as error:
            from batch_pipeline.engine.job import Tally

            self._events.put(RunDone("stopped", str(error), Tally(), 0.0, error))

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        ledger = self._open_ledger()
        log = self._open_log(ledger.realm)
        try:
            async with Transport() as transport:
                engine = Engine(
                    ledger, transport, self._clock, self._job, self._events.put, log=log
                )
                self._engine = engine
                self._loop = loop
                if self._stop_wanted:
                    engine.stop()
                await engine.run()
        finally:
            if log is not None:
                log.close()
            ledger.close()

    def _open_log(self, realm: str) -> RunLog | None:
        job = self._job
        if job.log_folder is None:
            return None
        from batch_pipeline.runlog import RunLog

        return RunLog(
            job.log_folder,
            run_id=job.run_id,
            batch=job.batch_id,
            realm=realm,
            workload=job.workload,
            redact=redact,
        )


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
