"""Dagster's own storage, at the place that the settings name: what dagster.yaml refers to.

What belongs here: the two classes that dagster.yaml names, and creating the SQLite files once. What
does not: folders, lock and stamp (home.py).

A relative path in dagster.yaml would follow the working directory, and an absolute one the machine;
these classes ask the settings, so that plain `dagster dev`, `dg dev`, run workers and the CLI all
open the same files.
"""

from __future__ import annotations

from typing import Any

from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData

from batch_pipeline.home import ensure_home, storage_folder
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.settings import Settings, load_settings


def create_storage(settings: Settings) -> None:
    """Create Dagster's SQLite files and the ledger; the caller holds the home's lock."""
    DagsterSqliteStorage.from_local(str(storage_folder(settings))).dispose()
    Ledger(settings.ledger_url, "live").close()


class HomeStorage(DagsterSqliteStorage):
    """Runs, events and schedules in SQLite below the installation's Dagster home."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """It has no settings."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Any) -> HomeStorage:
        """Open the storage; the first process to do so creates it."""
        settings = load_settings()
        ensure_home(settings)
        return cls.from_local(str(storage_folder(settings)), inst_data=inst_data)


class HomeComputeLogs(LocalComputeLogManager):
    """What runs print, kept below the installation's Dagster home."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """It has no settings."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> HomeComputeLogs:
        """Open the log folder."""
        return cls(str(load_settings().dagster_home / "logs"), inst_data=inst_data)
