"""Input tables that came over HTTP: kept as files under a hash of their content, or named by path.

What belongs here: writing them, and which paths may be named. What does not: reading tables
(sources/).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import orjson

from batch_pipeline.api.problems import ApiError
from batch_pipeline.api.records import make_private, sync_folder
from batch_pipeline.errors import UsageError
from batch_pipeline.sources.files import SUFFIXES

URL_LISTS = (".txt", ".txt.gz")
_BLOCK = 1024 * 1024
_KEPT = re.compile(r"data/uploads/[0-9a-f]{64}/")


@dataclass(frozen=True, slots=True)
class Input:
    """A table to be submitted.

    Attributes:
        path: the file.
        digest: SHA-256 of its bytes; of its path and state where it is not ours.
        stem: what a batch is called that gets no name.
        count: rows where they were counted, else 0.
        is_ours: whether it lies in our folder, and so never changes.
        is_new: whether this request wrote it.
    """

    path: Path
    digest: str
    stem: str
    count: int
    is_ours: bool
    is_new: bool = False

    @property
    def is_url_list(self) -> bool:
        """Whether its rows are pages that have yet to be fetched."""
        return self.path.name.lower().endswith(URL_LISTS)

    def discard(self) -> None:
        """Remove what nothing came of."""
        if self.is_new:
            self.path.unlink(missing_ok=True)
            # The same content may be there under another name.
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()


def keep_urls(folder: Path, name: str | None, urls: Sequence[str]) -> Input:
    """Keep a list of URLs, one in each line."""
    lines = (f"{url}\n".encode() for url in urls)
    return _keep(folder, name, "urls", URL_LISTS[0], lines, len(urls))


def keep_rows(folder: Path, name: str | None, rows: Sequence[Mapping[str, Any]]) -> Input:
    """Keep rows as JSONL.

    Raises:
        ApiError: a row holds what cannot be stored.
    """
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            lines.append(orjson.dumps(row) + b"\n")
        except orjson.JSONEncodeError as error:
            raise ApiError(
                422,
                "invalid",
                f"Row {number} holds a value that cannot be stored: {error}.",
                "Write numbers beyond 64 bits as text, and text as Unicode.",
            ) from error
    return _keep(folder, name, "rows", ".jsonl", lines, len(rows))


def keep_upload(folder: Path, name: str | None, filename: str, file: BinaryIO) -> Input:
    """Keep an uploaded file; of its name only the ending counts.

    Raises:
        ApiError: the ending is none of a table.
    """
    base = PurePosixPath(filename.replace("\\", "/")).name
    suffix = next((s for s in (*SUFFIXES, *URL_LISTS) if base.lower().endswith(s)), None)
    if suffix is None:
        raise ApiError(
            422,
            "invalid",
            f"{base[:100]!r} does not end in a known table format.",
            f"Known are {', '.join((*SUFFIXES, *URL_LISTS))}.",
        )
    stem = re.sub(r"[^A-Za-z0-9]+", "-", base[: -len(suffix)]).strip("-").lower()[:60]
    count = 0

    def blocks() -> Iterable[bytes]:
        nonlocal count
        while block := file.read(_BLOCK):
            count += block.count(b"\n")
            yield block

    kept = _keep(folder, name, stem or "upload", suffix, blocks(), 0)
    lines = count if kept.is_url_list else 0
    return Input(kept.path, kept.digest, kept.stem, lines, True, kept.is_new)


def _keep(
    folder: Path, name: str | None, stem: str, suffix: str, content: Iterable[bytes], count: int
) -> Input:
    """Write content to `<folder>/<sha256>/<name><suffix>`, whole or not at all."""
    make_private(folder)
    digest = hashlib.sha256()
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as stream:
            for block in content:
                digest.update(block)
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        key = digest.hexdigest()
        place = folder / key
        make_private(place)
        path = place / f"{name or f'{stem}-{key[:8]}'}{suffix}"
        is_new = not path.exists()
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(place)
    sync_folder(folder)
    return Input(path, key, stem, count, True, is_new)


def find_reference(roots: Sequence[Path], given: str) -> Input:
    """The file that a path names.

    Raises:
        ApiError: it is not inside an allowed folder, wherever links lead, or is no file.
    """
    forbidden = ApiError(
        403,
        "forbidden",
        "The path is not inside a folder that this server may read from.",
        "Upload the file with POST /batch/submit-file, or put it into an allowed folder.",
    )
    try:
        path = (roots[0] / given).resolve()
        inside = any(path.is_relative_to(root) for root in roots)
        if not inside:
            raise forbidden
        state = path.stat()
        is_file = path.is_file()
    except FileNotFoundError as error:
        raise ApiError(422, "invalid", f"There is no file {given!r}.", "Check the path.") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise forbidden from error
    if not is_file:
        raise ApiError(422, "invalid", f"{given!r} is no file.", "Name a file.")
    mark = f"{path}\0{state.st_size}\0{state.st_mtime_ns}"
    digest = hashlib.sha256(mark.encode("utf-8", "surrogateescape")).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9]+", "-", path.name.split(".")[0]).strip("-").lower()[:60]
    return Input(path, digest, stem or "table", 0, False)


def without_paths(error: UsageError, source: Path, shown: str, data: Path) -> UsageError:
    """The error with the server's paths taken out of its words."""

    def plain(text: str) -> str:
        text = text.replace(str(source), shown).replace(str(data), "data")
        return _KEPT.sub("", text)

    return UsageError(plain(error.message), plain(error.next_step))
