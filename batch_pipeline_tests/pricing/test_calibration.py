"""What earlier calls teach: the ratio of tokens, answers by size, the cached prefix."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.ledger.overview import PastCall
from batch_pipeline.pricing.calibration import (
    FROM_CALLS,
    FROM_OTHER_MODEL,
    OutputScale,
    input_scale,
    output_of_calls,
    output_of_schema,
    prefix_of_calls,
    scale_of_calls,
)
from batch_pipeline.pricing.tokens import (
    estimate_body_tokens,
    estimate_item_tokens,
    estimate_tokens,
)


def call(
    words: list[int], *, ratio: float = 1.0, output_ratio: float = 1.0, cached: int = 0
) -> PastCall:
    """A call about topics of so many words; each answer has a quarter as many, at most 12."""
    items = [{"id": str(n), "topic": "word " * count} for n, count in enumerate(words)]
    user = orjson.dumps({"topics": items}).decode()
    request = orjson.dumps({"contents": [{"parts": [{"text": user}], "role": "user"}]})
    outputs = tuple(
        orjson.dumps({"text": "word " * min(12, count // 4)}).decode() for count in words
    )
    return PastCall(
        model="google/m",
        request=request,
        outputs=outputs,
        input_tokens=round(estimate_body_tokens(request) * ratio),
        cached_input_tokens=cached,
        cache_write_tokens=0,
        output_tokens=round(sum(map(estimate_tokens, outputs)) * output_ratio),
        latency_s=1.0,
    )


def test_the_ratio_is_what_was_billed_for_each_counted_token() -> None:
    scale = scale_of_calls([call([10, 20], ratio=1.25), call([200] * 5, ratio=1.25)])
    assert scale.ratio == pytest.approx(1.25, abs=0.02)
    assert (scale.basis, scale.calls) == (FROM_CALLS, 2)


def test_requests_that_differ_make_the_ratio_less_sure() -> None:
    same = input_scale([(100, 120), (200, 240)], "x")
    differing = input_scale([(100, 100), (100, 140)], "x")
    assert same.ratio == differing.ratio == pytest.approx(1.2)
    assert same.margin < differing.margin


def test_few_requests_make_it_less_sure_than_many() -> None:
    margins = [input_scale([(100, 120)] * count, "x").margin for count in (1, 5, 60)]
    assert margins == [pytest.approx(0.15), pytest.approx(0.054), pytest.approx(0.032)]
    one = output_of_calls([call([10] * 10)], "topics", same_model=True)
    many = output_of_calls([call([10] * 10)] * 60, "topics", same_model=True)
    assert one is not None and many is not None and many.margin < 0.11 < one.margin == 0.5


def test_without_a_count_the_ratio_is_one_and_far_from_sure() -> None:
    scale = input_scale([], "x")
    assert (scale.ratio, scale.margin, scale.calls) == (1.0, 0.35, 0)


def test_answers_follow_the_size_of_the_item_and_level_off() -> None:
    sizes = [4, 8, 16, 24, 32, 40, 48, 56, 64, 100, 150, 200] * 8
    calls = [call(sizes[at : at + 12], output_ratio=1.5) for at in range(0, len(sizes), 12)]
    scale = output_of_calls(calls, "topics", same_model=True)
    assert scale is not None and scale.basis == FROM_CALLS

    def expected(words: int) -> float:
        return scale.expected(estimate_item_tokens({"topic": "word " * words}))

    assert expected(4) < expected(30) < expected(60)
    assert expected(150) == pytest.approx(expected(1_000), rel=0.1)
    billed = sum(one.output_tokens for one in calls)
    assert sum(expected(words) for words in sizes) == pytest.approx(billed, rel=0.05)


def test_calls_whose_results_are_gone_teach_nothing_about_answers() -> None:
    whole = call([10, 20])
    assert output_of_calls([], "topics", same_model=True) is None
    assert output_of_calls([whole], "rows", same_model=True) is None
    from dataclasses import replace

    assert (
        output_of_calls([replace(whole, outputs=(None, None))], "topics", same_model=True) is None
    )


def test_another_models_answers_are_taken_with_a_wide_margin() -> None:
    scale = output_of_calls([call([10] * 10)], "topics", same_model=False)
    assert scale is not None and (scale.margin, scale.basis) == (0.5, FROM_OTHER_MODEL)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60), st.floats(0, 5_000))
def test_an_expectation_lies_within_what_was_seen(words: list[int], size: float) -> None:
    scale = output_of_calls([call(words)], "topics", same_model=True)
    assert scale is not None
    assert min(scale.tokens) - 1e-6 <= scale.expected(size) <= max(scale.tokens) + 1e-6


def test_the_schema_gives_the_shortest_answer_and_room_up_to_the_bound() -> None:
    schema = {
        "type": "object",
        "properties": {
            "tldr": {"type": "string"},
            "level": {"enum": ["practice", "expert"]},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}, "minItems": 2},
        },
        "$defs": {"Tag": {"type": "object", "properties": {"name": {"type": "string"}}}},
    }
    scale = output_of_schema(schema, 200)
    shortest = b'{"id":"0","tldr":"x","level":"expert","tags":[{"name":"x"},{"name":"x"}]}'
    assert scale.least == estimate_tokens(shortest)
    assert scale.least < scale.expected(10) < 200
    assert scale.low(scale.expected(10)) == pytest.approx(scale.least)


def test_a_prefix_is_relied_on_once_it_was_read_from_the_cache() -> None:
    assert prefix_of_calls([call([5])]) is None
    prefix = prefix_of_calls([call([5]), call([5], cached=1_500), call([5], cached=1_500)])
    assert prefix is not None and (prefix.tokens, prefix.certain) == (1_500, True)


def test_between_two_sizes_it_is_interpolated() -> None:
    scale = OutputScale((10.0, 20.0), (100.0, 200.0), 0.1, 50.0, FROM_CALLS)
    assert [scale.expected(size) for size in (5, 10, 15, 20, 25)] == [100, 100, 150, 200, 200]
