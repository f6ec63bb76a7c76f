"""The files of a topic, and the table of all cards.

What belongs here: their names and contents. What does not: Anki's package (anki.py), deliverable
formats (sinks/files.py), when they are written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import orjson
import yaml

from batch_pipeline.errors import UsageError
from batch_pipeline.sinks.files import replaced_file, write_csv
from batch_pipeline.workloads.flashcards.models import (
    BLOOM_LEVELS,
    DIFFICULTIES,
    DISTRACTORS,
    QUESTION_TYPES,
    Flashcard,
    OptimizedPrompt,
)
from batch_pipeline.workloads.flashcards.record import TopicRecord
from batch_pipeline.workloads.flashcards.terms import read_words
from batch_pipeline.workloads.flashcards.topics import TOPIC_PATH, path_folder

BATCH_FILE = "flashcards/batch.json"
METADATA_FILE = "flashcards/generation_metadata.json"
XML_FILE = "optimized_prompt.xml"
YAML_FILE = "optimized_prompt.yaml"
SUMMARY_FILE = "optimization_summary.json"

CARD_COLUMNS = (
    TOPIC_PATH, "category", "domain", "subdomain", "topic_title", "card", "question_text",
    "correct_answer", "distractor_1", "misconception_1", "distractor_2", "misconception_2",
    "distractor_3", "misconception_3", "core_logic", "distractor_analysis", "analogy",
    "code_snippets", "difficulty", "question_type", "bloom_level", "prerequisites", "sources",
    "realm",
)  # fmt: skip

# What XML 1.0 cannot hold.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MATH = re.compile(r"\\\(|\\\[|\$\$|\\(?:frac|sum|sqrt|log|cdot|times|leq|geq|mod)\b|"
                   r"\$[^$\n]*[\\^_=][^$\n]*\$")  # fmt: skip


def write_topic_files(folder: Path, record: TopicRecord) -> list[Path]:
    """Write a topic's files below `folder`, in the folder that its path names.

    Each is written whole or not at all, and left alone where it is as it should be; files of a mode
    that this record does not have go.

    Returns:
        The files that are there now.

    Raises:
        UsageError: the topic's path leads out of `folder`.
    """
    home = _home(folder, record.topic.path)
    contents: dict[str, bytes | None] = {
        BATCH_FILE: _json(batch_document(record)) if record.cards else None,
        METADATA_FILE: _json(metadata_document(record)),
        XML_FILE: prompt_xml(record) if record.prompt else None,
        YAML_FILE: prompt_yaml(record) if record.prompt else None,
        SUMMARY_FILE: _json(summary_document(record)) if record.prompt else None,
    }
    paths = []
    for name, content in contents.items():
        path = home / name
        if content is None:
            path.unlink(missing_ok=True)
            continue
        paths.append(path)
        if _holds(path, content):
            continue
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replaced_file(path) as temporary, temporary.open("wb") as stream:
            stream.write(content)
    return paths


def remove_topic_files(folder: Path, topic_path: str) -> None:
    """Remove what `write_topic_files` has written for a topic, and the folders that are then empty.

    Raises:
        UsageError: the topic's path leads out of `folder`.
    """
    home = _home(folder, topic_path)
    if not home.is_dir():
        return
    for name in (BATCH_FILE, METADATA_FILE, XML_FILE, YAML_FILE, SUMMARY_FILE):
        (home / name).unlink(missing_ok=True)
    for emptied in (home / "flashcards", home, *home.parents):
        if emptied == folder:
            return
        try:
            emptied.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            # something else is in it
            return


def _home(folder: Path, topic_path: str) -> Path:
    home = folder / path_folder(topic_path)
    if not home.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"The path of the topic '{topic_path}' leads out of {folder}.",
            "Give it a topic_path without '..', and remove links in the output folder.",
        )
    return home


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except FileNotFoundError:
        return False


def batch_document(record: TopicRecord) -> dict[str, Any]:
    """flashcards/batch.json: the cards."""
    return {
        "topic_title": record.topic.title,
        "category": record.topic.category,
        "flashcards": [card.model_dump(mode="json") for card in record.cards],
        **record.realm,
    }


def metadata_document(record: TopicRecord) -> dict[str, Any]:
    """flashcards/generation_metadata.json: how the cards came about, and what they are like."""
    cards = record.cards
    topic = record.topic
    return {
        "topic": {
            "title": topic.title,
            "path": topic.path,
            "category": topic.category,
            "domain": topic.domain,
            "subdomain": topic.subdomain,
        },
        "generation": {
            "model": record.model,
            "temperature": record.temperature,
            "timestamp": record.made_at,
            "mode": record.mode,
            "wanted_flashcards": record.wanted,
            "total_flashcards": len(cards),
            "refused_flashcards": len(record.refused),
            "cost_usd": record.cost_usd,
            "duration_seconds": record.duration_s,
        },
        "statistics": {
            "difficulty_distribution": _distribution((c.difficulty for c in cards), DIFFICULTIES),
            "question_type_distribution": _distribution(
                (card.question_type for card in cards), QUESTION_TYPES
            ),
            "bloom_distribution": _distribution((c.bloom_level for c in cards), BLOOM_LEVELS),
            "avg_distractors_per_card": (
                round(sum(len(card.distractors) for card in cards) / len(cards), 2) if cards else 0
            ),
            "cards_with_code_snippets": sum(bool(card.code_snippets) for card in cards),
            "cards_with_math": sum(has_math(card) for card in cards),
        },
        # counted on the cards, not promised: a set without cards has nothing
        "validation": {
            "all_have_3_distractors": _all(cards, lambda c: len(c.distractors) == DISTRACTORS),
            "all_have_misconceptions": _all(
                cards, lambda c: all(one.misconception for one in c.distractors)
            ),
            "all_have_explanations": _all(cards, lambda c: bool(c.detailed_explanation.core_logic)),
            "all_have_bloom_level": _all(cards, lambda c: bool(c.bloom_level)),
        },
        "formatting": {"text": "plain", "math": "LaTeX in \\( \\)", "code": "code_snippets"},
        "sources": [source.model_dump() for source in record.sources],
        "refused": [refused.model_dump(mode="json") for refused in record.refused],
        **record.realm,
    }


def prompt_document(record: TopicRecord) -> dict[str, Any]:
    """The optimized prompt with what every prompt for cards has.

    Raises:
        ValueError: the record has no prompt.
    """
    prompt = _prompt_of(record)
    return {
        "topic": record.topic.title,
        "category": record.topic.category,
        "system_prompt": prompt.system_prompt,
        "objectives": [one.model_dump(mode="json") for one in prompt.objectives],
        "active_learning": prompt.active_learning.model_dump(mode="json"),
        "scaffolding": [one.model_dump(mode="json") for one in prompt.scaffolding],
        "distractor_protocol": read_words("protocol.yaml")["distractor_protocol"],
        "flashcard_schema": Flashcard.model_json_schema(),
        **record.realm,
    }


def prompt_yaml(record: TopicRecord) -> bytes:
    """optimized_prompt.yaml."""
    text = yaml.safe_dump(prompt_document(record), allow_unicode=True, sort_keys=False, width=100)
    return text.encode()


def prompt_xml(record: TopicRecord) -> bytes:
    """optimized_prompt.xml: the same, each list entry as an element; the schema as JSON text."""
    document = prompt_document(record)
    root = ET.Element("optimized_prompt")
    if record.simulated:
        root.set("realm", "simulated")
    _element(root, "topic", document["topic"])
    _element(root, "category", document["category"])
    _element(root, "system_prompt", document["system_prompt"])
    objectives = ET.SubElement(root, "objectives")
    for one in document["objectives"]:
        entry = _element(objectives, "objective", one["text"])
        entry.set("bloom_level", one["bloom_level"])
        entry.set("verb", _xml_text(one["verb"]))
    learning = ET.SubElement(root, "active_learning")
    for kind, texts in document["active_learning"].items():
        group = ET.SubElement(learning, kind)
        for text in texts:
            _element(group, "activity", text)
    levels = ET.SubElement(root, "scaffolding")
    for one in document["scaffolding"]:
        entry = _element(levels, "level", one["support"])
        entry.set("number", str(one["level"]))
        entry.set("name", _xml_text(one["name"]))
    protocol = ET.SubElement(root, "distractor_protocol")
    for one in document["distractor_protocol"]:
        entry = _element(protocol, "step", one["rule"])
        entry.set("number", str(one["step"]))
        entry.set("name", one["name"])
    _element(root, "flashcard_schema", orjson.dumps(document["flashcard_schema"]).decode())
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def summary_document(record: TopicRecord) -> dict[str, Any]:
    """optimization_summary.json: the vote, the suggestions and what became of them."""
    prompt = _prompt_of(record)
    votes = record.votes or {}
    return {
        "topic": record.topic.title,
        "topic_path": record.topic.path,
        "model": record.model,
        "timestamp": record.made_at,
        "sources": len(record.sources),
        # as it was counted then: other rules for votes change no topic that is completed
        "vote": record.tally,
        "voters": {
            name: None if vote is None else vote.model_dump(mode="json")
            for name, vote in votes.items()
        },
        "applied_suggestions": prompt.applied_suggestions,
        "objectives": len(prompt.objectives),
        "objectives_by_bloom_level": _distribution(
            (one.bloom_level for one in prompt.objectives), BLOOM_LEVELS
        ),
        "flashcards": len(record.cards),
        "cost_usd": record.cost_usd,
        "duration_seconds": record.duration_s,
        **record.realm,
    }


def write_cards_csv(path: Path, records: Iterable[TopicRecord], *, bom: bool = False) -> int:
    """Write all cards as one table, a row for each; gives how many.

    Cells that a spreadsheet would run are kept as text.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return write_csv(path, CARD_COLUMNS, card_rows(records), bom=bom)


def card_rows(records: Iterable[TopicRecord]) -> Iterator[dict[str, Any]]:
    """Rows of `CARD_COLUMNS`."""
    for record in records:
        topic = record.topic
        for number, card in enumerate(record.cards, start=1):
            wrong = {
                f"{name}_{place}": value
                for place, one in enumerate(card.distractors, start=1)
                for name, value in (("distractor", one.text), ("misconception", one.misconception))
            }
            yield {
                TOPIC_PATH: topic.path,
                "category": topic.category,
                "domain": topic.domain,
                "subdomain": topic.subdomain,
                "topic_title": topic.title,
                "card": number,
                "question_text": card.question_text,
                "correct_answer": card.correct_answer,
                **wrong,
                **card.detailed_explanation.model_dump(),
                "code_snippets": "\n\n".join(card.code_snippets),
                "difficulty": card.difficulty,
                "question_type": card.question_type,
                "bloom_level": card.bloom_level,
                "prerequisites": card.prerequisites,
                "sources": [source.url for source in record.sources],
                "realm": "simulated" if record.simulated else "live",
            }


def has_math(card: Flashcard) -> bool:
    """Whether a formula in LaTeX stands in a card."""
    parts = card.detailed_explanation
    texts = (
        card.question_text, card.correct_answer, parts.core_logic, parts.distractor_analysis,
        parts.analogy, *(one.text for one in card.distractors),
    )  # fmt: skip
    return any(_MATH.search(text) for text in texts)


def _prompt_of(record: TopicRecord) -> OptimizedPrompt:
    if record.prompt is None:
        raise ValueError(f"the topic {record.topic.path} has no optimized prompt")
    return record.prompt


def _distribution(values: Iterable[str], known: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(values)
    return {value: counts[value] for value in known}


def _all(cards: list[Flashcard], holds: Any) -> bool:
    return bool(cards) and all(holds(card) for card in cards)


def _element(parent: ET.Element, name: str, text: str) -> ET.Element:
    element = ET.SubElement(parent, name)
    element.text = _xml_text(text)
    return element


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("", text)


def _json(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
