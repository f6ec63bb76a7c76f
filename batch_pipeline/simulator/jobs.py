"""Batch jobs: how long each takes, how it will end, and what stage it is at.

What does not live here: the answers to its lines (`processing`), the providers' words (`batch_*`).
"""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from batch_pipeline.simulator.config import BatchSetting, FaultRule
from batch_pipeline.simulator.draws import draw
from batch_pipeline.simulator.enqueued import Enqueued
from batch_pipeline.simulator.jobclock import JobClock
from batch_pipeline.simulator.lines import Scan, offsets_of
from batch_pipeline.simulator.storage import Storage
from batch_pipeline.simulator.wire import Json

Ending = Literal["succeeded", "partial", "failed", "cancelled", "expired"]
Stage = Literal["pending", "running", "finishing", "cancelling", "ended"]

_KIND = "job"
_DAY_S = 86_400.0
_EXPIRES_S = {"google": 2 * _DAY_S}
_KEPT_S = {"anthropic": 29 * _DAY_S, "google": 2 * _DAY_S, "openai": 30 * _DAY_S}
# The last part of the running time, in which all lines are answered and the job is closed.
_FINISHING_SHARE = 0.1
# How long a cancelled job takes to end, as a part of its duration.
_CANCEL_SHARE = 0.05


@dataclass
class Job:
    """One batch job. Times are seconds of the job clock.

    Attributes:
        ordinal: 1, 2, 3 … since the last reset: draws depend on it, so that every run is the same.
        owner: name of the key that it belongs to; ends with the key's last four characters.
        model: the one that it asks; with several, the one with most tokens.
        start_at: when the first line can be answered, after pending or validation.
        lines_at: when the last line is due.
        ends_at: when it ends, if the answers are there by then.
        expires_at: when it would end unfinished.
        lines: how many it has; `target` of them are answered, `good` of those without a job fault.
        tokens: enqueued, per model.
        about: the provider's own fields of it.
        errors: why it failed, with `code`, `line`, `message`, `param`.
        ending: how it ends, as far as is planned.
        deleted: the client has deleted it; a running one runs on, as at Gemini.
        position: how many lines are written, in the job's own order.
        outputs: ids of the files that it left, `output` and `error`.
    """

    id: str
    ordinal: int
    provider: str
    owner: str
    model: str
    created_at: float
    start_at: float
    lines_at: float
    ends_at: float
    expires_at: float
    kept_s: float
    lines: int
    target: int
    good: int
    tokens: dict[str, int]
    about: Json
    shuffle: bool
    errors: list[Json] = field(default_factory=list)
    ending: Ending = "succeeded"
    ended: bool = False
    cancel_at: float | None = None
    deleted: bool = False
    fault: str | None = None
    position: int = 0
    succeeded: int = 0
    failed: int = 0
    output_size: int = 0
    error_size: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    outputs: dict[str, str] = field(default_factory=dict)

    def due(self, now: float) -> int:
        """How many lines should be answered by a moment."""
        if now >= self.lines_at:
            return self.target
        if now < self.start_at:
            return 0
        passed = (now - self.start_at) / (self.lines_at - self.start_at)
        return min(self.target, int(self.lines * passed))

    def next_at(self) -> float:
        """When there is something to do for it next."""
        if self.position >= self.target:
            return self.ends_at
        each = (self.lines_at - self.start_at) / self.lines
        return self.start_at + (self.position + 1) * each

    def stage(self, now: float) -> Stage:
        """What it is doing."""
        if self.ended:
            return "ended"
        if self.cancel_at is not None:
            return "cancelling"
        if now < self.start_at:
            return "pending"
        return "running" if self.position < self.target or now < self.lines_at else "finishing"

    @property
    def order(self) -> list[int]:
        """The lines in the order in which they are answered and reported."""
        order = list(range(self.lines))
        if self.shuffle:
            Random(self.ordinal).shuffle(order)
        return order


@dataclass(frozen=True)
class JobFaults:
    """What goes wrong with a job as a whole."""

    fail: FaultRule | None = None
    expire: FaultRule | None = None
    partial: FaultRule | None = None


def plan(
    job_id: str,
    ordinal: int,
    *,
    provider: str,
    owner: str,
    scan: Scan,
    about: Json,
    setting: BatchSetting,
    seed: str,
    now: float,
    faults: JobFaults,
    in_order: bool = False,
) -> Job:
    """Decide how a job will go.

    Args:
        job_id: the provider's name of it.
        ordinal: of the job since the last reset.
        provider: whose it is.
        owner: of the key.
        scan: its input.
        about: the provider's own fields.
        setting: how long it takes.
        seed: of the draws.
        now: when it is created.
        faults: what goes wrong.
        in_order: results keep the order of the requests, whatever the setting says.
    """
    drawn = 2 * draw(seed, "duration", ordinal) - 1
    duration = setting.duration_s + setting.per_line_s * scan.lines
    duration *= 1 + setting.duration_jitter * drawn
    start_at = now + duration * setting.pending_share
    ends_at = now + duration
    job = Job(
        id=job_id,
        ordinal=ordinal,
        provider=provider,
        owner=owner,
        model=scan.model,
        created_at=now,
        start_at=start_at,
        lines_at=ends_at - (ends_at - start_at) * _FINISHING_SHARE,
        ends_at=ends_at,
        expires_at=now + (setting.expires_after_s or _EXPIRES_S.get(provider, _DAY_S)),
        kept_s=setting.results_kept_s or _KEPT_S[provider],
        lines=scan.lines,
        target=scan.lines,
        good=scan.lines,
        # What fails validation was never let in.
        tokens={} if scan.problems else dict(scan.tokens),
        about=about,
        shuffle=setting.shuffle and not in_order,
        errors=scan.problems,
    )
    _spoil(job, faults)
    return job


def _spoil(job: Job, faults: JobFaults) -> None:
    if faults.fail is not None and not job.errors:
        job.fault = faults.fail.kind
        if job.provider == "anthropic":
            # Its batches end, they do not fail: every line does.
            job.good = 0
        else:
            message = "The batch failed because of an internal error."
            code = faults.fail.code or "server_error"
            job.errors = [{"code": code, "line": None, "message": message, "param": None}]
    if job.errors:
        job.ending, job.target = "failed", 0
        job.ends_at = job.lines_at = job.start_at
    elif faults.expire is not None:
        job.fault, job.ending = faults.expire.kind, "expired"
        job.target = int(job.lines * faults.expire.part)
        job.expires_at = job.ends_at
    elif job.ends_at > job.expires_at:
        job.ending = "expired"
        job.target = job.due(job.expires_at)
        job.ends_at = job.expires_at
        job.lines_at = min(job.lines_at, job.ends_at)
    elif faults.partial is not None:
        job.fault, job.ending = faults.partial.kind, "partial"
        job.good = int(job.lines * faults.partial.part)


class Jobs:
    """All jobs of a state folder, those of an earlier process included."""

    def __init__(self, storage: Storage, folder: Path, clock: JobClock) -> None:
        self._storage = storage
        self._folder = folder
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._offsets: dict[str, array[int]] = {}
        self._orders: dict[str, list[int]] = {}
        self.enqueued = Enqueued(storage)
        self.open: dict[str, Job] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for record in storage.all(_KIND):
            job = Job(**record)
            self._jobs[job.id] = job
            if not job.ended:
                self._resume(job)

    def _resume(self, job: Job) -> None:
        self._open(job, offsets_of(self.path(job, "in")))
        # What was written after the job was last saved is written again.
        for name, size in (("out", job.output_size), ("err", job.error_size)):
            path = self.path(job, name)
            if path.exists():
                with path.open("r+b") as target:
                    target.truncate(size)

    def _open(self, job: Job, offsets: array[int]) -> None:
        self.open[job.id] = job
        self._offsets[job.id] = offsets
        self._orders[job.id] = job.order

    @property
    def next_ordinal(self) -> int:
        """The ordinal of the job that is made next."""
        return max((job.ordinal for job in self._jobs.values()), default=0) + 1

    def path(self, job: Job, name: str) -> Path:
        """Return the job's file `in`, `out` or `err`."""
        # Ids are this simulator's own: no part of a path comes from a client.
        return self._folder / f"{job.id}.{name}"

    def place(self, job: Job, position: int) -> tuple[int, int]:
        """Return index and offset of the line at a position of the job's order."""
        index = self._orders[job.id][position]
        return index, self._offsets[job.id][index]

    def add(self, job: Job, content: Path, offsets: array[int]) -> None:
        """Take a job in; its input is at `content`, which is taken over."""
        content.replace(self.path(job, "in"))
        self._jobs[job.id] = job
        self._open(job, offsets)
        self._count(job.provider, job.owner, job.tokens, 1)
        self.save(job)

    def _count(self, provider: str, owner: str, tokens: Mapping[str, int], sign: int) -> None:
        for model, size in tokens.items():
            self.enqueued.change((provider, owner, model), sign * size, sign, self._clock.now())

    def save(self, job: Job) -> None:
        """Write a job's state down."""
        self._storage.put(_KIND, job.id, asdict(job))

    def get(self, provider: str, owner: str, job_id: str) -> Job | None:
        """Return a job of an account."""
        job = self._jobs.get(job_id)
        if job is None or job.deleted or (job.provider, job.owner) != (provider, owner):
            return None
        return job

    def of(self, provider: str, owner: str) -> list[Job]:
        """Return an account's jobs, the newest first."""
        return [
            job
            for job in reversed(self._jobs.values())
            if not job.deleted and (job.provider, job.owner) == (provider, owner)
        ]

    def cancel(self, job: Job, *, at_once: bool) -> None:
        """Stop an open job: what is due by now is still answered."""
        now = self._clock.now()
        takes = 0.0 if at_once else (job.ends_at - job.created_at) * _CANCEL_SHARE
        job.target = max(job.position, job.due(now))
        job.ending, job.errors = "cancelled", []
        job.cancel_at = now
        job.lines_at = now
        job.ends_at = now + takes
        self.save(job)

    def end(self, job: Job) -> None:
        """Close a job whose lines are all written."""
        job.ended = True
        del self.open[job.id], self._offsets[job.id], self._orders[job.id]
        self._count(job.provider, job.owner, job.tokens, -1)
        self.path(job, "in").unlink(missing_ok=True)
        self.save(job)

    def remove(self, job: Job) -> None:
        """Delete a job; an open one runs on unseen."""
        job.deleted = True
        self.save(job)

    def kept(self, job: Job, since: float) -> bool:
        """Say whether the results of a job are still there."""
        return self._clock.now() < since + job.kept_s

    def clear(self) -> None:
        """Forget all jobs; the storage is cleared by its owner."""
        for known in (self._jobs, self._offsets, self._orders, self.open):
            known.clear()
        self.enqueued.clear()
        shutil.rmtree(self._folder)
        self._folder.mkdir()
