"""A loopback HTTP server that records what arrives and answers what the test scripted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


@dataclass(frozen=True)
class Recorded:
    """One request as it arrived; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What the server says; `cut_at` closes the connection after so many bytes of the body."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    cut_at: int | None = None
    hang: bool = False


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """A JSON answer."""
    return Answer(
        status,
        orjson.dumps(value),
        {
            "content-type": "application/json",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        },
    )


@dataclass
class Recorder:
    """The running server: its address and the requests so far."""

    url: str
    requests: list[Recorded]
    release: threading.Event


@contextmanager
def recording(answer: Callable[[Recorded], Answer]) -> Iterator[Recorder]:
    """Serve `answer` on a free loopback port until the block ends."""
    requests: list[Recorded] = []
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            recorded = Recorded(
                self.command,
                self.path,
                {name.lower(): value for name, value in self.headers.items()},
                self.rfile.read(length),
            )
            requests.append(recorded)
            reply = answer(recorded)
            if reply.hang:
                release.wait(20)
                self.close_connection = True
                return
            # no Date and Server headers: a test says every header that it wants
            self.send_response_only(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut_at])
            if reply.cut_at is not None:
                self.close_connection = True

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: test output stays clean."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # the default of 5 makes a burst of connections wait a second for the kernel's retry
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Recorder(f"http://127.0.0.1:{server.server_address[1]}", requests, release)
    finally:
        release.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
