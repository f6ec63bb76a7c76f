"""A batch row by row: each item with what its last step gave.

What belongs here: that stream, and the deliverables' rows made of it. What does not: files
(sinks/), sums (summary.py), statements (ledger/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from batch_pipeline.ledger.batches import Batch, Item, stream_items
from batch_pipeline.ledger.calls import find_results
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
    ledger: Ledger, batch_id: str, *, with_outputs: bool = True
) -> Iterator[RowResult]:
    """All rows of a batch, in order, page by page so that memory stays flat.

    Args:
        ledger: the ledger.
        batch_id: the batch.
        with_outputs: whether outputs are looked up; else all are None.
    """
    items = stream_items(ledger, batch_id)
    while page := list(islice(items, _PAGE)):
        stored = _outputs(ledger, page) if with_outputs else {}
        for item in page:
            done = item.outcome is Outcome.SUCCEEDED
            yield RowResult(item, stored.get((item.cache_key, item.model)) if done else None)


def deliverable_rows(
    ledger: Ledger, workload: Workload, batch: Batch, *, only_input: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows of a batch's deliverables.

    Beside the workload's own columns each has `item_id`, `outcome` and `error` (empty where all is
    well), for those workloads that name them among their columns.

    Args:
        ledger: the ledger.
        workload: the workload.
        batch: the batch.
        only_input: leave all outputs out.
    """
    for result in stream_results(ledger, batch.batch_id, with_outputs=not only_input):
        item = result.item
        yield {
            "item_id": item.item_id,
            "outcome": item.outcome.value,
            "error": item.error or "",
            **workload.deliverable_row(item.row, result.output),
        }


def _outputs(ledger: Ledger, page: list[Item]) -> dict[tuple[str | None, str | None], Any]:
    keys: dict[str, set[str]] = {}
    for item in page:
        if item.outcome is Outcome.SUCCEEDED and item.cache_key and item.model:
            keys.setdefault(item.model, set()).add(item.cache_key)
    found: dict[tuple[str | None, str | None], Any] = {}
    with ledger.read() as connection:
        for model, wanted in keys.items():
            stored = find_results(connection, ledger.realm, sorted(wanted), [model])
            found.update({(key, model): result.output for key, result in stored.items()})
    return found
