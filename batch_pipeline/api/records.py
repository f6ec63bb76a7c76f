"""What was submitted, on disk before anybody is told so: a small JSON file for each run.

What belongs here: the records, their order, and who takes the next one. What does not: what a run
does (worker.py), rows and results (the ledger).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

WAITING, RUNNING, SUBMITTED = "waiting", "running", "submitted"
ENDED, FAILED, CANCELLED = "ended", "failed", "cancelled"

ACTIVE = frozenset({WAITING, RUNNING})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a job.

    Attributes:
        job_id: the batch.
        number: counts the job's runs, from 1.
        workload: its name.
        source: file of the input; None for a batch that was ingested before.
        fetches: whether the source is a list of URLs, which the run itself fetches.
        digest: SHA-256 of the source's bytes.
        item_count: rows, or URLs.
        knobs: options of the run.
        reading: how to read the source (`encoding`, `delimiter`, the workload's own).
        state: one of the words above.
        message: what there is to say about that.
        dagster_run_id: of its LLM part, once it is known.
        summary: what it came to.
        created_at: UTC seconds.
        updated_at: UTC seconds.
    """

    job_id: str
    number: int
    workload: str
    source: str | None
    fetches: bool
    digest: str
    item_count: int
    knobs: Mapping[str, Any]
    reading: Mapping[str, Any]
    created_at: float
    updated_at: float
    state: str = WAITING
    message: str = ""
    dagster_run_id: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """What users call the run, for example `nov-news.r0001`."""
        return f"{self.job_id}.r{self.number:04d}"

    @property
    def is_active(self) -> bool:
        """Whether it waits for its turn or has it."""
        return self.state in ACTIVE


class Records:
    """The records of one folder; one server at a time works on it.

    A run that was going on when a server ended is waiting again: running it anew pays for nothing
    that is done.

    Args:
        folder: where the files are; created for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed = threading.Condition()
        self._by_job: dict[str, list[RunRecord]] = {}
        make_private(folder)
        for path in sorted(folder.glob("*.r*.json")):
            record = RunRecord(**orjson.loads(path.read_bytes()))
            if record.state == RUNNING:
                record = replace(record, state=WAITING)
            self._by_job.setdefault(record.job_id, []).append(record)
        for runs in self._by_job.values():
            runs.sort(key=lambda record: record.number)

    def latest(self, job_id: str) -> RunRecord | None:
        """The newest run of a job."""
        with self._changed:
            runs = self._by_job.get(job_id)
            return runs[-1] if runs else None

    def find(self, run_id: str) -> RunRecord | None:
        """The run of that id."""
        job_id, _, _ = run_id.rpartition(".r")
        with self._changed:
            every = self._by_job.get(job_id, ())
            return next((record for record in every if record.run_id == run_id), None)

    def jobs(self) -> list[RunRecord]:
        """The newest run of each job."""
        with self._changed:
            return [runs[-1] for runs in self._by_job.values()]

    def counts(self) -> tuple[int, int]:
        """Runs that wait, and runs that go on."""
        with self._changed:
            states = [runs[-1].state for runs in self._by_job.values()]
        return states.count(WAITING), states.count(RUNNING)

    def before(self, record: RunRecord) -> int:
        """Waiting runs whose turn comes earlier."""
        with self._changed:
            return sum(
                runs[-1].state == WAITING and runs[-1].created_at < record.created_at
                for runs in self._by_job.values()
            )

    def add(self, record: RunRecord) -> RunRecord:
        """Write down a new run of a job and let a worker have it; gives it with its number."""
        with self._changed:
            runs = self._by_job.setdefault(record.job_id, [])
            record = replace(record, number=len(runs) + 1)
            self._write(record)
            runs.append(record)
            self._changed.notify()
        return record

    def change(self, record: RunRecord, **changes: Any) -> RunRecord | None:
        """Write down what became of a run; None where its state is no longer that of `record`."""
        with self._changed:
            runs = self._by_job[record.job_id]
            if runs[record.number - 1].state != record.state:
                return None
            record = replace(runs[record.number - 1], **changes)
            self._write(record)
            runs[record.number - 1] = record
            self._changed.notify()
        return record

    def take(self, now: float, timeout_s: float) -> RunRecord | None:
        """The run that has waited longest, marked as running; None when none came in time."""
        with self._changed:
            waiting = self._next()
            if waiting is None:
                self._changed.wait(timeout_s)
                waiting = self._next()
            if waiting is None:
                return None
            return self.change(waiting, state=RUNNING, updated_at=now)

    def wake(self) -> None:
        """Let everybody look again."""
        with self._changed:
            self._changed.notify_all()

    def _next(self) -> RunRecord | None:
        waiting = [runs[-1] for runs in self._by_job.values() if runs[-1].state == WAITING]
        return min(waiting, key=lambda record: (record.created_at, record.job_id), default=None)

    def _write(self, record: RunRecord) -> None:
        # A job id is a safe file name: check_batch_id saw to that.
        write_private(self._folder / f"{record.run_id}.json", orjson.dumps(asdict(record)))


def make_private(folder: Path) -> None:
    """Create a folder, and those above it, for its owner only."""
    before = os.umask(0o077)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)


def write_private(path: Path, content: bytes) -> None:
    """Write a whole file for its owner only, on disk when this returns."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let a new name in a folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
