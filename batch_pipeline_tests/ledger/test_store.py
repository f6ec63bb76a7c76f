"""Opening a ledger: its schema, and what a user is told when it cannot be opened."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from batch_pipeline.ledger.store import SCHEMA_VERSION, Ledger, LedgerError, execute_many, upsert
from batch_pipeline.ledger.tables import items, metadata
from batch_pipeline_tests.ledger.books import open_ledger

ROOT = Path(__file__).resolve().parents[2]

OPENER = """
import sys
import alembic.command
from batch_pipeline.ledger.store import Ledger
print("ready", flush=True)
sys.stdin.readline()
with Ledger(sys.argv[1], "live") as ledger, ledger.write() as connection:
    print(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar())
"""


def test_the_migrations_make_exactly_the_tables_that_the_statements_use(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger, ledger.read() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
        version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        assert version == SCHEMA_VERSION


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where no ledger was ever opened."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'fresh' / 'ledger.db'}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


def test_processes_that_open_a_fresh_ledger_at_once_all_find_it_ready(fresh_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, fresh_url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("open\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60) for process in processes]
    assert printed == [(f"{SCHEMA_VERSION}\n", "")] * 4


def test_an_sqlite_ledger_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "data") as ledger, ledger.write():
        files = [tmp_path / "data", *(tmp_path / "data").iterdir()]
        assert {path.name for path in files} >= {"data", "ledger.db", "ledger.db-wal"}
        assert [path.name for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_ledger_of_a_newer_program_is_refused_and_left_alone(fresh_url: str) -> None:
    with open_ledger(fresh_url) as ledger, ledger.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0999'"))
    with pytest.raises(LedgerError) as caught:
        open_ledger(fresh_url)
    assert "schema 0999" in caught.value.message
    assert SCHEMA_VERSION in caught.value.message
    assert "Update batch-pipeline" in caught.value.next_step


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="cannot be opened") as caught:
        open_ledger(tmp_path / "file" / "below")
    assert str(tmp_path / "file" / "below") in caught.value.message
    assert "writable" in caught.value.next_step


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(LedgerError, match="unable to open database file"):
        open_ledger(tmp_path)


def test_a_file_that_is_no_database_is_a_clear_error_and_keeps_its_content(tmp_path: Path) -> None:
    text = "id,topic\n1,something a user needs\n" * 100
    (tmp_path / "ledger.db").write_text(text)
    with pytest.raises(LedgerError, match="not a database"):
        open_ledger(tmp_path)
    assert (tmp_path / "ledger.db").read_text() == text


def test_a_password_in_the_address_is_not_shown() -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger("postgresql+psycopg2://me:hunter2@127.0.0.1:1/none", "live")
    assert "hunter2" not in str(caught.value)


def _row(ordinal: int, **values: Any) -> dict[str, Any]:
    return {
        "realm": "simulated",
        "batch_id": "b",
        "ordinal": ordinal,
        "item_id": f"i{ordinal}",
        "number": ordinal + 1,
        "row": "{}",
        "outcome": "pending",
        **values,
    }


_INSERT = items.insert()
_UPDATE = (
    items.update()
    .where(items.c.ordinal == sa.bindparam("b_ordinal"), items.c.realm == "simulated")
    .values(
        outcome="failed",
        error=sa.bindparam("error"),
        cost_nano=items.c.cost_nano + sa.bindparam("b_cost"),
    )
)
_DELETE = items.delete().where(
    items.c.ordinal == sa.bindparam("b_ordinal"), items.c.outcome != "succeeded"
)


def _statements(dialect: str) -> list[tuple[Any, list[dict[str, Any]]]]:
    key = ["realm", "batch_id", "ordinal"]
    overwrite = upsert(dialect, items, key, update=["outcome", "settled_at"])
    keep = upsert(dialect, items, key)
    return [
        (_INSERT, [_row(index) for index in range(20)]),
        (_INSERT, [_row(index) for index in range(20, 25)]),  # the statement is compiled by now
        (_UPDATE, [{"b_ordinal": at, "error": "é'\"%s%", "b_cost": at * 10} for at in (1, 3, 3)]),
        (_UPDATE, [{"b_ordinal": 4, "error": None, "b_cost": 7}]),
        (overwrite, [_row(at, outcome="succeeded", settled_at=0.25) for at in (3, 5, 40)]),
        (keep, [_row(at, outcome="blocked", settled_at=9.0) for at in (3, 41)]),
        (_DELETE, [{"b_ordinal": at} for at in (3, 6, 99)]),
        (_DELETE, []),
    ]


def test_the_fast_way_to_write_many_rows_equals_sqlalchemys_own(ledger_url: str) -> None:
    contents = []
    with open_ledger(ledger_url) as ledger:
        statements = _statements(ledger.dialect)
        for way in ("fast", "plain"):
            with ledger.write() as connection:
                connection.execute(items.delete())
                for statement, rows in statements:
                    if way == "fast":
                        execute_many(connection, statement, rows)
                    elif rows:
                        connection.execute(statement, rows)
            with ledger.read() as connection:
                contents.append(
                    [tuple(row) for row in connection.execute(sa.select(items).order_by("ordinal"))]
                )
    assert contents[0] == contents[1]
    assert len(contents[0]) == 26
