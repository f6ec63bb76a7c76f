"""Where topics stand, by the ledger alone; and topics that are made anew."""

from __future__ import annotations

import csv
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import LEASE_CHUNK, LeaseRequest, list_chunks
from batch_pipeline.ledger.calls import HEARTBEAT, Owner
from batch_pipeline.workloads.flashcards.completion_status import (
    EXPORT_COLUMNS,
    TopicStatus,
    clear,
    completion_counts,
    export_completion,
    read_completion,
    reset_topics,
)
from batch_pipeline_tests.simulated import Bench, Simulator
from batch_pipeline_tests.workloads.flashcards.running import bench, calls, topic, write_topics

pytestmark = pytest.mark.usefixtures("either_database")

TOPICS = [topic("Passkeys"), topic("Tokens"), topic("Badges"), topic("Seals")]
FAULTS = [
    {"kind": "cards_bad", "match": "Tokens"},
    {"kind": "refusal", "match": "Badges"},
]


def status(one: Bench) -> dict[str, TopicStatus]:
    """By the topic's folder."""
    with one.open() as ledger:
        found = list(read_completion(ledger))
    assert len({entry.topic_path for entry in found}) == len(found)
    return {entry.topic_path.split("/")[-2]: entry for entry in found}


def counts(one: Bench) -> dict[str, int]:
    with one.open() as ledger:
        return {name: count for name, count in completion_counts(ledger).items() if count}


def reset(one: Bench, *names: str) -> list[Any]:
    paths = [status(one)[name].topic_path for name in names]
    with one.open() as ledger:
        return reset_topics(ledger, paths)


@pytest.fixture
def one(simulator: Simulator, tmp_path: Path) -> Bench:
    """Four topics: completed, failed, blocked and completed."""
    simulator.configure(faults=FAULTS, slips=0.0)
    made = bench(tmp_path, simulator, num_flashcards=2, rounds=0)
    batch = made.ingest(write_topics(tmp_path / "topics.jsonl", TOPICS), "first")
    assert made.run(batch).outcomes == {"succeeded": 2, "failed": 1, "blocked": 1}
    simulator.configure(slips=0.0)
    return made


def test_status_is_what_the_ledger_has(one: Bench, simulator: Simulator) -> None:
    found = status(one)
    assert {name: entry.status for name, entry in found.items()} == {
        "passkeys": "completed", "tokens": "failed", "badges": "blocked", "seals": "completed",
    }  # fmt: skip
    assert counts(one) == {"completed": 2, "failed": 1, "blocked": 1}
    done, failed = found["passkeys"], found["tokens"]
    assert (done.flashcard_count, done.batch_id, done.number) == (2, "first", 1)
    assert done.cost_usd > 0 and done.duration_s > 0
    assert done.started_at is not None and done.completed_at is not None
    assert done.completed_at >= done.started_at
    assert done.error_message == "" and "at least 2 must" in failed.error_message
    assert (failed.flashcard_count, failed.cost_usd > 0) == (0, True)
    assert len({entry.content_hash for entry in found.values()}) == 4


def test_the_batch_in_which_a_topic_ended_last_counts(
    one: Bench, simulator: Simulator, tmp_path: Path
) -> None:
    newer = one.ingest(write_topics(tmp_path / "newer.jsonl", TOPICS[1:2]), "newer")
    # not begun: it hides nothing
    assert status(one)["tokens"].batch_id == "first"
    spent = status(one)["tokens"].cost_usd
    # what is stored leads to the same end, for nothing; then it is asked anew
    ran = one.run(newer)
    assert (ran.outcomes, ran.done.tally.attempts) == ({"failed": 1}, 0)
    assert one.run(newer, "again").outcomes == {"succeeded": 1}
    assert status(one)["tokens"].cost_usd > spent, "what it has cost in all batches"
    assert (status(one)["tokens"].status, status(one)["tokens"].batch_id) == ("completed", "newer")
    assert counts(one) == {"completed": 3, "blocked": 1}
    only_new = one.ingest(write_topics(tmp_path / "new.jsonl", [topic("Ciphers")]), "new")
    assert status(one)["ciphers"].status == "pending"
    assert status(one)["ciphers"].started_at is None
    assert only_new.row_count == 1 and counts(one)["pending"] == 1


def test_a_row_that_could_not_be_read_is_no_topic(one: Bench, tmp_path: Path) -> None:
    before = counts(one)
    untitled = {name: text for name, text in topic("Untitled").items() if name != "topic_title"}
    rows = [topic("Ciphers"), untitled, topic("Ciphers")]
    batch = one.ingest(write_topics(tmp_path / "odd.jsonl", rows), "odd")
    assert one.run(batch).outcomes == {"succeeded": 1, "failed": 2}
    assert counts(one) == {**before, "completed": 3}
    assert set(status(one)) == {"passkeys", "tokens", "badges", "seals", "ciphers"}
    assert status(one)["ciphers"].status == "completed"


def test_a_reset_topic_is_asked_anew_wherever_it_is_and_paid_once(
    one: Bench, simulator: Simulator, tmp_path: Path
) -> None:
    other = one.ingest(write_topics(tmp_path / "other.jsonl", TOPICS[:1]), "other")
    assert one.run(other).done.tally.attempts == 0
    before = calls(one)["cards"]
    found = reset(one, "passkeys", "badges")
    assert {(entry.batch_id, entry.number, entry.status) for entry in found} == {
        ("first", 1, "completed"), ("other", 1, "completed"), ("first", 3, "blocked"),
    }  # fmt: skip
    assert status(one)["passkeys"].status == "pending"
    assert counts(one) == {"completed": 1, "failed": 1, "pending": 2}
    spent = status(one)["passkeys"].cost_usd
    assert spent > 0, "what was spent stays on record"
    assert reset(one, "passkeys") == [], "it is pending already"

    with one.open() as ledger:
        from batch_pipeline.workloads.runner import require_batch

        first = require_batch(ledger, "first")
    assert one.run(first, "again").outcomes == {"succeeded": 4}
    assert calls(one)["cards"] == before + 3  # the failed one as well
    assert status(one)["passkeys"].cost_usd > spent
    assert one.run(other, "again, too").done.tally.attempts == 0
    assert counts(one) == {"completed": 4}


def test_clearing_makes_every_topic_open_and_keeps_the_spend(one: Bench) -> None:
    spent = sum(entry.cost_usd for entry in status(one).values())
    with one.open() as ledger:
        assert clear(ledger) == 4
        assert clear(ledger) == 0
    assert one.asked().total() == 4
    assert counts(one) == {"pending": 4}
    assert sum(entry.cost_usd for entry in status(one).values()) == pytest.approx(spent)


def test_an_unknown_topic_is_refused_and_nothing_is_reset(one: Bench) -> None:
    with one.open() as ledger, pytest.raises(UsageError, match="no topic 'nowhere/"):
        reset_topics(ledger, [status(one)["passkeys"].topic_path, "nowhere/topic.json"])
    assert counts(one) == {"completed": 2, "failed": 1, "blocked": 1}


def test_topics_that_a_run_is_at_work_on_are_not_reset(one: Bench) -> None:
    with one.open() as ledger:
        owner = Owner.here("the-running-one")
        ledger.writer.submit(HEARTBEAT, owner).result(30)
        with ledger.read() as connection:
            chunk = list_chunks(connection, ledger.realm, "first")[0]
        lease = LeaseRequest(ledger.realm, chunk.chunk_key, owner.owner_id)
        assert ledger.writer.submit(LEASE_CHUNK, lease).result(30).fence is not None
        for act in (lambda: reset_topics(ledger, [status(one)["passkeys"].topic_path]),
                    lambda: clear(ledger)):  # fmt: skip
            with pytest.raises(UsageError, match="the-running-one is at work on chunk first"):
                act()
    assert counts(one) == {"completed": 2, "failed": 1, "blocked": 1}


def test_the_export_has_the_table_of_the_guide(one: Bench, tmp_path: Path) -> None:
    path = tmp_path / "completion.db"
    with one.open() as ledger:
        assert export_completion(ledger, path) == 4
        assert export_completion(ledger, path) == 4, "written anew"
    with sqlite3.connect(path) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM topic_completions ORDER BY id").fetchall()
        indexes = database.execute("SELECT name FROM pragma_index_list('topic_completions')")
        assert len(indexes.fetchall()) == 3
    assert tuple(rows[0].keys()) == EXPORT_COLUMNS
    assert [row["status"] for row in rows] == ["completed", "failed", "blocked", "completed"]
    assert rows[0]["flashcard_count"] == 2 and rows[0]["realm"] == "simulated"
    assert rows[0]["started_at"].endswith("+00:00")


def test_the_export_as_csv_says_the_same(one: Bench, tmp_path: Path) -> None:
    with one.open() as ledger:
        assert export_completion(ledger, tmp_path / "new" / "completion.csv") == 4
        with pytest.raises(UsageError, match=r"End it in \.db"):
            export_completion(ledger, tmp_path / "completion.xlsx")
    with (tmp_path / "new" / "completion.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == ["completed", "failed", "blocked", "completed"]
