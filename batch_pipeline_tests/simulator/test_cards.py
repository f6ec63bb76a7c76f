"""Flashcards of the simulator: they pass the checks, or fail them in the way that is asked for."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from batch_pipeline.simulator.cards import write_cards
from batch_pipeline.workloads.flashcards.checks import CardReport, check_card
from batch_pipeline.workloads.flashcards.models import CardsAnswer, DraftCard
from batch_pipeline.workloads.flashcards.terms import words_of
from batch_pipeline.workloads.flashcards.topics import Topic
from batch_pipeline_tests.simulator.asking import MODELS, answers, ask
from batch_pipeline_tests.simulator.running import Running
from batch_pipeline_tests.simulator.topics import TOPICS, content_of
from batch_pipeline_tests.workloads.flashcards.cards import RULES

TOPIC = TOPICS[1]


def cards_of(
    topic: Topic, *flaws: str, slips: float = 0.0, **more: Any
) -> tuple[list[DraftCard], list[CardReport]]:
    made = write_cards(content_of(topic, **{"wanted": 15, **more}), "", flaws, slips)
    cards = CardsAnswer.model_validate({"flashcards": made}).flashcards
    return cards, [check_card(card, topic, RULES) for card in cards]


def questions(cards: list[DraftCard]) -> set[str]:
    return {" ".join(words_of(card.question_text)) for card in cards}


def again(cards: list[DraftCard], reports: list[CardReport]) -> list[dict[str, Any]]:
    return [
        {"card": card.model_dump(mode="json"), "problems": report.problems}
        for card, report in zip(cards, reports, strict=True)
        if not report.passed
    ]


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.title)
def test_cards_about_any_topic_pass_every_check(topic: Topic) -> None:
    cards, reports = cards_of(topic)
    assert len(questions(cards)) == len(cards) == 15
    assert [report.findings for report in reports] == [()] * 15


def test_cards_are_spread_over_kinds_difficulties_and_levels() -> None:
    cards, _ = cards_of(TOPIC)
    kinds = Counter(card.question_type for card in cards)
    assert len(kinds) == 4 and max(kinds.values()) - min(kinds.values()) <= 1
    assert set(Counter(card.difficulty for card in cards).values()) == {3}
    assert len({card.bloom_level for card in cards}) >= 4
    assert {code for card in cards for code in card.prerequisites} == {
        "XML-EXTERNAL-ENTITY-PREVENTION-BASICS",
        "SECURITY-AND-PRIVACY-CONTROLS-BASICS",
    }


def test_a_hundred_and_fifty_cards_ask_a_hundred_and_fifty_questions() -> None:
    cards, reports = cards_of(TOPIC, wanted=150)
    assert len(questions(cards)) == 150 and all(report.passed for report in reports)


def test_the_same_topic_has_the_same_cards_and_another_context_other_ones() -> None:
    cards, _ = cards_of(TOPIC, slips=0.07)
    assert cards_of(TOPIC, slips=0.07)[0] == cards
    other = TOPIC.model_copy(update={"context": "Something quite different is said here."})
    assert cards_of(other, slips=0.07)[0] != cards


def test_a_small_share_of_the_cards_has_a_fault() -> None:
    reports = [report for topic in TOPICS for report in cards_of(topic, slips=1 / 15)[1]]
    flawed = [report for report in reports if report.findings]
    assert 1 / 25 < len(flawed) / len(reports) < 1 / 10
    assert 0 < sum(not report.passed for report in flawed) < len(flawed)
    found = {check for report in flawed for check in report.failed}
    assert found == {
        "parenthetical_giveaways",
        "required_fields",
        "distractor_reasoning",
        "distractor_diversity",
        "prohibited_phrases",
        "bloom_level",
    }


@pytest.mark.parametrize("topic", TOPICS[:8], ids=lambda topic: topic.title)
def test_failing_cards_come_back_mended_in_their_order(topic: Topic) -> None:
    cards, reports = cards_of(topic, slips=1.0)
    failing = again(cards, reports)
    assert failing
    mended, now = cards_of(topic, slips=1.0, failing=failing)
    assert [one.question_text for one in mended] == [
        one["card"]["question_text"] for one in failing
    ]
    assert [report.findings for report in now] == [()] * len(failing)


def test_a_card_that_nobody_knows_is_replaced_by_another_one() -> None:
    stranger = {"card": {"question_text": "Why?", "correct_answer": ""}, "problems": ["Too short."]}
    cards, reports = cards_of(TOPIC, failing=[stranger, {"card": "?"}])
    assert len(questions(cards)) == 2 and all(report.passed for report in reports)


def test_further_cards_have_new_questions_and_follow_the_mended_ones() -> None:
    cards, reports = cards_of(TOPIC, slips=1.0)
    failing = again(cards, reports)
    have = [card.question_text for card in cards]
    more, _ = cards_of(TOPIC, failing=failing, missing=6, have=have)
    assert len(more) == len(failing) + 6
    assert not questions(more[len(failing) :]) & questions(cards)
    assert len(questions(cards_of(TOPIC, missing=3, have=have)[0]) - questions(cards)) == 3


def test_fewer_cards_and_cards_that_always_fail() -> None:
    short, _ = cards_of(TOPIC, "cards_short")
    assert len(short) == 7
    cards, reports = cards_of(TOPIC, "cards_bad")
    assert {report.automatic for report in reports} == {("parenthetical_giveaways",)}
    _, now = cards_of(TOPIC, "cards_bad", failing=again(cards, reports))
    assert len(now) == 15 and not any(report.passed for report in now)


def test_a_topic_costs_little_time() -> None:
    contents = [content_of(topic, wanted=15) for topic in TOPICS]
    write_cards(contents[0], "", (), 0.07)
    start = time.process_time()
    for content in contents:
        write_cards(content, "", (), 0.07)
    # About 0.3 ms; the bound leaves room for a noisy machine.
    assert (time.process_time() - start) / len(contents) < 0.003


@pytest.mark.parametrize("provider", list(MODELS))
def test_cards_go_through_every_providers_dialect(simulator: Running, provider: str) -> None:
    simulator.configure(slips=0)
    contents = [content_of(topic, wanted=15) for topic in TOPICS[:3]]
    reply = ask(simulator, CardsAnswer, *contents, provider=provider)
    for topic, answer in zip(TOPICS, answers(reply), strict=False):
        cards = CardsAnswer.model_validate(answer).flashcards
        assert cards == cards_of(topic)[0]
    assert reply.usage is not None and 10_000 < reply.usage.output_tokens < 20_000


@pytest.mark.parametrize("kind", ["cards_short", "cards_bad"])
def test_a_fault_hits_the_cards_of_one_topic_and_is_written_down(
    simulator: Running, kind: str
) -> None:
    contents = [content_of(topic, wanted=15) for topic in (TOPICS[0], TOPICS[8])]
    right = answers(ask(simulator, CardsAnswer, *contents))
    simulator.configure(faults=[{"kind": kind, "match": TOPICS[8].title}])
    flawed = answers(ask(simulator, CardsAnswer, *contents))
    assert flawed[0] == right[0] and flawed[1] != right[1]
    assert [entry["fault"] for entry in simulator.journal()] == [None, kind]


def test_a_duplicated_item_comes_with_other_cards(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "duplicate_id"}])
    reply = ask(simulator, CardsAnswer, content_of(TOPIC, wanted=5))
    assert reply.text.count('"id"') == 2
    assert len(set(reply.text.split('"question_text":"')[1:])) == 10
