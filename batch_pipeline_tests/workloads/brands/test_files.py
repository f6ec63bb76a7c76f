"""A brand's files: whole, valid, safe on every disk, and gone when they hold no more."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import BaseModel

from batch_pipeline.workloads.brands.chunks import EmbeddingManifest, Entity, RelationsDocument
from batch_pipeline.workloads.brands.files import (
    BRAND_COLUMNS,
    CAMPAIGN_COLUMNS,
    CATALOG_COLUMNS,
    Metadata,
    QuickReference,
    folder_names,
    remove_brand_files,
    remove_other_brands,
    write_brand_files,
)
from batch_pipeline.workloads.brands.models import Insights, ProductCatalog
from batch_pipeline.workloads.brands.pages import escaped, html_report
from batch_pipeline.workloads.brands.record import BrandRecord
from batch_pipeline.workloads.brands.sections import labels_in
from batch_pipeline_tests.chromium import CHROMIUM, chromium
from batch_pipeline_tests.workloads.brands import samples
from batch_pipeline_tests.workloads.brands.samples import bare_brand, persian_brand

RECORDS = [persian_brand(), bare_brand(), persian_brand(simulated=True)]


def load(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """A JSON file that satisfies its model's schema."""
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    jsonschema.validate(document, model.model_json_schema())
    model.model_validate(document)
    return document


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def present(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()
    )


@pytest.mark.parametrize("record", RECORDS)
def test_every_file_of_a_brand_is_there_and_valid(tmp_path: Path, record: BrandRecord) -> None:
    paths = write_brand_files(tmp_path, record)
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert present(tmp_path) == sorted(names)
    assert len(names) == 23 and names[-1] == "vector_database/metadata.json"
    assert {path.stat().st_mode & 0o077 for path in paths} == {0}

    quick = load(tmp_path / "human_reports/quick_reference.json", QuickReference)
    assert quick["brand_name"] == record.brand_name
    vectors = tmp_path / "vector_database"
    manifest = load(vectors / "embedding_manifest.json", EmbeddingManifest)
    relations = load(vectors / "relationships.json", RelationsDocument)
    metadata = load(vectors / "metadata.json", Metadata)
    entities = [
        json.loads(text) for text in (vectors / "entities.jsonl").read_text("utf-8").splitlines()
    ]
    for entity in entities:
        jsonschema.validate(entity, Entity.model_json_schema())

    assert [entry["number"] for entry in manifest["chunks"]] == list(range(1, 13))
    for entry in manifest["chunks"]:
        content = (vectors / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert re.fullmatch(rf"chunks/{entry['number']:03d}_\w+\.txt", entry["file"])
        assert content.decode("utf-8").endswith("\n")
        nothing = labels_in(record.language).nothing_known in content.decode("utf-8")
        assert entry["has_content"] == (not nothing)
    assert manifest["entity_count"] == len(entities) == len({one["id"] for one in entities})
    ids = {one["id"] for one in entities}
    assert manifest["relation_count"] == len(relations["relations"])
    for edge in relations["relations"]:
        assert {edge["source"], edge["target"]} <= ids and edge["source"] == manifest["brand_id"]
    assert {entry["path"] for entry in metadata["files"]} == set(names[:-1])
    for entry in metadata["files"]:
        content = (tmp_path / entry["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            entry["bytes"],
            entry["sha256"],
        )
    simulated = {quick["simulated"], manifest["simulated"], metadata["simulated"]}
    simulated |= {relations["simulated"], *(one["simulated"] for one in entities)}
    assert simulated == {record.simulated}


def test_the_tables_have_the_columns_of_the_guide_and_what_the_answers_say(tmp_path: Path) -> None:
    write_brand_files(tmp_path, persian_brand())
    brands = table(tmp_path / "data_exports/3_brands_database.csv")
    assert tuple(brands[0]) == BRAND_COLUMNS
    assert [row["relationship_type"] for row in brands] == [
        "brand", "sister_brand", "competitor", "competitor", "complementary",
    ]  # fmt: skip
    assert brands[0]["category_level_3"] == brands[0]["category"] == "ماست و پنیر"
    assert [brands[2][f"category_level_{n}"] for n in (1, 2, 3)] == ["Food", "Dairy", "Desserts"]
    assert (brands[2]["market_position"], brands[2]["price_tier"]) == ("leader", "premium")
    assert brands[3]["brand_name"].startswith("'=HYPERLINK")
    catalog = table(tmp_path / "data_exports/product_catalog.csv")
    assert tuple(catalog[0]) == CATALOG_COLUMNS and len(catalog) == 2
    campaigns = table(tmp_path / "data_exports/campaign_opportunities.csv")
    assert tuple(campaigns[0]) == CAMPAIGN_COLUMNS
    assert campaigns[0]["partner_brand"] == "نان سحر"


@pytest.mark.parametrize("bom", [False, True])
def test_a_byte_order_mark_is_written_on_request(tmp_path: Path, bom: bool) -> None:
    write_brand_files(tmp_path, persian_brand(), bom=bom)
    for path in (tmp_path / "data_exports").iterdir():
        assert path.read_bytes().startswith(b"\xef\xbb\xbf") == bom


def test_files_of_an_earlier_run_are_removed_and_a_persons_own_stay(tmp_path: Path) -> None:
    write_brand_files(tmp_path, persian_brand())
    (tmp_path / "vector_database/chunks/013_extra.txt").write_text("old")
    (tmp_path / "human_reports/my notes.md").write_text("mine")
    write_brand_files(tmp_path, bare_brand())
    assert not (tmp_path / "vector_database/chunks/013_extra.txt").exists()
    assert (tmp_path / "human_reports/my notes.md").exists()
    remove_brand_files(tmp_path)
    assert present(tmp_path) == ["human_reports/my notes.md"]
    assert [path.name for path in tmp_path.iterdir()] == ["human_reports"]


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = write_brand_files(tmp_path, persian_brand())
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_brand_files(tmp_path, persian_brand())] == before


def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    paths = write_brand_files(tmp_path, persian_brand())
    before = {path: path.stat().st_ino for path in paths}
    write_brand_files(tmp_path, persian_brand())
    assert {path: path.stat().st_ino for path in paths} == before
    write_brand_files(tmp_path, persian_brand(parent_company="X"))
    changed = [path.name for path in paths if path.stat().st_ino != before[path]]
    assert "004_ownership.txt" in changed and "008_products.txt" not in changed
    assert "metadata.json" in changed


def test_a_run_that_breaks_off_leaves_whole_files_and_no_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_brand_files(tmp_path, persian_brand())
    old = (tmp_path / "human_reports/complete_analysis_report.md").read_bytes()

    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            write_brand_files(tmp_path, bare_brand())
    assert (tmp_path / "human_reports/complete_analysis_report.md").read_bytes() == old
    assert not (tmp_path / "vector_database/metadata.json").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_brands_without_a_result_lose_their_files_and_nothing_else_is_touched(
    tmp_path: Path,
) -> None:
    for name in ("Nike", "Puma"):
        write_brand_files(tmp_path / name, bare_brand())
    (tmp_path / "photos").mkdir()
    (tmp_path / "batch_report.html").write_text("x")
    assert remove_other_brands(tmp_path, ["nike"]) == ["Puma"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "Nike",
        "batch_report.html",
        "photos",
    ]
    assert remove_other_brands(tmp_path / "none", []) == []


@pytest.mark.parametrize(
    ("brand", "folder"),
    [
        ("Nike", "Nike"),
        ("دیجی‌کالا", "دیجی‌کالا"),
        ("/e/", "_e_"),
        ("AC/DC", "AC_DC"),
        (".NET", "_NET"),
        ("..", "brand"),
        ("../../etc/passwd", "__.._etc_passwd"),
        ("C:\\Windows", "C_Windows"),
        ("Yahoo!", "Yahoo!"),
        ("Dot.", "Dot"),
        ("con", "_con"),
        ("NUL.txt", "_NUL.txt"),
        ("a\nb", "a b"),
        ("؟", "؟"),
        ("x" * 300, "x" * 120),
        ("م" * 200, "م" * 60),
    ],
)
def test_a_folders_name_is_safe_and_still_the_brands(brand: str, folder: str) -> None:
    assert folder_names([("id-1", brand)]) == {"id-1": folder}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Nike", "NIKE"),
        ("Nike", "Nike"),
        ("Café", "Cafe\u0301"),
        ("AC/DC", "AC:DC"),
        ("ديجي", "دیجی"),
        ("x" * 300, "x" * 299),
        ("..", "/"),
        ("Nike", "Nike."),
    ],
)
def test_names_that_a_disk_takes_for_the_same_get_folders_of_their_own(
    one: str, other: str
) -> None:
    names = folder_names([("id-1", one), ("id-2", other), ("id-3", "Puma")])
    assert names["id-3"] == "Puma"
    assert "~" in names["id-1"] and "~" in names["id-2"]
    assert names["id-1"].casefold() != names["id-2"].casefold()
    # the order of rows does not matter
    assert folder_names([("id-2", other), ("id-1", one)])["id-1"] == names["id-1"]


@given(st.lists(st.text(max_size=150), max_size=8))
def test_any_brands_get_different_folders_that_are_file_names(brands: list[str]) -> None:
    given_names = [(f"id-{n}", brand) for n, brand in enumerate(brands)]
    given_names = [(i, b.encode("utf-8", "ignore").decode()) for i, b in given_names]
    names = list(folder_names(given_names).values())
    assert len({name.casefold() for name in names}) == len(brands)
    for name in names:
        assert name == Path(name).name and not name.startswith(".") and name[-1] not in ". "
        assert 0 < len(name.encode()) <= 140


class Page(HTMLParser):
    """What a page loads, runs and links to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.root: dict[str, str | None] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        given = dict(attrs)
        self.tags.add(tag)
        if tag == "html":
            self.root = given
        if tag == "a":
            self.links.append(given.get("href") or "")
        self.loads += [
            str(given[name]) for name in ("src", "srcset", "background") if name in given
        ]
        assert not [name for name in given if name.startswith("on")]


def test_a_persian_page_runs_from_right_to_left_and_keeps_latin_names_apart() -> None:
    html = html_report(persian_brand())
    page = Page(html)
    assert page.root == {"lang": "fa", "dir": "rtl"}
    assert "<bdi>Danette</bdi>" in html
    assert '<p dir="rtl">Mehrsa یکی از' in html
    assert '<span dir="ltr">Food &gt; Dairy &gt; Desserts</span>' in html
    assert Page(html_report(bare_brand())).root == {"lang": "en", "dir": "ltr"}


def test_a_page_loads_nothing_runs_nothing_and_links_to_web_pages_only() -> None:
    html = html_report(persian_brand())
    page = Page(html)
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "form", "link", "base"}
    assert page.loads == [] and "url(" not in html and "@import" not in html
    assert page.links == ["https://mehrsa.example/", "https://mehrsa.example/about"]
    assert "default-src 'none'" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


@pytest.mark.parametrize("record", RECORDS)
def test_a_simulated_brand_says_so_in_every_text(tmp_path: Path, record: BrandRecord) -> None:
    said = labels_in(record.language).simulated
    for path in write_brand_files(tmp_path, record):
        if path.suffix in (".md", ".html", ".txt"):
            assert (said in path.read_text("utf-8")) == record.simulated, path.name


HOSTILE = (
    "[x](javascript:1) <script>a</script> | `b` **c** # d\n- e\n1. f ![i](http://x/y.png) &amp;"
)


def test_markdown_shows_texts_as_they_are(tmp_path: Path) -> None:
    insights = Insights.model_validate({**samples.INSIGHTS, "executive_summary": HOSTILE})
    catalog = ProductCatalog.model_validate({"products": [{"name": HOSTILE, "category": "a|b"}]})
    record = persian_brand(insights=insights, product_catalog=catalog, brand_name="# [N](x)")
    write_brand_files(tmp_path, record)
    html = (
        MarkdownIt("commonmark")
        .enable("table")
        .render((tmp_path / "human_reports/complete_analysis_report.md").read_text("utf-8"))
    )
    page = Page(html)
    assert page.links == [] and not page.tags & {"script", "img", "code"}
    assert "<h1># [N](x): " in html
    assert "<td>a|b</td>" in html
    assert "1. f !" in html and "&amp;amp;" in html


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1))
def test_escaped_text_is_one_paragraph_that_says_the_same(text: str) -> None:
    text = " ".join(text.split())
    if not text:
        return
    tokens = MarkdownIt("commonmark").parse(escaped(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    shown = "".join(child.content for child in tokens[1].children or [])
    assert shown == text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_lays_the_page_out_from_the_right_and_asks_for_nothing(tmp_path: Path) -> None:
    write_brand_files(tmp_path, persian_brand())
    page_url = (tmp_path / "human_reports/brand_report.html").as_uri()
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(page_url)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        heading = page.locator("h1 bdi").bounding_box()
        assert heading is not None and heading["x"] + heading["width"] > 350
    assert asked == [page_url] and said == []


def test_a_brands_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    write_brand_files(tmp_path / "brand", persian_brand())
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert len(folders) == 5
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
