"""Flashcards from a shell: filters, modes, the guide's options, cleanup; what is refused."""

from __future__ import annotations

import pytest

from batch_pipeline_tests.cli.conftest import ROOT, Shell

SAMPLE = ROOT / "data" / "samples" / "flashcards" / "topics.jsonl"
BRANDS = ROOT / "data" / "samples" / "brands" / "brands.csv"
TOPICS = ROOT / "data" / "samples" / "roadmaps" / "platform-engineer.csv"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("roadmaps --input TOPICS --mode web", "has no options of its own"),
        ("brands --input BRANDS --num-flashcards 5", "num_flashcards: there is no such option"),
        ("flashcards --input SAMPLE --mode quick", "'quick' is not one of 'exa', 'web', 'unified'"),
        ("flashcards --input SAMPLE --num-flashcards 51", "num_flashcards"),
        ("flashcards --input SAMPLE --category 004_gardening", "--category 004_gardening"),
        ("flashcards --input SAMPLE --worksheet INPUT", "cannot read a table by 'worksheet'"),
        ("flashcards --input SAMPLE --no-write-back", "cannot read a table by 'write_back'"),
        ("flashcards --input sheets:abc/INPUT", "does not read Google Sheets"),
        ("roadmaps --input TOPICS --domain networks", "cannot read a table by 'domain'"),
        ("brands --input sheets:abc/INPUT --worksheet X", "says nothing about a worksheet"),
        ("flashcards --batch older --category cybersecurity", "category would change nothing"),
        ("flashcards --input SAMPLE --cleanup --output mine", "mine is yours"),
        ("flashcards --input SAMPLE --batch-delay -1", "--batch-delay"),
        ("flashcards --input SAMPLE --search-rate-limit 0", "--search-rate-limit"),
        ("flashcards --input SAMPLE --concurrent many", "'many' is neither auto nor a number"),
    ],
)
def test_what_cannot_be_used_ends_with_64_before_anything_is_read(
    shell: Shell, words: str, said: str
) -> None:
    for name, path in (("SAMPLE", SAMPLE), ("BRANDS", BRANDS), ("TOPICS", TOPICS)):
        words = words.replace(name, str(path))
    ended = shell("run", *words.split(), "--json")
    assert ended.code == 64, ended.err
    assert said in ended.document["error"]["message"]
    assert ended.document["error"]["next_step"]
    assert shell("status", "--json").document["batches"] == []
    assert shell.asked() == []
