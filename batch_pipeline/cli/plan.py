"""What a run is about to do, said before its first call: keys, rows, settings, cost, time.

What belongs here: those lines. What does not: the arithmetic (workloads/estimate.py), progress.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from batch_pipeline.cli.output import Output, duration, usd
from batch_pipeline.errors import UsageError
from batch_pipeline.wording import plural

if TYPE_CHECKING:
    from batch_pipeline.doors import RunRequest
    from batch_pipeline.ledger.batches import Batch
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import Settings
    from batch_pipeline.workloads.config import WorkloadConfig
    from batch_pipeline.workloads.estimate import Estimate


def show_plan(voice: Output, settings: Settings, request: RunRequest, batch: Batch) -> None:
    """Say what a run of the batch is about to ask; nothing where it asks nobody.

    Args:
        voice: where to.
        settings: the installation's.
        request: the run.
        batch: what it is of.
    """
    from batch_pipeline.workloads.config import load_workload_config
    from batch_pipeline.workloads.runner import open_ledger

    config = load_workload_config(request.workload).with_options(dict(request.knobs))
    if config.no_enrich:
        return
    with open_ledger(settings, settings.realm(request.simulate)) as ledger:
        for line in plan_lines(ledger, config, batch, force=request.force):
            voice.note(line)


def plan_lines(
    ledger: Ledger, config: WorkloadConfig, batch: Batch, *, force: bool = False
) -> list[str]:
    """What a run is about to do, a line for each matter.

    Args:
        ledger: the ledger; nothing is written, and nobody is asked.
        config: the workload, with the run's options.
        batch: the batch.
        force: finished rows are asked again.
    """
    from batch_pipeline.workloads.compare import estimate_ingested
    from batch_pipeline.workloads.estimate import basis_line, search_line

    lines = [f"Keys: {key_status(config, os.environ, ledger.realm == 'simulated')}."]
    try:
        found = estimate_ingested(ledger, config, batch, force=force)
    except UsageError as error:
        # What stops the run is said by the run itself.
        return [*lines, f"Rows: {batch.row_count:,}. There is no estimate: {error.message}"]
    lines += [
        f"Rows: {_rows(ledger, batch, found)}.",
        f"Settings: {_settings(config, batch)}.",
    ]
    if not found.to_ask:
        return lines
    took = duration(found.seconds) if found.figures.seconds_known else "within a day"
    lines.append(
        f"Expected: {plural(found.requests, 'request')}, "
        f"{usd(found.cost_usd)} (low {usd(found.low.cost_usd)}, worst "
        f"{usd(found.worst.cost_usd)}), {took}, bound by {found.bound_by}."
    )
    lines += [f"  {search_line(one, usd)}." for one in found.searches]
    lines.append(f"  {basis_line(found)}")
    return lines


def key_status(config: WorkloadConfig, environ: Mapping[str, str], simulated: bool) -> str:
    """Whether each provider of a run has a key; no character of a key is part of it."""
    from batch_pipeline.engine.step import LocalStep
    from batch_pipeline.search.registry import find_search_provider
    from batch_pipeline.workloads.runner import resolve_route, resolve_steps

    if simulated:
        return "none needed, everything is simulated"
    models = dict.fromkeys(endpoint.provider for endpoint in resolve_route(config, None))
    said = [f"{name}: set, checked before the first call" for name in models]
    named: Sequence[str] = [
        name
        for step in resolve_steps(config)
        if isinstance(step, LocalStep)
        for name in step.searches
    ]
    for name in dict.fromkeys(named):
        variable = find_search_provider(name).key_variable
        is_set = bool(environ.get(variable, "").strip())
        said.append(f"{name}: {'set' if is_set else f'{variable} is not set'}")
    return "; ".join(said)


def _rows(ledger: Ledger, batch: Batch, found: Estimate) -> str:
    from batch_pipeline.reports.skipped import read_skipped
    from batch_pipeline.reports.words import skips_line

    with ledger.read() as connection:
        skipped = read_skipped(connection, ledger.realm, batch.batch_id)
    parts = [f"{found.rows:,} in the table"]
    counts = (
        ("finished before", found.done),
        ("skipped" + (f" ({skips_line(skipped)})" if skipped else ""), found.skipped),
        ("cached", found.cached),
        ("blocked, not asked again", found.blocked),
        ("unusable", found.unusable),
        ("left pending by --limit", found.left_pending),
    )
    parts += [f"{count:,} {name}" for name, count in counts if count]
    return ", ".join([*parts, f"{found.to_ask:,} to ask"])


def _settings(config: WorkloadConfig, batch: Batch) -> str:
    workers = "auto" if config.workers == "auto" else f"{config.workers:,}"
    chunks = plural(batch.chunk_count, "chunk")
    budgets = [
        f"{usd(amount)} {of}"
        for amount, of in (
            (config.budget_usd, "for the batch"),
            (config.budget_usd_per_day, "a day"),
            (config.provider_budget_usd_per_day, "a day with each provider"),
        )
        if amount is not None
    ]
    return (
        f"{config.route}; workers {workers}; {chunks} of {batch.chunk_size:,} rows; "
        f"budget {' and '.join(budgets) or 'none'}"
    )
