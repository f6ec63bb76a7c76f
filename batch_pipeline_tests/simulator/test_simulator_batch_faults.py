"""What can be made to go wrong with batch jobs and files."""

from __future__ import annotations

import io
import json
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from google.genai import errors as genai_errors

from batch_pipeline_tests.simulator.jobs import (
    ROWS,
    Provider,
    google_lines,
    openai_lines,
)
from batch_pipeline_tests.simulator.running import Running

QUICK = {"duration_s": 0.1, "per_line_s": 0, "duration_jitter": 0}
ERRORS: Any = (genai_errors.APIError, anthropic.APIStatusError, openai.APIStatusError)
LOST: Any = (httpx2.RemoteProtocolError, anthropic.APIConnectionError, openai.APIConnectionError)


@pytest.fixture(params=["google", "anthropic", "openai"])
def provider(request: pytest.FixtureRequest, simulator: Running) -> Provider:
    """Each provider in turn, with quick jobs."""
    simulator.configure(batches=[QUICK])
    return Provider(simulator, request.param)


def test_a_create_fails_before_the_job_is_made(provider: Provider) -> None:
    provider.simulator.configure(faults=[{"kind": "batch_create", "status": 503, "count": 1}])
    with pytest.raises(ERRORS):
        provider.create()
    assert provider.simulator.summary()["enqueued"] == []
    assert provider.done(provider.create()) in ("succeeded", "ended", "completed")


@pytest.mark.parametrize("status", [500, None])
def test_a_create_loses_its_reply_after_the_job_is_made(
    provider: Provider, status: int | None
) -> None:
    fault = {"kind": "batch_create", "status": status, "made": True, "count": 1}
    provider.simulator.configure(faults=[fault])
    with pytest.raises(ERRORS if status else LOST):
        provider.create()
    [gauge] = provider.simulator.summary()["enqueued"]
    assert gauge["peak_jobs"] == 1
    path = provider.path("batches" if provider.name == "google" else "").rstrip("/")
    listed = provider.simulator.http.get(path, headers=provider.headers).json()
    [job] = listed["operations" if provider.name == "google" else "data"]
    name = job["name" if provider.name == "google" else "id"]
    assert provider.done(name) in ("succeeded", "ended", "completed")
    assert len(provider.results(name)) == len(ROWS)


def test_a_whole_job_fails(provider: Provider) -> None:
    provider.simulator.configure(faults=[{"kind": "batch_fail"}])
    job = provider.create()
    state = provider.done(job)
    body = provider.get(job)
    if provider.name == "anthropic":
        assert state == "ended" and body["request_counts"]["errored"] == len(ROWS)
        errors = [one["error"]["error"]["type"] for one in provider.results(job).values()]
        assert errors == ["api_error"] * len(ROWS)
    else:
        assert state == "failed" and provider.results(job) == {}
        assert body["error" if provider.name == "google" else "errors"]
    assert provider.simulator.summary()["billed"] == 0
    assert provider.simulator.summary()["enqueued"][0]["now"] == 0


def test_a_job_expires_with_a_part_of_its_lines_finished(provider: Provider) -> None:
    provider.simulator.configure(faults=[{"kind": "batch_expire", "part": 0.3}])
    job = provider.create()
    assert provider.done(job) == {"anthropic": "ended"}.get(provider.name, "expired")
    assert provider.simulator.summary()["billed"] == 3
    finished = [one for one in provider.results(job).values() if isinstance(one, str)]
    assert len(finished) == (0 if provider.name == "google" else 3)


def test_a_job_succeeds_in_part(provider: Provider) -> None:
    provider.simulator.configure(faults=[{"kind": "batch_partial", "part": 0.6}])
    job = provider.create()
    assert provider.done(job) == {
        "google": "partially_succeeded", "anthropic": "ended", "openai": "completed"
    }[provider.name]  # fmt: skip
    results = provider.results(job)
    assert sum(isinstance(one, str) for one in results.values()) == 6 and len(results) == 10
    assert provider.simulator.summary()["by_fault"] == {"batch_partial": 4}


def test_faults_of_requests_hit_lines(provider: Provider) -> None:
    provider.simulator.configure(
        faults=[
            {"kind": "status", "status": 400, "match": "number 1."},
            {"kind": "truncated", "match": "number 2."},
            {"kind": "hang"},
            {"kind": "status", "status": 500, "lane": "realtime"},
        ]
    )
    job = provider.create()
    provider.done(job)
    results = provider.results(job)
    assert not isinstance(results["row-1"], str)
    assert isinstance(results["row-2"], str) and len(results["row-2"]) < len(results["row-3"])
    assert sum(isinstance(one, str) for one in results.values()) == 9
    summary = provider.simulator.summary()
    assert summary["by_fault"] == {"status": 1, "truncated": 1} and summary["billed"] == 9


def test_a_refused_line_is_a_result_in_the_providers_form(simulator: Running) -> None:
    simulator.configure(batches=[QUICK], faults=[{"kind": "refusal", "match": "number 1."}])
    provider = Provider(simulator, "anthropic")
    batches = simulator.anthropic("test-key").messages.batches
    job = provider.create()
    provider.done(job)
    stopped = {
        one.custom_id: one.result.message.stop_reason
        for one in batches.results(job)
        if one.result.type == "succeeded"
    }
    assert len(stopped) == len(ROWS)
    assert [name for name, reason in stopped.items() if reason == "refusal"] == ["row-1"]


def test_polls_fail(provider: Provider) -> None:
    job = provider.create()
    provider.simulator.configure(faults=[{"kind": "poll", "status": 503, "count": 2}])
    for _ in range(2):
        reply = provider.simulator.http.get(provider.path(job), headers=provider.headers)
        assert reply.status_code == 503
    provider.done(job)
    provider.simulator.configure(faults=[{"kind": "poll", "count": 1}])
    with pytest.raises(httpx.RemoteProtocolError):
        provider.get(job)
    assert provider.get(job)


def test_downloads_are_cut_and_refused(provider: Provider) -> None:
    job = provider.create()
    provider.done(job)
    body = provider.get(job)
    if provider.name == "anthropic":
        path = f"{provider.path(job)}/results"
    elif provider.name == "google":
        path = f"/google/v1/{body['metadata']['output']['responsesFile']}:download?alt=media"
    else:
        path = f"/openai/v1/files/{body['output_file_id']}/content"
    whole = provider.simulator.http.get(path, headers=provider.headers).content
    provider.simulator.configure(faults=[{"kind": "download", "part": 0.5, "count": 1}])
    got: list[bytes] = []

    def read() -> None:
        with provider.simulator.http.stream("GET", path, headers=provider.headers) as reply:
            got.extend(reply.iter_raw())

    with pytest.raises(httpx.RemoteProtocolError):
        read()
    assert b"".join(got) == whole[: len(whole) // 2]
    provider.simulator.configure(faults=[{"kind": "download", "status": 500, "count": 1}])
    assert provider.simulator.http.get(path, headers=provider.headers).status_code == 500
    assert provider.simulator.http.get(path, headers=provider.headers).content == whole


def test_uploads_are_cut_and_refused(simulator: Running) -> None:
    data = google_lines(ROWS) * 2_000
    client, other = simulator.google(), simulator.openai()
    simulator.configure(faults=[{"kind": "upload", "count": 1}])
    with pytest.raises(httpx2.HTTPError):
        client.files.upload(file=io.BytesIO(data), config={"mime_type": "application/jsonl"})
    assert list(client.files.list()) == []
    simulator.configure(faults=[{"kind": "upload", "provider": "openai", "count": 1}])
    assert client.files.upload(
        file=io.BytesIO(data), config={"mime_type": "application/jsonl"}
    ).size_bytes == len(data)
    with pytest.raises(openai.APIConnectionError):
        other.files.create(file=("in.jsonl", openai_lines(ROWS)), purpose="batch")
    simulator.configure(faults=[{"kind": "upload", "status": 500, "count": 2}])
    with pytest.raises(openai.InternalServerError):
        other.files.create(file=("in.jsonl", openai_lines(ROWS)), purpose="batch")
    assert list(other.files.list()) == []
    # The SDK sends a chunk again that was refused, at the same offset.
    uploaded = client.files.upload(file=io.BytesIO(data), config={"mime_type": "application/jsonl"})
    assert uploaded.size_bytes == len(data)
    assert simulator.summary()["other_calls"]["google files.upload 500"] == 1


def test_an_upload_that_was_cut_says_how_far_it_came(simulator: Running) -> None:
    start = simulator.http.post(
        "/google/upload/v1/files",
        headers={"x-goog-api-key": "k", "X-Goog-Upload-Header-Content-Length": "1000"},
        json={"file": {"display_name": "x"}},
    )
    assert start.headers["X-Goog-Upload-Status"] == "active"
    url = start.headers["X-Goog-Upload-URL"]
    simulator.configure(faults=[{"kind": "upload", "part": 0.4, "count": 1}])
    chunk = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}
    with pytest.raises(httpx.HTTPError):
        simulator.http.post(url, headers=chunk, content=b"a" * 1_000)
    asked = simulator.http.post(url, headers={"X-Goog-Upload-Command": "query"})
    received = int(asked.headers["X-Goog-Upload-Size-Received"])
    assert received >= 400
    wrong = simulator.http.post(url, headers={**chunk, "X-Goog-Upload-Offset": "1"}, content=b"a")
    assert wrong.status_code == 400
    rest = {**chunk, "X-Goog-Upload-Offset": str(received)}
    done = simulator.http.post(url, headers=rest, content=b"a" * (1_000 - received))
    assert done.headers["X-Goog-Upload-Status"] == "final"
    assert done.json()["file"]["sizeBytes"] == "1000"


def test_a_fault_can_be_kept_to_the_second_job_of_one_provider(simulator: Running) -> None:
    fault = {"kind": "batch_fail", "provider": "google", "after": 2, "count": 1}
    simulator.configure(batches=[QUICK], faults=[fault])
    google, openai_ = Provider(simulator, "google"), Provider(simulator, "openai")
    openai_.done(openai_.create())
    states = [google.done(google.create()) for _ in range(3)]
    assert states == ["succeeded", "failed", "succeeded"]


def test_a_fault_that_makes_no_sense_is_refused(simulator: Running) -> None:
    for fault in (
        {"kind": "poll", "made": True},
        {"kind": "poll", "status": 418},
        {"kind": "batch_expire", "part": 2},
        {"kind": "batch_frob"},
    ):
        reply = simulator.http.put("/_sim/config", content=json.dumps({"faults": [fault]}))
        assert reply.status_code == 400, fault


def test_batch_price_of_a_model_without_one_is_half(simulator: Running) -> None:
    simulator.configure(batches=[QUICK])
    client = simulator.google()
    lines = google_lines(ROWS)
    uploaded = client.files.upload(
        file=io.BytesIO(lines), config={"mime_type": "application/jsonl"}
    )
    # genai-prices knows no batch price of it.
    client.models.generate_content(model="gemini-3.5-flash", contents=ROWS[0])
    job = client.batches.create(model="gemini-3.5-flash", src=uploaded.name or "")
    provider = Provider(simulator, "google", key="AIza-test")
    assert provider.done(job.name or "") == "succeeded"
    now, *lines_done = simulator.journal()
    [same] = [line for line in lines_done if line["custom_id"] == "row-0"]
    assert same["price_usd"] == pytest.approx(now["price_usd"] / 2)
