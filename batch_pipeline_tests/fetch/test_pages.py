"""Many pages in order, through the cache."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_pipeline.clock import ManualClock
from batch_pipeline.fetch.pages import PageReader
from batch_pipeline.ledger.pages import Page
from batch_pipeline.ledger.store import Ledger
from batch_pipeline_tests.fetch.site import Request, Site, page, quick

DAY_S = 86_400.0


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ledger(tmp_path: Path, clock: ManualClock) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "simulated", clock) as opened:
        yield opened


def reader(ledger: Ledger, site: Site, ahead: int = 120) -> PageReader:
    return PageReader(ledger, quick(site.rules, obey_robots=False, per_host=10), ahead=ahead)


def test_pages_come_in_the_order_of_the_list_whatever_comes_first(
    ledger: Ledger, site: Site
) -> None:
    async def late(_request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n")
        writer.write(page("late").encode())

    site.on("/0", late)
    for number in range(1, 8):
        site.put(f"/{number}", page(f"page {number}"))
    urls = [site.url(f"/{number}") for number in range(8)]
    got = list(reader(ledger, site)(urls))
    assert [one.url for one in got] == urls
    assert [one.title for one in got] == ["late", *(f"page {number}" for number in range(1, 8))]
    assert all(one.error is None and "the new bridge" in one.text for one in got)


def test_a_page_that_cannot_be_had_says_why_and_the_others_go_on(
    ledger: Ledger, site: Site
) -> None:
    site.put("/good", page())
    urls = [
        site.url("/missing"),
        "http://169.254.169.254/",
        "file:///etc/passwd",
        site.url("/good"),
        "http://10.0.0.1/",
    ]
    got = list(reader(ledger, site)(urls))
    assert [bool(one.error) for one in got] == [True, True, True, False, True]
    assert got[0].status == 404 and "404" in (got[0].error or "")
    assert "credentials" in (got[1].error or "") and "private" in (got[4].error or "")
    assert all(one.text == "" for one in got if one.error)


def test_a_page_is_not_fetched_again_for_seven_days(
    ledger: Ledger, site: Site, clock: ManualClock
) -> None:
    site.put("/a", page("first"))
    url = site.url("/a")
    first = list(reader(ledger, site)([url]))
    site.put("/a", page("second"))
    asyncio.run(clock.advance(6.9 * DAY_S))
    assert list(reader(ledger, site)([url])) == first
    assert site.paths == ["/a"]
    asyncio.run(clock.advance(0.2 * DAY_S))
    assert [one.title for one in reader(ledger, site)([url])] == ["second"]


def test_a_failure_is_believed_for_ten_minutes_only(
    ledger: Ledger, site: Site, clock: ManualClock
) -> None:
    url = site.url("/a")
    failed = list(reader(ledger, site)([url]))
    site.put("/a", page())
    asyncio.run(clock.advance(590))
    assert list(reader(ledger, site)([url])) == failed
    asyncio.run(clock.advance(20))
    assert [one.error for one in reader(ledger, site)([url])] == [None]


def test_one_reader_reads_the_same_list_the_same_way_twice_however_long_it_took(
    ledger: Ledger, site: Site, clock: ManualClock
) -> None:
    site.put("/a", page())
    urls = [site.url("/a"), site.url("/missing")]
    read = reader(ledger, site)
    first = list(read(urls))
    site.put("/a", page("changed"))
    site.put("/missing", page("there now"))
    asyncio.run(clock.advance(30 * DAY_S))
    assert list(read(urls)) == first


def test_the_other_realm_does_not_see_a_page(ledger: Ledger, site: Site) -> None:
    site.put("/a", page())
    list(reader(ledger, site)([site.url("/a")]))
    with Ledger(ledger.url, "live", ledger.clock) as live:
        list(reader(live, site)([site.url("/a")]))
    assert site.paths == ["/a", "/a"]


def test_no_more_pages_are_fetched_ahead_than_allowed(ledger: Ledger, site: Site) -> None:
    for number in range(60):
        site.put(f"/{number}", page())
    taken = 0

    def urls() -> Iterator[str]:
        nonlocal taken
        for number in range(60):
            taken += 1
            yield site.url(f"/{number}")

    pages = reader(ledger, site, ahead=5)(urls())
    next(pages)
    assert taken <= 10
    assert len(list(pages)) == 59


def test_a_reader_that_is_left_early_ends_its_thread(ledger: Ledger, site: Site) -> None:
    async def never(_request: Request, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    site.put("/a", page())
    site.on("/b", never)
    pages = reader(ledger, site)([site.url("/a"), site.url("/b")])
    assert isinstance(next(pages), Page)
    pages.close()
    assert not [one for one in threading.enumerate() if one.name == "page-reader"]


def test_it_works_from_within_a_running_event_loop(ledger: Ledger, site: Site) -> None:
    site.put("/a", page())

    async def inside() -> list[Page]:
        return list(reader(ledger, site)([site.url("/a")]))

    assert asyncio.run(inside())[0].error is None
