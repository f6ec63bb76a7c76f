"""Our client: `python -m benchmarks.ours`, a job on stdin and its figures on stdout, as the peers.

What belongs here: a table through ingest and engine as the doors do it. What does not: what it is
compared with.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from batch_pipeline.engine.job import RunDone
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.ledger.batches import list_chunks
from batch_pipeline.settings import Settings
from batch_pipeline.workloads.config import WorkloadConfig, load_workload_config
from batch_pipeline.workloads.runner import ingest_batch, open_ledger, plan_job
from benchmarks.load import CONCURRENCY, ROUTE
from benchmarks.peers.job import Ended, measure

# Far above what can be reached, so that limiter and budget do their work in every figure.
FAR_LIMIT = 60_000_000.0
FAR_BUDGET_USD = 1_000.0

_SDKS = ("anthropic", "openai", "google.genai")


def work(
    url: str,
    table: Path,
    folder: Path,
    *,
    knobs: dict[str, Any] | None = None,
    batch_id: str | None = None,
    prompt: Path | None = None,
    workload: str = "roadmaps",
) -> dict[str, Any]:
    """The job of our client.

    Args:
        url: the simulator's.
        table: the rows.
        folder: the installation's data folder; the same one again resumes.
        knobs: what differs from one row in each request, 100 at once, no limit that is felt.
        batch_id: None makes one of the table's content.
        prompt: folder of another prompt.md, or None.
        workload: which workload's rows they are.
    """
    given = {"route": ROUTE, "pack": 1, "workers": CONCURRENCY, "chunk_size": 500}
    far = {"rate_limit": FAR_LIMIT, "budget_usd": FAR_BUDGET_USD}
    return {
        "url": url,
        "table": str(table),
        "folder": str(folder),
        "knobs": {**given, **far, **(knobs or {})},
        "batch_id": batch_id,
        "prompt": None if prompt is None else str(prompt),
        "workload": workload,
    }


def _config(job: dict[str, Any]) -> WorkloadConfig:
    config = load_workload_config(job["workload"])
    if job["prompt"] is not None:
        config = config.model_copy(update={"folder": Path(job["prompt"])})
    # None is an answer here: no limit, where defs.yaml has one
    unset = {name: None for name, value in job["knobs"].items() if value is None}
    return config.model_copy(update=unset).with_options(job["knobs"])


def main() -> None:
    """Read the job, ingest, run measured, print the figures."""
    # What is imported when it is first used belongs to the imports here, as it does with the peers.
    for name in ("uvloop", "genai_prices.data"):
        importlib.import_module(name)
    job = json.load(sys.stdin)
    folder = Path(job["folder"])
    settings = Settings(folder, f"sqlite:///{folder / 'ledger.db'}", True)
    config = _config(job)
    began = time.perf_counter()
    with open_ledger(settings, "simulated") as ledger:
        batch, _ = ingest_batch(ledger, config, job["table"], batch_id=job["batch_id"])
        with ledger.read() as connection:
            chunks = list_chunks(connection, ledger.realm, batch.batch_id)
    ingest_s = time.perf_counter() - began
    more: dict[str, Any] = {"ingest_s": ingest_s, "chunks": len(chunks)}

    def run() -> Ended:
        planned = plan_job(
            config,
            run_id=f"bench {time.time_ns()}",
            batch=batch,
            chunk_keys=[chunk.chunk_key for chunk in chunks],
            realm="simulated",
            simulator=job["url"],
        )
        thread = EngineThread(lambda: open_ledger(settings, "simulated"), planned).start()
        for event in thread.events():
            if isinstance(event, RunDone):
                if event.error is not None:
                    raise event.error
                tally = event.tally
                outcomes = {outcome.value: count for outcome, count in tally.outcomes.items()}
                done = outcomes.pop("succeeded")
                more.update(
                    attempts=tally.attempts, cache_hits=tally.cache_hits, message=event.message
                )
                return Ended(done, {name: count for name, count in outcomes.items() if count})
        raise AssertionError("the run ended without a last event")

    figures = measure(run)
    more["sdks"] = [name for name in _SDKS if name in sys.modules]
    print(json.dumps({**figures, **more}))


if __name__ == "__main__":
    main()
