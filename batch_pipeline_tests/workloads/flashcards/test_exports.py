"""Files of a topic: names, contents, text that means something to XML, spreadsheets and HTML."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from batch_pipeline.errors import UsageError
from batch_pipeline.workloads.flashcards.exports import (
    CARD_COLUMNS,
    has_math,
    write_cards_csv,
    write_topic_files,
)
from batch_pipeline.workloads.flashcards.models import Flashcard, finished
from batch_pipeline_tests.workloads.flashcards.cards import (
    PROMPT,
    TOPIC,
    VOTING,
    card,
    draft,
    record,
)

HOME = TOPIC.path.removesuffix("/topic.json")
ALL = [
    "flashcards/batch.json",
    "flashcards/generation_metadata.json",
    "optimized_prompt.xml",
    "optimized_prompt.yaml",
    "optimization_summary.json",
]


def written(folder: Path, **changes: Any) -> dict[str, Path]:
    paths = write_topic_files(folder, record(**changes))
    home = folder / HOME
    assert all(path.stat().st_mode & 0o077 == 0 for path in paths)
    return {path.relative_to(home).as_posix(): path for path in paths}


def test_a_unified_topic_has_all_files_in_the_folder_of_its_path(tmp_path: Path) -> None:
    files = written(tmp_path)
    assert list(files) == ALL
    assert sorted(path.name for path in (tmp_path / HOME).rglob("*.part")) == []


def test_batch_json_is_topic_category_and_whole_cards(tmp_path: Path) -> None:
    batch = json.loads(written(tmp_path)["flashcards/batch.json"].read_bytes())
    assert list(batch) == ["topic_title", "category", "flashcards"]
    assert [Flashcard.model_validate(one) for one in batch["flashcards"]] == record().cards


def test_the_metadata_count_what_is_there(tmp_path: Path) -> None:
    question = r"What is \(\frac{1}{2}\) of a salt?"
    other = draft(code_snippets=["x = 1"], difficulty="expert", question_text=question)
    cards = [card(1), finished(other)]
    paths = written(tmp_path, cards=cards)
    found = json.loads(paths["flashcards/generation_metadata.json"].read_bytes())
    assert found["generation"]["total_flashcards"] == 2
    assert found["generation"]["temperature"] == 0.1
    statistics = found["statistics"]
    assert statistics["difficulty_distribution"] == {
        "foundational": 1, "intermediate": 0, "advanced": 0, "expert": 1, "master": 0,
    }  # fmt: skip
    assert statistics["avg_distractors_per_card"] == 3
    assert (statistics["cards_with_code_snippets"], statistics["cards_with_math"]) == (1, 1)
    assert set(found["validation"].values()) == {True}


def test_nothing_is_valid_about_no_cards_and_an_old_file_of_them_goes(tmp_path: Path) -> None:
    written(tmp_path)
    files = written(tmp_path, cards=[], prompt=None, mode="web", votes=None)
    assert list(files) == ["flashcards/generation_metadata.json"]
    assert [path.name for path in (tmp_path / HOME).rglob("*") if path.is_file()] == [
        "generation_metadata.json"
    ]
    found = json.loads(files["flashcards/generation_metadata.json"].read_bytes())
    assert set(found["validation"].values()) == {False}


def test_the_prompt_says_the_same_as_xml_and_as_yaml(tmp_path: Path) -> None:
    raw = PROMPT.model_dump(mode="json")
    raw["system_prompt"] = "Salts & <b>hashes</b>: رمز\x0b\nsecond line"
    files = written(tmp_path, prompt=raw)
    root = ET.fromstring(files["optimized_prompt.xml"].read_bytes())
    document = yaml.safe_load(files["optimized_prompt.yaml"].read_text(encoding="utf-8"))
    assert root.findtext("system_prompt") == "Salts & <b>hashes</b>: رمز\nsecond line"
    assert document["system_prompt"] == raw["system_prompt"]
    texts = [one["text"] for one in document["objectives"]]
    assert [one.text for one in root.findall("objectives/objective")] == texts
    assert [one.get("number") for one in root.findall("scaffolding/level")] == list("1234")
    assert len(root.findall("distractor_protocol/step")) == len(document["distractor_protocol"])
    schema = json.loads(root.findtext("flashcard_schema") or "")
    assert schema == document["flashcard_schema"] == Flashcard.model_json_schema()


def test_the_summary_has_the_vote(tmp_path: Path) -> None:
    summary = json.loads(written(tmp_path)["optimization_summary.json"].read_bytes())
    assert summary["vote"]["outcome"] == "consensus" and summary["vote"]["approval"] == 1
    assert list(summary["voters"]) == [voter.name for voter in VOTING.voters]
    assert summary["objectives_by_bloom_level"]["apply"] == 1


def test_simulated_files_say_so(tmp_path: Path) -> None:
    for path in written(tmp_path, simulated=True).values():
        assert b"simulated" in path.read_bytes()
    for path in written(tmp_path).values():
        assert b"simulated" not in path.read_bytes()


def test_a_folder_that_is_a_link_to_elsewhere_is_not_written_to(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    (out / "001_cybersecurity").symlink_to(other)
    with pytest.raises(UsageError, match="leads out of"):
        write_topic_files(out, record())
    assert list(other.iterdir()) == []


def test_the_table_has_a_row_for_each_card_and_runs_nothing(tmp_path: Path) -> None:
    risky = finished(draft(correct_answer="=HYPERLINK(1)", code_snippets=["a", "b"]))
    path = tmp_path / "cards.csv"
    assert write_cards_csv(path, [record(), record(cards=[risky], simulated=True)]) == 4
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(CARD_COLUMNS)
    assert rows[3]["correct_answer"] == "'=HYPERLINK(1)"
    assert rows[3]["code_snippets"] == "a\n\nb"
    assert [row["realm"] for row in rows] == ["live"] * 3 + ["simulated"]
    assert [row["card"] for row in rows] == ["1", "2", "3", "1"]


@pytest.mark.parametrize(
    ("text", "found"),
    [(r"\(a^2\)", True), ("$a_1 = 2$", True), ("costs $5 or $6 a month", False), ("1/2", False)],
)
def test_formulas_are_told_from_prices(text: str, found: bool) -> None:
    assert has_math(finished(draft(question_text=text))) is found
