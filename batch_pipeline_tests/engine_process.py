"""Runs one engine job in a process of its own, for tests that kill it or run several at once.

The process prints one JSON line when the run has ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch_pipeline.workloads.config import Knobs
from batch_pipeline.workloads.runner import require_batch
from batch_pipeline_tests.forked import Forked
from batch_pipeline_tests.simulated import Bench, Simulator, finish


def start(
    bench: Bench,
    batch_id: str,
    run_id: str,
    chunks: Sequence[str] | None = None,
    **settings: Any,
) -> Forked:
    """Start a run of `batch_id`, or some of its chunks, with the bench's folder and knobs."""
    knobs = bench.config.model_dump(include={*Knobs.model_fields, "workload"})
    terms = knobs, list(chunks) if chunks is not None else None, settings
    return Forked(_run, str(bench.settings.data), bench.simulator.url, batch_id, run_id, *terms)


def outcome(process: Forked, timeout_s: float = 120.0) -> dict[str, Any]:
    """What a started run printed, after it has ended."""
    printed, told = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, printed + told
    return dict(json.loads(printed.splitlines()[-1]))


def _run(
    data: str,
    url: str,
    batch_id: str,
    run_id: str,
    knobs: dict[str, Any],
    chunks: list[str] | None,
    settings: dict[str, Any],
) -> int:
    bench = Bench(Path(data), Simulator(url), **knobs)
    with bench.open() as ledger:
        batch = require_batch(ledger, batch_id)
    job = bench.job(batch, run_id, chunks, **settings)
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
    return 0
