"""The load that every client sends, and the simulator that answers it.

What belongs here: rows, tables, the peers' prompts, a simulator process and its journal. What does
not: clients (clients.py).
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from batch_pipeline.engine.step import Step
from batch_pipeline.providers.schemas import openai_strict_schema
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.runner import resolve_step

MODEL = "gpt-4o-mini"
ROUTE = f"openai/{MODEL}"
CONCURRENCY = 100

_LOREM = "What a reader learns here about careful engineering and honest measurement. " * 5
_COLUMNS = ("Category", "Subcategory", "Topic", "Description", "Resources")


def row(index: int) -> dict[str, str]:
    """A topic whose prompt is unlike any other's; with the system prompt about 3 kB."""
    return {
        "Category": "Benchmarks",
        "Subcategory": f"Group {index % 50}",
        "Topic": f"Topic number {index}",
        "Description": f"{index}: {_LOREM}",
        "Resources": f"https://example.org/{index}",
    }


def write_table(path: Path, indexes: Sequence[int]) -> Path:
    """Write the rows of these numbers as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(row(index) for index in indexes)
    return path


def job(
    url: str,
    indexes: Sequence[int],
    *,
    concurrency: int = CONCURRENCY,
    rate: float | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The job of a peer: for each row the request that the engine sends for it."""
    step = _single()
    return {
        "base_url": f"{url}/openai/v1",
        "model": MODEL,
        "system": step.system_prompt,
        "users": [step.user_message([step.content(row(index))]) for index in indexes],
        "schema": openai_strict_schema(step.request_schema),
        "max_output_tokens": step.output_tokens_base + step.output_tokens_per_item,
        "temperature": step.temperature,
        "concurrency": concurrency,
        "rate": rate,
        "folder": None if folder is None else str(folder),
    }


@cache
def _single() -> Step:
    return resolve_step(load_workload_config("roadmaps").with_options({"pack": 1}))


@dataclass(frozen=True)
class Simulator:
    """A running simulator."""

    url: str
    journal_file: Path

    @classmethod
    @contextmanager
    def start(cls, state_dir: Path, *options: str) -> Iterator[Simulator]:
        """Start one for the length of the context; `--bench` makes it the quick one."""
        command = [sys.executable, "-m", "batch_pipeline.simulator", "--state-dir", str(state_dir)]
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            yield cls(url, state_dir / "journal.jsonl")
        finally:
            process.terminate()
            process.wait(30)

    def configure(
        self, *, latency_s: float, jitter_s: float = 0.0, limits: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Set what every request takes, and the provider's limits."""
        latency = {"base_s": latency_s, "per_output_token_s": 0.0, "jitter_s": jitter_s}
        settings = {"latency": latency, "limits": list(limits)}
        httpx.put(f"{self.url}/_sim/config", json=settings).raise_for_status()

    def summary(self) -> dict[str, Any]:
        """The journal's totals."""
        return dict(httpx.get(f"{self.url}/_sim/summary", timeout=120).json())

    def ended(self) -> int:
        """How many attempts have ended; read from the file, so the server is not disturbed."""
        return self.journal_file.read_bytes().count(b"\n") if self.journal_file.exists() else 0

    def journal(self) -> list[dict[str, Any]]:
        """Every attempt, without prices."""
        return [json.loads(line) for line in self.journal_file.read_bytes().splitlines()]
