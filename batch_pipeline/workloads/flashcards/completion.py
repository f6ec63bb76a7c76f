"""Whether a topic is completed: what is in its record, not whether an error was raised.

What belongs here: these tests of content. What does not: single cards (checks.py), counting votes
(voting.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

from batch_pipeline.wording import plural
from batch_pipeline.workloads.flashcards.models import Objective
from batch_pipeline.workloads.flashcards.record import Source, TopicRecord
from batch_pipeline.workloads.flashcards.rules import CheckRules, VotingRules
from batch_pipeline.workloads.flashcards.terms import read_words, stems, stems_of, words_of
from batch_pipeline.workloads.flashcards.topics import Topic
from batch_pipeline.workloads.flashcards.voting import tally

Part = Literal["sources", "votes", "plan", "cards"]
"""A part of a topic's record that has to be as it should."""


def completion_faults(
    record: TopicRecord, rules: CheckRules, voting: VotingRules
) -> dict[Part, str]:
    """Why a topic is not completed, a sentence for each part at fault; empty where it is."""
    said: dict[Part, str] = {
        "sources": sources_problem(record.sources, rules) if record.researched else "",
        "votes": _vote_problem(record, voting),
        "plan": _plan_problem(record, rules),
        "cards": _cards_problem(record, rules),
    }
    return {part: problem for part, problem in said.items() if problem}


def sources_problem(sources: Sequence[Source], rules: CheckRules) -> str:
    """Why what the research found is not enough; empty where it is."""
    least = rules.completion.min_sources
    found = len({source.url for source in sources})
    if found >= least:
        return ""
    return (
        f"The research gave {plural(found, 'source')}, at least {least} "
        f"{'is' if least == 1 else 'are'} needed."
    )


def is_generic(objective: Objective, topic: Topic, rules: CheckRules) -> bool:
    """Whether an objective could stand for any topic: it says nothing but verb and topic name."""
    own = stems(objective.text) - _generic_stems() - stems(topic.title) - stems(objective.verb)
    return len(own) < rules.completion.min_own_words


def _vote_problem(record: TopicRecord, voting: VotingRules) -> str:
    if record.mode != "unified":
        return ""
    if record.votes is None:
        return "Nobody voted on the plan."
    return tally(record.votes, voting).message


def _plan_problem(record: TopicRecord, rules: CheckRules) -> str:
    if record.mode != "unified":
        return ""
    if record.prompt is None:
        return "The synthesis gave no prompt."
    objectives = record.prompt.objectives
    generic = [one for one in objectives if is_generic(one, record.topic, rules)]
    most = rules.completion.max_generic_share
    if len(generic) <= most * len(objectives):
        return ""
    return (
        f"{len(generic)} of {len(objectives)} objectives could stand for any topic, such as "
        f"'{generic[0].text[:80]}'."
    )


def _cards_problem(record: TopicRecord, rules: CheckRules) -> str:
    # the same question twice is one card
    questions = {" ".join(words_of(card.question_text)) for card in record.cards}
    least = max(1, math.ceil(record.wanted * rules.completion.min_cards_share - 1e-9))
    if len(questions) >= least:
        return ""
    repeated = len(record.cards) - len(questions)
    return (
        f"{plural(len(questions), 'card')} of {record.wanted} passed the checks"
        + (f" ({repeated} more repeat a question)" if repeated else "")
        + f", at least {least} must."
    )


@cache
def _generic_stems() -> frozenset[str]:
    lists = read_words("content.yaml")
    verbs = [verb for words in lists["bloom_verbs"].values() for verb in words]
    return stems_of([*lists["generic"], *verbs])
