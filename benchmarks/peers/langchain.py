"""langchain: `ChatOpenAI.abatch` with its InMemoryRateLimiter, and its SQLite cache."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from langchain_community.cache import SQLiteCache  # type: ignore[import-not-found]
from langchain_core.globals import set_llm_cache  # type: ignore[import-not-found]
from langchain_core.rate_limiters import InMemoryRateLimiter  # type: ignore[import-not-found]
from langchain_openai import ChatOpenAI  # type: ignore[import-not-found]

from benchmarks.peers.job import KEY, RETRIES, TIMEOUT_S, Ended, Job, run, usable


def work(job: Job) -> Ended:
    """Send the job's requests."""
    if job.folder:
        set_llm_cache(SQLiteCache(str(Path(job.folder) / "cache.db")))
    limiter: Any = None
    if job.rate is not None:
        limiter = InMemoryRateLimiter(
            requests_per_second=job.rate / 60, check_every_n_seconds=0.01, max_bucket_size=1
        )
    model = ChatOpenAI(
        model=job.model,
        base_url=job.base_url,
        api_key=KEY,
        max_retries=RETRIES,
        timeout=TIMEOUT_S,
        temperature=job.temperature,
        max_completion_tokens=job.max_output_tokens,
        rate_limiter=limiter,
    ).bind(response_format=job.response_format)
    replies = asyncio.run(
        model.abatch(
            [job.messages(user) for user in job.users],
            config={"max_concurrency": job.concurrency},
            return_exceptions=True,
        )
    )
    ended = Ended()
    for reply in replies:
        if isinstance(reply, BaseException):
            ended.errors[type(reply).__name__] += 1
        else:
            ended.done += usable(reply.content)
    return ended


if __name__ == "__main__":
    run(work)
