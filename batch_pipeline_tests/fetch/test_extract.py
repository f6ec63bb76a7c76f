"""What a page says: title, text, and how near it comes to the truth."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from batch_pipeline.fetch.errors import FetchError, NoTextError, TooLargeError
from batch_pipeline.fetch.extract import Article, article_text, extract_article
from batch_pipeline.fetch.extract_process import ExtractLimits, Extractor
from batch_pipeline.fetch.facts import PageFacts
from batch_pipeline_tests.fetch.site import ARTICLE, page
from benchmarks.extraction import load_pages, matches, means

T = TypeVar("T")

# 0.3 MB on which the extraction works for many seconds
HARD = "<html><body>" + "<ul><li>a<ul><li>b</li></ul></li></ul>" * 8_000 + "</body></html>"


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_an_article_is_found_without_the_menu_around_it() -> None:
    html = (
        "<html><head><title>Bridge &amp; river</title></head><body><nav><a href=/>Home</a>"
        f"<a href=/x>Sport</a></nav><article><h1>The bridge</h1>{ARTICLE}<p>Second part, which "
        "also says something about the bridge.</p></article><footer>Imprint</footer></body></html>"
    )
    found = extract_article(html, html=True)
    assert found.title == "Bridge & river"
    assert "agreed on the new bridge" in found.text and "Sport" not in found.text
    assert "\n" in found.text  # paragraphs stay apart


@pytest.mark.parametrize(
    ("head", "body", "title"),
    [
        (
            "<title> A\n title </title><meta property='og:title' content='B'>",
            "<h1>C</h1>",
            "A title",
        ),
        ("<title></title><meta property='og:title' content='B'>", "<h1>C</h1>", "B"),
        ("", "<svg><title>icon</title></svg><h1>C <b>d</b></h1>", "C d"),
        ("", "<p>x</p>", ""),
    ],
)
def test_the_title_is_that_of_the_page_or_its_heading(head: str, body: str, title: str) -> None:
    html = f"<html><head>{head}</head><body>{body}{ARTICLE}</body></html>"
    assert extract_article(html, html=True).title == title


@pytest.mark.parametrize("html", ["", "<html lang='sv'></html>", "\0", "<body><p>!</p></body>"])
def test_a_page_that_says_nothing_is_an_error(html: str) -> None:
    with pytest.raises(NoTextError, match="The page is empty") as caught:
        extract_article(html, html=True)
    assert caught.value.next_step


def test_a_home_page_without_an_article_still_says_what_it_is() -> None:
    html = (
        "<html lang='sv'><head><title>Bygga hus</title><meta name='description' content='Om hus.'>"
        "</head><body><ul><li><a href='/a'>A</a></li><li><a href='/b'>B</a></li></ul></body></html>"
    )
    found = extract_article(html, html=True)
    assert (found.title, found.text) == ("Bygga hus", "")
    assert found.facts == PageFacts(description="Om hus.", language="sv")


def test_plain_text_is_its_own_article() -> None:
    assert extract_article(" one\r\ntwo <b>\0 ", html=False) == Article("", "one\ntwo <b>")


def test_the_text_of_saved_pages_is_near_the_truth(reference_data: Path) -> None:
    pages = load_pages(reference_data / "news" / "url_extraction.tar.gz")
    shares = [matches(one.article, article_text(one.html.decode())) for one in pages]
    f1, precision, recall = means(shares)
    assert f1 >= 0.95 and precision >= 0.95 and recall >= 0.95


def test_pages_are_extracted_in_another_process() -> None:
    async def work() -> list[str]:
        async with Extractor() as extractor:
            pages = [page(title=f"Page {n}") for n in range(5)]
            found = await asyncio.gather(*(extractor.extract(one, html=True) for one in pages))
        return [one.title for one in found]

    assert run(work()) == [f"Page {n}" for n in range(5)]


def test_a_page_that_would_take_for_ever_is_ended_and_the_next_one_is_read() -> None:
    async def work() -> str:
        async with Extractor(ExtractLimits(cpu_s=0.5, processes=1)) as extractor:
            with pytest.raises(TooLargeError, match="too much time or memory"):
                await extractor.extract(HARD, html=True)
            return (await extractor.extract(page(), html=True)).title

    assert run(work()) == "The bridge"


def test_a_page_that_needs_too_much_memory_is_an_error_and_the_next_one_is_read() -> None:
    async def work() -> str:
        limits = ExtractLimits(memory=300 * 1024**2, processes=1)
        async with Extractor(limits) as extractor:
            big = "<html><body>" + "<p>a</p>" * 1_000_000
            with pytest.raises(FetchError):  # the parser may also give up and find nothing
                await extractor.extract(big, html=True)
            return (await extractor.extract(page(), html=True)).title

    assert run(work()) == "The bridge"


def test_an_empty_page_is_an_error_over_there_too() -> None:
    async def work() -> None:
        async with Extractor() as extractor:
            with pytest.raises(NoTextError, match="The page is empty"):
                await extractor.extract("<html></html>", html=True)

    run(work())


def test_what_a_page_says_of_itself_comes_from_over_there() -> None:
    async def work() -> PageFacts:
        async with Extractor() as extractor:
            return (await extractor.extract(page(body=f"<h2>Why</h2>{ARTICLE}"), html=True)).facts

    assert run(work()) == PageFacts(headings=["Why"])


def test_letters_that_are_no_text_do_not_stop_the_process() -> None:
    async def work() -> str:
        async with Extractor() as extractor:
            odd = page(body=ARTICLE + "<p>lone \ud800 surrogate</p>")
            return (await extractor.extract(odd, html=True)).title

    assert run(work()) == "The bridge"


def test_no_process_is_left_behind() -> None:
    pids: list[int] = []

    async def work() -> None:
        async with Extractor() as extractor:
            await extractor.extract(page(), html=True)
            pids.extend(process.pid for process in extractor._idle)

    run(work())
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
