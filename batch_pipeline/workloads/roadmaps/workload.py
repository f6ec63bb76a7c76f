"""RoadmapsWorkload: topics in, each with a short summary and a difficulty out.

What belongs here: input rows, the step `enrich`, deliverables. What does not: roadmap folders
(folder.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from batch_pipeline.engine.step import Row, Step
from batch_pipeline.errors import UsageError
from batch_pipeline.settings import load_settings, project_root
from batch_pipeline.sources.files import open_table
from batch_pipeline.sources.table import InputRow, InputTable
from batch_pipeline.workloads.base import default_sample, no_options
from batch_pipeline.workloads.roadmaps.folder import (
    INPUT_COLUMNS,
    find_roadmap,
    is_roadmap,
    open_roadmap,
)
from batch_pipeline.workloads.roadmaps.model import TopicEnrichment
from batch_pipeline.workloads.text import cut_at_word

MAX_PACK = 20
DESCRIPTION_CHARS = 500
_ROADMAP_PREFIX = "roadmap:"


class RoadmapsWorkload:
    """What to do with the topics of a learning roadmap."""

    name = "roadmaps"
    title = "Roadmap topics: a short summary and a difficulty each"
    required_columns: Sequence[str] = ("Topic",)
    item_id_column: str | None = None
    deliverable_columns: Sequence[str] = (*INPUT_COLUMNS, "TLDR", "Challenge")
    search_columns: Sequence[str] = ("Category", "Subcategory", "Topic", "Description", "TLDR")

    def __init__(self, roadmap_folders: Sequence[Path] | None = None) -> None:
        """Set where `roadmap:NAME` looks; None: the installation's roadmaps, then the samples."""
        self._folders = roadmap_folders

    @property
    def roadmap_folders(self) -> Sequence[Path]:
        """Folders of roadmap folders, the first one winning."""
        if self._folders is not None:
            return self._folders
        return (load_settings().roadmaps, default_sample(self.name, project_root()))

    def open_input(self, source: str, options: Mapping[str, Any]) -> InputTable:
        """Open a table file, a roadmap folder, or `roadmap:NAME`.

        Args:
            source: path or `roadmap:NAME`.
            options: `name`, and for table files `encoding` and `delimiter`; what is absent or None
                is found out.

        Raises:
            UsageError: when the source as a whole cannot be used.
        """
        if source.startswith(_ROADMAP_PREFIX):
            return open_roadmap(
                find_roadmap(source[len(_ROADMAP_PREFIX) :], self.roadmap_folders),
                options.get("name"),
            )
        path = Path(source).expanduser()
        if path.is_dir() or is_roadmap(path):
            return open_roadmap(path, options.get("name"))
        table = open_table(
            path,
            name=options.get("name"),
            encoding=options.get("encoding"),
            delimiter=options.get("delimiter"),
            required_columns=self.required_columns,
            optional_columns=INPUT_COLUMNS,
        )
        others = [name for name in table.columns if name not in INPUT_COLUMNS]
        rows = _topic_rows(table.rows)
        return InputTable(table.name, table.source, [*INPUT_COLUMNS, *others], rows, table.warnings)

    def skip_reason(self, row: Row) -> str:
        """A row without topic and description has nothing to ask about."""
        return (
            ""
            if _text(row, "Topic") or _text(row, "Description")
            else "no topic and no description"
        )

    def steps(self, prompt: str, knobs: Mapping[str, Any]) -> Sequence[Step]:
        """The one step, `enrich`.

        Args:
            prompt: the system prompt.
            knobs: `pack` (topics per request, 1 to 20; default 20) and `timeout_s` (default 30).

        Raises:
            UsageError: for a `pack` outside 1 to 20.
        """
        no_options(self.name, knobs)
        pack = knobs.get("pack", MAX_PACK)
        if isinstance(pack, bool) or not isinstance(pack, int) or not 1 <= pack <= MAX_PACK:
            raise UsageError(
                f"pack is {pack!r}, but a roadmaps request carries 1 to {MAX_PACK} topics.",
                f"Set pack to a whole number from 1 to {MAX_PACK}.",
            )
        return (
            Step(
                name="enrich",
                system_prompt=prompt,
                output_model=TopicEnrichment,
                content=topic_content,
                items_name="topics",
                max_items=pack,
                max_input_tokens=12_000,
                output_tokens_per_item=120,
                output_tokens_base=200,
                timeout_s=float(knobs.get("timeout_s", 30.0)),
                temperature=0.0,
            ),
        )

    def deliverable_row(self, row: Row, output: Mapping[str, Any] | None) -> dict[str, Any]:
        """The input columns, then TLDR and Challenge, empty where the topic was not enriched."""
        answer = output or {}
        values = {name: _text(row, name) for name in INPUT_COLUMNS}
        return {**values, "TLDR": answer.get("tldr", ""), "Challenge": answer.get("challenge", "")}

    def deliverable_stem(self, batch_id: str, table_name: str, stamp: str) -> str:
        """`roadmap_<name with _>_<stamp>`, for example `roadmap_frontend_20261121_140000`."""
        return f"roadmap_{table_name.replace('-', '_')}_{stamp}"


def topic_content(row: Row) -> dict[str, Any]:
    """What the prompt uses of a row; a description is cut at 500 characters, between words."""
    return {
        "category": _text(row, "Category"),
        "subcategory": _text(row, "Subcategory"),
        "topic": _text(row, "Topic"),
        "description": cut_at_word(_text(row, "Description"), DESCRIPTION_CHARS),
    }


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


def _topic_rows(rows: Iterator[InputRow]) -> Iterator[InputRow]:
    for row in rows:
        values = {name: _cell(row.values.get(name)) for name in INPUT_COLUMNS}
        problem = row.problem or _nested(row)
        # Guessing a topic from its description would pay for an answer about something else.
        if not problem and values["Description"] and not values["Topic"]:
            problem = (
                f"{row.place} has a description but no topic. Name its topic, or remove the row."
            )
        yield replace(row, values={**row.values, **values}, problem=problem)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "|".join(str(entry) for entry in value)
    return str(value).strip()


def _nested(row: InputRow) -> str:
    for name in INPUT_COLUMNS:
        value = row.values.get(name)
        nested = isinstance(value, dict) or (isinstance(value, list) and name != "Resources")
        if nested:
            return f"{row.place}, column '{name}' holds a nested value. Write it as text."
    return ""
