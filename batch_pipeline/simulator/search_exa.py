"""Exa's `POST /search`, as its API reference describes it.

What does not live here: what every search API does (`search_calls`), what is found (`web_pages`).
"""

from __future__ import annotations

import re

from aiohttp import web
from typing_extensions import override

from batch_pipeline.simulator.config import KeyMark
from batch_pipeline.simulator.draws import fingerprint
from batch_pipeline.simulator.search_calls import Found, SearchApi, strings_of
from batch_pipeline.simulator.web_pages import Page, pages
from batch_pipeline.simulator.wire import Json, RefusedError, Reply

_USD = 0.007
_USD_OF_TYPE = {"lite": 0.004, "deep-lite": 0.012, "deep": 0.012, "deep-reasoning": 0.015}
_INCLUDED = 10
_USD_FURTHER = 0.001
_TYPES = {"auto", "fast", "instant", "keyword", "neural", *_USD_OF_TYPE}
_MOST = 100
_TEXT_CHARS = 3_000
_HIGHLIGHT_CHARS = 240
_COUNTRY = re.compile(r"[A-Z]{2}")
_SAID = {
    400: ("INVALID_REQUEST_BODY", "Invalid request body."),
    401: ("INVALID_API_KEY", "Invalid API key."),
    402: ("NO_MORE_CREDITS", "You have exceeded your credits limit. Please top up to continue."),
    403: ("ACCESS_DENIED", "You do not have access to this resource."),
    429: ("RATE_LIMIT_EXCEEDED", "You've exceeded your Exa rate limit."),
    500: ("DEFAULT_ERROR", "Internal server error."),
    503: ("SERVICE_UNAVAILABLE", "The service is overloaded. Please try again."),
}


class Exa(SearchApi):
    """Searches at `exa_per_second` for each key; a bucket holds a second's worth."""

    provider = "exa"

    @override
    def key(self, request: web.Request) -> str:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = request.headers.get("x-api-key", "")
        return (key or (bearer if scheme.lower() == "bearer" else "")).strip()

    @override
    def error(self, status: int, message: str | None = None, code: str | None = None) -> Reply:
        tag, words = _SAID.get(status, ("DEFAULT_ERROR", "Something went wrong."))
        name = fingerprint(f"{status} {message}".encode())
        return Reply(status, {"requestId": name, "error": message or words, "tag": code or tag})

    @override
    def spent(self, mark: KeyMark) -> Reply:
        if mark == "spend_limit":
            return self.error(402, "API key budget exceeded.", "API_KEY_BUDGET_EXCEEDED")
        return self.error(402)

    @override
    def limit(self) -> tuple[float, float]:
        per_second = self._work.config.exa_per_second
        return 60 * per_second, max(1.0, per_second)

    @override
    def find(self, body: Json) -> Found:
        query = body.get("query")
        if not isinstance(query, str) or not query.strip():
            raise self._bad("query: a non-empty string is required")
        kind = body.get("type", "auto")
        if kind not in _TYPES:
            raise self._bad(f"type: {kind!r} is not one of {', '.join(sorted(_TYPES))}")
        count = body.get("numResults", _INCLUDED)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _MOST:
            raise self._bad(f"numResults: a whole number from 1 to {_MOST}", "INVALID_NUM_RESULTS")
        country = body.get("userLocation", "")
        if country and not (isinstance(country, str) and _COUNTRY.fullmatch(country)):
            raise self._bad(f"userLocation: {country!r} is no two-letter country code")
        contents = body.get("contents") or {}
        if not isinstance(contents, dict):
            raise self._bad("contents: an object is required")
        text = contents.get("text")
        chars = _TEXT_CHARS
        if isinstance(text, dict):
            chars = int(text.get("maxCharacters", _TEXT_CHARS))
        found = pages(
            query,
            count,
            chars=max(chars, _HIGHLIGHT_CHARS),
            country=country,
            hosts=strings_of(body.get("includeDomains")),
        )
        usd = _USD_OF_TYPE.get(kind, _USD) + _USD_FURTHER * max(0, count - _INCLUDED)
        usd = round(usd, 6)
        resolved = "neural" if kind in ("auto", "neural") else kind
        reply = {
            "requestId": fingerprint(f"{query}\x1f{country}".encode("utf-8", "replace")),
            "resolvedSearchType": resolved,
            "results": [
                _row(page, chars if text else 0, bool(contents.get("highlights"))) for page in found
            ],
            "searchTime": 312.4,
            "costDollars": {"total": usd, "search": {resolved: usd}},
        }
        return Found(query, reply, usd)

    def _bad(self, message: str, tag: str | None = None) -> RefusedError:
        return RefusedError(self.error(400, message, tag))


def _row(page: Page, chars: int, highlights: bool) -> Json:
    row: Json = {
        "id": page.url,
        "title": page.title,
        "url": page.url,
        "publishedDate": page.published,
        "author": None,
    }
    if chars:
        row["text"] = page.text[:chars]
    if highlights:
        row |= {"highlights": [page.text[:_HIGHLIGHT_CHARS]], "highlightScores": [page.score]}
    return row
