"""What web searches of a model add to a call at most: fee, prompt and turns.

What belongs here: reading web_search.yaml and that arithmetic. What does not: the price of tokens
(prices.py), search providers that are called directly (search/).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from batch_pipeline.providers.base import WebSearch

_BYTES_PER_CHARACTER = 4
# Title, address and the words around a result.
_BYTES_AROUND_RESULT = 2_000


class SearchPrices(BaseModel):
    """One provider's entry of web_search.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    usd_per_result: float = Field(ge=0)
    usual_results: int = Field(ge=1)
    native_usd_per_search: float = Field(ge=0)
    native_tokens_per_search: int = Field(ge=0)
    plugin_characters: int = Field(ge=0)
    source: str
    as_of: datetime.date

    @property
    def usual_usd(self) -> float:
        """What a search costs of which only the number is known."""
        return max(self.usd_per_result * self.usual_results, self.native_usd_per_search)


@dataclass(frozen=True, slots=True)
class Added:
    """What searches add to a call at most.

    Attributes:
        usd: their fee.
        turns: how often the model is asked: each time the prompt is paid for again.
        prompt_tokens: what all turns together read of results.
        answers_read: how many times an earlier turn's answer is read again.
    """

    usd: float = 0.0
    turns: int = 1
    prompt_tokens: int = 0
    answers_read: int = 0


def added_by(search: WebSearch, provider: str) -> Added:
    """What a request's web search adds at most.

    With the engine `exa` the request itself bounds it. What a model maker's own search (`native`,
    and perhaps `auto`) does cannot be bounded: it is taken to search `max_uses` times.
    """
    prices = _all_prices().get(provider)
    if prices is None:
        return Added()
    uses = 1 if search.plugin else search.max_uses
    turns = 1 if search.plugin else uses + 1
    results = uses * search.max_results
    characters = prices.plugin_characters if search.plugin else search.max_characters
    read = results * (characters * _BYTES_PER_CHARACTER + _BYTES_AROUND_RESULT)
    usd = results * prices.usd_per_result
    if search.engine != "exa":
        native = uses * prices.native_tokens_per_search
        native_usd = uses * prices.native_usd_per_search
        read = native if search.engine == "native" else max(native, read)
        usd = native_usd if search.engine == "native" else max(native_usd, usd)
    # a result stays in the conversation for all turns after its own
    later_turns = max(1, turns - 1)
    return Added(usd, turns, read * later_turns, turns * (turns - 1) // 2)


def usual_search_usd(provider: str) -> float:
    """What one search costs of which only the number is known; 0 where nobody says."""
    prices = _all_prices().get(provider)
    return 0.0 if prices is None else prices.usual_usd


@cache
def _all_prices() -> Mapping[str, SearchPrices]:
    text = Path(__file__).with_name("web_search.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, SearchPrices]).validate_python(yaml.safe_load(text))
