"""Rate limits: strict buckets, and each provider's own way to say no."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import anthropic
import httpx
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


def ask(simulator: Running, provider: str) -> httpx.Response:
    """One smallest request to a provider, as bare HTTP."""
    message = {"messages": [{"role": "user", "content": "hi"}]}
    path, body = {
        "google": (
            "/google/v1/models/gemini-3.8-flash:generateContent",
            {"contents": [{"parts": [{"text": "hi"}]}]},
        ),
        "anthropic": ("/anthropic/v1/messages", CLAUDE),
        "openai": ("/openai/v1/chat/completions", {"model": "gpt-6-luna", **message}),
        "openrouter": (
            "/openrouter/api/v1/chat/completions",
            {"model": "openai/gpt-6-luna", **message},
        ),
    }[provider]
    headers = {
        "authorization": "Bearer some-key",
        "x-goog-api-key": "some-key",
        "anthropic-version": "2026-10-21",
    }
    return simulator.http.post(path, json=body, headers=headers)


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


def test_successes_say_limit_remainder_and_reset(simulator: Running) -> None:
    simulator.configure(limits=[TWO])
    said = simulator.chat().headers
    assert (said["x-ratelimit-limit-requests"], said["x-ratelimit-remaining-requests"]) == (
        "60", "1",
    )  # fmt: skip
    assert re.fullmatch(r"\d+ms|\d+(\.\d+)?s", said["x-ratelimit-reset-requests"])
    claude = simulator.anthropic().messages.with_raw_response.create(**CLAUDE).headers
    assert claude["anthropic-ratelimit-requests-remaining"] == "1"
    assert claude["anthropic-ratelimit-requests-reset"].endswith("Z")


@pytest.mark.parametrize("provider", ["google", "anthropic", "openai", "openrouter"])
def test_without_headers_no_reply_says_a_limit_or_a_wait(simulator: Running, provider: str) -> None:
    simulator.configure(limits=[{**TWO, "request_capacity": 1}], headers=False, latency=INSTANT)
    good, refused = ask(simulator, provider), ask(simulator, provider)
    assert (good.status_code, refused.status_code) == (200, 429)
    for reply in (good, refused):
        assert not [name for name in reply.headers if "ratelimit" in name or "retry" in name]
    assert not re.search(r"\d ?m?s\b|RetryInfo|RateLimit-", refused.text)
    simulator.configure(faults=[{"kind": "status", "status": 503, "retry_after_s": 7}], limits=[])
    assert "retry-after" not in ask(simulator, provider).headers


@pytest.mark.parametrize("provider", ["google", "anthropic", "openai", "openrouter"])
def test_requests_per_day_run_out_and_come_back_with_the_next_day(
    simulator: Running, provider: str
) -> None:
    simulator.configure(limits=[{"requests_per_day": 2}], day="2026-11-22")
    statuses = [ask(simulator, provider).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    said = ask(simulator, provider).text
    words = {"google": "PerDay", "anthropic": "per day", "openai": "(RPD)", "openrouter": "per-day"}
    assert words[provider] in said and "RetryInfo" not in said
    simulator.configure(day="2026-11-23")
    assert ask(simulator, provider).status_code == 200
