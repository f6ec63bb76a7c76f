"""Results of a search that nobody was asked: plausible, the same every time, marked by their hosts.

What belongs here: making them. What does not: the titles (heuristic.yaml), saying that they are
made up (`data_source: mock`, in workloads/articles).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from batch_pipeline.search.base import SearchAnswer
from batch_pipeline.search.intents import Intent, intent_of, subject_of

Language = Literal["sv", "en"]

_SLUG_CHARS = 60
_NOT_SLUG = re.compile(r"[^a-z0-9]+")


class _Kind(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: tuple[str, ...]
    titles: tuple[str, ...]
    snippet: str

    @property
    def without_both(self) -> tuple[str, ...]:
        """For a search about no entity, where a topic takes its place."""
        return tuple(one for one in self.titles if "{topic}" not in one or "{entity}" not in one)


class _Shapes(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    mixes: dict[Intent, tuple[str, ...]]
    languages: dict[Language, dict[str, _Kind]]


@cache
def _shapes() -> _Shapes:
    text = Path(__file__).with_name("heuristic.yaml").read_text(encoding="utf-8")
    return _Shapes.model_validate(yaml.safe_load(text))


def heuristic_results(
    query: str, *, entity: str, topics: Sequence[str], language: Language, country: str
) -> SearchAnswer:
    """Ten results as a search for `query` may give them; a pure function.

    The words of the query decide what kinds of page there are (guides, tests, shops ...), so that
    `intents_of_results` of them leads with `intent_of` the query, as long as the topics' own words
    do not say something else. Titles name the topics in turn, and are subtopics as they stand.
    Every host ends in `.example`, which is reserved (RFC 2606).

    Args:
        query: the words that would be searched for.
        entity: the brand or thing that it is about; empty where there is none.
        topics: what belongs to it, the most important first; may be empty.
        language: of the titles.
        country: ISO 3166-1 alpha-2; stands in the addresses.
    """
    shapes = _shapes()
    subject = subject_of(query) or " ".join(query.split())
    named = [topic for topic in (" ".join(t.split()) for t in topics) if topic] or [subject]
    given = " ".join(entity.split())
    entity = given or named[0]
    start = _number(query.casefold(), language)
    used: Counter[str] = Counter()
    results = []
    for position, name in enumerate(shapes.mixes[intent_of(query, given)], start=1):
        kind = shapes.languages[language][name]
        turn = start + used[name]
        used[name] += 1
        words = {"topic": named[(position - 1) % len(named)], "entity": entity}
        titles = kind.titles if given else kind.without_both
        title = _fill(titles[turn % len(titles)], words)
        site = kind.sites[turn % len(kind.sites)] if kind.sites else _slug(entity)
        domain = f"{site}.example"
        results.append(
            {
                "position": position,
                "title": title,
                "url": f"https://{domain}/{country.lower()}/{_slug(title)}",
                "snippet": _fill(kind.snippet, words),
                "domain": domain,
                "type": "discussion" if name == "forum" else "organic",
            }
        )
    return SearchAnswer(results)


def _fill(shape: str, words: dict[str, str]) -> str:
    # not str.format: a topic may hold braces
    text = shape.replace("{topic}", "\0").replace("{entity}", words["entity"])
    text = text.replace("\0", words["topic"])
    return text[:1].upper() + text[1:]


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return _NOT_SLUG.sub("-", plain)[:_SLUG_CHARS].strip("-") or "page"


def _number(*parts: str) -> int:
    text = "\0".join(parts).encode("utf-8", "replace")
    return int.from_bytes(blake2b(text, digest_size=4).digest())
