"""Gemini's batches: the files, every state and error that the SDK would drop, lines of results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from batch_pipeline.providers.base import ErrorKind, Finish, ProviderError
from batch_pipeline.providers.batches import BatchApi, JobState, LineEnd, LineResult, RemoteJob
from batch_pipeline.providers.google import GoogleCodec
from batch_pipeline_tests.providers.batch_server import (
    KEY,
    as_lines,
    collect,
    ended,
    exchange,
)
from batch_pipeline_tests.providers.recorder import Answer, Recorded, as_json

MIB = 1024 * 1024

DONE: dict[str, Any] = {
    "name": "batches/123file",
    "metadata": {
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
        "model": "models/gemini-3.8-flash",
        "displayName": "my-batch",
        "createTime": "2026-11-21T20:33:18.967761Z",
        "updateTime": "2026-11-21T20:34:18.967798Z",
        "endTime": "2026-11-21T20:34:18.967810Z",
        "batchStats": {
            "requestCount": "3",
            "successfulRequestCount": "1",
            "failedRequestCount": "2",
        },
        "state": "BATCH_STATE_SUCCEEDED",
        "output": {"responsesFile": "files/batch-out123"},
    },
    "done": True,
    "response": {"responsesFile": "files/batch-out123"},
}


def _uploading(origin: str = "", status: str = "final") -> Callable[[Recorded], Answer]:
    """A server that takes a file; its upload address is on `origin`."""

    def answer(sent: Recorded) -> Answer:
        command = sent.headers.get("x-goog-upload-command")
        if command == "start":
            host = origin or f"http://{sent.headers['host']}"
            url = f"{host}/google/upload/v1/files?upload_id=A"
            headers = {"X-Goog-Upload-Status": "active", "X-Goog-Upload-URL": url}
            return Answer(200, b"", headers)
        if command == "upload":
            return Answer(200, b"", {"X-Goog-Upload-Status": "active"})
        body = {"file": {"name": "files/in123", "displayName": "label-1", "state": "ACTIVE"}}
        return as_json(body, x_goog_upload_status=status)

    return answer


def test_a_file_goes_up_in_chunks_under_its_label() -> None:
    lines = [orjson.dumps({"key": f"r{n}", "request": "x" * MIB}) for n in range(9)]
    name, sent = exchange("google", _uploading(), lambda api: api.upload("label-1", lines))
    assert name == "files/in123"
    start, *chunks = sent
    assert start.path == "/google/upload/v1/files"
    assert start.json["file"]["display_name"] == "label-1"
    assert start.json["file"]["mime_type"] == "application/jsonl"
    assert [chunk.headers["x-goog-upload-command"] for chunk in chunks] == [
        "upload",
        "upload, finalize",
    ]
    assert len(chunks[0].body) == 8 * MIB
    assert b"".join(chunk.body for chunk in chunks) == b"".join(line + b"\n" for line in lines)
    # the address is the credential; the key is not sent with the bytes
    assert all(KEY not in repr(chunk.headers) for chunk in chunks)


def test_an_upload_stays_on_our_address_whatever_the_reply_says() -> None:
    answer = _uploading("https://generativelanguage.googleapis.com")
    name, sent = exchange("google", answer, lambda api: api.upload("label-1", [b"{}"]))
    assert name == "files/in123" and len(sent) == 2


@pytest.mark.parametrize("failing", ["start", "upload, finalize"])
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (as_json({"error": {"message": "boom", "status": "INTERNAL"}}, 500), "INTERNAL"),
        (Answer(200, b"<html>"), "unreadable_reply"),
        (Answer(200, b'{"file": {}}', cut_at=3), "no_reply"),
    ],
    ids=["500", "no status header", "cut"],
)
def test_a_failed_upload_is_not_repeated_by_the_sdk(failing: str, reply: Answer, code: str) -> None:
    working = _uploading()

    def answer(sent: Recorded) -> Answer:
        return reply if sent.headers["x-goog-upload-command"] == failing else working(sent)

    async def use(api: BatchApi) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            await api.upload("label-1", [b"{}"])
        return caught.value

    error, sent = exchange("google", answer, use)
    assert (error.kind, error.code) == (ErrorKind.TRANSIENT, code) and error.maybe_billed
    assert len(sent) == (1 if failing == "start" else 2)


def test_an_upload_is_found_by_its_label_on_a_later_page() -> None:
    def answer(sent: Recorded) -> Answer:
        assert sent.path.startswith("/google/v1/files?") and "pageSize=100" in sent.path
        if "pageToken=two" in sent.path:
            return as_json({"files": [{"name": "files/b", "displayName": "label-1"}]})
        failed = {"name": "files/a", "displayName": "label-1", "state": "FAILED"}
        return as_json({"files": [failed, {"name": "files/x"}], "nextPageToken": "two"})

    async def use(api: BatchApi) -> tuple[str | None, str | None]:
        return await api.find_upload("label-1"), await api.find_upload("label-2")

    (found, missing), sent = exchange("google", answer, use)
    assert (found, missing) == ("files/b", None) and len(sent) == 4


def test_a_job_is_created_on_a_file_under_its_label() -> None:
    pending = {
        "name": "batches/123456",
        "metadata": {
            "displayName": "label-1",
            "createTime": "2026-11-21T20:33:18.965599Z",
            "batchStats": {"requestCount": "2", "pendingRequestCount": "2"},
            "state": "BATCH_STATE_PENDING",
        },
    }
    job, (sent,) = exchange(
        "google",
        lambda _: as_json(pending),
        lambda api: api.create("label-1", "gemini-3.8-flash", "files/in123", []),
    )
    assert sent.path == "/google/v1/models/gemini-3.8-flash:batchGenerateContent"
    assert sent.json == {
        "batch": {"inputConfig": {"fileName": "files/in123"}, "displayName": "label-1"}
    }
    assert job == RemoteJob(
        name="batches/123456",
        state=JobState.PENDING,
        label="label-1",
        created_at=1795293198.965599,
        total=2,
        succeeded=0,
        failed=0,
    )


def _look(body: dict[str, Any]) -> RemoteJob:
    job, _ = exchange("google", lambda _: as_json(body), lambda api: api.job(body["name"]))
    return job


def test_a_finished_job_is_read_whole() -> None:
    assert _look(DONE) == RemoteJob(
        name="batches/123file",
        state=JobState.SUCCEEDED,
        label="my-batch",
        created_at=1795293198.967761,
        ended_at=1795293258.96781,
        total=3,
        succeeded=1,
        failed=2,
        results=("files/batch-out123",),
    )


def test_a_failed_job_keeps_the_error_that_the_sdk_drops() -> None:
    error = {"code": 8, "message": f"quota of {KEY}", "details": [{"@type": "an object"}]}
    job = _look({"name": "batches/1", "done": True, "error": error,
                 "metadata": {"state": "BATCH_STATE_FAILED"}})  # fmt: skip
    assert job.state is JobState.FAILED and job.error_code == "RESOURCE_EXHAUSTED"
    assert job.error.startswith("quota of ") and KEY not in job.error


@pytest.mark.parametrize(
    ("word", "more", "state"),
    [
        ("BATCH_STATE_RUNNING", {}, JobState.RUNNING),
        ("JOB_STATE_QUEUED", {}, JobState.PENDING),
        ("JOB_STATE_PAUSED", {}, JobState.PAUSED),
        ("BATCH_STATE_CANCELLED", {"done": True}, JobState.CANCELLED),
        ("BATCH_STATE_EXPIRED", {"done": True}, JobState.EXPIRED),
        ("JOB_STATE_PARTIALLY_SUCCEEDED", {}, JobState.PARTIAL),
        ("BATCH_STATE_PARTIALLY_SUCCEEDED", {"done": True}, JobState.PARTIAL),
        ("BATCH_STATE_FROB", {}, JobState.UNKNOWN),
        # an unknown word on an operation that is over
        ("BATCH_STATE_FROB", {"done": True, "error": {"code": 13}}, JobState.FAILED),
        ("BATCH_STATE_FROB", {"done": True, "response": {"responsesFile": "files/o"}},
         JobState.PARTIAL),
        ("BATCH_STATE_RUNNING", {"done": True, "error": {"code": 13}}, JobState.FAILED),
    ],
)  # fmt: skip
def test_every_state_is_known_for_ended_or_not(
    word: str, more: dict[str, Any], state: JobState
) -> None:
    assert _look({"name": "batches/1", "metadata": {"state": word}, **more}).state is state


def test_jobs_are_listed_page_by_page_until_a_page_of_old_ones() -> None:
    def page(*days: int, token: str = "") -> Answer:
        operations = [
            {"name": f"batches/d{day}", "metadata": {"createTime": f"2026-11-{day:02}T00:00:00Z"}}
            for day in days
        ]
        return as_json({"operations": operations, "nextPageToken": token})

    def answer(sent: Recorded) -> Answer:
        if "pageToken=two" in sent.path:
            return page(18, 20, token="three")
        if "pageToken=three" in sent.path:
            return page(5, 4, token="four")
        return page(22, 21, token="two")

    since = 1795046400.0  # 2026-11-19
    jobs, sent = exchange("google", answer, lambda api: collect(api.jobs(since)))
    assert [job.name for job in jobs] == ["batches/d22", "batches/d21", "batches/d20"]
    assert len(sent) == 3 and sent[0].path == "/google/v1/batches?pageSize=100"


RESPONSE = {
    "candidates": [
        {"content": {"parts": [{"text": '{"id":"r1"}'}], "role": "model"}, "finishReason": "STOP"}
    ],
    "usageMetadata": {"promptTokenCount": 120, "candidatesTokenCount": 9},
    "modelVersion": "gemini-3.8-flash",
}


def _results(*lines: dict[str, Any]) -> dict[str, LineResult]:
    job = ended("google", "batches/123file", "files/batch-out123")
    results, (sent,) = exchange(
        "google", lambda _: as_lines(*lines), lambda api: collect(api.results(job))
    )
    assert sent.path == "/google/v1/files/batch-out123:download?alt=media"
    assert sent.headers["x-goog-api-key"] == KEY
    return {result.custom_id: result for result in results}


def test_an_answered_line_reads_like_a_real_time_call() -> None:
    result = _results({"key": "row-1", "response": RESPONSE})["row-1"]
    assert result.end is LineEnd.ANSWERED and result.reply is not None
    reply = GoogleCodec().read(result.reply)
    assert (reply.text, reply.finish) == ('{"id":"r1"}', Finish.STOP)
    assert reply.usage is not None and reply.usage.input_tokens == 120


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (
            {"code": 3, "message": "Bad", "status": "INVALID_ARGUMENT"},
            400,
            ErrorKind.ITEM_PERMANENT,
        ),
        ({"code": 3, "message": "Bad"}, 400, ErrorKind.ITEM_PERMANENT),
        ({"code": 8, "message": "Quota"}, 429, ErrorKind.RATE_LIMITED),
        ({"code": 13, "message": "Boom", "details": [{"@type": "x"}]}, 500, ErrorKind.TRANSIENT),
        ({"code": 503, "message": "Full", "status": "UNAVAILABLE"}, 503, ErrorKind.TRANSIENT),
        ({"message": "?", "status": "PERMISSION_DENIED"}, 403, ErrorKind.BATCH_FATAL),
        ({}, 500, ErrorKind.TRANSIENT),
    ],
)
def test_a_line_with_an_error_is_classified_like_a_real_time_error(
    error: dict[str, Any], status: int, kind: ErrorKind
) -> None:
    result = _results({"key": "row-2", "error": error})["row-2"]
    assert result.end is LineEnd.ERRORED and result.reply is not None
    assert result.reply.status == status
    with pytest.raises(ProviderError) as caught:
        GoogleCodec().read(result.reply)
    assert caught.value.kind is kind


def test_a_file_that_may_not_exist_is_gone_for_google() -> None:
    gone = {
        "error": {
            "code": 403,
            "message": "You do not have permission to access the File x or it may not exist.",
            "status": "PERMISSION_DENIED",
        }
    }
    _, sent = exchange(
        "google", lambda _: as_json(gone, 403), lambda api: api.delete_upload("files/x")
    )
    assert [(one.method, one.path) for one in sent] == [("DELETE", "/google/v1/files/x")]


def test_a_cancel_is_asked_for_once() -> None:
    _, sent = exchange("google", lambda _: as_json({}), lambda api: api.cancel("batches/1"))
    assert [(one.method, one.path) for one in sent] == [("POST", "/google/v1/batches/1:cancel")]


def test_a_client_can_be_closed_unused_and_closed_twice() -> None:
    async def use(api: BatchApi) -> None:
        await api.aclose()
        await asyncio.gather(api.aclose(), api.aclose())

    _, sent = exchange("google", lambda _: as_json({}), use)
    assert sent == []
