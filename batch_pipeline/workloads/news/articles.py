"""Articles in: a table of `{id, title, contents}` in any format, or a list of URLs.

What belongs here: columns and their other names, row errors, which part of a long article is asked
about. What does not: file formats (sources/), fetching (fetch/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from batch_pipeline.engine.step import Row
from batch_pipeline.errors import UsageError
from batch_pipeline.sources.files import open_table
from batch_pipeline.sources.table import FirstWarnings, InputRow, InputTable
from batch_pipeline.workloads.news.sentences import shorten

ID, TITLE, CONTENTS, URL = "id", "title", "contents", "url"
INPUT_COLUMNS = (ID, URL, TITLE, CONTENTS)
TOTAL, EXTRACTED = "total_characters", "extracted_characters"

OTHER_NAMES = {
    CONTENTS: ("content", "text", "body", "article"),
    TITLE: ("headline", "page_title"),
}
"""What else these columns are called; the first one that is there is taken."""

MAX_ARTICLE_TOKENS = 8_000
"""Estimated tokens of an article that the model reads at most: about 32,000 characters of English.

The origin cut at 12,000 characters, wherever that was.
"""


def open_articles(path: Path, options: Mapping[str, Any]) -> InputTable:
    """Open a table of articles.

    Args:
        path: the file.
        options: `name`, `encoding` and `delimiter`; what is absent or None is found out.

    Raises:
        UsageError: when the file as a whole cannot be used, or has no column of texts.
    """

    def opened(id_column: str | None) -> InputTable:
        return open_table(
            path,
            name=options.get("name"),
            encoding=options.get("encoding"),
            delimiter=options.get("delimiter"),
            optional_columns=(*INPUT_COLUMNS, *(name for _, name in _all_other_names())),
            id_column=id_column,
        )

    table = opened(None)
    if ID in table.columns:
        # Now known to be there, so that empty and repeated ids are looked for.
        table = opened(ID)
    renamed = _renamed(table)
    return with_extracts(table, renamed)


def with_extracts(table: InputTable, renamed: Mapping[str, str] | None = None) -> InputTable:
    """`table` as articles: checked, and with how much of each the model is to read.

    Args:
        table: rows with `contents` and, where known, `id`, `title`, `url`.
        renamed: column of the table -> what it is called here.
    """
    names = dict(renamed or {})
    columns = [names.get(name, name) for name in table.columns]
    kept = [name for name in columns if name not in (*INPUT_COLUMNS, TOTAL, EXTRACTED)]
    warnings = table.warnings
    for theirs, ours in names.items():
        warnings.append(f"The column '{theirs}' is read as '{ours}'.")
    return InputTable(
        table.name,
        table.source,
        [*INPUT_COLUMNS, *kept, TOTAL, EXTRACTED],
        _articles(table.rows, names, warnings),
        warnings,
    )


def extract_of(row: Row) -> str:
    """The part of an article that the model reads: all of it, or whole sentences from its start."""
    contents = text_of(row, CONTENTS)
    known = row.get(EXTRACTED)
    # Rows that came another way than through a table carry no measure.
    return contents[:known] if isinstance(known, int) else shorten(contents, MAX_ARTICLE_TOKENS)


def text_of(row: Row, column: str) -> str:
    """A cell as text; what is absent or no text is empty."""
    value = row.get(column)
    return value.strip() if isinstance(value, str) else ""


def _all_other_names() -> Iterator[tuple[str, str]]:
    for ours, others in OTHER_NAMES.items():
        for name in others:
            yield ours, name


def _renamed(table: InputTable) -> dict[str, str]:
    """Columns that have another name than ours.

    Raises:
        UsageError: no column holds the texts.
    """
    found: dict[str, str] = {}
    for ours, theirs in _all_other_names():
        if ours not in table.columns and ours not in found.values() and theirs in table.columns:
            found[theirs] = ours
    if CONTENTS not in table.columns and CONTENTS not in found.values():
        others = ", ".join(f"'{name}'" for name in OTHER_NAMES[CONTENTS])
        there = ", ".join(f"'{name}'" for name in table.columns[:40]) or "none"
        raise UsageError(
            f"{table.source}: the required column '{CONTENTS}' is missing; found: {there}.",
            f"Name the column of the articles' texts '{CONTENTS}' (or one of {others}).",
        )
    return found


def _articles(
    rows: Iterator[InputRow], renamed: Mapping[str, str], warnings: list[str]
) -> Iterator[InputRow]:
    said = FirstWarnings(warnings)
    for row in rows:
        values = {renamed.get(name, name): value for name, value in row.values.items()}
        problem = row.problem or _problem(row, values)
        values.update({name: _cell(values.get(name)) for name in (ID, URL, TITLE)})
        if problem:
            yield replace(row, values=values, problem=problem)
            continue
        contents = text_of(values, CONTENTS)
        part = shorten(contents, MAX_ARTICLE_TOKENS)
        if len(part) < len(contents):
            said.add(
                f"articles of which the first {MAX_ARTICLE_TOKENS:,} tokens or so are read",
                f"{row.place}: the article has {len(contents):,} characters; the model reads "
                f"the first {len(part):,}, whole sentences of about {MAX_ARTICLE_TOKENS:,} tokens.",
            )
        yield replace(
            row,
            values={**values, CONTENTS: contents, TOTAL: len(contents), EXTRACTED: len(part)},
        )
    said.finish()


def _problem(row: InputRow, values: Mapping[str, Any]) -> str:
    if CONTENTS not in values and TITLE not in values:
        there = ", ".join(f"'{name}'" for name in list(values)[:10]) or "nothing"
        return (
            f"{row.place} has neither '{TITLE}' nor '{CONTENTS}', only {there}. Give it both, or "
            "remove the row."
        )
    contents = values.get(CONTENTS)
    if contents is not None and not isinstance(contents, str):
        return (
            f"{row.place}, column '{CONTENTS}' holds {_kind(contents)}. Write the article as one "
            "text."
        )
    for name in (ID, URL, TITLE):
        value = values.get(name)
        if isinstance(value, Mapping) or (
            isinstance(value, Sequence) and not isinstance(value, str)
        ):
            return f"{row.place}, column '{name}' holds {_kind(value)}. Write it as text."
    return ""


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, bool):
        return f"{str(value).lower()} instead of text"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a list"


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()
