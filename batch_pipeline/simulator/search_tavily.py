"""Tavily's `POST /search` and `GET /usage`, as its API reference describes them.

What does not live here: what every search API does (`search_calls`), what is found (`web_pages`).
"""

from __future__ import annotations

import re

from aiohttp import web
from typing_extensions import override

from batch_pipeline.simulator.config import KeyMark
from batch_pipeline.simulator.draws import fingerprint
from batch_pipeline.simulator.replies import send, send_json
from batch_pipeline.simulator.search_calls import Found, SearchApi, strings_of
from batch_pipeline.simulator.web_pages import Page, pages
from batch_pipeline.simulator.wire import Json, RefusedError, Reply

_USD_PER_CREDIT = 0.008
_CREDITS = {"basic": 1, "fast": 1, "ultra-fast": 1, "advanced": 2}
_MOST = 20
_USUAL = 5
_TEXT_CHARS = 4_000
_CONTENT_CHARS = 400
_PLAN_CREDITS = 15_000
# The bucket holds a tenth of a minute's worth: a burst is not the rate.
_BURST = 0.1
_COUNTRY = re.compile(r"[a-z]{3,}( [a-z]+)*")
_WORDS = {
    400: "Bad request.",
    401: "Unauthorized: missing or invalid API key.",
    403: "Forbidden.",
    429: "Your request has been blocked due to excessive requests.",
    432: "This request exceeds your plan's set usage limit. Please upgrade your plan.",
    433: "This request exceeds the pay-as-you-go limit. You can raise it on the dashboard.",
    500: "Internal Server Error",
}


class Tavily(SearchApi):
    """Searches at `tavily_per_minute` for each key."""

    provider = "tavily"

    @override
    def routes(self) -> list[web.RouteDef]:
        return [*super().routes(), web.get(f"/{self.provider}/usage", self._usage)]

    @override
    def key(self, request: web.Request) -> str:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""

    @override
    def error(self, status: int, message: str | None = None, code: str | None = None) -> Reply:
        words = message or _WORDS.get(status, "Internal Server Error")
        return Reply(status, {"detail": {"error": words}})

    @override
    def spent(self, mark: KeyMark) -> Reply:
        return self.error(433 if mark == "spend_limit" else 432)

    @override
    def limit(self) -> tuple[float, float]:
        per_minute = self._work.config.tavily_per_minute
        return per_minute, max(1.0, _BURST * per_minute)

    @override
    def find(self, body: Json) -> Found:
        query = body.get("query")
        if not isinstance(query, str) or not query.strip():
            raise self._bad("Query is missing.")
        depth = body.get("search_depth", "basic")
        if depth not in _CREDITS:
            raise self._bad(f"Invalid search depth {depth!r}. Must be one of {', '.join(_CREDITS)}")
        count = body.get("max_results", _USUAL)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST:
            raise self._bad(f"max_results must be a whole number from 0 to {_MOST}.")
        country = body.get("country", "")
        if country and not (isinstance(country, str) and _COUNTRY.fullmatch(country)):
            raise self._bad(f"Invalid country {country!r}. Write its name in lower case.")
        raw = bool(body.get("include_raw_content"))
        found = pages(
            query,
            count,
            chars=_TEXT_CHARS if raw else _CONTENT_CHARS,
            country=country,
            hosts=strings_of(body.get("include_domains")),
        )
        credits_ = _CREDITS[depth]
        reply: Json = {
            "query": query,
            "follow_up_questions": None,
            "answer": None,
            "images": [],
            "results": [_row(page, raw) for page in found],
            "response_time": 1.31,
            "request_id": fingerprint(f"{query}\x1f{country}".encode("utf-8", "replace")),
        }
        if body.get("include_usage"):
            reply["usage"] = {"credits": credits_}
        return Found(query, reply, credits_ * _USD_PER_CREDIT, credits_)

    async def _usage(self, request: web.Request) -> web.StreamResponse:
        self._journal.other_calls[f"{self.provider} usage"] += 1
        try:
            key = self.authenticate(request)
        except RefusedError as refused:
            return send(refused.reply)
        used = self._used[key]
        about = {
            "key": {"usage": used, "limit": None, "search_usage": used},
            "account": {
                "current_plan": "Bootstrap",
                "plan_usage": used,
                "plan_limit": _PLAN_CREDITS,
                "paygo_usage": 0,
                "paygo_limit": 0,
                "search_usage": used,
            },
        }
        return send_json(200, about)

    def _bad(self, message: str) -> RefusedError:
        return RefusedError(self.error(400, message))


def _row(page: Page, raw: bool) -> Json:
    return {
        "url": page.url,
        "title": page.title,
        "content": page.text[:_CONTENT_CHARS],
        "score": page.score,
        "raw_content": page.text if raw else None,
    }
