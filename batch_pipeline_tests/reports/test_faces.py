"""The report's faces: what a browser, a terminal and the Dagster UI get to show."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from batch_pipeline.ledger.tables import items
from batch_pipeline.reports import words
from batch_pipeline.reports.build import build_report
from batch_pipeline.reports.charts import draw_charts
from batch_pipeline.reports.console import print_summary
from batch_pipeline.reports.files import write_reports
from batch_pipeline.reports.html import render_html
from batch_pipeline.reports.markdown import render_markdown
from batch_pipeline.reports.model import BatchReport
from batch_pipeline_tests.chromium import CHROMIUM, chromium
from batch_pipeline_tests.reports.conftest import PERSIAN, SCRIPT, Reported, Room, topics


class _Page(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile(room: Room) -> BatchReport:
    """A batch whose ids, errors, models and settings are all markup."""
    with room.ledger() as ledger:
        rows = [{**row, "Category": "Hostile"} for row in topics(3)]
        batch = room.ingest(ledger, "hostile", rows)
        room.run(ledger, batch, "hostile-run")
        with ledger.write() as connection:
            mine = items.c.batch_id == "hostile"
            connection.execute(
                items.update()
                .where(mine, items.c.ordinal == 0)
                .values(
                    item_id=f"{SCRIPT}{PERSIAN}",
                    outcome="failed",
                    error_kind="content",
                    error=f"{SCRIPT} ![x](http://evil.example/x.png) | {PERSIAN}",
                )
            )
            connection.execute(
                items.update()
                .where(mine, items.c.ordinal == 1)
                .values(model=f"$\\frac{{a}}$ {SCRIPT}")
            )
        report = build_report(ledger, batch)
    return report.model_copy(
        update={
            "settings": {"route": SCRIPT, "url": "http://evil.example/"},
            "warnings": [f"[link](javascript:alert(1)) {SCRIPT}"],
            "source": SCRIPT,
        }
    )


def test_the_page_loads_nothing_and_runs_nothing(hostile: BatchReport) -> None:
    page = _Page(render_html(hostile))
    active = {"script", "iframe", "object", "embed", "link", "img", "base", "form"}
    assert not active & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    loaded = [
        (tag, name, value)
        for tag, name, value in page.attributes
        if name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster")
        and not value.startswith("#")
    ]
    assert loaded == []
    policies = [v for _, _, v in page.attributes if "default-src" in v]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")
    assert "url(http" not in render_html(hostile)


def test_text_of_rows_is_shown_as_text(hostile: BatchReport) -> None:
    html = render_html(hostile)
    assert SCRIPT not in html
    text = _Page(html).text
    assert SCRIPT in text
    assert PERSIAN in text
    assert re.search(rf'dir="auto">[^<]*{PERSIAN}', html)


def test_the_page_says_plainly_that_it_is_simulated(clean: Reported) -> None:
    assert words.SIMULATED in _Page(render_html(clean.report)).text
    live = clean.report.model_copy(update={"simulated": False, "realm": "live"})
    assert words.SIMULATED not in _Page(render_html(live)).text
    assert words.SIMULATED not in render_markdown(live)


def test_the_page_has_the_numbers_that_matter_and_four_charts(clean: Reported) -> None:
    page = _Page(render_html(clean.report))
    assert page.tags.count("svg") == page.tags.count("figure") == 4
    for shown in ("All rows done", words.money(clean.report.cost_usd), "150", "8 attempts"):
        assert shown in page.text
    assert "Nothing needs you" in page.text


def test_charts_take_the_colours_of_the_page_and_keep_text_as_text(clean: Reported) -> None:
    for chart in draw_charts(clean.report):
        assert "var(--" in chart.svg and "#0101" not in chart.svg
        assert "<text" in chart.svg
        assert chart.image.startswith("data:image/svg+xml;base64,")


def test_a_batch_without_calls_has_a_page_too(room: Room) -> None:
    with room.ledger() as ledger:
        report = build_report(ledger, room.ingest(ledger, "untouched", topics(2)))
    page = _Page(render_html(report))
    assert page.tags.count("svg") == 1
    assert words.NO_CALLS in page.text
    assert "2 rows pending" in page.text
    assert "batch-pipeline retry untouched" in page.text


def test_markdown_holds_no_markup_from_rows(hostile: BatchReport) -> None:
    markdown = render_markdown(hostile)
    assert "<script" not in markdown
    assert "](http" not in markdown and "](javascript" not in markdown
    assert PERSIAN in markdown
    assert markdown.count("](data:image/svg+xml;base64,") == 4
    # A pipe in an error starts no new cell.
    row = next(line for line in markdown.splitlines() if line.startswith("| 1 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5


def _summary(report: BatchReport, width: int = 120) -> str:
    out = io.StringIO()
    print_summary(report, Console(file=out, width=width, color_system=None))
    return out.getvalue()


def _line(text: str, name: str) -> str:
    return " ".join(next(line for line in text.splitlines() if line.startswith(name)).split())


def test_the_summary_on_the_terminal_has_every_count_with_its_denominator(
    troubled: Reported,
) -> None:
    text = _summary(troubled.report)
    assert "ROADMAPS SUMMARY" in text
    assert "SIMULATED" in text
    assert _line(text, "Total rows") == "Total rows 100"
    assert _line(text, "Cache hits") == "Cache hits 32/100 (32.0 %)"
    assert _line(text, "Newly enriched") == "Newly enriched 64"
    assert _line(text, "Failed") == "Failed 2/99 (2.0 %)"
    assert _line(text, "Processed") == "Processed 99/100 (99.0 %)"
    assert "one at a time" in text and "requests a minute" in text
    assert _line(text, "Blocked") == "Blocked 1/99 (1.0 %)"
    assert _line(text, "Success rate") == "Success rate 97.0 % of 99 rows that ended"
    report = troubled.report
    assert _line(text, "Requests") == f"Requests {report.requests} ({report.attempts} attempts)"
    assert _line(text, "Cost") == f"Cost {words.money(report.cost_usd)}"
    assert "Next: " in text


def test_the_summary_of_a_fully_cached_run_says_all_rows_cached(
    clean: Reported, again: BatchReport
) -> None:
    text = _summary(again)
    assert "All rows cached" in text
    assert _line(text, "Cache hits") == "Cache hits 150/150 (100.0 %)"
    assert _line(text, "Cost") == "Cost $0.00"
    assert _line(text, "Batch so far").startswith("Batch so far 150/150 (100.0 %) rows succeeded")
    assert "All rows cached" not in _summary(clean.report)
    assert "All rows cached" in _Page(render_html(again)).text


def test_the_summary_names_the_files(clean: Reported) -> None:
    text = "".join(line.strip() for line in _summary(clean.report, width=400).splitlines())
    for path in clean.report.deliverables:
        assert Path(path).name in text


def test_the_terminal_summary_takes_markup_as_text(hostile: BatchReport) -> None:
    text = _summary(hostile.model_copy(update={"source": "[red]x[/red]"}))
    assert "[red]x[/red]" in text


def test_reading_a_report_on_the_terminal_imports_nothing_slow() -> None:
    program = (
        "import sys; import batch_pipeline.reports.build, batch_pipeline.reports.console;"
        "import batch_pipeline.reports.files;"
        "slow = {'matplotlib', 'pandas', 'numpy', 'dagster', 'jinja2', 'anthropic', 'openai'};"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_files_are_private_and_replaced_whole(clean: Reported, tmp_path: Path) -> None:
    first = write_reports(clean.report, tmp_path)
    before = first.html_path.stat().st_ino
    second = write_reports(clean.report, tmp_path)
    assert second == first
    assert second.html_path.stat().st_ino != before
    assert os.stat(second.json_path).st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        (0, "$0.00"),
        (0.00927, "$0.0093"),
        (0.0000004, "$0.00000040"),
        (0.5, "$0.5000"),
        (1234.5, "$1,234.50"),
    ],
)
def test_money_is_shown_as_people_write_it(usd: float, shown: str) -> None:
    assert words.money(usd) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (0.31, "310 ms"), (12.34, "12.3 s"), (59.96, "1 min 00 s"), (7500, "2 h 05 min")],
)
def test_durations_are_shown_as_people_say_them(seconds: float, shown: str) -> None:
    assert words.duration(seconds) == shown


def test_a_share_is_never_rounded_to_all_or_nothing() -> None:
    assert words.percent(999_999 / 1_000_000) == "> 99.9 %"
    assert words.percent(1 / 1_000_000) == "< 0.1 %"
    assert words.percent(1.0) == "100.0 %"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_fits_a_phone_and_breaks_none_of_its_own_rules(
    troubled: Reported, tmp_path: Path
) -> None:
    path = write_reports(troubled.report, tmp_path).html_path
    said: list[str] = []
    with chromium() as browser:
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: said.append(message.text))
            page.on("request", lambda request: said.append(request.url))
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.locator("figure svg").count() == 4
    assert set(said) == {path.as_uri()}
