"""Makes an answer that a JSON Schema accepts and that quotes the input, deterministically.

What does not live here: finding the items in a request (`items`), breaking answers (`answers`) and
writing what some schemas ask for: articles (`prose`), cards, votes, brands (`writers`).
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from batch_pipeline.simulator.draws import draw, pick
from batch_pipeline.simulator.items import Item
from batch_pipeline.simulator.prose import Brief, Plan, write_article, write_outline
from batch_pipeline.simulator.writers import PLAIN, Asked, Background, writer_for

Schema = dict[str, Any]

QUOTE_WORDS = 8
_FEWEST_WORDS = 3
_END_PUNCTUATION = ".,;:!?…-\u2013\u2014\"'\u201c\u201d\u2018\u2019()[]{}<>*#|`"
_MAX_DEPTH = 8
_UNIQUE_TRIES = 200
# What Anthropic's SDK moves into the description because the API does not enforce it:
# "{maximum: 10, minimum: 0}".
_HINTS = re.compile(r"\{([^{}]*)\}\s*$")
_HINT = re.compile(
    r"(minimum|maximum|exclusiveMinimum|exclusiveMaximum|multipleOf|minLength|maxLength"
    r"|minItems|maxItems): (-?\d+(?:\.\d+)?)"
)
_SNAKE_KEYWORDS = {
    "any_of": "anyOf",
    "one_of": "oneOf",
    "all_of": "allOf",
    "min_items": "minItems",
    "max_items": "maxItems",
    "min_length": "minLength",
    "max_length": "maxLength",
    "min_properties": "minProperties",
    "max_properties": "maxProperties",
    "prefix_items": "prefixItems",
    "additional_properties": "additionalProperties",
    "defs": "$defs",
    "ref": "$ref",
}
_COUNTS = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
)
_MAPS = frozenset({"properties", "$defs", "definitions", "patternProperties"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
# A text of such a schema cannot be any text.
_FIXED = frozenset({"const", "enum", "pattern", "format", "anyOf", "oneOf"})
_ONES = frozenset({"items", "additionalProperties", "contains", "not"})


def from_openapi(schema: Any) -> Any:
    """Translate Gemini's `responseSchema` (upper-case types, `nullable`) to JSON Schema."""
    if not isinstance(schema, dict):
        return schema
    result: Schema = {}
    for raw_key, value in schema.items():
        key = _SNAKE_KEYWORDS.get(str(raw_key), str(raw_key))
        if key == "type" and isinstance(value, str):
            value = value.lower()
        elif key in _COUNTS:
            # Proto JSON writes int64 as a string.
            value = int(value)
        elif key in _MAPS:
            value = {name: from_openapi(child) for name, child in value.items()}
        elif key in _LISTS:
            value = [from_openapi(child) for child in value]
        elif key in _ONES:
            value = from_openapi(value)
        elif key == "format" and value == "enum":
            continue
        result[key] = value
    if result.pop("nullable", False) and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
        if "enum" in result:
            result["enum"] = [*result["enum"], None]
    return result


@dataclass(frozen=True)
class Source:
    """What an answer is about: the words it quotes and the content that its choices depend on.

    Attributes:
        content: the item's fields, which what is written goes by.
        salt: of what is written from them; `content_sha` has it in it.
    """

    words: Sequence[str]
    content_sha: str
    content: Mapping[str, Any] = field(default_factory=dict)
    salt: str = ""


@dataclass
class Generated:
    """An answer, and where its packed items are.

    Attributes:
        value: the answer; `elements` is the very list inside it, so a change there shows here.
        elements: one per item, or None when the answer has no array for them.
        element_schema: what one element must satisfy.
        background: what it depends on beside the request's own text.
        written: kinds of what was written from the content of items: `article`, or of `writers`.
    """

    value: Any
    elements: list[Any] | None = None
    element_schema: Schema = field(default_factory=dict)
    background: Background = PLAIN
    written: set[str] = field(default_factory=set)


def generate(
    schema: Any,
    *,
    source: Source,
    items: Sequence[Item] = (),
    background: Background = PLAIN,
) -> Generated:
    """Make the answer to a request.

    Args:
        schema: a JSON Schema (see `from_openapi` for Gemini's own dialect).
        source: the whole request, for all that belongs to no item.
        items: the packed items; the first array of objects with `id` gets one element for each.
        background: what the answer depends on beside the request's own text.
    """
    generator = _Generator(schema, items, background)
    generated = Generated(generator.value(schema, source, "$", 0), background=background)
    generated.elements = generator.elements
    generated.element_schema = generator.element_schema
    generated.written = generator.written
    return generated


def generate_element(
    root: Any,
    element_schema: Schema,
    item: Item,
    salt: str = "",
    flaws: Collection[str] = (),
    background: Background = PLAIN,
) -> Any:
    """Make one element of a packed answer; another salt gives other content.

    Args:
        root: the whole schema.
        element_schema: the element's part of it.
        item: what it is about.
        salt: of every choice.
        flaws: of what is written in it, see `write_article` and `writers`.
        background: as it was for the whole answer.
    """
    source = Source(item.words, item.content_sha + salt, item.content, salt)
    return _Generator(root, (), background, flaws).element(element_schema, item, source)


def resolve(root: Any, schema: Any) -> Schema:
    """Follow `$ref` and merge `allOf`; True and {} both mean "anything"."""
    for _ in range(_MAX_DEPTH * 2):
        if not isinstance(schema, dict):
            return {}
        if "$ref" in schema:
            schema = {**_at(root, schema["$ref"]), **_without(schema, "$ref")}
        elif schema.get("allOf"):
            schema = _merged(root, schema)
        else:
            return schema
    return _without(schema, "$ref", "allOf")


def quote(words: Sequence[str], start: int) -> str:
    """Quote at most eight words, without punctuation at the ends."""
    window = " ".join(words[start : start + QUOTE_WORDS])
    return window.strip(_END_PUNCTUATION + " ") or "text"


def _at(root: Any, pointer: str) -> Schema:
    node = root
    for part in pointer.removeprefix("#").split("/"):
        if part and isinstance(node, dict):
            node = node.get(part.replace("~1", "/").replace("~0", "~"), {})
    return node if isinstance(node, dict) else {}


def _without(schema: Schema, *keys: str) -> Schema:
    return {k: v for k, v in schema.items() if k not in keys}


def _merged(root: Any, schema: Schema) -> Schema:
    merged = _without(schema, "allOf")
    for part in schema["allOf"]:
        part = resolve(root, part)
        for key, value in part.items():
            if key == "properties":
                merged[key] = {**value, **merged.get(key, {})}
            elif key == "required":
                merged[key] = list(dict.fromkeys([*merged.get(key, []), *value]))
            else:
                merged.setdefault(key, value)
    return merged


def _with_hints(schema: Schema) -> Schema:
    description = schema.get("description")
    hints = _HINTS.search(description) if isinstance(description, str) else None
    if not hints:
        return schema
    found: Schema = {}
    for key, number in _HINT.findall(hints[1]):
        found[key] = int(float(number)) if key in _COUNTS else float(number)
    return {**found, **schema}


def _type_of(schema: Schema) -> str:
    declared = schema.get("type")
    if isinstance(declared, list):
        return next((t for t in declared if t != "null"), "null")
    if isinstance(declared, str):
        return declared
    if "properties" in schema or "additionalProperties" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    if schema.keys() & {"minimum", "maximum", "multipleOf"}:
        return "number"
    return "string"


class _Generator:
    def __init__(
        self,
        root: Any,
        items: Sequence[Item],
        background: Background,
        flaws: Collection[str] = (),
    ) -> None:
        self._root = root
        self._items = items
        self._background = background
        self._flaws = flaws
        self.written: set[str] = set()
        self.elements: list[Any] | None = None
        self.element_schema: Schema = {}

    def value(self, schema: Any, source: Source, path: str, depth: int) -> Any:
        schema = _with_hints(resolve(self._root, schema))
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            choices = [c for c in schema["enum"] if c is not None] or [None]
            # A field of the item that is one of the words, and nothing else, proposes it.
            choices = [c for c in choices if c in source.content.values()] or choices
            return choices[pick(len(choices), source.content_sha, path)]
        for keyword in ("anyOf", "oneOf"):
            if schema.get(keyword):
                base = _without(schema, keyword)
                option = self._option(schema[keyword], depth)
                return self.value(
                    {"allOf": [option, base]} if base else option, source, path, depth + 1
                )
        kind = _type_of(schema)
        if kind == "object":
            return self._object(schema, source, path, depth)
        if kind == "array":
            return self._array(schema, source, path, depth)
        if kind == "integer":
            return self._integer(schema, source, path)
        if kind == "number":
            return self._number(schema, source, path)
        if kind == "boolean":
            return draw(source.content_sha, path) < 0.5
        if kind == "null":
            return None
        return _string(schema, source, path)

    def element(self, schema: Any, item: Item, source: Source) -> Any:
        # The path starts anew: equal content gives an equal answer at any place of any pack.
        element = self.value(schema, source, "item", 2)
        if isinstance(element, dict):
            wanted = _type_of(resolve(self._root, resolve(self._root, schema)["properties"]["id"]))
            element["id"] = _as_type(item.id, wanted)
        return element

    def _option(self, options: list[Any], depth: int) -> Any:
        resolved = [(option, resolve(self._root, option)) for option in options]
        nulls = [option for option, r in resolved if r.get("type") == "null"]
        if depth >= _MAX_DEPTH and nulls:
            return nulls[0]
        return next((option for option, r in resolved if r.get("type") != "null"), options[0])

    def _object(self, schema: Schema, source: Source, path: str, depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        written = self._written(properties, source)
        result: dict[str, Any] = {}
        for name, child in properties.items():
            if name in written:
                result[name] = written[name]
            # Recursive schemas end where nothing more is required.
            elif depth < _MAX_DEPTH or name in required:
                result[name] = self.value(child, source, f"{path}.{name}", depth + 1)
        for name in required:
            if name not in result:
                result[name] = quote(source.words, 0)
        extra = schema.get("additionalProperties")
        wanted = max(
            schema.get("minProperties", 0), 1 if isinstance(extra, dict) and not properties else 0
        )
        for n in range(wanted - len(result)):
            child = extra if isinstance(extra, dict) else {}
            result[f"key_{n}"] = self.value(child, source, f"{path}.key_{n}", depth + 1)
        self._write(result, properties, source)
        return result

    def _written(self, properties: Schema, source: Source) -> dict[str, Any]:
        """The fields that a writer fills from the item's content."""
        writer = writer_for(properties, source.content) if source.content else None
        if writer is None:
            return {}
        fields = {name: self._resolved(properties[name]) for name in writer.fields}
        for name, one in fields.items():
            if "items" in one:
                fields[name] = {**one, "items": self._resolved(one["items"])}
        if not writer.suits(fields):
            return {}
        self.written.add(writer.kind)
        return writer.write(Asked(source.content, self._background, source.salt, self._flaws))

    def _write(self, result: dict[str, Any], properties: Schema, source: Source) -> None:
        """Put an article or an outline where the schema asks for one."""
        if self._is_free(properties.get("markdown")):
            brief = Brief.read(source.content, source.words)
            article = write_article(brief, source.content_sha, self._flaws)
            self._put(result, properties, "markdown", article.markdown)
            self._put(result, properties, "title", article.title)
            self.written.add("article")
        section = self._resolved(self._resolved(properties.get("sections")).get("items"))
        fields = section.get("properties") or {}
        points = self._resolved(fields.get("points"))
        if self._is_free(fields.get("heading")) and self._is_free(points.get("items")):
            brief = Brief.read(source.content, source.words)
            title, planned = write_outline(brief, source.content_sha)
            self._put(result, properties, "title", title)
            schema, made = self._resolved(properties["sections"]), result["sections"]
            result["sections"] = self._sections(schema, fields, points, planned, made)

    def _sections(
        self,
        schema: Schema,
        fields: Schema,
        points: Schema,
        planned: Sequence[Plan],
        made: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Write planned sections over made ones, which have the right form."""
        result = []
        for n in range(_clamped(len(planned), schema)):
            one = dict(made[n % len(made)])
            plan = planned[n % len(planned)]
            self._put(one, fields, "heading", plan.heading)
            one["points"] = [*plan.points, *one["points"]][: _clamped(len(plan.points), points)]
            result.append(one)
        return result

    def _resolved(self, schema: Any) -> Schema:
        return _with_hints(resolve(self._root, schema))

    def _is_free(self, schema: Any) -> bool:
        """Whether a schema takes any text."""
        schema = self._resolved(schema)
        return schema.get("type") == "string" and not schema.keys() & _FIXED

    def _put(self, result: dict[str, Any], fields: Schema, name: str, text: str) -> None:
        if self._is_free(fields.get(name)):
            most = self._resolved(fields[name]).get("maxLength", len(text))
            result[name] = text[: int(most)]

    def _array(self, schema: Schema, source: Source, path: str, depth: int) -> list[Any]:
        prefix = schema.get("prefixItems") or []
        child = schema.get("items", {})
        most = schema.get("maxItems", math.inf)
        if self._items and self.elements is None and self._has_id(child):
            self.elements = []
            self.element_schema = resolve(self._root, child)
            for item in self._items[: int(min(most, len(self._items)))]:
                about = Source(item.words, item.content_sha, item.content)
                self.elements.append(self.element(child, item, about))
            return self.elements
        least = schema.get("minItems", 0)
        length = max(least, len(prefix))
        if depth < _MAX_DEPTH and child is not False:
            length = max(length, 1 + pick(3, source.content_sha, path, "length"))
        length = int(min(length, max(most, least)))
        result: list[Any] = []
        for n in range(length):
            one = prefix[n] if n < len(prefix) else child
            for attempt in range(_UNIQUE_TRIES):
                salt = f"~{attempt}" if attempt else ""
                value = self.value(one, source, f"{path}[{n}]{salt}", depth + 1)
                # `in` would take 1 and True for the same value, as JSON Schema does not.
                if not schema.get("uniqueItems") or repr(value) not in map(repr, result):
                    result.append(value)
                    break
                if len(result) >= least and attempt > 8:
                    break
        return result

    def _has_id(self, schema: Any) -> bool:
        return "id" in (resolve(self._root, schema).get("properties") or {})

    def _integer(self, schema: Schema, source: Source, path: str) -> int:
        low, high = _bounds(schema, step=1)
        step = schema.get("multipleOf", 1)
        if step != int(step):
            step = 1
        first, last = math.ceil(low / step), math.floor(high / step)
        return int((first + pick(max(1, last - first + 1), source.content_sha, path)) * step)

    def _number(self, schema: Schema, source: Source, path: str) -> float:
        low, high = _bounds(schema, step=0)
        if "multipleOf" in schema:
            step = schema["multipleOf"]
            first, last = math.ceil(low / step), math.floor(high / step)
            chosen = first + pick(max(1, last - first + 1), source.content_sha, path)
            return float(chosen * step)
        exact = low + (high - low) * draw(source.content_sha, path)
        rounded = round(exact, 2)
        inside = low < rounded < high or (
            rounded in (low, high) and not schema.keys() & {"exclusiveMinimum", "exclusiveMaximum"}
        )
        return rounded if inside else (low + high) / 2


def _clamped(length: int, schema: Schema) -> int:
    return int(max(schema.get("minItems", 0), min(length, schema.get("maxItems", length))))


def _bounds(schema: Schema, step: int) -> tuple[float, float]:
    lows = [schema["minimum"]] if "minimum" in schema else []
    highs = [schema["maximum"]] if "maximum" in schema else []
    if "exclusiveMinimum" in schema:
        lows.append(
            math.floor(schema["exclusiveMinimum"]) + 1 if step else schema["exclusiveMinimum"]
        )
    if "exclusiveMaximum" in schema:
        highs.append(
            math.ceil(schema["exclusiveMaximum"]) - 1 if step else schema["exclusiveMaximum"]
        )
    span = 100 * max(1, schema.get("multipleOf", 1))
    if lows and highs:
        return max(lows), min(highs)
    if lows:
        return max(lows), max(lows) + span
    if highs:
        return min(min(highs), 0) if min(highs) >= 0 else min(highs) - span, min(highs)
    return 0, span


def _as_type(value: Any, wanted: str) -> Any:
    if wanted == "string" and not isinstance(value, str):
        return str(value)
    if wanted in ("integer", "number") and isinstance(value, str) and value.isdigit():
        return int(value)
    return value


def _string(schema: Schema, source: Source, path: str) -> str:
    words = source.words or ["text"]
    slug = re.sub(r"[^a-z0-9]+", "-", quote(words, 0).lower()).strip("-")[:40] or "text"
    made = _FORMATS.get(schema.get("format", ""))
    if made:
        return made(slug, pick(2**32, source.content_sha, path))
    # Short texts too must give several quotes, or the strings of one element would all be equal.
    start = pick(max(1, len(words) - _FEWEST_WORDS + 1), source.content_sha, path)
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    text = quote(words, start)
    more = start + QUOTE_WORDS
    while len(text) < least:
        text = f"{text} {quote(words, more % len(words))}"
        more += QUOTE_WORDS
    if len(text) > most:
        text = text[: int(most)].rstrip().ljust(int(least), "x")
    pattern = schema.get("pattern")
    if pattern and not re.search(pattern, text):
        return _matching(pattern, f"{source.content_sha}{path}", int(least))
    return text


_FORMATS: dict[str, Callable[[str, int], str]] = {
    "date": lambda slug, n: (date(2026, 1, 1) + timedelta(days=n % 365)).isoformat(),
    "date-time": lambda slug, n: f"{date(2026, 1, 1) + timedelta(days=n % 365)}T12:00:00Z",
    "time": lambda slug, n: f"{n % 24:02}:{n % 60:02}:00Z",
    "duration": lambda slug, n: f"P{1 + n % 30}D",
    "uri": lambda slug, n: f"https://example.com/{slug}",
    "uri-reference": lambda slug, n: f"/{slug}",
    "email": lambda slug, n: f"{slug}@example.com",
    "hostname": lambda slug, n: f"{slug}.example.com",
    "uuid": lambda slug, n: f"{n:08x}-0000-4000-8000-{n:012x}",
    "ipv4": lambda slug, n: f"192.0.2.{n % 256}",
}


def _matching(pattern: str, seed: str, least: int) -> str:
    """Make a text that a simple pattern accepts; a pattern beyond that is a clear error."""
    parser = importlib.import_module("re._parser")
    for extra in (0, least, 1, 2, 3):
        made = "".join(_walk(parser.parse(pattern), seed, extra))
        if re.search(pattern, made) and len(made) >= least:
            return made
    raise UnsupportedSchemaError(f"the simulator cannot make a text for the pattern {pattern!r}")


class UnsupportedSchemaError(ValueError):
    """A schema that the simulator cannot answer; a provider would say HTTP 400."""


_CLASSES = {
    "CATEGORY_DIGIT": "0123456789",
    "CATEGORY_WORD": "abcdefghijklmnopqrstuvwxyz0123456789_",
    "CATEGORY_SPACE": " ",
    "CATEGORY_NOT_SPACE": "abcdefghijklmnopqrstuvwxyz",
    "CATEGORY_NOT_DIGIT": "abcdefghijklmnopqrstuvwxyz",
    "CATEGORY_NOT_WORD": " -.",
}
_PRINTABLE = "".join(map(chr, range(32, 127)))


def _walk(parsed: Any, seed: str, extra: int) -> list[str]:
    out: list[str] = []
    for n, (op, arg) in enumerate(parsed):
        name, here = str(op), f"{seed}/{n}"
        if name == "LITERAL":
            out.append(chr(arg))
        elif name == "ANY":
            out.append("x")
        elif name == "NOT_LITERAL":
            out.append("x" if arg != ord("x") else "y")
        elif name == "IN":
            out.append(_one_of(arg, here))
        elif name in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, body = arg
            for repeat in range(min(max(low, 1, extra), int(high))):
                out.extend(_walk(body, f"{here}/{repeat}", extra))
        elif name == "SUBPATTERN":
            out.extend(_walk(arg[-1], here, extra))
        elif name == "BRANCH":
            options = arg[1]
            out.extend(_walk(options[pick(len(options), here)], here, extra))
    return out


def _one_of(members: Any, seed: str) -> str:
    chosen: list[str] = []
    negated = False
    for op, arg in members:
        name = str(op)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            chosen.append(chr(arg))
        elif name == "RANGE":
            chosen.extend(map(chr, range(arg[0], min(arg[1], arg[0] + 200) + 1)))
        elif name == "CATEGORY":
            chosen.extend(_CLASSES.get(str(arg), ""))
    pool = [c for c in _PRINTABLE if c not in chosen] if negated else chosen
    return pool[pick(len(pool), seed)] if pool else ""
