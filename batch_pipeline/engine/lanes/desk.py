"""Work on provider jobs that no run is needed for: bring them up, look at them, cancel them.

What belongs here: one job between the ledger and its provider, safe against a crash at every point.
What does not: which rows go into jobs (batch.py), what their lines came to (collect.py).

A job is written down before anything of it is sent. What was sent when a process died is found out
from the provider, and nothing is sent again before that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

from batch_pipeline.clock import Clock
from batch_pipeline.engine.job import SETTLE_S, OpenBatchApi
from batch_pipeline.engine.state import Log, NoLog
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.calls import SETTLE, Settlement
from batch_pipeline.ledger.jobs import (
    CLOSE_JOB,
    MARK_JOB,
    CloseJob,
    MarkJob,
    ProviderJob,
    bodies_of,
    find_job,
    find_job_by_name,
    lines_of,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import AttemptState, JobState
from batch_pipeline.providers.base import ErrorKind, LlmRequest, ProviderError, WireCall
from batch_pipeline.providers.batches import BatchApi, RemoteJob, ResultsGoneError
from batch_pipeline.providers.batches import JobState as RemoteState
from batch_pipeline.providers.registry import PROVIDERS

_SKEW_S = 300.0
"""How far the provider's clock and ours may be apart."""

_SHORTEST_POLL_S = 10.0
_LONGEST_POLL_S = 600.0
_POLL_SHARE = 0.05
_RETRY_S = 30.0
_ONE_BY_ONE = 3
GONE = "gone"
"""`remote_state` of a job that its provider does not know any more."""


class Advance(Enum):
    """How far a job came."""

    SUBMITTED = "submitted"
    WAITING = "waiting"  # to be tried again at `next_poll_at`
    REFUSED = "refused"  # the provider is full: to be tried again, and no other job before it
    ABANDONED = "abandoned"  # it cannot be made; its lines are given back


class JobTakenError(Exception):
    """Another process works on the job now."""


class JobDesk:
    """Works on provider jobs for one process.

    Args:
        ledger: the ledger.
        clock: time.
        open_api: opens a provider's Batch API.
        holder_id: the owner that holds the jobs; None only looks.
        poll_s: seconds between looks at a job; None goes by its age.
        settle_s: see SETTLE_S.
        log: takes what happens.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        open_api: OpenBatchApi,
        holder_id: str | None = None,
        poll_s: float | None = None,
        settle_s: float = SETTLE_S,
        log: Log | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._open_api = open_api
        self._holder_id = holder_id
        self._poll_s = poll_s
        self._settle_s = settle_s
        self._log: Log = log or NoLog()
        self._apis: dict[tuple[str, str], BatchApi] = {}
        self.problems: dict[str, str] = {}

    def api(self, provider: str, key_id: str) -> BatchApi:
        """The provider's Batch API with that key, opened once.

        Raises:
            UsageError: the environment has no such key any more.
        """
        api = self._apis.get((provider, key_id))
        if api is None:
            api = self._apis[provider, key_id] = self._open_api(provider, key_id)
        return api

    async def aclose(self) -> None:
        """Close what was opened."""
        apis, self._apis = list(self._apis.values()), {}
        await asyncio.gather(*(api.aclose() for api in apis), return_exceptions=True)

    def reread(self, job_id: str) -> ProviderJob:
        """A job as it is now."""
        with self._ledger.read() as connection:
            job = find_job(connection, self._ledger.realm, job_id)
        assert job is not None
        return job

    # ---- looking ----

    async def look(self, jobs: Iterable[ProviderJob]) -> int:
        """Ask the providers where jobs stand, and write it down; gives how many have ended.

        What a provider does not answer is left as it is and noted in `problems`.
        """
        by_key: dict[tuple[str, str], list[ProviderJob]] = {}
        for job in jobs:
            if job.state is JobState.SUBMITTED and job.remote_name:
                by_key.setdefault((job.provider, job.key_id), []).append(job)
        ended = 0
        for (provider, key_id), mine in by_key.items():
            try:
                ended += await self._look(self.api(provider, key_id), mine)
            except (ProviderError, UsageError) as error:
                said = error.message if isinstance(error, ProviderError) else str(error)
                self.problems[provider] = said
                self._log.event("provider jobs not seen", provider=provider, message=said)
                await asyncio.gather(
                    *(self._mark(job, {"next_poll_at": self._next_look(job)}) for job in mine)
                )
        return ended

    async def _look(self, api: BatchApi, jobs: Sequence[ProviderJob]) -> int:
        found: dict[str, RemoteJob] = {}
        wanted = {job.remote_name for job in jobs}
        if len(jobs) > _ONE_BY_ONE:
            since = min(job.creating_at or job.created_at for job in jobs) - _SKEW_S
            async for remote in api.jobs(since):
                if remote.name in wanted:
                    found[remote.name] = remote
                    if len(found) == len(wanted):
                        break
        for job in jobs:
            name = job.remote_name or ""
            if name not in found:
                try:
                    found[name] = await api.job(name)
                except ResultsGoneError:
                    found[name] = _gone(name)
                except ProviderError as error:
                    if error.status != 404:
                        raise
                    found[name] = _gone(name)
        noted = await asyncio.gather(
            *(self._note(job, found[job.remote_name or ""]) for job in jobs)
        )
        return sum(noted)

    async def _note(self, job: ProviderJob, remote: RemoteJob) -> bool:
        """Write down where a job stands; whether it has ended."""
        now = self._clock.now()
        values: dict[str, Any] = {
            "polled_at": now,
            "next_poll_at": self._next_look(job),
            "remote_state": GONE if remote.error_code == GONE else remote.state.value,
            "succeeded": remote.succeeded,
            "failed": remote.failed,
            "error_code": remote.error_code[:100],
            "error": remote.error[:2_000],
        }
        if remote.state.ended:
            values |= {"state": JobState.ENDED, "ended_at": now, "results": remote.results}
            self._log.event(
                "provider job ended",
                job=job.job_id,
                remote=job.remote_name,
                state=remote.state.value,
                succeeded=remote.succeeded,
                failed=remote.failed,
                message=remote.error,
            )
        await self._mark(job, values, only_in=[JobState.SUBMITTED])
        if job.cancel_wanted and not (remote.state.ended or remote.state is RemoteState.CANCELLING):
            # The request came too early, or did not get through.
            await self._cancel(job, remote.name)
        return remote.state.ended

    def _next_look(self, job: ProviderJob) -> float:
        now = self._clock.now()
        if self._poll_s is not None:
            return now + self._poll_s
        age = now - (job.submitted_at or job.created_at)
        return now + min(_LONGEST_POLL_S, max(_SHORTEST_POLL_S, _POLL_SHARE * age))

    async def cancel(self, job: ProviderJob) -> bool:
        """Ask for a job to be cancelled; whether the provider took the request."""
        await self._mark(job, {"cancel_wanted": True, "next_poll_at": 0.0})
        if job.state is not JobState.SUBMITTED or not job.remote_name:
            return False
        return await self._cancel(job, job.remote_name)

    async def _cancel(self, job: ProviderJob, name: str) -> bool:
        try:
            await self.api(job.provider, job.key_id).cancel(name)
        except (ProviderError, UsageError) as error:
            # The next look asks again.
            self._log.event("provider job not cancelled", job=job.job_id, message=error.message)
            return False
        self._log.event("provider job cancelling", job=job.job_id, remote=name)
        return True

    # ---- bringing up ----

    async def advance(self, job: ProviderJob, *, recovered: bool = False) -> Advance:
        """Bring a job up as far as it goes; it must be held by this process.

        Args:
            job: as it is in the ledger.
            recovered: another process began; what it sent is looked for first.

        Raises:
            JobTakenError: another process has taken it over.
        """
        try:
            api = self.api(job.provider, job.key_id)
            return await self._advance(api, job, recovered)
        except UsageError as error:
            self.problems[job.provider] = str(error)
            await self._retry_later(job, str(error), _RETRY_S)
            return Advance.WAITING

    async def _advance(self, api: BatchApi, job: ProviderJob, recovered: bool) -> Advance:
        if job.state is JobState.CREATING:
            found = await self._find_created(api, job)
            if found is not None:
                return found
            job = self.reread(job.job_id)
        if job.cancel_wanted:
            await self.abandon(job, "It was cancelled before it was submitted.")
            return Advance.ABANDONED
        lines = await asyncio.to_thread(self._lines, api, job)
        if job.state is JobState.INTENDED:
            try:
                file = await api.find_upload(label_of(job)) if recovered else None
                if file is None:
                    file = await api.upload(label_of(job), lines)
            except ProviderError as error:
                return await self._not_made(job, error)
            await self._own(job, {"state": JobState.UPLOADED, "file": file}, [JobState.INTENDED])
            job = self.reread(job.job_id)
        if job.state is not JobState.UPLOADED:
            return Advance.SUBMITTED
        creating = {"state": JobState.CREATING, "creating_at": self._clock.now()}
        await self._own(job, creating, [JobState.UPLOADED])
        try:
            remote = await api.create(label_of(job), model_of(job), job.file or "", lines)
        except ProviderError as error:
            if error.maybe_billed or error.status >= 500 or error.status == 0:
                # It may have been made. `_find_created` finds out, and nothing is sent before.
                await self._retry_later(job, error.message, min(_RETRY_S, self._settle_s))
                return Advance.WAITING
            await self._own(job, {"state": JobState.UPLOADED}, [JobState.CREATING])
            return await self._not_made(self.reread(job.job_id), error)
        await self._submitted(job, remote)
        return Advance.SUBMITTED

    def _lines(self, api: BatchApi, job: ProviderJob) -> list[bytes]:
        with self._ledger.read() as connection:
            bodies = bodies_of(connection, job.job_id)
        empty = LlmRequest(model=model_of(job), system="", user="")
        url = PROVIDERS[job.provider].codec.build(empty, key="", base_url="").url
        return [api.line(name, WireCall(url, {}, body)) for name, body in bodies]

    async def _submitted(self, job: ProviderJob, remote: RemoteJob) -> None:
        now = self._clock.now()
        limits = self.api(job.provider, job.key_id).limits
        await self._own(
            job,
            {
                "state": JobState.SUBMITTED,
                "remote_name": remote.name,
                "remote_state": remote.state.value,
                "submitted_at": now,
                "expires_at": now + limits.expires_s,
                "next_poll_at": self._next_look(job),
                "error": "",
                "error_code": "",
            },
            [JobState.CREATING],
        )
        self._log.event(
            "provider job submitted",
            job=job.job_id,
            remote=remote.name,
            model=job.model,
            lines=job.line_count,
            items=job.item_count,
            tokens=job.tokens,
        )

    async def _not_made(self, job: ProviderJob, error: ProviderError) -> Advance:
        """The provider refused the upload or the job: later, or never."""
        if error.kind is ErrorKind.RATE_LIMITED:
            await self._retry_later(job, error.message, error.retry_after_s or _RETRY_S)
            return Advance.REFUSED
        if error.kind is ErrorKind.TRANSIENT:
            await self._retry_later(job, error.message, error.retry_after_s or _RETRY_S)
            return Advance.WAITING
        await self.abandon(job, error.message)
        return Advance.ABANDONED

    async def _retry_later(self, job: ProviderJob, message: str, wait_s: float) -> None:
        if self._poll_s is not None:
            wait_s = min(wait_s, self._poll_s)
        values = {"next_poll_at": self._clock.now() + wait_s, "error": message[:2_000]}
        await self._mark(job, values)
        self._log.event("provider job waits", job=job.job_id, message=message)

    async def abandon(self, job: ProviderJob, message: str, code: str = "") -> None:
        """Give up a job that was never made: its lines cost nothing, its rows are free again."""
        with self._ledger.read() as connection:
            lines = lines_of(connection, job.job_id)
        for line in lines:
            if line.state is AttemptState.SENT:
                refund = Settlement(line.attempt_id, AttemptState.REFUNDED, 0, error=message[:500])
                self._ledger.writer.post(SETTLE, refund)
        ended = {"error": message[:2_000], "error_code": code, "ended_at": self._clock.now()}
        closing = CloseJob(job.realm, job.job_id, JobState.ABANDONED, ended)
        await self._ledger.writer.post(CLOSE_JOB, closing)
        self._log.event("provider job abandoned", job=job.job_id, message=message)

    # ---- after a crash ----

    async def _find_created(self, api: BatchApi, job: ProviderJob) -> Advance | None:
        """Whether a job whose creation nobody saw the end of was made.

        Returns:
            None when it was not, and is `uploaded` again; else how far it is.
        """
        since = (job.creating_at or job.created_at) - _SKEW_S
        settled = self._clock.now() >= (job.creating_at or 0.0) + self._settle_s
        candidates: list[RemoteJob] = []
        try:
            async for remote in api.jobs(since):
                if remote.label == label_of(job):
                    await self._submitted(job, remote)
                    return Advance.SUBMITTED
                if not api.limits.keeps_label and self._may_be(job, remote):
                    candidates.append(remote)
            for remote in candidates:
                if remote.state.ended and await self._holds_our_lines(api, job, remote):
                    await self._submitted(job, remote)
                    return Advance.SUBMITTED
        except ProviderError as error:
            await self._retry_later(job, error.message, _RETRY_S)
            return Advance.WAITING
        if not settled or any(not remote.state.ended for remote in candidates):
            # Only the results of a job without a name tell whose it is.
            why = "It is being found out whether the provider has made this job."
            await self._retry_later(job, why, min(_RETRY_S, self._settle_s))
            return Advance.WAITING
        await self._own(job, {"state": JobState.UPLOADED}, [JobState.CREATING])
        return None

    def _may_be(self, job: ProviderJob, remote: RemoteJob) -> bool:
        """Whether a job without a name of ours could be this one."""
        if remote.total is not None and remote.total != job.line_count:
            return False
        if abs(remote.created_at - (job.creating_at or job.created_at)) > _SKEW_S:
            return False
        with self._ledger.read() as connection:
            known = find_job_by_name(connection, job.realm, remote.name)
        return known is None or known.job_id == job.job_id

    async def _holds_our_lines(self, api: BatchApi, job: ProviderJob, remote: RemoteJob) -> bool:
        with self._ledger.read() as connection:
            ours = {line.attempt_id for line in lines_of(connection, job.job_id)}
        try:
            async for result in api.results(remote):
                return result.custom_id in ours
        except ResultsGoneError:
            return False
        return False

    # ---- writing ----

    async def _mark(
        self,
        job: ProviderJob,
        values: dict[str, Any],
        only_in: Sequence[JobState] = tuple(JobState),
    ) -> bool:
        return await self._ledger.writer.post(
            MARK_JOB, MarkJob(job.realm, job.job_id, values, only_in)
        )

    async def _own(
        self, job: ProviderJob, values: dict[str, Any], only_in: Sequence[JobState]
    ) -> None:
        """Write what only the holder may."""
        mark = MarkJob(job.realm, job.job_id, values, only_in, self._holder_id)
        if not await self._ledger.writer.post(MARK_JOB, mark):
            raise JobTakenError(job.job_id)


def label_of(job: ProviderJob) -> str:
    """What providers that keep names call a job: its id, and what tells it from other ledgers'.

    Two installations may have a batch of the same name, and one key.
    """
    return f"{job.job_id}-{job.owner_id[-8:]}"


def model_of(job: ProviderJob) -> str:
    """The provider's model name, out of the label."""
    return job.model.removeprefix(f"{job.provider}/").partition("@http")[0]


def remote_of(job: ProviderJob) -> RemoteJob:
    """A job that has ended, as its provider's client needs it to read the results."""
    known = {state.value for state in RemoteState}
    state = RemoteState(job.remote_state) if job.remote_state in known else RemoteState.UNKNOWN
    return RemoteJob(
        name=job.remote_name or "",
        state=state,
        label=label_of(job),
        total=job.line_count,
        succeeded=job.succeeded,
        failed=job.failed,
        results=job.results,
    )


def _gone(name: str) -> RemoteJob:
    return RemoteJob(
        name, RemoteState.EXPIRED, error_code=GONE, error="The provider does not know this job."
    )
