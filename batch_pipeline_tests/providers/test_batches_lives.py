"""Whole lives of batch jobs against the simulator: each client through its provider's own wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import orjson
import pytest

from batch_pipeline.providers.base import ErrorKind, LlmRequest, ProviderError, Reply
from batch_pipeline.providers.batch_clients import open_batch_api
from batch_pipeline.providers.batches import (
    BatchApi,
    JobState,
    LineEnd,
    LineResult,
    RemoteJob,
    ResultsGoneError,
)
from batch_pipeline.providers.registry import PROVIDERS, resolve_access
from batch_pipeline.providers.transport import Transport
from batch_pipeline_tests.providers.batch_server import MODELS, collect, request
from batch_pipeline_tests.simulated import Simulator

BATCHERS = ("google", "anthropic", "openai")
LABEL = "bp-roadmaps-1"
SLOW: dict[str, Any] = {"duration_s": 1_000.0, "per_line_s": 0.0, "duration_jitter": 0.0}
DAY_S = 86_400.0

T = TypeVar("T")


class Desk:
    """One provider's batches on the simulator."""

    def __init__(self, provider: str, simulator: Simulator, api: BatchApi) -> None:
        self.provider = provider
        self.simulator = simulator
        self.api = api
        self.access = resolve_access(provider, {}, simulator.url)

    def lines(self, count: int) -> list[bytes]:
        """Lines named row-0, row-1 and so on."""
        codec = PROVIDERS[self.provider].codec
        built = (
            codec.build(one, key=self.access.key, base_url=self.access.base_url)
            for one in requests(self.provider, count)
        )
        return [self.api.line(f"row-{n}", call) for n, call in enumerate(built)]

    async def submit(self, count: int = 4) -> RemoteJob:
        """A job of so many lines."""
        lines = self.lines(count)
        file = await self.api.upload(LABEL, lines)
        return await self.api.create(LABEL, MODELS[self.provider], file, lines)

    async def end(self, job: RemoteJob) -> RemoteJob:
        """The job when it has ended."""
        deadline = time.monotonic() + 20
        while not job.state.ended:
            assert time.monotonic() < deadline, job
            await asyncio.sleep(0.03)
            job = await self.api.job(job.name)
        return job

    async def results(self, job: RemoteJob) -> dict[str, LineResult]:
        """What came of each line."""
        found = await collect(self.api.results(job))
        assert len({result.custom_id for result in found}) == len(found)
        return {result.custom_id: result for result in found}


def requests(provider: str, count: int) -> list[LlmRequest]:
    return [request(provider, f"Rate <row id='row-{n}'>Ada number {n}</row>") for n in range(count)]


def run(provider: str, simulator: Simulator, use: Callable[[Desk], Awaitable[T]]) -> T:
    """What `use` gives at the provider's desk."""

    async def go() -> T:
        access = resolve_access(provider, {}, simulator.url)
        api = open_batch_api(provider, access.key, access.base_url, timeout_s=20)
        try:
            return await use(Desk(provider, simulator, api))
        finally:
            await api.aclose()

    return asyncio.run(go())


async def in_real_time(desk: Desk, asked: Sequence[LlmRequest]) -> list[Reply]:
    """The same requests, asked one by one."""
    codec = PROVIDERS[desk.provider].codec
    replies = []
    async with Transport() as transport:
        for one in asked:
            call = codec.build(one, key=desk.access.key, base_url=desk.access.base_url)
            replies.append(codec.read(await transport.send(call, timeout_s=20)))
    return replies


async def refused(call: Awaitable[object]) -> ProviderError:
    """The error of a call."""
    with pytest.raises(ProviderError) as caught:
        await call
    return caught.value


def ends(results: dict[str, LineResult]) -> dict[LineEnd, int]:
    found = [result.end for result in results.values()]
    return {end: found.count(end) for end in set(found)}


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_job_gives_what_real_time_gives(provider: str, simulator: Simulator) -> None:
    async def use(desk: Desk) -> None:
        began = time.time()
        job = await desk.submit(6)
        assert not job.state.ended and abs(job.created_at - began) < 20
        done = await desk.end(job)
        assert (done.state, done.total, done.succeeded, done.failed) == (
            JobState.SUCCEEDED,
            6,
            6,
            0,
        )
        assert done.ended_at is not None and done.ended_at >= done.created_at
        results = await desk.results(done)
        assert ends(results) == {LineEnd.ANSWERED: 6}
        codec = PROVIDERS[provider].codec
        spoken = await in_real_time(desk, requests(provider, 6))
        for n, reply in enumerate(spoken):
            line = results[f"row-{n}"].reply
            assert line is not None and line.status == 200
            read = codec.read(line)
            assert (read.text, read.finish, read.usage, read.model) == (
                reply.text,
                reply.finish,
                reply.usage,
                reply.model,
            )

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", ["google", "openai"])
def test_files_and_jobs_are_found_by_their_label(provider: str, simulator: Simulator) -> None:
    simulator.configure(batches=[SLOW])

    async def use(desk: Desk) -> None:
        lines = desk.lines(2)
        assert await desk.api.find_upload(LABEL) is None
        file = await desk.api.upload(LABEL, lines)
        await desk.api.upload(f"{LABEL}-other", lines)
        assert await desk.api.find_upload(LABEL) == file
        job = await desk.api.create(LABEL, MODELS[provider], file, lines)
        (listed,) = await collect(desk.api.jobs(job.created_at))
        assert (listed.name, listed.label) == (job.name, LABEL)
        await desk.api.delete_upload(file)
        await desk.api.delete_upload(file)
        assert await desk.api.find_upload(LABEL) is None

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_job_shows_where_it_stands(provider: str, simulator: Simulator) -> None:
    simulator.configure(batches=[SLOW])

    async def use(desk: Desk) -> None:
        job = await desk.submit()
        desk.simulator.advance(500)
        job = await desk.api.job(job.name)
        assert job.state is JobState.RUNNING and job.total == 4 and job.results == ()
        desk.simulator.advance(600)
        assert (await desk.end(job)).state is JobState.SUCCEEDED

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_cancelled_job_keeps_what_was_answered_where_the_provider_does(
    provider: str, simulator: Simulator
) -> None:
    simulator.configure(batches=[SLOW])

    async def use(desk: Desk) -> None:
        job = await desk.submit(8)
        desk.simulator.advance(600)
        deadline = time.monotonic() + 10
        # Anthropic tells no count before the end: the journal does
        while not simulator.journal():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.03)
        await desk.api.cancel(job.name)
        desk.simulator.advance(100)
        done = await desk.end(job)
        assert done.state is JobState.CANCELLED
        found = ends(await desk.results(done))
        if provider == "google":
            assert found == {}
        else:
            assert set(found) == {LineEnd.ANSWERED, LineEnd.CANCELLED}
            assert sum(found.values()) == 8

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
def test_an_expired_job_keeps_what_was_answered_where_the_provider_does(
    provider: str, simulator: Simulator
) -> None:
    simulator.configure(faults=[{"kind": "batch_expire", "count": 1, "part": 0.5}])

    async def use(desk: Desk) -> None:
        job = await desk.submit(4)
        desk.simulator.advance(3 * DAY_S)
        done = await desk.end(job)
        assert done.state is JobState.EXPIRED
        found = ends(await desk.results(done))
        assert found == ({} if provider == "google" else {LineEnd.ANSWERED: 2, LineEnd.EXPIRED: 2})

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
@pytest.mark.parametrize(
    ("status", "kind"), [(400, ErrorKind.ITEM_PERMANENT), (500, ErrorKind.TRANSIENT)]
)
def test_one_line_that_fails_is_classified_like_a_real_time_error(
    provider: str, status: int, kind: ErrorKind, simulator: Simulator
) -> None:
    fault = {"kind": "status", "status": status, "match": "Ada number 2", "lane": "batch"}
    simulator.configure(faults=[fault])

    async def use(desk: Desk) -> None:
        done = await desk.end(await desk.submit(4))
        assert (done.succeeded, done.failed) == (3, 1)
        results = await desk.results(done)
        assert ends(results) == {LineEnd.ANSWERED: 3, LineEnd.ERRORED: 1}
        line = results["row-2"].reply
        assert line is not None and line.status == status
        with pytest.raises(ProviderError) as caught:
            PROVIDERS[provider].codec.read(line)
        assert caught.value.kind is kind

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_job_that_fails_says_why_or_fails_in_each_line(
    provider: str, simulator: Simulator
) -> None:
    simulator.configure(faults=[{"kind": "batch_fail", "count": 1}])

    async def use(desk: Desk) -> None:
        done = await desk.end(await desk.submit(3))
        results = await desk.results(done)
        if provider == "anthropic":
            # there is no failed job at Anthropic
            assert ends(results) == {LineEnd.ERRORED: 3}
        else:
            assert done.state is JobState.FAILED and done.error and done.error_code
            assert results == {}

    run(provider, simulator, use)


def test_a_partly_done_job_of_google_ends_with_what_it_has(simulator: Simulator) -> None:
    simulator.configure(faults=[{"kind": "batch_partial", "count": 1, "part": 0.5}])

    async def use(desk: Desk) -> None:
        done = await desk.end(await desk.submit(4))
        assert done.state is JobState.PARTIAL
        assert ends(await desk.results(done)).get(LineEnd.ANSWERED) == 2

    run("google", simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
def test_results_are_gone_after_a_while(provider: str, simulator: Simulator) -> None:
    async def use(desk: Desk) -> None:
        done = await desk.end(await desk.submit(2))
        assert len(await desk.results(done)) == 2
        desk.simulator.advance(40 * DAY_S)
        for job in (done, await desk.api.job(done.name)):
            with pytest.raises(ResultsGoneError):
                await desk.results(job)

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
def test_three_hundred_jobs_are_listed_newest_first(provider: str, simulator: Simulator) -> None:
    simulator.configure(batches=[{**SLOW, "max_jobs": 1_000}])

    async def use(desk: Desk) -> None:
        lines = desk.lines(1)
        file = await desk.api.upload(LABEL, lines)
        made = [
            await desk.api.create(f"{LABEL}-{n}", MODELS[provider], file, lines) for n in range(300)
        ]
        listed = await collect(desk.api.jobs(0.0))
        assert [job.name for job in listed] == [job.name for job in reversed(made)]
        # OpenAI's times are whole seconds, so that some from before may be among them
        recent = await collect(desk.api.jobs(made[290].created_at))
        names = [job.name for job in recent]
        assert names[:10] == [job.name for job in reversed(made[290:])] and len(names) <= 300

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", ["google", "openai"])
@pytest.mark.parametrize("status", [None, 503], ids=["cut", "503"])
def test_an_upload_that_breaks_is_sent_anew(
    provider: str, status: int | None, simulator: Simulator
) -> None:
    simulator.configure(faults=[{"kind": "upload", "count": 1, "status": status}])

    async def use(desk: Desk) -> None:
        error = await refused(desk.api.upload(LABEL, desk.lines(50)))
        assert error.kind is ErrorKind.TRANSIENT and error.maybe_billed
        assert await desk.api.find_upload(LABEL) is None
        assert len(await desk.results(await desk.end(await desk.submit(2)))) == 2

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_download_that_breaks_is_read_anew(provider: str, simulator: Simulator) -> None:
    simulator.configure(faults=[{"kind": "download", "count": 1, "part": 0.5}])

    async def use(desk: Desk) -> None:
        done = await desk.end(await desk.submit(8))
        assert (await refused(desk.results(done))).kind is ErrorKind.TRANSIENT
        assert len(await desk.results(done)) == 8

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
@pytest.mark.parametrize("status", [None, 500], ids=["cut", "500"])
def test_a_job_whose_reply_was_lost_is_found_in_the_list(
    provider: str, status: int | None, simulator: Simulator
) -> None:
    fault = {"kind": "batch_create", "count": 1, "made": True, "status": status}
    simulator.configure(faults=[fault], batches=[SLOW])

    async def use(desk: Desk) -> None:
        began = time.time()
        error = await refused(desk.submit(3))
        assert error.kind is ErrorKind.TRANSIENT and error.maybe_billed
        (job,) = await collect(desk.api.jobs(began - 2))
        assert job.label == (LABEL if desk.api.limits.keeps_label else "")
        assert job.name and not job.state.ended

    run(provider, simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
def test_a_poll_that_fails_is_an_error_of_that_poll(provider: str, simulator: Simulator) -> None:
    simulator.configure(faults=[{"kind": "poll", "count": 1, "status": 429, "retry_after_s": 2}])

    async def use(desk: Desk) -> None:
        job = await desk.submit(1)
        error = await refused(desk.api.job(job.name))
        assert (error.kind, error.retry_after_s) == (ErrorKind.RATE_LIMITED, 2.0)
        assert (await desk.api.job(job.name)).name == job.name

    run(provider, simulator, use)


def test_google_refuses_a_job_beyond_the_enqueued_tokens(simulator: Simulator) -> None:
    simulator.configure(batches=[{**SLOW, "enqueued_tokens": 10}])

    async def use(desk: Desk) -> None:
        error = await refused(desk.submit(3))
        assert error.kind is ErrorKind.RATE_LIMITED and not error.maybe_billed
        assert await collect(desk.api.jobs(0.0)) == []

    run("google", simulator, use)


def test_openai_fails_a_job_beyond_the_enqueued_tokens(simulator: Simulator) -> None:
    simulator.configure(batches=[{**SLOW, "enqueued_tokens": 10}])

    async def use(desk: Desk) -> None:
        job = await desk.submit(3)
        assert job.state is JobState.PENDING
        desk.simulator.advance(500)
        done = await desk.end(job)
        assert (done.state, done.error_code) == (JobState.FAILED, "token_limit_exceeded")

    run("openai", simulator, use)


@pytest.mark.parametrize("provider", BATCHERS)
def test_two_jobs_of_one_client_do_not_disturb_each_other(
    provider: str, simulator: Simulator
) -> None:
    async def use(desk: Desk) -> None:
        jobs = await asyncio.gather(desk.submit(3), desk.submit(5))
        done = await asyncio.gather(*(desk.end(job) for job in jobs))
        found = await asyncio.gather(*(desk.results(job) for job in done))
        assert [len(results) for results in found] == [3, 5]
        for results in found:
            for result in results.values():
                assert result.reply is not None and orjson.loads(result.reply.body)

    run(provider, simulator, use)
