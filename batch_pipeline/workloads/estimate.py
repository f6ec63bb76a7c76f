"""What a batch would ask, cost and take, before it runs: what estimates are made of, and say.

What belongs here: plans and rows that go in, figures that come out. What does not: the counting
(counting.py), SQL and reading the table (compare.py), the console, spending.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from batch_pipeline.engine.lanes.batch import MOST_ITEMS
from batch_pipeline.engine.lanes.choice import TARGET_S
from batch_pipeline.engine.step import Row
from batch_pipeline.ledger.batches import INPUT_ERROR, UNCHANGED, Item, NewItem
from batch_pipeline.ledger.calls import StoredResult
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.limits.rates import Rates
from batch_pipeline.pricing.calibration import (
    NO_PREFIX,
    CachedPrefix,
    ContentSize,
    InputScale,
    OutputScale,
)
from batch_pipeline.pricing.prices import Lane
from batch_pipeline.pricing.web_search import Added
from batch_pipeline.providers.base import Usage
from batch_pipeline.wording import plural


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
    LATER = "asked before; whether it is the same question, earlier steps will show"
    FORCED = "answered, asked again by --force or a review"


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row and where it stands.

    Attributes:
        item_id: its id.
        row: its values.
        standing: where it stands.
        documents: what local steps gave for it so far, by step, where a run would go by that.
        fresh_at: by step, from when on answers are hits (UTC seconds); 0: all are.
    """

    item_id: str
    row: Mapping[str, Any]
    standing: Standing
    documents: Mapping[str, Any] = field(default_factory=dict)
    fresh_at: Callable[[str], float] = lambda step: 0.0


def no_answers(keys: Sequence[str], fresh_after: Mapping[str, float]) -> Mapping[str, StoredResult]:
    """Nothing is stored."""
    return {}


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the ledger knows, asked page by page.

    Attributes:
        cached: of these cache keys, those answered by a model of the route.
        answered_otherwise: of these cache keys, those that any model has answered.
        asked_before: of these item ids, those that succeeded in any batch of the workload.
        answers: of these cache keys, the answers of the route's models; of keys with a time, those
            given since.
    """

    cached: Callable[[Sequence[str]], Collection[str]]
    answered_otherwise: Callable[[Sequence[str]], Collection[str]]
    asked_before: Callable[[Sequence[str]], Collection[str]]
    answers: Callable[[Sequence[str], Mapping[str, float]], Mapping[str, StoredResult]] = no_answers


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
class SearchPlan:
    """How a search provider is asked by local steps.

    Attributes:
        provider: its name, such as `exa`.
        usd: what a call should cost.
        worst_usd: the most that one cost so far, or costs by the price list.
        limit_name: providers of one name share one limit.
        per_minute: that limit; None where there is none.
        latency_s: seconds of a call.
        basis: where the price comes from, in words.
    """

    provider: str
    usd: float = 0.0
    worst_usd: float = 0.0
    limit_name: str = ""
    per_minute: float | None = None
    latency_s: float = 1.0
    basis: str = "the price list"


@dataclass(frozen=True, slots=True)
class ModelSearch:
    """What the web search of a model's own provider adds to each call.

    Attributes:
        provider: whose.
        always: whether each call searches; otherwise the model decides, and is expected to search
            once.
        usd: the expected fee.
        tokens: prompt tokens that the results should come to; 0 where earlier calls have told.
        turns: how often the prompt should be read.
        worst: what it adds at most.
        most_searches: of a call.
    """

    provider: str
    always: bool
    usd: float
    tokens: float
    turns: int
    worst: Added
    most_searches: int = 1


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """One route to estimate, for one step.

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
        content: what a row's content comes to where it is not known before earlier steps have
            answered; None goes by the row and by what they may answer.
        share: of the rows that may come to take the step, those that should; None is what the step
            says.
        web: what a web search adds; None: there is none.
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
    content: ContentSize | None = None
    share: float | None = None
    web: ModelSearch | None = None


def no_own_route(row: Row) -> Chain | None:
    """No row names a model of its own."""
    return None


@dataclass(frozen=True, slots=True)
class Chain:
    """A route through all LLM steps of a workload.

    Attributes:
        plans: one for each LLM step, in order; route, model and limits are the same in all.
        own: the chain of a row that names its own models; None where it goes by this one.
    """

    plans: tuple[RoutePlan, ...]
    own: Callable[[Row], Chain | None] = no_own_route


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
class SearchEstimate:
    """Searches of a run at one provider.

    Attributes:
        provider: whom.
        by_model: the provider's models search, and each call's cost has the fee; otherwise local
            steps ask a search provider, which is no model's call.
        rows: rows that search, identical ones once.
        low: the least number of calls: none for rows that were asked before, whose searches may be
            known still.
        calls: what it should come to.
        worst: the most.
        low_usd: what the least costs.
        usd: what it should cost.
        worst_usd: the most.
        seconds: until the last call is back, at the present limit; 0 where models search.
        bound_by: what that is bound by, in words.
        basis: where the price comes from, in words.
    """

    provider: str
    by_model: bool = False
    rows: int = 0
    low: int = 0
    calls: int = 0
    worst: int = 0
    low_usd: float = 0.0
    usd: float = 0.0
    worst_usd: float = 0.0
    seconds: float = 0.0
    bound_by: str = ""
    basis: str = "the price list"

    def scaled(self, factor: float) -> SearchEstimate:
        """The same for `factor` times the rows."""
        counts = {name: round(getattr(self, name) * factor) for name in _SEARCH_COUNTS}
        sums = {name: getattr(self, name) * factor for name in _SEARCH_SUMS}
        return replace(self, **counts, **sums)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "provider": self.provider,
            "by_model": self.by_model,
            "rows": self.rows,
            "low": {"calls": self.low, "cost_usd": self.low_usd},
            "expected": {"calls": self.calls, "cost_usd": self.usd},
            "worst": {"calls": self.worst, "cost_usd": self.worst_usd},
            "seconds": round(self.seconds, 1),
            "bound_by": self.bound_by,
            "basis": self.basis,
        }


_PROPER = {"openrouter": "OpenRouter", "ahrefs-keywords": "Ahrefs keywords"}
_SEARCH_COUNTS = ("rows", "low", "calls", "worst")
_SEARCH_SUMS = ("low_usd", "usd", "worst_usd", "seconds")


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """One of the LLM steps of a run.

    Attributes:
        step: its name.
        rows: rows that take it, by its usual share where only earlier answers decide; those left
            pending are not among them.
        cached: of these, rows that are through it already, or that a stored answer serves.
        to_ask: of these, rows that need a call.
        requests: calls when nothing goes wrong.
        basis: what its figures rest on.
        lanes: its figures in every lane that the run could take.
    """

    step: str
    rows: int
    cached: int
    to_ask: int
    requests: int
    basis: Basis
    lanes: tuple[LaneFigures, ...]

    def in_lane(self, lane: Lane) -> LaneFigures:
        """Its figures in a lane."""
        return next(one for one in self.lanes if one.lane == lane)

    def scaled(self, factor: float) -> StepEstimate:
        """The same for `factor` times the rows."""
        to_ask = round(self.to_ask * factor)
        return replace(
            self,
            rows=round(self.rows * factor),
            cached=round(self.cached * factor),
            to_ask=to_ask,
            requests=round(self.requests * factor),
            lanes=tuple(one.scaled(factor, to_ask) for one in self.lanes),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = ("step", "rows", "cached", "to_ask", "requests")
        return {
            **{name: getattr(self, name) for name in counts},
            "basis": self.basis.to_dict(),
            "lanes": [one.to_dict() for one in self.lanes],
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
        cached: rows that stored answers serve.
        to_ask: rows that need a call.
        questions: distinct rows among them: identical ones share their questions.
        left_pending: rows beyond `--limit`.
        blocked: rows waiting for a person's decision.
        skipped: rows with nothing to ask.
        unusable: rows that cannot be read.
        misses: why rows of `to_ask` have no stored answer, counted over questions.
        requests: calls when nothing goes wrong.
        lane: the lane that the run would take.
        lanes: the figures of every lane that it could take, real time first.
        rows_read: rows that were looked at; fewer than `rows` where the rest is extrapolated.
        steps: the LLM steps by themselves, in order; empty where there is only one.
        paths: steps that rows have before them, one after another: each combination once.
        searches: searches by provider; their cost is part of the figures.
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
    steps: tuple[StepEstimate, ...] = ()
    paths: tuple[tuple[str, ...], ...] = ()
    searches: tuple[SearchEstimate, ...] = ()

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
        steps = tuple(step.scaled(factor) for step in self.steps)
        searches = tuple(one.scaled(factor) for one in self.searches)
        lanes = tuple(one.scaled(factor, to_ask) for one in self.lanes)
        if steps:
            lanes = tuple(
                one if one.lane == "realtime" else one_after_another(steps, self.paths, one)
                for one in lanes
            )
        lanes = tuple(
            one if one.lane == "realtime" else after_searches(one, searches) for one in lanes
        )
        return replace(
            self,
            rows=rows,
            **{name: round(getattr(self, name) * factor) for name in (*counts, "unusable")},
            misses={reason: round(count * factor) for reason, count in self.misses.items()},
            requests=round(self.requests * factor),
            lanes=lanes,
            steps=steps,
            searches=searches,
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
            "steps": [one.to_dict() for one in self.steps],
            "searches": [one.to_dict() for one in self.searches],
        }


def search_line(found: SearchEstimate, money: Callable[[float | None], str]) -> str:
    """`Exa: 100 searches, $0.70 (low 0, $0; worst 100, $0.70), by the price list`.

    Args:
        found: searches at one provider.
        money: writes USD.
    """
    name = _PROPER.get(found.provider, found.provider.capitalize())
    calls = plural(found.calls, "search", "searches")
    text = (
        f"{name}{', by its models' if found.by_model else ''}: {calls}, {money(found.usd)} (low "
        f"{found.low:,}, {money(found.low_usd)}; worst {found.worst:,}, {money(found.worst_usd)}), "
        f"by {found.basis}"
    )
    return f"{text}; {found.bound_by}" if found.bound_by else text


def after_searches(whole: LaneFigures, searches: Sequence[SearchEstimate]) -> LaneFigures:
    """The batch lane's figures with the time of the searches that go before its provider jobs."""
    return replace(
        whole, seconds=whole.seconds + max((one.seconds for one in searches), default=0.0)
    )


def basis_line(found: Estimate) -> str:
    """What an estimate rests on, and how sure it is, in one sentence."""
    basis = found.basis

    def source(name: str, calls: int, margin: float) -> str:
        of = f" of {plural(calls, 'request')}" if calls else ""
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
        elif item.skip or item.unchanged:
            standing = Standing.SKIPPED
        yield PlannedRow(item.item_id, item.row, standing)


def planned_from_batch(
    rows: Iterable[Item],
    *,
    include_blocked: bool = False,
    force: bool = False,
    documents: Mapping[int, Mapping[str, Any]] | None = None,
) -> Iterator[PlannedRow]:
    """Rows of an ingested batch, as its next run would take them.

    Args:
        rows: its rows.
        include_blocked: blocked ones are asked again.
        force: finished ones are asked again, and those that are unchanged.
        documents: what local steps gave, by ordinal and step.
    """
    for item in rows:
        standing = Standing.OPEN
        if item.outcome is Outcome.SKIPPED and not (force and item.error_kind == UNCHANGED):
            standing = Standing.SKIPPED
        elif item.error_kind == INPUT_ERROR:
            standing = Standing.UNUSABLE
        elif item.outcome is Outcome.BLOCKED and not (include_blocked or force):
            standing = Standing.BLOCKED
        elif item.outcome is Outcome.SUCCEEDED and not force:
            standing = Standing.DONE
        given = documents.get(item.ordinal, {}) if documents else {}
        yield PlannedRow(item.item_id, item.row, standing, given, item.fresh_at)


def one_after_another(
    steps: Sequence[StepEstimate], paths: Sequence[Sequence[str]], whole: LaneFigures
) -> LaneFigures:
    """The batch lane's figures with their time: one round of provider jobs for each step of a row.

    Args:
        steps: of the run.
        paths: steps that rows have before them: the longest way decides.
        whole: the sums over them.
    """
    by_name = {step.step: step.in_lane("batch") for step in steps}
    ways = [[by_name[name] for name in path] for path in paths] or [[]]
    longest = max(ways, key=lambda way: sum(one.seconds for one in way))
    said = max(longest, key=lambda one: one.seconds).bound_by if longest else ""
    if len(longest) > 1:
        said = f"a round of provider jobs for each of {len(longest)} steps, by {said}"
    return replace(
        whole,
        seconds=sum(one.seconds for one in longest),
        seconds_known=all(one.seconds_known for one in longest),
        bound_by=said,
    )


STEP_HEADS = ("Step", "Rows", "Cached", "Requests", "Tokens in", "Tokens out", "Cost")
"""Heads of the table of a run's steps."""


def step_rows(found: Estimate, money: Callable[[float | None], str]) -> list[list[str]]:
    """The LLM steps of a run, expected figures in its lane; empty where there is only one step.

    Args:
        found: the estimate.
        money: writes USD; None is unknown.
    """
    rows = []
    for step in found.steps:
        expected = step.in_lane(found.lane).expected
        counts = (step.rows, step.cached, step.requests)
        tokens = (expected.input_tokens, expected.output_tokens)
        figures = [f"{number:,}" for number in (*counts, *tokens)]
        rows.append([step.step, *figures, money(expected.cost_usd)])
    return rows
