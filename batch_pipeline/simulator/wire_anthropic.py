"""Anthropic's messages, count_tokens and models, as anthropic 2.x sends them (2026-10-21)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from typing_extensions import override

from batch_pipeline.simulator.answers import REFUSAL
from batch_pipeline.simulator.buckets import Excess, Gauge
from batch_pipeline.simulator.catalog import catalog
from batch_pipeline.simulator.config import KeyMark
from batch_pipeline.simulator.prompt_cache import TTL_LONG_S, TTL_S, CachePoint
from batch_pipeline.simulator.wire import (
    Call,
    Finish,
    Json,
    Reply,
    Usage,
    Wire,
    text_of,
    whole_number,
)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGES = {
    400: "Invalid request.",
    401: "invalid x-api-key",
    402: "Your credit balance is too low to access the Anthropic API. Please go to Plans & "
    "Billing to upgrade or purchase credits.",
    403: "Your API key does not have permission to use the specified resource.",
    404: "Not found",
    408: "Request timed out",
    409: "The request conflicts with the current state of the resource.",
    413: "Request exceeds the maximum size",
    429: "This request would exceed your organization's rate limit. Please try again later.",
    504: "The request timed out",
    529: "Overloaded",
}
_REMOVED = ("temperature", "top_p", "top_k")
_SAMPLING_REMOVED_IN = "2026-10-21"
_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "refusal": "refusal",
    "safety": "refusal",
    "empty": "end_turn",
}
_ORGANIZATION = "00000000-0000-4000-8000-000000000000"
_LIMIT_NAMES = {
    "requests": "requests per minute",
    "input_tokens": "input tokens per minute",
    "output_tokens": "output tokens per minute",
    "concurrent": "concurrent connections",
    "requests_per_day": "requests per day",
}


class AnthropicWire(Wire):
    """The Claude API."""

    provider = "anthropic"
    cached_input_is_free_of_limits = True

    @override
    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        bearer = headers.get("authorization", "")
        if bearer.lower().startswith("bearer "):
            return bearer[7:].strip()
        return headers.get("x-api-key")

    @override
    def read(self, endpoint: str, body: Json, key: str, path: Mapping[str, str]) -> Call:
        model = self.check_model(body.get("model"))
        self.check_not_streamed(body, model)
        version = path["version"]
        if not version:
            raise self.bad_request("anthropic-version: header is required", model)
        if version >= _SAMPLING_REMOVED_IN:
            for name in _REMOVED:
                if name in body:
                    raise self.bad_request(f"{name}: Extra inputs are not permitted", model)
        if endpoint == "messages" and whole_number(body.get("max_tokens")) is None:
            raise self.bad_request("max_tokens: Field required", model)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise self.bad_request("messages: at least one message is required", model)
        output_format = (body.get("output_config") or {}).get("format") or {}
        return Call(
            provider=self.provider,
            endpoint=endpoint,
            model=model,
            key=key,
            system=text_of(body.get("system")),
            messages=tuple((m.get("role", "user"), text_of(m.get("content"))) for m in messages),
            schema=output_format.get("schema"),
            max_tokens=whole_number(body.get("max_tokens")),
            cache_points=tuple(_cache_points(body, messages)),
        )

    @override
    def success(
        self, call: Call, text: str, finish: Finish, usage: Usage, request_id: str
    ) -> Reply:
        refused = finish in ("refusal", "safety")
        details = {"type": "refusal", "category": "general_harms", "explanation": REFUSAL}
        written = usage.cache_write + usage.cache_write_long
        body: Json = {
            "id": f"msg_{request_id.removeprefix('req_')}",
            "type": "message",
            "role": "assistant",
            "model": call.model,
            "content": [{"type": "text", "text": text}] if text and not refused else [],
            "stop_reason": _STOP[finish],
            "stop_sequence": None,
            "stop_details": details if refused else None,
            "usage": {
                "input_tokens": usage.input_tokens - usage.cached - written,
                "cache_creation_input_tokens": written,
                "cache_read_input_tokens": usage.cached,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": usage.cache_write,
                    "ephemeral_1h_input_tokens": usage.cache_write_long,
                },
                "output_tokens": usage.output_tokens,
                "service_tier": "standard",
                "inference_geo": "not_available",
            },
        }
        return Reply(200, body, _headers(request_id))

    @override
    def error(
        self,
        status: int,
        *,
        code: str | None = None,
        message: str | None = None,
        retry_after_s: float | None = None,
        model: str = "",
        request_id: str = "",
    ) -> Reply:
        error: Json = {
            "type": _TYPES.get(status, "api_error"),
            "message": message or _MESSAGES.get(status, "Internal server error"),
        }
        if code:
            error["details"] = {"error_code": code}
        headers = _headers(request_id)
        if retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(retry_after_s))
        body = {"type": "error", "error": error, "request_id": request_id or None}
        return Reply(status, body, headers)

    @override
    def limited(self, excess: Excess, model: str, request_id: str) -> Reply:
        return self.error(
            429,
            message="This request would exceed your organization's rate limit of "
            f"{excess.limit:,} {_LIMIT_NAMES[excess.name]} (model: {model}). For details, refer "
            "to: https://docs.claude.com/en/api/rate-limits.",
            retry_after_s=excess.wait_s,
            request_id=request_id,
        )

    @override
    def missing_key(self) -> Reply:
        return self.error(401, message="x-api-key header is required")

    @override
    def bad_key(self, key: str) -> Reply:
        return self.error(401)

    @override
    def unknown_model(self, model: str, version: str) -> Reply:
        return self.error(404, message=f"model: {model}")

    @override
    def too_long(self, call: Call, limit: int) -> Reply:
        message = f"prompt is too long: {call.input_tokens} tokens > {limit} maximum"
        return self.error(400, message=message)

    @override
    def marked(self, mark: KeyMark, model: str, request_id: str) -> Reply:
        if mark == "no_credit":
            return self.error(402, request_id=request_id)
        codes = {
            "spend_limit": "enforced_spend_limit_reached",
            # Claude has no quota per day: the nearest that no waiting ends is the contract's limit.
            "daily_quota": "contract_spend_limit_reached",
        }
        return self.error(
            429,
            code=codes[mark],
            message="You have reached your specified API usage limits.",
            request_id=request_id,
        )

    @override
    def token_count(self, call: Call) -> Json:
        return {"input_tokens": call.input_tokens}

    @override
    def model_list(self, ids: Sequence[str]) -> Json:
        return {
            "data": [self.model(one) for one in ids],
            "has_more": False,
            "first_id": ids[0],
            "last_id": ids[-1],
        }

    @override
    def model(self, model_id: str) -> Json:
        return {
            "type": "model",
            "id": model_id,
            "display_name": model_id.replace("-", " ").title(),
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": catalog(self.provider).context_tokens,
            "max_tokens": 64_000,
        }

    @override
    def gauge_headers(self, gauges: Mapping[str, Gauge], now: float) -> dict[str, str]:
        both = [gauges["input_tokens"], gauges["output_tokens"]]
        total = Gauge(
            sum(g.limit for g in both),
            sum(g.remaining for g in both),
            max(g.reset_s for g in both),
        )
        named = {
            "requests": gauges["requests"],
            "input-tokens": gauges["input_tokens"],
            "output-tokens": gauges["output_tokens"],
            "tokens": total,
        }
        headers = {}
        for name, gauge in named.items():
            # Remaining tokens are rounded to thousands, as documented.
            remaining = gauge.remaining if name == "requests" else round(gauge.remaining, -3)
            reset = datetime.fromtimestamp(now + gauge.reset_s, UTC)
            headers[f"anthropic-ratelimit-{name}-limit"] = str(gauge.limit)
            headers[f"anthropic-ratelimit-{name}-remaining"] = str(remaining)
            headers[f"anthropic-ratelimit-{name}-reset"] = f"{reset:%Y-%m-%dT%H:%M:%SZ}"
        return headers

    @override
    def reports_cache_writes(self, model: str) -> bool:
        return True


def _headers(request_id: str) -> dict[str, str]:
    return {"request-id": request_id, "anthropic-organization-id": _ORGANIZATION}


def _ttl(control: Json) -> float:
    return TTL_LONG_S if control.get("ttl") == "1h" else TTL_S


def _blocks(content: Any) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [b for b in content or [] if isinstance(b, dict)] if isinstance(content, list) else []


def _cache_points(body: Json, messages: list[Json]) -> list[CachePoint]:
    """Return the prefixes that `cache_control` marks.

    A mark on the whole request stands for its last block; what the next request shares with it is
    the system prompt, so that is a point of its own.
    """
    points: list[CachePoint] = []
    prefix = ""
    for content in [body.get("system"), *(m.get("content") for m in messages)]:
        for block in _blocks(content):
            prefix += f"{block.get('text', '')}\n"
            control = block.get("cache_control")
            if isinstance(control, dict):
                points.append(CachePoint(prefix, _ttl(control)))
    control = body.get("cache_control")
    if isinstance(control, dict):
        system = text_of(body.get("system")) + "\n"
        points.extend([CachePoint(system, _ttl(control)), CachePoint(prefix, _ttl(control))])
    return points
