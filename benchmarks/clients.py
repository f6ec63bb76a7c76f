"""Clients of the throughput benchmark: `python -m benchmarks.clients NAME URL REQUESTS FOLDER`.

What belongs here: the bare loop (the floor) and our engine. What does not: printing tables.
"""

from __future__ import annotations

import asyncio
import csv
import sys
from pathlib import Path

import aiohttp
import orjson
import uvloop

from batch_pipeline.engine.job import RunDone
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.ledger.batches import list_chunks
from batch_pipeline.limits.limiter import Rates
from batch_pipeline.providers.base import LlmRequest
from batch_pipeline.settings import Settings
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.runner import (
    ingest_batch,
    open_ledger,
    plan_job,
    resolve_route,
    resolve_step,
)
from benchmarks.load import CONCURRENCY, Measured, measure, report, rows


def bare(url: str, count: int, folder: Path) -> Measured:
    """The floor: the same bodies over aiohttp, the replies parsed and dropped."""
    config = load_workload_config("roadmaps").with_options({"pack": 1})
    step = resolve_step(config)
    endpoint = resolve_route(config, url)[0]
    bodies = []
    for row in rows(count):
        request = LlmRequest(
            model=endpoint.model,
            system=step.system_prompt,
            user=step.user_message([step.content(row)]),
            schema=step.request_schema,
            schema_name=step.name,
            max_output_tokens=step.output_tokens_base + step.output_tokens_per_item,
            temperature=step.temperature,
        )
        bodies.append(endpoint.codec.build(request, key=endpoint.key, base_url=endpoint.base_url))

    async def main() -> None:
        pending = iter(bodies)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def worker() -> None:
                for call in pending:
                    async with session.post(call.url, data=call.body, headers=call.headers) as got:
                        orjson.loads(await got.read())

            await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))

    def work() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    return measure("bare aiohttp", count, work)


def engine(url: str, count: int, folder: Path) -> Measured:
    """Our engine with the SQLite ledger and the limiter on."""
    settings = Settings(folder, f"sqlite:///{folder / 'ledger.db'}", True)
    config = load_workload_config("roadmaps").with_options(
        {"pack": 1, "workers": CONCURRENCY, "chunk_size": 500}
    )
    table = folder / "rows.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows(1)[0]))
        writer.writeheader()
        writer.writerows(rows(count))
    with open_ledger(settings, "simulated") as ledger:
        batch, _ = ingest_batch(ledger, config, str(table))
        with ledger.read() as connection:
            chunks = list_chunks(connection, ledger.realm, batch.batch_id)
    job = plan_job(
        config,
        run_id="bench",
        batch_id=batch.batch_id,
        chunk_keys=[chunk.chunk_key for chunk in chunks],
        realm="simulated",
        simulator=url,
    )
    from dataclasses import replace

    # a limit far above what can be reached, so that the limiter's work is in the figure
    job = replace(job, settings=replace(job.settings, rates=Rates(requests=60_000_000)))

    def work() -> None:
        for event in EngineThread(lambda: open_ledger(settings, "simulated"), job).start().events():
            if isinstance(event, RunDone):
                assert event.error is None, event.error
                assert event.tally.attempts == count, event.tally

    return measure("engine, SQLite", count, work)


if __name__ == "__main__":
    name, url, count, folder = sys.argv[1:]
    report({"bare": bare, "engine": engine}[name](url, int(count), Path(folder)))
