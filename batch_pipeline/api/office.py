"""The parts of one server, put together: what the endpoints work with.

What belongs here: building, starting and ending them. What does not: HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from filelock import FileLock, Timeout

from batch_pipeline.api.config import ApiConfig
from batch_pipeline.api.follower import Follower
from batch_pipeline.api.problems import ApiError, not_found
from batch_pipeline.api.reading import Desk, Job
from batch_pipeline.api.records import SUBMITTED, Records, make_private
from batch_pipeline.api.submitting import Submissions
from batch_pipeline.api.worker import Worker, collecting, has_open_jobs
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.settings import Settings
from batch_pipeline.workloads.lane import cancel
from batch_pipeline.workloads.runner import open_ledger


@dataclass(frozen=True, slots=True)
class Office:
    """One server's parts.

    Attributes:
        settings: the installation's.
        config: the server's.
        ledger: in the server's realm.
        records: runs of this API.
        submissions: takes batches.
        desk: answers about them.
        worker: carries runs out.
        follower: takes up what comes back from Batch APIs.
        lock: held while it is open: one server works on a folder.
    """

    settings: Settings
    config: ApiConfig
    ledger: Ledger
    records: Records
    submissions: Submissions
    desk: Desk
    worker: Worker
    follower: Follower
    lock: FileLock

    @classmethod
    def open(cls, settings: Settings, config: ApiConfig) -> Self:
        """Take the folder, read what waits, and begin with it.

        Raises:
            UsageError: another server works with this data folder.
        """
        folder = settings.data / "uploads" / "runs" / config.realm
        make_private(folder)
        lock = FileLock(folder / ".serving")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"Another API server works with {settings.data} in the {config.realm} realm.",
                "Use that one, end it, or set BATCH_PIPELINE_DATA to another folder.",
            ) from error
        ledger = open_ledger(settings, config.realm)
        records = Records(folder)
        office = cls(
            settings=settings,
            config=config,
            ledger=ledger,
            records=records,
            submissions=Submissions(settings, config, ledger, records),
            desk=Desk(settings, ledger, records),
            worker=Worker(settings, config, ledger, records, folder),
            follower=Follower(settings, ledger, records),
            lock=lock,
        )
        office.worker.start()
        office.follower.start()
        return office

    def close(self) -> None:
        """End runs cleanly and give the folder back."""
        self.follower.stop()
        self.worker.stop()
        self.desk.close()
        self.ledger.close()
        self.lock.release()

    def cancel(self, job: Job) -> tuple[int, str]:
        """End a job: take it out of the queue, stop its run, ask providers to cancel.

        Returns:
            Provider jobs that were asked to end, and what to tell the caller.

        Raises:
            ApiError: 409 where there is nothing to cancel, 404 where this server has no part in it.
        """
        status = self.desk.status(job)
        under_way = job.batch is not None and has_open_jobs(self.ledger, job.job_id)
        # What providers have answered is paid: a job with them stays in the queue to be collected.
        if not under_way and self.submissions.cancel(job.job_id):
            return 0, "It was waiting, and is taken out of the queue."
        record = self.records.latest(job.job_id)
        stopped = record is not None and self.worker.cancel(record)
        asked = 0
        if job.batch is not None and under_way:
            asked = cancel(self.settings, self.ledger, job.batch)
            if record is not None and not stopped:
                self.records.change(record, knobs=collecting(record.knobs))
        if stopped or asked:
            return asked, "Finished rows are kept; what was answered by now is still collected."
        if record is None and status.state == "JOB_STATE_RUNNING":
            raise not_found(
                f"Batch {job.job_id} is run by another door.",
                "Terminate its run in the Dagster UI, or with Ctrl-C where it was started.",
            )
        if record is not None and record.state == SUBMITTED:
            return 0, "Its provider jobs have ended and are being collected."
        raise ApiError(
            409, "conflict", f"Batch {job.job_id} has ended: {status.state}.", "There is no need."
        )
