"""The ledger's server goes away in the middle of a run: nothing is lost, nothing is paid twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from batch_pipeline.engine.job import RunDone
from batch_pipeline.ledger import writer
from batch_pipeline.ledger.calls import RETIRE
from batch_pipeline.ledger.store import LedgerError
from batch_pipeline.ledger.tables import AttemptState, owners
from batch_pipeline.settings import LEDGER_VARIABLE
from batch_pipeline_tests.engine.test_crash import SLOW, keys_settled, states, wait_for_attempts
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.ledger.books import do
from batch_pipeline_tests.ledger.test_postgresql import stop
from batch_pipeline_tests.postgres import own_server
from batch_pipeline_tests.simulated import Bench, Simulator


def test_a_run_whose_database_goes_away_stops_says_so_and_the_next_run_goes_on(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "OUTAGE_S", 1.0)
    with own_server() as (server, handle), server.database() as url:
        monkeypatch.setenv(LEDGER_VARIABLE, url)
        simulator.configure(latency=SLOW)
        bench = Bench(tmp_path, simulator, workers=4, pack=10)
        batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(600)))
        thread = bench.start(bench.job(batch, "cut off"))
        wait_for_attempts(simulator, 12)
        stop(handle)
        done = list(thread.events())[-1]
        asked = simulator.summary()["attempts"]
        assert isinstance(done, RunDone)
        assert done.status == "stopped"
        assert isinstance(done.error, LedgerError)
        assert "The ledger database cannot be" in str(done.error)

        handle.ensure_postgres_running()
        known = states(bench)
        in_flight = known[AttemptState.SENT.value]
        assert asked <= sum(known.values()), "every call is in the books"
        assert 0 < in_flight <= 8
        with bench.open() as ledger, ledger.read() as connection:
            [owner_id] = connection.execute(sa.select(owners.c.owner_id)).scalars()
            # as the next run finds it where the process has ended; here it lives on
            do(ledger, RETIRE, owner_id)
        simulator.configure()
        ran = bench.run(batch, "goes on")
        assert ran.outcomes == {"succeeded": 600}
        assert simulator.summary()["attempts"] <= 60 + in_flight
        assert set(keys_settled(bench).values()) == {1}
