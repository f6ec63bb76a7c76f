"""Ahrefs v3 as pure codecs: the results of a search, and the metrics of a keyword.

Sources: Ahrefs' OpenAPI documents of 2026-08-12 (docs.ahrefs.com). No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import orjson

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import ErrorKind, ProviderError, WireCall, WireReply
from batch_pipeline.search.base import SearchAnswer, SearchQuery

# What is selected sets the price: these cost one unit each per row.
_SERP_FIELDS = ("position", "title", "url", "type")
# volume, difficulty and intents cost ten units each.
_METRICS = ("volume", "difficulty", "cpc", "intents")


class AhrefsSerpCodec:
    """GET /serp-overview/serp-overview: the top positions for a keyword in a country.

    Advertisements and positions without an address (an AI overview, questions) are left out; what
    else is there keeps its position, and its kind in `type`. Ahrefs gives no snippets: they are
    empty. An empty list is an answer: Ahrefs knows no results for the keyword.
    """

    def build(self, query: SearchQuery, *, key: str, base_url: str) -> WireCall:
        """See SearchCodec.build."""
        return _call(
            f"{base_url}/serp-overview/serp-overview",
            {
                "select": ",".join(_SERP_FIELDS),
                "country": query.country.lower(),
                "keyword": _one_line(query.text),
                "top_positions": str(query.limit),
            },
            key,
        )

    def read(self, reply: WireReply) -> SearchAnswer:
        """See SearchCodec.read."""
        rows = _rows(reply, "positions")
        found = [result for row in rows if (result := _result(row)) is not None]
        return SearchAnswer(found, _metered(reply.headers))


class AhrefsKeywordCodec:
    """GET /keywords-explorer/overview: how often a keyword is searched, and what for.

    The answer has no results. Its facts are `volume` (searches a month), `difficulty` (0 to 100),
    `cpc_usd` (USD per click) and `intents` (Ahrefs' names of those that hold, separated by commas);
    None where Ahrefs does not know. It has a row for a keyword that it has never seen, too.
    """

    def build(self, query: SearchQuery, *, key: str, base_url: str) -> WireCall:
        """See SearchCodec.build."""
        return _call(
            f"{base_url}/keywords-explorer/overview",
            {
                "select": ",".join(("keyword", *_METRICS)),
                "country": query.country.lower(),
                # the parameter is a list: a comma would make two keywords of one
                "keywords": _one_line(query.text.replace(",", " ")),
            },
            key,
        )

    def read(self, reply: WireReply) -> SearchAnswer:
        """See SearchCodec.read."""
        row = wire.first_dict(_rows(reply, "keywords"))
        cents = _number(row.get("cpc"))
        intents = wire.as_dict(row.get("intents"))
        return SearchAnswer(
            [],
            {
                "volume": _number(row.get("volume")),
                "difficulty": _number(row.get("difficulty")),
                "cpc_usd": None if cents is None else cents / 100,
                "intents": ", ".join(sorted(n for n, holds in intents.items() if holds is True))
                or None,
                **_metered(reply.headers),
            },
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _call(address: str, parameters: Mapping[str, str], key: str) -> WireCall:
    try:
        query = urlencode(parameters, quote_via=quote)
    except UnicodeEncodeError:
        raise ProviderError(
            ErrorKind.ITEM_PERMANENT,
            "The search words are not valid Unicode. Repair the text's encoding.",
            code="invalid_text",
        ) from None
    headers = {"authorization": f"Bearer {key}", "accept": "application/json"}
    return WireCall(f"{address}?{query}", headers, b"", method="GET")


def _rows(reply: WireReply, name: str) -> list[dict[str, Any]]:
    """The rows of a good reply.

    Raises:
        ProviderError: it is none.
    """
    try:
        data = wire.as_dict(orjson.loads(reply.body))
    except orjson.JSONDecodeError:
        data = {}
    words = wire.as_text(data.get("error"))
    request_id = _request_id(reply.headers)
    if reply.status != 200:
        wire.raise_error(reply, message=words, request_id=request_id)
    if words:
        # only the words tell that it failed, and they have no fixed form: worth another try
        wire.raise_error(reply, message=words, kind=ErrorKind.TRANSIENT, request_id=request_id)
    rows = data.get(name)
    if isinstance(rows, list):
        return [row for row in rows if isinstance(row, dict)]
    # a page of something in between is worth another try; what Ahrefs itself garbles is not
    foreign = not reply.body.strip() or reply.body.lstrip()[:1] == b"<"
    raise ProviderError(
        ErrorKind.TRANSIENT if foreign else ErrorKind.CONTENT,
        wire.unusable_200(reply).message,
        status=200,
        code="unreadable_reply",
        request_id=request_id,
    )


def _result(row: Mapping[str, Any]) -> dict[str, Any] | None:
    kinds = [kind for kind in wire.as_list(row.get("type")) if isinstance(kind, str)]
    url = wire.as_text(row.get("url"))
    position = row.get("position")
    if not isinstance(position, int) or any(kind.startswith("paid") for kind in kinds):
        return None
    try:
        domain = urlsplit(url).hostname or ""
    except ValueError:
        domain = ""
    if not domain:
        return None
    return {
        "position": position,
        "title": wire.as_text(row.get("title")),
        "url": url,
        "snippet": "",
        "domain": domain.removeprefix("www."),
        "type": "organic" if "organic" in kinds or not kinds else kinds[0],
    }


def _metered(headers: Mapping[str, str]) -> dict[str, int]:
    """What Ahrefs counted: rows, and units of the plan (0 for an answer from its cache)."""
    said = {
        "rows": headers.get("x-api-rows"),
        "units": headers.get("x-api-units-cost-total-actual")
        or headers.get("x-api-units-cost-total"),
    }
    numbers = {name: wire.as_number(value) for name, value in said.items()}
    return {name: int(number) for name, number in numbers.items() if number is not None}


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _request_id(headers: Mapping[str, str]) -> str:
    return wire.as_code(headers.get("x-request-id"))
