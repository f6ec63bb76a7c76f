"""lm-deluge: `process_prompts_async` with its own limiter, and its SQLite cache for a restart."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from lm_deluge import Conversation, LLMClient  # type: ignore[import-not-found]
from lm_deluge.cache import SqliteCache  # type: ignore[import-not-found]
from lm_deluge.models import register_model  # type: ignore[import-not-found]

from benchmarks.peers.job import KEY, RETRIES, TIMEOUT_S, Ended, Job, run, usable

_NO_LIMIT = 1_000_000_000


def work(job: Job) -> Ended:
    """Send the job's requests."""
    os.environ["LM_DELUGE_BENCH_KEY"] = KEY
    register_model(
        id="bench",
        name=job.model,
        api_base=job.base_url,
        api_key_env_var="LM_DELUGE_BENCH_KEY",
        supports_json=True,
    )
    cache: Any = SqliteCache(str(Path(job.folder) / "cache.db")) if job.folder else None
    client = LLMClient(
        "bench",
        max_requests_per_minute=_NO_LIMIT if job.rate is None else int(job.rate),
        max_tokens_per_minute=_NO_LIMIT,
        max_concurrent_requests=job.concurrency,
        max_attempts=RETRIES + 1,
        request_timeout=TIMEOUT_S,
        temperature=job.temperature,
        max_new_tokens=job.max_output_tokens,
        cache=cache,
    )
    prompts = [Conversation().system(job.system).user(user) for user in job.users]
    replies = asyncio.run(
        client.process_prompts_async(prompts, show_progress=False, output_schema=job.schema)
    )
    ended = Ended()
    for reply in replies:
        if reply.is_error:
            ended.errors[f"HTTP {reply.status_code}"] += 1
        else:
            ended.done += usable(reply.completion)
    return ended


if __name__ == "__main__":
    run(work)
