"""Answers the lines of batch jobs as they fall due, in slices that leave the server its turn.

What does not live here: when a line is due (`jobs`) and what the answer is (`work`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import orjson

from batch_pipeline.simulator.draws import fingerprint
from batch_pipeline.simulator.jobs import Job
from batch_pipeline.simulator.journal import Attempt
from batch_pipeline.simulator.lines import Asked, LineForm, Written
from batch_pipeline.simulator.wire import Call, Json, RefusedError, Reply, Usage, Wire
from batch_pipeline.simulator.work import WIRES

if TYPE_CHECKING:
    from batch_pipeline.simulator.desk import Desk

# Of one slice; one line more may go over it.
_SLICE_S = 0.004
# Lines that fall due closer together are answered together.
_MIN_WAIT_S = 0.02
_REPORTED_LATE = frozenset({"cancelled", "expired"})


@dataclass
class _Sheets:
    """The open files of a job in one slice."""

    source: BinaryIO
    output: BinaryIO
    errors: BinaryIO


class Processing:
    """The one background task of a simulator."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._wake = asyncio.Event()
        self._last = ""

    def wake(self) -> None:
        """Look at once: a job, the clock or a setting has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._wake.clear()
            wait_s = self._slice()
            if wait_s == 0:
                await asyncio.sleep(0)
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), wait_s)
            except TimeoutError:
                continue

    def _slice(self) -> float | None:
        """Do what is due, for a slice's time; return the real seconds until the next is due."""
        deadline = time.perf_counter() + _SLICE_S
        ids = list(self._desk.jobs.open)
        # Each slice goes on behind the job where the last one stopped.
        turn = ids.index(self._last) + 1 if self._last in ids else 0
        for job_id in ids[turn:] + ids[:turn]:
            self._last = job_id
            self._work_on(self._desk.jobs.open[job_id], deadline)
            if time.perf_counter() >= deadline:
                return 0
        if not self._desk.jobs.open:
            return None
        wait_s = self._desk.clock.real_s(min(j.next_at() for j in self._desk.jobs.open.values()))
        return None if wait_s is None else max(_MIN_WAIT_S, wait_s)

    def _work_on(self, job: Job, deadline: float) -> None:
        desk = self._desk
        now = desk.clock.now()
        form, wire = desk.forms[job.provider], WIRES[job.provider]
        over = now >= job.ends_at
        late = job.ending in _REPORTED_LATE and form.reports_unanswered
        last = job.lines if late else job.target
        due = last if over else job.due(now)
        if job.position < due:
            with (
                desk.jobs.path(job, "in").open("rb") as source,
                desk.jobs.path(job, "out").open("ab") as output,
                desk.jobs.path(job, "err").open("ab") as errors,
            ):
                sheets = _Sheets(source, output, errors)
                while job.position < due and time.perf_counter() < deadline:
                    self._write_next(job, form, wire, sheets)
                job.output_size, job.error_size = output.tell(), errors.tell()
            desk.jobs.save(job)
        if over and job.position >= last:
            form.finish(desk, job)
            desk.jobs.end(job)

    def _write_next(self, job: Job, form: LineForm, wire: Wire, sheets: _Sheets) -> None:
        index, offset = self._desk.jobs.place(job, job.position)
        sheets.source.seek(offset)
        line: Json = orjson.loads(sheets.source.readline())
        asked = form.read(job.about, line, index)
        name = f"req_{fingerprint(f'{job.id} {index}'.encode())}"
        if job.position < job.target:
            written = self._answer(job, form, wire, line, asked, name)
        else:
            written = form.unanswered(job, line, asked, name)
        sheet = sheets.errors if written.is_error else sheets.output
        sheet.write(orjson.dumps(written.line) + b"\n")
        job.position += 1

    def _answer(
        self, job: Job, form: LineForm, wire: Wire, line: Json, asked: Asked, name: str
    ) -> Written:
        desk = self._desk
        body_sha = fingerprint(orjson.dumps(asked.body))
        usage, billed, fault, items, model = Usage(), False, job.fault, 0, job.model
        try:
            call = _call(wire, job, asked)
            model = call.model
            if job.position >= job.good:
                raise RefusedError(wire.error(500, request_id=name))
            outcome = desk.work.line(
                wire, call, body_sha=body_sha, request_id=name, mono=time.monotonic()
            )
            reply, usage, billed = outcome.reply, outcome.usage, outcome.billed
            fault, items = outcome.fault, outcome.items
        except RefusedError as refused:
            reply = refused.reply
        if reply.status == 200:
            job.succeeded += 1
        else:
            job.failed += 1
        if billed:
            job.input_tokens += usage.input_tokens
            job.cached_tokens += usage.cached
            job.output_tokens += usage.output_tokens
        desk.journal.add(
            Attempt(
                n=desk.journal.next_n,
                t=time.time(),
                provider=job.provider,
                endpoint=asked.endpoint,
                key_last4=job.owner[-4:],
                model=model,
                status=reply.status,
                usage=usage,
                billed=billed,
                fault=fault,
                latency_s=round(desk.clock.now() - job.created_at, 6),
                request_id=name,
                items=items,
                body_sha=body_sha,
                lane="batch",
                job=job.id,
                custom_id=asked.custom_id,
            )
        )
        return form.answered(job, line, asked, reply, name)


def _call(wire: Wire, job: Job, asked: Asked) -> Call:
    try:
        return wire.read(asked.endpoint, asked.body, job.owner, asked.path)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        message = f"Invalid value in the request: {error}"
        raise RefusedError(Reply(400, wire.error(400, message=message).body)) from error
