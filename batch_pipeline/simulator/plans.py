"""Writes what comes before cards of a topic: findings, the votes of reviewers, the plan.

What does not live here: their sentences (plans.yaml), the cards (`cards`), and where in an answer
they go (`writers`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from batch_pipeline.simulator.draws import draw, pick
from batch_pipeline.simulator.subjects import Subject
from batch_pipeline.simulator.web_pages import Page

_FEWEST_FACTS = 4
_MOST_APPLIED = 3
# Of the votes: two more of seven object, so that hardly any topic goes without a consensus.
_REVISING, _WITHOUT_SUGGESTIONS = 0.07, 0.4
_MOST_POINTS = 500
_FALLBACK_CONFIDENCE, _UNSURE_CONFIDENCE, _REJECT_CONFIDENCE = 0.3, 0.4, 0.9

Made = dict[str, Any]
Objectives = tuple[tuple[str, str, str], ...]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Fallback(_Table):
    reasoning: str
    suggestions: tuple[str, ...]


class _Sentences(_Table):
    approving: dict[str, tuple[str, ...]]
    objecting: tuple[str, ...]
    rejecting: tuple[str, ...]
    unsure: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...]
    own: dict[str, str]
    fallback: _Fallback
    facts: tuple[str, ...]
    nothing: str
    points: tuple[str, ...]
    system_prompt: str
    objectives: Objectives
    generic_objectives: Objectives
    discussion: tuple[str, ...]
    peer_teaching: tuple[str, ...]
    problem_solving: tuple[str, ...]
    scaffolding: tuple[tuple[str, str], ...]


def write_vote(content: Mapping[str, Any], salt: str, flaws: Collection[str]) -> Made:
    """Write a voter's judgement of the plan for a topic.

    Args:
        content: of the item: topic, `voter`, `focus`.
        salt: another one gives another vote.
        flaws: `votes_same` (every voter the very same REVISE), `votes_reject`, `votes_unsure`.
    """
    table = _sentences()
    if "votes_same" in flaws:
        return {
            "decision": "REVISE",
            "confidence": _FALLBACK_CONFIDENCE,
            "reasoning": table.fallback.reasoning,
            "suggestions": list(table.fallback.suggestions),
        }
    subject = Subject.read(content, salt)
    voter = _line(content.get("voter")) or "other"
    seed = f"{subject.seed} {voter}"
    words = {**_words(subject, pick(10, seed, "points")), "f": _line(content.get("focus"))}
    about = _words(subject, 0)
    name = voter if voter in table.approving else "other"
    sentences, confidence = table.approving[name], round(0.65 + 0.3 * draw(seed, "sure"), 2)
    decision = "APPROVE_WITH_SUGGESTIONS"
    chance = draw(seed, "decision")
    if "votes_reject" in flaws:
        decision, sentences, confidence = "REJECT", table.rejecting, _REJECT_CONFIDENCE
    elif "votes_unsure" in flaws:
        sentences, confidence = table.unsure, _UNSURE_CONFIDENCE
    elif chance < _REVISING:
        decision, sentences = "REVISE", table.objecting
    elif chance < _REVISING + _WITHOUT_SUGGESTIONS:
        decision = "APPROVE"
    suggestions: list[str] = []
    if decision != "APPROVE":
        # what is said of all alike is about the same points, so that it is told as the same
        ways = table.shared[pick(len(table.shared), seed, "shared")]
        suggestions = [
            ways[pick(len(ways), seed, "way")].format_map(about),
            table.own[name].format_map(words),
        ]
    reasoning = sentences[pick(len(sentences), seed, "reasoning")].format_map(words)
    if name == "other" or sentences is not table.approving[name]:
        reasoning = f"{voter.replace('_', ' ').capitalize()}: {reasoning}"
    return {
        "decision": decision,
        "confidence": confidence,
        "reasoning": reasoning,
        "suggestions": suggestions,
    }


def write_findings(
    content: Mapping[str, Any], salt: str, pages: Sequence[Page], flaws: Collection[str]
) -> Made:
    """Write what is known of a topic, each fact with its page, and how to teach it.

    Args:
        content: of the item: topic, and how many cards are `wanted`.
        salt: another one gives another answer.
        pages: that a web search found; without them no fact has an address.
        flaws: `no_findings` gives a single one that says so.
    """
    subject, table = Subject.read(content, salt), _sentences()
    start = pick(10_000, subject.seed, "facts")
    count = _FEWEST_FACTS + start % (len(table.facts) - _FEWEST_FACTS + 1)
    wanted = content.get("wanted")
    points = int(wanted) if isinstance(wanted, int | float) and 1 <= wanted <= _MOST_POINTS else 1
    nothing = {"fact": table.nothing.format_map(_words(subject, start)), "url": ""}
    return {
        "findings": [nothing]
        if "no_findings" in flaws
        else [
            {
                "fact": _nth(table.facts, start + n).format_map(_words(subject, start + n)),
                "url": pages[n % len(pages)].url if pages else "",
            }
            for n in range(count)
        ],
        "objectives": [text.format_map(_words(subject, start)) for _, _, text in table.objectives],
        "points": [
            _nth(table.points, n).format_map(_words(subject, start + n)) for n in range(points)
        ],
    }


def write_synthesis(content: Mapping[str, Any], salt: str, flaws: Collection[str]) -> Made:
    """Write the prompt by which cards of a topic are to be written.

    Args:
        content: of the item: topic, and the voters' `suggestions`, the heaviest first.
        salt: another one gives another plan.
        flaws: `objectives_generic` gives objectives that could stand for any topic.
    """
    subject, table = Subject.read(content, salt), _sentences()
    words = _words(subject, pick(10, subject.seed, "plan"))
    generic = "objectives_generic" in flaws
    given = _list(content.get("suggestions"))
    texts = (_line(one.get("text") if isinstance(one, dict) else one) for one in given)
    return {
        "system_prompt": " ".join(table.system_prompt.format_map(words).split()),
        "objectives": [
            {"bloom_level": level, "verb": verb, "text": text.format_map(words)}
            for level, verb, text in (table.generic_objectives if generic else table.objectives)
        ],
        "active_learning": {
            "discussion": _filled(table.discussion, words),
            "peer_teaching": _filled(table.peer_teaching, words),
            "problem_solving": _filled(table.problem_solving, words),
        },
        "scaffolding": [
            {"level": level, "name": name, "support": support.format_map(words)}
            for level, (name, support) in enumerate(table.scaffolding, 1)
        ],
        "applied_suggestions": [text for text in texts if text][:_MOST_APPLIED],
    }


def _words(subject: Subject, n: int) -> dict[str, str]:
    return {
        "t": subject.title,
        "s": subject.field,
        "p": subject.point(n),
        "r": subject.point(n + 1),
    }


def _nth(texts: Sequence[str], n: int) -> str:
    return texts[n % len(texts)]


def _filled(sentences: Sequence[str], words: Mapping[str, str]) -> list[str]:
    return [_capital(sentence.format_map(words)) for sentence in sentences]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@cache
def _sentences() -> _Sentences:
    text = Path(__file__).with_name("plans.yaml").read_text(encoding="utf-8")
    return _Sentences.model_validate(yaml.safe_load(text))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _line(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
