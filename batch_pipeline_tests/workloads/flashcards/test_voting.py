"""Votes: consensus, quorum, confidence, ties, fallbacks, clusters, what the synthesis is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.workloads.flashcards.models import Vote
from batch_pipeline.workloads.flashcards.voting import (
    cluster_suggestions,
    synthesis_content,
    tally,
)
from batch_pipeline_tests.workloads.flashcards.cards import VOTING, vote

NAMES = [voter.name for voter in VOTING.voters]
A, S, V, R = "APPROVE", "APPROVE_WITH_SUGGESTIONS", "REVISE", "REJECT"


def ballot(*decisions: str | None, confidence: float = 0.9) -> dict[str, Vote | None]:
    """Votes in the order of the voters, pedagogy first."""
    return {
        name: None if decision is None else vote(decision, confidence, f"As {name} sees it.")
        for name, decision in zip(NAMES, decisions, strict=True)
    }


@pytest.mark.parametrize(
    ("decisions", "outcome", "approval", "decision"),
    [
        ((A,) * 8, "consensus", 1.0, A),
        # 5 of 8 without pedagogy, 5.0 of 8.2; with it 5.2
        ((V, A, A, A, A, A, V, V), "consensus", 5 / 8.2, A),
        ((A, A, A, A, A, V, V, V), "consensus", 5.2 / 8.2, A),
        # 4 of 8 are a tie that pedagogy does not break
        ((A, A, A, A, V, V, V, V), "no_consensus", 4.2 / 8.2, A),
        ((V, V, V, V, A, A, A, A), "no_consensus", 4 / 8.2, V),
        ((S, A, A, S, S, R, R, V), "consensus", 5.2 / 8.2, S),
        # 6 of 8 answer: 4 of 6 suffice, 3 do not
        ((None, None, A, A, A, A, V, V), "consensus", 4 / 6, A),
        ((None, None, A, A, A, V, V, R), "no_consensus", 0.5, A),
        # 7 answer without pedagogy: 4 of 7 are 57.1 %
        ((None, A, A, A, A, V, V, R), "consensus", 4 / 7, A),
        # one voter down: 4.2 of 7.2
        ((A, A, A, A, V, V, V, None), "consensus", 4.2 / 7.2, A),
        ((A, A, A, A, A, None, None, None), "too_few_voters", 1.0, A),
        ((None,) * 8, "too_few_voters", 0.0, None),
        ((R,) * 8, "no_consensus", 0.0, R),
        # equal weight: the more careful decision is reported
        ((None, None, A, A, A, V, V, V), "no_consensus", 0.5, V),
        ((None, None, A, A, S, S, R, R), "consensus", 4 / 6, R),
    ],
)
def test_votes_are_counted_by_weight(
    decisions: tuple[str | None, ...], outcome: str, approval: float, decision: str | None
) -> None:
    counted = tally(ballot(*decisions), VOTING)
    assert (counted.outcome, counted.decision) == (outcome, decision)
    assert counted.approval == pytest.approx(approval)
    assert counted.agreed is (outcome == "consensus") is (counted.message == "")
    assert len(counted.answered) + len(counted.missing) == 8


@pytest.mark.parametrize(("approval", "agreed"), [(0.56, False), (0.57, True), (0.58, True)])
def test_consensus_begins_at_57_percent(approval: float, agreed: bool) -> None:
    weights = {"pedagogy": approval * 8, "active_learning": (1 - approval) * 8}
    voters = [
        voter.model_copy(update={"weight": weights.get(voter.name, 1e-12)})
        for voter in VOTING.voters
    ]
    rules = VOTING.model_copy(update={"voters": voters})
    assert tally(ballot(A, *[V] * 7), rules).agreed is agreed


@pytest.mark.parametrize(
    ("confidence", "outcome"), [(0.59, "unsure"), (0.6, "consensus"), (0.61, "consensus")]
)
def test_those_who_approve_must_be_sure(confidence: float, outcome: str) -> None:
    votes = ballot(*[A] * 6, V, V, confidence=confidence)
    votes["grounding"] = vote(V, 1.0, "Very sure that it must change.")
    assert tally(votes, VOTING).outcome == outcome


def test_confidence_is_weighted() -> None:
    votes = ballot(*[A] * 8, confidence=0.5)
    votes["pedagogy"] = vote(A, 1.0, "Sure.")
    assert tally(votes, VOTING).confidence == pytest.approx((1.2 + 7 * 0.5) / 8.2)


@pytest.mark.parametrize(
    ("same", "outcome", "fallbacks"),
    [
        (8, "identical_votes", 8),
        (7, "identical_votes", 7),  # what the reference system exported as completed
        (3, "identical_votes", 3),
        (2, "consensus", 0),
    ],
)
def test_votes_that_are_the_same_word_for_word_are_no_answers(
    same: int, outcome: str, fallbacks: int
) -> None:
    votes = ballot(*[A] * 8)
    votes.update({name: vote(A, 0.9, "Looks good.", "Add more.") for name in NAMES[:same]})
    counted = tally(votes, VOTING)
    assert (counted.outcome, len(counted.fallbacks)) == (outcome, fallbacks)
    assert counted.missing == ()


def test_a_voter_whom_the_rules_name_no_more_is_left_out() -> None:
    counted = tally({**ballot(*[A] * 8), "retired": vote(R, 1.0, "No.", "Stop.")}, VOTING)
    assert (counted.approval, counted.clusters) == (1.0, ())


def test_decisions_are_read_as_people_write_them() -> None:
    given = {"decision": " approve with-suggestions ", "confidence": 1, "reasoning": None}
    read = Vote.model_validate({**given, "suggestions": None})
    assert (read.decision, read.reasoning, read.suggestions) == (S, "", [])


def test_suggestions_with_the_same_words_are_one() -> None:
    clusters = cluster_suggestions(
        {
            "pedagogy": ["Add an example of rainbow tables."],
            "clarity": ["Add examples of a rainbow table", "Shorten the questions."],
            "schema": ["Explain the key stretching."],
        },
        VOTING,
    )
    assert [(one.voters, one.weight) for one in clusters] == [
        (("pedagogy", "clarity"), 2.2),
        (("schema",), 1.0),
        (("clarity",), 1.0),
    ]
    assert "rainbow" in clusters[0].text and len(clusters[0].suggestions) == 2


@pytest.mark.parametrize(("bound", "groups"), [(0.49, 1), (0.5, 1), (0.51, 2)])
def test_suggestions_are_one_from_the_bound_on(bound: float, groups: int) -> None:
    rules = VOTING.model_copy(update={"same_suggestion": bound})
    said = {"clarity": ["salt hash table"], "schema": ["salt hash cipher"]}  # 2 of 4 stems
    assert len(cluster_suggestions(said, rules)) == groups


WORDS = st.lists(
    st.sampled_from(["salt", "hash", "rainbow", "cipher", "stretch", "pepper"]), min_size=1,
    max_size=4,
).map(" ".join)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.lists(WORDS, max_size=4)), st.randoms())
def test_the_order_of_answers_does_not_change_the_clusters(
    said: dict[str, list[str]], random: Any
) -> None:
    names = list(said)
    random.shuffle(names)
    other = {name: random.sample(said[name], len(said[name])) for name in names}
    clusters = cluster_suggestions(said, VOTING)
    assert cluster_suggestions(other, VOTING) == clusters
    texts = {text for texts in said.values() for text in texts}
    assert {text for cluster in clusters for text in cluster.suggestions} == texts


def test_the_synthesis_is_told_of_suggestions_by_weight_and_of_objections() -> None:
    votes = ballot(*[S] * 6, V, R)
    votes["pedagogy"] = vote(S, 0.9, "Fine.", "Add an example of rainbow tables.")
    votes["clarity"] = vote(S, 0.9, "Clear.", "Add a rainbow table example.", "Shorten it.")
    counted = tally(votes, VOTING)
    told = synthesis_content(votes, counted, most=1)
    assert told["decision"] == S and told["approval"] == 0.76
    assert [one["voters"] for one in told["suggestions"]] == [["pedagogy", "clarity"]]
    assert [one["voter"] for one in told["objections"]] == ["schema", "grounding"]
