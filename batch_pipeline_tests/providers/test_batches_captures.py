"""The clients ask for what the SDKs were recorded to ask for, and read the recorded replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from batch_pipeline.providers.batches import BatchApi, JobState, LineEnd, RemoteJob
from batch_pipeline_tests.providers.batch_server import collect, ended, with_api
from batch_pipeline_tests.providers.recorder import Answer, Recorded, recording

CAPTURES = Path(__file__).parents[3] / "shared/reference/captures"

pytestmark = pytest.mark.skipif(
    not CAPTURES.is_dir(), reason="the reference captures are not beside this checkout"
)

Use = Callable[[BatchApi], Awaitable[Any]]

CLAUDE_JOB = "msgbatch_013Zva2CMHLNnXjNJJKqJ2EF"


def _job(name: str) -> Use:
    return lambda api: api.job(name)


async def _listed(api: BatchApi) -> RemoteJob:
    (job,) = await collect(api.jobs(0.0))
    return job


def _ends(provider: str, name: str, file: str) -> Use:
    async def use(api: BatchApi) -> list[LineEnd]:
        return [one.end for one in await collect(api.results(ended(provider, name, file)))]

    return use


def _file(api: BatchApi) -> Awaitable[str]:
    line = {"key": "row-1"}
    return api.upload("in", [orjson.dumps(line)])


ANSWERED, ERRORED, EXPIRED = LineEnd.ANSWERED, LineEnd.ERRORED, LineEnd.EXPIRED

# capture -> what is called, and what it gives (of a job: its state)
TABLE: list[tuple[str, Use, Any]] = [
    ("gemini.files.upload.bytesio", _file, "files/in123"),
    ("gemini.files.upload.path", _file, "files/in123"),
    ("gemini.files.delete", lambda api: api.delete_upload("files/in123"), None),
    (
        "gemini.batches.create.file",
        lambda api: api.create("my-batch", "gemini-3.8-flash", "files/in123", []),
        JobState.PENDING,
    ),
    ("gemini.batches.get.file", _job("batches/123file"), JobState.SUCCEEDED),
    # inline results, with error details that the SDK cannot read
    (
        "gemini.batches.get.inline_error_details_objects",
        _job("batches/123456"),
        JobState.SUCCEEDED,
    ),
    ("gemini.batches.failed_op_error", _job("batches/1"), JobState.FAILED),
    ("gemini.batches.cancel", lambda api: api.cancel("batches/123456"), None),
    (
        "gemini.files.download",
        _ends("google", "batches/1", "files/batch-out123"),
        [ANSWERED, ERRORED],
    ),
    ("anthropic.batches.retrieve", _job(CLAUDE_JOB), JobState.CANCELLED),
    ("anthropic.batches.list", _listed, JobState.RUNNING),
    ("anthropic.batches.cancel", lambda api: api.cancel(CLAUDE_JOB), None),
    ("openai.batches.retrieve", _job("batch_abc123"), JobState.SUCCEEDED),
    ("openai.batches.list", _listed, JobState.PENDING),
    ("openai.batches.cancel", lambda api: api.cancel("batch_abc123"), None),
    ("openai.files.delete", lambda api: api.delete_upload("file-abc123"), None),
    ("openai.files.content.output", _ends("openai", "batch_abc123", "file-out1"), [ANSWERED]),
    (
        "openai.files.content.error",
        _ends("openai", "batch_abc123", "file-err1"),
        [ERRORED, EXPIRED],
    ),
]


def _load(label: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((CAPTURES / f"{label}.json").read_text())
    return records


def _path(target: str) -> str:
    return target.partition("?")[0]


def _replaying(records: list[dict[str, Any]]) -> Callable[[Recorded], Answer]:
    left = [record["response"] for record in records]

    def answer(sent: Recorded) -> Answer:
        response = left.pop(0)
        body = response["body"]
        raw = body.encode() if isinstance(body, str) else orjson.dumps(body) if body else b""
        kept = {name: value for name, value in response["headers"] if name != "content-length"}
        return Answer(response["status"], raw, kept)

    return answer


@pytest.mark.parametrize(("label", "use", "gives"), TABLE, ids=[label for label, _, _ in TABLE])
def test_a_recorded_exchange_is_asked_for_and_read(label: str, use: Use, gives: Any) -> None:
    provider = {"gemini": "google"}.get(name := label.partition(".")[0], name)
    records = _load(label)
    with recording(_replaying(records)) as server:
        base = server.url + ("/v1" if provider == "openai" else "")
        given = asyncio.run(with_api(provider, base, use))
    assert (given.state if isinstance(given, RemoteJob) else given) == gives
    asked = [record["request"] for record in records]
    assert [(one.method, _path(one.path)) for one in server.requests] == [
        (one["method"], _path(one["target"])) for one in asked
    ]
    for ours, theirs in zip(server.requests, asked, strict=True):
        headers = {key.lower() for key, _ in theirs["headers"]}
        # what authenticates, versions and steers an upload: the same headers, no more and no fewer
        steering = {"authorization", "x-goog-api-key", "anthropic-version", "x-goog-upload-command"}
        assert steering & set(ours.headers) == steering & headers


def test_a_recorded_results_file_of_anthropic_is_read() -> None:
    # the SDK looks at the job first; the file is the second exchange
    record = _load("anthropic.batches.results")[1]
    url = "http://127.0.0.1:1/elsewhere"
    with recording(_replaying([record])) as server:
        results = asyncio.run(
            with_api(
                "anthropic",
                server.url,
                lambda api: collect(api.results(ended("anthropic", CLAUDE_JOB, url))),
            )
        )
    assert server.requests[0].path == record["request"]["target"]
    assert {one.end for one in results} == {ANSWERED, ERRORED, EXPIRED, LineEnd.CANCELLED}
