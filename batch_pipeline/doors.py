"""How the CLI and the API run a batch: as Dagster runs in their own process, on the UI's instance.

What belongs here: the three runs of a batch (ingest, LLM, report) one after the other, and what
came of them. What does not: options, console, HTTP. Dagster is imported when a batch runs, so that
reading doors start quickly.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from batch_pipeline.engine.job import Progress
from batch_pipeline.errors import BatchPipelineError, UsageError
from batch_pipeline.home import ensure_home
from batch_pipeline.ledger.batches import Batch, chunk_key, count_outcomes
from batch_pipeline.ledger.calls import process_lives, this_host
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import runs
from batch_pipeline.settings import Realm, Settings, load_settings
from batch_pipeline.workloads.config import WorkloadConfig, load_workload_config
from batch_pipeline.workloads.inputs import WRITE_BACK
from batch_pipeline.workloads.runner import (
    check_ready,
    open_ledger,
    require_batch,
    simulator_url,
)
from batch_pipeline.workloads.write_back import set_write_back

if TYPE_CHECKING:
    import dagster as dg
    from dagster._core.remote_origin import RemoteJobOrigin

OWN_PROCESS = "own process"
"""Value of the tag that marks runs of this door."""

STAGES = ("home", "load", "ingest", "llm", "report")
"""What `on_stage` is called with, in order."""


class RunFailedError(BatchPipelineError):
    """A Dagster run of this door ended without doing its work."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A batch to run.

    Attributes:
        workload: its name.
        source: the table to ingest; None takes up the batch `batch_id`.
        batch_id: the batch's id; None makes one of the table's name and content.
        knobs: options that win over defs.yaml; None values count as not given.
        reading: how to read the table: `encoding`, `delimiter` and what the workload knows besides.
        simulate: the realm; None leaves it to the environment.
        force: ask finished rows again.
        chunk_keys: only these chunks, and what lies between them; None is the whole batch.
        output: folder for deliverables and report; None is outputs/ of the data folder.
        verbose: let Dagster's own log go to the console.
    """

    workload: str
    source: str | None = None
    batch_id: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)
    simulate: bool | None = None
    force: bool = False
    chunk_keys: list[str] | None = None
    output: Path | None = None
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of it.

    Attributes:
        workload: its name.
        batch_id: the batch.
        realm: `live` or `simulated`.
        run_id: the Dagster run of the LLM part, which is the engine's run id too; the report's with
            `no_enrich`.
        status: `done`, `interrupted`, `stopped` or `exported` (`no_enrich`).
        message: why it did not get to its end; empty when it did.
        summary: this run's counts, as the ledger keeps them (`requests`, `attempts`, `cost_nano`,
            ...).
        outcomes: rows of the whole batch by outcome.
        row_count: rows of the batch.
        report_json: the report as data.
        report_html: the report to look at.
        deliverables: files written.
        warnings: what reading the table gave to say, and what a sheet that is written back lacks.
        notes: what else there is to know of the table.
    """

    workload: str
    batch_id: str
    realm: Realm
    run_id: str
    status: str
    message: str
    summary: dict[str, Any]
    outcomes: dict[str, int]
    row_count: int
    report_json: Path | None
    report_html: Path | None
    deliverables: list[Path]
    warnings: list[str]
    notes: list[str]


class _Listener:
    """Takes the place of the code location's listener for the runs of this process."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        self._on_progress = on_progress
        self.error: BatchPipelineError | None = None
        self.warnings: list[str] = []

    def progress(self, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(progress)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def ended(self, error: BatchPipelineError) -> None:
        self.error = error


def run_batch(
    request: RunRequest,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> RunResult:
    """Ingest a table, run its rows through the LLM, write the report; the UI shows all three runs.

    The first Ctrl-C stops the LLM part cleanly: calls in flight come back and are kept, and the
    report is still made.

    Args:
        request: what to run.
        on_progress: called about four times a second during the LLM part.
        on_stage: called with each of STAGES as it begins.
        on_batch: called with the batch once it is in the ledger, before its first call.

    Raises:
        UsageError: the table, the batch or an option cannot be used, or a key is missing: nothing
            was called.
        RunFailedError: a Dagster run broke off for a reason that is not ours.
    """
    stage = on_stage or (lambda _: None)
    stage("home")
    settings = load_settings()
    config = load_workload_config(request.workload).with_options(dict(request.knobs))
    realm = settings.realm(request.simulate)
    _check_first(config, settings, realm)
    home = ensure_home(settings)
    stage("load")
    with (
        _quiet(request.verbose),
        open_ledger(settings, realm) as ledger,
        _instance(home) as instance,
    ):
        _end_runs_of_dead_processes(instance)
        door = _Door(request, realm, ledger, instance, _Listener(on_progress))
        return door.run(config, stage, on_batch or (lambda _: None))


def _end_runs_of_dead_processes(instance: dg.DagsterInstance) -> None:
    """Fail runs whose process was killed: Dagster has no worker of its own to ask about them."""
    from dagster import DagsterRunStatus, RunsFilter

    from batch_pipeline.component.materialize import TAG_DOOR, TAG_PROCESS

    open_runs = RunsFilter(
        statuses=[DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING],
        tags={TAG_DOOR: OWN_PROCESS},
    )
    for run in instance.get_runs(open_runs):
        host, _, pid = run.tags.get(TAG_PROCESS, "").rpartition(":")
        if host == this_host() and pid.isdigit() and not process_lives(int(pid)):
            instance.report_run_failed(
                run,
                "The process that carried this run is gone. What it finished is kept; "
                "run the batch again to go on.",
            )


def _check_first(config: WorkloadConfig, settings: Settings, realm: Realm) -> None:
    """Find what would stop the LLM part before the table is read: a bad knob, a missing key."""
    if config.no_enrich:
        return
    check_ready(config, simulator_url(settings, realm))


class _Door:
    """One call of `run_batch`."""

    def __init__(
        self,
        request: RunRequest,
        realm: Realm,
        ledger: Ledger,
        instance: dg.DagsterInstance,
        listener: _Listener,
    ) -> None:
        from batch_pipeline.definitions import build_defs

        self._request = request
        self._realm = realm
        self._ledger = ledger
        self._instance = instance
        self._listener = listener
        self._console_level = "INFO" if request.verbose else "CRITICAL"
        self._defs = build_defs(resource_overrides={"listener": listener})

    def run(
        self,
        config: WorkloadConfig,
        stage: Callable[[str], None],
        on_batch: Callable[[Batch], None],
    ) -> RunResult:
        request = self._request
        knobs = {name: value for name, value in request.knobs.items() if value is not None}
        if request.source is not None:
            stage("ingest")
            batch = self._ingest(request.source, knobs)
        elif request.batch_id is not None:
            batch = require_batch(self._ledger, request.batch_id)
        else:
            raise UsageError("Neither a table nor a batch is named.", "Name one of them.")
        if batch.workload != request.workload:
            raise UsageError(
                f"Batch {batch.batch_id!r} is of workload {batch.workload}, "
                f"not {request.workload}.",
                f"Name the workload {batch.workload}.",
            )
        if request.source is None and (wanted := request.reading.get(WRITE_BACK)) is not None:
            batch = set_write_back(self._ledger, batch, wanted)
        asked = None
        on_batch(batch)
        if not config.no_enrich:
            stage("llm")
            asked = self._ask(batch, knobs)
        stage("report")
        # What the run could not write to a sheet, the report may have written by now.
        self._listener.warnings.clear()
        report = self._report(batch, asked)
        return self._result(batch, asked, report)

    def _ingest(self, source: str, knobs: dict[str, Any]) -> Batch:
        request = self._request
        from batch_pipeline.component.materialize import TAG_BATCH

        reading = {name: value for name, value in request.reading.items() if value is not None}
        config: dict[str, Any] = {
            "source": source,
            "launch": "door",
            "simulate": self._realm == "simulated",
            "force": request.force,
            **({"batch": request.batch_id} if request.batch_id else {}),
            **({"reading": reading} if reading else {}),
            **knobs,
        }
        run = self._execute("ingest", "input_table", config, {})
        return require_batch(self._ledger, run.tags[TAG_BATCH])

    def _ask(self, batch: Batch, knobs: dict[str, Any]) -> _Ended:
        from batch_pipeline.component.automation import INGEST_ONLY, range_tags

        every = [chunk_key(batch.batch_id, at + 1) for at in range(batch.chunk_count)]
        wanted = self._request.chunk_keys or every
        if unknown := sorted(set(wanted) - set(every)):
            raise UsageError(
                f"Batch {batch.batch_id!r} has no chunk {unknown[0]!r}.",
                f"It has {every[0]} to {every[-1]}.",
            )
        # Dagster may not know them yet: the batch may be from before this Dagster home.
        self._instance.add_dynamic_partitions(f"{batch.workload}_chunks", every)
        config = {
            **{k: v for k, v in knobs.items() if k not in INGEST_ONLY},
            "simulate": self._realm == "simulated",
            "force": self._request.force,
        }
        tags = range_tags(min(wanted), max(wanted)) | self._tags(batch)
        return self._execute("run", "llm_outputs", config, tags, may_fail=True)

    def _report(self, batch: Batch, asked: _Ended | None) -> _Ended:
        config: dict[str, Any] = {
            "batch": batch.batch_id,
            "simulate": self._realm == "simulated",
            "no_enrich": asked is None,
        }
        if asked is not None:
            config["run_id"] = asked.run_id
        if self._request.output is not None:
            config["output"] = str(self._request.output)
        return self._execute("report", "batch_report", config, self._tags(batch))

    def _tags(self, batch: Batch) -> dict[str, str]:
        from batch_pipeline.component.automation import batch_tags

        return batch_tags(batch.workload, batch.batch_id, self._realm)

    def _execute(
        self,
        job: str,
        asset: str,
        config: Mapping[str, Any],
        tags: Mapping[str, str],
        *,
        may_fail: bool = False,
    ) -> _Ended:
        """Run one of the workload's jobs here and now, recorded as a run of our code location.

        Args:
            job: `ingest`, `run` or `report`.
            asset: what it materializes.
            config: the asset's config.
            tags: of the run.
            may_fail: a Failure that the asset raises on purpose is a result, not an error.
        """
        from dagster import AssetKey, DagsterRunStatus
        from dagster._core.definitions.job_base import InMemoryJob
        from dagster._core.errors import DagsterExecutionInterruptedError
        from dagster._core.execution.api import execute_run_iterator

        from batch_pipeline.component.materialize import TAG_DOOR, TAG_PROCESS, TAG_WORKLOAD

        workload = self._request.workload
        definition = self._defs.resolve_job_def(f"{workload}_{job}")
        run = self._instance.create_run_for_job(
            definition,
            run_config={
                "ops": {f"{workload}__{asset}": {"config": dict(config)}},
                "loggers": {"console": {"config": {"log_level": self._console_level}}},
            },
            tags={
                **definition.run_tags,
                TAG_WORKLOAD: workload,
                TAG_DOOR: OWN_PROCESS,
                TAG_PROCESS: f"{this_host()}:{os.getpid()}",
                **tags,
            },
            remote_job_origin=_origin(definition.name),
        )
        metadata: dict[str, Any] = {}
        key = AssetKey([workload, asset])
        failure, on_purpose, interrupted = "", False, False
        try:
            for event in execute_run_iterator(InMemoryJob(definition), run, self._instance):
                if event.is_step_failure:
                    data = event.step_failure_data
                    on_purpose = data.user_failure_data is not None
                    # Dagster wraps what an op raised; the cause is what the user can act on.
                    cause = data.error and (data.error.cause or data.error)
                    failure = cause.message.strip() if cause else ""
                elif event.is_step_materialization and event.asset_key == key:
                    found = event.step_materialization_data.materialization.metadata
                    metadata = {name: entry.value for name, entry in found.items()}
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            interrupted = True
        if self._listener.error is not None:
            raise self._listener.error
        ended = self._instance.get_run_by_id(run.run_id)
        assert ended is not None
        interrupted = interrupted or ended.status is DagsterRunStatus.CANCELED
        if interrupted and not may_fail:
            raise KeyboardInterrupt
        if not (ended.is_success or interrupted or (may_fail and on_purpose)):
            raise RunFailedError(
                f"Run {run.run_id} ({definition.name}) failed: {failure or 'its log says why'}.",
                "`make dev` shows the run and its log.",
            )
        return _Ended(run.run_id, interrupted, ended.tags, metadata)

    def _result(self, batch: Batch, asked: _Ended | None, report: _Ended) -> RunResult:
        import orjson

        status, message = "exported", ""
        summary: dict[str, Any] = {}
        with self._ledger.read() as connection:
            outcomes = count_outcomes(connection, self._realm, batch.batch_id)
            if asked is not None:
                row = connection.execute(
                    sa.select(runs.c.status, runs.c.message, runs.c.summary).where(
                        runs.c.run_id == asked.run_id
                    )
                ).first()
                # No row: it was stopped before the engine began.
                status = "interrupted" if asked.interrupted or row is None else row.status
                message = "" if row is None else row.message
                summary = {} if row is None else orjson.loads(row.summary)
        report_json = Path(report.metadata["report_json"])
        return RunResult(
            workload=batch.workload,
            batch_id=batch.batch_id,
            realm=self._realm,
            run_id=report.run_id if asked is None else asked.run_id,
            status=status,
            message=message,
            summary=summary,
            outcomes={outcome.value: count for outcome, count in outcomes.items()},
            row_count=batch.row_count,
            report_json=report_json,
            report_html=Path(report.metadata["report_html"]),
            deliverables=[
                Path(name) for name in orjson.loads(report_json.read_bytes())["deliverables"]
            ],
            warnings=[*batch.warnings, *self._listener.warnings],
            notes=batch.notes,
        )


@dataclass(frozen=True, slots=True)
class _Ended:
    """A Dagster run that has ended; `metadata` is its last materialization's."""

    run_id: str
    interrupted: bool
    tags: Mapping[str, str]
    metadata: dict[str, Any]


def _origin(job: str) -> RemoteJobOrigin:
    """Where the UI finds the job of a run started here; without it, it could not run it again."""
    from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
    from dagster._core.remote_origin import (
        ManagedGrpcPythonEnvCodeLocationOrigin,
        RemoteJobOrigin,
        RemoteRepositoryOrigin,
    )
    from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

    from batch_pipeline import definitions

    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(module_name=definitions.__name__), definitions.LOCATION_NAME
    )
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), job)


def _instance(home: Path) -> dg.DagsterInstance:
    """The UI's instance, without the capture of what a run prints: that is the door's console."""
    from dagster import DagsterInstance
    from dagster._core.instance import InstanceRef

    no_capture = {
        "compute_logs": {
            "module": "dagster._core.storage.noop_compute_log_manager",
            "class": "NoOpComputeLogManager",
        }
    }
    return DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=no_capture))


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Keep Dagster's own warnings off the console, which shows a progress bar."""
    logger = logging.getLogger("dagster")
    before = logger.level
    if not verbose:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
