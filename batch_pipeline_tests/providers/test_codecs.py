"""Replies that no capture shows: refusals, cuts, odd bodies, terminal limits, waits."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from batch_pipeline.providers.base import (
    ErrorKind,
    Finish,
    LlmRequest,
    ProviderError,
    Reply,
    Usage,
    WireReply,
)
from batch_pipeline.providers.registry import PROVIDERS

ALL = tuple(PROVIDERS)


def _wire(body: Any, status: int = 200, **headers: str) -> WireReply:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return WireReply(status, {k.replace("_", "-"): v for k, v in headers.items()}, raw)


def _reply(provider: str, body: Any) -> Reply:
    return PROVIDERS[provider].codec.read(_wire(body))


def _error(provider: str, body: Any, status: int = 200, **headers: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        PROVIDERS[provider].codec.read(_wire(body, status, **headers))
    return caught.value


def _gemini(reason: str, text: str = "part", **more: Any) -> dict[str, Any]:
    content = {"parts": [{"text": "thinking", "thought": True}, {"text": text}] if text else []}
    return {
        "candidates": [{"content": content, "finishReason": reason, **more}],
        "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 2},
    }


def _claude(reason: str, text: str = "part", **more: Any) -> dict[str, Any]:
    blocks = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]
    usage = {"input_tokens": 7, "output_tokens": 2}
    return {"content": blocks, "stop_reason": reason, "usage": usage, **more}


def _gpt(reason: str | None, content: Any = "part", **message: Any) -> dict[str, Any]:
    return {
        "choices": [{"message": {"content": content, **message}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }


USED = Usage(input_tokens=7, output_tokens=2)


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        *(
            ("google", _gemini(reason))
            for reason in ("SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII")
        ),
        ("anthropic", _claude("refusal", stop_details={"type": "refusal", "category": "bio"})),
        ("openai", _gpt("stop", None, refusal="I cannot help with that.")),
        ("openai", _gpt("content_filter", "par")),
        ("openrouter", _gpt("content_filter", None)),
    ],
)
def test_a_refusal_is_a_reply_with_its_usage_and_no_text(
    provider: str, body: dict[str, Any]
) -> None:
    read = _reply(provider, body)
    assert (read.finish, read.text, read.usage) == (Finish.REFUSAL, "", USED)
    assert read.refusal


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("google", _gemini("MAX_TOKENS")),
        ("anthropic", _claude("max_tokens")),
        ("anthropic", _claude("model_context_window_exceeded")),
        *((name, _gpt("length")) for name in ("openai", "openrouter", "openai-compatible")),
    ],
)
def test_a_cut_answer_keeps_its_text_so_far_and_its_usage(
    provider: str, body: dict[str, Any]
) -> None:
    read = _reply(provider, body)
    assert (read.finish, read.text, read.usage) == (Finish.LENGTH, "part", USED)


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("google", _gemini("STOP", "")),
        ("google", _gemini("MALFORMED_RESPONSE")),
        ("google", {"candidates": [], "usageMetadata": {"promptTokenCount": 7,
                                                        "candidatesTokenCount": 2}}),
        ("anthropic", _claude("end_turn", "")),
        ("anthropic", _claude("tool_use")),
        ("openai", _gpt("stop", "")),
        ("openai", _gpt("tool_calls", None)),
    ],
)  # fmt: skip
def test_a_reply_without_usable_text_is_content_and_still_metered(
    provider: str, body: dict[str, Any]
) -> None:
    error = _error(provider, body)
    assert (error.kind, error.usage, error.maybe_billed) == (ErrorKind.CONTENT, USED, False)


@pytest.mark.parametrize("provider", ALL)
@pytest.mark.parametrize(
    "body", [b"", b'{"id": "x", "cont', b"<html>proxy login</html>", b"[]", b"{}", b'"text"']
)
def test_a_200_that_is_not_the_providers_reply_is_transient_and_maybe_billed(
    provider: str, body: bytes
) -> None:
    error = _error(provider, body)
    assert (error.kind, error.status, error.maybe_billed) == (ErrorKind.TRANSIENT, 200, True)


@pytest.mark.parametrize("provider", ALL)
@pytest.mark.parametrize(
    ("status", "kind", "billed"),
    [
        (204, ErrorKind.TRANSIENT, False),
        (307, ErrorKind.BATCH_FATAL, False),
        (401, ErrorKind.BATCH_FATAL, False),
        (404, ErrorKind.BATCH_FATAL, False),
        (413, ErrorKind.ITEM_PERMANENT, False),
        (429, ErrorKind.RATE_LIMITED, False),
        (500, ErrorKind.TRANSIENT, False),
        (503, ErrorKind.TRANSIENT, False),
        (504, ErrorKind.TRANSIENT, True),
        (524, ErrorKind.TRANSIENT, True),
        (529, ErrorKind.TRANSIENT, False),
    ],
)
def test_a_gateways_html_is_classified_by_its_status(
    provider: str, status: int, kind: ErrorKind, billed: bool
) -> None:
    error = _error(provider, b"<html><h1>Gateway</h1></html>", status, content_type="text/html")
    assert (error.kind, error.status, error.maybe_billed) == (kind, status, billed)


def _api_error(**error: Any) -> dict[str, Any]:
    return {"error": error}


@pytest.mark.parametrize(
    ("provider", "status", "body", "kind"),
    [
        # the account, not the row
        ("anthropic", 400, _api_error(type="invalid_request_error",
         message="Your credit balance is too low to access the Claude API."), "batch_fatal"),
        ("anthropic", 429, _api_error(type="rate_limit_error", message="m",
         details={"error_code": "contract_spend_limit_reached"}), "batch_fatal"),
        ("google", 429, _api_error(code=429, message="m", details=[
            {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
                             "quotaValue": "250"}]}]), "batch_fatal"),
        ("google", 429, _api_error(code=429, message="m", details=[
            {"violations": [{"quotaId": "GenerateRequestsPerMinute", "quotaValue": "0"}]}]),
         "batch_fatal"),
        ("google", 429, _api_error(code=429, message="Your prepayment credits are depleted."),
         "batch_fatal"),
        ("openai", 429, _api_error(message="m", type="insufficient_quota"), "batch_fatal"),
        ("openrouter", 402, _api_error(message="m", code=402,
         metadata={"limit_source": "openrouter_credits"}), "batch_fatal"),
        ("openrouter", 429, _api_error(message="Rate limit exceeded: free-models-per-day",
         code=429), "batch_fatal"),
        # how every request of the batch is built
        ("anthropic", 400, _api_error(type="invalid_request_error",
         message="output_config.format.schema: too many properties"), "batch_fatal"),
        ("openai", 400, _api_error(message="m", code="unsupported_parameter",
         param="max_tokens"), "batch_fatal"),
        ("openai", 400, _api_error(message="Invalid schema", param="response_format"),
         "batch_fatal"),
        ("google", 400, _api_error(code=400, status="INVALID_ARGUMENT",
         message='Invalid JSON payload received. Unknown name "x"'), "batch_fatal"),
        # this row
        ("anthropic", 400, _api_error(type="invalid_request_error",
         message="prompt is too long: 250000 tokens > 200000 maximum"), "item_permanent"),
        ("anthropic", 400, _api_error(type="invalid_request_error",
         message="max_tokens: 99999 > 64000"), "item_permanent"),
        ("openai", 400, _api_error(message="m", code="context_length_exceeded",
         param="messages"), "item_permanent"),
        # a filter, not a mistake
        ("openai", 400, _api_error(message="m", code="invalid_prompt"), "refused"),
        ("openai-compatible", 400, _api_error(message="m", code="content_filter"), "refused"),
        ("openrouter", 403, _api_error(message="m", code=403,
         metadata={"reasons": ["violence"], "flagged_input": "x"}), "refused"),
        # errors inside a 200
        ("openrouter", 200, _api_error(message="m", code=429), "rate_limited"),
        ("openrouter", 200, _api_error(message="m", code=402), "batch_fatal"),
        ("openai", 200, _api_error(message="m", code="rate_limit_exceeded"), "rate_limited"),
        ("anthropic", 200, _api_error(type="overloaded_error", message="m"), "transient"),
        ("google", 200, [_api_error(code=404, message="m", status="NOT_FOUND")], "batch_fatal"),
        ("openrouter", 200, {"choices": [{"message": {"content": "pa"}, "finish_reason": "error",
         "error": {"code": 502, "message": "upstream"}}]}, "transient"),
        # dialects of imitators
        ("openai-compatible", 404, {"error": "model 'x' not found, try pulling it first"},
         "batch_fatal"),
        ("openai-compatible", 400, {"object": "error", "message": "too long", "code": 400},
         "item_permanent"),
    ],
)  # fmt: skip
def test_an_error_means_what_its_body_says(
    provider: str, status: int, body: Any, kind: str
) -> None:
    error = _error(provider, body, status)
    assert error.kind == kind
    assert error.status == status or status == 200
    assert not error.maybe_billed


def test_usage_inside_an_error_is_kept() -> None:
    body = {**_api_error(message="m", code=502), "usage": {"prompt_tokens": 7}}
    assert _error("openrouter", body).usage == Usage(input_tokens=7)


@pytest.mark.parametrize("provider", ALL)
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0.25"}, 0.25),
        ({"retry_after": "-3"}, 0.0),
        ({"retry_after": "2", "retry_after_ms": "1500"}, 1.5),
        ({"retry_after": "Sat, 21 Nov 2026 22:10:30 GMT",
          "date": "Sat, 21 Nov 2026 22:10:00 GMT"}, 30.0),
        ({"retry_after": "Sat, 21 Nov 2026 22:09:30 GMT",
          "date": "Sat, 21 Nov 2026 22:10:00 GMT"}, 0.0),
        ({"retry_after": "Sat, 21 Nov 2026 22:10:30 GMT"}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "inf"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_wait_is_read_from_the_headers(
    provider: str, headers: dict[str, str], seconds: float | None
) -> None:
    assert _error(provider, _api_error(message="m"), 429, **headers).retry_after_s == seconds


@pytest.mark.parametrize(
    ("provider", "message", "seconds"),
    [
        ("google", "Please retry in 51.386192716s.", 51.386192716),
        ("openai", "Rate limit reached. Please try again in 7m12s. Visit", 432.0),
        ("openai", "Please try again in 20ms.", 0.02),
        ("openai", "Please try again in a while.", None),
    ],
)
def test_the_wait_is_read_from_the_words_where_nothing_better_is_there(
    provider: str, message: str, seconds: float | None
) -> None:
    assert _error(provider, _api_error(message=message), 429).retry_after_s == seconds


def test_claude_usage_adds_up_its_three_kinds_of_input() -> None:
    body = _claude("end_turn")
    body["usage"] = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 2000,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
        "output_tokens": 50,
        "output_tokens_details": {"thinking_tokens": 30},
        "server_tool_use": {"web_search_requests": 3},
    }
    assert _reply("anthropic", body).usage == Usage(
        input_tokens=2310,
        cached_input_tokens=2000,
        cache_write_tokens=100,
        cache_write_1h_tokens=200,
        output_tokens=50,
        thinking_tokens=30,
        web_searches=3,
    )


def test_openai_usage_names_cached_written_and_reasoning_tokens() -> None:
    body = _gpt("stop")
    body["usage"] = {
        "prompt_tokens": 1000,
        "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 300},
        "completion_tokens": 80,
        "completion_tokens_details": {"reasoning_tokens": 50},
    }
    assert _reply("openai", body).usage == Usage(
        input_tokens=1000,
        cached_input_tokens=600,
        cache_write_tokens=300,
        output_tokens=80,
        thinking_tokens=50,
    )


def test_with_the_users_own_upstream_key_openrouter_costs_fee_plus_upstream() -> None:
    body = _gpt("stop")
    body["usage"] |= {
        "cost": 0.01,
        "is_byok": True,
        "cost_details": {"upstream_inference_cost": 0.2},
    }
    assert _reply("openrouter", body).provider_cost_usd == pytest.approx(0.21)


def test_the_upstreams_words_reach_the_user_through_openrouter() -> None:
    body = _api_error(message="Provider returned error", code=400,
                      metadata={"raw": "context too long", "provider_name": "X"})  # fmt: skip
    assert _error("openrouter", body, 400).message == "Provider returned error: context too long"


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "reasoning", "text": "no"},
             {"type": "text", "text": "b"}]  # fmt: skip
    assert _reply("openai-compatible", _gpt("stop", parts)).text == "ab"


@pytest.mark.parametrize("provider", ALL)
def test_text_that_is_no_unicode_fails_its_row_before_anything_is_sent(provider: str) -> None:
    with pytest.raises(ProviderError) as caught:
        PROVIDERS[provider].codec.build(
            LlmRequest("m", "", "broken \ud800"), key="k", base_url="http://h"
        )
    assert caught.value.kind is ErrorKind.ITEM_PERMANENT


def test_a_model_name_cannot_leave_its_place_in_the_url() -> None:
    call = PROVIDERS["google"].codec.build(
        LlmRequest("m?key=x#y z", "", "u"), key="k", base_url="http://h"
    )
    assert call.url == "http://h/v1/models/m%3Fkey%3Dx%23y%20z:generateContent"
