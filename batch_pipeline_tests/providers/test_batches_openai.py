"""OpenAI's batches: the file, the job with its label, and two files of results."""

from __future__ import annotations

from typing import Any

import pytest

from batch_pipeline.providers.base import ErrorKind, Finish, ProviderError
from batch_pipeline.providers.batches import (
    BatchApi,
    JobState,
    LineEnd,
    LineResult,
    RemoteJob,
    ResultsGoneError,
)
from batch_pipeline.providers.openai import OpenAICodec
from batch_pipeline_tests.providers.batch_server import (
    KEY,
    as_lines,
    base_url,
    built,
    collect,
    exchange,
)
from batch_pipeline_tests.providers.recorder import Answer, Recorded, as_json

JOB: dict[str, Any] = {
    "id": "batch_abc123",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "model": None,
    "errors": None,
    "input_file_id": "file-abc123",
    "completion_window": "24h",
    "status": "validating",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": 1795293193,
    "in_progress_at": None,
    "expires_at": 1795379593,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"total": 0, "completed": 0, "failed": 0},
    "metadata": {"batch_pipeline_job": "label-1"},
}
DONE = {
    **JOB,
    "status": "completed",
    "output_file_id": "file-out1",
    "error_file_id": "file-err1",
    "completed_at": 1795293253,
    "request_counts": {"total": 2, "completed": 1, "failed": 1},
}


def _look(**changes: Any) -> RemoteJob:
    body = {**JOB, **changes}
    job, (sent,) = exchange("openai", lambda _: as_json(body), lambda api: api.job(JOB["id"]))
    assert sent.path == f"/openai/v1/batches/{JOB['id']}"
    return job


def test_a_file_goes_up_and_a_job_is_created_on_it_under_its_label() -> None:
    call = built("openai", base_url("openai", "http://127.0.0.1:9"))

    def answer(sent: Recorded) -> Answer:
        return as_json({"id": "file-abc123"} if sent.path.endswith("/files") else JOB)

    async def use(api: BatchApi) -> tuple[bytes, RemoteJob]:
        line = api.line("row-1", call)
        file = await api.upload("label-1", [line, line])
        return line, await api.create("label-1", "gpt-6-luna", file, [line, line])

    (line, job), (up, made) = exchange("openai", answer, use)
    assert (up.method, up.path) == ("POST", "/openai/v1/files")
    assert b'name="purpose"\r\n\r\nbatch\r\n' in up.body
    assert b'filename="label-1.jsonl"' in up.body
    assert b"\r\n\r\n" + line + b"\n" + line + b"\n\r\n--" in up.body and call.body in up.body
    assert (made.method, made.path) == ("POST", "/openai/v1/batches")
    assert made.json == {
        "completion_window": "24h",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-abc123",
        "metadata": {"batch_pipeline_job": "label-1"},
    }
    assert job == RemoteJob(
        name="batch_abc123",
        state=JobState.PENDING,
        label="label-1",
        created_at=1795293193.0,
        expires_at=1795379593.0,
    )


def test_a_finished_job_is_read_whole() -> None:
    job = _look(**DONE)
    assert (job.state, job.total, job.succeeded, job.failed) == (JobState.SUCCEEDED, 2, 1, 1)
    assert job.results == ("file-out1", "file-err1") and job.ended_at == 1795293253.0


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("in_progress", JobState.RUNNING),
        ("finalizing", JobState.RUNNING),
        ("expired", JobState.EXPIRED),
        ("cancelling", JobState.CANCELLING),
        ("cancelled", JobState.CANCELLED),
        ("pondering", JobState.UNKNOWN),
    ],
)
def test_every_state_is_known(status: str, state: JobState) -> None:
    assert _look(status=status).state is state


def test_a_job_beyond_the_enqueued_tokens_fails_with_that_code() -> None:
    problem = {
        "code": "token_limit_exceeded",
        "line": None,
        "message": f"Enqueued token limit reached for {KEY}.",
        "param": None,
    }
    job = _look(status="failed", failed_at=1795293200, errors={"object": "list", "data": [problem]})
    assert (job.state, job.error_code) == (JobState.FAILED, "token_limit_exceeded")
    assert job.error.startswith("Enqueued token limit reached") and KEY not in job.error
    assert job.ended_at == 1795293200.0 and job.results == ()


def test_an_upload_is_found_by_its_file_name_on_a_later_page() -> None:
    def answer(sent: Recorded) -> Answer:
        assert sent.path.startswith("/openai/v1/files?")
        assert "purpose=batch" in sent.path and "order=desc" in sent.path
        if "after=file-2" in sent.path:
            return as_json({"data": [{"id": "file-3", "filename": "label-1.jsonl"}]})
        spoiled = {"id": "file-1", "filename": "label-1.jsonl", "status": "error"}
        return as_json({"data": [spoiled, {"id": "file-2"}], "has_more": True})

    async def use(api: BatchApi) -> tuple[str | None, str | None]:
        return await api.find_upload("label-1"), await api.find_upload("label-2")

    found, sent = exchange("openai", answer, use)
    assert found == ("file-3", None) and len(sent) == 4


def test_jobs_are_listed_page_by_page_until_a_page_of_old_ones() -> None:
    def page(*times: int) -> Answer:
        jobs = [{**JOB, "id": f"batch_{time}", "created_at": time} for time in times]
        return as_json({"data": jobs, "has_more": True})

    def answer(sent: Recorded) -> Answer:
        if "after=batch_80" in sent.path:
            return page(70, 50)
        return page(40, 30) if "after=batch_50" in sent.path else page(90, 80)

    jobs, sent = exchange("openai", answer, lambda api: collect(api.jobs(60.0)))
    assert [job.name for job in jobs] == ["batch_90", "batch_80", "batch_70"]
    assert sent[0].path == "/openai/v1/batches?limit=100" and len(sent) == 3


def _line(name: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": f"req_{name}", "body": body}
    return {"id": "batch_req_1", "custom_id": name, "response": response, "error": None}


def _unanswered(name: str, code: str) -> dict[str, Any]:
    error = {"code": code, "message": "This request could not be executed."}
    return {"id": "batch_req_3", "custom_id": name, "response": None, "error": error}


COMPLETION = {
    "id": "chatcmpl-1",
    "model": "gpt-6-luna",
    "choices": [{"message": {"content": '{"id":"r1"}'}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 119, "completion_tokens": 10},
}
INVALID = {"error": {"message": "Too long", "type": "invalid_request_error", "code": None}}


def _read(job: dict[str, Any], output: Answer, errors: Answer) -> dict[str, LineResult]:
    def answer(sent: Recorded) -> Answer:
        files = {"/files/file-out1/content": output, "/files/file-err1/content": errors}
        return files.get(sent.path.removeprefix("/openai/v1"), as_json(job))

    async def use(api: BatchApi) -> list[LineResult]:
        return await collect(api.results(await api.job(job["id"])))

    results, _ = exchange("openai", answer, use)
    return {result.custom_id: result for result in results}


def test_output_and_error_file_are_both_read() -> None:
    results = _read(
        DONE,
        as_lines(_line("a", 200, COMPLETION)),
        as_lines(
            _line("b", 400, INVALID),
            _line("c", 429, {"error": {"message": "slow", "code": "rate_limit_exceeded"}}),
            _unanswered("d", "batch_expired"),
            _unanswered("e", "batch_cancelled"),
            _unanswered("f", "server_error"),
        ),
    )
    assert {name: result.end for name, result in results.items()} == {
        "a": LineEnd.ANSWERED,
        "b": LineEnd.ERRORED,
        "c": LineEnd.ERRORED,
        "d": LineEnd.EXPIRED,
        "e": LineEnd.CANCELLED,
        "f": LineEnd.ERRORED,
    }
    assert results["d"].reply is None and results["e"].reply is None
    answered = results["a"].reply
    assert answered is not None
    reply = OpenAICodec().read(answered)
    assert (reply.text, reply.finish) == ('{"id":"r1"}', Finish.STOP)
    assert reply.request_id == "req_a" and reply.usage is not None
    kinds = {}
    for name in "bcf":
        failed = results[name].reply
        assert failed is not None and failed.status >= 400
        with pytest.raises(ProviderError) as caught:
            OpenAICodec().read(failed)
        kinds[name] = caught.value.kind
    assert kinds == {
        "b": ErrorKind.ITEM_PERMANENT,
        "c": ErrorKind.RATE_LIMITED,
        "f": ErrorKind.TRANSIENT,
    }


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_finished_lines_of_a_dead_job_are_read(status: str) -> None:
    job = {**DONE, "status": status}
    results = _read(
        job,
        as_lines(_line("a", 200, COMPLETION)),
        as_lines(_unanswered("b", f"batch_{status}")),
    )
    assert [results[name].end for name in "ab"] == [LineEnd.ANSWERED, LineEnd(status)]


def test_a_failed_job_without_files_has_no_results() -> None:
    nothing = as_json({"error": {"message": "no"}}, 404)
    assert _read({**JOB, "status": "failed"}, nothing, nothing) == {}


def test_one_file_that_is_gone_makes_the_results_gone() -> None:
    with pytest.raises(ResultsGoneError, match="No such File"):
        _read(
            DONE,
            as_lines(_line("a", 200, COMPLETION)),
            as_json({"error": {"message": "No such File object", "code": None}}, 404),
        )


def test_a_completed_job_that_names_no_file_has_lost_its_results() -> None:
    nothing = as_json({}, 404)
    with pytest.raises(ResultsGoneError):
        _read({**JOB, "status": "completed"}, nothing, nothing)


def test_deleting_a_file_that_is_gone_is_no_error_and_other_errors_are() -> None:
    gone = as_json({"error": {"message": "No such File"}}, 404)
    _, sent = exchange("openai", lambda _: gone, lambda api: api.delete_upload("file-1"))
    assert [(one.method, one.path) for one in sent] == [("DELETE", "/openai/v1/files/file-1")]
    with pytest.raises(ProviderError) as caught:
        exchange(
            "openai",
            lambda _: as_json({"error": {"message": "boom"}}, 500),
            lambda api: api.delete_upload("file-1"),
        )
    assert caught.value.kind is ErrorKind.TRANSIENT


def test_a_cancel_is_asked_for_once() -> None:
    _, sent = exchange("openai", lambda _: as_json(JOB), lambda api: api.cancel("batch_1"))
    assert [(one.method, one.path) for one in sent] == [
        ("POST", "/openai/v1/batches/batch_1/cancel")
    ]
