"""Dagster's history and the ledger on one PostgreSQL database: deploy/postgres/dagster.yaml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from dagster_postgres import PostgresRunStorage

from batch_pipeline.home import ensure_home
from batch_pipeline.settings import LEDGER_VARIABLE, load_settings
from batch_pipeline_tests.dagster.installation import Installation
from batch_pipeline_tests.postgres import Postgres

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy" / "postgres" / "dagster.yaml"

_COUNT = """
import dagster as dg
with dg.DagsterInstance.get() as instance:
    print(instance.get_runs_count(), type(instance.run_storage).__name__)
"""


@pytest.fixture
def on_postgres(
    here: Installation, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Installation]:
    home = here.data / "operators_home"
    home.mkdir()
    shutil.copy(CONFIG, home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with postgres.database() as url:
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
        monkeypatch.setenv(LEDGER_VARIABLE, url)
        yield here


def test_all_but_the_storage_is_as_in_the_projects_own_dagster_yaml() -> None:
    own = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    deployed = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert own.pop("storage") != deployed.pop("storage")
    assert own == deployed


def test_a_batch_runs_to_its_report_with_history_and_ledger_in_one_database(
    on_postgres: Installation,
) -> None:
    result = on_postgres.run(on_postgres.table(150))
    assert (result.status, result.outcomes["succeeded"]) == ("done", 150)
    assert result.report_html is not None and result.report_html.is_file()
    assert {path.suffix for path in result.deliverables} == {".csv", ".jsonl", ".parquet", ".db"}

    assert ensure_home(load_settings()) == Path(os.environ["DAGSTER_HOME"])
    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.run_storage, PostgresRunStorage)
        assert instance.get_runs_count() == 3
        assert on_postgres.statuses(instance) == {"0001": "MATERIALIZED", "0002": "MATERIALIZED"}
    assert on_postgres.count_attempts(state="settled") == 8

    again = on_postgres.run(on_postgres.table(150))
    assert (again.summary["attempts"], again.summary["cache_hits"]) == (0, 150)
    kept = [path.name for path in on_postgres.data.rglob("*.db*") if "outputs" not in path.parts]
    assert kept == [], "nothing of it is in SQLite files"


def test_processes_that_begin_on_a_fresh_database_at_once_all_find_the_history(
    on_postgres: Installation,
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _COUNT],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
        assert output.split() == ["0", "PostgresRunStorage"]
    engine = sa.create_engine(os.environ["DAGSTER_POSTGRES_URL"], poolclass=sa.NullPool)
    with engine.connect() as connection:
        versions = connection.execute(sa.text("SELECT count(*) FROM alembic_version")).scalar()
    assert versions == 1


def test_failed_rows_show_at_every_door_and_a_second_run_asks_for_them_alone(
    on_postgres: Installation,
) -> None:
    table = on_postgres.table(300, poison=(7, 250))
    on_postgres.poison()
    first = on_postgres.run(table)
    assert (first.outcomes["succeeded"], first.outcomes["failed"]) == (298, 2)
    with dg.DagsterInstance.get() as instance:
        assert on_postgres.statuses(instance) == {
            "0001": "FAILED", "0002": "MATERIALIZED", "0003": "FAILED",
        }  # fmt: skip

    shown = command("status", first.batch_id, "--json")
    assert shown["outcomes"]["failed"] == 2
    assert len(command("failed", first.batch_id, "--json")["rows"]) == 2

    on_postgres.simulator.reset()
    second = on_postgres.run(table)
    assert (second.status, second.outcomes["succeeded"]) == ("done", 300)
    assert [entry["items"] for entry in on_postgres.simulator.journal()] == [2]


def command(*words: str) -> dict[str, Any]:
    """What a command of the installation prints as JSON."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("batch-pipeline")), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return dict(json.loads(done.stdout))
