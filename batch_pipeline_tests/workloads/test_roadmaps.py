"""The roadmaps workload: its input in every form, its step and its deliverables."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from batch_pipeline.engine.step import Step
from batch_pipeline.errors import UsageError
from batch_pipeline.workloads.base import InputTable, Workload, load_workload, workload_names
from batch_pipeline.workloads.roadmaps.content import read_content
from batch_pipeline.workloads.roadmaps.folder import list_roadmaps
from batch_pipeline.workloads.roadmaps.model import TopicEnrichment
from batch_pipeline.workloads.roadmaps.workload import RoadmapsWorkload, topic_content
from batch_pipeline.workloads.text import cut_at_word

PROJECT = Path(__file__).parents[2]
SAMPLES = PROJECT / "data" / "samples" / "roadmaps"
REAL = PROJECT.parent / "shared" / "data" / "roadmaps"
REAL_ROADMAPS = {"engineering-leadership": 542, "frontend-bookmarks": 692}
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the real roadmaps are not on this machine"
)


def _node(
    node_id: str, kind: str, label: str, x: int, y: int, w: int = 100, h: int = 40
) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": kind,
        "position": {"x": x, "y": y},
        "data": {"label": label},
        "width": w,
        "height": h,
    }


def _roadmap(
    folder: Path,
    nodes: list[Any],
    edges: list[Any] | None = None,
    content: dict[str, str] | None = None,
) -> Path:
    path = folder / "small"
    (path / "content").mkdir(parents=True)
    (path / "small.json").write_text(json.dumps({"nodes": nodes, "edges": edges or []}))
    for name, text in (content or {}).items():
        (path / "content" / name).write_text(text)
    return path


def _open(source: str | Path, **options: Any) -> InputTable:
    return RoadmapsWorkload([SAMPLES]).open_input(str(source), options)


def _places(path: Path) -> dict[str, tuple[str, str]]:
    rows = [row.values for row in _open(path).rows]
    return {row["Topic"]: (row["Category"], row["Subcategory"]) for row in rows}


def _unpack(name: str, folder: Path) -> Path:
    with tarfile.open(REAL / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


# input


def test_the_registry_loads_the_workload_and_helps_with_a_wrong_name() -> None:
    workload: Workload = RoadmapsWorkload()
    assert workload_names() == ["articles", "brands", "flashcards", "news", "roadmaps"]
    assert isinstance(load_workload("roadmaps"), type(workload))
    with pytest.raises(UsageError, match="Did you mean 'roadmaps'"):
        load_workload("roadmap")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_workload("batch_pipeline.nowhere:Nothing")


def test_a_table_needs_a_topic_and_the_other_columns_default_to_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("topic,Level\nGo,1\n")
    table = _open(path)
    assert table.columns == [
        "Category",
        "Subcategory",
        "Topic",
        "Description",
        "Resources",
        "Level",
    ]
    assert next(iter(table.rows)).values == {
        "Category": "",
        "Subcategory": "",
        "Topic": "Go",
        "Description": "",
        "Resources": "",
        "Level": "1",
    }
    path.write_text("Subject\nGo\n")
    with pytest.raises(UsageError, match="required column 'Topic' is missing"):
        _open(path)


def test_options_for_encoding_and_delimiter_reach_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("Topic;Description\nCafé;Größe\n".encode("cp1252"))
    table = _open(path, encoding="cp1252", delimiter=";", name="my batch")
    assert (table.name, next(iter(table.rows)).values["Topic"]) == ("my-batch", "Café")


def test_json_resources_may_be_a_list_and_other_nested_values_are_problems(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(
        json.dumps(
            [{"Topic": "A", "Resources": ["u1", "u2"]}, {"Topic": {"name": "B"}}, {"Topic": 5}]
        )
    )
    rows = list(_open(path).rows)
    assert rows[0].values["Resources"] == "u1|u2"
    assert "row 2, column 'Topic' holds a nested value" in rows[1].problem
    assert rows[2].values["Topic"] == "5"


def test_an_empty_row_is_skipped_and_a_description_without_topic_is_a_problem(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Topic,Description\n, \nA,\n,about something\n")
    rows = list(_open(path).rows)
    workload = RoadmapsWorkload()
    assert [workload.skip_reason(row.values) for row in rows] == [
        "no topic and no description",
        "",
        "",
    ]
    assert [row.problem.partition(":")[0].partition(".")[0] for row in rows] == [
        "",
        "",
        "row 3 (line 4) has a description but no topic",
    ]


# roadmap folders


def test_the_sample_roadmap_gets_its_places_from_positions() -> None:
    table = _open("roadmap:Data_Engineer")
    rows = [row.values for row in table.rows]
    assert (table.name, len(rows), table.warnings) == ("data-engineer", 22, [])
    assert all(row["Category"] and row["Subcategory"] and row["Description"] for row in rows)
    by_topic = {row["Topic"]: row for row in rows}
    assert by_topic["Event Time and Watermarks"]["Subcategory"] == "Streaming"
    iceberg = by_topic["Apache Iceberg"]
    assert (iceberg["Category"], iceberg["Subcategory"]) == ("Storage", "Table Formats")
    assert iceberg["Resources"].split("|") == [
        "https://iceberg.apache.org/docs/latest/",
        "https://iceberg.apache.org/spec/",
    ]
    assert "Visit" not in iceberg["Description"]
    assert "#" not in iceberg["Description"]


def test_a_roadmap_is_found_by_folder_by_json_and_by_name_and_listed() -> None:
    folder = SAMPLES / "data-engineer"
    counts = {len(list(_open(s).rows)) for s in (folder, folder / "data-engineer.json")}
    assert counts == {22}
    assert list_roadmaps([SAMPLES, SAMPLES / "nowhere"]) == [("data-engineer", 22)]
    with pytest.raises(
        UsageError, match=r"no roadmap 'data-engineers'.*data-engineer.*Did you mean"
    ):
        _open("roadmap:data-engineers")
    with pytest.raises(UsageError, match="no roadmap"):
        _open("roadmap:../roadmaps/data-engineer")


def test_a_folder_without_a_roadmap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a roadmap folder"):
        _open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"mockup": {"controls": {}}}', "older mockup format"),
        ('{"nodes": {}}', "no list 'nodes'"),
        ("[]", "no list 'nodes'"),
        ('{"nodes": []}', "has no topic"),
        ('{"nodes": [', "not valid JSON"),
    ],
)
def test_another_format_of_roadmap_is_refused_as_a_whole(
    tmp_path: Path, text: str, message: str
) -> None:
    path = _roadmap(tmp_path, [])
    (path / "small.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        _open(path)
    assert list_roadmaps([tmp_path]) == [("small", None)]


def test_content_is_matched_by_id_whatever_the_slug_says(tmp_path: Path) -> None:
    nodes = [_node("id-1", "subtopic", "Old Name", 0, 0), _node("id-2", "subtopic", "Lost", 0, 90)]
    content = {"quite@another-slug@id-1.md": "# X\n\nText.\n", "index.md": "nothing"}
    table = _open(_roadmap(tmp_path, nodes, content=content))
    assert [row.values["Description"] for row in table.rows] == ["Text.", ""]
    assert any("1 topic has no content file" in warning for warning in table.warnings)
    assert any("2 topics have no category" in warning for warning in table.warnings)


def test_places_come_from_the_smallest_headed_box_and_the_topic_above(tmp_path: Path) -> None:
    nodes = [
        _node("S", "section", "", 0, 0, 1000, 1000),
        _node("L", "label", "Big", 10, 10),
        _node("s", "section", "", 500, 500, 400, 400),
        _node("l", "label", "Small", 510, 510),
        _node("T1", "topic", "One", 10, 100),
        _node("a", "subtopic", "Under one", 200, 150),
        _node("T2", "topic", "Two", 10, 300),
        _node("b", "subtopic", "Under two", 200, 350),
        _node("T3", "topic", "Three", 510, 600),
        _node("c", "subtopic", "Inner", 600, 700),
        _node("d", "subtopic", "By edge", 200, 360),
        _node("e", "subtopic", "Outside by edge", 2000, 0),
        _node("f", "label", "Free label", 3000, 0),
        _node("g", "topic", "Under a label", 3000, 100),
        _node("h", "subtopic", "Homeless", 5000, 0),
    ]
    edges = [{"source": "T1", "target": "d"}, {"source": "T2", "target": "e"}, {"source": 1}, "x"]
    table = _open(_roadmap(tmp_path, nodes, edges))
    rows = [row.values for row in table.rows]
    assert {r["Topic"]: (r["Category"], r["Subcategory"]) for r in rows} == {
        "Under one": ("Big", "One"),
        "Under two": ("Big", "Two"),
        "Inner": ("Small", "Three"),
        "By edge": ("Big", "One"),
        "Outside by edge": ("Two", ""),
        "Under a label": ("Free label", ""),
        "Homeless": ("", ""),
    }
    assert any("2 edges without source and target" in warning for warning in table.warnings)


def test_a_cycle_of_edges_ends(tmp_path: Path) -> None:
    nodes = [_node("a", "subtopic", "A", 0, 0), _node("b", "subtopic", "B", 0, 90)]
    edges = [{"source": "a", "target": "b"}, {"source": "b", "target": "a"}]
    assert _places(_roadmap(tmp_path, nodes, edges)) == {"A": ("", ""), "B": ("", "")}


def test_a_topic_is_a_row_if_it_has_content_or_no_subtopics(tmp_path: Path) -> None:
    nodes = [
        _node("T1", "topic", "Heading only", 0, 0),
        _node("a", "subtopic", "Child", 0, 100),
        _node("T2", "topic", "With content", 500, 0),
        _node("b", "subtopic", "Other child", 500, 100),
        _node("T3", "topic", "Alone", 900, 0),
    ]
    edges = [{"source": "T1", "target": "a"}, {"source": "T2", "target": "b"}]
    path = _roadmap(tmp_path, nodes, edges, {"x@T2.md": "Text."})
    assert _places(path) == {
        "Child": ("Heading only", ""),
        "With content": ("With content", ""),
        "Other child": ("With content", ""),
        "Alone": ("", ""),
    }


def test_malformed_nodes_and_contents_are_problem_rows_and_good_ones_go_on(tmp_path: Path) -> None:
    nodes: list[Any] = [
        _node("a", "subtopic", "Good", 0, 0),
        "text",
        {"id": "x"},
        {**_node("b", "topic", "No place", 0, 0), "position": {"x": "left", "y": None}},
        {**_node("c", "topic", "No id", 0, 0), "id": 7},
        {**_node("d", "topic", "", 0, 0), "data": None},
        {"type": "button", "id": None},
        {"type": "label", "data": {"label": 5}},
        _node("e", "subtopic", "Bad bytes", 0, 50),
    ]
    path = _roadmap(tmp_path, nodes, content={"e@e.md": ""})
    (path / "content" / "e@e.md").write_bytes(b"caf\xe9")
    rows = list(_open(path).rows)
    problems = [row.problem for row in rows]
    assert problems[0] == ""
    for problem, part in zip(
        problems[1:],
        ["not an object", "has no type", "no position", "no id", "no label", "not UTF-8 at byte 3"],
        strict=True,
    ):
        assert part in problem
    assert [row.number for row in rows] == list(range(1, 8))


def test_the_text_of_a_topic_leaves_out_headings_and_links_only() -> None:
    content = read_content(
        "\ufeff# Topic\n\nFirst line\ngoes on [here](https://a.example).\n\n"
        "## More\n\n- a point\n\n"
        "Visit the following resources to learn more:\n\n"
        "- [@article@One [old]](https://a.example/x_(y))\n- [Two](https://b.example)\n"
        "- [@article@One again](https://b.example)\n"
    )
    assert content.description == "First line goes on [here](https://a.example).\n- a point"
    assert content.resources == ("https://a.example/x_(y)", "https://b.example")
    assert read_content("# Only a heading\n") == read_content("")


@needs_real
@pytest.mark.parametrize("name", list(REAL_ROADMAPS))
def test_a_real_roadmap_gives_the_published_rows(tmp_path: Path, name: str) -> None:
    table = _open(_unpack(name, tmp_path))
    rows = [row.values for row in table.rows]
    assert len(rows) == REAL_ROADMAPS[name]
    assert all(row["Category"] and row["Description"] for row in rows)
    with (REAL / "rows_all.csv").open(newline="", encoding="utf-8") as stream:
        published = Counter(_squeezed(row) for row in csv.DictReader(stream))
    same = (Counter(_squeezed(row) for row in rows) & published).total()
    assert same >= 0.99 * len(rows)


@needs_real
@pytest.mark.parametrize(
    ("name", "share"), [("engineering-leadership", 0.85), ("frontend-bookmarks", 0.35)]
)
def test_without_edges_positions_still_place_nearly_every_topic(
    tmp_path: Path, name: str, share: float
) -> None:
    folder = _unpack(name, tmp_path)
    drawn = Counter((row.values["Category"], row.values["Topic"]) for row in _open(folder).rows)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "edges": []}))
    rows = [row.values for row in _open(folder).rows]
    assert sum(1 for row in rows if row["Category"]) >= 0.94 * len(rows)
    # Boxes of these two drawings overlap (9 and 5 pairs), where no position can tell them apart.
    placed = Counter((row["Category"], row["Topic"]) for row in rows)
    assert (placed & drawn).total() >= share * drawn.total()


def _squeezed(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        " ".join(row[name].split()) for name in ("Category", "Subcategory", "Topic", "Description")
    )


# the step


def _step(**knobs: Any) -> Step:
    (step,) = RoadmapsWorkload().steps("prompt", knobs)
    return step


def test_the_step_packs_20_topics_and_refuses_more() -> None:
    step = _step()
    assert (step.name, step.items_name, step.max_items) == ("enrich", "topics", 20)
    assert (step.temperature, step.timeout_s) == (0.0, 30.0)
    assert _step(pack=1).max_items == 1
    for pack in (21, 0, "20", 2.5, True):
        with pytest.raises(UsageError, match="1 to 20 topics"):
            _step(pack=pack)


def test_the_prompt_gets_four_fields_and_a_cut_description() -> None:
    row = {
        "Topic": "Go",
        "Description": "word " * 200,
        "Resources": "https://x.example",
        "Level": "1",
    }
    content = topic_content(row)
    assert list(content) == ["category", "subcategory", "topic", "description"]
    assert len(content["description"]) == 499
    assert content["description"].endswith("word")
    message = json.loads(_step().user_message([content, content]))
    assert [topic["id"] for topic in message["topics"]] == ["0", "1"]


@given(text=st.text(max_size=80), limit=st.integers(1, 60))
def test_a_cut_is_short_enough_and_ends_with_a_whole_word(text: str, limit: int) -> None:
    cut = cut_at_word(text, limit)
    assert text.startswith(cut)
    assert len(cut) <= max(limit, 0)
    if len(text) <= limit:
        assert cut == text
    elif len(text[:limit].split()) > 1:
        assert text[len(cut) :][:1].isspace()
        assert cut == cut.rstrip()


def test_a_cut_keeps_the_last_word_that_fits_exactly() -> None:
    assert cut_at_word("one two three", 7) == "one two"
    assert cut_at_word("one two three", 8) == "one two"
    assert cut_at_word("one two three", 12) == "one two"
    assert cut_at_word("abcdefgh", 3) == "abc"


@pytest.mark.parametrize(
    "tldr",
    [
        "",
        "  ",
        "Ends with a stop.",
        "Is this right?",
        "a, b,",
        "two\nlines",
        "one two three four five six seven eight nine ten eleven twelve thirteen",
        5,
        None,
    ],
)
def test_a_tldr_that_breaks_a_rule_is_refused(tldr: Any) -> None:
    with pytest.raises(ValidationError):
        TopicEnrichment.model_validate({"tldr": tldr, "challenge": "practice"})


def test_a_good_answer_passes_and_others_do_not() -> None:
    twelve = "one two three four five six seven eight nine ten eleven twelve"
    assert TopicEnrichment(tldr=twelve, challenge="expert").tldr == twelve
    for bad in (
        {"tldr": "Fine"},
        {"tldr": "Fine", "challenge": "hard"},
        {"tldr": "Fine", "challenge": "expert", "extra": 1},
    ):
        with pytest.raises(ValidationError):
            TopicEnrichment.model_validate(bad)
    item = _step().request_schema["properties"]["results"]["items"]
    assert item["required"] == ["id", "tldr", "challenge"]
    assert item["properties"]["challenge"]["enum"] == ["practice", "expert"]


# deliverables


def test_a_deliverable_row_has_seven_columns_and_the_whole_description() -> None:
    workload = RoadmapsWorkload()
    row = {"Topic": "Go", "Description": "x" * 900, "Resources": "u"}
    delivered = workload.deliverable_row(row, {"tldr": "Fast", "challenge": "practice"})
    assert list(delivered) == list(workload.deliverable_columns)
    assert (len(delivered["Description"]), delivered["TLDR"]) == (900, "Fast")
    empty = workload.deliverable_row(row, None)
    assert (empty["TLDR"], empty["Challenge"]) == ("", "")
    assert workload.deliverable_stem("b", "data-engineer", "S") == "roadmap_data_engineer_S"


def test_the_sample_table_and_the_prompt_are_whole() -> None:
    rows = [row.values for row in _open(SAMPLES / "platform-engineer.csv").rows]
    assert len(rows) == 64
    assert all(all(row.values()) for row in rows)
    prompt = (PROJECT / "batch_pipeline" / "defs" / "roadmaps" / "prompt.md").read_text()
    assert all(word in prompt for word in ("tldr", "challenge", "practice", "expert", "12 words"))


def test_a_copied_roadmap_keeps_working_anywhere(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "data-engineer", tmp_path / "data-engineer")
    table = RoadmapsWorkload([tmp_path]).open_input("roadmap:data-engineer", {})
    assert len(list(table.rows)) == 22
