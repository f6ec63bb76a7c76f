"""What a batch would ask, cost and take, before it runs: pure arithmetic.

What belongs here: counting, packing and pricing rows that somebody else read, for several routes
in one pass. What does not: SQL and reading the table (compare.py), the console, spending.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.packing import Packer
from batch_pipeline.engine.step import Step
from batch_pipeline.ledger.batches import INPUT_ERROR, Item, NewItem
from batch_pipeline.ledger.tables import NANO, Outcome
from batch_pipeline.limits.rates import Rates
from batch_pipeline.pricing.calibration import NO_PREFIX, CachedPrefix, InputScale, OutputScale
from batch_pipeline.pricing.tokens import estimate_item_tokens
from batch_pipeline.providers.base import Usage

_PAGE = 500

# A slow model's usual pace, where nothing is known of it.
_ASSUMED_FIRST_TOKEN_S = 1.0
_ASSUMED_TOKENS_PER_S = 100.0

_DAY_S = 86_400.0

ASSUMED_WORKERS = 32
"""Requests in flight that `workers: auto` is taken to come to where nothing limits it."""


class Standing(StrEnum):
    """Where a row stands before the run."""

    OPEN = "open"
    DONE = "done"
    BLOCKED = "blocked"
    SKIPPED = "skipped"
    UNUSABLE = "unusable"


class Miss(StrEnum):
    """Why a row has no stored answer."""

    NEW = "never asked before"
    OTHER_MODEL = "answered by a model outside this route"
    CHANGED = "asked before with another prompt, schema or parameters"
    FORCED = "answered, asked again by --force"


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row and where it stands."""

    item_id: str
    row: Mapping[str, Any]
    standing: Standing


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the ledger knows, asked page by page.

    Attributes:
        cached: of these cache keys, those answered by a model of the route.
        answered_otherwise: of these cache keys, those that any model has answered.
        asked_before: of these item ids, those that succeeded in any batch of the workload.
    """

    cached: Callable[[Sequence[str]], Collection[str]]
    answered_otherwise: Callable[[Sequence[str]], Collection[str]]
    asked_before: Callable[[Sequence[str]], Collection[str]]


@dataclass(frozen=True, slots=True)
class Pace:
    """What bounds a run's speed.

    Attributes:
        rates: the key's, per minute.
        workers: requests in flight; None follows the limits and the servers.
    """

    rates: Rates
    workers: int | None


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """One route to estimate.

    Attributes:
        route: as the user wrote it.
        model: the model that answers when nothing goes wrong, `provider/model`.
        lookup: what the ledger knows.
        pace: rates and workers.
        price: nano-USD of one call; None where unknown.
        base_tokens: local count of what every request has: system prompt, schema, frame.
        input: how the model counts prompt tokens.
        output: what its answers come to.
        prefix: the part of the prompt that it keeps.
        latency_s: seconds of a call; None where unknown.
        notes: what the user should know about all this.
    """

    route: str
    model: str
    lookup: Lookup
    pace: Pace
    price: Callable[[Usage], int] | None
    base_tokens: int
    input: InputScale
    output: OutputScale
    prefix: CachedPrefix = NO_PREFIX
    latency_s: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens and money of a whole run; `cost_usd` is None where the price is unknown.

    `input_tokens` are all prompt tokens, of which `cached_input_tokens` come from the provider's
    prompt cache.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0

    def plus(self, other: Amount) -> Amount:
        """Both together."""
        unknown = self.cost_usd is None or other.cost_usd is None
        return Amount(
            self.input_tokens + other.input_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.output_tokens + other.output_tokens,
            None if unknown else (self.cost_usd or 0.0) + (other.cost_usd or 0.0),
        )

    def times(self, factor: float) -> Amount:
        """So many times as much."""
        return Amount(
            round(self.input_tokens * factor),
            round(self.cached_input_tokens * factor),
            round(self.output_tokens * factor),
            None if self.cost_usd is None else self.cost_usd * factor,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "input_tokens": self.input_tokens,
            "cached_input_tokens": self.cached_input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
        }


@dataclass(frozen=True, slots=True)
class Basis:
    """What an estimate rests on, and how sure it is.

    Attributes:
        input: where the prompt tokens come from, in words (`pricing/calibration.py`).
        input_calls: of how many requests.
        input_margin: how far they may be off, as a share.
        output: where the output tokens come from, in words.
        output_calls: of how many requests.
        output_margin: how far they may be off, as a share.
        notes: sentences for the user.
    """

    input: str
    input_calls: int
    input_margin: float
    output: str
    output_calls: int
    output_margin: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "input": self.input,
            "input_calls": self.input_calls,
            "input_margin": round(self.input_margin, 3),
            "output": self.output,
            "output_calls": self.output_calls,
            "output_margin": round(self.output_margin, 3),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run by one route would do; done to unusable, without questions, add up to rows.

    Attributes:
        route: as the user wrote it.
        model: the model that answers when nothing goes wrong.
        basis: what it rests on.
        rows: rows of the table.
        done: rows that this batch has finished already.
        cached: rows that a stored answer serves.
        to_ask: rows that need a call.
        questions: distinct questions among them: identical rows share one.
        left_pending: rows beyond `--limit`.
        blocked: rows waiting for a person's decision.
        skipped: rows with nothing to ask.
        unusable: rows that cannot be read.
        misses: why rows of `to_ask` have no stored answer, counted over questions.
        requests: calls when nothing goes wrong.
        low: the least that it may come to.
        expected: what it should come to.
        worst: every answer at its bound, each request once, nothing from the prompt cache.
        seconds: expected wall time.
        bound_by: what the time is bound by, in words.
        rows_read: rows that were looked at; fewer than `rows` where the rest is extrapolated.
    """

    route: str
    model: str
    basis: Basis
    rows: int = 0
    done: int = 0
    cached: int = 0
    to_ask: int = 0
    questions: int = 0
    left_pending: int = 0
    blocked: int = 0
    skipped: int = 0
    unusable: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    low: Amount = Amount()
    expected: Amount = Amount()
    worst: Amount = Amount()
    seconds: float = 0.0
    bound_by: str = ""
    rows_read: int = 0

    @property
    def cost_usd(self) -> float | None:
        """The expected cost; None where the price is unknown."""
        return self.expected.cost_usd

    def scaled_to(self, rows: int) -> Estimate:
        """The same for a table of `rows` rows, of which these are a fair sample."""
        if not self.rows or rows == self.rows:
            return self
        factor = rows / self.rows
        counts = ("done", "cached", "to_ask", "questions", "left_pending", "blocked", "skipped")
        return replace(
            self,
            rows=rows,
            **{name: round(getattr(self, name) * factor) for name in (*counts, "unusable")},
            misses={reason: round(count * factor) for reason, count in self.misses.items()},
            requests=round(self.requests * factor),
            low=self.low.times(factor),
            expected=self.expected.times(factor),
            worst=self.worst.times(factor),
            seconds=self.seconds * factor,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for `batches.estimate` in the ledger."""
        plain = ("route", "model", "rows", "done", "cached", "to_ask", "questions", "left_pending")
        more = ("blocked", "skipped", "unusable", "misses", "requests")
        return {
            **{name: getattr(self, name) for name in (*plain, *more)},
            "low": self.low.to_dict(),
            "expected": self.expected.to_dict(),
            "worst": self.worst.to_dict(),
            "seconds": round(self.seconds, 1),
            "bound_by": self.bound_by,
            "basis": self.basis.to_dict(),
            "rows_read": self.rows_read,
        }


@dataclass(frozen=True, slots=True)
class Question:
    """An open row's question; `tokens` is the local count of its content."""

    item_id: str
    key: str
    content: Mapping[str, Any]
    tokens: int


def basis_line(found: Estimate) -> str:
    """What an estimate rests on, and how sure it is, in one sentence."""
    basis = found.basis

    def source(name: str, calls: int, margin: float) -> str:
        of = f" of {calls:,} request{'' if calls == 1 else 's'}" if calls else ""
        return f"{name}{of} (±{margin:.0%})"

    return (
        f"{found.model}: input by {source(basis.input, basis.input_calls, basis.input_margin)}, "
        f"output by {source(basis.output, basis.output_calls, basis.output_margin)}."
    )


def planned_from_table(rows: Iterable[NewItem]) -> Iterator[PlannedRow]:
    """Rows of a table that is not in the ledger yet."""
    for item in rows:
        standing = Standing.OPEN
        if item.problem:
            standing = Standing.UNUSABLE
        elif item.skip:
            standing = Standing.SKIPPED
        yield PlannedRow(item.item_id, item.row, standing)


def planned_from_batch(
    rows: Iterable[Item], *, include_blocked: bool = False, force: bool = False
) -> Iterator[PlannedRow]:
    """Rows of an ingested batch, as its next run would take them."""
    for item in rows:
        standing = Standing.OPEN
        if item.outcome is Outcome.SKIPPED:
            standing = Standing.SKIPPED
        elif item.error_kind == INPUT_ERROR:
            standing = Standing.UNUSABLE
        elif item.outcome is Outcome.BLOCKED and not (include_blocked or force):
            standing = Standing.BLOCKED
        elif item.outcome is Outcome.SUCCEEDED and not force:
            standing = Standing.DONE
        yield PlannedRow(item.item_id, item.row, standing)


def questions_of(step: Step, rows: Iterable[PlannedRow]) -> Iterator[Question]:
    """The questions of the open rows, one for each row."""
    keys = KeyMaker(step)
    for planned in rows:
        if planned.standing is Standing.OPEN:
            content = step.content(planned.row)
            yield Question(
                planned.item_id, keys.key(content), content, estimate_item_tokens(content)
            )


def estimate_routes(
    rows: Iterable[PlannedRow],
    step: Step,
    plans: Sequence[RoutePlan],
    *,
    limit: int | None = None,
    force: bool = False,
) -> list[Estimate]:
    """Count, pack and price `rows` for each route.

    Memory grows by 40 bytes for each distinct question and route.

    Args:
        rows: the rows in order; consumed once.
        step: the LLM task.
        plans: the routes.
        limit: ask about at most so many rows.
        force: stored answers are no hits.
    """
    counters = [_Counter(step, plan, limit, force) for plan in plans]
    counts = dict.fromkeys(Standing, 0)
    for page in _pages(rows):
        for planned in page:
            counts[planned.standing] += 1
        questions = list(questions_of(step, page))
        for counter in counters:
            counter.take(questions)
    return [counter.finish(counts) for counter in counters]


@dataclass(slots=True)
class _Sums:
    """One of low, expected and worst, while it is summed up."""

    input_tokens: float = 0.0
    cached: float = 0.0
    output_tokens: float = 0.0
    nano: int = 0

    def add(self, usage: Usage, price: Callable[[Usage], int] | None) -> None:
        self.input_tokens += usage.input_tokens
        self.cached += usage.cached_input_tokens
        self.output_tokens += usage.output_tokens
        if price is not None:
            self.nano += price(usage)

    def amount(self, priced: bool) -> Amount:
        return Amount(
            round(self.input_tokens),
            round(self.cached),
            round(self.output_tokens),
            self.nano / NANO if priced else None,
        )


class _Counter:
    """Packs one route's questions as the engine does, and sums up what the packs would use."""

    def __init__(self, step: Step, plan: RoutePlan, limit: int | None, force: bool) -> None:
        self._step = step
        self._plan = plan
        self._limit = limit
        self._force = force
        self._packer: Packer[Question] = Packer(step.max_items, step.max_input_tokens)
        self._asked: set[int] = set()
        self._cached = self._to_ask = self._left_pending = 0
        self._misses: dict[str, int] = {}
        self._requests = 0
        # Requests that are sent before the first reply is back find nothing in the cache.
        self._cold = plan.pace.workers or ASSUMED_WORKERS
        self._low, self._expected, self._worst = _Sums(), _Sums(), _Sums()

    def take(self, questions: Sequence[Question]) -> None:
        """Count the questions of a page of rows."""
        keys = [question.key for question in questions]
        hits = frozenset[str]() if self._force else frozenset(self._plan.lookup.cached(keys))
        fresh: list[Question] = []
        for question in questions:
            mark = int(question.key[:16], 16)
            if question.key in hits:
                self._cached += 1
            elif mark in self._asked:
                self._to_ask += 1
            elif self._limit is not None and self._to_ask >= self._limit:
                self._left_pending += 1
            else:
                self._to_ask += 1
                self._asked.add(mark)
                fresh.append(question)
                for pack in self._packer.add(question):
                    self._count(pack)
        for reason in _reasons(fresh, self._plan.lookup, self._force):
            self._misses[reason] = self._misses.get(reason, 0) + 1

    def finish(self, counts: Mapping[Standing, int]) -> Estimate:
        """The estimate, once all rows were counted."""
        for pack in self._packer.flush():
            self._count(pack)
        plan = self._plan
        priced = plan.price is not None
        expected = self._expected.amount(priced)
        seconds, bound_by = _time(plan, self._requests, expected)
        return Estimate(
            route=plan.route,
            model=plan.model,
            basis=Basis(
                plan.input.basis,
                plan.input.calls,
                plan.input.margin,
                plan.output.basis,
                plan.output.calls,
                plan.output.margin,
                plan.notes,
            ),
            rows=sum(counts.values()),
            done=counts[Standing.DONE],
            cached=self._cached,
            to_ask=self._to_ask,
            questions=len(self._asked),
            left_pending=self._left_pending,
            blocked=counts[Standing.BLOCKED],
            skipped=counts[Standing.SKIPPED],
            unusable=counts[Standing.UNUSABLE],
            misses=self._misses,
            requests=self._requests,
            low=self._low.amount(priced),
            expected=expected,
            worst=self._worst.amount(priced),
            seconds=seconds,
            bound_by=bound_by,
            rows_read=sum(counts.values()),
        )

    def _count(self, pack: Sequence[Question]) -> None:
        step, plan = self._step, self._plan
        self._requests += 1
        prompt = plan.input.ratio * (plan.base_tokens + sum(question.tokens for question in pack))
        bound = step.output_tokens_base + step.output_tokens_per_item * len(pack)
        answer = min(bound, sum(plan.output.expected(question.tokens) for question in pack))
        margin = plan.input.margin
        warm = self._requests > self._cold
        self._low.add(
            self._usage(prompt * (1 - margin), plan.output.low(answer), hit=self._requests > 1),
            plan.price,
        )
        self._expected.add(
            self._usage(prompt, answer, hit=warm and plan.prefix.certain), plan.price
        )
        self._worst.add(self._usage(prompt * (1 + margin), bound, hit=False), plan.price)

    def _usage(self, prompt: float, answer: float, *, hit: bool) -> Usage:
        prefix = self._plan.prefix
        kept = min(prefix.tokens, round(prompt))
        return Usage(
            input_tokens=round(prompt),
            cached_input_tokens=kept if hit else 0,
            cache_write_tokens=kept if prefix.billed_write and not hit else 0,
            output_tokens=round(answer),
        )


def _reasons(questions: Sequence[Question], lookup: Lookup, force: bool) -> Iterator[str]:
    if not questions:
        return
    answered = frozenset(lookup.answered_otherwise([question.key for question in questions]))
    rest = [question.item_id for question in questions if question.key not in answered]
    before = frozenset(lookup.asked_before(rest)) if rest else frozenset[str]()
    for question in questions:
        if question.key in answered:
            yield Miss.FORCED.value if force else Miss.OTHER_MODEL.value
        elif question.item_id in before:
            yield Miss.CHANGED.value
        else:
            yield Miss.NEW.value


def _time(plan: RoutePlan, requests: int, expected: Amount) -> tuple[float, str]:
    """Seconds, and what they are bound by: the slowest of rates and workers decides."""
    if not requests:
        return 0.0, ""
    latency = plan.latency_s
    if latency is None:
        answer = expected.output_tokens / requests
        latency = _ASSUMED_FIRST_TOKEN_S + answer / _ASSUMED_TOKENS_PER_S
    rates = plan.pace.rates
    workers = plan.pace.workers or ASSUMED_WORKERS
    name = f"{workers} requests in flight"
    if plan.pace.workers is None:
        name += ", which `workers: auto` may come to"
    if rates.concurrent is not None and rates.concurrent < workers:
        workers = max(1, int(rates.concurrent))
        name = f"{workers} concurrent requests of the key"
    bounds = {name: latency * -(-requests // min(workers, requests))}
    for what, rate, amount in (
        ("requests", rates.requests, requests - 1),
        ("input tokens", rates.input_tokens, expected.input_tokens),
        ("output tokens", rates.output_tokens, expected.output_tokens),
    ):
        if rate is not None:
            # The last call still has to come back.
            bounds[f"{rate:,.0f} {what} a minute"] = amount * 60.0 / rate + latency
    if rates.requests_per_day is not None:
        further_days = math.ceil(requests / rates.requests_per_day) - 1
        bounds[f"{rates.requests_per_day:,.0f} requests a day"] = further_days * _DAY_S + latency
    slowest = max(bounds, key=lambda bound: bounds[bound])
    return bounds[slowest], slowest


def _pages(rows: Iterable[PlannedRow]) -> Iterator[list[PlannedRow]]:
    page: list[PlannedRow] = []
    for row in rows:
        page.append(row)
        if len(page) >= _PAGE:
            yield page
            page = []
    if page:
        yield page
