"""OpenAI's files and batches, as openai 3.x sends them.

What does not live here: when a batch's lines are answered (`jobs`, `processing`).
"""

from __future__ import annotations

import uuid
from typing import Any

from aiohttp import BodyPartReader, web
from typing_extensions import override

from batch_pipeline.simulator.catalog import catalog
from batch_pipeline.simulator.config import FaultRule
from batch_pipeline.simulator.desk import CutError, Desk, body_of, number
from batch_pipeline.simulator.files import Part, StoredFile
from batch_pipeline.simulator.jobs import Job
from batch_pipeline.simulator.lines import Asked, LineError, LineForm, Scan, Written
from batch_pipeline.simulator.replies import send_json
from batch_pipeline.simulator.wire import Json, RefusedError, Reply
from batch_pipeline.simulator.work import WIRES

_WIRE = WIRES["openai"]
_ENDPOINTS = {"/v1/chat/completions": "chat.completions", "/v1/responses": "responses"}
_MAX_LINES = 50_000
_MAX_BYTES = 200 * 1024 * 1024
_MAX_FILE = 512 * 1024 * 1024
_INPUT_KEPT_S = 30 * 86_400.0
_DEFAULT_PAGE, _MAX_PAGE, _MAX_FILES_PAGE = 20, 100, 10_000
_MIME = "application/octet-stream"
_UNANSWERED = {
    "expired": (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}
_STATUSES = {
    "pending": "validating",
    "running": "in_progress",
    "finishing": "finalizing",
    "cancelling": "cancelling",
}


class OpenAILines(LineForm):
    """`{"custom_id", "method", "url", "body"}` in, `{"custom_id", "response", "error"}` out."""

    provider = "openai"
    unique_ids = True

    @override
    def read(self, about: Json, line: Any, index: int) -> Asked:
        if not isinstance(line, dict):
            raise LineError("invalid_json_line", "This line is not a JSON object.")
        for name in ("custom_id", "method", "url", "body"):
            if name not in line:
                message = f"Missing required parameter: '{name}'."
                raise LineError("missing_required_parameter", message)
        if line["method"] != "POST":
            raise LineError("invalid_method", f"The method {line['method']!r} is not POST.")
        if line["url"] != about["endpoint"]:
            message = f"The URL provided for this request does not match {about['endpoint']}."
            raise LineError("mismatched_endpoint", message)
        if not isinstance(line["body"], dict):
            raise LineError("invalid_request", "The body is not a JSON object.")
        endpoint = _ENDPOINTS[about["endpoint"]]
        return Asked(str(line["custom_id"]), endpoint, line["body"], {"model": "", "version": ""})

    @override
    def answered(self, job: Job, line: Json, asked: Asked, reply: Reply, name: str) -> Written:
        response = {"status_code": reply.status, "request_id": name, "body": reply.body}
        return Written(_result(asked, name, response, None), is_error=reply.status != 200)

    @override
    def unanswered(self, job: Job, line: Json, asked: Asked, name: str) -> Written:
        code, message = _UNANSWERED[job.ending]
        error = {"code": code, "message": message}
        return Written(_result(asked, name, None, error), is_error=True)

    @override
    def finish(self, desk: Desk, job: Job) -> None:
        now = desk.clock.now()
        for name, suffix in (("output", "out"), ("error", "err")):
            path = desk.jobs.path(job, suffix)
            size = path.stat().st_size if path.exists() else 0
            if not size:
                path.unlink(missing_ok=True)
                continue
            stored = StoredFile(
                id=f"file-{uuid.uuid4().hex[:24]}",
                provider=self.provider,
                owner=job.owner,
                name=f"{job.id}_{name}.jsonl",
                mime=_MIME,
                size=size,
                created_at=now,
                expires_at=now + job.about["kept_s"] if job.about["kept_s"] else now + job.kept_s,
                purpose="batch_output",
            )
            desk.publish(job, name, stored)


def _result(asked: Asked, name: str, response: Json | None, error: Json | None) -> Json:
    return {
        "id": f"batch_{name}",
        "custom_id": asked.custom_id,
        "response": response,
        "error": error,
    }


class OpenAIDesk:
    """The handlers of OpenAI's files and batches."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        desk.forms["openai"] = OpenAILines()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""

        def to(name: str, handler: Any) -> Any:
            return self._desk.route("openai", name, handler)

        files, batches = "/openai/v1/files", "/openai/v1/batches"
        file, batch = f"{files}/{{file:[^/]+}}", f"{batches}/{{job:[^/]+}}"
        return [
            web.post(files, to("files.create", self._upload)),
            web.get(files, to("files.list", self._list_files)),
            web.get(file, to("files.get", self._get_file)),
            web.delete(file, to("files.delete", self._delete_file)),
            web.get(f"{file}/content", to("files.content", self._content)),
            web.post(batches, to("batches.create", self._create)),
            web.get(batches, to("batches.list", self._list)),
            web.get(batch, to("batches.get", self._get)),
            web.post(f"{batch}/cancel", to("batches.cancel", self._cancel)),
        ]

    async def _upload(self, request: web.Request, owner: str) -> web.Response:
        rule = self._desk.strike("upload", _WIRE, owner, name="file")
        if not request.content_type.startswith("multipart/"):
            raise RefusedError(_WIRE.error(400, message="The request body is not multipart."))
        fields: dict[str, str] = {}
        part = self._desk.files.part()
        file_name = ""
        try:
            async for piece in await request.multipart():
                if not isinstance(piece, BodyPartReader) or piece.name is None:
                    continue
                if piece.name == "file":
                    file_name = piece.filename or "file"
                    await _receive(request, piece, part, rule)
                else:
                    fields[piece.name] = (await piece.read()).decode("utf-8", "replace")
            if rule is not None:
                self._desk.happen(rule, _WIRE)
            if not file_name:
                raise RefusedError(_WIRE.error(400, message="'file' is a required property"))
            if fields.get("purpose") != "batch":
                message = "The simulator keeps files for the purpose 'batch' only."
                raise RefusedError(_WIRE.error(400, message=message))
            now = self._desk.clock.now()
            kept_s = float(fields.get("expires_after[seconds]") or _INPUT_KEPT_S)
            stored = StoredFile(
                id=f"file-{uuid.uuid4().hex[:24]}",
                provider="openai",
                owner=owner,
                name=file_name,
                mime=_MIME,
                size=part.size,
                created_at=now,
                expires_at=now + kept_s,
                purpose="batch",
                sha256=part.sha256,
            )
            self._desk.files.add(stored, part.path)
        finally:
            part.discard()
        return send_json(200, _file_body(stored))

    def _file(self, request: web.Request, owner: str) -> StoredFile:
        name = request.match_info["file"]
        stored = self._desk.files.get("openai", owner, name)
        if stored is None:
            raise RefusedError(_WIRE.error(404, message=f"No such File object: {name}"))
        return stored

    async def _get_file(self, request: web.Request, owner: str) -> web.Response:
        return send_json(200, _file_body(self._file(request, owner)))

    async def _delete_file(self, request: web.Request, owner: str) -> web.Response:
        stored = self._file(request, owner)
        self._desk.files.remove(stored)
        return send_json(200, {"id": stored.id, "object": "file", "deleted": True})

    async def _list_files(self, request: web.Request, owner: str) -> web.Response:
        purpose = request.query.get("purpose")
        found = {
            stored.id: stored
            for stored in self._desk.files.of("openai", owner)
            if purpose in (None, stored.purpose)
        }
        if request.query.get("order") == "asc":
            found = dict(reversed(found.items()))
        page, body = _page(request, list(found), _MAX_FILES_PAGE, _MAX_FILES_PAGE)
        return send_json(200, {**body, "data": [_file_body(found[name]) for name in page]})

    async def _content(self, request: web.Request, owner: str) -> web.StreamResponse:
        path = self._desk.files.path(self._file(request, owner))
        return await self._desk.download(request, _WIRE, owner, path, _MIME)

    async def _create(self, request: web.Request, owner: str) -> web.Response:
        self._desk.check_account(_WIRE, request, "")
        body = body_of(_WIRE, await request.read())
        endpoint, file_id = body.get("endpoint"), body.get("input_file_id")
        if endpoint not in _ENDPOINTS:
            message = f"Invalid value: '{endpoint}'. Supported are {', '.join(_ENDPOINTS)}."
            raise RefusedError(_WIRE.error(400, message=message))
        if body.get("completion_window") != "24h":
            message = "Invalid value for 'completion_window': must be '24h'."
            raise RefusedError(_WIRE.error(400, message=message))
        stored = self._desk.files.get("openai", owner, str(file_id))
        if stored is None or stored.purpose != "batch":
            message = f"No such File object with purpose 'batch': {file_id}"
            raise RefusedError(_WIRE.error(400, message=message))
        output_expires = body.get("output_expires_after") or {}
        about: Json = {
            "endpoint": endpoint,
            "input_file_id": file_id,
            "metadata": body.get("metadata"),
            "kept_s": output_expires.get("seconds"),
        }
        content = self._desk.files.link(stored)
        try:
            found = await self._desk.scan(content, "openai", about, owner)
            self._validate(found, owner, stored.size)
            job = self._desk.create(
                f"batch_{uuid.uuid4().hex}", _WIRE, owner,
                content=content, found=found, about=about,
            )  # fmt: skip
        finally:
            content.unlink(missing_ok=True)
        return send_json(200, self._body(job))

    def _validate(self, found: Scan, owner: str, size: int) -> None:
        """Note what the provider finds wrong after it has accepted the batch.

        Raises:
            RefusedError: it does not accept it: there are too many open ones.
        """
        model = found.model
        max_lines, max_bytes = self._desk.limit_of(
            _WIRE, owner, model, lines=_MAX_LINES, size=_MAX_BYTES
        )
        if not found.lines:
            found.blame("empty_file", "The input file is empty.")
        if found.lines > max_lines:
            found.blame("too_many_tasks", f"The file has more than {max_lines:,} requests.")
        if size > max_bytes:
            found.blame("file_too_large", f"The file has more than {max_bytes:,} bytes.")
        if len(found.tokens) > 1:
            found.blame("mismatched_model", "All requests of a batch must be for one model.")
        if model and model not in catalog("openai").models:
            message = f"The provided model '{model}' is not supported by the Batch API."
            found.blame("model_not_found", message)
        excess = self._desk.excess("openai", owner, found)
        if excess == "max_jobs":
            raise RefusedError(_WIRE.error(429, message="Too many batches are in progress."))
        if excess:
            limit = self._desk.work.config.batch_for("openai", model, owner).enqueued_tokens
            found.blame(
                "token_limit_exceeded",
                f"Enqueued token limit reached for {model} in organization org-simulator. Limit: "
                f"{limit:,} enqueued tokens. Please try again once some in_progress batches have "
                "been completed.",
            )

    def _job(self, request: web.Request, owner: str) -> Job:
        name = request.match_info["job"]
        job = self._desk.jobs.get("openai", owner, name)
        if job is None:
            raise RefusedError(_WIRE.error(404, message=f"No batch found with id '{name}'."))
        return job

    async def _get(self, request: web.Request, owner: str) -> web.Response:
        return send_json(200, self._body(self._job(request, owner)))

    async def _list(self, request: web.Request, owner: str) -> web.Response:
        found = {job.id: job for job in self._desk.jobs.of("openai", owner)}
        page, body = _page(request, list(found), _DEFAULT_PAGE, _MAX_PAGE)
        return send_json(200, {**body, "data": [self._body(found[name]) for name in page]})

    async def _cancel(self, request: web.Request, owner: str) -> web.Response:
        job = self._job(request, owner)
        if job.ended:
            message = f"Cannot cancel a batch with status '{self._status(job)}'."
            raise RefusedError(_WIRE.error(409, message=message))
        if job.cancel_at is None:
            self._desk.jobs.cancel(job, at_once=False)
            self._desk.processing.wake()
        return send_json(200, self._body(job))

    def _status(self, job: Job) -> str:
        stage = self._desk.stage(job)
        if stage == "ended":
            # It has no partial success: its error file says which lines failed.
            return job.ending if job.ending in ("failed", "cancelled", "expired") else "completed"
        return _STATUSES[stage]

    def _body(self, job: Job) -> Json:
        status = self._status(job)
        ended = int(job.ends_at)
        validated = status not in ("validating", "failed")
        in_progress = validated and (job.cancel_at is None or job.cancel_at >= job.start_at)
        finalizing = status in ("finalizing", "completed", "expired")
        body: Json = {
            "id": job.id,
            "object": "batch",
            "endpoint": job.about["endpoint"],
            "model": job.model if validated and job.model else None,
            "errors": {"object": "list", "data": job.errors} if status == "failed" else None,
            "input_file_id": job.about["input_file_id"],
            "completion_window": "24h",
            "status": status,
            "output_file_id": job.outputs.get("output"),
            "error_file_id": job.outputs.get("error"),
            "created_at": int(job.created_at),
            "in_progress_at": int(job.start_at) if in_progress else None,
            "expires_at": int(job.expires_at),
            "finalizing_at": int(job.lines_at) if finalizing else None,
            "completed_at": ended if status == "completed" else None,
            "failed_at": ended if status == "failed" else None,
            "expired_at": ended if status == "expired" else None,
            "cancelling_at": None if job.cancel_at is None else int(job.cancel_at),
            "cancelled_at": ended if status == "cancelled" else None,
            "request_counts": {
                "total": job.lines if validated else 0,
                "completed": job.succeeded,
                "failed": job.failed,
            },
            "metadata": job.about["metadata"],
        }
        if job.ended and status != "failed":
            body["usage"] = {
                "input_tokens": job.input_tokens,
                "input_tokens_details": {"cached_tokens": job.cached_tokens},
                "output_tokens": job.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": job.input_tokens + job.output_tokens,
            }
        return body


async def _receive(
    request: web.Request, piece: BodyPartReader, part: Part, rule: FaultRule | None
) -> None:
    """Write an uploaded file to its part file; a cut ends the connection inside it."""
    cut = rule is not None and rule.status is None
    stop_at = int((request.content_length or 0) * rule.part) if rule is not None else 0
    while block := await piece.read_chunk():
        part.write(block)
        if cut and part.size >= stop_at:
            raise CutError
        if part.size > _MAX_FILE:
            raise RefusedError(_WIRE.error(413))


def _page(
    request: web.Request, names: list[str], default: int, largest: int
) -> tuple[list[str], Json]:
    limit = number(_WIRE, request.query, "limit", default, largest)
    after = request.query.get("after")
    start = 0
    if after is not None:
        start = names.index(after) + 1 if after in names else len(names)
    page = names[start : start + limit]
    return page, {
        "object": "list",
        "has_more": start + limit < len(names),
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def _file_body(stored: StoredFile) -> Json:
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.size,
        "created_at": int(stored.created_at),
        "filename": stored.name,
        "purpose": stored.purpose,
        "status": "processed",
        "expires_at": None if stored.expires_at is None else int(stored.expires_at),
    }
