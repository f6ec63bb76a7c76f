"""What an operator chooses for a whole batch of topics.

What belongs here: the options' model, and what they come to. What does not: which topics are read
(topics.py), rules for cards and votes (rules.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.providers.base import WebSearch
from batch_pipeline.workloads.flashcards.record import DEFAULT_CARDS, Mode

MOST_CARDS = 50


@dataclass(frozen=True, slots=True)
class SearchDepth:
    """How much of the web a topic is written from.

    Attributes:
        pages: results of a search.
        characters: of each of them.
    """

    pages: int
    characters: int


DEPTHS: Mapping[str, SearchDepth] = {
    "low": SearchDepth(3, 1_000),
    "medium": SearchDepth(5, 2_000),
    "high": SearchDepth(10, 4_000),
}
"""By `search_context_size`. Exa's price is the same for all: it is by the ten pages."""


class FlashcardOptions(BaseModel):
    """Options of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = Field(
        default="web",
        description="`web`: the writer searches; `exa`: Exa is asked first; `unified`: research, "
        "eight voters, synthesis, cards.",
    )
    num_flashcards: int = Field(
        default=DEFAULT_CARDS, ge=1, le=MOST_CARDS, description="Cards per topic."
    )
    research: bool = Field(default=True, description="Whether anything is searched at all.")
    rounds: int = Field(
        default=2, ge=0, le=5, description="How often failing and missing cards are asked again."
    )
    web_engine: Literal["exa", "native", "auto"] = Field(
        default="exa", description="Who searches in the modes web and unified."
    )
    web_plugin: bool = Field(
        default=False, description="OpenRouter's older web plugin instead of its server tool."
    )
    search_context_size: Literal["low", "medium", "high"] = Field(
        default="medium", description="Pages of a search, and characters of each."
    )
    anki: bool = Field(default=True, description="Whether an Anki package is written.")
    csv_bom: bool = Field(
        default=False, description="Whether flashcards.csv begins with a byte order mark."
    )

    @property
    def depth(self) -> SearchDepth:
        """What `search_context_size` stands for."""
        return DEPTHS[self.search_context_size]

    @property
    def web_search(self) -> WebSearch | None:
        """How a model may search the web; None where nothing is searched."""
        if not self.research:
            return None
        return WebSearch(
            max_results=self.depth.pages,
            engine=self.web_engine,
            plugin=self.web_plugin,
            max_characters=self.depth.characters,
        )
