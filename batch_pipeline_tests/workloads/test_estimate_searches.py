"""Estimates of searches and of steps that only some rows take: counts, money, time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.component.materialize import _estimate_markdown as estimate_markdown
from batch_pipeline.engine.step import AnyStep, Done, LocalStep, LocalWork, Row, Step
from batch_pipeline.engine.tools import Place, Tools
from batch_pipeline.ledger.batches import Batch, find_batch, set_estimate
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.pricing.calibration import FROM_CALLS
from batch_pipeline.pricing.web_search import Added
from batch_pipeline.providers.base import WebSearch
from batch_pipeline.reports.build import build_report
from batch_pipeline.search.base import SearchQuery
from batch_pipeline.workloads import compare
from batch_pipeline.workloads.config import load_workload_config
from batch_pipeline.workloads.estimate import (
    Estimate,
    JobPlan,
    ModelSearch,
    PlannedRow,
    SearchPlan,
    search_line,
)
from batch_pipeline.workloads.roadmaps.workload import RoadmapsWorkload
from batch_pipeline.workloads.runner import ingest_batch
from batch_pipeline_tests.simulated import Bench, Simulator
from batch_pipeline_tests.workloads.test_estimate_steps import (
    DRAFT,
    OUTLINE,
    Text,
    _by_name,
    _chain,
    _counts,
    _estimate,
    _half,
    _nothing,
    _paid,
    _row,
    _rows,
    _table,
)

_EXA = SearchPlan("exa", 0.007, 0.007, "exa", 300.0, 1.0)
_LOOK = LocalStep("look", _nothing, at_once=8, searches={"exa": 1.0})


def _looked(row: Row) -> dict[str, Any]:
    return {"topic": row["Topic"], "pages": row["look"]["pages"]}


_WRITE = replace(OUTLINE, max_items=1, content=_looked)
_AGAIN = Step(
    "again_1",
    "Write it better.",
    Text,
    lambda row: {"topic": row["Topic"], "text": row["outline"]["text"]},
    typical_tokens=(300, 60),
    applies=lambda row: "check" not in row or bool(row["check"]["again"]),
    optional=True,
    expected_share=0.1,
)
_CHECK = LocalStep("check", _nothing)


def _money(usd: float | None) -> str:
    return "unknown" if usd is None else f"${usd:.2f}"


# ---- searches of local steps ---------------------------------------------------------------------


def test_searches_have_a_count_a_price_and_the_time_that_their_limit_asks_for() -> None:
    steps = (_LOOK, _WRITE)
    found = _estimate(_rows(1_000), _chain(steps=steps), steps, searches=[_EXA])
    (exa,) = found.searches
    assert (exa.provider, exa.rows, exa.low, exa.calls, exa.worst) == ("exa", *[1_000] * 4)
    assert exa.usd == pytest.approx(7.0)
    # 5 a second: 999 intervals, the last search, and the last row's own call.
    assert exa.seconds == pytest.approx(999 / 5 + 1.0)
    four = _estimate(_rows(1_000), _chain(steps=(_WRITE,)), steps)
    assert found.requests == four.requests == 1_000
    assert found.cost_usd == pytest.approx((four.cost_usd or 0) + 7.0)
    # Four requests of 2 s at once take longer than the searches; faster ones wait for them.
    assert found.bound_by == "4 requests in flight"
    quick = _estimate(_rows(1_000), _chain(steps=steps, latency_s=0.2), steps, searches=[_EXA])
    assert quick.seconds == pytest.approx(999 / 5 + 1.0 + 0.2)
    assert quick.bound_by == "300 searches a minute of exa"


def test_a_line_says_the_searches_of_each_provider() -> None:
    tavily = SearchPlan("tavily", 0.008, 0.016, "tavily", 100.0)
    look = replace(_LOOK, searches={"exa": 1.0, "tavily": 2.5})
    steps = (look, _WRITE)
    found = _estimate(_rows(100), _chain(steps=steps), steps, searches=[_EXA, tavily])
    assert [search_line(one, _money) for one in found.searches] == [
        "Exa: 100 searches, $0.70 (low 100, $0.70; worst 100, $0.70), by the price list; "
        "300 searches a minute of exa",
        "Tavily: 250 searches, $2.00 (low 250, $2.00; worst 300, $4.80), by the price list; "
        "100 searches a minute of tavily",
    ]
    assert "Tavily: 250 searches" in estimate_markdown(found)
    document = found.to_dict()
    assert document["searches"][0]["expected"] == {"calls": 100, "cost_usd": pytest.approx(0.7)}
    larger = found.scaled_to(1_000)
    assert [one.calls for one in larger.searches] == [1_000, 2_500]
    assert larger.cost_usd == pytest.approx(10 * (found.cost_usd or 0))


def test_rows_whose_searches_are_done_or_may_be_known_count_less() -> None:
    steps = (_LOOK, _WRITE)
    rows = [
        _row("new"),
        _row("old one"),
        replace(_row("made"), documents={"look": {"pages": []}}),
        _row("same"),
        replace(_row("same"), item_id="twin"),
    ]
    (exa,) = _estimate(rows, _chain(steps=steps), steps, searches=[_EXA]).searches
    assert (exa.low, exa.calls, exa.worst) == (2, 3, 4)
    behind = (replace(_LOOK, checkpoint=True), _WRITE)
    (exa,) = _estimate(rows, _chain(steps=behind), behind, searches=[_EXA]).searches
    assert (exa.low, exa.calls, exa.worst) == (2, 3, 3), "behind a checkpoint nothing is searched"


def test_rows_left_pending_search_nothing() -> None:
    steps = (_LOOK, _WRITE)
    found = _estimate(_rows(10), _chain(steps=steps), steps, searches=[_EXA], limit=3)
    assert (found.left_pending, found.searches[0].calls) == (7, 3)


def test_rows_that_do_not_search_are_not_counted() -> None:
    steps = (replace(_LOOK, searching=lambda row: row["Topic"] != "offline"), _WRITE)
    rows = [*_rows(4), _row("offline")]
    (exa,) = _estimate(rows, _chain(steps=steps), steps, searches=[_EXA]).searches
    assert (exa.rows, exa.low, exa.calls, exa.worst) == (4, 4, 4, 4)


def test_the_batch_lane_has_the_time_of_the_searches_before_its_jobs() -> None:
    steps = (_LOOK, _WRITE)
    chain = _chain(steps=steps, jobs=JobPlan(_half, 600.0, 12), lane="batch")
    found = _estimate(_rows(301), chain, steps, searches=[_EXA])
    assert found.seconds == pytest.approx(600.0 + 300 / 5 + 1.0)
    assert found.scaled_to(602).seconds == pytest.approx(600.0 + 2 * (300 / 5 + 1.0))


def test_without_a_limit_the_rows_at_once_bound_the_searches() -> None:
    steps = (_LOOK, _WRITE)
    free = replace(_EXA, per_minute=None, latency_s=4.0)
    (exa,) = _estimate(_rows(16), _chain(steps=steps), steps, searches=[free]).searches
    assert (exa.seconds, exa.bound_by) == (8.0, "8 rows searching at once")


# ---- searches of models --------------------------------------------------------------------------


def test_a_models_web_search_adds_its_fee_and_what_it_reads() -> None:
    step = replace(OUTLINE, max_items=1)
    plain = _estimate(_rows(10), _chain(steps=(step,)), (step,))
    web = ModelSearch("openrouter", True, 0.02, 500.0, 1, Added(0.02, 1, 8_000))
    found = _estimate(_rows(10), _chain(steps=(step,), web=web), (step,))
    assert found.expected.input_tokens == plain.expected.input_tokens + 10 * 500
    assert found.worst.input_tokens == plain.worst.input_tokens + 10 * 8_000
    (searched,) = found.searches
    assert (searched.by_model, searched.low, searched.calls, searched.worst) == (True, 10, 10, 10)
    assert searched.usd == pytest.approx(0.2)
    grown = (found.cost_usd or 0) - (plain.cost_usd or 0)
    assert grown == pytest.approx(0.2 + 10 * 500 / 1e9)
    decides = replace(web, always=False, turns=2, worst=Added(0.06, 4, 40_000, 6), most_searches=3)
    asked = _estimate(_rows(10), _chain(steps=(step,), web=decides), (step,))
    assert (asked.searches[0].low, asked.searches[0].worst) == (0, 30)
    assert asked.low.cost_usd == plain.low.cost_usd


# ---- steps that only some rows take --------------------------------------------------------------


def test_a_repair_step_is_expected_for_its_share_and_counted_whole_at_worst() -> None:
    steps = (replace(OUTLINE, max_items=1), _CHECK, _AGAIN)
    found = _estimate(_rows(100), _chain(steps=steps), steps)
    assert _counts(found) == {"outline": (100, 0, 100), "again_1": (10, 0, 10)}
    again = _by_name(found)["again_1"].in_lane("realtime")
    assert again.expected.output_tokens == 10 * 60
    assert again.low.cost_usd == 0
    assert again.worst.output_tokens == 100 * (200 + 200)
    told = _chain(steps=steps, share=0.25)
    assert _counts(_estimate(_rows(100), told, steps))["again_1"] == (25, 0, 25)


def test_what_a_row_has_come_to_decides_whether_it_takes_a_repair_step() -> None:
    steps = (replace(OUTLINE, max_items=1), _CHECK, _AGAIN)
    rows = [_checked(name, again) for name, again in (("a", True), ("b", False), ("c", True))]
    found = _estimate(rows, _chain(steps=steps), steps)
    assert _counts(found)["again_1"] == (2, 0, 2)


def _checked(name: str, again: bool) -> PlannedRow:
    return replace(_row(name), documents={"check": {"again": again}})


def test_rows_whose_answers_are_stored_are_not_expected_to_be_repaired() -> None:
    from batch_pipeline.engine.keys import KeyMaker

    outline = replace(OUTLINE, max_items=1)
    steps = (outline, _CHECK, _AGAIN)
    rows = _rows(3)
    stored = {KeyMaker(outline).key(outline.content(row.row)): {"text": "x"} for row in rows}
    found = _estimate(rows, _chain(stored, steps), steps)
    assert (found.cached, found.to_ask, found.requests, found.cost_usd) == (3, 0, 0, 0)
    assert (found.worst.cost_usd or 0) > 0


# ---- with the ledger and the simulator -----------------------------------------------------------


@asynccontextmanager
async def _search(tools: Tools) -> AsyncIterator[LocalWork]:
    async def work(row: Row, place: Place) -> Done:
        answer = await tools.search("exa", SearchQuery(row["Topic"], "", limit=3), place)
        return Done({"pages": [{"title": one["title"]} for one in answer.results]})

    yield work


@asynccontextmanager
async def _every_fifth(tools: Tools) -> AsyncIterator[LocalWork]:
    async def work(row: Row, place: Place) -> Done:
        return Done({"again": place.ordinal % 5 == 0})

    yield work


class Searched(RoadmapsWorkload):
    """A workload that searches, writes, and writes some rows twice."""

    def steps(  # type: ignore[override]  # the table of one workload, the steps of another
        self, prompt: str, knobs: Mapping[str, Any]
    ) -> Sequence[AnyStep]:
        return (
            LocalStep("look", _search, searches={"exa": 1.0}),
            replace(_WRITE, typical_tokens=(220, 14)),
            LocalStep("check", _every_fifth),
            replace(_AGAIN, typical_tokens=(120, 14)),
            replace(DRAFT, content=lambda row: {"topic": row["Topic"]}, typical_tokens=(100, 16)),
        )


class WebSearched(RoadmapsWorkload):
    """A workload whose model searches the web."""

    def steps(  # type: ignore[override]  # the table of one workload, the steps of another
        self, prompt: str, knobs: Mapping[str, Any]
    ) -> Sequence[AnyStep]:
        return (replace(OUTLINE, max_items=1, web_search=WebSearch(plugin=True)),)


def _bench(folder: Path, simulator: Simulator, workload: str, **knobs: Any) -> Bench:
    bench = Bench(folder, simulator)
    changes = {"workload": f"{__name__}:{workload}", **knobs}
    bench.config = bench.config.model_copy(update=changes)
    return bench


def _ingested(bench: Bench, batch: Batch) -> Estimate:
    with bench.open() as ledger:
        return compare.estimate_ingested(ledger, bench.config, batch)


def test_estimate_and_journal_agree_on_searches_and_after_some_rows_on_everything(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = _bench(tmp_path, simulator, "Searched")
    batch = bench.ingest(_table(tmp_path / "t.csv", 60))
    before = _ingested(bench, batch)
    assert before.basis.notes[0].startswith("again_1 is expected for 10% of the rows")
    assert [one.calls for one in before.searches] == [60]
    with bench.open() as ledger:
        stored = compare.stored_estimate(before, "ingest", ledger.clock.now())
        set_estimate(ledger, batch.batch_id, stored)
    bench.run(batch, "sample", limit=20)
    sampled = _paid(simulator.journal())
    rest = _ingested(bench, batch)
    assert rest.searches[0].basis.startswith(FROM_CALLS)
    assert any("20% of the rows that may come to it: 4 of 20" in n for n in rest.basis.notes)
    bench.run(batch, "whole")
    journal = simulator.journal()
    whole = _paid(journal)
    searches = [one for one in journal if one["provider"] == "exa"]
    assert len(searches) == before.searches[0].calls == 20 + rest.searches[0].calls
    spent = sum(one["price_usd"] for one in searches)
    assert before.searches[0].usd == pytest.approx(spent)
    assert rest.requests == len(journal) - 60 - (2 * 20 + 4)
    assert rest.cost_usd == pytest.approx(whole["price_usd"] - sampled["price_usd"], rel=0.1)
    for one, paid in (
        (before, whole["price_usd"]),
        (rest, whole["price_usd"] - sampled["price_usd"]),
    ):
        assert (one.low.cost_usd or 0) <= paid <= (one.worst.cost_usd or 0)
    with bench.open() as ledger:
        with ledger.read() as connection:
            kept = find_batch(connection, ledger.realm, batch.batch_id)
        assert kept is not None
        report = build_report(ledger, kept, run_id="whole")
    assert report.estimate is not None
    lines = {line.name: line for line in report.estimate.lines}
    assert (lines["searches"].expected, lines["searches"].actual) == (60, 60)
    assert lines["cost_usd"].actual == pytest.approx(whole["price_usd"])
    assert (report.searches[0].requests, report.searches[0].cached) == (60, 0)
    assert report.calls_s > 0 and report.this_run is not None
    again = bench.ingest(_table(tmp_path / "t2.csv", 60), "again")
    bench.run(again, "again")
    with bench.open() as ledger:
        report = build_report(ledger, again)
    assert (report.searches[0].requests, report.searches[0].cached) == (0, 60)


class Needing(Searched):
    """The same, for a workload that cannot do without its searches."""

    def search_providers(self, options: Mapping[str, Any]) -> Sequence[str]:
        return ["exa"]


@pytest.mark.parametrize(
    ("workload", "key", "searches"),
    [("Searched", "", []), ("Searched", "k-1", [6]), ("Needing", "", [6])],
)
def test_without_a_key_only_searches_that_a_run_cannot_do_without_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workload: str, key: str, searches: list[int]
) -> None:
    monkeypatch.setenv("EXA_API_KEY", key)
    config = load_workload_config("roadmaps").model_copy(
        update={"workload": f"{__name__}:{workload}"}
    )
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "live") as ledger:
        batch = ingest_batch(ledger, config, str(_table(tmp_path / "t.csv", 6)))[0]
        found = compare.estimate_ingested(ledger, config, batch)
    assert [one.calls for one in found.searches] == searches
    silent = "the time of look and check" if not searches else "the time of check"
    assert any(f"Not counted: {silent}, which ask no model." == note for note in found.basis.notes)


def test_search_rate_limit_bounds_the_time(simulator: Simulator, tmp_path: Path) -> None:
    bench = _bench(tmp_path, simulator, "Searched", search_rate_limit=30.0)
    batch = bench.ingest(_table(tmp_path / "t.csv", 61))
    found = _ingested(bench, batch)
    assert found.seconds > 120
    assert found.bound_by == "30 searches a minute of exa"


def test_a_models_searches_are_estimated_within_low_and_worst_and_then_closely(
    simulator: Simulator, tmp_path: Path
) -> None:
    route = "openrouter/google/gemini-3.1-flash-lite"
    bench = _bench(tmp_path, simulator, "WebSearched", route=route)
    batch = bench.ingest(_table(tmp_path / "t.csv", 60))
    before = _ingested(bench, batch)
    bench.run(batch, "sample", limit=20)
    sampled = _paid(simulator.journal())
    rest = _ingested(bench, batch)
    bench.run(batch, "whole")
    whole = _paid(simulator.journal())
    assert [(one.calls, one.by_model) for one in before.searches] == [(60, True)]
    low, worst = before.low.cost_usd or 0, before.worst.cost_usd or 0
    assert low <= whole["price_usd"] <= worst
    assert before.cost_usd == pytest.approx(whole["price_usd"], rel=0.5)
    left = whole["price_usd"] - sampled["price_usd"]
    assert rest.cost_usd == pytest.approx(left, rel=0.1)
    expected = whole["input_tokens"] - sampled["input_tokens"]
    assert rest.expected.input_tokens == pytest.approx(expected, rel=0.1)
