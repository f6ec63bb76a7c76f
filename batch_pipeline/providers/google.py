"""Gemini's generateContent (Gemini Developer API, v1) as a pure codec.

Sources: google-genai 3.4.0 for the request, its types and recorded replies for the rest. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import quote

import orjson

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import (
    ErrorKind,
    Finish,
    LlmRequest,
    ProviderError,
    RateSignals,
    Reply,
    Usage,
    WireCall,
    WireReply,
)

_REFUSALS = frozenset(
    [
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "MODEL_ARMOR",
        "ESCALATION",
        "JAILBREAK",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    ]
)
# CONTINUATION: cut at the per-request limit. Asking on would be a second billable call behind the
# limiter's back, so it counts as cut.
_CUT = frozenset({"MAX_TOKENS", "CONTINUATION"})
_STOPPED = frozenset({"STOP", "FINISH_REASON_UNSPECIFIED", ""})
_BAD_KEY = frozenset({"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "API_KEY_EXPIRED"})
_NO_CREDIT_WORDS = ("credits are depleted", "spending cap")
# a 400 in these words is about how the request is built, so every row would get it
_CONFIG_WORDS = ("api key not valid", "api key expired", "unknown name", "responsejsonschema",
                 "response_json_schema", "generation_config", "generationconfig")  # fmt: skip


class GoogleCodec:
    """The Gemini Developer API."""

    provider = "google"
    web_search = False

    def build(self, request: LlmRequest, *, key: str, base_url: str) -> WireCall:
        """See Codec.build."""
        wire.refuse_web_search(request, self.provider)
        body: dict[str, Any] = {
            "contents": [{"parts": [{"text": request.user}], "role": "user"}],
        }
        if request.system:
            body["systemInstruction"] = {"parts": [{"text": request.system}], "role": "user"}
        config: dict[str, Any] = {}
        if request.temperature is not None:
            config["temperature"] = request.temperature
        if request.max_output_tokens is not None:
            config["maxOutputTokens"] = request.max_output_tokens
        if request.schema is not None:
            config["responseMimeType"] = "application/json"
            config["responseJsonSchema"] = orjson.Fragment(wire.schema_bytes(request.schema))
        if config:
            body["generationConfig"] = config
        return WireCall(
            url=_url(base_url, request.model),
            headers={
                "x-goog-api-key": key,
                "content-type": "application/json",
                "accept": "application/json",
            },
            body=wire.encode(body),
        )

    def left_out(self, request: LlmRequest) -> tuple[str, ...]:
        """See Codec.left_out: Gemini takes every setting."""
        return ()

    def rate_signals(self, headers: Mapping[str, str]) -> RateSignals | None:
        """See Codec.rate_signals: Gemini's headers say nothing of limits."""
        return None

    def read(self, reply: WireReply) -> Reply:
        """See Codec.read."""
        data = wire.parse_object(reply)
        usage = _usage(data)
        if reply.status != 200 or data is None or "error" in data:
            _raise(reply, data or {}, usage)
        request_id = wire.as_code(data.get("responseId"))
        model = wire.as_text(data.get("modelVersion"))
        candidate = wire.first_dict(data.get("candidates"))
        reason = wire.as_text(candidate.get("finishReason")).upper()
        if not candidate:
            block = wire.as_code(wire.as_dict(data.get("promptFeedback")).get("blockReason"))
            if block:
                refusal = f"The prompt was blocked: {block}."
                return Reply("", Finish.REFUSAL, usage, model, None, request_id, refusal)
            if usage is None:
                raise wire.unusable_200(reply, request_id)
            raise _unusable("The reply has no candidate.", "no_candidate", usage, request_id)
        text = "".join(
            wire.as_text(part["text"])
            for part in wire.as_list(wire.as_dict(candidate.get("content")).get("parts"))
            if isinstance(part, dict) and "text" in part and not part.get("thought")
        )
        if reason in _REFUSALS:
            words = wire.as_text(candidate.get("finishMessage"))
            refusal = wire.redact(f"{reason}: {words}" if words else reason)
            return Reply("", Finish.REFUSAL, usage, model, None, request_id, refusal)
        if reason in _CUT:
            return Reply(text, Finish.LENGTH, usage, model, None, request_id)
        if reason == "PUP_LIMITED_DISABLED":
            raise ProviderError(
                ErrorKind.BATCH_FATAL,
                "Google has limited or disabled this account (Prohibited Use Policy).",
                status=200,
                code=reason,
                usage=usage,
                request_id=request_id,
            )
        if reason not in _STOPPED or not text:
            shown = wire.as_code(reason) or "no finish reason"
            raise _unusable(f"No usable text ({shown}).", wire.as_code(reason), usage, request_id)
        return Reply(text, Finish.STOP, usage, model, None, request_id)


@lru_cache(maxsize=256)
def _url(base_url: str, model: str) -> str:
    name = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
    return f"{base_url}/v1/{quote(name, safe='/-._')}:generateContent"


def _usage(data: dict[str, Any] | None) -> Usage | None:
    meta = wire.as_dict((data or {}).get("usageMetadata"))
    if not meta:
        return None
    count = wire.as_count
    thoughts = count(meta.get("thoughtsTokenCount"))
    candidate = wire.first_dict((data or {}).get("candidates"))
    grounding = wire.as_dict(candidate.get("groundingMetadata"))
    return wire.make_usage(
        input_tokens=count(meta.get("promptTokenCount"))
        + count(meta.get("toolUsePromptTokenCount")),
        cached=count(meta.get("cachedContentTokenCount")),
        output_tokens=count(meta.get("candidatesTokenCount")) + thoughts,
        thinking=thoughts,
        web_searches=len(wire.as_list(grounding.get("webSearchQueries"))),
    )


def _unusable(message: str, code: str, usage: Usage | None, request_id: str) -> ProviderError:
    return ProviderError(
        ErrorKind.CONTENT, message, status=200, code=code, usage=usage, request_id=request_id
    )


def _raise(reply: WireReply, data: dict[str, Any], usage: Usage | None) -> NoReturn:
    error = wire.as_dict(data.get("error"))
    message = wire.as_text(error.get("message"))
    code = wire.as_code(error.get("status"))
    inner = wire.as_count(error.get("code"))
    status = inner if reply.status == 200 and 400 <= inner < 600 else None
    details = [part for part in wire.as_list(error.get("details")) if isinstance(part, dict)]
    reason = next((r for part in details if (r := wire.as_code(part.get("reason")))), "")
    effective = status or reply.status
    lower = message.lower()
    kind: ErrorKind | None = None
    if reason in _BAD_KEY:
        kind, code = ErrorKind.BATCH_FATAL, reason
    elif (
        effective == 400
        and (
            # FAILED_PRECONDITION: the account (billing, country), not the request
            code == "FAILED_PRECONDITION" or any(words in lower for words in _CONFIG_WORDS)
        )
    ) or (
        effective == 429
        and (any(words in lower for words in _NO_CREDIT_WORDS) or _quota_is_gone(details))
    ):
        kind = ErrorKind.BATCH_FATAL
    delay = next((d for part in details if (d := _delay(part)) is not None), None)
    wire.raise_error(
        reply,
        message=message,
        code=code,
        kind=kind,
        status=status,
        retry_after_s=delay if delay is not None else wire.retry_hint(message),
        usage=usage,
    )


def _delay(detail: dict[str, Any]) -> float | None:
    return wire.duration_s(wire.as_text(detail.get("retryDelay")))


def _quota_is_gone(details: list[dict[str, Any]]) -> bool:
    """Whether a violated quota does not come back within minutes: a daily one, or one of zero."""
    return any(
        "PerDay" in wire.as_text(violation.get("quotaId"))
        or violation.get("quotaValue") in ("0", 0)
        for detail in details
        for violation in wire.as_list(detail.get("violations"))
        if isinstance(violation, dict)
    )
