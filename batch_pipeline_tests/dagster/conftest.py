"""A fresh installation for each test, and the Dagster instance that its UI would show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from batch_pipeline.home import ensure_home
from batch_pipeline.settings import load_settings
from batch_pipeline.simulator.launch import URL_VARIABLE
from batch_pipeline_tests.dagster.installation import Installation
from batch_pipeline_tests.simulated import Simulator


@pytest.fixture
def here(tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setenv("BATCH_PIPELINE_DATA", str(tmp_path))
    monkeypatch.setenv("BATCH_PIPELINE_SIMULATE", "1")
    monkeypatch.setenv(URL_VARIABLE, simulator.url)
    # The doors set it; this restores it afterwards.
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "nowhere"))
    return Installation(tmp_path, simulator)


@pytest.fixture
def instance(here: Installation) -> Iterator[dg.DagsterInstance]:
    ensure_home(load_settings())
    with dg.DagsterInstance.get() as found:
        yield found
