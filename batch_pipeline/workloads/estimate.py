"""What a batch would ask, cost and take, before it runs: pure arithmetic.

What belongs here: counting, packing and pricing rows that somebody else read. What does not: SQL,
the console, spending.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.packing import Packer
from batch_pipeline.engine.step import Step
from batch_pipeline.ledger.batches import INPUT_ERROR, Item, NewItem
from batch_pipeline.ledger.overview import History
from batch_pipeline.ledger.tables import NANO, Outcome
from batch_pipeline.limits.limiter import Rates
from batch_pipeline.pricing.tokens import estimate_tokens
from batch_pipeline.providers.base import Usage

_PAGE = 500

# What the engine itself expects before it has seen an answer (engine.py), and a slow model's usual
# pace.
_EXPECTED_SHARE_OF_BOUND = 0.6
_ASSUMED_FIRST_TOKEN_S = 1.0
_ASSUMED_TOKENS_PER_S = 100.0


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
    """What bounds a run's speed: the key's rates per minute, and requests in flight."""

    rates: Rates
    workers: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would do; done to unusable, without questions, add up to rows.

    Attributes:
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
        input_tokens: of all calls.
        output_tokens: of all calls, as expected.
        output_tokens_worst: of all calls, each at its output bound.
        cost_usd: expected; None where the model's price is unknown.
        cost_worst_usd: every answer at its output bound, each request once.
        seconds: expected wall time.
        bound_by: what the time is bound by, in words.
        calls_learned_from: earlier calls that the expectation is scaled by; 0 is a plain guess from
        the text.
    """

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
    input_tokens: int = 0
    output_tokens: int = 0
    output_tokens_worst: int = 0
    cost_usd: float | None = 0.0
    cost_worst_usd: float | None = 0.0
    seconds: float = 0.0
    bound_by: str = ""
    calls_learned_from: int = 0


@dataclass(frozen=True, slots=True)
class _Question:
    item_id: str
    key: str
    tokens: int


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


def estimate_run(
    rows: Iterable[PlannedRow],
    step: Step,
    lookup: Lookup,
    pace: Pace,
    *,
    price: Callable[[Usage], int] | None,
    history: History | None = None,
    limit: int | None = None,
    force: bool = False,
) -> Estimate:
    """Count, pack and price `rows`; memory grows by 40 bytes for each distinct question.

    Args:
        rows: the rows in order; consumed once.
        step: the LLM task.
        lookup: what the ledger knows.
        pace: rates and workers.
        price: nano-USD of one call; None where unknown.
        history: earlier calls, to scale the expectation by.
        limit: ask about at most so many rows.
        force: stored answers are no hits.
    """
    counter = _Counter(step, price, history)
    counts = dict.fromkeys(Standing, 0)
    cached = to_ask = left_pending = 0
    misses: dict[str, int] = {}
    asked: set[int] = set()
    for page in _pages(rows):
        for planned in page:
            counts[planned.standing] += 1
        questions = counter.questions(page)
        keys = [question.key for question in questions]
        hits = frozenset[str]() if force else frozenset(lookup.cached(keys))
        fresh: list[_Question] = []
        for question in questions:
            mark = int(question.key[:16], 16)
            if question.key in hits:
                cached += 1
            elif mark in asked:
                to_ask += 1
            elif limit is not None and to_ask >= limit:
                left_pending += 1
            else:
                to_ask += 1
                asked.add(mark)
                fresh.append(question)
                counter.add(question)
        for reason in _reasons(fresh, lookup, force):
            misses[reason] = misses.get(reason, 0) + 1
    counter.close()
    seconds, bound_by = _time(counter, pace, history)
    return Estimate(
        rows=sum(counts.values()),
        done=counts[Standing.DONE],
        cached=cached,
        to_ask=to_ask,
        questions=len(asked),
        left_pending=left_pending,
        blocked=counts[Standing.BLOCKED],
        skipped=counts[Standing.SKIPPED],
        unusable=counts[Standing.UNUSABLE],
        misses=misses,
        requests=counter.requests,
        input_tokens=counter.input_tokens,
        output_tokens=counter.output_tokens,
        output_tokens_worst=counter.output_tokens_worst,
        cost_usd=None if price is None else counter.cost_nano / NANO,
        cost_worst_usd=None if price is None else counter.worst_nano / NANO,
        seconds=seconds,
        bound_by=bound_by,
        calls_learned_from=history.calls if history else 0,
    )


class _Counter:
    """Packs questions as the engine does, and sums up what the packs would use."""

    def __init__(
        self, step: Step, price: Callable[[Usage], int] | None, history: History | None
    ) -> None:
        self._step = step
        self._price = price
        self._keys = KeyMaker(step)
        self._packer: Packer[_Question] = Packer(step.max_items, step.max_input_tokens)
        self._system_tokens = estimate_tokens(step.system_prompt)
        self._input_ratio = history.input_ratio if history else 1.0
        self._output_per_item = (
            history.output_per_item
            if history
            else _EXPECTED_SHARE_OF_BOUND * step.output_tokens_per_item
        )
        self.requests = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.output_tokens_worst = 0
        self.cost_nano = 0
        self.worst_nano = 0

    def questions(self, page: Sequence[PlannedRow]) -> list[_Question]:
        """The questions of the open rows, one for each row."""
        found = []
        for planned in page:
            if planned.standing is Standing.OPEN:
                content = self._step.content(planned.row)
                tokens = estimate_tokens(orjson.dumps(content)) + 6
                found.append(_Question(planned.item_id, self._keys.key(content), tokens))
        return found

    def add(self, question: _Question) -> None:
        """Pack one question."""
        for pack in self._packer.add(question):
            self._count(pack)

    def close(self) -> None:
        """Pack what is left."""
        for pack in self._packer.flush():
            self._count(pack)

    def _count(self, pack: Sequence[_Question]) -> None:
        step = self._step
        text = self._system_tokens + sum(question.tokens for question in pack)
        prompt = round(text * self._input_ratio)
        worst = step.output_tokens_base + step.output_tokens_per_item * len(pack)
        expected = min(worst, round(self._output_per_item * len(pack)))
        self.requests += 1
        self.input_tokens += prompt
        self.output_tokens += expected
        self.output_tokens_worst += worst
        if self._price is not None:
            self.cost_nano += self._price(Usage(input_tokens=prompt, output_tokens=expected))
            self.worst_nano += self._price(Usage(input_tokens=prompt, output_tokens=worst))


def _reasons(questions: Sequence[_Question], lookup: Lookup, force: bool) -> Iterator[str]:
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


def _time(counter: _Counter, pace: Pace, history: History | None) -> tuple[float, str]:
    """Seconds, and what they are bound by: the slowest of rates and workers decides."""
    if not counter.requests:
        return 0.0, ""
    latency = (
        history.latency_s
        if history
        else _ASSUMED_FIRST_TOKEN_S
        + counter.output_tokens / counter.requests / _ASSUMED_TOKENS_PER_S
    )
    bounds = {
        f"{pace.workers} requests in flight": latency
        * -(-counter.requests // min(pace.workers, counter.requests))
    }
    for what, rate, amount in (
        ("requests", pace.rates.requests, counter.requests - 1),
        ("input tokens", pace.rates.input_tokens, counter.input_tokens),
        ("output tokens", pace.rates.output_tokens, counter.output_tokens),
    ):
        if rate is not None:
            # The last call still has to come back.
            bounds[f"{rate:,.0f} {what} a minute"] = amount * 60.0 / rate + latency
    name = max(bounds, key=lambda bound: bounds[bound])
    return bounds[name], name


def _pages(rows: Iterable[PlannedRow]) -> Iterator[list[PlannedRow]]:
    page: list[PlannedRow] = []
    for row in rows:
        page.append(row)
        if len(page) >= _PAGE:
            yield page
            page = []
    if page:
        yield page
