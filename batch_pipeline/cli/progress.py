"""A run's progress on stderr: a live bar on a terminal, plain lines elsewhere.

What belongs here: showing `Progress`. What does not: counting (the engine does).
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from batch_pipeline.cli.output import Output, duration, usd
from batch_pipeline.wording import plural

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from batch_pipeline.engine.job import Progress

_PLAIN_EVERY_S = 5.0
_PACE_FROM_S = 1.0
_SHOWN_WAIT_S = 0.05


class ProgressView:
    """Shows stages and progress while a run goes on; a context manager.

    Args:
        output: where to; plain lines with `--json` too, so that a log reads well.
    """

    def __init__(self, output: Output) -> None:
        """Nothing is shown before the first stage."""
        self._output = output
        self._live = output.err.is_terminal and not output.json
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._first_asked: tuple[float, int] | None = None
        self._first_request: tuple[float, int] | None = None
        self._printed_at = 0.0
        self._printed = ""
        self._note = ""

    def __enter__(self) -> ProgressView:
        """Nothing to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        self._close_bar()

    def stage(self, text: str) -> None:
        """The run has come to another stage; an empty one is not worth a line."""
        self._close_bar()
        if text:
            self._output.note(text)

    def update(self, progress: Progress) -> None:
        """The run has moved on; called about four times a second."""
        if progress.total == 0 and not progress.note:
            return
        figures = _figures(progress, self._seconds_left(progress), self._per_minute(progress))
        if self._live:
            self._draw(progress, figures)
        else:
            self._print(progress, figures)

    def _draw(self, progress: Progress, figures: str) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("[bold]rows"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._output.err,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("rows", total=None, figures="")
        assert self._task is not None
        self._bar.update(
            self._task,
            total=progress.total or None,
            completed=progress.done,
            figures=figures,
        )

    def _print(self, progress: Progress, figures: str) -> None:
        now = time.monotonic()
        line = f"{progress.done:,}/{progress.total:,} rows · {figures}"
        news = progress.note != self._note or (progress.done == progress.total and progress.total)
        if line == self._printed or not (news or now - self._printed_at >= _PLAIN_EVERY_S):
            return
        self._printed, self._printed_at, self._note = line, now, progress.note
        self._output.note(line)

    def _seconds_left(self, progress: Progress) -> float | None:
        """From the pace of rows that were asked about: cached ones come at once."""
        now, asked = time.monotonic(), progress.done - progress.cached
        if self._first_asked is None:
            if progress.attempts or progress.searches:
                self._first_asked = (now, asked)
            return None
        began, before = self._first_asked
        if asked <= before or now <= began:
            return None
        return (progress.total - progress.done) * (now - began) / (asked - before)

    def _per_minute(self, progress: Progress) -> float | None:
        """Requests a minute since the first one."""
        now = time.monotonic()
        if self._first_request is None:
            if progress.requests:
                self._first_request = (now, progress.requests)
            return None
        began, before = self._first_request
        if now - began < _PACE_FROM_S:
            return None
        return (progress.requests - before) * 60.0 / (now - began)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _figures(progress: Progress, left: float | None, per_minute: float | None) -> str:
    parts = [f"{progress.succeeded:,} succeeded", f"{progress.failed:,} failed"]
    if progress.blocked:
        parts.append(f"{progress.blocked:,} blocked")
    parts += [f"{progress.cached:,} cached", usd(progress.cost_usd)]
    if left is not None and progress.done < progress.total:
        parts.append(f"{duration(left)} left")
    parts.append(plural(progress.requests, "request"))
    if per_minute is not None:
        parts.append(f"{per_minute:,.0f} a minute")
    if progress.searches:
        parts.append(plural(progress.searches, "search", "searches"))
    if progress.chunks > 1:
        parts.append(f"{progress.chunks_done:,}/{progress.chunks:,} chunks")
    if progress.rate_wait_s >= _SHOWN_WAIT_S:
        parts.append(f"waited {duration(progress.rate_wait_s)} for rate limits")
    if progress.note:
        flying = f" ({progress.in_flight} in flight)" if progress.in_flight else ""
        parts.append(f"{progress.note}{flying}")
    return " · ".join(parts)
