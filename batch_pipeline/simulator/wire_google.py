"""Gemini's generateContent, countTokens and models, as google-genai sends them on v1 and v1beta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from batch_pipeline.simulator.buckets import Excess
from batch_pipeline.simulator.catalog import catalog
from batch_pipeline.simulator.config import KeyMark
from batch_pipeline.simulator.prompt_cache import CachePoint
from batch_pipeline.simulator.schema import from_openapi
from batch_pipeline.simulator.wire import (
    ANY_JSON_SCHEMA,
    Call,
    Finish,
    Json,
    Reply,
    Usage,
    Wire,
    text_of,
    whole_number,
)

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "UNKNOWN",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}
_MESSAGE = {
    400: "Request contains an invalid argument.",
    401: "Request had invalid authentication credentials.",
    403: "The caller does not have permission.",
    404: "Requested entity was not found.",
    408: "The request timed out.",
    409: "The operation was aborted.",
    413: "Request payload size exceeds the limit: 20971520 bytes.",
    429: "Resource has been exhausted (e.g. check quota).",
    500: "An internal error has occurred. Please retry or report in "
    "https://developers.generativeai.google/guide/troubleshooting",
    503: "The model is overloaded. Please try again later.",
    504: "Deadline expired before operation could complete.",
}
_QUOTA_MESSAGE = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."
)
_METRIC = "generativelanguage.googleapis.com/generate_content_paid_tier_"
_QUOTAS = {
    "requests": ("requests", "GenerateRequestsPerMinutePerProjectPerModel-PaidTier"),
    "input_tokens": (
        "input_token_count",
        "GenerateContentPaidTierInputTokensPerModelPerMinute-PaidTier",
    ),
    "output_tokens": (
        "output_token_count",
        "GenerateContentPaidTierOutputTokensPerModelPerMinute-PaidTier",
    ),
    "concurrent": ("concurrent_requests", "GenerateConcurrentRequestsPerProjectPerModel"),
    "requests_per_day": (
        "requests",
        "GenerateRequestsPerDayPerProjectPerModel-PaidTier",
    ),
    "PerDay": ("requests", "GenerateRequestsPerDayPerProjectPerModel-PaidTier"),
}
_TYPE = "type.googleapis.com/google.rpc."
_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "safety": "SAFETY", "empty": "STOP"}
_HEADERS = {"vary": "Origin", "x-gemini-service-tier": "standard"}


class GoogleWire(Wire):
    """The Gemini Developer API."""

    provider = "google"
    refuses_without_output = True

    @override
    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        return headers.get("x-goog-api-key") or query.get("key")

    @override
    def read(self, endpoint: str, body: Json, key: str, path: Mapping[str, str]) -> Call:
        model = self.check_model(path["model"], path["version"], beta=path["version"] == "v1beta")
        if endpoint == "countTokens":
            body = field_of(body, "generateContentRequest") or body
        contents = field_of(body, "contents")
        if isinstance(contents, dict):
            contents = [contents]
        if not isinstance(contents, list) or not contents:
            raise self.bad_request(
                "* GenerateContentRequest.contents: contents is not specified\n", model
            )
        config = field_of(body, "generationConfig") or {}
        system = text_of((field_of(body, "systemInstruction") or {}).get("parts"))
        return Call(
            provider=self.provider,
            endpoint=endpoint,
            model=model,
            key=key,
            system=system,
            messages=tuple(
                (content.get("role") or "user", text_of(content.get("parts")))
                for content in contents
            ),
            schema=_schema(config),
            max_tokens=whole_number(field_of(config, "maxOutputTokens")),
            cache_points=(CachePoint(system),),
        )

    @override
    def success(
        self, call: Call, text: str, finish: Finish, usage: Usage, request_id: str
    ) -> Reply:
        counts: Json = {
            "promptTokenCount": usage.input_tokens,
            "totalTokenCount": usage.input_tokens + usage.output_tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": usage.input_tokens}],
            "serviceTier": "standard",
        }
        if usage.output_tokens:
            counts["candidatesTokenCount"] = usage.output_tokens
        if usage.cached:
            counts["cachedContentTokenCount"] = usage.cached
            counts["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": usage.cached}]
        body: Json = {
            "usageMetadata": counts,
            "modelVersion": call.model,
            "responseId": request_id,
        }
        if finish == "refusal":
            body["promptFeedback"] = {"blockReason": "PROHIBITED_CONTENT"}
            return Reply(200, body, _HEADERS)
        candidate: Json = {
            "content": {"parts": [{"text": text}], "role": "model"} if text else {},
            "finishReason": _FINISH[finish],
            "index": 0,
        }
        if finish == "safety":
            rating = {"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH"}
            candidate["safetyRatings"] = [rating]
        body["candidates"] = [candidate]
        return Reply(200, body, _HEADERS)

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
        if code == "API_KEY_INVALID":
            return self.bad_key("")
        details: list[Json] = []
        if status == 429 and code is not None:
            # `PerDay`, `quota_zero`, or the name of one of this simulator's limits.
            metric, quota = _QUOTAS.get(code, _QUOTAS["requests"])
            details.append(_quota_failure(metric, quota, "0", model))
            message = message or _quota_message(metric, "0", model, retry_after_s)
        if retry_after_s is not None:
            details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": _duration(retry_after_s)})
        # Only these two share a status code with another error and matter to a client.
        named = code if code in ("FAILED_PRECONDITION", "CANCELLED") else None
        error: Json = {
            "code": status,
            "message": message or _MESSAGE.get(status, "The service is currently unavailable."),
            "status": named or _STATUS[status],
        }
        if details:
            error["details"] = details
        return Reply(status, {"error": error})

    @override
    def limited(self, excess: Excess, model: str, request_id: str) -> Reply:
        metric, quota = _QUOTAS[excess.name]
        # A quota per day comes without a delay.
        wait_s = None if excess.name == "requests_per_day" else excess.wait_s
        reply = self.error(
            429,
            message=_quota_message(metric, str(excess.limit), model, wait_s),
            retry_after_s=wait_s,
        )
        assert isinstance(reply.body, dict)
        details = reply.body["error"].setdefault("details", [])
        details.insert(0, _quota_failure(metric, quota, str(excess.limit), model))
        return reply

    @override
    def missing_key(self) -> Reply:
        return self.error(
            403,
            message="Method doesn't allow unregistered callers (callers without established "
            "identity). Please use API Key or other form of API consumer identity to call "
            "this API.",
        )

    @override
    def bad_key(self, key: str) -> Reply:
        message = "API key not valid. Please pass a valid API key."
        details = [
            {
                "@type": f"{_TYPE}ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            },
            {"@type": f"{_TYPE}LocalizedMessage", "locale": "en-US", "message": message},
        ]
        error = {
            "code": 400,
            "message": message,
            "status": "INVALID_ARGUMENT",
            "details": details,
        }
        return Reply(400, {"error": error})

    @override
    def unknown_model(self, model: str, version: str) -> Reply:
        return self.error(
            404,
            message=f"models/{model} is not found for API version {version}, or is not supported "
            "for generateContent. Call ModelService.ListModels to see the list of available "
            "models and their supported methods.",
        )

    @override
    def too_long(self, call: Call, limit: int) -> Reply:
        message = f"The input token count exceeds the maximum number of tokens allowed ({limit})."
        return self.error(400, message=message)

    @override
    def marked(self, mark: KeyMark, model: str, request_id: str) -> Reply:
        if mark == "daily_quota":
            reply = self.error(429, code="PerDay", model=model)
            assert isinstance(reply.body, dict)
            # A day's quota was there once: unlike a quota that is zero, it comes back.
            reply.body["error"]["details"][0]["violations"][0]["quotaValue"] = "1000"
            return reply
        return self.error(429, code="quota_zero", model=model)

    @override
    def token_count(self, call: Call) -> Json:
        details = [{"modality": "TEXT", "tokenCount": call.input_tokens}]
        return {"totalTokens": call.input_tokens, "promptTokensDetails": details}

    @override
    def model_list(self, ids: Sequence[str]) -> Json:
        return {"models": [self.model(one) for one in ids]}

    @override
    def model(self, model_id: str) -> Json:
        return {
            "name": f"models/{model_id}",
            "version": model_id.removeprefix("gemini-").partition("-")[0],
            "displayName": model_id.replace("-", " ").title(),
            "inputTokenLimit": catalog(self.provider).context_tokens,
            "outputTokenLimit": 65_536,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }


def field_of(body: Json, name: str) -> Any:
    """Read a field in camelCase or snake_case: google-genai mixes both in one body."""
    if name in body:
        return body[name]
    return body.get("".join(f"_{c.lower()}" if c.isupper() else c for c in name))


def _schema(config: Json) -> Json | None:
    json_schema = field_of(config, "responseJsonSchema")
    if isinstance(json_schema, dict):
        return json_schema
    openapi = field_of(config, "responseSchema")
    if isinstance(openapi, dict):
        return dict(from_openapi(openapi))
    return ANY_JSON_SCHEMA if field_of(config, "responseMimeType") == "application/json" else None


def _duration(seconds: float) -> str:
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def _quota_failure(metric: str, quota: str, value: str, model: str) -> Json:
    violation = {
        "quotaMetric": f"{_METRIC}{metric}",
        "quotaId": quota,
        "quotaDimensions": {"location": "global", "model": model},
        "quotaValue": value,
    }
    return {"@type": f"{_TYPE}QuotaFailure", "violations": [violation]}


def _quota_message(metric: str, value: str, model: str, wait_s: float | None) -> str:
    retry = "" if wait_s is None else f"\nPlease retry in {_duration(wait_s)}."
    where = f"{_METRIC}{metric}, limit: {value}, model: {model}"
    return f"{_QUOTA_MESSAGE} \n* Quota exceeded for metric: {where}{retry}"
