"""What an attempt costs, exactly and at worst: price tables, compiled once per model.

genai-prices takes 0.4 ms a call; a compiled price takes about a microsecond. What belongs here:
model lookup and price arithmetic. What does not: the user's file (table.py), budgets and estimates
of whole batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

from batch_pipeline.errors import UsageError
from batch_pipeline.pricing.table import (
    HOW_TO_ADD,
    LanePrices,
    PriceEntry,
    PriceTable,
    TierPrices,
    price_table,
)
from batch_pipeline.pricing.web_search import Added, added_by, usual_search_usd
from batch_pipeline.providers.base import Usage, WebSearch

NANO_PER_USD = 1_000_000_000

TEMPLATE_TOKENS = 256
"""What a chat template, and a provider's own words around an output schema, may add to the texts
that we send: the worst case has them on top of one token for each byte."""

Lane = Literal["realtime", "batch"]

# genai-prices' own names for our providers, where they differ.
_PRICE_PROVIDERS = {"openai-compatible": None}

_PRICED_FIELDS = (
    "input_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
    "output_mtok",
)
_BATCH = {"processing": "batch"}


class UnknownPriceError(UsageError):
    """A model whose price nobody knows."""

    def __init__(self, provider: str, model: str) -> None:
        how = HOW_TO_ADD.format(path=price_table().path, provider=provider, model=model)
        super().__init__(
            f"No price is known for {provider}/{model}.",
            f"Calls work and are reported at 0.00 USD, but no budget can be kept. {how}",
        )


class MissingBatchPriceError(UsageError):
    """A model whose price in the provider's Batch API nobody knows."""

    def __init__(self, provider: str, model: str) -> None:
        super().__init__(
            f"No Batch API price is known for {provider}/{model}, and the standard price is not "
            "taken in its place.",
            f"Add a `batch:` block to its entry in {price_table().path}, for example "
            f"`{provider}/{model}: {{input: 1.0, output: 5.0, batch: {{input: 0.5, output: 2.5}}}}`"
            ", or use the realtime lane.",
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

    def dearest_input(self, *, long_cache: bool) -> float:
        """The most that a prompt token can cost."""
        dearest = max(self.fresh_input, self.cache_read, self.cache_write)
        return max(dearest, self.cache_write_1h) if long_cache else dearest


class ModelPricer:
    """The price of one model's attempts.

    Args:
        provider: our provider name.
        model: the provider's model name.
        lane: `realtime`, or `batch` for the provider's Batch API.
        table: the user's prices; None reads them.

    Raises:
        UnknownPriceError: neither the user's table nor genai-prices knows the model.
        PriceTableError: the user's table cannot be used.
    """

    def __init__(
        self, provider: str, model: str, lane: Lane = "realtime", table: PriceTable | None = None
    ) -> None:
        self._provider = provider
        self._model = model
        self._lane = lane
        own = price_table() if table is None else table
        self._own = own.entries(provider, model)
        self._info: Any = None if self._own else _find_model(provider, model)
        self._compiled: dict[tuple[int, ...], tuple[Any, list[_Rates]]] = {}
        # Fallback for a search whose price stands neither in the reply nor in the price table.
        self._usual_search_nano = usual_search_usd(provider) * NANO_PER_USD

    def cost_nano(self, usage: Usage, at: float) -> int:
        """Price of one attempt in nano-USD.

        Args:
            usage: tokens as billed.
            at: when the request was sent, in UTC seconds: prices are dated.

        Raises:
            MissingBatchPriceError: in the batch lane, where no price is known for that time.
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
            + usage.web_searches * (applicable.web_search or self._usual_search_nano)
        )

    def worst_nano(
        self,
        text_bytes: int,
        output_bound: int,
        at: float,
        *,
        web_searches: int = 0,
        web_search: WebSearch | None = None,
        long_cache: bool = True,
    ) -> int:
        """The most that an attempt can cost, in nano-USD.

        No tokenizer makes more tokens of a text than it has UTF-8 bytes, whatever part of them is
        read from a cache or written to it, and whichever tier the prompt falls into.

        Args:
            text_bytes: UTF-8 bytes of everything sent: system prompt, user message and schema, or
                the whole body.
            output_bound: billable output tokens at most, thinking included.
            at: when it is sent, in UTC seconds.
            web_searches: server-side searches at most, beside those of `web_search`.
            web_search: how the model may search: what it finds comes into the prompt, which is paid
                for once more in each turn.
            long_cache: the call may write to a one hour prompt cache.

        Raises:
            MissingBatchPriceError: see `cost_nano`.
        """
        added = Added() if web_search is None else added_by(web_search, self._provider)
        most = added.turns * (text_bytes + TEMPLATE_TOKENS)
        most += added.prompt_tokens + added.answers_read * output_bound
        return math.ceil(
            max(
                most * rates.dearest_input(long_cache=long_cache)
                + added.turns * output_bound * rates.output
                + web_searches * (rates.web_search or self._usual_search_nano)
                + added.usd * NANO_PER_USD
                for rates in self._rates(at)
                if most > rates.above_tokens
            )
        )

    def _rates(self, at: float) -> list[_Rates]:
        if self._own:
            return self._own_rates(at)
        moment = datetime.fromtimestamp(at, UTC)
        standard = self._info.get_prices(moment)
        if self._lane == "realtime":
            known = self._compiled.get((id(standard),))
            if known is None:
                # The price object is kept with its rates, so that its id stays its own.
                known = (standard, _compile(standard))
                self._compiled[(id(standard),)] = known
            return known[1]
        variants = _batch_variants(self._info, moment)
        if not _has_batch_price(variants):
            raise MissingBatchPriceError(self._provider, self._model)
        key = (id(standard), *map(id, variants))
        known = self._compiled.get(key)
        if known is None:
            known = (standard, _compile(self._info.get_prices(moment, _BATCH)))
            self._compiled[key] = known
        return known[1]

    def _own_rates(self, at: float) -> list[_Rates]:
        # Before its first date the earliest price holds: there is no better one.
        entry = self._own[0]
        for later in self._own[1:]:
            if later.since <= at:
                entry = later
        known = self._compiled.get((id(entry),))
        if known is None:
            known = (entry, _compile_own(self._lane_of(entry)))
            self._compiled[(id(entry),)] = known
        return known[1]

    def _lane_of(self, entry: PriceEntry) -> LanePrices:
        if self._lane == "realtime":
            return entry
        if entry.batch is None:
            raise MissingBatchPriceError(self._provider, self._model)
        return entry.batch


def find_pricer(provider: str, model: str) -> Callable[[Usage, float], int] | None:
    """The pricing function of a model, or None when its price is unknown.

    Raises:
        PriceTableError: the user's price table cannot be used.
    """
    pricer = _pricer(provider, model, "realtime", price_table())
    return None if pricer is None else pricer.cost_nano


def find_model_pricer(provider: str, model: str, lane: Lane) -> ModelPricer | None:
    """The pricer of a model in a lane, or None when its price there is unknown.

    Raises:
        PriceTableError: the user's price table cannot be used.
    """
    try:
        return require_pricer(provider, model, lane)
    except (UnknownPriceError, MissingBatchPriceError):
        return None


def require_pricer(
    provider: str, model: str, lane: Lane = "realtime", at: float | None = None
) -> ModelPricer:
    """The pricer of a model whose price has to be known, as under a budget.

    Args:
        provider: our provider name.
        model: the provider's model name.
        lane: `realtime` or `batch`.
        at: when it is to be used (UTC seconds); None is now.

    Raises:
        UnknownPriceError: no price is known; says how to add one.
        MissingBatchPriceError: lane `batch`, and only the standard price is known.
        PriceTableError: the user's price table cannot be used.
    """
    table = price_table()
    pricer = _pricer(provider, model, lane, table)
    if pricer is None:
        raise UnknownPriceError(provider, model)
    pricer.cost_nano(Usage(), time.time() if at is None else at)
    return pricer


def worst_nano(
    provider: str,
    model: str,
    text_bytes: int,
    output_bound: int,
    at: float,
    lane: Lane = "realtime",
) -> int:
    """The most that an attempt can cost, in nano-USD; see `ModelPricer.worst_nano`.

    Raises:
        UnknownPriceError: no price is known.
        MissingBatchPriceError: lane `batch`, and only the standard price is known.
    """
    table = price_table()
    pricer = _pricer(provider, model, lane, table)
    if pricer is None:
        raise UnknownPriceError(provider, model)
    return pricer.worst_nano(text_bytes, output_bound, at)


# One entry for each state of the user's table, so that a long-lived process sees an edit.
@lru_cache(maxsize=256)
def _pricer(provider: str, model: str, lane: Lane, table: PriceTable) -> ModelPricer | None:
    try:
        return ModelPricer(provider, model, lane, table)
    except UnknownPriceError:
        return None


def _batch_variants(info: Any, moment: datetime) -> list[Any]:
    """The variants that apply to the Batch API at that time.

    genai-prices silently gives the standard price where there is none.
    """
    return [
        variant
        for variant in info.price_variants or ()
        if (variant.constraint is None or variant.constraint.active(moment))
        and all(_BATCH.get(key) == value for key, value in variant.when.items())
    ]


def _has_batch_price(variants: Sequence[Any]) -> bool:
    return all(
        any(getattr(variant.prices, name) is not None for variant in variants)
        for name in ("input_mtok", "output_mtok")
    )


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


def _compile_own(prices: LanePrices) -> list[_Rates]:
    per_token = NANO_PER_USD / 1_000_000
    values = prices.model_dump(include=set(TierPrices.model_fields) - {"above_tokens"})
    compiled = []
    for tier in (None, *sorted(prices.tiers, key=lambda tier: tier.above_tokens)):
        if tier is not None:
            values |= tier.model_dump(exclude={"above_tokens"}, exclude_none=True)
        fresh = values["input"]
        write = fresh if values["cache_write"] is None else values["cache_write"]
        long = write if values["cache_write_1h"] is None else values["cache_write_1h"]
        read = fresh if values["cached_input"] is None else values["cached_input"]
        compiled.append(
            _Rates(
                above_tokens=-1 if tier is None else tier.above_tokens,
                fresh_input=fresh * per_token,
                cache_read=read * per_token,
                cache_write=write * per_token,
                cache_write_1h=long * per_token,
                output=values["output"] * per_token,
                web_search=prices.web_search * NANO_PER_USD / 1_000,
            )
        )
    return compiled


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
