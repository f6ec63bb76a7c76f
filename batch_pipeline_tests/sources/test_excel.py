"""XLSX workbooks as tables: texts, row numbers, formulas, and what is no workbook."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.excel import open_excel

HEADER = ["Brand Name", "Website", "Status"]


def workbook(path: Path, *rows: Sequence[Any], **more: Sequence[Sequence[Any]]) -> Path:
    book = openpyxl.Workbook()
    first = book.worksheets[0]
    for row in rows:
        first.append(list(row))
    for title, lines in more.items():
        sheet = book.create_sheet(title)
        for line in lines:
            sheet.append(list(line))
    book.save(path)
    return path


def test_rows_are_texts_and_keep_their_numbers_in_the_sheet(tmp_path: Path) -> None:
    path = workbook(
        tmp_path / "my brands.xlsx", HEADER, ["شیرین‌عسل", None, "x"], [None], [" "], ["007"]
    )
    table = open_excel(path, required_columns=["brand name"])
    assert (table.name, list(table.columns)) == ("my-brands", ["brand name", *HEADER[1:]])
    rows = list(table.rows)
    assert [row.number for row in rows] == [2, 5]
    assert rows[0].values == {"brand name": "شیرین‌عسل", "Website": "", HEADER[2]: "x"}
    assert rows[1].values["brand name"] == "007"
    assert not any(row.problem for row in rows)


def test_numbers_dates_and_truths_become_what_a_person_sees(tmp_path: Path) -> None:
    path = workbook(
        tmp_path / "t.xlsx",
        list("abcdefg"),
        [42, 3.0, 0.1, True, date(2026, 11, 21), datetime(2026, 11, 21, 14, 5), "#N/A"],
    )
    [row] = open_excel(path).rows
    assert list(row.values.values()) == [
        "42", "3", "0.1", "TRUE", "2026-11-21", "2026-11-21 14:05:00", "#N/A",
    ]  # fmt: skip


def test_a_formula_without_a_result_makes_its_row_a_problem(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", ["a", "b"], ["1", "=1+1"], ["2", "3"])
    bad, good = open_excel(path).rows
    assert bad.problem.startswith("row 2, column 'b' is a formula without a stored result.")
    assert bad.values == {"a": "1", "b": ""}
    assert not good.problem
    path = workbook(tmp_path / "t.xlsx", ["a", "=1+1"], ["1", "2"])
    with pytest.raises(UsageError, match="the header has a formula"):
        open_excel(path)


def test_a_stored_result_is_taken(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", ["a"], ["=1+1"])
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    for empty in (b"<v />", b"<v></v>", b"<v/>"):
        parts[sheet] = parts[sheet].replace(empty, b"<v>2</v>")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    [row] = open_excel(path).rows
    assert row.values == {"a": "2"} and not row.problem


def test_a_worksheet_is_chosen_by_its_title(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", ["a"], ["1"], INPUT=[["b"], ["2"]])
    assert open_excel(path).columns == ["a"]
    assert open_excel(path, worksheet="INPUT").columns == ["b"]
    with pytest.raises(UsageError, match="It has: 'Sheet', 'INPUT'"):
        open_excel(path, worksheet="none")


def test_row_checks_are_those_of_every_table(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", ["id", "a"], ["1", "x" * 11], ["1", "y"], ["1", "z"])
    table = open_excel(path, id_column="id", max_cell_chars=10)
    assert ["limit is 10" in row.problem for row in table.rows] == [True, False, False]
    assert table.warnings == ["row 4 repeats the id '1' of row 3."]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"a,b\n1,2\n", "is not an XLSX workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(600), "is not an XLSX workbook"),
        (b"", "is not an XLSX workbook"),
    ],
)
def test_what_is_no_workbook_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "t.xlsx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        open_excel(path)


def test_archives_that_are_damaged_huge_or_something_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.xlsx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UsageError, match="archive and no workbook"):
        open_excel(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<broken")
    with pytest.raises(UsageError, match="not a readable XLSX workbook"):
        open_excel(path)
    monkeypatch.setattr("batch_pipeline.sources.excel._MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(3 << 20))
    with pytest.raises(UsageError, match="3 MB unpacked"):
        open_excel(path)


def test_a_sheet_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty"):
        open_excel(workbook(tmp_path / "t.xlsx"))
    with pytest.raises(UsageError, match="a header and no rows"):
        open_excel(workbook(tmp_path / "t.xlsx", HEADER))
    with pytest.raises(UsageError, match="is missing"):
        open_excel(workbook(tmp_path / "t.xlsx", ["a"], ["1"]), required_columns=["Brand Name"])
