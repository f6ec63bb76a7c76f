"""The report as Markdown, for the metadata of a Dagster asset: tables, and charts as data URIs.

What belongs here: Markdown and its escaping. What does not: charts (charts.py), phrases (words.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from batch_pipeline.reports import words
from batch_pipeline.reports.model import BatchReport, ChunkReport, ProblemRow
from batch_pipeline.wording import plural

if TYPE_CHECKING:
    from batch_pipeline.reports.charts import Chart

_MAX_ROWS = 50
_MAX_TEXT = 300
_MAX_SENTENCE = 900
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~.:@/-])")


def render_markdown(report: BatchReport, charts: Sequence[Chart] | None = None) -> str:
    """The report, short enough for a metadata entry: at most 50 rows and chunks each.

    Args:
        report: the report.
        charts: its charts; None draws them.
    """
    from batch_pipeline.reports.charts import draw_charts

    drawn = draw_charts(report) if charts is None else charts
    blocks = [f"# {_text(report.batch)}"]
    if report.simulated:
        blocks.append(f"> **Simulated.** {words.SIMULATED}")
    if words.all_cached(report):
        blocks.append("**All rows cached:** no calls were needed.")
    blocks.append(f"**{_text(words.verdict(report).text)}**")
    blocks.append(_table(["", ""], _figures(report)))
    blocks += [f"![{_text(chart.title)}]({chart.image})" for chart in drawn if chart.image]
    blocks += _problems(report)
    blocks += _waiting(report)
    blocks += _decisions(report)
    blocks += _summary(report)
    blocks += _hints(report)
    blocks += _provider_jobs(report)
    blocks += _who_answered(report)
    blocks += _steps(report)
    blocks += _estimate(report)
    blocks += _money(report)
    if report.notes or report.warnings:
        notes = [f"- {_text(note)}" for note in (*report.notes, *report.warnings)]
        blocks += ["## Good to know", "\n".join(notes)]
    if report.deliverables:
        blocks += ["## Files", "\n".join(f"- {_text(path)}" for path in report.deliverables)]
    blocks += ["## Chunks", chunk_markdown(report.chunks)]
    return "\n\n".join(blocks) + "\n"


def chunk_markdown(chunks: Sequence[ChunkReport]) -> str:
    """A table of chunks, the first 50."""
    rows = [
        [
            _text(chunk.chunk_key),
            *(
                words.count(number)
                for number in (
                    chunk.rows,
                    chunk.outcomes.succeeded,
                    chunk.outcomes.failed,
                    chunk.outcomes.blocked,
                    chunk.outcomes.skipped,
                    chunk.outcomes.pending,
                    chunk.cache_hits,
                )
            ),
            words.money(chunk.cost_usd),
        ]
        for chunk in chunks[:_MAX_ROWS]
    ]
    outcomes = ["Succeeded", "Failed", "Blocked", "Skipped", "Pending"]
    return _table(["Chunk", "Rows", *outcomes, "Cached", "Cost"], rows) + _more(
        len(chunks), "chunk"
    )


def _figures(report: BatchReport) -> list[list[str]]:
    outcomes = report.outcomes
    lost = report.lost_cost_usd
    per_1000 = report.cost_per_1000_rows_usd
    figures = [
        ("Rows succeeded", words.part(outcomes.succeeded, report.rows)),
        ("Success rate", f"{words.percent(report.success_rate)} of {words.count(outcomes.ended)} "
         "that ended"),
        ("From the cache", words.part(report.cache_hits, outcomes.succeeded)),
        ("Requests", words.count(report.requests)),
        ("Attempts", words.count(report.attempts)),
        *([("Searches", words.searches_line(report.searches))] if report.searches else []),
        ("Input tokens", words.count(report.tokens.input)),
        ("Output tokens", words.count(report.tokens.output)),
        ("Cost", words.money(report.cost_usd)
         + (f" + up to {words.money(lost)} for lost calls" if lost else "")),
        ("Per 1,000 rows asked", words.money(per_1000) if per_1000 is not None else "-"),
        ("Time", f"{words.duration(report.wall_s)} in {plural(report.runs_total, 'run')}"),
        ("Rate wait", f"{words.duration(report.rate_wait_s)} over all calls"),
        ("Latency", f"p50 {words.duration(report.latency.p50_s)}, "
         f"p95 {words.duration(report.latency.p95_s)}"),
    ]  # fmt: skip
    return [[f"**{name}**", value] for name, value in figures]


def _problems(report: BatchReport) -> list[str]:
    found = words.problems(report)
    if not found:
        return []
    blocks = [f"## {words.heading(found, report)}"]
    for problem in found:
        where = f" ({_text(problem.rows)})" if problem.rows else ""
        line = f"- **{_text(problem.title)}**: {_text(problem.text)}{where}"
        # Our own words, whose backticks are meant; the batch id in them is a safe name.
        blocks.append(line + (f"  \n  Next: {problem.next_step}" if problem.next_step else ""))
    if report.problem_rows:
        total = report.outcomes.failed + report.outcomes.blocked
        blocks.append(
            _table(
                ["Row", "Item", "Outcome", "Error"],
                map(_problem_row, report.problem_rows[:_MAX_ROWS]),
            )
            + _more(total, "row")
        )
    return blocks


def _waiting(report: BatchReport) -> list[str]:
    if not report.waiting:
        return []
    rows = [
        [
            words.count(row.number),
            _text(f"{row.name or row.item_id}: {row.headline}"),
            _text(row.why) + (" Needs a sign-off." if row.signoff_required else ""),
            words.moment(row.since),
            f"`{row.command}`",
        ]
        for row in report.waiting
    ]
    names = ["Row", "What waits", "Why", "Since", "Look at it"]
    return ["## Waiting for a decision", _text(words.waiting_line(report)), _table(names, rows)]


def _decisions(report: BatchReport) -> list[str]:
    found = report.decisions
    if found is None:
        return []
    rows = [
        [
            words.count(row.number),
            _text(row.item_id),
            row.decision + (", signed off" if row.signed_off else ""),
            _text(row.reviewer),
            _text(row.reason),
            words.moment(row.decided_at),
            row.outcome,
        ]
        for row in found.rows[:_MAX_ROWS]
    ]
    names = ["Row", "Item", "Decision", "Who", "Why", "When", "Row is now"]
    return [
        "## People's decisions",
        _text(f"{words.decisions_line(found)}."),
        _table(names, rows) + _more(found.total, "decision"),
    ]


def _summary(report: BatchReport) -> list[str]:
    summary = report.summary
    if summary is None:
        return []
    figures = [[f"**{_text(one.name)}**", words.summary_figure(one)] for one in summary.figures]
    blocks = [f"## {_text(summary.title)}", _table(["", ""], figures)]
    for table in summary.tables:
        rows = [
            [_text(entry.label), words.count(entry.rows), words.percent(entry.rows / table.of)]
            for entry in table.entries
        ]
        blocks.append(f"**{_text(table.title)}**: {_text(words.summary_caption(table))}")
        if rows:
            blocks.append(_table([_text(table.title), "Rows", "Share"], rows))
    return blocks


def _hints(report: BatchReport) -> list[str]:
    if not report.hints:
        return []
    lines = [
        f"- **{_text(hint.title)}**: {_text(hint.text)}  \n  Next: {hint.next_step}"
        for hint in report.hints
    ]
    return ["## For the next run", "\n".join(lines)]


def _provider_jobs(report: BatchReport) -> list[str]:
    jobs = report.provider_jobs
    if jobs is None:
        return []
    rows = [
        [
            _text(job.job_id),
            _text(f"{job.model} {job.remote_name or ''}"),
            words.job_state(job),
            words.count(job.rows),
            words.job_lines(job),
            words.count(job.tokens),
            words.moment(job.submitted_at),
            words.duration(job.took_s),
            words.money(job.cost_usd),
        ]
        for job in jobs.jobs[-_MAX_ROWS:]
    ]
    names = ["Job", "At the provider", "State", "Rows", "Lines", "Tokens", "Submitted", "Took"]
    blocks = [
        "## Provider jobs",
        _text(f"{words.jobs_line(jobs)}."),
        _table([*names, "Cost"], rows) + _more(jobs.total, "job"),
    ]
    blocks += [f"- {_text(words.unanswered_line(lines))}." for lines in jobs.unanswered]
    return blocks


def _who_answered(report: BatchReport) -> list[str]:
    if not report.models:
        return []
    rows = [
        [
            _text(use.model),
            *(
                words.count(number)
                for number in (
                    use.rows,
                    use.attempts,
                    use.attempts_answered,
                    use.attempts_rate_limited,
                    use.attempts_server_error,
                    use.attempts_timed_out,
                    use.attempts_other_error,
                )
            ),
            words.duration(use.latency.p50_s),
            words.duration(use.latency.p95_s),
            words.money(use.cost_usd) if use.priced else "unknown",
        ]
        for use in report.models
    ]
    attempts = ["Attempts", "Replies", "429", "5xx", "Timeouts", "Other errors"]
    return [
        "## Who answered what",
        *(_text(fallback.text, _MAX_SENTENCE) for fallback in report.fallbacks),
        _table(["Model", "Rows", *attempts, "p50", "p95", "Cost"], rows),
    ]


def _steps(report: BatchReport) -> list[str]:
    if len(report.steps) < 2 and not report.searches:
        return []
    rows = [
        [
            _text(use.step),
            *(
                words.count(number)
                for number in (
                    use.requests,
                    use.attempts,
                    use.tokens.input,
                    use.tokens.cached_input,
                    use.tokens.output,
                )
            ),
            words.duration(use.latency.p50_s),
            words.duration(use.latency.p95_s),
            words.money(use.cost_usd),
        ]
        for use in report.steps
    ]
    numbers = ["Requests", "Attempts", "Input tokens", "of it cached", "Output tokens"]
    blocks = ["## Step by step", _table(["Step", *numbers, "p50", "p95", "Cost"], rows)]
    blocks += [
        f"- Search, {_text(use.endpoint)}: {_text(words.search_line(use))}."
        for use in report.searches
    ]
    return blocks


def _estimate(report: BatchReport) -> list[str]:
    check = report.estimate
    if check is None:
        return []
    rows = [
        [
            words.ESTIMATE_NAMES[line.name],
            *(
                words.figure(line.name, value)
                for value in (line.low, line.expected, line.worst, line.actual)
            ),
            words.deviation(line.deviation_percent),
        ]
        for line in check.lines
    ]
    names = ["", "Low", "Expected", "Worst", "Actual", "Off by"]
    left = "" if check.complete else " Rows are pending, so nothing is compared yet."
    return ["## Estimate and actual", _table(names, rows), _text(f"By {check.basis}.{left}")]


def _money(report: BatchReport) -> list[str]:
    spent = report.money
    lines = []
    if any(lane.lane == "batch" for lane in report.lanes):
        lines += [f"- Lane, {words.lane_line(lane)}." for lane in report.lanes]
    if report.lane_saving is not None:
        lines.append(f"- The batch lane {words.saving_line(report.lane_saving)}.")
    if spent.lost_calls:
        lines.append(
            f"- Lost: up to {words.money(spent.lost_usd)} for "
            f"{plural(spent.lost_calls, 'call')} whose reply is not there. "
            f"`batch-pipeline reconcile {report.batch}` settles them."
        )
    if spent.reserved_calls:
        calls = plural(spent.reserved_calls, "call")
        lines.append(f"- Reserved now: {words.money(spent.reserved_usd)} for {calls} under way.")
    if spent.reconciled_calls:
        calls = plural(spent.reconciled_calls, "lost call")
        lines.append(f"- Reconciled: {words.money(spent.reconciled_usd)} for {calls}.")
    lines += [
        f"- Budget, {_text(words.budget_name(budget))}: {words.budget_line(budget)}."
        for budget in spent.budgets
    ]
    if report.prompt_cache.models:
        lines.append(f"- Prompt cache: {words.cache_line(report.prompt_cache)}.")
    lines += [
        f"- Rate limit, {_text(limit.model)}: {words.limit_line(limit)}." for limit in report.limits
    ]
    return ["## Money", "\n".join(lines)] if lines else []


def _problem_row(row: ProblemRow) -> list[str]:
    return [words.count(row.number), _text(row.item_id), row.outcome, _text(row.error)]


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _more(total: int, one: str) -> str:
    left = total - _MAX_ROWS
    return f"\n\n... and {plural(left, 'more ' + one)}: see the HTML report." if left > 0 else ""


def _text(text: str, most: int = _MAX_TEXT) -> str:
    """Text from rows, models and users: neither markup nor HTML, on one line."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= most else f"{flat[:most]}…"
    return _SPECIAL.sub(r"\\\1", escape(short, quote=False))
