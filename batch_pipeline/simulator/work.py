"""Decides all about one generation request without any I/O: admission, fault, answer, latency.

What does not live here: HTTP (`server`) and the protocols (`wire_*`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from batch_pipeline.simulator import tokens
from batch_pipeline.simulator.answers import REFUSAL, Answer, answer
from batch_pipeline.simulator.buckets import Buckets, Excess
from batch_pipeline.simulator.catalog import catalog
from batch_pipeline.simulator.config import (
    SEARCH_FAULTS,
    TEXT_FAULTS,
    FaultRule,
    JobFault,
    Lane,
    SimulatorConfig,
)
from batch_pipeline.simulator.draws import draw
from batch_pipeline.simulator.faults import FaultPlan, Verdict
from batch_pipeline.simulator.items import Item, find_items
from batch_pipeline.simulator.prompt_cache import CacheUse, PromptCache, Scope
from batch_pipeline.simulator.schema import UnsupportedSchemaError
from batch_pipeline.simulator.wire import Call, Finish, RefusedError, Reply, Usage, Wire
from batch_pipeline.simulator.wire_anthropic import AnthropicWire
from batch_pipeline.simulator.wire_google import GoogleWire
from batch_pipeline.simulator.wire_openai import OpenAIWire, OpenRouterWire
from batch_pipeline.simulator.writers import Background

WIRES: Mapping[str, Wire] = {
    wire.provider: wire for wire in (GoogleWire(), AnthropicWire(), OpenAIWire(), OpenRouterWire())
}
_HTML = "<html><head><title>Error</title></head><body><h1>Service unavailable</h1></body></html>"
# These cost the provider nothing; every other fault comes after the work was done.
_UNBILLED = frozenset({"status", "html", "error_body", "refuse"})
_PACIFIC = ZoneInfo("America/Los_Angeles")
# How replies say limits and waits.
_RATE_HEADERS = ("retry-after", "x-ratelimit-", "anthropic-ratelimit-")


@dataclass(frozen=True)
class Outcome:
    """What will happen to an admitted request.

    Attributes:
        reply: what to send after `latency_s`, where anything is sent (not at `hang`, `cut`,
            `refuse`).
        ending: `whole`, `hang`, `cut` or `refuse` (the connection, after or before the work) or
            `cut_body`.
        usage: what the attempt is charged for; zero when it is not billed.
    """

    call: Call
    buckets: Buckets
    reply: Reply
    ending: str
    usage: Usage
    billed: bool
    fault: str | None
    latency_s: float
    items: int


@dataclass(frozen=True)
class _Asked:
    items: tuple[Item, ...]
    right: Answer
    cache: CacheUse


class Work:
    """The state behind all requests: configuration, buckets, prompt caches, fault counters."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self._buckets: dict[tuple[str, str, str], Buckets] = {}
        self._cache = PromptCache()
        self._faults = FaultPlan(config.faults, config.seed)

    def configure(self, config: SimulatorConfig) -> None:
        """Take new settings; buckets and fault counters start anew where theirs changed."""
        if config.limits != self.config.limits:
            self._buckets = {}
        if (config.faults, config.seed) != (self.config.faults, self.config.seed):
            self._faults = FaultPlan(config.faults, config.seed)
        self.config = config

    def reset(self) -> None:
        """Forget buckets, prompt caches and faults; limits and latency stay."""
        self.config = self.config.model_copy(update={"faults": ()})
        self._buckets = {}
        self._cache = PromptCache()
        self._faults = FaultPlan((), self.config.seed)

    def authenticate(self, wire: Wire, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """Return the request's key.

        Raises:
            RefusedError: there is none, or it starts with `bad`.
        """
        key = wire.key(headers, query)
        if not key:
            raise RefusedError(wire.missing_key())
        if key.startswith("bad"):
            raise RefusedError(wire.bad_key(key))
        return key

    def begin(
        self, wire: Wire, call: Call, *, body_sha: str, request_id: str, mono: float, now: float
    ) -> Outcome:
        """Admit a request and decide how it ends.

        Args:
            wire: the provider's protocol.
            call: the request, read by it.
            body_sha: name of the request's bytes: draws depend on it.
            request_id: what the reply will call it.
            mono: monotonic seconds at arrival: limits and caches run on it.
            now: UTC seconds at arrival, for headers.

        Raises:
            RefusedError: the key's account, the context window or a limit says no.
        """
        mark = self.config.mark_of(call.key)
        if mark:
            raise RefusedError(wire.marked(mark, call.model, request_id), call.model)
        asked = self._asked(wire, call, mono)
        counted = call.input_tokens
        if wire.cached_input_is_free_of_limits:
            counted -= asked.cache.read
        buckets = self._buckets_of(call, mono)
        day, day_ends_in_s = _day(call.provider, now)
        excess = buckets.admit(
            input_tokens=counted,
            output_tokens=asked.right.output_tokens,
            now=mono,
            day=self.config.day or day,
            day_ends_in_s=day_ends_in_s,
        )
        if excess:
            gauges = wire.gauge_headers(buckets.gauges(mono), now)
            reply = self._limited(wire, excess, call.model, request_id, gauges)
            raise RefusedError(reply, call.model)
        outcome = self._decide(wire, call, asked, "realtime", body_sha, request_id, mono)
        if outcome.reply.status == 200 and self.config.headers:
            gauges = wire.gauge_headers(buckets.gauges(mono), now)
            reply = replace(outcome.reply, headers={**outcome.reply.headers, **gauges})
            outcome = replace(outcome, reply=reply)
        return outcome

    def line(
        self, wire: Wire, call: Call, *, body_sha: str, request_id: str, mono: float
    ) -> Outcome:
        """Answer one line of a batch job: as a request, but without its rate limits and latency.

        Raises:
            RefusedError: the context window says no.
        """
        asked = self._asked(wire, call, mono)
        return self._decide(wire, call, asked, "batch", body_sha, request_id, mono)

    def strike(
        self, kind: JobFault, *, provider: str, model: str = "", key: str, name: str, text: str = ""
    ) -> FaultRule | None:
        """Return the rule of a job fault that hits one call around batch jobs, if any.

        Args:
            kind: of the fault.
            provider: whose API was called.
            model: of the job, where it is known.
            key: of the call.
            name: what the call is about: draws depend on it and on how often it was seen.
            text: what `match` is searched in.
        """
        return self._faults.strike((kind,), provider, model, key, f"{kind} {name}", text)

    def search_fault(
        self, *, provider: str, model: str, key: str, name: str, text: str
    ) -> FaultRule | None:
        """Return the rule that hits one call of a search provider, if any.

        Args:
            provider: whose API was called.
            model: the journal's name of the endpoint.
            key: of the call.
            name: of what was asked: draws depend on it and on how often it was seen.
            text: the words searched for, which `match` looks into.
        """
        seen = f"search {name}"
        return self._faults.strike(SEARCH_FAULTS, provider, model, key, seen, text, "realtime")

    def _asked(self, wire: Wire, call: Call, mono: float) -> _Asked:
        window = catalog(call.provider).context_tokens
        if call.input_tokens > window:
            raise RefusedError(wire.too_long(call, window), call.model)
        items = find_items(call.user_text)
        right = self._answer(wire, call, items)
        cache = self._cache.look(_scope(call), call.cache_points, mono, wire.cache_granularity)
        return _Asked(items, right, cache)

    def _decide(
        self,
        wire: Wire,
        call: Call,
        asked: _Asked,
        lane: Lane,
        body_sha: str,
        request_id: str,
        mono: float,
    ) -> Outcome:
        items, right, cache = asked.items, asked.right, asked.cache
        verdict = self._faults.judge(
            provider=call.provider,
            model=call.model,
            key=call.key,
            body_sha=body_sha,
            text=call.text,
            items=items,
            written=right.written | {"web"} if call.web else right.written,
            lane=lane,
        )
        said = right
        if verdict.items or (verdict.whole and verdict.whole.kind in TEXT_FAULTS):
            said = self._answer(wire, call, items, verdict)
        # A line of a job leaves no connection waiting.
        latency_s = (
            self._latency(verdict, said.output_tokens, body_sha) if lane == "realtime" else 0.0
        )
        if not wire.reports_cache_writes(call.model):
            cache = replace(cache, write=0, write_long=0)
        self._cache.keep(_scope(call), call.cache_points, mono, mono + latency_s)
        billed = verdict.billed(
            default=verdict.whole is None or verdict.whole.kind not in _UNBILLED
        )
        text, finish = _said(wire, said, verdict)
        output_tokens = said.output_tokens if text == said.text else tokens.count(text)
        usage = call.usage(cache, output_tokens)
        if call.web and any(rule.kind == "no_findings" for rule in verdict.items):
            # the search was made and is paid for; it found nothing
            call = replace(call, web=replace(call.web, pages=()))
        reply = self._reply(wire, call, verdict, text, finish, usage, request_id)
        kind = verdict.whole.kind if verdict.whole else None
        return Outcome(
            call=call,
            buckets=self._buckets_of(call, mono),
            reply=reply,
            ending=kind if kind in ("hang", "refuse", "cut", "cut_body") else "whole",
            usage=usage if billed else Usage(),
            billed=billed,
            fault=verdict.kind,
            latency_s=latency_s,
            items=len(items),
        )

    def _answer(
        self, wire: Wire, call: Call, items: tuple[Item, ...], verdict: Verdict | None = None
    ) -> Answer:
        verdict = verdict or Verdict()
        try:
            return answer(
                schema=call.schema,
                user_text=call.user_text,
                items=items,
                max_tokens=call.max_tokens,
                broken=verdict.items,
                whole=verdict.whole.kind if verdict.whole else None,
                background=Background(call.web.pages if call.web else (), self.config.slips),
            )
        except UnsupportedSchemaError as error:
            raise wire.bad_request(str(error), call.model) from error

    def _limited(
        self, wire: Wire, excess: Excess, model: str, request_id: str, gauges: Mapping[str, str]
    ) -> Reply:
        if self.config.headers:
            reply = wire.limited(excess, model, request_id)
            return replace(reply, headers={**gauges, **reply.headers})
        if excess.name == "requests_per_day":
            reply = wire.limited(excess, model, request_id)
        else:
            # The provider's shortest 429: its longer one says the wait in the body too.
            reply = wire.error(429, model=model, request_id=request_id)
        kept = {k: v for k, v in reply.headers.items() if not k.lower().startswith(_RATE_HEADERS)}
        return replace(reply, headers=kept)

    def _reply(
        self,
        wire: Wire,
        call: Call,
        verdict: Verdict,
        text: str,
        finish: Finish,
        usage: Usage,
        request_id: str,
    ) -> Reply:
        rule = verdict.whole
        quoted = f"The key {call.key} was refused." if rule and rule.echo_key else None
        if rule and rule.kind == "html":
            page = _HTML.replace("Service unavailable", quoted) if quoted else _HTML
            return Reply(rule.status or 503, page.encode(), {"content-type": "text/html"})
        if rule and rule.kind in ("status", "error_body"):
            reply = wire.error(
                rule.status or 502,
                code=rule.code,
                message=quoted,
                retry_after_s=rule.retry_after_s if self.config.headers else None,
                model=call.model,
                request_id=request_id,
            )
            return replace(reply, status=200) if rule.kind == "error_body" else reply
        return wire.success(call, text, finish, usage, request_id)

    def _buckets_of(self, call: Call, now: float) -> Buckets:
        scope = _scope(call)
        if scope not in self._buckets:
            limit = self.config.limit_for(call.provider, call.model, call.key)
            self._buckets[scope] = Buckets(limit, now)
        return self._buckets[scope]

    def _latency(self, verdict: Verdict, output_tokens: int, body_sha: str) -> float:
        if verdict.whole and verdict.whole.kind == "refuse":
            return 0.0
        latency = self.config.latency
        jitter = latency.jitter_s * draw(self.config.seed, "latency", body_sha)
        if verdict.whole and verdict.whole.kind in _UNBILLED:
            output_tokens = 0
        return latency.base_s + latency.per_output_token_s * output_tokens + jitter


def _scope(call: Call) -> Scope:
    return call.provider, call.key, call.model


def _said(wire: Wire, said: Answer, verdict: Verdict) -> tuple[str, Finish]:
    kind = verdict.whole.kind if verdict.whole else None
    if kind == "refusal":
        # `SAFETY`: it is the answer that was stopped, not the prompt.
        stopped = verdict.whole is not None and verdict.whole.code == "SAFETY"
        text = "" if wire.refuses_without_output else REFUSAL
        return text, "safety" if stopped else "refusal"
    if kind == "empty":
        return "", "empty"
    return said.text, "length" if said.cut else "stop"


def _day(provider: str, now: float) -> tuple[str, float]:
    """The provider's day that a moment falls on, and the seconds until its next midnight."""
    zone = _PACIFIC if provider == "google" else UTC
    at = datetime.fromtimestamp(now, zone)
    tomorrow = at.date() + timedelta(days=1)
    midnight = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=zone)
    return at.date().isoformat(), midnight.timestamp() - now


def body_object(wire: Wire, value: Any) -> dict[str, Any]:
    """Return a request's JSON object.

    Raises:
        RefusedError: it is something else.
    """
    if not isinstance(value, dict):
        raise RefusedError(wire.error(400, message="The request body is not a JSON object."))
    return value
