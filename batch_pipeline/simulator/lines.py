"""The lines of a batch job's input: where they are, what they ask, and what is wrong with them.

What does not live here: one provider's form of a line (`batch_*`) and the answers (`processing`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from batch_pipeline.simulator import tokens
from batch_pipeline.simulator.wire import Json, RefusedError, Reply, Wire

if TYPE_CHECKING:
    from batch_pipeline.simulator.desk import Desk
    from batch_pipeline.simulator.jobs import Job

_MAX_PROBLEMS = 50
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


@dataclass(frozen=True)
class Asked:
    """One line, as the request that it stands for.

    Attributes:
        path: as `Wire.read` takes it.
    """

    custom_id: str
    endpoint: str
    body: Json
    path: Mapping[str, str]


class LineError(Exception):
    """A line that makes the whole job invalid."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Written:
    """One line of results, and whether it belongs to the file of errors."""

    line: Json
    is_error: bool = False


class LineForm(ABC):
    """How one provider reads and writes the lines of a job."""

    provider: str
    # Anthropic and OpenAI report lines that were cancelled or expired; Gemini drops everything.
    reports_unanswered = True
    # OpenAI refuses a repeated custom_id by looking at the file; Anthropic at the call itself.
    unique_ids = False

    @abstractmethod
    def read(self, about: Json, line: Any, index: int) -> Asked:
        """Read one line of the input.

        Raises:
            LineError: the job cannot be made of such lines.
        """

    @abstractmethod
    def answered(self, job: Job, line: Json, asked: Asked, reply: Reply, name: str) -> Written:
        """Write the result of a line that got a reply; `name` is the reply's request id."""

    @abstractmethod
    def unanswered(self, job: Job, line: Json, asked: Asked, name: str) -> Written:
        """Write the result of a line whose job expired or was cancelled before its turn."""

    @abstractmethod
    def finish(self, desk: Desk, job: Job) -> None:
        """Publish what an ended job leaves behind."""


@dataclass
class Scan:
    """What an input holds.

    Attributes:
        offsets: where each line starts.
        tokens: of the input, per model.
        problems: what makes the job invalid, with `code`, `line` (from 1) and `message`.
    """

    offsets: array[int] = field(default_factory=lambda: array("Q"))
    tokens: Counter[str] = field(default_factory=Counter)
    problems: list[Json] = field(default_factory=list)

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return len(self.offsets)

    @property
    def model(self) -> str:
        """The model that most tokens are for."""
        return self.tokens.most_common(1)[0][0] if self.tokens else ""

    def blame(self, code: str, message: str, line: int | None = None) -> None:
        """Note a problem."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append({"code": code, "line": line, "message": message, "param": None})


def scan(path: Path, wire: Wire, form: LineForm, about: Json, owner: str) -> Scan:
    """Read a whole input once. Takes 0.3 ms per 10 kB, so it belongs in a thread."""
    found = Scan()
    seen: set[str] = set()
    for offset, raw in _raw_lines(path):
        found.offsets.append(offset)
        try:
            asked = form.read(about, orjson.loads(raw), found.lines - 1)
        except orjson.JSONDecodeError:
            message = "This line is not parseable as valid JSON."
            found.blame("invalid_json_line", message, found.lines)
            continue
        except LineError as error:
            found.blame(error.code, error.message, found.lines)
            continue
        if form.unique_ids and asked.custom_id in seen:
            message = f"The custom_id {asked.custom_id!r} is not unique in the file."
            found.blame("duplicate_custom_id", message, found.lines)
        seen.add(asked.custom_id)
        model, size = _size(wire, asked, raw, owner)
        found.tokens[model] += size
    return found


def offsets_of(path: Path) -> array[int]:
    """Return where each line of an input starts."""
    return array("Q", (offset for offset, _ in _raw_lines(path)))


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with path.open("rb") as source:
        for raw in source:
            if raw.strip():
                yield offset, raw
            offset += len(raw)


def _size(wire: Wire, asked: Asked, raw: bytes, owner: str) -> tuple[str, int]:
    try:
        call = wire.read(asked.endpoint, asked.body, owner, asked.path)
    except (RefusedError, AttributeError, TypeError, ValueError, KeyError):
        # It will be an error of its own line; until then it waits like the others.
        model = asked.path.get("model") or asked.body.get("model")
        return str(model or ""), tokens.count(raw.decode("utf-8", "replace"))
    return call.model, call.input_tokens


def elements(text: str, name: str) -> Iterator[Any]:
    """Yield the elements of the array `name` of a JSON object, each parsed by itself.

    A body of 100 MB as one value would take a gigabyte and stop every other thread meanwhile.

    Raises:
        ValueError: the text is no JSON object, or `name` is no array.
    """
    place = _expect(text, 0, "{")
    while text[place] != "}":
        key, place = _DECODER.raw_decode(text, place)
        place = _expect(text, place, ":")
        if key == name:
            place = _expect(text, place, "[")
            while text[place] != "]":
                value, place = _DECODER.raw_decode(text, place)
                yield value
                place = _after(text, place, "]")
            place = _skip(text, place + 1)
        else:
            _, place = _DECODER.raw_decode(text, place)
        place = _after(text, place, "}")


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACE:
        place += 1
    if place == len(text):
        raise ValueError("the JSON text ends too early")
    return place


def _expect(text: str, place: int, mark: str) -> int:
    place = _skip(text, place)
    if text[place] != mark:
        raise ValueError(f"expected {mark!r} at character {place}")
    return _skip(text, place + 1)


def _after(text: str, place: int, closing: str) -> int:
    place = _skip(text, place)
    if text[place] == closing:
        return place
    return _expect(text, place, ",")
