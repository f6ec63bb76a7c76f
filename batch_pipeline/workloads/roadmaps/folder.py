"""Roadmap folders, `<name>/<name>.json` with `content/<slug>@<id>.md`, as tables of topics.

What belongs here: finding, checking and reading such folders. What does not: CSV input
(workload.py), geometry (layout.py).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_pipeline.errors import UsageError
from batch_pipeline.sources.objects import parse_json
from batch_pipeline.sources.table import InputRow, InputTable, TableSpec, checked_rows, table_name
from batch_pipeline.sources.text import inspect_text
from batch_pipeline.workloads.roadmaps.content import TopicContent, read_content
from batch_pipeline.workloads.roadmaps.layout import Layout, Node, Place
from batch_pipeline.workloads.text import one_line

INPUT_COLUMNS = ("Category", "Subcategory", "Topic", "Description", "Resources")
_TOPIC_TYPES = frozenset({"topic", "subtopic"})
_DRAWN_TYPES = _TOPIC_TYPES | {"section", "label"}
_MAX_CONTENT_BYTES = 4 << 20


def list_roadmaps(folders: Sequence[Path]) -> list[tuple[str, int | None]]:
    """Name and number of topics of each roadmap, by name; None where it cannot be read."""
    found: dict[str, int | None] = {}
    for path in _roadmap_folders(folders):
        try:
            found.setdefault(path.name, sum(1 for _ in open_roadmap(path).rows))
        except UsageError:
            found.setdefault(path.name, None)
    return sorted(found.items())


def find_roadmap(name: str, folders: Sequence[Path]) -> Path:
    """The folder of the roadmap `name`; `-` and `_`, and case, are the same.

    Raises:
        UsageError: when there is none, naming those that there are.
    """
    paths = {_canonical(path.name): path for path in reversed(_roadmap_folders(folders))}
    if path := paths.get(_canonical(name)):
        return path
    names = sorted(path.name for path in paths.values())
    near = difflib.get_close_matches(_canonical(name), list(paths), n=1)
    hint = f"Did you mean '{paths[near[0]].name}'? " if near else ""
    known = f"There are: {', '.join(names[:30])}." if names else "There is none yet."
    raise UsageError(
        f"There is no roadmap '{name}'. {known}",
        f"{hint}Put its folder, with {name}.json and content/ in it, into {folders[0]}.",
    )


def is_roadmap(path: Path) -> bool:
    """Whether a path is a roadmap folder, or the JSON file in one."""
    if path.is_dir():
        return _json_file(path) is not None
    return path.suffix.lower() == ".json" and (path.parent / "content").is_dir()


def open_roadmap(path: Path, name: str | None = None) -> InputTable:
    """Open a roadmap folder as a table of `INPUT_COLUMNS`, one row per topic in file order.

    Raises:
        UsageError: when its JSON is missing, broken or of another format.
    """
    json_path = _json_file(path) if path.is_dir() else path
    if json_path is None:
        raise UsageError(
            f"{path} is not a roadmap folder: it has no {path.name}.json.",
            "A roadmap folder holds <name>.json and content/<slug>@<id>.md.",
        )
    folder = json_path.parent
    drawing = _read_drawing(json_path)
    spec = TableSpec(name=table_name(name or folder.name), source=str(folder))
    warnings = list(drawing.warnings)
    return InputTable(
        spec.name,
        spec.source,
        INPUT_COLUMNS,
        checked_rows(_rows(folder, drawing, warnings), spec, warnings),
        warnings,
    )


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A roadmap's JSON, with each node either read or refused, in order."""

    nodes: Sequence[Node | str]
    layout: Layout
    warnings: Sequence[str]


def _roadmap_folders(folders: Sequence[Path]) -> list[Path]:
    existing = (folder for folder in folders if folder.is_dir())
    return [
        path
        for folder in existing
        for path in sorted(folder.iterdir())
        if path.is_dir() and is_roadmap(path)
    ]


def _canonical(name: str) -> str:
    return name.strip().casefold().replace("_", "-")


def _json_file(folder: Path) -> Path | None:
    path = folder / f"{folder.name}.json"
    if path.is_file():
        return path
    others = sorted(folder.glob("*.json"))
    return others[0] if len(others) == 1 else None


def _read_drawing(path: Path) -> _Drawing:
    with inspect_text(path, str(path)).open() as stream:
        data = parse_json(stream.read(), str(path))
    if isinstance(data, dict) and "mockup" in data:
        raise UsageError(
            f"{path} has the older mockup format of roadmaps, which has no nodes.",
            "Use the roadmap's newer JSON, with 'nodes' and 'edges', or give its topics as CSV.",
        )
    raw_nodes = data.get("nodes") if isinstance(data, dict) else None
    if not isinstance(raw_nodes, list):
        raise UsageError(
            f"{path} is not a roadmap: it has no list 'nodes'.",
            "Use a JSON with 'nodes' and 'edges'.",
        )
    nodes = [
        entry
        for number, raw in enumerate(raw_nodes, start=1)
        if (entry := _read_node(raw, number)) is not None
    ]
    edges: list[tuple[str, str]] = []
    unread = 0
    for edge in data.get("edges") or []:
        if (
            isinstance(edge, dict)
            and isinstance(edge.get("source"), str)
            and isinstance(edge.get("target"), str)
        ):
            edges.append((edge["source"], edge["target"]))
        else:
            unread += 1
    warnings = [f"{unread:,} edges without source and target were left out."] if unread else []
    good = [node for node in nodes if isinstance(node, Node)]
    if not any(node.type in _TOPIC_TYPES for node in good):
        raise UsageError(
            f"{path} has no topic among its {len(raw_nodes):,} nodes.",
            "Check that it is the whole file.",
        )
    return _Drawing(nodes, Layout(good, edges), warnings)


def _read_node(raw: Any, number: int) -> Node | str | None:
    """The node, what is wrong with it, or None for a kind that says nothing about topics."""
    if not isinstance(raw, dict):
        return f"node {number} of the roadmap is not an object. Mend or remove it."
    kind = raw.get("type")
    if not isinstance(kind, str):
        return f"node {number} of the roadmap has no type. Mend or remove it."
    if kind not in _DRAWN_TYPES:
        return None
    data = raw.get("data")
    label = data.get("label") if isinstance(data, dict) else None
    node_id, box = raw.get("id"), _box(raw)
    is_topic = kind in _TOPIC_TYPES
    if (
        isinstance(node_id, str)
        and node_id
        and box
        and isinstance(label or "", str)
        and (label or not is_topic)
    ):
        return Node(node_id, kind, one_line(label or ""), *box)
    if not is_topic:
        return None
    shown = f" ('{one_line(label)[:80]}')" if isinstance(label, str) and label else ""
    if not isinstance(node_id, str) or not node_id:
        wrong = "has no id, so its content cannot be found"
    elif box is None:
        wrong = "has no position in numbers, so its category cannot be found"
    else:
        wrong = "has no label"
    return f"node {number} of the roadmap{shown} {wrong}. Mend or remove it."


def _box(raw: dict[str, Any]) -> tuple[float, float, float, float] | None:
    position = raw.get("position")
    if not isinstance(position, dict):
        return None
    corner = [_number(position.get(axis)) for axis in ("x", "y")]
    if None in corner:
        return None
    # Editors store the size in one of three places; without any the node counts as a point.
    holders = [holder for key in ("measured", "style") if isinstance(holder := raw.get(key), dict)]
    size = [
        next(
            (
                value
                for holder in (raw, *holders)
                if (value := _number(holder.get(side))) is not None
            ),
            0.0,
        )
        for side in ("width", "height")
    ]
    return corner[0] or 0.0, corner[1] or 0.0, size[0], size[1]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _rows(folder: Path, drawing: _Drawing, warnings: list[str]) -> Iterator[InputRow]:
    contents = {
        path.stem.rpartition("@")[2]: path
        for path in sorted((folder / "content").glob("*.md"))
        if "@" in path.stem
    }
    without: list[str] = []
    homeless: list[str] = []
    repeated: list[str] = []
    seen: set[str] = set()
    number = 0
    for node in drawing.nodes:
        if isinstance(node, str):
            number += 1
            yield InputRow(number, None, _values(), f"row {number}: {node}")
            continue
        if not drawing.layout.is_row(node, contents):
            continue
        number += 1
        place = drawing.layout.place(node)
        if not place.category:
            homeless.append(node.label)
        if node.id in seen:
            repeated.append(node.label)
        seen.add(node.id)
        path = contents.get(node.id)
        if path is None:
            without.append(node.label)
            yield InputRow(number, None, _values(node, place))
            continue
        content = _read_topic(path)
        if isinstance(content, str):
            yield InputRow(
                number, None, _values(node, place), f"row {number} ('{node.label[:80]}'): {content}"
            )
        else:
            yield InputRow(number, None, _values(node, place, content))
    for labels, what in (
        (without, "no content file, so no description"),
        (homeless, "no category (outside every headed section, without a parent)"),
        (repeated, "the id of an earlier topic"),
    ):
        if labels:
            named = ", ".join(f"'{label[:60]}'" for label in labels[:5]) + (
                ", ..." if len(labels) > 5 else ""
            )
            topics = "topic has" if len(labels) == 1 else "topics have"
            warnings.append(f"{len(labels):,} {topics} {what}: {named}.")


def _read_topic(path: Path) -> TopicContent | str:
    """The content of a topic's file, or what is wrong with it."""
    try:
        if path.stat().st_size > _MAX_CONTENT_BYTES:
            return f"its file {path.name} has more than {_MAX_CONTENT_BYTES >> 20} MB. Shorten it."
        return read_content(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"its file {path.name} is not UTF-8 at byte {error.start:,}. Save it as UTF-8."
    except OSError as error:
        reason = error.strerror or error
        return f"its file {path.name} cannot be read: {reason}. Check its permissions."


def _values(
    node: Node | None = None, place: Place | None = None, content: TopicContent | None = None
) -> dict[str, str]:
    return {
        "Category": place.category if place else "",
        "Subcategory": place.subcategory if place else "",
        "Topic": node.label if node else "",
        "Description": content.description if content else "",
        "Resources": "|".join(content.resources) if content else "",
    }
