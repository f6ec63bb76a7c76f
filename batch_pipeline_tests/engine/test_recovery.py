"""Recovery: the row that spoils a pack is found within a bound, and no other row pays for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from batch_pipeline.engine.records import Asked, Member
from batch_pipeline.engine.recovery import Recovery
from batch_pipeline.engine.step import Step
from batch_pipeline.ledger.tables import attempts
from batch_pipeline_tests.engine.test_faults import topics
from batch_pipeline_tests.engine.test_requests import write_rows
from batch_pipeline_tests.simulated import Bench, Simulator

TRIES = 6
STEP = Step("test", "", BaseModel, content=dict, content_tries=TRIES)


def members(count: int) -> list[Member]:
    return [
        Member(step=STEP, key=str(at), content={}, tokens=10, rows=[], route=())
        for at in range(count)
    ]


class Model:
    """Answers packs; `spoil` says, for a pack, what is wrong with its reply."""

    def __init__(self, spoil: Callable[[list[Member]], Asked | None]) -> None:
        self.spoil = spoil
        self.asked: list[list[str]] = []
        self.parents: list[tuple[str, str | None]] = []
        self.ended: list[tuple[str, str]] = []
        self.stop_after: int | None = None

    async def ask(
        self, pack: list[Member], reason: str, parent: str | None, last_round: bool
    ) -> Asked:
        assert pack
        self.asked.append([member.key for member in pack])
        self.parents.append((reason, parent))
        asked = self.spoil(pack)
        asked = Asked([]) if asked is None else asked
        asked.request_id = f"request {len(self.asked)}"
        for member in pack:
            if member not in asked.bad:
                self.end(member, "answered")
            elif asked.ended:
                self.end(member, "put off")
            else:
                member.asks += 1
        return asked

    def end(self, member: Member, how: str) -> None:
        self.ended.append((member.key, how))

    def stopping(self) -> bool:
        return self.stop_after is not None and len(self.asked) >= self.stop_after

    def run(self, pack: list[Member]) -> None:
        recovery = Recovery(self.ask, lambda member: self.end(member, "given up"), self.stopping)
        asyncio.run(recovery.process(pack, "first", last_round=False))

    def how(self, what: str) -> set[str]:
        return {key for key, how in self.ended if how == what}


def whole_fails(bad: set[str], *, refused: bool = False) -> Callable[[list[Member]], Asked | None]:
    """A pack with a bad row gives nothing that can be used."""

    def spoil(pack: list[Member]) -> Asked | None:
        if not bad.intersection(member.key for member in pack):
            return None
        for member in pack:
            member.refused = refused
        return Asked(list(pack), failure="the answer is not JSON")

    return spoil


def only_its_answer_is_wrong(bad: set[str]) -> Callable[[list[Member]], Asked | None]:
    return lambda pack: Asked([member for member in pack if member.key in bad])


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("size", [*range(2, 34), 50, 64, 100])
def test_one_bad_row_costs_at_most_2_and_the_logarithm_of_its_pack(
    size: int, refused: bool
) -> None:
    for bad in map(str, range(size)):
        model = Model(whole_fails({bad}, refused=refused))
        model.run(members(size))
        assert len(model.asked) - 1 <= 2 + math.ceil(math.log2(size)), (size, bad)
        assert model.how("given up") == {bad}
        assert sorted(model.ended) == sorted(set(model.ended)), "no row ends twice"
        assert len(model.ended) == size
        packs = [tuple(pack) for pack in model.asked if len(pack) > 1]
        assert len(packs) == len(set(packs)), "a pack that failed is not sent again as it was"


@pytest.mark.parametrize("size", [2, 5, 20])
def test_a_row_whose_answer_alone_is_wrong_is_asked_again_alone(size: int) -> None:
    for bad in map(str, range(size)):
        model = Model(only_its_answer_is_wrong({bad}))
        model.run(members(size))
        assert model.asked[1:] == [[bad]] * (TRIES - 1)
        assert model.how("given up") == {bad}


@settings(deadline=None)
@given(st.integers(2, 20).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_each_of_several_bad_rows_costs_the_bound_or_its_own_tries_at_most(
    case: tuple[int, set[int]],
) -> None:
    size, places = case
    bad = {str(place) for place in places}
    model = Model(whole_fails(bad))
    model.run(members(size))
    assert len(model.asked) - 1 <= len(bad) * max(TRIES, 2 + math.ceil(math.log2(size)))
    assert model.how("given up") == bad
    assert model.how("answered") == {str(at) for at in range(size)} - bad


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 20), st.data())
def test_whatever_comes_back_every_row_ends_exactly_once(size: int, data: st.DataObject) -> None:
    def spoil(pack: list[Member]) -> Asked | None:
        kind = data.draw(st.sampled_from(["good", "whole", "some", "outage"]))
        if kind == "good":
            return None
        if kind == "whole":
            return Asked(list(pack), failure="not JSON")
        if kind == "outage":
            return Asked(list(pack), ended=True)
        return Asked([member for member in pack if data.draw(st.booleans())])

    model = Model(spoil)
    model.run(members(size))
    assert sorted(key for key, _ in model.ended) == sorted(map(str, range(size)))
    assert len(model.asked) <= 1 + size * (2 + TRIES + math.ceil(math.log2(size)))
    for pack, (reason, parent) in zip(model.asked, model.parents, strict=True):
        if reason != "first":
            assert parent is not None, "a repair is linked to the request that it repairs"
            assert set(pack) <= set(model.asked[int(parent.split()[1]) - 1])


@pytest.mark.parametrize("requests", range(1, 8))
def test_after_a_stop_at_most_the_parts_under_way_are_asked(requests: int) -> None:
    def spoil(pack: list[Member]) -> Asked | None:
        if model.stop_after is not None and len(model.asked) > model.stop_after:
            return Asked(list(pack), ended=True)  # the engine sends nothing more
        return whole_fails({"7"})(pack)

    model = Model(spoil)
    model.stop_after = requests
    model.run(members(20))
    assert model.how("given up") == set() or len(model.asked) <= requests
    assert "7" not in model.how("answered")
    assert len({key for key, _ in model.ended}) == len(model.ended)


def test_each_repair_names_the_request_whose_answer_it_repairs(
    simulator: Simulator, tmp_path: Path
) -> None:
    rows = topics(40)
    rows[7]["Topic"] = "POISON"
    simulator.configure(faults=[{"kind": "malformed_json", "match": "POISON"}])
    bench = Bench(tmp_path, simulator)
    bench.run(bench.ingest(write_rows(tmp_path / "rows.csv", rows)))
    with bench.open() as ledger, ledger.read() as connection:
        found = connection.execute(
            sa.select(
                attempts.c.request_id, attempts.c.parent_request_id, attempts.c.reason
            ).order_by(attempts.c.sent_at)
        ).all()
    spoiled = {parent for _, parent, _ in found if parent is not None}
    assert len(spoiled) == 1, "one request was spoiled, and all repairs are of that one"
    firsts = {request for request, parent, reason in found if reason == "first"}
    assert spoiled < firsts and len(firsts) == 2
    assert {(reason, parent is None) for _, parent, reason in found} == {
        ("first", True),
        ("split", False),
        ("re-ask", False),
    }
