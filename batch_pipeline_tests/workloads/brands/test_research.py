"""What is searched for about a brand, and what of the pages a request can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from batch_pipeline.engine.step import Step, llm_steps
from batch_pipeline.errors import UsageError
from batch_pipeline.pricing.tokens import estimate_tokens
from batch_pipeline.search.base import SearchAnswer
from batch_pipeline.workloads.brands.models import ANSWERS
from batch_pipeline.workloads.brands.options import BrandOptions
from batch_pipeline.workloads.brands.research import (
    PAGE_CHARS,
    language_of,
    pages_of,
    queries_of,
    within_tokens,
)
from batch_pipeline.workloads.brands.steps import CONTENT_TOKENS, SEARCHES
from batch_pipeline.workloads.brands.workload import BrandsWorkload
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.operator_files import read_options
from batch_pipeline_tests.workloads.brands.samples import (
    CATALOG,
    CATEGORIZATION,
    INSIGHTS,
    RELATIONSHIPS,
)

AUTO = BrandOptions()
SENTENCES = {
    "en": "Halden sells tents and boots in nine countries and owns Northwind Outdoor. ",
    "fa": "این برند زیر نظر گروه صنعتی آبان کار می‌کند و ۱۲۰ محصول لبنی دارد. ",
}


def row(brand: str, website: str = "", parent: str = "") -> dict[str, str]:
    return {"brand_name": brand, "website": website, "parent_company": parent}


def result(url: str, text: str = "text", **more: Any) -> dict[str, Any]:
    return {"title": f"about {url}", "url": url, "snippet": "a snippet", "text": text, **more}


def llm_step(name: str, **options: Any) -> Step:
    config = load_workload_config("brands")
    knobs = {"folder": config.folder, "options": options}
    steps = BrandsWorkload().steps(config.prompt, knobs)
    return next(step for step in llm_steps(steps) if step.name == name)


@pytest.mark.parametrize(
    ("given", "language"),
    [
        (row("مهرسا"), "fa"),
        (row("Ave", parent="پدیده شیمی قرن"), "fa"),
        (row("Tage", "https://tage.ir"), "fa"),
        (row("Tage", "https://www.tage.ir/fa?x=1"), "fa"),
        (row("Tage", "https://tage.ir.example"), "en"),
        (row("CinnaGen"), "en"),
        (row("Klook", "https://klook.com"), "en"),
        (row("۱۲۳ 4"), "en"),
    ],
)
def test_the_language_follows_letters_and_address(given: dict[str, str], language: str) -> None:
    assert language_of(given, AUTO) == language
    assert language_of(given, BrandOptions(language="fa")) == "fa"
    assert language_of(given, BrandOptions(language="en")) == "en"
    queries = queries_of(given, BrandOptions(language="en")).values()
    assert {query.country for query in queries} == {"ir" if language == "fa" else ""}


def test_queries_name_brand_owner_and_host_in_the_language_of_its_market() -> None:
    queries = queries_of(row("Tage", "https://www.tage.ir/a", "Henkel"), BrandOptions(results=4))
    assert list(queries) == ["profile", "products", "competitors"] and len(queries) == SEARCHES
    assert queries["profile"].text.startswith("Tage Henkel tage.ir ")
    assert "محصولات" in queries["products"].text
    assert {(one.limit, one.text_chars) for one in queries.values()} == {(4, PAGE_CHARS)}
    english = queries_of(row("A {b}"), AUTO)
    assert english["products"].text == "A {b} products services catalogue"


def test_each_page_stands_once_and_the_best_of_every_search_first() -> None:
    answers = [
        SearchAnswer([result("https://a/1"), result("https://a/2")]),
        SearchAnswer([]),
        SearchAnswer([result("https://b/1", ""), result("https://a/1"), result("https://c")]),
    ]
    pages = pages_of(answers)
    assert [page.url for page in pages] == [
        "https://a/1", "https://b/1", "https://a/2", "https://c",
    ]  # fmt: skip
    assert pages[1].text == "a snippet"
    long = pages_of([SearchAnswer([result("https://a", "x " * 5_000)])])
    assert len(long[0].text) <= PAGE_CHARS


@pytest.mark.parametrize("bound", [8_000, 2_000, 600, 50])
@pytest.mark.parametrize("language", ["fa", "en"])
def test_pages_are_cut_alike_and_the_last_ones_go_first(language: str, bound: int) -> None:
    text = (SENTENCES[language] * 60)[:PAGE_CHARS]
    pages = [result(f"https://host.example/{n}", text) for n in range(30)]
    kept = within_tokens(pages, bound)
    assert estimate_tokens(orjson.dumps(kept)) <= bound * 1.03
    assert [page["url"] for page in kept] == [page["url"] for page in pages[: len(kept)]]
    lengths = {len(page["text"]) for page in kept}
    assert max(lengths) - min(lengths) <= 20
    assert within_tokens(kept, bound * 2) == kept
    assert within_tokens([], bound) == []


@pytest.mark.parametrize("language", ["fa", "en"])
def test_no_request_is_longer_than_twelve_thousand_tokens(language: str) -> None:
    text = (SENTENCES[language] * 60)[:PAGE_CHARS]
    found = {"pages": [result(f"https://host.example/{n}", text) for n in range(60)]}
    answers = (RELATIONSHIPS, CATEGORIZATION, CATALOG, INSIGHTS)
    known: dict[str, Any] = {**row("مهرسا"), "collection": found}
    for (name, model), answer in zip(ANSWERS.items(), answers, strict=True):
        step = llm_step(name)
        content = step.content(known)
        assert list(content)[:4] == ["brand_name", "website", "parent_company", "language"]
        assert len(content["research"]) >= 10
        assert not any("set_aside" in one for one in content.values() if isinstance(one, dict))
        texts = [step.system_prompt, step.user_message([content])]
        texts.append(orjson.dumps(step.request_schema).decode())
        assert sum(estimate_tokens(text) for text in texts) < 12_000
        assert estimate_tokens(orjson.dumps(content)) > CONTENT_TOKENS * 0.85
        known[name] = model.model_validate(answer).model_dump(mode="json")
    assert list(content)[4:] == ["relationships", "categorization", "product_catalog", "research"]


def test_without_research_nobody_is_searched_and_no_key_is_needed() -> None:
    workload = BrandsWorkload()
    assert workload.search_providers({}) == ("tavily",)
    assert workload.search_providers({"research": False}) == ()
    collected = {**row("Ave"), "collection": {"pages": [result("https://a")]}}
    assert llm_step("relationships", research=False).content(collected)["research"] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"result": 3}, "result: there is no such option"),
        ({"results": 0}, "results: "),
        ({"results": 21}, "results: "),
        ({"language": "de"}, "language: input should be 'auto', 'fa' or 'en'"),
        ({"research": "perhaps"}, "research: "),
    ],
)
def test_an_option_that_cannot_be_is_named_with_what_there_is(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match="There are: research, results, language, csv_bom") as told:
        read_options(BrandOptions, given, "brands")
    assert said in str(told.value)


def test_packs_and_missing_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one by one"):
        BrandsWorkload().steps("prompt", {"folder": tmp_path, "pack": 5})
    with pytest.raises(UsageError, match=r"relationships\.md cannot be read"):
        BrandsWorkload().steps("prompt", {"folder": tmp_path})
    (tmp_path / "relationships.md").write_text(" \n")
    with pytest.raises(UsageError, match=r"relationships\.md is empty"):
        BrandsWorkload().steps("prompt", {"folder": tmp_path})
