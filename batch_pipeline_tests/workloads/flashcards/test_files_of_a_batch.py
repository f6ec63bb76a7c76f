"""The files of a batch: which topics have them, what goes, and what they cost."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from batch_pipeline.ledger.batches import Batch, start_generation
from batch_pipeline.ledger.tables import NANO
from batch_pipeline.workloads.flashcards.topics import path_folder
from batch_pipeline.workloads.results import stream_results
from batch_pipeline.workloads.runner import deliver
from batch_pipeline_tests.simulated import Bench, Simulator
from batch_pipeline_tests.workloads.flashcards.cards import DEFS, SAMPLES
from batch_pipeline_tests.workloads.flashcards.running import bench, records, topic, write_topics

TOPICS = SAMPLES / "topics.jsonl"


def delivered(one: Bench, batch: Batch, folder: Path) -> list[str]:
    with one.open() as ledger:
        return [path.name for path in deliver(ledger, one.config, batch, folder)]


def names(folder: Path) -> list[str]:
    """Files of topics, without the topics' folders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def cards_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.usefixtures("either_database")
def test_each_completed_topic_has_its_files_and_all_cards_are_in_one_table_and_one_package(
    simulator: Simulator, tmp_path: Path
) -> None:
    one = bench(tmp_path, simulator, num_flashcards=4)
    batch = one.ingest(TOPICS, "cards")
    ran = one.run(batch)
    out = tmp_path / "out"
    assert delivered(one, batch, out) == [
        "topics_cards.csv", "topics_cards.jsonl", "topics_cards.db", "flashcards.csv", "cards.apkg",
    ]  # fmt: skip
    spent = 0.0
    for item in one.items(batch):
        home = out / "topics" / path_folder(item.item_id)
        assert names(home) == ["flashcards/batch.json", "flashcards/generation_metadata.json"]
        made = json.loads((home / "flashcards/batch.json").read_text())
        assert len(made["flashcards"]) == 4 and made["realm"] == "simulated"
        facts = json.loads((home / "flashcards/generation_metadata.json").read_text())
        assert facts["generation"]["cost_usd"] == pytest.approx(item.cost_nano / NANO) != 0
        assert facts["generation"]["duration_seconds"] > 0
        assert facts["validation"]["all_have_3_distractors"]
        assert facts["sources"]
        spent += facts["generation"]["cost_usd"]
    assert spent == pytest.approx(ran.done.tally.cost_usd)
    assert len(cards_of(out / "flashcards.csv")) == 32
    with zipfile.ZipFile(out / "cards.apkg") as package:
        package.extract("collection.anki2", tmp_path)
    with sqlite3.connect(tmp_path / "collection.anki2") as collection:
        assert collection.execute("SELECT count(*) FROM notes").fetchone() == (32,)
    rows = [json.loads(line) for line in (out / "topics_cards.jsonl").read_text().splitlines()]
    assert {row["cards"] for row in rows} == {4}
    assert rows[0]["outcome"] == "succeeded" and rows[0]["item_id"] == rows[0]["topic_path"]


def test_a_topic_of_unified_mode_has_its_prompt_and_its_vote_as_well(
    simulator: Simulator, tmp_path: Path
) -> None:
    one = bench(tmp_path, simulator, mode="unified", num_flashcards=2)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]), "cards")
    one.run(batch)
    out = tmp_path / "out"
    delivered(one, batch, out)
    home = out / "topics" / path_folder(one.items(batch)[0].item_id)
    assert names(home) == [
        "flashcards/batch.json", "flashcards/generation_metadata.json", "optimization_summary.json",
        "optimized_prompt.xml", "optimized_prompt.yaml",
    ]  # fmt: skip
    summary = json.loads((home / "optimization_summary.json").read_text())
    assert summary["vote"]["outcome"] == "consensus" and len(summary["voters"]) == 8
    prompt = yaml.safe_load((home / "optimized_prompt.yaml").read_text())
    assert prompt["system_prompt"] and len(prompt["scaffolding"]) == 4


def test_a_summary_keeps_the_vote_as_it_was_counted_whatever_the_rules_say_later(
    simulator: Simulator, tmp_path: Path
) -> None:
    against = ["active_learning", "scaffolding", "connection", "assessment", "clarity"]
    simulator.configure(
        faults=[{"kind": "votes_reject", "voter": name} for name in against], slips=0.0
    )
    defs = shutil.copytree(DEFS, tmp_path / "defs")
    rules = (defs / "voting.yaml").read_text(encoding="utf-8")
    lenient = rules.replace("min_consensus: 0.57", "min_consensus: 0.2")
    (defs / "voting.yaml").write_text(lenient, encoding="utf-8")
    one = bench(tmp_path, simulator, mode="unified", num_flashcards=2)
    one.config = one.config.model_copy(update={"folder": defs})
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]), "cards")
    assert one.run(batch).outcomes == {"succeeded": 1}
    (defs / "voting.yaml").write_text(rules, encoding="utf-8")
    out = tmp_path / "out"
    delivered(one, batch, out)
    home = out / "topics" / path_folder(one.items(batch)[0].item_id)
    vote = json.loads((home / "optimization_summary.json").read_text())["vote"]
    assert (vote["outcome"], vote["message"]) == ("consensus", "")
    assert vote["approval"] < 0.57
    assert vote["suggestions"] and "votes" not in vote


def test_files_go_with_what_they_hold_and_unchanged_ones_are_left_alone(
    simulator: Simulator, tmp_path: Path
) -> None:
    one = bench(tmp_path, simulator, num_flashcards=2)
    topics = [topic("Passkeys"), topic("Tokens")]
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", topics), "cards")
    one.run(batch)
    out = tmp_path / "out"
    delivered(one, batch, out)
    before = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    package = (out / "cards.apkg").read_bytes()
    delivered(one, batch, out)
    topic_files = [name for name in before if name.startswith("topics/")]
    assert len(topic_files) == 4
    assert {name: (out / name).stat().st_mtime_ns for name in topic_files} == {
        name: before[name] for name in topic_files
    }
    assert (out / "cards.apkg").read_bytes() == package

    # made anew, and one of them does not come to anything any more
    simulator.configure(faults=[{"kind": "cards_bad", "match": "Tokens"}], slips=0.0)
    with one.open() as ledger:
        start_generation(ledger, batch.batch_id)
    delivered(one, batch, out)
    assert not names(out / "topics") and not (out / "flashcards.csv").exists()
    assert one.run(batch, "forced").outcomes == {"succeeded": 1, "failed": 1}
    assert delivered(one, batch, out)[-2:] == ["flashcards.csv", "cards.apkg"]
    assert len([name for name in names(out) if name.startswith("topics/")]) == 2
    assert {card["topic_title"] for card in cards_of(out / "flashcards.csv")} == {"Passkeys"}


def test_the_package_and_the_byte_order_mark_are_options(
    simulator: Simulator, tmp_path: Path
) -> None:
    one = bench(tmp_path, simulator, num_flashcards=2, anki=False, csv_bom=True)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", [topic("Passkeys")]), "cards")
    one.run(batch)
    assert delivered(one, batch, tmp_path / "out")[-1] == "flashcards.csv"
    assert (tmp_path / "out" / "flashcards.csv").read_bytes().startswith(b"\xef\xbb\xbf")


def test_a_row_that_could_not_be_read_takes_no_files_from_the_topic_of_its_path(
    simulator: Simulator, tmp_path: Path
) -> None:
    twice: list[dict[str, Any]] = [topic("Passkeys"), topic("Passkeys")]
    one = bench(tmp_path, simulator, num_flashcards=2)
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", twice), "cards")
    assert one.run(batch).outcomes == {"succeeded": 1, "failed": 1}
    delivered(one, batch, tmp_path / "out")
    assert len(names(tmp_path / "out" / "topics")) == 2


def test_the_summary_counts_topics_cards_and_what_failed(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(
        faults=[
            {"kind": "cards_bad", "match": "Tokens"},
            {"kind": "no_findings", "match": "Badges"},
        ],
        slips=0.0,
    )
    one = bench(tmp_path, simulator, num_flashcards=4, rounds=0)
    topics = [topic("Passkeys"), topic("Tokens"), topic("Badges")]
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", topics), "cards")
    one.run(batch)
    with one.open() as ledger:
        summary = one.config.domain.summarize(  # type: ignore[attr-defined]
            stream_results(ledger, batch, one.config.domain)
        )
    figures = {figure.name: (figure.rows, figure.of) for figure in summary.figures}
    assert figures == {
        "Completed": (1, 3), "Failed": (2, 3), "Blocked": (0, 3),
        "Cards delivered": (4, 4), "Cards refused": (0, 4),
    }  # fmt: skip
    tables = {table.title: table for table in summary.tables}
    (record,) = [found for found in records(one, batch) if found.topic.title == "Passkeys"]
    kinds = {card.question_type for card in record.cards}
    assert {entry.label for entry in tables["Question types"].entries} == kinds
    assert [(e.label, e.rows) for e in tables["Cards per topic"].entries] == [("4 cards", 1)]
    reasons = tables["Why topics are not completed"].entries
    assert [(entry.label, entry.rows) for entry in reasons] == [("incomplete", 2)]
