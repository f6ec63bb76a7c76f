"""Compiled prices equal genai-prices' own, for every model, date, lane and usage."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from genai_prices import Usage as PricedUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.errors import UsageError
from batch_pipeline.pricing.prices import (
    MissingBatchPriceError,
    ModelPricer,
    UnknownPriceError,
    find_pricer,
    require_pricer,
    worst_nano,
)
from batch_pipeline.providers.base import Usage
from batch_pipeline.providers.registry import parse_route
from batch_pipeline.workloads.base import workload_names
from batch_pipeline.workloads.config import load_workload_config

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)

DIRECT = ("anthropic", "google", "openai")

MODELS = [
    (provider.id, model.id)
    for provider in get_snapshot().providers
    if provider.id in DIRECT
    for model in provider.models
]
TIERED = [
    ("anthropic", "claude-haiku-5-5"),
    ("anthropic", "claude-sonnet-4-5"),
    ("google", "gemini-2.5-pro"),
    ("google", "gemini-3.1-pro-preview"),
    ("openai", "gpt-6-sol"),
    ("openai", "gpt-5.6-luna"),
]
DATED = [
    ("google", "gemini-3.8-flash"),
    ("anthropic", "claude-sonnet-4-6"),
    ("openai", "gpt-5.6-terra"),
    ("openai", "o3"),
]

moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 6, 30), timezones=st.just(UTC)).map(
    lambda at: at.replace(microsecond=0)
)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Any split of a prompt over fresh, cached and cache-writing tokens."""
    counts = st.integers(0, 60_000) | st.integers(0, 1_000_000)
    parts = [draw(counts) for _ in range(4)]
    output = draw(counts)
    return Usage(
        input_tokens=sum(parts),
        cached_input_tokens=parts[1],
        cache_write_tokens=parts[2],
        cache_write_1h_tokens=parts[3],
        output_tokens=output,
        thinking_tokens=draw(st.integers(0, output)),
        web_searches=draw(st.integers(0, 20)),
    )


def published_nano(
    provider: str,
    model: str,
    usage: Usage,
    at: datetime,
    context: dict[str, str] | None = None,
) -> float:
    price = calc_price(
        PricedUsage(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            output_tokens=usage.output_tokens,
            web_searches=usage.web_searches,
        ),
        model,
        provider_id=provider,
        genai_request_timestamp=at,
        price_context=context,
    )
    return float(price.total_price) * 1e9


def compiled_nano(provider: str, model: str, usage: Usage, at: datetime) -> int:
    pricer = find_pricer(provider, model)
    assert pricer is not None
    return pricer(usage, at.timestamp())


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(MODELS), usages(), moments)
def test_any_attempt_costs_what_genai_prices_says(
    named: tuple[str, str], usage: Usage, at: datetime
) -> None:
    try:
        published = published_nano(*named, usage, at)
    except LookupError:  # a family of fine-tuned models, which no model is called like
        assert find_pricer(*named) is None
        return
    assert compiled_nano(*named, usage, at) == pytest.approx(published, abs=1.0, rel=1e-12)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(TIERED), st.integers(-2, 2), st.sampled_from([100_000, 200_000, 272_000]))
def test_the_tiers_begin_at_the_same_token(named: tuple[str, str], beside: int, at: int) -> None:
    usage = Usage(input_tokens=at + beside, cached_input_tokens=1_000, output_tokens=500)
    moment = datetime(2026, 11, 21, tzinfo=UTC)
    assert compiled_nano(*named, usage, moment) == pytest.approx(
        published_nano(*named, usage, moment), abs=1.0, rel=1e-12
    )


@pytest.mark.parametrize("named", DATED)
def test_a_price_changes_on_its_day(named: tuple[str, str]) -> None:
    """Each attempt is priced at the moment it was sent, on both sides of every change."""
    usage = Usage(input_tokens=12_345, cached_input_tokens=345, output_tokens=6_789)
    months = [datetime(year, month, 1, tzinfo=UTC) for year in (2025, 2026) for month in (1, 7)]
    nights = [
        datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2027, 1, 1, 0, 0, 0, tzinfo=UTC),
    ]
    for at in [*months, *nights]:
        assert compiled_nano(*named, usage, at) == pytest.approx(
            published_nano(*named, usage, at), abs=1.0, rel=1e-12
        )


def test_an_introductory_price_ends_at_the_new_year() -> None:
    usage = Usage(input_tokens=1_000_000)
    before = compiled_nano(
        "google", "gemini-3.8-flash", usage, datetime(2026, 12, 31, 23, 59, tzinfo=UTC)
    )
    after = compiled_nano("google", "gemini-3.8-flash", usage, datetime(2027, 1, 1, tzinfo=UTC))
    assert (before, after) == (750_000_000, 1_500_000_000)


def test_every_model_that_a_default_route_names_has_a_price() -> None:
    refs = [
        ref for name in workload_names() for ref in parse_route(load_workload_config(name).route)
    ]
    assert refs
    for ref in refs:
        assert find_pricer(ref.provider, ref.model) is not None, str(ref)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-6.2-astra"),
        ("google", "gemini-99-nano"),
        ("openai-compatible", "gpt-5-mini"),
        ("nobody", "gpt-5-mini"),
    ],
)
def test_a_model_without_a_price_is_said_to_have_none_and_is_not_free_by_guess(
    provider: str, model: str
) -> None:
    assert find_pricer(provider, model) is None
    with pytest.raises(UnknownPriceError, match=f"No price is known for {provider}/{model}"):
        ModelPricer(provider, model)


def batch_models() -> list[tuple[str, str]]:
    """Models that have a Batch API price in November 2026."""
    found = []
    for provider, model in MODELS:
        try:
            require_pricer(provider, model, "batch", NOW.timestamp())
        except UsageError:
            continue
        found.append((provider, model))
    return found


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(batch_models()), usages())
def test_a_batch_attempt_costs_what_genai_prices_says_for_the_batch_api(
    named: tuple[str, str], usage: Usage
) -> None:
    own = require_pricer(*named, "batch", NOW.timestamp()).cost_nano(usage, NOW.timestamp())
    published = published_nano(*named, usage, NOW, {"processing": "batch"})
    assert own == pytest.approx(published, abs=1.0, rel=1e-12)


def test_the_batch_price_of_the_cheap_claude_is_half() -> None:
    usage = Usage(input_tokens=50_000, output_tokens=50_000)
    at = NOW.timestamp()
    full = require_pricer("anthropic", "claude-haiku-5-5", at=at).cost_nano(usage, at)
    half = require_pricer("anthropic", "claude-haiku-5-5", "batch", at).cost_nano(usage, at)
    assert (full, half) == (30_000_000, 15_000_000)


@pytest.mark.parametrize(
    ("model", "at"),
    [
        ("gemini-3.5-flash", NOW),
        ("gemini-3.7-flash", NOW),
        # known, but only from 2026-10-14 on
        ("gemini-3.8-flash", datetime(2026, 10, 1, tzinfo=UTC)),
    ],
)
def test_a_missing_batch_price_is_an_error_and_never_the_standard_price(
    model: str, at: datetime
) -> None:
    with pytest.raises(MissingBatchPriceError, match="standard price is not taken") as caught:
        require_pricer("google", model, "batch", at.timestamp())
    assert "batch: {input: 0.5" in caught.value.next_step
    with pytest.raises(MissingBatchPriceError):
        worst_nano("google", model, 100, 100, at.timestamp(), "batch")


def test_a_required_price_that_nobody_knows_says_how_to_add_it() -> None:
    with pytest.raises(UnknownPriceError, match=r"openai/gpt-6\.2-astra") as caught:
        require_pricer("openai", "gpt-6.2-astra")
    assert "prices.yaml" in caught.value.next_step
    assert "openai/gpt-6.2-astra: {input: 1.0, output: 5.0}" in caught.value.next_step
    with pytest.raises(UnknownPriceError):
        worst_nano("openai", "gpt-6.2-astra", 1, 1, NOW.timestamp())


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([*TIERED, *DATED, ("openai", "gpt-6-luna")]),
    st.integers(0, 400_000),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.integers(0, 50_000),
    st.floats(0, 1),
    moments,
)
def test_no_attempt_within_its_bounds_costs_more_than_the_worst_case(
    named: tuple[str, str],
    text_bytes: int,
    shares: list[float],
    bound: int,
    used: float,
    at: datetime,
) -> None:
    """However many tokens the bytes make, and whatever part of them the cache reads or writes."""
    prompt = int(shares[0] * text_bytes)
    read = int(shares[1] * prompt)
    written = int(shares[2] * (prompt - read))
    long = int(shares[3] * (prompt - read - written))
    usage = Usage(prompt, read, written, long, int(used * bound))
    real = compiled_nano(*named, usage, at)
    assert real <= worst_nano(*named, text_bytes, bound, at.timestamp())


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(TIERED),
    st.integers(0, 400_000),
    st.integers(0, 400_000),
    st.integers(0, 5_000),
    st.integers(0, 5_000),
)
def test_the_worst_case_grows_with_the_text_and_with_the_bound(
    named: tuple[str, str], text_bytes: int, more: int, bound: int, longer: int
) -> None:
    at = NOW.timestamp()
    assert worst_nano(*named, text_bytes, bound, at) <= worst_nano(
        *named, text_bytes + more, bound + longer, at
    )


def test_searches_are_part_of_the_worst_case() -> None:
    pricer = require_pricer("anthropic", "claude-haiku-5-5")
    at = NOW.timestamp()
    searched = pricer.worst_nano(1_000, 100, at, web_searches=3)
    assert searched - pricer.worst_nano(1_000, 100, at) == 3 * 10_000_000
