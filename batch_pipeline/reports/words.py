"""Numbers and verdicts in words, the same for every face of a report.

What belongs here: formatting, and what there is to say about a report. What does not: markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from batch_pipeline.limits.rates import UNITS
from batch_pipeline.reports.model import (
    BatchReport,
    BudgetUse,
    Decisions,
    EstimateCheck,
    EstimateLine,
    JobReport,
    LaneSaving,
    LaneUse,
    LimitUsed,
    PromptCache,
    ProviderJobs,
    RunReport,
    SearchUse,
    SkipCause,
    StepUse,
    UnansweredLines,
)
from batch_pipeline.wording import plural
from batch_pipeline.workloads.summary import SummaryFigure, SummaryTable

SIMULATED = (
    "The answers come from the local simulator. No provider was called and nothing was paid; costs "
    "are what the calls would have cost."
)
NO_CALLS = "No calls were made for this batch."


def count(number: int) -> str:
    """`1,000`."""
    return f"{number:,}"


def money(usd: float) -> str:
    """`$0.0093`, `$12.50`: two decimals from a dollar on, two significant digits below a cent."""
    if usd == 0:
        return "$0.00"
    if abs(usd) >= 1:
        return f"${usd:,.2f}"
    if abs(usd) >= 0.01:
        return f"${usd:.4f}"
    return f"${usd:.{1 - math.floor(math.log10(abs(usd)))}f}"


def duration(seconds: float | None) -> str:
    """`310 ms`, `12.3 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return "-"
    if seconds < 0.0005:
        return "0 s"
    if seconds < 0.9995:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min"


def percent(share: float | None) -> str:
    """`98.7 %`; never 100 % or 0 % by rounding."""
    if share is None:
        return "-"
    shown = round(share * 100, 1)
    if shown == 100 and share < 1:
        return "> 99.9 %"
    if shown == 0 and share > 0:
        return "< 0.1 %"
    return f"{shown:.1f} %"


def part(number: int, of: int) -> str:
    """`75/150 (50.0 %)`."""
    return f"{count(number)}/{count(of)} ({percent(number / of if of else None)})"


def moment(at: datetime | None) -> str:
    """`2026-11-21 14:00:05 UTC`."""
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


ESTIMATE_NAMES = {
    "requests": "Requests",
    "input_tokens": "Input tokens",
    "cached_input_tokens": "of them cached",
    "output_tokens": "Output tokens",
    "searches": "Searches",
    "cost_usd": "Cost",
    "seconds": "Time",
}
"""What the figures of an estimate are called."""


def figure(name: str, value: float | None) -> str:
    """A figure of an estimate in its unit."""
    if value is None:
        return "-"
    if name == "cost_usd":
        return money(value)
    return duration(value) if name == "seconds" else count(round(value))


def expected_figure(line: EstimateLine) -> str:
    """What was expected; `at most 24 h 00 min` where only a bound is known."""
    if line.expected is None and line.worst is not None:
        return f"at most {figure(line.name, line.worst)}"
    return figure(line.name, line.expected)


def deviation(off_percent: float | None) -> str:
    """`+3.2 %`."""
    if off_percent is None:
        return "-"
    return f"{off_percent:+,.1f} %" if off_percent else "0.0 %"


def summary_figure(found: SummaryFigure) -> str:
    """`78/100 (78.0 %) of answered articles`."""
    return f"{part(found.rows, found.of)} of {found.of_what}"


def summary_caption(table: SummaryTable) -> str:
    """What a table counts, and of what."""
    text = f"Of {count(table.of)} {table.of_what}."
    if table.several:
        text += " One may have several, or none."
    if table.more_labels:
        text += f" {plural(table.more_labels, 'rarer one')} left out."
    return text


def summary_line(table: SummaryTable, most: int) -> str:
    """`Positive 45, Negative 23, Neutral 32`, the most frequent labels first."""
    shown = [f"{_short(entry.label)} {count(entry.rows)}" for entry in table.entries[:most]]
    more = len(table.entries) - len(shown) + table.more_labels
    return ", ".join([*shown, f"{count(more)} more"] if more else shown) or "none"


def _short(label: str, most: int = 40) -> str:
    return label if len(label) <= most else f"{label[: most - 1].rstrip()}…"


def saving(usd: float | None) -> str:
    """`saved $0.12`, or what a cache cost more than it saved."""
    if usd is None:
        return "price unknown"
    return f"saved {money(usd)}" if usd >= 0 else f"cost {money(-usd)} more than it saved"


def estimate_line(check: EstimateCheck) -> str:
    """`$0.0120 estimated (low $0.0100, worst $0.0300), $0.0123 spent: +2.5 %`."""
    line = next(line for line in check.lines if line.name == "cost_usd")
    if line.expected is None:
        return "no price was known for the estimate"
    low, worst = figure(line.name, line.low), figure(line.name, line.worst)
    off = f": {deviation(line.deviation_percent)}" if line.deviation_percent is not None else ""
    so_far = "" if check.complete else " so far"
    return (
        f"{money(line.expected)} expected (low {low}, worst {worst}), {money(line.actual)} "
        f"spent{so_far}{off}"
    )


def budget_name(budget: BudgetUse) -> str:
    """`this batch`, `roadmaps on 2026-11-21`, `with google on 2026-11-21`."""
    if budget.scope == "batch":
        return "this batch"
    return f"{'with ' if budget.scope == 'provider' else ''}{budget.name} on {budget.day}"


def budget_line(budget: BudgetUse) -> str:
    """`$49.97 of $50.00 used (99.9 %) for this batch`."""
    spent = money(budget.settled_usd + budget.lost_usd)
    text = f"{spent} of {money(budget.limit_usd)} used ({percent(budget.used_share)})"
    if budget.lost_usd:
        text += f", {money(budget.lost_usd)} of it for lost calls at worst case"
    if budget.reserved_usd:
        text += f", {money(budget.reserved_usd)} reserved"
    return text


def cache_line(cache: PromptCache) -> str:
    """`12,000 of 40,000 input tokens read from the cache (30.0 %), saved $0.0010`."""
    text = (
        f"{count(cache.cached_tokens)} of {count(cache.input_tokens)} input tokens cached "
        f"({percent(cache.share)})"
    )
    if cache.write_tokens:
        text += f", {count(cache.write_tokens)} written"
    return f"{text}; {saving(cache.saved_usd)}"


def step_line(use: StepUse) -> str:
    """`draft: 36 requests (40 attempts), 90,000 tokens in, 60,000 out, p50 1.2 s, $0.1234`."""
    again = f" ({plural(use.attempts, 'attempt')})" if use.attempts != use.requests else ""
    took = ""
    if use.latency.p50_s is not None:
        took = f", p50 {duration(use.latency.p50_s)}, p95 {duration(use.latency.p95_s)}"
    return (
        f"{use.step}: {plural(use.requests, 'request')}{again}, {count(use.tokens.input)} tokens "
        f"in, {count(use.tokens.output)} out{took}, {money(use.cost_usd)}"
    )


def search_line(use: SearchUse) -> str:
    """`41 queries (43 calls, 2 failed), p50 120 ms, 12.3 s waiting, no charge`."""
    calls = ""
    if use.attempts != use.requests or use.attempts_failed:
        failed = f", {count(use.attempts_failed)} failed" if use.attempts_failed else ""
        calls = f" ({plural(use.attempts, 'call')}{failed})"
    parts = [plural(use.requests, "query", "queries") + calls]
    if use.cached:
        parts.append(f"{count(use.cached)} known without a call")
    if use.latency.p50_s is not None:
        parts.append(f"p50 {duration(use.latency.p50_s)}, p95 {duration(use.latency.p95_s)}")
    if use.rate_wait_s:
        parts.append(f"{duration(use.rate_wait_s)} waiting for its limit")
    parts.append(money(use.cost_usd) if use.cost_usd else "no charge by the call")
    if use.lost_cost_usd:
        parts.append(f"up to {money(use.lost_cost_usd)} for calls without a reply")
    return ", ".join(parts)


def skips_line(causes: Sequence[SkipCause]) -> str:
    """`36 Unchanged since an earlier run; 4 The topic is empty`."""
    return "; ".join(f"{count(cause.rows)} {cause.reason.rstrip('.')}" for cause in causes)


def one_at_a_time(calls_s: float, wall_s: float) -> str:
    """`42 min 10 s one at a time (7.7 times the wall time)`, from the calls' measured latencies."""
    times = f" ({calls_s / wall_s:,.1f} times the wall time)" if 0 < wall_s < calls_s else ""
    return f"{duration(calls_s)} for the calls one at a time{times}"


def searches_line(uses: Sequence[SearchUse]) -> str:
    """`41 queries`, of all endpoints; with the calls where there were more."""
    queries, calls = sum(use.requests for use in uses), sum(use.attempts for use in uses)
    text = plural(queries, "search query", "search queries")
    return text if calls == queries else f"{text} ({plural(calls, 'call')})"


def decisions_line(found: Decisions) -> str:
    """`5 rows: 2 overridden (1 signed off), 1 to be made anew, 2 skipped`."""
    parts = []
    if found.override:
        vouched = f" ({count(found.signed_off)} signed off)" if found.signed_off else ""
        parts.append(f"{count(found.override)} overridden{vouched}")
    if found.regenerate:
        parts.append(f"{count(found.regenerate)} to be made anew")
    if found.skip:
        parts.append(f"{count(found.skip)} skipped")
    return f"{plural(found.total, 'row')}: {', '.join(parts)}"


def waiting_line(report: BatchReport) -> str:
    """`3 rows wait for a decision; the 2 that wait longest:`; without the colon where all show."""
    total = report.outcomes.blocked
    text = f"{plural(total, 'row')} {'waits' if total == 1 else 'wait'} for a person's decision"
    if len(report.waiting) < total:
        return f"{text}; those that wait longest:"
    return f"{text}."


def limit_line(limit: LimitUsed) -> str:
    """`1,200 requests a minute (setting)`."""
    source = {"user": "setting", "tier": "tier"}.get(limit.source, limit.source)
    return f"{limit.amount:,.0f} {UNITS.get(limit.dimension, limit.dimension)} ({source})"


_JOB_STATES = {
    "intended": "to be submitted",
    "uploaded": "being submitted",
    "creating": "being submitted",
    "submitted": "with the provider",
    "ended": "to be collected",
}


def job_state(job: JobReport) -> str:
    """`with the provider`, `to be collected`, and once it is collected how it ended."""
    if job.state == "ended" and job.ended_as != "succeeded":
        return f"{job.ended_as}, to be collected"
    return _JOB_STATES.get(job.state) or job.ended_as


def job_lines(job: JobReport) -> str:
    """`8 of 10 answered, 2 failed`."""
    parts = [f"{count(job.lines_answered)} of {count(job.lines)} answered"]
    parts += [
        f"{count(number)} {name}"
        for number, name in (
            (job.lines_failed, "failed"),
            (job.lines_not_asked, "not asked"),
            (job.lines_lost, "lost"),
        )
        if number
    ]
    return ", ".join(parts)


def jobs_line(jobs: ProviderJobs) -> str:
    """`12 (3 open, 1 to be collected, 8 collected), 40 rows under way; half took at most 9 s`."""
    states = [
        f"{count(number)} {name}"
        for number, name in (
            (jobs.open, "open"),
            (jobs.ended, "to be collected"),
            (jobs.collected, "collected"),
            (jobs.abandoned, "never created"),
        )
        if number
    ]
    text = f"{count(jobs.total)} ({', '.join(states)})"
    if jobs.failed > jobs.abandoned:
        text += f", {count(jobs.failed - jobs.abandoned)} failed, expired or cancelled"
    if jobs.rows_under_way:
        text += f", {plural(jobs.rows_under_way, 'row')} under way"
    return f"{text}; {took_line(jobs)}" if jobs.took_p50_s is not None else text


def took_line(jobs: ProviderJobs) -> str:
    """`half took at most 2 min 05 s, 90 % at most 9 min 12 s`; `took 9 s` of a single one."""
    if jobs.took_p50_s is None:
        return "none has ended yet"
    if jobs.total == 1:
        return f"took {duration(jobs.took_p50_s)}"
    return (
        f"half took at most {duration(jobs.took_p50_s)}, 90 % at most {duration(jobs.took_p90_s)}"
    )


def unanswered_line(lines: UnansweredLines) -> str:
    """`4 lines (40 rows) expired at the provider before they were asked; they cost nothing`."""
    text = f"{plural(lines.lines, 'line')} ({plural(lines.rows, 'row')}) {lines.text}"
    return f"{text}, at most {money(lines.worst_usd)}" if lines.lost else text


def lane_name(lane: str) -> str:
    """`Real time`, `Batch`."""
    return "Batch" if lane == "batch" else "Real time"


def lane_line(lane: LaneUse) -> str:
    """`batch $0.0045 for 4 lines`."""
    one = "line" if lane.lane == "batch" else "call"
    return f"{lane_name(lane.lane).lower()} {money(lane.cost_usd)} for {plural(lane.attempts, one)}"


def saving_line(found: LaneSaving) -> str:
    """`saved $0.0045 (50.0 %): the same tokens cost $0.0090 at the standard price (computed)`."""
    share = f" ({percent(abs(found.saved_share))})" if found.saved_share is not None else ""
    what = "saved" if found.saved_usd >= 0 else "cost more by"
    return (
        f"{what} {money(abs(found.saved_usd))}{share}: the same tokens of "
        f"{plural(found.lines, 'line')} cost {money(found.standard_usd)} at the standard price "
        "(computed)"
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a batch stands, in one phrase."""

    tone: Literal["good", "warn", "bad"]
    text: str


def verdict(report: BatchReport) -> Verdict:
    """The phrase under a report's title."""
    outcomes = report.outcomes
    under_way = _under_way(report)
    left = [
        plural(number, "row") + f" {name}"
        for number, name in (
            (outcomes.failed, "failed"),
            (outcomes.blocked, "blocked"),
            (under_way, "in provider jobs"),
            (outcomes.pending - under_way, "pending"),
        )
        if number
    ]
    if not left:
        text = "All rows done" if not outcomes.skipped else "All rows done or skipped"
        return Verdict("good", text)
    newest = _newest(report)
    if newest is not None and newest.status in _OUT_OF and outcomes.pending:
        left.insert(0, _OUT_OF[newest.status])
    elif _goes_on(report):
        left.insert(0, "Submitted")
    return Verdict("bad" if outcomes.failed else "warn", ", ".join(left))


def all_cached(report: BatchReport) -> bool:
    """Whether the run at hand (or else the batch) needed no call because every row was answered."""
    if report.this_run is not None:
        counts = report.this_run.counts
        return (
            counts is not None
            and counts.attempts == 0
            and counts.cache_hits > 0
            and counts.cache_hits == counts.outcomes.total - counts.outcomes.skipped
        )
    return (
        report.attempts == 0
        and report.cache_hits > 0
        and report.cache_hits == report.rows - report.outcomes.skipped
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that needs a person."""

    title: str
    text: str
    rows: str
    next_step: str


def problems(report: BatchReport) -> list[Problem]:
    """What stopped the newest run, what is left to do, and why rows ended without a result."""
    found = []
    newest = _newest(report)
    under_way = _under_way(report)
    retry = f"Run `batch-pipeline retry {report.batch}`: finished rows cost nothing."
    if newest is not None and newest.status in ("stopped", "interrupted", "crashed"):
        text = newest.message or "It was asked to stop; what was in flight is settled."
        found.append(
            Problem(f"The run was {_PAST.get(newest.status, newest.status)}", text, "", "")
        )
    if newest is not None and newest.status in _OUT_OF:
        step = (
            f"Give the one that is used up more: `batch-pipeline retry {report.batch}` with "
            "`--budget USD` for the batch, `--daily-budget USD` for the day, or "
            "`--provider-daily-budget USD`. Finished rows cost nothing."
            if newest.status == "budget"
            else f"Run `batch-pipeline retry {report.batch}` after the reset: finished rows cost "
            "nothing."
        )
        found.append(Problem(_OUT_OF[newest.status], _without_title(newest), "", step))
        retry = ""
    if _goes_on(report):
        found.append(_going_on(report, under_way))
    for cause in report.errors:
        shown = ", ".join(f"{row.number} ({row.item_id[:60]})" for row in cause.examples)
        more = "rows " if len(cause.examples) > 1 else "row "
        found.append(
            Problem(
                f"{plural(cause.rows, 'row')} {cause.outcome}",
                cause.cause,
                ("for example " if cause.rows > len(cause.examples) else "") + more + shown,
                cause.next_step,
            )
        )
    pending = report.outcomes.pending - under_way
    if pending and not (newest is not None and newest.status == _SUBMITTED):
        found.append(
            Problem(
                f"{plural(pending, 'row')} pending",
                "They have not been asked about yet.",
                "",
                retry,
            )
        )
    return found


_SUBMITTED = "submitted"


def _under_way(report: BatchReport) -> int:
    """Pending rows that provider jobs ask about."""
    jobs = report.provider_jobs
    return 0 if jobs is None else min(jobs.rows_under_way, report.outcomes.pending)


def _goes_on(report: BatchReport) -> bool:
    """Whether rows are in provider jobs, or wait until they can be."""
    newest = _newest(report)
    submitted = newest is not None and newest.status == _SUBMITTED
    return bool(_under_way(report) or (submitted and report.outcomes.pending))


def _going_on(report: BatchReport, under_way: int) -> Problem:
    """Rows of the batch lane, and who goes on with them."""
    jobs, newest = report.provider_jobs, _newest(report)
    waiting = report.outcomes.pending - under_way
    said = []
    if jobs is not None and jobs.ended:
        said.append(
            f"{plural(jobs.ended, 'provider job')} ended: {'its' if jobs.ended == 1 else 'their'} "
            "answers wait to be collected."
        )
    if jobs is not None and jobs.open:
        said.append(f"{plural(jobs.open, 'provider job')} not ended yet.")
    if waiting and newest is not None and newest.status == _SUBMITTED:
        wait = "waits" if waiting == 1 else "wait"
        said.append(f"{plural(waiting, 'further row')} {wait} for room in jobs, or for answers.")
    said.append(
        "While the Dagster daemon runs (`make dev`), its sensor collects answers and submits what "
        "waits; nothing is to be done."
    )
    return Problem(
        f"{plural(under_way, 'row')} in provider jobs",
        " ".join(said),
        "",
        f"Without the daemon: `batch-pipeline batches collect {report.batch}`, now and again.",
    )


def heading(found: list[Problem], report: BatchReport) -> str:
    """What stands over the problems."""
    if not found:
        return "Nothing needs you"
    return "What is under way" if len(found) == 1 and _goes_on(report) else "What needs you"


def _without_title(run: RunReport) -> str:
    """A run's message, which may begin with what the title says already."""
    title = _OUT_OF[run.status]
    if not run.message.lower().startswith(f"{title.lower()}: "):
        return run.message
    return run.message[len(title) + 2 :]


def _newest(report: BatchReport) -> RunReport | None:
    return report.this_run or (report.runs[0] if report.runs else None)


_PAST = {"crashed": "cut off"}
_OUT_OF = {"budget": "Budget reached", "daily_limit": "Daily limit reached"}
"""Runs that end so left what they could not ask pending; nothing went wrong."""
