"""A batch row by row: each item with what its last step gave.

What belongs here: that stream, and the deliverables' rows made of it. What does not: files
(sinks/), sums (summary.py), statements (ledger/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from batch_pipeline.ledger.batches import Batch, Item, stream_items
from batch_pipeline.ledger.calls import find_results
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.reviews import Decision, decisions_of
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome

if TYPE_CHECKING:
    from batch_pipeline.workloads.base import Workload

_PAGE = 500


@dataclass(frozen=True, slots=True)
class RowResult:
    """An item of a batch, and the checked output where it succeeded."""

    item: Item
    output: Mapping[str, Any] | None


def stream_results(
    ledger: Ledger, batch: Batch, workload: Workload, *, with_outputs: bool = True
) -> Iterator[RowResult]:
    """All rows of a batch, in order, page by page so that memory stays flat.

    Args:
        ledger: the ledger.
        batch: the batch.
        workload: its workload.
        with_outputs: whether outputs are looked up; else all are None.
    """
    items = stream_items(ledger, batch.batch_id)
    while page := list(islice(items, _PAGE)):
        stored = outputs_of(ledger, batch, workload, page) if with_outputs else {}
        for item in page:
            yield RowResult(item, stored.get(item.ordinal))


def outputs_of(
    ledger: Ledger, batch: Batch, workload: Workload | None, page: Sequence[Item]
) -> Mapping[int, Mapping[str, Any]]:
    """The results of some rows by ordinal, for those that succeeded and have one.

    Args:
        ledger: the ledger.
        batch: their batch.
        workload: its workload; None where it is gone: then the last model's answers are meant.
        page: the rows.
    """
    step = getattr(workload, "result_step", None)
    return _outputs(ledger, page) if step is None else _documents(ledger, batch, page, step)


def deliverable_rows(
    ledger: Ledger, workload: Workload, batch: Batch, *, only_input: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows of a batch's deliverables.

    Beside the workload's own columns each has `item_id`, `outcome` and `error` (empty where all is
    well), and `decision`, `reviewer` and `reason` where a person has decided about it, for those
    workloads that name them among their columns.

    Args:
        ledger: the ledger.
        workload: the workload.
        batch: the batch.
        only_input: leave all outputs out.
    """
    decisions = decisions_of(ledger, batch.batch_id)
    for result in stream_results(ledger, batch, workload, with_outputs=not only_input):
        item = result.item
        yield {
            **decision_cells(workload, decisions.get(item.ordinal)),
            "item_id": item.item_id,
            "outcome": item.outcome.value,
            "error": item.error or "",
            **workload.deliverable_row(item.row, result.output),
        }


def decision_cells(workload: Workload, decision: Decision | None) -> dict[str, Any]:
    """What was decided about a row, for those workloads that name it among their columns."""
    if "decision" not in workload.deliverable_columns:
        return {}
    return {
        "decision": None if decision is None else decision.kind.value,
        "reviewer": None if decision is None else decision.reviewer,
        "reason": None if decision is None else decision.reason,
    }


def _outputs(ledger: Ledger, page: Sequence[Item]) -> dict[int, Any]:
    """The answers that rows ended with, by ordinal."""
    keys: dict[str, set[str]] = {}
    done = [item for item in page if item.outcome is Outcome.SUCCEEDED]
    for item in done:
        if item.cache_key and item.model:
            keys.setdefault(item.model, set()).add(item.cache_key)
    found: dict[tuple[str | None, str | None], Any] = {}
    with ledger.read() as connection:
        for model, wanted in keys.items():
            stored = find_results(connection, ledger.realm, sorted(wanted), [model])
            found.update({(key, model): result.output for key, result in stored.items()})
    by_item = {item.ordinal: found.get((item.cache_key, item.model)) for item in done}
    return {ordinal: output for ordinal, output in by_item.items() if output is not None}


def _documents(ledger: Ledger, batch: Batch, page: Sequence[Item], step: str) -> dict[int, Any]:
    """What a local step gave for rows that succeeded, by ordinal."""
    done = [item.ordinal for item in page if item.outcome is Outcome.SUCCEEDED]
    with ledger.read() as connection:
        kept = read_documents(connection, ledger.realm, batch.batch_id, done, steps=[step])
    return {ordinal: by_step[step].content for ordinal, by_step in kept.items()}
