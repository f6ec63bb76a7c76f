"""Processes that run the batch lane and kill themselves at a named point of a provider job's life.

What belongs here: starting and killing them. What does not: what must hold afterwards.

They are forked by a server that has loaded everything: a process that starts anew takes seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from batch_pipeline.engine.lanes import collect
from batch_pipeline.ledger.jobs import CloseJob
from batch_pipeline.providers.base import ProviderError
from batch_pipeline.providers.batches import BatchApi, LineResult, RemoteJob
from batch_pipeline.settings import LEDGER_VARIABLE
from batch_pipeline.workloads.config import Knobs
from batch_pipeline.workloads.runner import require_batch
from batch_pipeline_tests.engine.lanes.laning import lane_job
from batch_pipeline_tests.forked import SERVER
from batch_pipeline_tests.simulated import Bench, Simulator, finish

POINTS = (
    "before the upload",
    "after the upload",
    "before create",
    "create without a reply",
    "after create",
    "before a look",
    "after a look",
    "during the download",
    "before the job is closed",
    "after the job is closed",
)
"""In the order of a job's life."""


def start(
    bench: Bench, batch_id: str, run_id: str, die_at: str = "", **lane: Any
) -> ForkServerProcess:
    """Start a run that dies, with SIGKILL, the first time it comes to `die_at`."""
    process = SERVER.Process(
        target=_live,
        args=(
            str(bench.settings.data),
            bench.simulator.url,
            os.environ.get(LEDGER_VARIABLE),
            bench.config.model_dump(include=set(Knobs.model_fields)),
            batch_id,
            run_id,
            die_at,
            lane,
        ),
    )
    process.start()
    return process


def wait_for_death(process: ForkServerProcess, bound_s: float = 30.0) -> None:
    """Wait until a process has killed itself."""
    process.join(bound_s)
    assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode}, not by a kill"


def end(process: ForkServerProcess) -> None:
    """Kill a process, and wait until it is gone."""
    process.kill()
    process.join(30)


def _live(
    data: str,
    url: str,
    ledger_url: str | None,
    knobs: dict[str, Any],
    batch_id: str,
    run_id: str,
    die_at: str,
    lane: dict[str, Any],
) -> None:
    os.environ.pop(LEDGER_VARIABLE, None)
    if ledger_url is not None:
        os.environ[LEDGER_VARIABLE] = ledger_url
    bench = Bench(Path(data), Simulator(url), **knobs)
    with bench.open() as ledger:
        batch = require_batch(ledger, batch_id)
    job = lane_job(bench, batch, run_id, **lane)
    opener = job.open_batch_api
    if die_at == "before the job is closed":
        vars(collect)["CloseJob"] = _die_instead
    mortal = replace(job, open_batch_api=lambda *key: MortalApi(opener(*key), die_at))
    finish(bench.start(mortal), mortal)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_instead(*_: Any) -> CloseJob:
    _die()
    raise AssertionError("nobody lives on")


class MortalApi:
    """A Batch API whose process dies at a point.

    Args:
        api: the real one.
        die_at: one of POINTS; any other word is none.
    """

    def __init__(self, api: BatchApi, die_at: str) -> None:
        self._api = api
        self._die_at = die_at
        self.limits = api.limits
        self.line = api.line
        self.find_upload = api.find_upload
        self.jobs = api.jobs
        self.cancel = api.cancel
        self.aclose = api.aclose

    def _point(self, name: str) -> None:
        if name == self._die_at:
            _die()

    async def upload(self, label: str, lines: Sequence[bytes]) -> str:
        """See BatchApi.upload."""
        self._point("before the upload")
        file = await self._api.upload(label, lines)
        self._point("after the upload")
        return file

    async def create(self, label: str, model: str, file: str, lines: Sequence[bytes]) -> RemoteJob:
        """See BatchApi.create."""
        self._point("before create")
        try:
            made = await self._api.create(label, model, file, lines)
        except ProviderError:
            self._point("create without a reply")
            raise
        self._point("after create")
        return made

    async def job(self, name: str) -> RemoteJob:
        """See BatchApi.job."""
        self._point("before a look")
        found = await self._api.job(name)
        self._point("after a look")
        return found

    async def results(self, job: RemoteJob) -> AsyncIterator[LineResult]:
        """See BatchApi.results."""
        read = 0
        async for result in self._api.results(job):
            if read == 1:
                # what was read is given the time to be written: it must not be counted twice
                await asyncio.sleep(0.05)
                self._point("during the download")
            read += 1
            yield result

    async def delete_upload(self, file: str) -> None:
        """See BatchApi.delete_upload."""
        self._point("after the job is closed")
        await self._api.delete_upload(file)
