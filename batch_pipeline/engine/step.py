"""What a workload tells the engine about the tasks of a row, and nothing of how they are run.

What belongs here: Step (an LLM task) and its text forms (prompt, schemas), LocalStep (a task of our
own: fetching, searching, checking). What does not: rows' domain rules (workloads/), running steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
from pydantic import BaseModel

from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.providers.base import WebSearch

Row = Mapping[str, Any]

CITATIONS = "citations"
"""Beside the model's fields, in what a step gives that searches the web."""


def always(row: Row) -> bool:
    """Every row takes the step."""
    return True


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
        applies: whether a row takes the step. It is also called before the earlier steps of a row
            have answered, to see what lies ahead: it then says whether the row may come to take
            the step.
        by_run_route: rows are asked with the run's route even where they name their own, so that
            they share answers whatever theirs is.
        optional: a row that gets no answer goes on all the same; later steps see None under the
            step's name.
        typical_tokens: prompt and answer tokens of a usual row, for estimates: the content of a
            later step is not known before the earlier ones have answered. None: from the content.
        shared_by: for estimates as well: rows for which it gives the same JSON value are taken to
            ask the same, as long as the content is not known. None: the whole row.
        expected_share: for estimates as well: of the rows that may come to take the step, by
            earlier answers, the share that usually does.
        web_search: how the model may search the web; None: not at all. What it found stands in the
            answer as `citations`, a list of `{"title", "url"}`. Rows go one by one.

    Raises:
        ValueError: rows that search the web are packed, or their answer has a field `citations`.
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
    applies: Callable[[Row], bool] = always
    by_run_route: bool = False
    optional: bool = False
    typical_tokens: tuple[int, int] | None = None
    shared_by: Callable[[Row], Any] | None = None
    expected_share: float = 1.0
    web_search: WebSearch | None = None

    def __post_init__(self) -> None:
        if self.web_search is None:
            return
        if self.max_items != 1:
            # citations are the reply's: nobody could tell whose they are
            raise ValueError(f"the step {self.name} searches the web, so max_items must be 1")
        if CITATIONS in self.output_model.model_fields:
            raise ValueError(
                f"the step {self.name} searches the web, so its answer has `{CITATIONS}` of its "
                "own: name the model's field otherwise"
            )

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


@dataclass(frozen=True, slots=True)
class Done:
    """What a local step gave for a row.

    Attributes:
        output: JSON object, kept in the ledger (documents); later steps see it under the step's
            name.
        outcome: SUCCEEDED lets the row go on (after its last step: it has succeeded); any other
            ends it as that.
        kind: for a row that ends: its `error_kind`, such as `preflight` or `qc`.
        message: for a row that ends: why, and the next step, in plain words.
        ask_anew: for a row that ends as FAILED or BLOCKED: the models' answers and the documents
            that led here are not used again when it is retried; what searches have found is.
        keep: with `ask_anew`: steps whose answers and documents are used again all the same.
    """

    output: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome = Outcome.SUCCEEDED
    kind: str = ""
    message: str = ""
    ask_anew: bool = False
    keep: Sequence[str] = ()


LocalWork = Callable[[Row, Place], Awaitable[Done]]
"""Does a local step for one row. What it raises ends the row as failed: expected trouble is told
as a Done. A SearchUnavailableError that it lets pass leaves the row pending, as a bad model key
does. It is called again after a crash, and for a retried row."""

OpenWork = Callable[[Tools], AbstractAsyncContextManager[LocalWork]]
"""Opens what a local step needs, gives its work, and closes it again."""


def with_tools(work: Callable[[Row, Place, Tools], Awaitable[Done]]) -> OpenWork:
    """For a local step that needs nothing opened besides the run's tools."""
    return lambda tools: nullcontext(lambda row, place: work(row, place, tools))


def in_thread(work: Callable[[Row, Place, Tools], Done]) -> OpenWork:
    """The same for work that computes: on a thread, for it would hold up the calls in flight."""
    return with_tools(lambda row, place, tools: asyncio.to_thread(work, row, place, tools))


@dataclass(frozen=True)
class LocalStep:
    """A task of a row that asks no model: fetching, searching, composing, checking.

    Attributes:
        name: unique within the workload.
        open: called once in a run, on the engine's event loop, when the first row gets there; what
            it opens is closed when the run ends.
        applies: as of Step.
        checkpoint: a row whose document of this step is there goes on behind it: later steps need
            nothing from before it. Not where the document is older than the row's `fresh_after`
            and the step is not kept, unless a person edited it.
        at_once: rows that are at work at the same time.
        searches: search calls of a usual row by provider, for estimates. A step that has any waits
            for the models to want more rows.
        searching: whether a row searches at all, by the row's own columns; for estimates.
    """

    name: str
    open: OpenWork
    applies: Callable[[Row], bool] = always
    checkpoint: bool = False
    at_once: int = 16
    searches: Mapping[str, float] = field(default_factory=dict)
    searching: Callable[[Row], bool] = always


@dataclass(frozen=True)
class Branches:
    """LLM steps that a row takes side by side; it goes on when each has ended.

    Attributes:
        name: unique within the workload.
        steps: each optional, so that a branch without an answer ends nothing: what follows decides
            whether enough have answered. They do not see each other's answers.

    Raises:
        ValueError: a branch is not optional.
    """

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if needed := [step.name for step in self.steps if not step.optional]:
            raise ValueError(f"branches must be optional, and {', '.join(needed)} is not")

    def of(self, row: Row) -> list[Step]:
        """The branches that a row takes."""
        return [step for step in self.steps if step.applies(row)]

    def applies(self, row: Row) -> bool:
        """Whether a row takes any of them."""
        return any(step.applies(row) for step in self.steps)


AnyStep = Step | LocalStep | Branches


def single_steps(steps: Sequence[AnyStep]) -> list[Step | LocalStep]:
    """All steps in order, branches one after the other."""
    found: list[Step | LocalStep] = []
    for step in steps:
        found.extend(step.steps if isinstance(step, Branches) else [step])
    return found


def llm_steps(steps: Sequence[AnyStep]) -> list[Step]:
    """Those that ask a model, in order, branches one after the other."""
    return [step for step in single_steps(steps) if isinstance(step, Step)]
