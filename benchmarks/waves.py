"""What the batch lane is compared with: sequential waves, as guides to Gemini's Batch API do it.

`python -m benchmarks.waves`, a job on stdin and its figures on stdout, as the other clients. A wave
is as many articles as the enqueued-token limit safely holds, in jobs of 1,000; the next wave goes
up when the last job of the wave before has ended. What belongs here: that, and nothing of the
engine. What does not: the measuring of what was enqueued (lane.py).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batch_pipeline.pricing.tokens import estimate_body_tokens
from batch_pipeline.providers.batch_clients import open_batch_api
from batch_pipeline.providers.batches import BatchApi, RemoteJob
from batch_pipeline.providers.registry import PROVIDERS
from benchmarks.articles import read_articles, request_of
from benchmarks.peers.job import KEY, Ended, measure

_PROVIDER = "google"


def work(
    url: str, table: Path, model: str, *, wave_tokens: int, job_articles: int, poll_s: float
) -> dict[str, Any]:
    """The job of this client.

    Args:
        url: the simulator's.
        table: the articles.
        model: Gemini's model name.
        wave_tokens: prompt tokens of a wave at most.
        job_articles: articles in a job.
        poll_s: seconds between looks at a job.
    """
    return {
        "url": url,
        "table": str(table),
        "model": model,
        "wave_tokens": wave_tokens,
        "job_articles": job_articles,
        "poll_s": poll_s,
    }


@dataclass
class _Wave:
    jobs: list[list[bytes]] = field(default_factory=list)
    tokens: int = 0


class _Waves:
    """One run over a table."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._base_url = job["url"] + PROVIDERS[_PROVIDER].simulator_path
        self._seen: set[str] = set()
        self.waves = 0
        self.jobs = 0

    async def run(self) -> Ended:
        api = open_batch_api(_PROVIDER, KEY, self._base_url)
        downloads: list[asyncio.Task[None]] = []
        try:
            for wave in self._plan(api):
                self.waves += 1
                names: list[str] = []
                for lines in wave.jobs:
                    self.jobs += 1
                    label = f"wave{self.waves:02d}_batch{len(names) + 1:03d}"
                    file = await api.upload(label, lines)
                    names.append((await api.create(label, self._job["model"], file, lines)).name)
                ended = await asyncio.gather(*(self._ended(api, name) for name in names))
                # Results are read while the next wave is under way: in the waves' favour.
                downloads += [asyncio.create_task(self._download(api, job)) for job in ended]
            await asyncio.gather(*downloads)
        finally:
            await api.aclose()
        return Ended(len(self._seen))

    def _plan(self, api: BatchApi) -> Iterator[_Wave]:
        """Waves up to the token limit, made one by one."""
        codec = PROVIDERS[_PROVIDER].codec
        wave = _Wave()
        for row in read_articles(Path(self._job["table"])):
            request = request_of(row, self._job["model"])
            call = codec.build(request, key=KEY, base_url=self._base_url)
            tokens = estimate_body_tokens(call.body)
            if wave.tokens + tokens > self._job["wave_tokens"]:
                yield wave
                wave = _Wave()
            if not wave.jobs or len(wave.jobs[-1]) == self._job["job_articles"]:
                wave.jobs.append([])
            number = sum(len(lines) for lines in wave.jobs)
            wave.jobs[-1].append(api.line(f"wave{self.waves + 1}_{number}", call))
            wave.tokens += tokens
        if wave.jobs:
            yield wave

    async def _ended(self, api: BatchApi, name: str) -> RemoteJob:
        while True:
            job = await api.job(name)
            if job.state.ended:
                return job
            await asyncio.sleep(self._job["poll_s"])

    async def _download(self, api: BatchApi, job: RemoteJob) -> None:
        async for result in api.results(job):
            if result.reply is not None:
                self._seen.add(result.custom_id)


def main() -> None:
    """Read the job, run measured, print the figures."""
    job = json.load(sys.stdin)
    waves = _Waves(job)
    figures = measure(lambda: asyncio.run(waves.run()))
    print(json.dumps({**figures, "waves": waves.waves, "jobs": waves.jobs}))


if __name__ == "__main__":
    main()
