"""What is PostgreSQL's own: its clock, broken connections, clashes, a server that goes away."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger import writer
from batch_pipeline.ledger.store import SCHEMA_VERSION, Ledger, LedgerError
from batch_pipeline.ledger.tables import day_counts, items, owners
from batch_pipeline.ledger.writer import Operation
from batch_pipeline_tests.ledger.books import do, ingest_rows, open_ledger, rows
from batch_pipeline_tests.postgres import Postgres, own_server

_COUNT = {
    "realm": "live",
    "provider": "p",
    "model": "m",
    "key_id": "k",
    "day": "2026-11-21",
    "requests": 0,
}


class Adder:
    """An operation that is not idempotent: what it did twice shows."""

    def __init__(self, before: Callable[[sa.Connection, int], None] = lambda *_: None) -> None:
        self.tries = 0
        self.before = before
        self.add: Operation[str] = Operation("add", 10, self._add)

    def _add(self, connection: sa.Connection, now: float, asked: Sequence[Any]) -> list[str]:
        self.tries += 1
        connection.execute(day_counts.update().values(requests=day_counts.c.requests + len(asked)))
        self.before(connection, self.tries)
        return [f"added {each}" for each in asked]


def counted(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return int(connection.execute(sa.select(day_counts.c.requests)).scalar_one())


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[Ledger]:
    with open_ledger(postgres_url) as opened:
        with opened.write() as connection:
            connection.execute(day_counts.insert(), _COUNT)
        yield opened


def fail_with(code: str, times: int) -> Callable[[sa.Connection, int], None]:
    def fail(connection: sa.Connection, tries: int) -> None:
        if tries <= times:
            connection.exec_driver_sql(
                f"DO $$ BEGIN RAISE EXCEPTION 'made for a test' USING ERRCODE = '{code}'; END $$"
            )

    return fail


def test_time_is_the_databases_and_goes_on_within_a_transaction(ledger: Ledger) -> None:
    with ledger.write() as connection:
        began = float(connection.execute(sa.text("SELECT extract(epoch from now())")).scalar_one())
        connection.execute(sa.text("SELECT pg_sleep(0.05)"))
        assert began + 0.05 <= ledger.now(connection) < began + 30.0
    times: list[float] = []

    def note(connection: sa.Connection, now: float, asked: Sequence[Any]) -> list[None]:
        times.append(now)
        times.append(ledger.now(connection))
        return [None] * len(asked)

    do(ledger, Operation("note", 1, note), None)
    assert times == sorted(times) and times[1] - times[0] < 10.0


def test_the_ledger_and_other_tables_of_the_same_names_share_a_database(
    postgres: Postgres,
) -> None:
    with postgres.database() as url:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE runs (id serial)")
            connection.exec_driver_sql("CREATE TABLE alembic_version (version_num text)")
            connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('46b412388816')")
        with open_ledger(url) as ledger:
            ingest_rows(ledger, "nov", rows(3))
        with engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT version_num FROM alembic_version "
                "UNION ALL SELECT version_num FROM batch_pipeline.alembic_version"
            )
            assert sorted(found.scalars()) == [SCHEMA_VERSION, "46b412388816"]


@pytest.mark.parametrize("code", ["40P01", "40001"])
def test_a_transaction_that_clashed_is_tried_again_and_written_once(
    code: str, ledger: Ledger
) -> None:
    adder = Adder(fail_with(code, 3))
    assert do(ledger, adder.add, "one") == "added one"
    assert (adder.tries, counted(ledger)) == (4, 1)


def test_one_that_clashes_all_the_time_ends_with_a_clear_error(ledger: Ledger) -> None:
    adder = Adder(fail_with("40001", 10_000))
    with pytest.raises(LedgerError, match=r"cannot be written: made for a test.*run again"):
        do(ledger, adder.add, "one")
    assert (adder.tries, counted(ledger)) == (6, 0)
    assert do(ledger, Adder().add, "next") == "added next"


def test_a_connection_that_breaks_within_a_transaction_is_made_again(ledger: Ledger) -> None:
    def cut(connection: sa.Connection, tries: int) -> None:
        if tries == 1:
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    adder = Adder(cut)
    assert do(ledger, adder.add, "one") == "added one"
    assert (adder.tries, counted(ledger)) == (2, 1)


def test_a_connection_that_broke_while_nobody_used_it_is_made_again(ledger: Ledger) -> None:
    assert do(ledger, Adder().add, "one") == "added one"
    assert counted(ledger) == 1
    engine = sa.create_engine(ledger.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert do(ledger, Adder().add, "two") == "added two"
    assert counted(ledger) == 2


@contextmanager
def relay(url: str, lose_commit: Callable[[], str]) -> Iterator[str]:
    """A way to the server over TCP that can break at a commit; gives the URL of that way.

    `lose_commit` says at each COMMIT: `before` it reaches the server, `after` it was done there,
    or nothing.
    """
    target = sa.make_url(url)
    listening = socket.create_server(("127.0.0.1", 0))

    def upstream() -> socket.socket:
        if folder := target.query.get("host"):
            found = socket.socket(socket.AF_UNIX)
            found.connect(f"{folder}/.s.PGSQL.{target.port or 5432}")
            return found
        return socket.create_connection((target.host or "127.0.0.1", target.port or 5432))

    def carry(client: socket.socket) -> None:
        with closing(client), closing(upstream()) as server:
            broken = threading.Event()

            def back() -> None:
                while data := _receive(server):
                    if broken.is_set():
                        break
                    client.sendall(data)
                _shut(client)

            threading.Thread(target=back, daemon=True).start()
            while data := _receive(client):
                how = lose_commit() if b"COMMIT\0" in data else ""
                if how:
                    broken.set()
                    if how == "after":
                        server.sendall(data)
                        # what follows the commit on this connection is its end
                        server.shutdown(socket.SHUT_WR)
                        while _receive(server):
                            pass
                    break
                server.sendall(data)
            _shut(client)
            _shut(server)

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=carry, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    host, port = listening.getsockname()
    try:
        way = sa.URL.create(
            target.drivername, target.username, target.password, host, port, target.database
        )
        yield way.render_as_string(hide_password=False)
    finally:
        _shut(listening)
        listening.close()


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(65_536)
    except OSError:
        return b""


def _shut(open_socket: socket.socket) -> None:
    try:
        open_socket.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@pytest.mark.parametrize(("how", "tries"), [("before", 2), ("after", 1)])
def test_a_commit_that_was_not_answered_is_looked_up_and_never_written_twice(
    how: str, tries: int, postgres_url: str, ledger: Ledger
) -> None:
    losses = [""]
    by_way = relay(postgres_url, lambda: losses.pop() if losses else "")
    with by_way as way, open_ledger(way) as behind:
        assert do(behind, Adder().add, "one") == "added one"
        assert losses == [], "the relay has seen the commit"
        losses.append(how)
        adder = Adder()
        assert do(behind, adder.add, "two") == "added two"
        assert losses == []
        assert adder.tries == tries
    assert counted(ledger) == 2


def test_a_text_with_a_nul_is_kept_without_it(ledger: Ledger) -> None:
    given = rows(2)
    given[0] = type(given[0])("with \0 a nul", 1, {"Topic": "a \0 nul"}, problem="bad \0 byte")
    ingest_rows(ledger, "nov", given)
    with ledger.read() as connection:
        found = connection.execute(sa.select(items.c.item_id, items.c.error)).all()
    assert ("with  a nul", "bad  byte") in [tuple(row) for row in found]


def test_a_transaction_that_stands_still_holds_up_the_others_for_a_bounded_time(
    ledger: Ledger,
) -> None:
    with ledger.write() as connection:
        limits = [
            connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("lock_timeout", "idle_in_transaction_session_timeout")
        ]
    assert limits == ["1min", "1min"]


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is gone is waited for for a second and a half only."""
    monkeypatch.setattr(writer, "OUTAGE_S", 1.5)


def stop(handle: Any) -> None:
    """As in a crash: no connection hears of it."""
    _pg_ctl(handle, "-m", "immediate", "stop")


def _pg_ctl(handle: Any, *words: str) -> None:
    subprocess.run(
        [str(handle.bin_path / "pg_ctl"), "-w", "-D", str(handle.pgdata), *words],
        user=handle.system_user,
        cwd="/",
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.usefixtures("outage")
def test_while_the_server_is_gone_every_write_fails_clearly_and_afterwards_all_goes_on() -> None:
    with own_server() as (server, handle), server.database() as url, open_ledger(url) as ledger:
        with ledger.write() as connection:
            connection.execute(day_counts.insert(), _COUNT)
        assert do(ledger, Adder().add, "before") == "added before"
        stop(handle)
        began = time.monotonic()
        asked: list[Future[str]] = [ledger.writer.submit(Adder().add, n) for n in range(50)]
        for each in asked:
            with pytest.raises(LedgerError, match="cannot be written") as caught:
                each.result(30)
        assert time.monotonic() - began < 10.0, "one wait for all, not one for each"
        assert "see that it runs" in caught.value.next_step.lower()
        with pytest.raises(LedgerError, match="cannot be read"), ledger.read() as connection:
            connection.execute(sa.select(owners))
        with pytest.raises(LedgerError, match="cannot be written"), ledger.write():
            pass
        with pytest.raises(LedgerError, match="cannot be opened"):
            open_ledger(url)
        handle.ensure_postgres_running()
        assert do(ledger, Adder().add, "after") == "added after"
        assert counted(ledger) == 2


def test_a_server_that_restarts_in_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "OUTAGE_S", 60.0)
    with own_server() as (server, handle), server.database() as url, open_ledger(url) as ledger:
        with ledger.write() as connection:
            connection.execute(day_counts.insert(), _COUNT)
        assert do(ledger, Adder().add, "before") == "added before"
        stop(handle)
        during = ledger.writer.submit(Adder().add, "during")
        handle.ensure_postgres_running()
        assert during.result(60) == "added during"
        assert counted(ledger) == 2


def test_an_address_that_cannot_be_used_says_what_to_set(tmp_path: Path) -> None:
    for url, words in (
        ("mysql://me:hunter2@host/db", "names a mysql database"),
        ("me:hunter2", "is no database address"),
    ):
        with pytest.raises(LedgerError, match=words) as caught:
            open_ledger(url)
        assert "hunter2" not in str(caught.value)
        assert "BATCH_PIPELINE_LEDGER_URL" in caught.value.next_step


def test_an_address_as_other_tools_write_it_is_taken(postgres: Postgres) -> None:
    with postgres.database() as url:
        for scheme in ("postgres://", "postgresql://"):
            with open_ledger(url.replace("postgresql+psycopg2://", scheme)) as ledger:
                assert ledger.dialect == "postgresql"
