"""What robots.txt may keep us from, and how it is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batch_pipeline.clock import ManualClock
from batch_pipeline.fetch.errors import RobotsError, UnreachableError
from batch_pipeline_tests.fetch.site import Site, fetch, fetch_all, page, quick


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        running.put("/page", page())
        yield running


def asked_for_robots(site: Site) -> int:
    return sum(one.path == "/robots.txt" for one in site.requests)


def test_a_page_that_robots_txt_forbids_is_not_asked_for(site: Site) -> None:
    site.put("/robots.txt", "User-agent: *\nDisallow: /p*e$\n", kind="text/plain")
    with pytest.raises(RobotsError, match=r"robots\.txt of 127\.0\.0\.1 keeps programs away"):
        fetch(site.url("/page"), quick(site.rules))
    assert site.paths == []


def test_rules_for_our_own_name_win_over_those_for_everybody(site: Site) -> None:
    rules = "User-agent: *\nDisallow: /\n\nUser-agent: Batch-Pipeline\nAllow: /\n"
    site.put("/robots.txt", rules, kind="text/plain")
    assert fetch(site.url("/page"), quick(site.rules)).status == 200


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429])
def test_a_site_without_robots_txt_lets_everything_be_read(site: Site, status: int) -> None:
    site.put("/robots.txt", status=status)
    assert fetch(site.url("/page"), quick(site.rules)).status == 200


def test_a_robots_txt_of_a_broken_server_forbids_everything_for_now(site: Site) -> None:
    site.put("/robots.txt", status=503)
    with pytest.raises(RobotsError, match="answers 503"):
        fetch(site.url("/page"), quick(site.rules, retries=2), clock=ManualClock())
    assert site.paths == [] and asked_for_robots(site) == 3


def test_a_site_that_cannot_be_reached_says_that(site: Site) -> None:
    with Site() as gone:
        url, rules = gone.url("/page"), gone.rules
    with pytest.raises(UnreachableError, match="refused or dropped"):
        fetch(url, quick(rules))


def test_robots_txt_is_asked_for_once_for_many_pages(site: Site) -> None:
    fetch_all([site.url(f"/page?{n}") for n in range(8)], quick(site.rules))
    assert asked_for_robots(site) == 1 and len(site.paths) == 8


def test_a_redirected_robots_txt_is_followed(site: Site) -> None:
    site.redirect("/robots.txt", "/rules.txt")
    site.put("/rules.txt", "User-agent: *\nDisallow: /\n", kind="text/plain")
    with pytest.raises(RobotsError):
        fetch(site.url("/page"), quick(site.rules))


def test_a_robots_txt_that_redirects_for_ever_is_as_good_as_none(site: Site) -> None:
    site.redirect("/robots.txt", "/robots.txt")
    assert fetch(site.url("/page"), quick(site.rules)).status == 200


def test_the_page_that_a_redirect_leads_to_is_looked_up_as_well(site: Site) -> None:
    site.redirect("/start", "/page")
    site.put("/robots.txt", "User-agent: *\nDisallow: /page\n", kind="text/plain")
    with pytest.raises(RobotsError):
        fetch(site.url("/start"), quick(site.rules))
    assert site.paths == ["/start"]


def test_a_huge_robots_txt_is_read_to_its_bound(site: Site) -> None:
    rules = "User-agent: *\nDisallow: /page\n" + "# filler\n" * 300_000
    site.put("/robots.txt", rules, kind="text/plain")
    with pytest.raises(RobotsError):
        fetch(site.url("/page"), quick(site.rules))


def test_an_operator_may_ignore_robots_txt(site: Site) -> None:
    site.put("/robots.txt", "User-agent: *\nDisallow: /\n", kind="text/plain")
    assert fetch(site.url("/page"), quick(site.rules, obey_robots=False)).status == 200
    assert asked_for_robots(site) == 0


@pytest.mark.parametrize(("asked", "waited"), [("4", 4.0), ("900", 10.0), ("0.5", 1.0)])
def test_a_crawl_delay_is_kept_within_a_bound(site: Site, asked: str, waited: float) -> None:
    site.put("/robots.txt", f"User-agent: *\nCrawl-delay: {asked}\n", kind="text/plain")
    clock = ManualClock()
    settings = quick(site.rules, host_delay_s=1.0)
    began = clock.now()
    fetch_all([site.url(f"/page?{n}") for n in range(4)], settings, clock=clock)
    # robots.txt itself is followed by the host's own pause
    assert clock.now() - began == pytest.approx(1.0 + 3 * waited)
