"""Unified mode on a hundred topics: which votes are a consensus, and what becomes of the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.ledger.tables import Outcome
from batch_pipeline_tests.simulated import Simulator
from batch_pipeline_tests.workloads.flashcards.cards import VOTING
from batch_pipeline_tests.workloads.flashcards.running import (
    bench,
    calls,
    documents,
    records,
    topic,
    write_topics,
)

VOTERS = [voter.name for voter in VOTING.voters]
PEDAGOGY, *OTHERS = VOTERS
EACH = 7
DONE, FAILED, BLOCKED = Outcome.SUCCEEDED, Outcome.FAILED, Outcome.BLOCKED
REJECT, SAME, DOWN = "votes_reject", "votes_same", "voter_down"


@dataclass(frozen=True)
class Case:
    """What goes wrong with the votes on a topic, and what must become of it.

    Attributes:
        faults: (kind, voters); no voters are all.
        outcome: of the topic.
        vote: outcome of the vote; empty where nobody voted.
        kind: `error_kind`.
        answered: voters whose answer counts.
    """

    faults: tuple[tuple[str, tuple[str, ...]], ...]
    outcome: Outcome
    vote: str = "consensus"
    kind: str | None = None
    answered: int = 8

    @property
    def objecting(self) -> set[str]:
        """Voters who are made to object."""
        made = [voters or VOTERS for kind, voters in self.faults if kind in (REJECT, SAME)]
        return {name for voters in made for name in voters}


def _votes(kind: str, *voters: str) -> tuple[str, tuple[str, ...]]:
    return kind, voters


CASES = {
    "everybody approves": Case((), DONE),
    "four against four": Case(
        (_votes(REJECT, *OTHERS[:4]),), BLOCKED, "no_consensus", "consensus"
    ),
    "a tie that the heavier voter breaks for nobody": Case(
        (_votes(REJECT, PEDAGOGY, *OTHERS[:3]),), BLOCKED, "no_consensus", "consensus"
    ),
    "five approve without the heavier one": Case((_votes(REJECT, PEDAGOGY, *OTHERS[:2]),), DONE),
    "one voter down": Case((_votes(DOWN, OTHERS[0]),), DONE, answered=7),
    "two voters missing": Case((_votes(DOWN, *OTHERS[:2]),), DONE, answered=6),
    "three voters missing": Case(
        (_votes(DOWN, *OTHERS[:3]),), FAILED, "too_few_voters", "consensus", 5
    ),
    "two missing and three of six against": Case(
        (_votes(DOWN, *OTHERS[:2]), _votes(REJECT, *OTHERS[2:5])),
        BLOCKED, "no_consensus", "consensus", 6,
    ),
    "all the same, word for word": Case(
        (_votes(SAME),), FAILED, "identical_votes", "consensus", 0
    ),
    "three the same": Case(
        (_votes(SAME, *OTHERS[:3]),), FAILED, "identical_votes", "consensus", 5
    ),
    "two the same": Case((_votes(SAME, *OTHERS[:2]),), DONE),
    "nobody approves": Case((_votes(REJECT),), BLOCKED, "no_consensus", "consensus"),
    "nobody is sure": Case((_votes("votes_unsure"),), BLOCKED, "unsure", "consensus"),
    "objectives for any topic": Case(
        (_votes("objectives_generic"),), FAILED, "consensus", "incomplete"
    ),
    "no source": Case((_votes("no_findings"),), FAILED, "", "research"),
}  # fmt: skip
NUMBERED = {f"Case{at:02}": case for at, case in enumerate(CASES.values())}


def objecting(tally: dict[str, Any]) -> set[str]:
    """Voters who do not approve."""
    given = {name: vote for name, vote in tally["votes"].items() if vote is not None}
    return {name for name, vote in given.items() if vote["decision"] in ("REVISE", "REJECT")}


def agreed(tally: dict[str, Any]) -> bool:
    """Whether it is a consensus, by the words of the guide."""
    counted = [name for name in VOTERS if name in tally["answered"]]
    weight = {name: 1.2 if name == PEDAGOGY else 1.0 for name in counted}
    approving = [name for name in counted if name not in objecting(tally)]
    if len(counted) < 6 or not approving:
        return False
    share = sum(weight[name] for name in approving) / sum(weight.values())
    sure = [tally["votes"][name]["confidence"] * weight[name] for name in approving]
    return share >= 0.57 and sum(sure) / sum(weight[name] for name in approving) >= 0.6


def faults() -> list[dict[str, Any]]:
    return [
        {"kind": kind, "match": name} | ({} if voter is None else {"voter": voter})
        for name, case in NUMBERED.items()
        for kind, voters in case.faults
        for voter in (voters or (None,))
    ]


@pytest.mark.usefixtures("either_database")
def test_a_hundred_topics_end_as_the_table_of_cases_says(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=faults(), slips=0.0)
    one = bench(tmp_path, simulator, mode="unified", num_flashcards=3, knobs={"workers": 40})
    topics = [topic(f"{name} Passkey {turn}") for name in NUMBERED for turn in range(EACH)]
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", topics))
    ran = one.run(batch)
    assert ran.done.status == "done"

    kept = documents(one, batch)
    told: dict[str, Any] = {}
    for item in one.items(batch):
        name = item.row["topic_title"].split()[0]
        tally = kept[item.ordinal].get("tally")
        vote, answered = "", 8
        if tally is not None:
            vote, answered = tally.content["outcome"], len(tally.content["answered"])
            assert (vote == "consensus") is agreed(tally.content), item.row["topic_title"]
            if objecting(tally.content) - NUMBERED[name].objecting:
                # simulated voters sometimes object by themselves, which makes another case of it
                continue
        told[name] = told.get(name, set()) | {(item.outcome, vote, item.error_kind, answered)}
    assert told == {
        name: {(case.outcome, case.vote, case.kind, case.answered)}
        for name, case in NUMBERED.items()
    }

    voted = [entry["tally"] for entry in kept.values() if "tally" in entry]
    completed = [one for one in voted if one.outcome is DONE]
    asked = calls(one)
    # the synthesis and the cards of a topic without consensus are not paid for
    assert asked["synthesis"] == asked["cards"] == len(completed)
    assert asked[f"vote_{PEDAGOGY}"] == len(voted) == (len(CASES) - 1) * EACH
    assert {len(one.cards) for one in records(one, batch)} == {3}
    assert all(
        one.votes is not None and one.prompt is not None and one.sources and one.decision
        for one in records(one, batch)
    )


def test_topics_without_consensus_are_asked_anew_and_blocked_ones_only_when_told(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(
        faults=[{"kind": SAME, "match": "Same"}, {"kind": REJECT, "match": "Bad"}], slips=0.0
    )
    one = bench(tmp_path, simulator, mode="unified", num_flashcards=2)
    topics = [topic("Good one"), topic("Same one"), topic("Bad one")]
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", topics))
    assert one.run(batch).outcomes == {"succeeded": 1, "failed": 1, "blocked": 1}
    failed, blocked = one.items(batch)[1:]
    assert "gave the same vote word for word" in (failed.error or "")
    assert f"`batch-pipeline retry {batch.batch_id}`" in (failed.error or "")
    assert "0.0% of the voters' weight approves" in (blocked.error or "")
    assert "--include-blocked" in (blocked.error or "")

    simulator.configure(slips=0.0)
    before = calls(one)
    again = one.run(batch, "again")
    assert again.outcomes == {"succeeded": 2, "blocked": 1}
    asked = Counter(calls(one)) - before
    assert asked["cards"] == 1 and not asked["research"], "what was found is no fault of votes"
    assert {name for name in asked if name.startswith("vote_")} == {f"vote_{v}" for v in VOTERS}
    assert one.run(batch, "with blocked", include_blocked=True).outcomes == {"succeeded": 3}
    assert one.run(batch, "nothing to do", include_blocked=True).done.tally.attempts == 0


@pytest.mark.parametrize(
    ("fault", "anew"),
    [("objectives_generic", {"synthesis": 1, "cards": 1}), ("cards_bad", {"cards": 1})],
)
def test_a_retry_pays_only_for_the_part_at_fault_and_what_follows_it(
    simulator: Simulator, tmp_path: Path, fault: str, anew: dict[str, int]
) -> None:
    simulator.configure(faults=[{"kind": fault}], slips=0.0)
    one = bench(tmp_path, simulator, mode="unified", num_flashcards=2, rounds=0)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Good one")]))
    assert one.run(batch).outcomes == {"failed": 1}
    assert one.items(batch)[0].error_kind == "incomplete"
    assert one.run(batch, "once more").outcomes == {"failed": 1}
    simulator.configure(slips=0.0)
    before = calls(one)
    assert one.run(batch, "again").outcomes == {"succeeded": 1}
    assert Counter(calls(one)) - before == anew
    assert one.run(batch, "nothing to do").done.tally.attempts == 0


def test_a_retry_asks_missing_voters_alone_and_keeps_the_votes_that_there_are(
    simulator: Simulator, tmp_path: Path
) -> None:
    down = [{"kind": DOWN, "voter": name} for name in OTHERS[:3]]
    simulator.configure(faults=down, slips=0.0)
    one = bench(tmp_path, simulator, mode="unified", num_flashcards=2)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Good one")]))
    assert one.run(batch).outcomes == {"failed": 1}
    (failed,) = one.items(batch)
    assert f"`batch-pipeline retry {batch.batch_id}` asks the others" in (failed.error or "")
    simulator.configure(slips=0.0)
    before = calls(one)
    assert one.run(batch, "again").outcomes == {"succeeded": 1}
    asked = Counter(calls(one)) - before
    assert not asked["research"]
    assert {name for name in asked if name.startswith("vote_")} == {
        f"vote_{name}" for name in OTHERS[:3]
    }


def test_suggestions_and_objections_reach_the_synthesis_and_its_brief_the_cards(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": REJECT, "voter": OTHERS[0]}], slips=0.0)
    one = bench(tmp_path, simulator, mode="unified", num_flashcards=2)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    job = one.job(batch)
    steps = {step.name: step for step in job.steps}
    assert one.run(batch).outcomes == {"succeeded": 1}
    (record,) = records(one, batch)
    assert record.votes is not None and record.prompt is not None
    row = {
        **one.items(batch)[0].row,
        "research": {"findings": [{"fact": "f", "url": "u"}], "objectives": ["o"], "points": ["p"]},
        "tally": documents(one, batch)[0]["tally"].content,
        "synthesis": record.prompt.model_dump(mode="json"),
    }
    content = steps["synthesis"].content(row)  # type: ignore[union-attr]
    assert [entry["voter"] for entry in content["objections"]] == [OTHERS[0]]
    assert content["objections"][0]["decision"] in ("REVISE", "REJECT")
    written = steps["cards"].content(row)  # type: ignore[union-attr]
    assert written["brief"] == record.prompt.system_prompt
    assert written["wanted"] == 2
    assert not {"topic_path", "category_folder", "tally"} & written.keys()
