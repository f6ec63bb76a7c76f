"""Tavily's search as a pure codec.

Sources: the wire of tavily-python 0.8.5 (PROVIDERS 5), Tavily's API reference. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import ErrorKind, WireCall, WireReply
from batch_pipeline.search.base import SearchAnswer, SearchQuery
from batch_pipeline.search.replies import finite, one_line, post, ranked, result_of

MOST_RESULTS = 20

# 432: the plan is used up; 433: so is what may be spent beyond it. Waiting does not help.
_SPENT = frozenset({432, 433})


class TavilyCodec:
    """POST /search, with the text of the pages where it is wanted.

    `depth` is Tavily's search depth (`basic`, `advanced` ...). A country moves its pages up, no
    more; Tavily does not know all countries, and the others are left out. The text of a page comes
    whole: `SearchAnswer.within` cuts it. Its facts are `credits`, what the call used of the plan.

    Args:
        usd_per_credit: what a credit costs.
    """

    def __init__(self, usd_per_credit: float) -> None:
        self._usd_per_credit = usd_per_credit

    def build(self, query: SearchQuery, *, key: str, base_url: str) -> WireCall:
        """See SearchCodec.build."""
        body: dict[str, Any] = {
            "query": one_line(query.text),
            "search_depth": query.depth or "basic",
            "max_results": min(query.limit, MOST_RESULTS),
            "include_usage": True,
        }
        if query.text_chars:
            body["include_raw_content"] = "text"
        if query.domains:
            body["include_domains"] = list(query.domains)
        if country := _countries().get(query.country.lower()):
            body["country"] = country
        return post(f"{base_url}/search", body, {"authorization": f"Bearer {key}"})

    def read(self, reply: WireReply) -> SearchAnswer:
        """See SearchCodec.read."""
        data = wire.parse_object(reply) or {}
        request_id = wire.as_code(data.get("request_id"))
        words, code = _said(data)
        if reply.status != 200 or words:
            kind = ErrorKind.BATCH_FATAL if reply.status in _SPENT else None
            wire.raise_error(reply, message=words, code=code, kind=kind, request_id=request_id)
        rows = data.get("results")
        if not isinstance(rows, list):
            raise wire.unusable_200(reply, request_id)
        used = finite(wire.as_dict(data.get("usage")).get("credits"))
        credits_ = None if used is None else max(0.0, used)
        return SearchAnswer(
            ranked(_result(row) for row in rows if isinstance(row, dict)),
            {} if credits_ is None else {"credits": credits_},
            None if credits_ is None else credits_ * self._usd_per_credit,
        )


def _said(data: Mapping[str, Any]) -> tuple[str, str]:
    """What an error says, and its code: `{"detail": {"error": ...}}` in most cases."""
    detail = data.get("detail")
    inner = wire.as_dict(data.get("error"))
    words = (
        wire.as_text(wire.as_dict(detail).get("error"))
        or wire.as_text(detail)
        or wire.as_text(wire.first_dict(detail).get("msg"))
        or wire.as_text(inner.get("message"))
        or wire.as_text(data.get("error"))
    )
    return words, wire.as_code(inner.get("code"))


def _result(row: Mapping[str, Any]) -> dict[str, Any] | None:
    return result_of(
        url=wire.as_text(row.get("url")),
        title=wire.as_text(row.get("title")),
        snippet=wire.as_text(row.get("content")),
        text=wire.as_text(row.get("raw_content")),
        published=wire.as_text(row.get("published_date")),
        score=row.get("score"),
    )


@cache
def _countries() -> Mapping[str, str]:
    text = Path(__file__).with_name("tavily_countries.yaml").read_text(encoding="utf-8")
    names: dict[str, str] = yaml.safe_load(text)
    return names
