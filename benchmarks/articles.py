"""The articles that the batch lane is measured with, as the news workload takes them.

What belongs here: making the table, and the request of one row. What does not: sending anything.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from batch_pipeline.engine.step import Step
from batch_pipeline.providers.base import LlmRequest
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.runner import resolve_step
from benchmarks.envs import ROOT

SOURCE = ROOT.parent / "shared" / "data" / "news" / "us_federal_long.jsonl.gz"
WORKLOAD = "news"

_LOREM = "The committee met, looked at the figures, and left the rate as it was. " * 100


def write_articles(path: Path, count: int) -> str:
    """Write `count` articles as JSON lines; says in words what they are.

    The articles of `us_federal_long` again and again: each copy has an id of its own and a first
    line that makes its text unlike the others'.
    """
    named = f"`{SOURCE.name}`"
    articles = list(_read(SOURCE)) if SOURCE.exists() else []
    if not articles:
        named = f"made-up articles (`{SOURCE.name}` is not beside the checkout)"
        articles = [{"id": "made-up", "title": "A meeting", "contents": _LOREM}]
    with path.open("wb") as file:
        for number, article in enumerate(itertools.islice(itertools.cycle(articles), count)):
            copy = number // len(articles) + 1
            line = {
                "id": f"{article['id']}-copy{copy}",
                "title": article["title"],
                "contents": f"Print {copy} of {article['id']}.\n{article['contents']}",
            }
            file.write(orjson.dumps(line) + b"\n")
    return named


def read_articles(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table that `write_articles` wrote."""
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def request_of(row: dict[str, Any], model: str) -> LlmRequest:
    """The request that the engine makes for a row."""
    step = _step()
    return LlmRequest(
        model=model,
        system=step.system_prompt,
        user=step.user_message([step.content(row)]),
        schema=step.request_schema,
        schema_name=step.name,
        max_output_tokens=step.output_tokens_base + step.output_tokens_per_item,
        temperature=step.temperature,
    )


@cache
def _step() -> Step:
    return resolve_step(load_workload_config(WORKLOAD))


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rb") as file:
        for line in file:
            yield orjson.loads(line)
