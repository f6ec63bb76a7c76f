"""Results by the name of a job: whose they are, whether they are ready, and which rows they are.

What belongs here: what every door must refuse or hand out alike. What does not: files (sinks/),
where a job stands (lane.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batch_pipeline.errors import BatchPipelineError, UsageError
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.jobs import find_job, find_job_by_name, list_jobs
from batch_pipeline.ledger.reviews import decisions_of
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import JobState
from batch_pipeline.sinks.exports import REST, job_of_attempts
from batch_pipeline.workloads.base import load_workload
from batch_pipeline.workloads.lane import ID_PREFIX, LaneStatus, resolve_job
from batch_pipeline.workloads.results import decision_cells, stream_results


class NotReadyError(BatchPipelineError):
    """Results that were asked for before their job has ended."""


def named_job(ledger: Ledger, job: str, name: str) -> Batch:
    """The batch of a job, whose name must be given with it.

    Raises:
        UsageError: there is no such job, or the name is another batch's.
    """
    batch = resolve_job(ledger, job.removesuffix(REST))
    if name != batch.batch_id:
        raise UsageError(
            f"Job {job} belongs to the batch {batch.batch_id!r}, not to {name!r}.",
            f"Use `batch-pipeline batches results {job} {batch.batch_id}`.",
        )
    return batch


def require_ended(status: LaneStatus) -> None:
    """Refuse to take half the results for all of them.

    Raises:
        NotReadyError: the job has not ended.
    """
    if status.ended:
        return
    program, job = "batch-pipeline batches", status.job_id
    answered = f"{status.completed:,} of {status.total:,} rows"
    if any(one.state is JobState.ENDED for one in status.provider_jobs):
        raise NotReadyError(
            f"Job {job} is not collected yet: {status.state}, {answered} are answered.",
            f"`{program} collect {job}` collects it, or the sensor of `make dev`.",
        )
    raise NotReadyError(
        f"Job {job} is not done: {status.state}, {answered}.",
        f"`{program} status {job}` says what it waits for; `{program} results {job} "
        f"{status.batch_id} --partial` takes what there is.",
    )


def rows_of_job(ledger: Ledger, batch: Batch, job: str) -> Iterator[dict[str, Any]]:
    """Rows of a batch as its deliverables have them, with `item_id`, `outcome` and `error`.

    Args:
        ledger: the ledger.
        batch: the batch.
        job: its id for all rows; a provider job's (ours or the provider's) for those that it
            answered; with `.rest` at its end for those that no provider job answered.
    """
    name = job.strip().strip("/")
    with ledger.read() as connection:
        jobs = list_jobs(connection, ledger.realm, batch_id=batch.batch_id)
        one = find_job(connection, ledger.realm, name.removeprefix(ID_PREFIX))
        one = one or find_job_by_name(connection, ledger.realm, name)
    wanted = None if one is None else one.job_id
    by_attempt = job_of_attempts(ledger, jobs) if wanted or name.endswith(REST) else {}
    workload = load_workload(batch.workload)
    decisions = decisions_of(ledger, batch.batch_id)
    for result in stream_results(ledger, batch, workload):
        item = result.item
        answered_by = by_attempt.get(item.attempt_id or "")
        if by_attempt and answered_by != wanted:
            continue
        yield {
            "item_id": item.item_id,
            "outcome": item.outcome.value,
            "error": item.error or "",
            **decision_cells(workload, decisions.get(item.ordinal)),
            **workload.deliverable_row(item.row, result.output),
        }
