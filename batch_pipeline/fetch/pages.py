"""Pages of many URLs, in order: from the cache where they are fresh, else fetched at once.

What belongs here: the reader that sources use. What does not: how one page is fetched (fetcher.py),
or what is a row (sources/urls.py).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Any

from batch_pipeline.clock import Clock
from batch_pipeline.fetch.addresses import Resolver, system_resolver
from batch_pipeline.fetch.keeping import KEPT_DAYS, Fetch, Keeping, with_text
from batch_pipeline.fetch.settings import FetchSettings
from batch_pipeline.ledger.pages import Page
from batch_pipeline.ledger.store import Ledger

FAILURE_KEPT_S = 600.0
"""How long a failure is believed."""

_LOOKED_UP_AT_ONCE = 50


class PageReader:
    """Gives the pages of URLs, through the ledger's cache: articles, each with a title and a text.

    Pages are fetched concurrently on a thread with an event loop of its own, so that it may be
    used from anywhere, and kept as they come. What this reader has fetched once stays as it is for
    as long as the reader lives: a second reading of the same list gives the same pages, failures
    too.

    Args:
        ledger: where pages are kept.
        settings: bounds and manners.
        kept_days: a page that was fetched longer ago is fetched again.
        ahead: pages that are fetched or held beyond the one that is handed out: bounds memory.
        clock: for the pauses.
        resolver: what host names lead to.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: FetchSettings | None = None,
        *,
        kept_days: float = KEPT_DAYS,
        ahead: int = 120,
        clock: Clock | None = None,
        resolver: Resolver = system_resolver,
    ) -> None:
        self._ledger = ledger
        self._keeping = Keeping(
            ledger,
            settings or FetchSettings(),
            kept_days=kept_days,
            clock=clock,
            resolver=resolver,
        )
        self._ahead = ahead

    def __call__(self, urls: Iterable[str]) -> Generator[Page]:
        """The pages of `urls`, in order, as they become ready."""
        todo = iter(urls)
        ready: deque[Page | Future[Page]] = deque()
        with _Worker(self._fetcher) as worker:
            while block := list(islice(todo, min(_LOOKED_UP_AT_ONCE, self._ahead))):
                known = self._known(block)
                for url in block:
                    ready.append(known.get(url) or worker.submit(url))
                while len(ready) > self._ahead:
                    yield _page(ready.popleft())
                while ready and (isinstance(ready[0], Page) or ready[0].done()):
                    yield _page(ready.popleft())
            while ready:
                yield _page(ready.popleft())

    def _known(self, urls: list[str]) -> dict[str, Page]:
        believed_since = min(self._ledger.now() - FAILURE_KEPT_S, self._keeping.opened_at)
        return self._keeping.known(urls, failures_since=believed_since, text_required=True)

    async def _fetcher(self, stack: AsyncExitStack) -> Fetch:
        return await stack.enter_async_context(self._keeping.fetching())


def _page(one: Page | Future[Page]) -> Page:
    page = with_text(one if isinstance(one, Page) else one.result())
    return page if page.title or page.error else replace(page, title=page.final_url)


class _Worker:
    """A thread with an event loop, started when the first page must be fetched."""

    def __init__(
        self,
        make: Callable[[AsyncExitStack], Coroutine[Any, Any, Fetch]],
    ) -> None:
        self._make = make
        self._fetch: Fetch | None = None
        self._stack = AsyncExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> _Worker:
        return self

    def submit(self, url: str) -> Future[Page]:
        """Fetch a page on the thread."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="page-reader", daemon=True
            )
            self._thread.start()
            self._fetch = self._run(self._make(self._stack))
        assert self._fetch is not None
        return asyncio.run_coroutine_threadsafe(self._fetch(url), self._loop)

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Drop what is not finished and end the thread."""
        if self._loop is None or self._thread is None:
            return
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        mine = asyncio.current_task()
        open_tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in open_tasks:
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)
        await self._stack.aclose()
        await asyncio.get_running_loop().shutdown_default_executor()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
