"""Which limit counts: the user's, the tier's, a header's; and what the tiers say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.errors import UsageError
from batch_pipeline.limits.rates import DIMENSIONS, Rates, Source, lowest, resolve_limits
from batch_pipeline.limits.tiers import find_tier, granted, load_tiers

AMOUNT = st.none() | st.floats(0.1, 1e7)


@st.composite
def opinions(draw: st.DrawFn, source: Source) -> Rates:
    amounts = draw(st.tuples(AMOUNT, AMOUNT, AMOUNT, AMOUNT, AMOUNT))
    return Rates(*amounts, sources=(source,) * len(DIMENSIONS))


@settings(deadline=None)
@given(opinions(Source.USER), opinions(Source.TIER))
def test_the_user_wins_where_the_user_says_something_and_is_warned_above_the_tier(
    user: Rates, tier: Rates
) -> None:
    resolved, warnings = resolve_limits(user, tier, "google tier-1")
    above = 0
    for place, dimension in enumerate(DIMENSIONS):
        wanted, most = user.amounts[place], tier.amounts[place]
        assert resolved.amounts[place] == (most if wanted is None else wanted)
        if wanted is not None or most is not None:
            said = Source.USER if wanted is not None else Source.TIER
            assert resolved.source(dimension) is said
        above += wanted is not None and most is not None and wanted > most
    assert len(warnings) == above
    assert all("google tier-1" in warning for warning in warnings)


@settings(deadline=None)
@given(opinions(Source.USER), opinions(Source.HEADER), opinions(Source.LEARNED))
def test_of_several_opinions_the_lowest_counts_with_its_source(
    user: Rates, header: Rates, learned: Rates
) -> None:
    given_opinions = (user, header, learned)
    found = lowest(*given_opinions)
    for place in range(len(DIMENSIONS)):
        known = [
            (one.amounts[place], one.sources[place])
            for one in given_opinions
            if one.amounts[place] is not None
        ]
        least = min((amount for amount, _ in known if amount is not None), default=None)
        assert found.amounts[place] == least
        if least is not None:
            assert (least, found.sources[place]) in known


def test_without_a_tier_the_knobs_stand_as_they_are() -> None:
    user = Rates(requests=15)
    assert resolve_limits(user, None) == (user, [])


def test_a_tier_is_found_by_provider_model_and_name_however_it_is_written() -> None:
    flash = find_tier("google", "gemini-3.8-flash", "Tier 1")
    assert flash is not None and flash.requests == 2_000
    assert flash.source("requests") is Source.TIER
    pro = find_tier("google", "gemini-2.5-pro", "tier_1")
    assert pro is not None and (pro.requests, pro.input_tokens) == (360, 4_000_000)
    claude = find_tier("anthropic", "claude-haiku-5-5", "tier-2")
    assert claude is not None and (claude.requests, claude.input_tokens) == (10, 40_000)
    free = find_tier("openrouter", "qwen/qwen3.8-flash:free", "free")
    assert free is not None and (free.requests, free.requests_per_day) == (20, 50)
    assert find_tier("openrouter", "qwen/qwen3.8-flash", "free") is None


def test_an_unknown_tier_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"tier-1, tier-2, tier-3"):
        find_tier("anthropic", "claude-haiku-5-5", "gold")


def test_every_entry_of_the_tiers_says_where_it_is_from_and_limits_something() -> None:
    for provider, tiers in load_tiers().items():
        for entries in tiers.values():
            for entry in entries:
                assert entry.source and not entry.rates.unlimited, provider
        assert granted(provider, "some-model:free")
