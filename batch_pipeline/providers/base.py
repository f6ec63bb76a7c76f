"""The seam between the engine and the providers: one request, one reply, one error.

What belongs here: provider-neutral types. What does not: any provider's field names (those live in
its codec), and I/O (transport.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class WebSearch:
    """That the model may search the web before it answers.

    Attributes:
        max_results: of each search.
        engine: `exa` is paid by the result and can be bounded; `native` is the model maker's own
            search, which takes no bound; `auto` is native where there is one.
        plugin: ask for it in the older way: one search for the whole prompt, always, instead of
            searches that the model decides on. Deprecated by OpenRouter.
        max_uses: searches at most, where the model decides.
        max_characters: of each result, where the model decides.
    """

    max_results: int = 5
    engine: Literal["exa", "native", "auto"] = "exa"
    plugin: bool = False
    max_uses: int = 1
    max_characters: int = 2_000


@dataclass(frozen=True, slots=True)
class LlmRequest:
    """One LLM call, in no provider's words.

    Attributes:
        model: the provider's own model name, without the provider prefix.
        system: the system prompt; the part that prompt caches can share.
        user: the user message.
        schema: JSON Schema of the answer (root type object), or None for free text.
        schema_name: a name for that schema (letters, digits, `_`, `-`).
        max_output_tokens: bound on billable output tokens; None where the workload sets none.
        temperature: sampling temperature, or None for the provider's default. Left out for models
            that no longer take it.
        web_search: how the model may search the web (OpenRouter), or None: not at all.
    """

    model: str
    system: str
    user: str
    schema: Mapping[str, Any] | None = None
    schema_name: str = "answer"
    max_output_tokens: int | None = None
    temperature: float | None = None
    web_search: WebSearch | None = None


@dataclass(frozen=True, slots=True)
class WireCall:
    """An HTTP request ready to send; `headers` hold the key: never log them.

    Attributes:
        url: where.
        headers: as they are sent.
        body: JSON; of a GET, empty.
        method: `POST` or `GET`.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class WireReply:
    """What came back over the wire. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt, as billed.

    Attributes:
        input_tokens: all prompt tokens, cached ones and cache writes included.
        cached_input_tokens: of these, read from the provider's prompt cache.
        cache_write_tokens: of these, written to the prompt cache (5 minute kind).
        cache_write_1h_tokens: of these, written to the one hour prompt cache.
        output_tokens: all billable output tokens, thinking included.
        thinking_tokens: of these, thinking.
        web_searches: server-side searches that the provider bills by the piece.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    web_searches: int = 0


class Finish(StrEnum):
    """Why the model stopped."""

    STOP = "stop"
    LENGTH = "length"  # the output bound was reached: the text is cut
    REFUSAL = "refusal"  # the model or a safety filter declined


@dataclass(frozen=True, slots=True)
class Citation:
    """A page that an answer rests on.

    Attributes:
        url: its address.
        title: its title; empty where the provider does not say.
        text: what the provider quotes of it; empty where it does not say.
    """

    url: str
    title: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful HTTP exchange, read.

    Attributes:
        text: the answer's text (JSON when a schema was asked for); empty on a refusal.
        finish: why the model stopped.
        usage: tokens as billed, or None where the body has none.
        model: the model that the provider says answered.
        provider_cost_usd: the price where the provider states it (OpenRouter), in USD.
        request_id: the provider's id of the exchange, for support.
        refusal: the provider's words for a refusal, if any.
        citations: the pages found by a web search, each once, in the order they were named.
    """

    text: str
    finish: Finish
    usage: Usage | None
    model: str = ""
    provider_cost_usd: float | None = None
    request_id: str = ""
    refusal: str = ""
    citations: tuple[Citation, ...] = ()


class ErrorKind(StrEnum):
    """What a failed attempt means for what comes next (DESIGN 4)."""

    RATE_LIMITED = "rate_limited"  # wait and send again; uses up no try
    TRANSIENT = (
        "transient"  # 408, 409, 5xx, 529, timeouts, broken connections, HTML instead of JSON
    )
    CONTENT = "content"  # a reply that cannot be used: not the provider's JSON, no text
    REFUSED = "refused"  # safety block: the item is blocked
    ITEM_PERMANENT = "item_permanent"  # 413, or a 400 about this request's content
    # bad key, unknown model, no credit, spend limit, daily quota: every row would fail
    BATCH_FATAL = "batch_fatal"


class ProviderError(Exception):
    """A failed attempt, classified.

    Args:
        kind: what it means for what comes next.
        message: the provider's own words, with keys removed.
        status: HTTP status, or 0 where no reply came (timeout, broken connection).
        code: the provider's machine-readable code, for example `rate_limit_exceeded`.
        retry_after_s: how long the provider asks to wait, in seconds.
        usage: tokens billed for the failed attempt, where the body says so.
        provider_cost_usd: its price where the body states that (OpenRouter), in USD.
        maybe_billed: whether the provider may have done the work although no usable reply came
            (timeout, cut connection).
        request_id: the provider's id of the exchange, for support.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        retry_after_s: float | None = None,
        usage: Usage | None = None,
        provider_cost_usd: float | None = None,
        maybe_billed: bool = False,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.usage = usage
        self.provider_cost_usd = provider_cost_usd
        self.maybe_billed = maybe_billed
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class RateSignal:
    """What a reply's headers say of one limit; None where they do not say.

    Attributes:
        limit: per minute.
        remaining: how much of it is left.
        reset_s: seconds until it is whole again.
    """

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None


@dataclass(frozen=True, slots=True)
class RateSignals:
    """What a reply's headers say of a key's limits; None where they say nothing."""

    requests: RateSignal | None = None
    input_tokens: RateSignal | None = None
    output_tokens: RateSignal | None = None


class Codec(Protocol):
    """One provider's wire protocol, pure: no I/O, no environment, no clock.

    Attributes:
        provider: provider name.
        web_search: whether its models can search the web; `build` refuses such a request otherwise.
    """

    provider: str
    web_search: bool

    def build(self, request: LlmRequest, *, key: str, base_url: str) -> WireCall:
        """The HTTP call for `request`. The same body serves the Batch API (later).

        Raises:
            UsageError: the output schema, or a web search, cannot be expressed for this provider.
            ProviderError: ITEM_PERMANENT where a text of the request is not valid Unicode.
        """
        ...

    def left_out(self, request: LlmRequest) -> tuple[str, ...]:
        """Settings of `request` that its model does not take, so that `build` leaves them out."""
        ...

    def read(self, reply: WireReply) -> Reply:
        """Read a reply of any status.

        Raises:
            ProviderError: for every reply that is not a usable answer, HTTP errors included.
        """
        ...

    def rate_signals(self, headers: Mapping[str, str]) -> RateSignals | None:
        """What the headers of a reply of any status say of the key's limits."""
        ...
