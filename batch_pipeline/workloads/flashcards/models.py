"""What models answer: cards, votes, the prompt that a synthesis gives.

What belongs here: these models, tolerant in and strict out. What does not: judging cards
(checks.py) and votes (voting.py), prompts (defs/flashcards).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from batch_pipeline.workloads.text import one_line

Difficulty = Literal["foundational", "intermediate", "advanced", "expert", "master"]
QuestionType = Literal["definition", "comparison", "analysis", "scenario"]
BloomLevel = Literal["remember", "understand", "apply", "analyze", "evaluate", "create"]
Decision = Literal["APPROVE", "APPROVE_WITH_SUGGESTIONS", "REVISE", "REJECT"]

DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)
QUESTION_TYPES: tuple[QuestionType, ...] = get_args(QuestionType)
BLOOM_LEVELS: tuple[BloomLevel, ...] = get_args(BloomLevel)

DISTRACTORS = 3

# Other words for the same, as models and the guide's shorter form of a card write them.
_OTHER_WORDS = {
    **{"beginner": "foundational", "basic": "foundational", "easy": "foundational"},
    **{"hard": "advanced", "mastery": "master"},
    **{"define": "definition", "compare": "comparison", "analytical": "analysis"},
    **{"application": "scenario", "case": "scenario"},
    **{"remembering": "remember", "recall": "remember", "knowledge": "remember"},
    **{"understanding": "understand", "comprehension": "understand"},
    **{"applying": "apply", "analyse": "analyze", "analyzing": "analyze", "analysing": "analyze"},
    **{"evaluating": "evaluate", "evaluation": "evaluate", "creating": "create"},
}
_OTHER_FIELDS = {
    "question": "question_text",
    "answer": "correct_answer",
    "explanation": "detailed_explanation",
    "bloom": "bloom_level",
    "blooms_level": "bloom_level",
    "type": "question_type",
}
_CODE = re.compile(r"[^A-Z0-9]+")


def _filled(value: str) -> str:
    text = value.strip()
    if not text:
        raise ValueError("is empty")
    return text


Filled = Annotated[str, AfterValidator(_filled), Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Distractor(_Strict):
    """A wrong option."""

    text: Filled
    misconception: Filled = Field(
        description="What somebody who chooses it gets wrong, as `Targets [kind]: reason`."
    )


class Explanation(_Strict):
    """Why the answer is right."""

    core_logic: Filled = Field(description="Why the correct answer is correct.")
    distractor_analysis: Filled = Field(description="Why each distractor is wrong.")
    analogy: Filled = Field(description="A comparison with something familiar.")


class Flashcard(_Strict):
    """A card as it is delivered."""

    question_text: Filled
    correct_answer: Filled
    distractors: list[Distractor] = Field(min_length=DISTRACTORS, max_length=DISTRACTORS)
    detailed_explanation: Explanation
    code_snippets: list[str] = Field(description="Code that belongs to the card; may be empty.")
    difficulty: Difficulty
    question_type: QuestionType
    bloom_level: BloomLevel
    prerequisites: list[str] = Field(
        description="Codes of what must be known before, such as NETWORK-BASICS; may be empty."
    )


def _text(value: Any) -> Any:
    return "" if value is None else value.strip() if isinstance(value, str) else value


def _word(value: Any) -> Any:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    word = value.strip().casefold()
    return _OTHER_WORDS.get(word, word)


def _texts(value: Any) -> Any:
    if value in (None, ""):
        return []
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        return value
    return [entry.strip() for entry in entries if entry.strip()]


def _codes(value: Any) -> Any:
    texts = _texts(value)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return texts
    codes = (_CODE.sub("-", text.upper()).strip("-") for text in texts)
    return [code for code in codes if code]


_Text = Annotated[str, BeforeValidator(_text)]
_Word = Annotated[str, BeforeValidator(_word)]


class DraftDistractor(BaseModel):
    """A wrong option as a model wrote it; what it left out is empty."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    text: _Text = ""
    misconception: _Text = ""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class DraftExplanation(BaseModel):
    """An explanation as a model wrote it; what it left out is empty."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    core_logic: _Text = ""
    distractor_analysis: _Text = ""
    analogy: _Text = ""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if value is None:
            return {}
        return {"core_logic": value} if isinstance(value, str) else value


class DraftCard(BaseModel):
    """A card as a model wrote it: read tolerantly, so that one bad card is asked again alone.

    Read besides the fields of `Flashcard`: the guide's shorter form (`question`, `explanation` as
    a text, difficulty `beginner`), other words for the same level, a single text where a list
    belongs. What is left out is empty, and a matter for the check `required_fields`. Fields that
    no card has (`tags`) are dropped. Its JSON schema is that of `Flashcard`: models are asked for
    the whole.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    question_text: _Text = ""
    correct_answer: _Text = ""
    distractors: list[DraftDistractor] = Field(default_factory=list)
    detailed_explanation: DraftExplanation = DraftExplanation()
    code_snippets: Annotated[list[str], BeforeValidator(_texts)] = Field(default_factory=list)
    difficulty: _Word = ""
    question_type: _Word = ""
    bloom_level: _Word = ""
    prerequisites: Annotated[list[str], BeforeValidator(_codes)] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        renamed: dict[Any, Any] = dict(value)
        for other, name in _OTHER_FIELDS.items():
            if name not in renamed and other in renamed:
                renamed[name] = renamed.pop(other)
        return renamed

    @field_validator("distractors", mode="before")
    @classmethod
    def _no_distractors(cls, value: Any) -> Any:
        return [] if value is None else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(Flashcard.__pydantic_core_schema__)

    @property
    def options(self) -> list[str]:
        """The correct answer, then the distractors."""
        return [self.correct_answer, *(one.text for one in self.distractors)]

    @property
    def texts(self) -> list[str]:
        """All that a learner reads, but code."""
        parts = self.detailed_explanation
        reasons = [one.misconception for one in self.distractors]
        return [
            self.question_text,
            *self.options,
            *reasons,
            parts.core_logic,
            parts.distractor_analysis,
            parts.analogy,
        ]


def finished(card: DraftCard) -> Flashcard:
    """The card as it is delivered.

    Raises:
        pydantic.ValidationError: it is not whole; `missing_parts` says it in words.
    """
    return Flashcard.model_validate(card.model_dump())


def missing_parts(card: DraftCard) -> list[str]:
    """What a card lacks to be delivered, in words; empty for a whole card."""
    try:
        finished(card)
    except ValidationError as error:
        missing = [_in_words(problem) for problem in error.errors(include_url=False)]
    else:
        missing = []
    return [*missing, *_repeated_options(card)]


def same_option(one: str, other: str) -> bool:
    """Whether two options are the same text; C++ and C# are two, whatever else they share."""
    return _option_key(one) == _option_key(other)


def _option_key(text: str) -> str:
    plain = " ".join(text.casefold().split())
    return plain.rstrip(" .,;:") or plain


def _repeated_options(card: DraftCard) -> Iterator[str]:
    """Options that are the same: what is asked for is three different wrong ones."""
    for (place, one), (at, other) in combinations(enumerate(card.options), 2):
        if one and same_option(one, other):
            yield (
                f"the distractors {place} and {at} are the same"
                if place
                else f"distractor {at} is the correct answer"
            )


def _in_words(problem: Any) -> str:
    loc = list(problem["loc"])
    name = "the card"
    if loc:
        name = ".".join(
            str(part + 1) if isinstance(part, int) else str(part).removesuffix("s")
            if index + 1 < len(loc) and isinstance(loc[index + 1], int) else str(part)
            for index, part in enumerate(loc)
        )  # fmt: skip
        name = re.sub(r"\.(\d+)", r" \1", name).replace(".", ": ")
    match problem["type"]:
        case "too_short" if loc and loc[-1] == "distractors":
            return f"has {problem['ctx']['actual_length']} distractors, not exactly {DISTRACTORS}"
        case "too_long" if loc and loc[-1] == "distractors":
            # pydantic stops counting at the bound
            return f"has more than {DISTRACTORS} distractors, not exactly {DISTRACTORS}"
        case "string_too_short" | "value_error" | "missing":
            return f"{name} is empty"
        case "literal_error":
            shown = one_line(str(problem["input"]))[:40]
            wanted = problem["ctx"]["expected"].replace("'", "")
            return f"{name} is '{shown}', not {wanted}" if shown else f"{name} is empty"
        case _:
            return f"{name}: {problem['msg']}"


class CardsAnswer(BaseModel):
    """What a model answers for a topic, or for cards that are asked again."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    flashcards: list[DraftCard] = Field(min_length=1)


class FoundFact(BaseModel):
    """A fact that research found."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    fact: Filled = Field(description="One fact, in your own words.")
    url: _Text = Field(description="Address of the page that says so; empty where there is none.")


class TopicPlan(BaseModel):
    """What research found of a topic, and how it is to be taught: voters judge it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    findings: list[FoundFact] = Field(min_length=1)
    objectives: list[Filled] = Field(
        min_length=1, description="What a learner can do afterwards, one sentence each."
    )
    points: list[Filled] = Field(
        min_length=1, description="What the cards are to ask about, in the order of learning."
    )


class Vote(BaseModel):
    """What one voter says of the plan for a topic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision: Decision = Field(
        description="APPROVE, APPROVE_WITH_SUGGESTIONS, REVISE (not before it is changed), or "
        "REJECT."
    )
    confidence: float = Field(ge=0.0, le=1.0, description="How sure, from 0 to 1.")
    reasoning: str = Field(description="Why, in one to three sentences about this very topic.")
    suggestions: list[str] = Field(
        max_length=5, description="What to change, one sentence each; may be empty."
    )

    @field_validator("decision", mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        return re.sub(r"[\s-]+", "_", value.strip()).upper() if isinstance(value, str) else value

    @field_validator("reasoning", "suggestions", mode="before")
    @classmethod
    def _trimmed(cls, value: Any, info: Any) -> Any:
        return _text(value) if info.field_name == "reasoning" else _texts(value)


class Objective(_Strict):
    """What somebody can do who has learned the topic."""

    bloom_level: BloomLevel
    verb: Filled = Field(description="What the learner does, such as `explain`.")
    text: Filled = Field(description="The objective as a sentence that begins with the verb.")


class ActiveLearning(_Strict):
    """Ways to work with the topic."""

    discussion: list[Filled] = Field(min_length=1)
    peer_teaching: list[Filled] = Field(min_length=1)
    problem_solving: list[Filled] = Field(min_length=1)


class Scaffold(_Strict):
    """How much help a learner gets on a level."""

    level: int = Field(ge=1, le=4, description="1 is the most help, 4 none.")
    name: Filled
    support: Filled


class OptimizedPrompt(_Strict):
    """What the synthesis gives: how cards of this topic are to be written."""

    system_prompt: Filled = Field(description="What the writer of the cards is told.")
    objectives: list[Objective] = Field(min_length=3)
    active_learning: ActiveLearning
    scaffolding: list[Scaffold] = Field(min_length=4, max_length=4)
    applied_suggestions: list[str] = Field(
        description="Suggestions of the voters that were followed, in short."
    )

    @field_validator("scaffolding")
    @classmethod
    def _four_levels(cls, value: list[Scaffold]) -> list[Scaffold]:
        if sorted(one.level for one in value) != [1, 2, 3, 4]:
            raise ValueError("scaffolding needs each of the levels 1, 2, 3 and 4 once")
        return sorted(value, key=lambda one: one.level)
