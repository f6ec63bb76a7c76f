"""Opening the ledger: engines, migration, and a handle bound to one realm.

What belongs here: connections and their settings. What does not: statements about batches,
attempts or limits.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock

from batch_pipeline.clock import Clock, SystemClock
from batch_pipeline.ledger.trouble import LedgerError, as_ledger_error
from batch_pipeline.ledger.writer import Stamp, Writer
from batch_pipeline.settings import LEDGER_VARIABLE, Realm

__all__ = ["SCHEMA_VERSION", "Ledger", "LedgerError", "execute_many", "upsert"]

SCHEMA_VERSION = "0005"

SCHEMA = "batch_pipeline"
"""On PostgreSQL the tables lie in a schema of their own.

Dagster's storage may then be in the same database: it has tables of the same names.
"""

_BUSY_TIMEOUT_MS = 60_000
_CONNECT_TIMEOUT_S = 10
_WRITE_LOCK = "batch_pipeline"


class Ledger:
    """A ledger database, seen from one realm.

    Opening migrates the schema when it is behind (under a lock, so that several doors may open a
    fresh home at once). Reads go through `read()`; writes go through `writer`, the only writer of
    this process.

    Args:
        url: SQLAlchemy URL; `sqlite:///path` or `postgresql://user:password@host/database`.
        realm: `live` or `simulated`: bound into every statement made through this handle.
        clock: where time comes from; by default PostgreSQL's own clock, this host's on SQLite.

    Raises:
        LedgerError: the address, folder or database cannot be used, or the schema is newer than
            this program.
    """

    def __init__(self, url: str, realm: Realm, clock: Clock | None = None) -> None:
        self.url = url
        self.realm: Realm = realm
        self.clock = clock or SystemClock()
        parsed = _parse(url)
        self.dialect = parsed.get_backend_name()
        self._asks_database = self.dialect == "postgresql" and clock is None
        self._reader = _engine(parsed, writes=False)
        self._writer_engine = _engine(parsed, writes=True)
        self._writer: Writer | None = None
        _prepare(self._reader, self._writer_engine)

    @property
    def writer(self) -> Writer:
        """The group-committing writer of this process; started at first use."""
        if self._writer is None:
            self._writer = Writer(self._writer_engine, self._stamp)
        return self._writer

    def now(self, connection: sa.Connection | None = None) -> float:
        """UTC seconds: the database's clock on PostgreSQL, this process's clock on SQLite.

        Hosts that share a ledger then agree on every lease; without a connection it is this host's.
        """
        if self._asks_database and connection is not None:
            return float(connection.execute(_CLOCK).scalar_one())
        return self.clock.now()

    def _stamp(self, connection: sa.Connection) -> Stamp:
        if self.dialect != "postgresql":
            return Stamp(self.clock.now())
        now, transaction_id = connection.execute(_STAMP).one()
        return Stamp(float(now) if self._asks_database else self.clock.now(), transaction_id)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection with one consistent view, for reading."""
        with self._clear_errors("read"), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self, lock: str = _WRITE_LOCK) -> Iterator[sa.Connection]:
        """A transaction outside the writer thread, for one-off writes such as ingest.

        Args:
            lock: what no two transactions may hold at once. By default all writes exclude each
                other; a long one that only adds rows which nobody else writes may name a lock of
                its own, so that heartbeats need not wait for it (on SQLite they do).
        """
        engine = self._writer_engine.execution_options(ledger_lock=lock)
        with self._clear_errors("written"), engine.begin() as connection:
            yield connection

    @contextmanager
    def _clear_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            trouble = as_ledger_error(error, what)
            if trouble is None:
                raise
            raise trouble from error

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


_CLOCK = sa.text("SELECT extract(epoch from clock_timestamp())")
_STAMP = sa.text("SELECT extract(epoch from clock_timestamp()), CAST(pg_current_xact_id() AS text)")
_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:lock, 0))")


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.engine.make_url(url)
        backend = parsed.get_backend_name()
    except sa.exc.ArgumentError as error:
        raise _unusable("is no database address") from error
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg2")
    if backend != "sqlite":
        raise _unusable(f"names a {backend} database")
    return parsed


def _unusable(why: str) -> LedgerError:
    # The address itself is not shown: it may hold a password.
    return LedgerError(
        f"The ledger's address {why}.",
        f"Set {LEDGER_VARIABLE} to postgresql://user:password@host/database or sqlite:///path.",
    )


def _engine(url: sa.URL, *, writes: bool) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, "BEGIN IMMEDIATE" if writes else "BEGIN")
    return _postgresql_engine(url, writes)


def _sqlite_engine(url: sa.URL, begin: str) -> sa.Engine:
    engine = sa.create_engine(
        url,
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


def _postgresql_engine(url: sa.URL, writes: bool) -> sa.Engine:
    engine = sa.create_engine(
        url,
        pool_pre_ping=True,
        pool_size=4,
        hide_parameters=True,
        # A reader sees one state of the ledger throughout. A writer's statements each see what was
        # committed before them, which under the lock below is everything.
        isolation_level="READ COMMITTED" if writes else "REPEATABLE READ",
        executemany_mode="values_plus_batch",
        # the server's end of a dead connection goes by its own keepalives, ours by these
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        },
    )

    # the driver's stubs are not among our dependencies
    extensions = importlib.import_module("psycopg2.extensions")
    # A sum of integers is an integer and an average a float, as on SQLite.
    numbers = extensions.new_type(extensions.DECIMAL.values, "number", _read_number)

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        extensions.register_type(numbers, connection)
        cursor = connection.cursor()
        cursor.execute(f"SET search_path TO {SCHEMA}")
        if writes:
            cursor.execute(f"SET lock_timeout = {_BUSY_TIMEOUT_MS}")
            # A writer that stands still within a transaction holds up every other one.
            cursor.execute(f"SET idle_in_transaction_session_timeout = {_BUSY_TIMEOUT_MS}")
        cursor.close()
        connection.commit()

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def _execute(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> tuple[str, Any]:
        # PostgreSQL takes no NUL in a text; SQLite does, so a page or a reply may bring one.
        if isinstance(parameters, list):
            return statement, [_without_nul(each) for each in parameters]
        return statement, _without_nul(parameters)

    if writes:

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            # One writing transaction at a time, as on SQLite, until its end: the statements of
            # either database then meet the same state, and no two wait for each other. It costs
            # little: nearly all of them write the same rows of `spend` and `limits`.
            lock = connection.get_execution_options().get("ledger_lock", _WRITE_LOCK)
            connection.execute(_LOCK, {"lock": lock})

    return engine


def _read_number(text: str | None, _cursor: Any) -> int | float | None:
    if text is None:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _without_nul(parameters: Any) -> Any:
    if not isinstance(parameters, dict) or not any(
        type(value) is str and "\0" in value for value in parameters.values()
    ):
        return parameters
    return {
        name: value.replace("\0", "") if isinstance(value, str) else value
        for name, value in parameters.items()
    }


def _prepare(reader: sa.Engine, writer: sa.Engine) -> None:
    """Migrate the schema to SCHEMA_VERSION if it is behind."""
    path = writer.url.database if writer.dialect.name == "sqlite" else None
    # Rows and replies are private: what is created here is readable by its owner only.
    previous = os.umask(0o077)
    try:
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        with reader.connect() as connection:
            if _version(connection) == SCHEMA_VERSION:
                return
        with FileLock(f"{path}.lock") if path else nullcontext(), writer.begin() as connection:
            _migrate(connection)
    except (sa.exc.DBAPIError, OSError) as error:
        shown = writer.url.render_as_string(hide_password=True)
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        next_step = (
            "Check that its folder exists, is writable and has free space."
            if path
            else f"Check that the server runs, and the name and password in {LEDGER_VARIABLE}."
        )
        raise LedgerError(f"The ledger at {shown} cannot be opened: {cause}.", next_step) from error
    finally:
        os.umask(previous)


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(connection: sa.Connection) -> None:
    """Bring the schema up; the transaction excludes others that would do the same."""
    version = _version(connection)
    if version == SCHEMA_VERSION:
        return
    if version is not None and version > SCHEMA_VERSION:
        raise LedgerError(
            f"The ledger has schema {version}, this program knows {SCHEMA_VERSION}.",
            "Update batch-pipeline; an older program must not write to a newer ledger.",
        )
    if connection.dialect.name == "postgresql":
        _create_schema(connection)
    # Alembic costs a quarter of a second to import, so it is loaded only when there is something to
    # migrate.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "batch_pipeline:ledger/migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _create_schema(connection: sa.Connection) -> None:
    # IF NOT EXISTS would ask for the right to create one even where an administrator did.
    if connection.execute(sa.text(f"SELECT to_regnamespace('{SCHEMA}')")).scalar() is None:
        connection.execute(sa.text(f"CREATE SCHEMA {SCHEMA}"))
