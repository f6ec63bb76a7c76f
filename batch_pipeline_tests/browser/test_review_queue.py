"""The review queue in the Dagster UI: what waits for a person, until somebody has decided."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline_tests.browser.running import BIN, webserver
from batch_pipeline_tests.chromium import CHROMIUM
from batch_pipeline_tests.fetch.archive import shared_archive
from batch_pipeline_tests.simulated import Simulator

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]

TARGET = "https://hacks.mozilla.org/2015/03/this-api-is-so-fetching/"
ANCHORS = ("This API is so", "the fetch interface", "promises in the browser")
BLOCKED = ANCHORS[1:]


@dataclass(frozen=True)
class Installation:
    """A data folder with one batch of three article jobs run, two of them blocked."""

    url: str
    environment: dict[str, str]


def command(environment: dict[str, str], *words: str) -> dict[str, Any]:
    """What a command of the CLI says with --json."""
    done = subprocess.run(
        [str(BIN / "batch-pipeline"), *words, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def installation(
    simulator_process: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installation")
    table = folder / "jobs.csv"
    lines = ["publisher,target,anchor,strategy,country,use_ahrefs,enable_llm_profiling"]
    lines += [f"aclu.org,{TARGET},{anchor},single_shot,us,false,false" for anchor in ANCHORS]
    table.write_text("\n".join(lines), "utf-8")
    simulator_process.reset()
    simulator_process.configure(
        faults=[{"kind": "article_no_sources", "match": anchor} for anchor in BLOCKED]
    )
    with shared_archive() as archive:
        environment = {
            **os.environ,
            "BATCH_PIPELINE_DATA": str(folder / "data"),
            "BATCH_PIPELINE_SIMULATE": "1",
            "BATCH_PIPELINE_SIMULATOR_URL": simulator_process.url,
            "BATCH_PIPELINE_FETCH_ARCHIVE": archive.url,
        }
        run = ("run", "articles", "--input", str(table), "--batch", "week")
        outcomes = command(environment, *run)["outcomes"]
        assert (outcomes["succeeded"], outcomes["blocked"]) == (1, 2)
        environment["DAGSTER_HOME"] = str(folder / "data" / "dagster_home")
        with webserver(folder, environment) as url:
            yield Installation(url, environment)


def queue(installation: Installation, page: Any, row: int) -> str:
    """The text of the queue's page, once it shows that row's command."""
    page.goto(f"{installation.url}/assets/articles/review_queue")
    command = page.get_by_text(f"batch-pipeline review show week {row}").first
    command.wait_for(timeout=60_000)
    command.scroll_into_view_if_needed()
    return str(page.inner_text("body"))


def test_a_job_that_waits_is_in_the_queue_until_it_is_decided(
    installation: Installation, page: Any, screenshots: Path
) -> None:
    text = queue(installation, page, 2)
    page.screenshot(path=screenshots / "review_queue.png")
    for shown in ("week 2", "week 3", *BLOCKED, "trust_sources", "oldest wait"):
        assert shown in text, f"{shown}: {text[:3_000]}"
    assert ANCHORS[0] not in text, "it was delivered"

    reason = ("--reason", "The sources are in the text.", "--by", "Anna", "--sign-off")
    command(installation.environment, "review", "override", "week", "2", *reason, "--run")
    text = queue(installation, page, 3)
    page.screenshot(path=screenshots / "review_queue_decided.png")
    assert "week 3" in text
    assert "week 2" not in text and BLOCKED[0] not in text
