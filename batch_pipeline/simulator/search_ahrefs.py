"""Ahrefs v3: results of a search, metrics of keywords, limits and usage of a key.

What does not live here: what is found (`serp`) and which faults hit (`faults`).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from batch_pipeline.simulator.buckets import Bucket
from batch_pipeline.simulator.config import FaultRule
from batch_pipeline.simulator.draws import draw, fingerprint
from batch_pipeline.simulator.journal import Attempt, Journal
from batch_pipeline.simulator.replies import abort, send, send_json, send_start
from batch_pipeline.simulator.serp import Row, metrics, positions
from batch_pipeline.simulator.wire import RefusedError, Reply, Usage
from batch_pipeline.simulator.work import Work

PROVIDER = "ahrefs"

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
_HTML = "<html><head><title>Error</title></head><body><h1>{}</h1></body></html>"
# These are counted as used all the same: the work was done.
_METERED = frozenset({"hang", "cut", "cut_body", "malformed_json"})


@dataclass(frozen=True)
class _Found:
    """What a call asks for.

    Attributes:
        about: the keywords, which `match` looks into.
        name: of the list in the reply.
        rows: with the selected columns only.
        units_per_row: their price.
    """

    about: str
    name: str
    rows: list[Row]
    units_per_row: int

    @property
    def units(self) -> int:
        return max(_LEAST_UNITS, self.units_per_row * len(self.rows))

    def reply(self) -> Reply:
        """The reply with its metering headers."""
        headers = {
            "x-api-rows": len(self.rows),
            "x-api-units-cost-row": self.units_per_row,
            "x-api-units-cost-total": self.units,
            "x-api-units-cost-total-actual": self.units,
            "x-api-cache": "no_cache",
        }
        return Reply(200, {self.name: self.rows}, {k: str(v) for k, v in headers.items()})


Reader = Callable[[Mapping[str, str]], _Found]


class Ahrefs:
    """The endpoints, and what each key has used up.

    Every key has one limit for all of them, `ahrefs_per_minute`. No reply says how much is left or
    how long to wait.
    """

    def __init__(self, work: Work, journal: Journal) -> None:
        self._work = work
        self._journal = journal
        self._buckets: dict[tuple[str, float], Bucket] = {}
        self._units: Counter[str] = Counter()

    def routes(self) -> list[web.RouteDef]:
        """Where they are."""
        return [
            web.get(f"/{PROVIDER}/v3/serp-overview/serp-overview", self._serp_overview),
            web.get(f"/{PROVIDER}/v3/keywords-explorer/overview", self._keywords_overview),
            web.get(f"/{PROVIDER}/v3/subscription-info/limits-and-usage", self._limits_and_usage),
        ]

    def reset(self) -> None:
        """Forget limits and what was used."""
        self._buckets.clear()
        self._units.clear()

    async def _serp_overview(self, request: web.Request) -> web.StreamResponse:
        return await self._metered(request, "serp-overview", _serp)

    async def _keywords_overview(self, request: web.Request) -> web.StreamResponse:
        return await self._metered(request, "keywords-overview", _keywords)

    async def _limits_and_usage(self, request: web.Request) -> web.StreamResponse:
        self._journal.other_calls[f"{PROVIDER} limits-and-usage"] += 1
        try:
            key = self._admit(request, time.monotonic(), free=True)
        except RefusedError as refused:
            return send(refused.reply)
        used = self._units[key]
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

    async def _metered(self, request: web.Request, model: str, read: Reader) -> web.StreamResponse:
        mono, now = time.monotonic(), time.time()
        request_id = f"req_{uuid.uuid4().hex}"
        sha = fingerprint(request.path_qs.encode("utf-8", "replace"))

        def record(status: int, units: int = 0, fault: str | None = None) -> None:
            self._units[_key(request)] += units
            self._journal.add(
                Attempt(
                    n=self._journal.next_n,
                    t=now,
                    provider=PROVIDER,
                    endpoint=request.path.rpartition("/")[2],
                    key_last4=_key(request)[-4:],
                    model=model,
                    status=status,
                    usage=Usage(),
                    # a subscription: what a call uses up is units, not money
                    billed=False,
                    fault=fault,
                    latency_s=round(time.monotonic() - mono, 6),
                    request_id=request_id,
                    items=0,
                    body_sha=sha,
                    client_request_id=request.headers.get("x-client-request-id", ""),
                    units=units,
                )
            )

        try:
            key = self._admit(request, mono)
            found = read(request.query)
        except RefusedError as refused:
            record(refused.reply.status)
            return send(refused.reply)
        rule = self._work.search_fault(
            provider=PROVIDER, model=model, key=key, name=sha, text=found.about
        )
        kind = rule.kind if rule else None
        reply = found.reply() if rule is None else self._broken(rule, key, found.reply())
        metered = kind is None or kind in _METERED
        if rule is not None and rule.billed is not None:
            metered = rule.billed
        units = found.units if metered else 0
        settled = False
        try:
            if kind == "hang":
                settled = True
                record(0, units, kind)
                # Ends by cancellation only, when the client or the server goes.
                await asyncio.get_running_loop().create_future()
            if kind != "refuse":
                await asyncio.sleep(self._latency_s(sha))
            settled = True
            record(0 if kind in ("cut", "refuse") else reply.status, units, kind)
        except asyncio.CancelledError:
            if not settled:
                record(0, units, kind or "client_left")
            raise
        if kind in ("cut", "refuse"):
            return abort(request)
        if kind == "cut_body":
            return await send_start(request, reply.payload, 0.5, reply)
        return send(reply)

    def _admit(self, request: web.Request, mono: float, *, free: bool = False) -> str:
        """Return the call's key.

        Args:
            request: the call.
            mono: when it came.
            free: whether it uses no units, so that a spent plan does not matter.

        Raises:
            RefusedError: there is none, it is a bad one, its plan is spent, or it calls too often.
        """
        key = _key(request)
        if not key or key.startswith("bad"):
            raise RefusedError(_error(401))
        if not free and self._work.config.mark_of(key) is not None:
            raise RefusedError(_error(403))
        per_minute = self._work.config.ahrefs_per_minute
        bucket = self._buckets.get((key, per_minute))
        if bucket is None:
            bucket = self._buckets[key, per_minute] = Bucket(per_minute, None, mono)
        if bucket.wait_s(1, mono) > 0:
            raise RefusedError(_error(429))
        bucket.take(1, mono)
        return key

    def _broken(self, rule: FaultRule, key: str, right: Reply) -> Reply:
        """The reply that a fault makes of a right one; the right one where only the wire breaks."""
        quoted = f"The key {key} was refused." if rule.echo_key else None
        if rule.kind == "html":
            page = _HTML.format(quoted or "Service unavailable")
            return Reply(rule.status or 503, page.encode(), {"content-type": "text/html"})
        if rule.kind in ("status", "error_body"):
            waits = rule.retry_after_s is not None and self._work.config.headers
            headers = {"retry-after": f"{rule.retry_after_s:g}"} if waits else {}
            said = _error(rule.status or 500, quoted)
            return Reply(200 if rule.kind == "error_body" else said.status, said.body, headers)
        if rule.kind == "malformed_json":
            return Reply(right.status, right.payload[: len(right.payload) // 2], right.headers)
        return right

    def _latency_s(self, sha: str) -> float:
        latency = self._work.config.latency
        return latency.base_s + latency.jitter_s * draw(self._work.config.seed, "latency", sha)


def _key(request: web.Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _error(status: int, message: str | None = None) -> Reply:
    return Reply(status, {"error": message or _WORDS.get(status, "internal server error")})


def _serp(query: Mapping[str, str]) -> _Found:
    columns, units = _selected(query, _SERP_UNITS)
    keyword, country = _wanted(query, "keyword"), _country(query)
    try:
        top = int(query.get("top_positions", _TOP))
    except ValueError as error:
        raise _bad("top_positions is not a whole number") from error
    rows = positions(keyword, country, top)
    return _Found(keyword, "positions", [_only(columns, row) for row in rows], units)


def _keywords(query: Mapping[str, str]) -> _Found:
    columns, units = _selected(query, _KEYWORD_UNITS)
    country = _country(query)
    keywords = [word.strip() for word in _wanted(query, "keywords").split(",") if word.strip()]
    rows = [_only(columns, metrics(keyword, country)) for keyword in keywords]
    return _Found("\n".join(keywords), "keywords", rows, units)


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
