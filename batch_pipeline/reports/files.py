"""Writes a report's files: JSON, HTML and Markdown, each whole or not at all.

What belongs here: names and atomic writing. What does not: what is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from batch_pipeline.reports.model import BatchReport
from batch_pipeline.sinks.files import replaced_file

JSON_NAME = "batch_report.json"
HTML_NAME = "batch_report.html"
MARKDOWN_NAME = "batch_report.md"


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where a report was written."""

    json_path: Path
    html_path: Path
    markdown_path: Path


def write_reports(report: BatchReport, folder: Path) -> ReportFiles:
    """Write a report's three files; those of an earlier report of the batch are replaced.

    Args:
        report: the report.
        folder: created where absent, for its owner only.
    """
    from batch_pipeline.reports.charts import draw_charts
    from batch_pipeline.reports.html import render_html
    from batch_pipeline.reports.markdown import render_markdown

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    charts = draw_charts(report)
    files = ReportFiles(folder / JSON_NAME, folder / HTML_NAME, folder / MARKDOWN_NAME)
    texts = {
        files.json_path: report.model_dump_json(indent=2) + "\n",
        files.html_path: render_html(report, charts),
        files.markdown_path: render_markdown(report, charts),
    }
    for path, text in texts.items():
        with replaced_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return files
