"""A news installation for tests, and articles to put into it.

What belongs here: helpers of this folder's tests. What does not: assertions.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.reports.build import build_report
from batch_pipeline.reports.model import BatchReport
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.runner import deliver
from batch_pipeline_tests.simulated import Bench, Simulator


class NewsBench(Bench):
    """One installation that runs news batches against the simulator."""

    def __init__(self, folder: Path, simulator: Simulator, **knobs: Any) -> None:
        super().__init__(folder, simulator)
        self.config = load_workload_config("news").model_copy(
            update={"tier": None, "workers": 16, **knobs}
        )

    def deliver(self, batch: Batch, folder: Path) -> dict[str, Path]:
        """The deliverables by their endings."""
        with self.open() as ledger:
            return {path.suffix: path for path in deliver(ledger, self.config, batch, folder)}

    def report(self, batch: Batch) -> BatchReport:
        """The batch's report."""
        with self.open() as ledger:
            return build_report(ledger, batch)


def article(number: int, **values: Any) -> dict[str, Any]:
    """An article of two sentences."""
    return {
        "id": f"a-{number}",
        "title": f"Title {number}",
        "contents": f"Firm {number} grew by {number} percent. Its rivals in Ankara did not.",
        **values,
    }


def write_json(path: Path, rows: Any) -> Path:
    """Write a JSON file."""
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def real_articles(data: Path, name: str, most: int) -> list[dict[str, Any]]:
    """The first articles of a file of the reference data."""
    found = []
    with gzip.open(data / "news" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            found.append(json.loads(line))
            if len(found) == most:
                break
    return found
