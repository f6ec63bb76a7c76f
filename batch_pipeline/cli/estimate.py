"""`estimate`: what a table would ask, cost and take; nothing is called and nothing is written.

What belongs here: reading rows for the arithmetic, and its table. What does not: the arithmetic
(workloads/estimate.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output, duration, grid, usd
from batch_pipeline.errors import UsageError

if TYPE_CHECKING:
    from batch_pipeline.ledger.batches import Batch
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import Realm, Settings
    from batch_pipeline.workloads.config import WorkloadConfig
    from batch_pipeline.workloads.estimate import Estimate, Lookup, PlannedRow


def estimate(
    workload: opt.Workload,
    input_: opt.Input = None,
    batch: opt.Batch = None,
    roadmap: opt.Roadmap = None,
    route: opt.Route = None,
    workers: opt.Workers = None,
    rate_limit: opt.RateLimit = None,
    pack: opt.Pack = None,
    limit: opt.Limit = None,
    include_blocked: opt.IncludeBlocked = False,
    simulate: opt.Simulate = None,
    encoding: opt.Encoding = None,
    delimiter: opt.Delimiter = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Say what a run would ask, cost and take. Calls nothing, writes nothing."""
    from batch_pipeline.cli.run import choose_source
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.config import load_workload_config

    voice = Output(json, verbose)
    settings = load_settings()
    config = load_workload_config(workload)
    source = choose_source(config, input_, roadmap, batch)
    config = config.with_options(
        opt.given(
            route=route,
            workers=workers,
            rate_limit=rate_limit,
            pack=pack,
            limit=limit,
            include_blocked=include_blocked,
        )
    )
    realm = settings.realm(simulate)
    found, known = estimate_request(
        settings,
        config,
        realm,
        source=source,
        batch_id=batch,
        reading=opt.given(encoding=encoding, delimiter=delimiter),
    )
    voice.emit(
        {
            "workload": workload,
            "simulated": realm == "simulated",
            "input": source,
            "batch": known,
            "route": config.route,
            "rate_limit": config.rate_limit,
            "workers": config.workers,
            **asdict(found),
        }
    )
    _print(voice, found, config, realm, known)
    return OK


def estimate_request(
    settings: Settings,
    config: WorkloadConfig,
    realm: Realm,
    *,
    source: str | None,
    batch_id: str | None,
    reading: Mapping[str, Any],
    force: bool = False,
) -> tuple[Estimate, str | None]:
    """The estimate, and the id of the batch if it is in the ledger already.

    Raises:
        UsageError: the table cannot be read, or there is no such batch.
    """
    import time
    from functools import partial

    from batch_pipeline.ledger.overview import call_history
    from batch_pipeline.limits.limiter import Rates
    from batch_pipeline.pricing.prices import find_pricer
    from batch_pipeline.providers.registry import parse_route
    from batch_pipeline.workloads.estimate import Pace, estimate_run
    from batch_pipeline.workloads.runner import open_ledger, resolve_step

    step = resolve_step(config)
    first = parse_route(config.route)[0]
    pricer = find_pricer(first.provider, first.model)
    with open_ledger(settings, realm) as ledger:
        known = _known_batch(ledger, config, source, batch_id, reading)
        with ledger.read() as connection:
            history = call_history(connection, realm, config.workload, step.name, str(first))
        found = estimate_run(
            _rows(ledger, config, source, reading, known, force),
            step,
            _lookup(ledger, config, str(first)),
            Pace(
                Rates(
                    config.rate_limit,
                    config.input_tokens_per_min,
                    config.output_tokens_per_min,
                ),
                config.workers,
            ),
            price=None if pricer is None else partial(_price_at, pricer, time.time()),
            history=history,
            limit=config.limit,
            force=force,
        )
    return found, None if known is None else known.batch_id


def _price_at(pricer: Any, at: float, usage: Any) -> int:
    return int(pricer(usage, at))


def _known_batch(
    ledger: Ledger,
    config: WorkloadConfig,
    source: str | None,
    batch_id: str | None,
    reading: Mapping[str, Any],
) -> Batch | None:
    """The batch that a run of this would take up, if it was ingested before."""
    from batch_pipeline.ledger.batches import find_batch
    from batch_pipeline.workloads.runner import content_id, require_batch

    if source is None:
        if batch_id is None:
            raise UsageError("No table and no batch is named.", "Give --input or --batch.")
        return require_batch(ledger, batch_id)
    name = batch_id or content_id(config.domain, source, reading)
    with ledger.read() as connection:
        return find_batch(connection, ledger.realm, name)


def _rows(
    ledger: Ledger,
    config: WorkloadConfig,
    source: str | None,
    reading: Mapping[str, Any],
    known: Batch | None,
    force: bool,
) -> Iterable[PlannedRow]:
    from batch_pipeline.ledger.batches import stream_items
    from batch_pipeline.workloads.estimate import planned_from_batch, planned_from_table
    from batch_pipeline.workloads.runner import new_items

    if known is not None:
        return planned_from_batch(
            stream_items(ledger, known.batch_id),
            include_blocked=config.include_blocked,
            force=force,
        )
    assert source is not None
    domain = config.domain
    return planned_from_table(new_items(domain, domain.open_input(source, reading)))


def _lookup(ledger: Ledger, config: WorkloadConfig, label: str) -> Lookup:
    from batch_pipeline.ledger.calls import find_results
    from batch_pipeline.ledger.overview import answered_models, asked_item_ids
    from batch_pipeline.workloads.estimate import Lookup

    def cached(keys: Sequence[str]) -> Collection[str]:
        with ledger.read() as connection:
            return find_results(connection, ledger.realm, keys, [label])

    def otherwise(keys: Sequence[str]) -> Collection[str]:
        with ledger.read() as connection:
            return answered_models(connection, ledger.realm, keys)

    def before(item_ids: Sequence[str]) -> Collection[str]:
        with ledger.read() as connection:
            return asked_item_ids(connection, ledger.realm, config.workload, item_ids)

    return Lookup(cached, otherwise, before)


def _print(
    voice: Output, found: Estimate, config: WorkloadConfig, realm: Realm, known: str | None
) -> None:
    table = grid("what", "figure", right=("figure",))
    table.show_header = False
    if realm == "simulated":
        voice.out.print("SIMULATED realm: costs are what the provider would charge.")
    lines: list[tuple[str, str]] = [("Rows", f"{found.rows:,}")]
    if found.done:
        lines.append(("  finished in this batch", f"{found.done:,}"))
    lines.append(("  cached, cost nothing", f"{found.cached:,}"))
    lines.append(("  to ask", f"{found.to_ask:,}"))
    if found.questions != found.to_ask:
        lines.append(("    distinct questions", f"{found.questions:,}"))
    lines.extend((f"    {reason}", f"{count:,}") for reason, count in found.misses.items())
    for label, count in (
        ("  left pending by --limit", found.left_pending),
        ("  blocked, not asked again", found.blocked),
        ("  skipped, nothing to ask", found.skipped),
        ("  unusable, see their errors after a run", found.unusable),
    ):
        if count:
            lines.append((label, f"{count:,}"))
    lines += [
        ("Requests", f"{found.requests:,}"),
        ("Input tokens, about", f"{found.input_tokens:,}"),
        ("Output tokens, about", f"{found.output_tokens:,}"),
        ("Cost, expected", usd(found.cost_usd)),
        ("Cost, every answer at its bound", usd(found.cost_worst_usd)),
        ("Time, about", duration(found.seconds)),
    ]
    for label, value in lines:
        table.add_row(label, value)
    voice.out.print(table)
    if found.bound_by:
        voice.out.print(f"The time is bound by {found.bound_by}. Model: {config.route}.")
    if found.calls_learned_from and found.to_ask:
        voice.out.print(f"Scaled by {found.calls_learned_from:,} earlier calls of this model.")
    if known is not None:
        voice.out.print(f"This table is batch {known} already.", markup=False)
    if not found.to_ask and found.rows:
        voice.out.print("Nothing would be asked: a run costs nothing.")
