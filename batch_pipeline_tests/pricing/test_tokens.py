"""The local token count: near a real vocabulary's, quick, and never less for more text."""

from __future__ import annotations

import csv
from pathlib import Path

import orjson
import pytest
import rs_bpe
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.pricing.tokens import (
    estimate_body_tokens,
    estimate_item_tokens,
    estimate_tokens,
)
from batch_pipeline.providers.base import LlmRequest
from batch_pipeline.providers.registry import PROVIDERS

_VOCABULARY = rs_bpe.openai.o200k_base()
_DOCS = Path(__file__).resolve().parents[2] / "docs"


@settings(deadline=None)
@given(st.text(max_size=400), st.text(max_size=40))
def test_more_text_is_never_estimated_at_fewer_tokens(text: str, more: str) -> None:
    assert 1 <= estimate_tokens(text) <= estimate_tokens(text + more)
    assert estimate_tokens(text) == estimate_tokens(text.encode("utf-8", "replace"))


@settings(deadline=None)
@given(st.text(min_size=1, max_size=400))
def test_a_text_has_no_more_tokens_than_bytes(text: str) -> None:
    assert estimate_tokens(text) <= len(text.encode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("word " * 400, 390, 410),
        ("Die Ausbildung beginnt mit der Frage, was ein Mensch können soll.", 14, 22),
        ("2026-11-21 14:00:05 and 1,234.50", 14, 22),
        ("一个人应该能够做什么的问题。", 6, 16),
        ("с вопроса о том, что должен уметь человек", 8, 18),
    ],
)
def test_scripts_and_figures_come_out_near_what_vocabularies_make_of_them(
    text: str, least: int, most: int
) -> None:
    assert least <= estimate_tokens(text) <= most


@pytest.mark.parametrize("name", ["cli.md", "engine.md", "ledger.md"])
def test_markdown_is_within_a_seventh_of_a_real_vocabulary(name: str) -> None:
    text = (_DOCS / name).read_text(encoding="utf-8")
    assert estimate_tokens(text) == pytest.approx(_VOCABULARY.count(text), rel=1 / 7)


def test_a_real_tables_rows_are_within_5_percent_of_a_real_vocabulary(
    reference_data: Path,
) -> None:
    with (reference_data / "roadmaps" / "rows_all.csv").open(encoding="utf-8") as file:
        rows = [orjson.dumps(row) for row in csv.DictReader(file)]
    real = sum(_VOCABULARY.count(row.decode()) for row in rows)
    assert sum(map(estimate_tokens, rows)) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_a_body_is_counted_by_its_texts_in_every_wire_format(provider: str) -> None:
    system, user = "You write short notes. " * 30, '{"topics":[{"id":"0","topic":"Linux"}]}'
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
        "additionalProperties": False,
    }
    request = LlmRequest("a-model", system, user, schema, max_output_tokens=100)
    body = PROVIDERS[provider].codec.build(request, key="", base_url="").body
    texts = estimate_tokens(system) + estimate_tokens(user) + estimate_tokens(orjson.dumps(schema))
    assert estimate_body_tokens(body) == pytest.approx(texts, abs=25)


def test_an_item_counts_its_id_as_well() -> None:
    content = {"topic": "Linux", "description": "a kernel"}
    assert estimate_item_tokens(content) == estimate_tokens(orjson.dumps(content)) + 5
