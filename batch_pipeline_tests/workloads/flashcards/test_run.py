"""Runs of each mode over the simulator: what is asked, what is paid, what a topic comes to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.ledger.calls import unpack_bytes
from batch_pipeline.ledger.tables import Outcome, replies, results
from batch_pipeline.workloads.compare import estimate_ingested
from batch_pipeline.workloads.flashcards.checks import check_card
from batch_pipeline.workloads.flashcards.models import DraftCard
from batch_pipeline_tests.simulated import Bench, Simulator
from batch_pipeline_tests.workloads.flashcards.cards import RULES, SAMPLES
from batch_pipeline_tests.workloads.flashcards.running import (
    bench,
    calls,
    documents,
    records,
    topic,
    write_topics,
)

TOPICS = SAMPLES / "topics.jsonl"


def searches(simulator: Simulator) -> int:
    return sum(entry["provider"] == "exa" for entry in simulator.journal())


def sent(one: Bench) -> list[dict[str, Any]]:
    """The bodies of all calls of models."""
    with one.open() as ledger, ledger.read() as connection:
        bodies = connection.execute(replies.select()).all()
    return [json.loads(unpack_bytes(row.request)) for row in bodies]


@pytest.mark.usefixtures("either_database")
@pytest.mark.parametrize("mode", ["web", "exa", "unified"])
def test_topics_come_to_as_many_checked_cards_as_are_wanted_with_their_sources(
    mode: str, simulator: Simulator, tmp_path: Path
) -> None:
    one = bench(tmp_path, simulator, mode=mode)
    batch = one.ingest(TOPICS)
    ran = one.run(batch)
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 8})
    found = records(one, batch)
    assert len(found) == 8
    for record in found:
        assert len(record.cards) == 15
        for card in record.cards:
            draft = DraftCard.model_validate(card.model_dump())
            assert check_card(draft, record.topic, RULES).passed
        assert record.researched and record.simulated
        assert record.sources and all(one.url.startswith("https://") for one in record.sources)
        assert record.model == "openrouter/google/gemini-3.1-flash-lite"
        assert record.mean_score is not None and record.mean_score >= 0.8
        assert (record.votes is not None) is (record.prompt is not None) is (mode == "unified")
    asked = calls(one)
    assert asked["cards"] == 8
    assert searches(simulator) == (8 if mode == "exa" else 0)
    assert one.run(batch, "again").done.tally.attempts == 0


def test_web_mode_asks_for_a_search_in_the_one_call_and_its_citations_are_the_sources(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(slips=0.0)
    one = bench(tmp_path, simulator, search_context_size="low", num_flashcards=3)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    assert one.run(batch).outcomes == {"succeeded": 1}
    (body,) = sent(one)
    (tool,) = body["tools"]
    assert tool["type"] == "openrouter:web_search"
    assert tool["parameters"]["max_results"] == 3
    assert "plugins" not in body
    (record,) = records(one, batch)
    assert len(record.sources) == 3


def test_the_older_plugin_is_used_where_it_is_pinned(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(slips=0.0)
    one = bench(tmp_path, simulator, web_plugin=True, num_flashcards=3)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    assert one.run(batch).outcomes == {"succeeded": 1}
    (body,) = sent(one)
    assert body["plugins"] == [{"id": "web", "max_results": 5, "engine": "exa"}]
    assert "tools" not in body


@pytest.mark.parametrize("mode", ["web", "exa", "unified"])
def test_without_research_nothing_is_searched_and_no_source_is_missed(
    mode: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(slips=0.0)
    one = bench(tmp_path, simulator, mode=mode, research=False, num_flashcards=3)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    assert one.run(batch).outcomes == {"succeeded": 1}
    assert searches(simulator) == 0
    assert all("tools" not in body and "plugins" not in body for body in sent(one))
    (record,) = records(one, batch)
    assert not record.researched and not record.sources


def test_the_same_topic_in_two_folders_is_asked_once(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(slips=0.0)
    topics = [
        topic("Passkeys", topic_path=f"00{n}_x/passkeys/topic.json", category_folder=f"00{n}_x")
        for n in (1, 2)
    ]
    one = bench(tmp_path, simulator, num_flashcards=3)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", topics))
    assert one.run(batch).outcomes == {"succeeded": 2}
    assert calls(one) == {"cards": 1}
    first, second = records(one, batch)
    assert first.cards == second.cards and first.topic.path != second.topic.path


def test_only_failing_cards_are_asked_again_and_good_ones_stay(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(slips=0.3)
    one = bench(tmp_path, simulator)
    batch = one.ingest(TOPICS)
    assert one.run(batch).outcomes == {"succeeded": 8}
    mended = 0
    for steps in documents(one, batch).values():
        first = steps["check"].content
        failing, passed = first["failing"], first["passed"]
        assert len(failing) + len(passed) == 15
        if failing:
            second = steps["check_1"].content
            assert second["passed"][: len(passed)] == passed
            assert {card["step"] for card in second["passed"][len(passed) :]} <= {"again_1"}
            mended += 1
    assert mended
    assert calls(one)["again_1"] == mended
    contents = [json.loads(body["messages"][-1]["content"])["topics"][0] for body in sent(one)]
    asked = [content for content in contents if "failing" in content]
    assert len(asked) == mended
    assert all(0 < len(content["failing"]) < 15 for content in asked)
    assert all(entry["problems"] for content in asked for entry in content["failing"])


def test_missing_cards_are_asked_for(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(faults=[{"kind": "cards_short", "count": 1}], slips=0.0)
    one = bench(tmp_path, simulator, num_flashcards=10)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    assert one.run(batch).outcomes == {"succeeded": 1}
    assert calls(one) == {"cards": 1, "again_1": 1}
    (record,) = records(one, batch)
    assert len({card.question_text for card in record.cards}) == 10


def test_a_topic_whose_cards_never_pass_is_not_completed_and_is_asked_anew_by_a_retry(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "cards_bad"}], slips=0.0)
    one = bench(tmp_path, simulator, num_flashcards=5, rounds=1)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    assert one.run(batch).outcomes == {"failed": 1}
    (item,) = one.items(batch)
    assert item.error_kind == "incomplete"
    assert "0 cards of 5 passed the checks, at least 4 must." in (item.error or "")
    assert f"`batch-pipeline retry {batch.batch_id}`" in (item.error or "")
    (record,) = records(one, batch)
    assert len(record.refused) == 5
    assert {name for card in record.refused for name in card.checks} == {"parenthetical_giveaways"}
    assert calls(one) == {"cards": 1, "again_1": 1}

    simulator.configure(slips=0.0)
    assert one.run(batch, "again").outcomes == {"succeeded": 1}
    assert calls(one) == {"cards": 2, "again_1": 1}, "asked anew, not taken from what failed"


@pytest.mark.parametrize(("rounds", "asked"), [(0, {}), (2, {"again_1": 1, "again_2": 1})])
def test_as_many_rounds_are_asked_as_the_option_says(
    rounds: int, asked: dict[str, int], simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "cards_bad"}], slips=0.0)
    one = bench(tmp_path, simulator, num_flashcards=2, rounds=rounds)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    assert one.run(batch).outcomes == {"failed": 1}
    assert calls(one) == {"cards": 1, **asked}


@pytest.mark.parametrize("mode", ["web", "unified"])
def test_a_topic_without_sources_is_not_completed(
    mode: str, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "no_findings"}], slips=0.0)
    one = bench(tmp_path, simulator, mode=mode, num_flashcards=3)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    assert one.run(batch).outcomes == {"failed": 1}
    (item,) = one.items(batch)
    assert "The research gave 0 sources, at least 1 is needed." in (item.error or "")
    if mode == "unified":
        assert calls(one) == {"research": 1}, "nobody votes on nothing"


def test_exa_that_refuses_leaves_the_topic_pending_and_one_that_finds_nothing_fails_it(
    simulator: Simulator, tmp_path: Path
) -> None:
    one = bench(tmp_path, simulator, mode="exa", num_flashcards=3)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    simulator.configure(faults=[{"kind": "status", "status": 401, "provider": "exa"}], slips=0.0)
    ran = one.run(batch)
    assert ran.outcomes == {"pending": 1}
    assert ran.done.status == "stopped" and "exa refuses every call" in ran.done.message
    assert not calls(one)["cards"], "nothing is written without research"
    simulator.configure(faults=[{"kind": "no_findings", "provider": "exa"}], slips=0.0)
    assert one.run(batch, "second").outcomes == {"failed": 1}
    (item,) = one.items(batch)
    assert item.error_kind == "research"
    assert "Exa found nothing for 'Passkeys (Identity, Cybersecurity)'" in (item.error or "")


def test_that_exa_found_nothing_is_believed_for_an_hour(
    simulator: Simulator, tmp_path: Path
) -> None:
    one = bench(tmp_path, simulator, mode="exa", num_flashcards=3)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    simulator.configure(faults=[{"kind": "no_findings", "provider": "exa"}], slips=0.0)
    assert one.run(batch).outcomes == {"failed": 1}
    simulator.configure(slips=0.0)
    assert one.run(batch, "at once").outcomes == {"failed": 1}
    assert [entry["provider"] for entry in simulator.journal()] == ["exa"]
    with one.open() as ledger, ledger.write() as connection:
        connection.execute(results.update().values(created_at=results.c.created_at - 3_600))
    assert one.run(batch, "later").outcomes == {"succeeded": 1}
    # what it has found is good for longer
    with one.open() as ledger, ledger.write() as connection:
        connection.execute(results.update().values(created_at=results.c.created_at - 3_600))
    other = one.ingest(
        write_topics(tmp_path / "other.jsonl", [topic("Passkeys", context="More of it.")])
    )
    assert one.run(other, "other").outcomes == {"succeeded": 1}
    asked = Counter(entry["provider"] for entry in simulator.journal())
    assert asked["exa"] == 2


def test_exa_mode_takes_any_provider(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(slips=0.0)
    knobs = {"route": "google/gemini-3.1-flash-lite"}
    one = bench(tmp_path, simulator, mode="exa", num_flashcards=3, knobs=knobs)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]))
    assert one.run(batch).outcomes == {"succeeded": 1}
    assert Counter(entry["provider"] for entry in simulator.journal()) == {"exa": 1, "google": 1}


def test_filters_are_reading_options(simulator: Simulator, tmp_path: Path) -> None:
    from batch_pipeline.workloads.runner import ingest_batch

    one = bench(tmp_path, simulator)
    with one.open() as ledger:
        batch, _ = ingest_batch(
            ledger, one.config, str(TOPICS), options={"category": "002_software"}
        )
    assert batch.row_count == 3
    assert {item.outcome for item in one.items(batch)} == {Outcome.PENDING}


@pytest.mark.parametrize(("mode", "requests"), [("web", 1), ("exa", 1), ("unified", 11)])
def test_an_estimate_counts_each_modes_calls_before_anything_has_answered(
    mode: str, requests: int, simulator: Simulator, tmp_path: Path
) -> None:
    one = bench(tmp_path, simulator, mode=mode)
    batch = one.ingest(TOPICS)
    with one.open() as ledger:
        found = estimate_ingested(ledger, one.config, batch)
    steps = {step.step: step.requests for step in found.steps}
    again = sum(count for name, count in steps.items() if name.startswith("again"))
    assert sum(steps.values()) - again == 8 * requests
    # of topics that have a card to mend, and of these once more
    assert 0 < again < 8
