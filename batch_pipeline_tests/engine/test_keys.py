"""Cache keys: what makes two rows the same question, and what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.step import Step


class Verdict(BaseModel):
    """An answer."""

    word: str


class Graded(BaseModel):
    """An answer with a grade."""

    word: str
    grade: Literal["a", "b"]


class Reworded(BaseModel):
    """An answer, described otherwise."""

    word: str


STEP = Step("judge", "Judge the topic.", Verdict, dict)
CONTENT = {"Topic": "Threads", "Description": "How to wait."}
KEY = KeyMaker(STEP).key(CONTENT)

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
contents = st.dictionaries(
    st.text(max_size=10), scalars | st.lists(scalars, max_size=3), max_size=5
)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "judge-again"},
        {"system_prompt": "Judge the topic. "},
        {"output_model": Graded},
        {"output_model": Reworded},
        {"temperature": 0.0},
        {"temperature": 0.7},
    ],
    ids=["step", "prompt", "schema", "words in the schema", "temperature 0", "temperature"],
)
def test_another_task_is_another_question(change: dict[str, Any]) -> None:
    assert KeyMaker(replace(STEP, **change)).key(CONTENT) != KEY


@pytest.mark.parametrize(
    "change",
    [
        {"max_items": 20},
        {"max_input_tokens": 5},
        {"timeout_s": 1.0},
        {"output_tokens_base": 9_000},
        {"content_tries": 1},
        {"items_name": "topics"},
        {"content": lambda row: {"Topic": row["Topic"]}},
    ],
    ids=["pack", "pack size", "timeout", "bound", "tries", "name of the list", "the reader itself"],
)
def test_how_it_is_asked_does_not_change_the_question(change: dict[str, Any]) -> None:
    assert KeyMaker(replace(STEP, **change)).key(CONTENT) == KEY


def test_several_answers_to_one_question_have_a_key_each() -> None:
    maker = KeyMaker(STEP)
    assert len({maker.key(CONTENT, index) for index in range(10)}) == 10
    assert maker.key(CONTENT, 0) == KEY


def test_only_what_the_prompt_uses_of_a_row_counts() -> None:
    step = replace(STEP, content=lambda row: {"Topic": row["Topic"]})
    maker = KeyMaker(step)
    rows = [{"Topic": "Threads", "id": number, "note": "x" * number} for number in range(5)]
    assert len({maker.key(step.content(row)) for row in rows}) == 1


@settings(deadline=None)
@given(contents, st.randoms())
def test_the_order_of_the_columns_does_not_count(content: dict[str, Any], random: Any) -> None:
    pairs = list(content.items())
    random.shuffle(pairs)
    assert KeyMaker(STEP).key(dict(pairs)) == KeyMaker(STEP).key(content)


@settings(deadline=None)
@given(contents, contents)
def test_other_content_has_another_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    maker = KeyMaker(STEP)
    same = _typed(one) == _typed(other)
    assert (maker.key(one) == maker.key(other)) == same


def _typed(value: Any) -> Any:
    """A form in which 1 and True differ, as they do in JSON."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return type(value), value


def test_a_key_is_the_same_in_every_process_and_on_every_day() -> None:
    """Changing how keys are made pays every cached answer again: that must be a decision."""
    assert KEY == "dfeb76c54e4e583bfd31d94b2a061352e95a4968e63d8152e6a5abaa477c134b"
