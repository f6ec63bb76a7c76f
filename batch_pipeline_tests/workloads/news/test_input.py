"""Articles come in from every format, under other column names too, and bad rows say why."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.table import InputTable
from batch_pipeline.workloads.news.articles import MAX_ARTICLE_TOKENS, extract_of
from batch_pipeline.workloads.news.workload import NewsWorkload, article_content
from batch_pipeline.workloads.runner import new_items
from batch_pipeline_tests.workloads.news.installation import article, write_json

SAMPLES = Path(__file__).parents[3] / "data" / "samples" / "news"


def opened(path: Path, **options: Any) -> InputTable:
    return NewsWorkload().open_input(str(path), options)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [dict(row.values) for row in opened(path).rows]


def test_every_format_gives_the_same_articles(tmp_path: Path) -> None:
    rows = [article(1), article(2, title="Fiyatlar düştü", contents="Satır bir.\n\nSatır iki.")]
    array = write_json(tmp_path / "a.json", rows)
    wrapped = write_json(tmp_path / "b.json", {"items": rows})
    lines = tmp_path / "c.jsonl.gz"
    lines.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    tables = []
    for name, delimiter in (("d.csv", ","), ("e.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        tables.append(tmp_path / name)
    parquet = tmp_path / "f.parquet"
    pd.DataFrame(rows).to_parquet(parquet)
    expected = rows_of(array)
    assert [row["id"] for row in expected] == ["a-1", "a-2"]
    assert [row["extracted_characters"] for row in expected] == [
        len(row["contents"]) for row in rows
    ]
    for path in (wrapped, lines, *tables, parquet):
        assert rows_of(path) == expected, path


@pytest.mark.parametrize("contents", ["content", "Text", "BODY", "article"])
@pytest.mark.parametrize("title", ["headline", "Page_Title"])
def test_other_column_names_are_understood_and_said(
    tmp_path: Path, contents: str, title: str
) -> None:
    path = write_json(tmp_path / "a.json", [{contents: "Shares rose.", title: "Up", "id": "1"}])
    table = opened(path)
    (row,) = table.rows
    assert (row.values["title"], row.values["contents"]) == ("Up", "Shares rose.")
    assert any(f"'{contents.lower()}' is read as 'contents'" in text for text in table.warnings)


def test_contents_wins_over_its_other_names(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [{"contents": "The article.", "text": "a note"}])
    table = opened(path)
    (row,) = table.rows
    assert (row.values["contents"], row.values["text"]) == ("The article.", "a note")
    assert table.warnings == []


def test_a_table_without_texts_is_refused_with_what_it_has(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [{"id": "1", "title": "Up", "summary": "x"}])
    with pytest.raises(UsageError, match=r"'contents' is missing; found: 'id', 'title', 'summary'"):
        opened(path)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"id": "1", "title": "x", "contents": ["a", "b"]}, "column 'contents' holds a list"),
        ({"id": "1", "title": "x", "contents": {"a": 1}}, "column 'contents' holds an object"),
        ({"id": "1", "title": "x", "contents": 12}, "column 'contents' holds the number 12"),
        ({"id": "1", "title": "x", "contents": True}, "holds true instead of text"),
        ({"id": "1", "title": ["x"], "contents": "y"}, "column 'title' holds a list"),
        ({"id": {"a": 1}, "title": "x", "contents": "y"}, "column 'id' holds an object"),
        ({"id": "1", "summary": "x"}, "has neither 'title' nor 'contents', only 'id', 'summary'"),
    ],
)
def test_a_row_of_the_wrong_shape_says_what_is_wrong_and_the_others_go_on(
    tmp_path: Path, bad: dict[str, Any], said: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (article(1), bad, article(3))))
    first, second, third = opened(path).rows
    assert (first.problem, third.problem) == ("", "")
    assert second.problem.startswith("row 2 (line 2)") and said in second.problem
    assert second.problem.endswith(".")


def test_rows_without_an_id_get_one_from_their_content(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        article(1),
        article(2, id=None),
        article(3, id=""),
        article(4, id=17),
    ]
    table = opened(write_json(tmp_path / "a.json", rows))
    items = list(new_items(NewsWorkload(), table))
    assert [item.item_id for item in items][::3] == ["a-1", "17"]
    hashed = items[1].item_id
    assert len(hashed) == 16
    assert NewsWorkload().deliverable_row(items[1].row, None)["id"] == hashed
    assert sum("a hash of its content stands in" in text for text in table.warnings) == 2


def test_a_table_without_ids_is_read_too(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [{"title": "Up", "contents": "Shares rose."}])
    (item,) = new_items(NewsWorkload(), opened(path))
    assert len(item.item_id) == 16 and not item.problem


def test_repeated_ids_are_named_and_both_rows_are_kept(tmp_path: Path) -> None:
    rows = [article(1), article(2, id="a-1")]
    table = opened(write_json(tmp_path / "a.json", rows))
    items = list(new_items(NewsWorkload(), table))
    assert [item.item_id for item in items] == ["a-1", "a-1~2"]
    assert any("repeats the id 'a-1' of row 1" in text for text in table.warnings)


@pytest.mark.parametrize("contents", ["", "  \n ", None])
def test_an_empty_article_is_skipped(tmp_path: Path, contents: str | None) -> None:
    table = opened(write_json(tmp_path / "a.json", [article(1, contents=contents), article(2)]))
    items = list(new_items(NewsWorkload(), table))
    assert [item.skip for item in items] == ["the article has no contents", ""]
    assert not any(item.problem for item in items)


def test_a_long_article_is_read_to_the_end_of_a_sentence_and_said_so(tmp_path: Path) -> None:
    sentence = "The ministry of trade published figures for the ninth month of the year. "
    long = sentence * 1_000
    table = opened(write_json(tmp_path / "a.json", [article(1), article(2, contents=long)]))
    short, cut = [row.values for row in table.rows]
    assert cut["contents"] == long.strip()
    assert cut["total_characters"] == len(long.strip())
    asked = article_content(cut)["content"]
    assert len(asked) == cut["extracted_characters"] < cut["total_characters"]
    assert asked.endswith("of the year.")
    assert extract_of(short) == short["contents"]
    (warning,) = [text for text in table.warnings if text.startswith("row 2")]
    assert f"{len(asked):,}" in warning and f"{MAX_ARTICLE_TOKENS:,}" in warning
    row = NewsWorkload().deliverable_row(cut, None)
    assert (row["shortened"], row["extracted_characters"]) == (True, len(asked))
    assert NewsWorkload().deliverable_row(short, None)["shortened"] is False


def test_a_row_that_came_without_measures_is_bounded_as_well() -> None:
    long = "Prices rose again in the spring. " * 3_000
    asked = article_content({"title": "x", "contents": long})["content"]
    assert asked.endswith("spring.") and len(asked) < len(long)


def test_warnings_of_many_long_articles_are_bounded(tmp_path: Path) -> None:
    long = "word " * (MAX_ARTICLE_TOKENS + 100)
    rows = [article(n, contents=long) for n in range(25)]
    table = opened(write_json(tmp_path / "a.json", rows))
    assert len(list(table.rows)) == 25
    assert len(table.warnings) == 21
    assert table.warnings[-1].startswith("and 5 more articles")


def test_the_samples_are_what_their_readme_says() -> None:
    items = list(new_items(NewsWorkload(), opened(SAMPLES / "articles.json")))
    assert len(items) == 20
    assert [item.item_id for item in items if item.skip] == ["quayside-15"]
    assert not any(item.problem for item in items)


def test_pack_is_one_by_default_and_bounded() -> None:
    (step,) = NewsWorkload().steps("prompt", {})
    assert (step.max_items, step.temperature) == (1, 0.0)
    (packed,) = NewsWorkload().steps("prompt", {"pack": 20})
    assert packed.max_items == 20
    for bad in (0, 21, True, "3"):
        with pytest.raises(UsageError, match="pack is"):
            NewsWorkload().steps("prompt", {"pack": bad})
