"""Article jobs as tables: formats, spellings, what is wrong with a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.table import InputRow
from batch_pipeline.workloads.articles import jobs
from batch_pipeline.workloads.articles.jobs import INPUT_COLUMNS, JobFile, job_of, open_jobs

SAMPLES = Path(__file__).resolve().parents[3] / "data" / "samples" / "articles"
SCHEMA = Path(jobs.__file__).with_name("jobs.schema.json")
GOOD: dict[str, Any] = {"publisher": "x.se", "target": "https://y.se/a", "anchor": "länken"}


def read(folder: Path, name: str, text: str) -> tuple[list[InputRow], list[str]]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    table = open_jobs(path, {})
    return list(table.rows), table.warnings


def read_one(folder: Path, **given: Any) -> tuple[InputRow, list[str]]:
    rows, warnings = read(folder, "jobs.json", json.dumps({"jobs": [{**GOOD, **given}]}))
    return rows[0], warnings


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("publisher,target,anchor", "x.se,https://y.se/a,länken"),
        ("publisher,target,anchor,strategy", "x.se,https://y.se/a,länken,single_shot"),
        (
            "publisher,target,anchor,llm_provider,strategy,country",
            "x.se,https://y.se/a,länken,auto,single_shot,se",
        ),
        (
            "publisher,target,anchor,llm_provider,strategy,country,use_ahrefs,enable_llm_profiling",
            "x.se,https://y.se/a,länken,auto,single_shot,se,true,false",
        ),
        ("Publisher_Domain;TARGET_URL;Anchor_Text", "x.se;https://y.se/a;länken"),
    ],
)
def test_headers_of_every_length_and_the_spelling_of_reports_are_read(
    tmp_path: Path, header: str, row: str
) -> None:
    rows, _ = read(tmp_path, "jobs.csv", f"{header}\n{row}\n")
    assert [one.problem for one in rows] == [""]
    assert list(rows[0].values) == list(INPUT_COLUMNS)
    assert {name: rows[0].values[name] for name in GOOD} == GOOD


def test_what_is_not_given_stays_empty_and_has_its_default_as_a_job(tmp_path: Path) -> None:
    row, _ = read_one(tmp_path)
    assert [row.values[name] for name in INPUT_COLUMNS[3:]] == ["", "", "", "", ""]
    job = job_of(row.values)
    assert (job.llm_provider, job.strategy, job.country) == ("auto", "multi_stage", "se")
    assert (job.use_ahrefs, job.enable_llm_profiling) == (True, True)


def test_every_format_says_the_same(tmp_path: Path) -> None:
    record = {**GOOD, "strategy": "single_shot", "use_ahrefs": False, "client": "A"}
    (tmp_path / "a.json").write_text(json.dumps([record]), encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    pd.DataFrame([record]).to_parquet(tmp_path / "c.parquet")
    text = {**record, "use_ahrefs": "nej"}
    (tmp_path / "d.csv").write_text(",".join(text) + "\n" + ",".join(text.values()) + "\n")
    (tmp_path / "e.tsv").write_text("\t".join(text) + "\n" + "\t".join(text.values()) + "\n")
    found = [next(iter(open_jobs(path, {}).rows)) for path in sorted(tmp_path.iterdir())]
    assert len(found) == 5
    expected = {**dict.fromkeys(INPUT_COLUMNS, ""), **record}
    assert [dict(row.values) for row in found] == [expected] * 5
    assert list(found[0].values)[-1] == "client"


def test_the_samples_are_good_jobs_and_match_the_published_schema() -> None:
    for name, count in (("jobs.csv", 10), ("jobs.json", 3)):
        rows = list(open_jobs(SAMPLES / name, {}).rows)
        assert [row.problem for row in rows] == [""] * count
    document = json.loads((SAMPLES / "jobs.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_the_published_schema_is_that_of_the_model() -> None:
    expected = json.dumps(JobFile.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    "broken",
    [
        {"publisher": "x.se", "target": "y.se", "anchor": "a"},
        {"publisher": "x.se", "target": "https://y.se"},
        {**GOOD, "strategy": "triple"},
        {**GOOD, "use_ahrefs": "true"},
        {**GOOD, "country": "Sweden"},
        {**GOOD, "anchor": ""},
    ],
)
def test_the_published_schema_refuses_what_the_guide_refuses(broken: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate({"jobs": [GOOD]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"jobs": [broken]}, schema)


@pytest.mark.parametrize(
    ("given", "read_as"),
    [
        ("https://www.x.se/", "x.se"),
        ("HTTP://X.SE", "x.se"),
        ("www.x.se", "x.se"),
        ("www.se", "www.se"),
        ("blogg.x.se.", "blogg.x.se"),
        ("räksmörgås.se", "xn--rksmrgs-5wao1o.se"),
        ("a-b.co.uk", "a-b.co.uk"),
    ],
)
def test_a_publisher_is_read_as_its_domain(tmp_path: Path, given: str, read_as: str) -> None:
    row, warnings = read_one(tmp_path, publisher=given)
    assert (row.problem, row.values["publisher"], warnings) == ("", read_as, [])


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("publisher", "exa mple.com", "is not a domain"),
        ("publisher", "192.168.0.1", "IP address"),
        ("publisher", "[::1]", "IP address"),
        ("publisher", "localhost", "is not a domain"),
        ("publisher", "x.se/blogg", "Write x.se alone"),
        ("publisher", "x.se:8080", "more than a domain"),
        ("publisher", "ftp://x.se", "is not a domain"),
        ("publisher", "info@x.se", "has an @"),
        ("publisher", "-x.se", "is not a domain"),
        ("publisher", "a_b.se", "is not a domain"),
        ("publisher", "", "the publisher is missing"),
        ("publisher", ["x.se"], "a list instead of a text"),
        ("target", "", "the target is missing"),
        ("target", "y.se/a", "does not begin with http"),
        ("target", "ftp://y.se/a", "does not begin with http"),
        ("target", "javascript:alert(1)", "does not begin with http"),
        ("target", "https:///a", "names no host"),
        ("target", "https://y.se/a b", "space or control character"),
        ("target", "https://y.se/a https://y.se/b", "one address only"),
        ("target", "https://y.se/a(b", "end a Markdown link"),
        ("target", "https://y.se/<b>", "end a Markdown link"),
        ("target", "https://y.se/" + "a" * 2_000, "the limit is 2,000"),
        ("anchor", "  ", "the anchor is missing"),
        ("anchor", "a" * 201, "the limit is 200"),
        ("anchor", "läs [mer]", "square brackets"),
        ("anchor", "två\nrader", "several lines"),
        ("anchor", True, "true instead of a text"),
        ("llm_provider", "mistral", "There is no provider 'mistral'"),
        ("llm_provider", "anthropic/", "cannot be used"),
        ("llm_provider", "openai-compatible", "needs a model"),
        ("strategy", "two_stage", "Write multi_stage or single_shot"),
        ("country", "Sweden", "Did you mean 'se'?"),
        ("country", "swe", "Did you mean 'se'?"),
        ("country", "zz", "no ISO code"),
        ("use_ahrefs", "kanske", "neither true nor false"),
        ("enable_llm_profiling", 2, "neither true nor false"),
    ],
)
def test_a_bad_cell_is_named_with_its_value_and_the_next_step(
    tmp_path: Path, column: str, value: Any, said: str
) -> None:
    row, _ = read_one(tmp_path, **{column: value})
    assert row.problem.startswith("row 1: ")
    assert said in row.problem and column in row.problem


def test_all_that_is_wrong_with_a_row_is_said_at_once(tmp_path: Path) -> None:
    text = "publisher,target,anchor,strategy,country\nx,y,,z,q\ngood.se,https://y.se,ord,,\n"
    rows, _ = read(tmp_path, "jobs.csv", text)
    for wrong in (
        "publisher 'x'",
        "target 'y'",
        "anchor is missing",
        "strategy 'z'",
        "country 'q'",
    ):
        assert wrong in rows[0].problem
    assert rows[0].problem.startswith("row 1 (line 2): ")
    assert rows[1].problem == ""


def test_a_password_in_a_target_is_neither_shown_nor_kept(tmp_path: Path) -> None:
    row, _ = read_one(tmp_path, target="https://me:hunter2@y.se/a")
    assert "user name or password" in row.problem
    assert "hunter2" not in row.problem + str(dict(row.values))


@pytest.mark.parametrize(
    ("given", "read_as"),
    [
        ("AUTO", "auto"),
        ("gemini", "google"),
        ("Anthropic", "anthropic"),
        ("openrouter", "openrouter"),
        ("gemini/gemini-3.8-flash", "google/gemini-3.8-flash"),
        ("openrouter/google/gemini-3.8-flash", "openrouter/google/gemini-3.8-flash"),
    ],
)
def test_providers_and_models_are_read_as_routes_name_them(
    tmp_path: Path, given: str, read_as: str
) -> None:
    row, _ = read_one(tmp_path, llm_provider=given)
    assert (row.problem, row.values["llm_provider"]) == ("", read_as)


@pytest.mark.parametrize("yes", [True, 1, 1.0, "true", "JA", "yes", "1"])
@pytest.mark.parametrize("no", [False, 0, "false", "nej", "No", "0"])
def test_flags_are_read_in_swedish_and_english(tmp_path: Path, yes: Any, no: Any) -> None:
    row, _ = read_one(tmp_path, use_ahrefs=yes, enable_llm_profiling=no)
    assert row.problem == ""
    assert (row.values["use_ahrefs"], row.values["enable_llm_profiling"]) == (True, False)


def test_the_united_kingdom_has_its_iso_code_and_a_warning(tmp_path: Path) -> None:
    row, warnings = read_one(tmp_path, country="UK", strategy="Single-Shot")
    assert (row.values["country"], row.values["strategy"]) == ("gb", "single_shot")
    assert warnings == ["row 1: the country 'uk' is read as 'gb', its ISO code."]


def test_a_table_without_a_needed_column_is_refused_with_the_right_header(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lacks .*: 'target', 'anchor'; .*publisher,target"):
        read(tmp_path, "jobs.csv", "publisher,url\nx.se,https://y.se\n")


def test_the_real_offline_jobs_are_all_good(reference_data: Path) -> None:
    table = open_jobs(reference_data / "articles" / "jobs_offline_36.csv", {})
    rows = list(table.rows)
    assert len(rows) == 36 and not any(row.problem for row in rows) and not table.warnings
    assert {row.values["use_ahrefs"] for row in rows} == {False}
    assert {row.values["enable_llm_profiling"] for row in rows} == {True, False}
