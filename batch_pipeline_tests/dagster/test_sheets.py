"""Brands of a worksheet through Dagster's runs: status and outputs, trouble, kills."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from batch_pipeline.definitions import build_defs
from batch_pipeline.doors import RunRequest, RunResult, run_batch
from batch_pipeline.ledger.batches import list_batches, stream_items
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.limits.by_hand import Scope, set_limits
from batch_pipeline.workloads.write_back import SheetOrigin
from batch_pipeline_tests.dagster.installation import Installation
from batch_pipeline_tests.sheets import BOOK, HEADER, Book, fresh_book

SOURCE = f"sheets:{BOOK}/INPUT"
KNOBS = {"rate_limit": 60_000.0, "search_rate_limit": 60_000.0, "workers": 8, "chunk_size": 4}


def names(count: int, start: int = 1) -> list[list[str]]:
    return [[f"Brand {n}", f"https://brand-{n}.example/", ""] for n in range(start, start + count)]


@pytest.fixture
def book(here: Installation, instance: dg.DagsterInstance) -> Book:
    with here.ledger() as ledger, ledger.write() as connection:
        scope = Scope("simulated", "google-sheets")
        set_limits(connection, ledger.now(connection), scope, {"requests": 1e6})
    return fresh_book(here.simulator).load(HEADER, *names(6))


def run(**request: Any) -> RunResult:
    knobs = {**KNOBS, **request.pop("knobs", {})}
    return run_batch(RunRequest("brands", **{"source": SOURCE, **request}, knobs=knobs))


def shown(book: Book) -> dict[str, tuple[str, str]]:
    rows = [[*row, *[""] * 5][:5] for row in book.rows()[1:]]
    return {row[0]: (row[3], row[4]) for row in rows}


def test_a_sheet_says_how_each_brand_ended_and_where_its_files_are(
    here: Installation, instance: dg.DagsterInstance, book: Book
) -> None:
    result = run()
    assert (result.status, result.outcomes["succeeded"]) == ("done", 6)
    assert not [text for text in result.warnings if "sheets:" in text]
    for status, output in shown(book).values():
        assert status == "Completed"
        assert Path(output).is_dir() and here.data in Path(output).parents
    found = instance.fetch_materializations(dg.AssetKey(["brands", "batch_report"]), limit=1)
    event = found.records[0].asset_materialization
    assert event is not None
    assert str(event.metadata["sheet"].value).startswith(f"sheets:{BOOK}/INPUT says what the")

    writes, asked = book.writes, here.count_sent()
    again = run()
    assert (again.batch_id, again.outcomes["succeeded"]) == (result.batch_id, 6)
    assert (book.writes, here.count_sent()) == (writes, asked)

    book.load(*book.rows(), *names(2, 7))
    more = run()
    assert more.batch_id != result.batch_id
    assert (more.outcomes["skipped"], more.outcomes["succeeded"]) == (6, 2)
    assert {status for status, _ in shown(book).values()} == {"Completed"}
    assert all(Path(output).is_dir() for _, output in shown(book).values())


def test_a_trial_of_one_brand_leaves_the_other_rows_of_an_old_sheet_as_they_are(
    here: Installation, instance: dg.DagsterInstance, book: Book
) -> None:
    old = [("Completed", "outputs/Brand 1"), ("Completed", "outputs/Brand 2"), ("on hold", "")]
    book.load(HEADER, *[[*row, *said] for row, said in zip(names(3), old, strict=True)])
    result = run(knobs={"limit": 1})
    assert result.outcomes["succeeded"] == 1
    assert not [text for text in result.warnings if "sheets:" in text]
    found = [*shown(book).values()]
    assert found[0][0] == "Completed" and Path(found[0][1]).is_dir()
    assert found[1:] == old[1:]


def test_an_older_batch_of_a_sheet_leaves_what_the_newer_one_did(
    here: Installation, instance: dg.DagsterInstance, book: Book
) -> None:
    book.load(HEADER, *names(3))
    run(batch_id="week-a", knobs={"limit": 1})
    book.load(*book.rows(), *names(1, 4))
    assert run(batch_id="week-b").outcomes["succeeded"] == 3
    done = book.rows()
    assert {status for status, _ in shown(book).values()} == {"Completed"}
    assert [Path(output).parts[-3] for _, output in shown(book).values()] == [
        "week-a", "week-b", "week-b", "week-b",
    ]  # fmt: skip
    again = run(source=None, batch_id="week-a", knobs={"limit": 1})
    assert again.outcomes["succeeded"] == 2
    assert book.rows() == done


def test_trouble_with_the_sheet_ends_as_a_warning_and_the_next_run_writes_what_is_missing(
    here: Installation, instance: dg.DagsterInstance, book: Book
) -> None:
    book.load(HEADER, *names(6), read_only=True)
    result = run()
    assert (result.status, result.outcomes["succeeded"]) == ("done", 6)
    (warning,) = [text for text in result.warnings if "sheets:" in text]
    assert "as editor" in warning and "the next run of the batch" in warning
    book.load(HEADER, *names(6))
    asked = here.count_sent()
    assert not [text for text in run(source=None, batch_id=result.batch_id).warnings if ":" in text
                and "sheets:" in text]  # fmt: skip
    assert here.count_sent() == asked
    assert {status for status, _ in shown(book).values()} == {"Completed"}


def test_a_sheet_is_ingested_from_the_launchpad_and_left_alone_where_that_is_said(
    here: Installation, instance: dg.DagsterInstance, book: Book
) -> None:
    config = {"source": SOURCE, "reading": {"write_back": False}, "chunk_size": 4}
    job = build_defs().resolve_job_def("brands_ingest")
    ended = job.execute_in_process(
        run_config={"ops": {"brands__input_table": {"config": config}}}, instance=instance
    )
    assert ended.success
    with here.ledger() as ledger, ledger.read() as connection:
        (batch,) = list_batches(connection, "simulated")
    origin = SheetOrigin.of(batch)
    assert origin is not None and not origin.write_back
    assert (batch.source, batch.launch, batch.chunk_count) == (SOURCE, "sensor", 2)
    result = run(source=None, batch_id=batch.batch_id)
    assert result.outcomes["succeeded"] == 6
    assert {status for status, _ in shown(book).values()} == {""}
    run(source=None, batch_id=batch.batch_id, reading={"write_back": True})
    assert {status for status, _ in shown(book).values()} == {"Completed"}


def test_after_a_kill_in_the_middle_of_a_write_the_next_run_makes_the_sheet_equal(
    here: Installation, instance: dg.DagsterInstance, book: Book
) -> None:
    book.load(HEADER, *names(60))
    slow = {"base_s": 0.05, "per_output_token_s": 0, "jitter_s": 0}
    hang = {"kind": "hang", "provider": "sheets", "model": "write", "billed": True}
    book.configure(latency=slow, faults=[hang])
    program = str(Path(sys.executable).parent / "batch-pipeline")
    words = ["--input", SOURCE, "--rate-limit", "60000", "--search-rate-limit", "60000"]
    killed = subprocess.Popen(
        [program, "run", "brands", *words, "--workers", "8", "--chunk-size", "10"],
    )
    deadline = time.monotonic() + 90
    while not [one for one in book.requests() if one["fault"] == "hang"]:
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    book.configure()
    with here.ledger() as ledger, ledger.read() as connection:
        (batch,) = list_batches(connection, "simulated")
        items = list(stream_items(ledger, batch.batch_id))
    done = {item.row["brand_name"] for item in items if item.outcome is Outcome.SUCCEEDED}
    claimed = {name for name, (status, _) in shown(book).items() if status == "Completed"}
    assert claimed and claimed <= done
    result = run(knobs={"chunk_size": 10})
    assert (result.batch_id, result.outcomes["succeeded"]) == (batch.batch_id, 60)
    assert {status for status, _ in shown(book).values()} == {"Completed"}
    assert all(Path(output).is_dir() for _, output in shown(book).values())
