"""The code location loads by every way Dagster offers, and runs under a live `dagster dev`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from batch_pipeline.definitions import LOCATION_NAME
from batch_pipeline_tests.dagster.installation import KNOBS, Installation
from batch_pipeline_tests.simulated import http

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ASSETS = {"batch_report", "input_table", "llm_outputs", "provider_jobs", "review_queue"}


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    return {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(BIN.parent),
    }


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_loads_in_a_fresh_interpreter_without_keys_network_or_state(tmp_path: Path) -> None:
    code = (
        "from batch_pipeline.definitions import defs\n"
        "graph = defs().resolve_asset_graph()\n"
        "print(sorted({key.path[-1] for key in graph.get_all_asset_keys()}))\n"
    )
    environment = {"PATH": os.environ["PATH"], "BATCH_PIPELINE_DATA": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == str(sorted(ASSETS)), done.stderr
    assert not (tmp_path / "none").exists()


def test_dagster_validates_the_definitions(here: Installation) -> None:
    done = _command("dagster", "definitions", "validate")
    assert done.returncode == 0, done.stderr
    assert "Validation successful" in done.stdout + done.stderr


def test_dg_checks_the_definitions_and_their_yaml(here: Installation) -> None:
    done = _command("dg", "check", "defs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All definitions loaded successfully" in done.stdout + done.stderr


def test_the_location_has_one_name_everywhere() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    assert workspace["load_from"][0]["python_module"]["location_name"] == LOCATION_NAME
    assert f'code_location_name = "{LOCATION_NAME}"' in (ROOT / "pyproject.toml").read_text()


def test_under_dagster_dev_terminates_settle_what_is_in_flight_and_runs_never_overlap(
    here: Installation,
) -> None:
    table = here.table(400)
    here.simulator.configure(latency={"base_s": 1.0, "per_output_token_s": 0, "jitter_s": 0})
    with _dagster_dev(here.data / "dev.log") as ui:
        nodes = ui("{ assetNodes { assetKey { path } } }")["assetNodes"]
        assert {node["assetKey"]["path"][-1] for node in nodes} == ASSETS

        source = {"source": str(table), "launch": "door", "batch": "night"}
        ingest = _launch(ui, "roadmaps_ingest", "input_table", source, {})
        _wait(lambda: _status(ui, ingest) == "SUCCESS", 60)
        tags = {
            "dagster/asset_partition_range_start": "night.0001",
            "dagster/asset_partition_range_end": "night.0004",
        }
        config = {**KNOBS, "workers": 2, "pack": 5}
        # Three moments: with nothing back yet, after some answers, between two chunks.
        ended = []
        for state, moment in (("sent", 1), ("settled", 5), ("settled", 20)):
            run = _launch(ui, "roadmaps_run", "llm_outputs", config, tags)
            _wait(partial(_reached, here, state, moment), 60)
            ui("mutation ($id: String!) { terminateRun(runId: $id) { __typename } }", id=run)
            # The next run starts at once, while this one still drains.
            ended.append(run)
        here.simulator.configure()
        last = _launch(ui, "roadmaps_run", "llm_outputs", config, tags)
        _wait(lambda: _status(ui, last) in {"CANCELED", "FAILURE", "SUCCESS"}, 120)

        assert [_status(ui, run) for run in ended] == ["CANCELED"] * 3
        assert _status(ui, last) == "SUCCESS"
        # Calls that were written ahead when a run was stopped were not sent.
        sent = here.count_sent()
        assert sent == here.count_attempts(state="settled") == 80
        assert sent == here.simulator.summary()["attempts"]


def _reached(here: Installation, state: str, attempts: int) -> bool:
    return here.count_attempts(state=state) >= attempts


Query = Callable[..., dict[str, Any]]


@contextmanager
def _dagster_dev(log: Path) -> Iterator[Query]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(BIN / "dagster"), "dev", "-h", "127.0.0.1", "-p", str(port)],
            cwd=ROOT,
            env=_environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}/graphql"

        def query(text: str, **variables: Any) -> dict[str, Any]:
            reply = http().post(url, json={"query": text, "variables": variables}).json()
            assert "errors" not in reply, reply
            return dict(reply["data"])

        def up() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return bool(query("{ assetNodes { id } }")["assetNodes"])
            except httpx.HTTPError:
                return False

        try:
            _wait(up, 90)
            yield query
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _launch(ui: Query, job: str, asset: str, config: dict[str, Any], tags: dict[str, str]) -> str:
    found = ui(
        """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
             __typename ... on LaunchRunSuccess { run { runId } }
             ... on RunConfigValidationInvalid { errors { message } }
             ... on PythonError { message } } }""",
        params={
            "selector": {
                "repositoryLocationName": LOCATION_NAME,
                "repositoryName": "__repository__",
                "jobName": job,
            },
            "runConfigData": {"ops": {f"roadmaps__{asset}": {"config": config}}},
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
        },
    )["launchRun"]
    assert found["__typename"] == "LaunchRunSuccess", found
    return str(found["run"]["runId"])


def _status(ui: Query, run_id: str) -> str:
    found = ui("query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id)
    return str(found["runOrError"]["status"])


def _wait(ready: Callable[[], bool], bound_s: float) -> None:
    deadline = time.monotonic() + bound_s
    while not ready():
        assert time.monotonic() < deadline, f"not within {bound_s:.0f} s"
        time.sleep(0.2)
