"""What the `batches` commands print: blocks and tables of jobs, and the same as JSON.

What belongs here: words and layout. What does not: options and what a command does (batches.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batch_pipeline.cli.output import Output, cut, grid, iso, moment
from batch_pipeline.ledger.tables import JobState

if TYPE_CHECKING:
    from batch_pipeline.workloads.lane import LaneStatus
    from batch_pipeline.workloads.summary import Summary

SUCCEEDED = "JOB_STATE_SUCCEEDED"
_PAUSED = "JOB_STATE_PAUSED"

_RULE = "=" * 50
_PREVIEW_CHARACTERS = 100
_ICONS = {
    "status": "📊", "wait": "⏳", "done": "✅", "bad": "❌", "submit": "📦", "tick": "✓",
    "read": "📥", "save": "💾", "sum": "📈", "list": "📋", "cost": "💰",
}  # fmt: skip
_ICONS_PLAIN = {"tick": "OK:"}


def icon(voice: Output, name: str) -> str:
    """A sign with a space behind it; nothing, or a word, where a terminal may not show it."""
    encoding = (voice.out.encoding or "").lower().replace("-", "")
    if encoding != "utf8" or os.environ.get("NO_COLOR"):
        word = _ICONS_PLAIN.get(name, "")
        return f"{word} " if word else ""
    return f"{_ICONS[name]} "


def say(voice: Output, text: str = "") -> None:
    """A line of a block, as it is."""
    voice.out.print(text, markup=False, soft_wrap=True)


def status_document(status: LaneStatus) -> dict[str, Any]:
    """A job as JSON; names and states as the guide has them."""
    from batch_pipeline.sinks.exports import job_document

    return {
        "job_id": status.job_id,
        "batch_name": status.batch_id,
        "workload": status.workload,
        "simulated": status.realm == "simulated",
        "state": status.state,
        "completed_count": status.completed,
        "total_count": status.total,
        "progress_percent": status.percent,
        "outcomes": status.outcomes,
        "under_way": status.under_way,
        "created_at": iso(status.created_at),
        "updated_at": iso(status.updated_at),
        "message": status.message,
        "provider_jobs": [job_document(job) for job in status.provider_jobs],
    }


def waits_for_collection(status: LaneStatus) -> bool:
    """Whether a provider is done with a job whose results are not here yet."""
    return any(job.state is JobState.ENDED for job in status.provider_jobs)


def is_under_way(status: LaneStatus) -> bool:
    """Whether looking again later can show something else."""
    if any(job.is_open for job in status.provider_jobs):
        return True
    return not (status.ended or status.state == _PAUSED or waits_for_collection(status))


def print_status(voice: Output, status: LaneStatus) -> None:
    """The status block, the provider jobs, and what to do next."""
    say(voice, f"{icon(voice, 'status')}Batch Job Status")
    say(voice, _RULE)
    for label, value in _status_lines(status):
        say(voice, f"  {label}: {value}")
    say(voice, _RULE)
    if status.provider_jobs:
        _print_provider_jobs(voice, status)
    if status.message:
        say(voice, status.message)
    say(voice, _trailer(voice, status))


def _status_lines(status: LaneStatus) -> list[tuple[str, str]]:
    counts = [f"{count:,} {name}" for name, count in status.outcomes.items() if count]
    lines = [
        ("Job ID", status.job_id),
        ("Batch", f"{status.batch_id} ({status.workload}, {status.realm})"),
        ("State", status.state),
        ("Progress", f"{status.completed:,}/{status.total:,}"),
        ("Completion", f"{status.percent:.1f}%"),
        ("Rows", ", ".join(counts) or "none"),
    ]
    if status.under_way:
        lines.append(("Under way", f"{status.under_way:,} rows in provider jobs"))
    return [
        *lines,
        ("Created", f"{moment(status.created_at)} UTC"),
        ("Updated", f"{moment(status.updated_at)} UTC"),
    ]


def _trailer(voice: Output, status: LaneStatus) -> str:
    name = status.batch_id
    program = "batch-pipeline batches"
    if status.state == SUCCEEDED:
        return f"{icon(voice, 'done')}Done. Results: `{program} results {status.job_id} {name}`"
    if status.ended:
        return (
            f"{icon(voice, 'bad')}Ended. What there is: `{program} results {status.job_id} "
            f"{name}`. Which rows are missing, why, and what to do: `batch-pipeline failed {name}`."
        )
    if waits_for_collection(status):
        return (
            f"{icon(voice, 'wait')}A provider is done: the sensor of `make dev` collects its "
            f"results, or `{program} collect {status.job_id}`."
        )
    if status.state == _PAUSED:
        return f"{icon(voice, 'wait')}Paused. Go on with `batch-pipeline retry {name}`."
    return (
        f"{icon(voice, 'wait')}Job is still running. Check again later, or stay: "
        f"`{program} status {status.job_id} --watch`."
    )


def _print_provider_jobs(voice: Output, status: LaneStatus) -> None:
    from batch_pipeline.sinks.exports import state_word

    figures = ("Rows", "Requests", "Done", "Failed")
    table = grid("Provider job", "At the provider", "State", *figures, "Submitted (UTC)",
                 right=figures)  # fmt: skip
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for job in status.provider_jobs:
        table.add_row(
            job.job_id,
            f"{job.provider} {job.remote_name or ''}".strip(),
            state_word(job),
            f"{job.item_count:,}",
            f"{job.line_count:,}",
            "·" if job.succeeded is None else f"{job.succeeded:,}",
            "·" if job.failed is None else f"{job.failed:,}",
            moment(job.submitted_at),
        )
    voice.out.print(table)
    for job in status.provider_jobs:
        if job.error:
            code = f" ({job.error_code})" if job.error_code else ""
            say(voice, f"{job.job_id}: {cut(job.error, 300)}{code}")


def print_list(voice: Output, found: Sequence[LaneStatus]) -> None:
    """All jobs, one line each."""
    say(voice, f"{icon(voice, 'list')}Batch Jobs ({len(found):,} total)")
    if not found:
        say(voice, "None yet: `batch-pipeline batches submit-contents FILE --name NAME`.")
        return
    table = grid("Batch Name", "Job ID", "Status", "Done", "Provider jobs", "Realm",
                 "Submitted (UTC)", right=("Done", "Provider jobs"))  # fmt: skip
    # Names that are copied, and states, stay in one piece.
    for column in table.columns[:3]:
        column.no_wrap = True
    for status in found:
        ended = sum(not job.is_open for job in status.provider_jobs)
        table.add_row(
            status.batch_id,
            status.job_id,
            status.state,
            f"{status.completed:,}/{status.total:,}",
            f"{ended:,}/{len(status.provider_jobs):,}",
            status.realm,
            moment(status.created_at),
        )
    voice.out.print(table)


def print_summary(voice: Output, summary: Summary | None, outcomes: Mapping[str, int]) -> None:
    """What the results say, each figure with its denominator."""
    say(voice, f"{icon(voice, 'sum')}Summary:")
    if summary is None:
        for name, count in outcomes.items():
            if count:
                say(voice, f"  {name}: {count:,}")
        return
    for figure in summary.figures:
        say(voice, f"  {figure.name}: {figure.rows:,}/{figure.of:,} {figure.of_what}")
    for table in summary.tables:
        what = table.title if table.several else f"{table.title} breakdown"
        say(voice, f"  {what} ({table.of:,} {table.of_what}):")
        for entry in table.entries:
            say(voice, f"    {entry.label}: {entry.rows:,}")
        if table.more_labels:
            say(voice, f"    … and {table.more_labels:,} more")


def print_preview(voice: Output, rows: Sequence[Mapping[str, Any]]) -> None:
    """The first results: title, financial, sentiment and the start of the summary, where any."""
    for number, row in enumerate(rows, start=1):
        say(voice)
        if "is_financial" in row:
            say(voice, f"  {number}. {cut(str(row['page_title']), _PREVIEW_CHARACTERS)}")
            say(voice, f"     Financial: {row['is_financial']}")
            say(voice, f"     Sentiment: {row['sentiment']}")
            say(voice, f"     Summary: {cut(str(row['summary_en']), _PREVIEW_CHARACTERS)}")
        else:
            say(voice, f"  {number}. {row['item_id']}")
            for name, value in row.items():
                if name not in ("item_id", "outcome", "error") and value not in (None, ""):
                    say(voice, f"     {name}: {cut(str(value), _PREVIEW_CHARACTERS)}")
