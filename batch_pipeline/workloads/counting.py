"""Estimates: rows are taken through their steps, packed and priced as a run would, calling nobody.

What belongs here: the counting, for several routes in one pass. What does not: what goes in and
comes out (estimate.py), SQL and reading the table (compare.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.lanes.choice import takes_batch_lane
from batch_pipeline.engine.packing import Packer
from batch_pipeline.engine.step import AnyStep, LocalStep, Row, Step, llm_steps, single_steps
from batch_pipeline.ledger.tables import NANO
from batch_pipeline.pricing.calibration import FROM_EARLIER_STEPS, FROM_TYPICAL, UNKNOWN_MARGIN
from batch_pipeline.pricing.prices import Lane
from batch_pipeline.pricing.tokens import estimate_item_tokens
from batch_pipeline.providers.base import Usage
from batch_pipeline.workloads.estimate import (
    Amount,
    Basis,
    Chain,
    Estimate,
    LaneFigures,
    Lookup,
    Miss,
    PlannedRow,
    RoutePlan,
    SearchEstimate,
    SearchPlan,
    Standing,
    StepEstimate,
    after_searches,
    one_after_another,
)

_PAGE = 500

# A slow model's usual pace, where nothing is known of it.
_ASSUMED_FIRST_TOKEN_S = 1.0
_ASSUMED_TOKENS_PER_S = 100.0

_DAY_S = 86_400.0

ASSUMED_WORKERS = 32
"""Requests in flight that `workers: auto` is taken to come to where nothing limits it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a row asks in a step.

    Attributes:
        item_id: the row's.
        key: its cache key; empty where its content is not known before earlier steps have answered.
        mark: rows with the same mark share the question.
        content: what is asked.
        tokens: local count of its content, as expected.
        least: the least that it may come to.
        most: the most.
        anew: whether older answers are no hits for the row.
        share: how likely it is asked.
    """

    item_id: str
    key: str
    mark: int
    content: Mapping[str, Any]
    tokens: int
    least: float
    most: float
    anew: bool = False
    share: float = 1.0


class _NotYetError(Exception):
    """An earlier step has not answered yet."""


class _SoFar(Mapping[str, Any]):
    """A row and the answers to its earlier steps, of which some are still missing."""

    def __init__(self, known: Mapping[str, Any], missing: frozenset[str]) -> None:
        self._known = known
        self._missing = missing

    def __getitem__(self, name: str) -> Any:
        # No KeyError: `get` must not take it for an answer that there will never be.
        if name in self._missing:
            raise _NotYetError(name)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def known_questions(step: Step, rows: Iterable[PlannedRow]) -> Iterator[Question]:
    """The questions of open rows, as far as a step's content follows from the rows alone."""
    keys = KeyMaker(step)
    for planned in rows:
        if planned.standing is Standing.OPEN and step.applies(planned.row):
            try:
                yield _question(step, keys, planned, planned.row)
            except KeyError:
                continue


def _question(step: Step, keys: KeyMaker, planned: PlannedRow, values: Row) -> Question:
    content = step.content(values)
    key = keys.key(content)
    tokens = estimate_item_tokens(content)
    return Question(
        planned.item_id,
        key,
        int(key[:16], 16),
        content,
        tokens,
        tokens,
        tokens,
        planned.fresh_at(step.name) > 0,
    )


def estimate_routes(
    rows: Iterable[PlannedRow],
    steps: Sequence[AnyStep],
    chains: Sequence[Chain],
    *,
    limit: int | None = None,
    force: bool = False,
    searches: Sequence[SearchPlan] = (),
) -> list[Estimate]:
    """Count, pack and price `rows` for each route.

    Memory grows by 40 bytes for each distinct question, step and route.

    Args:
        rows: the rows in order; consumed once.
        steps: what a row goes through, in order.
        chains: the routes.
        limit: ask about at most so many rows.
        force: stored answers are no hits.
        searches: how the search providers of local steps are asked.
    """
    counts = [_RouteCount(steps, chain, limit, force, searches) for chain in chains]
    standings = dict.fromkeys(Standing, 0)
    for page in _pages(rows):
        for planned in page:
            standings[planned.standing] += 1
        todo = [planned for planned in page if planned.standing is Standing.OPEN]
        asked: _Asked = {}
        for count in counts:
            count.take(todo, asked)
    return [count.finish(standings) for count in counts]


# ---- a row on its way ----------------------------------------------------------------------------


_Asked = dict[tuple[str, int], Question]
"""Questions of a page by step and place, which are the same for every route."""


@dataclass(slots=True)
class _Way:
    """An open row on its way through the steps, as far as what is stored takes it.

    Attributes:
        planned: the row.
        place: in its page.
        seen: what earlier steps gave, by step.
        missing: earlier steps that have not answered.
        answers: output tokens that earlier LLM steps may come to.
        bounds: output tokens that they come to at most.
        routed: whether `seen` holds answers of models.
        questions: by LLM step that the row takes: what it asks; None where it is through.
        behind: place of the last checkpoint that it is behind; -1 for none.
    """

    planned: PlannedRow
    place: int
    seen: dict[str, Any] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    answers: float = 0.0
    bounds: float = 0.0
    routed: bool = False
    questions: dict[str, Question | None] = field(default_factory=dict)
    behind: int = -1

    @property
    def values(self) -> Row:
        """What a step sees of the row."""
        row = {**self.planned.row, **self.seen} if self.seen else self.planned.row
        return _SoFar(row, frozenset(self.missing)) if self.missing else row

    @property
    def open_questions(self) -> list[tuple[str, Question]]:
        """What is to ask, by step."""
        return [(step, one) for step, one in self.questions.items() if one is not None]

    def unknown_question(self, step: Step, plan: RoutePlan) -> Question:
        """A question whose content depends on answers that are not there yet."""
        size = plan.content
        if size is None:
            own = estimate_item_tokens(dict(self.planned.row))
            tokens, margin = own + self.answers / plan.input.ratio, UNKNOWN_MARGIN
        else:
            tokens, margin = size.tokens, size.margin
        most = 2 * tokens + self.bounds / plan.input.ratio
        # Rows with the same values will get the same answers, and ask the same.
        decides = (
            dict(self.planned.row) if step.shared_by is None else step.shared_by(self.planned.row)
        )
        mark = _mark(decides)
        anew = self.planned.fresh_at(step.name) > 0
        least = tokens * (1 - margin)
        return Question(self.planned.item_id, "", mark, {}, round(tokens), least, most, anew)


def _mark(values: Any) -> int:
    """The same number for the same values."""
    text = orjson.dumps(values, default=str, option=orjson.OPT_SORT_KEYS)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


# ---- one route -----------------------------------------------------------------------------------


class _RouteCount:
    """Counts the rows of a table for one route; rows with models of their own go by those."""

    def __init__(
        self,
        steps: Sequence[AnyStep],
        chain: Chain,
        limit: int | None,
        force: bool,
        searches: Sequence[SearchPlan],
    ) -> None:
        self._steps = single_steps(steps)
        self._plans = searches
        self._searching = [
            _SearchCount(step, place)
            for place, step in enumerate(self._steps)
            if isinstance(step, LocalStep) and step.searches
        ]
        self._chain = chain
        self._limit = limit
        self._force = force
        self._keys = {step.name: KeyMaker(step) for step in llm_steps(steps)}
        self._parts = {chain.plans[0].route: _ChainCount(steps, chain)}
        self._own_rows: dict[str, int] = {}
        self._cached = self._to_ask = self._questions = self._left_pending = 0
        self._misses: dict[str, int] = {}
        self._paths: set[tuple[str, ...]] = set()

    def take(self, rows: Sequence[PlannedRow], asked: _Asked) -> None:
        """Count the open rows of a page."""
        ways: list[tuple[_Way, _ChainCount]] = []
        by_part: dict[str, list[_Way]] = {}
        for place, planned in enumerate(rows):
            own = self._chain.own(planned.row)
            route = (own or self._chain).plans[0].route
            if own is not None:
                self._own_rows[route] = self._own_rows.get(route, 0) + 1
                if route not in self._parts:
                    self._parts[route] = _ChainCount(self._steps, own)
            way = _Way(planned, place)
            ways.append((way, self._parts[route]))
            by_part.setdefault(route, []).append(way)
        for route, of_part in by_part.items():
            self._walk(self._parts[route], of_part, asked)
        fresh: dict[str, list[Question]] = {}
        left: set[int] = set()
        for way, part in ways:
            question, pending = self._count(way, part)
            if pending:
                left.add(way.place)
            if question is not None:
                fresh.setdefault(part.route, []).append(question)
        self._search([way for way, _ in ways if way.place not in left])
        for route, questions in fresh.items():
            for reason in _reasons(questions, self._parts[route].lookup, self._force):
                self._misses[reason] = self._misses.get(reason, 0) + 1

    def finish(self, standings: Mapping[Standing, int]) -> Estimate:
        """The estimate, once all rows were counted."""
        parts = list(self._parts.values())
        main = self._chain.plans[0]
        by_step = [[part.counts[name] for part in parts] for name in self._keys]
        for counts in by_step:
            for count in counts:
                count.flush()
        steps = tuple(_step_estimate(counts, self._chain) for counts in by_step)
        paths = tuple(sorted(self._paths))
        every = [count for counts in by_step for count in counts]
        searches = _searched(self._searching, self._plans)
        lanes = {
            figures.lane: _with_searches(
                _whole(steps, paths, figures.lane, every),
                searches,
                _longest(paths, {c.step.name: c.latency_s for c in every if c.calls}),
            )
            for figures in steps[0].lanes
        }
        return Estimate(
            route=main.route,
            model=main.model,
            basis=self._basis(steps, parts),
            rows=sum(standings.values()),
            done=standings[Standing.DONE],
            cached=self._cached,
            to_ask=self._to_ask,
            questions=self._questions,
            left_pending=self._left_pending,
            blocked=standings[Standing.BLOCKED],
            skipped=standings[Standing.SKIPPED],
            unusable=standings[Standing.UNUSABLE],
            misses=self._misses,
            requests=sum(step.requests for step in steps),
            lane=_lane_of(main, lanes, max(map(len, paths), default=1)),
            lanes=tuple(lanes.values()),
            rows_read=sum(standings.values()),
            steps=steps if len(steps) > 1 else (),
            paths=paths,
            searches=(*searches, *_model_searches(every)),
        )

    def _search(self, ways: Sequence[_Way]) -> None:
        """Count the searches of rows that the run takes."""
        if not self._searching or not ways:
            return
        ids = [way.planned.item_id for way in ways]
        before = frozenset(self._chain.plans[0].lookup.asked_before(ids))
        for way in ways:
            for count in self._searching:
                count.take(way, known=way.planned.item_id in before)

    def _walk(self, part: _ChainCount, ways: Sequence[_Way], asked: _Asked) -> None:
        """Take rows through the steps, side by side, so that each step is one look-up."""
        for way in ways:
            way.behind = _checkpoint(self._steps, way.planned)
        for place, step in enumerate(self._steps):
            if isinstance(step, LocalStep):
                for way in ways:
                    _pass(way, step)
                continue
            plan = part.counts[step.name].plan
            found: dict[int, Question] = {}
            for way in ways:
                share = _share(way, step, plan)
                if not share:
                    way.seen[step.name] = None
                elif place < way.behind:
                    way.questions[step.name] = None
                    way.missing.add(step.name)
                else:
                    question = self._ask(way, step, plan, asked)
                    found[way.place] = replace(question, share=share) if share < 1 else question
            self._answer([way for way in ways if way.place in found], step, plan, found)

    def _ask(self, way: _Way, step: Step, plan: RoutePlan, asked: _Asked) -> Question:
        known = None if way.routed else asked.get((step.name, way.place))
        if known is not None:
            return known
        try:
            question = _question(step, self._keys[step.name], way.planned, way.values)
        except (_NotYetError, KeyError):
            if not way.missing:
                raise
            return way.unknown_question(step, plan)
        if not way.routed:
            asked[step.name, way.place] = question
        return question

    def _answer(
        self,
        ways: Sequence[_Way],
        step: Step,
        plan: RoutePlan,
        questions: Mapping[int, Question],
    ) -> None:
        """Give rows the stored answers to their questions; the others have something to ask."""
        keys = [questions[way.place].key for way in ways if questions[way.place].key]
        hits = frozenset[str]() if self._force or not keys else frozenset(plan.lookup.cached(keys))
        last = step is self._steps[-1]
        since = {
            questions[way.place].key: way.planned.fresh_at(step.name)
            for way in ways
            if questions[way.place].anew
        }
        wanted = hits and (since or not last)
        answers = plan.lookup.answers(sorted(hits), since) if wanted else {}
        for way in ways:
            question = questions[way.place]
            stored = answers.get(question.key)
            hit = question.key in hits and (stored is not None or not question.anew)
            way.questions[step.name] = None if hit else question
            if last:
                continue
            if hit and stored is not None:
                way.seen[step.name] = stored.output
                way.routed = True
            else:
                way.missing.add(step.name)
            way.answers += plan.output.expected(question.tokens)
            way.bounds += step.output_tokens_base + step.output_tokens_per_item

    def _count(self, way: _Way, part: _ChainCount) -> tuple[Question | None, bool]:
        """Count a row.

        Returns:
            The first question that nobody has asked before it, and whether the row is left pending.
        """
        asks = way.open_questions
        if all(one.share < 1 for _, one in asks):
            # Its answers are stored: had they called for more, that would be stored as well.
            for step, question in way.questions.items():
                part.counts[step].take(question and replace(question, share=0.0))
            self._cached += 1
            return None, False
        fresh = [(step, one) for step, one in asks if one.mark not in part.counts[step].asked]
        if fresh and self._limit is not None and self._to_ask >= self._limit:
            self._left_pending += 1
            return None, True
        for step, question in way.questions.items():
            part.counts[step].take(question)
        self._to_ask += 1
        self._paths.add(tuple(step for step, _ in asks))
        self._questions += bool(fresh)
        return fresh[0][1] if fresh else None, False

    def _basis(self, steps: Sequence[StepEstimate], parts: Sequence[_ChainCount]) -> Basis:
        plans = [plan for part in parts for plan in part.chain.plans]
        notes = list(dict.fromkeys(note for plan in plans for note in plan.notes))
        if self._own_rows:
            named = ", ".join(
                f"{self._parts[route].chain.plans[0].model} ({rows:,})"
                for route, rows in self._own_rows.items()
            )
            notes.append(f"Rows that name their own model are priced by it: {named}.")
        if len(steps) == 1 and not self._searching:
            return replace(steps[0].basis, notes=tuple(notes))
        if guessed := [one.step for one in steps if FROM_TYPICAL in one.basis.output]:
            are = "is" if len(guessed) == 1 else "are"
            notes.append(
                f"{_listed(guessed)} {are} estimated from typical lengths until the first run."
            )
        local = [one for one in self._steps if isinstance(one, LocalStep)]
        if silent := [one.name for one in local if not one.searches]:
            notes.append(f"Not counted: the time of {_listed(silent)}, which ask no model.")
        if counted := [one.name for one in local if one.searches]:
            notes.append(
                f"Of {_listed(counted)}, the searches are counted, not the time of the rest. "
                "Searches that were answered in the last days are not made again, which shows only "
                "in the run."
            )
        return _joined(steps, tuple(notes))


def _checkpoint(steps: Sequence[AnyStep], planned: PlannedRow) -> int:
    """The place of the last checkpoint that a row is behind; -1 for none."""
    places = (
        place
        for place, step in enumerate(steps)
        if isinstance(step, LocalStep) and step.checkpoint and step.name in planned.documents
    )
    return max(places, default=-1)


def _share(way: _Way, step: Step, plan: RoutePlan) -> float:
    """How likely a row takes a step, as far as what is stored tells."""
    if step.expected_share < 1:
        try:
            return float(step.applies(way.values))
        except _NotYetError:
            usual = step.expected_share if plan.share is None else plan.share
            return usual if step.applies(way.planned.row) else 0.0
    return float(step.applies(way.planned.row))


def _pass(way: _Way, step: LocalStep) -> None:
    if step.name in way.planned.documents:
        way.seen[step.name] = way.planned.documents[step.name]
    elif step.applies(way.planned.row):
        way.missing.add(step.name)
    else:
        way.seen[step.name] = None


def _reasons(questions: Sequence[Question], lookup: Lookup, force: bool) -> Iterator[str]:
    keys = [question.key for question in questions if question.key]
    answered = frozenset(lookup.answered_otherwise(keys)) if keys else frozenset[str]()
    rest = [question.item_id for question in questions if question.key not in answered]
    before = frozenset(lookup.asked_before(rest)) if rest else frozenset[str]()
    for question in questions:
        if question.key in answered:
            again = force or question.anew
            yield Miss.FORCED.value if again else Miss.OTHER_MODEL.value
        elif question.item_id not in before:
            yield Miss.NEW.value
        elif question.key:
            yield Miss.CHANGED.value
        else:
            yield Miss.FORCED.value if force or question.anew else Miss.LATER.value


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _joined(steps: Sequence[StepEstimate], notes: tuple[str, ...]) -> Basis:
    """What the steps together rest on; margins weigh by tokens."""
    asked = [step for step in steps if step.requests] or list(steps)
    amounts = [step.lanes[0].expected for step in asked]

    def margin(margins: Iterable[float], tokens: Iterable[int]) -> float:
        pairs = list(zip(margins, tokens, strict=True))
        whole = sum(weight for _, weight in pairs)
        return sum(one * weight for one, weight in pairs) / whole if whole else pairs[0][0]

    return Basis(
        _listed(list(dict.fromkeys(step.basis.input for step in asked))),
        sum(step.basis.input_calls for step in asked),
        margin((s.basis.input_margin for s in asked), (one.input_tokens for one in amounts)),
        _listed(list(dict.fromkeys(step.basis.output for step in asked))),
        sum(step.basis.output_calls for step in asked),
        margin((s.basis.output_margin for s in asked), (one.output_tokens for one in amounts)),
        notes,
    )


# ---- one step of a route -------------------------------------------------------------------------


class _ChainCount:
    """Counts the rows that go by one chain, step by step."""

    def __init__(self, steps: Sequence[AnyStep], chain: Chain) -> None:
        self.chain = chain
        self.counts = {
            step.name: _StepCount(step, plan)
            for step, plan in zip(llm_steps(steps), chain.plans, strict=True)
        }

    @property
    def route(self) -> str:
        return self.chain.plans[0].route

    @property
    def lookup(self) -> Lookup:
        return self.chain.plans[0].lookup


@dataclass(slots=True)
class _Sums:
    """One of low, expected and worst, while it is summed up."""

    input_tokens: float = 0.0
    cached: float = 0.0
    output_tokens: float = 0.0
    nano: float = 0.0

    def add(
        self, usage: Usage, price: Callable[[Usage], int] | None, share: float, fee_usd: float = 0.0
    ) -> None:
        """Add a call that is made with a likelihood of `share`; the fee is of its web search."""
        self.input_tokens += usage.input_tokens * share
        self.cached += usage.cached_input_tokens * share
        self.output_tokens += usage.output_tokens * share
        if price is not None:
            self.nano += (price(usage) + fee_usd * NANO) * share

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


class _StepCount:
    """Packs a step's questions as the engine does, and sums up what the packs would use."""

    def __init__(self, step: Step, plan: RoutePlan) -> None:
        self.step = step
        self.plan = plan
        self.asked: set[int] = set()
        # Sums of likelihoods; `certain` and `most` bound the requests.
        self._taken = self._open = self.likely = 0.0
        self.certain = self.most = 0
        self._unknown = False
        self._packer: Packer[Question] = Packer(step.max_items, step.max_input_tokens)
        # Requests that are sent before the first reply is back find nothing in the cache.
        self._cold = plan.pace.workers or ASSUMED_WORKERS
        self._realtime = _LaneSums()
        self._jobs = _LaneSums()

    def take(self, question: Question | None) -> None:
        """Count a row; None where it is through this step."""
        self._taken += 1.0 if question is None else question.share
        if question is None:
            return
        self._open += question.share
        if question.mark in self.asked:
            return
        self.asked.add(question.mark)
        self._unknown = self._unknown or not question.key
        for pack in self._packer.add(question):
            self._count(pack)

    def flush(self) -> None:
        """Count the last pack."""
        for pack in self._packer.flush():
            self._count(pack)

    @property
    def basis(self) -> Basis:
        """What its figures rest on."""
        scale, output, size = self.plan.input, self.plan.output, self.plan.content
        words, calls, margin = scale.basis, scale.calls, scale.margin
        if self._unknown:
            words = FROM_EARLIER_STEPS if size is None else size.basis
            calls = 0 if size is None else size.calls
            margin = max(margin, UNKNOWN_MARGIN if size is None else size.margin)
        return Basis(words, calls, margin, output.basis, output.calls, output.margin)

    @property
    def rows(self) -> int:
        """Rows that take the step."""
        return round(self._taken)

    @property
    def to_ask(self) -> int:
        """Of these, rows that need a call."""
        return round(self._open)

    @property
    def requests(self) -> int:
        """Calls when nothing goes wrong."""
        return round(self.likely)

    @property
    def calls(self) -> int:
        """The same, and one where there may be less than one."""
        return max(1, self.requests) if self.likely else 0

    @property
    def latency_s(self) -> float:
        """Seconds of a call."""
        if self.plan.latency_s is not None:
            return self.plan.latency_s
        answer = self.figures("realtime").expected.output_tokens / self.likely
        return _ASSUMED_FIRST_TOKEN_S + answer / _ASSUMED_TOKENS_PER_S

    def figures(self, lane: Lane) -> LaneFigures:
        """Tokens and money; of real time where there is no other lane."""
        jobs = self.plan.jobs
        if lane == "batch" and jobs is not None:
            figures = self._jobs.figures(lane, jobs.price is not None)
            seconds, bound_by = jobs.time(self.to_ask, figures.expected.input_tokens)
            known = jobs.jobs_known > 0 or not self.to_ask
            return replace(
                figures, seconds=seconds, seconds_known=known, bound_by=bound_by, jobs=jobs
            )
        return self._realtime.figures(lane, self.plan.price is not None)

    def _count(self, pack: Sequence[Question]) -> None:
        step, plan, web = self.step, self.plan, self.plan.web
        share = sum(question.share for question in pack) / len(pack)
        certain = float(share >= 1)
        self.most += 1
        self.certain += share >= 1
        self.likely += share
        bound = step.output_tokens_base + step.output_tokens_per_item * len(pack)
        answer = min(bound, sum(plan.output.expected(question.tokens) for question in pack))
        ratio, base, margin = plan.input.ratio, plan.base_tokens, plan.input.margin
        short = ratio * (base + sum(question.least for question in pack)) * (1 - margin)
        prompt = ratio * (base + sum(question.tokens for question in pack))
        long = ratio * (base + sum(question.most for question in pack)) * (1 + margin)
        fees = 0.0, 0.0, 0.0
        longest = bound
        if web is not None:
            added = web.worst
            fees = (web.usd * UNKNOWN_MARGIN if web.always else 0.0), web.usd, added.usd
            prompt = web.turns * prompt + web.tokens
            long = added.turns * long + added.prompt_tokens + added.answers_read * bound
            longest = added.turns * bound
        warm = self.most > self._cold
        least = self._usage(short, plan.output.low(answer), hit=self.most > 1)
        most = self._usage(long, longest, hit=False)
        likely = self._usage(prompt, answer, hit=warm and plan.prefix.certain)
        self._realtime.low.add(least, plan.price, certain, fees[0])
        self._realtime.expected.add(likely, plan.price, share, fees[1])
        self._realtime.worst.add(most, plan.price, 1.0, fees[2])
        if plan.jobs is None:
            return
        # Lines of a job are worked off in any order and at once: no cache hit can be relied on.
        unkept = self._usage(prompt, answer, hit=False)
        self._jobs.low.add(least, plan.jobs.price, certain, fees[0])
        self._jobs.expected.add(unkept, plan.jobs.price, share, fees[1])
        self._jobs.worst.add(most, plan.jobs.price, 1.0, fees[2])

    def _usage(self, prompt: float, answer: float, *, hit: bool) -> Usage:
        prefix = self.plan.prefix
        kept = min(prefix.tokens, round(prompt))
        return Usage(
            input_tokens=round(prompt),
            cached_input_tokens=kept if hit else 0,
            cache_write_tokens=kept if prefix.billed_write and not hit else 0,
            output_tokens=round(answer),
        )


# ---- searches ------------------------------------------------------------------------------------


class _SearchCount:
    """Counts the searches of a local step."""

    def __init__(self, step: LocalStep, place: int) -> None:
        self.step = step
        self._place = place
        self._seen: set[int] = set()
        self.rows = self.unknown = self.fresh = 0

    def take(self, way: _Way, *, known: bool) -> None:
        """Count a row; `known` where it was asked before, so that its searches may be known."""
        planned = way.planned
        if self._place <= way.behind:
            return
        if not (self.step.applies(planned.row) and self.step.searching(planned.row)):
            return
        mark = _mark(dict(planned.row))
        if mark in self._seen:
            return
        self._seen.add(mark)
        self.rows += 1
        if self.step.name not in planned.documents:
            self.unknown += 1
            self.fresh += not known


def _searched(counts: Sequence[_SearchCount], plans: Sequence[SearchPlan]) -> list[SearchEstimate]:
    """Searches of local steps by provider, with the time that the providers' limits ask for."""
    known = {plan.provider: plan for plan in plans}
    found: list[SearchEstimate] = []
    at_once: dict[str, int] = {}
    for name in dict.fromkeys(name for count in counts for name in count.step.searches):
        of = [(count, count.step.searches[name]) for count in counts if name in count.step.searches]
        plan = known.get(name, SearchPlan(name))
        low = round(sum(count.fresh * each for count, each in of))
        calls = round(sum(count.unknown * each for count, each in of))
        worst = sum(count.rows * math.ceil(each) for count, each in of)
        at_once[name] = max(count.step.at_once for count, _ in of)
        one = SearchEstimate(
            provider=name,
            rows=sum(count.rows for count, _ in of),
            low=low,
            calls=calls,
            worst=worst,
            low_usd=low * min(plan.usd, plan.worst_usd),
            usd=calls * plan.usd,
            worst_usd=worst * max(plan.usd, plan.worst_usd),
            basis=plan.basis,
        )
        found.append(one)
    shared: dict[str, int] = {}
    for one in found:
        limit = _limit_of(known, one.provider)
        shared[limit] = shared.get(limit, 0) + one.calls
    return [_timed(one, known, shared, at_once[one.provider]) for one in found]


def _limit_of(plans: Mapping[str, SearchPlan], provider: str) -> str:
    plan = plans.get(provider)
    return provider if plan is None else plan.limit_name or provider


def _timed(
    one: SearchEstimate,
    plans: Mapping[str, SearchPlan],
    shared: Mapping[str, int],
    at_once: int,
) -> SearchEstimate:
    """Searches with their time; `shared` are all calls below each limit."""
    plan = plans.get(one.provider, SearchPlan(one.provider))
    if not one.calls:
        return one
    work = plan.latency_s * -(-one.calls // at_once)
    limit = _limit_of(plans, one.provider)
    if plan.per_minute is not None:
        by_rate = (shared[limit] - 1) * 60.0 / plan.per_minute + plan.latency_s
        if by_rate >= work:
            words = f"{plan.per_minute:,.0f} searches a minute of {limit}"
            return replace(one, seconds=by_rate, bound_by=words)
    return replace(one, seconds=work, bound_by=f"{at_once} rows searching at once")


def _model_searches(counts: Sequence[_StepCount]) -> list[SearchEstimate]:
    """Searches that models make, by provider; their fees are in the cost of the calls."""
    found: dict[str, SearchEstimate] = {}
    for count in counts:
        web = count.plan.web
        if web is None or not count.most:
            continue
        one = found.get(web.provider, SearchEstimate(web.provider, by_model=True))
        least = count.certain if web.always else 0
        found[web.provider] = replace(
            one,
            rows=one.rows + count.rows,
            low=one.low + least,
            calls=one.calls + count.requests,
            worst=one.worst + count.most * web.most_searches,
            low_usd=one.low_usd + least * web.usd * UNKNOWN_MARGIN,
            usd=one.usd + count.likely * web.usd,
            worst_usd=one.worst_usd + count.most * web.worst.usd,
        )
    return list(found.values())


def _with_searches(
    whole: LaneFigures, searches: Sequence[SearchEstimate], last_s: float
) -> LaneFigures:
    """A run's figures with the cost and time of what local steps search.

    Args:
        whole: what models are asked.
        searches: of local steps.
        last_s: seconds that the last row's calls take after its searches.
    """
    if not searches:
        return whole
    low, expected, worst = (
        Amount(cost_usd=sum(getattr(one, name) for one in searches))
        for name in ("low_usd", "usd", "worst_usd")
    )
    figures = replace(
        whole,
        low=whole.low.plus(low),
        expected=whole.expected.plus(expected),
        worst=whole.worst.plus(worst),
    )
    if whole.lane == "batch":
        return after_searches(figures, searches)
    slowest = max(searches, key=lambda one: one.seconds)
    if slowest.seconds + last_s <= whole.seconds or not slowest.calls:
        return figures
    return replace(figures, seconds=slowest.seconds + last_s, bound_by=slowest.bound_by)


# ---- sums ----------------------------------------------------------------------------------------


def _step_estimate(counts: Sequence[_StepCount], chain: Chain) -> StepEstimate:
    """One step, over the route's own rows (the first of `counts`) and those of other routes."""
    main = counts[0]
    lanes: list[LaneFigures] = []
    used = [main, *(count for count in counts[1:] if count.rows)]
    if main.plan.realtime:
        seconds, bound_by = _time(used, [[main.step.name]])
        summed = _summed("realtime", [count.figures("realtime") for count in used])
        lanes.append(replace(summed, seconds=seconds, bound_by=bound_by))
    if main.plan.jobs is not None:
        lanes.append(_summed("batch", [count.figures("batch") for count in used]))
    return StepEstimate(
        step=main.step.name,
        rows=sum(count.rows for count in used),
        cached=sum(count.rows - count.to_ask for count in used),
        to_ask=sum(count.to_ask for count in used),
        requests=sum(count.requests for count in used),
        # What most of the requests rest on.
        basis=max(used, key=lambda count: count.likely).basis,
        lanes=tuple(lanes),
    )


def _summed(lane: Lane, parts: Sequence[LaneFigures]) -> LaneFigures:
    """Figures of side by side: tokens and money add up, the longest decides the time."""
    low, expected, worst = Amount(), Amount(), Amount()
    for part in parts:
        low = low.plus(part.low)
        expected = expected.plus(part.expected)
        worst = worst.plus(part.worst)
    longest = max(parts, key=lambda part: part.seconds)
    return replace(longest, lane=lane, low=low, expected=expected, worst=worst)


def _whole(
    steps: Sequence[StepEstimate],
    paths: Sequence[Sequence[str]],
    lane: Lane,
    counts: Sequence[_StepCount],
) -> LaneFigures:
    """A run's figures in a lane."""
    parts = [step.in_lane(lane) for step in steps]
    if len(parts) == 1:
        return parts[0]
    summed = _summed(lane, parts)
    if lane == "batch":
        return one_after_another(steps, paths, summed)
    seconds, bound_by = _time(counts, paths)
    return replace(summed, seconds=seconds, bound_by=bound_by)


def _lane_of(plan: RoutePlan, lanes: Mapping[Lane, LaneFigures], rounds: int) -> Lane:
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
    job_s = plan.jobs.job_s * rounds
    into_jobs = takes_batch_lane(0.0, plan.deadline_s, job_s, realtime.seconds, cheaper=cheaper)
    return "batch" if into_jobs else "realtime"


def _time(counts: Iterable[_StepCount], paths: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Seconds, and what they are bound by: the slowest of rates and workers decides.

    The steps of a row follow each other, those of different rows overlap.
    """
    asked = [count for count in counts if count.calls]
    if not asked:
        return 0.0, ""
    by_step: dict[str, list[_StepCount]] = {}
    by_model: dict[str, list[_StepCount]] = {}
    for count in asked:
        by_step.setdefault(count.step.name, []).append(count)
        by_model.setdefault(count.plan.model, []).append(count)
    workers, name = _in_flight([of_model[0].plan for of_model in by_model.values()])
    work = sum(count.latency_s * count.calls for count in asked) / workers
    turns: dict[str, float] = {}
    for step, of_step in by_step.items():
        requests = sum(count.calls for count in of_step)
        latency = sum(count.latency_s * count.calls for count in of_step) / requests
        turns[step] = latency * -(-requests // min(workers, requests))
    # Rows of one pack come to a step together: its turns follow those of the steps before.
    bounds = {name: max(work, _longest(paths, turns))}
    for model, of_model in by_model.items():
        bounds |= _rate_bounds(of_model, paths, f" of {model}" if len(by_model) > 1 else "")
    slowest = max(bounds, key=lambda bound: bounds[bound])
    return bounds[slowest], slowest


def _longest(paths: Sequence[Sequence[str]], seconds: Mapping[str, float]) -> float:
    """Seconds of the longest way through the steps."""
    return max((sum(seconds.get(step, 0.0) for step in path) for path in paths), default=0.0)


def _in_flight(plans: Sequence[RoutePlan]) -> tuple[int, str]:
    """Requests in flight at once, and what that rests on, in words."""
    workers = plans[0].pace.workers or ASSUMED_WORKERS
    name = f"{workers} requests in flight"
    if plans[0].pace.workers is None:
        name += ", which `workers: auto` may come to"
    allowed = [plan.pace.rates.concurrent for plan in plans]
    known = [one for one in allowed if one is not None]
    if len(known) == len(allowed) and sum(known) < workers:
        workers = max(1, int(sum(known)))
        name = f"{workers} concurrent requests of the key{'s' if len(known) > 1 else ''}"
    return workers, name


def _rate_bounds(
    counts: Sequence[_StepCount], paths: Sequence[Sequence[str]], of: str
) -> dict[str, float]:
    """Seconds by each limit of one model's key, over all steps that ask it."""
    rates = counts[0].plan.pace.rates
    requests = sum(count.calls for count in counts)
    # The last row's calls still have to come back.
    last = _longest(paths, {count.step.name: count.latency_s for count in counts})
    expected = [count.figures("realtime").expected for count in counts]
    bounds: dict[str, float] = {}
    for what, rate, amount in (
        ("requests", rates.requests, requests - 1),
        ("input tokens", rates.input_tokens, sum(one.input_tokens for one in expected)),
        ("output tokens", rates.output_tokens, sum(one.output_tokens for one in expected)),
    ):
        if rate is not None:
            bounds[f"{rate:,.0f} {what} a minute{of}"] = amount * 60.0 / rate + last
    if rates.requests_per_day is not None:
        further_days = math.ceil(requests / rates.requests_per_day) - 1
        bounds[f"{rates.requests_per_day:,.0f} requests a day{of}"] = further_days * _DAY_S + last
    return bounds


def _pages(rows: Iterable[PlannedRow]) -> Iterator[list[PlannedRow]]:
    page: list[PlannedRow] = []
    for row in rows:
        page.append(row)
        if len(page) >= _PAGE:
            yield page
            page = []
    if page:
        yield page
