"""The sensor that looks after provider jobs: the only thing of ours that runs until they end.

What belongs here: when to look, and which runs to launch for what is due. What does not: looking
itself and what counts as due (workloads/lane.py), submitting and collecting (materialize.py).
"""

import dagster as dg

from batch_pipeline.component.automation import (
    MAX_LAUNCHES,
    TICK_S,
    WorkloadJobs,
    launch_request,
)
from batch_pipeline.component.resources import REALMS, InstallationResource, LedgerResource
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.jobs import list_jobs
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import JobState
from batch_pipeline.providers.wire import redact
from batch_pipeline.settings import Settings
from batch_pipeline.workloads.lane import due_batches, look

_LOOK_S = 40.0
"""Ticks are cut at 60 s."""


def build_polling(jobs: WorkloadJobs) -> dg.Definitions:
    """The sensor of one workload's provider jobs."""
    return dg.Definitions(sensors=[_poll_sensor(jobs)])


def _poll_sensor(jobs: WorkloadJobs) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{jobs.workload}_poll_jobs",
        jobs=[jobs.run, jobs.submit],
        minimum_interval_seconds=TICK_S,
        # Running from the start: what is submitted is paid, and its results are kept for days only.
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Asks the providers how submitted jobs stand, less often the older they are, and "
            "starts a run for each batch whose jobs have ended, or whose rows wait for room that "
            "has become free. Between the ticks nothing runs."
        ),
    )
    def poll_jobs(
        context: dg.SensorEvaluationContext,
        installation: InstallationResource,
        ledger: LedgerResource,
    ) -> dg.SensorResult:
        settings = installation.settings()
        requests: list[dg.RunRequest] = []
        said: list[str] = []
        for realm in REALMS:
            with ledger.open(realm) as opened:
                looked, problems = look_at_due_jobs(settings, opened, jobs.workload)
                if looked:
                    said.append(f"{realm}: looked at {looked} jobs")
                said += [f"{realm} {provider}: {why}" for provider, why in problems.items()]
                for due in due_batches(opened, jobs.workload):
                    said.append(f"{due.batch.batch_id}: {due.why}")
                    key = f"lane:{realm}:{due.batch.batch_id}:{due.cause}"
                    requests.append(
                        launch_request(jobs, due.batch, realm, key, due.knobs, submit=due.submit)
                    )
        for line in said:
            context.log.info(redact(line))
        return dg.SensorResult(
            run_requests=requests[:MAX_LAUNCHES],
            skip_reason=None if requests else redact("; ".join(said) or "No provider job is due."),
        )

    return poll_jobs


def look_at_due_jobs(
    settings: Settings, ledger: Ledger, workload: str
) -> tuple[int, dict[str, str]]:
    """Ask the providers about the jobs whose time for a look has come.

    Returns:
        How many were looked at, and what went wrong, by provider.
    """
    with ledger.read() as connection:
        now = ledger.now(connection)
        due = [
            job
            for job in list_jobs(
                connection, ledger.realm, workload=workload, states=[JobState.SUBMITTED]
            )
            if job.next_poll_at <= now
        ]
    try:
        return len(due), look(settings, ledger, due, timeout_s=_LOOK_S)
    except BatchPipelineError as error:
        return 0, {"providers": str(error)}
