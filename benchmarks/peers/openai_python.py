"""openai-python with a semaphore: the SDK's own retries, over aiohttp as its README advises."""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI, DefaultAioHttpClient

from benchmarks.peers.job import KEY, RETRIES, TIMEOUT_S, Ended, Job, run, usable, with_semaphore


def work(job: Job) -> Ended:
    """Send the job's requests with `chat.completions.create`."""

    async def main() -> Ended:
        async with AsyncOpenAI(
            base_url=job.base_url,
            api_key=KEY,
            max_retries=RETRIES,
            timeout=TIMEOUT_S,
            http_client=DefaultAioHttpClient(),
        ) as client:

            async def call(user: str) -> bool:
                reply = await client.chat.completions.create(
                    model=job.model,
                    messages=job.messages(user),
                    max_completion_tokens=job.max_output_tokens,
                    temperature=job.temperature,
                    response_format=job.response_format,
                )
                return usable(reply.choices[0].message.content)

            return await with_semaphore(job, call)

    return asyncio.run(main())


if __name__ == "__main__":
    run(work)
