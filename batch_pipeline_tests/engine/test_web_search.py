"""Steps whose model searches the web: what they cite is kept, and what searches cost is in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from batch_pipeline.engine.answers import is_valid
from batch_pipeline.engine.job import Job, LaneSettings
from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.step import Done, LocalStep, LocalWork, Row, Step
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.calls import find_results
from batch_pipeline.ledger.documents import read_documents
from batch_pipeline.ledger.tables import NANO, AttemptState, attempts
from batch_pipeline.providers.base import WebSearch
from batch_pipeline_tests.engine.test_budget import assert_sums_equal_the_attempts
from batch_pipeline_tests.engine.test_crash import wait_for_attempts
from batch_pipeline_tests.engine.test_local import rows_of
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.engine.test_steps import money_agrees
from batch_pipeline_tests.simulated import WENT_OUT, Bench, Ran, Simulator, finish

ROUTE = "openrouter/openai/gpt-6-luna"
FEE = 0.020
"""What a search for five results costs, in USD."""


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


@asynccontextmanager
async def noting(tools: Tools) -> AsyncIterator[LocalWork]:
    """Keep what the step before has cited."""

    async def work(row: Row, place: Place) -> Done:
        return Done({"seen": row["research"]["citations"]})

    yield work


RESEARCH = Step(
    "research", "Look it up.", Text, lambda row: {"topic": row["Topic"]}, web_search=WebSearch()
)
WRITE = Step(
    "write",
    "Write it.",
    Text,
    lambda row: {"sources": [one["url"] for one in row["note"]["seen"]]},
    web_search=WebSearch(max_results=2, plugin=True),
)
STEPS = (RESEARCH, LocalStep("note", noting), WRITE)


def searching(job: Job) -> Job:
    return replace(job, steps=STEPS)


def run(bench: Bench, batch: Batch, run_id: str = "run", **settings: Any) -> Ran:
    job = searching(bench.job(batch, run_id, **settings))
    return finish(bench.start(job), job)


def bench_with(folder: Path, simulator: Simulator, count: int, **knobs: Any) -> tuple[Bench, Batch]:
    bench = Bench(folder, simulator, **{"route": ROUTE, **knobs})
    return bench, bench.ingest(write_rows(folder / "rows.csv", rows_of(count)))


def cited(bench: Bench, batch: Batch) -> tuple[list[Any], list[Any]]:
    """What the rows' first step, and their last one, have cited."""
    with bench.open() as ledger, ledger.read() as connection:
        kept = read_documents(connection, ledger.realm, batch.batch_id, steps=["note"])
        ended = [(item.cache_key or "", item.model or "") for item in bench.items(batch)]
        keys = [key for key, _ in ended]
        stored = find_results(connection, ledger.realm, keys, [model for _, model in ended])
    first = [kept[at]["note"].content["seen"] for at in sorted(kept)]
    return first, [stored[key].output["citations"] for key in keys]


@pytest.mark.usefixtures("either_database")
def test_citations_are_kept_and_shown_to_later_steps_and_searches_are_paid_once(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench, batch = bench_with(tmp_path, simulator, 6)
    ran = run(bench, batch)
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": 6})
    first, last = cited(bench, batch)
    assert [len(one) for one in first] == [5] * 6
    assert [len(one) for one in last] == [2] * 6
    for at, pages in enumerate(first):
        assert all(set(page) == {"title", "url"} for page in pages)
        assert len({page["url"] for page in pages}) == 5
        assert f"Topic {at}" in pages[0]["title"]
    money_agrees(bench, batch)
    fees = 6 * (FEE + 2 * FEE / 5)
    assert fees < float(simulator.summary()["price_usd"]) < 2 * fees
    with bench.open() as ledger, ledger.read() as connection:
        costs = sa.select(attempts.c.worst_nano, attempts.c.cost_nano).where(WENT_OUT)
        known = connection.execute(costs).all()
    assert len(known) == 12
    assert all(one.cost_nano <= one.worst_nano for one in known)

    again = bench.ingest(write_rows(tmp_path / "more.csv", [*rows_of(6), *rows_of(7)[6:]]))
    more = run(bench, again, "more")
    assert more.outcomes == {"succeeded": 7}
    assert more.done.tally.attempts == 2, "only the row that is new is asked"
    found = cited(bench, again)
    assert (found[0][:6], found[1][:6]) == (first, last)


def test_a_run_that_was_stopped_goes_on_with_what_was_cited(
    simulator: Simulator, tmp_path: Path
) -> None:
    simulator.configure(latency={"base_s": 0.1, "per_output_token_s": 0.0, "jitter_s": 0.1})
    bench, batch = bench_with(tmp_path, simulator, 12, workers=3)
    thread = bench.start(searching(bench.job(batch, "stopped")))
    wait_for_attempts(simulator, 8)
    thread.stop()
    for _ in thread.events():
        pass
    assert 8 <= len(simulator.journal()) < 24
    ran = run(bench, batch, "resumed")
    assert ran.outcomes == {"succeeded": 12}
    assert len(simulator.journal()) == 24, "calls in flight were waited for: none is paid again"
    first, last = cited(bench, batch)
    assert [len(one) for one in first] == [5] * 12
    assert [len(one) for one in last] == [2] * 12
    money_agrees(bench, batch)


@pytest.mark.usefixtures("either_database")
def test_fees_of_searches_stay_inside_a_budget(simulator: Simulator, tmp_path: Path) -> None:
    bench, batch = bench_with(tmp_path, simulator, 30, workers=16, budget_usd=0.30)
    ran = run(bench, batch)
    assert ran.done.status == "budget"
    paid = float(simulator.summary()["price_usd"])
    # what is left is less than a call may cost at worst: two turns with five results
    assert 0.30 - 2.5 * FEE <= paid <= 0.30
    assert_sums_equal_the_attempts(bench)
    small = run(bench, batch, "small")
    assert small.done.status == "budget"
    assert float(simulator.summary()["price_usd"]) <= 0.30


def test_a_budget_below_one_search_sends_nothing(simulator: Simulator, tmp_path: Path) -> None:
    bench, batch = bench_with(tmp_path, simulator, 3, budget_usd=FEE)
    ran = run(bench, batch)
    assert ran.done.status == "budget"
    assert simulator.journal() == []


def test_a_reply_without_text_counts_as_the_provider_bills_it(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench, batch = bench_with(tmp_path, simulator, 2)
    simulator.configure(faults=[{"kind": "empty", "count": 1}])
    ran = run(bench, batch)
    assert ran.outcomes == {"succeeded": 2}
    with bench.open() as ledger, ledger.read() as connection:
        spent = connection.execute(sa.select(sa.func.sum(attempts.c.cost_nano))).scalar_one()
    assert len(simulator.journal()) == 5
    assert spent / NANO == pytest.approx(simulator.summary()["price_usd"])


def test_a_call_whose_reply_is_lost_counts_with_its_fee(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench, batch = bench_with(tmp_path, simulator, 1)
    simulator.configure(faults=[{"kind": "cut", "count": 1}])
    ran = run(bench, batch)
    assert ran.outcomes == {"succeeded": 1}
    with bench.open() as ledger, ledger.read() as connection:
        lost = connection.execute(
            sa.select(attempts.c.cost_nano).where(attempts.c.state == AttemptState.LOST.value)
        ).scalar_one()
    assert lost >= FEE * NANO


@pytest.mark.parametrize("lane", ["batch", "auto"])
def test_they_are_asked_in_real_time_whatever_the_lane(
    lane: Any, simulator: Simulator, tmp_path: Path
) -> None:
    bench, batch = bench_with(tmp_path, simulator, 3)
    ran = run(bench, batch, lane=LaneSettings(lane=lane, wait=True))
    assert ran.outcomes == {"succeeded": 3}
    assert len(simulator.journal()) == 6


def test_rows_whose_model_cannot_search_fail_alone_and_say_what_to_do(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench, batch = bench_with(tmp_path, simulator, 2)
    job = searching(bench.job(batch))
    other = Bench(tmp_path, simulator, route="anthropic/claude-haiku-5-5").job(batch).route
    job = replace(job, route_of=lambda row: other if row["Topic"] == "Topic 1" else None)
    ran = finish(bench.start(job), job)
    assert ran.outcomes == {"succeeded": 1, "failed": 1}
    (failed,) = ran.chunks[0].failed
    assert "anthropic/claude-haiku-5-5 cannot" in failed.error
    assert "openrouter/" in failed.error


def test_how_it_searches_is_part_of_the_question_and_only_there() -> None:
    content = {"topic": "Threads"}
    plain = replace(RESEARCH, web_search=None)
    keys = {
        KeyMaker(replace(RESEARCH, web_search=search)).key(content)
        for search in (None, WebSearch(), WebSearch(max_results=2), WebSearch(plugin=True))
    }
    assert len(keys) == 4
    # as it was before there were searches: answers of then are still hits
    assert KeyMaker(plain).key(content) == (
        "57f9b1a55108482bc9ca2465ed907ea95818cce3ed83ca50cfadc6981169033f"
    )


def test_stored_answers_are_valid_with_what_they_cite() -> None:
    answer = {"text": "It is.", "citations": [{"title": "A", "url": "https://a.example"}]}
    assert is_valid(RESEARCH, answer)
    assert not is_valid(replace(RESEARCH, web_search=None), answer)
    assert not is_valid(RESEARCH, {"citations": []})


def test_a_step_that_searches_has_citations_of_its_own_and_asks_rows_one_by_one() -> None:
    class Cites(BaseModel):
        citations: list[str]

    with pytest.raises(ValueError, match="citations"):
        replace(RESEARCH, output_model=Cites)
    assert replace(RESEARCH, output_model=Cites, web_search=None)
    with pytest.raises(ValueError, match="max_items"):
        replace(RESEARCH, max_items=2)
