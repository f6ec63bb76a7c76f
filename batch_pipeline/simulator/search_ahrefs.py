"""Ahrefs v3: results of a search, metrics of keywords, limits and usage of a key.

What does not live here: what every search API does (`search_calls`), what is found (`serp`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from aiohttp import web

from batch_pipeline.simulator.config import KeyMark
from batch_pipeline.simulator.replies import send, send_json
from batch_pipeline.simulator.search_calls import Found, SearchCalls
from batch_pipeline.simulator.serp import Row, metrics, positions
from batch_pipeline.simulator.wire import RefusedError, Reply

PROVIDER = "ahrefs"

_FREE = "limits-and-usage"

_LEAST_UNITS = 50
_TOP = 100
_UNITS_LIMIT = 1_000_000
_SERP_UNITS = {
    "ahrefs_rank": 1, "backlinks": 1, "domain_rating": 1, "keywords": 1, "page_type": 1,
    "position": 1, "refdomains": 5, "title": 1, "top_keyword": 1, "top_keyword_volume": 10,
    "traffic": 10, "type": 1, "update_date": 1, "url": 1, "url_rating": 1, "value": 10,
}  # fmt: skip
_KEYWORD_UNITS = {
    "clicks": 1, "cpc": 1, "cps": 1, "difficulty": 10, "first_seen": 1, "global_volume": 10,
    "intents": 10, "keyword": 1, "parent_topic": 1, "parent_volume": 10, "serp_features": 1,
    "serp_last_update": 1, "traffic_potential": 10, "volume": 10, "volume_monthly": 10,
}  # fmt: skip
_COUNTRIES = (
    "ad ae af ag ai al am ao ar as at au aw az ba bb bd be bf bg bh bi bj bn bo br bs bt bw "
    "by bz ca cd cf cg ch ci ck cl cm cn co cr cu cv cy cz de dj dk dm do dz ec ee eg es et "
    "fi fj fm fo fr ga gb gd ge gf gg gh gi gl gm gn gp gq gr gt gu gy hk hn hr ht hu id ie "
    "il im in iq is it je jm jo jp ke kg kh ki kn kr kw ky kz la lb lc li lk ls lt lu lv ly "
    "ma mc md me mg mk ml mm mn mq mr ms mt mu mv mw mx my mz na nc ne ng ni nl no np nr nu "
    "nz om pa pe pf pg ph pk pl pn pr ps pt py qa re ro rs ru rw sa sb sc se sg sh si sk sl "
    "sm sn so sr st sv td tg th tj tk tl tm tn to tr tt tw tz ua ug us uy uz vc ve vg vi vn "
    "vu ws ye yt za zm zw "
)
_WORDS = {
    400: "bad request: a parameter is not valid",
    401: "the API key is not valid or has expired",
    403: "the API units of the plan are used up",
    429: "too many requests",
}

Reader = Callable[[Mapping[str, str]], Found]


class Ahrefs(SearchCalls):
    """The endpoints, and what each key has used up: units of a subscription, not money.

    Every key has one limit for all of them, `ahrefs_per_minute`. No reply says how much is left or
    how long to wait.
    """

    provider = PROVIDER
    by_the_call = False

    def routes(self) -> list[web.RouteDef]:
        """Where they are."""
        return [
            web.get(f"/{PROVIDER}/v3/serp-overview/serp-overview", self._serp_overview),
            web.get(f"/{PROVIDER}/v3/keywords-explorer/overview", self._keywords_overview),
            web.get(f"/{PROVIDER}/v3/subscription-info/{_FREE}", self._limits_and_usage),
        ]

    def key(self, request: web.Request) -> str:
        """Return the bearer token of a call; empty where it has none."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""

    def error(self, status: int, message: str | None = None, code: str | None = None) -> Reply:
        """Write an error in Ahrefs' form, which has no code."""
        return _error(status, message)

    def spent(self, mark: KeyMark) -> Reply:
        """Write the error of a plan whose units are used up."""
        return _error(403)

    def limit(self) -> tuple[float, float | None]:
        """Return the limit of each key; its bucket holds a minute's worth."""
        return self._work.config.ahrefs_per_minute, None

    def authenticate(self, request: web.Request) -> str:
        """Return the call's key; a spent plan is told before the limit, and of no free call."""
        key = super().authenticate(request)
        mark = self._work.config.mark_of(key)
        if mark is not None and not request.path.endswith(_FREE):
            raise RefusedError(self.spent(mark))
        return key

    async def _serp_overview(self, request: web.Request) -> web.StreamResponse:
        return await self._metered(request, "serp-overview", _serp)

    async def _keywords_overview(self, request: web.Request) -> web.StreamResponse:
        return await self._metered(request, "keywords-overview", _keywords)

    async def _metered(self, request: web.Request, model: str, read: Reader) -> web.StreamResponse:
        said = request.path_qs.encode("utf-8", "replace")
        return await self.carry_out(request, model, said, lambda: read(request.query))

    async def _limits_and_usage(self, request: web.Request) -> web.StreamResponse:
        self._journal.other_calls[f"{PROVIDER} {_FREE}"] += 1
        try:
            key = self.admit(request, time.monotonic())
        except RefusedError as refused:
            return send(refused.reply)
        used = self._used[key]
        about = {
            "subscription": "Simulated",
            "usage_reset_date": "2027-01-01",
            "units_limit_workspace": _UNITS_LIMIT,
            "units_usage_workspace": used,
            "units_limit_api_key": None,
            "units_usage_api_key": used,
            "api_key_expiration_date": "2027-12-31T00:00:00Z",
        }
        return send_json(200, {"limits_and_usage": about})


def _error(status: int, message: str | None = None) -> Reply:
    return Reply(status, {"error": message or _WORDS.get(status, "internal server error")})


def _found(about: str, name: str, rows: list[Row], units_per_row: int) -> Found:
    """What a call found, with its metering headers.

    Args:
        about: the keywords.
        name: of the list in the reply.
        rows: with the selected columns only.
        units_per_row: their price.
    """
    units = max(_LEAST_UNITS, units_per_row * len(rows))
    headers = {
        "x-api-rows": len(rows),
        "x-api-units-cost-row": units_per_row,
        "x-api-units-cost-total": units,
        "x-api-units-cost-total-actual": units,
        "x-api-cache": "no_cache",
    }
    return Found(about, {name: rows}, 0.0, units, {k: str(v) for k, v in headers.items()})


def _serp(query: Mapping[str, str]) -> Found:
    columns, units = _selected(query, _SERP_UNITS)
    keyword, country = _wanted(query, "keyword"), _country(query)
    try:
        top = int(query.get("top_positions", _TOP))
    except ValueError as error:
        raise _bad("top_positions is not a whole number") from error
    rows = positions(keyword, country, top)
    return _found(keyword, "positions", [_only(columns, row) for row in rows], units)


def _keywords(query: Mapping[str, str]) -> Found:
    columns, units = _selected(query, _KEYWORD_UNITS)
    country = _country(query)
    keywords = [word.strip() for word in _wanted(query, "keywords").split(",") if word.strip()]
    rows = [_only(columns, metrics(keyword, country)) for keyword in keywords]
    return _found("\n".join(keywords), "keywords", rows, units)


def _selected(query: Mapping[str, str], known: Mapping[str, int]) -> tuple[list[str], int]:
    """The selected columns, and the units that each row of them costs."""
    columns = [name.strip() for name in _wanted(query, "select").split(",")]
    for name in columns:
        if name not in known:
            raise _bad(f"select: there is no column {name!r}")
    return columns, sum(known[name] for name in dict.fromkeys(columns))


def _only(columns: list[str], row: Row) -> Row:
    return {name: row.get(name) for name in columns}


def _country(query: Mapping[str, str]) -> str:
    country = _wanted(query, "country")
    if country not in _COUNTRIES.split():
        raise _bad(f"country {country!r} is not supported")
    return country


def _wanted(query: Mapping[str, str], name: str) -> str:
    value = query.get(name, "").strip()
    if not value:
        raise _bad(f"the parameter {name} is missing")
    return value


def _bad(message: str) -> RefusedError:
    return RefusedError(_error(400, f"bad request: {message}"))
