"""Which cards of a topic are asked again, and what comes of it: without any engine."""

from __future__ import annotations

from typing import Any

from batch_pipeline.workloads.flashcards.models import DraftCard
from batch_pipeline.workloads.flashcards.rounds import (
    REPEATED,
    CheckRecord,
    again_content,
    card_at,
    check_cards,
)
from batch_pipeline_tests.workloads.flashcards.cards import GOOD, RULES, TOPIC, draft


def good(number: int) -> DraftCard:
    return draft(question_text=f"{GOOD['question_text']} Case {number}.")


def giveaway(number: int) -> DraftCard:
    """Fails by itself, with the score 0."""
    return draft(
        question_text=f"{GOOD['question_text']} Case {number}.",
        correct_answer=f"{GOOD['correct_answer']} (correct)",
    )


def weak(number: int) -> DraftCard:
    """Fails, but by less."""
    wrong = [{**one, "misconception": "none"} for one in GOOD["distractors"]]
    return draft(question_text=f"What is a salt? {number}", distractors=wrong, bloom_level="create")


def answer(*cards: DraftCard) -> dict[str, Any]:
    return {"flashcards": [card.model_dump(mode="json") for card in cards]}


def check(
    row: dict[str, Any], step: str, wanted: int, before: CheckRecord | None = None
) -> CheckRecord:
    return check_cards(row, step, TOPIC, RULES, wanted, before)


def test_cards_that_pass_need_nothing_more() -> None:
    record = check({"cards": answer(good(1), good(2))}, "cards", 2)
    assert [one.place for one in record.passed] == [0, 1]
    assert not record.lacking


def test_only_failing_cards_are_asked_again_and_stand_where_they_stood() -> None:
    row: dict[str, Any] = {"cards": answer(good(1), giveaway(2), good(3))}
    first = check(row, "cards", 3)
    content = again_content(row, first)
    assert [DraftCard.model_validate(one["card"]) for one in content["failing"]] == [giveaway(2)]
    assert "(correct)" in content["failing"][0]["problems"][0]
    assert "missing" not in content and "have" not in content

    row["again_1"] = answer(good(4))
    second = check(row, "again_1", 3, first)
    assert [card_at(row, one) for one in second.passed] == [good(1), good(3), good(4)]
    assert not second.lacking and not second.spare


def test_missing_cards_are_asked_for_with_the_questions_there_are() -> None:
    row = {"cards": answer(good(1), giveaway(2))}
    first = check(row, "cards", 4)
    content = again_content(row, first)
    assert (content["missing"], len(content["failing"])) == (2, 1)
    assert content["have"] == [good(1).question_text, giveaway(2).question_text]
    row["again_1"] = answer(good(5), good(6), good(7))
    assert not check(row, "again_1", 4, first).lacking


def test_cards_beyond_the_wanted_ones_are_left_out_and_cost_no_further_call() -> None:
    record = check({"cards": answer(good(1), giveaway(2), good(3), good(4))}, "cards", 2)
    assert [one.place for one in record.passed] == [0, 2]
    assert not record.lacking
    assert [one.place for one in record.spare] == [1]


def test_no_more_failing_cards_are_mended_than_are_lacking_and_the_best_ones() -> None:
    record = check({"cards": answer(good(1), giveaway(2), weak(3))}, "cards", 2)
    assert [one.place for one in record.failing] == [2]
    assert [one.place for one in record.spare] == [1]


def test_a_repeated_question_is_one_card() -> None:
    record = check({"cards": answer(good(1), good(1), good(2))}, "cards", 3)
    assert [one.place for one in record.passed] == [0, 2]
    assert record.failing[0].checks == [REPEATED]
    assert "another point" in record.failing[0].problems[0]


def test_the_better_version_of_a_failing_card_stays() -> None:
    row: dict[str, Any] = {"cards": answer(weak(1))}
    first = check(row, "cards", 1)
    row["again_1"] = answer(giveaway(1))
    second = check(row, "again_1", 1, first)
    assert second.failing == first.failing


def test_without_an_answer_all_stays_as_it_was() -> None:
    row: dict[str, Any] = {"cards": answer(good(1), giveaway(2))}
    first = check(row, "cards", 3)
    row["again_1"] = None
    assert check(row, "again_1", 3, first) == first


def test_fewer_cards_than_were_asked_again_leave_the_others_failing() -> None:
    row: dict[str, Any] = {"cards": answer(giveaway(1), giveaway(2))}
    first = check(row, "cards", 2)
    row["again_1"] = answer(good(1))
    second = check(row, "again_1", 2, first)
    assert (len(second.passed), len(second.failing), second.missing) == (1, 1, 0)


def test_what_is_not_whole_never_passes_even_where_its_check_is_off() -> None:
    rules = RULES.model_copy(update={"weights": {**RULES.weights, "required_fields": 0.0}})
    row = {"cards": answer(draft(prerequisites=[], difficulty=""))}
    record = check_cards(row, "cards", TOPIC, rules, 1)
    assert not record.passed and record.failing[0].problems == ["difficulty is empty"]
