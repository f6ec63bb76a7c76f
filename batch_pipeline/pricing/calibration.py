"""What earlier calls teach about the next ones: tokens per local count, answers, the prompt cache.

Pure. What belongs here: fitting. What does not: reading the calls (ledger/overview.py), asking a
provider (providers/counts.py), summing up a table (workloads/estimate.py).
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from batch_pipeline.ledger.overview import PastCall
from batch_pipeline.pricing.tokens import (
    estimate_body_tokens,
    estimate_item_tokens,
    estimate_tokens,
    prompt_texts,
)

FROM_CALLS = "earlier calls"
FROM_OTHER_MODEL = "earlier calls of another model"
FROM_COUNTS = "the provider's own count"
FROM_TEXT = "the text alone"
FROM_SCHEMA = "the answer's schema"
FROM_TYPICAL = "typical lengths"
FROM_EARLIER_STEPS = "the rows and what earlier steps may answer"

_GUESSED_INPUT_MARGIN = 0.35
"""Tokenizers of today's models differ by about a third on the same text."""

UNKNOWN_MARGIN = 0.5
"""Of lengths that nobody has seen yet."""

_OTHER_MODEL_MARGIN = 0.5
_LEAST_MARGIN = 0.03
_LEAST_OUTPUT_MARGIN = 0.1

_GROUPS = 8
_LEAST_IN_GROUP = 8

_SHARE_OF_ROOM = 0.25
"""Of the room between the shortest answer that fits the schema and the bound, what a typical answer
takes: bounds are generous."""


@dataclass(frozen=True, slots=True)
class InputScale:
    """How a model's own prompt tokens relate to the local count.

    Attributes:
        ratio: its tokens for each locally counted one.
        margin: how far it may be off, as a share.
        basis: where it comes from, in words.
        calls: how many requests it was taken from.
    """

    ratio: float = 1.0
    margin: float = _GUESSED_INPUT_MARGIN
    basis: str = FROM_TEXT
    calls: int = 0


@dataclass(frozen=True, slots=True)
class OutputScale:
    """Output tokens of one item, by the local count of its content.

    Attributes:
        sizes: ascending sizes of content, in local tokens.
        tokens: output tokens expected at each; between them it is interpolated.
        margin: how far the sum may be off, as a share.
        least: the shortest answer there can be.
        basis: where it comes from, in words.
        calls: how many requests it was taken from.
    """

    sizes: tuple[float, ...]
    tokens: tuple[float, ...]
    margin: float
    least: float
    basis: str
    calls: int = 0

    def expected(self, size: float) -> float:
        """Output tokens of an item whose content has `size` local tokens."""
        place = bisect_right(self.sizes, size)
        if place == 0:
            return self.tokens[0]
        if place == len(self.sizes):
            return self.tokens[-1]
        low, high = self.sizes[place - 1], self.sizes[place]
        share = (size - low) / (high - low)
        return self.tokens[place - 1] * (1 - share) + self.tokens[place] * share

    def low(self, expected: float) -> float:
        """The least that answers of `expected` tokens in all may come to."""
        return expected * (1 - self.margin)


@dataclass(frozen=True, slots=True)
class ContentSize:
    """What a row's content comes to in a step whose earlier steps have not answered yet.

    Attributes:
        tokens: in local tokens.
        margin: how far the sum may be off, as a share.
        basis: where it comes from, in words.
        calls: how many requests it was taken from.
    """

    tokens: float
    margin: float = UNKNOWN_MARGIN
    basis: str = FROM_TYPICAL
    calls: int = 0


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """The part of the prompt that a provider keeps from one request to the next.

    Attributes:
        tokens: its billed tokens; 0 where nothing is kept.
        billed_write: whether keeping it costs more than sending it.
        certain: whether reading it back can be relied on (marked, or seen in earlier calls).
    """

    tokens: int = 0
    billed_write: bool = False
    certain: bool = False


NO_PREFIX = CachedPrefix()


def input_scale(counted: Iterable[tuple[int, int]], basis: str) -> InputScale:
    """The ratio of (local count, model's count) pairs, and how much it varies between requests.

    Args:
        counted: one pair for each request.
        basis: where the counts come from, in words.
    """
    pairs = [(local, count) for local, count in counted if local > 0 and count > 0]
    if not pairs:
        return InputScale()
    ratio = sum(count for _, count in pairs) / sum(local for local, _ in pairs)
    spread = statistics.pstdev(count / local / ratio for local, count in pairs)
    # Whole batches average single requests out; twice the spread of a request is a safe side.
    margin = min(_GUESSED_INPUT_MARGIN, max(_floor(_LEAST_MARGIN, len(pairs)), 2 * spread))
    return InputScale(ratio, margin, basis, len(pairs))


def scale_of_calls(calls: Sequence[PastCall]) -> InputScale:
    """The ratio by the bills of earlier calls: their bodies are counted anew, as today's are."""
    return input_scale(
        ((estimate_body_tokens(call.request), call.input_tokens) for call in calls), FROM_CALLS
    )


def output_of_calls(
    calls: Sequence[PastCall], items_name: str, *, same_model: bool
) -> OutputScale | None:
    """What items were answered with, by the size of their content; None where nothing is known.

    Args:
        calls: earlier calls of the step.
        items_name: key of the items in its user messages.
        same_model: whether they are of the model in question.
    """
    pairs: list[tuple[float, float]] = []
    ratios: list[float] = []
    for call in calls:
        contents = _contents(call.request, items_name)
        if not contents or len(contents) != len(call.outputs):
            continue
        found = [
            (float(estimate_item_tokens(content)), float(estimate_tokens(output)))
            for content, output in zip(contents, call.outputs, strict=True)
            if output is not None
        ]
        if len(found) < len(contents):
            continue
        local = sum(tokens for _, tokens in found)
        # The bill has the ids, the frame and any thinking as well: each item bears its share.
        ratio = call.output_tokens / local
        pairs += [(size, tokens * ratio) for size, tokens in found]
        ratios.append(call.output_tokens / len(found))
    if not pairs:
        return None
    sizes, tokens = _fit(sorted(pairs))
    mean = statistics.fmean(ratios)
    spread = statistics.pstdev(ratios) / mean if mean else 0.0
    error = 2 * spread / math.sqrt(len(ratios))
    margin = min(_OTHER_MODEL_MARGIN, max(_floor(_LEAST_OUTPUT_MARGIN, len(ratios)), error))
    return OutputScale(
        sizes=sizes,
        tokens=tokens,
        margin=margin if same_model else _OTHER_MODEL_MARGIN,
        least=min(value for _, value in pairs),
        basis=FROM_CALLS if same_model else FROM_OTHER_MODEL,
        calls=len(ratios),
    )


def output_of_schema(schema: Mapping[str, Any], bound: int) -> OutputScale:
    """What an item's answer may come to, by its schema alone.

    Args:
        schema: JSON Schema of one item's answer.
        bound: output tokens of one item at most.
    """
    shortest = {"id": "0", **_as_dict(_example(schema, schema, 0))}
    least = float(min(bound, estimate_tokens(orjson.dumps(shortest))))
    likely = least + _SHARE_OF_ROOM * (bound - least)
    return OutputScale((0.0,), (likely,), 1 - least / likely, least, FROM_SCHEMA)


def output_of_typical(tokens: int, bound: int) -> OutputScale:
    """What an item's answer comes to by what its workload says is usual.

    Args:
        tokens: output tokens of a usual answer.
        bound: output tokens of one item at most.
    """
    likely = float(min(tokens, bound))
    least = likely * (1 - UNKNOWN_MARGIN)
    return OutputScale((0.0,), (likely,), UNKNOWN_MARGIN, least, FROM_TYPICAL)


def content_of_calls(calls: Sequence[PastCall], items_name: str) -> ContentSize | None:
    """The usual size of a step's content; None where nothing is known.

    Args:
        calls: earlier calls of the step, of any model.
        items_name: key of the items in its user messages.
    """
    means: list[float] = []
    for call in calls:
        if contents := _contents(call.request, items_name):
            means.append(statistics.fmean(estimate_item_tokens(content) for content in contents))
    if not means:
        return None
    mean = statistics.fmean(means)
    error = 2 * statistics.pstdev(means) / mean / math.sqrt(len(means))
    margin = min(UNKNOWN_MARGIN, max(_floor(_LEAST_OUTPUT_MARGIN, len(means)), error))
    return ContentSize(mean, margin, FROM_CALLS, len(means))


def content_of_typical(prompt_tokens: int, base_tokens: int, scale: InputScale) -> ContentSize:
    """The usual size of a step's content by what its workload says is usual.

    Args:
        prompt_tokens: prompt tokens of a request with one usual row, all in all.
        base_tokens: local count of what every request has.
        scale: how the model counts.
    """
    return ContentSize(max(1.0, prompt_tokens / scale.ratio - base_tokens))


def prefix_of_calls(calls: Sequence[PastCall]) -> CachedPrefix | None:
    """The cached prefix that earlier calls show; None where none of them read from a cache."""
    read = [call.cached_input_tokens for call in calls if call.cached_input_tokens]
    if not read:
        return None
    return CachedPrefix(
        int(statistics.median(read)), any(call.cache_write_tokens for call in calls), True
    )


def mean_latency_s(calls: Sequence[PastCall]) -> float | None:
    """Mean seconds of a call; None where there was none."""
    return statistics.fmean(call.latency_s for call in calls) if calls else None


def _floor(least: float, requests: int) -> float:
    """The least margin of so many requests: one alone, which has no spread, proves little."""
    return least * (1 + 4 / requests)


def _contents(body: bytes, items_name: str) -> list[dict[str, Any]] | None:
    """The items of a packed request, without their ids."""
    for text in prompt_texts(orjson.loads(body)):
        if not text.startswith("{"):
            continue
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        items = message.get(items_name) if isinstance(message, dict) else None
        if isinstance(items, list):
            return [{name: item[name] for name in item if name != "id"} for item in items]
    return None


def _fit(pairs: Sequence[tuple[float, float]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means of groups of equally many items, by ascending size."""
    groups = max(1, min(_GROUPS, len(pairs) // _LEAST_IN_GROUP))
    points: dict[float, list[float]] = {}
    for group in _split(pairs, groups):
        size = statistics.fmean(size for size, _ in group)
        points.setdefault(size, []).extend(tokens for _, tokens in group)
    return tuple(points), tuple(statistics.fmean(values) for values in points.values())


def _split(
    pairs: Sequence[tuple[float, float]], groups: int
) -> Iterator[Sequence[tuple[float, float]]]:
    for place in range(groups):
        yield pairs[len(pairs) * place // groups : len(pairs) * (place + 1) // groups]


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _example(root: Mapping[str, Any], schema: Mapping[str, Any], depth: int) -> Any:
    """The shortest value that a schema takes, about."""
    if depth > 8:
        return None
    if "$ref" in schema:
        target: Any = root
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            target = _as_dict(target).get(part, {})
        return _example(root, target, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return min(schema["enum"], key=lambda value: len(str(value)))
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return _example(root, schema[union][0], depth + 1)
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {
            name: _example(root, child, depth + 1)
            for name, child in _as_dict(schema.get("properties")).items()
        }
    if kind == "array":
        item = _example(root, _as_dict(schema.get("items")), depth + 1)
        return [item] * int(schema.get("minItems", 0))
    if kind == "string":
        return "x" * min(int(schema.get("minLength", 1)), 10_000)
    return {"integer": 0, "number": 0, "boolean": True}.get(str(kind))
