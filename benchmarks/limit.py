"""Part b: a strict limit of the provider, known to the client and unknown to it.

What belongs here: that measurement. What does not: throughput without limits (throughput.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import Bench, Part, notes, table
from benchmarks.clients import Client, ClientFailedError, own
from benchmarks.load import CONCURRENCY, Simulator, job, write_table
from benchmarks.ours import work

PER_MINUTE = 1_200
BUCKET = 2
LATENCY_S = 0.05
PROCESSES = 4

_LIMIT = {"requests_per_minute": PER_MINUTE, "request_capacity": BUCKET}


@dataclass(frozen=True)
class Limited:
    """What a run under the limit came to.

    Attributes:
        title: the client.
        done: rows with an answer.
        refused: 429s drawn.
        wall_s: from the first to the last arrival at the server.
    """

    title: str
    done: int
    refused: int
    wall_s: float


def run(bench: Bench) -> Part:
    """Everyone who can be told the limit, then everyone without being told."""
    count = bench.count(300, 40)
    ideal_s = (count - BUCKET) * 60 / PER_MINUTE
    failures: dict[str, str] = {}
    told = [client for client in bench.peers if client.peer and client.peer.limiter]
    known = [
        _one(bench, bench.ours, count, PER_MINUTE),
        _several(bench, count),
        *_in_pairs(bench, told, count, PER_MINUTE, failures),
    ]
    fixed = own(f"{bench.ours.title}, workers: {CONCURRENCY}")
    unknown = [
        _one(bench, bench.ours, count, None, workers="auto"),
        _one(bench, fixed, count, None),
        *_in_pairs(bench, bench.peers, count, None, failures),
    ]
    deaf = [client.title for client in bench.peers if client not in told]
    lines = [
        f"The server allows {PER_MINUTE:,} requests a minute with a bucket of {BUCKET} and answers "
        f"after {LATENCY_S * 1_000:.0f} ms; {count} requests, up to {CONCURRENCY} in flight. The "
        f"ideal is ({count} - {BUCKET}) / {PER_MINUTE / 60:.0f} = {ideal_s:.1f} s. Seconds are "
        "counted at the server, from the first arrival to the last. Peers retry up to 10 times. "
        "Ours runs alone, peers two at a time, each with a server of its own.",
        "",
        "**Told the limit**",
        "",
        *_table(known, count, ideal_s),
        f"Without a setting for it: {', '.join(deaf)}." if deaf else "",
        "",
        "**Not told** (ours with `workers: auto`, which is its default, and with a fixed number)",
        "",
        *_table(unknown, count, ideal_s),
        *notes(failures),
    ]
    return Part("(b) A strict limit", lines)


def _table(runs: Sequence[Limited], count: int, ideal_s: float) -> list[str]:
    return table(
        ("client", "rows done", "429s", "seconds", "times the ideal", "share of the limit used"),
        [
            [
                run.title,
                f"{run.done} of {count}",
                str(run.refused),
                f"{run.wall_s:.2f}",
                # who gives rows up is done early
                f"{run.wall_s / ideal_s:.2f}" if run.done == count else "rows lost",
                # what the bucket held at the start may be spent on top of the rate
                f"{(run.done - BUCKET) * 60 / PER_MINUTE / run.wall_s:.1%}" if run.wall_s else "",
            ]
            for run in runs
        ],
    )


def _in_pairs(
    bench: Bench,
    clients: Sequence[Client],
    count: int,
    rate: float | None,
    failures: dict[str, str],
) -> list[Limited]:
    def one(client: Client) -> Limited | None:
        try:
            return _one(bench, client, count, rate)
        except ClientFailedError as error:
            failures[client.title] = str(error)
            return None

    with ThreadPoolExecutor(2) as pool:
        return [run for run in pool.map(one, clients) if run is not None]


def _one(
    bench: Bench,
    client: Client,
    count: int,
    rate: float | None,
    workers: int | str = CONCURRENCY,
) -> Limited:
    bench.say(f"(b) limit {'known' if rate else 'unknown'}: {client.title}")
    folder = bench.folder("b")
    with Simulator.start(folder / "simulator") as server:
        server.configure(latency_s=LATENCY_S, limits=[_LIMIT])
        if client.peer is not None:
            given = job(server.url, range(count), rate=rate)
        else:
            rows = write_table(folder / "rows.csv", range(count))
            knobs = {"rate_limit": rate, "workers": workers}
            given = work(server.url, rows, folder, knobs=knobs)
        done = client.run(given, folder).done
        return _limited(client.title, done, server)


def _several(bench: Bench, count: int) -> Limited:
    """Our client in several processes that share a key and a ledger."""
    title = f"{bench.ours.title}, {PROCESSES} processes on one key"
    bench.say(f"(b) limit known: {title}")
    folder = bench.folder("b")
    with Simulator.start(folder / "simulator") as server:
        server.configure(latency_s=LATENCY_S, limits=[_LIMIT])
        _make_ledger(folder)
        running = []
        for part in range(PROCESSES):
            place = folder / str(part)
            place.mkdir()
            rows = write_table(place / "rows.csv", range(part, count, PROCESSES))
            knobs = {"rate_limit": PER_MINUTE, "workers": CONCURRENCY // PROCESSES}
            given = work(server.url, rows, folder, knobs=knobs, batch_id=f"part{part}")
            running.append(bench.ours.start(given, place))
        done = sum(process.figures().done for process in running)
        return _limited(title, done, server)


def _make_ledger(folder: Path) -> None:
    from batch_pipeline.settings import Settings
    from batch_pipeline.workloads.runner import open_ledger

    settings = Settings(folder, f"sqlite:///{folder / 'ledger.db'}", True)
    open_ledger(settings, "simulated").close()


def _limited(title: str, done: int, server: Simulator) -> Limited:
    sent = [entry for entry in server.journal() if entry["status"] in (200, 429)]
    times = [entry["t"] for entry in sent]
    refused = sum(entry["status"] == 429 for entry in sent)
    return Limited(title, done, refused, max(times) - min(times) if times else 0.0)
