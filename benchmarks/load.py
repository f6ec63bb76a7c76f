"""The load that every measured client sends: the same rows, prompts and bodies.

What belongs here: rows and the measuring of a child process. What does not: clients.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

LATENCY_MS = 50
CONCURRENCY = 100


@dataclass(frozen=True)
class Measured:
    """One client's run: wall seconds, CPU seconds of its process, requests, peak memory in MB."""

    name: str
    requests: int
    wall_s: float
    cpu_s: float
    peak_mb: float

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return self.requests / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per request."""
        return 1_000 * self.cpu_s / self.requests


def rows(count: int) -> list[dict[str, str]]:
    """Rows whose prompts are about 2 kB each, all different."""
    lorem = "What a reader learns here about careful engineering and honest measurement. " * 5
    return [
        {
            "Category": "Benchmarks",
            "Subcategory": f"Group {index % 50}",
            "Topic": f"Topic number {index}",
            "Description": f"{index}: {lorem}",
            "Resources": f"https://example.org/{index}",
        }
        for index in range(count)
    ]


def measure(name: str, requests: int, work: Callable[[], object]) -> Measured:
    """Run `work` and measure this process over it."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    work()
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(name, requests, wall_s, cpu_s, after.ru_maxrss / 1024)


def in_child(module: str, *arguments: str) -> Measured:
    """Run a client module in a process of its own; it prints its Measured as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        timeout=600,
    )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def report(measured: Measured) -> None:
    """Print a Measured for `in_child`."""
    print(json.dumps(asdict(measured)))


@contextmanager
def simulator(state_dir: Path, *options: str) -> Iterator[str]:
    """A simulator process for the length of the context; gives its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "batch_pipeline.simulator", "--state-dir", str(state_dir), *options],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(30)
