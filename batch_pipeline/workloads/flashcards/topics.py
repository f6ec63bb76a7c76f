"""Topics in: a tree of topic.json, or a table file, as one stream of rows.

What belongs here: columns, paths, filters, what is wrong with a topic. What does not: table formats
(sources/), what models are asked about a topic.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.engine.step import Row
from batch_pipeline.errors import UsageError
from batch_pipeline.sources.files import open_table
from batch_pipeline.sources.table import (
    InputRow,
    InputTable,
    TableSpec,
    checked_rows,
    table_name,
)
from batch_pipeline.workloads.text import cut_at_word, one_line

TOPIC_FILE = "topic.json"
TOPIC_PATH = "topic_path"
"""Column of the item id: the topic's path in the curriculum, ending in topic.json."""

INPUT_COLUMNS = (
    TOPIC_PATH, "topic_title", "entry_domain", "entry_subdomain", "subdomain_title",
    "subdomain_folder", "domain_title", "domain_folder", "category_title", "category_folder",
    "curriculum_type", "context", "source", "source_url", "licence",
)  # fmt: skip
FILTERS = ("category", "domain", "subdomain")

OTHER_NAMES = {
    TOPIC_PATH: ("path",),
    "topic_title": ("topic", "title"),
    "category_title": ("category",),
    "domain_title": ("domain",),
    "subdomain_title": ("subdomain",),
    "context": ("description",),
}
"""What tables also call these columns."""

_LEVELS = {
    "category_title": "level_1_category",
    "domain_title": "level_2_domain",
    "subdomain_title": "level_3_subdomain",
    "entry_domain": "level_4_entry_domain",
    "entry_subdomain": "level_5_entry_subdomain",
    "topic_title": "level_6_topic",
}
_FOLDERS = {
    "category_folder": "category_title",
    "domain_folder": "domain_title",
    "subdomain_folder": "subdomain_title",
}
_NESTED = ("hierarchy", "metadata")
_OF_METADATA = ("context", "source", "source_url", "licence")
_CONTEXT_CHARS = 2_000
_MAX_TITLE_CHARS = 500
_MAX_TOPIC_BYTES = 4 << 20
_MAX_PATH_CHARS = 1_000
_MAX_PART_BYTES = 240
_DIGEST_CHARS = 6
_NUMBER = re.compile(r"^\d+[_-]")
# C++, C#, A*, @Size: a symbol that belongs to a word. One between two words, or before a number as
# in Rule #1, only parts what is in the name anyway.
_SYMBOL = r"[+#*=<>^~|$€°]"
_TELLING_SYMBOL = re.compile(rf"(?<=\w){_SYMBOL}(?!\w)|(?<!\w)(?:{_SYMBOL}|@)(?=[^\W\d])")
# A folder of such a name could stand where a file of another topic belongs.
_LIKE_OUR_FILES = re.compile(r"\.(json|xml|yaml)$", re.IGNORECASE)
# What some file system refuses in a name.
_BAD_IN_PART = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


class Topic(BaseModel):
    """One topic of a curriculum.

    Attributes:
        path: where it belongs, relative, ending in topic.json: its item id.
        title: its name.
        category: name of the category, such as `Cybersecurity`.
        category_folder: such as `001_cybersecurity`.
        context: text about it that came with the input; may be empty.
        source_url: where that text is from; may be empty.
    """

    model_config = ConfigDict(frozen=True)

    path: str = Field(min_length=1)
    title: str = Field(min_length=1)
    category: str
    category_folder: str
    domain: str = ""
    subdomain: str = ""
    entry_domain: str = ""
    entry_subdomain: str = ""
    curriculum_type: str = ""
    context: str = ""
    source: str = ""
    source_url: str = ""

    @property
    def category_name(self) -> str:
        """The category's folder without its number: `cybersecurity`."""
        return bare_name(self.category_folder)


def topic_of(row: Row) -> Topic:
    """A row of `open_topics` as a topic.

    Raises:
        pydantic.ValidationError: the row did not come through `open_topics`, or has a problem.
    """
    return Topic(
        path=row[TOPIC_PATH],
        title=row["topic_title"],
        category=row["category_title"],
        category_folder=row["category_folder"],
        domain=row["domain_title"],
        subdomain=row["subdomain_title"],
        entry_domain=row["entry_domain"],
        entry_subdomain=row["entry_subdomain"],
        curriculum_type=row["curriculum_type"],
        context=row["context"],
        source=row["source"],
        source_url=row["source_url"],
    )


def topic_content(topic: Topic) -> dict[str, Any]:
    """What prompts are told about a topic; its context is cut at 2,000 characters.

    Paths and folders are not in it: two topics that say the same are the same question.
    """
    return {
        "topic": topic.title,
        "category": topic.category,
        "domain": topic.domain,
        "subdomain": topic.subdomain,
        "entry": [part for part in (topic.entry_domain, topic.entry_subdomain) if part],
        "context": cut_at_word(topic.context, _CONTEXT_CHARS),
    }


def bare_name(folder: str) -> str:
    """A folder's name without the number in front of it, in small letters."""
    return _NUMBER.sub("", folder.strip()).casefold()


def kebab(text: str) -> str:
    """A text as the name of a folder: small letters, joined by hyphens; letters of any script.

    Where a symbol belongs to a word, as in C++ and C#, a digest of the text stands behind it: what
    differs in a symbol is another name.
    """
    plain = "".join(
        letter
        for letter in unicodedata.normalize("NFKD", text)
        if not unicodedata.combining(letter)
    )
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", plain).casefold()).strip("-")
    behind = ""
    if words and _TELLING_SYMBOL.search(text):
        behind = "-" + _digest(" ".join(text.casefold().split())).hex()[:_DIGEST_CHARS]
    room = _MAX_PART_BYTES - len(behind)
    return words.encode()[:room].decode(errors="ignore").strip("-") + behind


def open_topics(source: str | Path, options: Mapping[str, Any]) -> InputTable:
    """Open topics: a folder with topic.json files below it, one topic.json, or a table file.

    Rows have `INPUT_COLUMNS`, then further ones as they are. Of a nested topic (`hierarchy`,
    `metadata`) the flat columns are made. Nothing is held but the place of each path.

    Args:
        source: the folder or file.
        options: `name`, `encoding`, `delimiter`; `category`, `domain`, `subdomain` (a folder such
            as `001_cybersecurity`, its name without the number, or a title). What is absent or None
            does not apply. A row with a problem is left out where a filter surely does so.

    Raises:
        UsageError: the source as a whole cannot be used, an option cannot, or no topic passes.
    """
    path = Path(source).expanduser()
    wanted = _Filter.of(options)
    is_tree = path.is_dir() or path.name == TOPIC_FILE
    opened = _open_tree(path, options) if is_tree else _open_file(path, options)
    if wanted.values:
        again = _open_tree(path, options) if is_tree else _open_file(path, options)
        wanted.demand_some(again)
    opened.rows = _once(row for row in opened.rows if wanted.lets(row))
    return opened


# --- filters


@dataclass(frozen=True, slots=True)
class _Name:
    """A name of a category, domain or subdomain that is wanted.

    Attributes:
        text: as it was given.
        whole: it as the name of a folder.
        key: the same without its number.
    """

    text: str
    whole: str
    key: str

    @classmethod
    def of(cls, text: str) -> _Name:
        return cls(text, kebab(text), _key(text))

    def is_of(self, folder: str, title: str) -> bool:
        """Whether a folder, or the title of what is in it, is meant.

        The number counts where both have one: `009_network` is not `002_network`.
        """
        if self.whole in {kebab(folder), kebab(title)}:
            return True
        if _NUMBER.match(self.text) and _NUMBER.match(folder):
            return False
        return self.key in {_key(folder), _key(title)}


@dataclass(frozen=True, slots=True)
class _Filter:
    """Which topics are wanted, by level."""

    values: Mapping[str, tuple[_Name, ...]]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> _Filter:
        values: dict[str, tuple[_Name, ...]] = {}
        for name in FILTERS:
            given = options.get(name)
            texts = [given] if isinstance(given, str) else list(given or ())
            wanted = tuple(_Name.of(text) for one in texts if (text := str(one).strip()))
            if given is not None and not wanted:
                raise UsageError(
                    f"The filter --{name} is empty.",
                    f"Name a {name}, such as 001_cybersecurity, or leave --{name} out.",
                )
            if wanted:
                values[name] = wanted
        return cls(values)

    def lets(self, row: InputRow) -> bool:
        """Whether a row is wanted; one with a problem is, where a level could not be read."""
        places = ((wanted, _place(row.values, name)) for name, wanted in self.values.items())
        return all(
            (bool(row.problem) and not any(place)) or _is_one(wanted, place)
            for wanted, place in places
        )

    def demand_some(self, table: InputTable) -> None:
        """Raise unless a topic of the table is wanted, with the names that there are."""
        seen: dict[str, dict[tuple[str, str], None]] = {name: {} for name in self.values}
        for row in table.rows:
            if row.problem:
                continue
            if self.lets(row):
                return
            for name, found in seen.items():
                if len(found) < 2_000:
                    found[_place(row.values, name)] = None
        hints = []
        for name, wanted in self.values.items():
            if any(_is_one(wanted, place) for place in seen[name]):
                continue
            by_key = {_key(folder): folder for folder, _ in seen[name]}
            near = [
                by_key[one]
                for key in sorted(each.key for each in wanted)
                for one in difflib.get_close_matches(key, list(by_key), n=1)
            ]
            folders = dict.fromkeys(folder for folder, _ in seen[name])
            listed = ", ".join(list(folders)[:20]) or "none"
            hints.append(
                (f"Did you mean --{name} {near[0]}? " if near else "")
                + f"There is for --{name}: {listed}."
            )
        asked = " ".join(
            f"--{name} {', '.join(sorted(one.text for one in wanted))}"
            for name, wanted in self.values.items()
        )
        raise UsageError(
            f"No topic of {table.source} passes {asked}.",
            " ".join(hints) or "Each filter alone lets some pass, together none: loosen one.",
        )


def _is_one(wanted: tuple[_Name, ...], place: tuple[str, str]) -> bool:
    return any(name.is_of(*place) for name in wanted)


def _place(values: Mapping[str, Any], level: str) -> tuple[str, str]:
    """The folder of a level, and its title."""
    return str(values[f"{level}_folder"]), str(values[f"{level}_title"])


def _key(text: str) -> str:
    return kebab(_NUMBER.sub("", text.strip()))


# --- sources


def _open_file(path: Path, options: Mapping[str, Any]) -> InputTable:
    known = [*INPUT_COLUMNS, *itertools.chain(*OTHER_NAMES.values()), *_NESTED]
    table = open_table(
        path,
        name=options.get("name"),
        encoding=options.get("encoding"),
        delimiter=options.get("delimiter"),
        optional_columns=known,
    )
    titles = ("topic_title", *OTHER_NAMES["topic_title"], "hierarchy")
    if not any(name in table.columns for name in titles):
        there = ", ".join(f"'{name}'" for name in table.columns[:40]) or "none"
        raise UsageError(
            f"{table.source} names no topics: it has no column 'topic_title'; its columns: "
            f"{there}.",
            "Call the column of the topics' names topic_title, or check the delimiter.",
        )
    further = [name for name in table.columns if name not in known]
    rows = (_normal_row(row) for row in table.rows)
    return InputTable(table.name, table.source, [*INPUT_COLUMNS, *further], rows, table.warnings)


def _open_tree(path: Path, options: Mapping[str, Any]) -> InputTable:
    if not path.exists():
        raise UsageError(f"{path} is not there.", "Check the path of the topics.")
    root = path if path.is_dir() else path.parent
    files = _topic_files(path)
    first = next(files, None)
    if first is None:
        raise UsageError(
            f"{path} has no {TOPIC_FILE} in it or in its folders.",
            "Name the folder that holds the categories, or a table of topics.",
        )
    spec = TableSpec(name=table_name(options.get("name") or root.name or "topics"),
                     source=str(path))  # fmt: skip
    warnings: list[str] = []
    rows = (
        _file_row(number, file, root)
        for number, file in enumerate(itertools.chain([first], files), start=1)
    )
    return InputTable(
        spec.name, spec.source, INPUT_COLUMNS, checked_rows(rows, spec, warnings), warnings
    )


def _topic_files(path: Path) -> Iterator[Path]:
    """The topic.json files below a folder, in the order of their paths."""
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        if TOPIC_FILE in names:
            yield Path(folder) / TOPIC_FILE


def _file_row(number: int, file: Path, root: Path) -> InputRow:
    relative = file.relative_to(root).as_posix()
    where = f"row {number} ({relative})"
    try:
        if file.is_symlink():
            problem = f"{where} is a link to another file. Copy the file there."
            return InputRow(number, None, _no_values(relative), problem)
        if file.stat().st_size > _MAX_TOPIC_BYTES:
            problem = f"{where} has more than {_MAX_TOPIC_BYTES >> 20} MB. Shorten it."
            return InputRow(number, None, _no_values(relative), problem)
        record = orjson.loads(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        problem = (
            f"{where} is not valid JSON: {error.msg} at line {error.lineno}, column "
            f"{error.colno}. Mend it there."
        )
        return InputRow(number, None, _no_values(relative), problem)
    except OSError as error:
        problem = f"{where} cannot be read: {error.strerror or error}. Check its permissions."
        return InputRow(number, None, _no_values(relative), problem)
    if not isinstance(record, dict):
        problem = f"{where} is no topic. Write it as an object with topic_title and the folders."
        return InputRow(number, None, _no_values(relative), problem)
    given = {**record, TOPIC_PATH: _path_in_tree(file, root, record)}
    row = _normal_row(InputRow(number, None, given))
    known = {name: row.values[name] for name in INPUT_COLUMNS}
    problem = row.problem.replace(f"row {number}", where, 1)
    return replace(row, values=known, problem=problem)


def _path_in_tree(file: Path, root: Path, record: Mapping[str, Any]) -> str:
    """The path from the category on, whichever folder of the tree was named."""
    parts = file.resolve().parts
    category = record.get("category_folder")
    if isinstance(category, str) and category in parts:
        return "/".join(parts[parts.index(category) :])
    relative = file.relative_to(root)
    return (
        relative.as_posix()
        if len(relative.parts) > 1
        else f"{file.resolve().parent.name}/{relative}"
    )


# --- rows


class _CellError(Exception):
    """What is wrong with a cell, and what to write instead."""


def _no_values(path: str = "") -> dict[str, Any]:
    return {**dict.fromkeys(INPUT_COLUMNS, ""), TOPIC_PATH: path[:_MAX_PATH_CHARS]}


def _normal_row(row: InputRow) -> InputRow:
    """The row with all of `INPUT_COLUMNS`, then further columns."""
    given = row.values
    values = _no_values()
    problems: list[str] = []

    def take(read: Callable[[], str], name: str) -> None:
        try:
            values[name] = read()
        except _CellError as error:
            problems.append(str(error))

    for name in INPUT_COLUMNS:
        if name != TOPIC_PATH:
            take(lambda name=name: _cell(given, name), name)  # type: ignore[misc]
    if not problems:
        title = values["topic_title"]
        if not title:
            problems.append("has no topic_title. Name the topic.")
        elif len(title) > _MAX_TITLE_CHARS:
            problems.append(
                f"has a topic_title of {len(title):,} characters, at most {_MAX_TITLE_CHARS} are "
                "a title. Move the rest to the context."
            )
    if not problems:
        take(lambda: _path(given, values), TOPIC_PATH)
        for folder, name in _FOLDERS.items():
            values[folder] = values[folder] or kebab(values[name])
            values[name] = values[name] or _title(values[folder])
        if not problems and not values["category_folder"]:
            problems.append("has no category. Give it a category_folder or a category_title.")
    known = {*INPUT_COLUMNS, *itertools.chain(*OTHER_NAMES.values()), *_NESTED}
    values.update((name, value) for name, value in given.items() if name not in known)
    problem = row.problem or (f"{row.place} {' It '.join(problems)}" if problems else "")
    return replace(row, values=values, problem=problem)


def _cell(given: Mapping[str, Any], name: str) -> str:
    """A column's text: under its name, another of its names, or in a nested part."""
    hierarchy, metadata = (_part(given, one) for one in _NESTED)
    places = [
        (given, name),
        *((given, other) for other in OTHER_NAMES.get(name, ())),
        *([(hierarchy, _LEVELS[name])] if name in _LEVELS else []),
        *([(metadata, name)] if name in _OF_METADATA else []),
    ]
    for holder, key in places:
        value = holder.get(key)
        if isinstance(value, dict | list):
            raise _CellError(f"has a nested value in '{key}'. Write it as text.")
        text = "" if value is None else str(value).strip()
        if text:
            return text if name == "context" else one_line(text)
    return ""


def _part(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = given.get(name)
    if value in (None, ""):
        return {}
    if isinstance(value, str):
        # a table with one column of JSON
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise _CellError(f"has a '{name}' that is no JSON. Write it as an object.") from error
    if not isinstance(value, dict):
        raise _CellError(f"has a '{name}' that is no object. Write it as one.")
    return value


def _path(given: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The topic's path: the given one, else made of folders and titles."""
    text = _cell(given, TOPIC_PATH)
    if not text:
        folders = [values[folder] or kebab(values[name]) for folder, name in _FOLDERS.items()]
        entries = [kebab(values["entry_domain"]), kebab(values["entry_subdomain"])]
        title = kebab(values["topic_title"]) or _digest(values["topic_title"]).hex()
        text = "/".join([part for part in (*folders, *entries) if part] + [title])
    if text.startswith("/") or "\\" in text:
        raise _CellError(f"has the path '{_shown(text)}'. Write it relative, with / in it.")
    parts = [part.strip() for part in text.split("/") if part.strip() not in ("", ".")]
    if not parts or parts[-1] != TOPIC_FILE:
        parts.append(TOPIC_FILE)
    bad = [part for part in parts if part == ".." or _BAD_IN_PART.search(part)]
    bad += [part for part in parts[:-1] if _LIKE_OUR_FILES.search(part)]
    if bad:
        raise _CellError(
            f"has the path '{_shown(text)}', in which '{_shown(bad[0])}' cannot name a folder. "
            "Rename it."
        )
    if any(len(part.encode()) > 255 for part in parts) or len(text) > _MAX_PATH_CHARS:
        raise _CellError(f"has a path that is too long: '{_shown(text)}'. Shorten its names.")
    return PurePosixPath(*parts).as_posix()


def _title(folder: str) -> str:
    return bare_name(folder).replace("-", " ").replace("_", " ").title()


def _shown(text: str) -> str:
    return one_line(_BAD_IN_PART.sub("?", text))[:80]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _once(rows: Iterator[InputRow]) -> Iterator[InputRow]:
    """The rows; one that repeats a path is refused: its files would overwrite the other's."""
    seen: dict[bytes, int] = {}
    for row in rows:
        path = row.values.get(TOPIC_PATH, "")
        if not row.problem and path:
            first = seen.setdefault(_digest(path), row.number)
            if first != row.number:
                problem = (
                    f"{row.place} has the path of row {first}, '{_shown(path)}'. Remove one of "
                    "them, or give it a topic_path of its own."
                )
                row = replace(row, problem=problem)
        yield row


def path_folder(topic_path: str) -> PurePosixPath:
    """The folder of a topic, relative: its path without topic.json."""
    return PurePosixPath(topic_path).parent
