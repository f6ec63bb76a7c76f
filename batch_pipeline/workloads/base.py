"""What every workload provides; component, CLI and reports know workloads only through this.

What belongs here: the Workload protocol and the registry of the project's own workloads. What does
not: any domain.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from batch_pipeline.engine.step import AnyStep, Row, Step
from batch_pipeline.errors import UsageError
from batch_pipeline.sinks.files import DEFAULT_FORMATS
from batch_pipeline.sources.table import InputRow, InputTable

if TYPE_CHECKING:
    from batch_pipeline.ledger.batches import Batch
    from batch_pipeline.ledger.store import Ledger

__all__ = [
    "AnyStep",
    "DeliversFiles",
    "InputRow",
    "InputTable",
    "Row",
    "Step",
    "Workload",
    "default_sample",
    "deliverable_formats",
    "load_workload",
    "workload_names",
]

# Imported when used: reading one workload must not pay for the others.
_OWN_WORKLOADS = {
    "articles": "batch_pipeline.workloads.articles.workload:ArticlesWorkload",
    "news": "batch_pipeline.workloads.news.workload:NewsWorkload",
    "roadmaps": "batch_pipeline.workloads.roadmaps.workload:RoadmapsWorkload",
}


class Workload(Protocol):
    """What to do with one kind of table.

    A workload may also have `deliverable_formats` (see below), `summarize` (summary.py),
    `deliver_files` (DeliversFiles), and `result_step`: the name of the local step whose documents
    are the rows' results; without it, the last model's answers are.
    """

    name: str
    title: str
    required_columns: Sequence[str]
    item_id_column: str | None  # None: the item id is a hash of the row's content

    def open_input(self, source: str, options: Mapping[str, Any]) -> InputTable:
        """Open `source` (a file path, or what the workload understands) for ingest.

        Raises:
            UsageError: when the source as a whole cannot be used.
        """
        ...

    def skip_reason(self, row: Row) -> str:
        """Why a row needs no call (nothing to ask about), or empty."""
        ...

    def steps(self, prompt: str, knobs: Mapping[str, Any]) -> Sequence[AnyStep]:
        """The step DAG, in order; at least one of them asks a model.

        Args:
            prompt: prompt.md.
            knobs: the operator's `pack` and `timeout_s`, where they are set; `folder`, where
                defs.yaml and what else the operator edits are; `options`, the workload's own.

        Raises:
            UsageError: a knob, an option or a file cannot be used.
        """
        ...

    @property
    def deliverable_columns(self) -> Sequence[str]:
        """Columns of the deliverables, in order."""
        ...

    def deliverable_row(self, row: Row, output: Mapping[str, Any] | None) -> dict[str, Any]:
        """One row of the deliverables: the input row and the last step's output.

        The columns `item_id`, `outcome` and `error` need not be given: where
        `deliverable_columns` names them, they are filled in (results.py).

        Args:
            row: the input row's values.
            output: what the last step gave, or None where the item has no result.
        """
        ...

    def deliverable_stem(self, batch_id: str, table_name: str, stamp: str) -> str:
        """File name without ending, for example `roadmap_frontend_20261121_140000`."""
        ...

    @property
    def search_columns(self) -> Sequence[str]:
        """Columns that the SQLite deliverable indexes for full-text search."""
        ...


def deliverable_formats(workload: Workload) -> Sequence[str]:
    """Formats of a workload's deliverables: its own choice, else those of every workload."""
    formats: Sequence[str] = getattr(workload, "deliverable_formats", DEFAULT_FORMATS)
    return formats


@runtime_checkable
class DeliversFiles(Protocol):
    """What a workload has besides `Workload` when it writes more files than the tables."""

    def deliver_files(self, ledger: Ledger, batch: Batch, folder: Path) -> list[Path]:
        """Write a batch's further files; those of earlier times that do not hold any more go.

        Args:
            ledger: the ledger.
            batch: the batch.
            folder: where to; it exists.

        Returns:
            The files to name in the report: not more than a handful.
        """
        ...


def no_options(name: str, knobs: Mapping[str, Any]) -> None:
    """For workloads that have no options of their own.

    Raises:
        UsageError: there are some.
    """
    if knobs.get("options"):
        raise UsageError(
            f"The workload {name} has no options of its own, but got: "
            f"{', '.join(knobs['options'])}.",
            "Leave --strategy, --no-ahrefs and --option out; in defs.yaml and in the launchpad, "
            "`options`.",
        )


def default_sample(workload: str, root: Path) -> Path:
    """The project's own small sample of a workload's input."""
    return root / "data" / "samples" / workload


def workload_names() -> list[str]:
    """Names of the project's own workloads."""
    return sorted(_OWN_WORKLOADS)


def load_workload(name: str) -> Workload:
    """One of the project's own workloads by name, or a user's by `package.module:Class`.

    Raises:
        UsageError: when there is none.
    """
    target = _OWN_WORKLOADS.get(name, name)
    module_name, _, class_name = target.partition(":")
    if not class_name:
        near = difflib.get_close_matches(name, workload_names(), n=1)
        hint = (
            f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(workload_names())}."
        )
        raise UsageError(
            f"There is no workload '{name}'.", f"{hint} A class of your own is named module:Class."
        )
    try:
        workload: Workload = getattr(import_module(module_name), class_name)()
    except (ModuleNotFoundError, AttributeError) as error:
        raise UsageError(
            f"The workload '{target}' cannot be loaded: {error}.", "Check its module and class."
        ) from error
    return workload
