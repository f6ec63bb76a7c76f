"""Reading a packed answer: what is used, and what is said about the rest."""

from __future__ import annotations

from typing import Any, Literal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from batch_pipeline.engine.answers import Answers, is_valid, read_answers
from batch_pipeline.engine.step import Step
from batch_pipeline.providers.base import Finish, Reply


class Verdict(BaseModel):
    """An answer with a rule."""

    model_config = ConfigDict(strict=True, extra="forbid")

    word: str
    level: Literal["low", "high"] = "low"


STEP = Step("judge", "Judge.", Verdict, dict, max_items=20)
GOOD = {"word": "yes", "level": "high"}


def read(results: Any, count: int = 3, **reply: Any) -> Answers:
    text = results if isinstance(results, str) else orjson.dumps({"results": results}).decode()
    return read_answers(
        STEP, count, Reply(**{"text": text, "finish": Finish.STOP, "usage": None, **reply})
    )


def entry(identity: Any, **fields: Any) -> dict[str, Any]:
    return {"id": identity, **GOOD, **fields}


ALL = [entry("0"), entry("1"), entry("2")]


def test_answers_are_matched_by_id_and_not_by_place() -> None:
    answers = read([entry("2", word="c"), entry("0", word="a"), entry("1", word="b")])
    assert {at: output["word"] for at, output in answers.valid.items()} == {
        0: "a",
        1: "b",
        2: "c",
    }
    assert not answers.problems and not answers.failure and not answers.unknown_ids


def test_an_answer_is_kept_as_its_model_writes_it() -> None:
    assert read([{"id": "0", "word": "yes"}], 1).valid == {0: {"word": "yes", "level": "low"}}


@pytest.mark.parametrize(
    ("results", "problems", "unknown"),
    [
        pytest.param(ALL[:2], {2: "no answer with id 2"}, [], id="missing"),
        pytest.param([*ALL, ALL[1]], {}, [], id="twice the same"),
        pytest.param(
            [*ALL, entry("1", word="no")],
            {1: "2 different answers with id 1"},
            [],
            id="twice, and different",
        ),
        pytest.param(
            [ALL[0], ALL[1], entry("item-2")],
            {2: "no answer with id 2"},
            ["item-2"],
            id="renamed",
        ),
        pytest.param([*ALL, entry("3")], {}, ["3"], id="one too many"),
        pytest.param([entry(0), entry(1), entry(2)], {}, [], id="integers"),
        pytest.param(
            [ALL[0], ALL[1], entry("02")], {2: "no answer with id 2"}, ["02"], id="zeros before"
        ),
        pytest.param(
            [ALL[0], ALL[1], entry("٢")], {2: "no answer with id 2"}, ["٢"], id="foreign digit"
        ),
        pytest.param(
            [ALL[0], ALL[1], entry(True)], {2: "no answer with id 2"}, ["True"], id="boolean"
        ),
        pytest.param(
            [ALL[0], ALL[1], entry(2.0)], {2: "no answer with id 2"}, ["2.0"], id="fraction"
        ),
        pytest.param(
            [ALL[0], ALL[1], entry("9" * 5_000)],
            {2: "no answer with id 2"},
            ["9" * 40],
            id="a number of 5,000 digits",
        ),
        pytest.param(
            [ALL[0], ALL[1], entry("-1")], {2: "no answer with id 2"}, ["-1"], id="negative"
        ),
        pytest.param([*ALL, "text"], {}, ["text"], id="no object"),
        pytest.param([*ALL, None], {}, ["None"], id="null"),
        pytest.param([*ALL, GOOD], {}, ["None"], id="without id"),
        pytest.param(
            [ALL[0], ALL[1], entry("2", note="hm")],
            {2: "note: Extra inputs are not permitted"},
            [],
            id="extra field",
        ),
        pytest.param(
            [ALL[0], ALL[1], entry("2", level="medium")],
            {2: "level: Input should be 'low' or 'high'"},
            [],
            id="outside the words",
        ),
        pytest.param(
            [ALL[0], ALL[1], entry("2", word=5)],
            {2: "word: Input should be a valid string"},
            [],
            id="wrong type",
        ),
        pytest.param(
            [ALL[0], ALL[1], {"id": "2"}], {2: "word: Field required"}, [], id="field missing"
        ),
        pytest.param([], dict.fromkeys(range(3), ""), [], id="empty"),
    ],
)
def test_each_row_has_its_answer_or_its_problem(
    results: list[Any], problems: dict[int, str], unknown: list[str]
) -> None:
    answers = read(results)
    assert set(answers.problems) == set(problems)
    for place, words in problems.items():
        assert words in answers.problems[place]
    assert answers.unknown_ids == unknown
    assert answers.valid == {at: GOOD for at in range(3) if at not in problems}
    assert answers.failure == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("Sure! Here is the JSON:", "not JSON"),
        ('```json\n{"results": []}\n```', "not JSON"),
        ('{"results": [', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("null", "no list `results`"),
        ("[]", "no list `results`"),
        ('{"answers": []}', "no list `results`"),
        ('{"results": {"0": {}}}', "no list `results`"),
        ('"\\ud800"', "not JSON"),
    ],
)
def test_a_reply_of_no_use_is_a_problem_of_every_row(text: str, words: str) -> None:
    answers = read(text)
    assert words in answers.failure
    assert answers.problems == dict.fromkeys(range(3), answers.failure)
    assert not answers.valid and not answers.refused


def test_a_refusal_is_told_apart_with_the_models_words() -> None:
    answers = read("", finish=Finish.REFUSAL, refusal="SAFETY")
    assert answers.refused
    assert set(answers.problems.values()) == {"the model declined: SAFETY"}


def test_an_answer_that_was_cut_says_so_and_a_whole_one_at_the_bound_is_used() -> None:
    cut = read('{"results": [{"id": "0", "wo', finish=Finish.LENGTH)
    assert cut.cut and "cut at the output bound" in cut.failure
    whole = read(ALL, finish=Finish.LENGTH)
    assert whole.cut and len(whole.valid) == 3


def test_an_answer_that_the_model_of_today_refuses_is_no_result_any_more() -> None:
    assert is_valid(STEP, GOOD)
    assert not is_valid(STEP, {"word": "yes", "level": "medium"})
    assert not is_valid(STEP, {})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
near_misses = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["0", "1", "2", "3", 0, 1, -1, "", " 1", None]) | json_values,
        "word": st.text() | json_values,
        "level": st.sampled_from(["low", "high", "LOW"]) | json_values,
        "other": json_values,
    },
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(near_misses | json_values, max_size=6),
    st.integers(1, 4),
    st.sampled_from(list(Finish)),
)
def test_whatever_a_reply_holds_each_row_ends_up_answered_or_with_a_problem(
    results: list[Any], count: int, finish: Finish
) -> None:
    answers = read(orjson.dumps({"results": results}).decode(), count, finish=finish)
    assert set(answers.valid) | set(answers.problems) == set(range(count))
    assert not set(answers.valid) & set(answers.problems)
    assert all(answers.problems.values()), "every problem has words"
    assert all(is_valid(STEP, output) for output in answers.valid.values())


@settings(deadline=None)
@given(st.text() | json_values.map(lambda value: orjson.dumps(value).decode()))
def test_no_text_makes_reading_fail(text: str) -> None:
    assert set(read(text, 2).problems) == {0, 1} or read(text, 2).valid
