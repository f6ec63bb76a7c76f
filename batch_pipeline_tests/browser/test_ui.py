"""The Dagster UI and the HTML report after a run with two poison rows, as a person meets them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from batch_pipeline_tests.browser.running import BIN, ROOT, webserver
from batch_pipeline_tests.chromium import CHROMIUM
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Simulator

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@dataclass(frozen=True)
class Installation:
    """A data folder with one batch of 300 rows run, two rows of it poisoned."""

    url: str
    run: dict[str, Any]
    environment: dict[str, str]


@pytest.fixture(scope="module")
def installation(
    simulator_process: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """The batch is run by the CLI; the UI is a real webserver on the same home."""
    folder = tmp_path_factory.mktemp("installation")
    rows = topics(300)
    rows[120]["Topic"] = rows[250]["Topic"] = "POISON"
    table = write_rows(folder / "lessons.csv", rows)
    simulator_process.reset()
    simulator_process.configure(faults=[{"kind": "malformed_json", "match": "POISON"}])
    environment = {
        **os.environ,
        "BATCH_PIPELINE_DATA": str(folder / "data"),
        "BATCH_PIPELINE_SIMULATE": "1",
        "BATCH_PIPELINE_SIMULATOR_URL": simulator_process.url,
    }
    run = ["run", "roadmaps", "--input", str(table), "--batch", "lessons", "--rate-limit", "6000"]
    done = subprocess.run(
        [str(BIN / "batch-pipeline"), *run, "--chunk-size", "50", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        timeout=120,
    )
    assert done.returncode == 1, "two rows failed"
    environment["DAGSTER_HOME"] = str(folder / "data" / "dagster_home")
    with webserver(folder, environment) as url:
        yield Installation(url, json.loads(done.stdout), environment)


def test_the_asset_graph_shows_the_assets_of_a_workload(
    installation: Installation, page: Any, screenshots: Path
) -> None:
    page.goto(f"{installation.url}/locations/batch_pipeline/asset-groups/roadmaps/lineage")
    for asset in ("input_table", "provider_jobs", "llm_outputs", "batch_report"):
        page.get_by_text(asset).first.wait_for(timeout=60_000)
    page.wait_for_timeout(1_000)  # the graph is drawn with an animation
    page.screenshot(path=screenshots / "asset_graph.png")


def test_failed_chunks_show_failed_and_the_others_materialized(
    installation: Installation, page: Any, screenshots: Path
) -> None:
    page.goto(f"{installation.url}/assets/roadmaps/llm_outputs?view=partitions")
    page.get_by_text("lessons.0003").first.wait_for(timeout=60_000)
    page.wait_for_timeout(1_000)
    page.screenshot(path=screenshots / "failed_partitions.png")
    text = page.inner_text("body")
    assert re.search(r"Failed\s*\(?2", text) or "2 failed" in text.lower(), text[:2_000]
    assert _statuses(installation.url) == {"materialized": 4, "failed": 2}


def test_a_chunk_shows_its_cost_and_timing(
    installation: Installation, page: Any, screenshots: Path
) -> None:
    page.goto(
        f"{installation.url}/assets/roadmaps/llm_outputs?view=partitions&partition=lessons.0001"
    )
    page.get_by_text("llm/cost_usd").first.wait_for(timeout=60_000)
    page.wait_for_timeout(500)
    page.screenshot(path=screenshots / "chunk_metadata.png", full_page=True)
    text = page.inner_text("body")
    for name in ("llm/requests", "llm/items_succeeded", "llm/latency_p50_s", "llm/realm"):
        assert name in text, name


def test_the_html_report_is_whole_and_asks_nobody_for_anything(
    installation: Installation, page: Any, screenshots: Path
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    report = Path(installation.run["report_html"]).as_uri()
    page.goto(report)
    page.screenshot(path=screenshots / "report.png", full_page=True)
    text = page.inner_text("body")
    assert "298" in text and "lessons" in text and "imulated" in text
    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=screenshots / "report_phone.png", full_page=True)
    wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth + 1")
    page.set_viewport_size({"width": 1440, "height": 900})
    assert not wide, "the report scrolls sideways on a phone"
    assert {url for url in asked if not url.startswith("data:")} == {report}


_STATUSES = """
query { assetNodeOrError(assetKey: {path: ["roadmaps", "llm_outputs"]}) {
  ... on AssetNode { partitionStats { numMaterialized numFailed numPartitions } } } }
"""


def _statuses(url: str) -> dict[str, int]:
    reply = httpx.post(f"{url}/graphql", json={"query": _STATUSES}, timeout=60).json()
    stats = reply["data"]["assetNodeOrError"]["partitionStats"]
    return {"materialized": stats["numMaterialized"], "failed": stats["numFailed"]}


_BACKFILL = """
mutation($partitions: [String!]!) { launchPartitionBackfill(backfillParams: {
  assetSelection: [{path: ["roadmaps", "llm_outputs"]}], partitionNames: $partitions }) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }
"""


def test_backfilling_the_failed_partitions_calls_only_for_their_failed_rows(
    installation: Installation, simulator_process: Simulator, page: Any, screenshots: Path
) -> None:
    simulator_process.reset()  # the poison is gone: what is asked now is answered
    failed = ["lessons.0003", "lessons.0006"]
    reply = httpx.post(
        f"{installation.url}/graphql",
        json={"query": _BACKFILL, "variables": {"partitions": failed}},
        timeout=60,
    ).json()
    assert reply["data"]["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess", reply
    daemon = subprocess.Popen(
        [str(BIN / "dagster-daemon"), "run", "-w", "workspace.yaml"],
        env=installation.environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 180
        while _statuses(installation.url)["materialized"] < 6:
            assert time.monotonic() < deadline, "the backfill did not end"
            time.sleep(1)
    finally:
        daemon.terminate()
        daemon.wait(60)
    assert _statuses(installation.url) == {"materialized": 6, "failed": 0}
    assert sum(entry["items"] for entry in simulator_process.journal()) == 2
    page.goto(f"{installation.url}/assets/roadmaps/llm_outputs?view=partitions")
    page.get_by_text("lessons.0003").first.wait_for(timeout=60_000)
    page.screenshot(path=screenshots / "after_backfill.png")
