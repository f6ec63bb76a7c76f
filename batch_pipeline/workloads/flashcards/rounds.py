"""Which cards of a topic pass, which are asked again, and with what: the pure side of the checks.

What belongs here: going through answers, round by round. What does not: the checks of one card
(checks.py), steps (steps.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.workloads.flashcards.checks import check_card
from batch_pipeline.workloads.flashcards.models import CardsAnswer, DraftCard, missing_parts
from batch_pipeline.workloads.flashcards.rules import CheckRules
from batch_pipeline.workloads.flashcards.terms import words_of
from batch_pipeline.workloads.flashcards.topics import Topic

REPEATED = "repeated_question"
"""Stands among a card's failed checks where another card asks the same."""

_REPEATED = "Its question repeats that of another card. Ask about another point of the topic."


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Judged(_Part):
    """A card that was checked: where it stands among the answers, and what was said of it.

    Attributes:
        step: the LLM step that wrote it.
        place: in that step's answer, from 0.
        score: by the checks, 0 to 1.
        checks: names of those that it fails.
        problems: what is wrong and what to do; empty for a card that passed.
    """

    step: str
    place: int
    score: float
    checks: list[str] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list)


class CheckRecord(_Part):
    """Document of a check: where a topic's cards stand. The cards themselves are in the answers.

    Attributes:
        passed: cards that count, at most as many as are wanted.
        failing: those to ask again, the best first; no more than are lacking.
        missing: cards to ask for besides.
        spare: failing ones that nobody needs to mend.
    """

    passed: list[Judged] = Field(default_factory=list)
    failing: list[Judged] = Field(default_factory=list)
    missing: int = 0
    spare: list[Judged] = Field(default_factory=list)

    @property
    def lacking(self) -> bool:
        """Whether something is to ask again."""
        return bool(self.failing or self.missing)


Answers = Mapping[str, Any]
"""A row: answers of LLM steps stand in it under the step's name; None where there is none."""


def card_at(answers: Answers, judged: Judged) -> DraftCard:
    """The card that something was said of."""
    return DraftCard.model_validate(answers[judged.step]["flashcards"][judged.place])


def check_cards(
    answers: Answers,
    step: str,
    topic: Topic,
    rules: CheckRules,
    wanted: int,
    before: CheckRecord | None = None,
) -> CheckRecord:
    """Check what a step has answered.

    Of a card that was asked again, the better version stays. Cards beyond the wanted ones are left
    out.

    Args:
        answers: the row.
        step: whose answer is checked; where it has none, all stays as it was.
        topic: the topic.
        rules: the checks.
        wanted: cards of the topic.
        before: where they stood when this step was asked: its first cards are those that failed
            then, in that order.
    """
    before = before or CheckRecord()
    passed, failing = list(before.passed), []
    asked = {_key(card_at(answers, one)) for one in passed}
    for new, old in _candidates(answers, step, before.failing):
        judged = old if new is None else _judge(answers, new, topic, rules, asked)
        assert judged is not None
        if not judged.problems:
            if len(passed) < wanted:
                passed.append(judged)
                asked.add(_key(card_at(answers, judged)))
            continue
        better = old is None or judged.score >= old.score
        failing.append(judged if better or old is None else old)
    lacks = wanted - len(passed)
    ranked = sorted(failing, key=lambda one: -one.score)
    return CheckRecord(
        passed=passed,
        failing=ranked[:lacks],
        missing=max(0, lacks - len(ranked)),
        spare=[*before.spare, *ranked[lacks:]],
    )


def again_content(answers: Answers, record: CheckRecord) -> dict[str, Any]:
    """What a model is given to mend a set of cards."""
    failing = [
        {"card": card_at(answers, one).model_dump(mode="json"), "problems": one.problems}
        for one in record.failing
    ]
    content: dict[str, Any] = {"failing": failing}
    if record.missing:
        known = [*record.passed, *record.failing]
        content["missing"] = record.missing
        content["have"] = [card_at(answers, one).question_text for one in known]
    return content


def _candidates(
    answers: Answers, step: str, failing: Sequence[Judged]
) -> Iterator[tuple[Judged | None, Judged | None]]:
    """Cards to look at: (as it was answered, as it stood before)."""
    answer = answers.get(step)
    count = 0 if answer is None else len(CardsAnswer.model_validate(answer).flashcards)
    for place in range(max(count, len(failing))):
        new = Judged(step=step, place=place, score=0.0) if place < count else None
        yield new, failing[place] if place < len(failing) else None


def _judge(
    answers: Answers, new: Judged, topic: Topic, rules: CheckRules, asked: set[str]
) -> Judged:
    card = card_at(answers, new)
    report = check_card(card, topic, rules)
    checks: list[str] = [one.check for one in report.findings]
    problems = report.problems
    if _key(card) in asked:
        checks, problems = [REPEATED, *checks], [_REPEATED, *problems]
    elif report.passed:
        # whatever the rules say: what is not whole cannot be delivered
        checks, problems = [], missing_parts(card)
    return new.model_copy(update={"score": report.score, "checks": checks, "problems": problems})


def _key(card: DraftCard) -> str:
    return " ".join(words_of(card.question_text))
