"""Numbers and verdicts in words, the same for every face of a report.

What belongs here: formatting, and what there is to say about a report. What does not: markup.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from batch_pipeline.limits.rates import UNITS
from batch_pipeline.reports.model import (
    BatchReport,
    BudgetUse,
    EstimateCheck,
    LimitUsed,
    PromptCache,
    RunReport,
)
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


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


ESTIMATE_NAMES = {
    "requests": "Requests",
    "input_tokens": "Input tokens",
    "cached_input_tokens": "of them cached",
    "output_tokens": "Output tokens",
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


def limit_line(limit: LimitUsed) -> str:
    """`1,200 requests a minute (setting)`."""
    source = {"user": "setting", "tier": "tier"}.get(limit.source, limit.source)
    return f"{limit.amount:,.0f} {UNITS.get(limit.dimension, limit.dimension)} ({source})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a batch stands, in one phrase."""

    tone: Literal["good", "warn", "bad"]
    text: str


def verdict(report: BatchReport) -> Verdict:
    """The phrase under a report's title."""
    outcomes = report.outcomes
    left = [
        plural(number, "row") + f" {name}"
        for name, number in (
            ("failed", outcomes.failed),
            ("blocked", outcomes.blocked),
            ("pending", outcomes.pending),
        )
        if number
    ]
    if not left:
        text = "All rows done" if not outcomes.skipped else "All rows done or skipped"
        return Verdict("good", text)
    newest = _newest(report)
    if newest is not None and newest.status in _OUT_OF and outcomes.pending:
        left.insert(0, _OUT_OF[newest.status])
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
    retry = f"Run `batch-pipeline retry {report.batch}`: finished rows cost nothing."
    if newest is not None and newest.status in ("stopped", "interrupted", "crashed"):
        text = newest.message or "It was asked to stop; what was in flight is settled."
        found.append(
            Problem(f"The run was {_PAST.get(newest.status, newest.status)}", text, "", "")
        )
    if newest is not None and newest.status in _OUT_OF:
        step = (
            f"Give it more: `batch-pipeline retry {report.batch} --budget USD` (or "
            "`--daily-budget`, `--provider-daily-budget`). Finished rows cost nothing."
            if newest.status == "budget"
            else f"Run `batch-pipeline retry {report.batch}` after the reset: finished rows cost "
            "nothing."
        )
        found.append(Problem(_OUT_OF[newest.status], _without_title(newest), "", step))
        retry = ""
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
    if report.outcomes.pending:
        found.append(
            Problem(
                f"{plural(report.outcomes.pending, 'row')} pending",
                "They have not been asked about yet.",
                "",
                retry,
            )
        )
    return found


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
