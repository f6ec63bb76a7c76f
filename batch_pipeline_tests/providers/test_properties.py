"""Whatever a server sends, reading ends in a Reply or a ProviderError, and repeats no key."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.providers.base import ProviderError, Reply, Usage, WireReply
from batch_pipeline.providers.registry import PROVIDERS

ALL = tuple(PROVIDERS)
STATUSES = st.sampled_from([200, 200, 204, 301, 400, 401, 402, 403, 404, 413, 422, 429, 500, 529])

_FIELDS = st.sampled_from(
    [
        "error",
        "message",
        "code",
        "type",
        "status",
        "details",
        "reason",
        "metadata",
        "raw",
        "limit_source",
        "reasons",
        "violations",
        "quotaId",
        "quotaValue",
        "retryDelay",
        "candidates",
        "content",
        "parts",
        "text",
        "thought",
        "finishReason",
        "promptFeedback",
        "blockReason",
        "usageMetadata",
        "promptTokenCount",
        "cachedContentTokenCount",
        "candidatesTokenCount",
        "thoughtsTokenCount",
        "modelVersion",
        "responseId",
        "stop_reason",
        "stop_details",
        "usage",
        "input_tokens",
        "cache_creation",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens",
        "choices",
        "finish_reason",
        "refusal",
        "prompt_tokens",
        "completion_tokens",
        "cost",
        "is_byok",
        "prompt_tokens_details",
        "cached_tokens",
        "cache_write_tokens",
        "detail",
        "id",
        "model",
        "request_id",
    ]
)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(
        ["STOP", "SAFETY", "MAX_TOKENS", "end_turn", "refusal", "stop", "length", "9s"]
    ),
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_FIELDS, inner, max_size=6)
    ),
    max_leaves=25,
)
_HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "date", "request-id", "content-type"]),
    st.text(max_size=30),
)


def _read(provider: str, reply: WireReply) -> Reply | ProviderError:
    try:
        return PROVIDERS[provider].codec.read(reply)
    except ProviderError as error:
        return error


def _is_sound(usage: Usage | None) -> bool:
    if usage is None:
        return True
    parts = usage.cached_input_tokens + usage.cache_write_tokens + usage.cache_write_1h_tokens
    return 0 <= parts <= usage.input_tokens and 0 <= usage.thinking_tokens <= usage.output_tokens


@pytest.mark.parametrize("provider", ALL)
@given(status=STATUSES, headers=_HEADERS, body=st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_no_bytes_make_reading_fail(
    provider: str, status: int, headers: dict[str, str], body: bytes
) -> None:
    _read(provider, WireReply(status, headers, body))


@pytest.mark.parametrize("provider", ALL)
@given(status=STATUSES, headers=_HEADERS, body=_JSON)
@settings(max_examples=200, deadline=None)
def test_no_json_makes_reading_fail_and_what_is_read_is_sound(
    provider: str, status: int, headers: dict[str, str], body: Any
) -> None:
    read = _read(provider, WireReply(status, headers, json.dumps(body).encode()))
    assert _is_sound(read.usage)
    if isinstance(read, ProviderError):
        wait = read.retry_after_s
        assert wait is None or (math.isfinite(wait) and wait >= 0)
        assert read.message and len(read.message) <= 600
        assert len(read.code) <= 80


_TAIL = st.text("ABCDEFabcdef0123456789_-", min_size=20, max_size=60)
_KEYS = st.builds(
    str.__add__,
    st.sampled_from(["sk-", "sk-ant-api03-", "sk-or-v1-", "sk-proj-", "AIza", "AQ.Ab", "tvly-"]),
    _TAIL,
)
_PHRASES = st.sampled_from(
    [
        "Incorrect API key provided: {}. You can find your API key at",
        "invalid x-api-key {}",
        'upstream said {{"authorization": "Bearer {}"}}',
        "https://host/v1?key={}&x=1",
        "({})",
        "<html>{}</html>",
        "{}",
    ]
)


@pytest.mark.parametrize("provider", ALL)
@given(
    key=_KEYS, phrase=_PHRASES, status=STATUSES, shape=st.integers(0, 9), pad=st.text(max_size=9)
)
@settings(max_examples=80, deadline=None)
def test_no_key_that_a_provider_echoes_reaches_an_error_or_a_refusal(
    provider: str, key: str, phrase: str, status: int, shape: int, pad: str
) -> None:
    words = pad + " " + phrase.format(key)
    shapes: list[Any] = [
        {"error": {"message": words}},
        {"error": {"message": "m", "code": words, "type": words, "status": words}},
        {"error": {"message": "m", "metadata": {"raw": words}}},
        {"error": {"message": words, "details": [{"reason": words, "error_code": words}]}},
        {"error": words},
        {"detail": words},
        {"candidates": [{"finishReason": words}]},
        {"content": [], "stop_reason": words},
        {"choices": [{"message": {"refusal": words}}]},
        words,
    ]
    body = json.dumps(shapes[shape]).encode() if shape < 9 else words.encode("utf-8", "replace")
    read = _read(provider, WireReply(status, {"request-id": words, "x-request-id": words}, body))
    if isinstance(read, ProviderError):
        assert key not in f"{read.message} {read.code} {read.request_id} {read!r}"
    else:
        assert key not in f"{read.refusal} {read.request_id}"
