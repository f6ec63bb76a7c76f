"""Batch jobs and files of three providers: their life, as the official SDKs see it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from batch_pipeline.simulator.launch import ensure_simulator, stop_simulator
from batch_pipeline_tests.simulator.jobs import (
    FROZEN,
    MODELS,
    ROWS,
    SLOW,
    Provider,
    anthropic_requests,
    google_lines,
    openai_lines,
    parsed,
)
from batch_pipeline_tests.simulator.running import Running, running, until

QUICK = {"duration_s": 0.1, "per_line_s": 0, "duration_jitter": 0}
IDS = [f"row-{n}" for n in range(len(ROWS))]
FINISHED = {"google": "succeeded", "anthropic": "ended", "openai": "completed"}


@pytest.fixture(params=["google", "anthropic", "openai"])
def provider(request: pytest.FixtureRequest, simulator: Running) -> Provider:
    """Each provider in turn, with quick jobs."""
    simulator.configure(batches=[QUICK])
    return Provider(simulator, request.param)


def test_a_line_is_answered_as_in_real_time_at_half_the_price(provider: Provider) -> None:
    now = {name: provider.ask_now(row) for name, row in zip(IDS, ROWS, strict=True)}
    job = provider.create()
    assert provider.done(job) == FINISHED[provider.name]
    assert provider.results(job) == {name: text for name, (text, _) in now.items()}
    journal = provider.simulator.journal()
    asked, lines = journal[: len(ROWS)], journal[len(ROWS) :]
    assert {line["lane"] for line in asked} == {"realtime"}
    assert {(line["lane"], line["job"]) for line in lines} == {("batch", job.split("/")[-1])}
    by_id = {line["custom_id"]: line for line in lines}
    assert set(by_id) == set(IDS)
    for name, one in zip(IDS, asked, strict=True):
        line = by_id[name]
        assert line["input_tokens"] == one["input_tokens"] == now[name][1]
        assert line["output_tokens"] == one["output_tokens"]
        assert line["price_usd"] == pytest.approx(one["price_usd"] / 2)
        assert line["items"] == one["items"] and line["status"] == 200
    lanes = provider.simulator.summary()["by_lane"]
    assert lanes["batch"]["attempts"] == lanes["realtime"]["attempts"] == len(ROWS)
    assert lanes["batch"]["price_usd"] == pytest.approx(lanes["realtime"]["price_usd"] / 2)


def test_results_come_shuffled_in_the_same_way_each_time(provider: Provider) -> None:
    orders = []
    for _ in range(2):
        provider.simulator.http.post("/_sim/reset")
        job = provider.create()
        provider.done(job)
        orders.append(list(provider.results(job)))
    assert orders[0] == orders[1] != IDS
    assert sorted(orders[0]) == IDS
    provider.simulator.configure(batches=[{**QUICK, "shuffle": False}])
    job = provider.create()
    provider.done(job)
    assert list(provider.results(job)) == IDS


def test_a_job_shows_its_states_on_a_clock_that_stands(provider: Provider) -> None:
    provider.simulator.configure(batches=[SLOW], clock=FROZEN)
    job = provider.create()
    names = {
        "google": ("pending", "running", "running", "succeeded"),
        "anthropic": ("in_progress", "in_progress", "in_progress", "ended"),
        "openai": ("validating", "in_progress", "finalizing", "completed"),
    }[provider.name]
    assert provider.state(job) == names[0]
    provider.simulator.advance(500)
    until(lambda: len(provider.simulator.journal()), lambda count: count == 4)
    assert provider.state(job) == names[1]
    provider.simulator.advance(450)
    until(lambda: len(provider.simulator.journal()), lambda count: count == 10)
    assert provider.state(job) == names[2]
    provider.simulator.advance(51)
    assert provider.done(job) == names[3]


def test_counts_are_said_as_each_provider_says_them(provider: Provider) -> None:
    provider.simulator.configure(batches=[SLOW], clock=FROZEN)
    job = provider.create()

    def counts() -> Any:
        body = provider.get(job)
        if provider.name == "google":
            return body["metadata"]["batchStats"]
        return body["request_counts"]

    provider.simulator.advance(500)
    until(lambda: len(provider.simulator.journal()), lambda count: count == 4)
    assert (
        counts()
        == {
            "google": {
                "requestCount": "10",
                "successfulRequestCount": "4",
                "pendingRequestCount": "6",
            },
            "anthropic": {
                "processing": 10,
                "succeeded": 0,
                "errored": 0,
                "canceled": 0,
                "expired": 0,
            },
            "openai": {"total": 10, "completed": 4, "failed": 0},
        }[provider.name]
    )
    provider.simulator.advance(501)
    provider.done(job)
    assert (
        counts()
        == {
            "google": {"requestCount": "10", "successfulRequestCount": "10"},
            "anthropic": {
                "processing": 0,
                "succeeded": 10,
                "errored": 0,
                "canceled": 0,
                "expired": 0,
            },
            "openai": {"total": 10, "completed": 10, "failed": 0},
        }[provider.name]
    )


def test_a_cancelled_job_keeps_and_bills_what_was_finished(provider: Provider) -> None:
    provider.simulator.configure(batches=[SLOW], clock=FROZEN)
    job = provider.create()
    provider.simulator.advance(500)
    provider.cancel(job)
    if provider.name != "google":
        assert provider.state(job) in ("cancelling", "canceling")
    provider.simulator.advance(100)
    state = provider.done(job)
    assert (
        state == {"google": "cancelled", "anthropic": "ended", "openai": "cancelled"}[provider.name]
    )
    assert provider.simulator.summary()["billed"] == 4
    results = provider.results(job)
    if provider.name == "google":
        assert results == {}
        return
    assert sum(isinstance(one, str) for one in results.values()) == 4
    left = [one for one in results.values() if not isinstance(one, str)]
    if provider.name == "anthropic":
        assert left == [{"type": "canceled"}] * 6
        assert provider.get(job)["request_counts"]["canceled"] == 6
    else:
        assert {one["code"] for one in left} == {"batch_cancelled"} and len(left) == 6
        assert provider.get(job)["cancelled_at"] is not None


def test_a_job_that_is_too_slow_expires(provider: Provider) -> None:
    provider.simulator.configure(batches=[{**SLOW, "expires_after_s": 500}], clock=FROZEN)
    job = provider.create()
    provider.simulator.advance(501)
    state = provider.done(job)
    assert state == {"google": "expired", "anthropic": "ended", "openai": "expired"}[provider.name]
    results = provider.results(job)
    if provider.name == "google":
        assert results == {} and "output" not in provider.get(job)["metadata"]
        return
    assert sum(isinstance(one, str) for one in results.values()) == 4
    left = [one for one in results.values() if not isinstance(one, str)]
    assert len(left) == 6
    if provider.name == "anthropic":
        assert left == [{"type": "expired"}] * 6
    else:
        assert {one["code"] for one in left} == {"batch_expired"}


def test_a_day_is_the_default_until_a_job_expires(provider: Provider) -> None:
    provider.simulator.configure(batches=[{**SLOW, "duration_s": 10**6}], clock=FROZEN)
    job = provider.create()
    provider.simulator.advance(86_400 * (2 if provider.name == "google" else 1) - 10)
    still = {"google": "running", "anthropic": "in_progress", "openai": "validating"}
    assert provider.state(job) == still[provider.name]
    provider.simulator.advance(20)
    assert provider.done(job) in ("expired", "ended")


def test_results_are_gone_after_their_time(provider: Provider) -> None:
    job = provider.create()
    provider.done(job)
    days = {"google": 2, "anthropic": 29, "openai": 30}[provider.name]
    provider.simulator.advance(86_400 * days - 60)
    assert len(provider.results(job)) == len(ROWS)
    provider.simulator.advance(120)
    if provider.name == "anthropic":
        body = provider.get(job)
        assert body["archived_at"] is not None and body["results_url"] is None
        reply = provider.simulator.http.get(
            f"{provider.path(job)}/results", headers=provider.headers
        )
        assert reply.status_code == 404
    else:
        wanted = genai_errors.ClientError if provider.name == "google" else openai.NotFoundError
        with pytest.raises(wanted):
            provider.results(job)


def test_jobs_and_files_are_seen_by_their_own_key_only(provider: Provider) -> None:
    job = provider.create()
    stranger = Provider(provider.simulator, provider.name, key="other-key")
    path = provider.path(job)
    assert provider.simulator.http.get(path, headers=stranger.headers).status_code == 404
    bad = Provider(provider.simulator, provider.name, key="bad-key")
    refused = provider.simulator.http.get(path, headers=bad.headers)
    assert refused.status_code == (400 if provider.name == "google" else 401)
    hidden = provider.simulator.http.get(path, headers={**provider.headers, "host": "evil.test"})
    assert hidden.status_code == 403


def test_a_restart_loses_no_job_and_no_file(tmp_path: Path) -> None:
    made: dict[str, tuple[str, str]] = {}
    with running(tmp_path) as simulator:
        simulator.configure(batches=[{**SLOW, "duration_s": 100}], clock=FROZEN)
        for name in MODELS:
            provider = Provider(simulator, name)
            made[name] = (provider.create(), provider.create(ROWS[:4]))
        # All lines are answered, and no job has ended.
        simulator.advance(95)
        until(lambda: len(simulator.journal()), lambda count: count == 42)
    assert b"test-key" not in (tmp_path / "jobs.db").read_bytes()
    with running(tmp_path) as simulator:
        simulator.advance(10)
        for name, jobs in made.items():
            provider = Provider(simulator, name)
            for job, rows in zip(jobs, (ROWS, ROWS[:4]), strict=True):
                assert provider.done(job) == FINISHED[name]
                assert sorted(provider.results(job)) == sorted(IDS[: len(rows)])
        assert len(simulator.journal()) == 42
        [gauge] = [g for g in simulator.summary()["enqueued"] if g["provider"] == "google"]
        assert gauge["now"] == 0 and gauge["peak"] > 0 and gauge["peak_jobs"] == 2
        simulator.http.post("/_sim/reset")
        assert (
            provider.simulator.http.get(
                provider.path(made["openai"][0]), headers=provider.headers
            ).status_code
            == 404
        )


def test_a_killed_simulator_goes_on_where_it_was(tmp_path: Path) -> None:
    def connect(url: str) -> Running:
        return Running(url, 0, tmp_path, httpx.Client(base_url=url, timeout=20))

    simulator = connect(ensure_simulator(tmp_path))
    try:
        simulator.configure(batches=[SLOW], clock=FROZEN)
        provider = Provider(simulator, "openai")
        job = provider.create()
        simulator.advance(500)
        until(lambda: len(simulator.journal()), lambda count: count == 4)
        os.kill(simulator.http.get("/_sim/health").json()["pid"], signal.SIGKILL)
        # What the killed process wrote after it last noted where it was.
        [output] = (tmp_path / "jobs").glob("*.out")
        output.write_bytes(output.read_bytes() + b'{"half of a li')
        simulator = connect(ensure_simulator(tmp_path))
        simulator.configure(clock=FROZEN)
        provider = Provider(simulator, "openai")
        assert provider.get(job)["request_counts"]["completed"] == 4
        simulator.advance(600)
        assert provider.done(job) == "completed"
        assert sorted(provider.results(job)) == IDS and len(simulator.journal()) == len(IDS)
    finally:
        stop_simulator(tmp_path)


# Google


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_google_answers_inline_requests_in_their_order(simulator: Running, version: str) -> None:
    simulator.configure(
        batches=[QUICK], faults=[{"kind": "status", "status": 503, "match": "number 1."}]
    )
    client = simulator.google(version=version)
    requests = [
        genai_types.InlinedRequest(
            contents=[genai_types.Content(role="user", parts=[genai_types.Part(text=row)])],
            metadata={"key": name},
        )
        for name, row in zip(IDS, ROWS, strict=True)
    ]
    job = client.batches.create(
        model=MODELS["google"], src=requests, config={"display_name": "mine"}
    )
    assert job.name is not None and job.display_name == "mine"
    ended = until(lambda: client.batches.get(name=job.name or ""), lambda one: bool(one.done))
    assert ended.state is not None and ended.state.name == "JOB_STATE_SUCCEEDED"
    assert ended.dest is not None and ended.dest.inlined_responses is not None
    answers = ended.dest.inlined_responses
    assert [(one.metadata or {})["key"] for one in answers] == IDS
    assert answers[1].error is not None and answers[1].error.code == 14
    assert answers[1].response is None
    assert answers[0].response is not None and answers[0].response.text is not None
    assert ROWS[0] in answers[0].response.text


def test_google_takes_big_files_in_chunks_and_gives_them_back(simulator: Running) -> None:
    client = simulator.google()
    data = b'{"key": "a"}\n' * 1_600_000
    uploaded = client.files.upload(
        file=io.BytesIO(data), config={"mime_type": "application/jsonl", "display_name": "big"}
    )
    assert uploaded.name is not None and uploaded.size_bytes == len(data)
    assert simulator.summary()["other_calls"]["google files.upload"] == 3
    got = client.files.get(name=uploaded.name)
    assert (got.display_name, got.mime_type) == ("big", "application/jsonl")
    assert client.files.download(file=uploaded.name) == data
    client.files.upload(file=io.BytesIO(b"x"), config={"mime_type": "text/plain"})
    assert [one.size_bytes for one in client.files.list(config={"page_size": 1})] == [1, len(data)]
    client.files.delete(name=uploaded.name)
    with pytest.raises(genai_errors.ClientError) as caught:
        client.files.get(name=uploaded.name)
    assert caught.value.code == 403


def test_google_is_driven_by_its_async_client_too(simulator: Running) -> None:
    simulator.configure(batches=[QUICK])
    client = simulator.google()

    async def drive() -> bytes:
        uploaded = await client.aio.files.upload(
            file=io.BytesIO(google_lines(ROWS)), config={"mime_type": "application/jsonl"}
        )
        job = await client.aio.batches.create(model=MODELS["google"], src=uploaded.name or "")
        assert job.name is not None
        while not job.done:
            await asyncio.sleep(0.01)
            job = await client.aio.batches.get(name=job.name or "")
        listed = [one.name async for one in await client.aio.batches.list()]
        assert listed == [job.name] and job.dest is not None
        data = await client.aio.files.download(file=job.dest.file_name or "")
        await client.aio.batches.cancel(name=job.name or "")
        await client.aio.batches.delete(name=job.name or "")
        assert [one async for one in await client.aio.batches.list()] == []
        await client.aio.files.delete(name=uploaded.name or "")
        await client.aio.aclose()
        return bytes(data)

    assert sorted(line["key"] for line in parsed(asyncio.run(asyncio.wait_for(drive(), 20)))) == IDS


def test_google_lists_the_newest_first_in_pages(simulator: Running) -> None:
    simulator.configure(clock=FROZEN)
    provider = Provider(simulator, "google")
    made = [provider.create(ROWS[:1]) for _ in range(5)]
    listed = [
        job.name for job in simulator.google("test-key").batches.list(config={"page_size": 2})
    ]
    assert listed == made[::-1]


def test_google_has_the_body_of_the_capture(simulator: Running) -> None:
    simulator.configure(batches=[QUICK])
    provider = Provider(simulator, "google")
    job = provider.create()
    provider.done(job)
    body = provider.get(job)
    assert set(body) == {"name", "metadata", "done", "response"}
    assert set(body["metadata"]) == {
        "@type", "model", "displayName", "createTime", "updateTime", "batchStats", "state",
        "name", "inputConfig", "endTime", "output",
    }  # fmt: skip
    assert body["response"]["responsesFile"] == body["metadata"]["output"]["responsesFile"]
    assert set(body["metadata"]["inputConfig"]) == {"fileName"}


def test_a_deleted_google_job_runs_on_unseen(simulator: Running) -> None:
    simulator.configure(batches=[SLOW], clock=FROZEN)
    provider = Provider(simulator, "google")
    job = provider.create()
    simulator.google("test-key").batches.delete(name=job)
    assert simulator.http.get(provider.path(job), headers=provider.headers).status_code == 404
    assert simulator.summary()["enqueued"][0]["open_jobs"] == 1
    simulator.advance(1_001)
    until(lambda: simulator.summary()["enqueued"][0]["open_jobs"], lambda count: count == 0)
    assert simulator.summary()["billed"] == len(ROWS)


# Anthropic


def test_anthropic_batches_are_driven_by_the_sync_client(simulator: Running) -> None:
    simulator.configure(batches=[SLOW], clock=FROZEN)
    batches = simulator.anthropic().messages.batches
    made = batches.create(requests=anthropic_requests(ROWS))
    assert made.processing_status == "in_progress" and made.results_url is None
    with pytest.raises(anthropic.AnthropicError):
        batches.results(made.id)
    with pytest.raises(anthropic.BadRequestError):
        batches.delete(made.id)
    simulator.advance(1_001)
    ended = until(lambda: batches.retrieve(made.id), lambda one: one.processing_status == "ended")
    assert ended.results_url is not None and ended.results_url.startswith(simulator.url)
    assert ended.ended_at is not None and (ended.ended_at - ended.created_at).seconds == 1_000
    assert (ended.expires_at - ended.created_at).days == 1
    assert {one.result.type for one in batches.results(made.id)} == {"succeeded"}
    with pytest.raises(anthropic.BadRequestError):
        batches.cancel(made.id)
    assert batches.delete(made.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        batches.retrieve(made.id)
    assert set(json.loads(ended.to_json())) >= {"id", "type", "request_counts", "created_at"}


def test_anthropic_batches_are_driven_by_the_async_client(simulator: Running) -> None:
    simulator.configure(batches=[QUICK])

    async def drive() -> list[str]:
        async with simulator.async_anthropic() as client:
            batch = await client.messages.batches.create(requests=anthropic_requests(ROWS))
            while batch.processing_status != "ended":
                await asyncio.sleep(0.01)
                batch = await client.messages.batches.retrieve(batch.id)
            results = await client.messages.batches.results(batch.id)
            return [one.custom_id async for one in results]

    assert sorted(asyncio.run(asyncio.wait_for(drive(), 20))) == IDS


def test_anthropic_lists_batches_before_and_after_one(simulator: Running) -> None:
    simulator.configure(clock=FROZEN)
    batches = simulator.anthropic().messages.batches
    made = [batches.create(requests=anthropic_requests(ROWS[:1])).id for _ in range(5)][::-1]
    assert [one.id for one in batches.list(limit=2)] == made
    page = batches.list(limit=2, after_id=made[1])
    assert [one.id for one in page.data] == made[2:4] and page.has_more
    page = batches.list(limit=2, before_id=made[3])
    assert [one.id for one in page.data] == made[1:3] and page.has_more
    assert [one.id for one in batches.list(limit=5, before_id=made[1]).data] == made[:1]


def test_anthropic_reports_bad_parameters_per_line(simulator: Running) -> None:
    simulator.configure(batches=[QUICK])
    provider = Provider(simulator, "anthropic")
    requests = anthropic_requests(ROWS[:3])
    del requests[1]["params"]["max_tokens"]
    requests[2]["params"]["temperature"] = 0
    batches = simulator.anthropic("test-key").messages.batches
    job = batches.create(requests=requests).id
    provider.done(job)
    results = provider.results(job)
    assert isinstance(results["row-0"], str)
    for name, message in (("row-1", "max_tokens: Field required"), ("row-2", "temperature")):
        assert results[name]["type"] == "errored"
        error = results[name]["error"]["error"]
        assert error["type"] == "invalid_request_error" and message in error["message"]
    assert provider.get(job)["request_counts"]["errored"] == 2
    assert simulator.summary()["billed"] == 1


def test_anthropic_refuses_batches_that_the_real_one_refuses(simulator: Running) -> None:
    batches = simulator.anthropic().messages.batches
    refused: list[tuple[list[Any], str]] = [
        ([], "at least 1 item"),
        (anthropic_requests(ROWS[:1]) * 2, "not unique"),
        ([{**anthropic_requests(ROWS[:1])[0], "custom_id": "a b"}], "should match pattern"),
        ([{"custom_id": "a"}], "params: Field required"),
    ]
    for requests, said in refused:
        with pytest.raises(anthropic.BadRequestError, match=said):
            batches.create(requests=requests)
    headers = {"authorization": "Bearer x", "anthropic-version": "2026-10-21"}
    for body in (b"", b"[]", b'{"requests": [{"custom_id"', b'{"requests": 4}'):
        reply = simulator.http.post("/anthropic/v1/messages/batches", content=body, headers=headers)
        assert reply.status_code == 400 and reply.json()["type"] == "error", body


# OpenAI


def test_openai_batches_are_driven_by_the_sync_client(simulator: Running) -> None:
    simulator.configure(batches=[SLOW], clock=FROZEN)
    client = simulator.openai()
    uploaded = client.files.create(
        file=("in.jsonl", openai_lines(ROWS)),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 86_400},
    )
    assert uploaded.filename == "in.jsonl" and uploaded.expires_at is not None
    assert uploaded.expires_at - uploaded.created_at == 86_400
    assert client.files.retrieve(uploaded.id).bytes == len(openai_lines(ROWS))
    assert client.files.content(uploaded.id).content == openai_lines(ROWS)
    batch = client.batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"run": "r1"},
        output_expires_after={"anchor": "created_at", "seconds": 3_600},
    )
    assert batch.status == "validating" and batch.metadata == {"run": "r1"}
    assert batch.request_counts is not None and batch.request_counts.total == 0
    # The batch has its own copy.
    client.files.delete(uploaded.id)
    simulator.advance(1_001)
    ended = until(lambda: client.batches.retrieve(batch.id), lambda b: b.status == "completed")
    assert ended.model == MODELS["openai"] and ended.usage is not None
    assert ended.usage.total_tokens == ended.usage.input_tokens + ended.usage.output_tokens
    assert ended.in_progress_at is not None and ended.finalizing_at is not None
    assert batch.created_at < ended.in_progress_at < ended.finalizing_at
    assert ended.error_file_id is None and ended.output_file_id is not None
    output = client.files.retrieve(ended.output_file_id)
    assert output.purpose == "batch_output" and output.expires_at is not None
    assert output.expires_at - output.created_at == 3_600
    line = parsed(client.files.content(ended.output_file_id).content)[0]
    assert set(line) == {"id", "custom_id", "response", "error"}
    assert set(line["response"]) == {"status_code", "request_id", "body"}
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
    assert [one.id for one in client.files.list(purpose="batch_output")] == [output.id]


def test_openai_batches_are_driven_by_the_async_client(simulator: Running) -> None:
    simulator.configure(batches=[QUICK])
    line = {
        "custom_id": "one",
        "method": "POST",
        "url": "/v1/responses",
        "body": {"model": MODELS["openai"], "input": ROWS[0]},
    }

    async def drive() -> bytes:
        async with simulator.async_openai() as client:
            uploaded = await client.files.create(
                file=("in.jsonl", json.dumps(line).encode()), purpose="batch"
            )
            batch = await client.batches.create(
                input_file_id=uploaded.id, endpoint="/v1/responses", completion_window="24h"
            )
            while batch.status != "completed":
                await asyncio.sleep(0.01)
                batch = await client.batches.retrieve(batch.id)
            listed = [one.id async for one in client.batches.list(limit=1)]
            assert listed == [batch.id] and batch.output_file_id is not None
            return (await client.files.content(batch.output_file_id)).content

    [result] = parsed(asyncio.run(asyncio.wait_for(drive(), 20)))
    output = result["response"]["body"]["output"]
    assert ROWS[0] in output[0]["content"][0]["text"]


def test_openai_lists_batches_after_one(simulator: Running) -> None:
    simulator.configure(clock=FROZEN)
    provider = Provider(simulator, "openai")
    made = [provider.create(ROWS[:1]) for _ in range(5)][::-1]
    client = simulator.openai("test-key")
    assert [one.id for one in client.batches.list(limit=2)] == made
    page = client.batches.list(limit=2, after=made[1])
    assert [one.id for one in page.data] == made[2:4] and page.has_more


def test_openai_puts_errors_of_lines_into_the_error_file(simulator: Running) -> None:
    simulator.configure(
        batches=[QUICK], faults=[{"kind": "status", "status": 500, "match": "number 3."}]
    )
    provider = Provider(simulator, "openai")
    job = provider.create()
    assert provider.done(job) == "completed"
    body = provider.get(job)
    assert body["request_counts"] == {"total": 10, "completed": 9, "failed": 1}
    errors = parsed(simulator.openai("test-key").files.content(body["error_file_id"]).content)
    assert [line["custom_id"] for line in errors] == ["row-3"]
    assert errors[0]["response"]["status_code"] == 500 and errors[0]["error"] is None
    assert "error" in errors[0]["response"]["body"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"{not json}\n", "invalid_json_line"),
        (openai_lines(ROWS[:1]) * 2, "duplicate_custom_id"),
        (openai_lines(ROWS[:1]).replace(b"chat/completions", b"responses"), "mismatched_endpoint"),
        (openai_lines(ROWS[:1]).replace(b"gpt-6-luna", b"gpt-none"), "model_not_found"),
        (openai_lines(ROWS[:1]).replace(b'"method"', b'"m"'), "missing_required_parameter"),
        (
            openai_lines(ROWS[:2]).replace(b"gpt-6-luna", b"gpt-6-sol", 1),
            "mismatched_model",
        ),
    ],
)
def test_openai_batches_of_unusable_files_fail(
    simulator: Running, content: bytes, code: str
) -> None:
    simulator.configure(batches=[QUICK])
    provider = Provider(simulator, "openai")
    uploaded = provider.upload(content) if content else provider.upload(b"\n")
    client = simulator.openai("test-key")
    batch = client.batches.create(
        input_file_id=uploaded, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert batch.status == "validating"
    assert provider.done(batch.id) == "failed"
    body = provider.get(batch.id)
    assert body["errors"]["data"][0]["code"] == code and body["failed_at"] is not None
    assert simulator.journal() == []


def test_openai_refuses_calls_that_the_real_one_refuses(simulator: Running) -> None:
    client = simulator.openai()
    with pytest.raises(openai.BadRequestError, match="No such File"):
        client.batches.create(
            input_file_id="file-none", endpoint="/v1/responses", completion_window="24h"
        )
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-none")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a", b"x"), purpose="vision")
    with pytest.raises(openai.AuthenticationError):
        simulator.openai(key="bad-key").batches.list()
