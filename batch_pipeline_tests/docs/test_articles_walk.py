"""The walk of docs/articles-walk.md: its commands, in order, as they stand on the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline_tests.cli.conftest import SCRIPT, Cli
from batch_pipeline_tests.docs.pages import DOCS
from batch_pipeline_tests.simulator.running import INSTANT, running

_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
_STEPS = (
    "prepare", "try", "look", "run", "watch", "report", "list", "decide", "retry", "recipe",
    "deliver",
)  # fmt: skip


class Walk:
    """Someone at a shell who follows the page, in a folder of their own."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        blocks = _BLOCK.findall((DOCS / "articles-walk.md").read_text(encoding="utf-8"))
        self._blocks = dict(zip(_STEPS, blocks, strict=True))
        path = f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**cli.environment, "PATH": path}

    def do(self, step: str) -> str:
        """Carry out the next block of the page; what it printed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._blocks.pop(step)],
            env=self._environment,
            cwd=self.cli.data,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == 0, f"{step}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}"
        return done.stdout

    def newest(self, folder: str) -> dict[str, Any]:
        """The newest batch report in a folder."""
        path = sorted((self.cli.data / folder).glob("batch_report_*.json"))[-1]
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return document

    def counts(self, folder: str) -> dict[str, int]:
        """How many jobs of a batch ended how, without zeros."""
        summary = self.newest(folder)["summary"]
        states = ("delivered", "blocked", "aborted", "pending", "skipped")
        return {name: summary[name] for name in states if summary[name]}

    def articles(self, folder: str) -> int:
        """Articles that were delivered into a folder."""
        return len(list((self.cli.data / folder).glob("*_article.md")))


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    home = tmp_path / "home"
    home.mkdir()
    with running(tmp_path / "simulator") as simulator:
        simulator.configure(latency=INSTANT)
        yield Walk(Cli(home, simulator, "sim-key-of-the-walk"))


def test_the_complete_workflow_of_the_guide_runs_as_the_page_says(walk: Walk) -> None:
    assert walk.do("prepare").count("\n") == 3

    walk.do("try")
    assert walk.counts("test_output") == {"delivered": 3, "pending": 47}
    assert walk.articles("test_output") == 3
    tried = walk.newest("test_output")
    assert walk.do("look").count("✓ DELIVERED") == 3

    assert "ended with exit code 1" in walk.do("run")
    first = "production/client_batch"
    assert walk.counts(first) == {"delivered": 46, "blocked": 3, "aborted": 1}
    for before, after in zip(tried["results"][:3], walk.newest(first)["results"][:3], strict=True):
        assert after["metrics"]["cost_usd"] == before["metrics"]["cost_usd"] > 0

    assert "client-batch" in walk.do("watch")
    report = walk.do("report")
    assert report.count("✓ DELIVERED") == 46 and "per delivered job" in report
    listed = walk.do("list")
    assert "3 rows wait" in listed and "a sign-off is needed" in listed
    walk.do("decide")
    walk.do("retry")
    assert walk.counts(first) == {"delivered": 48, "aborted": 1, "skipped": 1}
    edited = next(
        result
        for result in walk.newest(first)["results"]
        if (result["review"] or {}).get("decision") == "regenerate"
    )
    article = walk.cli.data / first / f"{edited['job_id']}_article.md"
    assert "[välja gardiner](https://www.client.example/guider/valja-gardiner)" in (
        article.read_text(encoding="utf-8")
    )

    walk.do("recipe")
    assert walk.counts("production/client_retry") == {"delivered": 1}
    assert len(walk.do("deliver").split()) == 49

    paid = [entry for entry in walk.cli.journal() if entry["billed"]]
    assert set(Counter(entry["body_sha"] for entry in paid).values()) == {1}
    spent = sum(
        walk.newest(folder)["summary"]["cost_usd"] for folder in (first, "production/client_retry")
    )
    assert spent == pytest.approx(sum(entry["price_usd"] for entry in paid))
