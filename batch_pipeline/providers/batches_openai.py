"""OpenAI's Batch API through the openai SDK: a file up, a job on it, two files of results down.

What does not belong here: the wire of a single request (openai.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

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
)
from batch_pipeline.providers.batches import (
    BatchLimits,
    JobState,
    LineEnd,
    LineResult,
    RemoteJob,
    ResultsGoneError,
)
from batch_pipeline.providers.openai import OpenAICodec

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

_LABEL = "batch_pipeline_job"

_STATES = {
    "validating": JobState.PENDING,
    "in_progress": JobState.RUNNING,
    "finalizing": JobState.RUNNING,
    "completed": JobState.SUCCEEDED,
    "failed": JobState.FAILED,
    "expired": JobState.EXPIRED,
    "cancelling": JobState.CANCELLING,
    "cancelled": JobState.CANCELLED,
}
_ENDS = ("completed_at", "failed_at", "expired_at", "cancelled_at")
# lines that were never asked
_UNASKED = {"batch_expired": LineEnd.EXPIRED, "batch_cancelled": LineEnd.CANCELLED}


class OpenAIBatches:
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
        self._wire: SdkWire[AsyncOpenAI] = SdkWire(
            OpenAICodec(),
            key,
            base_url,
            {"authorization": f"Bearer {key}"},
            timeout_s,
            self._client,
        )

    def line(self, custom_id: str, call: WireCall) -> bytes:
        """See BatchApi.line."""
        # a job knows endpoints of OpenAI itself, wherever the base URL leads
        endpoint = "/v1" + urlsplit(call.url).path.removeprefix(urlsplit(self._base_url).path)
        return orjson.dumps(
            {
                "custom_id": custom_id,
                "method": "POST",
                "url": endpoint,
                "body": orjson.Fragment(call.body),
            }
        )

    async def upload(self, label: str, lines: Sequence[bytes]) -> str:
        """See BatchApi.upload."""
        file = (_file_name(label), b"\n".join([*lines, b""]), "application/jsonl")
        data = await self._wire.ask_object(
            lambda sdk: sdk.files.create(file=file, purpose="batch"), makes=True
        )
        return checked_name(wire.as_text(data.get("id")))

    async def find_upload(self, label: str) -> str | None:
        """See BatchApi.find_upload."""
        name = _file_name(label)
        async for page in self._pages(
            lambda sdk, asked: sdk.files.list(purpose="batch", order="desc", **asked)
        ):
            for file in page:
                if file.get("filename") == name and file.get("status") != "error":
                    return checked_name(wire.as_text(file.get("id")))
        return None

    async def create(self, label: str, model: str, file: str, lines: Sequence[bytes]) -> RemoteJob:
        """See BatchApi.create."""
        checked_name(file)
        endpoint: Any = orjson.loads(lines[0])["url"]
        data = await self._wire.ask_object(
            lambda sdk: sdk.batches.create(
                input_file_id=file,
                endpoint=endpoint,
                completion_window="24h",
                metadata={_LABEL: label},
            ),
            makes=True,
        )
        return _job(data)

    async def jobs(self, since: float) -> AsyncIterator[RemoteJob]:
        """See BatchApi.jobs."""
        async for page in self._pages(lambda sdk, asked: sdk.batches.list(**asked)):
            found = [_job(one) for one in page]
            for job in found:
                if job.created_at >= since:
                    yield job
            if all(job.created_at < since for job in found):
                return

    async def job(self, name: str) -> RemoteJob:
        """See BatchApi.job."""
        checked_name(name)
        return _job(await self._wire.ask_object(lambda sdk: sdk.batches.retrieve(name)))

    async def cancel(self, name: str) -> None:
        """See BatchApi.cancel."""
        checked_name(name)
        await self._wire.ask(lambda sdk: sdk.batches.cancel(name))

    async def results(self, job: RemoteJob) -> AsyncIterator[LineResult]:
        """See BatchApi.results."""
        if not job.results and has_output(job.state):
            raise ResultsGoneError(f"{job.name} has no results file.")
        for file in job.results:
            path = f"/files/{checked_name(file)}/content"
            async for data in self._wire.lines(path, "application/binary", _is_gone):
                if result := _result(data):
                    yield result

    async def delete_upload(self, file: str) -> None:
        """See BatchApi.delete_upload."""
        checked_name(file)
        try:
            await self._wire.ask(lambda sdk: sdk.files.delete(file))
        except ProviderError as error:
            if not _is_gone(error):
                raise

    async def aclose(self) -> None:
        """See BatchApi.aclose."""
        await self._wire.aclose()

    def _client(self, http: httpx2.AsyncClient) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        client = AsyncOpenAI(
            api_key=self._key,
            base_url=self._base_url,
            max_retries=0,
            timeout=http.timeout,
            http_client=http,
        )
        # found in the environment, and unknown to the real-time calls: both lanes share one account
        client.organization = client.project = None
        return client

    async def _page(
        self,
        call: Callable[[AsyncOpenAI, dict[str, Any]], Awaitable[object]],
        asked: dict[str, Any],
    ) -> dict[str, Any]:
        return await self._wire.ask_object(lambda sdk: call(sdk, asked))

    async def _pages(
        self, call: Callable[[AsyncOpenAI, dict[str, Any]], Awaitable[object]]
    ) -> AsyncIterator[list[dict[str, Any]]]:
        asked: dict[str, Any] = {"limit": PAGE}
        while True:
            reply = await self._page(call, asked)
            page = [one for one in wire.as_list(reply.get("data")) if isinstance(one, dict)]
            yield page
            last = wire.as_text(page[-1].get("id")) if page else ""
            if not last or reply.get("has_more") is not True or last == asked.get("after"):
                return
            asked = {"limit": PAGE, "after": last}


def _file_name(label: str) -> str:
    return f"{label}.jsonl"


def _is_gone(error: ProviderError) -> bool:
    return error.status in (404, 410)


def _job(data: dict[str, Any]) -> RemoteJob:
    counts = wire.as_dict(data.get("request_counts"))
    error = wire.first_dict(wire.as_dict(data.get("errors")).get("data"))
    files = (wire.as_text(data.get(name)) for name in ("output_file_id", "error_file_id"))
    # counts are zeros until the file has been looked through
    total = count(counts.get("total")) or None
    return RemoteJob(
        name=checked_name(wire.as_text(data.get("id"))),
        state=_STATES.get(wire.as_text(data.get("status")), JobState.UNKNOWN),
        label=wire.as_text(wire.as_dict(data.get("metadata")).get(_LABEL)),
        created_at=seconds(data.get("created_at")) or 0.0,
        ended_at=next((end for name in _ENDS if (end := seconds(data.get(name)))), None),
        expires_at=seconds(data.get("expires_at")),
        total=total,
        succeeded=count(counts.get("completed")) if total else None,
        failed=count(counts.get("failed")) if total else None,
        results=tuple(file for file in files if file),
        error_code=wire.as_code(error.get("code")),
        error=wire.redact(wire.as_text(error.get("message"))),
    )


def _result(data: dict[str, Any]) -> LineResult | None:
    custom_id = wire.as_text(data.get("custom_id"))
    if not custom_id:
        return None
    response = wire.as_dict(data.get("response"))
    if response:
        status = wire.as_count(response.get("status_code"))
        headers = {"x-request-id": wire.as_text(response.get("request_id"))}
        reply = as_reply(status, response.get("body"), headers)
        return LineResult(custom_id, LineEnd.ANSWERED if status == 200 else LineEnd.ERRORED, reply)
    error = wire.as_dict(data.get("error"))
    code = wire.as_text(error.get("code"))
    if code in _UNASKED:
        return LineResult(custom_id, _UNASKED[code])
    return LineResult(custom_id, LineEnd.ERRORED, as_reply(500, {"error": error}))
