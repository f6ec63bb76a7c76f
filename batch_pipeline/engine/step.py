"""What a workload tells the engine about one LLM task, and nothing of how the engine runs it.

What belongs here: the Step and its text forms (prompt, schemas). What does not: rows' domain
rules (workloads/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
from pydantic import BaseModel

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One LLM task of a workload.

    Attributes:
        name: unique within the workload; part of the cache key.
        system_prompt: the whole system prompt (prompt.md).
        output_model: strict model of one item's answer; it must not have a field named `id`.
        content: gives, for a row, what the prompt really uses of it, as JSON-serializable values.
            The cache key hashes this and nothing else of the row. A step after the first one sees
            the answers of the steps before it in the row as well, each under its step's name.
        items_name: key of the array of items in the user message, for example `topics`.
        max_items: items per request at most; 1 sends rows one by one.
        max_input_tokens: bound on the estimated tokens of the items of one request.
        output_tokens_per_item: generous bound on one item's answer in tokens; a request's output
            bound is this times its items plus `output_tokens_base`.
        output_tokens_base: see `output_tokens_per_item`.
        timeout_s: seconds until a call counts as timed out.
        temperature: sampling temperature, or None for the provider's default.
        content_tries: how often an item is asked, at most, while its answers cannot be used.
    """

    name: str
    system_prompt: str
    output_model: type[BaseModel]
    content: Callable[[Row], dict[str, Any]]
    items_name: str = "items"
    max_items: int = 1
    max_input_tokens: int = 30_000
    output_tokens_per_item: int = 200
    output_tokens_base: int = 200
    timeout_s: float = 60.0
    temperature: float | None = None
    content_tries: int = 6

    @cached_property
    def item_schema(self) -> dict[str, Any]:
        """JSON Schema of one item's answer."""
        return self.output_model.model_json_schema()

    @cached_property
    def request_schema(self) -> dict[str, Any]:
        """JSON Schema of a packed answer: `{"results": [{"id": ..., <the item's fields>}]}`."""
        item = dict(self.item_schema)
        definitions = item.pop("$defs", None)
        item["properties"] = {
            "id": {"type": "string", "description": "id of the item this answers, copied exactly"},
            **item.get("properties", {}),
        }
        item["required"] = ["id", *item.get("required", [])]
        item["additionalProperties"] = False
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {"results": {"type": "array", "items": item}},
            "required": ["results"],
            "additionalProperties": False,
        }
        if definitions:
            schema["$defs"] = definitions
        return schema

    def user_message(self, contents: Sequence[Mapping[str, Any]], note: str = "") -> str:
        """The user message for a pack: `{"<items_name>": [{"id": "0", ...}, ...]}`.

        Ids are ordinals local to the pack, so that users' ids never travel and never split the
        cache.

        Args:
            contents: each item's content, in pack order.
            note: what was wrong with an earlier answer, for a re-ask; empty otherwise.
        """
        items = [{"id": str(i), **content} for i, content in enumerate(contents)]
        body: dict[str, Any] = {self.items_name: items}
        if note:
            body["note"] = note
        return orjson.dumps(body).decode()
