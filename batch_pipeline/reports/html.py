"""The report as one self-contained HTML page: no scripts, nothing loaded from anywhere.

What belongs here: filling the template. What does not: the page (page.html.j2), charts (charts.py),
phrases (words.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from batch_pipeline.reports import words
from batch_pipeline.reports.model import BatchReport
from batch_pipeline.wording import plural

if TYPE_CHECKING:
    from batch_pipeline.reports.charts import Chart


_COMMAND = re.compile(r"`([^`]*)`")
_NAME = re.compile(r" \((.*?)\)(?=, \d|$)")


def render_html(report: BatchReport, charts: Sequence[Chart] | None = None) -> str:
    """The page.

    Args:
        report: the report.
        charts: its charts; None draws them.
    """
    import jinja2
    from markupsafe import Markup, escape

    from batch_pipeline.reports.charts import ESTIMATE_TITLE, draw_charts

    def with_code(text: str) -> Markup:
        """Commands stand between backticks in our own phrases."""
        return Markup(_COMMAND.sub(r"<code>\1</code>", str(escape(text))))

    def with_names(text: str) -> Markup:
        """Rows' names stand in parentheses; each reads in its own direction."""
        return Markup(_NAME.sub(r" (<bdi>\1</bdi>)", str(escape(text))))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("batch_pipeline.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        words.budget_line,
        words.budget_name,
        words.cache_line,
        words.count,
        words.decisions_line,
        words.deviation,
        words.duration,
        words.expected_figure,
        words.job_lines,
        words.job_state,
        words.jobs_line,
        words.lane_name,
        words.limit_line,
        words.moment,
        words.money,
        words.part,
        words.percent,
        plural,
        words.saving,
        words.saving_line,
        words.searches_line,
        words.summary_caption,
        words.took_line,
        words.unanswered_line,
        words.waiting_line,
    ):
        environment.filters[function.__name__] = function
    environment.filters["with_code"] = with_code
    environment.filters["with_names"] = with_names
    environment.globals["one_at_a_time"] = words.one_at_a_time
    environment.globals["figure"] = words.figure
    drawn = draw_charts(report) if charts is None else charts
    problems = words.problems(report)
    # matplotlib's own output, in which it has escaped every text.
    shown = [(chart.title, chart.caption, Markup(chart.svg)) for chart in drawn]
    return environment.get_template("page.html.j2").render(
        report=report,
        charts=[chart for chart in shown if chart[0] != ESTIMATE_TITLE],
        estimate_chart=next((chart for chart in shown if chart[0] == ESTIMATE_TITLE), None),
        estimate_names=words.ESTIMATE_NAMES,
        verdict=words.verdict(report),
        problems=problems,
        problems_heading=words.heading(problems, report),
        all_cached=words.all_cached(report),
        simulated_text=words.SIMULATED,
    )
