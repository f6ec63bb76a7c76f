"""Answers of the simulator about brands: right in both languages, crooked now and then."""

from __future__ import annotations

import re
from typing import Any

import pytest

from batch_pipeline.workloads.brands.models import ANSWERS
from batch_pipeline_tests.simulator.asking import MODELS, answers, ask
from batch_pipeline_tests.simulator.running import Running

RESEARCH = [{"title": "About us", "url": "https://brand.example/about", "text": "We are a brand."}]
PERSIAN_NAMES = ["لبنیات پاکی", "شیرین‌عسل", "پاکشو", "Mihan", "رنگ‌های صنعتی شرق", "تاژ", "Ave"]
ENGLISH_NAMES = ["Plex", ".NET", "1&1", "{curly}", "Xero", "Moscow Metro", "Kodara", "Moo"]
LATIN = re.compile("[a-zA-Z]")
PERSIAN = re.compile("[\u0600-\u06ff]")
ARABIC_LETTERS = re.compile("[يكة]")


def content_of(name: str, language: str, **more: Any) -> dict[str, Any]:
    return {
        "brand_name": name,
        "website": "",
        "parent_company": "",
        "language": language,
        "research": RESEARCH,
        **more,
    }


def told(simulator: Running, name: str, language: str, **more: Any) -> dict[str, Any]:
    """All four answers, each step given the earlier ones."""
    content = content_of(name, language, **more)
    for step, model in ANSWERS.items():
        (answer,) = answers(ask(simulator, model, content))
        content[step] = answer
    return content


def texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize(
    ("name", "language"),
    [*((name, "fa") for name in PERSIAN_NAMES), *((name, "en") for name in ENGLISH_NAMES)],
)
def test_all_four_answers_are_whole_and_about_the_brand(
    simulator: Running, name: str, language: str
) -> None:
    simulator.configure(slips=0)
    content = told(simulator, name, language)
    for step, model in ANSWERS.items():
        read = model.model_validate(content[step])
        assert not read.set_aside
        assert {k: v for k, v in read.model_dump().items() if k != "set_aside"} == content[step]
    relations = content["relationships"]
    lists = ("sister_brands", "competitors", "similar_brands", "complementary_brands")
    near = [one["name"] for field in lists for one in relations[field]]
    assert len(near) == len(set(near)) >= 10 and name not in near
    assert all(one["category"].count(" > ") == 2 for field in lists for one in relations[field])
    industry = content["categorization"]["primary_industry"]
    assert re.fullmatch(r"[A-U]\d{4}", industry["isic_code"])
    assert LATIN.search(industry["name_en"]) and PERSIAN.search(industry["name_fa"])
    insights = content["insights"]
    assert 2 <= len(insights["executive_summary"].split("\n\n")) <= 4
    assert name in insights["executive_summary"]
    assert relations["competitors"][0]["name"] in insights["executive_summary"]
    partners = {one["partner_brand"] for one in insights["cross_promotion_opportunities"]}
    assert partners <= {one["name"] for one in relations["complementary_brands"]}
    assert sum(one["share_percent"] for one in insights["budget_recommendations"]) == 100


def test_persian_answers_are_written_as_persian_is_written(simulator: Running) -> None:
    simulator.configure(slips=0)
    content = told(simulator, "لبنیات پاکی", "fa")
    insights = content["insights"]
    assert content["categorization"]["primary_industry"]["name_en"] == "Dairy"
    said = " ".join(texts({step: content[step] for step in ANSWERS}))
    assert not ARABIC_LETTERS.search(said) and "\u200c" in said
    assert all(PERSIAN.search(text) for text in texts(insights) if not LATIN.fullmatch(text[0]))
    english = " ".join(texts(told(simulator, "Plex", "en")["insights"]))
    assert not PERSIAN.search(english)


def test_a_parent_is_confirmed_only_by_a_page_of_the_research(simulator: Running) -> None:
    simulator.configure(slips=0)
    verdicts = set()
    for n in range(12):
        content = content_of(f"Brand {n}", "en", parent_company="Holding Nine")
        (answer,) = answers(ask(simulator, ANSWERS["relationships"], content))
        assert answer["parent_company"] == "Holding Nine" and answer["shareholders"]
        checked = answer["parent_company_verification"]
        verdicts.add(checked["verdict"])
        confirmed = checked["verdict"] == "confirmed"
        assert checked["sources"] == ([RESEARCH[0]["url"]] if confirmed else [])
        alone = content_of(f"Brand {n}", "en", parent_company="Holding Nine", research=[])
        (answer,) = answers(ask(simulator, ANSWERS["relationships"], alone))
        assert answer["parent_company_verification"]["verdict"] == "unverified"
    assert verdicts == {"confirmed", "unverified"}


@pytest.mark.parametrize("language", ["en", "fa"])
def test_crooked_answers_are_read_as_if_they_were_straight(
    simulator: Running, language: str
) -> None:
    simulator.configure(slips=0)
    straight = told(simulator, "Sepid", language, parent_company="Holding")
    simulator.configure(slips=1)
    for step, model in ANSWERS.items():
        content = {**straight}
        content.pop(step)
        (answer,) = answers(ask(simulator, model, content))
        assert answer != straight[step]
        read = model.model_validate(answer)
        assert not read.set_aside
        known = ("brand_family", "shareholders", "target_audiences", "success_metrics")
        for field in set(known) & straight[step].keys():
            assert getattr(read, field) == getattr(model.model_validate(straight[step]), field)


def test_a_few_answers_of_many_are_crooked(simulator: Running) -> None:
    contents = [content_of(f"Brand {n}", "en") for n in range(150)]
    given = answers(ask(simulator, ANSWERS["categorization"], *contents))
    crooked = [one for one in given if isinstance(one["target_audiences"], str)]
    assert 3 <= len(crooked) <= 20
    assert answers(ask(simulator, ANSWERS["categorization"], *contents)) == given


def test_an_empty_summary_hits_insights_and_nothing_else(simulator: Running) -> None:
    content = told(simulator, "Plex", "en")
    simulator.configure(faults=[{"kind": "brand_empty", "count": 1}])
    for step, model in ANSWERS.items():
        (answer,) = answers(ask(simulator, model, content))
        if step != "insights":
            assert answer == content[step]
        else:
            assert answer == {**content[step], "executive_summary": ""}
            with pytest.raises(ValueError, match="executive_summary is empty"):
                model.model_validate(answer)


def test_prose_instead_of_json_hits_one_brand(simulator: Running) -> None:
    simulator.configure(faults=[{"kind": "brand_prose", "match": "Plex"}])
    reply = ask(simulator, ANSWERS["categorization"], content_of("Plex", "en"))
    assert reply.text.startswith("This is what I could find out")
    assert answers(ask(simulator, ANSWERS["categorization"], content_of("Xero", "en")))
    assert [entry["fault"] for entry in simulator.journal()] == ["brand_prose", None]


@pytest.mark.parametrize("provider", list(MODELS))
def test_brands_go_through_every_providers_dialect(simulator: Running, provider: str) -> None:
    for model in ANSWERS.values():
        (answer,) = answers(ask(simulator, model, content_of("Plex", "en"), provider=provider))
        model.model_validate(answer)


def test_searches_for_a_brand_find_pages_about_it_in_its_language(simulator: Running) -> None:
    queries = {"Plex competitors market share": LATIN, "پاکشو رقبا سهم بازار": PERSIAN}
    for query, letters in queries.items():
        tavily = simulator.http.post(
            "/tavily/search", json={"query": query}, headers={"authorization": "Bearer k"}
        ).json()
        exa = simulator.http.post(
            "/exa/search",
            json={"query": query, "contents": {"text": True}},
            headers={"x-api-key": "k"},
        ).json()
        assert len(tavily["results"]) == 5
        for row in (*tavily["results"], *exa["results"]):
            text = row.get("content") or row["text"]
            assert query in row["title"] and query in text
            assert letters.search(text.replace(query, ""))
