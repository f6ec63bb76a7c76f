"""Anthropic's batches: one request makes a job, counts tell how it ended, errors by their type."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from batch_pipeline.providers.anthropic import AnthropicCodec
from batch_pipeline.providers.base import ErrorKind, Finish, ProviderError
from batch_pipeline.providers.batches import (
    BatchApi,
    JobState,
    LineEnd,
    LineResult,
    RemoteJob,
    ResultsGoneError,
)
from batch_pipeline_tests.providers.batch_server import (
    KEY,
    as_lines,
    base_url,
    built,
    collect,
    ended,
    exchange,
)
from batch_pipeline_tests.providers.recorder import Answer, Recorded, as_json, recording

JOB: dict[str, Any] = {
    "id": "msgbatch_013Zva2CMHLNnXjNJJKqJ2EF",
    "type": "message_batch",
    "processing_status": "in_progress",
    "request_counts": {"processing": 2, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
    "ended_at": None,
    "created_at": "2026-11-21T20:33:07.302459Z",
    "expires_at": "2026-11-22T20:33:07.302491Z",
    "archived_at": None,
    "cancel_initiated_at": None,
    "results_url": None,
}
URL = "http://127.0.0.1:41791/v1/messages/batches/msgbatch_013Zva2CMHLNnXjNJJKqJ2EF/results"


def _look(**changes: Any) -> RemoteJob:
    body = {**JOB, **changes}
    job, (sent,) = exchange("anthropic", lambda _: as_json(body), lambda api: api.job(JOB["id"]))
    assert sent.path == f"/anthropic/v1/messages/batches/{JOB['id']}"
    return job


def _ended(**counts: int) -> RemoteJob:
    known = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    return _look(
        processing_status="ended",
        request_counts={**known, **counts},
        ended_at="2026-11-21T20:34:07.304896Z",
        results_url=URL,
    )


def test_a_job_is_created_by_one_request_that_holds_the_lines() -> None:
    call = built("anthropic", base_url("anthropic", "http://127.0.0.1:9"))

    async def use(api: BatchApi) -> RemoteJob:
        lines = [api.line(name, call) for name in ("row-1", "row-2")]
        assert await api.upload("label-1", lines) == ""
        assert await api.find_upload("label-1") is None
        return await api.create("label-1", "claude-haiku-5-5", "", lines)

    job, (sent,) = exchange("anthropic", lambda _: as_json(JOB), use)
    assert (sent.method, sent.path) == ("POST", "/anthropic/v1/messages/batches")
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["anthropic-version"] == "2026-10-21"
    assert sent.headers["content-type"] == "application/json"
    params = orjson.loads(call.body)
    assert sent.json == {
        "requests": [{"custom_id": name, "params": params} for name in ("row-1", "row-2")]
    }
    assert job == RemoteJob(
        name=JOB["id"],
        state=JobState.RUNNING,
        created_at=1795293187.302459,
        expires_at=1795379587.302491,
        total=2,
        succeeded=0,
        failed=0,
    )


def test_the_sdks_own_method_sends_the_same_body() -> None:
    from anthropic import AsyncAnthropic

    call = built("anthropic", base_url("anthropic", "http://127.0.0.1:9"))

    async def use(api: BatchApi) -> None:
        await api.create("label-1", "claude-haiku-5-5", "", [api.line("row-1", call)])

    async def typed(url: str) -> None:
        requests: Any = [{"custom_id": "row-1", "params": orjson.loads(call.body)}]
        async with AsyncAnthropic(api_key=KEY, base_url=url, max_retries=0) as sdk:
            await sdk.messages.batches.create(requests=requests)

    _, (ours,) = exchange("anthropic", lambda _: as_json(JOB), use)
    with recording(lambda _: as_json(JOB)) as server:
        asyncio.run(typed(server.url))
        (theirs,) = server.requests
    assert ours.json == theirs.json
    for name in ("anthropic-version", "content-type", "authorization"):
        assert ours.headers[name] == theirs.headers[name]


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ({"succeeded": 4}, JobState.SUCCEEDED),
        ({"succeeded": 3, "errored": 1}, JobState.SUCCEEDED),
        ({"errored": 4}, JobState.SUCCEEDED),
        ({"succeeded": 3, "expired": 1}, JobState.EXPIRED),
        ({"succeeded": 2, "canceled": 1, "errored": 1}, JobState.CANCELLED),
    ],
)
def test_the_counts_tell_how_a_job_ended(counts: dict[str, int], state: JobState) -> None:
    job = _ended(**counts)
    assert (job.state, job.total) == (state, sum(counts.values()))
    assert job.succeeded == counts.get("succeeded", 0)
    assert job.failed == sum(counts.values()) - counts.get("succeeded", 0)
    assert job.ended_at == 1795293247.304896 and job.results == (URL,)


def test_words_that_nobody_knew_are_unknown_and_not_ended() -> None:
    assert _look(processing_status="canceling").state is JobState.CANCELLING
    state = _look(processing_status="pondering").state
    assert state is JobState.UNKNOWN and not state.ended


def test_jobs_are_listed_page_by_page_until_a_page_of_old_ones() -> None:
    def page(*days: int) -> Answer:
        jobs = [
            {**JOB, "id": f"msgbatch_{day}", "created_at": f"2026-11-{day:02}T00:00:00Z"}
            for day in days
        ]
        return as_json({"data": jobs, "has_more": True, "first_id": "a", "last_id": "b"})

    def answer(sent: Recorded) -> Answer:
        if "after_id=msgbatch_21" in sent.path:
            return page(20, 18)
        return page(17, 16) if "after_id=msgbatch_18" in sent.path else page(22, 21)

    since = 1795046400.0  # 2026-11-19
    jobs, sent = exchange("anthropic", answer, lambda api: collect(api.jobs(since)))
    assert [job.name for job in jobs] == ["msgbatch_22", "msgbatch_21", "msgbatch_20"]
    assert sent[0].path == "/anthropic/v1/messages/batches?limit=100" and len(sent) == 3


MESSAGE = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-5-5",
    "content": [{"type": "text", "text": '{"id":"r1"}'}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 21, "output_tokens": 12, "service_tier": "batch"},
}


def _results(*lines: dict[str, Any]) -> dict[str, LineResult]:
    job = ended("anthropic", JOB["id"], URL)
    results, (sent,) = exchange(
        "anthropic", lambda _: as_lines(*lines), lambda api: collect(api.results(job))
    )
    # from our address, not from the one that the job names
    assert sent.path == f"/anthropic/v1/messages/batches/{JOB['id']}/results"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    return {result.custom_id: result for result in results}


def test_every_kind_of_line_is_read() -> None:
    error = {"type": "error", "error": {"type": "api_error", "message": "x"}, "request_id": "req_1"}
    results = _results(
        {"custom_id": "a", "result": {"type": "succeeded", "message": MESSAGE}},
        {"custom_id": "b", "result": {"type": "errored", "error": error}},
        {"custom_id": "c", "result": {"type": "expired"}},
        {"custom_id": "d", "result": {"type": "canceled"}},
    )
    assert {name: result.end for name, result in results.items()} == {
        "a": LineEnd.ANSWERED,
        "b": LineEnd.ERRORED,
        "c": LineEnd.EXPIRED,
        "d": LineEnd.CANCELLED,
    }
    assert results["c"].reply is None and results["d"].reply is None
    assert results["a"].reply is not None
    reply = AnthropicCodec().read(results["a"].reply)
    assert (reply.text, reply.finish) == ('{"id":"r1"}', Finish.STOP)
    assert reply.usage is not None and reply.usage.output_tokens == 12


@pytest.mark.parametrize(
    ("kind", "status", "means"),
    [
        ("invalid_request_error", 400, ErrorKind.ITEM_PERMANENT),
        ("authentication_error", 401, ErrorKind.BATCH_FATAL),
        ("permission_error", 403, ErrorKind.BATCH_FATAL),
        ("not_found_error", 404, ErrorKind.BATCH_FATAL),
        ("request_too_large", 413, ErrorKind.ITEM_PERMANENT),
        ("rate_limit_error", 429, ErrorKind.RATE_LIMITED),
        ("api_error", 500, ErrorKind.TRANSIENT),
        ("timeout_error", 504, ErrorKind.TRANSIENT),
        ("overloaded_error", 529, ErrorKind.TRANSIENT),
        ("an_error_of_tomorrow", 500, ErrorKind.TRANSIENT),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_line_with_an_error_is_classified_like_a_real_time_error(
    kind: str, status: int, means: ErrorKind, nested: bool
) -> None:
    inner = {"type": kind, "message": "words"}
    error = {"type": "error", "error": inner} if nested else inner
    line = {"custom_id": "b", "result": {"type": "errored", "error": error}}
    reply = _results(line)["b"].reply
    assert reply is not None and reply.status == status
    with pytest.raises(ProviderError) as caught:
        AnthropicCodec().read(reply)
    assert (caught.value.kind, caught.value.code) == (means, kind)
    assert not caught.value.maybe_billed


@pytest.mark.parametrize(
    "gone", [{"results_url": None}, {"results_url": URL, "archived_at": "2026-12-22T00:00:00Z"}]
)
def test_results_of_an_archived_job_are_gone_without_a_request(gone: dict[str, Any]) -> None:
    body = {**JOB, "processing_status": "ended", **gone}

    async def use(api: BatchApi) -> None:
        job = await api.job(JOB["id"])
        with pytest.raises(ResultsGoneError):
            await collect(api.results(job))

    _, sent = exchange("anthropic", lambda _: as_json(body), use)
    assert len(sent) == 1


def test_a_job_that_goes_on_has_no_results_yet() -> None:
    async def use(api: BatchApi) -> list[LineResult]:
        return await collect(api.results(await api.job(JOB["id"])))

    results, _ = exchange("anthropic", lambda _: as_json(JOB), use)
    assert results == []


def test_a_cancel_is_asked_for_once_and_there_is_no_file_to_delete() -> None:
    async def use(api: BatchApi) -> None:
        await api.cancel(JOB["id"])
        await api.delete_upload("")

    _, sent = exchange("anthropic", lambda _: as_json(JOB), use)
    path = f"/anthropic/v1/messages/batches/{JOB['id']}/cancel"
    assert [(one.method, one.path) for one in sent] == [("POST", path)]
