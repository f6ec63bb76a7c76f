"""Estimates of workloads with several steps: each step is counted for the rows that take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from batch_pipeline.component.materialize import _estimate_markdown as estimate_markdown
from batch_pipeline.engine.keys import KeyMaker
from batch_pipeline.engine.searching import STEP as SEARCH_STEP
from batch_pipeline.engine.step import AnyStep, LocalStep, LocalWork, Row, Step
from batch_pipeline.engine.tools import Tools
from batch_pipeline.ledger.batches import Batch, find_batch, set_estimate, start_generation
from batch_pipeline.ledger.calls import StoredResult
from batch_pipeline.ledger.documents import KEEP_DOCUMENT, KeepDocument
from batch_pipeline.ledger.tables import Outcome, attempts
from batch_pipeline.limits.rates import Rates
from batch_pipeline.pricing.calibration import (
    FROM_CALLS,
    FROM_EARLIER_STEPS,
    FROM_TYPICAL,
    ContentSize,
    InputScale,
    output_of_schema,
    output_of_typical,
)
from batch_pipeline.providers.base import Usage
from batch_pipeline.reports.spending import check_estimate
from batch_pipeline.workloads import compare
from batch_pipeline.workloads.counting import estimate_routes
from batch_pipeline.workloads.estimate import (
    Chain,
    Estimate,
    JobPlan,
    Lookup,
    Miss,
    Pace,
    PlannedRow,
    RoutePlan,
    Standing,
    StepEstimate,
)
from batch_pipeline.workloads.roadmaps.workload import RoadmapsWorkload
from batch_pipeline_tests.simulated import Bench, Simulator

_GOOGLE = "google/gemini-3.1-flash-lite"
_OPENAI = "openai/gpt-6-luna"


class Text(BaseModel):
    text: str


def _plain(row: Row) -> dict[str, Any]:
    return {"topic": row["Topic"], "description": row["Description"]}


def _draft(row: Row) -> dict[str, Any]:
    # `get`, as after an optional step: a missing answer must not be taken for none.
    return {"topic": row["Topic"], "kind": row.get("classify"), "outline": row["outline"]["text"]}


def _polish(row: Row) -> dict[str, Any]:
    return {"topic": row["Topic"], "draft": row["draft"]["text"]}


CLASSIFY = Step(
    "classify",
    "Say what kind of topic it is.",
    Text,
    lambda row: {"topic": row["Topic"]},
    max_items=10,
    output_tokens_per_item=50,
    applies=lambda row: row["Category"] == "classified",
    optional=True,
)
OUTLINE = Step("outline", "Outline it.", Text, _plain, max_items=5, typical_tokens=(300, 60))
DRAFT = Step("draft", "Write it.", Text, _draft, output_tokens_per_item=900,
             typical_tokens=(500, 400))  # fmt: skip
POLISH = Step("polish", "Polish it.", Text, _polish, output_tokens_per_item=1_000)
STEPS = (CLASSIFY, OUTLINE, DRAFT, POLISH)


def _nothing(tools: Tools) -> AbstractAsyncContextManager[LocalWork]:
    raise AssertionError("an estimate runs nothing")


RESEARCH = LocalStep("research", _nothing, checkpoint=True)
CHECK = LocalStep("check", _nothing)


def _research_content(row: Row) -> dict[str, Any]:
    return dict(row["research"])


class ResearchedNotes(RoadmapsWorkload):
    """A workload whose research is a checkpoint."""

    def steps(  # type: ignore[override]  # the table of one workload, the steps of another
        self, prompt: str, knobs: Mapping[str, Any]
    ) -> Sequence[AnyStep]:
        return (CLASSIFY, RESEARCH, replace(OUTLINE, content=_research_content))


class Notes(RoadmapsWorkload):
    """A workload of four LLM steps."""

    def steps(self, prompt: str, knobs: Mapping[str, Any]) -> Sequence[Step]:
        # What the simulator answers is shorter than what a model writes.
        outline = replace(OUTLINE, typical_tokens=(150, 14))
        return (CLASSIFY, outline, replace(DRAFT, typical_tokens=(115, 16)), POLISH)


def _price(usage: Usage) -> int:
    return usage.input_tokens + 10 * usage.output_tokens


def _half(usage: Usage) -> int:
    return _price(usage) // 2


def _plan(step: Step, stored: Mapping[str, Any] | None = None, **changes: Any) -> RoutePlan:
    answers = dict(stored or {})
    typical = step.typical_tokens
    values: dict[str, Any] = {
        "route": _GOOGLE,
        "model": _GOOGLE,
        "price": _price,
        "input": InputScale(1.0, 0.1),
        "pace": Pace(Rates(), 4),
        "latency_s": 2.0,
        "output": output_of_schema(step.item_schema, step.output_tokens_per_item)
        if typical is None
        else output_of_typical(typical[1], step.output_tokens_per_item),
        "content": None if typical is None else ContentSize(typical[0] - 100.0),
    }
    return RoutePlan(
        lookup=Lookup(
            lambda keys: answers.keys() & set(keys),
            lambda keys: answers.keys() & set(keys),
            lambda asked: {one for one in asked if one.startswith("old")},
            lambda keys, since: {
                key: StoredResult(key, _GOOGLE, answers[key], "", 1.0)
                for key in keys
                if since.get(key, 0.0) <= 1.0
            },
        ),
        base_tokens=100,
        **{**values, **changes},
    )


def _chain(
    stored: Mapping[str, Any] | None = None, steps: Sequence[AnyStep] = STEPS, **changes: Any
) -> Chain:
    plans = (_plan(step, stored, **changes) for step in steps if isinstance(step, Step))
    return Chain(tuple(plans))


def _row(name: str, category: str = "", standing: Standing = Standing.OPEN) -> PlannedRow:
    row = {"Topic": name, "Description": f"About {name}.", "Category": category}
    return PlannedRow(name, row, standing)


def _rows(count: int, category: str = "") -> list[PlannedRow]:
    return [_row(f"topic {number}", category) for number in range(count)]


def _estimate(
    rows: Sequence[PlannedRow],
    chain: Chain | None = None,
    steps: Sequence[AnyStep] = STEPS,
    **options: Any,
) -> Estimate:
    return estimate_routes(rows, steps, [chain or _chain(steps=steps)], **options)[0]


def _by_name(found: Estimate) -> dict[str, StepEstimate]:
    return {step.step: step for step in found.steps}


def _counts(found: Estimate) -> dict[str, tuple[int, int, int]]:
    return {step.step: (step.rows, step.cached, step.requests) for step in found.steps}


# ---- what each step comes to ---------------------------------------------------------------------


def test_each_step_is_counted_for_the_rows_that_take_it_and_packed_by_its_own_bound() -> None:
    found = _estimate([*_rows(20), *(_row(f"kind {n}", "classified") for n in range(12))])
    assert _counts(found) == {
        "classify": (12, 0, 2),
        "outline": (32, 0, 7),
        "draft": (32, 0, 32),
        "polish": (32, 0, 32),
    }
    assert (found.rows, found.to_ask, found.questions) == (32, 32, 32)
    assert found.requests == 2 + 7 + 32 + 32
    assert found.misses == {Miss.NEW: 32}


def test_steps_whose_content_is_not_known_yet_go_by_typical_lengths() -> None:
    found = _estimate(_rows(10))
    draft = _by_name(found)["draft"]
    figures = draft.in_lane("realtime")
    assert (figures.expected.input_tokens, figures.expected.output_tokens) == (10 * 500, 10 * 400)
    assert figures.low.output_tokens == 10 * 200
    assert figures.low.input_tokens == 10 * round((100 + 400 / 2) * 0.9)
    # The outline at its bound, the usual content twice, and the margin of the count.
    assert figures.worst.input_tokens == 10 * round((100 + 2 * 400 + 400) * 1.1)
    assert figures.worst.output_tokens == 10 * (900 + 200)
    assert (draft.basis.input, draft.basis.output) == (FROM_TYPICAL, FROM_TYPICAL)
    # What says nothing of its usual length goes by the row and what it builds on.
    polish = _by_name(found)["polish"]
    assert polish.basis.input == FROM_EARLIER_STEPS
    assert polish.in_lane("realtime").expected.input_tokens > 10 * (100 + 60 + 400)
    # The outline's own content follows from the row.
    assert _by_name(found)["outline"].basis.input == "the text alone"


def test_notes_name_the_steps_that_rest_on_typical_lengths_and_those_that_ask_no_model() -> None:
    found = _estimate(_rows(3), steps=(RESEARCH, *STEPS, CHECK))
    assert found.basis.notes == (
        "outline and draft are estimated from typical lengths until the first run.",
        "Not counted: the time of research and check, which ask no model.",
    )
    alone = _estimate(_rows(3), steps=(CLASSIFY, OUTLINE))
    assert alone.basis.notes == ("outline is estimated from typical lengths until the first run.",)


def test_a_stored_answer_tells_what_the_next_step_is_asked() -> None:
    rows = _rows(4)
    keys = {step.name: KeyMaker(step) for step in STEPS}
    stored: dict[str, Any] = {
        keys["outline"].key(_plain(planned.row)): {"text": f"Outline of {planned.item_id}"}
        for planned in rows[:3]
    }
    for planned in rows[:2]:
        outline = {"text": f"Outline of {planned.item_id}"}
        # `classify` does not apply: the draft sees None in its place.
        content = _draft({**planned.row, "classify": None, "outline": outline})
        stored[keys["draft"].key(content)] = {"text": f"Draft of {planned.item_id}"}
    polish = {"topic": rows[0].row["Topic"], "draft": f"Draft of {rows[0].item_id}"}
    stored[keys["polish"].key(polish)] = {"text": "Done"}
    found = _estimate(rows, _chain(stored))
    assert _counts(found) == {
        "classify": (0, 0, 0),
        "outline": (4, 3, 1),
        "draft": (4, 2, 2),
        "polish": (4, 1, 3),
    }
    assert (found.cached, found.to_ask) == (1, 3)
    forced = _estimate(rows, _chain(stored), force=True)
    assert (forced.cached, forced.to_ask, forced.requests) == (0, 4, 1 + 4 + 4)


def test_an_answer_that_is_missing_is_not_taken_for_none() -> None:
    planned = _row("a", "classified")
    outline = {"text": "Outline"}
    stored = {
        KeyMaker(OUTLINE).key(_plain(planned.row)): outline,
        KeyMaker(DRAFT).key(_draft({**planned.row, "outline": outline})): {"text": "Draft"},
    }
    found = _estimate([planned], _chain(stored))
    # The draft was stored for a row without a kind; this row's kind is still to be asked.
    assert _counts(found)["draft"] == (1, 0, 1)


def test_a_mistake_in_a_steps_content_is_not_hidden() -> None:
    wrong = replace(OUTLINE, content=lambda row: {"topic": row["Tpoic"]})
    with pytest.raises(KeyError, match="Tpoic"):
        _estimate(_rows(1), steps=(wrong, DRAFT))


def test_a_row_behind_a_checkpoint_asks_nothing_from_before_it() -> None:
    steps = (CLASSIFY, RESEARCH, replace(OUTLINE, content=_research_content), CHECK)
    plain = [_row("a", "classified"), _row("b", "classified")]
    rows = [replace(plain[0], documents={"research": {"found": "much"}}), plain[1]]
    found = _estimate(rows, steps=steps)
    assert _counts(found) == {"classify": (2, 1, 1), "outline": (2, 0, 1)}
    stored = {KeyMaker(steps[2]).key({"found": "much"}): {"text": "x"}}
    known = _estimate(rows, _chain(stored, steps), steps)
    assert _counts(known) == {"classify": (2, 1, 1), "outline": (2, 1, 1)}
    assert (known.cached, known.to_ask) == (1, 1)


def test_identical_rows_share_questions_even_where_the_content_is_not_known() -> None:
    rows = [_row("same"), _row("same"), _row("other")]
    found = _estimate([replace(rows[0], item_id="1"), replace(rows[1], item_id="2"), rows[2]])
    assert (found.to_ask, found.questions) == (3, 2)
    assert [step.requests for step in found.steps] == [0, 1, 2, 2]
    assert [step.to_ask for step in found.steps] == [0, 3, 3, 3]
    shared = replace(DRAFT, shared_by=lambda row: row["Description"][:5])
    alike = _estimate(_rows(10), steps=(OUTLINE, shared))
    assert [step.requests for step in alike.steps] == [2, 1]


def test_a_row_that_was_asked_before_may_turn_out_to_be_the_same_question() -> None:
    steps = (RESEARCH, replace(OUTLINE, content=_research_content))
    found = _estimate([_row("old a"), _row("new b")], steps=steps)
    assert found.misses == {Miss.LATER: 1, Miss.NEW: 1}
    forced = _estimate([_row("old a"), _row("new b")], steps=steps, force=True)
    assert forced.misses == {Miss.FORCED: 1, Miss.NEW: 1}


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 15), st.booleans(), st.sampled_from(Standing)), max_size=40
    ),
    stored=st.sets(st.integers(0, 15)),
    limit=st.one_of(st.none(), st.integers(1, 20)),
)
def test_rows_add_up_and_steps_add_up_to_the_whole(
    rows: list[tuple[int, bool, Standing]], stored: set[int], limit: int | None
) -> None:
    keys = KeyMaker(OUTLINE)
    answers = {keys.key(_plain(_row(str(number)).row)): {"text": "x"} for number in stored}
    planned = [_row(str(n), "classified" if kind else "", standing) for n, kind, standing in rows]
    found = _estimate(planned, _chain(answers, jobs=JobPlan(_half)), limit=limit)
    parts = (
        found.done + found.cached + found.to_ask + found.left_pending
        + found.blocked + found.skipped + found.unusable
    )  # fmt: skip
    assert parts == found.rows == len(rows)
    assert sum(found.misses.values()) == found.questions <= found.to_ask
    assert limit is None or found.questions <= limit
    assert found.requests == sum(step.requests for step in found.steps)
    for lane in found.lanes:
        steps = [step.in_lane(lane.lane) for step in found.steps]
        for name in ("low", "expected", "worst"):
            whole, each = getattr(lane, name), [getattr(step, name) for step in steps]
            assert whole.input_tokens == sum(one.input_tokens for one in each)
            assert whole.output_tokens == sum(one.output_tokens for one in each)
            assert whole.cost_usd == pytest.approx(sum(one.cost_usd for one in each))
        for one in [lane, *steps]:
            costs = [amount.cost_usd or 0.0 for amount in (one.low, one.expected, one.worst)]
            assert costs == sorted(costs)
            assert one.low.input_tokens <= one.expected.input_tokens <= one.worst.input_tokens
    for step in found.steps:
        assert step.cached + step.to_ask == step.rows


# ---- time and lanes ------------------------------------------------------------------------------


def test_the_time_has_the_latency_of_every_step_and_the_limits_over_all_requests() -> None:
    rows = _rows(4)
    free = _estimate(rows)
    # One outline request, four drafts, four polishes; four fly at once.
    assert (free.seconds, free.bound_by) == (3 * 2.0, "4 requests in flight")
    slow = _estimate(rows, _chain(pace=Pace(Rates(requests=6), 4)))
    assert (slow.seconds, slow.bound_by) == (8 * 10.0 + 3 * 2.0, "6 requests a minute")
    daily = _estimate(rows, _chain(pace=Pace(Rates(requests_per_day=3), 4)))
    assert daily.seconds == 2 * 86_400 + 3 * 2.0


def test_the_batch_lane_takes_a_round_of_provider_jobs_for_each_step() -> None:
    jobs = JobPlan(_half, 600.0, 12)
    found = _estimate(_rows(100), _chain(jobs=jobs, lane="batch"))
    assert (found.lane, found.seconds, found.figures.seconds_known) == ("batch", 1_800.0, True)
    assert found.bound_by == (
        "a round of provider jobs for each of 3 steps, by provider jobs, of which 90 % of the last "
        "12 took no longer"
    )
    assert found.cost_usd == pytest.approx((found.lanes[0].expected.cost_usd or 0) / 2, rel=0.01)
    promised = _estimate(_rows(1), _chain(jobs=JobPlan(_half), lane="batch"))
    assert (promised.seconds, promised.figures.seconds_known) == (3 * 86_400.0, False)
    larger = found.scaled_to(100_000)
    # 100,000 lines a step need two turns of 90 jobs each.
    assert larger.seconds == 6 * 600.0
    assert larger.steps[1].requests == 1_000 * found.steps[1].requests
    assert larger.cost_usd == pytest.approx(1_000 * (found.cost_usd or 0))
    nothing = _estimate([], _chain(jobs=jobs, lane="batch"))
    assert (nothing.seconds, nothing.bound_by) == (0.0, "")


def test_the_longest_way_decides_where_rows_take_different_steps() -> None:
    short = replace(POLISH, applies=lambda row: row["Category"] == "short", content=_plain)
    long = replace(OUTLINE, applies=lambda row: row["Category"] != "short")
    steps = (short, long, replace(DRAFT, applies=long.applies))
    rows = [_row("a", "short"), _row("b"), _row("c")]
    found = _estimate(rows, _chain(steps=steps, jobs=JobPlan(_half, 600.0, 12)), steps)
    realtime, batch = found.lanes
    assert (realtime.seconds, batch.seconds) == (2 * 2.0, 2 * 600.0)
    assert found.scaled_to(3_000).lanes[1].seconds == 2 * 600.0


def test_lane_auto_asks_whether_all_rounds_end_before_the_deadline() -> None:
    jobs = JobPlan(_half, 600.0, 12)
    enough = _estimate(_rows(10), _chain(jobs=jobs, lane="auto", deadline_s=3 * 3_600.0))
    assert enough.lane == "batch"
    short = _estimate(_rows(10), _chain(jobs=jobs, lane="auto", deadline_s=1_000.0))
    assert short.lane == "realtime"


# ---- rows' own models ----------------------------------------------------------------------------


def test_a_row_that_names_its_own_model_is_packed_and_priced_by_it() -> None:
    dear = _chain(route="anthropic", model="anthropic/claude", price=lambda usage: 1_000_000_000)
    chain = replace(_chain(), own=lambda row: dear if row["Category"] == "own" else None)
    rows = [*_rows(7), *(_row(f"own {number}", "own") for number in range(3))]
    found = _estimate(rows, chain)
    plain = _estimate(_rows(7))
    # Outlines are packed by fives, and never with those of another model.
    assert _counts(found)["outline"] == (10, 0, 3)
    assert found.cost_usd == pytest.approx((plain.cost_usd or 0) + 1 + 3 + 3)
    assert "Rows that name their own model are priced by it: anthropic/claude (3)." in (
        found.basis.notes
    )
    unknown = replace(chain, own=lambda row: replace(dear, plans=_unpriced(dear.plans)))
    assert _estimate(rows, unknown).cost_usd is None


def _unpriced(plans: Sequence[RoutePlan]) -> tuple[RoutePlan, ...]:
    return tuple(replace(plan, price=None) for plan in plans)


def test_models_of_different_keys_do_not_share_their_limits() -> None:
    pace = Pace(Rates(requests=6), 40)
    other = _chain(route="anthropic", model="anthropic/claude", pace=pace)
    chain = _chain(pace=pace)
    both = replace(chain, own=lambda row: other if row["Category"] == "own" else None)
    rows = [*_rows(4), *(_row(f"own {number}", "own") for number in range(2))]
    found = _estimate(rows, both)
    # Nine requests of the route's own model against five of the other.
    assert found.seconds == 8 * 10.0 + 3 * 2.0
    assert found.bound_by == f"6 requests a minute of {_GOOGLE}"


# ---- with the ledger and the simulator -----------------------------------------------------------


def _bench(folder: Path, simulator: Simulator, workload: str = "Notes", **knobs: Any) -> Bench:
    bench = Bench(folder, simulator)
    bench.config = bench.config.model_copy(update={"workload": f"{__name__}:{workload}", **knobs})
    return bench


def _table(path: Path, count: int, routes: Sequence[str] = ("",)) -> Path:
    lines = ["Category,Subcategory,Topic,Description,Resources,route"]
    lines += [
        f"{'classified' if n % 2 else 'C'},S,Topic {n},{'A description. ' * (n % 7)},,"
        f"{routes[n % len(routes)]}"
        for n in range(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _ingested(bench: Bench, batch: Batch) -> Estimate:
    with bench.open() as ledger:
        return compare.estimate_ingested(ledger, bench.config, batch)


def _paid(journal: Sequence[dict[str, Any]]) -> dict[str, float]:
    names = ("input_tokens", "output_tokens", "price_usd")
    return {name: sum(record[name] or 0 for record in journal) for name in names}


def test_after_some_rows_earlier_calls_take_the_place_of_typical_lengths(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = _bench(tmp_path, simulator)
    batch = bench.ingest(_table(tmp_path / "t.csv", 60))
    before = _ingested(bench, batch)
    assert _counts(before) == {
        "classify": (30, 0, 3),
        "outline": (60, 0, 12),
        "draft": (60, 0, 60),
        "polish": (60, 0, 60),
    }
    assert before.basis.output == "the answer's schema and typical lengths"
    bench.run(batch, "sample", limit=20)
    sampled = _paid(simulator.journal())
    rest = _ingested(bench, batch)
    assert {step.basis.output for step in rest.steps} == {FROM_CALLS}
    assert {step.basis.input for step in rest.steps} == {FROM_CALLS}
    assert rest.basis.notes == ()
    bench.run(batch, "whole")
    whole = _paid(simulator.journal())
    assert rest.expected.input_tokens == pytest.approx(
        whole["input_tokens"] - sampled["input_tokens"], rel=0.1
    )
    assert rest.expected.output_tokens == pytest.approx(
        whole["output_tokens"] - sampled["output_tokens"], rel=0.1
    )
    assert rest.cost_usd == pytest.approx(whole["price_usd"] - sampled["price_usd"], rel=0.1)
    for one in (before, rest):
        least, most = one.low.cost_usd or 0.0, one.worst.cost_usd or 0.0
        paid = whole["price_usd"] - (0 if one is before else sampled["price_usd"])
        assert least <= paid <= most


def test_rows_that_failed_on_their_way_are_through_the_steps_before(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = _bench(tmp_path, simulator)
    batch = bench.ingest(_table(tmp_path / "t.csv", 20))
    simulator.configure(faults=[{"kind": "status", "status": 400, "match": "Polish it."}])
    bench.run(batch, "first")
    simulator.configure()
    before = len(simulator.journal())
    found = _ingested(bench, batch)
    assert _counts(found) == {
        "classify": (10, 10, 0),
        "outline": (20, 20, 0),
        "draft": (20, 20, 0),
        "polish": (20, 0, 20),
    }
    assert bench.run(batch, "second").outcomes == {"succeeded": 20}
    rest = _paid(simulator.journal()[before:])
    # The drafts are stored: what they are asked with is known to the letter.
    assert found.steps[3].basis.input == "the text alone"
    assert found.expected.input_tokens == pytest.approx(rest["input_tokens"], rel=0.2)
    assert _ingested(bench, batch).done == 20


def test_documents_of_local_steps_count_unless_they_are_older_than_a_forced_run(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = _bench(tmp_path, simulator, "ResearchedNotes")
    batch = bench.ingest(_table(tmp_path / "t.csv", 4))
    with bench.open() as ledger:
        for ordinal, outcome in enumerate((Outcome.SUCCEEDED, Outcome.SUCCEEDED, Outcome.BLOCKED)):
            editor = "Ann" if ordinal == 1 else ""
            document = KeepDocument(
                ledger.realm, batch.batch_id, ordinal, "research", outcome, {"a": 1}, "run", editor
            )
            ledger.writer.submit(KEEP_DOCUMENT, document).result()
    # Of the rows behind the checkpoint one is classified; both ask for the same outline.
    assert _counts(_ingested(bench, batch)) == {"classify": (2, 1, 1), "outline": (4, 0, 1)}
    with bench.open() as ledger:
        target = compare.Target(None, batch.batch_id, {}, force=True)
        forced, _ = compare.estimate_target(
            ledger, bench.config, target, [bench.config.route], simulator=None
        )
    # What a person edited holds in a forced run as well.
    assert _counts(forced[0]) == {"classify": (2, 1, 1), "outline": (4, 0, 1)}


def test_answers_from_before_a_forced_run_are_no_hits_while_it_goes_on(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = _bench(tmp_path, simulator)
    batch = bench.ingest(_table(tmp_path / "t.csv", 10))
    bench.run(batch, "first")
    with bench.open() as ledger:
        start_generation(ledger, batch.batch_id)
    bench.run(batch, "forced", limit=3)
    found = _ingested(bench, batch)
    assert (found.done, found.cached, found.to_ask) == (3, 0, 7)
    assert found.misses == {Miss.FORCED: 7}
    before = len(simulator.journal())
    bench.run(batch, "rest")
    assert len(simulator.journal()) - before == found.requests


def test_rows_of_the_route_column_are_estimated_by_their_own_models(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = _bench(tmp_path, simulator)
    batch = bench.ingest(_table(tmp_path / "t.csv", 20, ["", "auto", _OPENAI, "google"]))
    found = _ingested(bench, batch)
    plain = _by_route(bench, batch)
    assert f"Rows that name their own model are priced by it: {_OPENAI} (5)." in found.basis.notes
    assert plain.basis.notes == tuple(
        note for note in found.basis.notes if not note.startswith("Rows that name")
    )
    assert found.requests == 1 + (3 + 1) + 20 + 20
    bench.run(batch)
    assert len(simulator.journal()) == found.requests


def _by_route(bench: Bench, batch: Batch) -> Estimate:
    with bench.open() as ledger:
        config = bench.config.model_copy(update={"row_routes": False})
        return compare.estimate_ingested(ledger, config, batch)


def test_the_kept_estimate_stands_beside_what_all_steps_took(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = _bench(tmp_path, simulator)
    batch = bench.ingest(_table(tmp_path / "t.csv", 12))
    found = _ingested(bench, batch)
    with bench.open() as ledger:
        stored = compare.stored_estimate(found, "ingest", ledger.clock.now())
        set_estimate(ledger, batch.batch_id, stored)
    bench.run(batch)
    with bench.open() as ledger, ledger.read() as connection:
        kept = find_batch(connection, ledger.realm, batch.batch_id)
        assert kept is not None and kept.estimate == orjson.loads(orjson.dumps(stored))
        routes = {bench.config.route}
        check = check_estimate(connection, ledger.realm, kept, routes=routes, pending=0, wall_s=1.0)
    assert check is not None and check.complete
    lines = {line.name: line for line in check.lines}
    assert lines["requests"].expected == lines["requests"].actual == len(simulator.journal())
    low, worst = lines["cost_usd"].low, lines["cost_usd"].worst
    assert low is not None and worst is not None and low <= lines["cost_usd"].actual <= worst
    assert [step["step"] for step in kept.estimate["steps"]] == [step.name for step in STEPS]


def test_searches_of_local_steps_are_not_held_against_an_estimate_that_has_none(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = _bench(tmp_path, simulator)
    batch = bench.ingest(_table(tmp_path / "t.csv", 4))
    found = _ingested(bench, batch)
    bench.run(batch)
    with bench.open() as ledger:
        set_estimate(ledger, batch.batch_id, compare.stored_estimate(found, "ingest", 0.0))
        with ledger.write() as connection:
            searches = attempts.update().where(attempts.c.step == "classify")
            connection.execute(searches.values(step=SEARCH_STEP))
        with ledger.read() as connection:
            kept = find_batch(connection, ledger.realm, batch.batch_id)
            assert kept is not None
            check = check_estimate(
                connection, ledger.realm, kept, routes={found.route}, pending=0, wall_s=1.0
            )
    assert check is not None
    assert (check.lines[0].name, check.lines[0].expected) == ("requests", found.requests)
    assert check.lines[0].actual == found.requests - 1


def test_the_metadata_of_the_ingest_has_a_line_for_every_step(
    simulator: Simulator, tmp_path: Path
) -> None:
    bench = _bench(tmp_path, simulator)
    batch = bench.ingest(_table(tmp_path / "t.csv", 12))
    text = estimate_markdown(_ingested(bench, batch))
    assert "| step | rows | cached | requests |" in text
    assert "| draft | 12 | 0 | 12 | 1,380 | 192 |" in text
    assert "outline and draft are estimated from typical lengths until the first run." in text
