"""What the four wire protocols have in common: the call as the simulator sees it, and its reply.

What does not live here: one provider's field names, bodies and headers (`wire_google`,
`wire_anthropic`, `wire_openai`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import orjson

from batch_pipeline.simulator import tokens
from batch_pipeline.simulator.buckets import Excess, Gauge
from batch_pipeline.simulator.catalog import catalog
from batch_pipeline.simulator.config import KeyMark
from batch_pipeline.simulator.prompt_cache import CachePoint, CacheUse
from batch_pipeline.simulator.web_pages import Page

Finish = Literal["stop", "length", "refusal", "safety", "empty"]
Json = dict[str, Any]

# What a provider wraps around each message, in tokens.
_MESSAGE_OVERHEAD = 4
# The answer of a JSON mode without a schema.
ANY_JSON_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"id": {}, "text": {"type": "string"}},
                "required": ["id", "text"],
            },
        }
    },
    "required": ["items"],
}


@dataclass(frozen=True)
class Usage:
    """Tokens of one attempt.

    Attributes:
        input_tokens: all of them, cached ones included.
        cached: those read from the prompt cache.
        cache_write: those written to it for five minutes.
        cache_write_long: those written to it for an hour.
        output_tokens: of the answer.
    """

    input_tokens: int = 0
    cached: int = 0
    cache_write: int = 0
    cache_write_long: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class WebSearched:
    """What the web search of a request found.

    Attributes:
        pages: in order of rank.
        usd: the fee.
        turns: how often the model was asked.
        counted: searches that the reply counts.
    """

    pages: tuple[Page, ...]
    usd: float
    turns: int
    counted: int


@dataclass(frozen=True)
class Call:
    """One generation request, whatever its protocol.

    Attributes:
        web: what a web search found for it; None where it asks for none.
    """

    provider: str
    endpoint: str
    model: str
    key: str
    system: str
    messages: tuple[tuple[str, str], ...]
    schema: Json | None = None
    max_tokens: int | None = None
    cache_points: tuple[CachePoint, ...] = ()
    web: WebSearched | None = None

    @cached_property
    def user_text(self) -> str:
        """Everything that the user's side says."""
        return "\n".join(text for role, text in self.messages if role == "user")

    @cached_property
    def text(self) -> str:
        """Everything in the request, for `match`."""
        return "\n".join([self.system, *(text for _, text in self.messages)])

    @cached_property
    def input_tokens(self) -> int:
        """Tokens of the whole prompt, by the simulator's own count."""
        total = tokens.count(self.system) + sum(
            tokens.count(text) + _MESSAGE_OVERHEAD for _, text in self.messages
        )
        if self.schema is not None:
            total += tokens.count(orjson.dumps(self.schema).decode())
        if self.web is not None:
            total *= self.web.turns
            total += sum(tokens.count(f"{page.title} {page.text}") for page in self.web.pages)
        return total

    def usage(self, cache: CacheUse, output_tokens: int) -> Usage:
        """Return the tokens of one attempt of this call."""
        return Usage(self.input_tokens, cache.read, cache.write, cache.write_long, output_tokens)


@dataclass(frozen=True)
class Reply:
    """One HTTP reply; a `dict` body is sent as JSON."""

    status: int
    body: Json | bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def payload(self) -> bytes:
        """The body as bytes."""
        return self.body if isinstance(self.body, bytes) else orjson.dumps(self.body)


class RefusedError(Exception):
    """A request that the provider refuses before it does any work.

    Attributes:
        reply: what it says.
        model: which model was asked, as far as that is known.
    """

    def __init__(self, reply: Reply, model: str = "") -> None:
        super().__init__(reply.status)
        self.reply = reply
        self.model = model


class Wire(ABC):
    """One provider's protocol: reads its requests, writes its replies. Holds no state."""

    provider: str
    # OpenAI counts cached tokens in steps of 128.
    cache_granularity = 1
    # Gemini refuses a prompt before it writes anything.
    refuses_without_output = False
    # Anthropic does not count cached tokens against the input limit.
    cached_input_is_free_of_limits = False

    @abstractmethod
    def key(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        """Return the API key of a request."""

    @abstractmethod
    def read(self, endpoint: str, body: Json, key: str, path: Mapping[str, str]) -> Call:
        """Read a generation or token-count request.

        Args:
            endpoint: `generate` names of the server's routes, such as `messages`.
            body: the JSON object that was sent.
            key: the API key, already checked.
            path: parts of the URL and the protocol's version header (`version`).

        Raises:
            RefusedError: the request is one that the provider answers with an error.
        """

    @abstractmethod
    def success(
        self, call: Call, text: str, finish: Finish, usage: Usage, request_id: str
    ) -> Reply:
        """Write the reply to a generation request."""

    @abstractmethod
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
        """Write an error in the provider's own form."""

    @abstractmethod
    def limited(self, excess: Excess, model: str, request_id: str) -> Reply:
        """Write the 429 of a broken rate limit."""

    @abstractmethod
    def missing_key(self) -> Reply:
        """Write the error of a request without a key."""

    @abstractmethod
    def bad_key(self, key: str) -> Reply:
        """Write the error of an invalid key."""

    @abstractmethod
    def unknown_model(self, model: str, version: str) -> Reply:
        """Write the error of a model that does not exist."""

    @abstractmethod
    def too_long(self, call: Call, limit: int) -> Reply:
        """Write the error of a prompt above the context window."""

    @abstractmethod
    def marked(self, mark: KeyMark, model: str, request_id: str) -> Reply:
        """Write the error of a key whose account is out of something."""

    @abstractmethod
    def token_count(self, call: Call) -> Json:
        """Write the reply to a token-count request."""

    @abstractmethod
    def model_list(self, ids: Sequence[str]) -> Json:
        """Write the list of models."""

    @abstractmethod
    def model(self, model_id: str) -> Json:
        """Write one model."""

    def gauge_headers(self, gauges: Mapping[str, Gauge], now: float) -> dict[str, str]:
        """Write limits, remainders and resets as headers; none by default (Gemini sends none).

        Args:
            gauges: `requests`, `input_tokens`, `output_tokens`.
            now: UTC seconds.
        """
        return {}

    def reports_cache_writes(self, model: str) -> bool:
        """Say whether the model's usage has the tokens written to the cache."""
        return model.startswith(catalog(self.provider).bills_cache_writes)

    def check_model(self, model: Any, version: str = "", *, beta: bool = False) -> str:
        """Return the model's name if the provider has it.

        Raises:
            RefusedError: the provider's own 404 (or 400 when there is no name at all).
        """
        if not isinstance(model, str) or not model:
            raise RefusedError(self.error(400, message="you must provide a model parameter"))
        if model not in catalog(self.provider).listed(beta=beta):
            raise RefusedError(self.unknown_model(model, version), model)
        return model

    def check_not_streamed(self, body: Json, model: str) -> None:
        """Refuse streaming: batch work does not stream, so the simulator does not either."""
        if body.get("stream"):
            message = "The simulator does not stream: leave out `stream`."
            raise RefusedError(self.error(400, message=message), model)

    def bad_request(self, message: str, model: str, code: str | None = None) -> RefusedError:
        """Make the error of a request with an unusable field."""
        return RefusedError(self.error(400, message=message, code=code, model=model), model)


def text_of(content: Any) -> str:
    """Return the text of a message's content: a string, or blocks that have `text`."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            block["text"]
            for block in content
            if isinstance(block, dict) and isinstance(block.get("text"), str)
        )
    return ""


def whole_number(value: Any) -> int | None:
    """Return a bound such as max_tokens, or None when there is none."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
