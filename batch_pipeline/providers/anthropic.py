"""Anthropic's Messages API (version 2026-10-21) as a pure codec.

Sources: anthropic 2.12.0 for the request, its types and docs for the rest. No I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

import orjson

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import (
    ErrorKind,
    Finish,
    LlmRequest,
    ProviderError,
    RateSignal,
    RateSignals,
    Reply,
    Usage,
    WireCall,
    WireReply,
)
from batch_pipeline.providers.schemas import anthropic_schema

API_VERSION = "2026-10-21"

DEFAULT_MAX_OUTPUT_TOKENS = 8_192
"""The output bound where a request sets none: the API demands one, and every Claude allows this."""

CACHE_FROM_CHARACTERS = 4_000
"""System prompts at least this long are marked for the prompt cache.

About 1,024 tokens, the shortest prefix that Claude caches; a shorter one is ignored by the API.
A write costs 1.25 times the input price, a read 0.1 (5 minute kind): the second row pays it back.
"""

_SPEND_LIMITS = frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached"})
# 400s about the account or about how every request of the batch is built. `max_tokens` is not here:
# the engine raises it for single requests.
_CONFIG_400 = re.compile(
    r"credit balance|usage limits|organization has been disabled|api[ _-]?key"
    r"|^(?:temperature|top_p|top_k|output_config|system|model|thinking|metadata|service_tier)\b",
    re.IGNORECASE,
)


class AnthropicCodec:
    """The Claude API."""

    provider = "anthropic"
    web_search = False

    def build(self, request: LlmRequest, *, key: str, base_url: str) -> WireCall:
        """See Codec.build."""
        wire.refuse_web_search(request, self.provider)
        body: dict[str, Any] = {
            "max_tokens": DEFAULT_MAX_OUTPUT_TOKENS
            if request.max_output_tokens is None
            else request.max_output_tokens,
            "messages": [{"role": "user", "content": request.user}],
            "model": request.model,
        }
        if request.schema is not None:
            body["output_config"] = _output_config(wire.schema_bytes(request.schema))
        if len(request.system) >= CACHE_FROM_CHARACTERS:
            body["system"] = [
                {"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}
            ]
        elif request.system:
            body["system"] = request.system
        return WireCall(
            url=f"{base_url}/v1/messages",
            headers={
                "authorization": f"Bearer {key}",
                "anthropic-version": API_VERSION,
                "content-type": "application/json",
                "accept": "application/json",
            },
            body=wire.encode(body),
        )

    def left_out(self, request: LlmRequest) -> tuple[str, ...]:
        """See Codec.left_out: this API version answers 400 to every sampling parameter."""
        return ("temperature",) if request.temperature is not None else ()

    def read(self, reply: WireReply) -> Reply:
        """See Codec.read."""
        request_id = wire.as_code(reply.headers.get("request-id"))
        data = wire.parse_object(reply, request_id)
        usage = _usage(data)
        if reply.status != 200 or data is None or "error" in data:
            _raise(reply, data or {}, usage, request_id)
        blocks = data.get("content")
        if not isinstance(blocks, list):
            raise wire.unusable_200(reply, request_id, usage)
        model = wire.as_text(data.get("model"))
        reason = wire.as_text(data.get("stop_reason"))
        if reason == "refusal":
            details = wire.as_dict(data.get("stop_details"))
            words = wire.as_text(details.get("explanation")) or wire.as_text(
                details.get("category")
            )
            refusal = wire.redact(words) or "The model declined."
            return Reply("", Finish.REFUSAL, usage, model, None, request_id, refusal)
        text = "".join(
            wire.as_text(block.get("text"))
            for block in blocks
            if isinstance(block, dict) and block.get("type") == "text"
        )
        if reason in ("max_tokens", "model_context_window_exceeded"):
            return Reply(text, Finish.LENGTH, usage, model, None, request_id)
        # tool_use and pause_turn cannot be answered: no tools were offered
        if reason not in ("end_turn", "stop_sequence", "") or not text:
            shown = wire.as_code(reason)
            raise ProviderError(
                ErrorKind.CONTENT,
                f"No usable text (stop_reason {shown or 'missing'}).",
                status=200,
                code=shown,
                usage=usage,
                request_id=request_id,
            )
        return Reply(text, Finish.STOP, usage, model, None, request_id)

    def rate_signals(self, headers: Mapping[str, str]) -> RateSignals | None:
        """See Codec.rate_signals."""
        requests, input_tokens, output_tokens = (
            _rate_signal(headers, name) for name in ("requests", "input-tokens", "output-tokens")
        )
        if requests is None and input_tokens is None and output_tokens is None:
            return None
        return RateSignals(requests, input_tokens, output_tokens)


def _rate_signal(headers: Mapping[str, str], name: str) -> RateSignal | None:
    limit = headers.get(f"anthropic-ratelimit-{name}-limit")
    if limit is None:
        return None
    remaining = headers.get(f"anthropic-ratelimit-{name}-remaining")
    reset = headers.get(f"anthropic-ratelimit-{name}-reset")
    return RateSignal(
        wire.as_number(limit), wire.as_number(remaining), wire.seconds_until(reset, headers)
    )


@lru_cache(maxsize=256)
def _output_config(schema: bytes) -> orjson.Fragment:
    form = {"type": "json_schema", "schema": anthropic_schema(orjson.loads(schema))}
    return orjson.Fragment(orjson.dumps({"format": form}))


def _usage(data: dict[str, Any] | None) -> Usage | None:
    raw = wire.as_dict((data or {}).get("usage"))
    if not raw:
        return None
    count = wire.as_count
    created = count(raw.get("cache_creation_input_tokens"))
    by_age = wire.as_dict(raw.get("cache_creation"))
    hour = min(created, count(by_age.get("ephemeral_1h_input_tokens")))
    read = count(raw.get("cache_read_input_tokens"))
    return wire.make_usage(
        # input_tokens is only what the cache neither gave nor took
        input_tokens=count(raw.get("input_tokens")) + created + read,
        cached=read,
        cache_write=created - hour,
        cache_write_1h=hour,
        output_tokens=count(raw.get("output_tokens")),
        thinking=count(wire.as_dict(raw.get("output_tokens_details")).get("thinking_tokens")),
        web_searches=count(wire.as_dict(raw.get("server_tool_use")).get("web_search_requests")),
    )


STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def _raise(
    reply: WireReply, data: dict[str, Any], usage: Usage | None, request_id: str
) -> NoReturn:
    error = wire.as_dict(data.get("error"))
    message = wire.as_text(error.get("message"))
    error_type = wire.as_code(error.get("type"))
    error_code = wire.as_code(wire.as_dict(error.get("details")).get("error_code"))
    status = STATUS_OF_TYPE.get(error_type, 500) if reply.status == 200 else reply.status
    kind: ErrorKind | None = None
    if error_code in _SPEND_LIMITS or (status == 400 and _CONFIG_400.search(message)):
        kind = ErrorKind.BATCH_FATAL
    wire.raise_error(
        reply,
        message=message or error_type,
        code=error_code or error_type,
        kind=kind,
        status=status,
        usage=usage,
        request_id=request_id or wire.as_code(data.get("request_id")),
    )
