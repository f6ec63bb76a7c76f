"""A web archive on loopback: pages by their whole address, for tests and rehearsals.

What lives here: the server behind BATCH_PIPELINE_FETCH_ARCHIVE as tests need it, and the reference
data's saved pages served by it. What does not: a site of its own name (site.py).
"""

from __future__ import annotations

import csv
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

import httpx
import pytest

from batch_pipeline_tests.conftest import REFERENCE

HTML = "text/html; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the archive answers for one address; `location` is sent where it is not empty."""

    body: bytes | str = b""
    status: int = 200
    content_type: str = HTML
    location: str = ""


@dataclass
class Archive:
    """Pages by their address; whatever else is asked for is not found (404).

    Attributes:
        url: the base address, for BATCH_PIPELINE_FETCH_ARCHIVE.
        requests: how often each address was asked for, in its full form: `https://x.example/`,
            not `https://x.example` (`asked` takes either).
    """

    url: str
    pages: dict[str, Answer] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def override(
        self,
        url: str,
        *,
        status: int = 200,
        body: bytes | str = b"",
        content_type: str = HTML,
        location: str = "",
    ) -> None:
        """Answer an address so from now on; `location` makes it a redirect, with a 3xx status."""
        self.pages[whole(url)] = Answer(body, status, content_type, location)

    def asked(self, url: str) -> int:
        """How often an address was asked for."""
        return self.requests[whole(url)]

    def answer(self, asked: str) -> Answer:
        """Count a request and say what is kept of the address."""
        with self._lock:
            self.requests[asked] += 1
        return self.pages.get(asked, Answer("not in the archive", 404, "text/plain"))


def whole(url: str) -> str:
    """An address in the form in which it is asked for: ASCII, with a path, without a fragment."""
    parsed = httpx.URL(url)
    return (parsed.raw_scheme + b"://" + parsed.netloc + parsed.raw_path).decode("ascii")


@contextmanager
def serve_archive(pages: Mapping[str, Answer] | None = None) -> Iterator[Archive]:
    """Serve pages by address on 127.0.0.1, at a port that the system chooses."""
    server = _Server(("127.0.0.1", 0), _Handler)
    archive = Archive(
        f"http://127.0.0.1:{server.server_address[1]}",
        {whole(url): answer for url, answer in (pages or {}).items()},
    )
    server.archive = archive
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def shared_archive() -> Iterator[Archive]:
    """Serve the saved pages of shared/data/articles; the test is skipped where they are absent."""
    with serve_archive(saved_pages()) as archive:
        yield archive


def saved_pages() -> Mapping[str, Answer]:
    """The saved pages of shared/data/articles by address; skips the test where they are absent."""
    if not (REFERENCE / "data" / "articles" / "pages.tar.gz").is_file():
        pytest.skip("the reference data (shared/data beside the checkout) is not here")
    return _unpacked()


@cache
def _unpacked() -> dict[str, Answer]:
    folder = REFERENCE / "data" / "articles"
    with (folder / "pages_index.csv").open(encoding="utf-8", newline="") as stream:
        addresses = {row["id"]: row["url"] for row in csv.DictReader(stream)}
    found: dict[str, Answer] = {}
    with tarfile.open(folder / "pages.tar.gz") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None:
                page_id = member.name.removeprefix("pages/").removesuffix(".html")
                found[addresses[page_id]] = Answer(content.read())
    return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    archive: Archive


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # head and body go out in one packet each way: Nagle's pause would cost 40 ms a page
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        answer = cast(_Server, self.server).archive.answer(self.path.removeprefix("/"))
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(body)))
        if answer.location:
            self.send_header("Location", answer.location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted, not written to standard error."""
