"""Exa's search as a pure codec.

Sources: the wire of exa-py 2.27.0 (PROVIDERS 5, captures exa.*), its types, Exa's pages on errors
and on content policy. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import ErrorKind, WireCall, WireReply
from batch_pipeline.search.base import SearchAnswer, SearchQuery
from batch_pipeline.search.replies import finite, one_line, post, ranked, result_of

MOST_RESULTS = 100

# What the status alone does not tell. Exa refuses a prohibited query again, and suspends those who
# insist; how every query of a run is built, or what the plan grants, is no single query's fault.
_KINDS = {
    "PROHIBITED_CONTENT": ErrorKind.ITEM_PERMANENT,
    "NUM_RESULTS_EXCEEDED": ErrorKind.BATCH_FATAL,
    "INVALID_NUM_RESULTS": ErrorKind.BATCH_FATAL,
    "INVALID_API_KEY": ErrorKind.BATCH_FATAL,
}


class ExaCodec:
    """POST /search, with the text of the pages where it is wanted.

    `depth` is Exa's search type (`auto`, `lite`, `deep` ...). Without text, `snippet` holds what
    Exa finds most telling of each page. Its facts are `search_type`, the type that was really used.
    """

    def build(self, query: SearchQuery, *, key: str, base_url: str) -> WireCall:
        """See SearchCodec.build."""
        contents: dict[str, Any] = {"highlights": True}
        if query.text_chars:
            contents = {"text": {"maxCharacters": query.text_chars}}
        body: dict[str, Any] = {
            "query": one_line(query.text),
            "type": query.depth or "auto",
            "numResults": min(query.limit, MOST_RESULTS),
            "contents": contents,
        }
        if query.domains:
            body["includeDomains"] = list(query.domains)
        if query.country:
            body["userLocation"] = query.country.upper()
        return post(f"{base_url}/search", body, {"x-api-key": key})

    def read(self, reply: WireReply) -> SearchAnswer:
        """See SearchCodec.read."""
        data = wire.parse_object(reply) or {}
        request_id = wire.as_code(data.get("requestId"))
        words, tag = wire.as_text(data.get("error")), wire.as_code(data.get("tag"))
        if reply.status != 200 or words:
            wire.raise_error(
                reply, message=words, code=tag, kind=_KINDS.get(tag), request_id=request_id
            )
        rows = data.get("results")
        if not isinstance(rows, list):
            raise wire.unusable_200(reply, request_id)
        cost = finite(wire.as_dict(data.get("costDollars")).get("total"))
        used = wire.as_text(data.get("resolvedSearchType"))
        return SearchAnswer(
            ranked(_result(row) for row in rows if isinstance(row, dict)),
            {"search_type": used} if used else {},
            None if cost is None else max(0.0, cost),
        )


def _result(row: Mapping[str, Any]) -> dict[str, Any] | None:
    highlights = [one for one in wire.as_list(row.get("highlights")) if isinstance(one, str)]
    return result_of(
        url=wire.as_text(row.get("url")),
        title=wire.as_text(row.get("title")),
        snippet=" … ".join(highlights),
        text=wire.as_text(row.get("text")),
        published=wire.as_text(row.get("publishedDate")),
        score=row.get("score"),
    )
