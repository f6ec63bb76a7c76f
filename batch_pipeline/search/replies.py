"""What the codecs of Exa and Tavily share: a POST of JSON, and a result of a page.

What does not belong here: either provider's field names (its codec).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import WireCall

SNIPPET_CHARS = 300


def post(address: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> WireCall:
    """A call with a JSON body.

    Raises:
        ProviderError: ITEM_PERMANENT where the words are not valid Unicode.
    """
    common = {"content-type": "application/json", "accept": "application/json"}
    return WireCall(address, {**common, **headers}, wire.encode(body))


def one_line(text: str) -> str:
    """The words of a text with single spaces."""
    return " ".join(text.split())


def ranked(found: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The results that there are, numbered from 1."""
    there = (result for result in found if result is not None)
    return [{"position": place, **result} for place, result in enumerate(there, start=1)]


def result_of(
    *, url: str, title: str, snippet: str, text: str = "", published: str = "", score: Any = None
) -> dict[str, Any] | None:
    """One result without its position; None where it has no usable address.

    Args:
        url: its address.
        title: of the page.
        snippet: a short extract; empty takes the beginning of the text.
        text: of the page itself; left out where it is empty.
        published: when, as the provider writes it; left out where it is empty.
        score: how well it fits; left out where it is no number.
    """
    try:
        parts = urlsplit(url)
        domain = parts.hostname or ""
    except ValueError:
        return None
    if not domain or parts.scheme not in ("http", "https"):
        return None
    known: dict[str, Any] = {}
    if text:
        known["text"] = text
    if published:
        known["published"] = published
    if (number := finite(score)) is not None:
        known["score"] = number
    return {
        "title": one_line(title),
        "url": url,
        "snippet": one_line(snippet) or _beginning(text),
        "domain": domain.removeprefix("www."),
        "type": "organic",
        **known,
    }


def finite(value: Any) -> float | None:
    """A JSON number that can be counted with; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _beginning(text: str) -> str:
    line = one_line(text[: 4 * SNIPPET_CHARS])
    if len(line) <= SNIPPET_CHARS:
        return line
    return line[:SNIPPET_CHARS].rpartition(" ")[0] or line[:SNIPPET_CHARS]
