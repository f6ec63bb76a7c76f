"""The simulator that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batch_pipeline_tests.simulator.running import INSTANT, Running, running


@pytest.fixture(scope="session")
def _simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("simulator")) as simulator:
        yield simulator


@pytest.fixture
def simulator(_simulator: Running) -> Running:
    """One simulator for all tests of a worker, reset and without latency before each."""
    _simulator.http.post("/_sim/reset")
    _simulator.configure(
        seed="test",
        limits=[],
        latency=INSTANT,
        faults=[],
        key_marks={},
        headers=True,
        day=None,
        batches=[],
        clock={"speed": 1, "frozen": False},
        ahrefs_per_minute=60,
        exa_per_second=10,
        tavily_per_minute=100,
        slips=0.07,
    )
    return _simulator
