"""Part g: the batch lane: 12,000 articles under an enqueued-token limit, all lanes, the sensor.

What belongs here: those measurements. What does not: the waves it is compared with (waves.py), the
tick's own process (tick.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import sqlalchemy as sa

from batch_pipeline.ledger.tables import NANO, attempts
from batch_pipeline.settings import Settings
from batch_pipeline.simulator.prices import price_usd
from batch_pipeline.simulator.wire import Usage
from batch_pipeline.workloads.base import load_workload
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.results import stream_results
from batch_pipeline.workloads.runner import deliver, open_ledger, require_batch
from benchmarks import waves
from benchmarks.articles import WORKLOAD, read_articles, write_articles
from benchmarks.bench import Bench, Part, table
from benchmarks.clients import Client
from benchmarks.envs import ROOT
from benchmarks.load import Simulator, write_table
from benchmarks.ours import work

MODEL = "gemini-3.1-flash-lite"
LIMIT_TOKENS = 10_000_000
SHARE = 0.9
SAFE_TOKENS = int(LIMIT_TOKENS * SHARE)

# A job of the guide takes about 40 minutes and is looked at every 30 seconds; at this speed of the
# job clock the first becomes 40 seconds, the second half of one.
SPEED = 60
JOB_S = 2_400.0
JITTER = 0.5
POLL_S = 0.5
JOB_ARTICLES = 1_000

ROUTE = f"google/{MODEL}"
LANES = (ROUTE, "anthropic/claude-haiku-5-5", "openai/gpt-6-luna")
# 500 in all; a run acts at 90 jobs of Gemini, which takes 100.
OPEN_JOBS = {ROUTE: 90, "anthropic/claude-haiku-5-5": 205, "openai/gpt-6-luna": 205}
BATCH = "articles"
_TIMEOUT_S = 1_200.0


@dataclass(frozen=True)
class Window:
    """What was enqueued at the simulator over time, by its own count.

    Attributes:
        peak: most tokens at any time.
        jobs: most open jobs.
        created: jobs created.
        used: time-weighted share of the safe tokens, from the first job's creation to the last's,
            which is while work waits; what is above the safe tokens counts as them.
        used_full: the same from the moment on at which they were full (90 %) for the first time.
    """

    peak: int
    jobs: int
    created: int
    used: float
    used_full: float


def window_of(series: Sequence[Sequence[float]], safe: int) -> Window:
    """Sum a simulator's series `[[t, tokens, open jobs], ...]` up."""
    ups = [
        place
        for place, (_, _, jobs) in enumerate(series)
        if jobs > (series[place - 1][2] if place else 0)
    ]
    filled = (place for place, point in enumerate(series) if point[1] >= 0.9 * safe)
    full = next(filled, 0)
    last = ups[-1]

    def used(first: int) -> float:
        area = sum(
            min(series[place][1], safe) * (series[place + 1][0] - series[place][0])
            for place in range(first, last)
        )
        return area / (safe * (series[last][0] - series[first][0])) if last > first else 1.0

    return Window(
        peak=int(max(point[1] for point in series)),
        jobs=int(max(point[2] for point in series)),
        created=len(ups),
        used=used(0),
        used_full=used(full),
    )


def run(bench: Bench) -> Part:
    """The long run beside its waves, the same articles through every lane, and the sensor."""
    return Part(
        "(g) The batch lane",
        [*_long(bench), *_lanes(bench), *_sensor(bench)],
    )


# ---- 12,000 articles -----------------------------------------------------------------------------


def _long(bench: Bench) -> list[str]:
    """Our lane and sequential waves over the same articles, each with a simulator of its own."""
    count = bench.count(12_000, 1_200)
    # A quick run has a tenth of everything, the time included: its ratios mean nothing.
    speed = bench.count(SPEED, 10 * SPEED)
    limit = LIMIT_TOKENS * count // 12_000
    safe, per_job = int(limit * SHARE), JOB_ARTICLES * count // 12_000
    source = bench.folder("g") / "articles.jsonl"
    named = write_articles(source, count)
    both = []
    for title, client in (
        (bench.ours.title, bench.ours),
        ("sequential waves", Client("sequential waves", "benchmarks.waves", Path(sys.executable))),
    ):
        bench.say(f"(g) {count:,} articles: {title}")
        folder = bench.folder("g")
        with Simulator.start(folder / "simulator") as server:
            _slow_jobs(server, limit, speed)
            if client is bench.ours:
                given = _work(server, source, folder, ROUTE, enqueued_tokens=limit, poll_s=POLL_S)
            else:
                given = waves.work(
                    server.url,
                    source,
                    MODEL,
                    wave_tokens=safe,
                    job_articles=per_job,
                    poll_s=POLL_S,
                )
            got = client.start(given, folder).figures(_TIMEOUT_S)
            reply = httpx.get(f"{server.url}/_sim/enqueued", timeout=60).json()
            both.append((title, got, window_of(reply["enqueued"][0]["series"], safe)))
            if client is bench.ours:
                checked = _checked(folder, source, server)
    (_, ours, window), (_, theirs, _) = both
    rows = [
        [
            title,
            f"{got.done:,}",
            f"{seen.created}",
            f"{seen.jobs}",
            f"{seen.peak:,}",
            f"{seen.used:.1%}",
            f"{got.wall_s:.1f}",
            f"**{got.wall_s / theirs.wall_s:.2f}**" if got is ours else "1",
            f"{got.cpu_s:.1f}",
            f"{got.peak_mb:,.0f}",
        ]
        for title, got, seen in both
    ]
    return [
        f"{count:,} articles ({named}, copies made distinct by their first line) through the "
        f"simulator's Gemini Batch API, which holds {limit:,} enqueued tokens. A job takes "
        f"{JOB_S / 60:.0f} minutes, more or less by up to {JITTER:.0%} and whatever its size, and "
        f"is looked at every {POLL_S * speed:.0f} seconds; all of that runs {speed} times as "
        f"fast. Ours has `lane: batch`, `wait: true` and `enqueued_share: {SHARE}`; the waves hold "
        f"as much ({safe:,} tokens) in jobs of {per_job:,} and read a wave's results while the "
        "next one is under way. Tokens are the simulator's count. `in use` is the time-weighted "
        f"share of {safe:,} while work waits: from the first job's creation to the last's "
        f"(ours from the moment on when it was first full: {window.used_full:.1%}).",
        "",
        *table(
            (
                "client", "articles", "jobs", "at once", "most tokens", "in use", "seconds",
                "times the waves", "CPU s", "peak MB",
            ),
            rows,
        ),
        *checked,
    ]  # fmt: skip


def _slow_jobs(server: Simulator, limit: int, speed: float) -> None:
    jobs = {
        "enqueued_tokens": limit,
        "duration_s": JOB_S,
        "per_line_s": 0.0,
        "duration_jitter": JITTER,
    }
    _configure(server, batches=[jobs], clock={"speed": speed})


def _checked(folder: Path, source: Path, server: Simulator) -> list[str]:
    """What came out, against what went in and what the simulator billed."""
    wanted = [row["id"] for row in read_articles(source)]
    with open_ledger(_settings(folder), "simulated") as ledger:
        batch = require_batch(ledger, BATCH)
        files = deliver(ledger, load_workload_config(WORKLOAD), batch, folder / "out")
    (written,) = (path for path in files if path.suffix == ".jsonl")
    found = [orjson.loads(line) for line in written.read_bytes().splitlines()]
    ids = Counter(row["id"] for row in found)
    good = sum(row["outcome"] == "succeeded" and bool(row["summary_en"]) for row in found)
    asked = Counter((entry["job"], entry["custom_id"]) for entry in server.journal())
    money = _money(folder, server)
    return [
        f"The output (`{written.suffix[1:]}`) has {len(found):,} rows, {good:,} with an answer; of "
        f"{len(wanted):,} ids that went in {sum(ids[name] == 1 for name in wanted):,} are there "
        f"once, {sum(ids[name] > 1 for name in wanted)} more than once, "
        f"{sum(ids[name] == 0 for name in wanted)} not. The simulator answered {asked.total():,} "
        f"lines, {sum(count > 1 for count in asked.values())} of them twice. It billed "
        f"{money.journal:.6f} USD, the ledger says {money.ledger:.6f}; in real time the same "
        f"tokens cost {money.realtime:.6f}: **{money.journal / money.realtime:.3f}**.",
        "",
    ]


# ---- the same articles through every lane --------------------------------------------------------


def _lanes(bench: Bench) -> list[str]:
    count = bench.count(2_000, 100)
    source = bench.folder("g") / "articles.jsonl"
    write_articles(source, count)
    first: dict[str, Any] = {}
    rows = []
    for lane, route in (("realtime", ROUTE), *(("batch", route) for route in LANES)):
        bench.say(f"(g) {count:,} articles: {route}, {lane}")
        folder = bench.folder("g")
        with Simulator.start(folder / "simulator") as server:
            server.configure(latency_s=0.05, limits=[{"requests_per_minute": 1e9}])
            _configure(server, batches=[{"duration_s": 3.0, "per_line_s": 0.0}])
            given = _work(server, source, folder, route, lane=lane, poll_s=0.2, workers=50)
            got = bench.ours.start(given, folder).figures(_TIMEOUT_S)
            outputs, money = _outputs(folder), _money(folder, server)
        first = first or outputs
        same = sum(outputs.get(name) == output for name, output in first.items())
        rows.append(
            [
                lane,
                f"`{route}`",
                f"{got.done:,}",
                f"{same:,} of {len(outputs):,}",
                f"{money.journal:.6f}",
                f"{money.ledger:.6f}",
                f"{money.realtime:.6f}",
                f"**{money.journal / money.realtime:.3f}**",
            ]
        )
    return [
        f"The same {count:,} articles, each time with a fresh ledger and a fresh simulator. `same` "
        "are outputs equal to those of the first line. The last columns: what the simulator "
        "billed, what the ledger says, and what the same tokens cost in real time (genai-prices).",
        "",
        *table(
            (
                "lane", "model", "answered", "same", "billed USD", "ledger USD", "real time USD",
                "share of real time",
            ),
            rows,
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class _Money:
    """USD: by the simulator's journal, by the ledger, and the journal's tokens in real time."""

    journal: float
    ledger: float
    realtime: float


def _money(folder: Path, server: Simulator) -> _Money:
    with open_ledger(_settings(folder), "simulated") as ledger, ledger.read() as connection:
        spent = connection.execute(sa.select(sa.func.sum(attempts.c.cost_nano))).scalar_one()
    realtime = 0.0
    for entry in server.journal():
        usage = Usage(
            input_tokens=entry["input_tokens"],
            cached=entry["cached_input_tokens"],
            cache_write=entry["cache_write_tokens"],
            cache_write_long=entry["cache_write_1h_tokens"],
            output_tokens=entry["output_tokens"],
        )
        price = price_usd(entry["provider"], entry["model"], usage, entry["t"])
        assert price is not None
        realtime += price
    return _Money(float(server.summary()["price_usd"]), int(spent) / NANO, realtime)


def _outputs(folder: Path) -> dict[str, Any]:
    with open_ledger(_settings(folder), "simulated") as ledger:
        rows = stream_results(ledger, require_batch(ledger, BATCH), load_workload("news"))
        return {found.item.item_id: found.output for found in rows}


# ---- the sensor ----------------------------------------------------------------------------------


def _sensor(bench: Bench) -> list[str]:
    """Ticks over many open jobs, in a fresh process."""
    shares = {route: bench.count(rows, 5) for route, rows in OPEN_JOBS.items()}
    folder = bench.folder("g")
    with Simulator.start(folder / "simulator") as server:
        _configure(server, clock={"frozen": True})
        first = 0
        for route, rows in shares.items():
            bench.say(f"(g) {rows} open jobs at {route}")
            name = route.partition("/")[0]
            # Rows of their own: a question that is under way is not asked elsewhere.
            source = write_table(bench.folder("g") / f"{name}.csv", range(first, first + rows))
            first += rows
            knobs = {"route": route, "lane": "batch", "job_items": 1, "max_jobs": rows}
            knobs["poll_s"] = 0.01
            given = work(server.url, source, folder, knobs=knobs, batch_id=name)
            bench.ours.run(given, bench.folder("g"))
        before = Counter(server.summary()["other_calls"])
        bench.say("(g) the sensor's tick")
        command = [sys.executable, "-m", "benchmarks.tick", str(folder), server.url]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, check=True
        )
        calls = Counter(server.summary()["other_calls"]) - before
    figures = orjson.loads(done.stdout)
    made = ", ".join(f"{count // 2} x {name}" for name, count in sorted(calls.items()))
    looks = figures["second"]["said"] or "nothing"
    return [
        f"{sum(shares.values())} open jobs of one row each "
        f"({', '.join(f'{rows} at {route}' for route, rows in shares.items())}), whose runs have "
        "ended. The sensor is evaluated by Dagster in a fresh process, twice, with every job due.",
        "",
        *table(
            ("loading Dagster and definitions s", "first tick s", "second tick s", "calls"),
            [
                [
                    f"{figures['load_s']:.2f}",
                    f"**{figures['first_s']:.2f}** (it imports the SDKs)",
                    f"**{figures['second_s']:.2f}**",
                    made,
                ]
            ],
        ),
        f"The second tick said `{looks}`, and launched {figures['second']['launches']} runs.",
        "",
    ]


# ---- shared --------------------------------------------------------------------------------------


def _work(
    server: Simulator, source: Path, folder: Path, route: str, **knobs: Any
) -> dict[str, Any]:
    """The job of our client over articles; no limit per minute is felt."""
    lane = {"lane": "batch", "wait": True, "enqueued_share": SHARE, "chunk_size": 1_000}
    given = {**lane, "route": route, "tier": None, "enqueued_tokens": None, **knobs}
    return work(server.url, source, folder, knobs=given, batch_id=BATCH, workload=WORKLOAD)


def _configure(server: Simulator, **settings: Any) -> None:
    httpx.put(f"{server.url}/_sim/config", json=settings).raise_for_status()


def _settings(folder: Path) -> Settings:
    return Settings(folder, f"sqlite:///{folder / 'ledger.db'}", True)
