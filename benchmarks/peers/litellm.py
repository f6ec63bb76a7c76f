"""litellm: `acompletion` with a semaphore, its Router where the limit is known, its disk cache."""

from __future__ import annotations

import asyncio
from typing import Any

import litellm  # type: ignore[import-not-found]

from benchmarks.peers.job import KEY, RETRIES, TIMEOUT_S, Ended, Job, run, usable, with_semaphore


def work(job: Job) -> Ended:
    """Send the job's requests."""
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    if job.folder:
        litellm.cache = litellm.Cache(type="disk", disk_cache_dir=job.folder)

    async def main() -> Ended:
        where = {"model": f"openai/{job.model}", "api_base": job.base_url, "api_key": KEY}
        complete: Any = litellm.acompletion
        if job.rate is not None:
            router = litellm.Router(
                model_list=[
                    {"model_name": "bench", "litellm_params": {**where, "rpm": int(job.rate)}}
                ],
                num_retries=RETRIES,
                timeout=TIMEOUT_S,
                optional_pre_call_checks=["enforce_model_rate_limits"],
            )
            complete, where = router.acompletion, {"model": "bench"}

        async def call(user: str) -> bool:
            reply = await complete(
                **where,
                messages=job.messages(user),
                max_completion_tokens=job.max_output_tokens,
                temperature=job.temperature,
                response_format=job.response_format,
                num_retries=RETRIES,
                timeout=TIMEOUT_S,
                caching=bool(job.folder),
            )
            return usable(reply.choices[0].message.content)

        return await with_semaphore(job, call)

    return asyncio.run(main())


if __name__ == "__main__":
    run(work)
