"""The answer generator: whatever it is asked for, the schema accepts the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from batch_pipeline.simulator.items import find_items
from batch_pipeline.simulator.schema import (
    Source,
    UnsupportedSchemaError,
    from_openapi,
    generate,
)

SOURCE = Source(["The", "recipe,", "for", "rhubarb", "pie:", "needs", "four", "eggs."], "sha")
PATTERNS = [r"^[a-z]+$", r"^[A-Z]{2}-\d{3}$", r"\S", r"^(yes|no)$", r"^#[0-9a-f]{6}$", r"^.{3,9}$"]


def strings() -> st.SearchStrategy[dict[str, Any]]:
    bounded = st.tuples(st.integers(0, 80), st.integers(0, 80)).map(
        lambda ends: {"type": "string", "minLength": min(ends), "maxLength": max(ends)}
    )
    patterned = st.sampled_from(PATTERNS).map(lambda p: {"type": "string", "pattern": p})
    formatted = st.sampled_from(["date", "date-time", "uri", "email", "uuid", "ipv4"]).map(
        lambda f: {"type": "string", "format": f}
    )
    return st.just({"type": "string"}) | bounded | patterned | formatted


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(-50, 50), st.integers(1, 50))
    inclusive = st.tuples(st.sampled_from(["integer", "number"]), bounds).map(
        lambda x: {"type": x[0], "minimum": x[1][0], "maximum": x[1][0] + x[1][1]}
    )
    exclusive = st.tuples(st.sampled_from(["integer", "number"]), bounds).map(
        lambda x: {
            "type": x[0],
            "exclusiveMinimum": x[1][0],
            "exclusiveMaximum": x[1][0] + x[1][1] + 1,
        }
    )
    one_sided = st.tuples(
        st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
        st.integers(-300, 300),
    ).map(lambda x: {"type": "integer", x[0]: x[1]})
    stepped = st.integers(1, 9).map(lambda m: {"type": "integer", "multipleOf": m})
    return inclusive | exclusive | one_sided | stepped


def leaves() -> st.SearchStrategy[dict[str, Any]]:
    enums = st.lists(st.text(max_size=5) | st.integers(), min_size=1, max_size=4, unique=True).map(
        lambda values: {"enum": values}
    )
    others = st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": "x"}, {}])
    references = st.sampled_from([{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/tree"}])
    nullable = st.just({"type": ["string", "null"]})
    return strings() | numbers() | enums | others | references | nullable


def branches(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    objects = st.dictionaries(st.sampled_from("abcde"), children, max_size=4).flatmap(
        lambda properties: st.lists(st.sampled_from(sorted(properties) or ["z"]), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": [name for name in required if name in properties],
                "additionalProperties": False,
            }
        )
    )
    maps = children.map(lambda child: {"type": "object", "additionalProperties": child})
    arrays = st.tuples(children, st.integers(0, 3), st.integers(0, 3)).map(
        lambda x: {"type": "array", "items": x[0], "minItems": x[1], "maxItems": x[1] + x[2]}
    )
    unions = st.lists(children, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return objects | maps | arrays | unions


SCHEMAS = st.recursive(leaves(), branches, max_leaves=8)
DEFINITIONS = {
    "leaf": {"type": "string", "minLength": 1},
    "tree": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            "parent": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
        },
        "required": ["name", "parent"],
        "additionalProperties": False,
    },
}


@given(SCHEMAS)
@settings(max_examples=300, deadline=None)
def test_every_answer_satisfies_its_schema(schema: dict[str, Any]) -> None:
    root = {**schema, "$defs": DEFINITIONS}
    value = generate(root, source=SOURCE).value
    Draft202012Validator(root, format_checker=FormatChecker()).validate(value)
    assert value == generate(root, source=SOURCE).value
    json.dumps(value)


@given(SCHEMAS, st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True))
@settings(max_examples=100, deadline=None)
def test_a_packed_answer_has_one_valid_element_per_id(
    schema: dict[str, Any], ids: list[int]
) -> None:
    element = {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "value": schema},
        "required": ["id", "value"],
    }
    root = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": element}},
        "required": ["rows"],
        "$defs": DEFINITIONS,
    }
    rows = [{"id": one, "text": f"row number {one} speaks"} for one in ids]
    value = generate(root, source=SOURCE, items=find_items(json.dumps({"in": rows}))).value
    Draft202012Validator(root).validate(value)
    assert [row["id"] for row in value["rows"]] == ids


def test_lists_that_must_be_unique_are() -> None:
    schema = {"type": "array", "items": {"enum": list("abcd")}, "minItems": 4, "uniqueItems": True}
    assert sorted(generate(schema, source=SOURCE).value) == list("abcd")


def test_gemini_schemas_are_understood_in_either_case() -> None:
    schema = from_openapi(
        {
            "type": "OBJECT",
            "properties": {
                "type": {"type": "STRING", "enum": ["A", "B"], "format": "enum"},
                "tags": {"type": "ARRAY", "items": {"type": "STRING"}, "min_items": "2"},
                "when": {"type": "STRING", "nullable": True},
            },
            "property_ordering": ["type", "tags", "when"],
            "required": ["type", "tags"],
        }
    )
    value = generate(schema, source=SOURCE).value
    Draft202012Validator(schema).validate(value)
    assert value["type"] in ("A", "B") and len(value["tags"]) >= 2


def test_ids_take_the_type_that_the_schema_wants() -> None:
    def ids(wanted: str, given_ids: list[Any]) -> list[Any]:
        element = {"type": "object", "properties": {"id": {"type": wanted}}}
        rows = find_items(json.dumps([{"id": one, "t": "x"} for one in given_ids]))
        schema = {"type": "array", "items": element}
        return [row["id"] for row in generate(schema, source=SOURCE, items=rows).value]

    assert ids("string", [3, 4]) == ["3", "4"]
    assert ids("integer", ["3", "4"]) == [3, 4]


def test_items_are_found_inside_prose_with_other_json() -> None:
    rows = [{"id": "a", "q": "one {brace"}, {"id": "b", "q": "two"}]
    text = f'Answer like {{"id": 1}} or {{broken. Data:\n{json.dumps({"x": {"rows": rows}})}\nGo.'
    assert [item.id for item in find_items(text)] == ["a", "b"]
    assert find_items("no json { here") == ()
    hard = "[ { " * 500 + json.dumps({"rows": [*rows, rows[0]]})
    assert [item.id for item in find_items(hard)] == ["a", "b"]


def test_a_pattern_beyond_the_simulator_is_a_clear_error() -> None:
    with pytest.raises(UnsupportedSchemaError, match="pattern"):
        generate({"type": "string", "pattern": r"^(?=.*\d)(?=.*[A-Z]).{8}$"}, source=SOURCE)
