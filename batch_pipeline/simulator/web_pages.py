"""Pages that a web search finds, made up from its words alone, the same ones every time.

What does not live here: the protocols that say them (`search_exa`, `search_tavily`,
`wire_openai`), and pages of results without text (`serp`). Hosts end in `.example`, unless the
search was held to sites that it names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from batch_pipeline.simulator.draws import draw, fingerprint, pick

Language = Literal["en", "fa"]

_ARABIC = re.compile(r"[\u0600-\u06ff]")
_NOT_SLUG = re.compile(r"[^a-z0-9]+")
_SLUG_CHARS = 60


class _Words(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    titles: tuple[str, ...]
    sentences: tuple[str, ...]


class _Shapes(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: tuple[str, ...]
    en: _Words
    fa: _Words


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        published: date and time, ISO 8601.
        text: its beginning, as long as was asked for.
        score: how well it fits, from 0 to 1, falling with the rank.
    """

    title: str
    url: str
    published: str
    text: str
    score: float


@cache
def _shapes() -> _Shapes:
    text = Path(__file__).with_name("web_pages.yaml").read_text(encoding="utf-8")
    return _Shapes.model_validate(yaml.safe_load(text))


def pages(
    query: str, count: int, *, chars: int, country: str = "", hosts: Sequence[str] = ()
) -> list[Page]:
    """The first `count` pages for a query; Persian ones where it is in Arabic letters.

    Args:
        query: the words searched for, which every title and text quotes.
        count: pages wanted.
        chars: length of each text.
        country: what the search was localized to: other countries find other pages.
        hosts: only these sites.
    """
    words = _shapes().fa if _ARABIC.search(query) else _shapes().en
    sites = [*hosts] or [f"{site}.example" for site in _shapes().sites]
    start = pick(len(sites), "pages", query, country)
    name = fingerprint(f"{query}\x1f{country}".encode("utf-8", "replace"))[:8]
    slug = _NOT_SLUG.sub("-", query.casefold())[:_SLUG_CHARS].strip("-") or "page"
    found = []
    for rank in range(count):
        shape = words.titles[(start + rank) % len(words.titles)]
        url = f"https://{sites[(start + rank) % len(sites)]}/{slug}-{name}-{rank + 1}"
        found.append(
            Page(
                title=shape.replace("{q}", query),
                url=url,
                published=f"2026-{1 + pick(10, 'month', url):02d}-{1 + pick(28, 'day', url):02d}"
                "T08:00:00.000Z",
                text=_text(words.sentences, query, url, chars),
                score=round(0.99 - 0.03 * rank - 0.02 * draw("score", url), 4),
            )
        )
    return found


def _text(sentences: Sequence[str], query: str, url: str, chars: int) -> str:
    start = pick(len(sentences), "text", url)
    said, length, turn = [], 0, 0
    while length < chars:
        number = 2 + pick(97, "number", url, turn)
        shape = sentences[(start + turn) % len(sentences)]
        sentence = shape.replace("{n}", str(number)).replace("{q}", query)
        said.append(sentence)
        length += len(sentence) + 1
        turn += 1
    return " ".join(said)[:chars]
