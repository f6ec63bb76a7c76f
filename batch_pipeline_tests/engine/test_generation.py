"""What is asked again, what is not, and what counts: --force, --limit, blocked rows, realms."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from batch_pipeline.engine.job import Job
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.ledger.batches import Batch, list_chunks, start_generation, stream_items
from batch_pipeline.ledger.tables import AttemptState, Outcome, attempts
from batch_pipeline.workloads.runner import ingest_batch, open_ledger, plan_job
from batch_pipeline_tests.engine.test_crash import SLOW, wait_for_attempts
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine_process import start
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

pytestmark = pytest.mark.usefixtures("either_database")


def force(bench: Bench, batch: Batch, limit: int | None = None) -> int:
    with bench.open() as ledger:
        return start_generation(ledger, batch.batch_id, limit)


def spent_nano(bench: Bench) -> int:
    with bench.open() as ledger, ledger.read() as connection:
        statement = sa.select(sa.func.sum(attempts.c.cost_nano)).where(
            attempts.c.state == AttemptState.SETTLED.value
        )
        return int(connection.execute(statement).scalar_one())


def test_force_asks_every_row_again_pays_again_and_then_its_answers_are_the_hits(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(60)))
    bench.run(batch, "first")
    once = spent_nano(bench)
    answered = {item.ordinal: item.attempt_id for item in bench.items(batch)}

    assert force(bench, batch) == 60
    forced = bench.run(batch, "forced")
    assert forced.outcomes == {"succeeded": 60}
    assert (forced.done.tally.attempts, forced.done.tally.cache_hits) == (3, 0)
    assert len(simulator.journal()) == 6
    assert spent_nano(bench) == 2 * once
    items = bench.items(batch)
    assert all(item.attempt_id != answered[item.ordinal] for item in items)
    assert sum(item.cost_nano for item in items) == 2 * once

    assert bench.run(batch, "after").done.tally.attempts == 0
    assert len(simulator.journal()) == 6


def test_a_forced_run_that_was_killed_asks_only_for_what_it_had_not_asked(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, workers=2)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(300)))
    bench.run(batch, "first")
    simulator.configure(latency=SLOW)
    assert force(bench, batch) == 300
    killed = start(bench, batch.batch_id, "killed")
    wait_for_attempts(simulator, 15 + 6)
    killed.kill()
    killed.wait(30)
    with bench.open() as ledger:
        kept = sum(
            item.outcome is Outcome.SUCCEEDED for item in stream_items(ledger, batch.batch_id)
        )
    assert 0 < kept < 300

    simulator.configure()
    assert force(bench, batch) == 0, "the forced generation goes on"
    ran = bench.run(batch, "resumed")
    assert ran.outcomes == {"succeeded": 300}
    # two workers: one call each on the wire, and one each whose settlement was not committed yet
    assert 30 <= len(simulator.journal()) <= 30 + 4, "only calls in flight were paid twice"


def test_force_with_a_limit_asks_so_many_rows_and_keeps_the_others_answers(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(60)))
    bench.run(batch, "first")
    before = {item.ordinal: item.attempt_id for item in bench.items(batch)}
    assert force(bench, batch, 10) == 10
    ran = bench.run(batch, "forced", limit=10)
    assert ran.outcomes == {"succeeded": 60}
    assert [entry["items"] for entry in simulator.journal()[3:]] == [10]
    changed = [
        item.ordinal for item in bench.items(batch) if item.attempt_id != before[item.ordinal]
    ]
    assert changed == list(range(10))


def test_force_asks_blocked_rows_again(simulator: Simulator, tmp_path: Path) -> None:
    rows = topics(20)
    rows[7]["Topic"] = "POISON"
    simulator.configure(faults=[{"kind": "refusal", "match": "POISON"}])
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows))
    assert bench.run(batch, "first").outcomes == {"succeeded": 19, "blocked": 1}
    simulator.reset()
    assert force(bench, batch) == 20
    assert bench.run(batch, "forced").outcomes == {"succeeded": 20}
    assert [entry["items"] for entry in simulator.journal()] == [20]


def test_a_limit_leaves_the_rest_pending_and_rows_that_are_done_do_not_count(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, chunk_size=25)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(100)))
    first = bench.run(batch, "first", limit=30)
    assert first.outcomes == {"succeeded": 30, "pending": 70}
    assert [chunk.complete for chunk in first.chunks] == [
        chunk.chunk_key.endswith("0001") for chunk in first.chunks
    ]
    assert len(first.chunks) == 4
    second = bench.run(batch, "second", limit=30)
    assert second.outcomes == {"succeeded": 60, "pending": 40}
    assert sum(entry["items"] for entry in simulator.journal()) == 60
    done = [item.outcome is Outcome.SUCCEEDED for item in bench.items(batch)]
    assert done == [True] * 60 + [False] * 40
    assert bench.run(batch, "rest").outcomes == {"succeeded": 100}


def test_rows_answered_in_another_batch_do_not_count_against_a_limit(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    known = bench.ingest(write_rows(tmp_path / "known.csv", topics(40)))
    bench.run(known, "known")
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(100)))
    ran = bench.run(batch, "limited", limit=20)
    assert ran.outcomes == {"succeeded": 60, "pending": 40}
    assert ran.done.tally.cache_hits == 40
    assert [entry["items"] for entry in simulator.journal()[2:]] == [20]


def test_blocked_rows_are_asked_within_a_limit_when_they_are_included(
    simulator: Simulator, tmp_path: Path
) -> None:
    rows = topics(20)
    for place in (3, 11):
        rows[place]["Topic"] = f"POISON {place}"
    simulator.configure(faults=[{"kind": "refusal", "match": "POISON"}])
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows))
    assert bench.run(batch, "first").outcomes == {"succeeded": 18, "blocked": 2}
    simulator.reset()
    again = bench.run(batch, "one", include_blocked=True, limit=1)
    assert again.outcomes == {"succeeded": 19, "pending": 1}
    assert [entry["items"] for entry in simulator.journal()] == [1]


def test_rows_that_ask_the_same_share_one_call_and_its_cost(
    simulator: Simulator, tmp_path: Path
) -> None:
    different = topics(3)
    rows = [{**different[at % 3], "Resources": f"https://example.org/own/{at}"} for at in range(60)]
    bench = Bench(tmp_path, simulator, chunk_size=20)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows))
    ran = bench.run(batch)
    assert ran.outcomes == {"succeeded": 60}
    assert [entry["items"] for entry in simulator.journal()] == [3]
    items = bench.items(batch)
    assert sum(item.cached for item in items) == 57 == ran.done.tally.cache_hits
    assert sum(item.cost_nano for item in items) == spent_nano(bench)
    assert len({item.cache_key for item in items}) == 3


def test_rows_that_share_a_question_without_an_answer_end_alike(
    simulator: Simulator, tmp_path: Path
) -> None:
    rows = [{**topics(1)[0], "Topic": "POISON", "Resources": f"r{at}"} for at in range(5)]
    simulator.configure(faults=[{"kind": "malformed_json", "match": "POISON"}])
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows))
    assert bench.run(batch).outcomes == {"failed": 5}
    assert {item.number for item in bench.items(batch)} == {1, 2, 3, 4, 5}
    for item in bench.items(batch):
        assert f"Row {item.number} " in (item.error or "")


def test_another_model_is_asked_anew_and_the_first_ones_answers_stay_hits(
    simulator: Simulator, tmp_path: Path
) -> None:
    table = write_rows(tmp_path / "rows.csv", topics(20))
    one = Bench(tmp_path, simulator)
    other = Bench(tmp_path, simulator, route="google/gemini-3.8-flash")
    assert one.run(one.ingest(table, "first"), "first").done.tally.attempts == 1
    changed = other.run(other.ingest(table, "second"), "second")
    assert changed.outcomes == {"succeeded": 20}
    assert (changed.done.tally.attempts, changed.done.tally.cache_hits) == (1, 0)
    assert {entry["model"] for entry in simulator.journal()} == {
        "gemini-3.1-flash-lite",
        "gemini-3.8-flash",
    }
    again = one.run(one.ingest(table, "third"), "third")
    assert (again.done.tally.attempts, again.done.tally.cache_hits) == (0, 20)


def run_live(bench: Bench, table: Path, batch_id: str) -> tuple[Ran, Job]:
    """The same run in the live realm, with the key and the address of the environment."""
    with open_ledger(bench.settings, "live") as ledger:
        batch, _ = ingest_batch(ledger, bench.config, str(table), batch_id=batch_id)
        with ledger.read() as connection:
            keys = [one.chunk_key for one in list_chunks(connection, "live", batch.batch_id)]
    job = plan_job(
        bench.config,
        run_id="live run",
        batch=batch,
        chunk_keys=keys,
        realm="live",
        simulator=None,
    )
    thread = EngineThread(lambda: open_ledger(bench.settings, "live"), job).start()
    return finish(thread, job), job


def test_the_live_realm_sees_nothing_of_the_simulated_one(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, simulator)
    table = write_rows(tmp_path / "rows.csv", topics(40))
    simulated = bench.ingest(table, "nov")
    assert bench.run(simulated, "rehearsal").outcomes == {"succeeded": 40}
    before = bench.items(simulated)
    assert len(simulator.journal()) == 2

    monkeypatch.setenv("GOOGLE_API_KEY", "a-key-for-this-test-only")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"{simulator.url}/google")
    live, job = run_live(bench, table, "nov")
    assert live.outcomes == {"succeeded": 40}
    assert (live.done.tally.attempts, live.done.tally.cache_hits) == (2, 0)
    assert len(simulator.journal()) == 4
    assert job.route[0].key == "a-key-for-this-test-only"
    assert job.route[0].label.endswith(f"@{simulator.url}/google"), "no answers of Google's own"
    assert bench.items(simulated) == before

    assert bench.run(simulated, "again").done.tally.attempts == 0
    with bench.open() as ledger, ledger.read() as connection:
        found = connection.execute(
            sa.select(attempts.c.realm, sa.func.count()).group_by(attempts.c.realm)
        ).all()
    assert sorted(map(tuple, found)) == [("live", 2), ("simulated", 2)]
