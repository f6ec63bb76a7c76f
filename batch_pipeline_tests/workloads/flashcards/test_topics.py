"""Topics of trees and tables: ids, filters, what is wrong with one."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.table import InputRow
from batch_pipeline.workloads.flashcards.topics import (
    INPUT_COLUMNS,
    TOPIC_PATH,
    kebab,
    open_topics,
    path_folder,
    topic_content,
    topic_of,
)
from batch_pipeline_tests.workloads.flashcards.cards import SAMPLES

ONE = {
    "topic_title": "Salting",
    "category_title": "Cybersecurity",
    "category_folder": "001_cybersecurity",
}


def rows(source: Path, **options: Any) -> list[InputRow]:
    return list(open_topics(source, options).rows)


def of_lines(folder: Path, *records: Any) -> list[InputRow]:
    path = folder / "topics.jsonl"
    path.write_text("".join(f"{json.dumps(one)}\n" for one in records), encoding="utf-8")
    return rows(path)


def test_a_jsonl_file_gives_flat_rows_with_the_path_as_id() -> None:
    found = rows(SAMPLES / "topics.jsonl")
    assert [one.problem for one in found] == [""] * 8
    assert list(found[0].values) == list(INPUT_COLUMNS)
    topic = topic_of(found[0].values)
    assert topic.path.endswith("/multi-factor-authentication/topic.json")
    assert topic.category_name == "cybersecurity" and topic.context.startswith("Multi-factor")
    told = topic_content(topic)
    assert told["topic"] == "Multi-Factor Authentication"
    assert "001_" not in json.dumps(told)


def test_a_tree_gives_the_same_ids_whichever_of_its_folders_is_named(tmp_path: Path) -> None:
    tree = shutil.copytree(SAMPLES / "tree", tmp_path / "anywhere")
    wanted = [one.values for one in rows(SAMPLES / "topics.jsonl") if one.number in (1, 6)]
    assert [one.values for one in rows(tree)] == wanted
    inner = tree / "001_cybersecurity" / "001_identity"
    assert [one.values for one in rows(inner)] == wanted[:1]
    assert [one.values for one in rows(next(inner.rglob("topic.json")))] == wanted[:1]


def test_a_table_with_short_names_gets_folders_and_paths() -> None:
    found = rows(SAMPLES / "topics.csv")
    assert [one.problem for one in found] == [""] * 3
    assert found[0].values[TOPIC_PATH] == (
        "cybersecurity/identity/authentication/password-salting/topic.json"
    )
    assert found[0].values["category_folder"] == "cybersecurity"


def test_compressed_files_and_further_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "topics.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({**ONE, "level": 3}).encode()))
    assert rows(path)[0].values["level"] == 3


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"category": "001_cybersecurity"}, 5),
        ({"category": "cybersecurity"}, 5),
        ({"category": "Cybersecurity"}, 5),
        ({"category": ["software", "cybersecurity"]}, 8),
        ({"domain": "Networks"}, 2),
        ({"category": "cybersecurity", "domain": "identity", "subdomain": "authorization"}, 1),
        ({}, 8),
    ],
)
def test_filters_take_folders_and_names(options: dict[str, Any], count: int) -> None:
    assert len(rows(SAMPLES / "topics.jsonl", **options)) == count


def placed(category: str, subdomain: str, **further: Any) -> dict[str, Any]:
    title = f"{category} {subdomain}"
    return {
        "topic_title": title, "category_folder": category, "subdomain_folder": subdomain, **further,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        # the fourth has a category without a number
        ({"category": "002_network"}, [1, 2, 4]),
        ({"category": "009_network"}, [3, 4]),
        ({"category": "network"}, [1, 2, 3, 4]),
        ({"category": "Network"}, [1, 2, 3, 4]),
        ({"category": "002_network", "subdomain": "003_fundamentals"}, [1]),
        ({"subdomain": ["001_fundamentals", "007_routing"]}, [2, 3]),
        ({"category": "007_network", "subdomain": "switching"}, [4]),
        # a name may begin with a number
        ({"subdomain": "2-factor authentication"}, [5]),
        ({"subdomain": "2-Factor-Authentication"}, [5]),
    ],
)
def test_a_folder_with_its_number_is_that_folder_only(
    tmp_path: Path, options: dict[str, Any], numbers: list[int]
) -> None:
    path = tmp_path / "topics.jsonl"
    records = [
        placed("002_network", "003_fundamentals", category_title="Network"),
        placed("002_network", "001_fundamentals", category_title="Network"),
        placed("009_network", "007_routing"),
        placed("network", "004_switching"),
        placed("001_identity", "001_2-factor-authentication"),
    ]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in records), encoding="utf-8")
    assert [one.number for one in rows(path, **options)] == numbers


def test_a_wrong_number_is_answered_with_the_folder_that_there_is(tmp_path: Path) -> None:
    path = tmp_path / "topics.jsonl"
    path.write_text(json.dumps(placed("002_network", "003_fundamentals")), encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        rows(path, category="009_network", subdomain="001_fundamentals")
    assert "passes --category 009_network --subdomain 001_fundamentals" in str(raised.value)
    assert "Did you mean --category 002_network?" in str(raised.value)
    assert "Did you mean --subdomain 003_fundamentals?" in str(raised.value)


def test_a_row_with_an_error_is_in_the_batch_unless_a_filter_is_known_to_leave_it_out(
    tmp_path: Path,
) -> None:
    path = tmp_path / "topics.jsonl"
    records = [
        placed("003_software", "001_testing"),
        placed("002_network", "003_fundamentals", topic_title=""),
        placed("003_software", "001_testing", topic_title=""),
        {"topic_title": ["a"], "category_title": "Network"},
        {"topic_title": ["a"], "category_title": "Software", "domain_title": "Other"},
        {"topic_title": "Nowhere"},
        {"topic_title": "Hidden", "category_folder": {"a": 1}},
    ]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in records), encoding="utf-8")
    found = rows(path, category="003_software")
    assert [(one.number, bool(one.problem)) for one in found] == [
        (1, False), (3, True), (5, True), (6, True), (7, True),
    ]  # fmt: skip


def test_a_filter_of_a_tree_works_as_of_a_file() -> None:
    assert len(rows(SAMPLES / "tree", category="002_software")) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"category": "cibersecurity"}, "Did you mean --category 001_cybersecurity"),
        ({"category": "software", "domain": "networks"}, "loosen one"),
        ({"category": " "}, "--category is empty"),
    ],
)
def test_options_that_leave_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        rows(SAMPLES / "topics.jsonl", **options)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({**ONE, "topic_title": " "}, "row 2 (line 2) has no topic_title. Name the topic."),
        ({"topic_title": "Salting"}, "row 2 (line 2) has no category."),
        ({**ONE, "topic_path": "../../etc/topic.json"}, "'..' cannot name a folder"),
        ({**ONE, "topic_path": "a/Batch.json/topic.json"}, "'Batch.json' cannot name a folder"),
        ({**ONE, "topic_path": "/etc/topic.json"}, "Write it relative"),
        ({**ONE, "topic_path": "a\\b"}, "Write it relative"),
        ({**ONE, "topic_path": "a/b:c/topic.json"}, "Rename it"),
        ({**ONE, "topic_path": "a/" + "b" * 256}, "too long"),
        ({**ONE, "topic_title": {"en": "Salting"}}, "nested value in 'topic_title'"),
        ({**ONE, "metadata": ["a"]}, "'metadata' that is no object"),
        ({**ONE, "topic_title": "x" * 501}, "501 characters"),
    ],
)
def test_what_is_wrong_with_a_topic_is_said_with_its_row(
    tmp_path: Path, record: dict[str, Any], said: str
) -> None:
    good, bad = of_lines(tmp_path, {**ONE, "topic_title": "Hashing"}, record)
    assert good.problem == ""
    assert said in bad.problem
    assert ".." not in str(bad.values[TOPIC_PATH])


def test_a_path_that_comes_twice_is_refused_since_its_files_would_be_overwritten(
    tmp_path: Path,
) -> None:
    found = of_lines(tmp_path, ONE, {**ONE, "topic_title": "Other"}, ONE)
    assert [bool(one.problem) for one in found] == [False, False, True]
    assert "has the path of row 1" in found[2].problem


def test_titles_that_differ_in_a_symbol_have_paths_of_their_own(tmp_path: Path) -> None:
    titles = ["C", "C++", "C#", "A*", "A", "@Size", "Size"]
    found = of_lines(tmp_path, *({**ONE, "topic_title": title} for title in titles))
    assert [one.problem for one in found] == [""] * len(titles)
    paths = [one.values[TOPIC_PATH] for one in found]
    assert paths[0] == "001_cybersecurity/c/topic.json"
    assert paths[1].startswith("001_cybersecurity/c-")
    # whatever else is in the table, and whatever the capitals
    assert of_lines(tmp_path, {**ONE, "topic_title": "c++"})[0].values[TOPIC_PATH] == paths[1]
    within = [{**ONE, "topic_title": "Loops", "domain_title": title} for title in ("C++", "C#")]
    assert [one.problem for one in of_lines(tmp_path, *within)] == ["", ""]
    assert [one.values["domain_title"] for one in rows(tmp_path / "topics.jsonl", domain="C#")] == [
        "C#"
    ]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Rule #1: Use a safe API", "rule-1-use-a-safe-api"),
        ("Identity & Access (IAM), R&D", "identity-access-iam-r-d"),
        ("TCP/IP - what's new? 50% more!", "tcp-ip-what-s-new-50-more"),
        ("Introspection + GraphiQL", "introspection-graphiql"),
        ("Node.js and `fs`", "node-js-and-fs"),
    ],
)
def test_a_title_of_words_and_marks_between_them_is_its_words(title: str, name: str) -> None:
    assert kebab(title) == name


def test_a_broken_file_of_a_tree_ends_its_own_row_only(tmp_path: Path) -> None:
    tree = shutil.copytree(SAMPLES / "tree", tmp_path / "tree")
    broken = tree / "001_cybersecurity" / "broken" / "topic.json"
    broken.parent.mkdir()
    broken.write_text('{"topic_title": ', encoding="utf-8")
    linked = tree / "001_cybersecurity" / "linked" / "topic.json"
    linked.parent.mkdir()
    linked.symlink_to(tmp_path / "secret.json")
    empty = tree / "001_cybersecurity" / "nameless" / "topic.json"
    empty.parent.mkdir()
    empty.write_text(json.dumps({**ONE, "topic_title": ""}), encoding="utf-8")
    problems = [one.problem for one in rows(tree)]
    assert [bool(problem) for problem in problems] == [False, True, True, True, False]
    assert "001_cybersecurity/broken/topic.json) is not valid JSON" in problems[1]
    assert "is a link to another file" in problems[2]
    assert "nameless/topic.json) has no topic_title" in problems[3]


def test_a_folder_or_table_without_topics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no topic\.json"):
        open_topics(tmp_path, {})
    with pytest.raises(UsageError, match="is not there"):
        open_topics(tmp_path / "nothing" / "topic.json", {})
    table = tmp_path / "other.csv"
    table.write_text("name,size\na,1\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no column 'topic_title'"):
        open_topics(table, {})


def test_names_of_any_script_become_folders() -> None:
    assert kebab("Größe & Maß: Übung") == "grosse-mass-ubung"
    assert kebab("رمزنگاری کلید عمومی") == "رمزنگاری-کلید-عمومی"
    assert len(kebab("ü" * 400).encode()) <= 240
    assert str(path_folder("a/b/topic.json")) == "a/b"
