"""What the endpoints of batch jobs and files share: accounts, limits, faults, creation.

What does not live here: routes and bodies of one provider (`batch_*`).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from batch_pipeline.simulator.buckets import Bucket, Excess
from batch_pipeline.simulator.config import FaultRule, JobFault
from batch_pipeline.simulator.draws import fingerprint
from batch_pipeline.simulator.files import Files, Part, StoredFile
from batch_pipeline.simulator.jobclock import JobClock
from batch_pipeline.simulator.jobs import Job, JobFaults, Jobs, Stage, plan
from batch_pipeline.simulator.journal import Journal
from batch_pipeline.simulator.lines import LineForm, Scan, scan
from batch_pipeline.simulator.processing import Processing
from batch_pipeline.simulator.replies import abort, send, send_file_start
from batch_pipeline.simulator.storage import Storage
from batch_pipeline.simulator.wire import Json, RefusedError, Wire
from batch_pipeline.simulator.work import WIRES, Work

Handler = Callable[[web.Request, str], Awaitable[web.StreamResponse]]
Route = Callable[[web.Request], Awaitable[web.StreamResponse]]
_BLOCK = 256 * 1024
_CLOCK = "clock"
_POLLED = frozenset({"GET"})


class CutError(Exception):
    """The connection is to be cut without a reply."""


class Desk:
    """The state behind all batch endpoints."""

    def __init__(self, state_dir: Path, work: Work, journal: Journal) -> None:
        self.work = work
        self.journal = journal
        self._storage = Storage(state_dir / "jobs.db")
        saved = next(self._storage.all(_CLOCK), {"offset_s": 0.0})
        self.clock = JobClock(work.config.clock, saved["offset_s"])
        self.files = Files(self._storage, state_dir / "files", self.clock)
        self.jobs = Jobs(self._storage, state_dir / "jobs", self.clock)
        self.forms: dict[str, LineForm] = {}
        self.processing = Processing(self)
        self._calls: dict[tuple[str, str, float], Bucket] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work on the jobs."""
        self._task = asyncio.create_task(self.processing.run())
        self._task.add_done_callback(_tell)

    async def close(self) -> None:
        """Stop; what is known stays in the state folder."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._save_clock()
        self._storage.close()

    def reset(self) -> None:
        """Forget all jobs and files, and how far the clock is ahead."""
        self._storage.clear()
        self.jobs.clear()
        self.files.clear()
        self.clock.reset()
        self._calls.clear()

    def configure(self) -> None:
        """Follow settings that have changed."""
        self.clock.configure(self.work.config.clock)
        self._save_clock()
        self.processing.wake()

    def advance(self, seconds: float) -> None:
        """Move the job clock ahead."""
        self.clock.advance(seconds)
        self._save_clock()
        self.processing.wake()

    def _save_clock(self) -> None:
        self._storage.put(_CLOCK, _CLOCK, {"offset_s": self.clock.offset_s})

    def route(self, provider: str, name: str, handler: Handler) -> Route:
        """Wrap a handler: it gets the owner of a valid key; refusals and cuts are sent."""
        wire = WIRES[provider]

        async def answer(request: web.Request) -> web.StreamResponse:
            owner = self._owner(wire, request)
            if request.method in _POLLED and name.startswith("batches."):
                self.fail("poll", wire, owner, name=request.path)
            return await handler(request, owner)

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._sent(wire, name, request, answer(request))

        return handle

    def keyless(self, provider: str, name: str, handler: Route) -> Route:
        """Wrap a handler of requests whose address is their credential."""
        wire = WIRES[provider]

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._sent(wire, name, request, handler(request))

        return handle

    async def _sent(
        self,
        wire: Wire,
        name: str,
        request: web.Request,
        answer: Awaitable[web.StreamResponse],
    ) -> web.StreamResponse:
        calls = self.journal.other_calls
        calls[f"{wire.provider} {name}"] += 1
        try:
            return await answer
        except RefusedError as refused:
            calls[f"{wire.provider} {name} {refused.reply.status}"] += 1
            return send(refused.reply)
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            # A field of another type than the protocol's.
            return send(wire.error(400, message=f"Invalid value in the request: {error}"))
        except CutError:
            calls[f"{wire.provider} {name} cut"] += 1
            return abort(request)

    def _owner(self, wire: Wire, request: web.Request) -> str:
        key = self.work.authenticate(wire, request.headers, request.query)
        # Kept on disk: a name of the key, not the key.
        owner = f"{fingerprint(key.encode())}:{key[-4:]}"
        per_minute = self.work.config.batch_for(wire.provider, "", key).calls_per_minute
        if per_minute is not None:
            scope = (wire.provider, owner, per_minute)
            now = time.monotonic()
            bucket = self._calls.setdefault(scope, Bucket(per_minute, None, now))
            wait_s = bucket.wait_s(1, now)
            if wait_s > 0:
                excess = Excess("requests", int(per_minute), wait_s)
                raise RefusedError(wire.limited(excess, "", _request_id()))
            bucket.take(1, now)
        return owner

    def check_account(self, wire: Wire, request: web.Request, model: str) -> None:
        """Refuse a job of a key whose account has no money left; a daily quota is real time's."""
        key = self.work.authenticate(wire, request.headers, request.query)
        mark = self.work.config.mark_of(key)
        if mark in ("no_credit", "spend_limit"):
            raise RefusedError(wire.marked(mark, model, _request_id()), model)

    def strike(
        self, kind: JobFault, wire: Wire, owner: str, *, name: str, model: str = "", text: str = ""
    ) -> FaultRule | None:
        """Return the rule of a fault that hits a call."""
        return self.work.strike(
            kind, provider=wire.provider, model=model, key=owner, name=name, text=text
        )

    def fail(self, kind: JobFault, wire: Wire, owner: str, *, name: str) -> None:
        """Let a fault happen here if a rule says so.

        Raises:
            RefusedError: it is an error of the provider.
            CutError: it is a lost connection.
        """
        rule = self.strike(kind, wire, owner, name=name)
        if rule is not None:
            self.happen(rule, wire)

    def happen(self, rule: FaultRule, wire: Wire) -> None:
        """Let a fault happen: as `fail`."""
        if rule.status is None:
            raise CutError
        headers = self.work.config.headers
        raise RefusedError(
            wire.error(
                rule.status,
                code=rule.code,
                retry_after_s=rule.retry_after_s if headers else None,
                request_id=_request_id(),
            )
        )

    async def receive(
        self, request: web.Request, part: Part, limit: int, cut: FaultRule | None = None
    ) -> None:
        """Write a request's body to a part file.

        Args:
            request: whose body it is.
            part: where it goes.
            limit: bytes; reading stops above it, and `part.size` says so.
            cut: a fault of an upload: the connection ends after its part of the bytes.

        Raises:
            CutError: the fault says so.
        """
        stop_at = None if cut is None else int((request.content_length or 0) * cut.part)
        async for block in request.content.iter_chunked(_BLOCK):
            part.write(block)
            if stop_at is not None and part.size >= stop_at:
                raise CutError
            if part.size > limit:
                return
        if stop_at is not None:
            raise CutError

    async def scan(self, path: Path, provider: str, about: Json, owner: str) -> Scan:
        """Read a job's input, in a thread."""
        return await asyncio.to_thread(
            scan, path, WIRES[provider], self.forms[provider], about, owner
        )

    def excess(self, provider: str, owner: str, found: Scan) -> str | None:
        """Name the limit that a job would break: `enqueued_tokens` or `max_jobs`."""
        for model, size in found.tokens.items():
            scope = (provider, owner, model)
            name = self.jobs.enqueued.excess(self.work.config, scope, size)
            if name:
                return name
        return None

    def limit_of(
        self, wire: Wire, owner: str, model: str, *, lines: int, size: int
    ) -> tuple[int, int]:
        """Return the largest number of lines and of bytes of one job."""
        setting = self.work.config.batch_for(wire.provider, model, owner)
        return setting.max_lines or lines, setting.max_bytes or size

    def create(
        self,
        job_id: str,
        wire: Wire,
        owner: str,
        *,
        content: Path,
        found: Scan,
        about: Json,
        model: str | None = None,
        in_order: bool = False,
    ) -> Job:
        """Make a job of an input that was read; `content` is taken over.

        Raises:
            RefusedError: a `batch_create` fault refuses it, or loses the reply.
            CutError: the same without a reply.
        """
        model = model or found.model
        text = orjson.dumps(about).decode()

        def struck(kind: JobFault) -> FaultRule | None:
            # Named by what is asked, not by its id: a second try is the same call again.
            return self.strike(kind, wire, owner, name=text, model=model, text=text)

        lost = struck("batch_create")
        if lost is not None and not lost.made:
            self.happen(lost, wire)
        job = plan(
            job_id,
            self.jobs.next_ordinal,
            provider=wire.provider,
            owner=owner,
            scan=found,
            about=about,
            setting=self.work.config.batch_for(wire.provider, model, owner),
            seed=self.work.config.seed,
            now=self.clock.now(),
            faults=JobFaults(struck("batch_fail"), struck("batch_expire"), struck("batch_partial")),
            in_order=in_order,
        )
        job.model = model
        self.jobs.add(job, content, found.offsets)
        self._save_clock()
        self.processing.wake()
        if lost is not None:
            self.happen(lost, wire)
        return job

    def stage(self, job: Job) -> Stage:
        """What a job is doing now."""
        return job.stage(self.clock.now())

    def publish(self, job: Job, name: str, stored: StoredFile) -> None:
        """Keep a result file of a job; `name` is `output` or `error`."""
        self.files.add(stored, self.jobs.path(job, {"output": "out", "error": "err"}[name]))
        job.outputs[name] = stored.id

    async def download(
        self, request: web.Request, wire: Wire, owner: str, path: Path, mime: str
    ) -> web.StreamResponse:
        """Send a file, unless a fault cuts or refuses it."""
        rule = self.strike("download", wire, owner, name=request.path)
        if rule is None:
            return web.FileResponse(path, headers={"content-type": mime})
        if rule.status is not None:
            self.happen(rule, wire)
        return await send_file_start(request, path, mime, rule.part)

    def report(self, *, series: bool) -> list[dict[str, Any]]:
        """Return what is enqueued, beside its limits."""
        return self.jobs.enqueued.report(self.work.config, series=series)


def _tell(task: asyncio.Task[None]) -> None:
    """Say at once that the background task has broken, not when it is forgotten."""
    if not task.cancelled() and task.exception() is not None:
        context = {"message": "batch jobs are not worked on any more", "task": task}
        task.get_loop().call_exception_handler({**context, "exception": task.exception()})


def _request_id() -> str:
    return f"req_{uuid.uuid4().hex}"


def body_of(wire: Wire, raw: bytes) -> Json:
    """Parse a JSON object.

    Raises:
        RefusedError: it is none.
    """
    try:
        body = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as error:
        message = "We could not parse the JSON body of your request."
        raise RefusedError(wire.error(400, message=message)) from error
    if not isinstance(body, dict):
        raise RefusedError(wire.error(400, message="The request body is not a JSON object."))
    return body


def number(wire: Wire, query: Mapping[str, str], name: str, default: int, largest: int) -> int:
    """Read a page size.

    Raises:
        RefusedError: it is no number of at least 1.
    """
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise RefusedError(wire.error(400, message=f"{name}: must be at least 1, not {text!r}"))
    return min(int(text), largest)
