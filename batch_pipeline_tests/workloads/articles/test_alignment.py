"""Intents and bridges: the table of pairs, the whole, and what each part of a job is for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import pytest

from batch_pipeline.search.intents import Intent
from batch_pipeline.workloads.articles.alignment import (
    against,
    align,
    anchor_implied_intent,
    bridge_of,
    overall,
    overlap_note,
    overlap_of,
    pair,
    publisher_role_intent,
    target_page_intent,
)
from batch_pipeline.workloads.articles.package import Alignment, PublisherProfile, Tone
from batch_pipeline.workloads.articles.profiles import (
    profile_anchor,
    profile_publisher,
    profile_target,
)
from batch_pipeline_tests.workloads.articles.pages import (
    LAMP,
    LAMP_HTML,
    SHOP,
    SHOP_HTML,
    lamp_page,
    page_of,
)

PARTIAL = {
    frozenset(("info_primary", "commercial_research")),
    frozenset(("commercial_research", "transactional")),
    frozenset(("support", "info_primary")),
    frozenset(("local", "info_primary")),
}
GUIDE = profile_target(LAMP, lamp_page())
STORE = profile_target(SHOP, page_of(SHOP, SHOP_HTML))


def publisher(
    tone: Tone = "consumer_magazine", *topics: str, selling: str = ""
) -> PublisherProfile:
    found = profile_publisher("magasinet.example", [], "se")
    changed = {"tone_class": tone, "topic_focus": list(topics)}
    return found.model_copy(
        update={**changed, **({"allowed_commerciality": selling} if selling else {})}
    )


@pytest.mark.parametrize("part", get_args(Intent))
@pytest.mark.parametrize("serp", get_args(Intent))
def test_every_pair_fits_as_the_table_says(part: Intent, serp: Intent) -> None:
    expected = "aligned" if part == serp else "partial" if {part, serp} in PARTIAL else "off"
    assert pair(part, serp) == expected


@pytest.mark.parametrize("parts", list(itertools.product(get_args(Alignment), repeat=3)))
def test_one_part_that_is_off_makes_the_whole_off(parts: tuple[Alignment, ...]) -> None:
    found = overall(parts)
    if "off" in parts:
        assert (found, bridge_of(found)) == ("off", "wrapper")
    elif set(parts) == {"aligned"}:
        assert (found, bridge_of(found)) == ("aligned", "strong")
    else:
        assert (found, bridge_of(found)) == ("partial", "pivot")


def test_results_that_serve_two_intents_fit_in_part_to_either() -> None:
    assert against("transactional", "info_primary", None) == "off"
    assert against("transactional", "info_primary", "commercial_research") == "partial"
    assert against("transactional", "mixed", "transactional") == "partial"
    assert against("support", "transactional", "commercial_research") == "off"


def test_a_page_is_for_what_its_title_address_and_offer_say() -> None:
    assert target_page_intent(GUIDE) == "info_primary"
    assert target_page_intent(STORE) == "transactional"
    tested = page_of(
        LAMP, LAMP_HTML.replace("Så väljer du rätt läslampa", "Läslampor: bäst i test")
    )
    assert target_page_intent(profile_target(LAMP, tested)) == "commercial_research"


def test_the_front_page_of_a_company_is_for_what_the_company_offers() -> None:
    home = replace(lamp_page(), title="Lampan", url="https://lampan.example/")
    facts = home.facts.model_copy(update={"h1": "Lampan", "description": ""})
    named = replace(home, facts=facts, final_url=home.url, text="Lampan säljer. " * 40)
    assert target_page_intent(profile_target(home.url, named)) not in (
        "navigational_brand",
        "mixed",
    )


@pytest.mark.parametrize("anchor", ["läs mer", "Lampan", "läslampor", "lampan.example"])
def test_a_link_text_that_promises_nothing_leads_to_what_is_there(anchor: str) -> None:
    assert anchor_implied_intent(profile_anchor(anchor, GUIDE), GUIDE) == "info_primary"
    assert anchor_implied_intent(profile_anchor(anchor, STORE), STORE) == "transactional"


@pytest.mark.parametrize(
    ("profile", "serp", "expected"),
    [
        (publisher("academic"), "commercial_research", "info_primary"),
        (publisher("authority_public"), "transactional", "info_primary"),
        (publisher("consumer_magazine"), "info_primary", "info_primary"),
        (publisher("consumer_magazine"), "transactional", "commercial_research"),
        (publisher("hobby_blog"), "commercial_research", "commercial_research"),
        (publisher(selling="high"), "transactional", "transactional"),
        (publisher(selling="high"), "info_primary", "commercial_research"),
    ],
)
def test_readers_come_for_what_fits_the_search_best(
    profile: PublisherProfile, serp: Intent, expected: Intent
) -> None:
    assert publisher_role_intent(profile, serp) == expected


@pytest.mark.parametrize(
    ("anchor", "tone", "serp", "whole"),
    [
        ("läslampor", "consumer_magazine", "info_primary", "aligned"),
        ("bästa läslampan", "consumer_magazine", "info_primary", "partial"),
        ("köp läslampa", "consumer_magazine", "info_primary", "off"),
        ("läslampor", "academic", "commercial_research", "partial"),
        ("läslampor", "academic", "transactional", "off"),
    ],
)
def test_only_what_contradicts_is_off(
    anchor: str, tone: Tone, serp: Intent, whole: Alignment
) -> None:
    found = align(publisher(tone), GUIDE, profile_anchor(anchor, GUIDE), serp, None)
    assert found.alignment.overall == whole


@pytest.mark.parametrize(
    ("overlap", "said"),
    [
        (0.7, "a strong bridge"),
        (0.69, "a pivot"),
        (0.4, "a pivot"),
        (0.39, "a wrapper"),
        (None, "not known"),
    ],
)
def test_the_overlap_of_subjects_is_a_note(overlap: float | None, said: str) -> None:
    assert said in overlap_note(overlap)


def test_the_overlap_is_the_share_of_the_targets_subjects_that_the_publisher_writes_about() -> None:
    subjects = (*GUIDE.core_topics, *GUIDE.core_entities)
    assert overlap_of(publisher("consumer_magazine"), GUIDE) is None
    assert overlap_of(publisher("consumer_magazine", *subjects), GUIDE) == 1.0
    other = publisher("consumer_magazine", "läslampor", "trädgård", "matlagning")
    assert overlap_of(other, GUIDE) == pytest.approx(1 / len(subjects))
