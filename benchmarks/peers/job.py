"""What the peers' scripts share: the job on stdin, its measuring, the one line on stdout.

Standard library only: this runs in every peer's own environment. What does not belong here: any
peer.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RETRIES = 10
TIMEOUT_S = 120
KEY = "sk-simulated"


@dataclass(frozen=True)
class Job:
    """The work that every peer is given.

    Attributes:
        base_url: of the simulator's OpenAI API, ending in `/v1`.
        model: the model's name.
        system: the system prompt.
        users: the user messages, one for each request.
        schema: JSON Schema of the answer.
        max_output_tokens: bound on one answer.
        temperature: sampling temperature.
        concurrency: requests in flight at once.
        rate: requests per minute that the provider allows, or None where the client is not told.
        folder: where the peer may keep answers for a restart, or None.
    """

    base_url: str
    model: str
    system: str
    users: list[str]
    schema: dict[str, Any]
    max_output_tokens: int
    temperature: float
    concurrency: int
    rate: float | None
    folder: str | None

    def messages(self, user: str) -> list[Any]:
        """The messages of one request."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": user},
        ]

    @property
    def response_format(self) -> Any:
        """The schema as Chat Completions wants it."""
        form = {"name": "enrich", "strict": True, "schema": self.schema}
        return {"type": "json_schema", "json_schema": form}


@dataclass
class Ended:
    """How a run of a client ended: rows with a usable answer, and what went wrong."""

    done: int = 0
    errors: dict[str, int] = field(default_factory=Counter)


def usable(text: str | None) -> bool:
    """Whether an answer is JSON with one result: the least that every client checks."""
    try:
        return text is not None and len(json.loads(text)["results"]) == 1
    except (ValueError, KeyError, TypeError):
        return False


async def with_semaphore(job: Job, call: Callable[[str], Awaitable[bool]]) -> Ended:
    """Send all requests at once, bounded by a semaphore, as the SDKs' documentation shows.

    Args:
        job: the work.
        call: sends one user message and says whether the answer is usable.
    """
    ended = Ended()
    semaphore = asyncio.Semaphore(job.concurrency)

    async def one(user: str) -> None:
        async with semaphore:
            try:
                good = await call(user)
                ended.done += good
            except Exception as error:
                ended.errors[type(error).__name__] += 1

    await asyncio.gather(*(one(user) for user in job.users))
    return ended


def run(work: Callable[[Job], Ended]) -> None:
    """Read the job, run the work measured, print the figures as the last line of stdout."""
    job = Job(**json.load(sys.stdin))
    # Some libraries print to stdout; the line with the figures must stand alone there.
    figures = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with figures:
        print(json.dumps(measure(lambda: work(job))), file=figures)


def measure(work: Callable[[], Ended]) -> dict[str, Any]:
    """Run `work` and give its figures: wall and CPU seconds, peak memory of the process in MB."""
    before = _cpu_s()
    began = time.perf_counter()
    ended = work()
    wall_s = time.perf_counter() - began
    return {
        "done": ended.done,
        "wall_s": wall_s,
        "cpu_s": _cpu_s() - before,
        "peak_mb": peak_mb(),
        "errors": dict(ended.errors),
    }


def peak_mb() -> float:
    """The largest resident size that this process had, in MB."""
    try:
        # ru_maxrss starts at the size of the process that forked this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _cpu_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
