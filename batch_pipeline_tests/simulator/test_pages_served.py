"""The simulator's web pages: what they say, in which language, and those that go wrong."""

from __future__ import annotations

import httpx
import pytest

from batch_pipeline.fetch.extract import Article, extract_article
from batch_pipeline.simulator.pages import page_of
from batch_pipeline_tests.simulator.running import Running

LAMP = "https://www.lampan.example/guider/valja-laslampa"


def served(simulator: Running, url: str) -> httpx.Response:
    return simulator.http.get(f"{simulator.url}/pages/{url}")


def read(url: str) -> Article:
    return extract_article(page_of(url).body.decode(), html=True)


def test_an_article_is_about_what_its_address_says(simulator: Running) -> None:
    reply = served(simulator, LAMP)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    found = extract_article(reply.text, html=True)
    assert found.title == "Välja läslampa | Lampan"
    assert found.text.casefold().count("välja läslampa") > 5 and len(found.text) > 2_000
    facts = found.facts
    assert (facts.language, facts.site_name, facts.h1) == ("sv", "Lampan", "Välja läslampa")
    assert "välja läslampa" in facts.description and len(facts.headings) >= 4


def test_a_home_page_is_about_what_the_name_of_its_site_says() -> None:
    found = read("https://cykelbloggen.example/")
    assert found.title == "Cykelbloggen: läsning om cykel"
    assert "cykel" in found.text and found.facts.language == "sv"
    assert read("https://cykelbloggen.example").title == found.title


def test_the_same_address_has_the_same_page_and_another_one_another(simulator: Running) -> None:
    first = served(simulator, LAMP).content
    assert served(simulator, LAMP).content == first == page_of(LAMP).body
    assert len({page_of(f"{LAMP}?page={number}").body for number in range(5)}) == 5
    assert len({page_of(f"https://{name}.example/").body for name in "abcde"}) == 5


@pytest.mark.parametrize(
    ("url", "language"),
    [
        ("https://shop.example/care", "en"),
        ("https://shop.example/sv/care", "sv"),
        ("https://sv.shop.example/care", "sv"),
        ("https://shop.example/en/guider/valja", "en"),
        ("https://shop.example/kopa-lampa", "sv"),
        ("https://shop.example/l%C3%A4s-mer", "sv"),
        ("https://xn--ls-via.example/", "sv"),
        ("https://www.shop.se/", "sv"),
        ("https://example.com/", "en"),
        ("https://gardennotes.example/", "en"),
    ],
)
def test_the_language_is_told_by_the_address(url: str, language: str) -> None:
    assert read(url).facts.language == language


@pytest.mark.parametrize(
    ("part", "status", "content_type"),
    [
        ("403", 403, "text/html; charset=utf-8"),
        ("404", 404, "text/html; charset=utf-8"),
        ("empty", 200, "text/html; charset=utf-8"),
        ("pdf", 200, "application/pdf"),
    ],
)
def test_a_part_of_the_path_makes_a_page_go_wrong(
    simulator: Running, part: str, status: int, content_type: str
) -> None:
    for url in (f"https://shop.example/{part}", f"https://shop.example/{part}/old-lamp?x=1"):
        reply = served(simulator, url)
        assert (reply.status_code, reply.headers["content-type"]) == (status, content_type)
    assert served(simulator, "https://shop.example/empty").content == b""
    assert page_of(f"https://shop.example/{part}-nest").status == 200


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com//a//b/",
        "https://example.com/1234",
        "https://example.com/a.html?q=https://x.example/&b=%2F",
        "https://example.com/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "https://example.com/%FF%FE",
        "https://example.com/**a**/[b](c)",
        "https://example.com:8443/" + "a-long-name-" * 60,
        "http://127.0.0.1/x",
        "https://xn--a.example/",
        "no address at all",
    ],
)
def test_any_address_has_a_page(simulator: Running, url: str) -> None:
    reply = served(simulator, url)
    assert reply.status_code == 200 and "<script" not in reply.text
    found = extract_article(reply.text, html=True)
    assert found.title and len(found.text) > 1_000


def test_what_is_no_address_is_not_found(simulator: Running) -> None:
    assert served(simulator, "https://[::1/").status_code == 404


def test_pages_are_counted_but_are_no_attempts(simulator: Running) -> None:
    served(simulator, LAMP)
    summary = simulator.http.get("/_sim/summary").json()
    assert summary["other_calls"] == {"web pages": 1} and summary["attempts"] == 0
