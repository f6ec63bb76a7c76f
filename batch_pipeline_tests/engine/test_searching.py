"""Search calls of a run: asked once, paid once, within their own limit; and when they cannot be."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.engine.job import Job, Spending
from batch_pipeline.engine.searching import STEP, SearchUnavailableError
from batch_pipeline.engine.step import Done, LocalStep, LocalWork, Row, Step, with_tools
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.tables import NANO, AttemptState, attempts
from batch_pipeline.providers.base import ProviderError
from batch_pipeline.search.base import SearchAccess, SearchQuery
from batch_pipeline.search.registry import resolve_search_access
from batch_pipeline_tests.conftest import REFERENCE
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_local import Text, rows_of
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine_process import outcome, start
from batch_pipeline_tests.fetch.archive import shared_archive
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish

QUERIES = 5


@asynccontextmanager
async def searching(tools: Tools) -> AsyncIterator[LocalWork]:
    """Rows ask one of QUERIES queries, and say what came of it."""

    async def work(row: Row, place: Place) -> Done:
        words = f"query {int(row['Topic'].split()[-1]) % QUERIES}"
        try:
            answer = await tools.search("ahrefs", SearchQuery(words, "se"), place)
        except SearchUnavailableError as error:
            return Done({"why": f"unavailable: {error}"})
        except ProviderError as error:
            return Done({"why": f"nothing: {error.kind.value}"})
        return Done({"found": answer.results[0]["title"]})

    yield work


STEPS = (
    LocalStep("look", searching),
    Step("write", "Write it.", Text, lambda row: {"topic": row["Topic"], **row["look"]}),
)


def searched(bench: Bench, job: Job, *, per_minute: float = 60_000.0, cost_usd: float = 0.0) -> Job:
    def access(name: str) -> SearchAccess | None:
        found = resolve_search_access(name, {}, bench.simulator.url)
        assert found is not None
        provider = replace(found.provider, requests_per_minute=per_minute, cost_usd=cost_usd)
        return replace(found, provider=provider)

    return replace(job, steps=STEPS, search_access=access)


def run(bench: Bench, batch: Batch, run_id: str = "run", **terms: Any) -> Ran:
    settings = {name: terms.pop(name) for name in ("spending", "transient_tries") if name in terms}
    job = searched(bench, bench.job(batch, run_id, **settings), **terms)
    return finish(bench.start(job), job)


def calls(simulator: Simulator) -> int:
    """Searches that reached the provider."""
    return sum(entry["provider"] == "ahrefs" for entry in simulator.journal())


def attempts_of(bench: Bench) -> Counter[tuple[str, str]]:
    """Search attempts by state and kind of error."""
    with bench.open() as ledger, ledger.read() as connection:
        found = connection.execute(
            sa.select(attempts.c.state, attempts.c.error_kind).where(attempts.c.step == STEP)
        )
        return Counter((state, kind or "") for state, kind in found)


def said(bench: Bench, batch: Batch) -> set[str]:
    """What rows noted that found nothing."""
    with bench.open() as ledger, ledger.read() as connection:
        kept = read_documents(connection, ledger.realm, batch.batch_id, steps=["look"])
    return {str(one["look"].content.get("why", "")) for one in kept.values()}


def test_a_provider_that_asks_for_a_day_of_patience_is_not_waited_for(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(
        faults=[{"kind": "status", "status": 429, "provider": "ahrefs", "retry_after_s": 86_400.0}]
    )
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(10)))
    assert run(bench, batch).outcomes == {"succeeded": 10}
    [why] = said(bench, batch)
    assert "unavailable: ahrefs asks to wait 86,400 s" in why


@pytest.mark.usefixtures("either_database")
def test_a_query_is_asked_once_for_all_rows_and_all_batches(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(40)))
    ran = run(bench, batch)
    assert ran.outcomes == {"succeeded": 40}
    assert calls(simulator) == QUERIES
    assert attempts_of(bench) == {("settled", ""): QUERIES}
    tally = ran.done.tally
    assert (tally.requests, tally.attempts, tally.searches) == (40, 40, QUERIES)
    assert sum(chunk.tally.searches for chunk in ran.chunks) == QUERIES
    other = bench.ingest(write_rows(tmp_path / "other.csv", [*rows_of(40), *topics(1)][:39]))
    run(bench, other, "other")
    assert calls(simulator) == QUERIES


def test_searches_keep_to_a_limit_of_their_own(simulator: Simulator, tmp_path: Path) -> None:
    # strict: the simulator lets one call through at a time
    simulator.configure(ahrefs_per_minute=240)
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(20)))
    began = time.monotonic()
    ran = run(bench, batch, per_minute=240)
    assert ran.outcomes == {"succeeded": 20}
    assert attempts_of(bench) == {("settled", ""): QUERIES}, "no 429"
    assert time.monotonic() - began >= (QUERIES - 2) / 4


def test_429s_and_passing_faults_are_waited_out(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(
        faults=[
            {"kind": "status", "status": 429, "provider": "ahrefs", "count": 2},
            {"kind": "status", "status": 503, "provider": "ahrefs", "count": 1, "after": 3},
        ]
    )
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(10)))
    ran = run(bench, batch)
    assert ran.outcomes == {"succeeded": 10}
    assert said(bench, batch) == {""}
    known = attempts_of(bench)
    assert known["settled", ""] == QUERIES
    assert known["settled", "rate_limited"] == 2


def test_a_query_without_an_answer_and_a_key_that_is_refused_are_told_to_the_step(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(10)))
    simulator.configure(faults=[{"kind": "status", "status": 400, "provider": "ahrefs"}])
    assert run(bench, batch).outcomes == {"succeeded": 10}
    assert said(bench, batch) == {"nothing: item_permanent"}

    again = bench.ingest(write_rows(tmp_path / "again.csv", rows_of(11)))
    simulator.configure(faults=[{"kind": "status", "status": 401, "provider": "ahrefs"}])
    before = calls(simulator)
    assert run(bench, again, "again").outcomes == {"succeeded": 11}
    assert all(
        why.startswith("unavailable: ahrefs refuses every call") for why in said(bench, again)
    )
    assert calls(simulator) - before <= QUERIES, "never once per row"


def test_what_searches_cost_is_part_of_the_budget(simulator: Simulator, tmp_path: Path) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(10)))
    few = Spending(batch_nano=round(0.35 * NANO))
    ran = run(bench, batch, cost_usd=0.1, spending=few)
    assert ran.done.status == "budget"
    assert "budget reached" in ran.done.message
    assert calls(simulator) <= 3
    assert ran.done.tally.cost_nano <= few.batch_nano  # type: ignore[operator]
    enough = Spending(batch_nano=round(0.7 * NANO))
    again = run(bench, batch, "again", cost_usd=0.1, spending=enough)
    assert again.outcomes == {"succeeded": 10}
    assert calls(simulator) == QUERIES
    spent = sum(item.cost_nano for item in bench.items(batch)) / NANO
    assert spent == pytest.approx(QUERIES * 0.1 + float(simulator.summary()["price_usd"]))


def test_a_search_waits_for_what_calls_in_flight_leave_of_a_budget(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency={"base_s": 0.5, "per_output_token_s": 0.0, "jitter_s": 0.0})
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(12)))
    # a row takes 0.0005 for its search and 0.00006 for the model, which could be 0.00072 at worst
    budget = round(0.0076 * NANO)
    job = bench.job(batch, spending=Spending(batch_nano=budget))
    job = searched(bench, job, cost_usd=0.0005)
    job = replace(job, steps=(LocalStep("look", with_tools(search_alone), at_once=4), STEPS[1]))
    ran = finish(bench.start(job), job)
    assert ran.outcomes == {"succeeded": 12}, ran.done.message
    assert ran.done.tally.cost_nano <= budget


def test_a_call_whose_reply_never_came_counts_as_lost_at_its_price(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(1)))
    simulator.configure(faults=[{"kind": "cut", "provider": "ahrefs", "count": 1}])
    ran = run(bench, batch, cost_usd=0.1)
    assert ran.outcomes == {"succeeded": 1}
    assert attempts_of(bench) == {("lost", "transient"): 1, ("settled", ""): 1}
    assert ran.done.tally.lost_nano == pytest.approx(0.1 * NANO)


def test_three_processes_share_the_limit_and_the_answers(
    simulator: Simulator, tmp_path: Path
) -> None:
    # The articles' preflight asks; a process of its own has no steps of a test.
    with shared_archive() as archive, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCH_PIPELINE_FETCH_ARCHIVE", archive.url)
        simulator.configure(ahrefs_per_minute=600)
        bench = Bench(
            tmp_path, simulator, workload="articles", options={"use_ahrefs": True},
            search_rate_limit=600.0,
        )  # fmt: skip
        table = REFERENCE / "data" / "articles" / "jobs_offline_36.csv"
        lines = table.read_text("utf-8").splitlines(keepends=True)
        head, rows = lines[0], lines[1:13]
        batches = []
        for at in range(3):
            part = tmp_path / f"part{at}.csv"
            # four jobs are in all three batches
            part.write_text("".join([head, *rows[:4], *rows[4 + at * 2 : 6 + at * 2]]), "utf-8")
            batches.append(bench.ingest(part, f"part{at}"))
        processes = [start(bench, batch.batch_id, f"run {batch.batch_id}") for batch in batches]
        ended = [outcome(process) for process in processes]
    assert [one["outcomes"] for one in ended] == [{"succeeded": 6}] * 3
    with bench.open() as ledger, ledger.read() as connection:
        found = connection.execute(
            sa.select(
                attempts.c.members, attempts.c.model, attempts.c.state, attempts.c.error_kind
            ).where(attempts.c.step == STEP)
        ).all()
    assert not [one for one in found if one.error_kind == "rate_limited"]
    settled = Counter(
        (one.members.split('"')[1], one.model)
        for one in found
        if one.state == AttemptState.SETTLED.value
    )
    assert set(settled.values()) == {1}, "no query is asked by two processes"


def test_a_killed_search_is_asked_again_and_nothing_else(
    simulator: Simulator, tmp_path: Path
) -> None:
    with shared_archive() as archive, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCH_PIPELINE_FETCH_ARCHIVE", archive.url)
        simulator.configure(latency={"base_s": 0.4, "per_output_token_s": 0.0, "jitter_s": 0.0})
        bench = Bench(
            tmp_path, simulator, workload="articles", search_rate_limit=6_000.0,
            options={"use_ahrefs": True, "enable_llm_profiling": False, "strategy": "single_shot"},
        )  # fmt: skip
        table = REFERENCE / "data" / "articles" / "jobs_offline_36.csv"
        few = tmp_path / "few.csv"
        few.write_text("".join(table.read_text("utf-8").splitlines(keepends=True)[:5]), "utf-8")
        batch = bench.ingest(few)
        process = start(bench, batch.batch_id, "killed")
        deadline = time.monotonic() + 60
        while calls(simulator) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        ended = outcome(start(bench, batch.batch_id, "resumed"))
    assert ended["outcomes"] == {"succeeded": 4}
    known = attempts_of(bench)
    settled = known["settled", ""]
    in_flight = sum(known.values()) - settled
    assert in_flight, "the kill met no call in flight: the test proves nothing"
    assert calls(simulator) <= settled + in_flight


async def search_alone(row: Row, place: Place, tools: Tools) -> Done:
    """Each row asks a query of its own."""
    answer = await tools.search("ahrefs", SearchQuery(row["Topic"], "se"), place)
    return Done({"found": answer.results[0]["title"]})


def test_rows_are_not_searched_for_long_before_a_model_is_asked(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency={"base_s": 0.02, "per_output_token_s": 0.001, "jitter_s": 0.0})
    bench = Bench(tmp_path, simulator, workers=2)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(60)))
    job = searched(bench, bench.job(batch))
    look = LocalStep("look", with_tools(search_alone), searches={"ahrefs": 1})
    job = replace(job, steps=(look, STEPS[1]))
    assert finish(bench.start(job), job).outcomes == {"succeeded": 60}
    ahead, most = 0, 0
    for entry in sorted(simulator.journal(), key=lambda one: float(one["t"])):
        ahead += 1 if entry["provider"] == "ahrefs" else -1
        most = max(most, ahead)
    # two that are asked, two that wait, and those on the way between both
    assert most <= 12


def test_rows_stay_pending_where_the_provider_refuses_every_search(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(faults=[{"kind": "status", "status": 401, "provider": "ahrefs"}])
    bench = Bench(tmp_path, simulator)
    batch = bench.ingest(write_rows(tmp_path / "rows.csv", rows_of(20)))
    job = searched(bench, bench.job(batch))
    job = replace(job, steps=(LocalStep("look", with_tools(search_alone)), STEPS[1]))
    ran = finish(bench.start(job), job)
    assert ran.outcomes == {"pending": 20}
    assert ran.done.status == "stopped"
    assert "ahrefs refuses every call" in ran.done.message and "keys check" in ran.done.message
    simulator.configure()
    again = replace(job, run_id="mended")
    assert finish(bench.start(again), again).outcomes == {"succeeded": 20}
