"""How the page lies in a browser: no table wider than the page, and Persian from the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.reports.files import write_reports
from batch_pipeline.reports.model import (
    BatchReport,
    ErrorCause,
    ExampleRow,
    ProblemRow,
    SearchUse,
    SkipCause,
)
from batch_pipeline_tests.chromium import CHROMIUM
from batch_pipeline_tests.reports.conftest import PERSIAN, Reported

_LONG = "openrouter/anthropic/claude-haiku-5-5-20261001-thinking"
_ROW = "شرکت دیجی‌کالا"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def _wide(report: BatchReport) -> BatchReport:
    """The report with long names, large numbers, searches and Persian rows."""
    use, step = report.models[0], report.steps[0]
    busy = {"attempts": 1_234_567, "attempts_answered": 1_200_000, "attempts_rate_limited": 12_345}
    searched = SearchUse(
        endpoint="exa/search",
        requests=100_000,
        attempts=100_123,
        attempts_failed=123,
        cached=4_321,
        cost_usd=700.0,
        lost_cost_usd=0.07,
        rate_wait_s=4_000.0,
        latency=use.latency,
    )
    cause = ErrorCause(
        outcome="failed",
        kind="content",
        cause=f"{PERSIAN}: پاسخ خالی بود.",
        rows=9,
        examples=[ExampleRow(number=3, item_id=_ROW), ExampleRow(number=5, item_id="بانک ملت")],
        next_step="Correct the row.",
    )
    failed = ProblemRow(
        number=3, item_id=_ROW, outcome="failed", kind="content", error="پاسخ خالی بود (۱۲ بار)."
    )
    return report.model_copy(
        update={
            "models": [use.model_copy(update={"model": name, **busy}) for name in (_LONG, "a/b")],
            "steps": [step.model_copy(update={"step": f"{step.step}_{n}"}) for n in range(3)],
            "searches": [searched],
            "errors": [cause],
            "problem_rows": [failed],
            "skipped": [SkipCause(reason="قبلاً پردازش شده است.", rows=46)],
        }
    )


def test_no_table_is_wider_than_its_section_on_a_desktop(
    troubled: Reported, page: Any, screenshots: Path
) -> None:
    path = write_reports(_wide(troubled.report), screenshots).html_path
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(path.as_uri())
    page.screenshot(path=screenshots / "report-1440.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 1440
    overflowing = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth)"
        ".map(one => one.closest('section, details').querySelector('h2, summary').textContent)"
    )
    assert overflowing == []
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_persian_reads_from_the_right_and_what_stands_around_it_from_the_left(
    troubled: Reported, page: Any, screenshots: Path
) -> None:
    path = write_reports(_wide(troubled.report), screenshots).html_path
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(path.as_uri())

    def direction(selector: str) -> str:
        found = page.locator(selector).first
        return str(found.evaluate("one => getComputedStyle(one).direction"))

    assert direction("td.long:has-text('پاسخ خالی')") == "rtl"
    assert direction(f"td.id:has-text('{_ROW}')") == "rtl"
    assert direction("td.long:has-text('پردازش')") == "rtl"
    assert direction(f"td.id:has-text('{_LONG}')") == "ltr"
    where = page.locator(".where").first
    assert where.evaluate("one => getComputedStyle(one).direction") == "ltr"
    # Each name is isolated: else the numbers between two of them would change places.
    left = where.evaluate(
        "one => [...one.querySelectorAll('bdi')].map(name => name.getBoundingClientRect().left)"
    )
    assert len(left) == 2 and left == sorted(left)
