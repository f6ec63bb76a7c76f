"""OpenRouter's Chat Completions: OpenAI's dialect with stated prices, routing and its own 402s.

Sources: PROVIDERS 1.2 (openai SDK on the wire, OpenRouter's docs), the types of OpenRouter's own
SDK 1.3.84 for web search. No I/O here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import orjson

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import (
    Citation,
    ErrorKind,
    LlmRequest,
    ProviderError,
    RateSignals,
    Reply,
    WireReply,
)
from batch_pipeline.providers.openai import OpenAICodec


class OpenRouterCodec(OpenAICodec):
    """OpenRouter; models are named `<maker>/<model>`."""

    provider = "openrouter"
    web_search = True
    _bound = "max_tokens"

    def read(self, reply: WireReply) -> Reply:
        """See Codec.read; the pages that a web search found are its citations."""
        try:
            answer = super().read(reply)
        except ProviderError as error:
            if error.usage is not None:
                # fees of searches are in the stated price alone
                error.provider_cost_usd = self._cost(wire.parse_object(reply) or {})
            raise
        if b"url_citation" not in reply.body:
            return answer
        choice = wire.first_dict(orjson.loads(reply.body).get("choices"))
        citations = _citations(wire.as_dict(choice.get("message")).get("annotations"))
        usage = answer.usage
        if citations and usage is not None and not usage.web_searches:
            # the plugin searches once, and its replies do not count that
            usage = replace(usage, web_searches=1)
        return replace(answer, citations=citations, usage=usage)

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

    def _add_web_search(self, body: dict[str, Any], request: LlmRequest) -> None:
        search = request.web_search
        if search is None:
            return
        if search.plugin:
            plugin: dict[str, Any] = {"id": "web", "max_results": search.max_results}
            if search.engine != "auto":
                plugin["engine"] = search.engine
            body["plugins"] = [plugin]
            return
        parameters = {
            "engine": search.engine,
            "max_results": search.max_results,
            "max_total_results": search.max_results * search.max_uses,
            "max_uses": search.max_uses,
            "max_characters": search.max_characters,
        }
        body["tools"] = [{"type": "openrouter:web_search", "parameters": parameters}]
        # else a model that goes on asking after its last search is asked again, up to 30 times
        body["stop_server_tools_when"] = [{"type": "step_count_is", "step_count": search.max_uses}]

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


def _citations(annotations: Any) -> tuple[Citation, ...]:
    found: dict[str, Citation] = {}
    for annotation in wire.as_list(annotations):
        if not isinstance(annotation, dict) or annotation.get("type") != "url_citation":
            continue
        # chat nests what the dialect of `responses` writes flat
        said = wire.as_dict(annotation.get("url_citation")) or annotation
        url = wire.as_text(said.get("url"))
        try:
            parts = urlsplit(url)
        except ValueError:
            continue
        if parts.scheme in ("http", "https") and parts.hostname:
            page = Citation(url, wire.as_text(said.get("title")), wire.as_text(said.get("content")))
            found.setdefault(url, page)
    return tuple(found.values())


def _usd(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return max(0.0, float(value))
    return None
