"""What every workload provides; component, CLI and reports know workloads only through this.

What belongs here: the Workload protocol and the registry of the project's own workloads. What does
not: any domain.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from batch_pipeline.engine.step import AnyStep, Row, Step
from batch_pipeline.errors import UsageError
from batch_pipeline.sinks.files import DEFAULT_FORMATS
from batch_pipeline.sources.table import InputRow, InputTable

if TYPE_CHECKING:
    from batch_pipeline.ledger.batches import Batch, Item
    from batch_pipeline.ledger.store import Ledger

__all__ = [
    "AnyStep",
    "ChoosesRows",
    "DeliversFiles",
    "InputRow",
    "InputTable",
    "ReadsSheets",
    "Row",
    "SheetColumns",
    "Step",
    "Workload",
    "WritesBack",
    "default_sample",
    "deliverable_formats",
    "load_workload",
    "reading_options",
    "search_providers",
    "workload_names",
]

SHEET_STATUS, SHEET_OUTPUT = "status", "output"
"""Roles of the columns that are written back to a sheet."""

# Imported when used: reading one workload must not pay for the others.
_OWN_WORKLOADS = {
    "articles": "batch_pipeline.workloads.articles.workload:ArticlesWorkload",
    "brands": "batch_pipeline.workloads.brands.workload:BrandsWorkload",
    "flashcards": "batch_pipeline.workloads.flashcards.workload:FlashcardsWorkload",
    "news": "batch_pipeline.workloads.news.workload:NewsWorkload",
    "roadmaps": "batch_pipeline.workloads.roadmaps.workload:RoadmapsWorkload",
}


class Workload(Protocol):
    """What to do with one kind of table.

    A workload may also have `deliverable_formats`, `reading_options` and `search_providers` (see
    below), `summarize` (summary.py), `deliver_files` (DeliversFiles), `choose` (ChoosesRows),
    `open_sheet` (ReadsSheets), `sheet_columns`, `sheet_cells` and `own_status` (WritesBack), and
    `result_step`: the name of the local step whose documents are the rows' results; without it, the
    last model's answers are.
    """

    name: str
    title: str
    required_columns: Sequence[str]
    item_id_column: str | None  # None: the item id is a hash of the row's content

    def open_input(self, source: str, options: Mapping[str, Any]) -> InputTable:
        """Open `source` (a file path, or what the workload understands) for ingest.

        Args:
            source: what the user named.
            options: how to read it: `name`, `encoding`, `delimiter`, and those of
                `reading_options`; what is absent or None is found out.

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


def reading_options(workload: Workload) -> Sequence[str]:
    """Names of what a workload's `open_input` understands besides encoding and delimiter."""
    names: Sequence[str] = getattr(workload, "reading_options", ())
    return names


def search_providers(workload: Workload, options: Mapping[str, Any]) -> Sequence[str]:
    """Names of search providers whose keys must be there before a run of a workload starts.

    Args:
        workload: the workload; one without `search_providers` needs none.
        options: the workload's own options, as its steps get them.
    """
    needed = getattr(workload, "search_providers", None)
    names: Sequence[str] = () if needed is None else needed(options)
    return names


@runtime_checkable
class ChoosesRows(Protocol):
    """What a workload has besides `Workload` when rows may need no work for what came before."""

    def choose(
        self, table: InputTable, ledger: Ledger, batch_id: str, forced: bool
    ) -> Iterator[tuple[InputRow, str]]:
        """Give each row of a table, in order, with the reason why it needs no work, or empty.

        Rows with a reason are ingested as `skipped`; `--force` makes them pending again.

        Args:
            table: the rows; consumed.
            ledger: what is known.
            batch_id: the batch that they are to be; it does not count itself.
            forced: every row is to be done again: none has a reason.
        """
        ...


@runtime_checkable
class ReadsSheets(Protocol):
    """What a workload has besides `Workload` when it takes worksheets of Google Sheets."""

    def open_sheet(self, table: InputTable, options: Mapping[str, Any]) -> InputTable:
        """Make the workload's table of a worksheet's.

        Args:
            table: the worksheet; its rows have the numbers that they have there, which the rows of
                the result keep.
            options: see `Workload.open_input`.

        Raises:
            UsageError: when the worksheet as a whole cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class SheetColumns:
    """Columns of a worksheet that write-back goes by, by their headers.

    Attributes:
        key: the columns that say which row is which, wherever it is moved.
        status: where it is written how a row ended; empty makes a new column of it.
        output: where it is written what came of it; likewise.
    """

    key: tuple[str, ...]
    status: str = ""
    output: str = ""


@runtime_checkable
class WritesBack(Protocol):
    """What a workload has besides ReadsSheets when it says in the sheet what rows came to."""

    def sheet_columns(self, headers: Sequence[str], source: str) -> SheetColumns:
        """Choose the columns, when a worksheet is ingested.

        Args:
            headers: of the worksheet, in order.
            source: what the user named, for messages.

        Raises:
            UsageError: when rows cannot be told apart by any column.
        """
        ...

    def sheet_cells(
        self,
        ledger: Ledger,
        batch: Batch,
        items: Iterable[Item],
        folder: Path,
        roles: Collection[str],
    ) -> Iterator[tuple[int, Mapping[str, str]]]:
        """Say what stands beside each row that has ended, or was skipped as unchanged.

        Of a row that ended in several batches of one worksheet, the newest batch is asked.

        Args:
            ledger: the ledger.
            batch: the batch.
            items: some of its rows.
            folder: where its deliverables go.
            roles: what is written; other texts need not be made.

        Returns:
            The row's number, and its text by role: SHEET_STATUS, SHEET_OUTPUT.
        """
        ...

    def own_status(self, text: str) -> bool:
        """Whether a status is in the words of `sheet_cells`, whatever row it stands beside.

        Of rows that are asked anew, such a status is taken back; other texts are left.
        """
        ...


def no_packs(knobs: Mapping[str, Any], why: str) -> None:
    """For workloads that ask about one row at a time.

    Args:
        knobs: the run's.
        why: that they do, as in `articles are written one by one`.

    Raises:
        UsageError: `pack` is set.
    """
    if knobs.get("pack", 1) != 1:
        raise UsageError(f"pack is {knobs['pack']!r}, but {why}.", "Leave pack out.")


def no_options(name: str, knobs: Mapping[str, Any]) -> None:
    """For workloads that have no options of their own.

    Raises:
        UsageError: there are some.
    """
    if knobs.get("options"):
        raise UsageError(
            f"The workload {name} has no options of its own, but got: "
            f"{', '.join(knobs['options'])}.",
            "Leave out --option and what is for other workloads, such as --mode or --strategy; in "
            "defs.yaml and in the launchpad, `options`.",
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
