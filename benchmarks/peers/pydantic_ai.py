"""pydantic-ai: an Agent with native structured output over the OpenAI SDK, with a semaphore."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput  # type: ignore[import-not-found]
from pydantic_ai.models.openai import OpenAIChatModel  # type: ignore[import-not-found]
from pydantic_ai.providers.openai import OpenAIProvider  # type: ignore[import-not-found]

from benchmarks.peers.job import KEY, RETRIES, TIMEOUT_S, Ended, Job, run, with_semaphore


class Topic(BaseModel):
    """One result; pydantic-ai takes the schema as a pydantic model."""

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
            agent: Any = Agent(
                OpenAIChatModel(job.model, provider=OpenAIProvider(openai_client=openai)),
                output_type=NativeOutput(Answer),
                instructions=job.system,
                model_settings={
                    "max_tokens": job.max_output_tokens,
                    "temperature": job.temperature,
                },
            )

            async def call(user: str) -> bool:
                answer = await agent.run(user)
                return len(answer.output.results) == 1

            return await with_semaphore(job, call)

    return asyncio.run(main())


if __name__ == "__main__":
    run(work)
