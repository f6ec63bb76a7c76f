"""Part e: runs in which every answer is there already.

What belongs here: that measurement of ours and of the peers' caches. What does not: resuming after
a crash (crash.py).
"""

from __future__ import annotations

from benchmarks.bench import Bench, Part, notes, table
from benchmarks.clients import Client, ClientFailedError, Measured
from benchmarks.load import Simulator, job, write_table
from benchmarks.ours import work


def run(bench: Bench) -> Part:
    """Ours with 100,000 rows; ours and the peers that have a cache with 1,000."""
    many, few = bench.count(100_000, 2_000), bench.count(1_000, 200)
    failures: dict[str, str] = {}
    rows = []
    with Simulator.start(bench.folder("simulator"), "--bench", "--latency-ms", "5") as server:
        big = _ours(bench, server, many, pack=20)
        rows.append(_row(bench.ours, few, *_ours(bench, server, few, pack=1)))
        for client in bench.peers:
            if client.peer is None or not client.peer.memory:
                continue
            bench.say(f"(e) cached: {client.title}")
            kept = bench.folder("kept")
            given = job(server.url, range(few), folder=kept)
            try:
                client.run(given, bench.folder("e"))
                before = server.summary()["attempts"]
                got = client.run(given, bench.folder("e"))
            except ClientFailedError as error:
                failures[client.title] = str(error)
                continue
            rows.append(_row(client, few, got, server.summary()["attempts"] - before))
    whole, calls = big
    sdks = ", ".join(whole.more["sdks"]) or "none"
    lines = [
        f"{many:,} rows under a new batch id after they were answered once: "
        f"**{whole.wall_s:.1f} s** and {whole.more['ingest_s']:.1f} s for the ingest, "
        f"**{whole.peak_mb:,.0f} MB** at most, {whole.more['chunks']} chunks, "
        f"{whole.more['cache_hits']:,} answers from the cache, {calls} calls; "
        f"SDKs loaded: **{sdks}**.",
        "",
        f"{few:,} rows, each client with its own cache on disk, filled by a run before "
        "(curator's one call is its look at the provider's limits):",
        "",
        *table(
            ("client", "done", "calls", "seconds", "CPU ms/row", "peak MB", "whole process s"), rows
        ),
        *notes(failures),
    ]
    return Part("(e) Wholly cached", lines)


def _ours(bench: Bench, server: Simulator, count: int, pack: int) -> tuple[Measured, int]:
    """Our client over rows that it answered before, under another batch id; and its calls."""
    folder = bench.folder("e")
    source = write_table(folder / "rows.csv", range(count))
    bench.say(f"(e) {count:,} rows, to fill the cache")
    knobs = {"pack": pack}
    bench.ours.run(work(server.url, source, folder, knobs=knobs, batch_id="first"), folder)
    before = server.summary()["attempts"]
    bench.say(f"(e) {count:,} rows cached")
    got = bench.ours.run(work(server.url, source, folder, knobs=knobs, batch_id="again"), folder)
    return got, server.summary()["attempts"] - before


def _row(client: Client, count: int, got: Measured, calls: int) -> list[str]:
    return [
        client.title,
        f"{got.done:,}",
        str(calls),
        f"{got.wall_s:.2f}",
        f"{1_000 * got.cpu_s / count:.2f}",
        f"{got.peak_mb:,.0f}",
        f"{got.total_s:.1f}",
    ]
