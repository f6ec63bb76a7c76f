"""A web site on loopback that answers as a test wishes, byte by byte where it must."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar

from batch_pipeline.clock import ManualClock
from batch_pipeline.fetch.addresses import AddressRules, Resolver, system_resolver
from batch_pipeline.fetch.fetcher import Fetched, Fetcher
from batch_pipeline.fetch.settings import FetchSettings

T = TypeVar("T")

ARTICLE = (
    "<p>" + "The council met on Monday and agreed on the new bridge over the river. " * 6 + "</p>"
)


def page(title: str = "The bridge", body: str = ARTICLE) -> str:
    """A page with an article that every extractor finds."""
    return f"<html><head><title>{title}</title></head><body><article>{body}</article></body></html>"


@dataclass(frozen=True, slots=True)
class Request:
    """What the site was asked."""

    path: str
    headers: Mapping[str, str]
    at: float


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Site:
    """Serves on a thread of its own; robots.txt is absent unless a test puts one there."""

    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0

    def __post_init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Site:
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._serve, self.host, 0, ssl=self.tls))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._on_loop(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def rules(self) -> AddressRules:
        """Rules that let this very server through."""
        return AddressRules.parse(f"{self.host}:{self.port}")

    @property
    def paths(self) -> list[str]:
        """What was asked for, in order, robots.txt aside."""
        return [one.path for one in self.requests if one.path != "/robots.txt"]

    def url(self, path: str = "/", host: str = "") -> str:
        """The address of a path here."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{host or self.host}:{self.port}{path}"

    def on(self, path: str, handler: Handler) -> None:
        """Answer a path by hand."""
        self._handlers[path] = handler

    def put(
        self,
        path: str,
        body: str | bytes = "",
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        kind: str = "text/html; charset=utf-8",
    ) -> None:
        """Answer a path with a whole body."""
        data = body.encode() if isinstance(body, str) else body
        given = {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}

        async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
            lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value)
            head = f"HTTP/1.1 {status} Status\r\n{lines}Connection: close\r\n\r\n"
            writer.write(head.encode() + data)

        self.on(path, answer)

    def redirect(self, path: str, to: str, status: int = 302) -> None:
        """Send whoever asks for a path elsewhere."""
        self.put(path, status=status, headers={"Location": to})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            request = Request(head[0].split(" ")[1], headers, time.monotonic())
            self.requests.append(request)
            handler = self._handlers.get(request.path.partition("?")[0])
            if handler is None:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            else:
                await handler(request, writer)
            await writer.drain()
        self.open_now -= 1
        writer.close()

    async def _stop(self) -> None:
        self._server.close()
        mine = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not mine]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


def quick(rules: AddressRules, **changes: Any) -> FetchSettings:
    """Settings with short bounds, no pauses and no second tries."""
    short = FetchSettings(
        rules=rules, host_delay_s=0.0, connect_s=5.0, read_s=5.0, total_s=10.0, retries=0
    )
    return replace(short, **changes)


def fetch(
    url: str,
    settings: FetchSettings,
    *,
    resolver: Resolver = system_resolver,
    clock: ManualClock | None = None,
) -> Fetched:
    """Fetch one page; a clock that is given is moved on whenever somebody sleeps."""
    return fetch_all([url], settings, resolver=resolver, clock=clock)[0]


def fetch_all(
    urls: list[str],
    settings: FetchSettings,
    *,
    resolver: Resolver = system_resolver,
    clock: ManualClock | None = None,
) -> list[Fetched]:
    """Fetch pages at once through one fetcher."""

    async def run() -> list[Fetched]:
        async with Fetcher(settings, clock=clock, resolver=resolver) as fetcher:
            work = asyncio.gather(*(fetcher.fetch(url) for url in urls))
            if clock is not None:
                await drive(clock, work)
            return list(await work)

    return asyncio.run(run())


async def drive(clock: ManualClock, work: asyncio.Future[Any]) -> None:
    """Move a clock to the next sleeper's moment, until the work is done."""
    while not work.done():
        before = len(asyncio.all_tasks())
        await asyncio.sleep(0.002)
        wake = clock.next_wake
        if wake is not None and before == len(asyncio.all_tasks()):
            await clock.advance(max(0.0, wake - clock.now()))


def resolves(**names: list[str]) -> Resolver:
    """A resolver that knows these names only (`_` stands for a dot)."""
    known = {name.replace("_", "."): addresses for name, addresses in names.items()}

    async def resolver(host: str, port: int) -> list[str]:
        if host not in known:
            raise OSError(f"{host} is not known")
        return known[host]

    return resolver
