"""Fixtures that several rooms share: the reference data, and one simulator for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_pipeline_tests.simulated import Simulator

REFERENCE = Path(__file__).resolve().parents[2] / "shared"

# Nothing a test does may reach a provider, or a developer's own data.
for _variable in list(os.environ):
    if _variable.startswith("BATCH_PIPELINE_") or _variable.endswith(("_API_KEY", "_BASE_URL")):
        del os.environ[_variable]


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """`shared/data` beside the checkout; tests on real inputs are skipped where it is absent."""
    folder = REFERENCE / "data"
    if not folder.is_dir():
        pytest.skip("the reference data (shared/data beside the checkout) is not here")
    return folder


@pytest.fixture(scope="session")
def simulator_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """One simulator for this test process."""
    with Simulator.start(tmp_path_factory.mktemp("simulator")) as running:
        yield running


@pytest.fixture
def simulator(simulator_process: Simulator) -> Simulator:
    """The simulator with an empty journal, no faults, no limits and hardly any latency."""
    simulator_process.reset()
    return simulator_process
