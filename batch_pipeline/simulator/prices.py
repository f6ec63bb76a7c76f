"""What an attempt costs, by genai-prices; imported late, as its data take two seconds to load."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache, lru_cache

from batch_pipeline.simulator.config import Lane
from batch_pipeline.simulator.wire import Usage


@cache
def load() -> None:
    """Load the price data now."""
    import genai_prices.data_snapshot

    genai_prices.data_snapshot.get_snapshot()


@lru_cache(maxsize=16_384)
def _price(provider: str, model: str, usage: Usage, day: str, batch: bool) -> float | None:
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    try:
        price = calc_price(
            PricedUsage(
                input_tokens=usage.input_tokens,
                cache_read_tokens=usage.cached,
                cache_write_tokens=usage.cache_write + usage.cache_write_long,
                cache_write_1h_tokens=usage.cache_write_long,
                output_tokens=usage.output_tokens,
            ),
            model,
            provider_id=provider,
            genai_request_timestamp=datetime.fromisoformat(day),
            price_context={"processing": "batch"} if batch else None,
        )
    except LookupError:
        return None
    return float(price.total_price)


def price_usd(
    provider: str, model: str, usage: Usage, at: float, lane: Lane = "realtime"
) -> float | None:
    """Return what one attempt costs in USD, or None for a model without a known price.

    Args:
        provider: google, anthropic, openai or openrouter.
        model: as it was asked for.
        usage: the attempt's tokens.
        at: when it was sent (seconds since the epoch, UTC): prices are dated.
        lane: lines of batch jobs cost the batch price; where none is known, half.
    """
    # Prices change at midnight UTC at the earliest: by the day, equal attempts share one answer.
    day = datetime.fromtimestamp(at, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    standard = _price(provider, model, usage, day.isoformat(), False)
    if lane == "realtime" or not standard:
        return standard
    batch = _price(provider, model, usage, day.isoformat(), True)
    # A model without a batch price gets the standard one from genai-prices, without a word.
    return standard / 2 if batch == standard else batch
