"""Write-back: which cells, in how many requests; after kills the sheet equals the ledger."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.errors import UsageError
from batch_pipeline.google_sheets.access import SheetAddress, SheetsAccess
from batch_pipeline.google_sheets.client import Block, Sheets, SheetsError, Worksheet
from batch_pipeline.google_sheets.layout import MOST_CHARS, cell_text
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.sinks.sheet_plan import (
    Desired,
    Gathered,
    TakeBack,
    Texts,
    key_of,
    locate,
    plan_write,
    requests_of,
)
from batch_pipeline.sinks.sheets import (
    SheetFollower,
    SheetTarget,
    SheetThread,
    WriteCounts,
    write_back,
)
from batch_pipeline_tests.sheets import BOOK, HEADER, Book, fresh_book, open_ledger
from batch_pipeline_tests.simulated import Simulator

ADDRESS = SheetAddress(BOOK, "INPUT")
NAMES = ("Acme", "Plex", "تاژ", "3M", "پاکشو", "Moo", "Xero")


@pytest.fixture
def book(simulator: Simulator) -> Book:
    return fresh_book(simulator)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path) as opened:
        yield opened


def brands(*names: str) -> list[list[str]]:
    return [HEADER, *[[name] for name in names]]


def target(names: Sequence[str] = NAMES, **terms: Any) -> SheetTarget:
    keys = {number: key_of([name]) for number, name in enumerate(names, start=2)}
    return SheetTarget(ADDRESS, keys, ("Brand Name",), **terms)


def done(number: int, status: str = "Completed") -> dict[str, str]:
    return {"Status": status, "Output Path": f"out/{number}"}


def write(
    book: Book, ledger: Ledger, desired: Desired, to: SheetTarget | None = None, **terms: Any
) -> WriteCounts:
    async def main() -> WriteCounts:
        async with Sheets(book.access, ledger) as sheets:
            worksheet = await sheets.find(ADDRESS)
            return await write_back(sheets, worksheet, to or target(), desired, **terms)

    return asyncio.run(main())


def plan(grid: list[list[str]], desired: Desired, to: SheetTarget | None = None) -> list[Block]:
    to = to or target()
    return list(plan_write(grid, desired, to.keys, to.key_columns).blocks)


# ---- finding rows again ----


def keyed(*names: str, first: int = 2) -> dict[int, tuple[str, ...]]:
    return {number: (name,) for number, name in enumerate(names, start=first)}


@pytest.mark.parametrize(
    ("was", "now", "found"),
    [
        ("abc", "abc", {2: 2, 3: 3, 4: 4}),
        ("abc", "cab", {2: 3, 3: 4, 4: 2}),
        ("abc", "xabc", {2: 3, 3: 4, 4: 5}),
        ("abc", "ac", {2: 2, 4: 3}),
        ("abc", "", {}),
        # equal rows keep their order, wherever they went
        ("aba", "xxxaba", {2: 5, 3: 6, 4: 7}),
        ("aba", "aab", {2: 2, 3: 4, 4: 3}),
        ("aab", "xaab", {2: 3, 3: 4, 4: 5}),
        # one of two is gone, or a third one came: those in place stay
        ("aba", "ab", {2: 2, 3: 3}),
        ("aba", "xba", {3: 3, 4: 4}),
        ("ab", "aab", {2: 2, 3: 4}),
        ("ab", "bxa", {2: 4, 3: 2}),
    ],
)
def test_rows_are_found_again_by_their_key(was: str, now: str, found: dict[int, int]) -> None:
    assert locate(keyed(*was), keyed(*now)) == found


def test_a_row_without_a_key_is_never_found() -> None:
    assert locate({2: ("", ""), 3: ("", "x")}, {2: ("", ""), 3: ("", "x")}) == {3: 3}


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_a_row_is_only_found_where_its_key_is_and_no_place_twice(
    was: list[str], now: list[str]
) -> None:
    keys, present = keyed(*was), keyed(*now)
    found = locate(keys, present)
    assert len(set(found.values())) == len(found)
    assert all(keys[number] == present[place] for number, place in found.items())
    for name in set(was):
        assert sum(keys[n] == (name,) for n in found) == min(was.count(name), now.count(name))


# ---- differences ----


def test_only_differences_are_written_side_by_side_together() -> None:
    grid = [HEADER, ["Acme", "", "", "Completed", "old"], ["Plex", "", "", "", ""]]
    desired = {2: done(2), 3: done(3)}
    assert plan(grid, desired) == [Block(2, 5, ("out/2",)), Block(3, 4, ("Completed", "out/3"))]
    assert plan(grid, {2: {"status": "Completed"}}) == []
    assert plan(grid, {2: {"Status": ""}}) == [Block(2, 4, ("",))]


def test_cells_apart_are_blocks_apart() -> None:
    desired = {2: {"Website": "w", "Status": "s"}}
    assert plan(brands("Acme"), desired) == [Block(2, 2, ("w",)), Block(2, 4, ("s",))]


def test_a_text_is_taken_back_only_where_it_is_our_own() -> None:
    grid = [HEADER, ["Acme", "", "", "Completed"], ["Plex", "", "", "on hold"], ["Zeta"]]
    back: Texts = {"Status": TakeBack("Completed".__eq__)}
    keys = target(("Acme", "Plex", "Zeta"))
    assert plan(grid, dict.fromkeys((2, 3, 4), back), keys) == [Block(2, 4, ("",))]
    bare = [["Brand Name"], ["Acme"]]
    assert plan(bare, {2: back}) == [], "no column is made to take something back"


def test_a_row_of_which_nothing_is_said_is_looked_for_all_the_same() -> None:
    grid = [HEADER, ["Plex", "", "", "on hold"]]
    found = plan_write(grid, {2: {}, 3: {}}, keyed("Acme", "Plex"), ("Brand Name",))
    assert (found.blocks, found.same, found.moved, found.gone) == ((), 1, 1, (2,))


def test_a_new_column_comes_behind_the_last_one_with_its_header() -> None:
    grid = [HEADER, ["Acme", "", "", "", "", "a note"], ["Plex"]]
    assert plan(grid, {3: {"Cost": "0.01", "Status": "x"}}) == [
        Block(1, 7, ("Cost",)),
        Block(3, 4, ("x",)),
        Block(3, 7, ("0.01",)),
    ]


def test_a_sheet_that_lost_its_key_column_is_not_written() -> None:
    with pytest.raises(UsageError, match="no column 'Brand Name' any more"):
        plan([["Name", "Status"], ["Acme"]], {2: done(2)})
    with pytest.raises(UsageError, match="no column 'Brand Name' any more"):
        plan([], {2: done(2)})


def test_requests_stay_within_cells_and_bytes() -> None:
    blocks = [Block(row, 1, ("پ" * 10, "b")) for row in range(100)]
    assert [len(one) for one in requests_of(blocks, most_cells=60)] == [30, 30, 30, 10]
    sizes = [len(one) for one in requests_of(blocks, most_bytes=1_000)]
    assert sum(sizes) == 100 and max(sizes) == 6
    assert [len(one) for one in requests_of(blocks[:3], most_bytes=1)] == [1, 1, 1]
    assert list(requests_of([])) == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("\ud800x\0", "?x"),
        ("x" * MOST_CHARS, "x" * MOST_CHARS),
        ("x" * (MOST_CHARS + 1), "x" * (MOST_CHARS - 4) + " […]"),
        ("😀" * 25_001, "😀" * 24_998 + " […]"),
    ],
)
def test_texts_are_what_a_cell_can_keep(text: str, kept: str) -> None:
    assert cell_text(text) == kept
    assert cell_text(kept) == kept


# ---- when ----


def test_rows_are_due_when_enough_are_gathered_or_a_minute_has_passed() -> None:
    gathered = Gathered(most_rows=3, most_s=60)
    assert gathered.due_at == math.inf
    gathered.add({2: done(2)}, 100)
    gathered.add({2: done(2, "again")}, 110)
    gathered.add({3: done(3)}, 120)
    assert gathered.due_at == 160
    gathered.add({4: done(4)}, 130)
    assert gathered.due_at <= 130
    gathered.failed(130, 60)
    assert gathered.due_at == 190
    gathered.add({5: done(5)}, 140)
    gathered.written({2: done(2), 3: done(3), 4: done(4)}, 150)
    assert gathered.rows == {2: done(2, "again"), 5: done(5)}
    assert gathered.due_at == 210
    gathered.written(dict(gathered.rows), 220)
    assert gathered.due_at == math.inf


def test_without_a_bound_in_time_only_full_writes_are_due() -> None:
    gathered = Gathered(most_rows=2, most_s=math.inf)
    gathered.add({2: done(2)}, 100)
    assert gathered.due_at == math.inf
    gathered.add({3: done(3)}, 100)
    assert gathered.due_at == 0


# ---- one write-back ----


def test_a_write_back_is_one_request_and_the_next_one_none(book: Book, ledger: Ledger) -> None:
    book.load(*brands(*NAMES))
    desired = {number: done(number) for number in range(2, 9)}
    counts = write(book, ledger, desired)
    assert counts == WriteCounts(rows=7, cells=14, requests=1)
    assert book.rows()[3] == ["تاژ", "", "", "Completed", "out/4"]
    assert write(book, ledger, desired) == WriteCounts(same=7)
    desired[4] = done(4, "Failed")
    assert write(book, ledger, desired) == WriteCounts(rows=1, cells=1, requests=1, same=6)
    assert book.writes == 2


def test_what_looks_like_a_formula_stays_text(book: Book, ledger: Ledger) -> None:
    """RAW is why no apostrophe is needed: Google parses nothing."""
    book.load(*brands(*NAMES))
    texts = ['=HYPERLINK("http://x.example")', "+1", "-1", "@x", "\tx", "007", "TRUE"]
    desired = {number: {"Status": text} for number, text in enumerate(texts, start=2)}
    write(book, ledger, desired)
    shown = book.all()["INPUT"]
    assert shown["formulas"] == []
    assert [row[3] for row in shown["values"][1:]] == texts
    assert write(book, ledger, desired).rows == 0


def test_rows_that_were_moved_are_found_and_those_gone_are_reported(
    book: Book, ledger: Ledger
) -> None:
    book.load(HEADER, ["new"], ["Moo"], ["Acme", "", "", "", "", "my note"], [], ["3M"])
    counts = write(book, ledger, {number: done(number) for number in range(2, 9)})
    assert counts == WriteCounts(rows=3, cells=6, requests=1, moved=3, gone=(3, 4, 6, 8))
    assert book.rows() == [
        HEADER,
        ["new"],
        ["Moo", "", "", "Completed", "out/7"],
        ["Acme", "", "", "Completed", "out/2", "my note"],
        [],
        ["3M", "", "", "Completed", "out/5"],
    ]


def test_a_moved_column_is_found_by_its_header(book: Book, ledger: Ledger) -> None:
    book.load(["Status", "Notes", "brand name "], ["", "n", "Acme"])
    write(book, ledger, {2: {"Status": "Completed"}}, target(("Acme",)))
    assert book.rows()[1] == ["Completed", "n", "Acme"]


def test_duplicates_of_a_brand_do_not_overwrite_each_other(book: Book, ledger: Ledger) -> None:
    names = ("Acme", "Plex", "Acme")
    book.load(*brands("new", *names))
    write(book, ledger, {2: done(2), 4: done(4)}, target(names))
    assert [row[4:] for row in book.rows()[1:]] == [[], ["out/2"], [], ["out/4"]]


def test_a_grid_that_is_too_small_grows(book: Book, ledger: Ledger) -> None:
    book.load(["Brand Name"], ["Acme"], rows=2, columns=1)
    write(book, ledger, {2: {"Status": "x", "Report": "y"}}, target(("Acme",)))
    assert book.rows() == [["Brand Name", "Status", "Report"], ["Acme", "x", "y"]]
    assert len(book.requests("spreadsheets.batchUpdate")) == 1


def test_large_write_backs_are_cut_into_requests(book: Book, ledger: Ledger) -> None:
    names = [f"brand {number}" for number in range(40)]
    book.load(*brands(*names))
    desired = {number: done(number) for number in range(2, 42)}
    counts = write(book, ledger, desired, target(names), most_cells=20)
    assert (counts.rows, counts.requests, book.writes) == (40, 4, 4)


def test_a_sheet_that_may_only_be_read_is_told(book: Book, ledger: Ledger) -> None:
    book.load(*brands(*NAMES), read_only=True)
    with pytest.raises(SheetsError, match=r"cannot be written.*as editor"):
        write(book, ledger, {2: done(2)})


# ---- following a run ----


class Killed(BaseException):
    """The process ends here."""


class Mortal(Sheets):
    """The Sheets API in a process that is killed before or after its n-th call.

    Args:
        lives: calls that are made; the next one kills.
        after: whether that one still reaches Google.
    """

    def __init__(self, access: SheetsAccess, ledger: Ledger, lives: float, after: bool) -> None:
        super().__init__(access, ledger)
        self.calls = 0
        self._lives = lives
        self._after = after

    async def _counted(self, call: Callable[[], Awaitable[Any]]) -> Any:
        self.calls += 1
        if self.calls <= self._lives:
            return await call()
        if self._after:
            await call()
        raise Killed

    async def find(self, address: SheetAddress, sheet_id: int | None = None) -> Worksheet:
        found: Worksheet = await self._counted(lambda: super(Mortal, self).find(address, sheet_id))
        return found

    async def read(self, worksheet: Worksheet) -> list[list[str]]:
        cells: list[list[str]] = await self._counted(lambda: super(Mortal, self).read(worksheet))
        return cells

    async def write(self, worksheet: Worksheet, blocks: Sequence[Block]) -> None:
        await self._counted(lambda: super(Mortal, self).write(worksheet, blocks))

    async def grow(self, worksheet: Worksheet, rows: int, columns: int) -> None:
        await self._counted(lambda: super(Mortal, self).grow(worksheet, rows, columns))


def sheet_says(book: Book) -> dict[str, list[str]]:
    return {row[0]: [*row[3:5], *[""] * (5 - max(3, len(row)))] for row in book.rows()[1:]}


def ledger_says(truth: Desired, names: Sequence[str] = NAMES) -> dict[str, list[str]]:
    texts = {names[number - 2]: [*map(str, texts.values())] for number, texts in truth.items()}
    return {name: texts.get(name, ["", ""]) for name in names}


FEW = NAMES[:4]
FINISHED = {number: done(number) for number in range(2, 6)}


def live(
    book: Book, ledger: Ledger, truth: dict[int, Mapping[str, str]], lives: float, after: bool
) -> int:
    """One process's life: what the ledger lacks is done, and written back; gives its calls."""

    async def main() -> int:
        async with Mortal(book.access, ledger, lives, after) as sheets:
            follower = SheetFollower(sheets, target(FEW), ledger.clock.now, most_rows=3)
            assert await follower.reconcile(dict(truth)) is not None
            assert sheet_says(book) == ledger_says(truth, FEW)
            for number in FINISHED:
                if number in truth:
                    continue
                truth[number] = FINISHED[number]
                follower.gather({number: truth[number]})
                await follower.turn()
            assert await follower.reconcile(dict(truth)) is not None
            return sheets.calls

    return asyncio.run(main())


def test_after_a_kill_at_any_call_the_sheet_equals_the_ledger(book: Book, ledger: Ledger) -> None:
    book.load(*brands(*FEW))
    total = live(book, ledger, {}, math.inf, False)
    # find, read, grow, write: once for three rows, and once for the rest
    assert total == 8
    for lives in range(total):
        for after in (False, True):
            book.load(*brands(*FEW))
            truth: dict[int, Mapping[str, str]] = {}
            with pytest.raises(Killed):
                live(book, ledger, truth, lives, after)
            live(book, ledger, truth, math.inf, False)
            assert sheet_says(book) == ledger_says(FINISHED, FEW)


def test_processes_killed_again_and_again_get_there(book: Book, ledger: Ledger) -> None:
    draw = random.Random(7)
    book.load(*brands(*FEW))
    truth: dict[int, Mapping[str, str]] = {}
    for _ in range(8):
        try:
            live(book, ledger, truth, draw.randrange(6), draw.random() < 0.5)
        except Killed:
            continue
    live(book, ledger, truth, math.inf, False)
    assert sheet_says(book) == ledger_says(FINISHED, FEW)


def follow(
    book: Book,
    ledger: Ledger,
    story: Callable[[SheetFollower], Awaitable[None]],
    names: Sequence[str] = NAMES,
    now: Callable[[], float] | None = None,
    **terms: Any,
) -> SheetFollower:
    async def main() -> SheetFollower:
        async with Sheets(book.access, ledger) as sheets:
            follower = SheetFollower(sheets, target(names), now or ledger.clock.now, **terms)
            await story(follower)
            return follower

    return asyncio.run(main())


def test_fifty_rows_are_one_write(book: Book, ledger: Ledger) -> None:
    names = [f"brand {number}" for number in range(500)]
    book.load(*brands(*names))

    async def story(follower: SheetFollower) -> None:
        truth: dict[int, Mapping[str, str]] = {}
        await follower.reconcile(truth)
        for number in range(2, 502):
            truth[number] = done(number)
            follower.gather({number: truth[number]})
            await follower.turn()
        await follower.reconcile(truth)

    follower = follow(book, ledger, story, names)
    assert book.writes == 10
    assert (follower.total.rows, follower.total.requests) == (500, 10)
    assert all(row[3] == "Completed" for row in book.rows()[1:])


def test_slow_rows_are_written_once_a_minute(book: Book, ledger: Ledger) -> None:
    book.load(*brands(*NAMES))
    clock = [1_000.0]
    written: list[int] = []

    async def story(follower: SheetFollower) -> None:
        for number in range(2, 9):
            follower.gather({number: done(number)})
            if counts := await follower.turn():
                written.append(counts.rows)
            clock[0] += 25

    follow(book, ledger, story, now=lambda: clock[0])
    # four rows a minute after the first of them came; the others have waited for 50 s
    assert (written, book.writes) == ([4], 1)


def test_trouble_with_the_sheet_is_kept_and_made_up_for(book: Book, ledger: Ledger) -> None:
    book.load(*brands(*NAMES), read_only=True)
    clock = [1_000.0]
    seen: list[str] = []

    async def story(follower: SheetFollower) -> None:
        follower.gather({2: done(2), 3: done(3)})
        for _ in range(3):
            assert await follower.turn() is None
        seen.append(str(follower.problem))
        book.load(*brands(*NAMES))
        clock[0] += 61
        assert await follower.turn() is not None

    follower = follow(book, ledger, story, now=lambda: clock[0], most_rows=2)
    assert "as editor" in seen[0]
    assert follower.problem is None
    assert [row[3:] for row in book.rows()[1:3]] == [["Completed", "out/2"], ["Completed", "out/3"]]
    # two of the three turns were not due: a sheet that refuses is asked once a minute
    assert [one["status"] for one in book.requests("values.batchUpdate")] == [403, 200]


def test_a_worksheet_renamed_meanwhile_is_still_the_one(book: Book, ledger: Ledger) -> None:
    book.put({"INPUT": brands(*NAMES), "second": [["x"]]})

    async def story(follower: SheetFollower) -> None:
        assert await follower.reconcile({2: done(2)})
        book.put({"Done": brands(*NAMES), "INPUT": []})
        assert await follower.reconcile({3: done(3)})

    follow(book, ledger, story)
    assert book.rows("Done")[2][3:] == ["Completed", "out/3"]


@pytest.mark.parametrize("kind", ["cut", "malformed_json", "status"])
def test_a_lost_reply_or_a_refused_write_is_written_again(
    book: Book, ledger: Ledger, kind: str
) -> None:
    book.load(*brands(*NAMES))
    rule = {"kind": kind, "status": 503 if kind == "status" else None, "count": 2}
    book.configure(faults=[{**rule, "provider": "sheets", "model": "write"}])
    desired = {number: done(number) for number in range(2, 9)}
    assert write(book, ledger, desired).rows == 7
    assert sheet_says(book) == ledger_says(desired)
    assert book.writes == 3


# ---- beside a run ----


def thread(
    book: Book, folder: Path, truth: Mapping[int, Mapping[str, str]], **terms: Any
) -> SheetThread:
    return SheetThread(
        lambda: open_ledger(folder), book.access, target(), lambda _: dict(truth), **terms
    )


def test_the_thread_begins_with_what_is_missing_and_ends_with_everything(
    book: Book, ledger: Ledger, tmp_path: Path
) -> None:
    book.load(*brands(*NAMES))
    truth: dict[int, Mapping[str, str]] = {2: done(2), 3: done(3, "old")}
    with thread(book, tmp_path, truth, most_rows=2) as following:
        until(lambda: book.writes == 1)
        assert sheet_says(book) == ledger_says(truth)
        for number in range(3, 6):
            truth[number] = done(number)
            following.gather({number: truth[number]})
        until(lambda: book.writes >= 2)
        truth[6] = done(6)
        following.gather({6: truth[6]})
    assert following.problem is None
    assert sheet_says(book) == ledger_says(truth)
    assert following.total.rows >= 6


def test_the_thread_outlives_a_sheet_that_refuses_and_says_so(
    book: Book, ledger: Ledger, tmp_path: Path
) -> None:
    book.load(*brands(*NAMES), read_only=True)
    with thread(book, tmp_path, {2: done(2)}, most_rows=1) as following:
        following.gather({2: done(2)})
    assert isinstance(following.problem, SheetsError)
    assert "as editor" in str(following.problem)


def test_the_end_of_a_run_waits_for_the_sheet_only_so_long(
    book: Book, ledger: Ledger, tmp_path: Path
) -> None:
    book.load(*brands(*NAMES))
    book.configure(faults=[{"kind": "status", "status": 429, "provider": "sheets"}])
    began = time.monotonic()
    slow = replace(book.access, backoff_s=30.0)
    following = SheetThread(
        lambda: open_ledger(tmp_path), slow, target(), lambda _: {2: done(2)}, last_tries_s=0.5
    )
    with following:
        until(lambda: len(book.requests()) > 0)
    assert time.monotonic() - began < 25
    assert "next run of the batch writes what is missing" in str(following.problem)


def test_no_thread_is_left_behind(book: Book, ledger: Ledger, tmp_path: Path) -> None:
    book.load(*brands(*NAMES))
    with thread(book, tmp_path, {}):
        pass
    assert not [one for one in threading.enumerate() if one.name == "sheet-follower"]


def test_the_end_is_heard_at_once(book: Book, ledger: Ledger, tmp_path: Path) -> None:
    """News and end come together; a thread that took the one for the other slept for a minute."""
    began = time.monotonic()
    for _ in range(20):
        with thread(book, tmp_path, {}) as following:
            until(lambda: following._loop is not None)
            following.gather({2: done(2)})
    assert time.monotonic() - began < 55


def until(fact: Callable[[], bool], bound_s: float = 15.0) -> None:
    deadline = time.monotonic() + bound_s
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)
