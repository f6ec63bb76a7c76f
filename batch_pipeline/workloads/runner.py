"""From a table to a batch, and from a batch to an engine job: the one way that all doors use.

What belongs here: ingest, choosing keys and models, building the job. What does not: Dagster, the
console, SQL.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batch_pipeline.engine.job import (
    Endpoint,
    Job,
    LaneSettings,
    OpenBatchApi,
    RouteOf,
    RunSettings,
    Spending,
)
from batch_pipeline.engine.step import AnyStep, Row, Step, llm_steps
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, NewItem, find_batch, ingest
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO
from batch_pipeline.limits.rates import Rates, resolve_limits
from batch_pipeline.limits.tiers import find_enqueued_tokens, find_tier
from batch_pipeline.pricing.prices import find_pricer, require_pricer
from batch_pipeline.providers.base import LlmRequest, Usage
from batch_pipeline.providers.batches import BatchApi
from batch_pipeline.providers.registry import (
    PROVIDERS,
    MissingKeyError,
    ModelRef,
    batch_limits,
    find_provider,
    parse_route,
    resolve_access,
)
from batch_pipeline.search.base import SearchAccess
from batch_pipeline.search.registry import find_search_provider, resolve_search_access
from batch_pipeline.settings import Realm, Settings
from batch_pipeline.sinks.files import write_deliverables
from batch_pipeline.sources.table import FirstWarnings, InputRow, InputTable, canonical_hash
from batch_pipeline.workloads.base import (
    ChoosesRows,
    DeliversFiles,
    Workload,
    deliverable_formats,
    search_providers,
)
from batch_pipeline.workloads.config import WorkloadConfig
from batch_pipeline.workloads.inputs import Input, SimulatorUrl, no_simulator
from batch_pipeline.workloads.results import deliverable_rows
from batch_pipeline.workloads.write_back import SHEET, sheet_origin, take_up_sheet

MOST_WORKERS = 400
"""Requests in flight at most where `workers: auto`."""

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
    kept: Mapping[str, Any] | None = None,
    force: bool = False,
    simulator: SimulatorUrl = no_simulator,
) -> tuple[Batch, bool]:
    """Read an input table into the ledger as a batch.

    Args:
        ledger: where to.
        config: the workload.
        source: file path, `sheets:<id>/<worksheet>`, or what the workload understands (for example
            `roadmap:frontend`).
        batch_id: its id; None makes one of the table's name and a hash of its content, so that the
            same table is found again.
        launch: `door` when the caller starts the LLM run itself, `sensor` when the sensor is to.
        options: how to read the table: encoding, delimiter, and the workload's own.
        kept: what else later runs of the batch need to know.
        force: a new batch's rows are asked whatever is known of them; one that exists is found
            again, and a forced run asks its rows.
        simulator: gives the simulator's address in the simulated realm, else None; called where a
            worksheet is read.

    Returns:
        The batch, and whether it is new.

    Raises:
        UsageError: the table cannot be used, or the id exists with other content.
        SheetsError: a worksheet cannot be read.
    """
    workload = config.domain
    named = Input(workload, source, options or {}, ledger, simulator)
    if batch_id is None:
        batch_id = named.content_id()
    check_batch_id(batch_id)
    table = named.open()
    facts = {**named.reading, **(kept or {})}
    cells = named.cells()
    origin = None if cells is None else sheet_origin(workload, cells, named.reading)
    if origin is not None:
        facts[SHEET] = origin.to_options()
    batch, is_new = ingest(
        ledger,
        batch_id=batch_id,
        workload=config.workload,
        table_name=table.name,
        source=table.source,
        columns=table.columns,
        rows=new_items(
            workload, table, config.route_column, ledger=ledger, batch_id=batch_id, forced=force
        ),
        options=facts,
        chunk_size=config.chunk_size,
        launch=launch,
        warnings=table.warnings,
        notes=table.notes,
        forced=force,
    )
    if origin is not None and not is_new:
        batch = take_up_sheet(ledger, batch, origin)
    return batch, is_new


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


def open_input(
    workload: Workload,
    source: str,
    reading: Mapping[str, Any],
    ledger: Ledger,
    simulator: SimulatorUrl,
) -> InputTable:
    """Open what a user named as a table, once; `Input` opens it several times.

    Args:
        workload: whose table it is.
        source: a file's path, `sheets:<id>/<worksheet>`, or what else the workload understands.
        reading: how to read it; None values count as not given.
        ledger: whose realm and limits a worksheet is read in.
        simulator: gives the simulator's address in the simulated realm, else None; called where a
            worksheet is read.

    Raises:
        UsageError: an option or the source as a whole cannot be used.
        SheetsError: a worksheet cannot be read.
    """
    return Input(workload, source, reading, ledger, simulator).open()


def new_items(
    workload: Workload,
    table: InputTable,
    route_column: str = "",
    *,
    ledger: Ledger | None = None,
    batch_id: str = "",
    forced: bool = False,
) -> Iterator[NewItem]:
    """Items of a table, each id once: a second row with the same id gets `~2` behind it.

    Rows that are identical are named in the table's warnings (the first few). A row whose own route
    cannot be read is failed.

    Args:
        workload: whose table it is.
        table: its rows; consumed.
        route_column: where a row may name its own route; empty: nowhere.
        ledger: where it is known which rows need no work; None asks nobody.
        batch_id: the batch that the rows are to be.
        forced: rows need work whatever is known.
    """
    seen: dict[str, tuple[int, int]] = {}
    doubles = FirstWarnings(table.warnings)
    rows: Iterable[tuple[InputRow, str]] = ((row, "") for row in table.rows)
    if ledger is not None and isinstance(workload, ChoosesRows):
        rows = workload.choose(table, ledger, batch_id, forced)
    for row, unchanged in rows:
        column = workload.item_id_column
        given = str(row.values.get(column, "")).strip() if column else ""
        item_id = given or canonical_hash(row.values)[:16]
        count, first = seen.get(item_id, (0, row.number))
        seen[item_id] = (count + 1, first)
        if count and not given and not row.problem:
            doubles.add(
                "rows that are identical to earlier ones",
                f"{row.place} is identical to row {first}: both are kept, asked about once.",
            )
        yield NewItem(
            item_id=f"{item_id}~{count + 1}" if count else item_id,
            number=row.number,
            row=dict(row.values),
            problem=row.problem or _route_problem(row.values.get(route_column)),
            skip="" if row.problem else workload.skip_reason(row.values),
            unchanged=unchanged,
        )
    doubles.finish()


def resolve_step(config: WorkloadConfig) -> Step:
    """The last of the workload's LLM tasks: what rows end with has its output model."""
    return llm_steps(resolve_steps(config))[-1]


def resolve_steps(config: WorkloadConfig) -> Sequence[AnyStep]:
    """The workload's tasks in order, with the operator's knobs.

    Raises:
        UsageError: a knob, an option or a file of the workload cannot be used.
    """
    knobs: dict[str, Any] = {
        name: value
        for name, value in (("pack", config.pack), ("timeout_s", config.timeout_s))
        if value is not None
    }
    return config.domain.steps(
        config.prompt, {**knobs, "folder": config.folder, "options": config.options}
    )


AUTO = "auto"
"""Stands for every provider that has a key, the cheapest default model first."""


def _route_problem(text: object) -> str:
    """Why a row's own route cannot be used; empty when it can, or when there is none."""
    given = str(text or "").strip()
    if not given or given == AUTO:
        return ""
    try:
        _refs(given, None)
    except UsageError as error:
        return str(error)
    return ""


def _refs(text: str, simulator: str | None) -> tuple[ModelRef, ...]:
    """The models that a route names; a provider alone stands for its default model."""
    if text.strip() == AUTO:
        return _auto(simulator)
    parts = [part.strip() for part in text.split(",")]
    named = [part if "/" in part or not part else str(_default_model(part)) for part in parts]
    return parse_route(", ".join(named))


def _default_model(provider: str) -> ModelRef:
    found = find_provider(provider)
    if not found.default_model:
        raise UsageError(f"{found.name} has no default model.", f"Name one: {found.name}/<model>.")
    return ModelRef(found.name, found.default_model)


def _auto(simulator: str | None) -> tuple[ModelRef, ...]:
    """The default models of all providers with a key, the cheapest first."""
    found: list[tuple[int, ModelRef]] = []
    for provider in PROVIDERS.values():
        if not provider.default_model:
            continue
        ref = ModelRef(provider.name, provider.default_model)
        try:
            resolve_access(ref, os.environ, simulator)
        except MissingKeyError:
            continue
        price = find_pricer(ref.provider, ref.model)
        sample = Usage(input_tokens=1_000, output_tokens=1_000)
        now = datetime.now(UTC).timestamp()
        found.append((price(sample, now) if price else sys.maxsize, ref))
    if not found:
        names = ", ".join(
            provider.key_variables[0] for provider in PROVIDERS.values() if provider.default_model
        )
        raise MissingKeyError(
            "There is no key for any provider, so the route `auto` is empty.",
            f"Set one of {names}, or rehearse without a key: `--simulate` or "
            "BATCH_PIPELINE_SIMULATE=1.",
        )
    return tuple(ref for _, ref in sorted(found, key=lambda pair: pair[0]))


def route_named(provider: str | None, model: str | None) -> str:
    """The route of one model that is named by its provider, its name, or both.

    Raises:
        UsageError: there is no such provider, or the model's provider cannot be told.
    """
    if provider is not None:
        name = find_provider(provider).name
        return name if model is None else str(parse_route(f"{name}/{model}")[0])
    assert model is not None
    if "/" in model:
        return str(parse_route(model)[0])
    family = model.partition("-")[0]
    for one in PROVIDERS.values():
        if one.default_model.partition("-")[0] == family:
            return f"{one.name}/{model}"
    raise UsageError(
        f"The model {model!r} alone does not say whom to ask.",
        f"Name the provider as well: --provider NAME --model {model}.",
    )


def resolve_route(
    config: WorkloadConfig, simulator: str | None, text: str | None = None
) -> tuple[Endpoint, ...]:
    """The models of a route, with their keys, addresses and limits.

    Args:
        config: the workload; its route where `text` is None.
        simulator: the simulator's address in the simulated realm, else None.
        text: another route.

    Raises:
        UsageError: unknown provider, no key for one, or no price while there is a budget.
    """
    refs = _refs(config.route if text is None else text, simulator)
    if config.fallback is False:
        refs = refs[:1]
    route = tuple(_endpoint(config, ref, simulator) for ref in refs)
    _check_web_search(config, route)
    return route


def check_ready(config: WorkloadConfig, simulator: str | None) -> tuple[Endpoint, ...]:
    """Find what would stop a run, before anything is read or paid; gives its route.

    Args:
        config: the workload, with the run's options.
        simulator: the simulator's address in the simulated realm, else None.

    Raises:
        UsageError: an option, a file, the route, or the key of a model or of a search provider.
    """
    route = resolve_route(config, simulator)
    for name in search_providers(config.domain, config.options):
        if resolve_search_access(name, os.environ, simulator) is None:
            variable = find_search_provider(name).key_variable
            raise MissingKeyError(
                f"The workload {config.workload} searches with {name}, and {variable} is not set.",
                "Set it in the environment or in .env, or rehearse without a key: `--simulate` or "
                "BATCH_PIPELINE_SIMULATE=1.",
            )
    return route


def _check_web_search(config: WorkloadConfig, route: Sequence[Endpoint]) -> None:
    """Refuse models that cannot search the web where a step lets them.

    Raises:
        UsageError: naming the first of them.
    """
    steps = [step.name for step in llm_steps(resolve_steps(config)) if step.web_search is not None]
    for endpoint in route:
        if steps and not endpoint.codec.web_search:
            able = [name for name, one in PROVIDERS.items() if one.codec.web_search]
            raise UsageError(
                f"{endpoint.label} cannot search the web, and the step {steps[0]} of the workload "
                f"{config.workload} does.",
                f"Choose models of {' or '.join(able)}: --route {able[0]}/<model>, or `route` in "
                "defs.yaml.",
            )


def _endpoint(config: WorkloadConfig, ref: ModelRef, simulator: str | None) -> Endpoint:
    access = resolve_access(ref, os.environ, simulator)
    provider = PROVIDERS[ref.provider]
    own = simulator is not None or access.base_url == provider.default_base_url.rstrip("/")
    if spending_of(config).bounded:
        require_pricer(ref.provider, ref.model)
        if config.lane == "batch" and batch_limits(ref.provider) is not None:
            require_pricer(ref.provider, ref.model, "batch")
    return Endpoint(
        provider=ref.provider,
        model=ref.model,
        key=access.key,
        key_id=access.key_id,
        base_url=access.base_url,
        codec=provider.codec,
        label=str(ref) if own else f"{ref}@{access.base_url}",
        rates=limits_of(config, ref)[0],
        enqueued_tokens=enqueued_tokens_of(config, ref),
    )


def limits_of(config: WorkloadConfig, ref: ModelRef) -> tuple[Rates, list[str]]:
    """What a run may ask of a model, and what to tell the user about it.

    Raises:
        UsageError: the provider has no such tier.
    """
    own = Rates(
        config.rate_limit,
        config.input_tokens_per_min,
        config.output_tokens_per_min,
        config.requests_per_day,
        config.concurrent,
    )
    name = _tier_of(config.tier or "", ref.provider)
    if not name:
        return own, []
    tier = find_tier(ref.provider, ref.model, name)
    return resolve_limits(own, tier, f"{ref.provider} {name}")


def enqueued_tokens_of(config: WorkloadConfig, ref: ModelRef) -> int | None:
    """Prompt tokens that a run lets into unfinished provider jobs of a model; None is no limit.

    Raises:
        UsageError: the provider has no such tier.
    """
    limit = config.enqueued_tokens
    if limit is None and (name := _tier_of(config.tier or "", ref.provider)):
        limit = find_enqueued_tokens(ref.provider, ref.model, name)
    return None if limit is None else max(1, int(limit * config.enqueued_share))


def batch_api_opener(simulator: str | None) -> OpenBatchApi:
    """Opens Batch APIs with the keys of the environment, or the simulator's.

    Args:
        simulator: the simulator's address in the simulated realm, else None.
    """

    def open_api(provider: str, key_id: str) -> BatchApi:
        from batch_pipeline.providers.batch_clients import open_batch_api

        access = resolve_access(provider, os.environ, simulator)
        if access.key_id != key_id:
            raise UsageError(
                f"A provider job was submitted with the {provider} key {key_id}, and the "
                f"environment has {access.key_id}.",
                "Providers show jobs only to the project that made them: set that key again until "
                "its jobs are collected.",
            )
        return open_batch_api(provider, access.key, access.base_url)

    return open_api


_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(m|min|h|d)")
_SECONDS = {"m": 60.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}


def deadline_at(text: str | None, now: float) -> float | None:
    """A deadline in UTC seconds, from a time or a span from now.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    if span := _SPAN.fullmatch(text.strip().lower()):
        return now + float(span[1]) * _SECONDS[span[2]]
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(
            f"{text!r} is no deadline.",
            "Write a time such as 2026-11-23T06:00 (UTC), or a span such as 8h or 90m.",
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def lane_of(
    config: WorkloadConfig, route: Sequence[Endpoint], *, submit_only: bool
) -> LaneSettings:
    """How a run's calls travel.

    Raises:
        UsageError: no model of the route has a Batch API, or the deadline cannot be read.
    """
    if config.lane == "batch" and all(batch_limits(one.provider) is None for one in route):
        raise UsageError(
            f"{' and '.join(one.label for one in route)} cannot be asked in the batch lane: the "
            "provider has no Batch API.",
            "Use the lane realtime, or a route with google, anthropic or openai.",
        )
    return LaneSettings(
        lane=config.lane,
        deadline_at=deadline_at(config.deadline, datetime.now(UTC).timestamp()),
        submit_only=submit_only,
        wait=config.wait and not submit_only,
        realtime_fallback=config.realtime_fallback,
        tries=config.lane_tries,
        max_jobs=config.max_jobs,
        job_items=config.job_items,
        poll_s=config.poll_s,
    )


def _tier_of(text: str, provider: str) -> str:
    """The tier of a provider in `tier-1` or `google=tier-1, anthropic=tier-2`; empty for none."""
    for part in (piece.strip() for piece in text.split(",")):
        name, equals, tier = part.partition("=")
        if not equals:
            return part
        if find_provider(name).name == provider:
            return tier.strip()
    return ""


def spending_of(config: WorkloadConfig) -> Spending:
    """The budgets of a run."""

    def nano(usd: float | None) -> int | None:
        return None if usd is None else round(usd * NANO)

    return Spending(
        batch_nano=nano(config.budget_usd),
        workload_day_nano=nano(config.budget_usd_per_day),
        provider_day_nano=nano(config.provider_budget_usd_per_day),
    )


def _rows_own_routes(
    config: WorkloadConfig, simulator: str | None, route: Sequence[Endpoint]
) -> RouteOf:
    """What a row asks for in its route column."""
    known: dict[str, Sequence[Endpoint] | None] = {"": None, AUTO: None}

    def route_of(row: Row) -> Sequence[Endpoint] | None:
        text = str(row.get(config.route_column) or "").strip()
        if text not in known:
            own = resolve_route(config, simulator, text)
            if config.fallback:
                labels = {endpoint.label for endpoint in own}
                own += tuple(one for one in route if one.label not in labels)
            known[text] = own
        return known[text]

    return route_of


def plan_job(
    config: WorkloadConfig,
    *,
    run_id: str,
    batch: Batch,
    chunk_keys: Sequence[str],
    realm: Realm,
    simulator: str | None,
    log_folder: Path | None = None,
    submit_only: bool = False,
) -> Job:
    """The engine job for some chunks of a batch.

    Args:
        config: the workload, with the run's options.
        run_id: the run's name.
        batch: the batch: rows may name their own route in one of its columns.
        chunk_keys: which of its chunks.
        realm: where it is.
        simulator: the simulator's address in the simulated realm, else None.
        log_folder: where the run's log goes; None writes none.
        submit_only: rows of the batch lane go up, and nothing else is done.
    """
    route = check_ready(config, simulator)
    lane = lane_of(config, route, submit_only=submit_only)
    adaptive = config.workers == "auto"
    settings = RunSettings(
        workers=MOST_WORKERS if config.workers == "auto" else config.workers,
        adaptive=adaptive,
        spending=spending_of(config),
        limit=config.limit,
        include_blocked=config.include_blocked,
        lane=lane,
        chunk_interval_s=config.chunk_interval_s,
    )
    steps = resolve_steps(config)
    used = config.model_dump(mode="json", exclude={"folder", "schedule", "prompt_file"})
    probe = LlmRequest(
        route[0].model, system="", user="", temperature=llm_steps(steps)[0].temperature
    )
    used["models"] = [endpoint.label for endpoint in route]
    used["enqueued_limit"] = route[0].enqueued_tokens
    if lane.deadline_at is not None:
        # Runs that go on with the batch keep to the same time.
        used["deadline"] = datetime.fromtimestamp(lane.deadline_at, UTC).isoformat()
    refs = (ModelRef(endpoint.provider, endpoint.model) for endpoint in route)
    if warnings := [text for ref in refs for text in limits_of(config, ref)[1]]:
        used["warnings"] = warnings
    if left_out := route[0].codec.left_out(probe):
        # What the model does not take is not sent; the report notes it.
        used["left_out"] = list(left_out)
    return Job(
        run_id=run_id,
        workload=config.workload,
        batch_id=batch.batch_id,
        chunk_keys=list(chunk_keys),
        steps=steps,
        route=route,
        settings=settings,
        route_of=_rows_own_routes(config, simulator, route)
        if config.row_routes and config.route_column in batch.columns
        else None,
        log_folder=log_folder,
        used={**used, "realm": realm},
        open_batch_api=batch_api_opener(simulator),
        search_access=lambda name: _search_access(config, name, simulator),
        batch_created_at=batch.created_at,
        simulator=simulator,
    )


def _search_access(config: WorkloadConfig, name: str, simulator: str | None) -> SearchAccess | None:
    """A search provider's key and address, with the limit that the operator gives."""
    access = resolve_search_access(name, os.environ, simulator)
    if access is None or config.search_rate_limit is None:
        return access
    provider = replace(access.provider, requests_per_minute=config.search_rate_limit)
    return replace(access, provider=provider)


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
    files = write_deliverables(
        folder,
        stem,
        workload.deliverable_columns,
        lambda: deliverable_rows(ledger, workload, batch, only_input=only_input),
        search_columns=workload.search_columns,
        formats=deliverable_formats(workload),
    )
    if isinstance(workload, DeliversFiles) and not only_input:
        files += workload.deliver_files(ledger, batch, folder)
    return files


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
