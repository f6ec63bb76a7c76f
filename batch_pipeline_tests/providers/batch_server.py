"""A Batch API client against a scripted loopback server.

What belongs here: helpers of test_batches_*.py. What does not: assertions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import orjson

from batch_pipeline.providers.base import LlmRequest, WireCall
from batch_pipeline.providers.batch_clients import open_batch_api
from batch_pipeline.providers.batches import BatchApi, JobState, RemoteJob
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline_tests.providers.recorder import Answer, Recorded, recording

T = TypeVar("T")

KEY = "sk-test-0123456789abcd"

MODELS = {
    "google": "gemini-3.8-flash",
    "anthropic": "claude-haiku-5-5",
    "openai": "gpt-6-luna",
}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "score": {"type": "integer"}},
    "required": ["id", "score"],
    "additionalProperties": False,
}


def request(provider: str, user: str = "Rate <row id='r1'>Ada</row>") -> LlmRequest:
    """A request of the kind that workloads make."""
    return LlmRequest(
        model=MODELS[provider],
        system="You rate rows.",
        user=user,
        schema=SCHEMA,
        max_output_tokens=256,
    )


def built(provider: str, base_url: str, asked: LlmRequest | None = None) -> WireCall:
    """What real time would send."""
    codec = PROVIDERS[provider].codec
    return codec.build(asked or request(provider), key=KEY, base_url=base_url)


def base_url(provider: str, url: str) -> str:
    """Where the provider is played, below a server's address."""
    return url + PROVIDERS[provider].simulator_path


async def with_api(
    provider: str, base: str, use: Callable[[BatchApi], Awaitable[T]], timeout_s: float = 10.0
) -> T:
    """What `use` gives with a client for `base`."""
    api = open_batch_api(provider, KEY, base, timeout_s=timeout_s)
    try:
        return await use(api)
    finally:
        await api.aclose()


def exchange(
    provider: str,
    answer: Callable[[Recorded], Answer],
    use: Callable[[BatchApi], Awaitable[T]],
    timeout_s: float = 10.0,
) -> tuple[T, list[Recorded]]:
    """What `use` gives with a server that answers `answer`, and the requests that it got."""
    with recording(answer) as server:
        base = base_url(provider, server.url)
        given = asyncio.run(with_api(provider, base, use, timeout_s))
    return given, server.requests


async def collect(items: AsyncIterator[T]) -> list[T]:
    """All of them."""
    return [item async for item in items]


def as_lines(*objects: Any) -> Answer:
    """A file of JSON lines."""
    body = b"".join(orjson.dumps(one) + b"\n" for one in objects)
    return Answer(200, body, {"content-type": "application/octet-stream"})


def ended(provider: str, name: str, *results: str) -> RemoteJob:
    """A job that has results, as its client would show it."""
    return RemoteJob(name=name, state=JobState.SUCCEEDED, results=results)
