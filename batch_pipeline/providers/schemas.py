"""Output schemas as each provider wants them: the same rewriting that its official SDK does.

What belongs here: pure JSON Schema rewriting. The contract tests hold each rule against the SDK.
The SDKs are not imported: they cost a second of start-up, and in one of them the rule is private.
"""

from __future__ import annotations

from typing import Any

from batch_pipeline.errors import UsageError

_NEXT_STEP = "Give each part of the output model a plain type, enum, list, object or union."

# string formats that Claude's structured outputs enforce; others become a hint in the description
_ANTHROPIC_FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"]
)


def anthropic_schema(schema: dict[str, Any], path: str = "schema") -> dict[str, Any]:
    """`schema` as `anthropic.transform_schema` gives it: closed objects, limits as descriptions.

    Unlike the SDK, `type: [a, b]` is taken and becomes `anyOf`.

    Raises:
        UsageError: a part has no type, or one that Claude's structured outputs do not have.
    """
    rest = dict(_object(schema, path))
    out: dict[str, Any] = {}
    if (defs := rest.pop("$defs", None)) is not None:
        out["$defs"] = {
            name: anthropic_schema(part, f"{path}.$defs.{name}")
            for name, part in _object(defs, f"{path}.$defs").items()
        }
    if (ref := rest.pop("$ref", None)) is not None:
        return {**out, "$ref": ref}

    kind = rest.pop("type", None)
    any_of, one_of = rest.pop("anyOf", None), rest.pop("oneOf", None)
    all_of = rest.pop("allOf", None)
    if isinstance(kind, list):
        any_of = [{**rest, "type": single} for single in kind]
        rest = {key: rest[key] for key in ("description", "title") if key in rest}
        kind = None

    enum = rest.get("enum")
    if isinstance(enum, list) and enum and all(_is_primitive(value) for value in enum):
        out["enum"] = rest.pop("enum")
    if "const" in rest and _is_primitive(rest["const"]):
        out["const"] = rest.pop("const")
    has_literals = "enum" in out or "const" in out
    if has_literals:
        kind = None

    union = any_of if isinstance(any_of, list) else one_of
    if isinstance(union, list):
        out["anyOf"] = [anthropic_schema(part, f"{path}.anyOf.{i}") for i, part in enumerate(union)]
    elif isinstance(all_of, list):
        out["allOf"] = [
            anthropic_schema(part, f"{path}.allOf.{i}") for i, part in enumerate(all_of)
        ]
    elif not has_literals:
        if kind is None:
            raise UsageError(f"The output schema says no type at {path}.", _NEXT_STEP)
        out["type"] = kind

    for key in ("description", "title"):
        if (value := rest.pop(key, None)) is not None:
            out[key] = value

    if kind == "object":
        out["properties"] = {
            name: anthropic_schema(part, f"{path}.{name}")
            for name, part in _object(rest.pop("properties", {}), path).items()
        }
        rest.pop("additionalProperties", None)
        out["additionalProperties"] = False
        if (required := rest.pop("required", None)) is not None:
            out["required"] = required
    elif kind == "string":
        if (form := rest.pop("format", None)) in _ANTHROPIC_FORMATS:
            out["format"] = form
        elif form:
            rest["format"] = form
    elif kind == "array":
        if (items := rest.pop("items", None)) is not None:
            out["items"] = anthropic_schema(items, f"{path}.items")
        if (low := rest.pop("minItems", None)) in (0, 1):
            out["minItems"] = low
        elif low is not None:
            rest["minItems"] = low
    elif kind not in ("boolean", "integer", "number", "null", None):
        raise UsageError(f"The output schema has the unknown type {kind!r} at {path}.", _NEXT_STEP)

    # what the API does not enforce may still guide the model
    if rest:
        hint = "{" + ", ".join(f"{key}: {value}" for key, value in rest.items()) + "}"
        out["description"] = f"{out['description']}\n\n{hint}" if "description" in out else hint
    return out


def openai_strict_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` as the openai SDK sends it with `strict: true`: closed objects, all keys required.

    Changes `schema` in place and returns it: pass a copy.

    Raises:
        UsageError: a part is no schema, a `$ref` leads nowhere, or an annotated one is recursive.
    """
    try:
        return _strict(schema, schema, "schema")
    except RecursionError:
        raise UsageError(
            "The output schema has a recursive $ref with a description or default beside it.",
            "Remove what stands beside the $ref: OpenAI takes it alone or written out.",
        ) from None


def _strict(value: Any, root: dict[str, Any], path: str) -> dict[str, Any]:
    node: dict[str, Any] = _object(value, path)
    for group in ("$defs", "definitions"):
        if isinstance(node.get(group), dict):
            for name, part in node[group].items():
                _strict(part, root, f"{path}.{group}.{name}")
    if node.get("type") == "object" and "additionalProperties" not in node:
        node["additionalProperties"] = False
    if isinstance(properties := node.get("properties"), dict):
        node["required"] = list(properties)
        node["properties"] = {
            name: _strict(part, root, f"{path}.{name}") for name, part in properties.items()
        }
    if isinstance(items := node.get("items"), dict):
        node["items"] = _strict(items, root, f"{path}.items")
    if isinstance(any_of := node.get("anyOf"), list):
        node["anyOf"] = [_strict(part, root, f"{path}.anyOf.{i}") for i, part in enumerate(any_of)]
    if isinstance(all_of := node.get("allOf"), list):
        if len(all_of) == 1:
            node.update(_strict(all_of[0], root, f"{path}.allOf.0"))
            node.pop("allOf")
        else:
            node["allOf"] = [
                _strict(part, root, f"{path}.allOf.{i}") for i, part in enumerate(all_of)
            ]
    if "default" in node and node["default"] is None:
        node.pop("default")
    ref = node.get("$ref")
    if ref and len(node) > 1:
        # strict mode takes a $ref only alone: write it out, with what stood beside it winning
        node.update({**_resolve(root, ref, path), **node})
        node.pop("$ref")
        node = _strict(node, root, path)
    return node


def _resolve(root: dict[str, Any], ref: Any, path: str) -> dict[str, Any]:
    target: Any = root if isinstance(ref, str) and ref.startswith("#/") else None
    for key in str(ref)[2:].split("/"):
        target = target.get(key) if isinstance(target, dict) else None
    if target is None:
        raise UsageError(f"The output schema's $ref {ref!r} at {path} leads nowhere.", _NEXT_STEP)
    return _object(target, path)


def _object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"The output schema is no JSON object at {path}.", _NEXT_STEP)
    return value


def _is_primitive(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
