"""Reading a packed answer: which items were answered, and what is wrong with the others.

Pure. What belongs here: matching by id and validation. What does not: what to do about a bad
answer (engine.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ValidationError

from batch_pipeline.engine.step import CITATIONS, Step
from batch_pipeline.providers.base import Finish, Reply


@dataclass(slots=True)
class Answers:
    """What a reply says about the items of its pack.

    Attributes:
        valid: position in the pack -> validated output.
        problems: position in the pack -> what was wrong with its answer, in words.
        failure: why the reply as a whole is of no use (then every item has a problem); empty
            otherwise.
        refused: whether it is of no use because the model declined.
        cut: whether it ended at the output bound.
        unknown_ids: ids in the reply that nobody asked for.
    """

    valid: dict[int, dict[str, Any]] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    failure: str = ""
    refused: bool = False
    cut: bool = False
    unknown_ids: list[str] = field(default_factory=list)


def read_answers(step: Step, count: int, reply: Reply) -> Answers:
    """Match and validate a reply to a pack of `count` items.

    Nothing is guessed: an item without exactly one usable answer has a problem. Two answers for one
    id are used only if they are equal.
    """
    answers = Answers(cut=reply.finish is Finish.LENGTH)
    if reply.finish is Finish.REFUSAL:
        answers.refused = True
        return _useless(answers, count, f"the model declined: {reply.refusal or 'no reason given'}")
    try:
        parsed = orjson.loads(reply.text)
    except orjson.JSONDecodeError as error:
        if answers.cut:
            return _useless(answers, count, "the answer was cut at the output bound")
        return _useless(answers, count, f"the answer is not JSON: {error}")
    results = parsed.get("results") if isinstance(parsed, dict) else None
    if not isinstance(results, list):
        return _useless(answers, count, "the answer has no list `results`")

    found: dict[int, list[dict[str, Any]]] = {}
    for entry in results:
        ordinal = _ordinal(entry, count)
        if ordinal is None:
            shown = entry.get("id") if isinstance(entry, dict) else entry
            answers.unknown_ids.append(str(shown)[:40])
        else:
            found.setdefault(ordinal, []).append({k: v for k, v in entry.items() if k != "id"})
    for ordinal in range(count):
        given = found.get(ordinal, [])
        if not given:
            answers.problems[ordinal] = f"no answer with id {ordinal}"
        elif any(other != given[0] for other in given[1:]):
            answers.problems[ordinal] = f"{len(given)} different answers with id {ordinal}"
        else:
            try:
                output = step.output_model.model_validate(given[0])
            except ValidationError as error:
                answers.problems[ordinal] = describe(error)
            else:
                answers.valid[ordinal] = output.model_dump(mode="json")
    if step.web_search is not None:
        for answer in answers.valid.values():
            answer[CITATIONS] = _cited(reply)
    return answers


def is_valid(step: Step, output: dict[str, Any]) -> bool:
    """Whether the step's output model accepts a stored answer."""
    if step.web_search is not None:
        output = {name: value for name, value in output.items() if name != CITATIONS}
    try:
        step.output_model.model_validate(output)
    except ValidationError:
        return False
    return True


def describe(error: ValidationError) -> str:
    """A validation error in one line: field and what is wrong with it."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'answer'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False)[:5]
    )


def _cited(reply: Reply) -> list[dict[str, str]]:
    """The pages that a reply rests on, each once."""
    pages = {page.url: page for page in reversed(reply.citations)}
    return [{"title": page.title, "url": page.url} for page in reversed(pages.values())]


def _ordinal(entry: Any, count: int) -> int | None:
    if not isinstance(entry, dict):
        return None
    given = entry.get("id")
    # An integer is a harmless slip of the model; what is otherwise not an id as sent is nobody's.
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str) or not given.isascii() or not given.isdigit():
        return None
    # The length first: Python refuses to read a number of thousands of digits.
    if len(given) > len(str(count)) or str(int(given)) != given:
        return None
    return int(given) if int(given) < count else None


def _useless(answers: Answers, count: int, failure: str) -> Answers:
    answers.failure = failure
    answers.problems = dict.fromkeys(range(count), failure)
    return answers
