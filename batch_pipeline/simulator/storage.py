"""jobs.db in the state folder: what is known of batch jobs and files, for the next process.

What does not live here: their bytes (files beside it) and what a record means (`jobs`, `files`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    kind TEXT NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (kind, id)
);
CREATE TABLE IF NOT EXISTS enqueued (
    provider TEXT NOT NULL, owner TEXT NOT NULL, model TEXT NOT NULL,
    t REAL NOT NULL, tokens INTEGER NOT NULL, jobs INTEGER NOT NULL
);
"""

Point = tuple[str, str, str, float, int, int]


class Storage:
    """Records by kind and id, in the order in which they were first put."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        # A killed process loses nothing; a power cut may, and these are simulated jobs.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.executescript(_SCHEMA)

    def put(self, kind: str, record_id: str, data: Any) -> None:
        """Write or replace a record."""
        self._db.execute(
            "INSERT INTO records VALUES (?, ?, ?)"
            " ON CONFLICT (kind, id) DO UPDATE SET data = excluded.data",
            (kind, record_id, orjson.dumps(data)),
        )

    def drop(self, kind: str, record_id: str) -> None:
        """Forget a record."""
        self._db.execute("DELETE FROM records WHERE kind = ? AND id = ?", (kind, record_id))

    def all(self, kind: str) -> Iterator[Any]:
        """Yield all records of a kind."""
        rows = self._db.execute("SELECT data FROM records WHERE kind = ? ORDER BY rowid", (kind,))
        for (data,) in rows:
            yield orjson.loads(data)

    def note(self, point: Point) -> None:
        """Add a point to the series of enqueued tokens."""
        self._db.execute("INSERT INTO enqueued VALUES (?, ?, ?, ?, ?, ?)", point)

    def points(self) -> list[Point]:
        """Return all points in their order."""
        return self._db.execute("SELECT * FROM enqueued ORDER BY rowid").fetchall()

    def clear(self) -> None:
        """Forget everything."""
        self._db.executescript("DELETE FROM records; DELETE FROM enqueued;")

    def close(self) -> None:
        """Close the database."""
        self._db.close()
