"""The vote on a topic's plan: who answered, consensus or not, and what the voters suggest.

What belongs here: counting, clustering, what the synthesis is told. What does not: asking voters,
the rules' numbers (rules.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from batch_pipeline.workloads.flashcards.models import Decision, Vote
from batch_pipeline.workloads.flashcards.rules import VotingRules
from batch_pipeline.workloads.flashcards.terms import jaccard, stems, words_of

VoteOutcome = Literal["consensus", "too_few_voters", "identical_votes", "no_consensus", "unsure"]

APPROVING: frozenset[Decision] = frozenset({"APPROVE", "APPROVE_WITH_SUGGESTIONS"})

# Where two decisions have the same weight, the more careful one is reported.
_CAREFUL: tuple[Decision, ...] = ("REJECT", "REVISE", "APPROVE_WITH_SUGGESTIONS", "APPROVE")
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Cluster:
    """Suggestions that say the same.

    Attributes:
        text: the one that is most like the others.
        voters: who made it, in the order of the rules.
        weight: theirs together.
        suggestions: all of them.
    """

    text: str
    voters: tuple[str, ...]
    weight: float
    suggestions: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For files and documents."""
        return {
            "suggestion": self.text,
            "voters": list(self.voters),
            "weight": self.weight,
            "said_as": list(self.suggestions),
        }


@dataclass(frozen=True, slots=True)
class Tally:
    """What a vote came to.

    Attributes:
        outcome: `consensus`, or why there is none.
        message: that in words; empty for a consensus.
        approval: weight of those who approve over the weight of those who answered, 0 to 1.
        confidence: of those who approve, the mean by weight; 0 where nobody does.
        decision: what has most weight; the more careful one of a tie; None where nobody answered.
        weights: weight by decision.
        answered: voters whose answer counts.
        missing: voters without an answer.
        fallbacks: voters whose votes are the same, word for word: not counted as answers.
        clusters: suggestions, those with most weight first.
    """

    outcome: VoteOutcome
    message: str
    approval: float
    confidence: float
    decision: Decision | None
    weights: Mapping[Decision, float]
    answered: tuple[str, ...]
    missing: tuple[str, ...]
    fallbacks: tuple[str, ...]
    clusters: tuple[Cluster, ...]

    @property
    def agreed(self) -> bool:
        """Whether there is a consensus to go on."""
        return self.outcome == "consensus"

    def as_json(self) -> dict[str, Any]:
        """For files and documents."""
        return {
            "outcome": self.outcome,
            "message": self.message,
            "approval": round(self.approval, 4),
            "confidence": round(self.confidence, 4),
            "decision": self.decision,
            "weights": {name: round(weight, 4) for name, weight in self.weights.items()},
            "answered": list(self.answered),
            "missing": list(self.missing),
            "fallbacks": list(self.fallbacks),
            "suggestions": [cluster.as_json() for cluster in self.clusters],
        }


def tally(votes: Mapping[str, Vote | None], rules: VotingRules) -> Tally:
    """Count a vote.

    Approving are APPROVE and APPROVE_WITH_SUGGESTIONS. Votes that are the same in decision,
    confidence, reasoning and suggestions, of `identical_votes` voters or more, are a fallback and
    no answers.

    Args:
        votes: by the voter's name; None, or no entry, where a voter did not answer. Voters whom
            the rules do not name (any more) are left out.
        rules: voters, weights and bounds.
    """
    weight_of = {voter.name: voter.weight for voter in rules.voters}
    given = {name: vote for name in weight_of if (vote := votes.get(name)) is not None}
    fallbacks = _identical(given, rules.identical_votes)
    counted = {name: vote for name, vote in given.items() if name not in fallbacks}

    weights: dict[Decision, float] = {}
    for decision in _CAREFUL:
        if any(vote.decision == decision for vote in counted.values()):
            weights[decision] = math.fsum(
                weight_of[name] for name, vote in counted.items() if vote.decision == decision
            )
    total = math.fsum(weight_of[name] for name in counted)
    approving = {name: vote for name, vote in counted.items() if vote.decision in APPROVING}
    weight = math.fsum(weight_of[name] for name in approving)
    approval = weight / total if total else 0.0
    confidence = (
        math.fsum(weight_of[name] * vote.confidence for name, vote in approving.items()) / weight
        if weight
        else 0.0
    )
    outcome, message = _outcome(
        rules,
        answered=len(counted),
        fallbacks=fallbacks,
        approval=approval,
        confidence=confidence,
    )
    most = max(weights.values(), default=0.0)
    return Tally(
        outcome=outcome,
        message=message,
        approval=approval,
        confidence=confidence,
        decision=next((one for one in weights if weights[one] >= most - _ROUNDING), None),
        weights=weights,
        answered=tuple(counted),
        missing=tuple(name for name in weight_of if name not in given),
        fallbacks=fallbacks,
        clusters=cluster_suggestions(
            {name: vote.suggestions for name, vote in counted.items()}, rules
        ),
    )


def cluster_suggestions(
    suggestions: Mapping[str, Sequence[str]], rules: VotingRules
) -> tuple[Cluster, ...]:
    """Suggestions put together by the words they share, whatever their order.

    Two suggestions are one where their Jaccard similarity, of the stems of their words, is at
    least `same_suggestion`; what is the same as the same is the same too.

    Args:
        suggestions: by the voter's name.
        rules: weights, order of voters, the bound.
    """
    weight_of = {voter.name: voter.weight for voter in rules.voters}
    said = sorted(
        {(name, text.strip()) for name, texts in suggestions.items() for text in texts
         if text.strip()},
        key=lambda one: (list(weight_of).index(one[0]), one[1]),
    )  # fmt: skip
    keys = [stems(text) or frozenset(words_of(text)) for _, text in said]
    group = list(range(len(said)))
    for left in range(len(said)):
        for right in range(left + 1, len(said)):
            near = jaccard(keys[left], keys[right]) >= rules.same_suggestion - _ROUNDING
            if near and group[left] != group[right]:
                old, new = group[right], group[left]
                group = [new if one == old else one for one in group]
    clusters = []
    for one in dict.fromkeys(group):
        members = [index for index, other in enumerate(group) if other == one]
        # texts decide ties, so that the order of answers does not matter
        centre = min(
            members,
            key=lambda index: (
                -math.fsum(jaccard(keys[index], keys[other]) for other in members),
                said[index][1],
            ),
        )
        voters = tuple(dict.fromkeys(said[index][0] for index in members))
        clusters.append(
            Cluster(
                text=said[centre][1],
                voters=voters,
                weight=math.fsum(weight_of[name] for name in voters),
                suggestions=tuple(dict.fromkeys(said[index][1] for index in members)),
            )
        )
    return tuple(sorted(clusters, key=lambda cluster: (-cluster.weight, cluster.text)))


def synthesis_content(
    votes: Mapping[str, Vote | None], counted: Tally, *, most: int = 12
) -> dict[str, Any]:
    """What the synthesis is told of a vote: the result, suggestions by weight, and objections.

    Args:
        votes: as they were counted.
        counted: what they came to.
        most: suggestions at most; those with most weight.
    """
    return {
        "decision": counted.decision,
        "approval": round(counted.approval, 2),
        "suggestions": [
            {"text": cluster.text, "weight": round(cluster.weight, 1),
             "voters": list(cluster.voters)}
            for cluster in counted.clusters[:most]
        ],
        "objections": [
            {"voter": name, "decision": vote.decision, "reasoning": vote.reasoning}
            for name in counted.answered
            if (vote := votes.get(name)) is not None and vote.decision not in APPROVING
        ],
    }  # fmt: skip


def _identical(votes: Mapping[str, Vote], least: int) -> tuple[str, ...]:
    said = {
        name: (
            vote.decision,
            vote.confidence,
            tuple(words_of(vote.reasoning)),
            frozenset(tuple(words_of(text)) for text in vote.suggestions),
        )
        for name, vote in votes.items()
    }
    counts = Counter(said.values())
    return tuple(name for name, what in said.items() if counts[what] >= least)


def _outcome(
    rules: VotingRules,
    *,
    answered: int,
    fallbacks: Sequence[str],
    approval: float,
    confidence: float,
) -> tuple[VoteOutcome, str]:
    everybody = len(rules.voters)
    if answered < rules.min_voters and fallbacks:
        return (
            "identical_votes",
            f"{len(fallbacks)} of {everybody} voters gave the same vote word for word, which is "
            f"no judgement; {answered} are left, {rules.min_voters} must answer.",
        )
    if answered < rules.min_voters:
        return (
            "too_few_voters",
            f"{answered} of {everybody} voters answered, {rules.min_voters} must.",
        )
    if approval < rules.min_consensus - _ROUNDING:
        return (
            "no_consensus",
            f"{approval:.1%} of the voters' weight approves, {rules.min_consensus:.0%} must.",
        )
    if confidence < rules.min_confidence - _ROUNDING:
        return (
            "unsure",
            f"Those who approve are {confidence:.2f} sure, {rules.min_confidence:g} is needed.",
        )
    return "consensus", ""
