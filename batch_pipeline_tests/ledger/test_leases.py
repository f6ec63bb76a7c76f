"""Chunk leases: one run at a time works on a chunk, and one that lost it writes nothing more."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from batch_pipeline.clock import ManualClock
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import (
    FINISH_ITEMS,
    LEASE_CHUNK,
    UNLEASE_CHUNK,
    FinishItems,
    ItemOutcome,
    Lease,
    LeaseRequest,
    Unlease,
    stream_items,
)
from batch_pipeline.ledger.calls import (
    ADMIT,
    BURY_DEAD,
    HEARTBEAT,
    OWNER_LEASE_S,
    RETIRE,
    SETTLE,
    Owner,
    Settlement,
    StoreResults,
    find_results,
    this_host,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import AttemptState, Outcome
from batch_pipeline_tests.ledger.books import MODEL, do, ingest_rows, new_attempt, open_ledger, rows

KEY = "nov.0001"


def lease(ledger: Ledger, owner: Owner, key: str = KEY) -> Lease:
    return do(ledger, LEASE_CHUNK, LeaseRequest("simulated", key, owner.owner_id))


def finish(fence: int, outcome: Outcome = Outcome.SUCCEEDED) -> FinishItems:
    return FinishItems("simulated", "nov", KEY, fence, [ItemOutcome(0, outcome, cost_nano=5)])


def first_outcome(ledger: Ledger) -> Outcome:
    return next(stream_items(ledger, "nov")).outcome


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def started(ledger: Ledger, *names: str) -> list[Owner]:
    owners = [Owner.here(name) for name in names]
    for owner in owners:
        do(ledger, HEARTBEAT, owner)
    return owners


def test_a_held_chunk_is_refused_naming_the_run_that_holds_it(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        ingest_rows(ledger, "nov", rows(3))
        one, other = started(ledger, "nightly", "by hand")
        assert lease(ledger, one) == Lease(1)
        refused = lease(ledger, other)
        assert refused.fence is None
        assert refused.holder == f"run nightly (pid {one.pid} on {one.host})"


def test_the_fence_grows_with_each_lease(ledger_url: str, clock: ManualClock) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        ingest_rows(ledger, "nov", rows(3))
        one, other = started(ledger, "one", "other")
        assert lease(ledger, one).fence == 1
        assert lease(ledger, one).fence == 2, "leased anew by the same owner"
        do(ledger, UNLEASE_CHUNK, Unlease("simulated", KEY, one.owner_id, 1))
        assert lease(ledger, other).fence is None, "a late word about the first lease"
        do(ledger, UNLEASE_CHUNK, Unlease("simulated", KEY, one.owner_id, 2))
        assert lease(ledger, other).fence == 3


def test_a_chunk_of_a_retired_owner_is_free_at_once(ledger_url: str, clock: ManualClock) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        ingest_rows(ledger, "nov", rows(3))
        one, other = started(ledger, "one", "other")
        lease(ledger, one)
        do(ledger, RETIRE, one.owner_id)
        assert lease(ledger, other).fence == 2


def test_a_chunk_is_taken_over_when_its_owners_heartbeat_stops(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        ingest_rows(ledger, "nov", rows(3))
        one, other = started(ledger, "one", "other")
        lease(ledger, one)
        pass_time(clock, OWNER_LEASE_S - 0.5)
        assert lease(ledger, other).fence is None
        do(ledger, HEARTBEAT, one)
        pass_time(clock, OWNER_LEASE_S - 0.5)
        assert lease(ledger, other).fence is None, "the heartbeat renewed it"
        pass_time(clock, 1.0)
        assert lease(ledger, other).fence == 2


def test_a_chunk_of_a_process_that_died_is_taken_over_at_once(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        ingest_rows(ledger, "nov", rows(3))
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait(30)
        dead = Owner("dead", this_host(), gone.pid, "killed")
        elsewhere = Owner("elsewhere", "another-host/1234", gone.pid, "far away")
        for owner in (dead, elsewhere):
            do(ledger, HEARTBEAT, owner)
        [mine] = started(ledger, "mine")
        ingest_rows(ledger, "far", rows(3))
        lease(ledger, dead)
        lease(ledger, elsewhere, "far.0001")
        assert lease(ledger, mine).fence is None
        do(ledger, BURY_DEAD, this_host())
        assert lease(ledger, mine).fence == 2
        assert lease(ledger, mine, "far.0001").fence is None, "a pid means nothing on another host"


def test_a_run_that_lost_its_chunk_writes_nothing_about_its_rows(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        ingest_rows(ledger, "nov", rows(3))
        one, other = started(ledger, "one", "other")
        old = lease(ledger, one).fence
        for _ in range(2):
            pass_time(clock, OWNER_LEASE_S * 0.6)
            assert do(ledger, HEARTBEAT, other)
        new = lease(ledger, other).fence
        assert (old, new) == (1, 2)
        assert do(ledger, FINISH_ITEMS, finish(1, Outcome.FAILED)) is False
        assert first_outcome(ledger) is Outcome.PENDING
        do(ledger, UNLEASE_CHUNK, Unlease("simulated", KEY, one.owner_id, 1))
        assert do(ledger, FINISH_ITEMS, finish(2)) is True
        assert first_outcome(ledger) is Outcome.SUCCEEDED
        [third] = started(ledger, "third")
        assert lease(ledger, third).fence is None, "the late word of the first run freed nothing"


def test_a_run_that_lost_its_chunk_still_keeps_the_answers_it_paid_for(
    ledger_url: str, clock: ManualClock
) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        ingest_rows(ledger, "nov", rows(3))
        one, other = started(ledger, "one", "other")
        lease(ledger, one)
        do(ledger, ADMIT, new_attempt("paid", one.owner_id))
        pass_time(clock, OWNER_LEASE_S + 1.0)
        lease(ledger, other)
        results = StoreResults(
            "simulated", "roadmaps", "enrich", MODEL, "paid", one.owner_id, [("key-0", {"a": 1})]
        )
        held = do(
            ledger,
            SETTLE,
            Settlement(
                "paid", AttemptState.SETTLED, 9, results=results, finished=[finish(1), finish(2)]
            ),
        )
        assert held == [False, True]
        with ledger.read() as connection:
            assert find_results(connection, "simulated", ["key-0"], [MODEL])["key-0"].output == {
                "a": 1
            }


def test_costs_of_a_row_add_up_over_runs(ledger_url: str, clock: ManualClock) -> None:
    with open_ledger(ledger_url, clock=clock) as ledger:
        ingest_rows(ledger, "nov", rows(3))
        [one] = started(ledger, "one")
        for outcome in (Outcome.FAILED, Outcome.SUCCEEDED):
            fence = lease(ledger, one).fence
            assert fence is not None
            do(ledger, FINISH_ITEMS, finish(fence, outcome))
        assert next(stream_items(ledger, "nov")).cost_nano == 10


def test_a_chunk_that_does_not_exist_is_named(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        [one] = started(ledger, "one")
        with pytest.raises(UsageError, match=r"no chunk 'typo\.0001' in the simulated realm"):
            lease(ledger, one, "typo.0001")


def pass_time(clock: ManualClock, seconds: float) -> None:
    """Move time on where no event loop runs."""
    asyncio.run(clock.advance(seconds))


def test_an_owner_whose_lease_has_run_out_is_told_and_gets_it_back_from_nobody(
    ledger_url: str,
) -> None:
    clock = ManualClock()
    owner = Owner.here("a run")
    with open_ledger(ledger_url, clock=clock) as ledger:
        assert do(ledger, HEARTBEAT, owner) is True
        asyncio.run(clock.advance(OWNER_LEASE_S - 1))
        assert do(ledger, HEARTBEAT, owner) is True, "in time"
        asyncio.run(clock.advance(OWNER_LEASE_S + 1))
        assert do(ledger, HEARTBEAT, owner) is False
        assert do(ledger, HEARTBEAT, owner) is False, "and stays so"
