"""The report's money: what was paid, what bounds it, what prompt caches saved, what was estimated.

What belongs here: reading and arithmetic. What does not: fields (model.py), the books themselves
(ledger/spend.py), prices (pricing/), looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from batch_pipeline.engine.searching import STEP as SEARCH_STEP
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.jobs import BATCH_LANE, REALTIME_LANE
from batch_pipeline.ledger.spend import Account, Scope, read_balance
from batch_pipeline.ledger.tables import NANO, AttemptState, attempts
from batch_pipeline.limits.days import day_of
from batch_pipeline.limits.rates import DIMENSIONS
from batch_pipeline.pricing.prices import find_pricer
from batch_pipeline.providers.base import Usage
from batch_pipeline.providers.registry import parse_route
from batch_pipeline.reports.fallback import bare_label, named_models
from batch_pipeline.reports.lanes import lanes_of_runs
from batch_pipeline.reports.model import (
    BudgetUse,
    CacheUse,
    EstimateCheck,
    EstimateLine,
    LimitUsed,
    ModelUse,
    Money,
    PromptCache,
    RunReport,
)

# ---- what was paid, and what bounds it -----------------------------------------------------------


def read_money(
    connection: sa.Connection, realm: str, batch: Batch, newest: RunReport | None, now: float
) -> Money:
    """What the batch cost, and how much of its budgets is used.

    Args:
        connection: for reading.
        realm: the batch's.
        batch: the batch.
        newest: the run whose settings name the budgets.
        now: UTC seconds.
    """
    reconciled = attempts.c.reconciled_at.is_not(None)
    worth = sa.case(
        (attempts.c.state == AttemptState.SENT.value, attempts.c.worst_nano),
        else_=attempts.c.cost_nano,
    )
    statement = (
        sa.select(
            attempts.c.state,
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(worth), 0),
            sa.func.coalesce(sa.func.sum(sa.case((reconciled, 1), else_=0)), 0),
            sa.func.coalesce(sa.func.sum(sa.case((reconciled, worth), else_=0)), 0),
        )
        .where(attempts.c.realm == realm, attempts.c.batch_id == batch.batch_id)
        .group_by(attempts.c.state)
    )
    found = {
        str(row[0]): [int(value) for value in row[1:]] for row in connection.execute(statement)
    }
    none = [0, 0, 0, 0]
    settled = found.get(AttemptState.SETTLED.value, none)
    lost = found.get(AttemptState.LOST.value, none)
    sent = found.get(AttemptState.SENT.value, none)
    return Money(
        settled_usd=settled[1] / NANO,
        settled_calls=settled[0],
        lost_usd=lost[1] / NANO,
        lost_calls=lost[0],
        reserved_usd=sent[1] / NANO,
        reserved_calls=sent[0],
        reconciled_usd=settled[3] / NANO,
        reconciled_calls=settled[2],
        budgets=_budgets(connection, realm, batch, newest, now),
    )


def _budgets(
    connection: sa.Connection, realm: str, batch: Batch, newest: RunReport | None, now: float
) -> list[BudgetUse]:
    settings: Mapping[str, Any] = newest.settings if newest else {}
    found = []
    own = settings.get("budget_usd")
    if own is None and batch.budget_nano is not None:
        own = batch.budget_nano / NANO
    if own is not None:
        account = Account(realm, Scope.BATCH, batch.batch_id)
        found.append(_budget(connection, account, float(own)))
    if newest is None:
        return found
    ended = now if newest.ended_at is None else newest.ended_at.timestamp()
    days = connection.execute(
        sa.select(attempts.c.provider, attempts.c.workload_day, attempts.c.provider_day)
        .where(attempts.c.realm == realm, attempts.c.run_id == newest.run_id)
        .distinct()
    ).all()
    if (limit := settings.get("budget_usd_per_day")) is not None:
        # The day on which it ended has no call of its own where nothing fitted any more.
        for day in sorted({row.workload_day for row in days if row.workload_day}
                          | {day_of("", ended)}):  # fmt: skip
            account = Account(realm, Scope.WORKLOAD, batch.workload, day)
            found.append(_budget(connection, account, float(limit)))
    if (limit := settings.get("provider_budget_usd_per_day")) is not None:
        named = {name.partition("/")[0] for name in named_models(settings)}
        ending = {(name, day_of(name, ended)) for name in named}
        for name, day in sorted(
            {(row.provider, row.provider_day) for row in days if row.provider_day} | ending
        ):
            account = Account(realm, Scope.PROVIDER, name, day)
            found.append(_budget(connection, account, float(limit)))
    return found


_SCOPES: Mapping[Scope, Literal["batch", "workload", "provider"]] = {
    Scope.BATCH: "batch",
    Scope.WORKLOAD: "workload",
    Scope.PROVIDER: "provider",
}


def _budget(connection: sa.Connection, account: Account, limit_usd: float) -> BudgetUse:
    balance = read_balance(connection, account)
    return BudgetUse(
        scope=_SCOPES[account.scope],
        name=account.scope_id,
        day=account.day or None,
        limit_usd=limit_usd,
        settled_usd=balance.settled / NANO,
        lost_usd=balance.lost / NANO,
        reserved_usd=balance.reserved / NANO,
        used_share=balance.spent / NANO / limit_usd,
    )


# ---- prompt caches -------------------------------------------------------------------------------


def read_prompt_cache(
    connection: sa.Connection, realm: str, batch: Batch, models: list[ModelUse]
) -> PromptCache:
    """What prompt caches saved: each attempt that used one is priced with and without it."""
    statement = sa.select(
        attempts.c.provider,
        attempts.c.model,
        attempts.c.sent_at,
        attempts.c.input_tokens,
        attempts.c.cached_input_tokens,
        attempts.c.cache_write_tokens,
        attempts.c.output_tokens,
    ).where(
        attempts.c.realm == realm,
        attempts.c.batch_id == batch.batch_id,
        attempts.c.state == AttemptState.SETTLED.value,
        attempts.c.cached_input_tokens + attempts.c.cache_write_tokens > 0,
    )
    hits = 0
    saved: dict[str, int | None] = {}
    pricers: dict[str, Any] = {}
    streamed = connection.execution_options(yield_per=5_000).execute(statement)
    for provider, label, sent_at, fresh, cached, written, output in streamed:
        hits += cached > 0
        if label not in pricers:
            model = bare_label(label).removeprefix(f"{provider}/")
            pricers[label] = find_pricer(provider, model)
            saved[label] = None if pricers[label] is None else 0
        price = pricers[label]
        if price is not None:
            used = Usage(
                input_tokens=fresh,
                cached_input_tokens=cached,
                cache_write_tokens=written,
                output_tokens=output,
            )
            without = Usage(input_tokens=fresh, output_tokens=output)
            saved[label] += price(without, sent_at) - price(used, sent_at)
    known = [nano for nano in saved.values() if nano is not None]
    tokens = [use.tokens for use in models]
    prompt = sum(one.input for one in tokens)
    cached = sum(one.cached_input for one in tokens)
    return PromptCache(
        input_tokens=prompt,
        cached_tokens=cached,
        write_tokens=sum(one.cache_write for one in tokens),
        share=cached / prompt if prompt else None,
        hits=hits,
        saved_usd=sum(known) / NANO if known else None,
        models=[
            CacheUse(
                model=use.model,
                input_tokens=use.tokens.input,
                cached_tokens=use.tokens.cached_input,
                write_tokens=use.tokens.cache_write,
                saved_usd=_usd(saved[use.model]),
            )
            for use in models
            if use.model in saved
        ],
    )


def _usd(nano: int | None) -> float | None:
    return None if nano is None else nano / NANO


# ---- estimate against actual ---------------------------------------------------------------------


def check_estimate(
    connection: sa.Connection,
    realm: str,
    batch: Batch,
    *,
    routes: set[str],
    pending: int,
    wall_s: float,
) -> EstimateCheck | None:
    """The estimate beside what the batch took, over all runs since its last `--force`.

    Args:
        connection: for reading.
        realm: the batch's.
        batch: the batch.
        routes: of its runs that made calls.
        pending: its rows that are not done.
        wall_s: seconds that its runs took.

    Returns:
        None where there is no estimate, or it was made for another route or lane.
    """
    made = batch.estimate
    if not made or routes != {made.get("route")}:
        return None
    # Estimates of older versions were of real time. A sample is asked in real time before the
    # estimate is made, whatever its lane.
    lane = made.get("lane", REALTIME_LANE)
    if lanes_of_runs(connection, realm, batch, made["made_at"]) - {lane}:
        return None
    searched = attempts.c.step == SEARCH_STEP
    # Estimates of older versions, and of workloads that do not say how they search, have none.
    estimated = [one for one in made.get("searches", ()) if not one["by_model"]]
    request = sa.case((searched, None), else_=attempts.c.request_id)
    query = sa.case((searched, attempts.c.request_id), else_=None)
    actual = connection.execute(
        sa.select(
            sa.func.count(request.distinct()).label("requests"),
            sa.func.count(query.distinct()).label("searches"),
            *(
                sa.func.coalesce(sa.func.sum(column), 0).label(column.name)
                for column in (
                    attempts.c.input_tokens,
                    attempts.c.cached_input_tokens,
                    attempts.c.output_tokens,
                )
            ),
            sa.func.coalesce(
                sa.func.sum(
                    sa.case(
                        (attempts.c.state == AttemptState.SETTLED.value, attempts.c.cost_nano),
                        else_=0,
                    )
                ),
                0,
            ).label("cost_nano"),
            sa.func.min(attempts.c.sent_at).label("first_at"),
            sa.func.max(attempts.c.settled_at).label("last_at"),
        ).where(
            attempts.c.realm == realm,
            attempts.c.batch_id == batch.batch_id,
            attempts.c.state != AttemptState.REFUNDED.value,
            attempts.c.sent_at >= batch.fresh_after,
            sa.true() if estimated else sa.not_(searched),
        )
    ).one()
    complete = pending <= int(made.get("left_pending", 0))
    if lane == BATCH_LANE:
        # No run of ours lasts while a provider works.
        wall_s = max(0.0, (actual.last_at or 0.0) - (actual.first_at or 0.0))
    low, expected, worst = made["low"], made["expected"], made["worst"]
    basis = made["basis"]

    def line(name: Any, value: float, single: float | None = None) -> EstimateLine:
        alone = single is not None
        wanted = single if alone else expected[name]
        off = None
        if complete and wanted:
            off = round((value - wanted) / wanted * 100, 1)
        return EstimateLine(
            name=name,
            low=None if alone else low[name],
            expected=wanted,
            worst=None if alone else worst[name],
            actual=value,
            deviation_percent=off,
        )

    return EstimateCheck(
        route=made["route"],
        lane=lane,
        made=made["made"],
        made_at=datetime.fromtimestamp(made["made_at"], UTC),
        rows=made["rows"],
        to_ask=made["to_ask"],
        basis=f"input tokens by {basis['input']}, output tokens by {basis['output']}",
        bound_by=made["bound_by"],
        complete=complete,
        lines=[
            line("requests", int(actual.requests), made["requests"]),
            line("input_tokens", int(actual.input_tokens)),
            line("cached_input_tokens", int(actual.cached_input_tokens)),
            line("output_tokens", int(actual.output_tokens)),
            *([_searches_line(estimated, int(actual.searches), complete)] if estimated else []),
            line("cost_usd", int(actual.cost_nano) / NANO),
            line("seconds", wall_s, made["seconds"])
            if made.get("seconds_known", True)
            else EstimateLine(
                name="seconds",
                low=None,
                expected=None,
                worst=made["seconds"],
                actual=wall_s,
                deviation_percent=None,
            ),
        ],
    )


def _searches_line(
    estimated: Sequence[Mapping[str, Any]], actual: int, complete: bool
) -> EstimateLine:
    """Calls to search providers."""
    low, expected, worst = (
        sum(one[figure]["calls"] for one in estimated) for figure in ("low", "expected", "worst")
    )
    off = None
    if complete and expected:
        off = round((actual - expected) / expected * 100, 1)
    return EstimateLine(
        name="searches",
        low=low,
        expected=expected,
        worst=worst,
        actual=actual,
        deviation_percent=off,
    )


# ---- limits --------------------------------------------------------------------------------------


def limits_used(settings: Mapping[str, Any]) -> list[LimitUsed]:
    """The rate limits that a run with these settings set out with."""
    from pydantic import ValidationError

    from batch_pipeline.errors import UsageError
    from batch_pipeline.workloads.config import WorkloadConfig
    from batch_pipeline.workloads.runner import limits_of

    known = {name: settings[name] for name in WorkloadConfig.model_fields if name in settings}
    found = []
    try:
        config = WorkloadConfig.model_validate(known)
        for name in named_models(settings):
            rates, _ = limits_of(config, parse_route(name)[0])
            found += [
                LimitUsed(model=name, dimension=one, amount=amount, source=rates.source(one).value)
                for one, amount in zip(DIMENSIONS, rates.amounts, strict=True)
                if amount is not None
            ]
    except (ValidationError, UsageError):
        # A run of an older version: what its settings meant then is not known here.
        return []
    return found
