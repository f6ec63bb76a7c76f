"""Gemini's Batch API (Gemini Developer API, v1) through google-genai, always by files.

Inline batches are not used: the SDK cannot read their error details, and they stop at 20 MB.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import ProviderError, WireCall
from batch_pipeline.providers.batch_wire import (
    PAGE,
    SdkWire,
    as_reply,
    checked_name,
    count,
    has_output,
    seconds,
    trust,
)
from batch_pipeline.providers.batches import (
    BatchLimits,
    JobState,
    LineEnd,
    LineResult,
    RemoteJob,
    ResultsGoneError,
)
from batch_pipeline.providers.google import GoogleCodec

if TYPE_CHECKING:
    import httpx2
    from google.genai import Client, types

_JSONL = "application/jsonl"
_UPLOAD_STATUS = "x-goog-upload-status"

_STATES = {
    "QUEUED": JobState.PENDING,
    "PENDING": JobState.PENDING,
    "UPDATING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "PAUSED": JobState.PAUSED,
    "CANCELLING": JobState.CANCELLING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "PARTIALLY_SUCCEEDED": JobState.PARTIAL,
    "FAILED": JobState.FAILED,
    "EXPIRED": JobState.EXPIRED,
    "CANCELLED": JobState.CANCELLED,
}

# google.rpc.Code: its name and the HTTP status that goes with it
_RPC = {
    1: ("CANCELLED", 499),
    2: ("UNKNOWN", 500),
    3: ("INVALID_ARGUMENT", 400),
    4: ("DEADLINE_EXCEEDED", 504),
    5: ("NOT_FOUND", 404),
    6: ("ALREADY_EXISTS", 409),
    7: ("PERMISSION_DENIED", 403),
    8: ("RESOURCE_EXHAUSTED", 429),
    9: ("FAILED_PRECONDITION", 400),
    10: ("ABORTED", 409),
    11: ("OUT_OF_RANGE", 400),
    12: ("UNIMPLEMENTED", 501),
    13: ("INTERNAL", 500),
    14: ("UNAVAILABLE", 503),
    15: ("DATA_LOSS", 500),
    16: ("UNAUTHENTICATED", 401),
}
_HTTP_OF_NAME = dict(_RPC.values())


class GoogleBatches:
    """See BatchApi.

    Args:
        limits: what the provider takes.
        key: the secret.
        base_url: without a slash at the end.
        timeout_s: longest silence of the server, in seconds.
    """

    def __init__(self, limits: BatchLimits, key: str, base_url: str, timeout_s: float) -> None:
        self.limits = limits
        self._key = key
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._wire: SdkWire[Client] = SdkWire(
            GoogleCodec(), key, base_url, {"x-goog-api-key": key}, timeout_s, self._client
        )

    def line(self, custom_id: str, call: WireCall) -> bytes:
        """See BatchApi.line."""
        return orjson.dumps({"key": custom_id, "request": orjson.Fragment(call.body)})

    async def upload(self, label: str, lines: Sequence[bytes]) -> str:
        """See BatchApi.upload."""
        data = b"\n".join([*lines, b""])

        async def send(sdk: Client) -> object:
            from google.genai import types

            # without options of this very call the SDK uploads to wherever the reply says
            config = types.UploadFileConfig(
                display_name=label, mime_type=_JSONL, http_options=self._options()
            )
            return await sdk.aio.files.upload(file=io.BytesIO(data), config=config)

        reply = await self._wire.ask(send, makes=True, needs=_UPLOAD_STATUS)
        file = wire.as_dict((wire.parse_object(reply) or {}).get("file"))
        if not file:
            raise wire.unusable_200(reply)
        return checked_name(wire.as_text(file.get("name")), "files/")

    async def find_upload(self, label: str) -> str | None:
        """See BatchApi.find_upload."""
        token = ""
        while True:
            page = await self._page(lambda sdk: sdk.aio.files, token)
            for file in wire.as_list(page.get("files")):
                found = wire.as_dict(file)
                if found.get("displayName") == label and found.get("state") != "FAILED":
                    return checked_name(wire.as_text(found.get("name")), "files/")
            token = _next(page, token)
            if not token:
                return None

    async def create(self, label: str, model: str, file: str, lines: Sequence[bytes]) -> RemoteJob:
        """See BatchApi.create."""
        checked_name(file, "files/")

        async def send(sdk: Client) -> object:
            from google.genai import types

            source = types.BatchJobSource(file_name=file)
            config = types.CreateBatchJobConfig(display_name=label)
            return await sdk.aio.batches.create(model=model, src=source, config=config)

        return _job(await self._wire.ask_object(send, makes=True))

    async def jobs(self, since: float) -> AsyncIterator[RemoteJob]:
        """See BatchApi.jobs."""
        token = ""
        while True:
            page = await self._page(lambda sdk: sdk.aio.batches, token)
            operations = [_job(wire.as_dict(one)) for one in wire.as_list(page.get("operations"))]
            # the order is nowhere promised, so that only a page of old jobs ends the search
            for job in operations:
                if job.created_at >= since:
                    yield job
            token = _next(page, token)
            if not token or all(job.created_at < since for job in operations):
                return

    async def job(self, name: str) -> RemoteJob:
        """See BatchApi.job."""
        checked_name(name, "batches/")
        return _job(await self._wire.ask_object(lambda sdk: sdk.aio.batches.get(name=name)))

    async def cancel(self, name: str) -> None:
        """See BatchApi.cancel."""
        checked_name(name, "batches/")
        await self._wire.ask(lambda sdk: sdk.aio.batches.cancel(name=name))

    async def results(self, job: RemoteJob) -> AsyncIterator[LineResult]:
        """See BatchApi.results: an expired or cancelled job of Gemini's has none."""
        if not job.results and has_output(job.state):
            raise ResultsGoneError(f"{job.name} has no results file.")
        for file in job.results:
            path = f"/v1/{checked_name(file, 'files/')}:download?alt=media"
            async for data in self._wire.lines(path, "*/*", _is_gone):
                if result := _result(data):
                    yield result

    async def delete_upload(self, file: str) -> None:
        """See BatchApi.delete_upload."""
        checked_name(file, "files/")
        try:
            await self._wire.ask(lambda sdk: sdk.aio.files.delete(name=file))
        except ProviderError as error:
            if not _is_gone(error):
                raise

    async def aclose(self) -> None:
        """See BatchApi.aclose."""
        await self._wire.aclose()

    def _client(self, http: httpx2.AsyncClient) -> Client:
        from google import genai

        # the SDK's opinion of a state is not used, so nobody needs to hear of it
        warnings.filterwarnings("ignore", r".* is not a valid JobState$", UserWarning)
        # vertexai: else variables of the environment decide which of Google's APIs is called
        return genai.Client(vertexai=False, api_key=self._key, http_options=self._options(http))

    def _options(self, http: httpx2.AsyncClient | None = None) -> types.HttpOptions:
        from google.genai import types

        return types.HttpOptions(
            base_url=self._base_url,
            api_version="v1",
            timeout=int(self._timeout_s * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
            # given a client, the SDK does not look for aiohttp
            httpx_async_client=http,
            # it reads all certificates twice for what is not used otherwise
            client_args={"verify": trust()},
            async_client_args={"ssl": trust()},
        )

    async def _page(self, room: Any, token: str) -> dict[str, Any]:
        config: dict[str, Any] = {"page_size": PAGE}
        if token:
            config["page_token"] = token
        return await self._wire.ask_object(lambda sdk: room(sdk).list(config=config))


def _next(page: dict[str, Any], token: str) -> str:
    following = wire.as_text(page.get("nextPageToken"))
    return following if following != token else ""


def _is_gone(error: ProviderError) -> bool:
    # Google answers 403 for a file that is not there: "no permission, or it may not exist"
    return error.status == 404 or (error.status == 403 and "may not exist" in error.message)


def _job(operation: dict[str, Any]) -> RemoteJob:
    meta = wire.as_dict(operation.get("metadata"))
    stats = wire.as_dict(meta.get("batchStats"))
    error = wire.as_dict(operation.get("error"))
    output = wire.as_dict(meta.get("output")) or wire.as_dict(operation.get("response"))
    file = wire.as_text(output.get("responsesFile"))
    state = _STATES.get(wire.as_text(meta.get("state")).split("_STATE_")[-1], JobState.UNKNOWN)
    if operation.get("done") is True and not state.ended:
        # a word that is not known here, on an operation that is over
        state = JobState.FAILED if error else JobState.PARTIAL if file else JobState.UNKNOWN
    return RemoteJob(
        name=checked_name(wire.as_text(operation.get("name")), "batches/"),
        state=state,
        label=wire.as_text(meta.get("displayName")),
        created_at=seconds(meta.get("createTime")) or 0.0,
        ended_at=seconds(meta.get("endTime")) if state.ended else None,
        total=_stat(stats, "requestCount"),
        succeeded=_stat(stats, "successfulRequestCount"),
        failed=_stat(stats, "failedRequestCount"),
        results=(file,) if file else (),
        error_code=_status(error)[0] if error else "",
        error=wire.redact(wire.as_text(error.get("message"))),
    )


def _stat(stats: dict[str, Any], name: str) -> int | None:
    # zeros are left out; no counts at all is another thing
    return count(stats.get(name)) or 0 if stats else None


def _status(error: dict[str, Any]) -> tuple[str, int]:
    """Name and HTTP status of an error, whose code may be google.rpc's or HTTP's."""
    code = wire.as_count(error.get("code"))
    name, status = _RPC.get(code, (str(code or ""), code))
    name = wire.as_code(error.get("status")) or name
    return name, status if 400 <= status < 600 else _HTTP_OF_NAME.get(name, 500)


def _result(data: dict[str, Any]) -> LineResult | None:
    key = wire.as_text(data.get("key"))
    if not key:
        return None
    response = data.get("response")
    if isinstance(response, dict):
        return LineResult(key, LineEnd.ANSWERED, as_reply(200, response))
    error = wire.as_dict(data.get("error"))
    name, status = _status(error)
    body = {"error": {**error, "code": status, "status": name}}
    return LineResult(key, LineEnd.ERRORED, as_reply(status, body))
