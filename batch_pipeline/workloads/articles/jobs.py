"""Article jobs in: a table of publishers, targets and link texts in any format.

What belongs here: columns and their other names, what a cell may hold, the published schema of a
job file. What does not: file formats (sources/), options of a whole batch (options.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.engine.step import Row
from batch_pipeline.errors import UsageError
from batch_pipeline.providers.registry import PROVIDERS, find_provider, parse_route
from batch_pipeline.sources.files import open_table
from batch_pipeline.sources.table import FirstWarnings, InputRow, InputTable
from batch_pipeline.workloads.articles.package import Strategy

PUBLISHER, TARGET, ANCHOR = "publisher", "target", "anchor"
PROVIDER, STRATEGY, COUNTRY = "llm_provider", "strategy", "country"
AHREFS, PROFILING = "use_ahrefs", "enable_llm_profiling"
INPUT_COLUMNS = (PUBLISHER, TARGET, ANCHOR, PROVIDER, STRATEGY, COUNTRY, AHREFS, PROFILING)
REQUIRED = (PUBLISHER, TARGET, ANCHOR)

OTHER_NAMES = {PUBLISHER: "publisher_domain", TARGET: "target_url", ANCHOR: "anchor_text"}
"""What batch reports call these columns."""

AUTO = "auto"
MAX_ANCHOR_CHARS = 200
MAX_URL_CHARS = 2_000

_SHOWN_CHARS = 80

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)+(?!\d+$){_LABEL}")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_COUNTRY = re.compile(r"[A-Za-z]{2}")
_BLANK = re.compile(r"[\s\x00-\x1f\x7f\u200b\u2060\ufeff]")
_YES = frozenset({"true", "1", "yes", "y", "ja", "sant"})
_NO = frozenset({"false", "0", "no", "n", "nej", "falskt"})


class ArticleJob(BaseModel):
    """One article to write."""

    model_config = ConfigDict(frozen=True, title="Article job")

    publisher: str = Field(
        min_length=1, description="Domain where the article is published, such as example.com."
    )
    target: str = Field(
        pattern="^[Hh][Tt][Tt][Pp][Ss]?://",
        max_length=MAX_URL_CHARS,
        description="Web address that the article links to.",
    )
    anchor: str = Field(
        min_length=1, max_length=MAX_ANCHOR_CHARS, description="Text of the link, on one line."
    )
    llm_provider: str = Field(
        default=AUTO,
        min_length=1,
        description="`auto` for the route of the run, a provider (anthropic, openai, google, "
        "openrouter), or <provider>/<model>.",
    )
    strategy: Strategy = Field(
        default="multi_stage", description="Outline, article and polish; or all in one call."
    )
    country: str = Field(
        default="se",
        pattern="^[A-Za-z]{2}$",
        description="Where searches are made: ISO 3166-1 alpha-2.",
    )
    use_ahrefs: bool = Field(default=True, description="Real search results, with a key for them.")
    enable_llm_profiling: bool = Field(
        default=True, description="Whether models look at publisher, target and link text too."
    )


class JobFile(BaseModel):
    """A file of article jobs. Further keys of a job are kept."""

    model_config = ConfigDict(frozen=True, title="Article jobs")

    jobs: Annotated[list[ArticleJob], Field(min_length=1)]


def job_of(values: Row) -> ArticleJob:
    """A row as a job: what it does not say has its default.

    Raises:
        pydantic.ValidationError: the row did not come through `open_jobs`, or has a problem.
    """
    given = {name: values.get(name) for name in INPUT_COLUMNS}
    return ArticleJob.model_validate(
        {name: value for name, value in given.items() if value not in ("", None)}
    )


def open_jobs(path: Path, options: Mapping[str, Any]) -> InputTable:
    """Open a table of article jobs.

    Rows have the columns of `INPUT_COLUMNS`, then further ones as they are. Cells are normalised:
    domains without scheme and www, providers, countries and strategies as this project writes them,
    flags as bool; a cell that is not given is an empty text.

    Args:
        path: the file.
        options: `name`, `encoding` and `delimiter`; what is absent or None is found out.

    Raises:
        UsageError: the file as a whole cannot be used, or lacks a required column.
    """
    table = open_table(
        path,
        name=options.get("name"),
        encoding=options.get("encoding"),
        delimiter=options.get("delimiter"),
        optional_columns=(*INPUT_COLUMNS, *OTHER_NAMES.values()),
    )
    missing = [
        name
        for name in REQUIRED
        if name not in table.columns and OTHER_NAMES[name] not in table.columns
    ]
    if missing:
        wanted = ", ".join(f"'{name}'" for name in missing)
        there = ", ".join(f"'{name}'" for name in table.columns[:40]) or "none"
        raise UsageError(
            f"{table.source} lacks what every job needs: {wanted}; its columns: {there}.",
            f"The first line of a table names its columns: {','.join(REQUIRED)}, and where wanted "
            f"{', '.join(INPUT_COLUMNS[3:])}.",
        )
    known = {*INPUT_COLUMNS, *OTHER_NAMES.values()}
    further = [name for name in table.columns if name not in known]
    return InputTable(
        table.name,
        table.source,
        [*INPUT_COLUMNS, *further],
        _jobs(table.rows, table.warnings),
        table.warnings,
    )


class _CellError(Exception):
    """What is wrong with a cell, and what to write instead."""


def _jobs(rows: Iterator[InputRow], warnings: list[str]) -> Iterator[InputRow]:
    said = FirstWarnings(warnings)
    for row in rows:
        values, problems = _normalised(row.values)
        if not problems and _text(row.values.get(COUNTRY)).casefold() == "uk":
            said.add(
                "rows with 'uk' for 'gb'",
                f"{row.place}: the country 'uk' is read as 'gb', its ISO code.",
            )
        problem = row.problem
        if problems and not problem:
            problem = f"{row.place}: {' '.join(problems)}"
        yield replace(row, values=values, problem=problem)
    said.finish()


def _normalised(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A row's values in their order and form, and what is wrong with them."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name in INPUT_COLUMNS:
        other = OTHER_NAMES.get(name, name)
        cell = given[name] if name in given else given.get(other, "")
        try:
            values[name] = _READERS[name](cell)
        except _CellError as error:
            # kept as far as a person needs it to find the row; an address with a login is not
            shown = _text(cell)[:MAX_URL_CHARS]
            values[name] = "" if "@" in shown.partition("//")[2].partition("/")[0] else shown
            text = str(error)
            problems.append(text[0].upper() + text[1:] if problems else text)
    known = {*INPUT_COLUMNS, *OTHER_NAMES.values()}
    values.update((name, value) for name, value in given.items() if name not in known)
    return values, problems


def _publisher(cell: Any) -> str:
    text = _words(PUBLISHER, cell, "the domain where the article is published")
    wrong = f"the publisher {_shown(text)} is not a domain."
    if "@" in text:
        raise _CellError(
            f"the publisher {_shown(text)} has an @ in it. Write the domain alone, such as "
            "example.com."
        )
    address = text if _SCHEME.match(text) else f"//{text}"
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise _CellError(f"{wrong} Write it like example.com.") from error
    if url.scheme not in ("", "http", "https"):
        raise _CellError(f"{wrong} Write it like example.com.")
    host = url.raw_host.decode("ascii", "replace").lower().rstrip(".")
    if url.path not in ("", "/") or url.query or url.fragment or url.port is not None:
        raise _CellError(
            f"the publisher {_shown(text)} is more than a domain. Write "
            f"{host or 'example.com'} alone."
        )
    host = host.removeprefix("www.") if host.count(".") > 1 else host
    if re.fullmatch(r"[\d.]+|\[?[0-9a-f:.]*:[0-9a-f:.]*\]?", host):
        raise _CellError(f"{wrong} It is an IP address. Write the site's name.")
    if not _DOMAIN.fullmatch(host):
        raise _CellError(f"{wrong} Write it like example.com.")
    return host


def _target(cell: Any) -> str:
    text = _words(TARGET, cell, "the web address that the article links to")
    example = "Write it in full, for example https://example.com/page."
    if len(text) > MAX_URL_CHARS:
        raise _CellError(
            f"the target has {len(text):,} characters, the limit is {MAX_URL_CHARS:,}. Give a "
            "shorter address of the page."
        )
    if _BLANK.search(text):
        raise _CellError(
            f"the target {_shown(text)} has a space or control character in it. Write it as %20, "
            "or give one address only."
        )
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii", "replace")
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise _CellError(f"the target {_shown(text)} is not a web address. {example}") from error
    if url.userinfo:
        # not repeated: it holds somebody's password
        raise _CellError(
            "the target holds a user name or password. Remove what stands before the '@'."
        )
    if url.scheme not in ("http", "https"):
        raise _CellError(
            f"the target {_shown(text)} does not begin with http:// or https://. {example}"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.:\[\]-]*[A-Za-z0-9\]]\.?", host):
        raise _CellError(f"the target {_shown(text)} names no host that can exist. {example}")
    if any(mark in text for mark in '<>"`\\') or _unpaired(text):
        raise _CellError(
            f"the target {_shown(text)} has characters that end a Markdown link too early. Write "
            "them with %: ( as %28, ) as %29, < as %3C, > as %3E."
        )
    return text


def _anchor(cell: Any) -> str:
    text = _plain(ANCHOR, cell)
    if re.search(r"[\r\n\x00-\x08\x0b-\x1f\x7f\u2028\u2029]", text):
        raise _CellError("the anchor goes over several lines. Write it on one.")
    text = " ".join(text.split())
    if not text:
        raise _CellError("the anchor is missing. Give the text of the link.")
    if len(text) > MAX_ANCHOR_CHARS:
        raise _CellError(
            f"the anchor {_shown(text)} has {len(text):,} characters, the limit is "
            f"{MAX_ANCHOR_CHARS}. Shorten it to the words that are to be the link."
        )
    if "[" in text or "]" in text:
        raise _CellError(
            f"the anchor {_shown(text)} has square brackets, which end a Markdown link. Give the "
            "words alone."
        )
    return text


def _provider(cell: Any) -> str:
    text = _plain(PROVIDER, cell)
    if not text or text.casefold() == AUTO:
        return text.casefold()
    try:
        if "/" in text:
            return ", ".join(str(model) for model in parse_route(text))
        provider = find_provider(text)
    except UsageError as error:
        named = ", ".join(name for name, one in PROVIDERS.items() if one.default_model)
        raise _CellError(
            f"the llm_provider {_shown(text)} cannot be used: {error.message} Write auto, "
            f"{named}, or <provider>/<model>."
        ) from error
    if not provider.default_model:
        raise _CellError(
            f"the llm_provider '{provider.name}' needs a model. Write {provider.name}/<model>."
        )
    return provider.name


def _strategy(cell: Any) -> str:
    text = _plain(STRATEGY, cell)
    name = re.sub(r"[\s-]+", "_", text.casefold())
    if name not in ("", "multi_stage", "single_shot"):
        raise _CellError(
            f"the strategy {_shown(text)} is not known. Write multi_stage or single_shot."
        )
    return name


def _country(cell: Any) -> str:
    import pycountry

    text = _plain(COUNTRY, cell)
    code = text.casefold()
    if not code:
        return ""
    if code == "uk":
        return "gb"
    if _COUNTRY.fullmatch(text) and pycountry.countries.get(alpha_2=code.upper()):
        return code
    try:
        meant = pycountry.countries.lookup(text).alpha_2.lower()
        hint = f"Did you mean '{meant}'?"
    except LookupError:
        hint = "Write it like se, no or us."
    raise _CellError(f"the country {_shown(text)} is no ISO code of two letters. {hint}")


def _flag(name: str, cell: Any) -> bool | str:
    if isinstance(cell, bool):
        return cell
    # a table whose column has gaps may hold 1.0 for 1
    text = _plain(name, cell).casefold().removesuffix(".0")
    if not text:
        return ""
    if text in _YES:
        return True
    if text in _NO:
        return False
    raise _CellError(
        f"the flag {name} is {_shown(text)}, which is neither true nor false. Write one of both."
    )


def _words(name: str, cell: Any, what: str) -> str:
    text = _plain(name, cell)
    if not text:
        raise _CellError(f"the {name} is missing. Give {what}.")
    return text


def _plain(name: str, cell: Any) -> str:
    """A cell as text without outer spaces."""
    if isinstance(cell, bool | list | dict):
        kind = "a list" if isinstance(cell, list) else "an object"
        kind = str(cell).lower() if isinstance(cell, bool) else kind
        raise _CellError(f"the {name} is {kind} instead of a text. Write it as text.")
    return _text(cell)


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip(" \t\u00a0\ufeff")


def _shown(text: str) -> str:
    return f"'{text[:_SHOWN_CHARS]}{'…' if len(text) > _SHOWN_CHARS else ''}'"


def _unpaired(text: str) -> bool:
    depth = 0
    for mark in text:
        depth += (mark == "(") - (mark == ")")
        if depth < 0:
            return True
    return depth != 0


_READERS: Mapping[str, Callable[[Any], Any]] = {
    PUBLISHER: _publisher,
    TARGET: _target,
    ANCHOR: _anchor,
    PROVIDER: _provider,
    STRATEGY: _strategy,
    COUNTRY: _country,
    AHREFS: partial(_flag, AHREFS),
    PROFILING: partial(_flag, PROFILING),
}
