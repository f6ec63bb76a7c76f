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

if TYPE_CHECKING:
    from batch_pipeline.reports.charts import Chart

_MAX_ROWS = 50
_MAX_TEXT = 300
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
        ("Input tokens", words.count(report.tokens.input)),
        ("Output tokens", words.count(report.tokens.output)),
        ("Cost", words.money(report.cost_usd)
         + (f" + up to {words.money(lost)} for lost calls" if lost else "")),
        ("Per 1,000 rows asked", words.money(per_1000) if per_1000 is not None else "-"),
        ("Time", f"{words.duration(report.wall_s)} in {words.plural(report.runs_total, 'run')}"),
        ("Rate wait", f"{words.duration(report.rate_wait_s)} over all calls"),
        ("Latency", f"p50 {words.duration(report.latency.p50_s)}, "
         f"p95 {words.duration(report.latency.p95_s)}"),
    ]  # fmt: skip
    return [[f"**{name}**", value] for name, value in figures]


def _problems(report: BatchReport) -> list[str]:
    found = words.problems(report)
    if not found:
        return []
    blocks = ["## What needs you"]
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


def _problem_row(row: ProblemRow) -> list[str]:
    return [words.count(row.number), _text(row.item_id), row.outcome, _text(row.error)]


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _more(total: int, one: str) -> str:
    left = total - _MAX_ROWS
    return (
        f"\n\n... and {words.plural(left, 'more ' + one)}: see the HTML report." if left > 0 else ""
    )


def _text(text: str) -> str:
    """Text from rows, models and users: neither markup nor HTML, on one line."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= _MAX_TEXT else f"{flat[:_MAX_TEXT]}…"
    return _SPECIAL.sub(r"\\\1", escape(short, quote=False))
