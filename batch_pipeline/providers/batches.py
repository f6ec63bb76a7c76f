"""The seam to the providers' Batch APIs: jobs, their states, and what their lines came to.

What belongs here: provider-neutral types and the protocol that each provider's client follows. What
does not: the clients (batches_*.py), what goes up when (engine/lanes), and what is recorded
(ledger/jobs.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from batch_pipeline.providers.base import WireCall, WireReply


class JobState(StrEnum):
    """Where a provider says that a job stands, in one set of words for all of them."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    PARTIAL = "partially_succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # a word that nobody knew when this was written

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of the job."""
        return self in _ENDED


_ENDED = frozenset(
    {
        JobState.SUCCEEDED,
        JobState.PARTIAL,
        JobState.FAILED,
        JobState.EXPIRED,
        JobState.CANCELLED,
    }
)


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """A job as its provider shows it.

    Attributes:
        name: the provider's own id, for example `batches/abc` or `msgbatch_abc`.
        state: where it stands.
        label: the name that we gave it; empty where the provider keeps none (Anthropic).
        created_at: UTC seconds.
        ended_at: UTC seconds; None while it goes on or where the provider does not say.
        expires_at: UTC seconds when the provider gives up; None where it does not say.
        total: lines in it; None where the provider does not say (yet).
        succeeded: lines answered so far; None where the provider does not say.
        failed: lines that failed, expired or were cancelled so far; None as above.
        results: where its results are, as `results` needs them; empty while there are none.
        error_code: why it failed, the provider's code.
        error: the same in the provider's words, without keys.
    """

    name: str
    state: JobState
    label: str = ""
    created_at: float = 0.0
    ended_at: float | None = None
    expires_at: float | None = None
    total: int | None = None
    succeeded: int | None = None
    failed: int | None = None
    results: tuple[str, ...] = ()
    error_code: str = ""
    error: str = ""


class LineEnd(StrEnum):
    """What came of one line of a job."""

    ANSWERED = "answered"  # a reply with status 200
    ERRORED = "errored"  # the provider refused this line, or failed at it
    EXPIRED = "expired"  # the job ran out of time before the line was asked: not billed
    CANCELLED = "cancelled"  # the job was cancelled before the line was asked: not billed


@dataclass(frozen=True, slots=True)
class LineResult:
    """One line of a job's results.

    Attributes:
        custom_id: the line's name, as sent.
        end: what came of it.
        reply: what a real-time call would have got, for `Codec.read`; None where there is none
            (expired, cancelled).
    """

    custom_id: str
    end: LineEnd
    reply: WireReply | None = None


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a provider takes in one job, and how long it keeps things.

    Attributes:
        max_lines: lines in a job.
        max_bytes: bytes of a job's file.
        max_jobs: open jobs of one key; None where no such limit is known.
        expires_s: seconds after which an unfinished job expires.
        results_kept_s: seconds after creation for which results can be read.
        keeps_label: whether jobs carry our name, so that they are found by it.
    """

    max_lines: int
    max_bytes: int
    max_jobs: int | None
    expires_s: float
    results_kept_s: float
    keeps_label: bool


class ResultsGoneError(Exception):
    """The provider no longer has the results of a job (or a file of them)."""


class BatchApi(Protocol):
    """One provider's Batch API, with one key; every method makes plain requests, none repeats one.

    All raise `ProviderError`, classified like real-time errors; `maybe_billed` is set where a
    request may have been carried out although no usable reply came.
    """

    limits: BatchLimits

    def line(self, custom_id: str, call: WireCall) -> bytes:
        """One line of a job's file, without the newline: the body that real time would send.

        Args:
            custom_id: matches `^[a-zA-Z0-9_-]{1,64}$`, unique in the job.
            call: the request, as the codec built it.
        """
        ...

    async def upload(self, label: str, lines: Sequence[bytes]) -> str:
        """Upload the file of a job; gives the provider's name of it (empty where none is needed).

        Args:
            label: our name of the job; the file carries it.
            lines: what `line` made.
        """
        ...

    async def find_upload(self, label: str) -> str | None:
        """The file that was uploaded for `label`; None where there is none."""
        ...

    async def create(self, label: str, model: str, file: str, lines: Sequence[bytes]) -> RemoteJob:
        """Create the job.

        Args:
            label: our name of it.
            model: the provider's model name.
            file: what `upload` gave.
            lines: the same lines, for providers that take them with this very request.
        """
        ...

    def jobs(self, since: float) -> AsyncIterator[RemoteJob]:
        """Jobs created at `since` (UTC seconds) or later, newest first, read page by page."""
        ...

    async def job(self, name: str) -> RemoteJob:
        """One job, by the provider's name."""
        ...

    async def cancel(self, name: str) -> None:
        """Ask for a job to be cancelled; what was answered by then is kept where possible."""
        ...

    def results(self, job: RemoteJob) -> AsyncIterator[LineResult]:
        """What came of each line, in any order, output and error files both, streamed.

        A file whose connection breaks raises `ProviderError` (transient): read it anew.

        Raises:
            ResultsGoneError: the provider does not have them any more.
        """
        ...

    async def delete_upload(self, file: str) -> None:
        """Delete an uploaded file; one that is gone already is no error."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...
