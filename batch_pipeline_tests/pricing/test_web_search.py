"""What a model's web search adds to the worst case, and to a cost that nobody states."""

from __future__ import annotations

import pytest

from batch_pipeline.pricing.prices import NANO_PER_USD, require_pricer
from batch_pipeline.pricing.web_search import added_by, usual_search_usd
from batch_pipeline.providers.base import Usage, WebSearch

AT = 1_795_000_000.0
MODEL = "openai/gpt-6-luna"


def _worst(search: WebSearch | None, text_bytes: int = 1_000, bound: int = 100) -> int:
    pricer = require_pricer("openrouter", MODEL)
    return pricer.worst_nano(text_bytes, bound, AT, web_search=search)


@pytest.mark.parametrize(
    ("search", "usd", "turns"),
    [
        (WebSearch(), 0.020, 2),
        (WebSearch(plugin=True), 0.020, 1),
        (WebSearch(max_results=10, max_uses=3), 0.120, 4),
        (WebSearch(engine="native"), 0.010, 2),
        (WebSearch(engine="native", plugin=True), 0.010, 1),
        (WebSearch(engine="auto"), 0.020, 2),
        (WebSearch(max_results=1, engine="auto"), 0.010, 2),
    ],
)
def test_the_fee_goes_by_results_or_by_searches(search: WebSearch, usd: float, turns: int) -> None:
    added = added_by(search, "openrouter")
    assert added.usd == pytest.approx(usd)
    assert added.turns == turns


def test_the_worst_case_holds_the_fee_and_a_prompt_for_each_turn() -> None:
    plain, searched = _worst(None), _worst(WebSearch())
    assert searched - 2 * plain >= 0.020 * NANO_PER_USD
    plugin = _worst(WebSearch(plugin=True))
    assert plugin - plain >= 0.020 * NANO_PER_USD


@pytest.mark.parametrize(
    "more", [WebSearch(max_results=6), WebSearch(max_uses=2), WebSearch(max_characters=2_001)]
)
def test_the_worst_case_grows_with_everything_that_may_be_searched(more: WebSearch) -> None:
    assert _worst(more) > _worst(WebSearch())


def test_auto_is_at_worst_the_dearer_of_both_engines() -> None:
    exa, native = _worst(WebSearch()), _worst(WebSearch(engine="native"))
    assert _worst(WebSearch(engine="auto")) >= max(exa, native)


def test_several_turns_read_results_and_earlier_answers_again() -> None:
    once, thrice = (
        added_by(WebSearch(), "openrouter"),
        added_by(WebSearch(max_uses=3), "openrouter"),
    )
    assert once.answers_read == 1 and thrice.answers_read == 6
    assert thrice.prompt_tokens == 9 * once.prompt_tokens


def test_a_search_without_a_stated_price_is_counted_at_the_usual_one() -> None:
    pricer = require_pricer("openrouter", "deepseek/deepseek-v3.2")
    usage = Usage(input_tokens=100, output_tokens=10)
    searched = Usage(input_tokens=100, output_tokens=10, web_searches=2)
    extra = pricer.cost_nano(searched, AT) - pricer.cost_nano(usage, AT)
    assert extra == pytest.approx(2 * usual_search_usd("openrouter") * NANO_PER_USD, abs=1)
    assert usual_search_usd("openrouter") == pytest.approx(0.02)


def test_who_has_no_entry_adds_nothing() -> None:
    assert added_by(WebSearch(), "openai").usd == 0
    assert usual_search_usd("openai") == 0
