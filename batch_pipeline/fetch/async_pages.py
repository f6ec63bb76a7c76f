"""Pages one by one, on an event loop: each is fetched once, however many ask for it at once.

What belongs here: the reader that local steps use. What does not: the way of one page into the
ledger (keeping.py), lists of pages in order (pages.py).
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from math import inf

from batch_pipeline.clock import Clock
from batch_pipeline.fetch.addresses import Resolver, system_resolver
from batch_pipeline.fetch.keeping import KEPT_DAYS, Fetch, Keeping, with_text
from batch_pipeline.fetch.settings import FetchSettings
from batch_pipeline.ledger.pages import Page
from batch_pipeline.ledger.store import Ledger


class AsyncPages:
    """Gives pages through the ledger's cache; use it as an async context manager, on one loop.

    Failures are believed for as long as this reader lives: those of before are tried again, so
    that a row which is run again is given a new chance. Leaving it drops what is not finished.

    Args:
        ledger: where pages are kept.
        settings: bounds and manners.
        kept_days: a page that was fetched longer ago is fetched again.
        clock: for the pauses.
        resolver: what host names lead to.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: FetchSettings | None = None,
        *,
        kept_days: float = KEPT_DAYS,
        clock: Clock | None = None,
        resolver: Resolver = system_resolver,
    ) -> None:
        self._keeping = Keeping(
            ledger,
            settings or FetchSettings(),
            kept_days=kept_days,
            clock=clock,
            resolver=resolver,
        )
        self._stack = AsyncExitStack()
        self._fetch: Fetch | None = None
        self._flights: dict[str, asyncio.Task[Page]] = {}
        # Fetched by this reader, and without text: small, and failures to some who ask.
        self._textless: dict[str, Page] = {}

    async def __aenter__(self) -> AsyncPages:
        self._fetch = await self._stack.enter_async_context(self._keeping.fetching())
        return self

    async def __aexit__(self, *_: object) -> None:
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._stack.aclose()

    async def read(self, url: str, *, text_required: bool = True) -> Page:
        """The page of `url`; where it cannot be had, its error says why.

        Args:
            url: as the user gave it.
            text_required: whether a page without article text is one with an error; a home page
                often has a title, headings and links only.

        Raises:
            LedgerError: the ledger cannot be read or written.
        """
        while (page := self._textless.get(url)) is None:
            flight = self._flights.get(url)
            if flight is None:
                flight = asyncio.create_task(self._get(url, text_required))
                self._flights[url] = flight
            # Others may wait for it as well: whoever is cancelled leaves it alone.
            page = await asyncio.shield(flight)
            if page.text or not text_required:
                return page
            # Else it may be one from before that was good enough for whom it was looked up.
        return with_text(page) if text_required else page

    async def _get(self, url: str, text_required: bool) -> Page:
        try:
            known = await asyncio.to_thread(self._known, url, text_required)
            if known is not None:
                return known
            assert self._fetch is not None
            page = await self._fetch(url)
            if not page.text:
                self._textless[url] = page
            return page
        finally:
            del self._flights[url]

    def _known(self, url: str, text_required: bool) -> Page | None:
        found = self._keeping.known([url], failures_since=inf, text_required=text_required)
        return found.get(url)
