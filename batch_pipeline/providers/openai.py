"""OpenAI's Chat Completions as a pure codec, and the dialect that its imitators share.

Sources: openai 3.54.0 for the request, its types and docs for the rest. No I/O here.
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
from batch_pipeline.providers.schemas import openai_strict_schema

_NO_CREDIT = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated"}
)
_REFUSED = frozenset({"content_filter", "content_policy_violation", "invalid_prompt",
                      "moderation_blocked"})  # fmt: skip
# 400s about how every request of the batch is built
_CONFIG = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter",
                     "invalid_json_schema", "missing_required_parameter", "model_not_found",
                     "invalid_api_key"})  # fmt: skip
_CONFIG_PARAMS = ("response_format", "temperature", "model")
_STATUS_OF_CODE = {"rate_limit_exceeded": 429, "insufficient_quota": 429, "invalid_api_key": 401,
                   "model_not_found": 404, "context_length_exceeded": 400}  # fmt: skip

_TAKES_TEMPERATURE = re.compile(r"^(?:ft:)?(?:gpt-3\.5|gpt-4|chatgpt-4)")


class OpenAICodec:
    """OpenAI itself."""

    provider = "openai"
    web_search = False
    _bound = "max_completion_tokens"

    def build(self, request: LlmRequest, *, key: str, base_url: str) -> WireCall:
        """See Codec.build."""
        headers = {"content-type": "application/json", "accept": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        return WireCall(
            url=f"{base_url}/chat/completions",
            headers=headers,
            body=wire.encode(self._body(request)),
        )

    def left_out(self, request: LlmRequest) -> tuple[str, ...]:
        """See Codec.left_out."""
        if request.temperature is None or self._takes_temperature(request.model):
            return ()
        return ("temperature",)

    def rate_signals(self, headers: Mapping[str, str]) -> RateSignals | None:
        """See Codec.rate_signals: `tokens` counts the prompt, and the bound on the output."""
        requests = _rate_signal(headers, "requests")
        tokens = _rate_signal(headers, "tokens")
        if requests is None and tokens is None:
            return None
        return RateSignals(requests, tokens)

    def read(self, reply: WireReply) -> Reply:
        """See Codec.read."""
        request_id = wire.as_code(reply.headers.get("x-request-id"))
        data = wire.parse_object(reply, request_id)
        usage = _usage(data)
        if reply.status != 200 or data is None or data.get("error"):
            self._raise(reply, data or {}, usage, request_id)
        request_id = request_id or wire.as_code(data.get("id"))
        choice = wire.first_dict(data.get("choices"))
        message = wire.as_dict(choice.get("message"))
        if not message:
            if choice.get("error"):
                self._raise(reply, choice, usage, request_id)
            raise wire.unusable_200(reply, request_id, usage)
        model = wire.as_text(data.get("model"))
        cost = self._cost(data)
        reason = wire.as_text(choice.get("finish_reason"))
        words = wire.as_text(message.get("refusal"))
        refusal = wire.redact(words) if words else ""
        if refusal or reason == "content_filter":
            refusal = refusal or "The provider's content filter stopped the answer."
            return Reply("", Finish.REFUSAL, usage, model, cost, request_id, refusal)
        if choice.get("error"):
            self._raise(reply, choice, usage, request_id)
        text = _text(message.get("content"))
        if reason == "length":
            return Reply(text, Finish.LENGTH, usage, model, cost, request_id)
        if reason not in ("stop", "") or not text:
            shown = wire.as_code(reason)
            raise ProviderError(
                ErrorKind.CONTENT,
                f"No usable text (finish_reason {shown or 'missing'}).",
                status=200,
                code=shown,
                usage=usage,
                request_id=request_id,
            )
        return Reply(text, Finish.STOP, usage, model, cost, request_id)

    def _takes_temperature(self, model: str) -> bool:
        # reasoning models (o-series, gpt-5 and later) answer 400 to it
        return _TAKES_TEMPERATURE.match(model) is not None

    def _body(self, request: LlmRequest) -> dict[str, Any]:
        messages = [{"role": "user", "content": request.user}]
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        body: dict[str, Any] = {"model": request.model, "messages": messages}
        if request.max_output_tokens is not None:
            body[self._bound] = request.max_output_tokens
        if request.temperature is not None and self._takes_temperature(request.model):
            body["temperature"] = request.temperature
        if request.schema is not None:
            body["response_format"] = _response_format(
                wire.schema_bytes(request.schema), request.schema_name
            )
        self._add_web_search(body, request)
        return body

    def _add_web_search(self, body: dict[str, Any], request: LlmRequest) -> None:
        wire.refuse_web_search(request, self.provider)

    def _cost(self, data: dict[str, Any]) -> float | None:
        return None

    def _kind(self, status: int, error: dict[str, Any], message: str) -> ErrorKind | None:
        """What the error's own words say beyond its status; None where they say nothing."""
        codes = {wire.as_text(error.get("code")), wire.as_text(error.get("type"))}
        if codes & _NO_CREDIT:
            return ErrorKind.BATCH_FATAL
        if status not in (400, 422):
            return None
        if codes & _REFUSED:
            return ErrorKind.REFUSED
        # `param` names the part of the request at fault; a bound too large is one request's affair,
        # because the engine raises it for single requests
        if codes & _CONFIG or wire.as_text(error.get("param")).startswith(_CONFIG_PARAMS):
            return ErrorKind.BATCH_FATAL
        return None

    def _message(self, error: dict[str, Any]) -> str:
        return wire.as_text(error.get("message"))

    def _raise(
        self, reply: WireReply, data: dict[str, Any], usage: Usage | None, request_id: str
    ) -> NoReturn:
        raw = data.get("error")
        # some imitators answer {"error": "words"}, {"detail": "words"} or the bare error object
        words = wire.as_text(raw) or wire.as_text(data.get("detail"))
        error = wire.as_dict(raw) or (data if "message" in data else {})
        message = self._message(error) or words
        code = wire.as_code(error.get("code")) or wire.as_code(error.get("type"))
        status = reply.status
        if status == 200:
            inner = wire.as_count(error.get("code"))
            status = inner if 400 <= inner < 600 else _STATUS_OF_CODE.get(code, 500)
        wire.raise_error(
            reply,
            message=message,
            code=code,
            kind=self._kind(status, error, message),
            status=status,
            retry_after_s=wire.retry_hint(message),
            usage=usage,
            request_id=request_id,
        )


class OpenAICompatibleCodec(OpenAICodec):
    """Any server that speaks Chat Completions: Ollama, vLLM, LM Studio. They know `max_tokens`."""

    provider = "openai-compatible"
    _bound = "max_tokens"

    def _takes_temperature(self, model: str) -> bool:
        return True


@lru_cache(maxsize=256)
def _response_format(schema: bytes, name: str) -> orjson.Fragment:
    strict = openai_strict_schema(orjson.loads(schema))
    form = {"name": name, "strict": True, "schema": strict}
    return orjson.Fragment(orjson.dumps({"type": "json_schema", "json_schema": form}))


def _rate_signal(headers: Mapping[str, str], name: str) -> RateSignal | None:
    limit = headers.get(f"x-ratelimit-limit-{name}")
    if limit is None:
        return None
    remaining = headers.get(f"x-ratelimit-remaining-{name}")
    reset = headers.get(f"x-ratelimit-reset-{name}", "")
    return RateSignal(wire.as_number(limit), wire.as_number(remaining), wire.duration_s(reset))


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(
            wire.as_text(part.get("text"))
            for part in content
            if isinstance(part, dict) and part.get("type") in ("text", "output_text")
        )
    return wire.as_text(content)


def _usage(data: dict[str, Any] | None) -> Usage | None:
    raw = wire.as_dict((data or {}).get("usage"))
    if not raw:
        return None
    count = wire.as_count
    prompt = wire.as_dict(raw.get("prompt_tokens_details"))
    completion = wire.as_dict(raw.get("completion_tokens_details"))
    tools = wire.as_dict(raw.get("server_tool_use") or raw.get("server_tool_use_details"))
    return wire.make_usage(
        input_tokens=count(raw.get("prompt_tokens")),
        cached=count(prompt.get("cached_tokens")),
        cache_write=count(prompt.get("cache_write_tokens")),
        output_tokens=count(raw.get("completion_tokens")),
        thinking=count(completion.get("reasoning_tokens")),
        web_searches=count(tools.get("web_search_requests")),
    )
