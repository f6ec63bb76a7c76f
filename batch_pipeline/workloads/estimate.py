"""What a batch would ask, cost and take, before it runs: pure arithmetic.

What belongs here: counting, packing and pricing rows that somebody else read, for several routes
in one pass. What does not: SQL and reading the table (compare.py), the console, spending.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.lanes.batch import MOST_ITEMS
from batch_pipeline.engine.lanes.choice import TARGET_S, takes_batch_lane
from batch_pipeline.engine.packing import Packer
from batch_pipeline.engine.step import Step
from batch_pipeline.ledger.batches import INPUT_ERROR, Item, NewItem
from batch_pipeline.ledger.tables import NANO, Outcome
from batch_pipeline.limits.rates import Rates
from batch_pipeline.pricing.calibration import NO_PREFIX, CachedPrefix, InputScale, OutputScale
from batch_pipeline.pricing.prices import Lane
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
class JobPlan:
    """How a model's provider jobs go.

    Attributes:
        price: nano-USD of one line; None where no batch price is known.
        job_s: seconds that a job takes.
        jobs_known: earlier jobs that say so; 0 where it is what providers promise.
        window: prompt tokens that may be in unfinished jobs; None where no limit is known.
        max_jobs: unfinished jobs at a time.
        job_items: rows in a job at most; None is by size.
    """

    price: Callable[[Usage], int] | None
    job_s: float = TARGET_S
    jobs_known: int = 0
    window: int | None = None
    max_jobs: int = 90
    job_items: int | None = None

    def time(self, rows: int, tokens: int) -> tuple[float, str]:
        """Seconds until the jobs of so many rows have ended, and what that rests on, in words."""
        if not rows:
            return 0.0, ""
        rounds, room = 1, ""
        if self.window is not None:
            rounds = math.ceil(tokens / self.window)
            room = f"{self.window:,} prompt tokens in jobs"
        # By tokens a job is small enough that max_jobs of them fill the window: rows may not be.
        by_count = math.ceil(math.ceil(rows / (self.job_items or MOST_ITEMS)) / self.max_jobs)
        if by_count > rounds:
            rounds, room = by_count, f"{self.max_jobs:,} unfinished jobs"
        rounds = max(1, rounds)
        said = (
            f"provider jobs, of which 90 % of the last {self.jobs_known:,} took no longer"
            if self.jobs_known
            else "what providers promise for a job: 24 hours"
        )
        if rounds > 1:
            said += f"; {rounds:,} times that, for {room} at a time"
        return rounds * self.job_s, said


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
        lane: how a run's calls would travel.
        realtime: whether this model is the one that is asked in real time as well.
        jobs: how its provider jobs go; None where it has no Batch API.
        deadline_s: for lane `auto`: seconds until every row must have ended; None is whenever.
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
    lane: Literal["realtime", "batch", "auto"] = "realtime"
    realtime: bool = True
    jobs: JobPlan | None = None
    deadline_s: float | None = None


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
class LaneFigures:
    """What a run would cost and take in one lane.

    Attributes:
        lane: `realtime` or `batch`.
        low: the least that it may come to.
        expected: what it should come to.
        worst: every answer at its bound, each request once, nothing from the prompt cache.
        seconds: expected wall time; in the batch lane until the last job has ended.
        seconds_known: whether that is expected; otherwise it is the most that providers promise.
        bound_by: what the time is bound by, in words.
        jobs: how the provider jobs go; None in real time.
    """

    lane: Lane = "realtime"
    low: Amount = Amount()
    expected: Amount = Amount()
    worst: Amount = Amount()
    seconds: float = 0.0
    seconds_known: bool = True
    bound_by: str = ""
    jobs: JobPlan | None = None

    def plus(self, spent: Amount) -> LaneFigures:
        """With what was spent before."""
        return replace(
            self,
            low=self.low.plus(spent),
            expected=self.expected.plus(spent),
            worst=self.worst.plus(spent),
        )

    def scaled(self, factor: float, to_ask: int) -> LaneFigures:
        """The same for `factor` times the rows, of which `to_ask` need a call."""
        expected = self.expected.times(factor)
        seconds, bound_by = self.seconds * factor, self.bound_by
        if self.jobs is not None:
            seconds, bound_by = self.jobs.time(to_ask, expected.input_tokens)
        return replace(
            self,
            low=self.low.times(factor),
            expected=expected,
            worst=self.worst.times(factor),
            seconds=seconds,
            bound_by=bound_by,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "lane": self.lane,
            "low": self.low.to_dict(),
            "expected": self.expected.to_dict(),
            "worst": self.worst.to_dict(),
            "seconds": round(self.seconds, 1),
            "seconds_known": self.seconds_known,
            "bound_by": self.bound_by,
        }


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run by one route would do; done to unusable, without questions, add up to rows.

    The figures `low` to `bound_by` are of the lane that the run would take.

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
        lane: the lane that the run would take.
        lanes: the figures of every lane that it could take, real time first.
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
    lane: Lane = "realtime"
    lanes: tuple[LaneFigures, ...] = (LaneFigures(),)
    rows_read: int = 0

    @property
    def figures(self) -> LaneFigures:
        """The figures of the lane that the run would take."""
        return next(one for one in self.lanes if one.lane == self.lane)

    @property
    def low(self) -> Amount:
        """The least that it may come to."""
        return self.figures.low

    @property
    def expected(self) -> Amount:
        """What it should come to."""
        return self.figures.expected

    @property
    def worst(self) -> Amount:
        """The most that it may come to, each request once."""
        return self.figures.worst

    @property
    def seconds(self) -> float:
        """How long it should take."""
        return self.figures.seconds

    @property
    def bound_by(self) -> str:
        """What the time is bound by, in words."""
        return self.figures.bound_by

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
        to_ask = round(self.to_ask * factor)
        return replace(
            self,
            rows=rows,
            **{name: round(getattr(self, name) * factor) for name in (*counts, "unusable")},
            misses={reason: round(count * factor) for reason, count in self.misses.items()},
            requests=round(self.requests * factor),
            lanes=tuple(one.scaled(factor, to_ask) for one in self.lanes),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for `batches.estimate` in the ledger."""
        plain = ("route", "model", "rows", "done", "cached", "to_ask", "questions", "left_pending")
        more = ("blocked", "skipped", "unusable", "misses", "requests")
        return {
            **{name: getattr(self, name) for name in (*plain, *more)},
            **self.figures.to_dict(),
            "lanes": [one.to_dict() for one in self.lanes],
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


@dataclass(slots=True)
class _LaneSums:
    """What is summed up for one lane."""

    low: _Sums = field(default_factory=_Sums)
    expected: _Sums = field(default_factory=_Sums)
    worst: _Sums = field(default_factory=_Sums)

    def figures(self, lane: Lane, priced: bool) -> LaneFigures:
        return LaneFigures(
            lane, self.low.amount(priced), self.expected.amount(priced), self.worst.amount(priced)
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
        self._realtime = _LaneSums()
        self._jobs = _LaneSums()

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
        lanes = self._lanes()
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
            lane=_lane_of(plan, lanes),
            lanes=tuple(lanes.values()),
            rows_read=sum(counts.values()),
        )

    def _lanes(self) -> dict[Lane, LaneFigures]:
        """The figures of every lane that a run could take."""
        plan = self._plan
        found: dict[Lane, LaneFigures] = {}
        if plan.realtime:
            figures = self._realtime.figures("realtime", plan.price is not None)
            seconds, bound_by = _time(plan, self._requests, figures.expected)
            found["realtime"] = replace(figures, seconds=seconds, bound_by=bound_by)
        if plan.jobs is not None:
            figures = self._jobs.figures("batch", plan.jobs.price is not None)
            seconds, bound_by = plan.jobs.time(self._to_ask, figures.expected.input_tokens)
            found["batch"] = replace(
                figures,
                seconds=seconds,
                seconds_known=plan.jobs.jobs_known > 0 or not self._to_ask,
                bound_by=bound_by,
                jobs=plan.jobs,
            )
        return found

    def _count(self, pack: Sequence[Question]) -> None:
        step, plan = self._step, self._plan
        self._requests += 1
        prompt = plan.input.ratio * (plan.base_tokens + sum(question.tokens for question in pack))
        bound = step.output_tokens_base + step.output_tokens_per_item * len(pack)
        answer = min(bound, sum(plan.output.expected(question.tokens) for question in pack))
        margin = plan.input.margin
        warm = self._requests > self._cold
        least = self._usage(prompt * (1 - margin), plan.output.low(answer), hit=self._requests > 1)
        most = self._usage(prompt * (1 + margin), bound, hit=False)
        likely = self._usage(prompt, answer, hit=warm and plan.prefix.certain)
        self._realtime.low.add(least, plan.price)
        self._realtime.expected.add(likely, plan.price)
        self._realtime.worst.add(most, plan.price)
        if plan.jobs is None:
            return
        # Lines of a job are worked off in any order and at once: no cache hit can be relied on.
        unkept = self._usage(prompt, answer, hit=False)
        self._jobs.low.add(least, plan.jobs.price)
        self._jobs.expected.add(unkept, plan.jobs.price)
        self._jobs.worst.add(most, plan.jobs.price)

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


def _lane_of(plan: RoutePlan, lanes: Mapping[Lane, LaneFigures]) -> Lane:
    """The lane that a run of this plan would take; of several lanes, that of most of its rows."""
    realtime, jobs = lanes.get("realtime"), lanes.get("batch")
    if jobs is None or plan.jobs is None:
        return "realtime"
    if realtime is None or plan.lane == "batch":
        return "batch"
    if plan.lane == "realtime":
        return "realtime"
    costs = jobs.expected.cost_usd, realtime.expected.cost_usd
    cheaper = costs[0] is not None and costs[1] is not None and costs[0] < costs[1]
    into_jobs = takes_batch_lane(
        0.0, plan.deadline_s, plan.jobs.job_s, realtime.seconds, cheaper=cheaper
    )
    return "batch" if into_jobs else "realtime"


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
