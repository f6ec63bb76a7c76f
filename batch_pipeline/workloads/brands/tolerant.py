"""What a model answered, put into the form that was asked for; nothing that it said is invented.

What belongs here: readers of single values and the walk over a model's fields. What does not: the
models (models.py), their spellings (words/).

An answer that is nearly right is not worth another call: a text where a list was asked for, null, a
number as text, another word for a fixed one. What cannot be read, or was not asked for, is set
aside under its path, so that it can be counted and looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from batch_pipeline.workloads.brands.text import comparable, latin_digits, line, paragraphs

_WORDS = Path(__file__).parent / "words"

Aside = dict[str, Any]
"""Path in the answer, such as `competitors.0.logo` -> what stood there."""

_SENTENCE_MARKS = re.compile(r"\n+|\s*[;؛|•]\s*")
# Nike, Inc. is one name
_NAME_MARKS = re.compile(
    r"\n+|\s*[;؛|•]\s*|،\s*|,\s+(?!(?:inc|ltd|llc|co|corp|plc|sa|ag|gmbh)\b)", re.IGNORECASE
)
_BULLET = re.compile(r"^\s*(?:[-*•–—▪]\s+|\(?\d{1,2}[.)]\s+)+")
_CHOICE_MARKS = re.compile(r"\s*(?:[/,;،؛|+&]|\band\b|\bor\b|\s+و\s+)\s*", re.I)
_NEGATIONS = frozenset({"not", "non", "no", "غیر", "نیست", "بدون"})
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w)|-?\d+(?:\.\d+)?")
_TEXT_KEYS = ("name", "text", "value", "title", "name_fa", "name_en", "description", "summary")
_WORD_GAPS = re.compile(r"[\s_\-\u200c./]+")
_CHOICE_WORDS = 4
_MOST_ITEMS = 1_000_000_000


class Part(BaseModel):
    """An object inside an answer: strict, closed, all its fields required.

    Attributes:
        other_names: keys that models write -> the field they mean.
        named_by: the field that a bare text stands for; an entry of a list without it says
            nothing. Empty: the object has no name.
        told_in: the field that a text under a name stands for, as in `{"Nike": "same buyers"}`.
        counted_in: the field that a number under a name stands for, as in `{"TV": "40 %"}`.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    other_names: ClassVar[Mapping[str, str]] = {}
    named_by: ClassVar[str] = ""
    told_in: ClassVar[str] = ""
    counted_in: ClassVar[str] = ""


def names_a_field(part: type[Part], given: Mapping[Any, Any]) -> bool:
    """Whether an object says anything that `part` asks for, be it that a list is empty."""
    return any(value is not None and _field_of(part, str(key)) for key, value in given.items())


Reading = Callable[[Any, str, Aside], Any]


@dataclass(frozen=True)
class Reads:
    """Says in a field's annotation how its value is read."""

    reader: Reading


def read_part(
    part: type[Part], given: Mapping[Any, Any], path: str, aside: Aside
) -> dict[str, Any]:
    """An object with exactly the fields of `part`."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = _field_of(part, str(key))
        if name and name not in found:
            found[name] = value
        else:
            _put_aside(aside, _join(path, str(key)), value)
    return {
        name: _read_field(field, found.get(name), _join(path, name), aside)
        for name, field in part.model_fields.items()
        if name != "set_aside"
    }


def read_line(value: Any, path: str, aside: Aside) -> str:
    """One line of text; empty where nothing is known."""
    return _text(value, path, aside, line, "، ")


def read_prose(value: Any, path: str, aside: Aside) -> str:
    """One or more paragraphs; empty where nothing is known."""
    return _text(value, path, aside, paragraphs, "\n\n")


def read_names(value: Any, path: str, aside: Aside) -> list[str]:
    """Names, each once; a text is split at commas as well."""
    return _texts(value, path, aside, _NAME_MARKS)


def read_sentences(value: Any, path: str, aside: Aside) -> list[str]:
    """Sentences or phrases, each once; a text is split at line ends and semicolons."""
    return _texts(value, path, aside, _SENTENCE_MARKS)


def number_between(least: float, most: float) -> Reading:
    """A reader of numbers, also as text: `51 %`, `۵۱٪`, `about 1,200`."""

    def read(value: Any, path: str, aside: Aside) -> float | None:
        number = _number(value)
        if number is not None and least <= number <= most:
            return number
        if not _says_nothing(value):
            _put_aside(aside, path, value)
        return None

    return read


def read_count(value: Any, path: str, aside: Aside) -> int | None:
    """A count, also as text; None where it is not known."""
    number = number_between(0, _MOST_ITEMS)(value, path, aside)
    if number is None or number == int(number):
        return None if number is None else int(number)
    _put_aside(aside, path, value)
    return None


def read_isic(value: Any, path: str, aside: Aside) -> str:
    """A code of ISIC: a section letter, digits or both, such as `C1071`."""
    text = re.sub(r"[\s.]+", "", latin_digits(read_line(value, path, aside))).upper()
    text = text.removeprefix("ISIC").lstrip(":")
    if not text or re.fullmatch(r"[A-U]?\d{1,4}|[A-U]", text):
        return text
    _put_aside(aside, path, value)
    return ""


def choice(name: str, otherwise: str, several: str = "") -> Reading:
    """A reader of fixed words.

    Args:
        name: the table in words/choices.yaml.
        otherwise: what is not said, or cannot be read.
        several: what it comes to when different words are named; empty: the first one, and what
            was said is set aside.
    """

    def read(value: Any, path: str, aside: Aside) -> str:
        if _says_nothing(value):
            return otherwise
        if isinstance(value, Mapping):
            value = next((value[key] for key in _TEXT_KEYS if value.get(key)), value)
        if isinstance(value, bool):
            value = str(value).lower()
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            _put_aside(aside, path, value)
            return otherwise
        found = list(dict.fromkeys(hit for text in texts for hit in _hits(name, text)))
        if len(found) == 1:
            return found[0]
        if found and several:
            return several
        _put_aside(aside, path, value)
        return found[0] if found else otherwise

    return read


@cache
def spellings(name: str) -> Mapping[str, str]:
    """Every spelling of a table of fixed words, folded -> the word."""
    table = yaml.safe_load((_WORDS / "choices.yaml").read_text("utf-8"))[name]
    return {
        _folded(spelling): word for word, others in table.items() for spelling in (word, *others)
    }


@cache
def _placeholders() -> frozenset[str]:
    words = yaml.safe_load((_WORDS / "placeholders.yaml").read_text("utf-8"))
    return frozenset(comparable(word).rstrip(".") for word in words)


def _hits(name: str, text: str) -> list[str]:
    """The fixed words that a text names, in its order."""
    table = spellings(name)
    if whole := table.get(_folded(text)):
        return [whole]
    parts = [part for part in _CHOICE_MARKS.split(text) if part]
    known = [table[folded] for part in parts if (folded := _folded(part)) in table]
    if known:
        return known
    words = [comparable(word).strip("()[]\"'«».:") for word in _WORD_GAPS.split(text)]
    words = [word for word in words if word]
    if len(words) > _CHOICE_WORDS or _NEGATIONS & set(words):
        return []
    return [table[word] for word in words if word in table]


def _folded(text: str) -> str:
    return _WORD_GAPS.sub("", comparable(text)).strip("()[]\"'«»:")


def _field_of(part: type[Part], key: str) -> str:
    """The field that a key means, or empty."""
    if key in part.model_fields:
        return key
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.strip())
    name = re.sub(r"[\s\-]+", "_", snake).lower()
    name = part.other_names.get(name, name)
    return name if name in part.model_fields and name != "set_aside" else ""


def _read_field(field: FieldInfo, value: Any, path: str, aside: Aside) -> Any:
    for mark in field.metadata:
        if isinstance(mark, Reads):
            return mark.reader(value, path, aside)
    kind = field.annotation
    if get_origin(kind) is list:
        return _read_list(get_args(kind)[0], value, path, aside)
    if isinstance(kind, type) and issubclass(kind, Part):
        return read_part(kind, _one(kind, value, path, aside), path, aside)
    raise TypeError(f"{path} does not say how it is read")  # a mistake in models.py


def _one(part: type[Part], value: Any, path: str, aside: Aside) -> Mapping[Any, Any]:
    """A value as one object of `part`."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str) and part.named_by:
        return {part.named_by: value}
    if not _says_nothing(value):
        _put_aside(aside, path, value)
    return {}


def _read_list(part: type[Part], value: Any, path: str, aside: Aside) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    seen: set[str] = set()
    for place, given in enumerate(_entries(part, value, path, aside)):
        here = _join(path, str(place))
        if _says_nothing(given):
            continue
        entry = read_part(part, _one(part, given, here, aside), here, aside)
        name = comparable(entry[part.named_by])
        if not name:
            # what was read of it is not in the answer, so all of it is set aside
            _put_aside(aside, here, given)
        elif name not in seen:
            seen.add(name)
            entries.append(entry)
    return entries


def _entries(part: type[Part], value: Any, path: str, aside: Aside) -> list[Any]:
    if _says_nothing(value):
        return []
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return [text for text in _split(value, _NAME_MARKS) if text]
    if not isinstance(value, Mapping):
        _put_aside(aside, path, value)
        return []
    if any(_field_of(part, str(key)) == part.named_by for key in value):
        return [value]
    entries: list[Any] = []
    for name, told in value.items():
        if isinstance(told, Mapping):
            entries.append({part.named_by: name, **told})
        elif isinstance(told, list):
            entries += told  # grouped, as in {"direct": [...], "indirect": [...]}
        else:
            counted = part.counted_in if _is_number(told) else ""
            entries.append({part.named_by: name, counted or part.told_in or "value": told})
    return entries


def _text(value: Any, path: str, aside: Aside, tidy: Callable[[str], str], joint: str) -> str:
    if isinstance(value, str):
        text = tidy(value)
        return "" if _is_placeholder(text) else text
    if isinstance(value, bool) or value is None:
        if value is not None:
            _put_aside(aside, path, value)
        return ""
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        texts = [_text(one, _join(path, str(n)), aside, tidy, joint) for n, one in enumerate(value)]
        return tidy(joint.join(text for text in texts if text))
    if isinstance(value, Mapping):
        key = next((key for key in _TEXT_KEYS if isinstance(value.get(key), str)), None)
        for other, what in value.items():
            if other != key:
                _put_aside(aside, _join(path, str(other)), what)
        return "" if key is None else _text(value[key], path, aside, tidy, joint)
    _put_aside(aside, path, value)
    return ""


def _texts(value: Any, path: str, aside: Aside, marks: re.Pattern[str]) -> list[str]:
    if isinstance(value, Mapping) and not any(key in value for key in _TEXT_KEYS):
        # {"young people": "why", ...} or {"primary": [...], "secondary": [...]}
        told = all(isinstance(one, str) for one in value.values())
        value = [f"{key}: {one}" for key, one in value.items()] if told else [*value.values()]
    if isinstance(value, str):
        given: list[Any] = _split(value, marks)
    elif isinstance(value, list):
        given = []
        for one in value:
            given += one if isinstance(one, list) else [one]
    else:
        given = [value]
    found: dict[str, str] = {}
    for place, one in enumerate(given):
        text = _BULLET.sub("", read_line(one, _join(path, str(place)), aside))
        if not _is_placeholder(text):
            found.setdefault(comparable(text), text)
    return list(found.values())


def _split(text: str, marks: re.Pattern[str]) -> list[str]:
    return [_BULLET.sub("", line(part)) for part in marks.split(text.replace("\r", "\n"))]


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    if not isinstance(value, str):
        return None
    found = _NUMBER.findall(latin_digits(value))
    # two numbers are a range or a date: which of them is meant is not for us to guess
    return float(found[0].replace(",", "")) if len(found) == 1 else None


def _is_number(value: Any) -> bool:
    """Whether a value is a number and nothing else, be it written as text."""
    if isinstance(value, str):
        return _number(value) is not None and not re.search(r"[^\W\d_]", value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_placeholder(text: str) -> bool:
    return comparable(text).rstrip(".") in _placeholders() or not text


def _says_nothing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, str) and _is_placeholder(line(value)))
        or (isinstance(value, list | Mapping) and not value)
    )


def _put_aside(aside: Aside, path: str, value: Any) -> None:
    if not _says_nothing(value):
        aside[path] = value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
