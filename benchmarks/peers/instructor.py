"""instructor: structured answers over the OpenAI SDK, with a semaphore and its disk cache."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import instructor  # type: ignore[import-not-found]
from instructor.cache import DiskCache  # type: ignore[import-not-found]
from openai import AsyncOpenAI
from pydantic import BaseModel

from benchmarks.peers.job import KEY, RETRIES, TIMEOUT_S, Ended, Job, run, with_semaphore


class Topic(BaseModel):
    """One result; instructor takes the schema as a pydantic model."""

    id: str
    tldr: str
    challenge: Literal["practice", "expert"]


class Answer(BaseModel):
    """The answer's schema."""

    results: list[Topic]


def work(job: Job) -> Ended:
    """Send the job's requests."""

    async def main() -> Ended:
        async with AsyncOpenAI(
            base_url=job.base_url, api_key=KEY, max_retries=RETRIES, timeout=TIMEOUT_S
        ) as openai:
            # without a namespace its keys are good for one process only
            kept: dict[str, Any] = {}
            if job.folder:
                kept = {"cache": DiskCache(directory=job.folder), "cache_namespace": "bench"}
            client = instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA)

            async def call(user: str) -> bool:
                answer = await client.create(
                    model=job.model,
                    messages=job.messages(user),
                    max_completion_tokens=job.max_output_tokens,
                    temperature=job.temperature,
                    response_model=Answer,
                    **kept,
                )
                return len(answer.results) == 1

            return await with_semaphore(job, call)

    return asyncio.run(main())


if __name__ == "__main__":
    run(work)
