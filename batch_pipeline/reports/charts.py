"""The report's charts, drawn by matplotlib as SVG with text kept as text.

What belongs here: what each chart shows. What does not: where it stands on a page (html.py,
markdown.py). Colours are drawn as placeholders: they become CSS variables on a page, and mid-tones
that suit light and dark in a stand-alone image.
"""

from __future__ import annotations

import io
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_pipeline.reports import words
from batch_pipeline.reports.model import BatchReport, EstimateCheck, ProviderJobs
from batch_pipeline.wording import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_PX = 460
_MAX_JOBS = 5
_POINTS_PER_INCH = 72

# placeholder -> (CSS variable, colour of a stand-alone image)
_COLOURS = {
    "#010101": ("--ink", "#8b95a5"),
    "#010102": ("--muted", "#8b95a5"),
    "#010103": ("--line", "#c2c8d088"),
    "#010104": ("--ok", "#2f9e6e"),
    "#010105": ("--cached", "#5b8def"),
    "#010106": ("--bad", "#d9534f"),
    "#010107": ("--warn", "#d99a2b"),
    "#010108": ("--idle", "#9aa3af"),
    "#010109": ("--accent", "#5b7fd6"),
}
_INK, _MUTED, _LINE, _OK, _CACHED, _BAD, _WARN, _IDLE, _ACCENT = _COLOURS
_COLOUR = re.compile("|".join(_COLOURS))


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart.

    Attributes:
        title: its heading.
        caption: what it counts and of what.
        svg: SVG for an HTML page that defines the CSS variables; empty: nothing to draw.
        image: the same as a data URI; empty likewise.
    """

    title: str
    caption: str
    svg: str = ""
    image: str = ""


ESTIMATE_TITLE = "Estimate and actual"


def draw_charts(report: BatchReport) -> list[Chart]:
    """Outcomes, cost by model, latency, throughput, and the estimate where there is one."""
    jobs = report.provider_jobs
    # Lines of provider jobs have no latency: where there is nothing else, the jobs' own time.
    took = _jobs(jobs) if jobs is not None and not report.latency.attempts else _latency(report)
    charts = [_outcomes(report), _cost(report), took, _throughput(report)]
    if report.estimate is not None:
        charts.append(_estimate(report.estimate))
    return charts


def _outcomes(report: BatchReport) -> Chart:
    outcomes = report.outcomes
    parts = [
        ("Succeeded, newly asked", outcomes.succeeded - report.cache_hits, _OK),
        ("Succeeded, from the cache", report.cache_hits, _CACHED),
        ("Failed", outcomes.failed, _BAD),
        ("Blocked", outcomes.blocked, _WARN),
        ("Skipped", outcomes.skipped, _IDLE),
        ("Pending", outcomes.pending, _MUTED),
    ]
    shown = [entry for entry in parts if entry[1]]
    bars = [
        _Bar(name, rows, f"{words.count(rows)}  ({words.percent(rows / report.rows)})", colour)
        for name, rows, colour in shown
    ]
    caption = f"Share of all {plural(report.rows, 'row')}."
    return _drawn("Outcomes", caption, len(bars) * 44 + 8, _horizontal(bars, report.rows))


def _cost(report: BatchReport) -> Chart:
    used = [use for use in report.models if use.attempts][:6]
    if not used:
        return Chart("Cost by model", words.NO_CALLS)
    bars = [
        _Bar(
            _shortened(use.model),
            use.cost_usd,
            f"{words.money(use.cost_usd)}  ({plural(use.requests, 'request')})",
            _ACCENT,
        )
        for use in used
    ]
    if report.lost_cost_usd:
        lost = plural(report.attempts_lost, "attempt")
        bars.append(
            _Bar(
                "Lost calls, at worst case",
                report.lost_cost_usd,
                f"{words.money(report.lost_cost_usd)}  ({lost})",
                _WARN,
            )
        )
    caption = f"The attempts that came back cost {words.money(report.cost_usd)}."
    whole = report.cost_usd + report.lost_cost_usd
    return _drawn("Cost by model", caption, len(bars) * 44 + 8, _horizontal(bars, whole))


def _latency(report: BatchReport) -> Chart:
    latency = report.latency
    if not latency.attempts or latency.p50_s is None or latency.p95_s is None:
        return Chart("Latency", words.NO_CALLS)
    buckets = latency.distribution
    p50, p95 = latency.p50_s, latency.p95_s
    width = (buckets[0].to_s or 0.0) - buckets[0].from_s

    def draw(axes: Axes) -> None:
        for bucket in buckets:
            colour = _ACCENT if bucket.to_s is not None else _WARN
            axes.bar(bucket.from_s, bucket.attempts, width=width * 0.9, align="edge", color=colour)
        top = max(bucket.attempts for bucket in buckets)
        axes.set_ylim(0, top * 1.28)
        left, right = max(0.0, buckets[0].from_s - width), buckets[-1].from_s + 2 * width
        # Where the first mark is close to the axis, its words stand behind it, over the second's.
        close = p50 - left < 0.25 * (right - left)
        heights = (1.22, 1.09) if close else (1.17, 1.17)
        _mark(axes, p50, f"p50 {words.duration(p50)}", top * heights[0], before=not close)
        behind = close or p95 <= p50 * 1.5
        _mark(axes, p95, f"p95 {words.duration(p95)}", top * heights[1], before=not behind)
        axes.set_xlim(left, right)
        _time_axis(axes)

    caption = (
        f"{'Real-time attempts' if report.provider_jobs else 'Attempts'} by time to the whole "
        f"reply, {plural(latency.attempts, 'attempt')}; "
        f"the slowest took {words.duration(latency.max_s)}."
    )
    if buckets[-1].to_s is None:
        beyond = plural(buckets[-1].attempts, "attempt")
        caption += f" The last bar is {beyond} over {words.duration(buckets[-1].from_s)}."
    return _drawn("Latency", caption, 190, draw)


def _jobs(jobs: ProviderJobs) -> Chart:
    ended = [(job, job.took_s) for job in jobs.jobs if job.took_s is not None][-_MAX_JOBS:]
    caption = f"From submission to end: {words.took_line(jobs)}."
    if not ended:
        return Chart("Provider jobs", "None has ended yet.")
    bars = [
        _Bar(
            _shortened(job.job_id),
            took,
            f"{words.duration(took)}  ({plural(job.rows, 'row')})",
            _OK if job.ended_as == "succeeded" else _WARN,
        )
        for job, took in ended
    ]
    if len(ended) == _MAX_JOBS:
        caption += f" The newest {_MAX_JOBS}:"
    longest = max(took for _, took in ended) or 1.0
    return _drawn("Provider jobs", caption, len(bars) * 44 + 8, _horizontal(bars, longest))


def _throughput(report: BatchReport) -> Chart:
    throughput = report.throughput
    buckets = throughput.buckets
    if not buckets:
        return Chart("Throughput", words.NO_CALLS)
    width = throughput.bucket_s

    def draw(axes: Axes) -> None:
        for bucket in buckets:
            axes.bar(bucket.offset_s, bucket.rows, width=width * 0.9, align="edge", color=_OK)
        axes.set_ylim(0, max(1, *(bucket.rows for bucket in buckets)) * 1.1)
        axes.set_xlim(-width * 0.2, (len(buckets)) * width)
        _time_axis(axes)

    rows = sum(bucket.rows for bucket in buckets)
    attempts = sum(bucket.attempts for bucket in buckets)
    caption = (
        f"Rows that ended per {words.duration(width)} of the last run that made calls: "
        f"{plural(rows, 'row')}, {plural(attempts, 'attempt')}."
    )
    return _drawn("Throughput", caption, 190, draw)


def _estimate(check: EstimateCheck) -> Chart:
    lines = [
        line
        for line in check.lines
        if line.low is not None and line.worst and line.name in _ESTIMATED
    ]
    caption = "Band: low to worst. Line: expected. Dot: what it came to"
    caption += "." if check.complete else " so far."
    if not lines:
        return Chart(ESTIMATE_TITLE, "Nothing was expected to be asked.")

    def draw(axes: Axes) -> None:
        for place, line in enumerate(lines):
            whole = max(line.worst or 0.0, line.actual) * 1.03
            low, worst = (line.low or 0.0) / whole, (line.worst or 0.0) / whole
            actual, inside = line.actual / whole, low <= line.actual / whole <= worst
            axes.barh(place, 1, height=0.3, color=_LINE)
            axes.barh(place, worst - low, left=low, height=0.3, color=_CACHED, alpha=0.45)
            if line.expected is not None:
                at = line.expected / whole
                axes.plot([at, at], [place - 0.15, place + 0.15], color=_INK, linewidth=1.5)
            colour = _OK if inside else _WARN
            axes.plot(
                [actual], [place], "o", markersize=8, color=colour, markeredgecolor=_INK,
                clip_on=False,
            )  # fmt: skip
            name = words.ESTIMATE_NAMES[line.name]
            label = words.figure(line.name, line.actual)
            if line.deviation_percent is not None:
                label += f"  ({words.deviation(line.deviation_percent)})"
            axes.text(0, place - 0.28, name, ha="left", va="bottom", color=_INK)
            axes.text(1, place - 0.28, label, ha="right", va="bottom", color=_MUTED)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(lines) - 0.7, -0.78)
        axes.axis("off")

    return _drawn(ESTIMATE_TITLE, caption, len(lines) * 44 + 8, draw)


_ESTIMATED = ("cost_usd", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class _Bar:
    name: str
    value: float
    label: str
    colour: str


def _horizontal(bars: Sequence[_Bar], total: float) -> Callable[[Axes], None]:
    """Bars below their names, so that long names cost no width."""

    def draw(axes: Axes) -> None:
        whole = total or 1.0
        for place, bar in enumerate(bars):
            axes.barh(place, whole, height=0.3, color=_LINE)
            # A sliver stays visible: one failed row of a million is news.
            axes.barh(place, max(bar.value, whole * 0.006), height=0.3, color=bar.colour)
            axes.text(0, place - 0.28, bar.name, ha="left", va="bottom", color=_INK)
            axes.text(whole, place - 0.28, bar.label, ha="right", va="bottom", color=_MUTED)
        axes.set_xlim(0, whole)
        axes.set_ylim(len(bars) - 0.7, -0.78)
        axes.axis("off")

    return draw


def _mark(axes: Axes, at: float, label: str, height: float, *, before: bool) -> None:
    axes.axvline(at, color=_INK, linewidth=1, linestyle=(0, (3, 3)), ymax=0.98)
    axes.annotate(
        label,
        (at, height),
        xytext=(-5 if before else 5, 0),
        textcoords="offset points",
        ha="right" if before else "left",
        va="center",
        color=_INK,
    )


def _time_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _tick(seconds)))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_MUTED, pad=4)
    axes.tick_params(axis="x", pad=8)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)


def _tick(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 7_200 else f"{seconds / 3_600:g} h"


def _drawn(title: str, caption: str, height_px: int, draw: Callable[[Axes], None]) -> Chart:
    svg = _svg(title, caption, height_px, draw)
    alone = _COLOUR.sub(lambda found: _COLOURS[found[0]][1], svg)
    return Chart(
        title=title,
        caption=caption,
        svg=_COLOUR.sub(lambda found: f"var({_COLOURS[found[0]][0]})", svg),
        image=f"data:image/svg+xml;base64,{b64encode(alone.encode()).decode()}",
    )


def _svg(title: str, caption: str, height_px: int, draw: Callable[[Axes], None]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "font.size": 12,
        # A model's name is text, whatever dollar signs it has.
        "text.parse_math": False,
    }
    with matplotlib.rc_context(style):
        size = (_WIDTH_PX / _POINTS_PER_INCH, height_px / _POINTS_PER_INCH)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
        canvas: Any = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        out = io.StringIO()
        canvas.print_svg(out, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(out.getvalue(), f"{title}. {caption}")


_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_FIGURE_PATCH = re.compile(r'<g id="patch_1">.*?</g>', re.DOTALL)


def _inline(document: str, label: str) -> str:
    """The bare <svg> element: no XML head, no background, no fixed size, and a name."""
    from markupsafe import escape

    svg = document[document.index("<svg") :]
    svg = _METADATA.sub("", svg)
    svg = _FIGURE_PATCH.sub("", svg, count=1)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(label)}">{rest}'.strip()


def _shortened(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:33]}…"
