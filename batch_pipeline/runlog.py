"""The log of runs: one JSON line and one readable line per event, in files shared by processes.

What belongs here: writing, rotation and removal of old files. What does not: which events there
are (the engine emits them), and what may be said (`redact` comes from outside).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from io import TextIOWrapper
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from concurrent_log_handler import ConcurrentRotatingFileHandler

MAX_FILE_BYTES = 64 * 1024 * 1024
KEEP_BYTES = 1024 * 1024 * 1024
KEEP_DAYS = 30

_FLUSH_S = 0.1
_CLOSE_S = 5.0
# A second of a fast run is 5,000 events; a log that is so far behind must not fill the memory.
_MAX_WAITING = 200_000
# Beyond this the handler would rename too many files at each rotation; the total size rules anyway.
_MAX_PARTS = 20
_REMEMBERED = 4_096
_PREFIX = "batch_"
_LOCK = ".lock"
_DAY_S = 86_400

_CONTROL = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]+")

_Event = tuple[float, str, dict[str, Any]]

_logger = logging.getLogger(__name__)


class RunLog:
    """Writes a run's events to `<folder>/batch_<UTC date>.jsonl` and `.log`. Close it at the end.

    - `event` takes about a microsecond: formatting and writing are a background thread's, which
      takes the lock of the files about ten times a second at most.
    - Several processes write to the same files; their lines never mix. A file that has grown to
      `max_file_bytes` goes on as `….1`, `….2`, …
    - A log that cannot be written (full disk, read-only folder) is said once, by a warning, and
      never stops a run; later events are tried again.
    - After `kill -9` the last tenth of a second may be missing: the ledger is the truth.

    Args:
        folder: where the files are; made if missing, for this user only.
        run_id: of the run.
        batch: its batch.
        realm: `live` or `simulated`.
        workload: its workload.
        redact: removes keys from a text; every text of an event passes through it.
        max_file_bytes: a file of this size is put aside.
        keep_days: older files are removed when a file is opened.
        keep_bytes: so are the oldest ones when all together are larger.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_id: str,
        batch: str,
        realm: str,
        workload: str,
        redact: Callable[[str], str],
        max_file_bytes: int = MAX_FILE_BYTES,
        keep_days: int = KEEP_DAYS,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self._files = _Files(folder, max_file_bytes, keep_days, keep_bytes)
        # An item, a model or a chunk comes in many events; the search for keys costs 3 µs a text.
        self._redact = lru_cache(_REMEMBERED)(redact)
        self._run = {
            "run": redact(run_id),
            "batch": redact(batch),
            "realm": redact(realm),
            "workload": redact(workload),
        }
        self._heading = (self._run["realm"], self._run["batch"], self._run["run"][:8])
        self._waiting: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self._dropped = 0
        self._warned = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="run log", daemon=True)
        self._thread.start()

    def event(self, name: str, **fields: Any) -> None:
        """Say that something happened, now. Never waits, never raises; after `close`, does nothing.

        Args:
            name: of the event, such as `settled`.
            fields: `item`, `attempt`, `chunk`, `duration_s` (seconds), `cost_usd` (USD) and what
                else belongs to it. None and empty texts are left out; what is no number is written
                as text.
        """
        if self._closing.is_set():
            return
        if self._waiting.qsize() >= _MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.put((time.time(), name, fields))

    def close(self) -> None:
        """Write what waits and close the files; waits a few seconds at most."""
        if not self._closing.is_set():
            self._closing.set()
            self._waiting.put(None)
            self._thread.join(_CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write_all(self) -> None:
        open_ = True
        while open_:
            events = [self._waiting.get()]
            # What comes within a tenth of a second is written together.
            self._closing.wait(_FLUSH_S)
            with contextlib.suppress(queue.Empty):
                while True:
                    events.append(self._waiting.get_nowait())
            open_ = None not in events
            self._write([event for event in events if event is not None])
        self._files.close()

    def _write(self, events: list[_Event]) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            events.append((time.time(), "log_behind", {"events_left_out": dropped}))
        try:
            for day, of_day in groupby(events, key=lambda event: int(event[0] // _DAY_S)):
                self._files.append(day, map(self._lines, of_day))
        except Exception as error:
            # A log is never worth a run: whatever is wrong here is said once.
            self._files.close()
            if not self._warned:
                self._warned = True
                _logger.warning(
                    "The run's log cannot be written (%s: %s); the run goes on without it.",
                    type(error).__name__,
                    error,
                )

    def _lines(self, event: _Event) -> tuple[str, str]:
        """One event as JSON and as words."""
        t, name, given = event
        fields = {
            key: value if isinstance(value, bool | int | float) else self._redact(_text(value))
            for key, value in given.items()
            if value is not None and value != ""
        }
        at = f"{datetime.fromtimestamp(t, UTC).isoformat(timespec='milliseconds')[:-6]}Z"
        record = {"t": at, **self._run, "event": name, **fields}
        try:
            line = orjson.dumps(record).decode()
        except orjson.JSONEncodeError:
            # Half a surrogate pair, from a row.
            line = orjson.dumps({key: _whole(value) for key, value in record.items()}).decode()
        words = [f"{key}={_in_words(value)}" for key, value in fields.items()]
        return line, " ".join([at, *self._heading, name, *words])


class _Files:
    """The two files of one day at a time."""

    def __init__(self, folder: Path, max_file_bytes: int, keep_days: int, keep_bytes: int) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._keep_days = keep_days
        self._keep_bytes = keep_bytes
        self._day: int | None = None
        self._open: list[_File] = []

    def append(self, day: int, lines: Iterable[tuple[str, str]]) -> None:
        """Append lines to the files of a day, counted from 1970.

        Raises:
            OSError: they cannot be written.
        """
        if day != self._day:
            self.close()
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            stem = f"{_PREFIX}{datetime.fromtimestamp(day * _DAY_S, UTC):%Y-%m-%d}"
            self._open = [
                _File(self._folder / f"{stem}{suffix}", self._max_file_bytes, self._prune)
                for suffix in (".jsonl", ".log")
            ]
            self._day = day
        for file, texts in zip(self._open, zip(*lines, strict=True), strict=True):
            # One record for all: the handler takes its lock once per record.
            file.emit(logging.makeLogRecord({"msg": "\n".join(texts)}))

    def close(self) -> None:
        """Close both files; the next `append` opens them again."""
        for file in self._open:
            # A full disk is reported once more when what is left in the buffer cannot be written.
            with contextlib.suppress(OSError):
                file.close()
        self._open = []
        self._day = None

    def _prune(self) -> None:
        """Remove files that are too old, and the oldest while all are too large."""
        found = []
        for path in self._folder.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        oldest_kept = time.time() - self._keep_days * _DAY_S
        being_written = {Path(file.baseFilename) for file in self._open}
        total = 0
        for changed_at, size, path in sorted(found, reverse=True):
            total += size
            if path not in being_written and (changed_at < oldest_kept or total > self._keep_bytes):
                with contextlib.suppress(OSError):
                    path.unlink()


class _File(ConcurrentRotatingFileHandler):
    """One file. All files of a folder share one lock, so that removal and rotation never meet."""

    def __init__(self, path: Path, max_bytes: int, on_open: Callable[[], None]) -> None:
        super().__init__(
            str(path),
            maxBytes=max_bytes,
            backupCount=_MAX_PARTS,
            encoding="utf-8",
            chmod=0o600,
            unicode_error_policy="replace",
        )
        self._on_open = on_open

    def getLockFilename(self, lock_file_directory: str | None) -> str:
        """The lock beside the files (called by the base class)."""
        return str(Path(self.baseFilename).with_name(_LOCK))

    def do_open(self, mode: str | None = None) -> TextIOWrapper:
        """Open the file, under the lock (called by the base class)."""
        cut = _ends_in_half_a_line(Path(self.baseFilename))
        stream = super().do_open(mode)
        if cut:
            stream.write("\n")
        self._on_open()
        return stream

    def handleError(self, record: logging.LogRecord) -> None:
        """Let the caller see what went wrong (called by the base class while it handles it)."""
        raise


def _ends_in_half_a_line(path: Path) -> bool:
    """Whether a full disk or a killed process left a line without its end."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
    except OSError:
        return False


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _whole(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _in_words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str):
        return str(value)
    # No line breaks and no terminal commands out of a row.
    text = value if value.isprintable() else _CONTROL.sub(" ", value)
    return f'"{text}"' if " " in text else text
