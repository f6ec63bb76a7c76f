"""Profiles by rules: publishers, targets, link texts, and a model's answer laid over them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.ledger.pages import Page
from batch_pipeline.workloads.articles.phrases import Phrases, language_of
from batch_pipeline.workloads.articles.profiles import (
    MIN_TARGET_CHARS,
    anchor_with_llm,
    article_language,
    profile_anchor,
    profile_publisher,
    profile_target,
    publisher_with_llm,
    subject_of,
    target_problem,
    target_with_llm,
)
from batch_pipeline_tests.workloads.articles.pages import (
    LAMP,
    MAGAZINE_HTML,
    lamp_page,
    missing_page,
    page_of,
    saved_page,
)

HOME = "https://magasinet.example/"
LONG = "<p>" + "Text om lampor och läsning i hemmet, med mycket ljus. " * 8 + "</p>"


def named(title: str, *, h1: str = "", site: str = "", url: str = LAMP) -> Page:
    page = lamp_page()
    facts = page.facts.model_copy(update={"h1": h1, "site_name": site})
    return replace(page, title=title, facts=facts, url=url, final_url=url)


def test_a_swedish_guide_is_profiled_as_a_person_would() -> None:
    target = profile_target(LAMP, lamp_page())
    assert target.detected_language == "sv"
    assert target.candidate_main_queries[0] == "så väljer du rätt läslampa"
    assert target.core_topics[:3] == ["läslampa", "färgtemperatur", "Ljusflöde"]
    assert target.core_entities == ["Ljuslabbet"]
    assert target.h2_h3_sample == ["Ljusflöde och färgtemperatur", "Placering vid fåtöljen"]
    assert target.core_offer == "Guide till läslampor: ljusflöde, färgtemperatur och placering."
    assert target.main_content_excerpt.startswith("En bra läslampa")


def test_a_publisher_is_profiled_by_its_home_page() -> None:
    found = profile_publisher("magasinet.example", [page_of(HOME, MAGAZINE_HTML)], "us")
    assert (found.detected_language, found.tone_class) == ("sv", "consumer_magazine")
    assert found.sample_urls == [HOME]
    assert found.about_excerpt.startswith("Magasinet är en tidning")
    assert found.brand_safety_notes == ""


def test_a_shop_bears_much_selling_and_a_casino_is_noted() -> None:
    html = """<html lang="sv"><head><title>Butiken – köp med fri frakt</title>
    <meta name="description" content="Casino och spel. Lägg i varukorgen, rabatt varje dag."></head>
    <body><h2>Till kassan</h2></body></html>"""
    found = profile_publisher("butiken.example", [page_of("https://butiken.example/", html)], "se")
    assert found.allowed_commerciality == "high"
    assert "gambling" in found.brand_safety_notes


@pytest.mark.parametrize(
    ("domain", "country", "language", "tone", "selling"),
    [
        ("kth.se", "us", "sv", "academic", "low"),
        ("mit.edu", "us", "en", "academic", "low"),
        ("konsumentverket.se", "se", "sv", "authority_public", "low"),
        ("mcupdate.tumblr.com", "us", "en", "hobby_blog", "medium"),
        ("magasinet.example", "se", "sv", "consumer_magazine", "medium"),
        ("heraldsun.com.au", "se", "en", "consumer_magazine", "medium"),
    ],
)
def test_a_publisher_whose_page_is_missing_is_guessed_and_the_package_says_so(
    domain: str, country: str, language: str, tone: str, selling: str
) -> None:
    home = missing_page(f"https://{domain}/", 403, "The site refuses programs (403).")
    found = profile_publisher(domain, [home], country)
    assert (found.detected_language, found.tone_class) == (language, tone)
    assert found.allowed_commerciality == selling
    assert "could be read" in found.brand_safety_notes and "403" in found.brand_safety_notes
    assert (found.sample_urls, found.topic_focus, found.about_excerpt) == ([], [], "")
    assert article_language(domain, country) == language


def test_a_publisher_in_a_third_language_is_written_for_in_english_with_a_note() -> None:
    html = """<html lang="fr"><head><title>Le journal</title></head><body><article>
    <p>Les députés ont approuvé le projet de loi sur le renseignement après un long débat.</p>
    </article></body></html>"""
    found = profile_publisher("journal.example", [page_of("https://journal.example/", html)], "se")
    assert found.detected_language == "en"
    assert "'fr'" in found.brand_safety_notes


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (missing_page(LAMP, 403, "It answers 403. Give another."), "403"),
        (missing_page(LAMP, 200, "This is a PDF. Give a page."), "PDF"),
        (replace(lamp_page(), status=404), "HTTP status 404"),
        (replace(lamp_page(), text=""), "0 characters"),
        (replace(lamp_page(), text="x" * (MIN_TARGET_CHARS - 1)), "199 characters"),
        (named(""), "has no title"),
        (named("Untitled"), "has no title"),
        (named("Untitled Document", h1="untitled"), "has no title"),
    ],
)
def test_no_article_is_written_about_a_page_that_says_nothing(page: Page, said: str) -> None:
    problem = target_problem(page)
    assert said in problem and LAMP in problem
    target = profile_target(LAMP, page)
    assert (target.title, target.core_topics, target.candidate_main_queries) == ("", [], [])
    assert target.http_status == page.status


def test_a_page_with_just_enough_text_and_only_a_heading_is_usable() -> None:
    page = replace(named("", h1="Läslampor"), text="x" * MIN_TARGET_CHARS)
    assert target_problem(page) == ""
    assert profile_target(LAMP, page).title == "Läslampor"


@pytest.mark.parametrize(
    ("page", "subject"),
    [
        (named("Så väljer du | Lampan", site="Lampan"), "Så väljer du"),
        (named("Lampan: Så väljer du", h1="Lampan"), "Så väljer du"),
        (named("Välj lampa - Lampan", h1="Välj lampa"), "Välj lampa"),
        (named("Välj - inte - Lampan"), "Välj - inte"),
        (named("Välj lampa – steg för steg"), "Välj lampa – steg för steg"),
        (named("Lampan"), "Lampan"),
    ],
)
def test_the_name_of_the_site_is_no_part_of_a_title(page: Page, subject: str) -> None:
    assert subject_of(page) == subject


@pytest.mark.parametrize(
    ("anchor", "kind", "intent"),
    [
        ("läslampor", "exact", "mixed"),
        ("Så väljer du rätt läslampa", "exact", "info_primary"),
        ("välja läslampa till fåtöljen", "partial", "mixed"),
        ("köp läslampa", "partial", "transactional"),
        ("bästa läslampan", "partial", "commercial_research"),
        ("Lampan", "brand", "navigational_brand"),
        ("lampan.example", "brand", "navigational_brand"),
        ("https://www.lampan.example/guider/valja-laslampa", "brand", "navigational_brand"),
        ("Ljuslabbet", "brand", "navigational_brand"),
        ("Läs mer", "generic", "mixed"),
        ("here", "generic", "mixed"),
    ],
)
def test_link_texts_are_told_apart(anchor: str, kind: str, intent: str) -> None:
    found = profile_anchor(anchor, profile_target(LAMP, lamp_page()))
    assert found.type_hint == found.llm_classified_type == kind
    assert found.llm_intent_hint in (intent, "mixed")


@pytest.mark.parametrize("answer", [None, {}, {"tone_class": "loud"}, {"topic_focus": 3}])
def test_an_absent_or_unusable_answer_leaves_what_the_rules_found(answer: Any) -> None:
    publisher = profile_publisher("magasinet.example", [page_of(HOME, MAGAZINE_HTML)], "se")
    target = profile_target(LAMP, lamp_page())
    anchor = profile_anchor("läslampor", target)
    assert publisher_with_llm(publisher, answer) == publisher
    assert target_with_llm(target, answer) == target
    assert anchor_with_llm(anchor, answer) == anchor


def test_a_models_answer_goes_before_what_the_rules_found() -> None:
    publisher = profile_publisher("magasinet.example", [page_of(HOME, MAGAZINE_HTML)], "se")
    told = publisher_with_llm(publisher, {"tone_class": "academic", "topic_focus": ["belysning"]})
    assert (told.tone_class, told.allowed_commerciality) == ("academic", "low")
    assert told.topic_focus[0] == "belysning" and "Inredning" in told.topic_focus
    target = profile_target(LAMP, lamp_page())
    asked = target_with_llm(
        target, {"core_entities": ["Lampan"], "core_topics": ["läslampor", "dimmer"]}
    )
    assert asked.core_entities == ["Lampan", "Ljuslabbet"]
    # "läslampa" is the same subject in another form
    assert asked.core_topics[:3] == ["läslampor", "dimmer", "färgtemperatur"]
    anchor = profile_anchor("läslampor", target)
    classed = anchor_with_llm(anchor, {"anchor_type": "partial", "intent": "info_primary"})
    assert (classed.type_hint, classed.llm_classified_type) == ("exact", "partial")
    assert classed.llm_intent_hint == "info_primary"


@pytest.mark.parametrize(
    ("text", "declared", "language"),
    [
        ("", "sv-SE", "sv"),
        ("", "nb", "no"),
        ("", "", ""),
        ("Det här är en text om lampor, och den är skriven på svenska.", "", "sv"),
        ("This is a text about lamps, and it is written in English.", "", "en"),
        ("Les députés ont approuvé le projet de loi sur le renseignement.", "", "fr"),
        ("This is a text about lamps, and it is written in English.", "English", "en"),
    ],
)
def test_a_language_is_the_declared_one_or_what_the_text_reads_like(
    text: str, declared: str, language: str
) -> None:
    assert language_of(text, declared) == language


@pytest.mark.parametrize(
    ("url", "query", "name", "topic"),
    [
        ("ehow.com/how_2042752_build-terrarium.html", "how to build a terrarium", "", "terrarium"),
        ("topicseed.com/blog/content-depth-for-seo", "content depth", "SEO", "content depth"),
        ("vision-pro-headset", "apple vision pro hands-on", "Vision Pro", "headset"),
        ("zimbabwes-robert-mugabe", "zimbabwe coup", "Mugabe", "wife Grace"),
        ("sql-anomaly-detection", "simple anomaly detection using plain sql", "SQL", "standard"),
    ],
)
def test_real_pages_have_queries_names_and_topics_that_read_like_a_persons(
    reference_data: Any, url: str, query: str, name: str, topic: str
) -> None:
    index = (reference_data / "articles" / "pages_index.csv").read_text(encoding="utf-8")
    address = next(cell for line in index.splitlines() for cell in line.split(",") if url in cell)
    target = profile_target(address, saved_page(address))
    assert target.candidate_main_queries[0] == query
    assert name in ["", *target.core_entities]
    assert any(topic in one for one in target.core_topics)


@given(
    title=st.text(max_size=80),
    text=st.text(max_size=600),
    language=st.sampled_from(["sv", "en", "de", "fr", "xx", ""]),
)
@settings(max_examples=60, deadline=None)
def test_no_text_can_break_the_search_for_words(title: str, text: str, language: str) -> None:
    phrases = Phrases(title, text, [title], language)
    assert len(phrases.names()) <= 10
    assert len(phrases.topics()) <= 10
    assert len(phrases.question().split()) <= 12
