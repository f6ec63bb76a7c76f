"""Rate limits: strict buckets, and each provider's own way to say no."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from google.genai import errors as genai_errors
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.simulator.buckets import Bucket, Buckets
from batch_pipeline.simulator.config import Limit
from batch_pipeline_tests.simulator.running import INSTANT, Running

TWO = {"requests_per_minute": 60, "request_capacity": 2}
SLOW = {"base_s": 0.5, "per_output_token_s": 0, "jitter_s": 0}
CLAUDE: dict[str, Any] = {
    "model": "claude-haiku-5-5",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "hi"}],
}


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(1, 10))
def test_a_bucket_never_admits_more_than_capacity_and_refill(
    gaps: list[float], capacity: int
) -> None:
    bucket, now, admitted = Bucket(60, capacity, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        if bucket.wait_s(1, now) == 0:
            bucket.take(1, now)
            admitted += 1
    assert admitted <= capacity + now * 1.0 + 1e-3


def test_a_client_that_waits_as_told_is_admitted() -> None:
    buckets = Buckets(Limit(requests_per_minute=1_200, request_capacity=2), 0.0)
    now, admitted = 0.0, 0
    for _ in range(50):
        excess = buckets.admit(input_tokens=1, output_tokens=1, now=now)
        if excess:
            now += excess.wait_s
            assert buckets.admit(input_tokens=1, output_tokens=1, now=now) is None
        admitted += 1
    assert now == pytest.approx((admitted - 2) * 0.05, abs=1e-3)


def test_a_request_above_a_token_bucket_leaves_a_debt() -> None:
    buckets = Buckets(Limit(input_tokens_per_minute=600), 0.0)
    assert buckets.admit(input_tokens=1_200, output_tokens=0, now=0.0) is None
    refused = buckets.admit(input_tokens=10, output_tokens=0, now=0.0)
    assert refused is not None and refused.name == "input_tokens"
    assert refused.wait_s == pytest.approx(61, abs=0.1)


def test_a_refused_request_takes_nothing_from_any_bucket() -> None:
    buckets = Buckets(Limit(request_capacity=5, output_tokens_per_minute=60), 0.0)
    assert buckets.admit(input_tokens=1, output_tokens=60, now=0.0) is None
    before = buckets.gauges(0.0)
    assert buckets.admit(input_tokens=1, output_tokens=60, now=0.0) is not None
    assert buckets.gauges(0.0) == before


def test_anthropic_says_429_with_retry_after_and_its_headers(simulator: Running) -> None:
    simulator.configure(limits=[{"provider": "anthropic", **TWO}])
    client = simulator.anthropic()
    for _ in range(2):
        client.messages.create(**CLAUDE)
    with pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(**CLAUDE)
    headers = caught.value.response.headers
    assert headers["retry-after"] == "1"
    assert headers["anthropic-ratelimit-requests-limit"] == "60"
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    refused = simulator.journal()[-1]
    assert (refused["status"], refused["billed"], refused["input_tokens"]) == (429, False, 0)
    assert refused["price_usd"] == 0
    simulator.anthropic(key="sk-ant-other").messages.create(**CLAUDE)


def test_openai_says_429_with_its_headers(simulator: Running) -> None:
    simulator.configure(limits=[TWO])
    client = simulator.openai()
    for _ in range(2):
        client.responses.create(model="gpt-6-luna", input="hi")
    with pytest.raises(openai.RateLimitError) as caught:
        client.responses.create(model="gpt-6-luna", input="hi")
    assert caught.value.code == "rate_limit_exceeded"
    headers = caught.value.response.headers
    assert 0 < int(headers["retry-after-ms"]) <= 1_000
    assert re.fullmatch(r"\d+ms|\d+(\.\d+)?s", headers["x-ratelimit-reset-requests"])
    client.responses.create(model="gpt-5.5", input="hi")


def test_google_says_429_in_the_body_only(simulator: Running) -> None:
    simulator.configure(limits=[TWO])
    client = simulator.google()
    for _ in range(2):
        client.models.generate_content(model="gemini-3.8-flash", contents="hi")
    with pytest.raises(genai_errors.ClientError) as caught:
        client.models.generate_content(model="gemini-3.8-flash", contents="hi")
    details = {d["@type"].rpartition(".")[2]: d for d in caught.value.details["error"]["details"]}
    assert 0 < float(details["RetryInfo"]["retryDelay"].rstrip("s")) <= 1
    violation = details["QuotaFailure"]["violations"][0]
    assert violation["quotaValue"] == "60" and "PerMinute" in violation["quotaId"]
    assert caught.value.response is not None
    assert "retry-after" not in caught.value.response.headers


def test_openrouter_says_429_with_its_headers(simulator: Running) -> None:
    simulator.configure(limits=[{**TWO, "request_capacity": 1}])
    client = simulator.openrouter()
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    client.chat.completions.create(model="openai/gpt-6-luna", **ask)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="openai/gpt-6-luna", **ask)
    headers = caught.value.response.headers
    assert headers["x-ratelimit-remaining"] == "0"
    assert int(headers["x-ratelimit-reset"]) / 1_000 > time.time() - 1


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ({"input_tokens_per_minute": 60, "input_token_capacity": 1}, "TPM"),
        ({"output_tokens_per_minute": 60, "output_token_capacity": 1}, "output tokens"),
    ],
)
def test_tokens_are_limited_apart_from_requests(
    simulator: Running, limit: dict[str, Any], says: str
) -> None:
    simulator.configure(limits=[limit])
    assert simulator.chat("a").status_code == 200
    refused = simulator.chat("b")
    assert refused.status_code == 429 and says in refused.json()["error"]["message"]


def test_cached_input_is_free_of_the_anthropic_limit(simulator: Running) -> None:
    simulator.configure(limits=[{"input_tokens_per_minute": 3_000}])
    system = " ".join(f"Rule {n}: be exact." for n in range(300))
    block: Any = {"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}
    client = simulator.anthropic()
    for _ in range(3):
        client.messages.create(**CLAUDE, system=[block])
    client.messages.create(**CLAUDE)


def test_requests_in_flight_are_limited(simulator: Running) -> None:
    simulator.configure(limits=[{"concurrent": 3}], latency=SLOW)
    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(lambda n: simulator.chat(f"q{n}").status_code, range(8)))
    assert statuses == [200] * 3 + [429] * 5
    assert simulator.summary()["max_concurrent"] == 3
    simulator.configure(latency=INSTANT)
    assert simulator.chat("after").status_code == 200


def test_250_connections_at_once_are_all_answered(simulator: Running) -> None:
    simulator.configure(latency=SLOW)

    async def ask(session: aiohttp.ClientSession, n: int) -> int:
        body = {"model": "gpt-6-luna", "messages": [{"role": "user", "content": f"q{n}"}]}
        async with session.post("/openai/v1/chat/completions", json=body) as reply:
            return reply.status

    async def ask_all() -> list[int]:
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"authorization": "Bearer k"}
        async with aiohttp.ClientSession(
            simulator.url, connector=connector, headers=headers
        ) as session:
            return await asyncio.gather(*(ask(session, n) for n in range(250)))

    assert asyncio.run(ask_all()) == [200] * 250
    totals = simulator.summary()
    assert (totals["attempts"], totals["max_concurrent"]) == (250, 250)
