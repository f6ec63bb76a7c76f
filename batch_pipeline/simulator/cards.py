"""Writes flashcards about a topic, some of them with one fault, and mends those that come back.

What does not live here: their sentences (cards.yaml), and where in an answer they go (`writers`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.simulator.draws import draw, pick
from batch_pipeline.simulator.subjects import Subject

_USUAL, _MOST = 15, 500
_DIFFICULTIES = ("foundational", "intermediate", "advanced", "expert", "master")
_WORD = re.compile(r"[^\W_]+")
_NOT_CODE = re.compile(r"[^A-Z0-9]+")
# So many cards are looked through for one that comes back.
_LOOKED_THROUGH = 150

Card = dict[str, Any]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: tuple[str, ...]
    question: str
    answer: str
    wrong: tuple[tuple[str, str, str], ...] = Field(min_length=3, max_length=3)
    logic: str
    against: str
    analogy: str
    code: str = ""


class _Shapes(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    leads: tuple[str, ...]
    definition: tuple[_Shape, ...]
    comparison: tuple[_Shape, ...]
    analysis: tuple[_Shape, ...]
    scenario: tuple[_Shape, ...]

    @property
    def kinds(self) -> tuple[tuple[str, tuple[_Shape, ...]], ...]:
        """Shapes by kind of question."""
        return (
            ("definition", self.definition),
            ("comparison", self.comparison),
            ("analysis", self.analysis),
            ("scenario", self.scenario),
        )


def write_cards(
    content: Mapping[str, Any], salt: str, flaws: Collection[str], slips: float
) -> list[Card]:
    """Write the cards that an item's content asks for.

    Those in `failing` come first, mended, in their order; then `missing` further ones, or as many
    as `wanted` says where neither is there. No question is one of `have` or `failing`.

    Args:
        content: of the item: topic, `wanted`, `failing`, `missing`, `have`.
        salt: another one gives other cards.
        flaws: `cards_short` gives half of the cards, `cards_bad` such as fail.
        slips: share of the new cards that have a fault.
    """
    writer = _Writer(content, salt)
    again = [one for one in _list(content.get("failing")) if isinstance(one, dict)]
    more = content.get("missing")
    if not again and more is None:
        more = content.get("wanted", _USUAL)
    count = int(more) if isinstance(more, int | float) and 0 <= more <= _MOST else 0
    if not again and not count:
        count = _USUAL
    failing = [card if isinstance(card := one.get("card"), dict) else {} for one in again]
    taken = {_known(question) for question in _questions(content.get("have"))}
    asked = [_known(_text(card.get("question_text"))) for card in failing]
    taken.update(asked)
    fresh = writer.fresh(taken)
    cards = [writer.at(place) if (place := writer.find(question)) is not None else next(fresh)
             for question in asked]  # fmt: skip
    for _ in range(count):
        card = next(fresh)
        if draw(writer.seed, "slip", card["question_text"]) < slips:
            slip = _SLIPS[pick(len(_SLIPS), writer.seed, card["question_text"])]
            slip(card, content)
        cards.append(card)
    if "cards_short" in flaws:
        cards = cards[: max(1, len(cards) // 2)]
    if "cards_bad" in flaws:
        for card in cards:
            _giveaway(card, content)
    return cards


class _Writer:
    """The endless row of cards about a topic."""

    def __init__(self, content: Mapping[str, Any], salt: str) -> None:
        self._subject = Subject.read(content, salt)
        self.seed = self._subject.seed
        self._start = pick(10_000, self.seed, "cards")
        self._needs = _needs(content)

    def fresh(self, taken: set[str]) -> Iterator[Card]:
        """Cards whose questions are not taken."""
        place = 0
        while True:
            known = _known(self._question(place))
            if known not in taken:
                taken.add(known)
                yield self.at(place)
            place += 1

    def find(self, known: str) -> int | None:
        """Where in the row a question stands."""
        places = range(_LOOKED_THROUGH)
        return next((n for n in places if _known(self._question(n)) == known), None)

    def at(self, place: int) -> Card:
        """The card at a place of the row."""
        kind, shape = self._shape(place)
        words = self._words(place)
        turn = place // 4 + self._start
        return {
            "question_text": self._question(place),
            "correct_answer": shape.answer.format_map(words),
            "distractors": [
                {
                    "text": text.format_map(words),
                    "misconception": f"Targets [{mistake}]: {why}",
                }
                for text, mistake, why in shape.wrong
            ],
            "detailed_explanation": {
                "core_logic": shape.logic.format_map(words),
                "distractor_analysis": shape.against,
                "analogy": shape.analogy,
            },
            "code_snippets": [shape.code] if shape.code else [],
            "difficulty": _DIFFICULTIES[(place + self._start) % len(_DIFFICULTIES)],
            "question_type": kind,
            "bloom_level": shape.levels[turn % len(shape.levels)],
            "prerequisites": self._needs[: (place + self._start) % (len(self._needs) + 1)],
        }

    def _shape(self, place: int) -> tuple[str, _Shape]:
        kinds = _shapes().kinds
        kind, shapes = kinds[place % len(kinds)]
        return kind, shapes[(place // len(kinds) + self._start) % len(shapes)]

    def _words(self, place: int) -> dict[str, str]:
        subject, n = self._subject, place + self._start
        return {
            "t": subject.title,
            "s": subject.field,
            "p": subject.point(n),
            "r": subject.point(n + 1),
        }

    def _question(self, place: int) -> str:
        _, shape = self._shape(place)
        words = self._words(place)
        question = shape.question.format_map(words)
        turn = place // _shape_count()
        if turn == 0:
            return question
        leads = _shapes().leads
        lead = leads[(turn - 1) % len(leads)].format_map(words)
        question = f"{lead}{question[0].lower()}{question[1:]}"
        if turn <= len(leads):
            return question
        return f"{question} This is question {place + 1} about it."


def _giveaway(card: Card, content: Mapping[str, Any]) -> None:
    card["correct_answer"] += " (the right answer)"


def _without_reason(card: Card, content: Mapping[str, Any]) -> None:
    card["distractors"][1]["misconception"] = ""


def _says_who(card: Card, content: Mapping[str, Any]) -> None:
    """Names who says so, and gives two distractors the same misconception."""
    is_security = "security" in _text(content.get("category")).casefold()
    who = "NIST" if is_security else "the search results"
    parts = card["detailed_explanation"]
    parts["core_logic"] = f"According to {who}, this holds: {parts['core_logic']}"
    card["distractors"][2]["misconception"] = card["distractors"][0]["misconception"]


def _wrong_level(card: Card, content: Mapping[str, Any]) -> None:
    card["bloom_level"] = "create" if card["question_type"] == "definition" else "remember"


_SLIPS = (_giveaway, _without_reason, _says_who, _wrong_level)


@cache
def _shapes() -> _Shapes:
    text = Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8")
    return _Shapes.model_validate(yaml.safe_load(text))


@cache
def _shape_count() -> int:
    return sum(len(shapes) for _, shapes in _shapes().kinds)


def _needs(content: Mapping[str, Any]) -> list[str]:
    """Codes of what must be known before."""
    names = (_text(content.get(name)) for name in ("subdomain", "domain"))
    codes = (_NOT_CODE.sub("-", name.upper()).strip("-")[:40].strip("-") for name in names)
    return [f"{code}-BASICS" for code in codes if code]


def _questions(have: Any) -> list[str]:
    found = []
    for one in _list(have):
        question = one.get("question_text") if isinstance(one, dict) else one
        found.append(_text(question))
    return found


def _known(question: str) -> str:
    return " ".join(_WORD.findall(question.casefold()))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
