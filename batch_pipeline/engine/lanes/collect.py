"""What the lines of a finished provider job came to: settled, priced, and turned into results.

What belongs here: one job's results into the ledger, line by line, however often it is begun. What
does not: asking again (batch.py), rows and chunks (finishing.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from batch_pipeline.engine.answers import Answers, read_answers
from batch_pipeline.engine.lanes.desk import GONE, JobDesk, model_of, remote_of
from batch_pipeline.engine.records import share_of
from batch_pipeline.engine.state import Log, NoLog
from batch_pipeline.engine.step import Step
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.calls import (
    SETTLE,
    Settlement,
    StoreResults,
    Unanswered,
)
from batch_pipeline.ledger.jobs import CLOSE_JOB, CloseJob, Line, ProviderJob, lines_of
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import NANO, AttemptState, JobState
from batch_pipeline.pricing.prices import ModelPricer, find_model_pricer
from batch_pipeline.providers.base import ErrorKind, ProviderError, Usage, WireReply
from batch_pipeline.providers.batches import JobState as RemoteState
from batch_pipeline.providers.batches import LineEnd, LineResult, ResultsGoneError
from batch_pipeline.providers.registry import PROVIDERS

_MOST_OPEN = 500
_DOWNLOADS = 3

NO_ROOM_CODE = "token_limit_exceeded"
"""`error_code` of a job that its provider took and then had no room for; nothing of it was done."""

_NO_WORK_DONE = frozenset({NO_ROOM_CODE})

_NEVER_BEGUN = frozenset({("openai", RemoteState.FAILED.value)})
"""OpenAI fails a job when it looks through its file, before it asks the first line."""


@dataclass(slots=True)
class Collected:
    """What came of collecting a job.

    Attributes:
        lines: lines that ended with this.
        answered: lines with a reply.
        problems: lines without a usable one.
        usage: tokens billed, summed up.
        cost_nano: what the lines cost.
        lost_nano: worst case of lines that may have been billed, and whose results are gone.
        complete: the job is closed; else the rest is collected another time.
        message: why not, or what was wrong with the job.
        errors: lines without a usable reply, by kind.
        broken: a validator's own fault; the replies are kept.
    """

    lines: int = 0
    answered: int = 0
    problems: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    lost_nano: int = 0
    complete: bool = False
    message: str = ""
    errors: dict[str, int] = field(default_factory=dict)
    broken: Exception | None = None


class Collector:
    """Collects jobs of one workload's steps.

    Args:
        ledger: the ledger.
        desk: has the providers' Batch APIs.
        steps: the LLM tasks that the jobs' lines ask.
        log: takes what happens.
    """

    def __init__(
        self, ledger: Ledger, desk: JobDesk, steps: Sequence[Step], log: Log | None = None
    ) -> None:
        self._ledger = ledger
        self._desk = desk
        self._steps = {step.name: step for step in steps}
        self._log: Log = log or NoLog()
        self._open: set[asyncio.Future[list[bool]]] = set()

    async def collect(
        self, job: ProviderJob, on_progress: Callable[[int], None] | None = None
    ) -> Collected:
        """Read a job's results into the ledger; it must have ended and be held by this process.

        Lines that were settled before are left as they are: a collection that died is finished by
        the next one.

        Args:
            job: the job.
            on_progress: called with the number of lines read so far.
        """
        with self._ledger.read() as connection:
            lines = lines_of(connection, job.job_id)
        left = {line.attempt_id: line for line in lines if line.state is AttemptState.SENT}
        came = Collected()
        pricer = find_model_pricer(job.provider, model_of(job), "batch")
        books = _Books(job, self._steps[job.step], pricer)
        gone = job.remote_state == GONE
        if left and not gone and (job.results or job.remote_state != RemoteState.FAILED):
            gone = not await self._download(job, left, came, books, on_progress)
            if came.message and not gone:
                await self._settled()
                return came
        for line in left.values():
            self._post(self._without_result(job, line, came, books, gone=gone), came)
            if len(self._open) >= _MOST_OPEN:
                await asyncio.wait(self._open, return_when=asyncio.FIRST_COMPLETED)
        await self._settled()
        await self._ledger.writer.post(
            CLOSE_JOB, CloseJob(job.realm, job.job_id, JobState.COLLECTED)
        )
        came.complete = True
        came.message = job.error or (
            "The provider no longer has the results of this job." if gone else ""
        )
        await self._tidy(job)
        self._log.event(
            "provider job collected",
            job=job.job_id,
            remote=job.remote_name,
            state=job.remote_state,
            answered=came.answered,
            problems=came.problems,
            cost_usd=round(came.cost_nano / NANO, 9),
            lost_usd=round(came.lost_nano / NANO, 9),
            message=came.message,
        )
        return came

    async def _tidy(self, job: ProviderJob) -> None:
        """Delete the uploaded file: its place is the key's, and it holds the users' rows."""
        if job.file:
            try:
                await self._desk.api(job.provider, job.key_id).delete_upload(job.file)
            except (ProviderError, UsageError) as error:
                self._log.event("upload not deleted", job=job.job_id, message=error.message)

    async def _download(
        self,
        job: ProviderJob,
        left: dict[str, Line],
        came: Collected,
        books: _Books,
        on_progress: Callable[[int], None] | None,
    ) -> bool:
        """Settle what the result files say; whether the provider still has them."""
        api = self._desk.api(job.provider, job.key_id)
        for attempt in range(_DOWNLOADS):
            try:
                async for result in api.results(remote_of(job)):
                    line = left.pop(result.custom_id, None)
                    # Read before, or nobody's: a line counts once.
                    if line is None:
                        continue
                    self._post(books.settle(line, result, came), came)
                    if on_progress is not None:
                        on_progress(came.answered + came.problems)
                    if len(self._open) >= _MOST_OPEN:
                        await asyncio.wait(self._open, return_when=asyncio.FIRST_COMPLETED)
            except ResultsGoneError:
                return False
            except ProviderError as error:
                self._log.event("download broke off", job=job.job_id, message=error.message)
                if attempt + 1 == _DOWNLOADS or error.kind is not ErrorKind.TRANSIENT:
                    came.message = f"The results of {job.job_id} cannot be read: {error.message}"
                    return True
            else:
                break
        return True

    def _without_result(
        self, job: ProviderJob, line: Line, came: Collected, books: _Books, *, gone: bool
    ) -> Settlement:
        """A line of which the job's results say nothing."""
        came.problems += 1
        # The provider may have asked it before the job broke off, and bill it.
        untouched = (
            job.succeeded == 0
            or job.error_code in _NO_WORK_DONE
            or (job.provider, job.remote_state) in _NEVER_BEGUN
        )
        maybe_billed = gone or not (
            untouched
            and job.remote_state in (RemoteState.FAILED, RemoteState.EXPIRED, RemoteState.CANCELLED)
        )
        if gone:
            kind, why = "gone", "the provider no longer has the results of its job"
        else:
            kind = job.remote_state if job.remote_state != RemoteState.SUCCEEDED else "missing"
            why = f"its provider job {_ENDED_AS.get(job.remote_state, 'gave no result for it')}"
            if job.error:
                why = f"{why}: {job.error}"
        # No room and a cancellation say nothing of the row: they use up no try.
        if job.error_code in _NO_WORK_DONE or job.remote_state == RemoteState.CANCELLED:
            kind = ""
        came.errors[kind or "given back"] = came.errors.get(kind or "given back", 0) + 1
        if maybe_billed:
            came.lost_nano += line.worst_nano
        return Settlement(
            attempt_id=line.attempt_id,
            state=AttemptState.LOST if maybe_billed else AttemptState.REFUNDED,
            cost_nano=line.worst_nano if maybe_billed else 0,
            error_kind=kind or None,
            error=why,
            unanswered=books.unanswered(line, range(len(line.members)), kind, why, 0),
        )

    def _post(self, settlement: Settlement, came: Collected) -> None:
        came.lines += 1
        future = self._ledger.writer.post(SETTLE, settlement)
        self._open.add(future)
        future.add_done_callback(self._open.discard)

    async def _settled(self) -> None:
        """Wait for the writes; raises what the ledger says."""
        await asyncio.gather(*self._open)


_ENDED_AS = {
    RemoteState.FAILED.value: "failed",
    RemoteState.EXPIRED.value: "expired before it was asked",
    RemoteState.CANCELLED.value: "was cancelled before it was asked",
}


@dataclass(frozen=True, slots=True)
class _Books:
    """Turns a line's result into a settlement."""

    job: ProviderJob
    step: Step
    pricer: ModelPricer | None

    def settle(self, line: Line, result: LineResult, came: Collected) -> Settlement:
        """What a result makes of its line."""
        if result.reply is None:
            return self._not_asked(line, result, came)
        codec = PROVIDERS[self.job.provider].codec
        try:
            reply = codec.read(result.reply)
        except ProviderError as error:
            return self._error(line, error, result.reply, came)
        came.answered += 1
        usage = reply.usage or Usage()
        cost = self._cost(usage)
        self._count(came, usage, cost)
        try:
            answers = read_answers(self.step, len(line.members), reply)
        except Exception as error:
            # It is paid: a later run derives it once the validator's bug is mended.
            came.broken = error
            return self._settlement(line, usage, cost, result.reply, derived=False)
        unanswered: list[Unanswered] = []
        for place, problem in answers.problems.items():
            kind = "refused" if answers.refused and len(line.members) == 1 else "content"
            unanswered += self.unanswered(line, [place], kind, problem, cost)
        if answers.problems:
            came.problems += 1
            came.errors["content"] = came.errors.get("content", 0) + 1
        return self._settlement(
            line,
            usage,
            cost,
            result.reply,
            derived=not answers.problems,
            answered_model=reply.model,
            results=self._results(line, answers),
            unanswered=unanswered,
        )

    def _results(self, line: Line, answers: Answers) -> StoreResults:
        return StoreResults(
            realm=self.job.realm,
            workload=self.job.workload,
            step=self.job.step,
            model=self.job.model,
            attempt_id=line.attempt_id,
            owner_id=self.job.owner_id,
            outputs=[(line.members[place][1], output) for place, output in answers.valid.items()],
        )

    def _error(
        self, line: Line, error: ProviderError, reply: WireReply, came: Collected
    ) -> Settlement:
        """The provider refused the line, or failed at it."""
        came.problems += 1
        came.errors[error.kind.value] = came.errors.get(error.kind.value, 0) + 1
        usage = error.usage or Usage()
        cost = self._cost(usage)
        self._count(came, usage, cost)
        kind = error.kind.value
        if len(line.members) > 1 and error.kind in (ErrorKind.ITEM_PERMANENT, ErrorKind.REFUSED):
            # One of them is at fault: alone, it shows which.
            kind = ErrorKind.CONTENT.value
        everyone = range(len(line.members))
        return self._settlement(
            line,
            usage,
            cost,
            reply,
            error_kind=error.kind.value,
            error=error.message[:2_000],
            unanswered=self.unanswered(line, everyone, kind, error.message, cost),
        )

    def _not_asked(self, line: Line, result: LineResult, came: Collected) -> Settlement:
        """The job ended before the line was asked: it is not billed."""
        came.problems += 1
        kind = "expired" if result.end is LineEnd.EXPIRED else ""
        came.errors[kind or "given back"] = came.errors.get(kind or "given back", 0) + 1
        why = f"its provider job {_ENDED_AS[result.end.value]}"
        return Settlement(
            attempt_id=line.attempt_id,
            state=AttemptState.REFUNDED,
            cost_nano=0,
            error_kind=kind or None,
            error=why,
            unanswered=self.unanswered(line, range(len(line.members)), kind, why, 0),
        )

    def unanswered(
        self, line: Line, places: range | list[int], kind: str, why: str, cost_nano: int
    ) -> list[Unanswered]:
        """Notes for the rows at `places`; each bears its equal share of the cost."""
        return [
            Unanswered(
                realm=self.job.realm,
                batch_id=self.job.batch_id,
                ordinal=line.members[place][0],
                kind=kind,
                error=why[:2_000],
                cost_nano=share_of(cost_nano, len(line.members), place),
            )
            for place in places
        ]

    def _settlement(
        self, line: Line, usage: Usage, cost: int, reply: WireReply, **more: object
    ) -> Settlement:
        return Settlement(
            attempt_id=line.attempt_id,
            state=AttemptState.SETTLED,
            cost_nano=cost,
            status=reply.status,
            input_tokens=usage.input_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
            output_tokens=usage.output_tokens,
            thinking_tokens=usage.thinking_tokens,
            # stored since the job was written down; a reply is stored only beside a request
            request=b"",
            reply=reply.body,
            **more,  # type: ignore[arg-type]
        )

    def _cost(self, usage: Usage) -> int:
        if self.pricer is None:
            return 0
        return self.pricer.cost_nano(usage, self.job.submitted_at or self.job.created_at)

    def _count(self, came: Collected, usage: Usage, cost: int) -> None:
        came.input_tokens += usage.input_tokens
        came.cached_input_tokens += usage.cached_input_tokens
        came.output_tokens += usage.output_tokens
        came.cost_nano += cost
