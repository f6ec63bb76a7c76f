"""What happens when the three assets of a workload are materialized.

What belongs here: the bodies of input_table, llm_outputs and batch_report, and what they tell
Dagster. What does not: how the assets look in the graph (component.py), and the work itself
(workloads/runner.py, engine/, reports/).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.errors import DagsterExecutionInterruptedError
from pydantic import ValidationError

from batch_pipeline.component.metadata import (
    Metadata,
    chunk_metadata,
    failed_table,
    file_list,
    markdown_table,
    report_metadata,
)
from batch_pipeline.component.resources import (
    EngineRoom,
    InstallationResource,
    LedgerResource,
    RateLimitResource,
    RunListener,
)
from batch_pipeline.engine.answers import is_valid
from batch_pipeline.engine.job import ChunkDone, FailedRow, Job, Progress, RunDone
from batch_pipeline.engine.step import llm_steps
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.errors import BatchPipelineError, UsageError
from batch_pipeline.ledger.batches import (
    Batch,
    Chunk,
    Item,
    batch_of,
    chunk_key,
    count_outcomes,
    find_chunks,
    list_batches,
    mark_launched,
    read_items,
    renew_blocked,
    set_budget,
    set_estimate,
    start_generation,
)
from batch_pipeline.ledger.calls import StoredResult, find_results
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO, Outcome
from batch_pipeline.providers.wire import redact
from batch_pipeline.reports.words import duration, money
from batch_pipeline.settings import Realm, Settings
from batch_pipeline.wording import plural
from batch_pipeline.workloads.compare import estimate_ingested, stored_estimate
from batch_pipeline.workloads.config import Knobs, WorkloadConfig
from batch_pipeline.workloads.daily import keep_to_day
from batch_pipeline.workloads.estimate import (
    STEP_HEADS,
    Estimate,
    LaneFigures,
    basis_line,
    search_line,
    step_rows,
)
from batch_pipeline.workloads.lane import SUBMITTING
from batch_pipeline.workloads.runner import (
    batch_folder,
    deliver,
    ingest_batch,
    plan_job,
    require_batch,
    resolve_steps,
)
from batch_pipeline.workloads.write_back import SheetFollowing, reconcile_sheet

TAG_WORKLOAD = "batch_pipeline/workload"
TAG_BATCH = "batch_pipeline/batch"
TAG_REALM = "batch_pipeline/realm"
TAG_DOOR = "batch_pipeline/door"
TAG_PROCESS = "batch_pipeline/process"
"""Set on runs whose starter makes the report itself."""

TAKEN_FOLDER = ".taken"
"""Where a file of the inbox goes once it is a batch."""

RUN_OPTIONS = "run"
"""Key below which a batch's options keep what the ingest said about the LLM run to come."""

CHECK_ONE_OUTCOME = "every_row_has_one_outcome"
CHECK_SHARE = "share_succeeded"
CHECK_SCHEMA = "outputs_match_schema"
CHECK_BLOCKED = "no_row_blocked"

_PREVIEW_ROWS = 5
_PAGE = 1_000
_MAX_NAMED = 5
_CANCEL_POLL_S = 2.0
_LOG_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Tools:
    """The resources of a run."""

    installation: InstallationResource
    ledger: LedgerResource
    limits: RateLimitResource
    listener: RunListener
    engines: EngineRoom

    @classmethod
    def of(cls, context: dg.AssetExecutionContext) -> Tools:
        """The resources by the keys of defs/resources.py."""
        resources = context.resources
        return cls(
            resources.installation,
            resources.ledger,
            resources.limits,
            resources.listener,
            resources.engines,
        )


RESOURCE_KEYS = {"installation", "ledger", "limits", "listener", "engines"}


@contextmanager
def errors_as_failures(tools: Tools) -> Iterator[None]:
    """Turn errors of ours into a Failure with a readable text and no traceback of our innards."""
    try:
        yield
    except BatchPipelineError as error:
        tools.listener.ended(error)
        raise dg.Failure(description=redact(str(error)), allow_retries=False) from None


def knobs_of(config: dict[str, Any]) -> dict[str, Any]:
    """The knobs among an op's config that were given."""
    return {name: config[name] for name in Knobs.model_fields if config.get(name) is not None}


# ---- input_table ---------------------------------------------------------------------------------


def ingest_table(
    context: dg.AssetExecutionContext, config: WorkloadConfig, partitions: str
) -> dg.MaterializeResult[None]:
    """Read the table into the ledger and name its chunks as partitions.

    Args:
        context: Dagster's.
        config: the workload.
        partitions: name of the dynamic partitions definition.
    """
    tools = Tools.of(context)
    asked = context.op_execution_context.op_config
    with errors_as_failures(tools):
        settings = tools.installation.settings()
        realm = settings.realm(asked.get("simulate"))
        knobs = knobs_of(asked)
        reading = {name: asked[name] for name in ("encoding", "delimiter") if asked.get(name)}
        with tools.ledger.open(realm) as ledger:
            batch, is_new = ingest_batch(
                ledger,
                config.with_options(knobs),
                _whole_file(asked["source"]),
                batch_id=asked.get("batch"),
                launch=asked["launch"],
                options={**(asked.get("reading") or {}), **reading},
                kept={RUN_OPTIONS: knobs},
                force=asked["force"],
                simulator=lambda: tools.installation.simulator(realm),
            )
            metadata = _ingest_metadata(ledger, config.with_options(knobs), batch, is_new)
        keys = [chunk_key(batch.batch_id, at + 1) for at in range(batch.chunk_count)]
        context.instance.add_dynamic_partitions(partitions, keys)
        _tag_run(context, batch, realm)
        _take_from_inbox(settings, config.workload, Path(asked["source"]), batch.batch_id)
    for note in batch.notes:
        context.log.info(note)
    for warning in batch.warnings[:20]:
        context.log.warning(warning)
    return dg.MaterializeResult(metadata=metadata)


def _whole_file(source: str) -> str:
    return str(Path(source).expanduser()) if source.startswith("~") else source


def _ingest_metadata(
    ledger: Ledger, config: WorkloadConfig, batch: Batch, is_new: bool
) -> Metadata:
    with ledger.read() as connection:
        counts = count_outcomes(connection, ledger.realm, batch.batch_id)
        first = read_items(connection, ledger.realm, batch.batch_id, 0, _PREVIEW_ROWS)
    try:
        # Of the whole batch: a limit holds for one run, and the estimate is kept with the batch.
        found = estimate_ingested(ledger, config.model_copy(update={"limit": None}), batch)
    except UsageError as error:
        # A missing key or price stops the run, not the reading of the table.
        estimate = markdown_lines([str(error)])[0]
    else:
        estimate = _estimate_markdown(found)
        if is_new or not batch.estimate:
            made = stored_estimate(found, "ingest", ledger.clock.now())
            set_estimate(ledger, batch.batch_id, made)
    rows = [[item.row.get(name) for name in batch.columns] for item in first]
    notes = [f"- {note}" for note in markdown_lines([*batch.notes, *batch.warnings])]
    if not is_new:
        notes.insert(
            0, "- This table was read before: the batch is the same, and nothing was written."
        )
    return {
        "batch": dg.MetadataValue.text(batch.batch_id),
        "llm/realm": dg.MetadataValue.text(ledger.realm),
        "dagster/row_count": dg.MetadataValue.int(batch.row_count),
        "dagster/uri": dg.MetadataValue.text(batch.source),
        "chunks": dg.MetadataValue.int(batch.chunk_count),
        "rows per chunk": dg.MetadataValue.int(batch.chunk_size),
        "columns": dg.MetadataValue.text(", ".join(batch.columns)),
        "rows unreadable": dg.MetadataValue.int(counts[Outcome.FAILED]),
        "rows with nothing to ask": dg.MetadataValue.int(counts[Outcome.SKIPPED]),
        "estimate": dg.MetadataValue.md(estimate),
        "warnings": dg.MetadataValue.md("\n".join(notes) or "none"),
        "preview": dg.MetadataValue.md(markdown_table(batch.columns, rows)),
    }


def _estimate_markdown(found: Estimate) -> str:
    """The estimate as a table, and what it rests on."""
    heads = ["", "tokens in", "tokens out", "cost"]
    rows = [
        [
            label,
            f"{amount.input_tokens:,}",
            f"{amount.output_tokens:,}",
            _cost(amount.cost_usd),
        ]
        for label, amount in (
            ("low", found.low),
            ("expected", found.expected),
            ("worst", found.worst),
        )
    ]
    said = [
        f"{found.rows:,} rows: {found.cached + found.done:,} cached, {found.to_ask:,} to ask in "
        f"{found.requests:,} requests, {_time_of(found.figures)}.",
        *(f"{search_line(one, _cost)}." for one in found.searches),
        basis_line(found),
        *found.basis.notes,
    ]
    lanes = [
        [
            one.lane,
            *(_cost(amount.cost_usd) for amount in (one.low, one.expected, one.worst)),
            _time_of(one),
        ]
        for one in found.lanes
    ]
    tables = [
        markdown_table(heads, rows),
        markdown_table(["lane", "low", "expected", "worst", "time"], lanes),
    ]
    if steps := step_rows(found, _cost):
        tables.append(markdown_table([head.lower() for head in STEP_HEADS], steps))
    return "\n\n".join([*tables, *markdown_lines(said)])


def _cost(usd: float | None) -> str:
    return "unknown" if usd is None else money(usd)


def _time_of(figures: LaneFigures) -> str:
    if not figures.seconds_known:
        return f"within {figures.seconds / 3_600:,.0f} h"
    return f"about {duration(figures.seconds)}"


def markdown_lines(texts: list[str]) -> list[str]:
    """Texts that may hold anything, each safe as one line of Markdown."""
    return [markdown_table([text], []).splitlines()[0].strip("| ") for text in texts]


def _take_from_inbox(settings: Settings, workload: str, source: Path, batch_id: str) -> None:
    """Move a file that the inbox sensor found out of its way, once it is in the ledger."""
    inbox = settings.inbox / workload
    if source.parent != inbox or not source.is_file():
        return
    taken = inbox / TAKEN_FOLDER
    taken.mkdir(mode=0o700, exist_ok=True)
    target = taken / source.name
    if target.exists():
        target = taken / f"{batch_id}-{time.time_ns()}-{source.name}"
    shutil.move(source, target)


def _tag_run(context: dg.AssetExecutionContext, batch: Batch, realm: Realm) -> None:
    context.instance.add_run_tags(
        context.run.run_id,
        {TAG_WORKLOAD: batch.workload, TAG_BATCH: batch.batch_id, TAG_REALM: realm},
    )


# ---- llm_outputs ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Came:
    """What came of the chunks of a run, over all its batches."""

    failed_chunks: list[str] = field(default_factory=list)
    failed_rows: list[FailedRow] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    under_way: list[str] = field(default_factory=list)
    checked: list[_Checked] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Checked:
    """Counts behind the asset checks, for the chunks of one batch."""

    rows: int
    outcomes: dict[Outcome, int]
    not_valid: list[str]


def run_chunks(
    context: dg.AssetExecutionContext, config: WorkloadConfig
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckResult]:
    """Run the engine over this Dagster run's partitions; materialize each chunk as it completes.

    A chunk that is complete in the ledger is materialized again at no cost, so "run the whole batch
    again" is one range.

    Raises:
        dg.Failure: when a row of these chunks has failed or is still to do: the missing chunks then
        show as failed.
    """
    tools = Tools.of(context)
    asked = context.op_execution_context.op_config
    came = _Came()
    with errors_as_failures(tools):
        for place, (batch_id, keys) in enumerate(_by_batch(context.partition_keys).items()):
            realm = tools.ledger.find_realm(batch_id, asked.get("simulate"))
            with tools.ledger.open(realm) as ledger:
                yield from _run_batch(context, tools, config, ledger, batch_id, keys, place, came)
        yield from _check_results(context.asset_key, config, came)
        if problem := _problem(came):
            raise dg.Failure(
                description="\n".join(redact(line) for line in problem.splitlines()),
                metadata={
                    "rows without a result": dg.MetadataValue.md(failed_table(came.failed_rows))
                }
                if came.failed_rows
                else None,
                allow_retries=False,
            )


def submit_chunks(
    context: dg.AssetExecutionContext, config: WorkloadConfig
) -> Iterator[dg.AssetMaterialization]:
    """Send this Dagster run's partitions to a Batch API, as far as there is room.

    Raises:
        dg.Failure: when jobs cannot be submitted. Rows that wait for room are no failure.
    """
    tools = Tools.of(context)
    asked = context.op_execution_context.op_config
    came = _Came()
    with errors_as_failures(tools):
        if config.with_options(knobs_of(asked)).lane == "realtime":
            # Who materializes all assets of a workload at once must not pay in two lanes.
            context.log.warning(
                f"The lane of {config.workload} is realtime: nothing is submitted. Set `lane` to "
                "`batch` or `auto` in the launchpad or in defs.yaml, or materialize llm_outputs."
            )
            return
        for place, (batch_id, keys) in enumerate(_by_batch(context.partition_keys).items()):
            realm = tools.ledger.find_realm(batch_id, asked.get("simulate"))
            with tools.ledger.open(realm) as ledger:
                job, _ = _plan(context, tools, config, ledger, batch_id, keys, place, submit=True)
                for event in _engine_events(context, tools, realm, job):
                    if isinstance(event, RunDone):
                        _note_end(event, came)
                        context.log.info(event.message or "Every row of these chunks has ended.")
                    elif event.tally.outcomes[Outcome.PENDING] == event.under_way:
                        yield jobs_materialization(ledger, context.asset_key, event)
        if came.messages:
            raise dg.Failure(description=redact("\n".join(came.messages)), allow_retries=False)


def jobs_materialization(
    ledger: Ledger, asset_key: dg.AssetKey, event: ChunkDone
) -> dg.AssetMaterialization:
    """A chunk of provider_jobs whose rows have all ended or gone up."""
    outcomes = event.tally.outcomes
    return dg.AssetMaterialization(
        asset_key,
        partition=event.chunk_key,
        metadata={
            "llm/realm": ledger.realm,
            "dagster/partition_row_count": sum(outcomes.values()),
            "rows in provider jobs": event.under_way,
            "rows that have ended": sum(outcomes.values()) - outcomes[Outcome.PENDING],
        },
    )


def _by_batch(keys: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(batch_of(key), []).append(key)
    return found


def _plan(
    context: dg.AssetExecutionContext,
    tools: Tools,
    config: WorkloadConfig,
    ledger: Ledger,
    batch_id: str,
    keys: list[str],
    place: int,
    *,
    submit: bool = False,
) -> tuple[Job, WorkloadConfig]:
    """The engine run over some chunks of a batch, and the options it has."""
    asked = context.op_execution_context.op_config
    realm = ledger.realm
    batch = require_batch(ledger, batch_id)
    settings = tools.installation.settings()
    used = tools.limits.apply(_keep_to_budget(ledger, batch, config, knobs_of(asked)))
    used = keep_to_day(ledger, batch_id, used)
    run_id = f"{context.run.run_id}{SUBMITTING if submit else ''}"
    job = plan_job(
        used,
        # A run over several batches is one engine run for each.
        run_id=run_id if place == 0 else f"{run_id}.{place + 1}",
        batch=batch,
        chunk_keys=keys,
        realm=realm,
        simulator=tools.installation.simulator(realm),
        log_folder=settings.logs,
        submit_only=submit,
    )
    _tag_run(context, batch, realm)
    if asked["force"]:
        count = start_generation(ledger, batch_id, used.limit)
        context.log.info(f"Forced: {count:,} finished rows are asked again.")
    if used.include_blocked:
        count = renew_blocked(ledger, batch_id, used.limit)
        context.log.info(f"{count:,} blocked rows are asked anew.")
    mark_launched(ledger, batch_id, context.run.run_id)
    context.log.info(
        f"{'SIMULATED: ' if realm == 'simulated' else ''}{len(keys)} chunks of batch {batch_id} "
        f"with {', '.join(endpoint.label for endpoint in job.route)}, lane {used.lane}.\n"
        + "\n".join(
            f"{endpoint.label}:\n{tools.limits.shared_limits(ledger, endpoint).markdown()}"
            for endpoint in job.route
        )
    )
    for warning in job.used.get("warnings", ()):
        context.log.warning(warning)
    return job, used


def _run_batch(
    context: dg.AssetExecutionContext,
    tools: Tools,
    config: WorkloadConfig,
    ledger: Ledger,
    batch_id: str,
    keys: list[str],
    place: int,
    came: _Came,
) -> Iterator[dg.AssetMaterialization]:
    realm = ledger.realm
    job, used = _plan(context, tools, config, ledger, batch_id, keys, place)
    jobs_key = dg.AssetKey([*context.asset_key.path[:-1], "provider_jobs"])
    submitted = False
    settings = tools.installation.settings()
    sheet = SheetFollowing(
        lambda: tools.ledger.open(realm),
        config.domain,
        require_batch(ledger, batch_id),
        batch_folder(settings, realm, config.workload, batch_id),
        lambda: tools.installation.simulator(realm),
    )
    with sheet:
        for event in _engine_events(context, tools, realm, job):
            if isinstance(event, RunDone):
                _note_end(event, came)
                submitted = event.status == "submitted"
                if submitted:
                    context.log.info(event.message)
                continue
            sheet.chunk_done(ledger, event.chunk_key)
            if event.under_way and event.tally.outcomes[Outcome.PENDING] == event.under_way:
                # This run sent the chunk up itself.
                yield jobs_materialization(ledger, jobs_key, event)
            came.failed_rows += [row for row in event.failed if row.outcome is Outcome.FAILED]
            if event.complete:
                yield dg.AssetMaterialization(
                    context.asset_key,
                    partition=event.chunk_key,
                    metadata=chunk_metadata(event, realm, _shown_url(settings.ledger_url)),
                )
    _warn(context, tools, sheet.warnings)
    with ledger.read() as connection:
        chunks = find_chunks(connection, realm, keys)
        for chunk in chunks:
            counts = count_outcomes(connection, realm, batch_id, chunk)
            if counts[Outcome.FAILED]:
                came.failed_chunks.append(chunk.chunk_key)
            elif counts[Outcome.PENDING] and submitted:
                came.under_way.append(chunk.chunk_key)
            # Rows beyond a limit are left on purpose: their chunk is missing, not failed.
            elif counts[Outcome.PENDING] and used.limit is None:
                came.unfinished.append(chunk.chunk_key)
    came.checked.append(_check_batch(ledger, used, chunks))


def _warn(context: dg.AssetExecutionContext, tools: Tools, warnings: Iterable[str]) -> None:
    """Say what went wrong without hurting the run."""
    for warning in warnings:
        context.log.warning(redact(warning))
        tools.listener.warn(redact(warning))


def _keep_to_budget(
    ledger: Ledger, batch: Batch, config: WorkloadConfig, knobs: dict[str, Any]
) -> WorkloadConfig:
    """The run's options; a budget once given for a batch holds until another one is given."""
    if (given := knobs.get("budget_usd")) is not None:
        set_budget(ledger, batch.batch_id, round(given * NANO))
    elif batch.budget_nano is not None:
        knobs = {**knobs, "budget_usd": batch.budget_nano / NANO}
    return config.with_options(knobs)


def _shown_url(url: str) -> str:
    return sa.engine.make_url(url).render_as_string(hide_password=True)


def _engine_events(
    context: dg.AssetExecutionContext, tools: Tools, realm: Realm, job: Job
) -> Iterator[ChunkDone | RunDone]:
    """Events of one engine run; however it is cut short, what is in flight is settled first."""
    thread = tools.engines.start(lambda: tools.ledger.open(realm), job)
    watch = _Watch(context, tools, thread)
    try:
        for event in thread.events(on_tick=watch.tick):
            if isinstance(event, RunDone):
                tools.engines.ended(thread)
            yield event
    except (GeneratorExit, KeyboardInterrupt, DagsterExecutionInterruptedError):
        if TAG_DOOR in context.run.tags:
            # Ctrl-C on a command line: without the mark, Dagster would call it a failure.
            context.instance.report_run_canceling(context.run)
        tools.engines.drain(thread)
        raise


class _Watch:
    """Between events: tells the listener, logs a line now and then, notices a cancelled run."""

    def __init__(
        self, context: dg.AssetExecutionContext, tools: Tools, thread: EngineThread
    ) -> None:
        self._context = context
        self._tools = tools
        self._thread = thread
        self._looked_at = self._logged_at = time.monotonic()

    def tick(self, progress: Progress) -> None:
        """Called about four times a second."""
        self._tools.listener.progress(progress)
        now = time.monotonic()
        if now - self._looked_at >= _CANCEL_POLL_S:
            self._looked_at = now
            # "Force terminate" reaches no process: it only marks the run, so look for the mark.
            run = self._context.instance.get_run_by_id(self._context.run.run_id)
            if run is not None and run.status in (
                dg.DagsterRunStatus.CANCELED,
                dg.DagsterRunStatus.CANCELING,
            ):
                self._thread.stop()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            self._context.log.info(
                f"{progress.done:,} of {progress.total:,} rows done, {progress.cached:,} cached, "
                f"{progress.failed:,} failed; {progress.attempts:,} attempts, "
                f"{progress.cost_usd:.4f} USD. {progress.note}"
            )


def _note_end(done: RunDone, came: _Came) -> None:
    if done.error is not None and not isinstance(done.error, BatchPipelineError):
        came.messages.append(f"The run broke off: {type(done.error).__name__}: {done.message}")
    elif done.status == "interrupted":
        came.messages.append("The run was stopped before its end; run it again to finish it.")
    elif done.status not in ("done", "submitted"):
        came.messages.append(done.message or str(done.error))


def _problem(came: _Came) -> str:
    """Why the run has to end as failed; empty when every chunk is complete."""
    parts = list(came.messages)
    if came.failed_chunks:
        named = [
            row.error
            if row.error.startswith("Row ")
            else f"Row {row.number} ({row.item_id}): {row.error}"
            for row in came.failed_rows[:_MAX_NAMED]
        ]
        more = len(came.failed_rows) - len(named)
        parts.append(
            f"{plural(len(came.failed_chunks), 'chunk')} with failed rows: "
            f"{_named(came.failed_chunks)}."
        )
        parts += named
        if more > 0:
            parts.append(f"{more} more rows failed.")
    if came.unfinished:
        parts.append(
            f"{plural(len(came.unfinished), 'chunk')} with rows still to do: "
            f"{_named(came.unfinished)}."
        )
    if parts:
        parts.append("Run these chunks again: only rows without a result are asked again.")
    return "\n".join(parts)


def _named(keys: list[str]) -> str:
    shown = ", ".join(keys[:_MAX_NAMED])
    return shown if len(keys) <= _MAX_NAMED else f"{shown} and {len(keys) - _MAX_NAMED} more"


# ---- checks --------------------------------------------------------------------------------------


def check_specs(asset_key: dg.AssetKey, min_share: float) -> list[dg.AssetCheckSpec]:
    """The aggregate checks of llm_outputs."""
    return [
        dg.AssetCheckSpec(
            CHECK_ONE_OUTCOME,
            asset=asset_key,
            description="Every row of these chunks has ended, with exactly one outcome.",
        ),
        dg.AssetCheckSpec(
            CHECK_SHARE,
            asset=asset_key,
            description=f"At least {min_share:.0%} of the rows that were asked about succeeded.",
        ),
        dg.AssetCheckSpec(
            CHECK_SCHEMA,
            asset=asset_key,
            description="Every stored result is valid by the workload's output model as it is now.",
        ),
        dg.AssetCheckSpec(
            CHECK_BLOCKED,
            asset=asset_key,
            description="No row was declined by the model; those that were need a person.",
        ),
    ]


def _check_batch(ledger: Ledger, config: WorkloadConfig, chunks: list[Chunk]) -> _Checked:
    """Read the chunks' rows back and judge them, page by page.

    A row that succeeded has an answer that is valid by the step which asked for it. Where a local
    step makes the rows' results, it has such a result too, one that the deliverables can be made
    of: a row that a person let through before anything was written for it has none.
    """
    judge = _Judge(config)
    outcomes = dict.fromkeys(Outcome, 0)
    rows = 0
    not_valid: list[str] = []
    for chunk in chunks:
        rows += chunk.row_count
        end = chunk.first_ordinal + chunk.row_count
        for first in range(chunk.first_ordinal, end, _PAGE):
            with ledger.read() as connection:
                page = read_items(
                    connection, ledger.realm, chunk.batch_id, first, min(_PAGE, end - first)
                )
                done = [item for item in page if item.outcome is Outcome.SUCCEEDED]
                wrong = judge.find_invalid(connection, ledger.realm, chunk.batch_id, done)
            for item in page:
                outcomes[item.outcome] += 1
            not_valid += [f"row {item.number} ({item.item_id})" for item in wrong]
    return _Checked(rows, outcomes, not_valid)


class _Judge:
    """Says which rows that succeeded have no valid result."""

    def __init__(self, config: WorkloadConfig) -> None:
        self._domain = config.domain
        self._steps = {step.name: step for step in llm_steps(resolve_steps(config))}
        self._result_step: str | None = getattr(config.domain, "result_step", None)

    def find_invalid(
        self, connection: sa.Connection, realm: Realm, batch_id: str, done: list[Item]
    ) -> list[Item]:
        """Those of these rows, of one batch, whose results are missing or not valid."""
        answers = _stored_answers(connection, realm, done)
        made: dict[int, Any] = {}
        if self._result_step is not None:
            ordinals = [item.ordinal for item in done]
            steps = [self._result_step]
            kept = read_documents(connection, realm, batch_id, ordinals, steps=steps)
            made = {ordinal: by_step[steps[0]].content for ordinal, by_step in kept.items()}
        return [
            item
            for item in done
            if not self._answer_is_valid(item, answers.get((item.cache_key, item.model)))
            or (self._result_step is not None and not self._result_is_valid(item, made))
        ]

    def _answer_is_valid(self, item: Item, answer: StoredResult | None) -> bool:
        if item.cache_key is None and self._result_step is not None:
            # No model was asked about the row: its result is the local step's alone.
            return True
        step = None if answer is None else self._steps.get(answer.step)
        if answer is None or step is None:
            # None is stored, or its step is not one of the workload's any more.
            return False
        return is_valid(step, answer.output)

    def _result_is_valid(self, item: Item, made: dict[int, Any]) -> bool:
        if item.ordinal not in made:
            return False
        try:
            self._domain.deliverable_row(item.row, made[item.ordinal])
        except ValidationError:
            return False
        return True


def _stored_answers(
    connection: sa.Connection, realm: Realm, page: list[Item]
) -> dict[tuple[str | None, str | None], StoredResult]:
    """The answers that rows ended with, by cache key and model."""
    stored: dict[tuple[str | None, str | None], StoredResult] = {}
    for model in {item.model for item in page if item.model}:
        keys = sorted({item.cache_key for item in page if item.cache_key and item.model == model})
        found = find_results(connection, realm, keys, [model])
        stored.update({(key, model): result for key, result in found.items()})
    return stored


def _check_results(
    asset_key: dg.AssetKey, config: WorkloadConfig, came: _Came
) -> Iterator[dg.AssetCheckResult]:
    rows = sum(part.rows for part in came.checked)
    counts = {o: sum(part.outcomes[o] for part in came.checked) for o in Outcome}
    not_valid = [text for part in came.checked for text in part.not_valid]
    pending = counts[Outcome.PENDING]
    asked = rows - counts[Outcome.SKIPPED] - pending
    share = counts[Outcome.SUCCEEDED] / asked if asked else 1.0
    yield dg.AssetCheckResult(
        asset_key=asset_key,
        check_name=CHECK_ONE_OUTCOME,
        passed=sum(counts.values()) == rows and pending == 0,
        # Rows in provider jobs end later, and that is no fault.
        severity=dg.AssetCheckSeverity.WARN if came.under_way else dg.AssetCheckSeverity.ERROR,
        metadata={"rows": rows, **{outcome.value: count for outcome, count in counts.items()}},
    )
    yield dg.AssetCheckResult(
        asset_key=asset_key,
        check_name=CHECK_SHARE,
        passed=share >= config.min_share_succeeded,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"share": round(share, 4), "wanted": config.min_share_succeeded, "of": asked},
    )
    yield dg.AssetCheckResult(
        asset_key=asset_key,
        check_name=CHECK_SCHEMA,
        passed=not not_valid,
        metadata={"not valid": len(not_valid), "rows": ", ".join(not_valid[:20]) or "none"},
    )
    yield dg.AssetCheckResult(
        asset_key=asset_key,
        check_name=CHECK_BLOCKED,
        passed=counts[Outcome.BLOCKED] == 0,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"blocked": counts[Outcome.BLOCKED]},
    )


# ---- batch_report --------------------------------------------------------------------------------


def report_batch(
    context: dg.AssetExecutionContext, config: WorkloadConfig
) -> dg.MaterializeResult[None]:
    """Write a batch's deliverables and its report."""
    # Here: charts and tables take a second to import, and the other two assets need neither.
    from batch_pipeline.reports.build import build_report
    from batch_pipeline.reports.files import write_reports

    tools = Tools.of(context)
    asked = context.op_execution_context.op_config
    with errors_as_failures(tools):
        settings = tools.installation.settings()
        batch_id = asked.get("batch") or _newest_batch(tools, config.workload, asked)
        realm = tools.ledger.find_realm(batch_id, asked.get("simulate"))
        given = asked.get("output")
        folder = (
            Path(given).expanduser()
            if given
            else batch_folder(settings, realm, config.workload, batch_id)
        )
        with tools.ledger.open(realm) as ledger:
            batch = require_batch(ledger, batch_id)
            _tag_run(context, batch, realm)
            files = deliver(ledger, config, batch, folder, only_input=asked["no_enrich"])
            sheet = None
            if not asked["no_enrich"]:
                sheet = reconcile_sheet(
                    ledger,
                    config.domain,
                    batch,
                    folder,
                    lambda: tools.installation.simulator(realm),
                )
            report = build_report(
                ledger,
                batch,
                run_id=asked.get("run_id"),
                deliverables=files,
            )
            written = write_reports(report, folder)
    if sheet is not None:
        _warn(context, tools, sheet.warnings)
    return dg.MaterializeResult(
        metadata={
            **report_metadata(report),
            "batch": dg.MetadataValue.text(batch_id),
            "report": dg.MetadataValue.md(Path(written.markdown_path).read_text(encoding="utf-8")),
            "report_html": dg.MetadataValue.path(written.html_path),
            "report_json": dg.MetadataValue.path(written.json_path),
            "report_url": dg.MetadataValue.url(Path(written.html_path).resolve().as_uri()),
            "deliverables": dg.MetadataValue.md(file_list(files)),
            **({} if sheet is None else {"sheet": dg.MetadataValue.text(sheet.words)}),
            "folder": dg.MetadataValue.path(folder),
            "dagster/uri": dg.MetadataValue.text(str(folder)),
        }
    )


def _newest_batch(tools: Tools, workload: str, asked: dict[str, Any]) -> str:
    realm = tools.installation.settings().realm(asked.get("simulate"))
    with tools.ledger.open(realm) as ledger, ledger.read() as connection:
        found = list_batches(connection, realm, workload, limit=1)
    if not found:
        raise UsageError(
            f"Workload {workload} has no batch in the {realm} realm.",
            "Materialize input_table first, or name a batch.",
        )
    return found[0].batch_id
