"""Fetching a page: redirects by hand, robots.txt, pauses for each host, tries again.

What belongs here: the order of these and the manners towards a host. What does not: single requests
(transport.py), what a page says (extract.py).
"""

from __future__ import annotations

import asyncio
import email.utils
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TypeVar

import httpx

from batch_pipeline.clock import Clock, SystemClock
from batch_pipeline.fetch.addresses import Resolver, system_resolver
from batch_pipeline.fetch.archive import Archive
from batch_pipeline.fetch.charsets import decode_page
from batch_pipeline.fetch.errors import (
    FetchError,
    NotAPageError,
    RedirectError,
    SlowPageError,
    StatusError,
)
from batch_pipeline.fetch.robots import MAX_ROBOTS_BYTES, Robots
from batch_pipeline.fetch.settings import FetchSettings
from batch_pipeline.fetch.transport import Answer, Transport

T = TypeVar("T")

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
TEXT_TYPES = frozenset({"text/plain"})

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_PAUSE_S = 1.0
_MAX_IDLE_GATES = 1_000
_HINTS = {
    401: "The page wants a login; save its text and submit that instead.",
    403: "The site keeps programs away; save the page's text and submit that instead.",
    404: "Check the address.",
    410: "The page is gone; leave the row out.",
    451: "The page is not shown for legal reasons; leave the row out.",
}


@dataclass(frozen=True, slots=True)
class Fetched:
    """A page as it came.

    Attributes:
        url: what was asked for.
        final_url: where the redirects led.
        status: HTTP status, 200 to 299.
        html: whether it is HTML; else it is plain text.
        content: its text, decoded.
    """

    url: str
    final_url: str
    status: int
    html: bool
    content: str


class Fetcher:
    """Fetches pages safely and politely; use it as an async context manager, within one loop.

    Args:
        settings: bounds and manners.
        clock: what pauses are measured with; bounds on connections are in real time.
        resolver: what host names lead to.
    """

    def __init__(
        self,
        settings: FetchSettings | None = None,
        *,
        clock: Clock | None = None,
        resolver: Resolver = system_resolver,
    ) -> None:
        self.settings = settings or FetchSettings()
        self._archive = self.settings.archive
        self._clock = clock or SystemClock()
        self._web = Transport(replace(self.settings, archive=None), resolver)
        # Apart from it: what may be connected to differs.
        self._archived = None if self._archive is None else Transport(self.settings, resolver)
        self._robots = Robots(self._get_robots, self.settings.robots_name, self._clock)
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._gates: OrderedDict[str, _Gate] = OrderedDict()
        self._random = random.Random()

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._web.__aexit__(*exception)
        if self._archived is not None:
            await self._archived.__aexit__(*exception)

    async def fetch(self, url: str) -> Fetched:
        """Fetch one page.

        Raises:
            FetchError: saying why it could not be had and what to do.
        """
        start = self.settings.rules.check_url(url)
        answer = await self._patiently(lambda: self._follow(start, robots=False))
        _check_type(answer)
        mime, charset = _content_type(answer.headers)
        html = mime in HTML_TYPES or (not mime and answer.body.lstrip()[:1] == b"<")
        content = decode_page(answer.body, charset, html=html)
        return Fetched(url, str(answer.url), answer.status, html, content)

    async def _get_robots(self, url: httpx.URL) -> Answer:
        return await self._patiently(lambda: self._follow(url, robots=True))

    async def _patiently(self, get: Callable[[], Awaitable[T]]) -> T:
        """`get`, again after failures that may pass."""
        for attempt in range(self.settings.retries + 1):
            try:
                return await get()
            except FetchError as error:
                if not error.passing or attempt == self.settings.retries:
                    raise
                asked = error.retry_after_s
                if asked is not None and asked > self.settings.max_retry_after_s:
                    error.next_step = (
                        f"It asks to wait {asked:,.0f} s, longer than the "
                        f"{self.settings.max_retry_after_s:g} s that are waited here: run again "
                        "later."
                    )
                    raise
                if asked is None:  # else the host's gate waits, for all of its pages
                    pause = _FIRST_PAUSE_S * 2**attempt
                    await self._clock.sleep(pause * (0.75 + self._random.random() / 2))
        raise AssertionError("unreachable")

    async def _follow(self, url: httpx.URL, *, robots: bool) -> Answer:
        """One try at a page: requests until one is no redirect."""
        left_s = self.settings.total_s
        for _ in range(self.settings.max_redirects + 1):
            archive = self._archive_of(url)
            crawl_delay_s = 0.0
            if self.settings.obey_robots and not robots and archive is None:
                crawl_delay_s = await self._robots.check(url)
            loop = asyncio.get_running_loop()
            async with self._turn(url, crawl_delay_s) as gate:
                began = loop.time()
                place = url if archive is None else archive.place_of(url)
                transport = self._archived if archive is not None else None
                answer = await (transport or self._web).get(
                    place,
                    self._headers(place),
                    within_s=left_s,
                    cut=MAX_ROBOTS_BYTES if robots else None,
                    wanted=None if robots else _check_type,
                )
                answer = replace(answer, url=url)
                left_s -= loop.time() - began
                if answer.status not in _REDIRECTS:
                    self._check_status(answer, gate)
                    return answer
            url = self._next(answer)
            if left_s <= 0:
                raise SlowPageError(
                    f"Its redirects did not end within {self.settings.total_s:g} s.",
                    "Give the address that they lead to.",
                    passing=True,
                )
        raise RedirectError(
            f"The page redirects more than {self.settings.max_redirects} times.",
            "Give the address that it leads to in a browser.",
        )

    def _next(self, answer: Answer) -> httpx.URL:
        location = answer.headers.get("location", "")
        if not location:
            raise RedirectError(
                f"The page redirects ({answer.status}) without saying where to.",
                "Give the address that it leads to in a browser.",
                status=answer.status,
            )
        archive = self._archive_of(answer.url)
        try:
            joined = str(
                answer.url.join(location)
                if archive is None
                else archive.redirected(answer.url, location)
            )
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise RedirectError(
                f"The page redirects to '{location[:200]}', which is no address.",
                "Give the address that it leads to in a browser.",
                status=answer.status,
            ) from error
        try:
            url = self.settings.rules.check_url(joined)
        except FetchError as error:
            error.message = f"The page redirects to an address that is refused. {error.message}"
            raise
        if answer.url.scheme == "https" and url.scheme == "http":
            raise RedirectError(
                "The page redirects from https to plain http, where anybody on the way could "
                "change its text.",
                f"If that is acceptable, give the address itself: {str(url)[:300]}",
                status=answer.status,
            )
        return url

    def _headers(self, url: httpx.URL) -> list[tuple[str, str]]:
        return [
            ("Host", url.netloc.decode("ascii")),
            ("User-Agent", self.settings.user_agent),
            ("Accept", "text/html,application/xhtml+xml,text/plain;q=0.8"),
            ("Accept-Encoding", "gzip, deflate"),
            ("Accept-Language", "en,*;q=0.5"),
        ]

    def _check_status(self, answer: Answer, gate: _Gate) -> None:
        status = answer.status
        if 200 <= status < 300:
            return
        wait = None
        if status in (429, 503):
            wait = _seconds(answer.headers.get("retry-after", ""), self._clock.now())
            if wait is not None:
                pause = min(wait, self.settings.max_retry_after_s)
                gate.next_start = max(gate.next_start, self._clock.now() + pause)
        try:
            words = f"{status} {HTTPStatus(status).phrase}"
        except ValueError:
            words = str(status)
        passing = status in _PASSING
        raise StatusError(
            f"The server answers {words}.",
            _HINTS.get(status) or ("Run again later." if passing else "Check the address."),
            passing=passing,
            retry_after_s=wait,
            status=status,
        )

    @asynccontextmanager
    async def _turn(self, url: httpx.URL, crawl_delay_s: float) -> AsyncIterator[_Gate]:
        """Wait for this request's turn: of its host first, then of all."""
        gate = self._gate(url.raw_host.decode("ascii").lower())
        gate.users += 1
        try:
            async with gate.slots:
                delay = max(
                    # an archive is the operator's own: it needs no rest between requests
                    self.settings.host_delay_s if self._archive_of(url) is None else 0.0,
                    min(crawl_delay_s, self.settings.max_crawl_delay_s),
                )
                while (wait := gate.next_start - self._clock.now()) > 0:
                    await self._clock.sleep(wait)
                gate.next_start = self._clock.now() + delay
                async with self._slots:
                    yield gate
        finally:
            gate.users -= 1

    def _archive_of(self, url: httpx.URL) -> Archive | None:
        """The archive where it has the page of `url`; None is the web."""
        return self._archive if self._archive is not None and self._archive.has(url) else None

    def _gate(self, host: str) -> _Gate:
        gate = self._gates.get(host)
        if gate is None:
            if len(self._gates) >= _MAX_IDLE_GATES:
                now = self._clock.now()
                idle = [
                    name
                    for name, one in self._gates.items()
                    if not one.users and one.next_start <= now
                ]
                for name in idle:
                    del self._gates[name]
            gate = self._gates[host] = _Gate(asyncio.Semaphore(self.settings.per_host))
        return gate


@dataclass(slots=True)
class _Gate:
    """The manners towards one host: requests at once, and when the next may start."""

    slots: asyncio.Semaphore
    next_start: float = 0.0
    users: int = 0


def _check_type(answer: Answer) -> None:
    """Refuse what is no page, before its body is read."""
    mime, _ = _content_type(answer.headers)
    if not 200 <= answer.status < 300 or mime in HTML_TYPES or mime in TEXT_TYPES:
        return
    if not mime and b"\0" not in answer.body[:4096]:
        return
    raise NotAPageError(
        f"It is {mime[:80] or 'binary data'}, not a page of HTML or text.",
        "Save its text and submit that instead.",
        status=answer.status,
    )


def _content_type(headers: dict[str, str]) -> tuple[str, str]:
    """MIME type and charset, in lower case, empty where not named."""
    mime, _, rest = headers.get("content-type", "").partition(";")
    charset = ""
    for part in rest.split(";"):
        name, _, value = part.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip("\"'").lower()
    return mime.strip().lower(), charset


def _seconds(retry_after: str, now: float) -> float | None:
    """Seconds that a Retry-After header asks for; None where it does not say."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
