"""Write-back to Google Sheets: finished rows into the worksheet that they came from.

What belongs here: reading, writing the differences, following a run. What does not: which cells
differ and when to write (sheet_plan.py), what a row should say (workloads/).

The ledger is the truth, the sheet a view of it that is made equal again and again: nothing here is
remembered from one process to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.google_sheets.access import SheetAddress, SheetsAccess
from batch_pipeline.google_sheets.client import Sheets, SheetsError, Worksheet
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.sinks.sheet_plan import (
    MOST_BYTES,
    MOST_CELLS,
    Desired,
    Gathered,
    Key,
    Texts,
    plan_write,
    requests_of,
)

ROWS_PER_WRITE = 50
SECONDS_PER_WRITE = 60.0

_RETRY_S = 60.0
_LAST_TRIES_S = 90.0
"""How long a run that is over waits for the sheet; what is missing then is written next time."""
_CUT_SHORT_S = 10.0
"""How long one that is cut short does: whoever stopped it waits."""


@dataclass(frozen=True, slots=True)
class SheetTarget:
    """Where rows of a batch are written back to.

    Attributes:
        address: the worksheet.
        keys: what stood in the key columns of every row of the batch, by the row's number in the
            sheet when it was read (`sheet_plan.key_of`).
        key_columns: their names.
        sheet_id: the worksheet's number where it was found before, so that its name may change.
    """

    address: SheetAddress
    keys: Mapping[int, Key]
    key_columns: Sequence[str]
    sheet_id: int | None = None


@dataclass(frozen=True, slots=True)
class WriteCounts:
    """What a write-back came to.

    Attributes:
        rows: rows written.
        cells: cells written, new headers included.
        requests: write requests sent.
        same: rows that already said what they should.
        moved: rows that stood elsewhere than when the table was read.
        gone: numbers of rows that are not there any more; they were written nowhere.
    """

    rows: int = 0
    cells: int = 0
    requests: int = 0
    same: int = 0
    moved: int = 0
    gone: tuple[int, ...] = ()


async def write_back(
    sheets: Sheets,
    worksheet: Worksheet,
    target: SheetTarget,
    desired: Desired,
    *,
    most_cells: int = MOST_CELLS,
    most_bytes: int = MOST_BYTES,
) -> WriteCounts:
    """Make a worksheet say what it should, writing only what differs.

    One read, and as many writes as the differences need; none where there are none. Repeating it is
    harmless: a row is found by its key, and only cells of `desired` are touched.

    Args:
        sheets: the API, opened.
        worksheet: as it was just found.
        target: its rows and columns.
        desired: what to say, by the number that a row had when the table was read.
        most_cells: of one request.
        most_bytes: of one request.

    Raises:
        SheetsError: a read or a write failed; what was written before stays.
        UsageError: the worksheet lost a key column.
    """
    grid = await sheets.read(worksheet)
    plan = plan_write(grid, desired, target.keys, target.key_columns)
    counts = WriteCounts(same=plan.same, moved=plan.moved, gone=plan.gone)
    if not plan.blocks:
        return counts
    await sheets.grow(worksheet, plan.rows, plan.columns)
    requests = 0
    for blocks in requests_of(plan.blocks, most_cells, most_bytes):
        await sheets.write(worksheet, blocks)
        requests += 1
    cells = sum(len(block.texts) for block in plan.blocks)
    return replace(counts, rows=plan.changed, cells=cells, requests=requests)


class SheetFollower:
    """Writes rows back while they finish: few requests, and in the end everything.

    It may be dropped at any moment. `reconcile` at the next start makes up for what is missing.

    Args:
        sheets: the API, opened.
        target: where to.
        now: UTC seconds.
        most_rows: so many gathered rows are written at once.
        most_s: at the latest so many seconds after the first of them was gathered; infinite waits
            for most_rows, or the end.

    Attributes:
        total: all that was written so far.
        problem: why the last write failed; None where it did not.
    """

    def __init__(
        self,
        sheets: Sheets,
        target: SheetTarget,
        now: Callable[[], float],
        *,
        most_rows: int = ROWS_PER_WRITE,
        most_s: float = SECONDS_PER_WRITE,
    ) -> None:
        self.total = WriteCounts()
        self.problem: BatchPipelineError | None = None
        self._sheets = sheets
        self._target = target
        self._now = now
        self._gathered = Gathered(most_rows, most_s)
        self._sheet_id = target.sheet_id

    @property
    def due_at(self) -> float:
        """When `turn` has something to do, in UTC seconds; infinite where nothing is gathered."""
        return self._gathered.due_at

    def gather(self, rows: Desired) -> None:
        """Rows are finished, in the ledger."""
        self._gathered.add(rows, self._now())

    async def turn(self) -> WriteCounts | None:
        """Write what is gathered where that is due; None where it is not, or where it failed."""
        if self._now() < self.due_at:
            return None
        return await self._write(dict(self._gathered.rows))

    async def reconcile(self, desired: Desired) -> WriteCounts | None:
        """Make the sheet equal to the ledger; at the start and at the end.

        Args:
            desired: what every row should say that has anything to say, read from the ledger now:
                it replaces what was gathered before.

        Returns:
            What was written; None where it failed, which `problem` explains.
        """
        return await self._write(desired)

    async def _write(self, desired: Desired) -> WriteCounts | None:
        before = dict(self._gathered.rows)
        try:
            counts = WriteCounts()
            if desired:
                worksheet = await self._sheets.find(self._target.address, self._sheet_id)
                # From now on a worksheet that is renamed or put elsewhere is still the one.
                self._sheet_id = worksheet.sheet_id
                counts = await write_back(self._sheets, worksheet, self._target, desired)
        except BatchPipelineError as error:
            # The results are in the ledger: trouble with the sheet must not stop the run.
            self.problem = error
            self._gathered.failed(self._now(), _RETRY_S)
            return None
        self.problem = None
        self._gathered.written(before, self._now())
        self.total = WriteCounts(
            self.total.rows + counts.rows,
            self.total.cells + counts.cells,
            self.total.requests + counts.requests,
            counts.same,
            counts.moved,
            counts.gone,
        )
        return counts


class SheetThread:
    """A follower on a thread and a ledger handle of its own; a context manager around a run.

    At the start and at the end the sheet is made equal to the ledger; in between, finished rows are
    written as they come. No trouble with the sheet stops the run: `problem` tells it afterwards.

    Args:
        open_ledger: opens the ledger.
        access: as whom, and where.
        target: where to.
        desired: reads from the ledger what every row should say.
        most_rows: see SheetFollower.
        most_s: see SheetFollower.
        last_tries_s: how long the end may take.

    Attributes:
        total: what was written.
        problem: why the sheet may lack something; None where it equals the ledger.
    """

    def __init__(
        self,
        open_ledger: Callable[[], Ledger],
        access: SheetsAccess,
        target: SheetTarget,
        desired: Callable[[Ledger], Desired],
        *,
        most_rows: int = ROWS_PER_WRITE,
        most_s: float = SECONDS_PER_WRITE,
        last_tries_s: float = _LAST_TRIES_S,
    ) -> None:
        self.total = WriteCounts()
        self.problem: Exception | None = None
        self._open_ledger = open_ledger
        self._access = access
        self._target = target
        self._desired = desired
        self._most = (most_rows, most_s)
        self._last_tries_s = last_tries_s
        self._lock = threading.Lock()
        self._finished: dict[int, Texts] = {}
        self._over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="sheet-follower", daemon=True)

    def __enter__(self) -> SheetThread:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._last_tries_s = min(self._last_tries_s, _CUT_SHORT_S)
        with self._lock:
            self._over = True
            # In this order: whoever hears of the news looks whether it is the end.
            self._tell(self._end, self._news)
        # The end is bounded inside as well; a thread that hangs all the same dies with the process.
        self._thread.join(self._last_tries_s + 5.0)
        if self._thread.is_alive():
            self.problem = self.problem or _unfinished(self._target)

    def gather(self, rows: Desired) -> None:
        """Rows are finished, in the ledger; from any thread."""
        with self._lock:
            self._finished.update(rows)
            self._tell(self._news)

    def _tell(self, *events: asyncio.Event) -> None:
        if self._loop is not None:
            for event in events:
                self._loop.call_soon_threadsafe(event.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._follow())
        except Exception as error:
            # Whatever it is, the run goes on, and its end says so.
            self.problem = error
        finally:
            with self._lock:
                self._loop = None

    async def _follow(self) -> None:
        with self._lock:
            self._loop = asyncio.get_running_loop()
            if self._over:
                self._end.set()
        most_rows, most_s = self._most
        with self._open_ledger() as ledger:
            async with Sheets(self._access, ledger) as sheets:
                follower = SheetFollower(
                    sheets, self._target, ledger.clock.now, most_rows=most_rows, most_s=most_s
                )
                working = asyncio.create_task(self._work(follower, ledger))
                try:
                    await self._end.wait()
                    async with asyncio.timeout(self._last_tries_s):
                        await asyncio.gather(working, return_exceptions=True)
                        await follower.reconcile(await asyncio.to_thread(self._desired, ledger))
                    self.problem = follower.problem
                except TimeoutError:
                    self.problem = follower.problem or _unfinished(self._target)
                finally:
                    self.total = follower.total

    async def _work(self, follower: SheetFollower, ledger: Ledger) -> None:
        await follower.reconcile(await asyncio.to_thread(self._desired, ledger))
        while not self._end.is_set():
            self._news.clear()
            with self._lock:
                finished, self._finished = self._finished, {}
            follower.gather(finished)
            await follower.turn()
            wait_s = min(follower.due_at - ledger.clock.now(), SECONDS_PER_WRITE)
            if wait_s > 0 and not self._end.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), wait_s)


def _unfinished(target: SheetTarget) -> SheetsError:
    return SheetsError(
        f"{target.address} did not take everything in time.",
        "The results are kept; the next run of the batch writes what is missing.",
        passing=True,
    )
