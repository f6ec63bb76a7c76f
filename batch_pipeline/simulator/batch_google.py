"""Gemini's files and batches, as google-genai sends them on v1 and v1beta.

What does not live here: when a job's lines are answered (`jobs`, `processing`).
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web
from typing_extensions import override

from batch_pipeline.simulator.desk import Desk, body_of, number
from batch_pipeline.simulator.files import Part, StoredFile
from batch_pipeline.simulator.jobclock import rfc3339
from batch_pipeline.simulator.jobs import Job
from batch_pipeline.simulator.lines import Asked, LineError, LineForm, Written
from batch_pipeline.simulator.replies import send, send_json
from batch_pipeline.simulator.wire import Json, RefusedError, Reply
from batch_pipeline.simulator.wire_google import field_of
from batch_pipeline.simulator.work import WIRES

_WIRE = WIRES["google"]
_MAX_INLINE = 20 * 1024 * 1024
_MAX_FILE = 2 * 1024**3
# Google documents no number; its files hold millions.
_MAX_LINES = 10_000_000
_FILE_KEPT_S = 48 * 3_600.0
_CHUNK_GRANULARITY = 8 * 1024 * 1024
_DEFAULT_PAGE, _MAX_FILES_PAGE, _MAX_JOBS_PAGE = 10, 100, 1_000
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"
_STATES = {
    "succeeded": "BATCH_STATE_SUCCEEDED",
    "partial": "BATCH_STATE_PARTIALLY_SUCCEEDED",
    "failed": "BATCH_STATE_FAILED",
    "cancelled": "BATCH_STATE_CANCELLED",
    "expired": "BATCH_STATE_EXPIRED",
}
_ENDED_BADLY = {
    "failed": (13, "The batch failed."),
    "cancelled": (1, "The batch was cancelled."),
    "expired": (4, "The batch expired before it was done."),
}
_RPC_CODES = {
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}


class GoogleLines(LineForm):
    """`{"key", "request"}` in a file, `{"request", "metadata"}` inline."""

    provider = "google"
    reports_unanswered = False

    @override
    def read(self, about: Json, line: Any, index: int) -> Asked:
        if not isinstance(line, dict):
            raise LineError("invalid_json_line", f"Line {index + 1} is not a JSON object.")
        metadata = line.get("metadata")
        key = line.get("key") or (metadata or {}).get("key") or str(index)
        request = line.get("request")
        path = {"model": about["model"], "version": about["version"]}
        body = request if isinstance(request, dict) else {}
        return Asked(str(key), "generateContent", body, path)

    @override
    def answered(self, job: Job, line: Json, asked: Asked, reply: Reply, name: str) -> Written:
        assert isinstance(reply.body, dict)
        result: Json = {}
        if "key" in line:
            result["key"] = line["key"]
        if reply.status == 200:
            result["response"] = reply.body
        else:
            error = reply.body["error"]
            code = _RPC_CODES.get(error["status"], 2)
            result["error"] = {"code": code, "message": error["message"]}
            if "fileName" in job.about["inputConfig"]:
                # The SDK cannot read a job whose inline errors have more than these two.
                result["error"]["status"] = error["status"]
        if "fileName" not in job.about["inputConfig"] and "metadata" in line:
            result["metadata"] = line["metadata"]
        return Written(result)

    @override
    def unanswered(self, job: Job, line: Json, asked: Asked, name: str) -> Written:
        raise AssertionError("Gemini reports nothing of an expired or cancelled job")

    @override
    def finish(self, desk: Desk, job: Job) -> None:
        has_results = job.ending in ("succeeded", "partial")
        if has_results and "fileName" in job.about["inputConfig"]:
            path = desk.jobs.path(job, "out")
            path.touch()
            now = desk.clock.now()
            stored = StoredFile(
                id=f"batch-{job.id}",
                provider=self.provider,
                owner=job.owner,
                name=f"batch-{job.id}",
                mime="application/json",
                size=path.stat().st_size,
                created_at=now,
                expires_at=now + job.kept_s,
                purpose="batch_output",
            )
            desk.publish(job, "output", stored)
        elif not has_results:
            desk.jobs.path(job, "out").unlink(missing_ok=True)
        desk.jobs.path(job, "err").unlink(missing_ok=True)


@dataclass
class _Upload:
    """A resumable upload that has begun."""

    owner: str
    name: str
    mime: str
    declared: int
    part: Part


class GoogleDesk:
    """The handlers of Gemini's files and batches."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._uploads: dict[str, _Upload] = {}
        desk.forms["google"] = GoogleLines()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""

        def to(name: str, handler: Any) -> Any:
            return self._desk.route("google", name, handler)

        base = r"/google/{version:v1|v1beta}"
        upload = r"/google/upload/{version:v1|v1beta}/files"
        media = r"/files/{file:[^:/]+}:download"
        return [
            web.post(f"{base}/models/{{model:[^:/]+}}:batchGenerateContent",
                     to("batches.create", self._create)),
            web.get(f"{base}/batches", to("batches.list", self._list)),
            web.get(f"{base}/batches/{{job:[^:/]+}}", to("batches.get", self._get)),
            web.delete(f"{base}/batches/{{job:[^:/]+}}", to("batches.delete", self._delete)),
            web.post(f"{base}/batches/{{job:[^:/]+}}:cancel", to("batches.cancel", self._cancel)),
            # The address of an upload is its credential: its chunks carry no key.
            web.post(upload, self._upload(to("files.create", self._start))),
            web.get(f"{base}/files", to("files.list", self._list_files)),
            web.get(f"{base}/files/{{file:[^:/]+}}", to("files.get", self._get_file)),
            web.delete(f"{base}/files/{{file:[^:/]+}}", to("files.delete", self._delete_file)),
            web.get(base + media, to("files.download", self._download)),
            web.get(r"/google/download/{version:v1|v1beta}" + media,
                    to("files.download", self._download)),
        ]  # fmt: skip

    def reset(self) -> None:
        """Forget uploads that have begun."""
        self._uploads.clear()

    def _upload(self, start: Any) -> Any:
        chunk = self._desk.keyless("google", "files.upload", self._chunk)

        async def handle(request: web.Request) -> web.StreamResponse:
            handler = chunk if "upload_id" in request.query else start
            response: web.StreamResponse = await handler(request)
            return response

        return handle

    async def _start(self, request: web.Request, owner: str) -> web.Response:
        body = body_of(_WIRE, await request.read())
        declared = body.get("file") or {}
        header = request.headers.get("X-Goog-Upload-Header-Content-Length")
        size = int(header or field_of(declared, "sizeBytes") or 0)
        if size > _MAX_FILE:
            raise RefusedError(_WIRE.error(400, message=f"File size {size} is above 2 GiB."))
        upload_id = uuid.uuid4().hex
        self._uploads[upload_id] = _Upload(
            owner=owner,
            name=str(field_of(declared, "displayName") or ""),
            mime=str(
                request.headers.get("X-Goog-Upload-Header-Content-Type")
                or field_of(declared, "mimeType")
                or "application/octet-stream"
            ),
            declared=size,
            part=self._desk.files.part(),
        )
        url = f"{request.scheme}://{request.host}{request.path}"
        url = f"{url}?upload_id={upload_id}&upload_protocol=resumable"
        headers = {
            "content-type": "text/plain; charset=utf-8",
            "X-GUploader-UploadID": upload_id,
            "X-Goog-Upload-Status": "active",
            "X-Goog-Upload-URL": url,
            "X-Goog-Upload-Control-URL": url,
            "X-Goog-Upload-Chunk-Granularity": str(_CHUNK_GRANULARITY),
        }
        return send(Reply(200, b"", headers))

    async def _chunk(self, request: web.Request) -> web.Response:
        upload_id = request.query["upload_id"]
        upload = self._uploads.get(upload_id)
        if upload is None:
            raise RefusedError(_WIRE.error(404, message="Upload not found."))
        commands = request.headers.get("X-Goog-Upload-Command", "").replace(" ", "").split(",")
        if "query" in commands:
            received = {"X-Goog-Upload-Size-Received": str(upload.part.size)}
            return send(Reply(200, b"", {"X-Goog-Upload-Status": "active", **received}))
        if "upload" in commands:
            offset = request.headers.get("X-Goog-Upload-Offset", "0")
            if offset != str(upload.part.size):
                message = f"The offset {offset} is not {upload.part.size}, the bytes received."
                raise RefusedError(_WIRE.error(400, message=message))
            rule = self._desk.strike("upload", _WIRE, upload.owner, name=upload.name)
            if rule is not None and rule.status is not None:
                await request.read()
                self._desk.happen(rule, _WIRE)
            await self._desk.receive(request, upload.part, _MAX_FILE, rule)
        if "finalize" not in commands:
            return send(Reply(200, b"", {"X-Goog-Upload-Status": "active"}))
        if upload.declared and upload.declared != upload.part.size:
            message = f"Received {upload.part.size} bytes of {upload.declared}."
            raise RefusedError(_WIRE.error(400, message=message))
        del self._uploads[upload_id]
        now = self._desk.clock.now()
        stored = StoredFile(
            id=uuid.uuid4().hex[:12],
            provider="google",
            owner=upload.owner,
            name=upload.name,
            mime=upload.mime,
            size=upload.part.size,
            created_at=now,
            expires_at=now + _FILE_KEPT_S,
            purpose="batch",
            sha256=upload.part.sha256,
        )
        self._desk.files.add(stored, upload.part.path)
        return send_json(200, {"file": _file_body(stored)}, {"X-Goog-Upload-Status": "final"})

    def _file(self, request: web.Request, owner: str) -> StoredFile:
        name = request.match_info["file"]
        stored = self._desk.files.get("google", owner, name)
        if stored is None:
            message = f"You do not have permission to access the File {name} or it may not exist."
            raise RefusedError(_WIRE.error(403, message=message))
        return stored

    async def _get_file(self, request: web.Request, owner: str) -> web.Response:
        return send_json(200, _file_body(self._file(request, owner)))

    async def _delete_file(self, request: web.Request, owner: str) -> web.Response:
        self._desk.files.remove(self._file(request, owner))
        return send_json(200, {})

    async def _list_files(self, request: web.Request, owner: str) -> web.Response:
        found = self._desk.files.of("google", owner)
        page, following = _page(request, [stored.id for stored in found], _MAX_FILES_PAGE)
        by_id = {stored.id: stored for stored in found}
        body: Json = {"files": [_file_body(by_id[name]) for name in page]}
        return send_json(200, body | following)

    async def _download(self, request: web.Request, owner: str) -> web.StreamResponse:
        stored = self._file(request, owner)
        path = self._desk.files.path(stored)
        return await self._desk.download(request, _WIRE, owner, path, "application/octet-stream")

    async def _create(self, request: web.Request, owner: str) -> web.Response:
        version = request.match_info["version"]
        model = _WIRE.check_model(request.match_info["model"], version, beta=version == "v1beta")
        self._desk.check_account(_WIRE, request, model)
        raw = await request.read()
        max_lines, max_inline = self._desk.limit_of(
            _WIRE, owner, model, lines=_MAX_LINES, size=_MAX_INLINE
        )
        if len(raw) > max_inline:
            message = f"Request payload size exceeds the limit: {max_inline} bytes."
            raise RefusedError(_WIRE.error(400, message=message))
        batch = body_of(_WIRE, raw).get("batch") or {}
        source = field_of(batch, "inputConfig") or {}
        about: Json = {
            "model": model,
            "version": version,
            "displayName": str(field_of(batch, "displayName") or ""),
        }
        file_name = field_of(source, "fileName")
        if file_name:
            about["inputConfig"] = {"fileName": file_name}
            stored = self._desk.files.get("google", owner, file_name.removeprefix("files/"))
            if stored is None:
                raise RefusedError(_WIRE.error(404))
            content = self._desk.files.link(stored)
        else:
            about["inputConfig"] = {"requests": {"requests": []}}
            requests = (field_of(source, "requests") or {}).get("requests")
            if not isinstance(requests, list) or not requests:
                raise RefusedError(_WIRE.error(400, message="The batch has no requests."))
            part = self._desk.files.part()
            part.write(b"".join(orjson.dumps(one) + b"\n" for one in requests))
            content = part.path
        try:
            found = await self._desk.scan(content, "google", about, owner)
            if not found.lines or found.lines > max_lines:
                message = f"The batch has {found.lines} requests, of 1 to {max_lines}."
                raise RefusedError(_WIRE.error(400, message=message))
            if self._desk.excess("google", owner, found):
                raise RefusedError(_exhausted())
            job = self._desk.create(
                uuid.uuid4().hex[:24], _WIRE, owner, content=content, found=found,
                about=about, model=model, in_order=not file_name,
            )  # fmt: skip
        finally:
            content.unlink(missing_ok=True)
        return send_json(200, self._body(job))

    def _job(self, request: web.Request, owner: str) -> Job:
        job = self._desk.jobs.get("google", owner, request.match_info["job"])
        if job is None:
            raise RefusedError(_WIRE.error(404))
        return job

    async def _get(self, request: web.Request, owner: str) -> web.Response:
        return send_json(200, self._body(self._job(request, owner), results=True))

    async def _list(self, request: web.Request, owner: str) -> web.Response:
        found = {job.id: job for job in self._desk.jobs.of("google", owner)}
        page, following = _page(request, list(found), _MAX_JOBS_PAGE)
        body: Json = {"operations": [self._body(found[name]) for name in page]}
        return send_json(200, body | following)

    async def _cancel(self, request: web.Request, owner: str) -> web.Response:
        job = self._job(request, owner)
        if not job.ended:
            self._desk.jobs.cancel(job, at_once=True)
            self._desk.processing.wake()
        return send_json(200, {})

    async def _delete(self, request: web.Request, owner: str) -> web.Response:
        self._desk.jobs.remove(self._job(request, owner))
        return send_json(200, {})

    def _body(self, job: Job, *, results: bool = False) -> Json:
        stage = self._desk.stage(job)
        state = _STATES[job.ending] if stage == "ended" else "BATCH_STATE_RUNNING"
        updated = job.ends_at if stage == "ended" else job.start_at
        if stage == "cancelling":
            updated = job.cancel_at or updated
        if stage == "pending":
            state, updated = "BATCH_STATE_PENDING", job.created_at
        metadata: Json = {
            "@type": _TYPE,
            "model": f"models/{job.model}",
            "displayName": job.about["displayName"],
            "createTime": rfc3339(job.created_at),
            "updateTime": rfc3339(updated),
            "batchStats": _stats(job),
            "state": state,
            "name": f"batches/{job.id}",
            "inputConfig": job.about["inputConfig"],
        }
        body: Json = {"name": f"batches/{job.id}", "metadata": metadata}
        if stage != "ended":
            return body
        metadata["endTime"] = rfc3339(job.ends_at)
        body["done"] = True
        if job.ending in _ENDED_BADLY:
            code, message = _ENDED_BADLY[job.ending]
            if job.errors:
                message = job.errors[0]["message"]
                code = 3 if job.errors[0]["line"] else code
            body["error"] = {"code": code, "message": message}
            return body
        output = self._output(job, results=results)
        if output:
            metadata["output"] = output
            body["response"] = {"@type": f"{_TYPE}Output", **output}
        return body

    def _output(self, job: Job, *, results: bool) -> Json:
        if job.outputs:
            return {"responsesFile": f"files/{job.outputs['output']}"}
        # A list without the results of every inline job stays small.
        if not results or not self._desk.jobs.kept(job, job.ends_at):
            return {}
        lines = self._desk.jobs.path(job, "out").read_bytes().splitlines()
        return {"inlinedResponses": {"inlinedResponses": [orjson.loads(line) for line in lines]}}


def _page(request: web.Request, names: list[str], largest: int) -> tuple[list[str], Json]:
    size = number(_WIRE, request.query, "pageSize", _DEFAULT_PAGE, largest)
    token = request.query.get("pageToken")
    # The token is the last name of the page before, so that new names at the front move nothing.
    start = names.index(token) + 1 if token in names else 0
    page = names[start : start + size]
    more = start + size < len(names)
    return page, {"nextPageToken": page[-1]} if more else {}


def _stats(job: Job) -> Json:
    counts = {
        "requestCount": job.lines,
        "successfulRequestCount": job.succeeded,
        "failedRequestCount": job.failed,
        "pendingRequestCount": job.lines - job.succeeded - job.failed,
    }
    # int64 is text in JSON, and zero is left out.
    return {name: str(count) for name, count in counts.items() if count}


def _file_body(stored: StoredFile) -> Json:
    generated = stored.purpose == "batch_output"
    body: Json = {
        "name": f"files/{stored.id}",
        "displayName": stored.name,
        "mimeType": stored.mime,
        "sizeBytes": str(stored.size),
        "createTime": rfc3339(stored.created_at),
        "updateTime": rfc3339(stored.created_at),
        "expirationTime": rfc3339(stored.expires_at or stored.created_at),
        "sha256Hash": base64.b64encode(stored.sha256.encode()).decode(),
        "uri": f"https://generativelanguage.googleapis.com/v1beta/files/{stored.id}",
        "state": "ACTIVE",
        "source": "GENERATED" if generated else "UPLOADED",
    }
    if generated:
        body["downloadUri"] = f"{body['uri']}:download?alt=media"
        del body["sha256Hash"]
    return body


def _exhausted() -> Reply:
    """Write the 429 of a create: as the real one, it says neither which limit nor how long."""
    reply = _WIRE.error(
        429,
        message="You exceeded your current quota, please check your plan and billing details. For "
        "more information on this error, head to: https://ai.google.dev/gemini-api/docs/"
        "rate-limits. To monitor your current usage, head to: https://ai.dev/rate-limit. ",
    )
    assert isinstance(reply.body, dict)
    link = {
        "description": "Learn more about Gemini API quotas",
        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
    }
    reply.body["error"]["details"] = [
        {"@type": "type.googleapis.com/google.rpc.Help", "links": [link]}
    ]
    return reply
