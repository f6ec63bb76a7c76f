"""No budget is passed, at any concurrency and after any crash, and nearly all of it is used."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.batches import Batch, list_chunks
from batch_pipeline.ledger.calls import RECONCILE, Reconcile
from batch_pipeline.ledger.spend import Account, Balance, Scope, read_balance
from batch_pipeline.ledger.tables import NANO, AttemptState, attempts, spend
from batch_pipeline.limits.days import day_of
from batch_pipeline.pricing.prices import UnknownPriceError
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine_process import outcome, start
from batch_pipeline_tests.ledger.books import do
from batch_pipeline_tests.simulated import Bench, Simulator

DEAR = "anthropic/claude-opus-5-5"
"""A row by itself costs 0.0033 USD, so that 1,000 rows are worth 3.30."""

QUICK_REPLIES = {"base_s": 0.05, "per_output_token_s": 0.0, "jitter_s": 0.05}


def balance_of(bench: Bench, batch: Batch) -> Balance:
    with bench.open() as ledger, ledger.read() as connection:
        return read_balance(connection, Account(ledger.realm, Scope.BATCH, batch.batch_id))


def assert_sums_equal_the_attempts(bench: Bench) -> None:
    """Every balance is what the attempts say."""
    states = {
        "reserved_nano": (AttemptState.SENT, attempts.c.worst_nano),
        "settled_nano": (AttemptState.SETTLED, attempts.c.cost_nano),
        "lost_nano": (AttemptState.LOST, attempts.c.cost_nano),
    }
    columns = {
        Scope.BATCH: (attempts.c.batch_id, sa.literal("")),
        Scope.WORKLOAD: (attempts.c.workload, attempts.c.workload_day),
        Scope.PROVIDER: (attempts.c.provider, attempts.c.provider_day),
    }
    with bench.open() as ledger, ledger.read() as connection:
        rows = connection.execute(sa.select(spend)).mappings().all()
        assert rows
        for row in rows:
            scope_id, day = columns[Scope(row["scope"])]
            for name, (state, nano) in states.items():
                total = connection.execute(
                    sa.select(sa.func.coalesce(sa.func.sum(nano), 0)).where(
                        attempts.c.realm == row["realm"],
                        scope_id == row["scope_id"],
                        day == row["day"],
                        attempts.c.state == state.value,
                    )
                ).scalar_one()
                assert total == row[name], (dict(row), name)


@pytest.mark.usefixtures("either_database")
def test_a_run_stops_inside_its_budget_says_so_and_goes_on_when_it_is_raised(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route=DEAR, pack=1, workers=64, budget_usd=0.50)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(200)))
    ran = bench.run(batch, "bounded")
    paid = float(simulator.summary()["price_usd"])
    assert ran.done.status == "budget"
    assert 0.97 * 0.50 <= paid <= 0.50
    done = ran.outcomes["succeeded"]
    assert f"budget reached: {done} of 200 rows done, {paid:,.2f} of 0.50 USD" in ran.done.message
    assert ran.outcomes == {"succeeded": done, "pending": 200 - done}
    assert balance_of(bench, batch) == Balance(settled=round(paid * NANO))
    assert_sums_equal_the_attempts(bench)

    bench.config = bench.config.model_copy(update={"budget_usd": 5.0})
    rest = bench.run(batch, "raised")
    assert rest.outcomes == {"succeeded": 200}
    assert rest.done.tally.cache_hits == done
    assert len(simulator.journal()) == 200, "what was done is kept"


def test_near_the_end_packs_shrink(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator, route=DEAR, pack=20, workers=8, budget_usd=0.40)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(2_000)))
    ran = bench.run(batch)
    journal = simulator.journal()
    assert ran.done.status == "budget"
    assert 0.97 * 0.40 <= sum(entry["price_usd"] for entry in journal) <= 0.40
    sizes = [entry["items"] for entry in journal]
    assert max(sizes) == 20 and sizes[-1] < 20


@pytest.mark.parametrize("which", ["budget_usd_per_day", "provider_budget_usd_per_day"])
def test_a_budget_per_day_bounds_all_batches_together(
    which: str, simulator: Simulator, tmp_path: Path
) -> None:
    budget: dict[str, Any] = {which: 0.20}
    bench = Bench(tmp_path, simulator, route=DEAR, pack=1, workers=16, **budget)
    first = bench.ingest(write_rows(tmp_path / "first.csv", topics(40)))
    other = [dict(row, Topic=f"Other {row['Topic']}") for row in topics(60)]
    second = bench.ingest(write_rows(tmp_path / "second.csv", other))
    assert bench.run(first, "first").outcomes == {"succeeded": 40}
    ran = bench.run(second, "second")
    assert ran.done.status == "budget"
    assert "of 0.20 USD" in ran.done.message
    whose = {"budget_usd_per_day": "roadmaps", "provider_budget_usd_per_day": "anthropic"}[which]
    assert f"{whose} on {day_of('', time.time())}" in ran.done.message
    assert 0.9 * 0.20 <= float(simulator.summary()["price_usd"]) <= 0.20


def test_when_a_providers_budget_is_used_up_the_next_provider_goes_on(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(
        tmp_path,
        simulator,
        route=f"{DEAR}, google/gemini-3.1-flash-lite",
        pack=1,
        workers=8,
        provider_budget_usd_per_day=0.10,
    )
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(100)))
    assert bench.run(batch).outcomes == {"succeeded": 100}
    paid: dict[str, float] = {}
    for entry in simulator.journal():
        paid[entry["provider"]] = paid.get(entry["provider"], 0.0) + entry["price_usd"]
    assert 0.08 <= paid["anthropic"] <= 0.10
    assert paid["google"] > 0


def test_a_call_whose_reply_never_came_counts_at_its_worst_until_it_is_reconciled(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "cut", "count": 3}])
    bench = Bench(tmp_path, simulator, route=DEAR, pack=1, workers=1, budget_usd=0.10)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(60)))
    ran = bench.run(batch)
    held = balance_of(bench, batch)
    assert ran.done.status == "budget"
    assert held.lost > 0 and held.reserved == 0
    assert held.spent <= 0.10 * NANO
    assert "whose reply never came" in ran.done.message
    with bench.open() as ledger:
        with ledger.read() as connection:
            lost = (
                connection.execute(
                    sa.select(attempts.c.attempt_id).where(
                        attempts.c.state == AttemptState.LOST.value
                    )
                )
                .scalars()
                .all()
            )
        assert len(lost) == 3
        assert [do(ledger, RECONCILE, Reconcile(one, 0)) for one in lost] == [True] * 3
        assert do(ledger, RECONCILE, Reconcile(lost[0], 0)) is False, "once"
    assert balance_of(bench, batch).lost == 0
    assert_sums_equal_the_attempts(bench)
    assert bench.run(batch, "again").outcomes["succeeded"] > ran.outcomes["succeeded"]


def test_a_model_without_a_price_is_refused_under_a_budget(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator, route="openai/gpt-6.2-sol", budget_usd=1.0)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", topics(5)))
    with pytest.raises(UnknownPriceError, match=r"gpt-6\.2-sol"):
        bench.job(batch)


def chunks_in_parts(bench: Bench, batch: Batch, parts: int) -> list[list[str]]:
    with bench.open() as ledger, ledger.read() as connection:
        keys = [one.chunk_key for one in list_chunks(connection, ledger.realm, batch.batch_id)]
    return [keys[place::parts] for place in range(parts)]


@pytest.mark.usefixtures("either_database")
@pytest.mark.parametrize("kills", [0, 6])
def test_four_processes_with_64_calls_in_flight_stay_inside_one_budget_even_when_killed(
    kills: int, reference_data: Path, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency=QUICK_REPLIES)
    rng = random.Random(kills)
    bench = Bench(
        tmp_path, simulator, route=DEAR, pack=1, workers=16, budget_usd=1.0, chunk_size=50
    )
    batch = bench.ingest(reference_data / "roadmaps" / "rows_1000.csv")
    parts = chunks_in_parts(bench, batch, 4)
    settings: dict[str, Any] = {"chunk_wait_s": 120.0}

    def launch(place: int, generation: int) -> Any:
        return start(bench, batch.batch_id, f"run {place}.{generation}", parts[place], **settings)

    running = {place: launch(place, 0) for place in range(4)}
    for kill in range(kills):
        # spread over the budget, so that the last kills meet a nearly empty one
        reached = (kill + rng.random()) / (kills + 1)
        wait_for(
            lambda bound=reached: (  # type: ignore[misc]
                simulator.summary()["price_usd"] >= bound * 0.9
                or all(process.poll() is not None for process in running.values())
            )
        )
        if all(process.poll() is not None for process in running.values()):
            # The worst case of what the kills left in flight took the rest of the budget.
            break
        victim = rng.randrange(4)
        running[victim].send_signal(signal.SIGKILL)
        running[victim].wait(30)
        running[victim] = launch(victim, kill + 1)
    done = [outcome(process, 180.0) for process in running.values()]
    journal = float(simulator.summary()["price_usd"])
    held = balance_of(bench, batch)
    assert {entry["status"] for entry in done} == {"budget"}
    assert journal <= 1.0, "the budget was passed"
    assert held.taken <= 1.0 * NANO
    # What a kill left in flight stays reserved until its deadline is over, then it is lost.
    assert held.taken >= 0.97 * NANO
    assert_sums_equal_the_attempts(bench)
    if kills:
        assert held.lost + held.reserved > 0, "no kill met a call in flight"
    else:
        assert journal >= 0.97
        assert held == Balance(settled=round(journal * NANO))
    bench.config = bench.config.model_copy(update={"budget_usd": 20.0})
    simulator.configure()
    assert bench.run(batch, "raised").outcomes == {"succeeded": 1000}


def wait_for(reached: Callable[[], bool], bound_s: float = 90.0) -> None:
    deadline = time.monotonic() + bound_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
