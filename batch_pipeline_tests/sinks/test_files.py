"""What the writers put into files, and that what is written can be read again."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlite_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.errors import UsageError
from batch_pipeline.sinks.files import (
    write_csv,
    write_deliverables,
    write_json,
    write_jsonl,
    write_parquet,
    write_sqlite,
)
from batch_pipeline.sources.files import open_table

COLUMNS = ["Topic", "Text"]
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
# NUL is refused by the reader on purpose, and lone surrogates are no text.
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8), bom=st.booleans())
def test_what_write_csv_writes_open_table_reads(rows: list[tuple[str, str]], bom: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        records = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        assert write_csv(path, COLUMNS, records, bom=bom) == len(rows)
        read = list(open_table(path, required_columns=COLUMNS).rows)
    guarded = [
        [f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell for cell in row] for row in rows
    ]
    assert [[row.values[name] for name in COLUMNS] for row in read] == guarded
    assert not any(row.problem for row in read)


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(CELLS, min_size=1, max_size=8))
def test_a_single_column_survives_even_where_cells_are_empty(cells: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        write_csv(path, ["Topic"], [{"Topic": cell} for cell in cells])
        read = list(open_table(path).rows)
    assert [row.values["Topic"].removeprefix("'") for row in read] == [
        cell.removeprefix("'") for cell in cells
    ]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8))
def test_json_jsonl_and_parquet_give_back_every_text_unchanged(rows: list[tuple[str, str]]) -> None:
    records = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        for writer, name in (
            (write_json, "t.json"),
            (write_jsonl, "t.jsonl"),
            (write_parquet, "t.parquet"),
        ):
            path = Path(folder) / name
            assert writer(path, COLUMNS, records) == len(rows)
            assert [dict(row.values) for row in open_table(path).rows] == records


@pytest.mark.parametrize("start", FORMULA_STARTS)
def test_the_formula_guard_acts_on_csv_only(tmp_path: Path, start: str) -> None:
    rows = [{"Topic": f"{start}1+1", "Text": "a-b"}]
    write_csv(tmp_path / "t.csv", COLUMNS, rows)
    with (tmp_path / "t.csv").open(newline="") as stream:
        assert list(csv.reader(stream))[1] == [f"'{start}1+1", "a-b"]
    write_jsonl(tmp_path / "t.jsonl", COLUMNS, rows)
    assert json.loads((tmp_path / "t.jsonl").read_text())["Topic"] == f"{start}1+1"
    write_sqlite(tmp_path / "t.db", COLUMNS, rows)
    assert (
        next(iter(sqlite_utils.Database(tmp_path / "t.db")["items"].rows))["Topic"] == f"{start}1+1"
    )


def test_csv_quotes_every_cell_and_starts_with_a_bom_on_request(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_csv(path, ["a", "b", "c"], [{"a": 1, "b": None, "c": [True, "x"], "other": 2}])
    assert path.read_bytes() == b'"a","b","c"\n"1","","[true,""x""]"\n'
    write_csv(path, ["a"], [], bom=True)
    assert path.read_bytes() == b'\xef\xbb\xbf"a"\n'


def test_parquet_types_a_column_by_all_of_its_values(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"n": 1, "x": 1, "mixed": 1, "none": None, "flag": True}] * 1500
    rows.append({"n": None, "x": 0.5, "mixed": "text", "flag": False})
    assert write_parquet(tmp_path / "t.parquet", list(rows[0]), rows) == 1501
    table = pq.read_table(tmp_path / "t.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "n": "int64",
        "x": "double",
        "mixed": "string",
        "none": "string",
        "flag": "bool",
    }
    assert table.column("mixed").to_pylist()[-2:] == ["1", "text"]


def test_a_list_of_texts_stays_a_list_and_csv_joins_it(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "1", "names": ["Ege Bank", "Kuzey; Ltd"], "odd": ["a", 1]},
        {"id": "2", "names": [], "odd": "text"},
        {"id": "3", "names": None, "odd": None},
    ]
    columns = list(rows[0])
    for path, writer in (
        (tmp_path / "t.json", write_json),
        (tmp_path / "t.parquet", write_parquet),
    ):
        assert writer(path, columns, rows) == 3
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == rows
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column("names").to_pylist() == [["Ege Bank", "Kuzey; Ltd"], [], None]
    # A column of lists and other things has no better form than text.
    assert table.column("odd").to_pylist() == ['["a",1]', "text", None]
    write_csv(tmp_path / "t.csv", columns, rows)
    with (tmp_path / "t.csv").open(newline="") as stream:
        cells = [line[1] for line in csv.reader(stream)]
    assert cells == ["names", "Ege Bank; Kuzey; Ltd", "", ""]
    write_sqlite(tmp_path / "t.db", columns, rows, search_columns=["names"])
    database = sqlite_utils.Database(tmp_path / "t.db")
    assert [json.loads(row["names"]) for row in database.table("items").search("Kuzey")] == [
        ["Ege Bank", "Kuzey; Ltd"]
    ]


def test_a_list_that_begins_like_a_formula_is_guarded_in_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["names"], [{"names": ["=cmd()", "x"]}])
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == '"\'=cmd(); x"'


def test_json_is_one_indented_array_even_without_rows(tmp_path: Path) -> None:
    write_json(tmp_path / "t.json", ["a"], [])
    assert (tmp_path / "t.json").read_text() == "[]\n"
    write_json(tmp_path / "t.json", ["a", "b"], [{"a": "one\ntwo"}, {"a": "ç"}])
    assert (tmp_path / "t.json").read_text(encoding="utf-8") == (
        '[\n  {\n    "a": "one\\ntwo",\n    "b": null\n  },\n'
        '  {\n    "a": "ç",\n    "b": null\n  }\n]\n'
    )


def test_sqlite_finds_rows_by_their_words(tmp_path: Path) -> None:
    rows = [
        {"Topic": "Go", "Text": "channels and routines"},
        {"Topic": "Rust", "Text": "borrowing"},
    ]
    assert write_sqlite(tmp_path / "t.db", COLUMNS, rows, search_columns=["Text"]) == 2
    found = sqlite_utils.Database(tmp_path / "t.db").table("items").search("borrowing")
    assert [row["Topic"] for row in found] == ["Rust"]


def test_all_formats_are_written_with_the_same_rows(tmp_path: Path) -> None:
    calls = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal calls
        calls += 1
        yield from ({"Topic": f"T{n}", "Text": "x"} for n in range(3))

    paths = write_deliverables(
        tmp_path / "out", "roadmap_x", COLUMNS, rows, search_columns=["Topic"]
    )
    assert [path.name for path in paths] == [
        "roadmap_x.csv",
        "roadmap_x.jsonl",
        "roadmap_x.parquet",
        "roadmap_x.db",
    ]
    assert calls == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in paths
    )
    for path in paths[:3]:
        assert [row.values["Topic"] for row in open_table(path).rows] == ["T0", "T1", "T2"]


def test_no_rows_still_make_whole_files(tmp_path: Path) -> None:
    paths = write_deliverables(tmp_path, "empty", COLUMNS, list, search_columns=["Topic"])
    assert pq.read_table(paths[2]).column_names == COLUMNS
    assert sqlite_utils.Database(paths[3])["items"].count == 0


def test_a_stream_that_breaks_leaves_the_old_file_and_no_part_of_a_new_one(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield {"Topic": "new"}
        raise RuntimeError("the ledger went away")

    for name, writer in (
        ("t.csv", write_csv),
        ("t.json", write_json),
        ("t.jsonl", write_jsonl),
        ("t.parquet", write_parquet),
        ("t.db", write_sqlite),
    ):
        (tmp_path / name).write_text("old")
        with pytest.raises(RuntimeError):
            writer(tmp_path / name, COLUMNS, broken())
        assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 5


def test_an_unknown_format_and_a_stem_that_is_a_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown output format 'xlsx'"):
        write_deliverables(tmp_path, "x", COLUMNS, list, search_columns=[], formats=("xlsx",))
    with pytest.raises(UsageError, match="is not a file name"):
        write_deliverables(tmp_path, "../x", COLUMNS, list, search_columns=[])
