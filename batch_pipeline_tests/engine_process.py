"""Runs one engine job in a process of its own, for tests that kill it or run several at once.

`python -m batch_pipeline_tests.engine_process DATA SIMULATOR_URL BATCH RUN KNOBS CHUNKS SETTINGS`;
KNOBS, CHUNKS and SETTINGS are JSON. Prints one JSON line when the run has ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch_pipeline.workloads.config import Knobs
from batch_pipeline.workloads.runner import require_batch
from batch_pipeline_tests.simulated import Bench, Simulator, finish


def start(
    bench: Bench,
    batch_id: str,
    run_id: str,
    chunks: Sequence[str] | None = None,
    **settings: Any,
) -> subprocess.Popen[str]:
    """Start a run of `batch_id`, or some of its chunks, with the bench's folder and knobs."""
    knobs = bench.config.model_dump(include={*Knobs.model_fields, "workload"})
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "batch_pipeline_tests.engine_process",
            str(bench.settings.data),
            bench.simulator.url,
            batch_id,
            run_id,
            json.dumps(knobs),
            json.dumps(chunks),
            json.dumps(settings),
        ],
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str], timeout_s: float = 120.0) -> dict[str, Any]:
    """What a started run printed, after it has ended."""
    printed, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, printed
    return dict(json.loads(printed.splitlines()[-1]))


def _main() -> None:
    data, url, batch_id, run_id, knobs, chunks, settings = sys.argv[1:]
    bench = Bench(Path(data), Simulator(url), **json.loads(knobs))
    with bench.open() as ledger:
        batch = require_batch(ledger, batch_id)
    job = bench.job(batch, run_id, json.loads(chunks), **json.loads(settings))
    ran = finish(bench.start(job), job)
    tally = ran.done.tally
    sys.stdout.write(
        json.dumps(
            {
                "status": ran.done.status,
                "message": ran.done.message,
                "outcomes": ran.outcomes,
                "attempts": tally.attempts,
                "requests": tally.requests,
                "cache_hits": tally.cache_hits,
                "wall_s": ran.done.wall_s,
                "errors": tally.errors,
            }
        )
        + "\n"
    )


if __name__ == "__main__":
    _main()
