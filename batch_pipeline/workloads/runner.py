"""From a table to a batch, and from a batch to an engine job: the one way that all doors use.

What belongs here: ingest, choosing keys and models, building the job. What does not: Dagster, the
console, SQL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batch_pipeline.engine.job import Endpoint, Job, RunSettings
from batch_pipeline.engine.step import Step
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, NewItem, find_batch, ingest, stream_items
from batch_pipeline.ledger.calls import find_results
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.limits.limiter import Rates
from batch_pipeline.providers.base import LlmRequest
from batch_pipeline.providers.registry import PROVIDERS, parse_route, resolve_access
from batch_pipeline.settings import Realm, Settings
from batch_pipeline.sinks.files import write_deliverables
from batch_pipeline.sources.table import InputTable, canonical_hash
from batch_pipeline.workloads.base import Workload
from batch_pipeline.workloads.config import WorkloadConfig

_SHOWN_DOUBLES = 20
_BATCH_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,119}")


def open_ledger(settings: Settings, realm: Realm) -> Ledger:
    """The installation's ledger, in `realm`."""
    return Ledger(settings.ledger_url, realm)


def simulator_url(settings: Settings, realm: Realm) -> str | None:
    """The address of the simulator, started when it is not running; None in the live realm."""
    if realm == "live":
        return None
    from batch_pipeline.simulator.launch import ensure_simulator

    return ensure_simulator(settings.simulator_state)


def ingest_batch(
    ledger: Ledger,
    config: WorkloadConfig,
    source: str,
    *,
    batch_id: str | None = None,
    launch: str = "door",
    options: Mapping[str, Any] | None = None,
) -> tuple[Batch, bool]:
    """Read an input table into the ledger as a batch.

    Args:
        ledger: where to.
        config: the workload.
        source: file path, or what the workload understands (for example `roadmap:frontend`).
        batch_id: its id; None makes one of the table's name and a hash of its content, so that the
            same table is found again.
        launch: `door` when the caller starts the LLM run itself, `sensor` when the sensor is to.
        options: how to read the table (`encoding`, `delimiter`).

    Returns:
        The batch, and whether it is new.

    Raises:
        UsageError: the table cannot be used, or the id exists with other content.
    """
    workload = config.domain
    reading = dict(options or {})
    if batch_id is None:
        batch_id = content_id(workload, source, reading)
    check_batch_id(batch_id)
    table = workload.open_input(source, reading)
    return ingest(
        ledger,
        batch_id=batch_id,
        workload=config.workload,
        table_name=table.name,
        source=table.source,
        columns=table.columns,
        rows=new_items(workload, table),
        options=reading,
        chunk_size=config.chunk_size,
        launch=launch,
        warnings=table.warnings,
    )


def check_batch_id(batch_id: str) -> None:
    """Refuse a batch id that cannot be part of a partition key and a file name.

    Raises:
        UsageError: naming what is allowed.
    """
    if not _BATCH_ID.fullmatch(batch_id):
        raise UsageError(
            f"{batch_id!r} cannot be a batch id.",
            "Use up to 120 letters, digits, - and _, starting with a letter or digit.",
        )


def content_id(workload: Workload, source: str, reading: Mapping[str, Any]) -> str:
    """The id that a table gets when none is given: its name and a hash of its content."""
    import hashlib

    table = workload.open_input(source, reading)
    digest = hashlib.sha256()
    for row in table.rows:
        digest.update(canonical_hash(row.values).encode())
        digest.update(row.problem.encode())
    stem = re.sub(r"[^A-Za-z0-9]+", "-", table.name).strip("-").lower()[:60] or "batch"
    return f"{stem}-{digest.hexdigest()[:8]}"


def new_items(workload: Workload, table: InputTable) -> Iterator[NewItem]:
    """Items of a table, each id once: a second row with the same id gets `~2` behind it.

    Rows that are identical are named in the table's warnings (the first 20).
    """
    seen: dict[str, tuple[int, int]] = {}
    doubles = 0
    for row in table.rows:
        column = workload.item_id_column
        given = str(row.values.get(column, "")).strip() if column else ""
        item_id = given or canonical_hash(row.values)[:16]
        count, first = seen.get(item_id, (0, row.number))
        seen[item_id] = (count + 1, first)
        if count and not given and not row.problem:
            doubles += 1
            if doubles <= _SHOWN_DOUBLES:
                table.warnings.append(
                    f"{row.place} is identical to row {first}: both are kept, asked about once."
                )
        yield NewItem(
            item_id=f"{item_id}~{count + 1}" if count else item_id,
            number=row.number,
            row=dict(row.values),
            problem=row.problem,
            skip="" if row.problem else workload.skip_reason(row.values),
        )
    if doubles > _SHOWN_DOUBLES:
        more = doubles - _SHOWN_DOUBLES
        table.warnings.append(f"{more} more rows are identical to earlier ones.")


def resolve_step(config: WorkloadConfig) -> Step:
    """The workload's LLM task, with the operator's knobs."""
    knobs = {
        name: value
        for name, value in (("pack", config.pack), ("timeout_s", config.timeout_s))
        if value is not None
    }
    steps = config.domain.steps(config.prompt, knobs)
    if len(steps) != 1:
        raise UsageError(f"Workload {config.workload} has {len(steps)} steps; one is supported.")
    return steps[0]


def resolve_endpoint(route: str, simulator: str | None) -> Endpoint:
    """The first model of a route, with its key and address.

    Args:
        route: `provider/model, ...`.
        simulator: the simulator's address in the simulated realm, else None.

    Raises:
        UsageError: unknown provider, or no key for it.
    """
    ref = parse_route(route)[0]
    access = resolve_access(ref, os.environ, simulator)
    provider = PROVIDERS[ref.provider]
    own = simulator is not None or access.base_url == provider.default_base_url.rstrip("/")
    return Endpoint(
        provider=ref.provider,
        model=ref.model,
        key=access.key,
        key_id=access.key_id,
        base_url=access.base_url,
        codec=provider.codec,
        label=str(ref) if own else f"{ref}@{access.base_url}",
    )


def plan_job(
    config: WorkloadConfig,
    *,
    run_id: str,
    batch_id: str,
    chunk_keys: Sequence[str],
    realm: Realm,
    simulator: str | None,
) -> Job:
    """The engine job for some chunks of a batch."""
    settings = RunSettings(
        workers=config.workers,
        rates=Rates(config.rate_limit, config.input_tokens_per_min, config.output_tokens_per_min),
        limit=config.limit,
        include_blocked=config.include_blocked,
    )
    step = resolve_step(config)
    endpoint = resolve_endpoint(config.route, simulator)
    used = config.model_dump(mode="json", exclude={"folder", "schedule", "prompt_file"})
    probe = LlmRequest(endpoint.model, system="", user="", temperature=step.temperature)
    if left_out := endpoint.codec.left_out(probe):
        # What the model does not take is not sent; the report notes it.
        used["left_out"] = list(left_out)
    return Job(
        run_id=run_id,
        workload=config.workload,
        batch_id=batch_id,
        chunk_keys=list(chunk_keys),
        step=step,
        endpoint=endpoint,
        settings=settings,
        used={**used, "realm": realm},
    )


def batch_folder(settings: Settings, realm: Realm, workload: str, batch_id: str) -> Path:
    """Where a batch's deliverables and reports go; simulated ones say so in the path."""
    root = settings.outputs if realm == "live" else settings.outputs / "simulated"
    return root / workload / batch_id


def deliver(
    ledger: Ledger,
    config: WorkloadConfig,
    batch: Batch,
    folder: Path,
    *,
    only_input: bool = False,
) -> list[Path]:
    """Write a batch's deliverables: every row, with its output where it succeeded.

    Args:
        ledger: the ledger.
        config: the workload.
        batch: the batch.
        folder: where to.
        only_input: export the rows without outputs (`--no-enrich`).

    Returns:
        The files written.
    """
    workload = config.domain
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    stamp = datetime.fromtimestamp(ledger.clock.now(), UTC).strftime("%Y%m%d_%H%M%S")
    stem = workload.deliverable_stem(batch.batch_id, batch.table_name, stamp)
    return write_deliverables(
        folder,
        stem,
        workload.deliverable_columns,
        lambda: _deliverable_rows(ledger, workload, batch, only_input),
        search_columns=workload.search_columns,
    )


def _deliverable_rows(
    ledger: Ledger, workload: Workload, batch: Batch, only_input: bool
) -> Iterator[dict[str, Any]]:
    page: list[Any] = []
    for item in stream_items(ledger, batch.batch_id):
        page.append(item)
        if len(page) >= 500:
            yield from _outputs(ledger, workload, page, only_input)
            page = []
    yield from _outputs(ledger, workload, page, only_input)


def _outputs(
    ledger: Ledger, workload: Workload, page: list[Any], only_input: bool
) -> Iterator[dict[str, Any]]:
    keys = {item.cache_key for item in page if item.cache_key and item.outcome == "succeeded"}
    models = {item.model for item in page if item.model}
    stored = {}
    if keys and not only_input:
        with ledger.read() as connection:
            for model in models:
                found = find_results(connection, ledger.realm, sorted(keys), [model])
                stored.update({(key, model): result.output for key, result in found.items()})
    for item in page:
        output = stored.get((item.cache_key, item.model)) if item.outcome == "succeeded" else None
        yield workload.deliverable_row(item.row, output)


def require_batch(ledger: Ledger, batch_id: str) -> Batch:
    """The batch of that id.

    Raises:
        UsageError: there is none in this realm.
    """
    with ledger.read() as connection:
        batch = find_batch(connection, ledger.realm, batch_id)
    if batch is None:
        raise UsageError(
            f"There is no batch {batch_id!r} in the {ledger.realm} realm.",
            "`batch-pipeline status` lists batches.",
        )
    return batch
