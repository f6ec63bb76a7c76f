"""The Anki package, read back as Anki's database."""

from __future__ import annotations

import html
import itertools
import json
import re
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_pipeline.workloads.flashcards.anki import (
    FIELDS,
    NOTE_TYPE_ID,
    deck_name,
    note_guid,
    shuffled,
    write_apkg,
)
from batch_pipeline.workloads.flashcards.models import finished
from batch_pipeline.workloads.flashcards.record import TopicRecord
from batch_pipeline_tests.workloads.flashcards.cards import TOPIC, card, draft, record

AT = 1_790_000_000.0


class Opened:
    """An .apkg as Anki reads it."""

    def __init__(self, path: Path, folder: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == ["collection.anki2", "media"]
            archive.extract("collection.anki2", folder)
        db = sqlite3.connect(folder / "collection.anki2")
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        self.notes = db.execute("SELECT guid, mid, tags, flds FROM notes ORDER BY id").fetchall()
        cards = "SELECT n.guid, c.did FROM cards c JOIN notes n ON n.id = c.nid"
        self.deck_of = dict(db.execute(cards).fetchall())
        decks, models = db.execute("SELECT decks, models FROM col").fetchone()
        self.decks = {int(key): value["name"] for key, value in json.loads(decks).items()}
        self.models = json.loads(models)
        db.close()

    def fields(self, place: int) -> dict[str, str]:
        values = self.notes[place][3].split("\x1f")
        return dict(zip(FIELDS, values, strict=True))


def packed(folder: Path, *records: TopicRecord, at: float = AT) -> Opened:
    path = folder / "out" / "cards.apkg"
    count = write_apkg(path, records, at=at)
    assert [one.name for one in path.parent.iterdir()] == ["cards.apkg"]
    opened = Opened(path, folder)
    assert len(opened.notes) == count == len(opened.deck_of)
    return opened


def other_topic(name: str, subdomain: str = "Authentication") -> TopicRecord:
    path = f"001_cybersecurity/x/{name}/topic.json"
    changed = TOPIC.model_copy(update={"path": path, "title": name, "subdomain": subdomain})
    return record(topic=changed)


def test_each_card_is_a_note_in_the_deck_of_its_subdomain(tmp_path: Path) -> None:
    opened = packed(tmp_path, record(), other_topic("MFA"), other_topic("RBAC", "Access"))
    names = [opened.decks[opened.deck_of[guid]] for guid, *_ in opened.notes]
    decks = ["Cybersecurity::Identity::Authentication"] * 6 + [
        "Cybersecurity::Identity::Access"
    ] * 3
    assert names == decks
    assert {mid for _, mid, _, _ in opened.notes} == {NOTE_TYPE_ID}
    assert [one["name"] for one in opened.models[str(NOTE_TYPE_ID)]["flds"]] == list(FIELDS)


def test_topics_of_a_subdomain_that_stand_apart_share_its_deck(tmp_path: Path) -> None:
    opened = packed(tmp_path, other_topic("A"), other_topic("B", "Access"), other_topic("C"))
    assert sorted(opened.deck_of.values()).count(opened.deck_of[opened.notes[0][0]]) == 6


def test_the_same_cards_are_the_same_notes_at_any_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = packed(tmp_path / "a", record()), packed(tmp_path / "b", record(), at=AT + 9e5)
    assert first.notes == second.notes and first.deck_of == second.deck_of
    assert (tmp_path / "a" / "out" / "cards.apkg").is_file()
    assert (
        note_guid("a", "What is  it?")
        == note_guid("a", "what is it?")
        != note_guid("b", "what is it?")
    )


def test_text_is_escaped_and_says_the_same(tmp_path: Path) -> None:
    question = 'Is <script>alert("x")</script> & {{Answer}} \x1f safe <b here?\nSecond line'
    risky = finished(draft(question_text=question, code_snippets=["if a < b:\n    {{c}}"]))
    fields = packed(tmp_path, record(cards=[risky])).fields(0)
    assert "<script" not in fields["Question"] and "{{" not in fields["Question"]
    shown = html.unescape(fields["Question"].replace("<br>", "\n"))
    assert shown == question.replace("\x1f", " ")
    assert "if a &lt; b:\n" in fields["Code"]
    assert "a=1&amp;b=2" in fields["Sources"]


def test_the_letter_of_the_answer_is_that_of_the_right_option(tmp_path: Path) -> None:
    cards = [card(number) for number in range(1, 13)]
    opened = packed(tmp_path, record(cards=cards))
    letters = []
    for place in range(12):
        fields = opened.fields(place)
        options = re.findall("<li>(.*?)</li>", fields["Options"])
        letter, _, text = fields["Answer"].partition(". ")
        assert len(options) == 4 and options["ABCD".index(letter)] == text
        letters.append(letter)
    assert len(set(letters)) > 2  # not always the same


def test_the_order_of_options_stays_with_the_note() -> None:
    assert shuffled(card(1), "x") == shuffled(card(1), "x")
    assert sum(right for _, right in shuffled(card(1), "x")) == 1


def test_tags_have_no_blanks_and_a_repeated_question_is_one_note(tmp_path: Path) -> None:
    tagged = finished(draft(prerequisites=["Hash functions"]))
    opened = packed(tmp_path, record(cards=[tagged, tagged]))
    assert len(opened.notes) == 1
    assert opened.notes[0][2].split() == [
        "topic::password-salting", "difficulty::foundational", "type::definition",
        "bloom::understand", "needs::HASH-FUNCTIONS",
    ]  # fmt: skip


def test_a_simulated_package_says_so_in_deck_note_and_tag(tmp_path: Path) -> None:
    opened = packed(tmp_path, record(simulated=True))
    assert set(opened.decks.values()) == {"Default", deck_name(record(simulated=True))}
    assert deck_name(record(simulated=True)).startswith("SIMULATED::")
    assert opened.fields(0)["Topic"].startswith("SIMULATED")
    assert "simulated" in opened.notes[0][2].split()


def test_a_package_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    packed(tmp_path, record())
    path = tmp_path / "out" / "cards.apkg"
    before = path.read_bytes()

    def broken() -> Iterator[TopicRecord]:
        yield from itertools.repeat(other_topic("A"), 1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_apkg(path, broken(), at=AT)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["cards.apkg"]
