"""Research on a brand: what is searched for, in which language, and what of it a prompt can hold.

What belongs here: pure functions on rows and results. What does not: searching (steps.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import httpx
import orjson
import yaml

from batch_pipeline.engine.step import Row
from batch_pipeline.pricing.tokens import estimate_tokens
from batch_pipeline.search.base import SearchAnswer, SearchQuery
from batch_pipeline.workloads.brands.collected import FoundPage
from batch_pipeline.workloads.brands.options import BrandOptions
from batch_pipeline.workloads.brands.rows import BRAND, PARENT, WEBSITE
from batch_pipeline.workloads.brands.text import line

Language = Literal["fa", "en"]

PAGE_CHARS = 1_500
"""Of a page's text that is asked for and kept."""

_TITLE_CHARS = 200
_URL_CHARS = 500
_IRAN = "ir"
_IRANIAN_HOSTS = (".ir", ".xn--mgba3a4f16a", ".ایران")
_PERSIAN_LETTERS = re.compile("[\u0620-\u064a\u066e-\u06d3\u06fa-\u06ff\ufb50-\ufdff\ufe70-\ufefc]")


def is_persian(row: Row) -> bool:
    """Whether a brand is one of the Persian market, by its letters and its address."""
    names = f"{row.get(BRAND) or ''} {row.get(PARENT) or ''}"
    return bool(_PERSIAN_LETTERS.search(names)) or _host(row).endswith(_IRANIAN_HOSTS)


def language_of(row: Row, options: BrandOptions) -> Language:
    """The language of a brand's texts."""
    if options.language != "auto":
        return options.language
    return "fa" if is_persian(row) else "en"


def queries_of(row: Row, options: BrandOptions) -> dict[str, SearchQuery]:
    """What is searched for, by name: in Persian and from Iran for Persian brands."""
    persian = is_persian(row)
    words = {
        "brand": row.get(BRAND) or "",
        "parent": row.get(PARENT) or "",
        "host": _host(row).removeprefix("www."),
    }
    return {
        name: SearchQuery(
            line(shape.format(**words)),
            _IRAN if persian else "",
            limit=options.results,
            text_chars=PAGE_CHARS,
        )
        for name, shape in _queries()["fa" if persian else "en"].items()
    }


def pages_of(answers: Sequence[SearchAnswer]) -> list[FoundPage]:
    """The pages of several searches, each once: the first of every search, then the second."""
    by_rank = zip_longest(*(answer.results for answer in answers))
    found: dict[str, FoundPage] = {}
    for result in chain.from_iterable(by_rank):
        if result is None:
            continue
        url = line(result["url"])[:_URL_CHARS]
        text = line(result.get("text") or result.get("snippet") or "")[:PAGE_CHARS]
        found.setdefault(
            url, FoundPage(title=line(result["title"])[:_TITLE_CHARS], url=url, text=text)
        )
    return list(found.values())


def within_tokens(pages: Sequence[Mapping[str, Any]], bound: int) -> list[dict[str, Any]]:
    """Pages that take about `bound` tokens at most: their texts are cut alike, the last ones go.

    Args:
        pages: objects with `title`, `url` and `text`, the best ones first.
        bound: estimated tokens.
    """
    kept = [dict(page) for page in pages]
    total = _tokens(kept)
    while kept and total > bound:
        bare = _tokens([{**page, "text": ""} for page in kept])
        if bare < bound / 2 or len(kept) == 1:
            # A cut text may end in half a word, which counts as well as a whole one.
            share = 0.97 * max(0, bound - bare) / max(1, total - bare)
            return [{**page, "text": _cut(page["text"], share)} for page in kept]
        kept.pop()
        total = _tokens(kept)
    return kept


def _cut(text: str, share: float) -> str:
    cut = text[: int(len(text) * share)]
    return cut if len(cut) == len(text) else cut.rpartition(" ")[0]


def _tokens(pages: Sequence[Mapping[str, Any]]) -> int:
    return estimate_tokens(orjson.dumps(list(pages))) if pages else 0


def _host(row: Row) -> str:
    website = str(row.get(WEBSITE) or "")
    return httpx.URL(website).host.casefold().rstrip(".") if website else ""


@cache
def _queries() -> Mapping[Language, Mapping[str, str]]:
    text = (Path(__file__).parent / "words" / "queries.yaml").read_text("utf-8")
    shapes: Mapping[Language, Mapping[str, str]] = yaml.safe_load(text)
    return shapes
