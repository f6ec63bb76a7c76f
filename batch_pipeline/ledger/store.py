"""Opening the ledger: engines, migration, and a handle bound to one realm.

What belongs here: connections and their settings. What does not: statements about batches,
attempts or limits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock

from batch_pipeline.clock import Clock, SystemClock
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.writer import Writer
from batch_pipeline.settings import Realm

SCHEMA_VERSION = "0002"

_BUSY_TIMEOUT_MS = 60_000


class LedgerError(BatchPipelineError):
    """The ledger database cannot be opened, read or written."""


class Ledger:
    """A ledger database, seen from one realm.

    Opening migrates the schema when it is behind (under a file lock, so that two doors may open a
    fresh home at once). Reads go through `read()`; writes go through `writer`, the only writer of
    this process.

    Args:
        url: SQLAlchemy URL; `sqlite:///path` or `postgresql+psycopg2://...`.
        realm: `live` or `simulated`: bound into every statement made through this handle.
        clock: time on SQLite; PostgreSQL uses the database's own clock.

    Raises:
        LedgerError: the folder or database cannot be used, or the schema is newer than this
            program.
    """

    def __init__(self, url: str, realm: Realm, clock: Clock | None = None) -> None:
        self.url = url
        self.realm: Realm = realm
        self.clock = clock or SystemClock()
        self.dialect = sa.engine.make_url(url).get_backend_name()
        self._reader = _engine(url, "BEGIN")
        self._writer_engine = _engine(url, "BEGIN IMMEDIATE")
        self._writer: Writer | None = None
        _prepare(self._reader, self._writer_engine)

    @property
    def writer(self) -> Writer:
        """The group-committing writer of this process; started at first use."""
        if self._writer is None:
            self._writer = Writer(self._writer_engine, self.now)
        return self._writer

    def now(self, connection: sa.Connection | None = None) -> float:
        """UTC seconds: the database's clock on PostgreSQL, this process's clock on SQLite."""
        if self.dialect == "postgresql" and connection is not None:
            statement = sa.text("SELECT extract(epoch from clock_timestamp())")
            return float(connection.execute(statement).scalar_one())
        return self.clock.now()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection with one consistent view, for reading."""
        with self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction outside the writer thread, for one-off writes such as ingest."""
        with self._writer_engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Write out what is queued and close every connection."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._reader.dispose()
        self._writer_engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def upsert(
    dialect: str,
    table: sa.Table,
    keys: list[str],
    *,
    update: list[str] | None = None,
    where: sa.ColumnElement[bool] | None = None,
) -> Any:
    """`INSERT ... ON CONFLICT` for both databases.

    Args:
        dialect: name of the database's dialect.
        table: the table.
        keys: columns of the conflict target.
        update: columns to overwrite on conflict; None keeps the row that is there.
        where: overwrite only rows for which this holds.
    """
    insert: Any
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    statement = insert(table)
    if update is None:
        return statement.on_conflict_do_nothing(index_elements=keys)
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={name: statement.excluded[name] for name in update},
        where=where,
    )


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement ready for a driver; `fixed` are the values that are written in the statement."""

    statement: Any  # keeps its id from being reused
    sql: str
    names: list[str] | None
    fixed: dict[str, Any]


_compiled: dict[tuple[int, str], _Compiled] = {}


def execute_many(
    connection: sa.Connection, statement: Any, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Execute a fixed INSERT, UPDATE or DELETE for many rows, past SQLAlchemy's work per row.

    `Connection.execute` builds each row's parameters anew, which costs more than SQLite does. Here
    the SQL is compiled once and the driver gets plain parameters, so values must be what the driver
    takes: str, int, float, bytes, bool or None.

    Args:
        connection: within a transaction.
        statement: a statement that lives as long as the process; every row has the same keys, all
            of its bind names.
        rows: parameters by bind name.
    """
    if not rows:
        return
    name = connection.dialect.name
    known = _compiled.get((id(statement), name))
    if known is None:
        compiled = statement.compile(
            dialect=connection.dialect, column_keys=list(rows[0]), for_executemany=True
        )
        given = rows[0].keys()
        fixed = {name: value for name, value in compiled.params.items() if name not in given}
        known = _Compiled(statement, str(compiled), compiled.positiontup, fixed)
        _compiled[id(statement), name] = known
    full = [{**known.fixed, **row} for row in rows] if known.fixed else rows
    parameters: Any = full
    if known.names is not None:
        parameters = [tuple([row[name] for name in known.names]) for row in full]
    connection.exec_driver_sql(known.sql, parameters)


def _engine(url: str, begin: str) -> sa.Engine:
    parsed = sa.engine.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True, pool_size=4, hide_parameters=True)
    engine = sa.create_engine(
        parsed,
        connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_MS / 1000},
        # parameters hold users' rows and providers' replies: they do not belong into error texts
        hide_parameters=True,
    )

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling is off: SQLAlchemy's begin event says how to begin.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        # FULL: a commit survives power loss, so no paid reply is ever forgotten; group commit pays
        # for the fsync.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA cache_size = -16000")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _prepare(reader: sa.Engine, writer: sa.Engine) -> None:
    """Migrate the schema to SCHEMA_VERSION if it is behind."""
    path = writer.url.database if writer.dialect.name == "sqlite" else None
    # Rows and replies are private: what is created here is readable by its owner only.
    previous = os.umask(0o077)
    try:
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        if _version(reader) == SCHEMA_VERSION:
            return
        with FileLock(f"{path}.lock") if path else nullcontext():
            _migrate(writer)
    except (sa.exc.DBAPIError, OSError) as error:
        shown = writer.url.render_as_string(hide_password=True)
        raise LedgerError(
            f"The ledger at {shown} cannot be opened: {getattr(error, 'orig', None) or error}.",
            "Check that its folder exists, is writable and has free space.",
        ) from error
    finally:
        os.umask(previous)


def _version(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(engine: sa.Engine) -> None:
    version = _version(engine)
    if version == SCHEMA_VERSION:
        return
    if version is not None and version > SCHEMA_VERSION:
        raise LedgerError(
            f"The ledger has schema {version}, this program knows {SCHEMA_VERSION}.",
            "Update batch-pipeline; an older program must not write to a newer ledger.",
        )
    # Alembic costs a quarter of a second to import, so it is loaded only when there is something to
    # migrate.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "batch_pipeline:ledger/migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
