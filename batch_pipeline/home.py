"""The one Dagster home and ledger of an installation, created once however many doors open it.

What belongs here: folders, the home's dagster.yaml, the lock and the stamp. What does not:
Dagster's storage classes (dagster_home.py); importing this module does not import Dagster.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.settings import Settings, project_root

HOME_VARIABLE = "DAGSTER_HOME"

_CONFIG = "dagster.yaml"
_OUR_STORAGE = "class: HomeStorage"
_STAMP = ".ready"
_LOCK = ".lock"
_LOCK_TIMEOUT_S = 120.0
_MARK = (
    "# Written by batch-pipeline from the project's dagster.yaml, again whenever that changes.\n"
    "# Remove these two lines to keep changes of your own.\n"
)


class HomeError(BatchPipelineError):
    """The folder for state cannot be created or is held by another process for too long."""


def ensure_home(settings: Settings) -> Path:
    """Create the Dagster home and the ledger if they are not there, and make this process use them.

    Cheap when all is there. Otherwise one process creates while the others wait: Dagster's SQLite
    storage is left broken when two processes create it at once.

    A DAGSTER_HOME whose dagster.yaml names a storage of the operator's own (deploy/postgres) is
    used as it is.

    Returns:
        The home, which is also this process's DAGSTER_HOME from now on.

    Raises:
        HomeError: the folder cannot be written.
    """
    own = _operators_home()
    if own is not None:
        with _clear_errors(settings):
            _make_folders(settings)
        return own
    home = settings.dagster_home
    if not _is_ready(settings):
        with creating_home(settings) as create:
            if create:
                # Only here: Dagster takes seconds to import, and most calls find everything in
                # place.
                from batch_pipeline.dagster_home import create_storage

                create_storage(settings)
    os.environ[HOME_VARIABLE] = str(home)
    return home


@contextmanager
def creating_home(settings: Settings) -> Iterator[bool]:
    """Hold the home's lock, with folders and dagster.yaml in place; the block creates the storages.

    Yields:
        Whether the storages have yet to be created; False when another process was faster.
    """
    home = settings.dagster_home
    with _clear_errors(settings):
        _make_folders(settings)
        with FileLock(home / _LOCK, timeout=_LOCK_TIMEOUT_S):
            create = not _is_ready(settings)
            if create:
                _write_config(home)
            yield create
            if create:
                _replace(home / _STAMP, _stamp())


@contextmanager
def _clear_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except Timeout as error:
        raise HomeError(
            f"Another process has been setting up {settings.dagster_home} for "
            f"{_LOCK_TIMEOUT_S:.0f} s.",
            "Wait for it, or end it, then try again.",
        ) from error
    except OSError as error:
        raise HomeError(
            f"The folder for state, {settings.data}, cannot be used: {error.strerror or error}.",
            "Make it writable, or set BATCH_PIPELINE_DATA to another folder.",
        ) from error


def storage_folder(settings: Settings) -> Path:
    """Where Dagster's SQLite files are, for every door."""
    return settings.dagster_home / "storage"


def _operators_home() -> Path | None:
    """The DAGSTER_HOME of an operator who keeps Dagster's history elsewhere than below the data.

    The temporary one of `dagster dev` is none: it has no dagster.yaml, or a copy of the project's.
    """
    named = os.environ.get(HOME_VARIABLE)
    if not named:
        return None
    try:
        config = (Path(named) / _CONFIG).read_text(encoding="utf-8")
    except OSError:
        return None
    return None if _OUR_STORAGE in config else Path(named)


def _is_ready(settings: Settings) -> bool:
    try:
        ready = (settings.dagster_home / _STAMP).read_text(encoding="utf-8") == _stamp()
    except OSError:
        return False
    return ready and (storage_folder(settings) / "history" / "runs.db").is_file()


def _stamp() -> str:
    digest = hashlib.sha256(_template().encode()).hexdigest()[:16]
    return f"dagster {version('dagster')}, dagster.yaml {digest}\n"


def _template() -> str:
    # In a wheel the project's dagster.yaml lies inside the package.
    beside = Path(__file__).with_name(_CONFIG)
    path = beside if beside.is_file() else project_root() / _CONFIG
    return path.read_text(encoding="utf-8")


def _make_folders(settings: Settings) -> None:
    before = os.umask(0o077)
    try:
        for folder in (settings.data, settings.dagster_home, settings.inbox, settings.outputs):
            folder.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)


def _write_config(home: Path) -> None:
    path = home / _CONFIG
    if path.exists() and not path.read_text(encoding="utf-8").startswith(_MARK):
        return
    _replace(path, _MARK + _template())


def _replace(path: Path, text: str) -> None:
    """Write a whole file at once: a reader sees the old text or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
