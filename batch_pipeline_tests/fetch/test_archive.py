"""Pages of an archive instead of the web: what is asked of it, and what stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from batch_pipeline.clock import ManualClock
from batch_pipeline.errors import UsageError
from batch_pipeline.fetch.addresses import AddressRules
from batch_pipeline.fetch.archive import ARCHIVE_VARIABLE
from batch_pipeline.fetch.archive import Archive as ArchiveSetting
from batch_pipeline.fetch.errors import (
    BadUrlError,
    NotAPageError,
    RedirectError,
    RefusedAddressError,
    StatusError,
    UnreachableError,
)
from batch_pipeline.fetch.fetcher import Fetched
from batch_pipeline.fetch.settings import FetchSettings, load_fetch_settings
from batch_pipeline_tests.fetch.archive import Archive, serve_archive, shared_archive, whole
from batch_pipeline_tests.fetch.site import fetch, fetch_all, page, quick, resolves

NOBODY = resolves()
"""A resolver that knows no name: none may be asked for."""


@pytest.fixture
def archive() -> Iterator[Archive]:
    with serve_archive() as running:
        yield running


def settings(archive: Archive, base: str = "") -> FetchSettings:
    return quick(AddressRules(), archive=ArchiveSetting.parse(base or archive.url))


def ask(archive: Archive, url: str) -> Fetched:
    return fetch(url, settings(archive), resolver=NOBODY)


def test_a_page_is_asked_of_the_archive_by_its_whole_address(archive: Archive) -> None:
    url = "https://www.example.com:8443/a%20b/../c//d.html?q=1&r=https://x.example/#part"
    archive.override(url, body=page())
    got = ask(archive, url)
    assert archive.requests == {
        "https://www.example.com:8443/c//d.html?q=1&r=https://x.example/": 1
    }
    assert (got.url, got.status) == (url, 200)
    assert got.final_url == "https://www.example.com:8443/c//d.html?q=1&r=https://x.example/#part"
    assert "the new bridge" in got.content


def test_a_name_with_other_letters_is_asked_for_as_on_the_web(archive: Archive) -> None:
    archive.override("https://läs.example", body=page())
    assert ask(archive, "https://läs.example").status == 200
    assert list(archive.requests) == ["https://xn--ls-via.example/"]


def test_an_archive_may_lie_below_a_path(archive: Archive) -> None:
    archive.pages["web/https://example.com/"] = replace(
        archive.answer("https://example.com/"), status=200, body=page(), content_type="text/html"
    )
    got = fetch("https://example.com/", settings(archive, f"{archive.url}/web/"), resolver=NOBODY)
    assert got.status == 200 and got.final_url == "https://example.com/"


def test_no_robots_txt_is_asked_for_and_nobody_is_waited_for(archive: Archive) -> None:
    urls = [f"https://example.com/{number}" for number in range(8)]
    for url in urls:
        archive.override(url, body=page())
    clock = ManualClock()
    started = clock.now()
    slow = replace(settings(archive), host_delay_s=60.0)
    assert len(fetch_all(urls, slow, resolver=NOBODY, clock=clock)) == 8
    assert clock.now() == started
    assert archive.requests == dict.fromkeys(urls, 1)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:8080/", RefusedAddressError),
        ("http://169.254.169.254/", RefusedAddressError),
        ("http://metadata.google.internal/", RefusedAddressError),
        ("http://2130706433/", RefusedAddressError),
        ("https://example.com:22/", BadUrlError),
        ("https://me:secret@example.com/", BadUrlError),
        ("file:///etc/passwd", BadUrlError),
        ("no address", BadUrlError),
    ],
)
def test_addresses_are_refused_as_they_are_on_the_web(
    archive: Archive, url: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(archive, url)
    assert not archive.requests


def test_the_archives_own_address_is_no_page(archive: Archive) -> None:
    with pytest.raises(RefusedAddressError):
        ask(archive, f"{archive.url}/https://example.com/")


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_status_of_the_archive_is_that_of_the_page(archive: Archive, status: int) -> None:
    archive.override("https://example.com/", status=status, body="keep out")
    with pytest.raises(StatusError, match=str(status)) as caught:
        ask(archive, "https://example.com/")
    assert caught.value.status == status


def test_what_is_not_in_the_archive_is_not_found(archive: Archive) -> None:
    with pytest.raises(StatusError, match="404"):
        ask(archive, "https://example.com/")


def test_what_is_no_page_is_refused_by_its_type(archive: Archive) -> None:
    archive.override("https://example.com/a.pdf", body=b"%PDF-1.7", content_type="application/pdf")
    with pytest.raises(NotAPageError, match="application/pdf, not a page") as caught:
        ask(archive, "https://example.com/a.pdf")
    assert caught.value.status == 200


@pytest.mark.parametrize(
    "location",
    [
        "https://example.com/b",
        "/b",
        "b",
        "//example.com/b",
        "{archive}/https://example.com/b",
        "/https://example.com/b",
    ],
)
def test_redirects_lead_to_other_pages_of_the_archive(archive: Archive, location: str) -> None:
    archive.override(
        "https://example.com/a", status=301, location=location.format(archive=archive.url)
    )
    archive.override("https://example.com/b", body=page())
    assert ask(archive, "https://example.com/a").final_url == "https://example.com/b"
    assert archive.requests == {"https://example.com/a": 1, "https://example.com/b": 1}


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://127.0.0.1/", RefusedAddressError),
        ("/http://10.0.0.1/", RefusedAddressError),
        ("http://example.com/", RedirectError),
        ("https://example.com/a", RedirectError),
    ],
)
def test_redirects_are_refused_as_they_are_on_the_web(
    archive: Archive, location: str, error: type[Exception]
) -> None:
    archive.override("https://example.com/a", status=302, location=location)
    with pytest.raises(error):
        ask(archive, "https://example.com/a")


def test_an_archive_that_is_not_there_is_named() -> None:
    with serve_archive() as gone:
        pass
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
        ask(gone, "https://example.com/")


def test_the_environment_names_the_archive(archive: Archive) -> None:
    found = load_fetch_settings({ARCHIVE_VARIABLE: f" {archive.url}/ "}).archive
    assert found is not None and str(found.base) == archive.url
    assert load_fetch_settings({}).archive is None
    assert load_fetch_settings({ARCHIVE_VARIABLE: " "}).archive is None


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:8090",
        "ftp://127.0.0.1/",
        "http://",
        "http://me:secret@127.0.0.1/",
        "http://127.0.0.1/?page=",
        "http://127.0.0.1/#a",
        "http://127.0.0.1:99999",
        "http://2130706433/",
    ],
)
def test_an_archive_that_is_no_address_is_named_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError, match=ARCHIVE_VARIABLE) as caught:
        load_fetch_settings({ARCHIVE_VARIABLE: text})
    assert "secret" not in str(caught.value)


def test_an_archive_may_have_a_name_or_an_ipv6_address() -> None:
    for base in ("http://archive.internal", "https://[::1]:8443/pages"):
        assert load_fetch_settings({ARCHIVE_VARIABLE: base}).archive is not None


def test_every_saved_page_of_the_reference_data_comes_from_its_archive() -> None:
    with shared_archive() as saved:
        urls = list(saved.pages)
        got = fetch_all(urls, settings(saved), resolver=NOBODY)
        assert [one.url for one in got] == urls and all(one.html for one in got)
        assert saved.requests == {whole(url): 1 for url in urls}
