"""What a database's error means: trouble with the database, or with one operation.

What belongs here: sorting the drivers' errors, and the error that a user reads. What does not:
trying again (writer.py).
"""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa

from batch_pipeline.errors import BatchPipelineError


class LedgerError(BatchPipelineError):
    """The ledger database cannot be opened, read or written."""


_SQLITE_TROUBLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
    }
)
_CLASHES = frozenset({"40001", "40P01"})  # serialization failure, deadlock
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRESQL_GONE = ("08", "57P0", "53300", "25P03")
_POSTGRESQL_TROUBLE = (*_POSTGRESQL_GONE, "25006", "40", "53", "55P03", "57", "58", "XX")


def is_clash(error: BaseException) -> bool:
    """Whether another transaction came in between, so that the same one may pass at once."""
    return isinstance(error, sa.exc.DBAPIError) and _code(error) in _CLASHES


def is_gone(error: BaseException) -> bool:
    """Whether the connection broke or none could be made: a server that restarts comes back."""
    if not isinstance(error, sa.exc.DBAPIError) or isinstance(error.orig, sqlite3.Error):
        return False
    code = _code(error)
    if code:
        return code.startswith(_POSTGRESQL_GONE)
    return error.connection_invalidated or isinstance(
        error, sa.exc.OperationalError | sa.exc.InterfaceError
    )


def as_ledger_error(error: BaseException, what: str) -> LedgerError | None:
    """The error for the user where the database is the trouble; None where an operation is.

    Args:
        error: as the driver gave it.
        what: `read` or `written`.
    """
    if not isinstance(error, sa.exc.DBAPIError) or not _is_trouble(error):
        return None
    cause = " ".join(str(error.orig).split())
    return LedgerError(
        f"The ledger database cannot be {what}: {cause}.",
        "See that it runs, can be written and has free space, then run again: "
        "what was settled is kept.",
    )


def _is_trouble(error: sa.exc.DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        # the low byte is the kind, the rest its details
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE_TROUBLE
    return is_gone(error) or _code(error).startswith(_POSTGRESQL_TROUBLE)


def _code(error: sa.exc.DBAPIError) -> str:
    """PostgreSQL's five characters; empty where there are none."""
    return str(getattr(error.orig, "pgcode", None) or "")
