"""Part c: a client killed at half of its work and started again; what is paid twice.

What belongs here: that measurement. What does not: what each client remembers with (peers/).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import Bench, Part, notes, table
from benchmarks.clients import Client, ClientFailedError
from benchmarks.load import Simulator, job, write_table
from benchmarks.ours import work

# Few enough and slow enough that every client keeps them in flight: a client that cannot send
# faster would have less to lose at the kill.
IN_FLIGHT = 20
LATENCY_S = 0.2
JITTER_S = 0.2

# An answer needs so long, on a busy machine, to travel and to be stored; the kill follows right
# upon an answer, so without this every client would be blamed for that one.
ON_THE_WAY_S = 0.025

_BOUND_S = 120.0


def run(bench: Bench) -> Part:
    """Every client, our own first."""
    count = bench.count(400, 100)
    failures: dict[str, str] = {}
    rows = []
    for client in (bench.ours, *bench.peers):
        bench.say(f"(c) kill and restart: {client.title}")
        try:
            rows.append(_one(bench, client, count))
        except ClientFailedError as error:
            failures[client.title] = str(error)
    lines = [
        f"{count:,} requests of one row, {IN_FLIGHT} in flight, the server answers after "
        f"{LATENCY_S * 1_000:.0f} to {(LATENCY_S + JITTER_S) * 1_000:.0f} ms. `kill -9` when the "
        "server has answered half of them, then the same work again. `paid twice`: answers that "
        "the server billed for a request it had billed before. What was in flight at the kill is "
        "lost to any client; `answered, yet paid twice` counts answers that the server had sent "
        f"{ON_THE_WAY_S * 1_000:.0f} ms before the kill or earlier.",
        "",
        *table(
            (
                "client", "resumes by", "rows done", "paid in all", "in flight at the kill",
                "paid twice", "answered, yet paid twice",
            ),
            rows,
        ),
        *notes(failures),
    ]  # fmt: skip
    return Part("(c) Crash at half, restart", lines)


def _one(bench: Bench, client: Client, count: int) -> list[str]:
    folder = bench.folder("c")
    with Simulator.start(folder / "simulator") as server:
        limits = [{"requests_per_minute": 1e9}]
        server.configure(latency_s=LATENCY_S, jitter_s=JITTER_S, limits=limits)
        if client.peer is None:
            memory = "the ledger"
            rows = write_table(folder / "rows.csv", range(count))
            given = work(server.url, rows, folder, knobs={"workers": IN_FLIGHT})
        else:
            memory = client.peer.memory or "nothing: begins anew"
            kept = folder / "kept"
            kept.mkdir()
            given = job(
                server.url,
                range(count),
                concurrency=IN_FLIGHT,
                folder=kept if client.peer.memory else None,
            )
        first = client.start(given, folder)
        deadline = time.monotonic() + _BOUND_S
        while server.ended() < count // 2 and first.process.poll() is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        killed_at = time.time()
        first.kill()
        done = client.run(given, folder).done
        journal = server.journal()
    return [client.title, memory, f"{done:,} of {count:,}", *_twice(journal, killed_at)]


def _twice(journal: Sequence[dict[str, Any]], killed_at: float) -> list[str]:
    """Paid in all, in flight at the kill, paid twice, and of these answered well before it."""
    billed = [entry for entry in journal if entry["billed"]]
    first: dict[str, float] = {}
    in_flight = twice = answered = 0
    for entry in sorted(billed, key=lambda entry: float(entry["t"])):
        ended_at = entry["t"] + entry["latency_s"]
        in_flight += entry["t"] < killed_at <= ended_at + ON_THE_WAY_S
        before = first.setdefault(entry["body_sha"], ended_at)
        if before != ended_at:
            twice += 1
            answered += before + ON_THE_WAY_S < killed_at
    return [f"{len(billed):,}", str(in_flight), str(twice), str(answered)]
