"""Where jobs stand and what came of them: the ledger, the queue, and now and then the providers.

What belongs here: putting the three together for the answers. What does not: SQL, states of the
batch lane (workloads/lane.py), HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, cast
from urllib.parse import quote, urlencode

from batch_pipeline.api.models import (
    GOING_ON,
    JobLine,
    Jobs,
    JobState,
    JobStatus,
    Links,
    ProviderJobView,
    Results,
    RunStatus,
)
from batch_pipeline.api.problems import ApiError, not_found
from batch_pipeline.api.records import (
    CANCELLED,
    ENDED,
    FAILED,
    RUNNING,
    WAITING,
    Records,
    RunRecord,
)
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import TRIAL, Batch, find_batch, list_batches, read_items
from batch_pipeline.ledger.jobs import ProviderJob
from batch_pipeline.ledger.reviews import decisions_of
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.settings import Settings
from batch_pipeline.workloads.base import load_workload
from batch_pipeline.workloads.job_results import rows_of_job
from batch_pipeline.workloads.lane import ID_PREFIX, LaneStatus, read_status, refresh, resolve_job
from batch_pipeline.workloads.results import decision_cells, outputs_of

_LOG = logging.getLogger("batch_pipeline.api")

_MOST_BATCHES = 100_000
_LOOK_EVERY_S = 10.0
_LOOK_WAIT_S = 3.0
_WELL = frozenset({"JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED"})


@dataclass(frozen=True, slots=True)
class Job:
    """What a job id stands for: a batch, a run that has yet to make one, or both."""

    job_id: str
    batch: Batch | None
    record: RunRecord | None


class Desk:
    """Answers about jobs.

    Args:
        settings: the installation's.
        ledger: in the server's realm.
        records: the runs of this API.
    """

    def __init__(self, settings: Settings, ledger: Ledger, records: Records) -> None:
        self._settings = settings
        self._ledger = ledger
        self._records = records
        self._looks = ThreadPoolExecutor(2, "api-look")
        self._guard = threading.Lock()
        self._looked_at: dict[str, float] = {}

    def close(self) -> None:
        """Start no more looks at providers."""
        self._looks.shutdown(wait=False, cancel_futures=True)

    @property
    def simulated(self) -> bool:
        """Whether all of this is simulated."""
        return self._ledger.realm == "simulated"

    def find(self, text: str) -> Job:
        """The job that a path names: by our id, also behind `batch_jobs/`, or a provider's name.

        Raises:
            ApiError: 404.
        """
        name = text.strip("/").removeprefix(ID_PREFIX)
        record = self._records.latest(name)
        with self._ledger.read() as connection:
            batch = find_batch(connection, self._ledger.realm, name)
        if record is not None or batch is not None:
            return Job(name, batch, record)
        try:
            batch = resolve_job(self._ledger, text)
        except UsageError as error:
            raise not_found(f"There is no job {text!r}.") from error
        return Job(batch.batch_id, batch, self._records.latest(batch.batch_id))

    def status(self, job: Job, *, ask_providers: bool = True) -> JobStatus:
        """Where a job stands; providers are asked at most once in ten seconds."""
        if job.batch is None:
            return self._status_without_batch(job)
        found = read_status(self._ledger, job.batch)
        if ask_providers and any(one.is_open for one in found.provider_jobs):
            self._look(job.batch)
            found = read_status(self._ledger, job.batch)
        record = self._records.latest(job.job_id)
        state, message = _state_of(found, record)
        if record is not None and record.state == WAITING:
            message = self._waiting(record)
        return JobStatus(
            job_id=job.job_id,
            batch_name=job.job_id,
            workload=found.workload,
            state=cast(JobState, state),
            done=state not in GOING_ON,
            completed_count=found.completed,
            total_count=found.total,
            progress_percent=found.percent,
            outcomes=found.outcomes,
            created_at=iso(found.created_at),
            updated_at=iso(max(found.updated_at, record.updated_at if record else 0.0)),
            message=message,
            run_id=record.run_id if record else None,
            simulated=self.simulated,
            provider_jobs=[_view(one) for one in found.provider_jobs],
        )

    def results(self, job: Job, path: str, offset: int, limit: int, *, partial: bool) -> Results:
        """A page of a job's rows.

        Args:
            job: the job.
            path: how the caller named it: a provider's job gives its own rows only.
            offset: rows to leave out at the beginning.
            limit: rows at most.
            partial: give what there is, although the job goes on.

        Raises:
            ApiError: 400 `not_ready`.
        """
        status = self.status(job)
        if job.batch is None or not (status.done or partial):
            raise ApiError(
                400,
                "not_ready",
                f"Batch {job.job_id} has not ended: {status.state}, {status.completed_count:,} of "
                f"{status.total_count:,} rows. {status.message}".strip(),
                f"Ask GET {links_of(job.job_id, '').status} until `done` is true"
                + ("." if job.batch is None else ", or add ?partial=true."),
            )
        one = next((one for one in status.provider_jobs if path in _names(one)), None)
        if one is None:
            total = job.batch.row_count
            rows = self._page(job.batch, offset, limit)
        else:
            total = one.item_count
            every = rows_of_job(self._ledger, job.batch, one.job_id)
            rows = list(islice(every, offset, offset + limit))
        following = offset + limit if offset + limit < total else None
        base = f"/batch/results/{quote(path)}/{job.job_id}"
        query = {"offset": following, "limit": limit, **({"partial": "true"} if partial else {})}
        return Results(
            job_id=job.job_id,
            batch_name=job.job_id,
            state=status.state,
            results=rows,
            total_count=total,
            offset=offset,
            next=None if following is None else f"{base}?{urlencode(query)}",
            simulated=self.simulated,
        )

    def jobs(self, offset: int, limit: int, workload: str | None, state: str | None) -> Jobs:
        """A page of all jobs, newest first."""
        every = sorted(self._all_jobs(workload), key=_age)
        if state is None:
            total = len(every)
            lines = [self._line(job) for job in every[offset : offset + limit]]
        else:
            fitting = [line for job in every if (line := self._line(job)).status == state]
            total = len(fitting)
            lines = fitting[offset : offset + limit]
        following = offset + limit if offset + limit < total else None
        query: dict[str, Any] = {"offset": following, "limit": limit}
        query |= {"workload": workload} if workload else {}
        query |= {"state": state} if state else {}
        return Jobs(
            jobs=lines,
            total=total,
            offset=offset,
            next=None if following is None else f"/batch/jobs?{urlencode(query)}",
        )

    def run(self, run_id: str) -> RunStatus:
        """One run.

        Raises:
            ApiError: 404.
        """
        record = self._records.find(run_id)
        if record is None:
            raise not_found(f"There is no run {run_id!r}.", "A submission's answer names its run.")
        message = self._waiting(record) if record.state == WAITING else record.message
        return RunStatus(
            run_id=record.run_id,
            job_id=record.job_id,
            workload=record.workload,
            state=cast(Any, record.state),
            message=message,
            dagster_run_id=record.dagster_run_id,
            created_at=iso(record.created_at),
            updated_at=iso(record.updated_at),
            simulated=self.simulated,
            summary=dict(record.summary),
            links=links_of(record.job_id, record.run_id),
        )

    def _status_without_batch(self, job: Job) -> JobStatus:
        """A list of URLs whose pages are not fetched yet."""
        record = job.record
        assert record is not None
        state = {FAILED: "JOB_STATE_FAILED", CANCELLED: "JOB_STATE_CANCELLED"}.get(
            record.state, "JOB_STATE_PENDING"
        )
        message = record.message
        if record.state == WAITING:
            message = self._waiting(record)
        elif record.state == RUNNING:
            message = "Fetching pages."
        return JobStatus(
            job_id=job.job_id,
            batch_name=job.job_id,
            workload=record.workload,
            state=cast(JobState, state),
            done=state not in GOING_ON,
            completed_count=0,
            total_count=record.item_count,
            progress_percent=0.0,
            outcomes={Outcome.PENDING.value: record.item_count},
            created_at=iso(record.created_at),
            updated_at=iso(record.updated_at),
            message=message,
            run_id=record.run_id,
            simulated=self.simulated,
            provider_jobs=[],
        )

    def _waiting(self, record: RunRecord) -> str:
        before = self._records.before(record)
        return "Waiting for its turn" + (f": {before:,} before it." if before else ".")

    def _look(self, batch: Batch) -> None:
        """Ask the providers, unless that was just done; what they answer late counts next time."""
        now = self._ledger.clock.now()
        with self._guard:
            if now - self._looked_at.get(batch.batch_id, 0.0) < _LOOK_EVERY_S:
                return
            self._looked_at = {
                name: at for name, at in self._looked_at.items() if now - at < _LOOK_EVERY_S
            }
            self._looked_at[batch.batch_id] = now
        try:
            look = self._looks.submit(refresh, self._settings, self._ledger, batch)
            look.result(_LOOK_WAIT_S)
        except TimeoutError:
            pass
        except Exception as error:
            # The status of before is true too, only older.
            _LOG.warning("the providers could not be asked about %s: %s", batch.batch_id, error)

    def _page(self, batch: Batch, offset: int, limit: int) -> list[dict[str, Any]]:
        workload = load_workload(batch.workload)
        with self._ledger.read() as connection:
            items = read_items(connection, self._ledger.realm, batch.batch_id, offset, limit)
        outputs = outputs_of(self._ledger, batch, workload, items)
        decisions = decisions_of(self._ledger, batch.batch_id)
        return [
            {
                **decision_cells(workload, decisions.get(item.ordinal)),
                **workload.deliverable_row(item.row, outputs.get(item.ordinal)),
                "item_id": item.item_id,
                "outcome": item.outcome.value,
                "error": item.error or "",
            }
            for item in items
        ]

    def _all_jobs(self, workload: str | None) -> Iterator[Job]:
        with self._ledger.read() as connection:
            batches = list_batches(connection, self._ledger.realm, workload, _MOST_BATCHES)
        records = {record.job_id: record for record in self._records.jobs()}
        for batch in batches:
            record = records.pop(batch.batch_id, None)
            if batch.launch != TRIAL:
                yield Job(batch.batch_id, batch, record)
        for job_id, record in records.items():
            if workload is None or record.workload == workload:
                yield Job(job_id, None, record)

    def _line(self, job: Job) -> JobLine:
        status = self.status(job, ask_providers=False)
        source = job.batch.source if job.batch else (job.record and job.record.source) or ""
        return JobLine(
            job_id=status.job_id,
            batch_name=status.batch_name,
            workload=status.workload,
            # Where on the server it lies is nobody's business.
            batch_file=source.rstrip("/").rpartition("/")[2],
            submitted_at=status.created_at,
            status=status.state,
            completed_count=status.completed_count,
            total_count=status.total_count,
            simulated=self.simulated,
        )


def links_of(job_id: str, run_id: str) -> Links:
    """Where to go on with a job."""
    return Links(
        status=f"/batch/status/{job_id}",
        results=f"/batch/results/{job_id}/{job_id}",
        run=f"/runs/{run_id}",
        report=f"/batches/{job_id}/report",
    )


def iso(at: float) -> str:
    """A ledger time as `2026-11-22T10:30:00Z`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _state_of(found: LaneStatus, record: RunRecord | None) -> tuple[str, str]:
    """A batch's state, seen with what is known of the process that runs it."""
    if record is None:
        return found.state, found.message
    at_work = found.state in GOING_ON and found.state != "JOB_STATE_PENDING"
    if record.state == WAITING:
        # With provider jobs it is their results that wait to be collected.
        return found.state if at_work else "JOB_STATE_PENDING", ""
    if record.state == RUNNING:
        if found.ended and found.completed == found.total:
            # Also where a run of before did it all, and this one has yet to find out.
            return "JOB_STATE_RUNNING", "All rows have ended; the report and the files come next."
        return found.state if at_work else "JOB_STATE_RUNNING", "A run is at work on it."
    if record.state == FAILED and found.state not in _WELL:
        return "JOB_STATE_FAILED", record.message
    if record.state == CANCELLED and found.state not in _WELL and not at_work:
        return "JOB_STATE_CANCELLED", record.message
    if record.state == ENDED and found.state == "JOB_STATE_PENDING":
        # A run with a limit: what it left waits until somebody asks for it.
        return "JOB_STATE_PAUSED", record.message or "Rows are left; POST /runs goes on."
    return found.state, found.message or record.message


def _view(job: ProviderJob) -> ProviderJobView:
    return ProviderJobView(
        job_id=job.job_id,
        provider=job.provider,
        model=job.model,
        name=job.remote_name,
        state=job.state.value,
        remote_state=job.remote_state,
        item_count=job.item_count,
        submitted_at=iso(job.submitted_at) if job.submitted_at else None,
        ended_at=iso(job.ended_at) if job.ended_at else None,
        error=job.error,
    )


def _names(job: ProviderJobView) -> tuple[str, ...]:
    ours = (job.job_id, f"{ID_PREFIX}{job.job_id}")
    return ours if job.name is None else (*ours, job.name)


def _age(job: Job) -> tuple[float, str]:
    created = job.batch.created_at if job.batch else job.record.created_at if job.record else 0.0
    return -created, job.job_id
