"""What a batch's worksheet says of its rows: kept equal to the ledger while it runs, and after.

What belongs here: what a batch remembers of its worksheet, and what its rows should say there. What
does not: calls, differences and when to write (sinks/), the texts themselves (the workloads).

A run writes the column of the status, the report also that of the outputs: it is what writes the
files that are named there, so that no cell names a file that is not there yet.

Cells follow from the ledger alone, so that no kill leaves one wrong for good. The newest batch of a
worksheet in which a row has ended says what stands beside it. A row without one is left as it is,
but for a status in our own words that was said of it before and is not so any more.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from batch_pipeline.errors import BatchPipelineError, UsageError
from batch_pipeline.google_sheets.access import SheetAddress, resolve_sheets_access
from batch_pipeline.google_sheets.client import Sheets
from batch_pipeline.google_sheets.layout import same_name
from batch_pipeline.ledger.batches import (
    TRIAL,
    Batch,
    Item,
    ended_once,
    find_chunks,
    find_ended,
    list_batches,
    read_items,
    set_options,
    stream_items,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.sinks.sheet_plan import Desired, Key, TakeBack, Texts, key_of
from batch_pipeline.sinks.sheets import (
    ROWS_PER_WRITE,
    SheetFollower,
    SheetTarget,
    SheetThread,
    WriteCounts,
)
from batch_pipeline.sources.sheets import SheetCells
from batch_pipeline.workloads.base import SHEET_OUTPUT, SHEET_STATUS, Workload, WritesBack
from batch_pipeline.workloads.inputs import WRITE_BACK, SimulatorUrl

SHEET = "sheet"
"""Key below which a batch's options keep the worksheet that it was read from."""

NEW_HEADERS: Mapping[str, str] = {SHEET_STATUS: "Status", SHEET_OUTPUT: "Output Path"}
"""Headers of columns that a worksheet does not have yet, by role."""

_PAGE = 500
_RECONCILE_S = 90.0
_SHOWN_GONE = 10


@dataclass(frozen=True, slots=True)
class SheetOrigin:
    """The worksheet that a batch was read from.

    Attributes:
        spreadsheet_id: the spreadsheet's.
        sheet_id: the worksheet's number, which a new name does not change.
        title: the worksheet's name when it was read.
        write_back: whether anything is written to it.
        key_columns: headers of the columns by which rows are found again.
        columns: headers of the columns that are written, by role.
        keys: what stood in the key columns, by row number.
    """

    spreadsheet_id: str
    sheet_id: int
    title: str
    write_back: bool = False
    key_columns: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=lambda: NEW_HEADERS)
    keys: Mapping[int, Key] = field(default_factory=dict)

    @property
    def address(self) -> SheetAddress:
        """Where it is."""
        return SheetAddress(self.spreadsheet_id, self.title)

    @property
    def place(self) -> tuple[str, int]:
        """What tells it from every other worksheet."""
        return self.spreadsheet_id, self.sheet_id

    @property
    def target(self) -> SheetTarget:
        """Where rows are written back to."""
        return SheetTarget(self.address, self.keys, self.key_columns, sheet_id=self.sheet_id)

    def to_options(self) -> dict[str, Any]:
        """As a batch's options keep it."""
        return {
            "spreadsheet_id": self.spreadsheet_id,
            "sheet_id": self.sheet_id,
            "title": self.title,
            WRITE_BACK: self.write_back,
            "key_columns": list(self.key_columns),
            "columns": dict(self.columns),
            "keys": [[number, *key] for number, key in self.keys.items()],
        }

    @classmethod
    def of(cls, batch: Batch) -> SheetOrigin | None:
        """A batch's; None where it was read from something else."""
        kept = batch.options.get(SHEET)
        if kept is None:
            return None
        return cls(
            kept["spreadsheet_id"],
            kept["sheet_id"],
            kept["title"],
            kept[WRITE_BACK],
            tuple(kept["key_columns"]),
            kept["columns"],
            {number: tuple(key) for number, *key in kept["keys"]},
        )


def sheet_origin(workload: Workload, cells: SheetCells, reading: Mapping[str, Any]) -> SheetOrigin:
    """What a batch is to remember of the worksheet that it is read from.

    Raises:
        UsageError: `write_back` is neither true nor false, or rows cannot be found again.
    """
    wanted = reading.get(WRITE_BACK, True)
    if not isinstance(wanted, bool):
        raise UsageError(f"{WRITE_BACK} is {wanted!r}.", "Write true or false.")
    found = cells.worksheet
    origin = SheetOrigin(cells.address.spreadsheet_id, found.sheet_id, found.title)
    if not isinstance(workload, WritesBack):
        return origin
    columns = workload.sheet_columns(cells.table().columns, str(cells.address))
    header = [same_name(text) for text in cells.grid[0]]
    places = {name: at for at, name in reversed([*enumerate(header)]) if name}
    if nameless := [name for name in columns.key if same_name(name) not in places]:
        if not wanted:
            return origin
        raise UsageError(
            f"{cells.address}: {nameless[0]} has no header, and rows are found again by it.",
            f"Write a header above it, or leave the sheet alone ({WRITE_BACK}: false).",
        )
    written = {
        SHEET_STATUS: columns.status or NEW_HEADERS[SHEET_STATUS],
        SHEET_OUTPUT: columns.output or NEW_HEADERS[SHEET_OUTPUT],
    }
    own = {same_name(name) for name in columns.key}
    if both := [name for name in written.values() if same_name(name) in own]:
        if not wanted:
            return origin
        raise UsageError(
            f"{cells.address}: '{both[0]}' would be written, and rows are found again by it.",
            "Give the columns headers that say which is which, or leave the sheet alone "
            f"({WRITE_BACK}: false).",
        )
    at = [places[same_name(name)] for name in columns.key]
    keys = (
        (number, key_of([row[place] for place in at]))
        for number, row in enumerate(cells.grid[1:], start=2)
    )
    # Also where nothing is to be written now: a later run may want it.
    return replace(
        origin,
        write_back=wanted,
        key_columns=columns.key,
        columns=written,
        keys={number: key for number, key in keys if any(key)},
    )


def take_up_sheet(ledger: Ledger, batch: Batch, origin: SheetOrigin) -> Batch:
    """A batch that was ingested before, named by its worksheet again.

    Raises:
        UsageError: it was read from something else: what comes of it would be written there.
    """
    own = SheetOrigin.of(batch)
    if own is None or own.place != origin.place:
        raise UsageError(
            f"Batch {batch.batch_id!r} has the same rows, but was read from {batch.source}, not "
            f"from {origin.address}.",
            "Choose another --batch name, or leave it out: one is made for each worksheet.",
        )
    return set_write_back(ledger, batch, origin.write_back)


def set_write_back(ledger: Ledger, batch: Batch, wanted: bool) -> Batch:
    """Let later runs of a batch write to its worksheet, or not.

    Raises:
        UsageError: there is nothing that could be written to.
    """
    kept = batch.options.get(SHEET)
    if wanted and not (kept and kept["key_columns"]):
        raise UsageError(
            f"Nothing can be written back for batch {batch.batch_id!r}, read from {batch.source}.",
            "Name the worksheet with --input and another --batch.",
        )
    if kept is None or kept[WRITE_BACK] == wanted:
        return batch
    options = {**batch.options, SHEET: {**kept, WRITE_BACK: wanted}}
    set_options(ledger, batch.batch_id, options)
    return replace(batch, options=options)


# ---- what rows should say ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sibling:
    """Another batch of the same worksheet."""

    batch: Batch
    origin: SheetOrigin
    newer: bool


@dataclass(slots=True)
class _Noted:
    """What is found out of a batch's rows while they stream by.

    Attributes:
        pending: numbers of rows that have not ended.
        elsewhere: rows for which another batch speaks, by that batch: its row, and the number that
            the row has here.
    """

    pending: set[int] = field(default_factory=set)
    elsewhere: dict[str, list[tuple[Item, int]]] = field(default_factory=dict)


class _Cells:
    """What the rows of a batch should say in its worksheet.

    Args:
        workload: says it.
        batch: the batch.
        origin: its worksheet.
        folder: where its deliverables go.
        roles: columns that are written.
    """

    def __init__(
        self,
        workload: WritesBack,
        batch: Batch,
        origin: SheetOrigin,
        folder: Path,
        roles: Sequence[str],
    ) -> None:
        self._workload = workload
        self._batch = batch
        self._origin = origin
        self._headers = {role: origin.columns[role] for role in roles}
        self._folder = folder
        self._siblings: dict[str, _Sibling] | None = None

    def of_all(self, ledger: Ledger) -> Desired:
        """For every row; those of which there is nothing to say have no texts."""
        self._siblings = _find_siblings(ledger, self._batch, self._origin)
        noted = _Noted()
        said = self._said(ledger, stream_items(ledger, self._batch.batch_id), noted)
        waiting = noted.pending - said.keys()
        back = {self._headers[SHEET_STATUS]: TakeBack(self._workload.own_status)}
        stale = self._spoken_of(ledger, waiting, self._siblings) if waiting else set()
        return {**{number: back if number in stale else {} for number in waiting}, **said}

    def of_chunk(self, ledger: Ledger, chunk_key: str) -> Desired:
        """For the rows of a chunk that have ended; skipped ones had before the run began."""
        if self._siblings is None:
            self._siblings = _find_siblings(ledger, self._batch, self._origin)
        found: list[Item] = []
        with ledger.read() as connection:
            for chunk in find_chunks(connection, ledger.realm, [chunk_key]):
                found += read_items(
                    connection,
                    ledger.realm,
                    chunk.batch_id,
                    chunk.first_ordinal,
                    chunk.row_count,
                )
        before = (Outcome.SKIPPED, Outcome.PENDING)
        return self._said(ledger, (one for one in found if one.outcome not in before), _Noted())

    def _said(self, ledger: Ledger, items: Iterable[Item], noted: _Noted) -> dict[int, Texts]:
        said = {
            number: self._texts(texts)
            for number, texts in self._workload.sheet_cells(
                ledger, self._batch, self._noting(ledger, items, noted), self._folder, self._headers
            )
        }
        for batch_id, rows in noted.elsewhere.items():
            batch = (self._siblings or {})[batch_id].batch
            numbers = {item.number: number for item, number in rows}
            folder = self._folder.parent / batch_id
            for number, texts in self._workload.sheet_cells(
                ledger, batch, (item for item, _ in rows), folder, self._headers
            ):
                said[numbers[number]] = self._texts(_in_place(texts))
        return said

    def _texts(self, texts: Mapping[str, str]) -> Texts:
        return {self._headers[role]: text for role, text in texts.items() if role in self._headers}

    def _noting(self, ledger: Ledger, items: Iterable[Item], noted: _Noted) -> Iterator[Item]:
        rows = iter(items)
        while page := list(islice(rows, _PAGE)):
            noted.pending.update(one.number for one in page if one.outcome is Outcome.PENDING)
            for item, batch_id, there in self._elsewhere(ledger, page):
                noted.elsewhere.setdefault(batch_id, []).append((there, item.number))
            yield from page

    def _elsewhere(self, ledger: Ledger, page: Sequence[Item]) -> Iterator[tuple[Item, str, Item]]:
        """Of some rows those for which another batch speaks, its name, and the row there.

        A newer batch does where the same row has ended there. For a row that is pending here, an
        older one does as well, unless the row is asked anew here since.
        """
        siblings = self._siblings or {}
        overruled = any(one.newer for one in siblings.values())
        rows = {one.item_id: one for one in page if overruled or one.outcome is Outcome.PENDING}
        if not siblings or not rows:
            return
        with ledger.read() as connection:
            found = find_ended(connection, ledger.realm, [*siblings], [*rows])
        order = {batch_id: place for place, batch_id in enumerate(siblings)}
        newest: dict[str, tuple[str, float, Item]] = {}
        for one in sorted(found, key=lambda one: order[one[0]]):
            if one[2].row == rows[one[2].item_id].row:
                newest[one[2].item_id] = one
        for item_id, (batch_id, ended_at, there) in newest.items():
            item = rows[item_id]
            open_here = item.outcome is Outcome.PENDING and ended_at > item.fresh_after
            if siblings[batch_id].newer or open_here:
                yield item, batch_id, there

    def _spoken_of(
        self, ledger: Ledger, numbers: set[int], siblings: Mapping[str, _Sibling]
    ) -> set[int]:
        """Of these rows those of which the worksheet was told something before.

        Here, or in another batch: of the same key, or of one that the worksheet has no more, where
        the row stands at that one's place or has its first column.
        """
        with ledger.read() as connection:
            ended = ended_once(connection, ledger.realm, [self._batch.batch_id, *siblings])
        keys = self._origin.keys
        here = set(keys.values())
        found = numbers & ended[self._batch.batch_id]
        for batch_id, sibling in siblings.items():
            theirs = sibling.origin.keys
            told = {number: theirs[number] for number in ended[batch_id] if number in theirs}
            there, told_keys = set(theirs.values()), set(told.values())
            lost = {number: key[0] for number, key in told.items() if key not in here}
            names = {name for name in lost.values() if name}
            for number in numbers - found:
                key = keys.get(number, ("",))
                changed = key not in there and (number in lost or key[0] in names)
                if key in told_keys or changed:
                    found.add(number)
        return found


def _find_siblings(ledger: Ledger, batch: Batch, origin: SheetOrigin) -> dict[str, _Sibling]:
    """Other batches that are written back to the same worksheet, oldest first."""
    with ledger.read() as connection:
        others = list_batches(connection, ledger.realm, batch.workload)
    own = (batch.created_at, batch.batch_id)
    found: dict[str, _Sibling] = {}
    for other in sorted(others, key=lambda one: (one.created_at, one.batch_id)):
        theirs = SheetOrigin.of(other)
        if theirs is None or not theirs.write_back or theirs.place != origin.place:
            continue
        if other.launch != TRIAL and other.batch_id != batch.batch_id:
            newer = (other.created_at, other.batch_id) > own
            found[other.batch_id] = _Sibling(other, theirs, newer)
    return found


def _in_place(texts: Mapping[str, str]) -> Mapping[str, str]:
    """Texts of another batch: deliverables written elsewhere are better known to the sheet."""
    output = texts.get(SHEET_OUTPUT, "")
    if not output or Path(output).exists():
        return texts
    return {role: text for role, text in texts.items() if role != SHEET_OUTPUT}


def _writing(batch: Batch, workload: Workload) -> tuple[SheetOrigin, WritesBack] | None:
    """The worksheet that a batch is written back to; None where it is not."""
    origin = SheetOrigin.of(batch)
    if origin is None or not origin.write_back or not isinstance(workload, WritesBack):
        return None
    return origin, workload


# ---- beside a run --------------------------------------------------------------------------------


class SheetFollowing:
    """Keeps a batch's worksheet up with a run; a context manager around it.

    Nothing happens where the batch is not written back. Trouble with the worksheet is no trouble
    for the run: `warnings` tell of it afterwards.

    Args:
        open_ledger: opens the ledger, in the batch's realm.
        workload: the batch's.
        batch: the batch.
        folder: where its deliverables go.
        simulator: see inputs.py.
        most_rows: rows that are written at once.
    """

    def __init__(
        self,
        open_ledger: Callable[[], Ledger],
        workload: Workload,
        batch: Batch,
        folder: Path,
        simulator: SimulatorUrl,
        *,
        most_rows: int = ROWS_PER_WRITE,
    ) -> None:
        self.warnings: list[str] = []
        self._thread: SheetThread | None = None
        self._cells: _Cells | None = None
        self._problem: Exception | None = None
        writing = _writing(batch, workload)
        if writing is None:
            return
        self._origin, own = writing
        try:
            access = resolve_sheets_access(os.environ, simulator())
        except BatchPipelineError as error:
            self._problem = error
            return
        self._cells = _Cells(own, batch, self._origin, folder, [SHEET_STATUS])
        self._thread = SheetThread(
            open_ledger,
            access,
            self._origin.target,
            self._cells.of_all,
            most_rows=most_rows,
            # Fewer rows than that wait for the end: it is in sight, and requests are few.
            most_s=math.inf,
        )

    def __enter__(self) -> SheetFollowing:
        if self._thread is not None:
            self._thread.__enter__()
        return self

    def chunk_done(self, ledger: Ledger, chunk_key: str) -> None:
        """No row of a chunk is left to do; what its rows came to is in the ledger."""
        if self._thread is None or self._cells is None:
            return
        try:
            self._thread.gather(self._cells.of_chunk(ledger, chunk_key))
        except Exception as error:
            # Whatever it is: the results are there, and only the sheet is not told of them.
            self._problem = error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.__exit__(kind, error, traceback)
            # The end writes everything: what failed before it does not matter.
            self._problem = self._thread.problem
            self.warnings += _gone(self._origin, self._thread.total)
        if self._problem is not None:
            self.warnings.append(_words(self._origin, self._problem))


# ---- at the end ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What making a worksheet equal to the ledger came to.

    Attributes:
        address: the worksheet.
        counts: what was written.
        warnings: what it lacks and why; empty where it equals the ledger.
    """

    address: str
    counts: WriteCounts
    warnings: list[str]

    @property
    def words(self) -> str:
        """What came of it, for a person."""
        if self.warnings:
            return " ".join(self.warnings)
        if not self.counts.rows:
            return f"{self.address} says what the ledger does."
        return f"{self.address} says what the ledger does: {self.counts.rows:,} rows were written."


def reconcile_sheet(
    ledger: Ledger, workload: Workload, batch: Batch, folder: Path, simulator: SimulatorUrl
) -> Reconciled | None:
    """Make a batch's worksheet say what the ledger does, outputs included, once and now.

    Args:
        ledger: the ledger.
        workload: the batch's.
        batch: the batch.
        folder: where its deliverables are.
        simulator: see inputs.py.

    Returns:
        What came of it; None for a batch that is not written back. It raises nothing: the sheet is
        a view of the ledger, and the next run makes it again.
    """
    writing = _writing(batch, workload)
    if writing is None:
        return None
    origin, own = writing
    cells = _Cells(own, batch, origin, folder, [SHEET_STATUS, SHEET_OUTPUT])

    async def main() -> tuple[WriteCounts, Exception | None]:
        access = resolve_sheets_access(os.environ, simulator())
        async with Sheets(access, ledger) as sheets:
            follower = SheetFollower(sheets, origin.target, ledger.clock.now)
            async with asyncio.timeout(_RECONCILE_S):
                await follower.reconcile(await asyncio.to_thread(cells.of_all, ledger))
            return follower.total, follower.problem

    try:
        counts, problem = asyncio.run(main())
    except Exception as error:
        counts, problem = WriteCounts(), error
    warnings = _gone(origin, counts)
    if problem is not None:
        warnings.append(_words(origin, problem))
    return Reconciled(str(origin.address), counts, warnings)


def _words(origin: SheetOrigin, problem: Exception) -> str:
    why = str(problem) if isinstance(problem, BatchPipelineError) else type(problem).__name__
    return (
        f"{origin.address} does not say everything that the ledger does: {why} "
        "The results are kept; the next run of the batch writes what is missing."
    )


def _gone(origin: SheetOrigin, counts: WriteCounts) -> list[str]:
    if not counts.gone:
        return []
    shown = ", ".join(map(str, counts.gone[:_SHOWN_GONE]))
    more = len(counts.gone) - _SHOWN_GONE
    return [
        f"{origin.address}: {len(counts.gone):,} rows of the batch are not there any more and were "
        f"written nowhere: row {shown}{f' and {more:,} more' if more > 0 else ''}, as numbered "
        "when it was read."
    ]
