"""Takes batches up again whose provider jobs have something for us, where no daemon does it.

What belongs here: when a run that left its rows with a Batch API gets its next turn. What does not:
what is due (workloads/lane.py), the run (worker.py).
"""

from __future__ import annotations

import logging
import threading

from batch_pipeline.api.records import ENDED, SUBMITTED, WAITING, Records, RunRecord
from batch_pipeline.ledger.batches import find_batch
from batch_pipeline.ledger.jobs import list_jobs
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import JobState
from batch_pipeline.settings import Settings
from batch_pipeline.workloads.lane import due_batches, look, read_status

_LOG = logging.getLogger("batch_pipeline.api")

_EVERY_S = 5.0


class Follower:
    """A thread that looks after submitted runs, as often as each job is due to be looked at.

    A sensor of the Dagster daemon does the same; whoever is first has the batch, and the other one
    finds its rows done.

    Args:
        settings: the installation's.
        ledger: in the server's realm.
        records: the runs of this API.
    """

    def __init__(self, settings: Settings, ledger: Ledger, records: Records) -> None:
        self._settings = settings
        self._ledger = ledger
        self._records = records
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="api-follow", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a look at a provider may still be on its way."""
        self._stopping.set()
        self._thread.join(1.0)

    def tick(self) -> None:
        """Look once."""
        mine = {run.job_id: run for run in self._records.jobs() if run.state == SUBMITTED}
        if not mine:
            return
        with self._ledger.read() as connection:
            now = self._ledger.now(connection)
            jobs = list_jobs(connection, self._ledger.realm, states=[JobState.SUBMITTED])
        look(
            self._settings,
            self._ledger,
            [job for job in jobs if job.batch_id in mine and job.next_poll_at <= now],
        )
        for workload in {run.workload for run in mine.values()}:
            for due in due_batches(self._ledger, workload):
                run = mine.pop(due.batch.batch_id, None)
                if run is not None:
                    self._records.change(run, state=WAITING, message=due.why, updated_at=now)
        for run in mine.values():
            if self._has_ended(run):
                self._records.change(run, state=ENDED, message="", updated_at=now)

    def _has_ended(self, run: RunRecord) -> bool:
        """Whether somebody else has collected it."""
        with self._ledger.read() as connection:
            batch = find_batch(connection, self._ledger.realm, run.job_id)
        return batch is not None and read_status(self._ledger, batch).ended

    def _serve(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            try:
                self.tick()
            except Exception:
                _LOG.exception("provider jobs could not be looked at")
