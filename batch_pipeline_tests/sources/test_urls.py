"""Lists of URLs as tables of pages."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.fetch.pages import PageReader
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.sources.table import InputRow, InputTable
from batch_pipeline.sources.urls import open_urls
from batch_pipeline_tests.fetch.site import Site, page, quick


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        for name in "abc":
            running.put(f"/{name}", page(f"Page {name}"))
        yield running


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "simulated") as opened:
        yield opened


@pytest.fixture
def read(ledger: Ledger, site: Site) -> PageReader:
    return PageReader(ledger, quick(site.rules, obey_robots=False))


def write(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "urls.txt"
    path.write_text("\n".join(lines), encoding=encoding)
    return path


def rows_of(table: InputTable) -> list[InputRow]:
    return list(table.rows)


def test_each_url_becomes_a_row_with_its_page(tmp_path: Path, site: Site, read: PageReader) -> None:
    path = write(tmp_path, site.url("/a"), site.url("/b"))
    table = open_urls(path, fetch_pages=read)
    assert (table.name, table.columns) == ("urls", ("id", "url", "title", "contents"))
    first, second = rows_of(table)
    assert (first.number, second.number) == (1, 2)
    assert first.values["id"] == first.values["url"] == site.url("/a")
    assert first.values["title"] == "Page a" and "the new bridge" in first.values["contents"]
    assert not first.problem and not table.warnings


def test_comments_and_blank_lines_are_passed_over_and_rows_keep_their_line(
    tmp_path: Path, site: Site, read: PageReader
) -> None:
    path = write(
        tmp_path,
        "# my list",
        "",
        f"  {site.url('/a#part')}   # the first",
        "   # indented",
        f"{site.url('/b')}\t# the second",
        encoding="utf-8-sig",
    )
    rows = rows_of(open_urls(path, fetch_pages=read))
    assert [(row.number, row.values["url"]) for row in rows] == [
        (3, site.url("/a#part")),
        (5, site.url("/b")),
    ]


def test_a_url_that_comes_again_is_kept_once_and_both_lines_are_named(
    tmp_path: Path, site: Site, read: PageReader
) -> None:
    path = write(tmp_path, site.url("/a"), site.url("/b"), site.url("/a"))
    table = open_urls(path, fetch_pages=read)
    assert len(rows_of(table)) == 2
    (warning,) = table.warnings
    assert "line 3 repeats the URL of line 1" in warning and site.url("/a") in warning


def test_a_line_that_is_no_url_is_a_problem_of_its_row(
    tmp_path: Path, site: Site, read: PageReader
) -> None:
    path = write(tmp_path, "example.com/page", site.url("/a"), "ftp://x.example/", "two words")
    rows = rows_of(open_urls(path, fetch_pages=read))
    assert [bool(row.problem) for row in rows] == [True, False, True, True]
    assert rows[0].problem.startswith("Row 1 ('example.com/page') is no web address.")
    assert "https://example.com/page" in rows[0].problem


def test_a_page_that_cannot_be_had_is_a_problem_of_its_row(
    tmp_path: Path, site: Site, read: PageReader
) -> None:
    path = write(
        tmp_path,
        site.url("/missing"),
        "http://169.254.169.254/latest/",
        "http://me:secret@example.com/",
        site.url("/b"),
    )
    rows = rows_of(open_urls(path, fetch_pages=read))
    assert rows[0].problem == (
        f"Row 1 ({site.url('/missing')}): The server answers 404 Not Found. Check the address."
    )
    assert "Row 2 (http://169.254.169.254/latest/): " in rows[1].problem
    assert "secret" not in rows[2].problem
    assert not rows[3].problem


def test_the_list_reads_the_same_twice_and_asks_the_site_once(
    tmp_path: Path, site: Site, read: PageReader
) -> None:
    path = write(tmp_path, site.url("/a"), site.url("/missing"), "no url", site.url("/c"))
    first = rows_of(open_urls(path, fetch_pages=read))
    site.put("/missing", page())
    site.put("/a", page("changed"))
    assert rows_of(open_urls(path, fetch_pages=read)) == first
    assert sorted(site.paths) == ["/a", "/c", "/missing"]


def test_progress_is_told_after_each_row(tmp_path: Path, site: Site, read: PageReader) -> None:
    path = write(tmp_path, "#", site.url("/a"), "no url", site.url("/b"), site.url("/b"))
    told: list[tuple[int, int]] = []
    table = open_urls(
        path, fetch_pages=read, progress=lambda done, total: told.append((done, total))
    )
    rows_of(table)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_packed_list_is_read(tmp_path: Path, site: Site, read: PageReader) -> None:
    path = tmp_path / "links.txt.gz"
    path.write_bytes(gzip.compress(site.url("/a").encode()))
    table = open_urls(path, fetch_pages=read)
    assert table.name == "links" and len(rows_of(table)) == 1


def test_an_article_over_the_bound_is_a_problem_of_its_row(
    tmp_path: Path, site: Site, read: PageReader
) -> None:
    path = write(tmp_path, site.url("/a"))
    (row,) = rows_of(open_urls(path, fetch_pages=read, max_cell_chars=100))
    assert "the limit is 100" in row.problem


@pytest.mark.parametrize("lines", [["# nothing"], ["", "   "]])
def test_a_list_without_urls_is_an_error(
    tmp_path: Path, read: PageReader, lines: list[str]
) -> None:
    with pytest.raises(UsageError):
        open_urls(write(tmp_path, *lines), fetch_pages=read)


def test_a_list_that_is_not_there_is_an_error(tmp_path: Path, read: PageReader) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_urls(tmp_path / "none.txt", fetch_pages=read)


def test_many_repeated_urls_are_named_up_to_a_bound(tmp_path: Path, read: PageReader) -> None:
    path = write(tmp_path, *["no url"] * 40)
    table = open_urls(path, fetch_pages=read)
    assert len(rows_of(table)) == 1
    assert len(table.warnings) == 21 and "19 more" in table.warnings[-1]


def test_nothing_is_fetched_before_the_rows_are_read(tmp_path: Path, site: Site) -> None:
    asked: list[str] = []

    def fetch_pages(urls: Iterable[str]) -> Iterator[object]:
        asked.extend(urls)
        yield from ()

    open_urls(write(tmp_path, site.url("/a")), fetch_pages=fetch_pages)  # type: ignore[arg-type]
    assert asked == []
