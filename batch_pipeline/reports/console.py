"""The end-of-run summary on a terminal.

What belongs here: what Rich prints. What does not: progress while a run goes on (cli), and anything
slow to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from batch_pipeline.reports import words
from batch_pipeline.reports.model import BatchReport, RunCounts, SkipCause
from batch_pipeline.wording import plural

_MAX_PROBLEMS = 5
_MAX_HINTS = 3
_MAX_LABELS = 8
_STYLES = {"good": "green", "warn": "yellow", "bad": "red"}


def print_summary(report: BatchReport, console: Console) -> None:
    """Print what the run came to, or, for a report made for no run, the batch so far.

    Args:
        report: the report; with `this_run`, counts and cost are that run's and the batch's follow.
        console: where to.
    """
    console.print()
    console.rule(f"[bold]{escape(report.workload.upper())} SUMMARY[/bold]", characters="=")
    if report.simulated:
        console.print(Text(f"SIMULATED. {words.SIMULATED}", style="yellow"))
    if words.all_cached(report):
        console.print(Text("All rows cached: no calls were needed.", style="bold green"))
    run = report.this_run
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("Batch", Text(f"{report.batch} (from {report.source})"))
    if run is not None and run.counts is not None:
        _add_run(table, run.counts, report.skipped)
    else:
        _add_batch(table, report)
    if run is not None and (report.runs_total > 1 or run.counts is None):
        table.add_row(
            "Batch so far",
            f"{words.part(report.outcomes.succeeded, report.rows)} rows succeeded, "
            f"{plural(report.requests, 'request')}, {words.money(report.cost_usd)} "
            f"in {plural(report.runs_total, 'run')}",
        )
    _add_money(table, report)
    _add_people(table, report)
    _add_summary(table, report)
    for name, path in _files(report):
        table.add_row(name, Text(path))
    console.print(table)
    _print_problems(report, console)
    _print_hints(report, console)
    console.rule(characters="=")


def _add_run(table: Table, counts: RunCounts, skipped: Sequence[SkipCause]) -> None:
    outcomes = counts.outcomes
    _add_rows(
        table,
        total=outcomes.total,
        cache_hits=counts.cache_hits,
        newly=max(0, outcomes.succeeded - counts.cache_hits),
        failed=outcomes.failed,
        blocked=outcomes.blocked,
        skipped=outcomes.skipped,
        pending=outcomes.pending,
        succeeded=outcomes.succeeded,
        reasons=skipped,
    )
    _add_spend(
        table,
        asked=max(0, outcomes.ended - counts.cache_hits),
        calls_s=counts.calls_s,
        requests=counts.requests,
        attempts=counts.attempts,
        cost_usd=counts.cost_usd,
        lost_cost_usd=counts.lost_cost_usd,
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        wall_s=counts.wall_s,
        rate_wait_s=counts.rate_wait_s,
    )


def _add_batch(table: Table, report: BatchReport) -> None:
    outcomes = report.outcomes
    _add_rows(
        table,
        total=report.rows,
        cache_hits=report.cache_hits,
        newly=outcomes.succeeded - report.cache_hits,
        failed=outcomes.failed,
        blocked=outcomes.blocked,
        skipped=outcomes.skipped,
        pending=outcomes.pending,
        succeeded=outcomes.succeeded,
        reasons=report.skipped,
    )
    _add_spend(
        table,
        asked=max(0, outcomes.ended - report.cache_hits),
        calls_s=report.calls_s,
        requests=report.requests,
        attempts=report.attempts,
        cost_usd=report.cost_usd,
        lost_cost_usd=report.lost_cost_usd,
        input_tokens=report.tokens.input,
        output_tokens=report.tokens.output,
        wall_s=report.wall_s,
        rate_wait_s=report.rate_wait_s,
    )


def _add_rows(
    table: Table,
    *,
    total: int,
    cache_hits: int,
    newly: int,
    failed: int,
    blocked: int,
    skipped: int,
    pending: int,
    succeeded: int,
    reasons: Sequence[SkipCause],
) -> None:
    ended = succeeded + failed + blocked
    table.add_row("Total rows", words.count(total))
    table.add_row("Processed", words.part(ended, total))
    table.add_row("Cache hits", words.part(cache_hits, total))
    table.add_row("Newly enriched", words.count(newly))
    style = "red" if failed else ""
    table.add_row("Failed", Text(words.part(failed, ended) if failed else "0", style=style))
    style = "yellow" if blocked else ""
    table.add_row("Blocked", Text(words.part(blocked, ended) if blocked else "0", style=style))
    if skipped:
        why = words.skips_line(reasons) or "nothing to ask, or decided so"
        table.add_row("Skipped", Text(f"{words.count(skipped)} ({why})"))
    if pending:
        table.add_row("Pending", Text(words.count(pending), style="yellow"))
    rate = words.percent(succeeded / ended if ended else None)
    table.add_row("Success rate", f"{rate} of {plural(ended, 'row')} that ended")


def _add_spend(
    table: Table,
    *,
    asked: int,
    calls_s: float,
    requests: int,
    attempts: int,
    cost_usd: float,
    lost_cost_usd: float,
    input_tokens: int,
    output_tokens: int,
    wall_s: float,
    rate_wait_s: float,
) -> None:
    again = f" ({plural(attempts, 'attempt')})" if attempts != requests else ""
    table.add_row("Requests", words.count(requests) + again)
    table.add_row("Tokens", f"{words.count(input_tokens)} in, {words.count(output_tokens)} out")
    lost = f" + up to {words.money(lost_cost_usd)} for lost calls" if lost_cost_usd else ""
    table.add_row("Cost", words.money(cost_usd) + lost)
    table.add_row("Time", words.duration(wall_s))
    if asked and requests and wall_s > 0:
        table.add_row(
            "Pace",
            f"{words.duration(wall_s / asked)} per row over {plural(asked, 'row')} asked, "
            f"{requests * 60 / wall_s:,.0f} requests a minute",
        )
    if calls_s > 0:
        table.add_row("", words.one_at_a_time(calls_s, wall_s))
    table.add_row("Rate wait", f"{words.duration(rate_wait_s)} (summed over calls)")


def _add_money(table: Table, report: BatchReport) -> None:
    """Of the whole batch: who answered, lanes, budgets, the prompt cache, the estimate."""
    called = [use for use in report.models if use.attempts]
    if len(called) > 1 or report.fallbacks:
        answered = [f"{use.model}: {plural(use.rows, 'row')}" for use in report.models]
        table.add_row("Answered by", Text("; ".join(answered)))
    if len(report.steps) > 1:
        for place, step in enumerate(report.steps):
            table.add_row("" if place else "Steps", Text(words.step_line(step)))
    for searched in report.searches:
        table.add_row("Search", Text(f"{searched.endpoint}: {words.search_line(searched)}"))
    if report.provider_jobs is not None:
        table.add_row("Provider jobs", words.jobs_line(report.provider_jobs))
        for lines in report.provider_jobs.unanswered:
            table.add_row("", words.unanswered_line(lines))
    if any(lane.lane == "batch" for lane in report.lanes):
        table.add_row("Lanes", "; ".join(map(words.lane_line, report.lanes)))
    if report.lane_saving is not None:
        table.add_row("Batch lane", words.saving_line(report.lane_saving))
    for budget in report.money.budgets:
        scope = "" if budget.scope == "batch" else f" ({words.budget_name(budget)})"
        table.add_row("Budget", Text(f"{words.budget_line(budget)}{scope}"))
    if report.prompt_cache.models:
        table.add_row("Prompt cache", words.cache_line(report.prompt_cache))
    if report.estimate is not None:
        table.add_row("Estimate", words.estimate_line(report.estimate))


def _add_people(table: Table, report: BatchReport) -> None:
    """What waits for a person, and what people decided."""
    if report.waiting:
        first = report.waiting[0]
        table.add_row("Waiting", Text(f"{words.waiting_line(report)} First: {first.command}"))
    if report.decisions is not None:
        table.add_row("Decisions", words.decisions_line(report.decisions))


def _add_summary(table: Table, report: BatchReport) -> None:
    """What the outputs say, of the whole batch."""
    if report.summary is None:
        return
    for figure in report.summary.figures:
        table.add_row(figure.name, words.summary_figure(figure))
    for labels in report.summary.tables:
        if labels.of:
            table.add_row(labels.title, Text(words.summary_line(labels, _MAX_LABELS)))


def _files(report: BatchReport) -> list[tuple[str, str]]:
    """All files of one folder in one line, so that the lines stay few."""
    folders: dict[str, list[str]] = {}
    for path in map(Path, report.deliverables):
        folders.setdefault(str(path.parent), []).append(path.name)
    return [("Files", f"{folder}: {', '.join(names)}") for folder, names in folders.items()]


def _print_problems(report: BatchReport, console: Console) -> None:
    found = words.problems(report)
    if not found:
        return
    console.print()
    style = _STYLES[words.verdict(report).tone]
    for problem in found[:_MAX_PROBLEMS]:
        line = Text("! ", style=style)
        line.append(problem.title, style="bold")
        line.append(f": {problem.text}")
        if problem.rows:
            line.append(f" ({problem.rows})")
        console.print(line)
        if problem.next_step:
            console.print(Text(f"  Next: {problem.next_step}"))
    if len(found) > _MAX_PROBLEMS:
        more = plural(len(found) - _MAX_PROBLEMS, "more problem")
        console.print(Text(f"  ... and {more}: see the report."))


def _print_hints(report: BatchReport, console: Console) -> None:
    """Why rows were answered by another model than asked for, and what to do better."""
    if not report.fallbacks and not report.hints:
        return
    console.print()
    for fallback in report.fallbacks[:_MAX_HINTS]:
        console.print(Text(f"* {fallback.text}"))
    for hint in report.hints[:_MAX_HINTS]:
        line = Text("* ")
        line.append(hint.title, style="bold")
        line.append(f": {hint.text}")
        console.print(line)
        console.print(Text(f"  Next: {hint.next_step}"))
