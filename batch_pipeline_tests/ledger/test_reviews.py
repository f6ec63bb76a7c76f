"""Decisions in the ledger: written once, never about a row that something is at work on."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.clock import ManualClock
from batch_pipeline.ledger.batches import Batch, Item, ItemOutcome, read_items
from batch_pipeline.ledger.calls import OWNER_LEASE_S, RETIRE, Owner
from batch_pipeline.ledger.documents import documents_of
from batch_pipeline.ledger.reviews import (
    Decision,
    DecisionKind,
    NewDecision,
    ReviewConflictError,
    count_waiting,
    decide,
    decisions_of,
    read_history,
    waiting_rows,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome, attempts, batches, items
from batch_pipeline_tests.ledger.books import do, open_ledger
from batch_pipeline_tests.workloads.essays import blocked_batch, finish, lease


def row(ledger: Ledger, batch: Batch, ordinal: int) -> Item:
    with ledger.read() as connection:
        return read_items(connection, ledger.realm, batch.batch_id, ordinal, 1)[0]


def new(item: Item, kind: DecisionKind = DecisionKind.OVERRIDE, **fields: Any) -> NewDecision:
    outcome = {
        DecisionKind.OVERRIDE: Outcome.SUCCEEDED,
        DecisionKind.REGENERATE: Outcome.PENDING,
        DecisionKind.SKIP: Outcome.SKIPPED,
    }[kind]
    given = {"earlier": 0, "reviewer": "Ann", "reason": "It is fine.", "outcome": outcome, **fields}
    return NewDecision(item, kind=kind, **given)


def history(ledger: Ledger, batch: Batch, ordinal: int) -> list[Decision]:
    with ledger.read() as connection:
        return read_history(connection, ledger.realm, batch.batch_id, ordinal)


def test_an_accepted_row_has_no_error_and_keeps_its_cost(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        batch = blocked_batch(ledger, ["cats", "dogs"])
        (made,) = decide(ledger, batch.batch_id, [new(row(ledger, batch, 0), signed_off=True)])
        after = row(ledger, batch, 0)
        assert (after.outcome, after.error, after.error_kind) == (Outcome.SUCCEEDED, None, None)
        assert after.cost_nano == 7 and after.fresh_after == 0
        assert row(ledger, batch, 1).outcome is Outcome.BLOCKED
        assert made.details == {
            "outcome": "blocked", "error_kind": "qc", "error": "It is too short.",
        }  # fmt: skip
        assert history(ledger, batch, 0) == [made]
        assert made.signed_off and made.sequence == 1
        assert "override by Ann at" in made.words and "signed off: It is fine." in made.words


def test_a_row_to_be_made_anew_is_pending_and_takes_no_stored_answer(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        batch = blocked_batch(ledger, ["cats"])
        seen = row(ledger, batch, 0)
        (made,) = decide(ledger, batch.batch_id, [new(seen, DecisionKind.REGENERATE, afresh=True)])
        after = row(ledger, batch, 0)
        assert (after.outcome, after.error, after.cost_nano) == (Outcome.PENDING, None, 7)
        assert after.fresh_after == made.decided_at > 0


def test_a_skipped_row_says_who_left_it_out(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        batch = blocked_batch(ledger, ["cats"])
        decide(ledger, batch.batch_id, [new(row(ledger, batch, 0), DecisionKind.SKIP, error="x")])
        after = row(ledger, batch, 0)
        assert (after.outcome, after.error, after.error_kind) == (Outcome.SKIPPED, "x", "review")


def test_of_two_people_at_once_one_decides_and_the_other_is_told(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        batch = blocked_batch(ledger, ["cats"])
        seen = row(ledger, batch, 0)
    names = ["Ann", "Bo", "Cy", "Di"]
    start = threading.Barrier(len(names))
    told: list[str] = []
    won: list[str] = []

    def act(name: str) -> None:
        with open_ledger(ledger_url) as mine:
            start.wait(30)
            try:
                decide(mine, batch.batch_id, [new(seen, reviewer=name)])
                won.append(name)
            except ReviewConflictError as error:
                told.append(error.message)

    threads = [threading.Thread(target=act, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1 and len(told) == 3
    assert all(f"is decided already: override by {won[0]} at" in text for text in told)
    with open_ledger(ledger_url) as ledger:
        assert [one.reviewer for one in history(ledger, batch, 0)] == won


def test_a_row_that_a_run_ended_meanwhile_is_not_decided(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        batch = blocked_batch(ledger, ["cats"])
        seen = row(ledger, batch, 0)
        owner = Owner.here("run-2")
        fence = lease(ledger, owner, batch, 0)
        assert finish(ledger, batch, 0, fence, [ItemOutcome(0, Outcome.SUCCEEDED)])
        do(ledger, RETIRE, owner.owner_id)
        with pytest.raises(ReviewConflictError, match="it is succeeded now"):
            decide(ledger, batch.batch_id, [new(seen, DecisionKind.SKIP)])
        assert decisions_of(ledger, batch.batch_id) == {}


def test_of_several_rows_all_are_decided_or_none(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        batch = blocked_batch(ledger, ["cats", "dogs", "cows"])
        seen = [row(ledger, batch, at) for at in range(3)]
        decide(ledger, batch.batch_id, [new(seen[2])])
        with pytest.raises(ReviewConflictError, match=r"Row 3 \(essays-2\) is decided already"):
            decide(ledger, batch.batch_id, [new(one) for one in seen])
        assert list(decisions_of(ledger, batch.batch_id)) == [2]
        assert row(ledger, batch, 0).outcome is Outcome.BLOCKED


def test_a_row_in_a_chunk_that_a_run_holds_is_refused_until_it_lets_go(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        batch = blocked_batch(ledger, ["cats", "dogs", "cows"])
        owner = Owner.here("run-2")
        lease(ledger, owner, batch, 0)
        with pytest.raises(ReviewConflictError, match=r"chunk essays\.0001, which run run-2 \(pid"):
            decide(ledger, batch.batch_id, [new(row(ledger, batch, 1))])
        decide(ledger, batch.batch_id, [new(row(ledger, batch, 2))])
        do(ledger, RETIRE, owner.owner_id)
        decide(ledger, batch.batch_id, [new(row(ledger, batch, 1))])
        assert sorted(decisions_of(ledger, batch.batch_id)) == [1, 2]


def test_a_run_that_lost_its_lease_cannot_undo_a_decision(ledger_url: str) -> None:
    clock = ManualClock()
    with open_ledger(ledger_url, clock=clock) as ledger:
        batch = blocked_batch(ledger, ["cats", "dogs"])
        fence = lease(ledger, Owner.here("asleep"), batch, 0)
        asyncio.run(clock.advance(OWNER_LEASE_S + 1))
        decide(ledger, batch.batch_id, [new(row(ledger, batch, 0), DecisionKind.SKIP, error="x")])
        ended = [ItemOutcome(0, Outcome.BLOCKED, error_kind="qc", error="Again.")]
        assert not finish(ledger, batch, 0, fence, ended)
        assert row(ledger, batch, 0).outcome is Outcome.SKIPPED


def test_a_row_that_a_provider_job_asks_about_is_refused(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        batch = blocked_batch(ledger, [f"topic {at}" for at in range(13)])
        _a_line(ledger, batch, '[[12,"key"]]')
        with pytest.raises(ReviewConflictError, match=r"in the provider job essays\.j0001"):
            decide(ledger, batch.batch_id, [new(row(ledger, batch, 12))])
        for other in (1, 2):  # neither is row 12
            decide(ledger, batch.batch_id, [new(row(ledger, batch, other))])
        with ledger.write() as connection:
            connection.execute(attempts.update().values(state="settled"))
        decide(ledger, batch.batch_id, [new(row(ledger, batch, 12))])


def _a_line(ledger: Ledger, batch: Batch, members: str) -> None:
    """A line of a provider job that is under way."""
    words = dict.fromkeys(
        ("workload", "step", "run_id", "request_id", "provider", "model", "key_id", "owner_id"), "x"
    )
    with ledger.write() as connection:
        connection.execute(
            attempts.insert(),
            {
                **words,
                "attempt_id": "line",
                "realm": ledger.realm,
                "batch_id": batch.batch_id,
                "reason": "first",
                "lane": "batch",
                "state": "sent",
                "item_count": 1,
                "members": members,
                "estimated_input_tokens": 1,
                "worst_nano": 1,
                "rate_wait_s": 0.0,
                "sent_at": 1.0,
                "deadline_at": 2.0,
                "job_id": "essays.j0001",
            },
        )


def test_a_row_that_is_blocked_again_can_be_decided_again_and_the_last_one_counts(
    ledger_url: str,
) -> None:
    with open_ledger(ledger_url) as ledger:
        batch = blocked_batch(ledger, ["cats"])
        decide(ledger, batch.batch_id, [new(row(ledger, batch, 0), DecisionKind.REGENERATE)])
        owner = Owner.here("run-2")
        fence = lease(ledger, owner, batch, 0)
        assert finish(ledger, batch, 0, fence, [ItemOutcome(0, Outcome.BLOCKED)])
        do(ledger, RETIRE, owner.owner_id)
        again = row(ledger, batch, 0)
        with pytest.raises(ReviewConflictError, match="is decided already: regenerate"):
            decide(ledger, batch.batch_id, [new(again, earlier=0)])
        decide(ledger, batch.batch_id, [new(again, earlier=1, reviewer="Bo")])
        assert [(one.sequence, one.kind.value) for one in history(ledger, batch, 0)] == [
            (1, "regenerate"), (2, "override"),
        ]  # fmt: skip
        assert decisions_of(ledger, batch.batch_id)[0].reviewer == "Bo"


def test_the_queue_has_the_blocked_rows_and_the_longest_wait_first(ledger_url: str) -> None:
    clock = ManualClock()
    with open_ledger(ledger_url, clock=clock) as ledger:
        for name in ("zebra", "aster"):
            blocked_batch(ledger, ["cats", "dogs"], batch_id=name)
            asyncio.run(clock.advance(60))
        blocked_batch(ledger, ["gone"], batch_id="failed", outcome=Outcome.FAILED)
        trial = blocked_batch(ledger, ["small"], batch_id="try-1")
        blocked_batch(ledger, ["news"], batch_id="other", workload="news")
        with ledger.write() as connection:
            connection.execute(
                batches.update().where(batches.c.batch_id == trial.batch_id).values(launch="trial")
            )
        with ledger.read() as connection:

            def names(**chosen: Any) -> list[str]:
                found = waiting_rows(connection, ledger.realm, **chosen)
                return [one.item.item_id for one in found]

            every = ["zebra-0", "zebra-1", "aster-0", "aster-1", "other-0"]
            assert names() == every
            assert names(offset=1, limit=2) == every[1:3]
            assert names(workload="news") == ["other-0"]
            assert names(batch_id="try-1") == ["try-1-0"]
            queue = count_waiting(connection, ledger.realm)
            assert queue.rows == 5 and queue.oldest is not None
            assert queue.oldest == min(connection.execute(sa.select(items.c.settled_at)).scalars())
            assert count_waiting(connection, "live").rows == 0
            assert count_waiting(connection, "live").oldest is None


def test_decisions_of_one_realm_are_none_of_the_other(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger, open_ledger(ledger_url, "live") as live:
        batch = blocked_batch(ledger, ["cats"])
        blocked_batch(live, ["cats"])
        decide(ledger, batch.batch_id, [new(row(ledger, batch, 0))])
        assert decisions_of(live, batch.batch_id) == {}
        assert row(live, batch, 0).outcome is Outcome.BLOCKED
        assert documents_of(live, batch.batch_id, 0).keys() == {"plan", "essay"}
