"""Carries waiting runs out, a few at once, each in a process of its own.

What belongs here: starting, watching and ending those processes. What does not: what they do
(child.py): Dagster runs like those of the command line, which outlive a server that is killed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from batch_pipeline.api import child
from batch_pipeline.api.config import TOKEN_VARIABLE, ApiConfig
from batch_pipeline.api.records import (
    CANCELLED,
    ENDED,
    FAILED,
    RUNNING,
    SUBMITTED,
    WAITING,
    Records,
    RunRecord,
    make_private,
)
from batch_pipeline.ledger.batches import find_batch
from batch_pipeline.ledger.jobs import list_jobs
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import JobState
from batch_pipeline.settings import DATA_VARIABLE, LEDGER_VARIABLE, Settings

_LOG = logging.getLogger("batch_pipeline.api")

_LOOK_S = 0.5
_STOP_S = 60.0
_COLLECT_ONLY = {"limit": 0}
"""Knobs of a run that asks about nothing new."""


class Worker:
    """Threads that each watch one run.

    Args:
        settings: the installation's.
        config: the server's.
        ledger: in the server's realm.
        records: where runs wait.
        folder: for locks and for what runs print.
    """

    def __init__(
        self,
        settings: Settings,
        config: ApiConfig,
        ledger: Ledger,
        records: Records,
        folder: Path,
    ) -> None:
        self._settings = settings
        self._config = config
        self._ledger = ledger
        self._records = records
        self._folder = folder
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._cancelled: set[str] = set()
        self._threads = [
            threading.Thread(target=self._serve, name=f"api-run-{n}", daemon=True)
            for n in range(config.runs)
        ]

    def start(self) -> None:
        """Begin with what waits."""
        make_private(self._folder)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all runs cleanly, as Ctrl-C does; they wait for the next server."""
        self._stopping.set()
        self._records.wake()
        with self._guard:
            for process in self._processes.values():
                _interrupt(process)
        deadline = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._guard:
            for process in self._processes.values():
                # What is paid is in the ledger, whatever moment this is.
                process.kill()

    def cancel(self, record: RunRecord) -> bool:
        """End a run that goes on, cleanly; False where it does not."""
        with self._guard:
            if record.state != RUNNING:
                return False
            self._cancelled.add(record.run_id)
            process = self._processes.get(record.run_id)
            if process is not None:
                _interrupt(process)
            return True

    def _serve(self) -> None:
        while not self._stopping.is_set():
            record = self._records.take(self._now(), _LOOK_S)
            if record is None:
                continue
            try:
                self._carry(record)
            except Exception:
                _LOG.exception("run %s broke off", record.run_id)
                self._close(record, FAILED, "The server could not carry it out; its log says why.")

    def _carry(self, record: RunRecord) -> None:
        with self._lock(record.job_id) as lock:
            if lock is None:
                self._close(record, WAITING, "")
                return
            out = self._run(record, lock)
        if out is None:
            self._close(record, WAITING, "")
            return
        code, document = out
        with self._guard:
            cancelled = record.run_id in self._cancelled
            self._cancelled.discard(record.run_id)
        state, message = _judge(code, document, cancelled, self._stopping.is_set())
        more: dict[str, Any] = {}
        if state == CANCELLED and has_open_jobs(self._ledger, record.job_id):
            # Providers were asked to cancel; what they answered until then is to be collected.
            state = SUBMITTED
            more["knobs"] = collecting(record.knobs)
        if "run_id" in document:
            more |= {"dagster_run_id": document["run_id"], "summary": document["summary"]}
        self._close(record, state, message, **more)

    def _run(self, record: RunRecord, lock: int) -> tuple[int, dict[str, Any]] | None:
        """The process's exit code and its one JSON object; None when the server is stopping."""
        log = self._folder / f"{record.run_id}.log"
        with open(log, "wb", opener=_private) as stderr:
            with self._guard:
                if self._stopping.is_set():
                    return None
                if record.run_id in self._cancelled:
                    return -signal.SIGINT, {}
                process = subprocess.Popen(
                    [sys.executable, "-m", child.__name__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=self._environment(),
                    # A lock that the run holds too: it is free only once the run is gone, even if
                    # this server is killed.
                    pass_fds=(lock,),
                    # Ctrl-C at the server's terminal is passed on by stop(), once.
                    start_new_session=True,
                )
                self._processes[record.run_id] = process
            try:
                out, _ = process.communicate(self._request(record))
            finally:
                with self._guard:
                    del self._processes[record.run_id]
        return process.returncode, _document(out)

    def _request(self, record: RunRecord) -> bytes:
        """The fields of a RunRequest."""
        # Pages and files may have changed since: the batch counts as it was ingested.
        known = self._is_known(record.job_id)
        return orjson.dumps(
            {
                "workload": record.workload,
                "source": None if known else record.source,
                "batch_id": record.job_id,
                "knobs": dict(record.knobs),
                "reading": {} if known else dict(record.reading),
                "simulate": self._config.realm == "simulated",
            }
        )

    def _is_known(self, job_id: str) -> bool:
        with self._ledger.read() as connection:
            return find_batch(connection, self._ledger.realm, job_id) is not None

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        return {
            **kept,
            DATA_VARIABLE: str(self._settings.data),
            LEDGER_VARIABLE: self._settings.ledger_url,
        }

    def _close(self, record: RunRecord, state: str, message: str, **more: Any) -> None:
        self._records.change(record, state=state, message=message, updated_at=self._now(), **more)

    def _now(self) -> float:
        return self._ledger.clock.now()

    @contextmanager
    def _lock(self, job_id: str) -> Iterator[int | None]:
        """Hold a job's lock; None when the server stops while a run of a server before has it."""
        path = self._folder / f"{job_id}.lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if self._stopping.wait(_LOOK_S):
                        yield None
                        return
                    continue
                yield handle
                return
        finally:
            os.close(handle)


def collecting(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs of a cancelled run: what providers have answered is collected, nothing goes up."""
    return {**knobs, **_COLLECT_ONLY}


def has_open_jobs(ledger: Ledger, batch_id: str) -> bool:
    """Whether a batch has provider jobs that are not collected."""
    with ledger.read() as connection:
        jobs = list_jobs(connection, ledger.realm, batch_id=batch_id)
    return any(job.state not in (JobState.COLLECTED, JobState.ABANDONED) for job in jobs)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)


def _document(out: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(out)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _judge(
    code: int, document: Mapping[str, Any], cancelled: bool, stopping: bool
) -> tuple[str, str]:
    """What a run's end means: the record's next state, and what to say about it."""
    status = document.get("status")
    interrupted = code == -signal.SIGINT or status == "interrupted"
    if interrupted and cancelled:
        return CANCELLED, "Cancelled. Finished rows are kept."
    if interrupted and stopping:
        return WAITING, ""
    if interrupted:
        return FAILED, "It was interrupted. Finished rows are kept; run it again to go on."
    if "error" in document:
        return FAILED, str(document["error"])
    if status is None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return FAILED, (
            f"The run broke off ({how}); the server keeps what it printed. Finished rows are kept: "
            "run it again."
        )
    if status == "submitted":
        return SUBMITTED, "Its rows are in provider jobs, and are collected once these have ended."
    return ENDED, str(document.get("message", ""))
