"""Google Sheets v4, as gspread 6.2 calls it: metadata, values in and out, the size of a worksheet.

What does not live here: A1 notation (`a1`) and which faults hit (`faults`). Formulas are not
evaluated: a cell that USER_ENTERED makes one is marked, and reads as `#NAME?`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
from aiohttp import web

from batch_pipeline.simulator.a1 import Area, cell_name, name_of, parse
from batch_pipeline.simulator.buckets import Bucket
from batch_pipeline.simulator.config import FaultRule
from batch_pipeline.simulator.draws import draw, fingerprint
from batch_pipeline.simulator.journal import Journal
from batch_pipeline.simulator.replies import abort, send, send_json, send_start
from batch_pipeline.simulator.wire import RefusedError, Reply
from batch_pipeline.simulator.work import Work

PROVIDER = "sheets"

Kind = Literal["read", "write"]
Cell = str | float | bool

_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_MOST_CHARS = 50_000
_KEPT_CALLS = 10_000
_FORMULA = "#NAME?"
_STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
_QUOTA = (
    "Quota exceeded for quota metric '{0} requests' and limit '{0} requests per minute per user' "
    "of service 'sheets.googleapis.com' for consumer 'project_number:1'."
)
_HTML = "<html><head><title>Error</title></head><body><h1>{}</h1></body></html>"
# The work was done before the wire broke.
_DONE_ALL_THE_SAME = frozenset({"hang", "cut", "cut_body", "malformed_json"})


@dataclass
class Worksheet:
    """One worksheet.

    Attributes:
        cells: row -> column -> value, from 1; an empty cell is not there.
        formulas: names of cells that hold a formula, whose text is the value.
    """

    title: str
    sheet_id: int
    rows: int = 1_000
    columns: int = 26
    cells: dict[int, dict[int, Cell]] = field(default_factory=dict)
    formulas: set[str] = field(default_factory=set)

    def put(self, row: int, column: int, value: Any, *, entered: bool) -> None:
        """Set a cell as RAW does, or as a person types it."""
        self.formulas.discard(cell_name(row, column))
        if isinstance(value, str) and len(value) > _MOST_CHARS:
            raise _refused(
                400,
                f"Your input contains more than the maximum of {_MOST_CHARS} characters in a "
                "single cell.",
            )
        if entered and isinstance(value, str):
            value = self._typed(row, column, value)
        if value == "" and isinstance(value, str):
            self.cells.get(row, {}).pop(column, None)
        else:
            self.cells.setdefault(row, {})[column] = value

    def _typed(self, row: int, column: int, text: str) -> Cell:
        if text.startswith("="):
            self.formulas.add(cell_name(row, column))
            return text
        if text.startswith("'"):
            return text[1:]
        if text.upper() in ("TRUE", "FALSE"):
            return text.upper() == "TRUE"
        try:
            return float(text) if text.isascii() else text
        except ValueError:
            return text

    def shown(self, row: int, column: int, render: str) -> Cell:
        """A cell as it is read."""
        value = self.cells.get(row, {}).get(column, "")
        if cell_name(row, column) in self.formulas:
            return value if render == "FORMULA" else _FORMULA
        if render != "FORMATTED_VALUE" or isinstance(value, str):
            return value
        return str(value).upper() if isinstance(value, bool) else f"{value:.15g}"

    def read(self, area: Area, render: str) -> list[list[Cell]]:
        """The rows of an area, ragged: what is empty at the end of a row or below is left out."""
        bottom, right = self.bounds(area)
        rows = []
        for row in range(area.top, bottom + 1):
            cells = [self.shown(row, column, render) for column in range(area.left, right + 1)]
            while cells and cells[-1] == "":
                cells.pop()
            rows.append(cells)
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def bounds(self, area: Area) -> tuple[int, int]:
        """Last row and column of an area within the grid."""
        return min(area.bottom or self.rows, self.rows), min(
            area.right or self.columns, self.columns
        )

    def last_row(self) -> int:
        """The last row that holds something; 0 where none does."""
        return max((row for row, cells in self.cells.items() if cells), default=0)

    def table(self) -> list[list[Cell]]:
        """All that it holds, formulas as their text."""
        return self.read(Area(self.title), "FORMULA")

    def properties(self, index: int) -> dict[str, Any]:
        """What metadata say of it."""
        return {
            "sheetId": self.sheet_id,
            "title": self.title,
            "index": index,
            "sheetType": "GRID",
            "gridProperties": {"rowCount": self.rows, "columnCount": self.columns},
        }


@dataclass
class Spreadsheet:
    """One spreadsheet; who may not see or change it."""

    title: str
    sheets: list[Worksheet]
    closed: bool = False
    read_only: bool = False


@dataclass(frozen=True)
class _Call:
    """A request, as a test counts it."""

    t: float
    method: str
    kind: Kind
    spreadsheet: str
    status: int
    cells: int
    fault: str | None


Work_ = Callable[[web.Request, Spreadsheet], Awaitable[tuple[Any, int]]]


class Sheets:
    """The endpoints, and the spreadsheets in the state folder.

    Every key has two limits for all of them, reads and writes per minute. Requests stand beside the
    journal, which is about what costs money: `GET /_sim/sheets` lists them.
    """

    def __init__(self, state_dir: Path, work: Work, journal: Journal) -> None:
        self._folder = state_dir / "sheets"
        self._work = work
        self._journal = journal
        self._buckets: dict[tuple[str, Kind, float], Bucket] = {}
        self._calls: deque[_Call] = deque(maxlen=_KEPT_CALLS)
        self._kept: dict[str, Spreadsheet] = {}
        if self._folder.is_dir():
            for path in self._folder.glob("*.json"):
                self._kept[path.stem] = _loaded(orjson.loads(path.read_bytes()))

    def routes(self) -> list[web.RouteDef]:
        """Where they are."""
        one = f"/{PROVIDER}/v4/spreadsheets/{{id:[^/:]+}}"
        values = one + "/values"
        area = values + "/{range:.+}"
        return [
            web.get(one, self._handler("spreadsheets.get", "read", self._metadata)),
            web.post(
                one + ":batchUpdate",
                self._handler("spreadsheets.batchUpdate", "write", self._structure),
            ),
            web.get(values + ":batchGet", self._handler("values.batchGet", "read", self._get_many)),
            web.post(
                values + ":batchUpdate",
                self._handler("values.batchUpdate", "write", self._update_many),
            ),
            web.post(
                values + "/{range:.+}:append", self._handler("values.append", "write", self._append)
            ),
            web.post(
                values + "/{range:.+}:clear", self._handler("values.clear", "write", self._clear)
            ),
            web.get(area, self._handler("values.get", "read", self._get)),
            web.put(area, self._handler("values.update", "write", self._update)),
            web.get("/_sim/sheets", self._list),
            web.put("/_sim/sheets/{id}", self._load),
            web.get("/_sim/sheets/{id}", self._show),
        ]

    def reset(self) -> None:
        """Forget spreadsheets, limits and requests."""
        self._buckets.clear()
        self._calls.clear()
        for name in self._kept:
            self._path(name).unlink(missing_ok=True)
        self._kept.clear()

    # ---- what happens to every request ----

    def _handler(
        self, method: str, kind: Kind, work: Work_
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._answer(request, method, kind, work)

        return handle

    async def _answer(
        self, request: web.Request, method: str, kind: Kind, work: Work_
    ) -> web.StreamResponse:
        now, mono = time.time(), time.monotonic()
        name = request.match_info["id"]
        raw = await request.read()

        def record(status: int, cells: int = 0, fault: str | None = None) -> None:
            self._journal.other_calls[f"{PROVIDER} {kind}"] += 1
            if status != 200:
                self._journal.other_calls[f"{PROVIDER} {kind} {status}"] += 1
            self._calls.append(_Call(now, method, kind, name, status, cells, fault))

        try:
            key = self._admit(request, kind, mono)
        except RefusedError as refused:
            record(refused.reply.status)
            return send(refused.reply)
        sha = fingerprint(request.path_qs.encode("utf-8", "replace") + raw)
        rule = self._work.search_fault(
            provider=PROVIDER,
            model=kind,
            key=key,
            name=sha,
            text=f"{method} {name} {raw.decode('utf-8', 'replace')}",
        )
        fault = rule.kind if rule else None
        done = fault is None or fault in _DONE_ALL_THE_SAME
        if rule is not None and rule.billed is not None:
            done = rule.billed
        reply, cells = Reply(200, {}), 0
        if done:
            try:
                body, cells = await work(request, self._opened(name, kind))
                reply = Reply(200, body)
                if kind == "write":
                    self._save(name)
            except RefusedError as refused:
                record(refused.reply.status)
                return send(refused.reply)
            except (AttributeError, TypeError, ValueError, KeyError) as error:
                # A field of another type than the protocol's.
                record(400)
                return send(_error(400, f"Invalid value in the request: {error}"))
        if rule is not None:
            reply = _broken(rule, key, reply)
        try:
            if fault == "hang":
                record(0, cells, fault)
                # Ends by cancellation only, when the client or the server goes.
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(self._latency_s(sha))
        finally:
            if fault != "hang":
                record(0 if fault in ("cut", "refuse") else reply.status, cells, fault)
        if fault in ("cut", "refuse"):
            return abort(request)
        if fault == "cut_body":
            return await send_start(request, reply.payload, 0.5, reply)
        return send(reply)

    def _admit(self, request: web.Request, kind: Kind, mono: float) -> str:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key or key.startswith("bad"):
            raise _refused(401, "Request had invalid authentication credentials.")
        config = self._work.config
        per_minute = (
            config.sheets_reads_per_minute if kind == "read" else config.sheets_writes_per_minute
        )
        scope = (key, kind, per_minute)
        bucket = self._buckets.get(scope)
        if bucket is None:
            bucket = self._buckets[scope] = Bucket(per_minute, None, mono)
        if bucket.wait_s(1, mono) > 0:
            raise RefusedError(_limited(kind, per_minute))
        bucket.take(1, mono)
        return key

    def _opened(self, name: str, kind: Kind) -> Spreadsheet:
        found = self._kept.get(name)
        if found is None:
            raise _refused(404, "Requested entity was not found.")
        if found.closed or (found.read_only and kind == "write"):
            raise _refused(403, "The caller does not have permission")
        return found

    def _latency_s(self, sha: str) -> float:
        latency = self._work.config.latency
        return latency.base_s + latency.jitter_s * draw(self._work.config.seed, "latency", sha)

    # ---- the methods ----

    async def _metadata(self, request: web.Request, book: Spreadsheet) -> tuple[Any, int]:
        name = request.match_info["id"]
        return {
            "spreadsheetId": name,
            "properties": {"title": book.title, "locale": "en_US", "timeZone": "Etc/GMT"},
            "sheets": [{"properties": one.properties(n)} for n, one in enumerate(book.sheets)],
            "spreadsheetUrl": f"https://docs.google.com/spreadsheets/d/{name}/edit",
        }, 0

    async def _get(self, request: web.Request, book: Spreadsheet) -> tuple[Any, int]:
        return self._values(request, book, request.match_info["range"])

    async def _get_many(self, request: web.Request, book: Spreadsheet) -> tuple[Any, int]:
        found = [self._values(request, book, text) for text in request.query.getall("ranges", [])]
        return {
            "spreadsheetId": request.match_info["id"],
            "valueRanges": [values for values, _ in found],
        }, sum(cells for _, cells in found)

    def _values(self, request: web.Request, book: Spreadsheet, text: str) -> tuple[Any, int]:
        sheet, area = _area(book, text)
        rows = sheet.read(area, request.query.get("valueRenderOption", "FORMATTED_VALUE"))
        bottom, right = sheet.bounds(area)
        name = name_of(sheet.title, area.top, area.left, bottom, right)
        reply: dict[str, Any] = {"range": name, "majorDimension": "ROWS"}
        if rows:
            reply["values"] = rows
        return reply, sum(map(len, rows))

    async def _update_many(self, request: web.Request, book: Spreadsheet) -> tuple[Any, int]:
        body = orjson.loads(await request.read())
        entered = _entered(body.get("valueInputOption"))
        # All or nothing: every range is looked at before the first cell changes.
        places = [(*_area(book, entry["range"]), entry["values"]) for entry in body["data"]]
        for sheet, area, values in places:
            _check_fits(sheet, area, values)
        replies = [_put(sheet, area, values, entered) for sheet, area, values in places]
        name = request.match_info["id"]
        total = sum(reply["updatedCells"] for reply in replies)
        return {
            "spreadsheetId": name,
            "totalUpdatedRows": sum(reply["updatedRows"] for reply in replies),
            "totalUpdatedColumns": max((reply["updatedColumns"] for reply in replies), default=0),
            "totalUpdatedCells": total,
            "totalUpdatedSheets": len({sheet.title for sheet, _, _ in places}),
            "responses": [{"spreadsheetId": name, **reply} for reply in replies],
        }, total

    async def _update(self, request: web.Request, book: Spreadsheet) -> tuple[Any, int]:
        sheet, area = _area(book, request.match_info["range"])
        values = orjson.loads(await request.read())["values"]
        _check_fits(sheet, area, values)
        reply = _put(sheet, area, values, _entered(request.query.get("valueInputOption")))
        return {"spreadsheetId": request.match_info["id"], **reply}, reply["updatedCells"]

    async def _append(self, request: web.Request, book: Spreadsheet) -> tuple[Any, int]:
        sheet, area = _area(book, request.match_info["range"])
        values = orjson.loads(await request.read())["values"]
        last = sheet.last_row()
        start = Area(sheet.title, max(last + 1, area.top), area.left)
        sheet.rows = max(sheet.rows, start.top + len(values) - 1)
        _check_fits(sheet, start, values)
        reply = _put(sheet, start, values, _entered(request.query.get("valueInputOption")))
        name = request.match_info["id"]
        answer = {"spreadsheetId": name, "updates": {"spreadsheetId": name, **reply}}
        if last:
            answer["tableRange"] = name_of(sheet.title, area.top, area.left, last, sheet.columns)
        return answer, reply["updatedCells"]

    async def _clear(self, request: web.Request, book: Spreadsheet) -> tuple[Any, int]:
        sheet, area = _area(book, request.match_info["range"])
        bottom, right = sheet.bounds(area)
        for row in range(area.top, bottom + 1):
            for column in range(area.left, right + 1):
                sheet.put(row, column, "", entered=False)
        name = name_of(sheet.title, area.top, area.left, bottom, right)
        return {"spreadsheetId": request.match_info["id"], "clearedRange": name}, 0

    async def _structure(self, request: web.Request, book: Spreadsheet) -> tuple[Any, int]:
        for change in orjson.loads(await request.read())["requests"]:
            (kind, about), *_ = change.items()
            if kind == "updateSheetProperties":
                wanted = about["properties"]
                sheet = _by_id(book, wanted["sheetId"])
                grid = wanted.get("gridProperties", {})
                sheet.rows = int(grid.get("rowCount", sheet.rows))
                sheet.columns = int(grid.get("columnCount", sheet.columns))
                sheet.title = str(wanted.get("title", sheet.title))
            elif kind == "appendDimension":
                sheet = _by_id(book, about["sheetId"])
                if about["dimension"] == "ROWS":
                    sheet.rows += int(about["length"])
                else:
                    sheet.columns += int(about["length"])
            else:
                raise _refused(400, f"The simulator does not know the request {kind!r}.")
        return {"spreadsheetId": request.match_info["id"], "replies": [{}]}, 0

    # ---- control ----

    async def _list(self, request: web.Request) -> web.Response:
        return send_json(
            200,
            {"spreadsheets": sorted(self._kept), "requests": [asdict(one) for one in self._calls]},
        )

    async def _load(self, request: web.Request) -> web.Response:
        """Make or replace a spreadsheet: `{"sheets": {"Sheet1": [[...], ...]}, ...}`."""
        name = request.match_info["id"]
        if not _ID.fullmatch(name):
            return send_json(400, {"error": f"{name!r} is no id of a spreadsheet"})
        try:
            book = _made(orjson.loads(await request.read()))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            return send_json(400, {"error": f"the spreadsheet cannot be read: {error!r}"})
        self._kept[name] = book
        self._save(name)
        return send_json(200, {"id": name})

    async def _show(self, request: web.Request) -> web.Response:
        book = self._kept.get(request.match_info["id"])
        if book is None:
            return send_json(404, {"error": "there is no such spreadsheet"})
        sheets = {
            sheet.title: {
                "values": sheet.table(),
                "formulas": sorted(sheet.formulas),
                "rows": sheet.rows,
                "columns": sheet.columns,
            }
            for sheet in book.sheets
        }
        return send_json(200, {"title": book.title, "sheets": sheets})

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _save(self, name: str) -> None:
        book = self._kept[name]
        stored = {
            "title": book.title,
            "closed": book.closed,
            "read_only": book.read_only,
            "sheets": [
                {
                    "title": sheet.title,
                    "id": sheet.sheet_id,
                    "rows": sheet.rows,
                    "columns": sheet.columns,
                    "values": sheet.table(),
                    "formulas": sorted(sheet.formulas),
                }
                for sheet in book.sheets
            ],
        }
        self._folder.mkdir(exist_ok=True)
        beside = self._path(name).with_suffix(".new")
        beside.write_bytes(orjson.dumps(stored))
        beside.replace(self._path(name))


def _made(wanted: dict[str, Any]) -> Spreadsheet:
    rows, columns = int(wanted.get("rows", 1_000)), int(wanted.get("columns", 26))
    sheets = []
    for number, (title, values) in enumerate(wanted["sheets"].items()):
        sheet = Worksheet(title, number, max(rows, len(values)), max([columns, *map(len, values)]))
        _fill(sheet, values)
        sheets.append(sheet)
    if not sheets:
        raise ValueError("it has no worksheets")
    return Spreadsheet(
        str(wanted.get("title", "Sheet")),
        sheets,
        bool(wanted.get("closed")),
        bool(wanted.get("read_only")),
    )


def _loaded(stored: dict[str, Any]) -> Spreadsheet:
    sheets = []
    for one in stored["sheets"]:
        sheet = Worksheet(one["title"], one["id"], one["rows"], one["columns"])
        _fill(sheet, one["values"])
        sheet.formulas = set(one["formulas"])
        sheets.append(sheet)
    return Spreadsheet(stored["title"], sheets, stored["closed"], stored["read_only"])


def _fill(sheet: Worksheet, values: list[list[Any]]) -> None:
    for row, cells in enumerate(values, start=1):
        for column, value in enumerate(cells, start=1):
            sheet.put(row, column, "" if value is None else value, entered=False)


def _area(book: Spreadsheet, text: str) -> tuple[Worksheet, Area]:
    area = parse(text, [sheet.title for sheet in book.sheets])
    if area is None:
        raise _refused(400, f"Unable to parse range: {text}")
    return next(sheet for sheet in book.sheets if sheet.title == area.title), area


def _by_id(book: Spreadsheet, sheet_id: int) -> Worksheet:
    for sheet in book.sheets:
        if sheet.sheet_id == sheet_id:
            return sheet
    raise _refused(400, f"Invalid requests[0]: No grid with id: {sheet_id}")


def _entered(option: str | None) -> bool:
    if option not in ("RAW", "USER_ENTERED"):
        raise _refused(400, "'valueInputOption' is required but not specified")
    return option == "USER_ENTERED"


def _check_fits(sheet: Worksheet, area: Area, values: list[list[Any]]) -> None:
    bottom = area.top + len(values) - 1
    right = area.left + max(map(len, values), default=1) - 1
    if bottom > sheet.rows or right > sheet.columns:
        raise _refused(
            400,
            f"Range ({name_of(sheet.title, area.top, area.left, bottom, right)}) exceeds grid "
            f"limits. Max rows: {sheet.rows}, max columns: {sheet.columns}",
        )
    if (area.bottom and bottom > area.bottom) or (area.right and right > area.right):
        raise _refused(400, "Requested writing within range, but tried writing outside of it")


def _put(sheet: Worksheet, area: Area, values: list[list[Any]], entered: bool) -> dict[str, Any]:
    cells = 0
    for row, line in enumerate(values, start=area.top):
        for column, value in enumerate(line, start=area.left):
            if value is not None:
                sheet.put(row, column, value, entered=entered)
                cells += 1
    width = max(map(len, values), default=1)
    right, bottom = area.left + width - 1, area.top + len(values) - 1
    return {
        "updatedRange": name_of(sheet.title, area.top, area.left, bottom, right),
        "updatedRows": len(values),
        "updatedColumns": width,
        "updatedCells": cells,
    }


def _error(status: int, message: str) -> Reply:
    said = _STATUS.get(status, "UNKNOWN")
    return Reply(status, {"error": {"code": status, "message": message, "status": said}})


def _refused(status: int, message: str) -> RefusedError:
    return RefusedError(_error(status, message))


def _limited(kind: Kind, per_minute: float) -> Reply:
    about = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "RATE_LIMIT_EXCEEDED",
        "domain": "googleapis.com",
        "metadata": {"quota_limit_value": f"{per_minute:g}"},
    }
    error = {
        "code": 429,
        "message": _QUOTA.format(kind.capitalize()),
        "status": "RESOURCE_EXHAUSTED",
        "details": [about],
    }
    return Reply(429, {"error": error})


def _broken(rule: FaultRule, key: str, right: Reply) -> Reply:
    """The reply that a fault makes of a right one; the right one where only the wire breaks."""
    quoted = f"The token {key} was refused." if rule.echo_key else None
    if rule.kind == "html":
        page = _HTML.format(quoted or "Service unavailable")
        return Reply(rule.status or 503, page.encode(), {"content-type": "text/html"})
    if rule.kind in ("status", "error_body"):
        said = _error(rule.status or 500, quoted or "Internal error encountered.")
        return Reply(200 if rule.kind == "error_body" else said.status, said.body)
    if rule.kind == "malformed_json":
        return Reply(200, right.payload[: len(right.payload) // 2])
    return right
