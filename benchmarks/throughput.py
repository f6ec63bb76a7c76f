"""Part a: requests per second and CPU for each request, every client in turn.

What belongs here: that measurement. What does not: limits (limit.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.bench import Bench, Part, notes, table
from benchmarks.clients import Client, ClientFailedError, Measured
from benchmarks.load import CONCURRENCY, Simulator, job, write_table
from benchmarks.ours import work

LATENCY_MS = 50
ROUNDS = 3

_QUICK_PEER = "lm_deluge"


def run(bench: Bench) -> Part:
    """All clients with 2,000 requests; the quick ones with 10,000 as well."""
    count, many = bench.count(2_000, 200), bench.count(10_000, 1_000)
    rounds = bench.count(ROUNDS, 1)
    quickest = [bench.ours]
    if bench.floor is not None:
        quickest.insert(0, bench.floor)
    # the quickest peer stores nothing unless it is told to, so it is measured both ways
    quick = [client for client in bench.peers if client.peer and client.peer.name == _QUICK_PEER]
    quick += [client.remembering() for client in quick]
    others = [client for client in bench.peers if client not in quick]
    everyone = [*quickest, *quick, *others]
    lines = [
        f"One row in each request, {CONCURRENCY} in flight, the server answers after "
        f"{LATENCY_MS} ms; medians of {rounds} rounds in which the clients take turns. "
        "`requests/s` and `CPU ms` cover the sending, from the first request to the last answer, "
        "for ours with opening the ledger, reading the rows, cache look-up, limiter and every "
        "write. `around s` is the rest of the process: imports, and reading the rows (for ours "
        "into the ledger). Ours stores every request, reply and result durably before it goes on; "
        "of the others only the one that names its cache stores anything.",
        "",
    ]
    options = ("--bench", "--latency-ms", str(LATENCY_MS))
    with Simulator.start(bench.folder("simulator"), *options) as server:
        lines += _compare(bench, server.url, count, everyone, rounds)
        lines += _compare(bench, server.url, many, [*quickest, *quick], rounds)
    if bench.floor is not None:
        bench.say("(a) the simulator's ceiling")
        with Simulator.start(bench.folder("simulator"), "--bench", "--latency-ms", "0") as server:
            got = bench.floor.run(job(server.url, range(many)), bench.folder("a"))
        lines += [
            f"The simulator's ceiling, as the bare loop meets it without latency: "
            f"{many / got.wall_s:,.0f} requests/s.",
            "",
        ]
    return Part("(a) Throughput and CPU", lines)


def _compare(
    bench: Bench, url: str, count: int, clients: Sequence[Client], rounds: int
) -> list[str]:
    rows = write_table(bench.folder("rows") / "rows.csv", range(count))
    given = job(url, range(count))
    measured: dict[str, list[Measured]] = {client.title: [] for client in clients}
    failures: dict[str, str] = {}
    for turn in range(rounds):
        for client in clients:
            if client.title in failures:
                continue
            bench.say(f"(a) {count:,} requests, round {turn + 1}: {client.title}")
            folder = bench.folder("a")
            if client.peer is None:
                mine = work(url, rows, folder)
            else:
                mine = {**given, "folder": str(folder) if client.remembers else None}
            try:
                measured[client.title].append(client.run(mine, folder))
            except ClientFailedError as error:
                failures[client.title] = str(error)
    return [
        f"**{count:,} requests**",
        "",
        *table(
            (
                "client", "done", "seconds", "requests/s", "of the bare loop", "CPU ms/request",
                "times the bare loop", "peak MB", "around s",
            ),
            _rows(count, {title: runs for title, runs in measured.items() if runs}, bench),
        ),
        *notes(failures),
    ]  # fmt: skip


def _rows(count: int, measured: dict[str, list[Measured]], bench: Bench) -> list[list[str]]:
    def median(title: str, name: str) -> float:
        return statistics.median(float(getattr(run, name)) for run in measured[title])

    floor = bench.floor.title if bench.floor is not None else ""
    rows = []
    for title, runs in sorted(measured.items(), key=lambda entry: median(entry[0], "wall_s")):
        wall_s, cpu_s = median(title, "wall_s"), median(title, "cpu_s")
        of_floor, times_floor = "", ""
        if floor in measured:
            of_floor = f"{median(floor, 'wall_s') / wall_s:.2f}"
            times_floor = f"{cpu_s / median(floor, 'cpu_s'):.1f}"
        around_s = statistics.median(run.total_s - run.wall_s for run in runs)
        rows.append(
            [
                title,
                f"{min(run.done for run in runs):,}",
                f"{wall_s:.2f}",
                f"{count / wall_s:,.0f}",
                of_floor,
                f"{1_000 * cpu_s / count:.2f}",
                times_floor,
                f"{max(run.peak_mb for run in runs):,.0f}",
                f"{around_s:.1f}",
            ]
        )
    return rows
