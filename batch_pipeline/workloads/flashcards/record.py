"""All that is known of a topic when its work is done: what files and completion go by.

What belongs here: that record's models. What does not: making it (the workload's steps), storing it
(ledger/documents.py), writing it (exports.py, anki.py).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.workloads.flashcards.models import (
    Decision,
    DraftCard,
    Flashcard,
    OptimizedPrompt,
    Vote,
)
from batch_pipeline.workloads.flashcards.topics import Topic

Mode = Literal["exa", "web", "unified"]

DEFAULT_CARDS = 15

RECORD = "record"
"""Name of the local step whose documents are these records."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """A page that the research found."""

    title: str
    url: str = Field(min_length=1)


class RefusedCard(_Part):
    """A card that did not pass, however often it was asked again.

    Attributes:
        card: as it was written.
        score: by the checks, 0 to 1.
        problems: what is wrong and what to do.
        checks: names of the checks that it fails.
    """

    card: DraftCard
    score: float
    problems: list[str]
    checks: list[str] = Field(default_factory=list)


class TopicRecord(_Part):
    """A topic and what came of it.

    Attributes:
        topic: the topic.
        mode: how it was worked on.
        model: `provider/model` that wrote the cards.
        temperature: as it was asked for; None where the model has none.
        made_at: ISO 8601 in UTC.
        simulated: whether nothing of it is real.
        wanted: cards that were asked for.
        cards: those that passed.
        mean_score: theirs, by the checks; None where there are none.
        refused: those that did not.
        researched: whether research was asked for.
        sources: what it found.
        votes: by the voter's name, None for one who did not answer; None where nobody votes.
        tally: what they came to by the rules of that run (`Tally.as_json`); likewise None.
        decision: what the vote came to; None where nobody votes.
        approval: weight of those who approve over the weight of those who answered, 0 to 1.
        prompt: what the synthesis gave; None where there is none.
        cost_usd: what the topic cost; the ledger knows it (files.py), not the step that made this.
        duration_s: from its first call to its last, in seconds, summed over the runs that worked on
            it; likewise.
    """

    topic: Topic
    mode: Mode
    model: str = ""
    temperature: float | None = None
    made_at: str = ""
    simulated: bool = False
    wanted: int = Field(default=DEFAULT_CARDS, ge=1)
    cards: list[Flashcard] = Field(default_factory=list)
    mean_score: float | None = None
    refused: list[RefusedCard] = Field(default_factory=list)
    researched: bool = True
    sources: list[Source] = Field(default_factory=list)
    votes: dict[str, Vote | None] | None = None
    tally: dict[str, Any] | None = None
    decision: Decision | None = None
    approval: float | None = None
    prompt: OptimizedPrompt | None = None
    cost_usd: float = Field(default=0.0, ge=0.0)
    duration_s: float = Field(default=0.0, ge=0.0)

    @property
    def realm(self) -> dict[str, Any]:
        """What files of a simulated topic say besides; nothing in the live realm."""
        return {"realm": "simulated"} if self.simulated else {}


def iso(at: float) -> str:
    """A time (UTC seconds) as records and files write it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
