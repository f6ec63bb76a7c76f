"""Batches of worksheets: while they run, after kills at any point, and with people at the sheet."""

from __future__ import annotations

import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, start_generation
from batch_pipeline.ledger.overview import clear
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.workloads.write_back import (
    Reconciled,
    SheetOrigin,
    reconcile_sheet,
    set_write_back,
)
from batch_pipeline_tests.sheets import BOOK, Book
from batch_pipeline_tests.simulated import Simulator
from batch_pipeline_tests.workloads.sheeted import (
    COMPLETED,
    HEADER,
    OUTPUT,
    SheetBench,
    says,
    topic_book,
    topics,
)

ROWS = 300
SLOW = {"base_s": 0.07, "per_output_token_s": 0, "jitter_s": 0.02}


@pytest.fixture
def bench(tmp_path: Path, simulator: Simulator) -> SheetBench:
    return SheetBench(tmp_path, simulator, workers=2)


def statuses(book: Book) -> dict[str, str]:
    """Topic -> status, as a person sees them."""
    rows = [[*row, *[""] * 4][:4] for row in book.rows()[1:]]
    return {row[0]: row[2] for row in rows if row[0]}


def truth(bench: SheetBench, batch: Batch) -> dict[str, str]:
    """Topic -> status, as the ledger has it."""
    return {item.row["Topic"]: says(item) for item in bench.items(batch)}


def succeeded(bench: SheetBench, batch: Batch) -> set[str]:
    items = bench.items(batch)
    return {item.row["Topic"] for item in items if item.outcome is Outcome.SUCCEEDED}


def report(bench: SheetBench, batch: Batch) -> Reconciled | None:
    with bench.open() as ledger:
        folder = bench.settings.data / OUTPUT
        return reconcile_sheet(ledger, bench.config.domain, batch, folder, bench.url)


def hung(book: Book) -> int:
    """Requests that Google holds on to."""
    return len([one for one in book.requests() if one["fault"] == "hang"])


def wait_for_hung(book: Book, count: int, process: BaseProcess, bound_s: float = 60) -> None:
    deadline = time.monotonic() + bound_s
    while hung(book) < count:
        assert process.is_alive(), "the process ended before it came to that point"
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- in step ----


def test_a_run_writes_at_most_once_for_so_many_rows_and_leaves_the_sheet_equal(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(120))
    batch = bench.take()
    assert bench.follow(batch, most_rows=50) == []
    assert statuses(book) == truth(bench, batch) == dict.fromkeys(statuses(book), COMPLETED)
    # What is done when the sheet is first read, 50 and 50 in steady state, the rest at the end;
    # what is in the sheet already is not written.
    assert book.writes <= 4
    assert all(row[3:] == [] for row in book.rows()[1:]), "files are named by the report"
    before = book.writes
    assert bench.follow(batch, "again") == []
    assert book.writes == before


def test_the_report_names_the_outputs_in_one_request(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(30))
    batch = bench.take()
    bench.follow(batch)
    before = book.writes
    found = report(bench, batch)
    assert found is not None and found.warnings == [] and found.counts.rows == 30
    assert book.writes == before + 1
    assert all(row[3].startswith(str(bench.settings.data / OUTPUT)) for row in book.rows()[1:])
    again = report(bench, batch)
    assert again is not None and again.words.endswith("says what the ledger does.")
    assert book.writes == before + 1


def test_rows_that_failed_say_so_and_those_left_to_do_keep_what_they_say(
    bench: SheetBench, simulator: Simulator
) -> None:
    rows = topics(30)
    rows[3] = ["topic 4", "About plutonium.", COMPLETED, "old"]
    rows[25] = ["topic 26", "About learning.", "said by hand", ""]
    book = topic_book(simulator, rows)
    book.configure(faults=[{"kind": "invalid_item", "match": "plutonium"}])
    bench.config = bench.config.with_options({"limit": 20})
    batch = bench.take()
    bench.follow(batch)
    found = statuses(book)
    assert found == {**truth(bench, batch), "topic 26": "said by hand"}
    assert (found["topic 4"], found["topic 1"]) == ("Error", COMPLETED)
    report(bench, batch)
    assert statuses(book) == found
    assert book.rows()[4] == ["topic 4", "About plutonium.", "Error"]


def test_a_sheet_without_columns_for_it_gets_them(bench: SheetBench, simulator: Simulator) -> None:
    book = topic_book(simulator, []).load(HEADER[:2], *topics(12), columns=2)
    batch = bench.take()
    bench.follow(batch)
    report(bench, batch)
    assert book.rows()[0] == HEADER
    assert statuses(book) == truth(bench, batch)


# ---- rows that are not done ----


def limited(bench: SheetBench, limit: int = ROWS) -> SheetBench:
    bench.config = bench.config.with_options({"limit": limit})
    return bench


def column(book: Book, place: int) -> list[str]:
    return [[*row, *[""] * 4][place] for row in book.rows()[1:]]


def test_a_sheet_of_another_system_keeps_its_cells_until_their_rows_are_done(
    bench: SheetBench, simulator: Simulator
) -> None:
    old = [[*row, status, "outputs"] for row, status in zip(
        topics(3), [COMPLETED, COMPLETED, "on hold: client"], strict=True
    )]  # fmt: skip
    book = topic_book(simulator, old)
    batch = limited(bench, 1).take()
    bench.follow(batch)
    report(bench, batch)
    assert column(book, 2) == [COMPLETED, COMPLETED, "on hold: client"]
    assert column(book, 3)[0] != "outputs" and column(book, 3)[1:] == ["outputs", "outputs"]
    limited(bench).follow(batch, "the rest")
    assert column(book, 2) == [COMPLETED] * 3


def test_what_a_person_wrote_over_a_status_stays_while_its_row_is_asked_anew(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(3))
    batch = bench.take()
    bench.follow(batch)
    book.load(HEADER, *[[*row, status] for row, status in zip(
        reversed(topics(3)), [COMPLETED, "on hold", COMPLETED], strict=True
    )])  # fmt: skip
    with bench.open() as ledger:
        start_generation(ledger, batch.batch_id, limit=2)
    report(bench, batch)
    assert statuses(book) == {"topic 1": "", "topic 2": "on hold", "topic 3": COMPLETED}
    bench.follow(batch, "forced")
    assert set(statuses(book).values()) == {COMPLETED}


@pytest.mark.usefixtures("either_database")
def test_a_status_whose_answer_was_cleared_is_taken_back(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(2))
    batch = bench.take()
    bench.follow(batch)
    with bench.open() as ledger, ledger.write() as connection:
        clear(connection, ledger.now(connection), "simulated", None, None)
    report(bench, batch)
    assert set(statuses(book).values()) == {""}


def test_a_row_whose_key_was_changed_loses_the_status_of_what_it_was(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(3))
    bench.follow(bench.take())
    header, *rows = book.rows()
    rows[1][0] = "topic two"
    book.load(header, *rows, ["new", "by hand", COMPLETED], ["newer", "by hand", "on hold"])
    report(bench, bench.take())
    assert statuses(book) == {
        "topic 1": COMPLETED, "topic two": "", "topic 3": COMPLETED,
        "new": COMPLETED, "newer": "on hold",
    }  # fmt: skip


# ---- several batches of a worksheet ----


def weeks(bench: SheetBench, book: Book, poison: str = "") -> tuple[Batch, Batch]:
    """A batch of three rows of which one was done; a later one of four, all done."""
    faults = [{"kind": "invalid_item", "match": poison}] if poison else []
    book.configure(faults=faults)
    first = limited(bench, ROWS if poison else 1).take()
    bench.follow(first, "first")
    report(bench, first)
    book.configure()
    book.load(*book.rows(), *topics(1, 4))
    second = limited(bench).take()
    assert second.batch_id != first.batch_id
    return first, second


@pytest.mark.parametrize("poison", ["", "number 3"], ids=["pending", "failed"])
@pytest.mark.usefixtures("either_database")
def test_an_older_batch_leaves_what_a_newer_one_of_its_worksheet_came_to(
    bench: SheetBench, simulator: Simulator, poison: str
) -> None:
    book = topic_book(simulator, topics(3))
    first, second = weeks(bench, book, poison)
    report(bench, second)
    assert column(book, 2)[2:] == ["Error" if poison else "", ""], "a failed row says so till then"
    bench.follow(second, "second")
    report(bench, second)
    before = book.rows()
    assert set(column(book, 2)) == {COMPLETED}
    items = {item.row["Topic"]: item.outcome for item in bench.items(first)}
    assert items["topic 3"] is (Outcome.FAILED if poison else Outcome.PENDING)
    report(bench, first)
    assert book.rows() == before
    if not poison:
        limited(bench, 1).follow(first, "again")
        report(bench, first)
        assert book.rows() == before


def test_an_older_batch_writes_what_a_newer_one_could_not(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(3))
    first, second = weeks(bench, book, "number 3")
    rows = book.rows()
    book.load(*rows, read_only=True)
    (warning,) = bench.follow(second, "second")
    assert "as editor" in warning
    book.load(*rows)
    report(bench, first)
    assert column(book, 2) == [COMPLETED] * 3 + [""], "topic 4 is no row of the older batch"
    report(bench, second)
    assert column(book, 2) == [COMPLETED] * 4


def test_what_an_older_batch_does_while_a_newer_one_waits_stays_said(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(3))
    first, second = weeks(bench, book)
    bench.follow(first, "the rest")
    assert column(book, 2) == [COMPLETED] * 3 + [""]
    report(bench, second)
    assert column(book, 2) == [COMPLETED] * 3 + [""]


def test_an_older_batch_that_left_a_row_out_leaves_what_a_newer_one_says_of_it(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(2))
    bench.follow(bench.take())
    book.load(*book.rows(), *topics(1, 3))
    older = bench.take()
    bench.follow(older, "older")
    book.load(*book.rows(), *topics(1, 4))
    book.configure(faults=[{"kind": "invalid_item", "match": "number 2"}])
    newer = bench.take(force=True)
    bench.follow(newer, "newer")
    assert column(book, 2) == [COMPLETED, "Error", COMPLETED, COMPLETED]
    report(bench, older)
    assert column(book, 2) == [COMPLETED, "Error", COMPLETED, COMPLETED]


@pytest.mark.usefixtures("either_database")
def test_a_forced_batch_takes_back_what_was_said_before_it(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(3))
    bench.follow(bench.take())
    book.load(*book.rows(), ["topic 4", "About learning number 4.", COMPLETED])
    batch = bench.take(force=True)
    report(bench, batch)
    assert column(book, 2) == ["", "", "", COMPLETED], "of topic 4 we said nothing"
    bench.follow(batch, "forced")
    assert column(book, 2) == [COMPLETED] * 4


def test_batches_of_another_worksheet_do_not_matter(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, []).put(
        {
            "INPUT": [HEADER, *topics(2)],
            "OTHER": [HEADER, *[[*row, COMPLETED] for row in topics(2)]],
        }
    )
    bench.follow(bench.take())
    batch = bench.take(f"sheets:{BOOK}/OTHER", force=True)
    report(bench, batch)
    assert [row[2] for row in book.rows("OTHER")[1:]] == [COMPLETED] * 2


# ---- kills ----

READ, META = ("read", "values.get"), ("read", "spreadsheets.get")
GROW, WRITE = ("write", "spreadsheets.batchUpdate"), ("write", "values.batchUpdate")


@pytest.mark.parametrize(
    "points",
    [
        # (what, which of them, whether Google still does it before the process is killed)
        [(META, 1, False), (READ, 1, False), (READ, 1, True), (READ, 2, False), (READ, 2, True)],
        [(GROW, 1, False), (GROW, 1, True), (WRITE, 1, False), (WRITE, 1, True)],
        [(WRITE, 2, False), (WRITE, 2, True), (WRITE, 3, False), (WRITE, 1, True)],
    ],
    ids=["reading", "growing and writing", "between writes"],
)
def test_after_a_kill_at_every_point_of_the_write_back_the_sheet_gets_equal_to_the_ledger(
    bench: SheetBench, simulator: Simulator, points: list[tuple[tuple[str, str], int, bool]]
) -> None:
    rng = random.Random(len(points))
    book = topic_book(simulator, []).load(HEADER[:2], *topics(ROWS), columns=2)
    bench.config = bench.config.with_options({"workers": 1})
    batch = bench.take()
    for life, ((kind, method), which, done) in enumerate(points):
        rule = {"kind": "hang", "provider": "sheets", "model": kind, "match": f"{method} "}
        book.configure(latency=SLOW, faults=[{**rule, "after": which, "billed": done}])
        before = hung(book)
        process = bench.start_process(batch, f"life {life}")
        try:
            wait_for_hung(book, before + 1, process)
        finally:
            process.kill()
            process.join()
        claimed = {topic for topic, status in statuses(book).items() if status == COMPLETED}
        assert claimed <= succeeded(bench, batch), "no row says more than the ledger"
        header, *rows = book.rows()
        rng.shuffle(rows)
        book.load(header, *rows, columns=max(len(header), 2))
    book.configure()
    assert 0 < len(succeeded(bench, batch)) < ROWS, "kills came in the middle of the work"
    assert bench.follow(batch, "last") == []
    assert statuses(book) == truth(bench, batch) == {row[0]: COMPLETED for row in topics(ROWS)}


@pytest.mark.parametrize("done", [False, True], ids=["lost", "done"])
def test_after_a_kill_while_statuses_are_taken_back_the_report_takes_back_the_rest(
    bench: SheetBench, simulator: Simulator, done: bool
) -> None:
    book = topic_book(simulator, [[*row, "on hold"] for row in topics(30)])
    batch = bench.take()
    limited(bench, 20).follow(batch)
    with bench.open() as ledger:
        assert start_generation(ledger, batch.batch_id) == 20
    hang = {"kind": "hang", "provider": "sheets", "match": "values.batchUpdate ", "billed": done}
    unanswered = {"kind": "hang", "match": "About learning"}
    book.configure(faults=[{**hang, "model": "write"}, unanswered])
    process = bench.start_process(batch, "killed")
    try:
        wait_for_hung(book, 1, process)
    finally:
        process.kill()
        process.join()
    assert column(book, 2) == [*["" if done else COMPLETED] * 20, *["on hold"] * 10]
    book.configure()
    assert not succeeded(bench, batch)
    report(bench, batch)
    assert column(book, 2) == [*[""] * 20, *["on hold"] * 10]
    limited(bench).follow(batch, "last")
    assert statuses(book) == truth(bench, batch) == dict.fromkeys(statuses(book), COMPLETED)


# ---- people at the sheet ----


def test_rows_that_people_move_add_and_delete_meanwhile_are_found_or_named(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(30))
    batch = bench.take()
    header, *rows = book.rows()
    rows = [["new one", "of today"], *reversed(rows)]
    del rows[1 + 29 - 6]  # topic 7, row 8 when it was read
    book.load([*header, "Notes"], *[[*row, "", "", "mine"] for row in rows])
    warnings = bench.follow(batch)
    assert len(warnings) == 1 and "1 rows of the batch are not there any more" in warnings[0]
    assert "row 8" in warnings[0]
    said = statuses(book)
    assert said.pop("new one") == ""
    assert said == {topic: COMPLETED for topic in truth(bench, batch) if topic != "topic 7"}
    assert all(row[4] == "mine" for row in book.rows()[1:])


def test_a_worksheet_that_is_renamed_between_runs_is_still_the_one(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(20))
    batch = bench.take()
    book.put({"Brands of 2026": book.rows(), "INPUT": [["nothing"]]})
    assert bench.follow(batch) == []
    assert {row[2] for row in book.rows("Brands of 2026")[1:]} == {COMPLETED}
    assert book.rows("INPUT") == [["nothing"]]


def test_headers_of_later_do_not_matter_but_the_key_column_does(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(20))
    batch = bench.take()
    book.load(["Thema", *HEADER[1:]], *topics(20))
    (warning,) = bench.follow(batch)
    assert "no column 'Topic' any more" in warning and "the next run of the batch" in warning
    assert book.writes == 0
    book.load(["Status", "Topic"], *[["", row[0]] for row in topics(20)])
    assert bench.follow(batch, "later") == []
    assert {row[0] for row in book.rows()[1:]} == {COMPLETED}


# ---- trouble ----


@pytest.mark.parametrize(
    "faults",
    [
        [{"kind": "status", "status": 429, "count": 1, "retry_after_s": 0}],
        [{"kind": "status", "status": 500, "count": 1}],
        [{"kind": "cut", "model": "write", "count": 1}],
        [{"kind": "malformed_json", "model": "write", "count": 1}],
    ],
    ids=["429", "500", "lost replies", "half a reply"],
)
def test_passing_trouble_with_the_sheet_is_not_noticed(
    bench: SheetBench, simulator: Simulator, faults: list[dict[str, Any]]
) -> None:
    book = topic_book(simulator, topics(20))
    batch = bench.take()
    book.configure(faults=[{"provider": "sheets", **fault} for fault in faults])
    assert bench.follow(batch) == []
    assert statuses(book) == truth(bench, batch)


@pytest.mark.parametrize(
    ("terms", "words"),
    [({"read_only": True}, "as editor"), ({"closed": True}, "as viewer")],
    ids=["read only", "no access"],
)
def test_a_sheet_that_refuses_stops_no_run_and_the_next_one_makes_up_for_it(
    bench: SheetBench, simulator: Simulator, terms: dict[str, Any], words: str
) -> None:
    book = topic_book(simulator, topics(20))
    batch = bench.take()
    book.load(HEADER, *topics(20), **terms)
    (warning,) = bench.follow(batch)
    assert words in warning and "The results are kept" in warning
    assert len(succeeded(bench, batch)) == 20
    found = report(bench, batch)
    assert found is not None and words in found.words
    book.load(HEADER, *topics(20))
    assert bench.follow(batch, "later") == []
    assert statuses(book) == truth(bench, batch)


def test_without_an_account_the_run_goes_on_and_says_so(
    bench: SheetBench, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic_book(simulator, topics(10))
    batch = bench.take()
    bench.url = lambda: None  # type: ignore[method-assign,assignment,return-value]
    (warning,) = bench.follow(batch)
    assert "GOOGLE_SERVICE_ACCOUNT_FILE" in warning
    assert len(succeeded(bench, batch)) == 10


# ---- not written back ----


def test_a_batch_may_leave_its_sheet_alone_and_change_its_mind(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(10))
    batch = bench.take(options={"write_back": False})
    reads = len(book.requests())
    bench.follow(batch)
    assert report(bench, batch) is None
    assert len(book.requests()) == reads and set(statuses(book).values()) == {""}
    assert bench.take().batch_id == batch.batch_id
    bench.follow(batch, "later")
    assert statuses(book) == truth(bench, batch)
    with bench.open() as ledger:
        origin = SheetOrigin.of(set_write_back(ledger, bench.take(), False))
    assert origin is not None and not origin.write_back


def test_what_is_no_worksheet_cannot_be_written_back(bench: SheetBench, tmp_path: Path) -> None:
    table = tmp_path / "topics.csv"
    table.write_text("Topic\nx\n")
    batch = bench.ingest(table)
    assert report(bench, batch) is None
    with bench.open() as ledger:
        assert set_write_back(ledger, batch, False) == batch
        with pytest.raises(UsageError, match="Nothing can be written back"):
            set_write_back(ledger, batch, True)


def test_forced_rows_say_nothing_until_they_have_ended_again(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(20))
    batch = bench.take()
    bench.follow(batch)
    with bench.open() as ledger:
        assert start_generation(ledger, batch.batch_id) == 20
    report(bench, batch)
    assert set(statuses(book).values()) == {""}
    bench.follow(batch, "forced")
    assert statuses(book) == truth(bench, batch) == dict.fromkeys(statuses(book), COMPLETED)
