"""Anthropic's Message Batches, as anthropic 2.x sends them.

What does not live here: when a batch's lines are answered (`jobs`, `processing`).
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from typing_extensions import override

from batch_pipeline.simulator.desk import Desk, number
from batch_pipeline.simulator.jobclock import rfc3339
from batch_pipeline.simulator.jobs import Job
from batch_pipeline.simulator.lines import Asked, LineForm, Written, elements
from batch_pipeline.simulator.replies import send_json
from batch_pipeline.simulator.wire import Json, RefusedError, Reply
from batch_pipeline.simulator.work import WIRES

_WIRE = WIRES["anthropic"]
_MAX_LINES = 100_000
_MAX_BYTES = 256 * 1024 * 1024
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_DEFAULT_PAGE, _MAX_PAGE = 20, 1_000
_RESULTS_MIME = "application/x-jsonl"


class AnthropicLines(LineForm):
    """`{"custom_id", "params"}` in, `{"custom_id", "result"}` out."""

    provider = "anthropic"

    @override
    def read(self, about: Json, line: Any, index: int) -> Asked:
        path = {"model": "", "version": about["version"]}
        return Asked(line["custom_id"], "messages", line["params"], path)

    @override
    def answered(self, job: Job, line: Json, asked: Asked, reply: Reply, name: str) -> Written:
        result: Json = {"type": "succeeded", "message": reply.body}
        if reply.status != 200:
            assert isinstance(reply.body, dict)
            result = {"type": "errored", "error": {**reply.body, "request_id": name}}
        return Written({"custom_id": asked.custom_id, "result": result})

    @override
    def unanswered(self, job: Job, line: Json, asked: Asked, name: str) -> Written:
        kind = "expired" if job.ending == "expired" else "canceled"
        return Written({"custom_id": asked.custom_id, "result": {"type": kind}})

    @override
    def finish(self, desk: Desk, job: Job) -> None:
        desk.jobs.path(job, "out").touch()
        desk.jobs.path(job, "err").unlink(missing_ok=True)


class AnthropicDesk:
    """The handlers of Message Batches."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        desk.forms["anthropic"] = AnthropicLines()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""

        def to(name: str, handler: Any) -> Any:
            return self._desk.route("anthropic", name, handler)

        base = "/anthropic/v1/messages/batches"
        one = f"{base}/{{job:[^/]+}}"
        return [
            web.post(base, to("batches.create", self._create)),
            web.get(base, to("batches.list", self._list)),
            web.get(one, to("batches.get", self._get)),
            web.delete(one, to("batches.delete", self._delete)),
            web.post(f"{one}/cancel", to("batches.cancel", self._cancel)),
            web.get(f"{one}/results", to("results", self._results)),
        ]

    async def _create(self, request: web.Request, owner: str) -> web.Response:
        version = request.headers.get("anthropic-version", "")
        if not version:
            raise _WIRE.bad_request("anthropic-version: header is required", "")
        self._desk.check_account(_WIRE, request, "")
        max_lines, max_bytes = self._desk.limit_of(
            _WIRE, owner, "", lines=_MAX_LINES, size=_MAX_BYTES
        )
        body, content = self._desk.files.part(), self._desk.files.part()
        about: Json = {"version": version}
        try:
            await self._desk.receive(request, body, max_bytes)
            if body.size > max_bytes:
                raise RefusedError(_WIRE.error(413))
            message = await asyncio.to_thread(_split, body.path, content.path, max_lines)
            if message is not None:
                raise RefusedError(_WIRE.error(400, message=message))
            found = await self._desk.scan(content.path, "anthropic", about, owner)
            excess = self._desk.excess("anthropic", owner, found)
            if excess:
                message = f"This batch would exceed your organization's limit of {excess}."
                raise RefusedError(_WIRE.error(429, message=message))
            job = self._desk.create(
                f"msgbatch_01{uuid.uuid4().hex[:22]}", _WIRE, owner,
                content=content.path, found=found, about=about,
            )  # fmt: skip
        finally:
            body.discard()
            content.discard()
        return send_json(200, self._body(request, job))

    def _job(self, request: web.Request, owner: str) -> Job:
        name = request.match_info["job"]
        job = self._desk.jobs.get("anthropic", owner, name)
        if job is None:
            raise RefusedError(_WIRE.error(404, message=f"Message batch {name} not found."))
        return job

    async def _get(self, request: web.Request, owner: str) -> web.Response:
        return send_json(200, self._body(request, self._job(request, owner)))

    async def _list(self, request: web.Request, owner: str) -> web.Response:
        limit = number(_WIRE, request.query, "limit", _DEFAULT_PAGE, _MAX_PAGE)
        found = self._desk.jobs.of("anthropic", owner)
        names = [job.id for job in found]
        after, before = request.query.get("after_id"), request.query.get("before_id")
        if before is not None:
            end = names.index(before) if before in names else 0
            page = found[max(0, end - limit) : end]
            more = end > limit
        else:
            start = 0
            if after is not None:
                start = names.index(after) + 1 if after in names else len(names)
            page = found[start : start + limit]
            more = start + limit < len(names)
        body = {
            "data": [self._body(request, job) for job in page],
            "has_more": more,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
        return send_json(200, body)

    async def _cancel(self, request: web.Request, owner: str) -> web.Response:
        job = self._job(request, owner)
        if job.ended:
            message = f"Batch {job.id} has ended and cannot be canceled."
            raise RefusedError(_WIRE.error(400, message=message))
        if job.cancel_at is None:
            self._desk.jobs.cancel(job, at_once=False)
            self._desk.processing.wake()
        return send_json(200, self._body(request, job))

    async def _delete(self, request: web.Request, owner: str) -> web.Response:
        job = self._job(request, owner)
        if not job.ended:
            message = f"Batch {job.id} cannot be deleted before it has ended: cancel it first."
            raise RefusedError(_WIRE.error(400, message=message))
        self._desk.jobs.remove(job)
        return send_json(200, {"id": job.id, "type": "message_batch_deleted"})

    async def _results(self, request: web.Request, owner: str) -> web.StreamResponse:
        job = self._job(request, owner)
        if not job.ended:
            message = f"Batch {job.id} has no available results: it has not ended."
            raise RefusedError(_WIRE.error(400, message=message))
        if not self._desk.jobs.kept(job, job.created_at):
            message = f"The results of batch {job.id} are no longer available."
            raise RefusedError(_WIRE.error(404, message=message))
        path = self._desk.jobs.path(job, "out")
        return await self._desk.download(request, _WIRE, owner, path, _RESULTS_MIME)

    def _body(self, request: web.Request, job: Job) -> Json:
        stage = self._desk.stage(job)
        ended = stage == "ended"
        kept = self._desk.jobs.kept(job, job.created_at)
        left = job.lines - job.succeeded - job.failed
        status = {"ended": "ended", "cancelling": "canceling"}.get(stage, "in_progress")
        counts = {
            "processing": job.lines,
            "succeeded": 0,
            "errored": 0,
            "canceled": 0,
            "expired": 0,
        }
        if ended:
            counts = {
                "processing": 0,
                "succeeded": job.succeeded,
                "errored": job.failed,
                "canceled": left if job.ending == "cancelled" else 0,
                "expired": left if job.ending == "expired" else 0,
            }
        url = f"{request.scheme}://{request.host}/anthropic/v1/messages/batches/{job.id}/results"
        cancelled = None if job.cancel_at is None else rfc3339(job.cancel_at)
        return {
            "id": job.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": counts,
            "ended_at": rfc3339(job.ends_at) if ended else None,
            "created_at": rfc3339(job.created_at),
            "expires_at": rfc3339(job.expires_at),
            "archived_at": None if kept else rfc3339(job.created_at + job.kept_s),
            "cancel_initiated_at": cancelled,
            "results_url": url if ended and kept else None,
        }


def _split(body: Path, content: Path, max_lines: int) -> str | None:
    """Write the requests of a create call one to a line; return what is wrong with them."""
    try:
        with content.open("wb") as target:
            for line in _requests(body, max_lines):
                target.write(orjson.dumps(line) + b"\n")
    except _UnusableError as error:
        return str(error)
    except (ValueError, IndexError, RecursionError) as error:
        return f"The request body is not valid JSON: {error}"
    return None


class _UnusableError(Exception):
    """What the provider says about a request of a batch."""


def _requests(body: Path, max_lines: int) -> Iterator[Json]:
    seen: set[str] = set()
    for index, one in enumerate(elements(body.read_bytes().decode(), "requests")):
        if index >= max_lines:
            raise _UnusableError(f"requests: List should have at most {max_lines} items")
        if not isinstance(one, dict):
            raise _UnusableError(f"requests.{index}: Input should be an object")
        name = one.get("custom_id")
        if not isinstance(name, str) or not _CUSTOM_ID.fullmatch(name):
            pattern = f"'^{_CUSTOM_ID.pattern}$'"
            raise _UnusableError(
                f"requests.{index}.custom_id: String should match pattern {pattern}"
            )
        if name in seen:
            raise _UnusableError(f"requests.{index}.custom_id: {name} is not unique in the batch")
        if not isinstance(one.get("params"), dict):
            raise _UnusableError(f"requests.{index}.params: Field required")
        seen.add(name)
        yield {"custom_id": name, "params": one["params"]}
    if not seen:
        raise _UnusableError("requests: List should have at least 1 item")
