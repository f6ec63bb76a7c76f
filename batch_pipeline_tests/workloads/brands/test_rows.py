"""Tables of brands: which column is what, what is left out, what is said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.table import InputRow, InputTable, canonical_hash
from batch_pipeline.workloads.brands.registry import input_hash
from batch_pipeline.workloads.brands.rows import (
    INPUT_COLUMNS,
    BrandColumns,
    find_columns,
    open_brands,
)
from batch_pipeline.workloads.brands.workload import BrandsWorkload

HEADER = "Brand Name,Website,Parent Company,Status,Output Path\n"


def read(folder: Path, text: str, **options: Any) -> tuple[list[InputRow], list[str]]:
    path = folder / "brands.csv"
    path.write_text(text, encoding="utf-8")
    table = open_brands(str(path), options)
    return list(table.rows), table.warnings


def inputs(columns: BrandColumns) -> tuple[str, str, str]:
    return columns.brand, columns.website, columns.parent


def test_the_columns_of_the_sheet_are_read_and_what_the_system_writes_is_left_out(
    tmp_path: Path,
) -> None:
    rows, warnings = read(tmp_path, HEADER + "Nike,https://nike.com,Nike Inc,Completed,/out/1\n")
    assert [dict(row.values) for row in rows] == [
        {"brand_name": "Nike", "website": "https://nike.com", "parent_company": "Nike Inc"}
    ]
    assert warnings == []


def test_a_write_back_does_not_change_a_table(tmp_path: Path) -> None:
    before, _ = read(tmp_path, HEADER + "Nike,,,,\n")
    after, _ = read(tmp_path, HEADER + "Nike,,,Error: no answer,/out/1\n")
    assert canonical_hash(before[0].values) == canonical_hash(after[0].values)


@pytest.mark.parametrize(
    "header",
    [
        "Brand Name,Website,Parent Company,Status",
        "brand_name,website,parent_company,status",
        "BRAND, URL ,Parent,Status",
        "نام برند,وب‌سایت,شرکت مادر,وضعیت",
        "نام برند,وب سايت,شركت مادر,وضعيت",
    ],
)
def test_headers_are_known_by_several_names(tmp_path: Path, header: str) -> None:
    rows, warnings = read(tmp_path, f"{header}\nNike,https://nike.com,Nike Inc,\n")
    assert list(rows[0].values.values()) == ["Nike", "https://nike.com", "Nike Inc"]
    assert warnings == []


@pytest.mark.parametrize(
    "header",
    [
        "Brand Name,Website URL,Parent Company Name,Status",
        "brandName,brandWebsite,parentCompany,status",
        "Brand,Website,Company",
        "Brand*,Website (URL),Parent/Holding",
        "نام برند,آدرس وب سایت,شرکت مادر/هلدینگ",
        "Varumärke,Webbplats,Moderbolag",
        "Marke,Webseite,Muttergesellschaft,Status",
    ],
)
def test_what_people_call_the_three_columns_is_known(tmp_path: Path, header: str) -> None:
    cells = "Dove,https://dove.com,Unilever" + "," * (header.count(",") - 2)
    rows, warnings = read(tmp_path, f"{header}\n{cells}\n")
    assert list(rows[0].values.values()) == ["Dove", "https://dove.com", "Unilever"]
    assert warnings == []


@pytest.mark.parametrize(
    ("headers", "brand", "website", "parent"),
    [
        (["Company", "Brand", "Website", "Parent"], "Brand", "Website", "Parent"),
        (["Company", "Brand", "Website"], "Brand", "Website", "Company"),
        (["Website", "Name", "Brand Name"], "Brand Name", "Website", ""),
        (["Brand", "Owner", "Website", "Parent Company"], "Brand", "Website", "Parent Company"),
        (["شرکت", "برند", "آدرس", "سایت"], "برند", "سایت", "شرکت"),
        (["Id", "Company", "Website"], "Company", "Website", ""),
        (["Name", "Company"], "Name", "", "Company"),
        (["شرکت", "Name"], "Name", "", "شرکت"),
        (["شرکت", "سایت", "مالک"], "شرکت", "سایت", "مالک"),
        (["نام محصول", "سایت", "شرکت"], "نام محصول", "سایت", "شرکت"),
        (["Firma", "Webseite", "Konzern"], "Firma", "Webseite", "Konzern"),
    ],
)
def test_a_header_that_says_exactly_what_it_is_goes_before_a_general_one(
    headers: Sequence[str], brand: str, website: str, parent: str
) -> None:
    assert inputs(find_columns(headers, "t")) == (brand, website, parent)


def test_headers_may_stand_in_another_order() -> None:
    headers = ["Id", "Parent Company", "Brand", "Status", "Report", "output_path"]
    found = find_columns(headers, "t")
    assert inputs(found) == ("Brand", "", "Parent Company")
    assert (found.status, found.output, found.by_place) == ("Status", "output_path", ())


def test_without_known_headers_the_places_count_and_a_warning_says_so(tmp_path: Path) -> None:
    rows, warnings = read(tmp_path, "A,B,C,D,E\nNike,https://nike.com,Nike Inc,,\n")
    assert list(rows[0].values.values()) == ["Nike", "https://nike.com", "Nike Inc"]
    assert "by their place" in warnings[0]
    assert "A brand ('A'), B website ('B'), C parent company ('C')" in warnings[0]
    _, (warning,) = read(tmp_path, "A,B,Owner\nNike,https://nike.com,Nike Inc\n")
    assert "A brand ('A'), B website ('B'). Write Brand Name or Website above" in warning
    found = find_columns(["A", "B", "C", "D", "E", "F"], "t")
    assert inputs(found) == ("A", "B", "C") and found.by_place == INPUT_COLUMNS
    # what stands in D and E may be somebody's own: it is not written over
    assert (found.status, found.output) == ("", "")
    assert find_columns(["A", "B", "C", "Status", "Output"], "t").output == "Output"


@pytest.mark.parametrize(
    ("headers", "brand", "website", "parent"),
    [
        # where the brands are named, a column with another name is somebody's own
        (["Brand", "Notes", "Country"], "Brand", "", ""),
        (["Brand", "Website", "Notes"], "Brand", "Website", ""),
        (["Brand", "نام برند", "Notes"], "Brand", "", ""),
        # a known column at another place: the others are not at theirs either
        (["Wort", "Land", "Website"], "Wort", "Website", ""),
        (["Wort", "Parent", "Website"], "Wort", "Website", "Parent"),
        (["Wort", "Land", "Owner", "Parent"], "Wort", "", "Parent"),
        # what stands behind the system's own columns never went by its place
        (["Wort", "Status", "Notes"], "Wort", "", ""),
        (["Wort", "Where", "Status", "Notes"], "Wort", "Where", ""),
    ],
)
def test_places_do_not_count_where_the_table_is_laid_out_in_another_way(
    headers: Sequence[str], brand: str, website: str, parent: str
) -> None:
    assert inputs(find_columns(headers, "t")) == (brand, website, parent)


def test_columns_that_are_not_read_are_named_where_website_or_parent_is_missing(
    tmp_path: Path,
) -> None:
    _, (warning,) = read(tmp_path, "Id,Brand,Home,Whose,Status\n1,Dove,https://dove.com,U,\n")
    assert warning == (
        "No header names the website or the parent company, and 3 columns are not read: 'Id', "
        "'Home', 'Whose'. Write Website or Parent Company above the one that is meant."
    )
    _, (warning,) = read(tmp_path, "Id,Brand,Website\n1,Dove,https://dove.com\n")
    assert "names the parent company, and 1 column is not read: 'Id'. Write Parent" in warning
    _, warnings = read(tmp_path, HEADER.replace("\n", ",Note\nDove,,,,,mine\n"))
    assert warnings == []
    _, warnings = read(tmp_path, "Brand,Status\nDove,\n")
    assert warnings == []
    many = ",".join(f"x{n}" for n in range(40))
    _, (warning,) = read(tmp_path, f"Id,Brand,{many}\n1,Dove{',' * 40}\n")
    assert "41 columns are not read: 'Id', 'x0'" in warning and "'x8' …. Write" in warning
    assert len(warning) < 400


@pytest.mark.parametrize(
    "headers",
    [
        ["Firma", "Status", "Output Path"],
        ["Wort", "Status", "Output Path"],
        ["Wort", "Output Path", "Status"],
        ["Brand", "خروجی", "وضعیت"],
    ],
)
def test_a_column_that_is_written_is_no_key_and_no_input(headers: Sequence[str]) -> None:
    columns = BrandsWorkload().sheet_columns(headers, "t")
    assert columns.key == (headers[0],)
    assert {columns.status, columns.output} == set(headers[1:])


def test_no_column_is_two_things_whatever_the_order_of_the_headers() -> None:
    names = ["Brand", "Company", "URL", "Whose", "Status", "Output Path"]
    for headers in permutations(names):
        found = find_columns(headers, "t")
        taken = [name for name in (*inputs(found), found.status, found.output) if name]
        assert len(set(taken)) == len(taken), headers
        assert (found.brand, found.status) == ("Brand", "Status")


@pytest.mark.parametrize(
    "headers", [["Wort"], ["Wort", "Wo"], ["A", "B", "C"], ["Brand"], ["Id", "Name", "Wem"]]
)
def test_columns_that_a_write_back_adds_do_not_change_how_a_sheet_is_read(
    headers: Sequence[str],
) -> None:
    before = find_columns(headers, "t")
    after = find_columns([*headers, "Status", "Output Path"], "t")
    assert inputs(before) == inputs(after) and before.by_place == after.by_place
    assert before.unread == after.unread


@pytest.mark.parametrize("header", ["URL,Title", "Status,Wort", "Parent Company,Wort"])
def test_a_table_whose_first_column_is_something_else_and_that_names_no_brands_is_refused(
    tmp_path: Path, header: str
) -> None:
    with pytest.raises(UsageError, match=r"no column.*brands.*Write Brand Name above"):
        read(tmp_path, f"{header}\nx,y\n")


def test_a_table_without_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "brands.json"
    path.write_text("[{}]", encoding="utf-8")
    with pytest.raises(UsageError, match=r"no column.*brands"):
        open_brands(str(path), {})


def test_a_table_without_a_header_is_refused_before_its_first_brand_is_lost(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=r"no header.*Put a line above it"):
        read(tmp_path, "Nike,https://nike.com,Nike Inc\nPuma,https://puma.com,\n")


def test_rows_without_a_brand_are_left_out_and_numbers_stay(tmp_path: Path) -> None:
    rows, warnings = read(
        tmp_path, HEADER + "Nike,,,,\n ,,,,\n\u200c,,,,\n,https://x.example,,,\nPuma,,,,\n"
    )
    assert [(row.number, row.values["brand_name"]) for row in rows] == [(1, "Nike"), (5, "Puma")]
    assert warnings == ["row 4 (line 5) has no brand and is left out."]


@pytest.mark.parametrize(
    "website",
    ["nike.com", "www.nike.com", "ftp://nike.com", "https://", "http:// nike.com", "mailto:a@b.c"],
)
def test_a_website_that_is_no_web_address_is_ignored_with_a_warning(
    tmp_path: Path, website: str
) -> None:
    rows, warnings = read(tmp_path, HEADER + f"Nike,{website},,,\n")
    assert rows[0].values["website"] == "" and not rows[0].problem
    assert "row 1 (line 2)" in warnings[0] and "ignored" in warnings[0]


def test_a_password_in_a_website_is_nowhere_repeated(tmp_path: Path) -> None:
    rows, warnings = read(tmp_path, HEADER + "Nike,https://me:secret@nike.com,,,\n")
    assert "secret" not in f"{rows[0].values}{warnings}" and "password" in warnings[0]


def test_persian_names_are_kept_as_written(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, HEADER + "ديجي‌كالا ,,گروه  صنعتی\u202e,,\n")
    assert rows[0].values["brand_name"] == "ديجي\u200cكالا"
    assert rows[0].values["parent_company"] == "گروه صنعتی"


def test_repeated_brands_are_all_kept_and_both_rows_named(tmp_path: Path) -> None:
    rows, warnings = read(
        tmp_path, HEADER + "دیجی‌کالا,,,,\nNike,,,,\nديجي كالا,,Digi,,\nNike,,,,\n"
    )
    assert len(rows) == 4
    assert len({canonical_hash(row.values) for row in rows}) == 3  # ingest numbers the equal ones
    assert "row 1 (line 2) and row 3 (line 4)" in warnings[0]
    assert "'دیجی‌کالا' (also written 'ديجي كالا')" in warnings[0]
    assert "other entries" in warnings[0]
    assert "row 2 (line 3) and row 4 (line 5)" in warnings[1] and "same entries" in warnings[1]


def test_a_name_that_is_a_page_of_text_is_a_problem_of_its_row(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, HEADER + f"{'x' * 201},,,,\nNike,,,,\n")
    assert "201 characters, the limit is 200" in rows[0].problem
    assert not rows[1].problem


def test_warnings_of_one_kind_are_cut_off(tmp_path: Path) -> None:
    _, warnings = read(tmp_path, HEADER + "".join(f"B{n},x,,,\n" for n in range(30)))
    assert len(warnings) == 21 and warnings[-1] == "and 10 more ignored websites."


def test_a_table_from_elsewhere_comes_in_by_a_callable() -> None:
    def open_sheet(source: str, options: Mapping[str, Any]) -> InputTable:
        cells = {"Brand Name": "Nike", "Website": None, "Status": "Failed"}
        rows = iter([InputRow(12, None, cells)])
        return InputTable("sheet", source, list(cells), rows, [])

    table = open_brands("sheets:abc/INPUT", {}, open_sheet)
    (row,) = table.rows
    assert (table.source, row.number) == ("sheets:abc/INPUT", 12)
    assert dict(row.values) == {"brand_name": "Nike", "website": "", "parent_company": ""}


def test_a_workbook_reads_as_the_same_table_with_the_sheets_row_numbers(tmp_path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["Brand Name", "Website", "Parent Company", "Status", "Output Path"])
    sheet.append(["مهرسا", "https://mehrsa.example", None, "Completed", "/out"])
    sheet.append([None, None, None])
    sheet.append([1001, None, "Nights"])
    book.create_sheet("INPUT").append(["Brand"])
    book.save(tmp_path / "brands.xlsx")
    table = open_brands(str(tmp_path / "brands.xlsx"), {})
    assert [(row.number, *row.values.values()) for row in table.rows] == [
        (2, "مهرسا", "https://mehrsa.example", ""),
        (4, "1001", "", "Nights"),
    ]


def test_the_hash_of_the_inputs_is_that_of_sorted_json_of_stripped_values() -> None:
    import hashlib

    text = '{"brand_name": "مهرسا", "parent_company": "", "website": "https://m.example"}'
    values = {"website": " https://m.example ", "brand_name": "مهرسا ", "status": "Failed"}
    assert input_hash(values) == hashlib.sha256(text.encode()).hexdigest()


def test_the_sample_reads_with_its_two_warnings() -> None:
    sample = Path(__file__).parents[3] / "data" / "samples" / "brands" / "brands.csv"
    table = open_brands(str(sample), {})
    assert len(list(table.rows)) == 12
    ignored, twice = table.warnings
    assert "sepidar.example" in ignored
    assert "Tolou Coffee" in twice


def test_the_headers_of_the_real_sheets_are_read_without_a_warning(
    reference_data: Path,
) -> None:
    paths = sorted((reference_data / "brands").glob("*.csv"))
    assert paths
    for path in paths:
        found = open_brands(str(path), {})
        assert found.warnings == []
        with path.open(encoding="utf-8") as file:
            columns = find_columns(file.readline().strip().split(","), path.name)
        assert inputs(columns) == ("Brand Name", "Website", "Parent Company")
        assert (columns.status, columns.output) == ("Status", "Output Path")
