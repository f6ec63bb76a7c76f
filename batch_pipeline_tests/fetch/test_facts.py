"""What pages say of themselves: found wherever sites put it, clean and bounded."""

from __future__ import annotations

import csv

import pytest

from batch_pipeline.fetch.charsets import decode_page
from batch_pipeline.fetch.extract import extract_article
from batch_pipeline.fetch.facts import (
    MAX_DESCRIPTION_CHARS,
    MAX_HEADING_CHARS,
    MAX_HEADINGS,
    PageFacts,
    language_tag,
)
from batch_pipeline_tests.conftest import REFERENCE
from batch_pipeline_tests.fetch.archive import saved_pages
from batch_pipeline_tests.fetch.site import ARTICLE


def facts(head: str = "", body: str = "", attributes: str = "") -> PageFacts:
    html = f"<html {attributes}><head>{head}</head><body>{body}{ARTICLE}</body></html>"
    return extract_article(html, html=True).facts


def test_all_of_it_is_found() -> None:
    found = facts(
        "<meta name='Description' content=' About \n bridges '>"
        "<meta property='og:site_name' content='Bridge News'>",
        "<h1>The <b>bridge</b><br>today</h1><h2>Why</h2><h3>How</h3>",
        "lang='sv'",
    )
    assert found == PageFacts(
        description="About bridges",
        h1="The bridge today",
        headings=["Why", "How"],
        language="sv",
        site_name="Bridge News",
    )


@pytest.mark.parametrize(
    ("head", "description"),
    [
        ("<meta name='og:description' content='B'><meta name='description' content='A'>", "A"),
        ("<meta name='description' content=' '><meta property='og:description' content='B'>", "B"),
        ("<meta name='description'>", ""),
        ("<meta name='description' content='&#1;a&amp;b&#127;'>", "a&b"),
    ],
)
def test_the_description_is_the_page_s_own_before_that_for_others(
    head: str, description: str
) -> None:
    assert facts(head).description == description


@pytest.mark.parametrize(
    ("head", "attributes", "language"),
    [
        ("<meta property='og:locale' content='en_GB'>", "lang='sv'", "sv"),
        ("<meta property='og:locale' content='sv_SE'>", "", "sv-SE"),
        ("<meta property='og:locale' content='sv_SE'>", "lang='{{ lang }}'", "sv-SE"),
        ("<meta http-equiv='Content-Language' content='nb, en'>", "", "nb"),
        ("", "xml:lang='de-at'", "de-AT"),
        ("", "", ""),
    ],
)
def test_the_language_is_the_first_one_that_is_declared(
    head: str, attributes: str, language: str
) -> None:
    assert facts(head, "", attributes).language == language


@pytest.mark.parametrize(
    ("declared", "tag"),
    [
        ("SV", "sv"),
        ("en-us", "en-US"),
        ("en_US.UTF-8", "en-US"),
        ("zh-hans-cn", "zh-Hans-CN"),
        ("es-419", "es-419"),
        ("sv; charset", "sv"),
        ("swedish", ""),
        ("x-default", ""),
        ("und", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_a_language_is_written_one_way(declared: str | None, tag: str) -> None:
    assert language_tag(declared) == tag


def test_headings_are_those_of_the_page_and_not_of_what_stands_around_it() -> None:
    found = facts(
        body="<nav><h2>Menu</h2></nav><h2>One</h2><h3> one </h3><h2></h2><h3>Two"
        "<script>no</script></h3><aside><div><h3>Popular</h3></div></aside>"
        "<footer><h2>Contact</h2></footer>"
    )
    assert found.headings == ["One", "Two"]


def test_nothing_is_longer_than_its_bound() -> None:
    found = facts(
        f"<meta name='description' content='{'d' * 5_000}'>",
        f"<h1>{'h' * 5_000}</h1>" + "".join(f"<h2>{n} {'x' * 5_000}</h2>" for n in range(50)),
    )
    assert len(found.description) == MAX_DESCRIPTION_CHARS
    assert len(found.h1) == MAX_HEADING_CHARS
    assert len(found.headings) == MAX_HEADINGS
    assert {len(one) for one in found.headings} == {MAX_HEADING_CHARS}


def test_the_facts_of_saved_pages_are_those_of_their_index() -> None:
    pages = saved_pages()
    with (REFERENCE / "data" / "articles" / "pages_index.csv").open(encoding="utf-8") as stream:
        index = list(csv.DictReader(stream))
    right_language, right_site = 0, 0
    for row in index:
        body = pages[row["url"]].body
        assert isinstance(body, bytes)
        found = extract_article(decode_page(body, "", html=True), html=True)
        assert found.text and found.title
        right_language += found.facts.language.lower() == row["lang"].lower()
        right_site += found.facts.site_name == row["site_name"]
    # The index also knows names from other places (JSON-LD); one page has og:locale only.
    assert right_language >= len(index) - 1
    assert right_site >= len(index) - 4
