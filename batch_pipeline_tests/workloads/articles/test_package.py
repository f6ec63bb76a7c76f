"""Job packages: queries, SERPs, what an article must hold; valid for every real job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from batch_pipeline.search.base import SearchAnswer
from batch_pipeline.search.heuristic import heuristic_results
from batch_pipeline.workloads.articles import package as package_module
from batch_pipeline.workloads.articles.jobs import ArticleJob, job_of, open_jobs
from batch_pipeline.workloads.articles.package import JobPackage, SerpSet, lsi_terms
from batch_pipeline.workloads.articles.preflight import (
    Queries,
    briefs,
    build_package,
    failed_package,
    queries_of,
    required_subtopics,
    serp_set,
    subject_entity,
    subject_phrase,
    subtopics_of,
)
from batch_pipeline.workloads.articles.profiles import (
    profile_anchor,
    profile_publisher,
    profile_target,
    target_problem,
)
from batch_pipeline_tests.workloads.articles.pages import (
    LAMP,
    SHOP,
    SHOP_HTML,
    article_job,
    lamp_page,
    missing_page,
    page_of,
    saved_page,
)

SCHEMA = Path(package_module.__file__).with_name("job_package.schema.json")
JOB_ID, NOW = "job_20251107_140000_0a1b2c3d", "2025-11-07T14:00:00.000+00:00"


def package_for(job: ArticleJob, page: Any = None, *, source: Any = "mock") -> JobPackage:
    """The package of a job, with heuristic results."""
    publisher = profile_publisher(job.publisher, [], job.country)
    target = profile_target(job.target, page or lamp_page())
    anchor = profile_anchor(job.anchor, target)
    language = publisher.detected_language
    queries = queries_of(target, anchor, language)
    entity = subject_entity(target)
    sets = []
    for place, query in enumerate((queries.main, *queries.clusters)):
        answer = heuristic_results(
            query,
            entity=entity,
            topics=target.core_topics,
            language=language,
            country=job.country,
        )
        kind: Any = "cluster" if place else "main"
        metrics = {"volume": 10, "intents": {"informational": True}, "cpc": None}
        sets.append(
            serp_set(query, kind, answer, metrics, NOW, source, entity=entity, language=language)
        )
    return build_package(
        job, JOB_ID, NOW, publisher, target, anchor, sets, queries, job.strategy, "auto", source
    )


def check(package: JobPackage) -> None:
    """It is valid by the published schema, and reads back as it was."""
    document = json.loads(package.model_dump_json())
    jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert len(document) == 8
    assert JobPackage.model_validate(document) == package


def test_the_published_schema_is_that_of_the_model() -> None:
    expected = json.dumps(JobPackage.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == expected


def test_a_swedish_job_has_a_package_that_a_person_could_have_written() -> None:
    package = package_for(article_job())
    check(package)
    found = package.serp_research_extension
    assert found.main_query == "så väljer du rätt läslampa"
    assert found.cluster_queries == ["läslampa jämförelse", "läslampa test", "läslampa omdömen"]
    assert found.data_confidence == package.intent_extension.notes.data_confidence == "medium"
    assert [one.query_type for one in found.serp_sets] == ["main", *["cluster"] * 3]
    assert found.serp_sets[0].keyword_metrics == {"volume": 10, "cpc": None}
    assert (found.serp_sets[0].results_count, len(found.serp_sets[0].top_results)) == (10, 3)
    wanted = package.intent_extension
    assert wanted.required_subtopics[:2] == ["färgtemperatur", "ljusflöde"]
    assert wanted.recommended_bridge_type == "strong"
    assert wanted.recommended_article_angle.startswith(
        'Besvara frågan "så väljer du rätt läslampa"'
    )
    assert wanted.forbidden_angles[0] == "Köpuppmaningar och prisargument"
    assert package.generation_constraints.language == "sv"
    assert package.generation_constraints.min_word_count == 900
    assert 1 <= len(lsi_terms(package)) <= 10


def test_real_results_make_the_confidence_high() -> None:
    package = package_for(article_job(), source="ahrefs")
    assert package.serp_research_extension.data_confidence == "high"
    assert package.job_meta.serp_source == "ahrefs"


def test_an_article_is_written_in_the_publishers_language_about_a_page_in_another() -> None:
    package = package_for(article_job(publisher="gardennotes.co.uk", country="gb"))
    check(package)
    assert package.generation_constraints.language == "en"
    assert package.target_profile.detected_language == "sv"
    assert package.serp_research_extension.cluster_queries[0] == "läslampa comparison"
    # the page's own headings are Swedish
    assert "Placering vid fåtöljen" not in package.intent_extension.required_subtopics


def test_a_link_text_that_sells_below_a_search_for_knowledge_is_off() -> None:
    package = package_for(article_job(anchor="köp läslampa"))
    found = package.intent_extension
    assert found.intent_alignment.anchor_vs_serp == found.intent_alignment.overall == "off"
    assert found.recommended_bridge_type == "wrapper"
    assert found.forbidden_angles[0].startswith("Att låtsas")
    assert "transactional (off)" in found.notes.rationale


def test_a_shop_is_searched_for_by_those_who_buy() -> None:
    job = article_job(target=SHOP, anchor="löparskor")
    found = package_for(job, page_of(SHOP, SHOP_HTML)).intent_extension
    assert found.serp_intent_primary == found.target_page_intent == "transactional"
    assert found.intent_alignment.overall == "partial"


def test_a_name_alone_is_no_main_query() -> None:
    target = profile_target(LAMP, lamp_page()).model_copy(
        update={"candidate_main_queries": ["ljuslabbet"], "core_entities": ["Ljuslabbet"]}
    )
    queries = queries_of(target, profile_anchor("läslampor", target), "sv")
    assert queries.main == "ljuslabbet läslampa"
    assert queries.clusters[0] == "ljuslabbet jämförelse"


def test_a_page_without_words_of_its_own_is_searched_for_by_the_link_text() -> None:
    target = profile_target(LAMP, missing_page(LAMP, 403, "No."))
    queries = queries_of(
        target, profile_anchor("Läslampor för fåtöljen i hörnet hemma nu", target), "sv"
    )
    assert queries.main == "läslampor för fåtöljen i hörnet hemma"
    assert "länktext" in queries.rationale


def test_of_several_names_the_one_in_the_query_is_the_subject() -> None:
    target = profile_target(LAMP, lamp_page()).model_copy(
        update={
            "candidate_main_queries": ["apple vision pro test"],
            "core_entities": ["Apple", "Vision Pro", "Meta"],
        }
    )
    assert subject_entity(target) == subject_phrase(target) == "Vision Pro"
    person = target.model_copy(
        update={
            "candidate_main_queries": ["netanyahu victory"],
            "core_entities": ["Benjamin Netanyahu"],
        }
    )
    assert subject_entity(person) == "Benjamin Netanyahu"
    unnamed = target.model_copy(update={"candidate_main_queries": ["läslampa"]})
    assert (subject_entity(unnamed), subject_phrase(unnamed)) == ("", "läslampa")


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        (["Guide to game servers | Example", "Game servers explained"], ["game servers"]),
        (["Experiences with data structures", "Buy data structures online"], ["data structures"]),
        (["Minecraft exploit", "What is a Minecraft exploit?"], []),
        (["Best third-party cookies in 2024"], ["third-party cookies in 2024"]),
        (["How it works", "FAQ", ""], []),
        (["Login - Patching", "Patching: how to"], ["patching"]),
    ],
)
def test_subtopics_are_what_titles_say_besides_the_query(
    titles: list[str], expected: list[str]
) -> None:
    results = [{"title": title, "domain": "example.com"} for title in titles]
    assert subtopics_of("minecraft exploit", results, "en") == expected


def test_a_search_without_results_is_judged_by_its_words() -> None:
    found = serp_set("köp läslampa", "main", SearchAnswer([]), {}, NOW, "ahrefs")
    assert (found.intent_primary, found.results_count, found.subtopics) == ("transactional", 0, [])


def test_a_result_without_fields_is_no_reason_to_stop() -> None:
    answer = SearchAnswer([{"position": 7}, {"title": None, "type": None, "url": None}])
    found = serp_set("läslampa", "main", answer, {}, NOW, "ahrefs")
    assert [one.position for one in found.top_results] == [1, 2]
    assert found.top_results[0].type == "organic"


def test_required_subtopics_name_each_subject_once() -> None:
    package = package_for(article_job())
    sets = package.serp_research_extension.serp_sets
    twice = [
        *sets,
        *(one.model_copy(update={"subtopics": ["Läslampor", "dimmer"]}) for one in sets),
    ]
    found = required_subtopics(package.target_profile, twice, "sv")
    assert len(found) <= 10
    assert sum(one.casefold().startswith("läslamp") for one in found) == 1


def test_without_any_search_there_is_a_package_all_the_same() -> None:
    job = article_job()
    target = profile_target(job.target, lamp_page())
    anchor = profile_anchor(job.anchor, target)
    publisher = profile_publisher(job.publisher, [], "se")
    none: list[SerpSet] = []
    queries = Queries("så väljer du läslampa", [], "")
    package = build_package(
        job, JOB_ID, NOW, publisher, target, anchor, none, queries, "single_shot", "auto", "mock"
    )
    check(package)
    assert package.job_meta.mode == "single_shot"


def test_a_job_that_ended_at_preflight_has_a_valid_package_that_says_why() -> None:
    page = missing_page(LAMP, 403, "The site refuses programs.")
    reason = target_problem(page)
    for given in (page, None):
        package = failed_package(
            article_job(),
            JOB_ID,
            NOW,
            given,
            reason=reason,
            strategy="multi_stage",
            provider="auto",
        )
        check(package)
        assert package.target_profile.http_status == (403 if given else 0)
        assert package.target_profile.title == package.serp_research_extension.main_query == ""
        assert package.serp_research_extension.serp_sets == []
        assert "refuses programs" in package.intent_extension.notes.rationale
        assert "Untitled" not in package.model_dump_json()


def test_both_languages_have_every_text() -> None:
    assert set(briefs()) == {"sv", "en"}
    assert briefs()["sv"].angles.keys() == briefs()["en"].angles.keys()
    assert briefs()["sv"].forbidden.keys() == briefs()["en"].forbidden.keys()


def test_every_real_job_has_a_valid_package_and_hardly_one_is_off(reference_data: Path) -> None:
    rows = list(open_jobs(reference_data / "articles" / "jobs_offline_36.csv", {}).rows)
    wholes = []
    for row in rows:
        job = job_of(row.values)
        page = saved_page(job.target)
        assert target_problem(page) == ""
        package = package_for(job, page)
        check(package)
        found = package.serp_research_extension
        assert 1 <= len(found.main_query.split()) <= 6
        assert len(found.cluster_queries) == 3
        assert package.target_profile.core_topics or package.target_profile.core_entities
        assert package.intent_extension.required_subtopics
        wholes.append(package.intent_extension.intent_alignment.overall)
    assert len(wholes) == 36
    assert wholes.count("off") <= 1
