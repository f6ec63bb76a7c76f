"""Calls to the Sheets API, each in its turn at limits that all processes share.

What belongs here: turns, tries, and what a failure means for a person. What does not: HTTP
(wire.py), what is read or written (sources/sheets.py, sinks/).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.google_sheets.access import SheetAddress, SheetsAccess
from batch_pipeline.ledger.calls import HEARTBEAT, OWNER_LEASE_S, RETIRE, Owner, PauseKey
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.limits.limiter import Gate, Rates
from batch_pipeline.providers.base import ErrorKind, ProviderError

if TYPE_CHECKING:
    from batch_pipeline.google_sheets.wire import SheetsHttp

LIMIT_NAME = "google-sheets"
"""What the limits stand under in the ledger, as `google-sheets/read` and `google-sheets/write`."""

Kind = Literal["read", "write"]
Grid = Sequence[Sequence[str]]

_TRIES = 5
_MOST_PAUSES = 8
_LONGEST_WAIT_S = 60.0


class SheetsError(BatchPipelineError):
    """Google Sheets was asked, and the call did not succeed.

    Attributes:
        passing: whether it may succeed later without anybody's doing.
    """

    def __init__(self, message: str, next_step: str = "", *, passing: bool = False) -> None:
        super().__init__(message, next_step)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Worksheet:
    """A worksheet as it was found.

    Attributes:
        address: what the user named.
        title: its name now.
        sheet_id: its number in the spreadsheet, which a new name or place does not change.
        rows: of its grid, empty ones included.
        columns: likewise.
    """

    address: SheetAddress
    title: str
    sheet_id: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Block:
    """Texts side by side in one row, to be written; rows and columns count from 1."""

    row: int
    column: int
    texts: tuple[str, ...]


class Sheets:
    """The Sheets API as one account sees it; an async context manager.

    One call is one HTTP request and takes one turn at the limit for reads or for writes. Rate
    limits and passing failures are tried again; a 429 makes every process wait.

    Args:
        access: as whom, and where.
        ledger: the ledger whose limits are shared.
        rng: jitter.
    """

    def __init__(
        self,
        access: SheetsAccess,
        ledger: Ledger,
        rng: random.Random | None = None,
    ) -> None:
        self._access = access
        self._ledger = ledger
        self._clock = ledger.clock
        self._rng = rng or random.Random()
        self._owner = Owner.here(LIMIT_NAME)
        self._gates: dict[Kind, Gate] = {}
        self._heart: asyncio.Task[None] | None = None
        self._http: SheetsHttp | None = None

    async def __aenter__(self) -> Self:
        from batch_pipeline.google_sheets.wire import open_http

        self._http = await asyncio.to_thread(open_http, self._access)
        writer, access = self._ledger.writer, self._access
        await writer.post(HEARTBEAT, self._owner)
        rates: dict[Kind, float] = {
            "read": access.reads_per_minute,
            "write": access.writes_per_minute,
        }
        for kind, per_minute in rates.items():
            name = f"{LIMIT_NAME}/{kind}"
            key = PauseKey(self._ledger.realm, LIMIT_NAME, name, access.key_id)
            gate = Gate(writer, self._clock, key, self._owner.owner_id, Rates(per_minute))
            await gate.open()
            self._gates[kind] = gate
        self._heart = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._heart is not None and self._http is not None
        self._heart.cancel()
        await asyncio.gather(self._heart, return_exceptions=True)
        for gate in self._gates.values():
            await gate.close()
        await self._ledger.writer.post(RETIRE, self._owner.owner_id)
        self._http.close()

    async def find(self, address: SheetAddress, sheet_id: int | None = None) -> Worksheet:
        """Look a worksheet up (one read).

        Args:
            address: which.
            sheet_id: its number where it was found before: then its name may have changed. Where
                there is none of that number any more, the name counts after all.

        Raises:
            SheetsError: it is not there, or cannot be seen.
        """
        reply = await self._call(
            "read", address, lambda http: http.fetch_sheet_metadata(address.spreadsheet_id)
        )
        try:
            found = [one["properties"] for one in reply["sheets"]]
            grids = [one for one in found if one.get("sheetType", "GRID") == "GRID"]
            by_number = [one for one in grids if one["sheetId"] == sheet_id]
            by_title = [one for one in grids if one["title"] == address.worksheet]
            if sheet_id is None and not address.worksheet:
                by_title = grids
            if chosen := [*by_number, *by_title][:1]:
                size = chosen[0]["gridProperties"]
                return Worksheet(
                    address,
                    chosen[0]["title"],
                    chosen[0]["sheetId"],
                    size["rowCount"],
                    size["columnCount"],
                )
        except (KeyError, TypeError) as error:
            raise _unusable(address) from error
        titles = ", ".join(f"'{one['title']}'" for one in grids)
        wanted = f"'{address.worksheet}'" if address.worksheet else "to read"
        raise SheetsError(
            f"{address}: there is no worksheet {wanted}.",
            f"There are: {titles}." if titles else "Add one.",
        )

    async def read(self, worksheet: Worksheet) -> list[list[str]]:
        """All cells as the sheet shows them, rows padded to the same width (one read).

        Raises:
            SheetsError: the read failed; a sheet that holds nothing is an empty list.
        """
        from batch_pipeline.google_sheets.wire import absolute_range_name

        address = worksheet.address
        params = {"valueRenderOption": "FORMATTED_VALUE", "majorDimension": "ROWS"}
        reply = await self._call(
            "read",
            address,
            lambda http: http.values_get(
                address.spreadsheet_id, absolute_range_name(worksheet.title), params=dict(params)
            ),
        )
        rows = reply.get("values", [])
        # Only a reply that says which cells it is about is one; without values these are empty.
        if not isinstance(reply.get("range"), str) or not isinstance(rows, list):
            raise _unusable(address)
        if not all(isinstance(row, list) for row in rows):
            raise _unusable(address)
        width = max(map(len, rows), default=0)
        return [[_text(cell) for cell in row] + [""] * (width - len(row)) for row in rows]

    async def write(self, worksheet: Worksheet, blocks: Sequence[Block]) -> None:
        """Write texts as they are, never as formulas or numbers (one write; all or nothing).

        Raises:
            SheetsError: the write failed, or nobody knows whether it was done.
        """
        from batch_pipeline.google_sheets.wire import absolute_range_name, rowcol_to_a1

        def place(block: Block) -> str:
            last = block.column + len(block.texts) - 1
            return absolute_range_name(
                worksheet.title,
                f"{rowcol_to_a1(block.row, block.column)}:{rowcol_to_a1(block.row, last)}",
            )

        body = {
            "valueInputOption": "RAW",
            "data": [{"range": place(block), "values": [list(block.texts)]} for block in blocks],
        }
        address = worksheet.address
        await self._call(
            "write", address, lambda http: http.values_batch_update(address.spreadsheet_id, body)
        )

    async def grow(self, worksheet: Worksheet, rows: int, columns: int) -> None:
        """Make the grid at least so large (one write, where it is smaller).

        Raises:
            SheetsError: that failed.
        """
        grid = {
            name: wanted
            for name, wanted, present in (
                ("rowCount", rows, worksheet.rows),
                ("columnCount", columns, worksheet.columns),
            )
            if wanted > present
        }
        if not grid:
            return
        change = {
            "properties": {"sheetId": worksheet.sheet_id, "gridProperties": grid},
            "fields": ",".join(f"gridProperties/{name}" for name in grid),
        }
        body = {"requests": [{"updateSheetProperties": change}]}
        address = worksheet.address
        await self._call(
            "write", address, lambda http: http.batch_update(address.spreadsheet_id, body)
        )

    async def _call(
        self, kind: Kind, address: SheetAddress, send: Callable[[SheetsHttp], Any]
    ) -> Mapping[str, Any]:
        """One request, again after passing failures; writes may be repeated without harm."""
        gate = self._gates[kind]
        tries = pauses = 0
        while True:
            await gate.enter()
            try:
                ticket = await gate.acquire(0.0, 0.0)
                left = ticket.go_at - self._clock.now()
                if left > 0:
                    await self._clock.sleep(left)
                if gate.paused_s() > 0:
                    gate.give_up(ticket)
                    continue
                try:
                    return await asyncio.to_thread(self._send, send)
                except ProviderError as error:
                    failure = error
            finally:
                gate.leave()
            if failure.kind is ErrorKind.RATE_LIMITED and pauses < _MOST_PAUSES:
                pauses += 1
                pause = failure.retry_after_s
                if pause is None:
                    longest = self._longest_wait_s(pauses)
                    pause = longest * self._rng.uniform(0.5, 1.0)
                await gate.pause(pause, failure.message)
            elif failure.kind is ErrorKind.TRANSIENT and tries + 1 < _TRIES:
                tries += 1
                await self._clock.sleep(self._rng.uniform(0.0, self._longest_wait_s(tries)))
            else:
                raise _explained(failure, kind, address) from None

    def _longest_wait_s(self, failures: int) -> float:
        return min(_LONGEST_WAIT_S, self._access.backoff_s * 2.0**failures)

    def _send(self, send: Callable[[SheetsHttp], Any]) -> Mapping[str, Any]:
        from batch_pipeline.google_sheets.wire import checked_object

        assert self._http is not None
        try:
            return checked_object(send(self._http))
        except ValueError as error:
            raise ProviderError(ErrorKind.TRANSIENT, "the reply is not JSON", status=200) from error

    async def _beat(self) -> None:
        """Let others count this account's rates while it is used.

        Without it (a machine that slept) the shared buckets still hold.
        """
        while True:
            await self._clock.sleep(OWNER_LEASE_S / 4)
            await self._ledger.writer.post(HEARTBEAT, self._owner)


def read_worksheet(
    access: SheetsAccess, ledger: Ledger, address: SheetAddress
) -> tuple[Worksheet, list[list[str]]]:
    """Find a worksheet and read it, from code that has no event loop (two reads).

    Raises:
        SheetsError: it cannot be found or read.
        UsageError: the service account's key cannot be used.
    """

    async def read() -> tuple[Worksheet, list[list[str]]]:
        async with Sheets(access, ledger) as sheets:
            worksheet = await sheets.find(address)
            return worksheet, await sheets.read(worksheet)

    return asyncio.run(read())


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else str(cell)


def _unusable(address: SheetAddress) -> SheetsError:
    return SheetsError(
        f"{address}: Google's reply cannot be read.", "Try again later.", passing=True
    )


def _explained(error: ProviderError, kind: Kind, address: SheetAddress) -> SheetsError:
    """What a person is told."""
    doing = "read" if kind == "read" else "written"
    said = error.message.rstrip(".")
    match error.status:
        case 401:
            return SheetsError(
                f"{address} cannot be {doing}: {said}.",
                "Check that the service account's key is still valid in Google's console.",
            )
        case 403:
            role = "viewer" if kind == "read" else "editor"
            return SheetsError(
                f"{address} cannot be {doing}: {said}.",
                f"Share the spreadsheet with the service account as {role} (its client_email "
                "stands in the key file), and enable the Google Sheets API in its project.",
            )
        case 404:
            return SheetsError(
                f"There is no spreadsheet {address.spreadsheet_id}.",
                "Check the id: it stands in the spreadsheet's address after /spreadsheets/d/.",
            )
    if error.kind is ErrorKind.RATE_LIMITED:
        return SheetsError(
            f"{address} cannot be {doing}: Google refuses calls for too long ({said}).",
            "Try again in a few minutes; other programs may use the same account.",
            passing=True,
        )
    if error.kind is ErrorKind.TRANSIENT:
        return SheetsError(
            f"{address} cannot be {doing} for now: {said}, {_TRIES} times.",
            "Try again later.",
            passing=True,
        )
    return SheetsError(f"{address} cannot be {doing}: {said}.", "Check the worksheet.")
