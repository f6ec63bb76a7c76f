"""The floor: a bare aiohttp loop that sends bodies and reads replies. No retries, no ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
import orjson
import uvloop

from benchmarks.peers.job import KEY, Ended, Job, run, usable


def work(job: Job) -> Ended:
    """Send the job's requests from as many workers as may be in flight."""
    bodies = [
        orjson.dumps(
            {
                "model": job.model,
                "messages": job.messages(user),
                "max_completion_tokens": job.max_output_tokens,
                "temperature": job.temperature,
                "response_format": job.response_format,
            }
        )
        for user in job.users
    ]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_send(job, iter(bodies)))


async def _send(job: Job, pending: Iterator[bytes]) -> Ended:
    ended = Ended()
    url = f"{job.base_url}/chat/completions"
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for body in pending:
                async with session.post(url, data=body, headers=headers) as got:
                    reply = orjson.loads(await got.read())
                if got.status != 200:
                    ended.errors[f"HTTP {got.status}"] += 1
                else:
                    ended.done += usable(reply["choices"][0]["message"]["content"])

        await asyncio.gather(*(worker() for _ in range(job.concurrency)))
    return ended


if __name__ == "__main__":
    run(work)
