"""Tables that users name: worksheets and files, how to read them, and which rows need work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.google_sheets.client import SheetsError
from batch_pipeline.ledger.batches import (
    UNCHANGED,
    Batch,
    BatchExistsError,
    list_batches,
    start_generation,
)
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.workloads.compare import Target, estimate_target
from batch_pipeline.workloads.estimate import Estimate
from batch_pipeline.workloads.inputs import Input, no_simulator
from batch_pipeline.workloads.roadmaps.workload import RoadmapsWorkload
from batch_pipeline.workloads.runner import ingest_batch, new_items, open_input
from batch_pipeline.workloads.write_back import sheet_origin
from batch_pipeline_tests.sheets import BOOK, Book
from batch_pipeline_tests.simulated import Simulator
from batch_pipeline_tests.workloads.sheeted import (
    HEADER,
    SOURCE,
    SheetBench,
    SheetedTopics,
    topic_book,
    topics,
)


@pytest.fixture
def bench(tmp_path: Path, simulator: Simulator) -> SheetBench:
    return SheetBench(tmp_path, simulator)


def batches(bench: SheetBench) -> list[Batch]:
    with bench.open() as ledger, ledger.read() as connection:
        return list_batches(connection, "simulated")


def outcomes(bench: SheetBench, batch: Batch) -> dict[str, str]:
    return {item.row["Topic"]: item.outcome.value for item in bench.items(batch)}


# ---- worksheets ----


def test_a_worksheet_is_read_once_for_its_batch(bench: SheetBench, simulator: Simulator) -> None:
    book = topic_book(simulator, [["a", "x", "Completed", "out"], [], ["b", "y"]])
    batch = bench.take()
    assert [one["method"] for one in book.requests()] == ["spreadsheets.get", "values.get"]
    assert (batch.source, batch.table_name, batch.columns) == (SOURCE, "INPUT", HEADER[:2])
    items = bench.items(batch)
    assert [(item.number, item.row) for item in items] == [
        (2, {"Topic": "a", "Description": "x"}),
        (4, {"Topic": "b", "Description": "y"}),
    ]
    assert bench.take() == batch and len(batches(bench)) == 1


def test_what_is_written_back_or_named_otherwise_makes_no_other_batch(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(3))
    batch = bench.take()
    book.load([*HEADER, "Notes"], *[[*row, "Completed", "out", "mine"] for row in topics(3)])
    assert bench.take(f"sheets:{BOOK}").batch_id == batch.batch_id


def test_the_same_rows_in_another_worksheet_are_another_batch(
    bench: SheetBench, simulator: Simulator
) -> None:
    """Each is written back to itself."""
    rows = [HEADER, *topics(3)]
    book = topic_book(simulator, []).put({"INPUT": rows})
    first = bench.take()
    Book(simulator, "2AbC").put({"INPUT": rows})
    second = bench.take("sheets:2AbC/INPUT")
    assert second.batch_id != first.batch_id
    with pytest.raises(UsageError, match=r"the same rows, but was read from sheets:1AbC"):
        bench.take("sheets:2AbC", batch_id=first.batch_id)
    book.load(HEADER, *topics(4))
    with pytest.raises(BatchExistsError):
        bench.take(batch_id=first.batch_id)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ({"kind": "status", "status": 500}, SheetsError, "cannot be read for now"),
        ({"kind": "status", "status": 403}, UsageError, "as viewer"),
    ],
)
def test_a_failed_read_is_no_batch_and_no_empty_sheet(
    bench: SheetBench,
    simulator: Simulator,
    fault: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    book = topic_book(simulator, topics(3))
    book.configure(faults=[{"provider": "sheets", "model": "read", **fault}])
    with pytest.raises(error, match=words):
        bench.take()
    assert batches(bench) == []


def test_an_empty_sheet_says_so(bench: SheetBench, simulator: Simulator) -> None:
    topic_book(simulator, [])
    with pytest.raises(UsageError, match="a header and no rows"):
        bench.take()
    assert batches(bench) == []


def test_a_workload_that_reads_no_sheets_says_so_before_anything_is_read(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(3))
    with bench.open() as ledger, pytest.raises(UsageError, match="does not read Google Sheets"):
        open_input(RoadmapsWorkload(), SOURCE, {}, ledger, bench.url)
    assert book.requests() == []


def test_rows_that_cannot_be_found_again_are_refused_unless_the_sheet_is_left_alone(
    bench: SheetBench, simulator: Simulator
) -> None:
    class Nameless(SheetedTopics):
        def sheet_columns(self, headers: Any, source: str) -> Any:
            return replace(super().sheet_columns(headers, source), key=("column_3",))

    topic_book(simulator, []).load(["Topic", "Description", "", "Status"], ["a", "x", "k"])
    with pytest.raises(UsageError, match="column_3 has no header"):
        _origin(bench, Nameless(), {})
    assert not _origin(bench, Nameless(), {"write_back": False}).write_back


@pytest.mark.parametrize("key", ["status", "Output Path"])
def test_a_column_by_which_rows_are_found_again_is_never_written(
    bench: SheetBench, simulator: Simulator, key: str
) -> None:
    class Careless(SheetedTopics):
        def sheet_columns(self, headers: Any, source: str) -> Any:
            return replace(super().sheet_columns(headers, source), key=("Topic", key))

    topic_book(simulator, topics(2))
    with pytest.raises(UsageError, match="would be written, and rows are found again by it") as no:
        _origin(bench, Careless(), {})
    assert "write_back: false" in no.value.next_step
    assert not _origin(bench, Careless(), {"write_back": False}).key_columns


def _origin(bench: SheetBench, workload: SheetedTopics, reading: dict[str, Any]) -> Any:
    with bench.open() as ledger:
        cells = Input(workload, SOURCE, reading, ledger, bench.url).cells()
    assert cells is not None
    return sheet_origin(workload, cells, reading)


# ---- how to read ----


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        ({"category": "x"}, "cannot read a table by 'category'"),
        ({"encoding": "utf-8"}, "'encoding' says nothing about a worksheet"),
        ({"worksheet": "INPUT"}, "sheets:<id>/<worksheet>"),
        ({"write_back": "no"}, "Write true or false"),
    ],
)
def test_reading_options_that_mean_nothing_here_are_refused_by_name(
    bench: SheetBench, simulator: Simulator, reading: dict[str, Any], words: str
) -> None:
    topic_book(simulator, topics(2))
    with pytest.raises(UsageError, match=words):
        bench.take(options=reading)


def test_the_refusal_names_what_there_is(bench: SheetBench, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("Topic;Description\nx;y\n")
    with bench.open() as ledger:
        with pytest.raises(UsageError, match="besides worksheet, write_back"):
            open_input(SheetedTopics(), str(table), {"sheet": 1}, ledger, no_simulator)
        with pytest.raises(UsageError, match=r"It knows encoding and delimiter\.$"):
            open_input(RoadmapsWorkload(), str(table), {"worksheet": "x"}, ledger, no_simulator)
        reading = {"delimiter": ";", "encoding": None}
        assert (
            next(
                open_input(RoadmapsWorkload(), str(table), reading, ledger, no_simulator).rows
            ).values["Description"]
            == "y"
        )


# ---- which rows need work ----


def test_rows_that_need_no_work_are_skipped_with_the_reason(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(6))
    first = bench.take()
    bench.follow(first)
    book.load(HEADER, *topics(4), ["topic 5", "changed"], ["new", "n"])
    second = bench.take()
    assert second.batch_id != first.batch_id
    done = [item for item in bench.items(second) if item.outcome is Outcome.SKIPPED]
    assert [(item.row["Topic"], item.error_kind) for item in done] == [
        (f"topic {n}", UNCHANGED) for n in range(1, 5)
    ]
    assert {item.error for item in done} == {f"Done in batch {first.batch_id}."}
    before = len(simulator.journal())
    assert bench.follow(second, "second") == []
    assert len(simulator.journal()) == before + 1, "one request for the two rows to do"
    assert {row[2] for row in book.rows()[1:]} == {"Completed"}


def test_an_estimate_leaves_unchanged_rows_out_and_reads_the_sheet_once(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(6))
    bench.follow(bench.take())
    book.load(HEADER, *topics(6), ["new", "n"])
    before = len(book.requests())

    def estimate(force: bool = False) -> Estimate:
        target = Target(SOURCE, None, {}, force)
        with bench.open() as ledger:
            route = bench.config.route
            found, _ = estimate_target(
                ledger, bench.config, target, [route], simulator=None, locate=bench.url
            )
        return found[0]

    assert estimate().to_ask == 1
    assert len(book.requests()) == before + 2
    assert estimate(force=True).to_ask == 7
    bench.take()
    assert (estimate().to_ask, estimate(force=True).to_ask) == (1, 7), "ingested, it is the same"


def test_force_asks_unchanged_rows_again_and_resumes_after_a_stop(
    bench: SheetBench, simulator: Simulator
) -> None:
    book = topic_book(simulator, topics(3))
    bench.follow(bench.take())
    book.load(HEADER, *topics(3), ["new", "n"])
    batch = bench.take()
    assert list(outcomes(bench, batch).values()) == ["skipped"] * 3 + ["pending"]
    with bench.open() as ledger:
        assert start_generation(ledger, batch.batch_id) == 3
        assert start_generation(ledger, batch.batch_id) == 0, "the generation goes on"
    before = len(simulator.journal())
    bench.follow(batch, "forced")
    assert len(simulator.journal()) > before
    assert set(outcomes(bench, batch).values()) == {"succeeded"}


def test_a_forced_batch_is_asked_whatever_is_known(bench: SheetBench, simulator: Simulator) -> None:
    book = topic_book(simulator, topics(3))
    bench.follow(bench.take())
    asked = len(simulator.journal())
    book.load(HEADER, *reversed(topics(3)))
    batch = bench.take(force=True)
    assert set(outcomes(bench, batch).values()) == {"pending"}
    with bench.open() as ledger:
        assert start_generation(ledger, batch.batch_id) == 0, "it has begun with the ingest"
    bench.follow(batch, "forced")
    assert len(simulator.journal()) == asked + 1


def test_an_unreadable_row_stays_failed_whatever_the_choice_says(bench: SheetBench) -> None:
    class Careless(SheetedTopics):
        def choose(self, table: Any, ledger: Any, batch_id: str, forced: bool) -> Any:
            return ((row, "done before") for row in table.rows)

    with bench.open() as ledger:
        table = bench.settings.data / "t.csv"
        table.write_text("Topic,Description\nx\ny,z\n")
        opened = Careless().open_input(str(table), {})
        items = list(new_items(Careless(), opened, ledger=ledger, batch_id="b"))
    assert [bool(item.problem) for item in items] == [True, False]
    assert items[1].unchanged == "done before"


def test_a_batch_of_a_file_remembers_how_it_was_read_and_what_is_kept(
    bench: SheetBench, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("Topic;Description\nx;y\n")
    with bench.open() as ledger:
        batch, _ = ingest_batch(
            ledger,
            bench.config,
            str(table),
            options={"delimiter": ";", "encoding": None},
            kept={"run": {"limit": 3}},
        )
    assert batch.options == {"delimiter": ";", "run": {"limit": 3}}
