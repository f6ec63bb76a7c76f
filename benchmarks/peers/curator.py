"""bespokelabs-curator: an LLM over a dataset, with its own limiter and its cache by input."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

# Its tokenizer's table would be downloaded; litellm, which it requires, brings the same file.
_litellm = importlib.util.find_spec("litellm")
if _litellm is not None and _litellm.origin is not None:
    os.environ["TIKTOKEN_CACHE_DIR"] = str(
        Path(_litellm.origin).parent / "litellm_core_utils" / "tokenizers"
    )

from bespokelabs import curator  # type: ignore[import-not-found]  # noqa: E402
from datasets import Dataset  # type: ignore[import-not-found]  # noqa: E402

from benchmarks.peers.job import KEY, RETRIES, TIMEOUT_S, Ended, Job, run  # noqa: E402

_NO_LIMIT = 1_000_000_000


class Topic(BaseModel):
    """One result; curator takes the schema as a pydantic model."""

    id: str
    tldr: str
    challenge: Literal["practice", "expert"]


class Answer(BaseModel):
    """The answer's schema."""

    results: list[Topic]


class Enrich(curator.LLM):  # type: ignore[misc]
    """The task as curator's documentation shows it."""

    response_format = Answer

    def prompt(self, input: dict[str, Any]) -> str:
        """The user message."""
        return str(input["user"])

    def parse(self, input: dict[str, Any], response: Answer) -> dict[str, Any]:
        """The row that comes out."""
        return {"results": len(response.results)}


def work(job: Job) -> Ended:
    """Send the job's requests."""
    llm = Enrich(
        model_name=job.model,
        backend="openai",
        system_prompt=job.system,
        generation_params={
            "max_completion_tokens": job.max_output_tokens,
            "temperature": job.temperature,
        },
        backend_params={
            "base_url": job.base_url,
            "api_key": KEY,
            "max_retries": RETRIES,
            "request_timeout": TIMEOUT_S,
            "max_concurrent_requests": job.concurrency,
            "require_all_responses": False,
            "max_requests_per_minute": _NO_LIMIT if job.rate is None else int(job.rate),
            "max_tokens_per_minute": _NO_LIMIT,
        },
    )
    if job.folder is None:
        os.environ["CURATOR_DISABLE_CACHE"] = "true"
    rows = Dataset.from_dict({"user": job.users})
    answered = llm(rows, working_dir=job.folder or os.getcwd()).dataset
    done = sum(count == 1 for count in answered["results"])
    ended = Ended(done)
    if done < len(job.users):
        ended.errors["no answer"] = len(job.users) - done
    return ended


if __name__ == "__main__":
    run(work)
