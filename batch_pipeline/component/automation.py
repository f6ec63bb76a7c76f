"""What starts runs by itself: the sensors and the nightly schedule of a workload.

What belongs here: deciding what to launch, and the sensors that do. What does not: the work
(materialize.py). Ticks are cut at 60 s, so they only look and launch.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from batch_pipeline.component.materialize import (
    RUN_OPTIONS,
    TAG_BATCH,
    TAG_DOOR,
    TAG_REALM,
    TAG_WORKLOAD,
)
from batch_pipeline.component.resources import REALMS, InstallationResource, LedgerResource
from batch_pipeline.ledger.batches import (
    INPUT_ERROR,
    TRIAL,
    Batch,
    batch_of,
    chunk_key,
    list_batches,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome, items, runs
from batch_pipeline.settings import Realm
from batch_pipeline.workloads.config import ScheduleKnobs

SETTLED_S = 5.0
"""A file in the inbox counts as complete when it did not change for so many seconds."""

INGEST_ONLY = frozenset({"chunk_size", "no_enrich"})
"""Knobs that input_table understands and llm_outputs does not."""

TICK_S = 30
MAX_LAUNCHES = 20


@dataclass(frozen=True, slots=True)
class WorkloadJobs:
    """What a sensor of a workload can start.

    Attributes:
        workload: its name.
        partitions: name of the dynamic partitions definition.
        lane: how its calls travel by defs.yaml.
        ingest: job of input_table.
        run: job of llm_outputs.
        submit: job of provider_jobs.
        report: job of batch_report.
    """

    workload: str
    partitions: str
    lane: str
    ingest: Any
    run: Any
    submit: Any
    report: Any

    def op(self, asset: str) -> str:
        """Name of the op that an asset of this workload is in a job's run config."""
        return f"{self.workload}__{asset}"

    def run_config(self, asset: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Run config for a job of one asset."""
        return {"ops": {self.op(asset): {"config": dict(config)}}}


def range_tags(first: str, last: str) -> dict[str, str]:
    """Tags that make a run cover the partitions from `first` to `last`."""
    return {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}


def batch_tags(workload: str, batch_id: str, realm: Realm) -> dict[str, str]:
    """Tags by which runs of a batch are found in the UI."""
    return {TAG_WORKLOAD: workload, TAG_BATCH: batch_id, TAG_REALM: realm}


def missing_keys(batches: Sequence[Batch], existing: set[str]) -> list[str]:
    """Chunk keys that Dagster does not know yet, oldest batch first, each batch's in order."""
    found: dict[str, None] = {}
    for batch in sorted(batches, key=lambda b: (b.created_at, b.batch_id)):
        for position in range(1, batch.chunk_count + 1):
            key = chunk_key(batch.batch_id, position)
            if key not in existing:
                found[key] = None
    return list(found)


def launch_request(
    jobs: WorkloadJobs,
    batch: Batch,
    realm: Realm,
    cause: str,
    options: Mapping[str, Any],
    *,
    submit: bool = False,
) -> dg.RunRequest:
    """The run that carries a whole batch.

    Args:
        jobs: the workload's.
        batch: the batch.
        realm: its realm.
        cause: makes the run's key unique.
        options: knobs that win over defs.yaml.
        submit: it sends rows up to a Batch API, and that is all.
    """
    tags = batch_tags(jobs.workload, batch.batch_id, realm)
    simulate = realm == "simulated"
    if options.get("no_enrich"):
        config = {"batch": batch.batch_id, "simulate": simulate, "no_enrich": True}
        return dg.RunRequest(
            run_key=cause,
            job_name=jobs.report.name,
            run_config=jobs.run_config("batch_report", config),
            tags=tags,
        )
    knobs = {name: options[name] for name in options if name not in INGEST_ONLY}
    first, last = chunk_key(batch.batch_id, 1), chunk_key(batch.batch_id, batch.chunk_count)
    asset = "provider_jobs" if submit else "llm_outputs"
    return dg.RunRequest(
        run_key=cause,
        job_name=(jobs.submit if submit else jobs.run).name,
        run_config=jobs.run_config(asset, {**knobs, "simulate": simulate}),
        tags={**tags, **range_tags(first, last)},
    )


def build_sensors(jobs: WorkloadJobs, schedule: ScheduleKnobs) -> dg.Definitions:
    """Sensors and the schedule of one workload."""
    return dg.Definitions(
        sensors=[_chunks_sensor(jobs), *_report_sensors(jobs), _inbox_sensor(jobs)],
        schedules=[_nightly_schedule(jobs, schedule)],
    )


# ---- chunk keys, and the first run of a batch ----------------------------------------------------


def _chunks_sensor(jobs: WorkloadJobs) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{jobs.workload}_reconcile_chunks",
        jobs=[jobs.run, jobs.submit, jobs.report],
        minimum_interval_seconds=TICK_S,
        # Running from the start: a table that a person ingested in the UI would otherwise wait for
        # ever. It launches what somebody asked for, once, and nothing else.
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Makes the chunks of every ingested batch known as partitions, and launches the LLM "
            "run of batches that were ingested in the UI (input_table with `launch: sensor`), "
            "each once."
        ),
    )
    def reconcile_chunks(
        context: dg.SensorEvaluationContext, ledger: LedgerResource
    ) -> dg.SensorResult:
        found: list[tuple[Realm, Batch]] = []
        for realm in REALMS:
            with ledger.open(realm) as opened, opened.read() as connection:
                found += [(realm, b) for b in list_batches(connection, realm, jobs.workload)]
        existing = set(context.instance.get_dynamic_partitions(jobs.partitions))
        keys = missing_keys([batch for _, batch in found], existing)
        requests = [
            _first_run(jobs, batch, realm)
            for realm, batch in reversed(found)
            if batch.launch == "sensor" and batch.launched_run_id is None
        ]
        partitions = dg.DynamicPartitionsDefinition(name=jobs.partitions)
        return dg.SensorResult(
            run_requests=requests[:MAX_LAUNCHES],
            dynamic_partitions_requests=[partitions.build_add_request(keys)] if keys else [],
        )

    return reconcile_chunks


def _first_run(jobs: WorkloadJobs, batch: Batch, realm: Realm) -> dg.RunRequest:
    options = batch.options.get(RUN_OPTIONS, {})
    submit = options.get("lane", jobs.lane) != "realtime"
    return launch_request(jobs, batch, realm, f"{realm}:{batch.batch_id}", options, submit=submit)


# ---- the report after a run ----------------------------------------------------------------------


def _report_sensors(jobs: WorkloadJobs) -> list[dg.SensorDefinition]:
    """One sensor for each way a run can end: a failed run deserves its report most of all."""
    return [
        _report_sensor(jobs, status)
        for status in (
            dg.DagsterRunStatus.SUCCESS,
            dg.DagsterRunStatus.FAILURE,
            dg.DagsterRunStatus.CANCELED,
        )
    ]


def _report_sensor(jobs: WorkloadJobs, status: dg.DagsterRunStatus) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        name=f"{jobs.workload}_report_after_{status.value.lower()}",
        run_status=status,
        request_job=jobs.report,
        minimum_interval_seconds=TICK_S,
        # Running from the start: a report costs nothing, and a failed run is when a person looks
        # for one.
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Writes the batch report when an LLM run ends as {status.value.lower()}.",
    )
    def report_after_run(
        context: dg.RunStatusSensorContext, ledger: LedgerResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        run = context.dagster_run
        if not is_llm_run(run, jobs):
            yield dg.SkipReason(f"Run {run.run_id} made no LLM calls for {jobs.workload}.")
            return
        if TAG_DOOR in run.tags:
            yield dg.SkipReason(f"Run {run.run_id} gets its report from the door that started it.")
            return
        for realm, batch_id in touched_batches(run, ledger):
            config = {"batch": batch_id, "simulate": realm == "simulated", "run_id": run.run_id}
            yield dg.RunRequest(
                run_key=f"report:{run.run_id}:{realm}:{batch_id}",
                run_config=jobs.run_config("batch_report", config),
                tags=batch_tags(jobs.workload, batch_id, realm),
            )

    return report_after_run


def is_llm_run(run: dg.DagsterRun, jobs: WorkloadJobs) -> bool:
    """Whether a run materializes this workload's llm_outputs, by its job or from its page."""
    if run.job_name == jobs.run.name:
        return True
    return dg.AssetKey([jobs.workload, "llm_outputs"]) in (run.asset_selection or ())


def touched_batches(run: dg.DagsterRun, ledger: LedgerResource) -> list[tuple[Realm, str]]:
    """Batches that a run worked on, by the ledger.

    A run that never got so far is known by its partitions only.
    """
    with ledger.open("live") as opened, opened.read() as connection:
        rows = connection.execute(
            sa.select(runs.c.realm, runs.c.batch_id)
            .where(sa.or_(runs.c.run_id == run.run_id, runs.c.run_id.like(f"{run.run_id}.%")))
            .order_by(runs.c.started_at)
        ).all()
    if rows:
        return list(dict.fromkeys((row.realm, row.batch_id) for row in rows))
    key = run.tags.get(ASSET_PARTITION_RANGE_START_TAG) or run.tags.get(PARTITION_NAME_TAG)
    if key is None:
        return []
    batch_id = batch_of(key)
    return [(realm, batch_id) for realm in REALMS if ledger.find_batch(realm, batch_id)]


# ---- the inbox -----------------------------------------------------------------------------------


def inbox_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time (ns) by name of the dropped files; no links, no hidden files."""
    if not folder.is_dir():
        return {}
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                found[entry.name] = (status.st_size, status.st_mtime_ns)
    return dict(sorted(found.items()))


def complete_files(
    seen: Mapping[str, Sequence[int]], now_files: Mapping[str, tuple[int, int]], now_s: float
) -> list[str]:
    """Files as they were at the last tick, not empty, and not touched for SETTLED_S seconds."""
    return [
        name
        for name, (size, mtime_ns) in now_files.items()
        if size > 0
        and list(seen.get(name, ())) == [size, mtime_ns]
        and now_s - mtime_ns / 1e9 >= SETTLED_S
    ]


def _inbox_sensor(jobs: WorkloadJobs) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{jobs.workload}_inbox",
        job=jobs.ingest,
        minimum_interval_seconds=TICK_S,
        # Stopped: a dropped file leads to paid calls, so a person switches this on.
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=(
            f"A file dropped into `inbox/{jobs.workload}/` of the data folder becomes a batch, and "
            "its LLM run starts. Taken files move to `.taken/` beside it."
        ),
    )
    def inbox(
        context: dg.SensorEvaluationContext, installation: InstallationResource
    ) -> dg.SensorResult:
        folder = installation.settings().inbox / jobs.workload
        found = inbox_files(folder)
        seen = json.loads(context.cursor) if context.cursor else {}
        requests = []
        for name in complete_files(seen, found, time.time()):
            size, mtime_ns = found[name]
            digest = hashlib.sha256(f"{name}\0{size}\0{mtime_ns}".encode()).hexdigest()[:24]
            requests.append(
                dg.RunRequest(
                    run_key=f"inbox:{digest}",
                    run_config=jobs.run_config("input_table", {"source": str(folder / name)}),
                    tags={TAG_WORKLOAD: jobs.workload},
                )
            )
        return dg.SensorResult(
            run_requests=requests[:MAX_LAUNCHES],
            cursor=json.dumps(found),
            skip_reason=None if requests else f"{folder}: no new complete file.",
        )

    return inbox


# ---- the night -----------------------------------------------------------------------------------


def batches_with_work(ledger: Ledger, workload: str) -> list[Batch]:
    """Batches with rows pending, or failed for a reason that another try may mend; oldest first."""
    worth_asking = sa.or_(
        items.c.outcome == Outcome.PENDING.value,
        sa.and_(
            items.c.outcome == Outcome.FAILED.value,
            sa.func.coalesce(items.c.error_kind, "") != INPUT_ERROR,
        ),
    )
    with ledger.read() as connection:
        batches = list_batches(connection, ledger.realm, workload)
        names = set(
            connection.execute(
                sa.select(items.c.batch_id)
                .where(items.c.realm == ledger.realm, worth_asking)
                .distinct()
            ).scalars()
        )
    return [batch for batch in reversed(batches) if batch.batch_id in names]


def _nightly_schedule(jobs: WorkloadJobs, knobs: ScheduleKnobs) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{jobs.workload}_nightly",
        job=jobs.run,
        cron_schedule=knobs.cron,
        execution_timezone=knobs.timezone,
        # Stopped: paid work at night starts because a person wants it to.
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=(
            "Takes up every batch that has pending or failed rows, each as one run over its whole "
            "range: rows that are done cost nothing."
        ),
    )
    def nightly(
        context: dg.ScheduleEvaluationContext,
        installation: InstallationResource,
        ledger: LedgerResource,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        realm = installation.settings().realm()
        with ledger.open(realm) as opened:
            found = batches_with_work(opened, jobs.workload)
        # A batch for export only has nothing to ask; the few rows of a `try` have no partitions.
        found = [b for b in found if not b.options.get(RUN_OPTIONS, {}).get("no_enrich")]
        found = [b for b in found if b.launch != TRIAL]
        if not found:
            yield dg.SkipReason(f"Every row of {jobs.workload} has ended ({realm}).")
        night = context.scheduled_execution_time.isoformat()
        for batch in found[:MAX_LAUNCHES]:
            # By defs.yaml: options given with a table, such as a limit, were for its first run.
            cause = f"nightly:{night}:{realm}:{batch.batch_id}"
            yield launch_request(jobs, batch, realm, cause, {})

    return nightly
