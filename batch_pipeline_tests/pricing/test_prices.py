"""Compiled prices equal genai-prices' own, for every model, date and usage."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from genai_prices import Usage as PricedUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.pricing.prices import ModelPricer, UnknownPriceError, find_pricer
from batch_pipeline.pricing.tokens import estimate_tokens
from batch_pipeline.providers.base import Usage
from batch_pipeline.providers.registry import parse_route
from batch_pipeline.workloads.base import workload_names
from batch_pipeline.workloads.config import load_workload_config

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


def published_nano(provider: str, model: str, usage: Usage, at: datetime) -> float:
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


@settings(deadline=None)
@given(st.text(max_size=400), st.text(max_size=40))
def test_more_text_is_never_estimated_at_fewer_tokens(text: str, more: str) -> None:
    assert 1 <= estimate_tokens(text) <= estimate_tokens(text + more)
    assert estimate_tokens(text) == estimate_tokens(text.encode())


def test_an_estimate_is_near_four_characters_of_english_for_each_token() -> None:
    assert estimate_tokens("word " * 400) == 501
