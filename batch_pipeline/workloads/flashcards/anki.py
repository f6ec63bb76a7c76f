"""Cards as an Anki package (.apkg), made with genanki.

What belongs here: the note type, decks, ids. What does not: which cards (the caller's), other files
(exports.py).
"""

from __future__ import annotations

import hashlib
import html
import itertools
import os
import re
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import genanki

from batch_pipeline.sinks.files import replaced_file
from batch_pipeline.workloads.flashcards.models import Flashcard
from batch_pipeline.workloads.flashcards.record import TopicRecord
from batch_pipeline.workloads.flashcards.topics import kebab

# Never changed: Anki finds its notes again by them.
NOTE_TYPE_ID = 1_607_392_319
NOTE_TYPE_NAME = "batch_pipeline flashcard"

FIELDS = (
    "Question", "Options", "Answer", "Explanation", "Distractors", "Analogy", "Code", "Topic",
    "Sources",
)  # fmt: skip
LETTERS = "ABCD"

_FRONT = '<div class="question">{{Question}}</div>{{Options}}{{Code}}'
_BACK = (
    '{{FrontSide}}<hr id="answer"><div class="answer">{{Answer}}</div><p>{{Explanation}}</p>'
    "{{Distractors}}{{#Analogy}}<p><i>{{Analogy}}</i></p>{{/Analogy}}"
    '<div class="topic">{{Topic}}</div>{{Sources}}'
)
_STYLE = (
    ".card {font-family: sans-serif; font-size: 18px; text-align: start; max-width: 42em; "
    "margin: auto;} .question {font-weight: bold;} .answer {font-weight: bold; margin: .5em 0;} "
    ".topic, .sources {font-size: 13px; opacity: .7;} pre {overflow-x: auto;}"
)
_FIRST_ID, _IDS = 1 << 30, 1 << 30
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def write_apkg(path: Path, records: Iterable[TopicRecord], *, at: float) -> int:
    """Write the cards of many topics as one Anki package.

    A deck for each subdomain, `Category::Domain::Subdomain`; the topic, difficulty, kind of
    question and Bloom level are tags. The same records give the same notes and decks: imported
    again, cards are updated, none is doubled. All text is escaped. Topics are read one at a time;
    the decks' names are all that is held.

    Args:
        path: the file; it is written whole or not at all.
        records: the topics.
        at: the package's time, UTC seconds: notes are as new as that.

    Returns:
        Notes written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # genanki's own write_to_file leaves its database behind in the temporary folder
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".anki-", suffix=".part")
    os.close(handle)
    database = Path(name)
    counter = _Counter()
    try:
        with closing(sqlite3.connect(database)) as connection:
            decks = counter.counted(_decks(records))
            package = genanki.Package(decks)
            package.write_to_db(connection.cursor(), at, itertools.count(int(at * 1000)))
            connection.commit()
        with (
            replaced_file(path) as temporary,
            temporary.open("wb") as stream,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            with (
                archive.open(zipfile.ZipInfo("collection.anki2", _ZIP_TIME), "w") as target,
                database.open("rb") as source,
            ):
                while block := source.read(1 << 20):
                    target.write(block)
            archive.writestr(zipfile.ZipInfo("media", _ZIP_TIME), "{}")
    finally:
        database.unlink(missing_ok=True)
    return counter.notes


def deck_name(record: TopicRecord) -> str:
    """`Category::Domain::Subdomain`; a simulated topic's begins with SIMULATED."""
    topic = record.topic
    # `::` nests decks, so that no name may hold it
    names = [re.sub(r":{2,}", ":", one).strip(": ") for one in
             (topic.category, topic.domain, topic.subdomain)]  # fmt: skip
    return "::".join([*(["SIMULATED"] if record.simulated else []), *(n for n in names if n)])


def note_guid(topic_path: str, question: str) -> str:
    """What Anki tells notes apart by: the topic and the question's words."""
    return str(genanki.guid_for(topic_path, " ".join(question.split()).casefold()))


def shuffled(card: Flashcard, guid: str) -> list[tuple[str, bool]]:
    """The four options with whether they are right, in an order that the note's guid gives."""
    options = [(card.correct_answer, True), *((one.text, False) for one in card.distractors)]
    return sorted(
        options,
        key=lambda option: hashlib.blake2b(f"{guid}\x1f{option[0]}".encode()).digest(),
    )


class _Counter:
    def __init__(self) -> None:
        self.notes = 0

    def counted(self, decks: Iterator[genanki.Deck]) -> Iterator[genanki.Deck]:
        for deck in decks:
            self.notes += len(deck.notes)
            yield deck


def _decks(records: Iterable[TopicRecord]) -> Iterator[genanki.Deck]:
    """Decks in the order of the topics; one is given again where its topics are apart."""
    model = _note_type()
    for name, topics in itertools.groupby(records, key=deck_name):
        deck = genanki.Deck(_id("deck", name), name)
        for record in topics:
            for note in _notes(record, model):
                deck.add_note(note)
        if deck.notes:
            yield deck


def _notes(record: TopicRecord, model: genanki.Model) -> Iterator[genanki.Note]:
    seen: set[str] = set()
    topic = record.topic
    sources = "".join(f"<li>{_escaped(source.url)}</li>" for source in record.sources[:10])
    for card in record.cards:
        guid = note_guid(topic.path, card.question_text)
        if guid in seen:
            continue
        seen.add(guid)
        options = shuffled(card, guid)
        right = next(place for place, (_, is_right) in enumerate(options) if is_right)
        items = "".join(f"<li>{_escaped(text)}</li>" for text, _ in options)
        wrong = "".join(
            f"<li>{_escaped(one.text)}: {_escaped(one.misconception)}</li>"
            for one in card.distractors
        )
        parts = card.detailed_explanation
        code = "".join(f"<pre><code>{html.escape(one)}</code></pre>" for one in card.code_snippets)
        yield genanki.Note(
            model=model,
            guid=guid,
            fields=[
                _escaped(card.question_text),
                f'<ol type="A">{items}</ol>',
                f"{LETTERS[right]}. {_escaped(card.correct_answer)}",
                _escaped(parts.core_logic),
                f"<ul>{wrong}</ul><p>{_escaped(parts.distractor_analysis)}</p>",
                _escaped(parts.analogy),
                code,
                _escaped(("SIMULATED: " if record.simulated else "") + topic.title),
                f'<ul class="sources">{sources}</ul>' if sources else "",
            ],
            tags=_tags(record, card),
        )


def _tags(record: TopicRecord, card: Flashcard) -> list[str]:
    topic = record.topic
    tags = [
        f"topic::{kebab(topic.title)}",
        f"difficulty::{card.difficulty}",
        f"type::{card.question_type}",
        f"bloom::{card.bloom_level}",
        *(f"needs::{code}" for code in card.prerequisites),
        *(["simulated"] if record.simulated else []),
    ]
    return [re.sub(r"\s+", "-", tag) for tag in tags if not tag.endswith("::")]


def _note_type() -> genanki.Model:
    return genanki.Model(
        NOTE_TYPE_ID,
        NOTE_TYPE_NAME,
        fields=[{"name": name} for name in FIELDS],
        templates=[{"name": "Question", "qfmt": _FRONT, "afmt": _BACK}],
        css=_STYLE,
    )


def _escaped(text: str) -> str:
    # a field ends at U+001F
    shown = html.escape(text.replace("\x1f", " ").strip())
    # Anki would take {{ for a field where the text is shown in a template
    return shown.replace("{{", "&#123;&#123;").replace("\n", "<br>")


def _id(kind: str, name: str) -> int:
    digest = hashlib.blake2b(f"{kind}\x1f{name}".encode(), digest_size=8).digest()
    return _FIRST_ID + int.from_bytes(digest, "big") % _IDS
