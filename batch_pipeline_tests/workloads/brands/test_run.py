"""Brands from end to end against the simulator: files, registry, money, kills, cells of a sheet."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.batches import UNCHANGED, Batch, Item, start_generation
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.spend import Account, Scope, read_balance
from batch_pipeline.ledger.tables import NANO, AttemptState, Outcome, attempts
from batch_pipeline.workloads.base import SHEET_OUTPUT, SHEET_STATUS
from batch_pipeline.workloads.brands.chunks import EmbeddingManifest, Entity, RelationsDocument
from batch_pipeline.workloads.brands.collected import CollectionDocument, RecordDocument
from batch_pipeline.workloads.brands.delivery import is_own_status, status_text
from batch_pipeline.workloads.brands.files import Metadata, QuickReference
from batch_pipeline.workloads.brands.models import ANSWERS
from batch_pipeline.workloads.brands.workload import BrandsWorkload
from batch_pipeline.workloads.results import stream_results
from batch_pipeline.workloads.runner import deliver
from batch_pipeline.workloads.summary import Summary
from batch_pipeline_tests.engine_process import outcome, start
from batch_pipeline_tests.simulated import Bench, Simulator
from batch_pipeline_tests.workloads.brands.test_files import load, table

SAMPLE = Path(__file__).parents[3] / "data" / "samples" / "brands" / "brands.csv"
LLM_STEPS = len(ANSWERS)
SEARCHES = 3
SLOW = {"base_s": 0.2, "per_output_token_s": 0.0, "jitter_s": 0.1}

Row = tuple[str, str, str]  # brand, website, parent


def bench_in(folder: Path, simulator: Simulator, **knobs: Any) -> Bench:
    return Bench(folder, simulator, workload="brands", **{"search_rate_limit": 60_000.0, **knobs})


def write(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Brand Name", "Website", "Parent Company", "Status", "Output Path"])
        writer.writerows([*row, "", ""] for row in rows)
    return path


def brands(count: int, start_at: int = 1) -> list[Row]:
    return [
        (f"Brand {n}", f"https://brand-{n}.example/", "") for n in range(start_at, start_at + count)
    ]


def delivered(bench: Bench, batch: Batch) -> Path:
    folder = bench.settings.data / "out" / batch.batch_id
    with bench.open() as ledger:
        deliver(ledger, bench.config, batch, folder)
    return folder


def summary_of(bench: Bench, batch: Batch) -> Summary:
    with bench.open() as ledger:
        return BrandsWorkload().summarize(stream_results(ledger, batch, BrandsWorkload()))


def records(bench: Bench, batch: Batch) -> dict[int, RecordDocument]:
    with bench.open() as ledger, ledger.read() as connection:
        kept = read_documents(connection, ledger.realm, batch.batch_id, steps=["record"])
    return {n: RecordDocument.model_validate(one["record"].content) for n, one in kept.items()}


def calls(bench: Bench) -> Counter[str]:
    """Calls in the simulator's journal, by who was asked."""
    return Counter(
        "tavily" if entry["provider"] == "tavily" else "model"
        for entry in bench.simulator.journal()
    )


def paid_questions(bench: Bench) -> Counter[tuple[str, str]]:
    """How often each question and each search was settled."""
    with bench.open() as ledger, ledger.read() as connection:
        rows = connection.execute(
            sa.select(attempts.c.members, attempts.c.step).where(
                attempts.c.state == AttemptState.SETTLED.value, attempts.c.error_kind.is_(None)
            )
        ).all()
    return Counter((step, key) for members, step in rows for _, key in json.loads(members))


def cells(bench: Bench, batch: Batch, items: Sequence[Item], folder: Path) -> dict[int, Any]:
    with bench.open() as ledger:
        workload, roles = BrandsWorkload(), (SHEET_STATUS, SHEET_OUTPUT)
        return dict(workload.sheet_cells(ledger, batch, items, folder, roles))


def test_every_brand_of_the_sample_gets_its_valid_files_in_its_language(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = bench_in(tmp_path, simulator, options={"results": 4, "csv_bom": True})
    batch = bench.ingest(SAMPLE)
    assert batch.notes[0] == (
        "Registry at ingest: 0 brands tracked (0 succeeded, 0 failed); 12 to do: 12 new; "
        "0 unchanged."
    )
    assert bench.run(batch).outcomes == {"succeeded": 12}
    assert calls(bench) == {"tavily": 12 * SEARCHES, "model": 12 * LLM_STEPS}

    folder = delivered(bench, batch)
    root = folder / "brands"
    rows = [json.loads(line) for line in (folder / f"brands_{batch.batch_id}.jsonl").open("rb")]
    assert len({row["folder"] for row in rows}) == 12
    assert {path.name for path in root.iterdir()} == {row["folder"] for row in rows}
    twice = [row["folder"] for row in rows if row["brand_name"] == "Tolou Coffee"]
    assert all(re.fullmatch(r"Tolou Coffee~[0-9a-f]{10}", name) for name in twice)
    persian = {"مهرسا", "نان سحر", "دیجی‌گل", "آبان‌گستر"}
    for row in rows:
        here = root / row["folder"]
        quick = load(here / "human_reports/quick_reference.json", QuickReference)
        load(here / "vector_database/relationships.json", RelationsDocument)
        load(here / "vector_database/embedding_manifest.json", EmbeddingManifest)
        for line in (here / "vector_database/entities.jsonl").read_text("utf-8").splitlines():
            Entity.model_validate_json(line)
        metadata = load(here / "vector_database/metadata.json", Metadata)
        assert quick["brand_name"] == metadata["brand_name"] == row["brand_name"]
        assert metadata["item_id"] == row["item_id"] and metadata["simulated"]
        assert len(metadata["sources"]) == row["sources"] > SEARCHES
        assert metadata["models"] == dict.fromkeys(ANSWERS, row["models"])
        assert row["models"].startswith("openrouter/google/")
        catalog = here / "data_exports/product_catalog.csv"
        assert catalog.read_bytes().startswith(b"\xef\xbb\xbf")
        assert len(table(catalog)) >= len(row["products"])
        page = (here / "human_reports/brand_report.html").read_text("utf-8")
        assert row["brand_name"].replace("&", "&amp;") in page
        # answers quote the research, which is in the language of the brand's market
        if row["brand_name"] in persian:
            assert any("\u0600" <= char <= "\u06ff" for char in row["summary"]), row["summary"]
    with bench.open() as ledger, ledger.read() as connection:
        kept = read_documents(connection, ledger.realm, batch.batch_id, steps=["collection"])
    first = CollectionDocument.model_validate(kept[0]["collection"].content)
    assert len(first.pages) > 4 and not first.notes
    said = summary_of(bench, batch)
    assert said.figures[0].model_dump() == {
        "name": "Completed", "rows": 12, "of": 12, "of_what": "brands",
    }  # fmt: skip
    assert sum(entry.rows for entry in said.tables[1].entries) == 12

    files = {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    delivered(bench, batch)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == files


def test_what_models_said_beyond_the_form_is_set_aside_and_counted(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = bench_in(tmp_path, simulator, options={"results": 2})
    batch = bench.ingest(write(tmp_path / "one.csv", brands(1)))
    bench.run(batch)
    output = records(bench, batch)[0].model_dump(mode="json")
    said = {**output["relationships"], "mood": "good", "competitors": "Alpha، Beta"}
    crooked = {**output, "relationships": said}
    row = BrandsWorkload().deliverable_row(bench.items(batch)[0].row, crooked)
    assert row["set_aside"] == RecordDocument.model_validate(output).set_aside + 1
    assert row["competitors"] == ["Alpha", "Beta"]


def test_which_model_answered_which_step_is_kept(simulator: Simulator, tmp_path: Path) -> None:
    first, second = "google/gemini-3.1-flash-lite", "anthropic/claude-haiku-4-5"
    bench = bench_in(tmp_path, simulator, route=f"{first}, {second}", options={"results": 2})
    batch = bench.ingest(write(tmp_path / "one.csv", brands(1)))
    catalogue = "The task now: what the brand sells."
    assert catalogue in (bench.config.folder / "product_catalog.md").read_text("utf-8")
    lost = {"kind": "status", "status": 404, "provider": "google", "match": catalogue}
    simulator.configure(faults=[lost])
    assert bench.run(batch).outcomes == {"succeeded": 1}
    # a model that is not there is not asked for the next step either
    models = dict.fromkeys(ANSWERS, first) | {"product_catalog": second, "insights": second}
    assert records(bench, batch)[0].models == models
    row = json.loads((delivered(bench, batch) / f"brands_{batch.batch_id}.jsonl").read_bytes())
    assert row["models"] == f"{first}, {second}"


def test_the_registry_leaves_out_what_is_unchanged_and_says_why(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = bench_in(tmp_path, simulator, options={"research": False})
    known = write(tmp_path / "october.csv", brands(6))
    october = bench.ingest(known, "october")
    bench.run(october)
    changed = [("Brand 1", "", "New Owner"), *brands(5, start_at=2), *brands(2, start_at=7)]
    november = bench.ingest(write(tmp_path / "november.csv", changed), "november")
    assert november.notes[0] == (
        "Registry at ingest: 6 brands tracked (6 succeeded, 0 failed); 3 to do: 2 new, 1 changed; "
        "5 unchanged."
    )
    items = bench.items(november)
    assert [item.outcome.value for item in items] == ["pending", *["skipped"] * 5, *["pending"] * 2]
    assert {item.error_kind for item in items[1:6]} == {UNCHANGED}
    assert items[1].error is not None
    assert "Unchanged since it succeeded in batch october, row 2" in items[1].error

    # the limit counts what needs work
    before = calls(bench)["model"]
    few = bench.run(november, "few", limit=2)
    assert few.outcomes == {"succeeded": 2, "skipped": 5, "pending": 1}
    assert calls(bench)["model"] - before == 2 * LLM_STEPS
    assert bench.run(november, "rest").outcomes == {"succeeded": 3, "skipped": 5}

    # forced, the unchanged ones are asked again, too
    with bench.open() as ledger:
        assert start_generation(ledger, "november") == 8
    before = calls(bench)["model"]
    assert bench.run(november, "forced").outcomes == {"succeeded": 8}
    assert calls(bench)["model"] - before == 8 * LLM_STEPS


def test_a_brand_that_failed_is_taken_up_by_the_next_batch(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 400, "provider": "tavily", "match": "Brand 2"}]
    )
    bench = bench_in(tmp_path, simulator, options={"results": 2})
    first = bench.ingest(write(tmp_path / "first.csv", brands(3)), "first")
    assert bench.run(first).outcomes == {"succeeded": 2, "failed": 1}
    failed = bench.items(first)[1]
    assert failed.error_kind == "search" and failed.error is not None
    assert "None of the searches was answered" in failed.error
    assert "batch-pipeline retry first" in failed.error
    folder = delivered(bench, first)
    assert {path.name for path in (folder / "brands").iterdir()} == {"Brand 1", "Brand 3"}

    simulator.configure()
    second = bench.ingest(write(tmp_path / "second.csv", brands(4)), "second")
    assert second.notes[0].endswith(
        "3 brands tracked (2 succeeded, 1 failed); 2 to do: 1 new, 1 failed before; 2 unchanged."
    )
    assert bench.run(second, "second").outcomes == {"succeeded": 2, "skipped": 2}
    assert bench.run(first, "again").outcomes == {"succeeded": 3}
    assert (delivered(bench, first) / "brands" / "Brand 2").is_dir()


def test_one_search_without_an_answer_is_a_note(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 400, "provider": "tavily", "match": "competitors"}]
    )
    bench = bench_in(tmp_path, simulator, options={"results": 2})
    batch = bench.ingest(write(tmp_path / "one.csv", brands(1)))
    assert bench.run(batch).outcomes == {"succeeded": 1}
    (note,) = records(bench, batch)[0].notes
    assert note.startswith("The search for competitors had no answer:")
    gaps = summary_of(bench, batch).figures[-1]
    assert (gaps.name, gaps.rows, gaps.of) == ("Research with gaps", 1, 1)


def test_a_plan_that_is_used_up_stops_the_run_with_its_rows_pending(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 432, "provider": "tavily"}])
    bench = bench_in(tmp_path, simulator)
    batch = bench.ingest(write(tmp_path / "rows.csv", brands(60)))
    ran = bench.run(batch)
    assert ran.outcomes == {"pending": 60}
    assert calls(bench)["tavily"] <= 12 * SEARCHES, "only those that were on the wire"
    assert ran.done.status == "stopped" and "tavily refuses every call" in ran.done.message
    simulator.configure()
    assert bench.run(batch, "mended", limit=1).outcomes == {"succeeded": 1, "pending": 59}


def test_after_kills_no_search_and_no_answer_is_paid_twice(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency=SLOW)
    bench = bench_in(tmp_path, simulator, workers=8, options={"results": 3})
    batch = bench.ingest(write(tmp_path / "rows.csv", brands(12)))
    for kill, more in enumerate((10, 25)):
        process = start(bench, batch.batch_id, f"killed {kill}")
        wanted = len(simulator.journal()) + more
        deadline = time.monotonic() + 60
        while int(simulator.summary()["attempts"]) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    ran = outcome(start(bench, batch.batch_id, "last"))
    assert ran["outcomes"] == {"succeeded": 12}
    settled = paid_questions(bench)
    assert set(settled.values()) == {1}, "nothing settled was asked again"
    assert len(settled) == 12 * (SEARCHES + LLM_STEPS)
    with bench.open() as ledger, ledger.read() as connection:
        states = Counter(connection.execute(sa.select(attempts.c.state)).scalars())
    in_flight = states[AttemptState.SENT.value] + states[AttemptState.LOST.value]
    assert in_flight, "no kill met a call in flight: the test proves nothing"
    assert len(simulator.journal()) <= len(settled) + in_flight
    folder = delivered(bench, batch)
    assert len(list((folder / "brands").iterdir())) == 12


def test_half_of_the_money_is_nearly_used_never_passed_and_the_rest_goes_on(
    simulator: Simulator, tmp_path: Path
) -> None:
    rows = write(tmp_path / "rows.csv", brands(24))
    whole = bench_in(tmp_path, simulator, options={"results": 3})
    whole.run(whole.ingest(rows, "whole"))
    need = sum(item.cost_nano for item in whole.items(whole.ingest(rows, "whole"))) / NANO
    assert need > 24 * SEARCHES * 0.008

    simulator.reset()
    (tmp_path / "half").mkdir()
    half = bench_in(tmp_path / "half", simulator, options={"results": 3}, budget_usd=need / 2)
    batch = half.ingest(rows, "half")
    ran = half.run(batch)
    assert ran.done.status == "budget"
    with half.open() as ledger, ledger.read() as connection:
        spent = read_balance(connection, Account(ledger.realm, Scope.BATCH, "half")).spent / NANO
    assert 0.85 * need / 2 <= spent <= need / 2
    half.config = half.config.model_copy(update={"budget_usd": need * 2})
    assert half.run(batch, "raised").outcomes == {"succeeded": 24}
    assert set(paid_questions(half).values()) == {1}
    assert calls(half) == {"tavily": 24 * SEARCHES, "model": 24 * LLM_STEPS}


def test_the_sheet_is_told_how_rows_ended_and_where_their_files_are(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 400, "provider": "tavily", "match": "Brand 2"}]
    )
    bench = bench_in(tmp_path, simulator, options={"results": 2})
    first = bench.ingest(write(tmp_path / "first.csv", brands(3)), "first")
    bench.run(first, limit=2)
    folder = delivered(bench, first)
    told = cells(bench, first, bench.items(first), folder)
    assert told[1] == {SHEET_STATUS: "Completed", SHEET_OUTPUT: str(folder / "brands" / "Brand 1")}
    assert told[2] == {
        SHEET_STATUS: "Error: None of the searches was answered. The search for",
        SHEET_OUTPUT: "",
    }
    assert set(told) == {1, 2}, "a pending row is left alone"

    simulator.configure()
    second = bench.ingest(write(tmp_path / "second.csv", brands(3)[::-1]), "second")
    told = cells(bench, second, bench.items(second), tmp_path / "out" / "second")
    assert told == {
        3: {SHEET_STATUS: "Completed", SHEET_OUTPUT: str(tmp_path / "out/first/brands/Brand 1")}
    }
    # written elsewhere: the cell stays as it is
    told = cells(bench, second, bench.items(second), tmp_path / "elsewhere" / "second")
    assert told == {3: {SHEET_STATUS: "Completed"}}


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (Outcome.SUCCEEDED, "", "Completed"),
        (Outcome.FAILED, "", "Failed"),
        (Outcome.FAILED, "Row 3 (ab12~2): no answer\n at all", "Error: no answer at all"),
        (Outcome.FAILED, "row 3 (line 5): the brand is long.", "Error: the brand is long."),
        (Outcome.FAILED, "x" * 80, f"Error: {'x' * 50}"),
        (Outcome.BLOCKED, "Row 1 (ab): declined", "Blocked: declined"),
        (Outcome.BLOCKED, "", "Blocked"),
    ],
)
def test_a_status_is_short_and_without_the_rows_place(
    given: Outcome, error: str, text: str
) -> None:
    assert status_text(given, error) == text
    assert is_own_status(text)


@pytest.mark.parametrize("text", ["", "on hold: client", "completed by Ann", "Errors", "Error"])
def test_what_a_person_writes_is_no_status_of_ours(text: str) -> None:
    assert not is_own_status(text)


def test_columns_of_a_sheet_are_found_by_name_and_made_where_they_are_missing() -> None:
    workload = BrandsWorkload()
    usual = workload.sheet_columns(
        ["Brand Name", "Website", "Parent Company", "Status", "Output Path"], "sheets:a/INPUT"
    )
    assert (usual.key, usual.status, usual.output) == (
        ("Brand Name", "Website", "Parent Company"), "Status", "Output Path",
    )  # fmt: skip
    bare = workload.sheet_columns(["برند", "Notes"], "sheets:a/INPUT")
    assert (bare.key, bare.status, bare.output) == (("برند",), "", "")
    # what stands in D and E is somebody's own where it is not called otherwise
    notes = workload.sheet_columns(["Brand", "URL", "Owner", "Notes", "Budget"], "sheets:a/INPUT")
    assert (notes.status, notes.output) == ("", "")
    placed = workload.sheet_columns(["X", "Y", "Z", "Mine", "Mine too"], "sheets:a/INPUT")
    assert (placed.key, placed.status, placed.output) == (("X", "Y", "Z"), "", "")


def test_a_pending_brand_keeps_its_files_while_it_is_done_anew(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = bench_in(tmp_path, simulator, options={"research": False})
    batch = bench.ingest(write(tmp_path / "rows.csv", brands(2)))
    bench.run(batch)
    root = delivered(bench, batch) / "brands"
    before = records(bench, batch)
    with bench.open() as ledger:
        start_generation(ledger, batch.batch_id)
    bench.run(batch, "half", limit=1)
    delivered(bench, batch)
    assert {path.name for path in root.iterdir()} == {"Brand 1", "Brand 2"}
    after = records(bench, batch)
    assert after[0].made_at > before[0].made_at and after[1] == before[1]
    made = load(root / "Brand 1" / "vector_database/metadata.json", Metadata)["made_at"]
    assert made >= load(root / "Brand 2" / "vector_database/metadata.json", Metadata)["made_at"]
