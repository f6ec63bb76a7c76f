"""Reads a batch's sums from the ledger into a BatchReport.

What belongs here: the report's statements and arithmetic. What does not: fields and their meaning
(model.py), money (spending.py), who answered in whose place (fallback.py), people (deciding.py),
looks. The database adds up; what comes out of it is bounded or streamed, so memory does not grow
with the batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson
import sqlalchemy as sa

from batch_pipeline.engine.searching import STEP as SEARCH_STEP
from batch_pipeline.engine.step import llm_steps
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.calls import unpack_bytes
from batch_pipeline.ledger.jobs import BATCH_LANE, REALTIME_LANE
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import (
    NANO,
    AttemptState,
    Outcome,
    attempts,
    chunks,
    items,
    owners,
    replies,
    runs,
)
from batch_pipeline.pricing.tokens import estimate_tokens, prompt_texts
from batch_pipeline.providers.base import ErrorKind
from batch_pipeline.reports.advice import ENOUGH_TO_CACHE, find_hints, next_step
from batch_pipeline.reports.deciding import read_decisions, read_waiting
from batch_pipeline.reports.fallback import find_fallbacks
from batch_pipeline.reports.lanes import read_lanes, read_provider_jobs, read_saving
from batch_pipeline.reports.model import (
    SCHEMA_VERSION,
    AttemptGroup,
    BatchReport,
    ChunkReport,
    ErrorCause,
    EstimateCheck,
    ExampleRow,
    Latency,
    LatencyBucket,
    ModelUse,
    Outcomes,
    ProblemRow,
    RunCounts,
    RunReport,
    SearchUse,
    StepUse,
    Throughput,
    ThroughputBucket,
    Tokens,
)
from batch_pipeline.reports.skipped import read_skipped
from batch_pipeline.reports.spending import (
    check_estimate,
    limits_used,
    read_money,
    read_prompt_cache,
)
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.runner import resolve_steps
from batch_pipeline.workloads.summary import summarize_batch

MAX_PROBLEM_ROWS = 200
MAX_CAUSES = 20
MAX_RUNS = 50
MAX_BUCKETS = 60
_MAX_ERROR_CHARS = 500
_MAX_EXAMPLES = 3
_MAX_DISTINCT_CAUSES = 1_000
_OTHER_CAUSES = "other causes"
_ENOUGH_CALLS_TO_CACHE = 10

# An attempt that was provably never sent is none to the user: no provider and no bill knows it.
_WENT_OUT = [AttemptState.SENT.value, AttemptState.SETTLED.value, AttemptState.LOST.value]


def build_report(
    ledger: Ledger,
    batch: Batch,
    *,
    run_id: str | None = None,
    deliverables: Sequence[Path] = (),
) -> BatchReport:
    """What a batch came to so far.

    Args:
        ledger: the ledger, bound to the batch's realm.
        batch: the batch.
        run_id: the run that the report is made for; adds `this_run`.
        deliverables: files written for the batch.
    """
    now = ledger.now()
    with ledger.read() as connection:
        reader = _Reader(connection, ledger.realm, batch, now)
        chunk_reports = reader.chunks()
        outcomes = _add_outcomes(chunk.outcomes for chunk in chunk_reports)
        cache_hits = sum(chunk.cache_hits for chunk in chunk_reports)
        totals = reader.attempt_totals()
        models = reader.models()
        searches = reader.searches()
        latency = reader.latency()
        all_runs = reader.runs(MAX_RUNS)
        this_run = reader.run(run_id) if run_id is not None else None
        newest = this_run or (all_runs[0] if all_runs else None)
        settings = newest.settings if newest else {}
        paid_rows = outcomes.succeeded - cache_hits
        wall_s = reader.wall_s()
        estimate = check_estimate(
            connection,
            ledger.realm,
            batch,
            routes=reader.routes(),
            pending=outcomes.pending,
            wall_s=reader.wall_s(since=batch.fresh_after),
        )
        report = BatchReport(
            schema_version=SCHEMA_VERSION,
            created_at=_moment(now),
            batch=batch.batch_id,
            workload=batch.workload,
            realm=ledger.realm,
            simulated=ledger.realm == "simulated",
            table=batch.table_name,
            source=batch.source,
            ingested_at=_moment(batch.created_at),
            rows=batch.row_count,
            outcomes=outcomes,
            skipped=read_skipped(connection, ledger.realm, batch.batch_id)
            if outcomes.skipped
            else [],
            success_rate=outcomes.succeeded / outcomes.ended if outcomes.ended else None,
            cache_hits=cache_hits,
            duplicate_rows=reader.duplicate_rows(),
            requests=totals.requests,
            attempts=totals.attempts,
            attempts_lost=totals.lost,
            attempts_in_flight=totals.in_flight,
            tokens=totals.tokens,
            cost_usd=totals.cost_nano / NANO,
            lost_cost_usd=totals.lost_nano / NANO,
            in_flight_cost_usd=totals.in_flight_nano / NANO,
            cost_per_1000_rows_usd=totals.cost_nano / NANO / paid_rows * 1_000
            if paid_rows
            else None,
            wall_s=wall_s,
            calls_s=reader.calls_s(),
            rate_wait_s=totals.rate_wait_s,
            latency=latency,
            throughput=reader.throughput(),
            models=models,
            steps=reader.steps(latency),
            searches=searches,
            fallbacks=find_fallbacks(connection, ledger.realm, batch),
            provider_jobs=read_provider_jobs(connection, ledger.realm, batch),
            lanes=read_lanes(connection, ledger.realm, batch),
            lane_saving=read_saving(connection, ledger.realm, batch),
            money=read_money(connection, ledger.realm, batch, newest, now),
            prompt_cache=read_prompt_cache(connection, ledger.realm, batch, models),
            estimate=estimate,
            limits=limits_used(settings),
            hints=[],
            attempts_by_reason=reader.attempts_by(attempts.c.reason),
            attempts_by_status=reader.attempts_by_status(),
            attempts_by_error=reader.attempts_by(
                attempts.c.error_kind, attempts.c.error_kind.is_not(None)
            ),
            errors=reader.causes(),
            problem_rows=reader.problem_rows(),
            chunks=chunk_reports,
            runs=all_runs,
            runs_total=reader.count_runs(),
            this_run=this_run,
            settings=settings,
            warnings=batch.warnings,
            notes=_notes(models, totals, settings, batch, estimate),
            deliverables=[str(path) for path in deliverables],
        )
        hints = find_hints(report, reader.repeated_tokens(models))
    # Streams rows page by page: outside, so that the reading above keeps no connection meanwhile.
    later = {
        "hints": hints,
        "summary": summarize_batch(ledger, batch),
        "waiting": read_waiting(ledger, batch) if report.outcomes.blocked else [],
        "decisions": read_decisions(ledger, batch),
    }
    return report.model_copy(update=later)


@dataclass(frozen=True, slots=True)
class _Totals:
    requests: int
    attempts: int
    lost: int
    in_flight: int
    in_flight_realtime: int
    tokens: Tokens
    cost_nano: int
    lost_nano: int
    in_flight_nano: int
    rate_wait_s: float


@dataclass(slots=True)
class _Cause:
    label: str = ""
    largest: int = 0
    rows: int = 0
    ordinals: set[int] = field(default_factory=set)

    def add(self, label: str, rows: int, ordinals: Iterable[int]) -> None:
        if rows > self.largest:
            self.label, self.largest = label, rows
        self.rows += rows
        self.ordinals = set(sorted(self.ordinals | set(ordinals))[:_MAX_EXAMPLES])


class _Reader:
    """One batch, seen through one connection."""

    def __init__(self, connection: sa.Connection, realm: str, batch: Batch, now: float) -> None:
        self._connection = connection
        self._batch = batch
        self._now = now
        self._items = sa.and_(items.c.realm == realm, items.c.batch_id == batch.batch_id)
        self._calls = sa.and_(
            attempts.c.realm == realm,
            attempts.c.batch_id == batch.batch_id,
            attempts.c.state.in_(_WENT_OUT),
        )
        # Of models: searches are counted by themselves.
        self._attempts = sa.and_(self._calls, attempts.c.step != SEARCH_STEP)
        self._chunks = sa.and_(chunks.c.realm == realm, chunks.c.batch_id == batch.batch_id)
        self._runs = sa.and_(runs.c.realm == realm, runs.c.batch_id == batch.batch_id)
        # Joins an item to the attempt that gave its result, if it was made for this batch.
        self._own_attempt = sa.and_(
            attempts.c.attempt_id == items.c.attempt_id,
            attempts.c.realm == realm,
            attempts.c.batch_id == batch.batch_id,
        )

    # ---- rows -----------------------------------------------------------------------------------

    def chunks(self) -> list[ChunkReport]:
        hit = sa.and_(items.c.outcome == Outcome.SUCCEEDED.value, attempts.c.attempt_id.is_(None))
        statement = (
            sa.select(
                chunks.c.chunk_key,
                chunks.c.first_ordinal,
                chunks.c.row_count,
                items.c.outcome,
                sa.func.count().label("rows"),
                sa.func.sum(sa.case((hit, 1), else_=0)).label("hits"),
                sa.func.sum(items.c.cost_nano).label("cost_nano"),
            )
            .select_from(
                chunks.join(
                    items,
                    sa.and_(
                        items.c.realm == chunks.c.realm,
                        items.c.batch_id == chunks.c.batch_id,
                        items.c.ordinal >= chunks.c.first_ordinal,
                        items.c.ordinal < chunks.c.first_ordinal + chunks.c.row_count,
                    ),
                ).outerjoin(attempts, self._own_attempt)
            )
            .where(self._chunks)
            .group_by(
                chunks.c.chunk_key, chunks.c.first_ordinal, chunks.c.row_count, items.c.outcome
            )
            .order_by(chunks.c.first_ordinal)
        )
        found: dict[tuple[str, int, int], list[sa.Row[Any]]] = {}
        for row in self._connection.execute(statement):
            found.setdefault((row.chunk_key, row.first_ordinal, row.row_count), []).append(row)
        reports = []
        for (key, first, count), rows in found.items():
            outcomes = _outcomes({row.outcome: int(row.rows) for row in rows})
            reports.append(
                ChunkReport(
                    chunk_key=key,
                    first_row=first + 1,
                    rows=count,
                    outcomes=outcomes,
                    complete=outcomes.failed == 0 and outcomes.pending == 0,
                    cache_hits=sum(int(row.hits) for row in rows),
                    cost_usd=sum(int(row.cost_nano) for row in rows) / NANO,
                )
            )
        return reports

    def duplicate_rows(self) -> int:
        paid, distinct = self._connection.execute(
            sa.select(sa.func.count(), sa.func.count(items.c.cache_key.distinct()))
            .select_from(items.join(attempts, self._own_attempt))
            .where(self._items, items.c.outcome == Outcome.SUCCEEDED.value)
        ).one()
        return int(paid) - int(distinct)

    def problem_rows(self) -> list[ProblemRow]:
        statement = (
            sa.select(
                items.c.number,
                items.c.item_id,
                items.c.outcome,
                items.c.error_kind,
                sa.func.substr(_bare_error(), 1, _MAX_ERROR_CHARS).label("error"),
            )
            .where(self._items, self._is_problem())
            .order_by(items.c.ordinal)
            .limit(MAX_PROBLEM_ROWS)
        )
        return [
            ProblemRow(
                number=row.number,
                item_id=row.item_id,
                outcome=_problem_outcome(row.outcome),
                kind=row.error_kind or "unknown",
                error=row.error or "no error was recorded",
            )
            for row in self._connection.execute(statement)
        ]

    def causes(self) -> list[ErrorCause]:
        """Why rows ended without a result, the most frequent causes first.

        The database groups equal messages; those that differ only in numbers or quoted text are
        merged as they stream by.
        """
        cause = _bare_error()
        statement = (
            sa.select(
                items.c.outcome,
                items.c.error_kind,
                cause.label("cause"),
                sa.func.count().label("rows"),
                sa.func.min(items.c.ordinal).label("first"),
                sa.func.max(items.c.ordinal).label("last"),
            )
            .where(self._items, self._is_problem())
            .group_by(items.c.outcome, items.c.error_kind, "cause")
        )
        merged: dict[tuple[str, str, str], _Cause] = {}
        streamed = self._connection.execution_options(yield_per=500).execute(statement)
        for row in streamed:
            label = _as_cause(row.cause or "no error was recorded")
            key = (row.outcome, row.error_kind or "unknown", _pattern(label))
            if key not in merged and len(merged) >= _MAX_DISTINCT_CAUSES:
                label = _OTHER_CAUSES
                key = (*key[:2], label)
            merged.setdefault(key, _Cause()).add(label, int(row.rows), {row.first, row.last})
        most = sorted(merged.items(), key=lambda entry: (-entry[1].rows, entry[0]))[:MAX_CAUSES]
        examples = self._examples({at for _, found in most for at in found.ordinals})
        return [
            ErrorCause(
                outcome=_problem_outcome(outcome),
                kind=kind,
                cause=found.label[:_MAX_ERROR_CHARS],
                rows=found.rows,
                examples=[examples[at] for at in sorted(found.ordinals)],
                next_step=next_step(
                    kind, self._batch.batch_id, examples[min(found.ordinals)].number
                ),
            )
            for (outcome, kind, _), found in most
        ]

    def _examples(self, ordinals: set[int]) -> dict[int, ExampleRow]:
        statement = sa.select(items.c.ordinal, items.c.number, items.c.item_id).where(
            self._items, items.c.ordinal.in_(sorted(ordinals))
        )
        return {
            row.ordinal: ExampleRow(number=row.number, item_id=row.item_id)
            for row in self._connection.execute(statement)
        }

    def _is_problem(self) -> sa.ColumnElement[bool]:
        return items.c.outcome.in_([Outcome.FAILED.value, Outcome.BLOCKED.value])

    # ---- attempts -------------------------------------------------------------------------------

    def attempt_totals(self) -> _Totals:
        row = self._connection.execute(
            sa.select(
                sa.func.count(attempts.c.request_id.distinct()).label("requests"),
                sa.func.count().label("attempts"),
                _count_of(AttemptState.LOST).label("lost"),
                _count_of(AttemptState.SENT).label("in_flight"),
                _count(
                    sa.and_(
                        attempts.c.state == AttemptState.SENT.value,
                        attempts.c.lane == REALTIME_LANE,
                    )
                ).label("in_flight_realtime"),
                sa.func.coalesce(sa.func.sum(attempts.c.rate_wait_s), 0.0).label("rate_wait_s"),
                *_token_sums(),
            ).where(self._attempts)
        ).one()
        spent = self._connection.execute(
            sa.select(
                _sum_of(attempts.c.cost_nano, AttemptState.SETTLED).label("cost_nano"),
                _sum_of(attempts.c.cost_nano, AttemptState.LOST).label("lost_nano"),
                _sum_of(attempts.c.worst_nano, AttemptState.SENT).label("in_flight_nano"),
            ).where(self._calls)
        ).one()
        return _Totals(
            requests=int(row.requests),
            attempts=int(row.attempts),
            lost=int(row.lost),
            in_flight=int(row.in_flight),
            in_flight_realtime=int(row.in_flight_realtime),
            tokens=_tokens(row),
            cost_nano=int(spent.cost_nano),
            lost_nano=int(spent.lost_nano),
            in_flight_nano=int(spent.in_flight_nano),
            rate_wait_s=float(row.rate_wait_s),
        )

    def steps(self, latency: Latency) -> list[StepUse]:
        """By step; `latency` is that of all of them, which is a single one's too."""
        statement = (
            sa.select(
                attempts.c.step,
                sa.func.count(attempts.c.request_id.distinct()).label("requests"),
                sa.func.count().label("attempts"),
                _sum_of(attempts.c.cost_nano, AttemptState.SETTLED).label("cost_nano"),
                _sum_of(attempts.c.cost_nano, AttemptState.LOST).label("lost_nano"),
                *_token_sums(),
            )
            .where(self._attempts)
            .group_by(attempts.c.step)
            .order_by(sa.func.min(attempts.c.sent_at), attempts.c.step)
        )
        order = {name: place for place, name in enumerate(_step_names(self._batch.workload))}
        rows = sorted(
            self._connection.execute(statement), key=lambda row: order.get(row.step, len(order))
        )
        return [
            StepUse(
                step=row.step,
                requests=int(row.requests),
                attempts=int(row.attempts),
                tokens=_tokens(row),
                cost_usd=int(row.cost_nano) / NANO,
                lost_cost_usd=int(row.lost_nano) / NANO,
                latency=latency if len(rows) == 1 else self.latency(attempts.c.step == row.step),
            )
            for row in rows
        ]

    def searches(self) -> list[SearchUse]:
        searched = sa.and_(self._calls, attempts.c.step == SEARCH_STEP)
        statement = (
            sa.select(
                attempts.c.model,
                sa.func.count(attempts.c.request_id.distinct()).label("requests"),
                sa.func.count().label("attempts"),
                _count(attempts.c.error_kind.is_not(None)).label("failed"),
                _sum_of(attempts.c.cost_nano, AttemptState.SETTLED).label("cost_nano"),
                _sum_of(attempts.c.cost_nano, AttemptState.LOST).label("lost_nano"),
                _sum_of(attempts.c.worst_nano, AttemptState.SENT).label("in_flight_nano"),
                sa.func.coalesce(sa.func.sum(attempts.c.rate_wait_s), 0.0).label("rate_wait_s"),
            )
            .where(searched)
            .group_by(attempts.c.model)
        )
        known = self._searches_known()
        found = [
            SearchUse(
                endpoint=row.model,
                requests=int(row.requests),
                attempts=int(row.attempts),
                attempts_failed=int(row.failed),
                cached=known.pop(row.model, 0),
                cost_usd=int(row.cost_nano) / NANO,
                lost_cost_usd=(int(row.lost_nano) + int(row.in_flight_nano)) / NANO,
                rate_wait_s=float(row.rate_wait_s),
                latency=self.latency(attempts.c.model == row.model, among=searched),
            )
            for row in self._connection.execute(statement).all()
        ]
        found += [
            SearchUse(
                endpoint=endpoint,
                requests=0,
                attempts=0,
                attempts_failed=0,
                cached=count,
                cost_usd=0.0,
                lost_cost_usd=0.0,
                rate_wait_s=0.0,
                latency=_no_latency(),
            )
            for endpoint, count in known.items()
        ]
        return sorted(found, key=lambda use: use.endpoint)

    def models(self) -> list[ModelUse]:
        rows_by_model = {
            model: int(count)
            for model, count in self._connection.execute(
                sa.select(items.c.model, sa.func.count())
                .where(self._items, items.c.outcome == Outcome.SUCCEEDED.value)
                .group_by(items.c.model)
            )
            if model
        }
        statement = (
            sa.select(
                attempts.c.model,
                sa.func.count(attempts.c.request_id.distinct()).label("requests"),
                sa.func.count().label("attempts"),
                _sum_of(attempts.c.cost_nano, AttemptState.SETTLED).label("cost_nano"),
                _sum_of(attempts.c.cost_nano, AttemptState.LOST).label("lost_nano"),
                sa.func.min(attempts.c.sent_at).label("first_sent_at"),
                sa.func.max(attempts.c.sent_at).label("last_sent_at"),
                *(_count(how).label(name) for name, how in _how_it_went().items()),
                *_token_sums(),
            )
            .where(self._attempts)
            .group_by(attempts.c.model)
        )
        found = []
        for row in self._connection.execute(statement).all():
            tokens = _tokens(row)
            went = {name: int(getattr(row, name)) for name in _how_it_went()}
            found.append(
                ModelUse(
                    model=row.model,
                    answered_as=self._answered_as(row.model),
                    rows=rows_by_model.pop(row.model, 0),
                    requests=int(row.requests),
                    attempts=int(row.attempts),
                    tokens=tokens,
                    cost_usd=int(row.cost_nano) / NANO,
                    lost_cost_usd=int(row.lost_nano) / NANO,
                    priced=bool(row.cost_nano) or tokens.input + tokens.output == 0,
                    latency=self.latency(attempts.c.model == row.model),
                    attempts_other_error=int(row.attempts) - sum(went.values()),
                    first_sent_at=_moment(row.first_sent_at),
                    last_sent_at=_moment(row.last_sent_at),
                    **went,
                )
            )
        # What is left answered from the cache only.
        for model, count in rows_by_model.items():
            found.append(
                ModelUse(
                    model=model,
                    answered_as=[],
                    rows=count,
                    requests=0,
                    attempts=0,
                    tokens=Tokens(input=0, cached_input=0, cache_write=0, output=0, thinking=0),
                    cost_usd=0.0,
                    lost_cost_usd=0.0,
                    priced=True,
                    latency=_no_latency(),
                    attempts_other_error=0,
                    first_sent_at=None,
                    last_sent_at=None,
                    **dict.fromkeys(_how_it_went(), 0),
                )
            )
        return sorted(found, key=lambda use: (-use.cost_usd, -use.rows, use.model))

    def repeated_tokens(self, models: Sequence[ModelUse]) -> dict[str, int]:
        """Tokens that each request to a model repeats, for models that no cache served.

        Two of its requests are compared, the first and the last: what both hold is repeated.
        """
        found = {}
        for use in models:
            used_cache = use.tokens.cached_input + use.tokens.cache_write
            # How close together the lines of a provider job are asked is not ours to choose.
            if used_cache or use.latency.attempts < _ENOUGH_CALLS_TO_CACHE:
                continue
            if use.tokens.input / use.attempts_answered < ENOUGH_TO_CACHE:
                continue
            statement = (
                sa.select(replies.c.request)
                .select_from(attempts.join(replies, replies.c.attempt_id == attempts.c.attempt_id))
                .where(self._attempts, attempts.c.model == use.model)
                .limit(1)
            )
            bodies = [
                self._connection.execute(statement.order_by(order)).scalar()
                for order in (attempts.c.sent_at, attempts.c.sent_at.desc())
            ]
            texts = [set(prompt_texts(orjson.loads(unpack_bytes(body)))) for body in bodies if body]
            if len(texts) == 2:
                found[use.model] = sum(map(estimate_tokens, texts[0] & texts[1]))
        return found

    def _answered_as(self, model: str) -> list[str]:
        statement = (
            sa.select(attempts.c.answered_model)
            .where(
                self._attempts,
                attempts.c.model == model,
                attempts.c.answered_model.is_not(None),
                attempts.c.answered_model != "",
            )
            .distinct()
            .order_by(attempts.c.answered_model)
            .limit(5)
        )
        return list(self._connection.execute(statement).scalars())

    def attempts_by(
        self, column: sa.ColumnElement[Any], *where: sa.ColumnElement[bool]
    ) -> list[AttemptGroup]:
        statement = (
            sa.select(column.label("name"), sa.func.count(), _spent())
            .where(self._attempts, *where)
            .group_by("name")
            .order_by(sa.func.count().desc(), "name")
        )
        return [
            AttemptGroup(name=str(name), attempts=int(count), cost_usd=int(nano) / NANO)
            for name, count, nano in self._connection.execute(statement)
        ]

    def attempts_by_status(self) -> list[AttemptGroup]:
        name = sa.case(
            (attempts.c.state == AttemptState.SENT.value, "in flight"),
            (sa.func.coalesce(attempts.c.status, 0) == 0, "no reply"),
            else_=sa.cast(attempts.c.status, sa.String),
        )
        return self.attempts_by(name)

    def latency(
        self, *where: sa.ColumnElement[bool], among: sa.ColumnElement[bool] | None = None
    ) -> Latency:
        """Nearest rank over settled attempts: the same rule as a chunk's metadata.

        Args:
            where: which of them.
            among: attempts to look at; None is those of models.
        """
        measured = sa.and_(
            self._attempts if among is None else among,
            attempts.c.lane == REALTIME_LANE,
            attempts.c.state == AttemptState.SETTLED.value,
            attempts.c.latency_s.is_not(None),
            *where,
        )
        count, slowest = self._connection.execute(
            sa.select(sa.func.count(), sa.func.max(attempts.c.latency_s)).where(measured)
        ).one()
        if not count:
            return _no_latency()

        def at(share: float) -> float:
            rank = min(int(count) - 1, int(share * count))
            statement = (
                sa.select(attempts.c.latency_s)
                .where(measured)
                .order_by(attempts.c.latency_s)
                .offset(rank)
                .limit(1)
            )
            return float(self._connection.execute(statement).scalar_one())

        p50, p95 = at(0.5), at(0.95)
        return Latency(
            attempts=int(count),
            p50_s=p50,
            p95_s=p95,
            max_s=float(slowest),
            distribution=self._latency_buckets(measured, min(float(slowest), 2.5 * p95), slowest),
        )

    def _latency_buckets(
        self, measured: sa.ColumnElement[bool], upper: float, slowest: float
    ) -> list[LatencyBucket]:
        width_ms = _round_ms(upper / 24)
        place = _milliseconds(attempts.c.latency_s) // width_ms
        counts = {
            int(at): int(count)
            for at, count in self._connection.execute(
                sa.select(place.label("place"), sa.func.count()).where(measured).group_by("place")
            )
        }
        first = min(counts)
        last = max(first, min(max(counts), int(upper * 1_000 // width_ms)))
        buckets = [
            LatencyBucket(
                from_s=at * width_ms / 1_000,
                to_s=(at + 1) * width_ms / 1_000,
                attempts=counts.get(at, 0),
            )
            for at in range(first, last + 1)
        ]
        beyond = sum(count for at, count in counts.items() if at > last)
        if beyond:
            buckets.append(
                LatencyBucket(from_s=(last + 1) * width_ms / 1_000, to_s=None, attempts=beyond)
            )
        return buckets

    # ---- runs and time --------------------------------------------------------------------------

    def runs(self, limit: int) -> list[RunReport]:
        statement = (
            self._select_runs().order_by(runs.c.started_at.desc(), runs.c.run_id).limit(limit)
        )
        return [self._run(row) for row in self._connection.execute(statement)]

    def run(self, run_id: str) -> RunReport | None:
        row = self._connection.execute(self._select_runs().where(runs.c.run_id == run_id)).first()
        return None if row is None else self._run(row)

    def count_runs(self) -> int:
        statement = sa.select(sa.func.count()).select_from(runs).where(self._runs)
        return int(self._connection.execute(statement).scalar_one())

    def _select_runs(self) -> sa.Select[Any]:
        return (
            sa.select(runs, owners.c.lease_expires_at)
            .select_from(runs.outerjoin(owners, owners.c.owner_id == runs.c.owner_id))
            .where(self._runs)
        )

    def _run(self, row: sa.Row[Any]) -> RunReport:
        running = row.status == "running"
        crashed = running and (row.lease_expires_at or 0.0) <= self._now
        summary = orjson.loads(row.summary)
        counts = None
        if summary and not running:
            counts = _run_counts(
                summary, *self._searched(row.run_id), self.calls_s(attempts.c.run_id == row.run_id)
            )
        message = row.message
        if crashed:
            message = (
                "Its process ended without a word. What it had paid for is kept; run the batch "
                "again to finish it."
            )
        return RunReport(
            run_id=row.run_id,
            status="crashed" if crashed else row.status,
            message=message,
            started_at=_moment(row.started_at),
            ended_at=None if running or row.ended_at is None else _moment(row.ended_at),
            settings=orjson.loads(row.settings),
            counts=counts,
            given_up=summary.get("given_up", {}),
        )

    def _searched(self, run_id: str) -> tuple[int, float]:
        """Wire calls and waiting of a run at search providers."""
        calls, waited_s = self._connection.execute(
            sa.select(
                sa.func.count(),
                sa.func.coalesce(sa.func.sum(attempts.c.rate_wait_s), 0.0),
            ).where(self._calls, attempts.c.run_id == run_id, attempts.c.step == SEARCH_STEP)
        ).one()
        return int(calls), float(waited_s)

    def calls_s(self, of: sa.ColumnElement[bool] | None = None) -> float:
        """Seconds of real-time calls, to models and search providers, summed."""
        made = sa.and_(self._calls, attempts.c.lane == REALTIME_LANE)
        statement = sa.select(sa.func.coalesce(sa.func.sum(attempts.c.latency_s), 0.0))
        found = self._connection.execute(statement.where(made if of is None else made & of))
        return float(found.scalar_one())

    def _searches_known(self) -> dict[str, int]:
        """Queries of runs that have ended which needed no call, by endpoint."""
        found: dict[str, int] = {}
        for text in self._connection.execute(sa.select(runs.c.summary).where(self._runs)).scalars():
            for endpoint, count in orjson.loads(text).get("searches_known", {}).items():
                found[endpoint] = found.get(endpoint, 0) + count
        return found

    def routes(self) -> set[str]:
        """The routes of the runs that made calls; of the newest run where none did."""
        called = sa.exists().where(attempts.c.run_id == runs.c.run_id, self._attempts)
        settings = self._connection.execute(
            sa.select(runs.c.settings).where(self._runs, called).distinct()
        )
        return {str(orjson.loads(text).get("route")) for text in settings.scalars()}

    def wall_s(self, since: float = 0.0) -> float:
        """Seconds of all runs; one without an end counts till now, or its last attempt if dead."""
        last_attempt = (
            sa.select(sa.func.max(sa.func.coalesce(attempts.c.settled_at, attempts.c.sent_at)))
            .where(attempts.c.run_id == runs.c.run_id, self._calls)
            .scalar_subquery()
        )
        running = runs.c.status == "running"
        end = sa.case(
            (sa.and_(running, owners.c.lease_expires_at > self._now), self._now),
            (running, sa.func.coalesce(last_attempt, runs.c.started_at)),
            else_=sa.func.coalesce(runs.c.ended_at, runs.c.started_at),
        )
        statement = (
            sa.select(sa.func.sum(end - runs.c.started_at))
            .select_from(runs.outerjoin(owners, owners.c.owner_id == runs.c.owner_id))
            .where(self._runs, runs.c.started_at >= since)
        )
        return max(0.0, float(self._connection.execute(statement).scalar() or 0.0))

    def throughput(self) -> Throughput:
        """Only one run: the hours between two runs would flatten every bar."""
        run = self._connection.execute(
            sa.select(
                runs.c.run_id,
                runs.c.started_at,
                sa.func.max(sa.func.coalesce(attempts.c.settled_at, attempts.c.sent_at)).label(
                    "last"
                ),
            )
            .select_from(runs.join(attempts, attempts.c.run_id == runs.c.run_id))
            .where(self._runs, self._attempts)
            .group_by(runs.c.run_id, runs.c.started_at)
            .order_by(runs.c.started_at.desc())
            .limit(1)
        ).first()
        if run is None:
            return Throughput(run_id=None, started_at=None, bucket_s=1.0, buckets=[])
        start = float(run.started_at)
        last = max(start, float(run.last)) + 1.0
        width_ms = _round_ms((last - start) / (MAX_BUCKETS - 20))

        def counted(moment: sa.ColumnElement[Any], where: sa.ColumnElement[bool]) -> dict[int, int]:
            place = _milliseconds(moment - start) // width_ms
            statement = (
                sa.select(place.label("place"), sa.func.count())
                .where(where, moment >= start, moment < last)
                .group_by("place")
            )
            return {int(at): int(count) for at, count in self._connection.execute(statement)}

        rows = counted(items.c.settled_at, self._items)
        ended = counted(
            attempts.c.settled_at, sa.and_(self._attempts, attempts.c.run_id == run.run_id)
        )
        top = max([*rows, *ended], default=-1)
        return Throughput(
            run_id=run.run_id,
            started_at=_moment(start),
            bucket_s=width_ms / 1_000,
            buckets=[
                ThroughputBucket(
                    offset_s=at * width_ms / 1_000,
                    rows=rows.get(at, 0),
                    attempts=ended.get(at, 0),
                )
                for at in range(top + 1)
            ],
        )


def _step_names(workload: str) -> list[str]:
    """The workload's LLM steps in order; empty where it is not one that is known here."""
    try:
        return [step.name for step in llm_steps(resolve_steps(load_workload_config(workload)))]
    except UsageError:
        return []


def _bare_error() -> sa.ColumnElement[str]:
    """A row's error without the `Row 7 (id): ` in front: so that equal causes are equal."""
    prefix = (
        sa.literal("Row ")
        .concat(sa.cast(items.c.number, sa.String))
        .concat(" (")
        .concat(items.c.item_id)
        .concat("): ")
    )
    length = sa.func.length(prefix)
    return sa.case(
        (
            sa.func.substr(items.c.error, 1, length) == prefix,
            sa.func.substr(items.c.error, length + 1),
        ),
        else_=items.c.error,
    )


_PLACE = re.compile(r"^row \d+(?: \(line \d+\))?", re.IGNORECASE)
# What tells a person to look at the row: `next_step` says that for all rows of a cause.
_COMMAND = re.compile(r"\s*`batch-pipeline review show [^`]*` shows it for a decision\.$")
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|https?://[^\s)]+|\d+")


def _as_cause(message: str) -> str:
    return _PLACE.sub("The row", _COMMAND.sub("", message))


def _pattern(cause: str) -> str:
    return _VARYING.sub("#", cause)


def _milliseconds(seconds: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    # Whole milliseconds, because integer division is the one rounding that both databases share;
    # rounded first, because a cast truncates on SQLite and rounds on PostgreSQL.
    return sa.cast(sa.func.round(seconds * 1_000), sa.BigInteger)


def _round_ms(seconds: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50 ... ms that is not below `seconds`."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= seconds * 1_000:
                return step * scale
        scale *= 10


def _how_it_went() -> dict[str, sa.ColumnElement[bool]]:
    """Ways in which an attempt ends, none of which overlap; what is left went wrong otherwise."""
    status = sa.func.coalesce(attempts.c.status, 0)
    settled = attempts.c.state == AttemptState.SETTLED.value
    refused = sa.or_(status == 429, attempts.c.error_kind == ErrorKind.RATE_LIMITED.value)
    refused = sa.and_(attempts.c.error_kind.is_not(None), refused)
    # A call is cut off when its time is over; one that broke earlier took less.
    whole_time = 0.99 * (attempts.c.deadline_at - attempts.c.sent_at)
    return {
        "attempts_answered": sa.and_(
            settled, attempts.c.error_kind.is_(None), attempts.c.reconciled_at.is_(None)
        ),
        "attempts_rate_limited": refused,
        "attempts_server_error": sa.and_(
            attempts.c.error_kind.is_not(None), status >= 500, sa.not_(refused)
        ),
        "attempts_timed_out": sa.and_(
            attempts.c.error_kind == ErrorKind.TRANSIENT.value,
            status == 0,
            attempts.c.latency_s >= whole_time,
        ),
        "attempts_in_flight": attempts.c.state == AttemptState.SENT.value,
    }


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)


def _count_of(state: AttemptState) -> sa.ColumnElement[int]:
    return _count(attempts.c.state == state.value)


def _sum_of(column: sa.ColumnElement[int], state: AttemptState) -> sa.ColumnElement[int]:
    return sa.func.coalesce(
        sa.func.sum(sa.case((attempts.c.state == state.value, column), else_=0)), 0
    )


def _spent() -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(attempts.c.cost_nano), 0)


_TOKEN_COLUMNS = {
    "input": attempts.c.input_tokens,
    "cached_input": attempts.c.cached_input_tokens,
    "cache_write": attempts.c.cache_write_tokens,
    "output": attempts.c.output_tokens,
    "thinking": attempts.c.thinking_tokens,
}


def _token_sums() -> list[sa.Label[int]]:
    return [
        sa.func.coalesce(sa.func.sum(column), 0).label(f"tokens_{name}")
        for name, column in _TOKEN_COLUMNS.items()
    ]


def _tokens(row: sa.Row[Any]) -> Tokens:
    return Tokens(**{name: int(getattr(row, f"tokens_{name}")) for name in _TOKEN_COLUMNS})


def _no_latency() -> Latency:
    return Latency(attempts=0, p50_s=None, p95_s=None, max_s=None, distribution=[])


def _outcomes(counts: dict[str, int]) -> Outcomes:
    return Outcomes(**{outcome.value: counts.get(outcome.value, 0) for outcome in Outcome})


def _add_outcomes(parts: Iterable[Outcomes]) -> Outcomes:
    counts = dict.fromkeys((outcome.value for outcome in Outcome), 0)
    for part in parts:
        for name in counts:
            counts[name] += getattr(part, name)
    return _outcomes(counts)


def _problem_outcome(outcome: str) -> Literal["failed", "blocked"]:
    return "blocked" if outcome == Outcome.BLOCKED.value else "failed"


def _run_counts(
    summary: dict[str, Any], searches: int, waited_s: float, calls_s: float
) -> RunCounts:
    """What a run noted about itself, in which waiting for searches is waiting like any other."""
    return RunCounts(
        outcomes=_outcomes(summary["outcomes"]),
        cache_hits=summary["cache_hits"],
        requests=summary["requests"],
        attempts=summary["attempts"],
        searches=searches,
        input_tokens=summary["input_tokens"],
        cached_input_tokens=summary["cached_input_tokens"],
        output_tokens=summary["output_tokens"],
        cost_usd=summary["cost_nano"] / NANO,
        lost_cost_usd=summary["lost_nano"] / NANO,
        wall_s=summary["wall_s"],
        rate_wait_s=max(0.0, summary["rate_wait_s"] - waited_s),
        errors=summary["errors"],
        calls_s=calls_s,
    )


def _notes(
    models: Sequence[ModelUse],
    totals: _Totals,
    settings: dict[str, Any],
    batch: Batch,
    estimate: EstimateCheck | None,
) -> list[str]:
    notes = [
        f"No price is known for {use.model}: its {use.attempts:,} attempts count as 0.00 USD."
        for use in models
        if not use.priced
    ]
    if left_out := settings.get("left_out"):
        notes.append(
            f"Left out of the requests, because the model does not take it: {', '.join(left_out)}."
        )
    if totals.in_flight_realtime:
        notes.append(
            f"{totals.in_flight_realtime:,} attempts are not known to have ended. If no run is "
            "going on, the next run finds out what became of them."
        )
    if batch.estimate and estimate is None and totals.attempts:
        lane = "the batch lane" if batch.estimate.get("lane") == BATCH_LANE else "real time"
        notes.append(
            f"The estimate was made for route {batch.estimate.get('route')} in {lane}, and not "
            "only that was used: it is not compared."
        )
    notes += settings.get("warnings", [])
    notes += batch.notes
    return notes


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
