"""What cards and votes are judged by: checks.yaml and voting.yaml.

What belongs here: their models, and reading them. What does not: the judging (checks.py,
completion.py, voting.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from batch_pipeline.workloads.flashcards.models import (
    QUESTION_TYPES,
    BloomLevel,
    QuestionType,
)
from batch_pipeline.workloads.operator_files import read_rules

CHECKS_FILE = "checks.yaml"
VOTING_FILE = "voting.yaml"
PAGE = "flashcards-checks.md"

CheckName = Literal[
    "prohibited_phrases",
    "self_contained",
    "distractor_diversity",
    "distractor_reasoning",
    "length_consistency",
    "edit_distance",
    "domain_coherence",
    "required_fields",
    "answer_quality",
    "parenthetical_giveaways",
    "pattern_detection",
    "bloom_level",
]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Phrases = list[Annotated[str, Field(min_length=1)]]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SelfContainedRules(_Block):
    """A question that can be answered by itself."""

    min_question_words: PositiveInt
    phrases: Phrases


class DiversityRules(_Block):
    """Distractors that differ."""

    max_similarity: Share


class ReasoningRules(_Block):
    """Distractors with a reason."""

    min_reason_words: PositiveInt


class LengthRules(_Block):
    """Options of similar length."""

    max_ratio: Annotated[float, Field(ge=1.0)]


class EditRules(_Block):
    """Options that are not one another's misspelling."""

    min_edits: NonNegativeInt


class CoherenceRules(_Block):
    """A card about its topic."""

    min_shared_words: NonNegativeInt


class AnswerRules(_Block):
    """An answer that says something."""

    min_chars: PositiveInt
    max_chars: PositiveInt
    max_question_similarity: Share
    min_explanation_words: NonNegativeInt
    empty_answers: Phrases

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError("min_chars is above max_chars")
        return self


class GiveawayRules(_Block):
    """Parentheses that tell which option is right."""

    lone_parenthetical: bool
    contains: Phrases
    equals: Phrases


class PatternRules(_Block):
    """Options that are no answers."""

    contains: Phrases
    equals: Phrases


class CompletionRules(_Block):
    """When a topic counts as completed."""

    min_cards_share: Annotated[float, Field(gt=0.0, le=1.0)]
    min_sources: NonNegativeInt
    max_generic_share: Share
    min_own_words: NonNegativeInt


class CheckRules(_Block):
    """checks.yaml."""

    pass_score: Share
    automatic_fail: list[CheckName]
    weights: dict[CheckName, NonNegativeFloat]
    prohibited_phrases: dict[str, Phrases]
    self_contained: SelfContainedRules
    distractor_diversity: DiversityRules
    distractor_reasoning: ReasoningRules
    length_consistency: LengthRules
    edit_distance: EditRules
    domain_coherence: CoherenceRules
    answer_quality: AnswerRules
    parenthetical_giveaways: GiveawayRules
    pattern_detection: PatternRules
    bloom_level: dict[QuestionType, Annotated[list[BloomLevel], Field(min_length=1)]]
    completion: CompletionRules

    @model_validator(mode="after")
    def _whole(self) -> Self:
        lacking = sorted(set(get_args(CheckName)) - set(self.weights))
        if lacking:
            raise ValueError(f"weights lacks {', '.join(lacking)}")
        if not any(self.weights.values()):
            raise ValueError("all weights are 0, so that nothing would be checked")
        lacking = sorted(set(QUESTION_TYPES) - set(self.bloom_level))
        if lacking:
            raise ValueError(f"bloom_level lacks {', '.join(lacking)}")
        return self

    def prohibited(self, category: str) -> list[str]:
        """The phrases that no card of a category may hold; `category` without its number."""
        own = {name.casefold(): phrases for name, phrases in self.prohibited_phrases.items()}
        return [*own.get("all", []), *own.get(category.casefold(), [])]


class VoterRules(_Block):
    """One voter."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    weight: Annotated[float, Field(gt=0.0)]
    focus: str = Field(min_length=1)


class VotingRules(_Block):
    """voting.yaml."""

    min_consensus: Annotated[float, Field(gt=0.0, le=1.0)]
    min_voters: PositiveInt
    min_confidence: Share
    same_suggestion: Annotated[float, Field(gt=0.0, le=1.0)]
    identical_votes: Annotated[int, Field(ge=2)]
    voters: Annotated[list[VoterRules], Field(min_length=1)]

    @model_validator(mode="after")
    def _possible(self) -> Self:
        names = [voter.name for voter in self.voters]
        if len(set(names)) != len(names):
            raise ValueError("two voters have the same name")
        if self.min_voters > len(names):
            raise ValueError(f"min_voters is {self.min_voters}, but there are {len(names)} voters")
        return self


def load_check_rules(folder: Path) -> CheckRules:
    """The rules for cards in a folder's checks.yaml.

    Raises:
        UsageError: the file is missing, or has something in it that it cannot have.
    """
    return read_rules(folder / CHECKS_FILE, CheckRules, PAGE)


def load_voting_rules(folder: Path) -> VotingRules:
    """The rules for votes in a folder's voting.yaml.

    Raises:
        UsageError: the file is missing, or has something in it that it cannot have.
    """
    return read_rules(folder / VOTING_FILE, VotingRules, PAGE)
