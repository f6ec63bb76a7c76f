"""The deliverables of a batch of brands: every brand's files, and what a sheet is told.

What belongs here: which brands have files, and the cells of a write-back. What does not: a brand's
files (files.py), writing cells (sinks/sheets.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from batch_pipeline.ledger.batches import UNCHANGED, Batch, Item, stream_items
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.workloads.base import SHEET_OUTPUT, SHEET_STATUS
from batch_pipeline.workloads.brands.collected import RECORD, RecordDocument
from batch_pipeline.workloads.brands.files import remove_other_brands, write_brand_files
from batch_pipeline.workloads.brands.registry import Fact, decide, read_facts
from batch_pipeline.workloads.brands.steps import batch_folders
from batch_pipeline.workloads.results import RowResult

BRANDS_FOLDER = "brands"
"""Below a batch's folder: holds the brands' folders, whose names are anybody's."""

COMPLETED, FAILED = "Completed", "Failed"
ERROR_CHARS = 50

_OWN_STATUS = re.compile(r"Completed|Failed|Blocked|(?:Error|Blocked): .+")
_PLACE = re.compile(r"^[Rr]ow \d+(?: \([^)]*\))?: ")


def write_files(
    ledger: Ledger, batch: Batch, results: Iterable[RowResult], folder: Path
) -> list[Path]:
    """Write the files of every brand that succeeded, and remove those that hold no more.

    A pending brand keeps the files that it has: what it will come to is not known.

    Args:
        ledger: the ledger.
        batch: the batch.
        results: its rows, in order.
        folder: the batch's folder.

    Returns:
        The folder that holds the brands' folders, where there is any.
    """
    root = folder / BRANDS_FOLDER
    names = batch_folders(ledger, batch.batch_id)
    kept: set[str] = set()
    for result in results:
        item = result.item
        if item.outcome is Outcome.PENDING:
            kept.add(names[item.item_id])
        if result.output is None:
            continue
        document = RecordDocument.model_validate(result.output)
        root.mkdir(exist_ok=True, mode=0o700)
        record = document.record(batch, item, ledger.realm)
        write_brand_files(root / document.folder, record, bom=document.csv_bom)
        kept.add(document.folder)
    remove_other_brands(root, kept)
    return [root] if kept and root.is_dir() else []


def sheet_cells(
    ledger: Ledger, batch: Batch, items: Iterable[Item], folder: Path, roles: Collection[str]
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """What a sheet says of rows that have ended: status, and where a brand's files are.

    A row that was left out as unchanged says what its last result says.

    Args:
        ledger: the ledger.
        batch: the batch.
        items: some of its rows, or all; pending ones are left out.
        folder: the batch's folder.
        roles: what is written: the names of folders are not looked up for nothing.

    Yields:
        The row's number and its texts by role; a role that is absent leaves its cell alone.
    """
    names: dict[str, str] = {}
    last: dict[int, Fact] | None = None
    for item in items:
        match item.outcome:
            case Outcome.SUCCEEDED if SHEET_OUTPUT not in roles:
                yield item.number, {SHEET_STATUS: COMPLETED}
            case Outcome.SUCCEEDED:
                names = names or batch_folders(ledger, batch.batch_id)
                path = folder / BRANDS_FOLDER / names[item.item_id]
                yield item.number, {SHEET_STATUS: COMPLETED, SHEET_OUTPUT: str(path)}
            case Outcome.FAILED | Outcome.BLOCKED:
                yield (
                    item.number,
                    {SHEET_STATUS: status_text(item.outcome, item.error or ""), SHEET_OUTPUT: ""},
                )
            case Outcome.SKIPPED if item.error_kind == UNCHANGED:
                if last is None:
                    last = _last_facts(ledger, batch)
                if item.number in last:
                    yield item.number, _as_before(ledger, last[item.number], folder)


def status_text(outcome: Outcome, error: str) -> str:
    """How a brand ended, in the words of the sheet."""
    if outcome is Outcome.SUCCEEDED:
        return COMPLETED
    reason = " ".join(_PLACE.sub("", error).split())[:ERROR_CHARS].rstrip()
    if outcome is Outcome.BLOCKED:
        return f"Blocked: {reason}".rstrip(": ")
    return f"Error: {reason}" if reason else FAILED


def is_own_status(text: str) -> bool:
    """Whether a text is one that `status_text` makes."""
    return _OWN_STATUS.fullmatch(text) is not None


def _last_facts(ledger: Ledger, batch: Batch) -> dict[int, Fact]:
    """What is known of a batch's rows from other batches, by row number."""
    rows = ((item.number, item.row) for item in stream_items(ledger, batch.batch_id))
    plan = decide(rows, read_facts(ledger, apart_from=batch.batch_id))
    return {one.number: one.last for one in plan.decisions if one.last is not None}


def _as_before(ledger: Ledger, fact: Fact, folder: Path) -> Mapping[str, str]:
    """The cells of a row whose brand was done in another batch."""
    status = {SHEET_STATUS: status_text(fact.outcome, fact.error)}
    with ledger.read() as connection:
        kept = read_documents(
            connection, ledger.realm, fact.batch_id, [fact.ordinal], steps=[RECORD]
        ).get(fact.ordinal, {})
    if fact.outcome is not Outcome.SUCCEEDED or RECORD not in kept:
        return status
    name = RecordDocument.model_validate(kept[RECORD].content).folder
    path = folder.parent / fact.batch_id / BRANDS_FOLDER / name
    # Deliverables may have been written elsewhere: then the sheet knows better than we do.
    return {**status, SHEET_OUTPUT: str(path)} if path.is_dir() else status
