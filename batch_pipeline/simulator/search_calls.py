"""What every search API does with a call: key, limit, faults, waiting, journal.

What does not live here: one provider's protocol (`search_ahrefs`, `search_exa`, `search_tavily`),
what is found (`serp`, `web_pages`), and which faults hit (`faults`).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import orjson
from aiohttp import web

from batch_pipeline.simulator.buckets import Bucket
from batch_pipeline.simulator.config import FaultRule, KeyMark
from batch_pipeline.simulator.draws import draw, fingerprint
from batch_pipeline.simulator.journal import Attempt, Journal
from batch_pipeline.simulator.replies import abort, send, send_start
from batch_pipeline.simulator.wire import Json, RefusedError, Reply, Usage
from batch_pipeline.simulator.work import Work

_HTML = "<html><head><title>Error</title></head><body><h1>{}</h1></body></html>"
# These are paid for all the same: the work was done.
_CHARGED = frozenset({"hang", "cut", "cut_body", "malformed_json", "no_findings"})


@dataclass(frozen=True)
class Found:
    """What a call found.

    Attributes:
        about: the words searched for, which `match` looks into.
        body: of the reply.
        usd: its price.
        units: what it uses up of the plan, where the provider counts that.
        headers: of the reply.
    """

    about: str
    body: Json
    usd: float
    units: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


class SearchCalls(ABC):
    """One provider's calls, and what each key has used up.

    Attributes:
        provider: its name.
        by_the_call: whether a call costs money; by a subscription it uses up units alone.
    """

    provider: str
    by_the_call = True

    def __init__(self, work: Work, journal: Journal) -> None:
        self._work = work
        self._journal = journal
        self._buckets: dict[tuple[str, float, float | None], Bucket] = {}
        self._used: Counter[str] = Counter()

    @abstractmethod
    def routes(self) -> list[web.RouteDef]:
        """Where its endpoints are."""

    def reset(self) -> None:
        """Forget limits and what was used."""
        self._buckets.clear()
        self._used.clear()

    @abstractmethod
    def key(self, request: web.Request) -> str:
        """Return the key of a call; empty where it has none."""

    @abstractmethod
    def error(self, status: int, message: str | None = None, code: str | None = None) -> Reply:
        """Write an error in the provider's own form."""

    @abstractmethod
    def spent(self, mark: KeyMark) -> Reply:
        """Write the error of a key whose account is spent."""

    @abstractmethod
    def limit(self) -> tuple[float, float | None]:
        """Return the limit of each key: calls a minute, and what its bucket holds.

        None holds a minute's worth.
        """

    def authenticate(self, request: web.Request) -> str:
        """Return the call's key.

        Raises:
            RefusedError: there is none, or it is a bad one.
        """
        key = self.key(request)
        if not key or key.startswith("bad"):
            raise RefusedError(self.error(401))
        return key

    def admit(self, request: web.Request, mono: float) -> str:
        """Return the key of a call that comes at `mono`.

        Raises:
            RefusedError: there is none, it is a bad one, or it calls too often.
        """
        key = self.authenticate(request)
        per_minute, capacity = self.limit()
        name = (key, per_minute, capacity)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(per_minute, capacity, mono)
        if bucket.wait_s(1, mono) > 0:
            raise RefusedError(self.error(429))
        bucket.take(1, mono)
        return key

    async def carry_out(
        self, request: web.Request, model: str, said: bytes, find: Callable[[], Found]
    ) -> web.StreamResponse:
        """Answer a call, and write it down.

        Args:
            request: the call.
            model: what the journal calls what is asked.
            said: all that the call says: chance and faults go by it.
            find: answers it; raises RefusedError for what the provider answers with an error.
        """
        mono, now = time.monotonic(), time.time()
        request_id = f"req_{uuid.uuid4().hex}"
        sha = fingerprint(said)

        def record(status: int, found: Found | None = None, fault: str | None = None) -> None:
            if found is not None:
                self._used[self.key(request)] += found.units
            self._journal.add(
                Attempt(
                    n=self._journal.next_n,
                    t=now,
                    provider=self.provider,
                    endpoint=request.path.rpartition("/")[2],
                    key_last4=self.key(request)[-4:],
                    model=model,
                    status=status,
                    usage=Usage(),
                    billed=found is not None and self.by_the_call,
                    fault=fault,
                    latency_s=round(time.monotonic() - mono, 6),
                    request_id=request_id,
                    items=0,
                    body_sha=sha,
                    client_request_id=request.headers.get("x-client-request-id", ""),
                    units=0 if found is None else found.units,
                    search_usd=0.0 if found is None else found.usd,
                )
            )

        try:
            key = self.admit(request, mono)
            if mark := self._work.config.mark_of(key):
                raise RefusedError(self.spent(mark))
            found = find()
        except RefusedError as refused:
            record(refused.reply.status)
            return send(refused.reply)
        rule = self._work.search_fault(
            provider=self.provider, model=model, key=key, name=sha, text=found.about
        )
        kind = rule.kind if rule else None
        right = Reply(200, found.body, dict(found.headers))
        reply = right if rule is None else self._broken(rule, key, right)
        charged = kind is None or kind in _CHARGED
        if rule is not None and rule.billed is not None:
            charged = rule.billed
        paid = found if charged else None
        settled = False
        try:
            if kind == "hang":
                settled = True
                record(0, paid, kind)
                # Ends by cancellation only, when the client or the server goes.
                await asyncio.get_running_loop().create_future()
            if kind != "refuse":
                latency = self._work.config.latency
                jitter_s = latency.jitter_s * draw(self._work.config.seed, "latency", sha)
                await asyncio.sleep(latency.base_s + jitter_s)
            settled = True
            record(0 if kind in ("cut", "refuse") else reply.status, paid, kind)
        except asyncio.CancelledError:
            if not settled:
                record(0, paid, kind or "client_left")
            raise
        if kind in ("cut", "refuse"):
            return abort(request)
        if kind == "cut_body":
            return await send_start(request, reply.payload, 0.5, reply)
        return send(reply)

    def _broken(self, rule: FaultRule, key: str, right: Reply) -> Reply:
        """The reply that a fault makes of a right one; the right one where only the wire breaks."""
        quoted = f"The key {key} was refused." if rule.echo_key else None
        if rule.kind == "html":
            page = _HTML.format(quoted or "Service unavailable")
            return Reply(rule.status or 503, page.encode(), {"content-type": "text/html"})
        if rule.kind in ("status", "error_body"):
            waits = rule.retry_after_s is not None and self._work.config.headers
            headers = {"retry-after": f"{rule.retry_after_s:g}"} if waits else {}
            said = self.error(rule.status or 500, quoted, rule.code)
            return Reply(200 if rule.kind == "error_body" else said.status, said.body, headers)
        if rule.kind == "no_findings" and isinstance(right.body, dict) and "results" in right.body:
            return Reply(right.status, {**right.body, "results": []}, right.headers)
        if rule.kind == "malformed_json":
            return Reply(right.status, right.payload[: len(right.payload) // 2], right.headers)
        return right


class SearchApi(SearchCalls):
    """One provider's `POST /search`, which is paid for by the call."""

    def routes(self) -> list[web.RouteDef]:
        """Where its endpoints are."""
        return [web.post(f"/{self.provider}/search", self._search)]

    @abstractmethod
    def find(self, body: Json) -> Found:
        """Answer a request.

        Raises:
            RefusedError: it is one that the provider answers with an error.
        """

    async def _search(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        return await self.carry_out(request, "search", raw, lambda: self._found(raw))

    def _found(self, raw: bytes) -> Found:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise RefusedError(self.error(400, "The body is not valid JSON.")) from error
        if not isinstance(body, dict):
            raise RefusedError(self.error(400, "The body is not a JSON object."))
        return self.find(body)


def strings_of(value: object) -> list[str]:
    """The strings of a JSON array, none of anything else."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
