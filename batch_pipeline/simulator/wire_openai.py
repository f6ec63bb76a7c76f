"""OpenAI's chat completions, responses, token counts and models; and OpenRouter, its sibling."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from typing_extensions import override

from batch_pipeline.simulator.answers import REFUSAL
from batch_pipeline.simulator.buckets import Excess, Gauge
from batch_pipeline.simulator.config import KeyMark
from batch_pipeline.simulator.items import find_items
from batch_pipeline.simulator.prices import price_usd
from batch_pipeline.simulator.prompt_cache import CachePoint
from batch_pipeline.simulator.web_pages import pages
from batch_pipeline.simulator.wire import (
    ANY_JSON_SCHEMA,
    Call,
    Finish,
    Json,
    Reply,
    Usage,
    WebSearched,
    Wire,
    text_of,
    whole_number,
)

_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    402: "insufficient_credits",
    403: "permission_error",
    404: "invalid_request_error",
    408: "timeout",
    409: "conflict_error",
    413: "invalid_request_error",
}
_MESSAGES = {
    400: "Invalid request.",
    401: "Incorrect API key provided. You can find your API key at "
    "https://platform.openai.com/account/api-keys.",
    402: "Insufficient credits.",
    403: "Country, region, or territory not supported.",
    404: "The requested resource was not found.",
    408: "Request timed out.",
    409: "Conflict.",
    413: "Request too large.",
    429: "Rate limit reached.",
    502: "Bad gateway.",
    503: "The engine is currently overloaded, please try again later.",
    504: "Gateway timeout.",
}
_SERVER_ERROR = "The server had an error while processing your request. Sorry about that!"
_NO_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, read the docs: "
    "https://platform.openai.com/docs/guides/error-codes/api-errors."
)
_UNITS = {
    "requests": ("requests", "requests per min (RPM)"),
    "input_tokens": ("tokens", "tokens per min (TPM)"),
    "output_tokens": ("tokens", "output tokens per min (TPM)"),
    "concurrent": ("requests", "concurrent requests"),
    "requests_per_day": ("requests", "requests per day (RPD)"),
}
_SEARCH_TOOL = "openrouter:web_search"
_ENGINES = ("auto", "native", "exa", "firecrawl", "parallel", "perplexity")
_SEARCHING_MAKERS = ("anthropic", "openai", "perplexity", "x-ai")
_USD_PER_RESULT = 0.004
_NATIVE_USD = 0.01
_USUAL_RESULTS = 5
_PLUGIN_CHARACTERS = 1_500
_QUERY_CHARS = 120
_FINISH = {
    "stop": "stop",
    "length": "length",
    "refusal": "stop",
    "safety": "content_filter",
    "empty": "stop",
}


class OpenAIWire(Wire):
    """The OpenAI API."""

    provider = "openai"
    cache_granularity = 128

    @override
    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        bearer = headers.get("authorization", "")
        return bearer[7:].strip() if bearer.lower().startswith("bearer ") else None

    @override
    def read(self, endpoint: str, body: Json, key: str, path: Mapping[str, str]) -> Call:
        model = self.check_model(body.get("model"))
        self.check_not_streamed(body, model)
        if endpoint == "chat.completions":
            messages = body.get("messages")
            output_format = body.get("response_format") or {}
            schema = (output_format.get("json_schema") or {}).get("schema")
            bound = body.get("max_completion_tokens", body.get("max_tokens"))
        else:
            messages = body.get("input")
            if isinstance(messages, str):
                messages = [{"role": "user", "content": messages}]
            output_format = (body.get("text") or {}).get("format") or {}
            schema = output_format.get("schema")
            bound = body.get("max_output_tokens")
        if not isinstance(messages, list) or not messages:
            name = "messages" if endpoint == "chat.completions" else "input"
            raise self.bad_request(f"Missing required parameter: '{name}'.", model)
        if output_format.get("type") == "json_object":
            schema = ANY_JSON_SCHEMA
        said = [(m.get("role") or "user", text_of(m.get("content"))) for m in messages]
        instructions = [body["instructions"]] if body.get("instructions") else []
        system = "\n".join(
            [*instructions, *(text for role, text in said if role in ("system", "developer"))]
        )
        return Call(
            provider=self.provider,
            endpoint=endpoint,
            model=model,
            key=key,
            system=system,
            messages=tuple(
                (role, text) for role, text in said if role not in ("system", "developer")
            ),
            schema=schema,
            max_tokens=whole_number(bound),
            cache_points=(CachePoint(system),),
        )

    @override
    def success(
        self, call: Call, text: str, finish: Finish, usage: Usage, request_id: str
    ) -> Reply:
        write = _chat if call.endpoint == "chat.completions" else _response
        return Reply(200, write(call, text, finish, usage, request_id), _headers(request_id))

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
        kind = _TYPES.get(status, "server_error")
        if status == 429:
            code = code or "rate_limit_exceeded"
            kind = "tokens" if code == "rate_limit_exceeded" else code
        if status == 401:
            code = code or "invalid_api_key"
        if code == "insufficient_quota":
            message = message or _NO_QUOTA
        error = {
            "message": message or _MESSAGES.get(status, _SERVER_ERROR),
            "type": kind,
            "param": None,
            "code": code,
        }
        return Reply(status, {"error": error}, _retry_headers(request_id, retry_after_s))

    @override
    def limited(self, excess: Excess, model: str, request_id: str) -> Reply:
        kind, unit = _UNITS[excess.name]
        error = {
            "message": f"Rate limit reached for {model} in organization org-simulator on {unit}: "
            f"Limit {excess.limit}. Please try again in {_go_duration(excess.wait_s)}. Visit "
            "https://platform.openai.com/account/rate-limits to learn more.",
            "type": kind,
            "param": None,
            "code": "rate_limit_exceeded",
        }
        return Reply(429, {"error": error}, _retry_headers(request_id, excess.wait_s))

    @override
    def missing_key(self) -> Reply:
        error = {
            "message": "You didn't provide an API key. You need to provide your API key in an "
            "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        return Reply(401, {"error": error}, _headers(""))

    @override
    def bad_key(self, key: str) -> Reply:
        shown = f"{key[:3]}***{key[-4:]}" if len(key) > 8 else "***"
        return self.error(
            401,
            message=f"Incorrect API key provided: {shown}. You can find your API key at "
            "https://platform.openai.com/account/api-keys.",
        )

    @override
    def unknown_model(self, model: str, version: str) -> Reply:
        return self.error(
            404,
            code="model_not_found",
            message=f"The model `{model}` does not exist or you do not have access to it.",
        )

    @override
    def too_long(self, call: Call, limit: int) -> Reply:
        return self.error(
            400,
            code="context_length_exceeded",
            message=f"Your input exceeds the context window of this model ({limit} tokens). "
            "Please adjust your input and try again.",
        )

    @override
    def marked(self, mark: KeyMark, model: str, request_id: str) -> Reply:
        if mark == "daily_quota":
            excess_message = (
                f"Rate limit reached for {model} in organization org-simulator on requests per day "
                "(RPD): Limit 10000, Used 10000, Requested 1. Please try again in 6h0m0s."
            )
            error = {
                "message": excess_message,
                "type": "requests",
                "param": None,
                "code": "rate_limit_exceeded",
            }
            return Reply(429, {"error": error}, _retry_headers(request_id, 21_600))
        return self.error(429, code="insufficient_quota", request_id=request_id)

    @override
    def token_count(self, call: Call) -> Json:
        return {"object": "response.input_tokens", "input_tokens": call.input_tokens}

    @override
    def model_list(self, ids: Sequence[str]) -> Json:
        return {"object": "list", "data": [self.model(one) for one in ids]}

    @override
    def model(self, model_id: str) -> Json:
        return {"id": model_id, "object": "model", "created": 1_767_225_600, "owned_by": "openai"}

    @override
    def gauge_headers(self, gauges: Mapping[str, Gauge], now: float) -> dict[str, str]:
        headers = {}
        for name, gauge in (
            ("requests", gauges["requests"]),
            ("tokens", gauges["input_tokens"]),
        ):
            headers[f"x-ratelimit-limit-{name}"] = str(gauge.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(gauge.remaining)
            headers[f"x-ratelimit-reset-{name}"] = _go_duration(gauge.reset_s)
        return headers


class OpenRouterWire(OpenAIWire):
    """OpenRouter's chat completions, models and key check."""

    provider = "openrouter"

    @override
    def read(self, endpoint: str, body: Json, key: str, path: Mapping[str, str]) -> Call:
        call = super().read(endpoint, body, key, path)
        return replace(call, web=_web(self, body, call))

    @override
    def success(
        self, call: Call, text: str, finish: Finish, usage: Usage, request_id: str
    ) -> Reply:
        body = _chat(call, text, finish, usage, request_id)
        body["id"] = f"gen-{int(time.time())}-{request_id.removeprefix('req_')[:20]}"
        body["provider"] = call.model.partition("/")[0].title()
        body["choices"][0]["native_finish_reason"] = body["choices"][0]["finish_reason"]
        cost = price_usd(self.provider, call.model, usage, time.time())
        if call.web is not None:
            cost = None if cost is None else cost + call.web.usd
            body["choices"][0]["message"]["annotations"] = _annotations(call.web, text)
            if call.web.counted:
                body["usage"]["server_tool_use_details"] = {
                    "tool_calls_requested": call.web.counted,
                    "tool_calls_executed": call.web.counted,
                    "web_search_requests": call.web.counted,
                }
        body["usage"] |= {
            "cost": cost,
            "is_byok": False,
            "cost_details": {"upstream_inference_cost": None},
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
            "message": message or _MESSAGES.get(status, "Internal Server Error"),
            "code": status,
        }
        if code == "openrouter_in_flight_budget":
            error["message"] = (
                "This request would exceed your available credits given your current in-flight "
                "requests. Retry after in-flight requests settle, or add credits."
            )
            error["metadata"] = {"reason": "in_flight_budget_exhausted", "limit_source": code}
            retry_after_s = 1.0 if retry_after_s is None else retry_after_s
        elif status == 402:
            error["metadata"] = {"limit_source": code or "openrouter_credits"}
        elif code:
            error["metadata"] = {"reason": code}
        headers = {}
        if retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(retry_after_s))
        return Reply(status, {"error": error}, headers)

    @override
    def limited(self, excess: Excess, model: str, request_id: str) -> Reply:
        _, unit = _UNITS[excess.name]
        if excess.name == "requests_per_day":
            unit = "free-models-per-day-high-balance"
        reset_ms = int((time.time() + excess.wait_s) * 1_000)
        headers = {
            "X-RateLimit-Limit": str(excess.limit),
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": str(reset_ms),
        }
        error = {
            "message": f"Rate limit exceeded: {unit}.",
            "code": 429,
            "metadata": {"headers": headers},
        }
        return Reply(429, {"error": error}, headers)

    @override
    def missing_key(self) -> Reply:
        return self.error(401, message="No cookie auth credentials found")

    @override
    def bad_key(self, key: str) -> Reply:
        return self.error(401, message="User not found.")

    @override
    def unknown_model(self, model: str, version: str) -> Reply:
        return self.error(404, message=f"No endpoints found for {model}.")

    @override
    def too_long(self, call: Call, limit: int) -> Reply:
        return self.error(
            400,
            message=f"This endpoint's maximum context length is {limit} tokens. However, you "
            f"requested about {call.input_tokens} tokens. Please reduce the length.",
        )

    @override
    def marked(self, mark: KeyMark, model: str, request_id: str) -> Reply:
        if mark == "daily_quota":
            headers = {
                "X-RateLimit-Limit": "1000",
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": str((int(time.time()) // 86_400 + 1) * 86_400_000),
            }
            error = {
                "message": "Rate limit exceeded: free-models-per-day-high-balance.",
                "code": 429,
                "metadata": {"headers": headers},
            }
            return Reply(429, {"error": error}, headers)
        if mark == "spend_limit":
            message = "Key limit exceeded (monthly limit)."
            return self.error(402, code="openrouter_key_limit", message=message)
        return self.error(402, code="openrouter_credits")

    @override
    def model_list(self, ids: Sequence[str]) -> Json:
        return {"data": [self.model(one) for one in ids]}

    @override
    def model(self, model_id: str) -> Json:
        return {
            "id": model_id,
            "object": "model",
            "canonical_slug": model_id,
            "name": model_id,
            "created": 1_767_225_600,
            "owned_by": model_id.partition("/")[0],
            "context_length": 1_000_000,
        }

    def key_info(self, key: str, *, remaining: float) -> Json:
        """Write the reply of `GET /key` with what is left of its limit, in USD."""
        spent = dict.fromkeys(
            [
                f"{kind}usage{span}"
                for kind in ("", "byok_")
                for span in ("", "_daily", "_weekly", "_monthly")
            ],
            0,
        )
        data = {
            "label": f"sk-or-v1-...{key[-4:]}",
            "limit": 100,
            "limit_reset": "monthly",
            "limit_remaining": remaining,
            "include_byok_in_limit": False,
            **spent,
            "is_free_tier": False,
            "is_management_key": False,
            "rate_limit": {
                "requests": -1,
                "interval": "10s",
                "note": "This field is deprecated and safe to ignore.",
            },
            "expires_at": None,
        }
        return {"data": data}

    @override
    def gauge_headers(self, gauges: Mapping[str, Gauge], now: float) -> dict[str, str]:
        # OpenRouter sends X-RateLimit-* with a 429 only.
        return {}


def _web(wire: Wire, body: Json, call: Call) -> WebSearched | None:
    """What the web search that a request asks for finds: one search, the tool's or the plugin's."""
    plugins = [one for one in body.get("plugins") or [] if one.get("id") == "web"]
    tools = [one for one in body.get("tools") or [] if one.get("type") == _SEARCH_TOOL]
    asked = [one.get("parameters") or {} for one in tools]
    asked += [one for one in plugins if one.get("enabled", True)]
    if not asked:
        return None
    engine = asked[0].get("engine", "auto")
    if engine not in _ENGINES:
        raise wire.bad_request(f"Invalid web search engine '{engine}'.", call.model)
    makers_own = engine == "native" or (
        engine == "auto" and call.model.partition("/")[0] in _SEARCHING_MAKERS
    )
    count = asked[0].get("max_results", _USUAL_RESULTS)
    if makers_own:
        count = _USUAL_RESULTS
    elif tools:
        count = min(count, asked[0].get("max_total_results", count))
    characters = asked[0].get("max_characters", _PLUGIN_CHARACTERS)
    topics = [item.subject for item in find_items(call.user_text)]
    words = "; ".join(topics) or call.user_text
    found = pages(" ".join(words.split())[:_QUERY_CHARS], count, chars=characters)
    usd = _NATIVE_USD if makers_own else len(found) * _USD_PER_RESULT
    counted = 1 if tools or makers_own else 0
    return WebSearched(tuple(found), round(usd, 6), 2 if tools else 1, counted)


def _annotations(web: WebSearched, text: str) -> list[Json]:
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "url": page.url,
                "title": page.title,
                "content": page.text,
                "start_index": 0,
                "end_index": len(text),
            },
        }
        for page in web.pages
        if text
    ]


def _chat(call: Call, text: str, finish: Finish, usage: Usage, request_id: str) -> Json:
    refused = finish == "refusal"
    return {
        "id": f"chatcmpl-{request_id.removeprefix('req_')}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": call.model,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": None if refused else text,
                    "refusal": REFUSAL if refused else None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": _FINISH[finish],
            }
        ],
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "prompt_tokens_details": {
                "cached_tokens": usage.cached,
                "cache_write_tokens": usage.cache_write,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _response(call: Call, text: str, finish: Finish, usage: Usage, request_id: str) -> Json:
    incomplete = {"length": "max_output_tokens", "safety": "content_filter"}.get(finish)
    status = "incomplete" if incomplete else "completed"
    suffix = request_id.removeprefix("req_")
    content: Json = {"type": "output_text", "text": text, "annotations": []}
    if finish == "refusal":
        content = {"type": "refusal", "refusal": REFUSAL}
    message = {
        "type": "message",
        "id": f"msg_{suffix}",
        "status": status,
        "role": "assistant",
        "content": [content],
    }
    said = bool(text) or finish == "refusal"
    return {
        "id": f"resp_{suffix}",
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "instructions": None,
        "max_output_tokens": call.max_tokens,
        "model": call.model,
        "output": [message] if said else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached,
                "cache_write_tokens": usage.cache_write,
            },
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        },
        "user": None,
        "metadata": {},
        "service_tier": "default",
    }


def _headers(request_id: str) -> dict[str, str]:
    return {
        "x-request-id": request_id,
        "openai-organization": "org-simulator",
        "openai-version": "2020-10-01",
    }


def _retry_headers(request_id: str, wait_s: float | None) -> dict[str, str]:
    headers = _headers(request_id)
    if wait_s is not None:
        headers["retry-after"] = str(math.ceil(wait_s))
        headers["retry-after-ms"] = str(math.ceil(wait_s * 1_000))
    return headers


def _go_duration(seconds: float) -> str:
    """Write a time as Go does: 0s, 12ms, 7.66s, 6m0s, 1h30m0s."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{math.ceil(seconds * 1_000)}ms"
    hours, rest = divmod(seconds, 3_600)
    minutes, left = divmod(rest, 60)
    text = f"{left:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{int(hours)}h{int(minutes)}m{text}"
    return f"{int(minutes)}m{text}" if minutes else text
