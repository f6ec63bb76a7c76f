"""Fetched pages in the ledger: kept by URL and realm, fresh or not."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from batch_pipeline.ledger.page_facts import PageFacts
from batch_pipeline.ledger.pages import KEEP_PAGE, KeepPage, Page, known_pages, url_hash
from batch_pipeline.ledger.store import Ledger

PAGE = Page(
    url="https://example.com/a",
    final_url="https://example.com/b",
    status=200,
    fetched_at=1000.0,
    title="A title",
    text="One.\nTwo.",
    error=None,
    extractor="trafilatura/2.3.1",
    facts=PageFacts(description="About it.", headings=["First", "Second"], language="sv"),
)
FAILED = Page(
    "https://example.com/gone", PAGE.final_url, 404, 1000.0, "", "", "It is gone.", PAGE.extractor
)
TEXTLESS = replace(PAGE, url="https://example.com/", text="")


def keep(ledger: Ledger, *pages: Page) -> None:
    futures = [ledger.writer.submit(KEEP_PAGE, KeepPage(ledger.realm, one)) for one in pages]
    for future in futures:
        future.result(30)


def known(ledger: Ledger, urls: list[str], **since: Any) -> dict[str, Page]:
    return known_pages(ledger, urls, extractor=PAGE.extractor, **since)


def test_a_page_is_found_by_its_url_as_it_was_kept(ledger_url: str) -> None:
    with Ledger(ledger_url, "live") as ledger:
        keep(ledger, PAGE, FAILED)
        urls = [PAGE.url, FAILED.url, "https://example.com/other"]
        found = known(ledger, urls, since=0.0, failures_since=0.0)
        assert found == {PAGE.url: PAGE, FAILED.url: FAILED}


def test_pages_and_failures_are_fresh_for_times_of_their_own(ledger_url: str) -> None:
    with Ledger(ledger_url, "live") as ledger:
        keep(ledger, PAGE, FAILED)
        urls = [PAGE.url, FAILED.url]
        assert set(known(ledger, urls, since=1000.0, failures_since=1001.0)) == {PAGE.url}
        assert set(known(ledger, urls, since=1001.0, failures_since=1000.0)) == {FAILED.url}


def test_a_page_without_text_is_a_failure_to_those_only_who_need_its_text(ledger_url: str) -> None:
    with Ledger(ledger_url, "live") as ledger:
        keep(ledger, TEXTLESS, FAILED)
        urls = [TEXTLESS.url, FAILED.url]
        assert known(ledger, urls, since=0.0, failures_since=inf) == {}
        found = known(ledger, urls, since=0.0, failures_since=inf, text_required=False)
        assert found == {TEXTLESS.url: TEXTLESS}


def test_what_another_extractor_found_is_not_taken(ledger_url: str) -> None:
    with Ledger(ledger_url, "live") as ledger:
        keep(ledger, replace(PAGE, extractor="trafilatura/2.3.0"))
        assert known(ledger, [PAGE.url], since=0.0, failures_since=0.0) == {}


def test_a_later_fetch_replaces_the_page(ledger_url: str) -> None:
    with Ledger(ledger_url, "live") as ledger:
        keep(ledger, PAGE)
        newer = replace(PAGE, fetched_at=2000.0, title="B", text="New.")
        keep(ledger, replace(PAGE, fetched_at=1500.0), newer)
        assert known(ledger, [PAGE.url], since=0.0, failures_since=0.0)[PAGE.url] == newer


def test_realms_do_not_see_each_others_pages(ledger_url: str) -> None:
    with Ledger(ledger_url, "live") as live, Ledger(ledger_url, "simulated") as simulated:
        keep(live, PAGE)
        keep(simulated, replace(PAGE, title="simulated"))
        for ledger, title in ((live, "A title"), (simulated, "simulated")):
            found = known(ledger, [PAGE.url], since=0.0, failures_since=0.0)
            assert found[PAGE.url].title == title


def test_many_urls_are_looked_up_at_once(ledger_url: str) -> None:
    urls = [f"https://example.com/{number}" for number in range(1200)]
    with Ledger(ledger_url, "live") as ledger:
        keep(ledger, *(replace(PAGE, url=url) for url in urls))
        assert sorted(known(ledger, urls, since=0.0, failures_since=0.0)) == sorted(urls)


def test_any_text_has_a_key_of_64_digits() -> None:
    assert len(url_hash("https://example.com/\ud800é")) == 64
