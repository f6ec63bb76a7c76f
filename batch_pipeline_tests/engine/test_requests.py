"""How many requests a table takes, and that the journal, the ledger and the tally agree."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.tables import NANO, AttemptState, attempts
from batch_pipeline_tests.simulated import Bench, Simulator

pytestmark = pytest.mark.usefixtures("either_database")


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("table", "requests"), [("rows_150.csv", 8), ("rows_1000.csv", 50)])
def test_a_table_takes_one_request_for_20_rows_and_none_the_second_time(
    table: str, requests: int, reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(reference_data / "roadmaps" / table)
    first = bench.run(batch, "first")
    assert first.outcomes == {"succeeded": batch.row_count}
    assert first.done.tally.requests == first.done.tally.attempts == requests

    second = bench.run(batch, "second")
    assert second.done.tally.attempts == 0
    assert second.done.tally.cache_hits == batch.row_count
    assert len(simulator.journal()) == requests


@pytest.mark.parametrize(("known", "requests"), [(75, 4), (50, 5)])
def test_only_rows_that_are_not_cached_are_asked_about_and_they_share_requests(
    known: int, requests: int, reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    rows = read_rows(reference_data / "roadmaps" / "rows_150.csv")
    chosen = random.Random(known).sample(rows, known)
    bench = Bench(tmp_path, simulator)
    bench.run(bench.ingest(write_rows(tmp_path / "known.csv", chosen)), "before")
    asked_before = len(simulator.journal())

    ran = bench.run(bench.ingest(reference_data / "roadmaps" / "rows_150.csv"), "after")
    assert ran.done.tally.cache_hits == known
    assert ran.done.tally.requests == requests
    assert len(simulator.journal()) - asked_before == requests


def test_the_journal_the_ledger_and_the_tally_agree_to_the_token_and_the_cent(
    reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    ran = bench.run(bench.ingest(reference_data / "roadmaps" / "rows_150.csv"))
    journal = simulator.summary()
    with bench.open() as ledger, ledger.read() as connection:
        stored: Any = connection.execute(
            sa.select(
                sa.func.count(),
                sa.func.sum(attempts.c.input_tokens),
                sa.func.sum(attempts.c.output_tokens),
                sa.func.sum(attempts.c.cost_nano),
            ).where(attempts.c.state == AttemptState.SETTLED.value)
        ).one()
    tally = ran.done.tally
    assert stored[0] == tally.attempts == journal["attempts"]
    assert stored[1] == round(tally.input_tokens) == journal["input_tokens"]
    assert stored[2] == round(tally.output_tokens) == journal["output_tokens"]
    assert stored[3] / NANO == pytest.approx(float(journal["price_usd"]), abs=1e-6)
    assert tally.cost_usd == pytest.approx(float(journal["price_usd"]), abs=1e-6)
