"""Every generation reply and error in the recorded captures is read as what it means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.providers.base import (
    Citation,
    ErrorKind,
    Finish,
    ProviderError,
    Reply,
    Usage,
    WireReply,
)
from batch_pipeline.providers.registry import PROVIDERS

CAPTURES = Path(__file__).parents[3] / "shared/reference/captures"

pytestmark = pytest.mark.skipif(
    not CAPTURES.is_dir(), reason="the reference captures are not beside this checkout"
)

CLAUDE = Usage(input_tokens=1521, cache_write_tokens=1500, output_tokens=12)
GEMINI = Usage(input_tokens=120, cached_input_tokens=64, output_tokens=21, thinking_tokens=12)
GPT = Usage(input_tokens=119, cached_input_tokens=64, output_tokens=10, thinking_tokens=4)

LIMITED, TRANSIENT = ErrorKind.RATE_LIMITED, ErrorKind.TRANSIENT
ITEM, FATAL = ErrorKind.ITEM_PERMANENT, ErrorKind.BATCH_FATAL

# label -> what each of its replies means: error kind and seconds to wait, or finish and usage
Expected = tuple[ErrorKind, float | None] | tuple[Finish, Usage | None]


def _all(*labels: str, means: Expected) -> dict[str, list[Expected]]:
    return {label: [means] for label in labels}


CLAUDE_OK: Expected = (Finish.STOP, CLAUDE)
GEMINI_OK: Expected = (Finish.STOP, GEMINI)
GPT_OK: Expected = (Finish.STOP, GPT)

TABLE: dict[str, list[Expected]] = {
    **_all(
        "anthropic.authtoken",
        "anthropic.messages.auto_cache",
        "anthropic.messages.create",
        "anthropic.messages.extra_body_temperature",
        "anthropic.messages.parse",
        "anthropic.messages.raw_response",
        "anthropic.messages.tools_forced",
        means=CLAUDE_OK,
    ),
    "anthropic.default_retries": [(LIMITED, 0.3), (TRANSIENT, None), CLAUDE_OK],
    **_all(*(f"anthropic.error.{s}" for s in (400, 413, 422)), means=(ITEM, None)),
    **_all(*(f"anthropic.error.{s}" for s in (401, 402, 403, 404)), means=(FATAL, None)),
    **_all(
        *(f"anthropic.error.{s}" for s in (408, 409, 500, 502, 503, 504, 529)),
        "anthropic.error.529_plain",
        "anthropic.error.200_badjson",
        means=(TRANSIENT, None),
    ),
    "anthropic.error.429": [(LIMITED, 7.0)],
    "anthropic.error.429.ramp_limit_exceeded": [(LIMITED, 3.0)],
    "anthropic.error.429.enforced_spend_limit_reached": [(FATAL, 30.0)],
    **_all(
        "gemini.generate_content",
        "gemini.generate_content.cached",
        "gemini.generate_content.json_schema",
        "gemini.generate_content.search",
        means=GEMINI_OK,
    ),
    "gemini.auto_continuation": [(Finish.LENGTH, GEMINI), (Finish.LENGTH, GEMINI), GEMINI_OK],
    "gemini.retry_options_attempts3": [(LIMITED, 36.0), (TRANSIENT, None), GEMINI_OK],
    "gemini.blocked_prompt": [(Finish.REFUSAL, Usage(input_tokens=4))],
    **_all("gemini.error.400.INVALID_ARGUMENT", "gemini.error.413.X", means=(ITEM, None)),
    **_all(
        "gemini.error.400.FAILED_PRECONDITION",
        "gemini.error.401.UNAUTHENTICATED",
        "gemini.error.403.PERMISSION_DENIED",
        "gemini.error.404.NOT_FOUND",
        means=(FATAL, None),
    ),
    **_all(
        "gemini.error.200_badjson",
        "gemini.error.408.X",
        "gemini.error.499.CANCELLED",
        "gemini.error.500.INTERNAL",
        "gemini.error.502.X",
        "gemini.error.503.UNAVAILABLE",
        "gemini.error.503_html",
        "gemini.error.504.DEADLINE_EXCEEDED",
        means=(TRANSIENT, None),
    ),
    "gemini.error.429.RESOURCE_EXHAUSTED": [(LIMITED, 36.0)],
    **_all(
        "openai.chat.create",
        "openai.chat.parse",
        "openai.chat.raw_response",
        means=GPT_OK,
    ),
    # its one citation tells that it searched
    "openrouter.chat.web_plugin": [(Finish.STOP, replace(GPT, web_searches=1))],
    "openai.default_retries": [(LIMITED, 0.3), (TRANSIENT, None), GPT_OK],
    "openai.retry_after_gt_120_not_retried": [(LIMITED, 121.0)],
    **_all(*(f"openai.error.{s}." for s in (400, 413, 422)), means=(ITEM, None)),
    **_all(
        "openai.error.401.invalid_api_key",
        "openai.error.402.",
        "openai.error.403.",
        "openai.error.404.model_not_found",
        "openai.error.429.insufficient_quota",
        means=(FATAL, None),
    ),
    **_all(
        *(f"openai.error.{s}." for s in (408, 409, 500, 502, 503, 504)),
        "openai.error.200_with_error_body",
        means=(TRANSIENT, None),
    ),
    "openai.error.429.rate_limit_exceeded": [(LIMITED, 1.5)],
}

# the server closed the connection or never answered: there is no reply to read (test_transport.py)
_NO_REPLY = ("disconnect", "timeout")


def _generation_calls() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(CAPTURES.glob("*.json")):
        calls = json.loads(path.read_text())
        if not isinstance(calls, list) or any(word in path.stem for word in _NO_REPLY):
            continue
        if all(
            call["request"]["target"].endswith(
                (":generateContent", "/v1/messages", "/chat/completions")
            )
            and not call["request"]["body"].get("stream")
            for call in calls
        ):
            found[path.stem] = calls
    return found


def _provider(label: str) -> str:
    name = label.partition(".")[0]
    return "google" if name == "gemini" else name


def _wire(response: dict[str, Any]) -> WireReply:
    body = response["body"]
    raw = body if isinstance(body, str) else json.dumps(body)
    headers = {name.lower(): value for name, value in response["headers"]}
    return WireReply(response["status"], headers, raw.encode())


def _read(label: str, response: dict[str, Any]) -> Reply | ProviderError:
    try:
        return PROVIDERS[_provider(label)].codec.read(_wire(response))
    except ProviderError as error:
        return error


def test_the_table_names_every_generation_capture() -> None:
    assert set(TABLE) == set(_generation_calls())


@pytest.mark.parametrize("label", TABLE)
def test_a_capture_is_read_as_what_it_means(label: str) -> None:
    calls = _generation_calls()[label]
    assert len(calls) == len(TABLE[label])
    for call, (meaning, detail) in zip(calls, TABLE[label], strict=True):
        read = _read(label, call["response"])
        if isinstance(read, ProviderError):
            assert (read.kind, read.retry_after_s) == (meaning, detail)
            assert read.message
            assert read.maybe_billed is label.endswith("200_badjson")
        else:
            assert (read.finish, read.usage) == (meaning, detail)
            assert bool(read.text) is (meaning is not Finish.REFUSAL)


def test_a_good_reply_carries_model_request_id_and_stated_price() -> None:
    calls = _generation_calls()
    claude = _read("anthropic", calls["anthropic.messages.create"][0]["response"])
    assert isinstance(claude, Reply)
    assert (claude.model, claude.request_id) == ("claude-haiku-5-5", "req_011CSHoEeqs5C35K2UUqR7Fy")
    routed = _read("openrouter", calls["openrouter.chat.web_plugin"][0]["response"])
    assert isinstance(routed, Reply)
    assert routed.provider_cost_usd == 0.00014
    assert routed.citations == (Citation("https://example.com", "Example", "text"),)


def _usage_of(extracted: Any) -> tuple[int, ...]:
    return (
        extracted.input_tokens or 0,
        extracted.cache_read_tokens or 0,
        extracted.cache_write_tokens or 0,
        extracted.output_tokens or 0,
    )


@pytest.mark.parametrize(
    ("label", "flavor"),
    [
        ("anthropic.messages.create", "default"),
        ("gemini.generate_content", "default"),
        ("openai.chat.create", "chat"),
        ("openrouter.chat.web_plugin", "chat"),
    ],
)
def test_usage_equals_what_genai_prices_extracts(label: str, flavor: str) -> None:
    from genai_prices import extract_usage

    response = _generation_calls()[label][0]["response"]
    read = _read(label, response)
    assert isinstance(read, Reply) and read.usage is not None
    theirs = extract_usage(response["body"], provider_id=_provider(label), api_flavor=flavor).usage
    ours = read.usage
    assert _usage_of(theirs) == (
        ours.input_tokens,
        ours.cached_input_tokens,
        ours.cache_write_tokens + ours.cache_write_1h_tokens,
        ours.output_tokens,
    )


REAL: dict[str, tuple[str, ErrorKind, str, float | None]] = {
    "gemini_429_tpm": ("google", LIMITED, "RESOURCE_EXHAUSTED", 14.0),
    "gemini_bad_key": ("google", FATAL, "API_KEY_INVALID", None),
    "gemini_context_overflow": ("google", ITEM, "INVALID_ARGUMENT", None),
    "gemini_unknown_model": ("google", FATAL, "NOT_FOUND", None),
    "openrouter_402_transient": ("openrouter", LIMITED, "402", None),
}


@pytest.mark.parametrize("name", REAL)
def test_a_recorded_real_error_is_classified(name: str) -> None:
    recorded = json.loads((CAPTURES / "real_errors.json").read_text())[name]
    provider, kind, code, delay = REAL[name]
    reply = WireReply(recorded["status"], {}, json.dumps(recorded["body"]).encode())
    with pytest.raises(ProviderError) as caught:
        PROVIDERS[provider].codec.read(reply)
    assert (caught.value.kind, caught.value.code) == (kind, code)
    assert caught.value.retry_after_s == delay
    assert caught.value.status == recorded["status"]


def test_a_real_reply_whose_bound_was_spent_thinking_is_cut_and_metered() -> None:
    recorded = json.loads((CAPTURES / "real_errors.json").read_text())
    body = json.dumps(recorded["gemini_max_tokens_in_thinking"]["body"]).encode()
    read = PROVIDERS["google"].codec.read(WireReply(200, {}, body))
    assert (read.text, read.finish) == ("", Finish.LENGTH)
    assert read.usage == Usage(input_tokens=20, output_tokens=3, thinking_tokens=3)
