"""A topic is completed by what is in it."""

from __future__ import annotations

from typing import Any

import pytest

from batch_pipeline.workloads.flashcards.completion import Part, completion_faults, is_generic
from batch_pipeline.workloads.flashcards.models import Objective
from batch_pipeline_tests.workloads.flashcards.cards import (
    PROMPT,
    RULES,
    TOPIC,
    VOTING,
    card,
    record,
    vote,
)

NAMES = [voter.name for voter in VOTING.voters]
FALLBACK = vote("REVISE", 0.3, "Unable to evaluate.", "Review manually.")
GENERIC = [
    {"bloom_level": "understand", "verb": "understand", "text": text}
    for text in (
        "Understand the key concepts of Password Salting.",
        "Apply the fundamental principles of the topic in practice.",
        "Analyze real-world scenarios.",
    )
]


def with_objectives(*texts: dict[str, str]) -> dict[str, Any]:
    return {**PROMPT.model_dump(mode="json"), "objectives": list(texts)}


def test_a_whole_topic_is_completed() -> None:
    assert completion_faults(record(), RULES, VOTING) == {}


@pytest.mark.parametrize(
    ("changes", "part", "said"),
    [
        ({"sources": []}, "sources", "The research gave 0 sources, at least 1 is needed."),
        ({"votes": None}, "votes", "Nobody voted"),
        (
            {"votes": dict.fromkeys(NAMES[:7], FALLBACK)},
            "votes",
            "7 of 8 voters gave the same vote",
        ),
        ({"votes": dict.fromkeys(NAMES)}, "votes", "0 of 8 voters answered, 6 must."),
        (
            {"votes": {name: vote("REVISE", 0.9, name) for name in NAMES}},
            "votes",
            "0.0% of the voters'",
        ),
        ({"votes": {name: vote("APPROVE", 0.3, name) for name in NAMES}}, "votes", "are 0.30 sure"),
        ({"prompt": None}, "plan", "The synthesis gave no prompt."),
        (
            {"prompt": with_objectives(*GENERIC)},
            "plan",
            "3 of 3 objectives could stand for any topic",
        ),
        ({"cards": []}, "cards", "0 cards of 3 passed the checks, at least 3 must."),
        ({"cards": [card(1), card(2), card(2)]}, "cards", "(1 more repeat a question)"),
    ],
)
def test_a_topic_without_its_content_is_not_completed(
    changes: dict[str, Any], part: Part, said: str
) -> None:
    faults = completion_faults(record(**changes), RULES, VOTING)
    assert list(faults) == [part] and said in faults[part]


def test_what_the_reference_system_called_completed_is_not() -> None:
    degraded = record(
        sources=[],
        votes=dict.fromkeys(NAMES[:7], FALLBACK),
        prompt=with_objectives(*GENERIC),
    )
    assert set(completion_faults(degraded, RULES, VOTING)) == {"sources", "votes", "plan"}


def test_a_mode_without_voters_needs_neither_votes_nor_prompt() -> None:
    plain = record(mode="web", votes=None, prompt=None)
    assert completion_faults(plain, RULES, VOTING) == {}


def test_without_research_no_source_is_missed() -> None:
    assert completion_faults(record(sources=[], researched=False), RULES, VOTING) == {}


@pytest.mark.parametrize(("passed", "completed"), [(11, False), (12, True), (13, True)])
def test_four_of_five_wanted_cards_must_pass(passed: int, completed: bool) -> None:
    cards = [card(number) for number in range(1, passed + 1)]
    faults = completion_faults(record(cards=cards, wanted=15), RULES, VOTING)
    assert set(faults) == (set() if completed else {"cards"})


@pytest.mark.parametrize(
    ("text", "generic"),
    [
        ("Understand Password Salting.", True),
        ("Explain the basics of password salting and its practical applications.", True),
        # templates, in which only the topic's name changes
        ("Recall the main facts about password salting.", True),
        ("Explain the purpose and significance of password salting.", True),
        ("Apply password salting in everyday work environments.", True),
        ("Analyze the strengths and weaknesses of password salting.", True),
        ("Evaluate the impact of password salting.", True),
        ("Create a comprehensive plan for password salting.", True),
        ("Describe the role, the main parts and the features of password salting.", True),
        ("Compare benefits, limitations and trade-offs of password salting.", True),
        ("Explain how a salt defeats rainbow tables.", False),
        ("Configure bcrypt.", False),
        ("Explain the purpose of a salt that is unique for each account.", False),
        ("Evaluate the impact of rainbow tables on unsalted hashes.", False),
        ("Plan the migration of a legacy database to salted hashes.", False),
        ("Compare the strengths of bcrypt and scrypt.", False),
        ("Analyze the role of entropy in the length of a salt.", False),
    ],
)
def test_an_objective_that_names_nothing_of_its_topic_is_generic(text: str, generic: bool) -> None:
    objective = Objective(bloom_level="understand", verb=text.split()[0].lower(), text=text)
    assert is_generic(objective, TOPIC, RULES) is generic
