"""Whatever is read from a ledger is the same on both databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger import overview
from batch_pipeline.ledger.batches import find_batch, find_items, unfinished_chunks
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import attempts, metadata
from batch_pipeline.reports.build import build_report
from batch_pipeline_tests.reports.conftest import Reported, Room

LATER = 4e9


@pytest.fixture
def copies(
    room: Room, clean: Reported, troubled: Reported, postgres_url: str, tmp_path: Path
) -> tuple[str, str]:
    """The ledger of both batches, row for row, in a file and on PostgreSQL."""
    sqlite_url = f"sqlite:///{tmp_path / 'copy.db'}"
    with room.ledger() as source, source.read() as old:
        for url in (sqlite_url, postgres_url):
            with Ledger(url, "simulated") as target, target.write() as new:
                for table in metadata.sorted_tables:
                    rows = [dict(row) for row in old.execute(sa.select(table)).mappings()]
                    if rows:
                        new.execute(table.insert(), rows)
                new.execute(attempts.update().where(attempts.c.status == 503).values(state="lost"))
    return sqlite_url, postgres_url


def read_everything(ledger: Ledger) -> dict[str, Any]:
    """What the doors ask, of both batches; sets and orders as the doors get them."""
    found: dict[str, Any] = {}
    with ledger.read() as connection:
        found["lines"] = overview.list_lines(connection, LATER, "simulated")
        found["cache"] = overview.cache_lines(connection, "simulated")
        found["models"] = overview.answered_models(
            connection,
            "simulated",
            list(connection.execute(sa.text("SELECT cache_key FROM results")).scalars()),
        )
        found["clearance"] = overview.plan_clearance(connection, "simulated", "roadmaps", LATER)
        found["lost"] = overview.lost_attempts(connection, "simulated")
        for name in ("clean", "troubled"):
            batch = find_batch(connection, "simulated", name)
            assert batch is not None
            found[f"{name} runs"] = overview.last_runs(connection, LATER, "simulated", name)
            found[f"{name} chunks"] = overview.chunk_outcomes(connection, batch, "simulated")
            found[f"{name} costs"] = overview.batch_costs(connection, "simulated", name)
            found[f"{name} bad"] = overview.bad_rows(connection, "simulated", name)
            found[f"{name} open"] = unfinished_chunks(connection, "simulated", name)
            number = overview.item_by_number(connection, "simulated", name, 41)
            assert number is not None
            [item] = [one for at, one in find_items(connection, "simulated", number) if at == name]
            found[f"{name} attempts"] = overview.attempts_of(connection, "simulated", name, item)
    for name in ("clean", "troubled"):
        with ledger.read() as connection:
            batch = find_batch(connection, "simulated", name)
        assert batch is not None
        report = build_report(ledger, batch, run_id=f"{name}-run")
        found[f"{name} report"] = report.model_dump(exclude={"created_at"})
    return found


def test_every_read_of_the_doors_and_every_number_of_a_report_are_the_same(
    copies: tuple[str, str],
) -> None:
    with Ledger(copies[0], "simulated") as one, Ledger(copies[1], "simulated") as other:
        expected, found = read_everything(one), read_everything(other)
    assert found.keys() == expected.keys()
    assert expected["lost"], "there is something to read"
    for name, value in expected.items():
        assert found[name] == value, name


def test_clearing_the_cache_leaves_the_same_behind(copies: tuple[str, str]) -> None:
    left = []
    for url in copies:
        with Ledger(url, "simulated") as ledger, ledger.write() as connection:
            overview.clear(connection, LATER, "simulated", "roadmaps", LATER)
            left.append(
                [
                    connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()
                    for table in metadata.sorted_tables
                ]
            )
    assert left[0] == left[1]
