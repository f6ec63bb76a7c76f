"""OpenRouter's Chat Completions: OpenAI's dialect with stated prices, routing and its own 402s.

Sources: PROVIDERS 1.2 (openai SDK on the wire, OpenRouter's docs). No I/O here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import ErrorKind, LlmRequest, RateSignals
from batch_pipeline.providers.openai import OpenAICodec


class OpenRouterCodec(OpenAICodec):
    """OpenRouter; models are named `<maker>/<model>`."""

    provider = "openrouter"
    _bound = "max_tokens"

    def rate_signals(self, headers: Mapping[str, str]) -> RateSignals | None:
        """See Codec.rate_signals: its headers are the upstream's, or come with a 429 only."""
        return None

    def _takes_temperature(self, model: str) -> bool:
        maker, _, name = model.partition("/")
        if maker == "openai":
            return super()._takes_temperature(name)
        return maker != "anthropic"

    def _body(self, request: LlmRequest) -> dict[str, Any]:
        body = super()._body(request)
        if request.schema is not None:
            # else OpenRouter may choose a host that ignores the schema
            body["provider"] = {"require_parameters": True}
        return body

    def _cost(self, data: dict[str, Any]) -> float | None:
        usage = wire.as_dict(data.get("usage"))
        cost = _usd(usage.get("cost"))
        if cost is not None and usage.get("is_byok") is True:
            # with the user's own upstream key `cost` is only OpenRouter's fee
            details = wire.as_dict(usage.get("cost_details"))
            cost += _usd(details.get("upstream_inference_cost")) or 0.0
        return cost

    def _kind(self, status: int, error: dict[str, Any], message: str) -> ErrorKind | None:
        metadata = wire.as_dict(error.get("metadata"))
        if status == 402 and metadata.get("limit_source") == "openrouter_in_flight_budget":
            return ErrorKind.RATE_LIMITED
        if status == 403 and (metadata.get("flagged_input") or metadata.get("reasons")):
            return ErrorKind.REFUSED
        if status == 429 and "free-models-per-day" in message:
            return ErrorKind.BATCH_FATAL
        return super()._kind(status, error, message)

    def _message(self, error: dict[str, Any]) -> str:
        # "Provider returned error" alone helps nobody: the upstream's words are in metadata.raw
        message = super()._message(error)
        raw = wire.as_text(wire.as_dict(error.get("metadata")).get("raw"))
        return f"{message}: {raw}" if raw else message


def _usd(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return max(0.0, float(value))
    return None
