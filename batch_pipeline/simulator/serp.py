"""What searchers find and how often they search, made up from the words of a keyword alone.

What does not live here: the protocol that says it (`search_ahrefs`). Every host ends in `.example`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from batch_pipeline.simulator.draws import draw, pick

Kind = Literal["guide", "review", "shop", "local", "support", "forum"]
Language = Literal["sv", "en"]
Row = dict[str, Any]

_UPDATED = "2026-08-12T04:00:00Z"
_NOT_SLUG = re.compile(r"[^a-z0-9]+")
_WORD = re.compile(r"[^\W_]+")


class _Page(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    words: dict[Kind, frozenset[str]]
    mixes: dict[Kind, tuple[Kind, ...]]
    titles: dict[Language, dict[Kind, tuple[str, ...]]]
    questions: dict[Language, str]
    sites: dict[Kind, tuple[str, ...]]
    types: dict[Kind, str]


@cache
def _page() -> _Page:
    text = Path(__file__).with_name("serp.yaml").read_text(encoding="utf-8")
    return _Page.model_validate(yaml.safe_load(text))


def positions(keyword: str, country: str, top: int) -> list[Row]:
    """The page of results for a keyword: up to `top` positions, with what stands among them.

    Half of the pages have an AI overview and a question of other searchers (without an address),
    pages of shops an advertisement; these share a position with an organic result.
    """
    page, kind = _page(), kind_of(keyword)
    language: Language = "sv" if country == "se" else "en"
    start = pick(97, "serp", keyword, country)
    used: Counter[Kind] = Counter()
    rows: list[Row] = []
    for position, one in enumerate(page.mixes[kind], start=1):
        titles, sites = page.titles[language][one], page.sites[one]
        turn = start + used[one]
        used[one] += 1
        title = _title(titles[turn % len(titles)], keyword)
        site = sites[turn % len(sites)]
        url = f"https://www.{site}.example/{_slug(title)}"
        rows.append(_row(position, title, url, page.types.get(one, "organic")))
    if kind == "shop":
        url = "https://ads.market.example/click"
        title = _title(page.titles[language]["shop"][0], keyword)
        rows.insert(0, _row(1, title, url, "paid_top"))
    if start % 2:
        question = _title(page.questions[language], keyword)
        rows.insert(0, _row(1, None, None, "ai_overview"))
        rows.insert(2, _row(2, question, None, "question"))
    return [row for row in rows if row["position"] <= top]


def metrics(keyword: str, country: str) -> Row:
    """How often a keyword is searched, and what for; one in ten was never seen."""
    row: Row = {"keyword": keyword, "volume": 0, "difficulty": None, "cpc": None, "intents": None}
    if draw("seen", keyword, country) < 0.1:
        return row
    kind = kind_of(keyword)
    volume = 10 * (1 + pick(900, "volume", keyword, country))
    return {
        **row,
        "volume": volume,
        "global_volume": volume * (2 + pick(20, "global", keyword)),
        "difficulty": pick(90, "difficulty", keyword, country),
        "cpc": 10 + pick(400, "cpc", keyword, country),
        "parent_topic": keyword,
        "intents": {
            "informational": kind == "guide",
            "navigational": kind == "support",
            "commercial": kind == "review",
            "transactional": kind == "shop",
            "branded": kind == "support",
            "local": kind == "local",
        },
    }


def kind_of(keyword: str) -> Kind:
    """What kind of page answers a keyword best."""
    words = set(_WORD.findall(keyword.casefold()))
    return next((kind for kind, known in _page().words.items() if words & known), "guide")


def _row(position: int, title: str | None, url: str | None, type_: str) -> Row:
    return {
        "position": position,
        "title": title,
        "url": url,
        "type": [type_],
        "update_date": _UPDATED,
        "domain_rating": None if url is None else float(20 + pick(75, "rating", url)),
    }


def _title(shape: str, keyword: str) -> str:
    title = shape.replace("{k}", keyword)
    return title[:1].upper() + title[1:]


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return _NOT_SLUG.sub("-", plain)[:80].strip("-") or "page"
