"""How a batch report of article jobs looks in a terminal: the guide's blocks, and more.

What belongs here: laying out reports that were read from files, and jobs. What does not: the
report (workloads/articles/batch_report.py), choosing what to show (report.py).

Reports come from files, so that nothing in them is markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from batch_pipeline.cli.output import SIMULATED_NOTICE, Output, cut, duration, grid, usd

if TYPE_CHECKING:
    from rich.table import Table

    from batch_pipeline.workloads.articles.batch_report import (
        ArticleReport,
        JobResult,
        ReportSummary,
    )

RULE = "=" * 70
SYMBOLS = {"DELIVERED": "✓", "BLOCKED": "⚠", "ABORTED": "✗", "PENDING": "·", "SKIPPED": "-"}
_STYLES = {"DELIVERED": "green", "BLOCKED": "yellow", "ABORTED": "red"}
_NO_PROVIDER = "no model"
_WHY_CHARS = 160


def print_job_report(voice: Output, report: ArticleReport, *, details: bool) -> None:
    """Print one report: the blocks of the guide, then cost, tokens and waits, then its jobs."""
    meta = report.batch_meta
    lines = [RULE, "BATCH MONITOR", RULE, ""]
    if meta.batch_id:
        lines += [f"Batch:      {meta.batch_id}"]
    if meta.simulated:
        lines += [SIMULATED_NOTICE]
    minutes = f" ({meta.duration_seconds / 60:.1f} minutes)"
    lines += [
        f"Started:    {meta.started_at or 'not recorded'}",
        f"Completed:  {meta.completed_at or 'not yet'}",
        f"Duration:   {meta.duration_seconds:.1f}s{minutes}",
        "",
        "Configuration:",
        f"  Workers:      {'not recorded' if meta.max_workers is None else meta.max_workers}",
        f"  Rate limit:   {_rate(meta.rate_limit)}",
        "",
        "Results:",
        *_results(report.summary),
        "",
        *_providers(report.results),
        "",
        *_strategies(report.results),
        "",
        *_performance(report.results),
        "",
        *_money(report.summary),
    ]
    voice.out.print("\n".join(lines), markup=False, soft_wrap=True)
    if report.summary.models:
        voice.out.print()
        voice.out.print(_models(report.summary))
    if details:
        print_jobs(voice, report.results)


def print_jobs(voice: Output, results: Iterable[JobResult]) -> None:
    """Print each job: what, by whom, how long, for how much, and why it is not delivered."""
    voice.out.print("\nJobs:", markup=False)
    for result in results:
        config, made = result.job_config, result.metrics.generation
        by = f"{made.provider}/{made.model}" if made.model else made.provider or _NO_PROVIDER
        strategy = config.writing_strategy or config.strategy or "strategy not recorded"
        facts = [by, strategy, f"{result.duration:.1f}s", usd(result.metrics.cost_usd)]
        if made.cached:
            facts.append("cached")
        voice.out.print(
            f"{SYMBOLS[result.status]} {result.status} {result.job_id}",
            markup=False,
            style=_STYLES.get(result.status, ""),
        )
        voice.out.print(
            f"    {config.publisher_domain} -> {config.target_url}\n    {' · '.join(facts)}",
            markup=False,
            soft_wrap=True,
        )
        for why in _why(result):
            voice.out.print(f"    {why}", markup=False, soft_wrap=True)


def print_sums(voice: Output, reports: Sequence[tuple[Path, ArticleReport]]) -> None:
    """The closing line of several reports."""
    sums = sums_of(reports)
    more = f" · {sums['blocked']:,} blocked · {sums['aborted']:,} aborted"
    if sums["pending"]:
        more += f" · {sums['pending']:,} pending"
    if sums["skipped"]:
        more += f" · {sums['skipped']:,} skipped"
    batches = sums["batches"]
    of = f"{sums['reports']} reports of {batches} {'batch' if batches == 1 else 'batches'}"
    if sums["reports"] > batches:
        of += " (the newest of each counts)"
    voice.out.print(
        f"{RULE}\n{of}: {sums['total']:,} jobs · {sums['delivered']:,} delivered{more} · "
        f"{usd(sums['cost_usd'])} · {sums['attempts']:,} attempts",
        markup=False,
        soft_wrap=True,
    )


def sums_of(reports: Sequence[tuple[Path, ArticleReport]]) -> dict[str, Any]:
    """Sums over the newest report of each batch: every run of a batch leaves one."""
    newest = {report.batch_meta.batch_id or str(path): report for path, report in reports}
    summaries = [report.summary for report in newest.values()]
    counts = ("total", "delivered", "blocked", "aborted", "pending", "skipped", "attempts")
    return {
        "reports": len(reports),
        "batches": len(newest),
        **{name: sum(getattr(one, name) for one in summaries) for name in counts},
        "cost_usd": sum(one.cost_usd for one in summaries),
    }


def _rate(limit: float | None) -> str:
    return "none given" if limit is None else f"{limit:g}"


def _results(summary: ReportSummary) -> list[str]:
    counts = {
        "DELIVERED": summary.delivered,
        "BLOCKED": summary.blocked,
        "ABORTED": summary.aborted,
        "PENDING": summary.pending,
        "SKIPPED": summary.skipped,
    }
    lines = [f"  Total:        {summary.total}"]
    for status, count in counts.items():
        if count or status in ("DELIVERED", "BLOCKED", "ABORTED"):
            share = f" ({count / summary.total:.1%})" if summary.total else ""
            name = f"{status.capitalize()}:"
            lines.append(f"  {SYMBOLS[status]} {name:<11} {count}{share if count else ''}")
    return lines


def _delivered(results: Iterable[JobResult]) -> list[JobResult]:
    return [result for result in results if result.status == "DELIVERED"]


def _providers(results: Sequence[JobResult]) -> list[str]:
    delivered = _delivered(results)
    times: dict[str, list[float]] = {}
    for result in delivered:
        provider = result.metrics.generation.provider or _NO_PROVIDER
        times.setdefault(provider, []).append(result.duration)
    return [
        f"LLM Provider Usage: (of the {len(delivered):,} delivered jobs)",
        *(
            f"  {provider}: {len(took):,} jobs (avg {fmean(took):.1f}s)"
            for provider, took in sorted(times.items(), key=lambda one: (-len(one[1]), one[0]))
        ),
    ]


def _strategies(results: Sequence[JobResult]) -> list[str]:
    counts: dict[str, int] = {}
    for result in results:
        config = result.job_config
        strategy = config.writing_strategy or config.strategy or "not recorded"
        counts[strategy] = counts.get(strategy, 0) + 1
    return [
        f"Writing Strategy: (of all {len(results):,} jobs)",
        *(
            f"  {strategy}: {count:,} jobs"
            for strategy, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
        ),
    ]


def _performance(results: Sequence[JobResult]) -> list[str]:
    times = [result.duration for result in _delivered(results)]
    head = f"Performance: (of the {len(times):,} delivered jobs)"
    if not times:
        return [head, "  No job is delivered."]
    return [
        head,
        f"  Avg time:     {fmean(times):.1f}s",
        f"  Min time:     {min(times):.1f}s",
        f"  Max time:     {max(times):.1f}s",
    ]


def _money(summary: ReportSummary) -> list[str]:
    if "cost_usd" not in summary.model_fields_set:
        return ["Cost: not in this report"]
    tokens = summary.tokens
    lines = ["Cost and waiting: (of all jobs)", f"  Cost:         {usd(summary.cost_usd)}"]
    if summary.delivered:
        each = usd(summary.cost_usd / summary.delivered)
        lines[-1] += f" ({each} per delivered job)"
    if summary.lost_cost_usd:
        lost = usd(summary.lost_cost_usd)
        lines.append(f"  Lost:         at most {lost} for calls whose reply never came")
    cached = f" ({tokens.cached_input:,} from a prompt cache)" if tokens.cached_input else ""
    return [
        *lines,
        f"  Tokens:       {tokens.input:,} in{cached}, {tokens.output:,} out",
        f"  Attempts:     {summary.attempts:,}",
        f"  Rate waits:   {duration(summary.rate_wait_seconds)}, summed over attempts",
        f"  Cached:       {summary.cached:,} jobs that no model was called for",
    ]


def _models(summary: ReportSummary) -> Table:
    figures = ("Jobs", "Calls", "Tokens in", "out", "Cost")
    table = grid("Model", *figures, title="By model", right=figures)
    for use in summary.models:
        table.add_row(
            use.model,
            f"{use.jobs:,}",
            f"{use.attempts:,}",
            f"{use.tokens.input:,}",
            f"{use.tokens.output:,}",
            usd(use.cost_usd),
        )
    return table


def _why(result: JobResult) -> list[str]:
    """What is to be said of a job beyond its figures."""
    lines = []
    issues = result.qc_report.issues if result.qc_report else []
    if result.error:
        lines.append(f"Error: {cut(result.error, _WHY_CHARS)}")
    if issues:
        named = "; ".join(
            f"{one.get('severity')} {one.get('category')}: {one.get('message')}" for one in issues
        )
        lines.append(f"QC: {cut(named, _WHY_CHARS)}")
    if result.review is not None:
        review = result.review
        signed = ", signed off" if review.signed_off else ""
        lines.append(
            f"Decision: {review.decision} by {review.reviewer}{signed}: "
            f"{cut(review.reason, _WHY_CHARS)}"
        )
    return lines
