"""What an attempt costs: genai-prices, compiled once per model (a call of it takes 0.4 ms).

What belongs here: model lookup and price arithmetic. What does not: budgets and estimates of
whole batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from batch_pipeline.errors import UsageError
from batch_pipeline.providers.base import Usage

NANO_PER_USD = 1_000_000_000

# genai-prices' own names for our providers, where they differ.
_PRICE_PROVIDERS = {"openai-compatible": None}

_PRICED_FIELDS = (
    "input_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
    "output_mtok",
)


class UnknownPriceError(UsageError):
    """A model whose price nobody knows."""

    def __init__(self, provider: str, model: str) -> None:
        super().__init__(
            f"No price is known for {provider}/{model}.",
            "Calls work and are reported at 0.00 USD; a budget cannot be set for it.",
        )


@dataclass(frozen=True, slots=True)
class _Rates:
    """Nano-USD per token from a prompt size on; searches by the piece."""

    above_tokens: int
    fresh_input: float
    cache_read: float
    cache_write: float
    cache_write_1h: float
    output: float
    web_search: float


class ModelPricer:
    """The price of one model's attempts.

    Args:
        provider: our provider name.
        model: the provider's model name.

    Raises:
        UnknownPriceError: genai-prices does not know the model.
    """

    def __init__(self, provider: str, model: str) -> None:
        self._provider = provider
        self._model = model
        self._info = _find_model(provider, model)
        self._compiled: dict[int, tuple[Any, list[_Rates]]] = {}

    def cost_nano(self, usage: Usage, at: float) -> int:
        """Price of one attempt in nano-USD.

        Args:
            usage: tokens as billed.
            at: when the request was sent, in UTC seconds: prices are dated.
        """
        rates = self._rates(at)
        applicable = rates[0]
        for candidate in rates:
            if usage.input_tokens > candidate.above_tokens:
                applicable = candidate
        fresh = (
            usage.input_tokens
            - usage.cached_input_tokens
            - usage.cache_write_tokens
            - usage.cache_write_1h_tokens
        )
        return round(
            fresh * applicable.fresh_input
            + usage.cached_input_tokens * applicable.cache_read
            + usage.cache_write_tokens * applicable.cache_write
            + usage.cache_write_1h_tokens * applicable.cache_write_1h
            + usage.output_tokens * applicable.output
            + usage.web_searches * applicable.web_search
        )

    def _rates(self, at: float) -> list[_Rates]:
        prices = self._info.get_prices(datetime.fromtimestamp(at, UTC))
        known = self._compiled.get(id(prices))
        if known is None or known[0] is not prices:
            known = (prices, _compile(prices))
            self._compiled[id(prices)] = known
        return known[1]


def _compile(prices: Any) -> list[_Rates]:
    from genai_prices.types import TieredPrices

    values = {name: getattr(prices, name) for name in (*_PRICED_FIELDS, "web_searches_kcount")}
    starts = {
        tier.start
        for value in values.values()
        if isinstance(value, TieredPrices)
        for tier in value.tiers
    }

    def at(name: str, above: int | None, fallback: str | None = None) -> float:
        value = values[name]
        if value is None:
            return at(fallback, above) if fallback else 0.0
        if isinstance(value, TieredPrices):
            price = value.base
            for tier in value.tiers:
                if above is not None and tier.start <= above:
                    price = tier.price
            value = price
        per = 1_000 if name == "web_searches_kcount" else 1_000_000
        return float(value * NANO_PER_USD / per)

    return [
        _Rates(
            above_tokens=-1 if above is None else above,
            fresh_input=at("input_mtok", above),
            cache_read=at("cache_read_mtok", above, "input_mtok"),
            cache_write=at("cache_write_mtok", above, "input_mtok"),
            # The one hour kind falls back on the five minute kind, and that on plain input.
            cache_write_1h=at("cache_write_1h_mtok", above)
            if values["cache_write_1h_mtok"] is not None
            else at("cache_write_mtok", above, "input_mtok"),
            output=at("output_mtok", above),
            web_search=at("web_searches_kcount", above),
        )
        for above in [None, *sorted(starts)]
    ]


def _find_model(provider: str, model: str) -> Any:
    from genai_prices.data_snapshot import get_snapshot

    provider_id = _PRICE_PROVIDERS.get(provider, provider)
    if provider_id is None:
        raise UnknownPriceError(provider, model)
    try:
        _, info = get_snapshot().find_provider_model(model, None, provider_id, None)
    except LookupError as error:
        raise UnknownPriceError(provider, model) from error
    return info


@lru_cache(maxsize=256)
def find_pricer(provider: str, model: str) -> Callable[[Usage, float], int] | None:
    """The pricing function of a model, or None when its price is unknown."""
    try:
        return ModelPricer(provider, model).cost_nano
    except UnknownPriceError:
        return None
