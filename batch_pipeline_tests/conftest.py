"""Fixtures that several rooms share: the reference data, a simulator, PostgreSQL, ledgers."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.settings import LEDGER_VARIABLE
from batch_pipeline_tests.chromium import chromium
from batch_pipeline_tests.postgres import TEST_URL_VARIABLE, Postgres, postgres_for_tests
from batch_pipeline_tests.simulated import Simulator

REFERENCE = Path(__file__).resolve().parents[2] / "shared"

_GIVEN_POSTGRES = os.environ.get(TEST_URL_VARIABLE)

# Nothing a test does may reach a provider, or a developer's own data.
for _variable in list(os.environ):
    if _variable.startswith(("BATCH_PIPELINE_", "GOOGLE_")) or _variable.endswith(
        ("_API_KEY", "_BASE_URL")
    ):
        del os.environ[_variable]


def pytest_collection_finish() -> None:
    """Modules and 5,000 collected tests live to the end: no garbage collection looks at them."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for this test process, or the one that TEST_URL_VARIABLE names."""
    with postgres_for_tests(_GIVEN_POSTGRES) as running:
        yield running


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """An empty ledger on PostgreSQL."""
    return postgres.empty_ledger()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where this test's ledger is: the test runs once on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def either_database(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the installation's ledger be at `ledger_url`, for this process and those it starts."""
    monkeypatch.setenv(LEDGER_VARIABLE, ledger_url)


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of headless Chromium."""
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 1440, "height": 900})


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """The folder in UI_SCREENSHOTS, else the test's own."""
    folder = Path(os.environ.get("UI_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
