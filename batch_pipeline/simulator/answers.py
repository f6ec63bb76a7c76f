"""The text of an answer, right or broken on purpose.

What does not live here: the provider's envelope around the text (`wire`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from batch_pipeline.simulator import tokens
from batch_pipeline.simulator.config import CONTENT_FAULTS, FaultRule
from batch_pipeline.simulator.draws import fingerprint, pick
from batch_pipeline.simulator.items import Item
from batch_pipeline.simulator.schema import Generated, Source, generate, generate_element
from batch_pipeline.simulator.writers import PLAIN, Background

_PLAIN_WORDS = 24
_PROSE = "This is what I could find out about the brand, in my own words:"
REFUSAL = "I'm sorry, but I can't help with that."


@dataclass(frozen=True)
class Answer:
    """What the model says.

    Attributes:
        text: the answer as far as the output bound lets it go.
        output_tokens: of that text.
        cut: whether the bound cut it.
        written: kinds of what was written in it for items, which faults of content hit.
    """

    text: str
    output_tokens: int
    cut: bool
    written: frozenset[str] = frozenset()


def answer(
    *,
    schema: Any,
    user_text: str,
    items: Sequence[Item],
    max_tokens: int | None,
    broken: Sequence[FaultRule] = (),
    whole: str | None = None,
    background: Background = PLAIN,
) -> Answer:
    """Make the answer to a request.

    Args:
        schema: the JSON Schema it must satisfy, or None for plain text.
        user_text: what it quotes where it belongs to no item.
        items: the packed items found in that text.
        max_tokens: the output bound.
        broken: faults of single items of the answer.
        whole: one of `TEXT_FAULTS`; other whole-reply faults are the envelope's.
        background: what it depends on beside the request's own text.
    """
    words = user_text.split()
    written: frozenset[str] = frozenset()
    if schema is None:
        text = f"You said: {' '.join(words[:_PLAIN_WORDS])}"
    else:
        source = Source(words, fingerprint(user_text.encode("utf-8", "replace")))
        generated = generate(schema, source=source, items=items, background=background)
        if generated.elements is not None:
            written = frozenset(generated.written)
        _break_all(broken, schema, generated, items)
        text = json.dumps(generated.value, ensure_ascii=False, separators=(",", ":"))
    if whole == "brand_prose":
        text = f"{_PROSE} {' '.join(words[:_PLAIN_WORDS])}"
    elif whole in ("malformed_json", "voter_down"):
        text = f"Here is the result:\n{text[: len(text) * 2 // 3]}"
    # JSON inside the prompt can hold half a surrogate pair, which no reply can carry.
    text = text.encode("utf-8", "replace").decode()
    output_tokens = tokens.count(text)
    limit = output_tokens if max_tokens is None else max_tokens
    if whole == "truncated":
        limit = min(limit, max(1, output_tokens // 2))
    if output_tokens <= limit and whole != "truncated":
        return Answer(text, output_tokens, cut=False, written=written)
    cut = tokens.truncate(text, limit)
    return Answer(cut, min(limit, output_tokens), cut=True, written=written)


def _break_all(
    rules: Sequence[FaultRule], schema: Any, generated: Generated, items: Sequence[Item]
) -> None:
    elements = generated.elements
    if elements is None:
        if isinstance(generated.value, dict) and any(r.kind == "invalid_item" for r in rules):
            _invalidate(generated.value)
        return
    # Chosen before anything is broken, so that several rules mean the same items.
    pairs = list(zip(items, elements, strict=False))
    _spoil(rules, schema, generated, pairs)
    for rule in rules:
        if rule.kind in CONTENT_FAULTS:
            continue
        for item, element in _hit(rule, pairs):
            _BREAKERS[rule.kind](schema, generated, elements, item, element)


def _spoil(
    rules: Sequence[FaultRule], schema: Any, generated: Generated, pairs: list[tuple[Item, Any]]
) -> None:
    """Write anew what has flaws: all flaws of an item's at once."""
    flaws: dict[int, set[str]] = {}
    for rule in rules:
        if rule.kind in CONTENT_FAULTS:
            for _, element in _hit(rule, pairs):
                flaws.setdefault(id(element), set()).add(rule.kind)
    for item, element in pairs:
        kinds = flaws.get(id(element))
        if kinds:
            element.update(_made(schema, generated, item, flaws=kinds))


def _made(
    schema: Any, generated: Generated, item: Item, salt: str = "", flaws: Collection[str] = ()
) -> Any:
    return generate_element(
        schema, generated.element_schema, item, salt, flaws, generated.background
    )


def _hit(rule: FaultRule, pairs: list[tuple[Item, Any]]) -> list[tuple[Item, Any]]:
    if rule.voter is not None:
        pairs = [(item, element) for item, element in pairs if item.voter == rule.voter]
    if rule.match is not None:
        return [(item, element) for item, element in pairs if rule.match in item.text]
    if rule.kind == "corrupt_ids" or not pairs:
        return pairs
    return [pairs[pick(len(pairs), rule.kind, *(item.content_sha for item, _ in pairs))]]


def _place(elements: list[Any], element: Any) -> int | None:
    return next((n for n, one in enumerate(elements) if one is element), None)


def _drop(schema: Any, generated: Generated, elements: list[Any], item: Item, element: Any) -> None:
    place = _place(elements, element)
    if place is not None:
        del elements[place]


def _duplicate(
    schema: Any, generated: Generated, elements: list[Any], item: Item, element: Any
) -> None:
    place = _place(elements, element)
    if place is not None:
        elements.insert(place + 1, _other_content(schema, generated, item, element))


def _other_content(schema: Any, generated: Generated, item: Item, first: Any) -> Any:
    made = first
    for salt in range(1, 9):
        made = _made(schema, generated, item, f"#{salt}")
        made["id"] = first["id"]
        if made != first:
            return made
    # Too short an input to quote in another way, and nothing to choose.
    for name, value in made.items():
        if name != "id" and isinstance(value, str):
            made[name] = f"{value} again"
    return made


def _rename(
    schema: Any, generated: Generated, elements: list[Any], item: Item, element: Any
) -> None:
    element["id"] = _unknown_id(element["id"])


def _extra(
    schema: Any, generated: Generated, elements: list[Any], item: Item, element: Any
) -> None:
    added = _made(schema, generated, item, "#extra")
    added["id"] = _unknown_id(element["id"])
    elements.append(added)


def _invalid(
    schema: Any, generated: Generated, elements: list[Any], item: Item, element: Any
) -> None:
    _invalidate(element)


def _invalidate(element: dict[str, Any]) -> None:
    for name, value in element.items():
        if name != "id":
            element[name] = "unexpected" if isinstance(value, dict) else {"unexpected": True}
            return


def _unknown_id(known: Any) -> Any:
    return f"unknown-{known}" if isinstance(known, str) else known + 1_000_000


_BREAKERS: dict[str, Callable[[Any, Generated, list[Any], Item, Any], None]] = {
    "drop_id": _drop,
    "duplicate_id": _duplicate,
    "rename_id": _rename,
    "corrupt_ids": _rename,
    "extra_id": _extra,
    "invalid_item": _invalid,
}
