"""Attempts: what was spent is written ahead, settled once, and never forgotten."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.clock import ManualClock
from batch_pipeline.ledger.calls import (
    ADMIT,
    BURY_DEAD,
    HEARTBEAT,
    OWNER_LEASE_S,
    PAUSE,
    REAP_GRACE_S,
    RECORD_RUN,
    RETIRE,
    SETTLE,
    STORE_LATE,
    Owner,
    Pause,
    PauseKey,
    RunRecord,
    Settlement,
    StoreResults,
    find_results,
    find_underived,
    this_host,
    unpack_bytes,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import AttemptState, attempts, replies, runs
from batch_pipeline_tests.ledger.books import MODEL, do, new_attempt, open_ledger

REQUEST = b'{"contents": []}'
REPLY = b'{"candidates": [{"content": "an answer"}]}'
OTHER_MODEL = "anthropic/claude-haiku-5-5"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def pass_time(clock: ManualClock, seconds: float) -> None:
    asyncio.run(clock.advance(seconds))


def admit(ledger: Ledger, attempt_id: str = "a", **fields: Any) -> Owner:
    owner = Owner.here("run")
    do(ledger, HEARTBEAT, owner)
    assert do(ledger, ADMIT, new_attempt(attempt_id, owner.owner_id, **fields)).admitted
    return owner


def row(ledger: Ledger, attempt_id: str = "a") -> Any:
    with ledger.read() as connection:
        statement = (
            sa.select(attempts, replies.c.request, replies.c.reply)
            .outerjoin(replies, replies.c.attempt_id == attempts.c.attempt_id)
            .where(attempts.c.attempt_id == attempt_id)
        )
        return connection.execute(statement).one()


def settled(cost_nano: int = 1_234, **fields: Any) -> Settlement:
    return Settlement(
        "a",
        AttemptState.SETTLED,
        cost_nano,
        status=200,
        request=REQUEST,
        reply=REPLY,
        input_tokens=100,
        **fields,
    )


LOST = Settlement(
    "a", AttemptState.LOST, 5_000, error_kind="transient", error="timeout", request=REQUEST
)
REFUND = Settlement("a", AttemptState.REFUNDED, 0)


def test_an_attempt_is_in_the_books_before_it_is_sent(ledger_url: str, clock: ManualClock) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        admit(ledger)
        found = row(ledger)
        assert found.state == AttemptState.SENT.value
        assert (found.sent_at, found.deadline_at) == (clock.now(), clock.now() + 30.0)
        assert found.worst_nano == 5_000


def test_a_settlement_keeps_the_reply_and_the_price(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        admit(ledger)
        do(ledger, SETTLE, settled())
        found = row(ledger)
        assert (found.state, found.cost_nano, found.input_tokens) == ("settled", 1_234, 100)
        assert unpack_bytes(found.request) == REQUEST
        assert unpack_bytes(found.reply) == REPLY


def test_a_late_settlement_replaces_the_worst_case(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        admit(ledger)
        do(ledger, SETTLE, LOST)
        assert (row(ledger).state, row(ledger).cost_nano) == ("lost", 5_000)
        do(ledger, SETTLE, settled())
        found = row(ledger)
        assert (found.state, found.cost_nano) == ("settled", 1_234)
        assert found.error_kind is None
        assert unpack_bytes(found.reply) == REPLY


@pytest.mark.parametrize(
    "later", [LOST, REFUND, dataclasses.replace(settled(99), reply=b"another")]
)
def test_what_is_settled_stays_as_it_is(later: Settlement, ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        admit(ledger)
        do(ledger, SETTLE, settled())
        do(ledger, SETTLE, later)
        assert (row(ledger).state, row(ledger).cost_nano) == ("settled", 1_234)
        assert unpack_bytes(row(ledger).reply) == REPLY


def test_an_attempt_that_was_not_sent_is_refunded_for_good(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        admit(ledger)
        do(ledger, SETTLE, REFUND)
        assert (row(ledger).state, row(ledger).cost_nano) == ("refunded", 0)
        pass_time(clock, 1_000.0)
        assert do(ledger, BURY_DEAD, this_host()) == 0
        assert (row(ledger).state, row(ledger).cost_nano) == ("refunded", 0)


def test_an_attempt_is_lost_only_after_its_owner_and_its_deadline_are_past(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        owner = admit(ledger, timeout_s=60.0)
        for _ in range(int((60.0 + REAP_GRACE_S) / (OWNER_LEASE_S / 2)) + 1):
            pass_time(clock, OWNER_LEASE_S / 2)
            assert do(ledger, HEARTBEAT, owner)
        assert do(ledger, BURY_DEAD, this_host()) == 0, "its owner lives and will settle it"
        pass_time(clock, OWNER_LEASE_S + 1.0)
        assert do(ledger, BURY_DEAD, this_host()) == 1
        assert (row(ledger).state, row(ledger).cost_nano) == ("lost", 5_000)
        assert do(ledger, BURY_DEAD, this_host()) == 0, "once"


def test_the_grace_after_the_deadline_is_kept_to_the_second(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        owner = admit(ledger, timeout_s=30.0)
        do(ledger, RETIRE, owner.owner_id)
        pass_time(clock, 30.0 + REAP_GRACE_S - 0.5)
        assert do(ledger, BURY_DEAD, this_host()) == 0
        pass_time(clock, 1.0)
        assert do(ledger, BURY_DEAD, this_host()) == 1


def test_nothing_is_admitted_during_a_pause(ledger_url: str, clock: ManualClock) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        key = PauseKey("simulated", "google", MODEL, "…abcd")
        do(ledger, PAUSE, Pause(key, clock.now() + 5.0, "429"))
        refused = do(ledger, ADMIT, new_attempt("a", "owner"))
        assert not refused.admitted
        assert refused.pause.paused_until == clock.now() + 5.0
        with ledger.read() as connection:
            assert connection.execute(sa.select(attempts)).all() == []
        assert do(ledger, ADMIT, new_attempt("b", "owner", key_id="…other")).admitted
        pass_time(clock, 5.0)
        assert do(ledger, ADMIT, new_attempt("a", "owner")).admitted


def store(model: str, attempt_id: str, output: dict[str, Any], **fields: Any) -> StoreResults:
    return StoreResults(
        "simulated", "roadmaps", "enrich", model, attempt_id, "owner", [("key-0", output)], **fields
    )


def test_the_first_model_of_the_route_wins_where_several_answered(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        do(ledger, STORE_LATE, store(MODEL, "a", {"by": "one"}))
        do(ledger, STORE_LATE, store(OTHER_MODEL, "b", {"by": "two"}))
        with ledger.read() as connection:

            def answer(*models: str) -> dict[str, Any]:
                return {
                    key: result.output
                    for key, result in find_results(
                        connection, "simulated", ["key-0"], models
                    ).items()
                }

            assert answer(MODEL, OTHER_MODEL) == {"key-0": {"by": "one"}}
            assert answer(OTHER_MODEL, MODEL) == {"key-0": {"by": "two"}}
            assert answer("google/another") == {}


def test_an_answer_derived_late_does_not_replace_a_newer_one(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        do(ledger, STORE_LATE, store(MODEL, "new", {"by": "new"}))
        do(ledger, STORE_LATE, store(MODEL, "old", {"by": "old"}, created_at=clock.now() - 9.0))
        with ledger.read() as connection:
            [found] = find_results(connection, "simulated", ["key-0"], [MODEL]).values()
        assert (found.output, found.attempt_id) == ({"by": "new"}, "new")
        do(ledger, STORE_LATE, store(MODEL, "newer", {"by": "newer"}, created_at=clock.now() + 1))
        with ledger.read() as connection:
            [found] = find_results(connection, "simulated", ["key-0"], [MODEL]).values()
        assert (found.output, found.attempt_id) == ({"by": "newer"}, "newer")


def test_results_are_found_over_more_keys_than_one_statement_takes(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        outputs = [(f"k{index}", {"n": index}) for index in range(1_203)]
        many = StoreResults("simulated", "roadmaps", "enrich", MODEL, "a", "owner", outputs)
        do(ledger, STORE_LATE, many)
        with ledger.read() as connection:
            keys = [key for key, _ in outputs] + ["unknown"]
            found = find_results(connection, "simulated", keys, [MODEL])
        assert {key: result.output for key, result in found.items()} == dict(outputs)


def test_a_paid_reply_that_was_not_derived_is_found_once_its_owner_is_gone(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        admit(ledger)
        do(ledger, SETTLE, settled(derived=False))

        def underived() -> list[str]:
            with ledger.read() as connection:
                return [
                    found.attempt_id
                    for found in find_underived(
                        connection, "simulated", "roadmaps", "enrich", clock.now()
                    )
                ]

        assert underived() == [], "its owner is at it"
        pass_time(clock, OWNER_LEASE_S + 1.0)
        assert underived() == ["a"]
        with ledger.read() as connection:
            [found] = find_underived(connection, "simulated", "roadmaps", "enrich", clock.now())
            assert find_underived(connection, "simulated", "roadmaps", "other", clock.now()) == []
            assert find_underived(connection, "simulated", "brands", "enrich", clock.now()) == []
        assert found.reply == REPLY
        assert found.members == [(0, "key-0"), (1, "key-1")]
        do(ledger, STORE_LATE, store(MODEL, "a", {"by": "late"}, complete=False))
        assert underived() == ["a"], "one of its two answers is still missing"
        do(ledger, STORE_LATE, store(MODEL, "a", {"by": "late"}))
        assert underived() == []


def test_a_run_keeps_its_start_and_its_settings_when_it_ends(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        common: dict[str, Any] = {
            "run_id": "run",
            "realm": "simulated",
            "workload": "roadmaps",
            "batch_id": "nov",
            "owner_id": "owner",
            "settings": {"workers": 4},
        }
        began = clock.now()
        do(ledger, RECORD_RUN, RunRecord(**common, status="running"))
        pass_time(clock, 60.0)
        ended = {**common, "settings": {}, "owner_id": "x"}
        do(ledger, RECORD_RUN, RunRecord(**ended, status="done", summary={"requests": 8}))
        with ledger.read() as connection:
            found = connection.execute(sa.select(runs)).one()
        assert (found.started_at, found.ended_at) == (began, began + 60.0)
        assert (found.settings, found.summary) == ('{"workers":4}', '{"requests":8}')
        assert (found.status, found.owner_id) == ("done", "owner")
