"""Anthropic's Message Batches through the anthropic SDK: lines go up with the job, no files.

Anthropic keeps no name of ours for a job, so a lost one is found by its time and size.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from batch_pipeline.providers import wire
from batch_pipeline.providers.anthropic import API_VERSION, STATUS_OF_TYPE, AnthropicCodec
from batch_pipeline.providers.base import ProviderError, WireCall
from batch_pipeline.providers.batch_wire import (
    PAGE,
    SdkWire,
    as_reply,
    checked_name,
    count,
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

if TYPE_CHECKING:
    import httpx2
    from anthropic import AsyncAnthropic

_JOBS = "/v1/messages/batches"


class AnthropicBatches:
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
        headers = {"authorization": f"Bearer {key}", "anthropic-version": API_VERSION}
        self._wire: SdkWire[AsyncAnthropic] = SdkWire(
            AnthropicCodec(), key, base_url, headers, timeout_s, self._client
        )

    def line(self, custom_id: str, call: WireCall) -> bytes:
        """See BatchApi.line."""
        return orjson.dumps({"custom_id": custom_id, "params": orjson.Fragment(call.body)})

    async def upload(self, label: str, lines: Sequence[bytes]) -> str:
        """See BatchApi.upload: nothing goes up before the job."""
        return ""

    async def find_upload(self, label: str) -> str | None:
        """See BatchApi.find_upload: there are none."""
        return None

    async def create(self, label: str, model: str, file: str, lines: Sequence[bytes]) -> RemoteJob:
        """See BatchApi.create."""
        # Bytes as they are, by the SDK's own door for them: its typed method would walk through
        # and write anew up to 256 MB, and the event loop would stand still meanwhile.
        body = b'{"requests":[' + b",".join(lines) + b"]}"
        options: Any = {"headers": {"content-type": "application/json"}}
        data = await self._wire.ask_object(
            lambda sdk: sdk.post(_JOBS, cast_to=object, content=body, options=options), makes=True
        )
        return _job(data)

    async def jobs(self, since: float) -> AsyncIterator[RemoteJob]:
        """See BatchApi.jobs."""
        asked: dict[str, Any] = {"limit": PAGE}
        while True:
            page = await self._page(asked)
            found = [_job(wire.as_dict(one)) for one in wire.as_list(page.get("data"))]
            for job in found:
                if job.created_at >= since:
                    yield job
            last = found[-1].name if found else ""
            old = all(job.created_at < since for job in found)
            if old or page.get("has_more") is not True or asked.get("after_id") == last:
                return
            asked = {"limit": PAGE, "after_id": last}

    async def job(self, name: str) -> RemoteJob:
        """See BatchApi.job."""
        checked_name(name)
        return _job(await self._wire.ask_object(lambda sdk: sdk.messages.batches.retrieve(name)))

    async def cancel(self, name: str) -> None:
        """See BatchApi.cancel."""
        checked_name(name)
        await self._wire.ask(lambda sdk: sdk.messages.batches.cancel(name))

    async def results(self, job: RemoteJob) -> AsyncIterator[LineResult]:
        """See BatchApi.results."""
        if not job.results:
            if job.state.ended:
                raise ResultsGoneError(f"The results of {job.name} are kept no longer.")
            return
        # not the address in the job: the key goes to the base URL only
        path = f"{_JOBS}/{checked_name(job.name)}/results"
        async for data in self._wire.lines(path, "application/binary", _is_gone):
            if result := _result(data):
                yield result

    async def delete_upload(self, file: str) -> None:
        """See BatchApi.delete_upload: there are none."""

    async def aclose(self) -> None:
        """See BatchApi.aclose."""
        await self._wire.aclose()

    def _client(self, http: httpx2.AsyncClient) -> AsyncAnthropic:
        from anthropic import AsyncAnthropic

        return AsyncAnthropic(
            api_key=self._key,
            base_url=self._base_url,
            max_retries=0,
            timeout=http.timeout,
            http_client=http,
            open_telemetry=False,
        )

    async def _page(self, asked: dict[str, Any]) -> dict[str, Any]:
        return await self._wire.ask_object(lambda sdk: sdk.messages.batches.list(**asked))


def _is_gone(error: ProviderError) -> bool:
    return error.status in (404, 410)


def _job(data: dict[str, Any]) -> RemoteJob:
    counts = {
        name: count(number) or 0
        for name, number in wire.as_dict(data.get("request_counts")).items()
    }
    failed = sum(counts.get(name, 0) for name in ("errored", "canceled", "expired"))
    results = wire.as_text(data.get("results_url"))
    return RemoteJob(
        name=checked_name(wire.as_text(data.get("id"))),
        state=_state(wire.as_text(data.get("processing_status")), counts),
        created_at=seconds(data.get("created_at")) or 0.0,
        ended_at=seconds(data.get("ended_at")),
        expires_at=seconds(data.get("expires_at")),
        total=sum(counts.values()) if counts else None,
        succeeded=counts.get("succeeded"),
        failed=failed if counts else None,
        # an archived job's results are gone, whatever its address says
        results=(results,) if results and not data.get("archived_at") else (),
    )


def _state(status: str, counts: dict[str, int]) -> JobState:
    if status == "ended":
        # one word for all ends: the counts tell what it was
        if counts.get("canceled"):
            return JobState.CANCELLED
        return JobState.EXPIRED if counts.get("expired") else JobState.SUCCEEDED
    return {"in_progress": JobState.RUNNING, "canceling": JobState.CANCELLING}.get(
        status, JobState.UNKNOWN
    )


def _result(data: dict[str, Any]) -> LineResult | None:
    custom_id = wire.as_text(data.get("custom_id"))
    if not custom_id:
        return None
    result = wire.as_dict(data.get("result"))
    kind = result.get("type")
    if kind == "succeeded":
        reply = as_reply(200, result.get("message"))
        return LineResult(custom_id, LineEnd.ANSWERED, reply)
    if kind == "expired":
        return LineResult(custom_id, LineEnd.EXPIRED)
    if kind == "canceled":
        return LineResult(custom_id, LineEnd.CANCELLED)
    error = wire.as_dict(result.get("error"))
    if "error" not in error:
        error = {"type": "error", "error": error}
    status = STATUS_OF_TYPE.get(wire.as_text(wire.as_dict(error["error"]).get("type")), 500)
    return LineResult(custom_id, LineEnd.ERRORED, as_reply(status, error))
