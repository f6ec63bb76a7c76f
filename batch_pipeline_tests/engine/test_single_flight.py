"""The same question is asked once, however many processes come to it at the same time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.tables import attempts, runs
from batch_pipeline_tests.engine.test_budget import chunks_in_parts
from batch_pipeline_tests.engine.test_crash import keys_settled
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine_process import outcome, start
from batch_pipeline_tests.simulated import Bench, Simulator

PROCESSES = 4


@pytest.mark.usefixtures("either_database")
def test_four_hundred_rows_with_twenty_questions_over_four_processes_make_twenty_calls(
    simulator: Simulator, tmp_path: Path
) -> None:
    # Long enough for every process to come while others still ask.
    simulator.configure(latency={"base_s": 1.2, "per_output_token_s": 0.0, "jitter_s": 0.2})
    bench = Bench(tmp_path, simulator, workers=4, pack=1, chunk_size=25)
    rows = [
        dict(topic, Resources=f"https://example.org/{place}")
        for place, topic in enumerate(topics(20) * 20)
    ]
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows))
    running = [
        start(bench, batch.batch_id, f"run {place}", part)
        for place, part in enumerate(chunks_in_parts(bench, batch, PROCESSES))
    ]
    done = [outcome(process) for process in running]
    assert [entry["outcomes"] for entry in done] == [{"succeeded": 100}] * PROCESSES
    journal = simulator.journal()
    assert len(journal) == 20
    assert {entry["items"] for entry in journal} == {1}
    assert Counter(keys_settled(bench).values()) == {1: 20}
    with bench.open() as ledger, ledger.read() as connection:
        last_came = connection.execute(sa.select(sa.func.max(runs.c.started_at))).scalar_one()
        last_answer = connection.execute(sa.select(sa.func.max(attempts.c.settled_at))).scalar_one()
    assert last_came < last_answer, "all was answered before the last process came"
