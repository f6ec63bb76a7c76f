"""Four processes on one key under a strict limit: how much of it they use, and the 429s.

What belongs here: that measurement. What does not: throughput without limits (clients.py).
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from batch_pipeline.engine.job import RunDone
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.ledger.batches import list_chunks
from batch_pipeline.settings import Settings
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.runner import ingest_batch, open_ledger, plan_job
from benchmarks.load import rows, simulator

PER_MINUTE = 1_200
BUCKET = 2


@dataclass(frozen=True)
class Limited:
    """What a limited run came to.

    Attributes:
        requests: requests answered with 200.
        refused: 429s drawn.
        wall_s: from the first to the last arrival at the server.
        ideal_s: the least that time can be.
    """

    requests: int
    refused: int
    wall_s: float
    ideal_s: float

    @property
    def used(self) -> float:
        """Share of the limit that was used."""
        return self.ideal_s / self.wall_s


def run(folder: Path, processes: int = 4, requests: int = 300) -> Limited:
    """Share `requests` requests over `processes` processes, all on one key."""
    with simulator(folder / "simulator") as url:
        limit = {"requests_per_minute": PER_MINUTE, "request_capacity": BUCKET}
        latency = {"base_s": 0.05, "per_output_token_s": 0.0, "jitter_s": 0.0}
        httpx.put(
            f"{url}/_sim/config", json={"limits": [limit], "latency": latency}
        ).raise_for_status()
        _settings(folder, create=True)
        each = requests // processes
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.limiter", url, str(folder), str(part), str(each)]
            )
            for part in range(processes)
        ]
        for process in running:
            if process.wait(300):
                raise RuntimeError(f"a limited process ended with {process.returncode}")
        journal = httpx.get(f"{url}/_sim/journal", params={"limit": 10_000}).json()["records"]
    times = sorted(entry["t"] for entry in journal)
    refused = sum(1 for entry in journal if entry["status"] == 429)
    good = len(journal) - refused
    # the bucket starts full, so its depth comes for nothing; spaced sends use it only for jitter
    return Limited(good, refused, times[-1] - times[0], (good - 1) * 60 / PER_MINUTE)


def _settings(folder: Path, *, create: bool = False) -> Settings:
    settings = Settings(folder, f"sqlite:///{folder / 'ledger.db'}", True)
    if create:
        open_ledger(settings, "simulated").close()
    return settings


def _process(url: str, folder: Path, part: int, count: int) -> None:
    settings = _settings(folder)
    config = load_workload_config("roadmaps").with_options(
        {"pack": 1, "workers": 32, "rate_limit": PER_MINUTE}
    )
    table = folder / f"rows{part}.csv"
    mine = rows(count * (part + 1))[count * part :]
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(mine[0]))
        writer.writeheader()
        writer.writerows(mine)
    with open_ledger(settings, "simulated") as ledger:
        batch, _ = ingest_batch(ledger, config, str(table))
        with ledger.read() as connection:
            keys = [x.chunk_key for x in list_chunks(connection, ledger.realm, batch.batch_id)]
    job = plan_job(
        config,
        run_id=f"limited {part}",
        batch_id=batch.batch_id,
        chunk_keys=keys,
        realm="simulated",
        simulator=url,
    )
    job = replace(job, settings=replace(job.settings, chunk_wait_s=5.0))
    for event in EngineThread(lambda: open_ledger(settings, "simulated"), job).start().events():
        if isinstance(event, RunDone) and event.error is not None:
            raise event.error


if __name__ == "__main__":
    url, folder, part, count = sys.argv[1:]
    _process(url, Path(folder), int(part), int(count))
    print(json.dumps({"part": int(part), "requests": int(count)}), file=sys.stderr)
