"""What `open_table` reads, refuses and warns about, on real files of every kind."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.files import open_table
from batch_pipeline.sources.table import InputRow, canonical_hash, table_name


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _read(path: Path, **options: Any) -> tuple[list[InputRow], list[str]]:
    table = open_table(path, **options)
    rows = list(table.rows)
    return rows, table.warnings


def _refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as refused:
        open_table(path, **options)
    assert refused.value.next_step
    return str(refused.value)


def test_a_csv_gives_its_rows_with_numbers_lines_and_text(tmp_path: Path) -> None:
    path = _file(tmp_path, "my table.csv", "Topic,Size\nA,1\nB,2\n")
    table = open_table(path)
    assert (table.name, table.columns) == ("my-table", ["Topic", "Size"])
    assert list(table.rows) == [
        InputRow(1, 2, {"Topic": "A", "Size": "1"}),
        InputRow(2, 3, {"Topic": "B", "Size": "2"}),
    ]
    assert table.warnings == []


def test_lines_stay_exact_after_quoted_line_breaks_and_blank_lines(tmp_path: Path) -> None:
    path = _file(tmp_path, "t.csv", 'Topic,Text\n"A","one\ntwo\r\nthree"\n\nB,x\nC\n')
    rows, warnings = _read(path)
    assert [(row.number, row.line) for row in rows] == [(1, 2), (2, 6), (3, 7)]
    assert rows[0].values["Text"] == "one\ntwo\r\nthree"
    assert "row 3 (line 7) has 1 cells, the header has 2" in rows[2].problem
    assert warnings == ["1 blank line was skipped, the first at line 5."]


def test_a_row_with_too_many_cells_is_a_problem_and_good_rows_go_on(tmp_path: Path) -> None:
    rows, _ = _read(_file(tmp_path, "t.csv", "a,b\n1,2,3\n4,5\n"))
    assert "row 1 (line 2) has 3 cells, the header has 2" in rows[0].problem
    assert not rows[1].problem


def test_an_unclosed_quote_says_where_it_opened_and_what_it_swallowed(tmp_path: Path) -> None:
    rows, _ = _read(_file(tmp_path, "t.csv", 'a,b\n1,2\n"3,4\n5,6\n7,8\n'))
    assert not rows[0].problem
    assert "row 2 (line 3) opens a quote that is never closed" in rows[1].problem
    assert "the 3 lines" in rows[1].problem


def test_a_record_beyond_all_bounds_is_not_kept_and_the_rows_after_it_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch_pipeline.sources.delimited._RECORD_CHARS", 1000)
    giant = '"' + 'a ""quoted"" line, with commas\n' * 500 + 'end","x"\n'
    path = _file(tmp_path, "t.csv", f"a,b\n1,2\n{giant}3,4\n")
    rows, _ = _read(path, max_cell_chars=500)
    assert [(row.number, row.line) for row in rows] == [(1, 2), (2, 3), (3, 504)]
    assert [bool(row.problem) for row in rows] == [False, True, False]
    assert "row 2 (line 3) goes on for 501 lines" in rows[1].problem


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_sniffed_although_texts_hold_others(
    tmp_path: Path, delimiter: str
) -> None:
    lines = [["Topic", "Text"], ["A", '"x, y; z | w"'], ["B", '"1, 2, 3"'], ["C", "plain"]]
    path = _file(tmp_path, "t.csv", "\n".join(delimiter.join(line) for line in lines))
    rows, _ = _read(path, required_columns=["Topic"])
    assert [row.values["Text"] for row in rows] == ["x, y; z | w", "1, 2, 3", "plain"]


def test_the_named_delimiter_wins_over_the_sniffed_one(tmp_path: Path) -> None:
    path = _file(tmp_path, "t.csv", "a;b,c;d\n1;2,3;4\n")
    assert open_table(path, delimiter=",").columns == ["a;b", "c;d"]
    assert open_table(_file(tmp_path, "u.csv", "a\tb\n1\t2\n"), delimiter="tab").columns == [
        "a",
        "b",
    ]
    assert "is not one character" in _refusal(path, delimiter="::")


def test_a_tsv_is_split_at_tabs_only(tmp_path: Path) -> None:
    rows, _ = _read(_file(tmp_path, "t.tsv", "a,b,c\td\n1,2,3\t4\n"))
    assert rows[0].values == {"a,b,c": "1,2,3", "d": "4"}


def test_headers_match_without_case_and_spaces_and_get_the_asked_spelling(tmp_path: Path) -> None:
    path = _file(tmp_path, "t.csv", " topic ,RESOURCES,Other\nA,u,x\n")
    table = open_table(path, required_columns=["Topic"], optional_columns=["Resources"])
    assert table.columns == ["Topic", "Resources", "Other"]
    assert next(iter(table.rows)).values == {"Topic": "A", "Resources": "u", "Other": "x"}


def test_a_missing_column_is_named_with_those_found_and_a_near_one(tmp_path: Path) -> None:
    text = _refusal(_file(tmp_path, "t.csv", "Topics,Text\nA,b\n"), required_columns=["Topic"])
    assert "the required column 'Topic' is missing; found: 'Topics', 'Text'." in text
    assert "Rename 'Topics' to 'Topic'" in text


def test_a_repeated_header_is_refused(tmp_path: Path) -> None:
    text = _refusal(_file(tmp_path, "t.csv", "a,b,A\n1,2,3\n"))
    assert "the column 'A' occurs twice, as columns 1 and 3" in text


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "t.tsv"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    assert "is empty" in _refusal(_file(tmp_path, name, content))


def test_a_header_without_rows_is_refused(tmp_path: Path) -> None:
    assert "has a header and no rows" in _refusal(_file(tmp_path, "t.csv", "Topic,Text\n\n\n"))
    assert "has no rows" in _refusal(_file(tmp_path, "t.json", "[]"))


def test_a_missing_file_a_folder_and_an_unknown_ending_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert "does not exist" in _refusal(tmp_path / "none.csv")
    assert "does not exist" in _refusal(tmp_path / "none.parquet")
    assert "is a folder" in _refusal(tmp_path / "folder.csv")
    assert "known table format" in _refusal(_file(tmp_path, "t.xlsx", "x"))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"PK\x03\x04rest", "Excel workbook"),
        (b"%PDF-1.7", "a PDF"),
        (b"PAR1xxxx", "a Parquet file"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b'[{"Topic": "A"}]', "holds JSON"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_what_it_is(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    assert kind in _refusal(_file(tmp_path, "t.csv", content))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_utf8_with_and_without_bom_and_utf16_with_bom_are_read(
    tmp_path: Path, encoding: str, name: str
) -> None:
    texts = {
        "t.csv": "Topic,Text\nÄpfel,\u4f60\u597d\n",
        "t.jsonl": '{"Topic": "Äpfel", "Text": "\u4f60\u597d"}\n',
        "t.json": '[{"Topic": "Äpfel", "Text": "\u4f60\u597d"}]',
    }
    path = _file(tmp_path, name, texts[name].encode(encoding))
    rows, warnings = _read(path, required_columns=["Topic"])
    assert rows[0].values == {"Topic": "Äpfel", "Text": "\u4f60\u597d"}
    assert warnings == (["read as UTF-16 (byte order mark)."] if encoding == "utf-16" else [])


def test_a_wrong_encoding_names_byte_and_line_and_proposes_one_that_works(tmp_path: Path) -> None:
    text = "Topic,Text\nA,ok\n" + "B,Größenänderung für Städte wäre schön über Nacht\n" * 20
    path = _file(tmp_path, "t.csv", text.encode("cp1252"))
    refused = _refusal(path)
    assert "is not UTF-8: byte 0xf6 at position 20, line 3" in refused
    proposed = refused.split("--encoding ")[1].rstrip(".")
    rows, _ = _read(path, encoding=proposed)
    assert rows[1].values["Text"].startswith("Größenänderung")


def test_a_wrong_byte_far_into_the_file_is_found_before_any_row_is_given(tmp_path: Path) -> None:
    good = b"A,plain text of some length\n" * 100_000
    refused = _refusal(_file(tmp_path, "t.csv", b"Topic,Text\n" + good + b"B,caf\xe9\n"))
    assert f"position {11 + len(good) + 5:,}, line 100,002" in refused


def test_utf16_without_its_mark_is_refused_with_the_encoding_to_name(tmp_path: Path) -> None:
    path = _file(tmp_path, "t.csv", "Topic,Text\nA,b\n".encode("utf-16-le"))
    assert "--encoding utf-16-le" in _refusal(path)
    assert _read(path, encoding="utf-16-le")[0][0].values == {"Topic": "A", "Text": "b"}


def test_an_encoding_that_does_not_exist_or_fit_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, "t.csv", "Topic\nÄ\n")
    assert "no text encoding named 'utf-9'" in _refusal(path, encoding="utf-9")
    assert "no text encoding named 'base64'" in _refusal(path, encoding="base64")
    assert "is not ASCII" in _refusal(path, encoding="ascii")


def test_gzip_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    packed = gzip.compress(b"Topic,Text\nA,b\n")
    table = open_table(_file(tmp_path, "rows.csv.gz", packed))
    assert table.name == "rows"
    assert [row.values["Topic"] for row in table.rows] == ["A"]
    assert "not a whole gzip file" in _refusal(_file(tmp_path, "cut.csv.gz", packed[:-6]))
    assert "not a whole gzip file" in _refusal(_file(tmp_path, "no.csv.gz", b"Topic,Text\nA,b\n"))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_a_cell_of_5_mb_fails_its_row_only(tmp_path: Path, kind: str) -> None:
    records = [{"Topic": "A", "Text": "x"}, {"Topic": "B", "Text": "y" * 5_000_000}]
    records.append({"Topic": "C", "Text": "z"})
    path = tmp_path / f"t.{kind}"
    match kind:
        case "csv":
            lines = (f"{record['Topic']},{record['Text']}" for record in records)
            path.write_text("\n".join(["Topic,Text", *lines]))
        case "jsonl":
            path.write_text("\n".join(json.dumps(record) for record in records))
        case "json":
            path.write_text(json.dumps(records))
        case _:
            pq.write_table(pa.Table.from_pylist(records), path)
    rows, _ = _read(path)
    assert [bool(row.problem) for row in rows] == [False, True, False]
    place = "row 2 (line 3)" if kind == "csv" else "row 2 (line 2)" if kind == "jsonl" else "row 2,"
    assert place in rows[1].problem
    assert (
        "column 'Text': the cell has 5,000,000 characters, the limit is 1,000,000"
        in rows[1].problem
    )
    assert len(rows[1].values["Text"]) < 1000


def test_a_limit_of_the_csv_module_is_not_what_decides(tmp_path: Path) -> None:
    path = _file(tmp_path, "t.csv", "Topic\n" + "x" * 900_000 + "\n")
    assert not _read(path)[0][0].problem


def test_a_nul_character_fails_its_row_only(tmp_path: Path) -> None:
    rows, _ = _read(_file(tmp_path, "t.csv", "Topic,Text\nA,b\0c\nB,d\n"))
    assert "row 1 (line 2), column 'Text' has a NUL character" in rows[0].problem
    assert not rows[1].problem


def test_repeated_and_absent_ids_are_warned_about_with_both_rows(tmp_path: Path) -> None:
    path = _file(tmp_path, "t.csv", "ID,Topic\n7,a\n8,b\n7,c\n,d\n")
    rows, warnings = _read(path, id_column="id")
    assert not any(row.problem for row in rows)
    assert warnings == [
        "row 3 repeats the id '7' of row 1.",
        "row 4 (line 5) has no 'id': a hash of its content stands in.",
    ]
    assert "required column 'key' is missing" in _refusal(path, id_column="key")


def test_many_warnings_of_a_kind_are_summed_up(tmp_path: Path) -> None:
    _, warnings = _read(_file(tmp_path, "t.csv", "id,t\n" + "7,a\n" * 500), id_column="id")
    assert len(warnings) == 21
    assert warnings[-1] == "and 479 more repeated ids."


@pytest.mark.parametrize("key", ["rows", "items", "jobs", "topics", None])
def test_json_rows_come_as_a_list_or_under_a_known_key(tmp_path: Path, key: str | None) -> None:
    records = [{"topic": "A", "n": 1, "tags": ["x"]}, {"topic": None, "n": None}]
    data = records if key is None else {"made": "today", key: records}
    table = open_table(_file(tmp_path, "t.json", json.dumps(data)), required_columns=["Topic"])
    assert table.columns == ["Topic", "n", "tags"]
    rows = list(table.rows)
    assert rows[0].values == {"Topic": "A", "n": 1, "tags": ["x"]}
    assert rows[1].values == {"Topic": "", "n": None}


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    text = _refusal(_file(tmp_path, "t.json", '[\n {"Topic": "A"},\n {"Topic": }\n]'))
    assert "is not valid JSON" in text
    assert "line 3, column 12" in text
    assert "without a list of rows; its keys: 'data'" in _refusal(
        _file(tmp_path, "u.json", '{"data": []}')
    )
    assert "no list of rows" in _refusal(_file(tmp_path, "v.json", '"text"'))


def test_bad_jsonl_lines_are_problem_rows_and_the_rest_goes_on(tmp_path: Path) -> None:
    content = '{"Topic": "A"}\n\n{"Topic": \n[1]\n{"Text": "x"}\n{"Topic": "B"}\n'
    rows, warnings = _read(_file(tmp_path, "t.jsonl", content), required_columns=["Topic"])
    assert [row.line for row in rows] == [1, 3, 4, 5, 6]
    assert "row 2 (line 3) is not valid JSON" in rows[1].problem
    assert "row 3 (line 4) is a list, not an object" in rows[2].problem
    assert "row 4 (line 5) has no 'Topic'" in rows[3].problem
    assert not rows[4].problem
    assert warnings == ["1 blank line was skipped, the first at line 2."]


def test_a_jsonl_that_is_a_json_list_is_refused_with_that_hint(tmp_path: Path) -> None:
    text = _refusal(_file(tmp_path, "t.jsonl", '[\n{"Topic": "A"},\n{"Topic": "B"}\n]'))
    assert "is not JSONL" in text
    assert "name it .json" in text


def test_parquet_gives_plain_values_and_refuses_what_is_not_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns: dict[str, list[Any]] = {
        "topic": ["A", None],
        "day": [date(2026, 1, 2), None],
        "x": [float("nan"), 1.5],
    }
    pq.write_table(pa.table(columns), path)
    table = open_table(path, required_columns=["Topic"])
    assert [row.values for row in table.rows] == [
        {"Topic": "A", "day": "2026-01-02", "x": None},
        {"Topic": "", "day": None, "x": 1.5},
    ]
    assert "not a readable Parquet file" in _refusal(_file(tmp_path, "u.parquet", "Topic\nA\n"))
    pq.write_table(pa.table({"Topic": pa.array([], pa.string())}), path)
    assert "has columns and no rows" in _refusal(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_memory_stays_flat_while_a_large_file_is_read(tmp_path: Path, kind: str) -> None:
    row = (
        "{n},some text that makes the row longer" if kind == "csv" else '{{"id": "{n}", "t": "x"}}'
    )
    path = tmp_path / f"t.{kind}"
    with path.open("w") as stream:
        if kind == "csv":
            stream.write("id,t\n")
        stream.writelines(row.format(n=n) + "\n" for n in range(60_000))
    tracemalloc.start()
    count = sum(1 for _ in open_table(path, id_column="id").rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60_000
    assert peak < 6_000_000


def test_the_content_hash_ignores_order_and_outer_spaces_and_nothing_else() -> None:
    first = canonical_hash({"a": "x\r\ny ", "b": 1})
    assert first == canonical_hash({"b": 1, "a": "x\ny"})
    assert canonical_hash({"a": "\u00e4"}) == canonical_hash({"a": "a\u0308"})
    assert (
        len({first, canonical_hash({"a": "x\ny", "b": "1"}), canonical_hash({"a": "X\ny", "b": 1})})
        == 3
    )
    assert len(first) == 32


def test_a_table_name_is_safe_in_keys_and_paths() -> None:
    assert table_name("../Köln rows (2).final") == "K-ln-rows-2-final"
    assert table_name("...") == "table"
