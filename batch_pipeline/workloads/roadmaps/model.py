"""The answer for one topic.

What belongs here: the output model and its rules. What does not: the prompt
(defs/roadmaps/prompt.md).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_TLDR_WORDS = 12
END_PUNCTUATION = ".!?;:,"


class TopicEnrichment(BaseModel):
    """What the model says about one topic."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    tldr: str = Field(
        description="What the topic is or is good for, as one phrase of at most 12 words on a "
        "single line, without punctuation at its end."
    )
    challenge: Literal["practice", "expert"] = Field(
        description="'practice': fundamentals that one learns by doing, with few prerequisites. "
        "'expert': architecture or production concerns that build on much earlier knowledge."
    )

    @field_validator("tldr")
    @classmethod
    def _short_phrase(cls, value: str) -> str:
        text = value.strip()
        if not text:
            raise ValueError("tldr is empty")
        if len(text.splitlines()) > 1:
            raise ValueError("tldr must be a single line")
        if text[-1] in END_PUNCTUATION:
            raise ValueError(f"tldr must not end with '{text[-1]}'")
        if (words := len(text.split())) > MAX_TLDR_WORDS:
            raise ValueError(f"tldr has {words} words, at most {MAX_TLDR_WORDS} are allowed")
        return text
