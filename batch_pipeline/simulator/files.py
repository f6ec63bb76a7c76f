"""Files that clients upload and jobs produce: records in the storage, bytes in a folder.

What does not live here: the providers' upload protocols and bodies (`batch_*`).
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from batch_pipeline.simulator.jobclock import JobClock
from batch_pipeline.simulator.storage import Storage

_KIND = "file"


@dataclass(frozen=True)
class StoredFile:
    """One file.

    Attributes:
        owner: name of the key that it belongs to.
        created_at: of the job clock, as is `expires_at`.
        purpose: `batch` or `batch_output`.
        sha256: in hexadecimal; empty for what a job produced.
    """

    id: str
    provider: str
    owner: str
    name: str
    mime: str
    size: int
    created_at: float
    expires_at: float | None
    purpose: str
    sha256: str = ""


class Part:
    """Bytes that arrive, on disk from the start: memory does not grow with the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        path.touch()

    def write(self, data: bytes) -> None:
        """Append a piece."""
        with self.path.open("ab") as target:
            target.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of all pieces."""
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Remove what has arrived."""
        self.path.unlink(missing_ok=True)


class Files:
    """All files of a state folder."""

    def __init__(self, storage: Storage, folder: Path, clock: JobClock) -> None:
        self._storage = storage
        self._folder = folder
        self._clock = clock
        self._files: dict[str, StoredFile] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.part"):
            left.unlink()
        for record in storage.all(_KIND):
            stored = StoredFile(**record)
            self._files[stored.id] = stored

    def part(self) -> Part:
        """Begin a file that is not there before it is whole."""
        return Part(self._folder / f"{uuid.uuid4().hex}.part")

    def link(self, stored: StoredFile) -> Path:
        """Return another name of a file's bytes, which outlives the file."""
        linked = self._folder / f"{uuid.uuid4().hex}.part"
        linked.hardlink_to(self.path(stored))
        return linked

    def add(self, stored: StoredFile, content: Path) -> StoredFile:
        """Take a file's bytes over from another path and keep them under its id."""
        content.replace(self.path(stored))
        self._files[stored.id] = stored
        self._storage.put(_KIND, stored.id, asdict(stored))
        return stored

    def path(self, stored: StoredFile) -> Path:
        """Return where the bytes are."""
        # Ids are this simulator's own: no part of a path comes from a client.
        return self._folder / stored.id

    def get(self, provider: str, owner: str, file_id: str) -> StoredFile | None:
        """Return a file of an account, unless it has expired."""
        stored = self._files.get(file_id)
        if stored is None or (stored.provider, stored.owner) != (provider, owner):
            return None
        if stored.expires_at is not None and stored.expires_at <= self._clock.now():
            self.remove(stored)
            return None
        return stored

    def of(self, provider: str, owner: str) -> list[StoredFile]:
        """Return an account's files, the newest first."""
        found = (self.get(provider, owner, file_id) for file_id in reversed(list(self._files)))
        return [stored for stored in found if stored is not None]

    def remove(self, stored: StoredFile) -> None:
        """Forget a file."""
        del self._files[stored.id]
        self._storage.drop(_KIND, stored.id)
        self.path(stored).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all files; the storage is cleared by its owner."""
        self._files.clear()
        shutil.rmtree(self._folder)
        self._folder.mkdir()
