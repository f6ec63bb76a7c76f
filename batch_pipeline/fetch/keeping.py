"""One page from its URL into the ledger: fetched, read and kept.

What belongs here: that way, how long what was kept is good, and what a page without text is to whom
it matters. What does not: many pages in order (pages.py), pages one by one (async_pages.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx

from batch_pipeline.clock import Clock
from batch_pipeline.fetch.addresses import Resolver
from batch_pipeline.fetch.errors import FetchError, NoTextError
from batch_pipeline.fetch.extract import EXTRACTOR, Article
from batch_pipeline.fetch.extract_process import Extractor
from batch_pipeline.fetch.fetcher import Fetcher
from batch_pipeline.fetch.settings import FetchSettings
from batch_pipeline.ledger.pages import KEEP_PAGE, KeepPage, Page, known_pages
from batch_pipeline.ledger.store import Ledger

KEPT_DAYS = 7.0
"""How long a fetched page is good."""


Fetch = Callable[[str], Coroutine[Any, Any, Page]]
"""Fetches the page of a URL and keeps it; where it cannot be had, its error says why."""


class Keeping:
    """What is kept of pages, and the fetching of others.

    `opened_at` is when it was made, in UTC seconds.

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
        settings: FetchSettings,
        *,
        kept_days: float,
        clock: Clock | None,
        resolver: Resolver,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._kept_s = kept_days * 86_400
        self._clock = clock
        self._resolver = resolver
        self.opened_at = ledger.now()

    def known(
        self, urls: Iterable[str], *, failures_since: float, text_required: bool
    ) -> dict[str, Page]:
        """Pages that are kept and fresh; what was fetched since this was made is always fresh.

        Args:
            urls: as `Page.url`.
            failures_since: UTC seconds; failures from before are not believed.
            text_required: whether a page without text is a failure.
        """
        by_extractor: dict[str, list[str]] = {}
        for url in urls:
            by_extractor.setdefault(self._extractor(url), []).append(url)
        found: dict[str, Page] = {}
        for extractor, some in by_extractor.items():
            found |= known_pages(
                self._ledger,
                some,
                extractor=extractor,
                since=min(self._ledger.now() - self._kept_s, self.opened_at),
                failures_since=failures_since,
                text_required=text_required,
            )
        return found

    def _extractor(self, url: str) -> str:
        """What finds the text of a page, and where it is from.

        What an archive or the simulator answers in a rehearsal is not what the web says.
        """
        archive = self._settings.archive
        if archive is None:
            return EXTRACTOR
        if not archive.reserved_only:
            return f"{EXTRACTOR}+archive"
        try:
            simulated = archive.has(httpx.URL(url))
        except httpx.InvalidURL:
            simulated = False  # the fetcher says what is wrong with it
        return f"{EXTRACTOR}+simulator" if simulated else EXTRACTOR

    @asynccontextmanager
    async def fetching(self) -> AsyncIterator[Fetch]:
        """What fetches pages, on the running event loop."""
        fetcher = Fetcher(self._settings, clock=self._clock, resolver=self._resolver)
        async with fetcher, Extractor() as extractor:

            async def fetch(url: str) -> Page:
                page = await self._fetch(fetcher, extractor, url)
                await self._ledger.writer.post(KEEP_PAGE, KeepPage(self._ledger.realm, page))
                return page

            yield fetch

    async def _fetch(self, fetcher: Fetcher, extractor: Extractor, url: str) -> Page:
        final_url, status, error = url, 0, None
        article = Article("", "")
        try:
            fetched = await fetcher.fetch(url)
            final_url, status = fetched.final_url, fetched.status
            article = await extractor.extract(fetched.content, html=fetched.html)
        except FetchError as failure:
            status, error = failure.status or status, str(failure)
        return Page(
            url=url,
            final_url=final_url,
            status=status,
            fetched_at=self._ledger.now(),
            title=article.title,
            text=article.text,
            error=error,
            extractor=self._extractor(url),
            facts=article.facts,
        )


def with_text(page: Page) -> Page:
    """`page` for whom its text matters: without one it is a page with an error."""
    if page.text or page.error is not None:
        return page
    error = NoTextError(
        "No article text found in the page.",
        "Check that the address is that of an article, or submit its text instead.",
    )
    return replace(page, title="", error=str(error))
