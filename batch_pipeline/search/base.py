"""The seam between the engine and search providers: one query, one call, one answer.

What belongs here: provider-neutral types. What does not: any provider's field names (its codec's
module), sending, limits and money (engine/searching.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from batch_pipeline.providers.base import WireCall, WireReply


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What is searched for.

    Attributes:
        text: the words, as a person would type them.
        country: ISO 3166-1 alpha-2, lower case.
        limit: results wanted.
        text_chars: characters of each page's own text wanted; 0 is none.
        depth: how thorough, in the provider's words; empty is its default.
        domains: only these sites; empty is all.
    """

    text: str
    country: str
    limit: int = 10
    text_chars: int = 0
    depth: str = ""
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """What a search gave.

    Attributes:
        results: JSON objects in order of rank, each with at least `position` (from 1), `title`,
            `url`, `snippet`, `domain`, `type`; `text` (of the page itself), `published` and `score`
            where they are known. They are the citations of what is made of them.
        facts: what else the provider says, as JSON (keyword metrics, units used).
        cost_usd: what the provider says the call cost; None where it does not say.
    """

    results: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    cost_usd: float | None = None

    def within(self, query: SearchQuery) -> Self:
        """The answer with no more results and no longer texts than the query wants."""
        results = [
            {**result, "text": result["text"][: query.text_chars]} if "text" in result else result
            for result in self.results[: query.limit]
        ]
        return replace(self, results=results)


class SearchCodec(Protocol):
    """One search provider's wire protocol, pure: no I/O, no environment, no clock."""

    def build(self, query: SearchQuery, *, key: str, base_url: str) -> WireCall:
        """The HTTP call for a query."""
        ...

    def read(self, reply: WireReply) -> SearchAnswer:
        """Read a reply of any status.

        Raises:
            ProviderError: for every reply that is no usable answer, classified as for LLM calls:
                RATE_LIMITED, TRANSIENT, CONTENT, ITEM_PERMANENT (this query), BATCH_FATAL (key,
                plan or quota: every query would fail).
        """
        ...


@dataclass(frozen=True, slots=True)
class SearchProvider:
    """A search provider.

    Attributes:
        name: such as `ahrefs`.
        endpoint: what limits, results and attempts go by, such as `ahrefs/serp-overview`.
        codec: its wire protocol.
        key_variable: environment variable of its key.
        base_url_variable: environment variable of another address.
        default_base_url: where it answers.
        simulator_path: where the simulator plays it, below the simulator's address.
        limit_name: what its limit goes by: endpoints of one name share one limit.
        requests_per_minute: its published limit; None where there is none.
        cost_usd: what one call costs by the price list; 0 where it is part of a subscription.
        price_of: what a query costs at most, where that depends on it.
        timeout_s: seconds until a call counts as timed out.
        kept_days: how long an answer is good.
        empty_kept_days: how long one without results is; None: as long.
    """

    name: str
    endpoint: str
    codec: SearchCodec
    key_variable: str
    base_url_variable: str
    default_base_url: str
    simulator_path: str
    limit_name: str
    requests_per_minute: float | None = None
    cost_usd: float = 0.0
    timeout_s: float = 30.0
    kept_days: float = 7.0
    empty_kept_days: float | None = None
    price_of: Callable[[SearchQuery], float] | None = None

    def worst_usd(self, query: SearchQuery) -> float:
        """The most that a call with this query costs, in USD."""
        return self.cost_usd if self.price_of is None else self.price_of(query)


@dataclass(frozen=True, slots=True)
class SearchAccess:
    """What it takes to call a search provider; `key` is never shown by `repr`."""

    provider: SearchProvider
    key: str = field(repr=False)
    key_id: str
    base_url: str
