"""Part d: our client's memory as the table grows. What does not belong here: time."""

from __future__ import annotations

from benchmarks.bench import Bench, Part, table
from benchmarks.load import Simulator, write_table
from benchmarks.ours import work

PACK = 20


def run(bench: Bench) -> Part:
    """A thousand rows, ten times and a hundred times as many."""
    whole = bench.count(100_000, 2_000)
    rows = []
    with Simulator.start(bench.folder("simulator"), "--bench", "--latency-ms", "50") as server:
        for count in (whole // 100, whole // 10, whole):
            bench.say(f"(d) memory at {count:,} rows")
            folder = bench.folder("d")
            source = write_table(folder / "rows.csv", range(count))
            got = bench.ours.run(work(server.url, source, folder, knobs={"pack": PACK}), folder)
            rows.append(
                [
                    f"{count:,}",
                    f"{got.done:,}",
                    str(got.more["chunks"]),
                    f"{got.more['attempts']:,}",
                    f"{got.more['ingest_s']:.1f}",
                    f"{got.wall_s:.1f}",
                    f"**{got.peak_mb:,.0f}**",
                ]
            )
    lines = [
        f"{PACK} rows in each request; the largest resident size of the process that read the "
        "table into the ledger and then ran it.",
        "",
        *table(
            ("rows", "done", "chunks", "requests", "ingest s", "run s", "peak MB"),
            rows,
        ),
    ]
    return Part("(d) Memory of ours", lines)
