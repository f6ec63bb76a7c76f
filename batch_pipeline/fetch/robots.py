"""What a site's robots.txt says, kept for a while for each site.

What belongs here: the rules of RFC 9309 and their cache. What does not: fetching the file
(fetcher.py) and its grammar (protego).
"""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import httpx
from protego import Protego

from batch_pipeline.clock import Clock
from batch_pipeline.fetch.errors import FetchError, RedirectError, RobotsError, StatusError
from batch_pipeline.fetch.transport import Answer

MAX_ROBOTS_BYTES = 512 * 1024
"""More of a robots.txt is not read (RFC 9309 asks for at least 500 KiB)."""

_KEPT_S = 3600.0
_FAILURE_KEPT_S = 60.0
_MAX_SITES = 500

Get = Callable[[httpx.URL], Awaitable[Answer]]
"""Fetches a robots.txt, redirects followed; another status than 200 to 299 is a StatusError."""


class Robots:
    """The robots.txt files of the sites that are being read.

    Args:
        get: fetches one.
        name: what they may know us by.
        clock: says when a file is too old.
    """

    def __init__(self, get: Get, name: str, clock: Clock) -> None:
        self._get = get
        self._name = name
        self._clock = clock
        self._sites: OrderedDict[str, _Site] = OrderedDict()

    async def check(self, url: httpx.URL) -> float:
        """Seconds that the site asks for between two requests; 0 where it says nothing.

        Raises:
            RobotsError: the page is off limits, or the file cannot be had for now.
            FetchError: the site itself cannot be had.
        """
        rules = await self._rules(url)
        if rules is None:
            return 0.0
        if not rules.can_fetch(str(url), self._name):
            raise RobotsError(
                f"The robots.txt of {url.raw_host.decode('ascii')} keeps programs away from this "
                "page.",
                "Leave the row out, or ask the site's owner.",
            )
        return float(rules.crawl_delay(self._name) or 0.0)

    async def _rules(self, url: httpx.URL) -> Protego | None:
        key = f"{url.scheme}://{url.netloc.decode('ascii')}"
        site = self._sites.setdefault(key, _Site())
        self._sites.move_to_end(key)
        while len(self._sites) > _MAX_SITES:
            self._sites.popitem(last=False)
        async with site.lock:
            if self._clock.now() >= site.until:
                await self._ask(site, url.copy_with(raw_path=b"/robots.txt", fragment=None))
        if site.failure is not None:
            raise copy.copy(site.failure)  # each row's error has a traceback of its own
        return site.rules

    async def _ask(self, site: _Site, url: httpx.URL) -> None:
        site.rules, site.failure = None, None
        try:
            answer = await self._get(url)
            site.rules = Protego.parse(answer.body.decode("utf-8", "replace"))
        except StatusError as error:
            # Without the file everything is allowed; with a broken server nothing is, for now.
            if error.status >= 500:
                site.failure = RobotsError(
                    f"The robots.txt of {url.raw_host.decode('ascii')} answers {error.status}, "
                    "which keeps programs away for now.",
                    "Run again later.",
                    status=error.status,
                )
        except RedirectError:
            site.rules = None  # as good as absent (RFC 9309, 2.3.1.2)
        except FetchError as error:
            error.passing = False  # it was tried again already
            site.failure = error
        site.until = self._clock.now() + (_FAILURE_KEPT_S if site.failure else _KEPT_S)


class _Site:
    """What is known of one site; `rules` None lets everything through."""

    __slots__ = ("failure", "lock", "rules", "until")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.rules: Protego | None = None
        self.failure: FetchError | None = None
        self.until = 0.0
