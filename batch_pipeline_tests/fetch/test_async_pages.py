"""Pages one by one on an event loop: fetched once, failures believed for one reader's life."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from batch_pipeline.clock import ManualClock
from batch_pipeline.fetch.addresses import AddressRules
from batch_pipeline.fetch.archive import Archive as ArchiveSetting
from batch_pipeline.fetch.async_pages import AsyncPages
from batch_pipeline.fetch.pages import PageReader
from batch_pipeline.fetch.settings import FetchSettings
from batch_pipeline.ledger.page_facts import PageFacts
from batch_pipeline.ledger.pages import KEEP_PAGE, KeepPage, Page
from batch_pipeline.ledger.store import Ledger
from batch_pipeline_tests.fetch.archive import Archive, serve_archive, shared_archive
from batch_pipeline_tests.fetch.site import Request, Site, page, quick

T = TypeVar("T")

DAY_S = 86_400.0
URL = "https://example.com/a"
HOME = "https://example.com/"
HOME_PAGE = (
    "<html lang='sv'><head><title>Home</title></head><body><ul><li><a href='/a'>A</a></li>"
    "<li><a href='/b'>B</a></li></ul></body></html>"
)


@pytest.fixture
def archive() -> Iterator[Archive]:
    with serve_archive() as running:
        running.override(URL, body=page())
        running.override(HOME, body=HOME_PAGE)
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ledger(tmp_path: Path, clock: ManualClock) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "simulated", clock) as opened:
        yield opened


def settings(archive: Archive) -> FetchSettings:
    return quick(AddressRules(), archive=ArchiveSetting.parse(archive.url))


def reading(ledger: Ledger, archive: Archive, work: Callable[[AsyncPages], Awaitable[T]]) -> T:
    """What `work` gives with a reader that was opened for it."""

    async def run() -> T:
        async with AsyncPages(ledger, settings(archive)) as pages:
            return await work(pages)

    return asyncio.run(run())


def read(ledger: Ledger, archive: Archive, url: str, *, text_required: bool = True) -> Page:
    """A page as a new reader gives it."""
    return reading(ledger, archive, lambda pages: pages.read(url, text_required=text_required))


def test_a_page_comes_with_its_text_and_facts_and_is_kept(ledger: Ledger, archive: Archive) -> None:
    got = read(ledger, archive, URL)
    assert (got.url, got.final_url, got.status, got.title) == (URL, URL, 200, "The bridge")
    assert got.error is None and "the new bridge" in got.text
    assert read(ledger, archive, URL) == got
    assert archive.requests == {URL: 1}


def test_five_hundred_who_ask_at_once_and_later_fetch_a_page_once(
    ledger: Ledger, archive: Archive
) -> None:
    async def work(pages: AsyncPages) -> list[Page]:
        asked = [pages.read(HOME, text_required=number % 2 == 0) for number in range(500)]
        return [*await asyncio.gather(*asked), await pages.read(HOME), await pages.read(URL)]

    got = reading(ledger, archive, work)
    assert archive.requests == {HOME: 1, URL: 1}
    assert {one.error is None for one in got[:500:2]} == {False}
    assert {one.error is None for one in got[1:500:2]} == {True}


def test_a_home_page_without_an_article_gives_its_title_and_facts_to_who_needs_no_text(
    ledger: Ledger, archive: Archive
) -> None:
    got = read(ledger, archive, HOME, text_required=False)
    assert (got.title, got.text, got.error) == ("Home", "", None)
    assert got.facts == PageFacts(language="sv")
    failed = read(ledger, archive, HOME)
    assert failed.error is not None and "No article text found" in failed.error
    assert failed.title == "" and failed.status == 200


def test_a_page_without_text_is_good_for_seven_days_to_who_needs_no_text(
    ledger: Ledger, archive: Archive, clock: ManualClock
) -> None:
    read(ledger, archive, HOME, text_required=False)
    asyncio.run(clock.advance(6.9 * DAY_S))
    read(ledger, archive, HOME, text_required=False)
    assert archive.asked(HOME) == 1
    # To whom the text matters it is a failure of before, which is tried again.
    archive.override(HOME, body=page("Home, written"))
    assert read(ledger, archive, HOME).title == "Home, written"
    assert archive.asked(HOME) == 2


def test_who_needs_the_text_is_not_given_an_older_page_that_another_looks_up_meanwhile(
    ledger: Ledger, archive: Archive
) -> None:
    read(ledger, archive, HOME, text_required=False)
    archive.override(HOME, body=page("Home, written"))

    async def work(pages: AsyncPages) -> list[Page]:
        both = (pages.read(HOME, text_required=False), pages.read(HOME))
        return list(await asyncio.gather(*both))

    assert [one.title for one in reading(ledger, archive, work)] == ["Home", "Home, written"]


@pytest.mark.parametrize(
    ("status", "body", "content_type", "says"),
    [
        (403, "keep out", "text/html", "403 Forbidden"),
        (404, "", "text/html", "404 Not Found"),
        (200, "", "text/html", "empty"),
        (200, "<html><body></body></html>", "text/html", "empty"),
        (200, "%PDF-1.7", "application/pdf", "application/pdf, not a page"),
        (200, "GIF89a", "image/gif", "image/gif, not a page"),
    ],
)
@pytest.mark.parametrize("text_required", [True, False])
def test_a_page_that_cannot_be_had_says_why_and_what_its_server_answered(
    ledger: Ledger,
    archive: Archive,
    status: int,
    body: str,
    content_type: str,
    says: str,
    text_required: bool,
) -> None:
    archive.override(URL, status=status, body=body, content_type=content_type)
    got = read(ledger, archive, URL, text_required=text_required)
    assert got.error is not None and says in got.error
    assert (got.status, got.title, got.text) == (status, "", "")


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "file:///etc/passwd", "no address", ""])
def test_an_address_that_is_refused_is_a_page_with_an_error(
    ledger: Ledger, archive: Archive, url: str
) -> None:
    got = read(ledger, archive, url)
    assert got.error and got.status == 0 and not archive.requests


def test_a_failure_is_believed_while_the_reader_lives_and_no_longer(
    ledger: Ledger, archive: Archive, clock: ManualClock
) -> None:
    archive.override(URL, status=403)

    async def work(pages: AsyncPages) -> list[Page]:
        first = await pages.read(URL)
        archive.override(URL, body=page())
        await clock.advance(3600.0)
        return [first, await pages.read(URL)]

    first, second = reading(ledger, archive, work)
    assert first == second and first.error
    assert archive.asked(URL) == 1
    assert read(ledger, archive, URL).error is None


def test_a_page_is_fetched_again_after_seven_days(
    ledger: Ledger, archive: Archive, clock: ManualClock
) -> None:
    read(ledger, archive, URL)
    archive.override(URL, body=page("New"))
    asyncio.run(clock.advance(7.1 * DAY_S))
    assert read(ledger, archive, URL).title == "New"


def test_a_page_of_the_form_before_facts_is_fetched_again(ledger: Ledger, archive: Archive) -> None:
    old = replace(read(ledger, archive, URL), title="Old", extractor="trafilatura/2.3.1")
    ledger.writer.submit(KEEP_PAGE, KeepPage(ledger.realm, old)).result(30)
    assert read(ledger, archive, URL).title == "The bridge"
    assert archive.asked(URL) == 2


def test_what_an_archive_said_is_not_taken_for_the_web(ledger: Ledger) -> None:
    with Site() as site, serve_archive() as archive:
        site.put("/a", page("of the web"))
        archive.override(site.url("/a"), body=page("of the archive"))
        on_web = quick(site.rules, obey_robots=False)
        in_archive = replace(on_web, archive=settings(archive).archive)
        titles = [
            next(PageReader(ledger, chosen)([site.url("/a")])).title
            for chosen in (in_archive, on_web, in_archive)
        ]
    assert titles == ["of the archive", "of the web", "of the archive"]


def test_lists_and_single_pages_share_the_cache(ledger: Ledger, archive: Archive) -> None:
    archive.override(URL, body=page(title=""))
    single = read(ledger, archive, URL)
    listed = list(PageReader(ledger, settings(archive))([URL, HOME]))
    assert (single.title, listed[0].title) == ("", URL)  # a list's row needs a title
    assert listed[1].error and read(ledger, archive, HOME, text_required=False).error is None
    assert archive.requests == {URL: 1, HOME: 1}


def test_one_who_gives_up_leaves_the_page_to_the_others(ledger: Ledger) -> None:
    async def run() -> Page:
        asked, answer = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        async def slow(_request: Request, writer: asyncio.StreamWriter) -> None:
            loop.call_soon_threadsafe(asked.set)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer.wait(), loop))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page().encode())

        with Site() as site:
            site.on("/", slow)
            chosen = quick(site.rules, obey_robots=False)
            async with AsyncPages(ledger, chosen) as pages:
                first = asyncio.create_task(pages.read(site.url("/")))
                second = asyncio.create_task(pages.read(site.url("/")))
                await asked.wait()
                first.cancel()
                answer.set()
                got = await second
            assert first.cancelled() and site.paths == ["/"]
            return got

    assert asyncio.run(run()).error is None


def test_leaving_drops_what_is_not_finished(ledger: Ledger) -> None:
    async def run() -> None:
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def never(_request: Request, _writer: asyncio.StreamWriter) -> None:
            loop.call_soon_threadsafe(asked.set)
            await asyncio.sleep(3600)

        with Site() as site:
            site.on("/", never)
            async with AsyncPages(ledger, quick(site.rules, obey_robots=False)) as pages:
                waiting = asyncio.create_task(pages.read(site.url("/")))
                await asked.wait()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(run())


def test_every_saved_page_of_the_reference_data_is_one_to_write_about(ledger: Ledger) -> None:
    with shared_archive() as saved:

        async def work(pages: AsyncPages) -> list[Page]:
            return await asyncio.gather(*(pages.read(url) for url in saved.pages))

        got = reading(ledger, saved, work)
        assert [one.error for one in got] == [None] * len(saved.pages)
        assert set(saved.requests.values()) == {1}
        assert reading(ledger, saved, work) == got
        assert set(saved.requests.values()) == {1}
