"""A server for measuring the engine, not itself: pre-rendered answers after a set latency.

No limits, no faults, no journal; a counter at `GET /_sim/summary`. What does not live here: the
simulator that tests and rehearsals use (`server`).
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httptools
import orjson
import uvloop
from typing_extensions import override

from batch_pipeline.simulator.config import Latency, Limit, SimulatorConfig
from batch_pipeline.simulator.server import (
    BACKLOG,
    announce,
    health,
    listen,
    state_of,
    stop_signal,
)
from batch_pipeline.simulator.state import State, forget_state, write_state
from batch_pipeline.simulator.wire import RefusedError
from batch_pipeline.simulator.work import WIRES, Work

# The ids as they stand in a body: JSON inside a JSON string, so the quotes are escaped.
_ID = re.compile(rb'\\"id\\":\s*(\\"(?:[^"\\]|\\\\.)*\\"|-?\d+)')
_GOOGLE = re.compile(r"^/google/(v1|v1beta)/models/([^:/]+):generateContent$")
_CHAT = re.compile(r"^/(openai/v1|openrouter/api/v1)/chat/completions$")
_MAX_TEMPLATES = 20_000
_PROMPT_FIELDS = frozenset({"contents", "messages", "systemInstruction", "system_instruction"})
_UNLIMITED = Limit(
    requests_per_minute=1e12,
    input_tokens_per_minute=1e15,
    output_tokens_per_minute=1e15,
    concurrent=10**9,
)


class Templates:
    """Replies, each rendered once by the real answer machinery.

    Requests that differ in nothing but the text of the items share a reply: it quotes the first.
    """

    def __init__(self) -> None:
        instant = Latency(base_s=0, per_output_token_s=0, jitter_s=0)
        self._work = Work(SimulatorConfig(limits=(_UNLIMITED,), latency=instant))
        self._replies: dict[object, bytes] = {}

    def reply(self, path: str, body: bytes) -> bytes:
        """Return the whole HTTP reply to a generation request."""
        try:
            parsed = orjson.loads(body)
            settings = {k: v for k, v in parsed.items() if k not in _PROMPT_FIELDS}
        except (orjson.JSONDecodeError, AttributeError):
            return http_reply(400, orjson.dumps({"error": "the body is not a JSON object"}))
        name = (path, orjson.dumps(settings), tuple(_ID.findall(body)) or body)
        found = self._replies.get(name)
        if found is None:
            if len(self._replies) >= _MAX_TEMPLATES:
                self._replies.clear()
            found = self._replies[name] = self._render(path, parsed)
        return found

    def _render(self, path: str, body: dict[str, Any]) -> bytes:
        google, chat = _GOOGLE.match(path), _CHAT.match(path)
        if google:
            wire, endpoint = WIRES["google"], "generateContent"
            where = {"version": google[1], "model": google[2]}
        elif chat:
            wire, endpoint = WIRES[chat[1].partition("/")[0]], "chat.completions"
            where = {"version": "", "model": ""}
        else:
            return http_reply(404, orjson.dumps({"error": f"no POST {path} in bench mode"}))
        try:
            call = wire.read(endpoint, body, "bench-key", where)
            outcome = self._work.begin(
                wire,
                call,
                body_sha="",
                request_id=f"req_{uuid.uuid4().hex}",
                mono=0.0,
                now=time.time(),
            )
        except RefusedError as refused:
            return http_reply(refused.reply.status, refused.reply.payload)
        return http_reply(200, outcome.reply.payload)


def http_reply(status: int, payload: bytes) -> bytes:
    """Render one HTTP/1.1 reply with keep-alive."""
    head = f"HTTP/1.1 {status} OK\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload


class BenchProtocol(asyncio.Protocol):
    """One connection. Replies leave after the latency; HTTP/1.1 without pipelining."""

    def __init__(self, server: BenchServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = ""
        self._body: list[bytes] = []

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    @override
    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.close()

    def on_url(self, url: bytes) -> None:
        """Collect a piece of the URL (httptools)."""
        self._path += url.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Collect a piece of the body (httptools)."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer the request that is complete (httptools)."""
        path, body = self._path.partition("?")[0], b"".join(self._body)
        self._path, self._body = "", []
        self._server.handle(self, path, body)

    def send(self, reply: bytes) -> None:
        """Write one reply unless the client has left."""
        if self._transport is not None:
            self._transport.write(reply)


class BenchServer:
    """The state behind all connections."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._templates = Templates()
        self._started_at = time.time()
        self._loop = asyncio.get_running_loop()
        self._in_flight = 0
        self._max_concurrent = 0
        self._requests = 0
        self.last_request = time.monotonic()

    def handle(self, protocol: BenchProtocol, path: str, body: bytes) -> None:
        """Answer one request."""
        self.last_request = self._loop.time()
        if path.startswith("/_sim/"):
            protocol.send(self._control(path))
            return
        self._requests += 1
        self._in_flight += 1
        self._max_concurrent = max(self._max_concurrent, self._in_flight)
        reply = self._templates.reply(path, body)
        if self._latency_s:
            self._loop.call_later(self._latency_s, self._answer, protocol, reply)
        else:
            self._answer(protocol, reply)

    def _answer(self, protocol: BenchProtocol, reply: bytes) -> None:
        self._in_flight -= 1
        protocol.send(reply)

    def _control(self, path: str) -> bytes:
        if path == "/_sim/health":
            return http_reply(200, orjson.dumps(health(self._started_at)))
        if path == "/_sim/summary":
            totals = {"attempts": self._requests, "max_concurrent": self._max_concurrent}
            return http_reply(200, orjson.dumps(totals))
        return http_reply(404, orjson.dumps({"error": f"no {path} in bench mode"}))


async def _run(
    port: int,
    latency_s: float,
    state_dir: Path,
    idle_exit_s: float | None,
    ready: Callable[[State], None],
) -> None:
    bench = BenchServer(latency_s)
    listener = listen("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BenchProtocol(bench), sock=listener, backlog=BACKLOG)
    state = state_of(listener, mode="bench")
    write_state(state_dir, state)
    ready(state)
    try:
        await stop_signal(lambda: bench.last_request, idle_exit_s)
    finally:
        forget_state(state_dir, state.pid)
        server.close()


def serve_bench(
    *,
    state_dir: Path,
    port: int = 0,
    latency_s: float = 0.05,
    idle_exit_s: float | None = None,
    ready: Callable[[State], None] = announce,
) -> None:
    """Run the bench server in this process until it is told to stop.

    Args:
        state_dir: where simulator.json is kept; made if missing.
        port: 0 lets the system choose.
        latency_s: of every reply.
        idle_exit_s: stop after so many seconds without a request.
        ready: called once, when requests are accepted.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    uvloop.run(_run(port, latency_s, state_dir, idle_exit_s, ready))
