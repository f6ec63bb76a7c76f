"""What the simulator says of a topic before its cards: findings, votes, the synthesis."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from batch_pipeline.providers.base import ProviderError, WebSearch
from batch_pipeline.workloads.flashcards.completion import is_generic
from batch_pipeline.workloads.flashcards.models import (
    CardsAnswer,
    OptimizedPrompt,
    TopicPlan,
    Vote,
)
from batch_pipeline.workloads.flashcards.topics import Topic
from batch_pipeline.workloads.flashcards.voting import APPROVING, synthesis_content, tally
from batch_pipeline_tests.simulator.asking import answers, ask
from batch_pipeline_tests.simulator.running import Running
from batch_pipeline_tests.simulator.topics import TOPICS, content_of
from batch_pipeline_tests.workloads.flashcards.cards import RULES, VOTING

TOPIC = TOPICS[1]
SEARCH = WebSearch(max_results=4, max_characters=500)


def ballots(topic: Topic) -> list[dict[str, Any]]:
    return [
        content_of(topic, findings=[], voter=voter.name, focus=voter.focus)
        for voter in VOTING.voters
    ]


def votes_on(simulator: Running, topic: Topic) -> dict[str, Vote | None]:
    given = answers(ask(simulator, Vote, *ballots(topic)))
    names = [voter.name for voter in VOTING.voters]
    return {name: Vote.model_validate(one) for name, one in zip(names, given, strict=True)}


def test_nearly_all_topics_reach_a_consensus_and_some_voters_object(simulator: Running) -> None:
    counted = [tally(votes_on(simulator, topic), VOTING) for topic in TOPICS]
    assert sum(one.agreed for one in counted) >= len(TOPICS) - 1
    decisions = {decision for one in counted for decision in one.weights}
    assert decisions == {"APPROVE", "APPROVE_WITH_SUGGESTIONS", "REVISE"}
    assert all(0.65 <= one.confidence <= 0.95 for one in counted)
    # what several voters suggest is found to be the same
    assert sum(len(one.clusters[0].voters) > 1 for one in counted if one.clusters) > 25


def test_each_voter_gives_reasons_of_its_own_that_are_about_the_topic(simulator: Running) -> None:
    given = [vote for vote in votes_on(simulator, TOPIC).values() if vote is not None]
    assert len({vote.reasoning for vote in given}) == 8
    assert sum(TOPIC.title in vote.reasoning for vote in given) >= 6
    assert votes_on(simulator, TOPIC) == votes_on(simulator, TOPIC)
    stranger = content_of(TOPIC, voter="newcomer", focus="Is it new?")
    (vote,) = answers(ask(simulator, Vote, stranger))
    assert "Is it new?" in vote["reasoning"] and TOPIC.title in vote["reasoning"]


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("votes_same", "identical_votes"),
        ("votes_reject", "no_consensus"),
        ("votes_unsure", "unsure"),
    ],
)
def test_a_fault_decides_what_becomes_of_the_vote(
    simulator: Running, kind: str, outcome: str
) -> None:
    simulator.configure(faults=[{"kind": kind, "voter": voter.name} for voter in VOTING.voters])
    votes = votes_on(simulator, TOPIC)
    assert tally(votes, VOTING).outcome == outcome
    said = {vote.reasoning for vote in votes.values() if vote is not None}
    assert len(said) == (1 if kind == "votes_same" else 8)
    assert any(vote.decision in APPROVING for vote in votes.values() if vote) == (
        kind == "votes_unsure"
    )


def test_a_voter_that_is_down_answers_no_json_and_the_others_answer(simulator: Running) -> None:
    simulator.configure(
        faults=[
            {"kind": "voter_down", "voter": "clarity"},
            {"kind": "status", "status": 500, "voter": "schema"},
        ]
    )
    for ballot in ballots(TOPIC):
        if ballot["voter"] == "schema":
            with pytest.raises(ProviderError, match="internal error"):
                ask(simulator, Vote, ballot)
        elif ballot["voter"] == "clarity":
            with pytest.raises(ValueError, match="Expecting value"):
                answers(ask(simulator, Vote, ballot))
        else:
            Vote.model_validate(answers(ask(simulator, Vote, ballot))[0])
    found = simulator.http.post("/exa/search", json={"query": "q"}, headers={"x-api-key": "k"})
    assert found.status_code == 200
    reply = simulator.http.put("/_sim/config", json={"faults": [{"kind": "voter_down"}]})
    assert reply.status_code == 400 and "needs voter" in reply.text


def test_findings_cite_the_pages_that_the_search_found(simulator: Running) -> None:
    content = content_of(TOPIC, wanted=15)
    reply = ask(simulator, TopicPlan, content, provider="openrouter", search=SEARCH)
    plan = TopicPlan.model_validate(answers(reply)[0])
    cited = {page.url for page in reply.citations}
    assert len(cited) == 4 and all(TOPIC.title in page.title for page in reply.citations)
    assert {fact.url for fact in plan.findings} <= cited
    assert len({fact.fact for fact in plan.findings}) >= 4
    assert len(plan.points) == 15 and len(plan.objectives) >= 3
    plain = TopicPlan.model_validate(answers(ask(simulator, TopicPlan, content))[0])
    assert {fact.url for fact in plain.findings} == {""}


def test_a_search_without_findings_is_paid_for_and_cites_nothing(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "no_findings"}])
    content = content_of(TOPIC, wanted=15)
    for model in (TopicPlan, CardsAnswer):
        reply = ask(simulator, model, content, provider="openrouter", search=SEARCH)
        assert not reply.citations
        model.model_validate(answers(reply)[0])
    exa = simulator.http.post("/exa/search", json={"query": "q"}, headers={"x-api-key": "k"})
    assert exa.json()["results"] == []
    entries = simulator.journal()
    assert [entry["fault"] for entry in entries] == ["no_findings"] * 3
    assert all(entry["search_usd"] > 0 for entry in entries)
    # a request that searches nothing is not hit
    ask(simulator, CardsAnswer, content)
    assert simulator.journal()[-1]["fault"] is None


@pytest.mark.parametrize("topic", TOPICS[:8], ids=lambda topic: topic.title)
def test_a_synthesis_is_about_its_topic_and_follows_suggestions(
    simulator: Running, topic: Topic
) -> None:
    votes = votes_on(simulator, topic)
    told = synthesis_content(votes, tally(votes, VOTING))
    (answer,) = answers(ask(simulator, OptimizedPrompt, content_of(topic, **told)))
    prompt = OptimizedPrompt.model_validate(answer)
    assert not any(is_generic(one, topic, RULES) for one in prompt.objectives)
    assert len({one.bloom_level for one in prompt.objectives}) >= 3
    assert all(one.text.lower().startswith(one.verb) for one in prompt.objectives)
    assert prompt.applied_suggestions == [one["text"] for one in told["suggestions"][:3]]
    assert topic.title in prompt.system_prompt


def test_generic_objectives_are_found_out(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "objectives_generic"}])
    (answer,) = answers(ask(simulator, OptimizedPrompt, content_of(TOPIC, suggestions=[])))
    prompt = OptimizedPrompt.model_validate(answer)
    assert all(is_generic(one, TOPIC, RULES) for one in prompt.objectives)


class Other(BaseModel):
    flashcards: list[str]


def test_a_schema_that_only_looks_alike_is_answered_as_any_other(simulator: Running) -> None:
    (answer,) = answers(ask(simulator, Other, content_of(TOPIC)))
    Other.model_validate(answer)
