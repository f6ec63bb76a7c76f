"""Cards are read tolerantly and delivered strictly."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from batch_pipeline.workloads.flashcards.models import (
    CardsAnswer,
    DraftCard,
    Flashcard,
    OptimizedPrompt,
    finished,
    missing_parts,
)
from batch_pipeline_tests.workloads.flashcards.cards import GOOD, PROMPT, draft


def test_a_model_is_asked_for_whole_cards_and_a_whole_card_is_what_the_schema_takes() -> None:
    schema = CardsAnswer.model_json_schema()
    jsonschema.validate({"flashcards": [dict(GOOD)]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"flashcards": [{**GOOD, "distractors": []}]}, schema)


def test_a_whole_card_goes_through_unchanged() -> None:
    assert finished(draft()).model_dump(mode="json") == dict(GOOD)
    assert missing_parts(draft()) == []


def test_what_is_stored_reads_back_as_the_same() -> None:
    answer = CardsAnswer.model_validate({"flashcards": [dict(GOOD), {"question": "Why?"}]})
    assert CardsAnswer.model_validate(json.loads(answer.model_dump_json())) == answer


def test_the_shorter_form_of_the_guide_is_read_and_what_it_lacks_is_missing() -> None:
    short = {
        "question": " What is a salt? ",
        "answer": "A random value",
        "explanation": "It makes hashes differ.",
        "difficulty": "Beginner",
        "tags": ["hash"],
    }
    card = DraftCard.model_validate(short)
    assert card.question_text == "What is a salt?" and card.correct_answer == "A random value"
    assert card.detailed_explanation.core_logic == "It makes hashes differ."
    assert card.difficulty == "foundational"
    assert missing_parts(card) == [
        "has 0 distractors, not exactly 3",
        "detailed_explanation: distractor_analysis is empty",
        "detailed_explanation: analogy is empty",
        "question_type is empty",
        "bloom_level is empty",
    ]


@pytest.mark.parametrize(
    ("field", "given", "read"),
    [
        ("bloom_level", "Analyse", "analyze"),
        ("bloom_level", "Understanding", "understand"),
        ("question_type", "Compare", "comparison"),
        ("difficulty", "EXPERT", "expert"),
        ("code_snippets", "x = 1", ["x = 1"]),
        ("code_snippets", None, []),
        ("prerequisites", ["Network basics", " tcp/ip "], ["NETWORK-BASICS", "TCP-IP"]),
    ],
)
def test_the_same_in_other_words_is_read(field: str, given: Any, read: Any) -> None:
    assert draft(**{field: given}).model_dump()[field] == read


@pytest.mark.parametrize(
    ("field", "given"),
    [("distractors", "one"), ("code_snippets", [1]), ("question_text", ["a"]),
     ("prerequisites", [None])],
)  # fmt: skip
def test_what_is_no_card_at_all_is_refused(field: str, given: Any) -> None:
    with pytest.raises(ValidationError):
        draft(**{field: given})


@pytest.mark.parametrize("field", list(GOOD))
def test_a_delivered_card_has_every_field(field: str) -> None:
    with pytest.raises(ValidationError):
        Flashcard.model_validate({name: GOOD[name] for name in GOOD if name != field})


def test_a_plan_has_each_level_of_help_once() -> None:
    raw = PROMPT.model_dump(mode="json")
    raw["scaffolding"][3]["level"] = 1
    with pytest.raises(ValidationError, match="each of the levels"):
        OptimizedPrompt.model_validate(raw)
