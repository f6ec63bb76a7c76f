"""`make bench`: throughput against a bare loop, and the limiter under a strict limit, in one run.

What belongs here: the order of the measurements and their table. What does not: the measurements.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import limiter
from benchmarks.load import CONCURRENCY, LATENCY_MS, Measured, in_child, simulator

REQUESTS = 15_000
ROUNDS = 3
LIMITED_ROUNDS = 2


def main() -> None:
    """Measure, print, and write benchmarks/RESULTS.md."""
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = _throughput(folder, console)
        limited = [
            limiter.run(_folder(folder, f"limited{turn}"))
            for turn in track(range(LIMITED_ROUNDS), "strict limit, 4 processes", console=console)
        ]
    lines = [*_throughput_lines(measured), "", *_limited_lines(limited)]
    table = Table("measurement", "value", title="benchmarks")
    for line in lines:
        if line.startswith("| ") and not line.startswith("| what"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            table.add_row(cells[0], ", ".join(cells[1:]))
    console.print(table)
    target = Path(__file__).with_name("RESULTS.md")
    target.write_text(_page(lines), encoding="utf-8")
    console.print(f"written to {target.name}")


def _throughput(folder: Path, console: Console) -> dict[str, list[Measured]]:
    """Bare loop and engine in turn, so that noise of the machine meets both."""
    measured: dict[str, list[Measured]] = {"ceiling": [], "bare": [], "engine": []}
    bench = ("--bench", "--latency-ms")
    with (
        simulator(_folder(folder, "sim0"), *bench, "0") as instant,
        simulator(_folder(folder, "sim50"), *bench, str(LATENCY_MS)) as server,
    ):
        for turn in track(range(ROUNDS), "throughput", console=console):
            for client in measured:
                work = _folder(folder, f"{client}{turn}")
                url = instant if client == "ceiling" else server
                kind = "bare" if client == "ceiling" else client
                measured[client].append(
                    in_child("benchmarks.clients", kind, url, str(REQUESTS), str(work))
                )
    return measured


def _throughput_lines(measured: dict[str, list[Measured]]) -> list[str]:
    ceiling, bare, engine = (
        statistics.median(run.per_second for run in measured[name])
        for name in ("ceiling", "bare", "engine")
    )
    cpu = {
        name: statistics.median(run.cpu_ms for run in measured[name]) for name in ("bare", "engine")
    }
    peak = max(run.peak_mb for run in measured["engine"])
    return [
        f"Throughput: {REQUESTS:,} requests of one row, concurrency {CONCURRENCY}, server latency "
        f"{LATENCY_MS} ms, medians of {ROUNDS} rounds taken in turn.",
        "",
        "| what | requests/s | CPU ms/request |",
        "|---|---|---|",
        f"| simulator's ceiling as one bare client without latency meets it | {ceiling:,.0f} | |",
        f"| bare aiohttp loop | {bare:,.0f} | {cpu['bare']:.2f} |",
        f"| engine, SQLite ledger, limiter on | {engine:,.0f} | {cpu['engine']:.2f} |",
        f"| engine / bare loop | {engine / bare:.2f} | {cpu['engine'] / cpu['bare']:.1f} |",
        f"| engine's peak memory, MB | {peak:,.0f} | |",
    ]


def _limited_lines(limited: list[limiter.Limited]) -> list[str]:
    first = limited[0]
    lines = [
        f"Strict limit of {limiter.PER_MINUTE:,} requests/min with a bucket of {limiter.BUCKET}, "
        f"{first.requests + first.refused} requests from 4 processes on one key.",
        "",
        "| what | answered | 429s | seconds | ideal | used |",
        "|---|---|---|---|---|---|",
    ]
    for turn, run in enumerate(limited, 1):
        lines.append(
            f"| round {turn} | {run.requests} | {run.refused} | {run.wall_s:.2f} "
            f"| {run.ideal_s:.2f} | {run.used:.1%} |"
        )
    return lines


def _page(lines: list[str]) -> str:
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return "\n".join(
        [
            "# Benchmark results",
            "",
            "Written by `make bench`; ratios within one run mean more than the figures alone.",
            "",
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine}, load at the end {load}.",
            "",
            *lines,
            "",
        ]
    )


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
