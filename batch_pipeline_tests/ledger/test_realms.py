"""Nothing simulated is ever seen by the live realm, nor the other way round."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger import batches, calls, jobs
from batch_pipeline.ledger.batches import (
    FINISH_ITEMS,
    LEASE_CHUNK,
    FinishItems,
    ItemOutcome,
    LeaseRequest,
    mark_launched,
    start_generation,
    stream_items,
)
from batch_pipeline.ledger.calls import (
    ADMIT,
    CLAIM,
    HEARTBEAT,
    PAUSE,
    RETIRE,
    SETTLE,
    STORE_LATE,
    ClaimKeys,
    Owner,
    Pause,
    PauseKey,
    Settlement,
    StoreResults,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import AttemptState, Outcome
from batch_pipeline.limits.reservation import RESERVE, Reserve
from batch_pipeline.settings import Realm
from batch_pipeline_tests.ledger.books import MODEL, do, ingest_rows, new_attempt, open_ledger, rows

LATER = 4e9

# Each asks one realm's connection about the batch `nov`; the answer names what it saw.
QUERIES: dict[str, Callable[[sa.Connection, str], Any]] = {
    "find_batch": lambda c, realm: getattr(batches.find_batch(c, realm, "nov"), "source", None),
    "list_batches": lambda c, realm: [one.source for one in batches.list_batches(c, realm)],
    "list_chunks": lambda c, realm: [one.row_count for one in batches.list_chunks(c, realm, "nov")],
    "find_chunks": lambda c, realm: [
        one.row_count for one in batches.find_chunks(c, realm, ["nov.0001"])
    ],
    "read_items": lambda c, realm: [
        one.item_id for one in batches.read_items(c, realm, "nov", 0, 9)
    ],
    "find_items": lambda c, realm: [
        item.number
        for word in ("live", "sim")
        for _, item in batches.find_items(c, realm, word + "-0")
    ],
    "find_ended": lambda c, realm: [
        item.item_id for _, _, item in batches.find_ended(c, realm, ["nov"], ["live-0", "sim-0"])
    ],
    "ended_once": lambda c, realm: batches.ended_once(c, realm, ["nov"]),
    "count_outcomes": lambda c, realm: batches.count_outcomes(c, realm, "nov"),
    "unfinished_chunks": lambda c, realm: [
        one.row_count for one in batches.unfinished_chunks(c, realm, "nov")
    ],
    "find_results": lambda c, realm: {
        key: one.output for key, one in calls.find_results(c, realm, ["key-0"], [MODEL]).items()
    },
    "claimed_keys": lambda c, realm: calls.claimed_keys(c, realm, ["asked-live", "asked-sim"]),
    "find_job": lambda c, realm: _tokens(jobs.find_job(c, realm, "nov.j0001")),
    "find_job_by_name": lambda c, realm: _tokens(jobs.find_job_by_name(c, realm, "batches/1")),
    "list_jobs": lambda c, realm: [_tokens(one) for one in jobs.list_jobs(c, realm)],
    "enqueued": lambda c, realm: jobs.enqueued(c, realm, "google", MODEL, "…abcd"),
    "durations": lambda c, realm: jobs.durations(c, realm, "google", MODEL),
    "rows_under_way": lambda c, realm: jobs.rows_under_way(c, realm, "nov"),
    "lines_paid_for": lambda c, realm: list(
        jobs.lines_paid_for(c, realm, "nov", ["line-live", "line-sim"])
    ),
    "find_underived": lambda c, realm: [
        one.attempt_id for one in calls.find_underived(c, realm, "roadmaps", "enrich", LATER)
    ],
}


def _tokens(job: jobs.ProviderJob | None) -> int | None:
    return None if job is None else job.tokens


def _fill_job(ledger: Ledger, word: str, count: int, owner: Owner) -> None:
    realm = ledger.realm
    key = f"asked-{word}"
    do(ledger, CLAIM, ClaimKeys(realm, owner.owner_id, "realtime", [key], [MODEL]))
    line = new_attempt(f"line-{word}", f"job-{word}", realm=realm, batch_id="nov", lane="batch")
    opened = jobs.OpenJob(
        realm=realm,
        batch_id="nov",
        workload="roadmaps",
        step="enrich",
        provider="google",
        model=MODEL,
        key_id="…abcd",
        owner_id=f"job-{word}",
        holder_id=owner.owner_id,
        lines=[(line, b"{}")],
        keys=[key],
        tokens=count,
        body_bytes=2,
        window=jobs.Window(),
    )
    assert do(ledger, jobs.OPEN_JOB, opened).job_id == "nov.j0001"
    submitted = {"remote_name": "batches/1", "submitted_at": 1.0, "ended_at": 2.0 + count}
    assert do(ledger, jobs.MARK_JOB, jobs.MarkJob(realm, "nov.j0001", submitted))


def fill(ledger: Ledger, word: str, count: int) -> None:
    realm = ledger.realm
    owner = Owner.here(word)
    do(ledger, HEARTBEAT, owner)
    _fill_job(ledger, word, count, owner)
    ingest_rows(ledger, "nov", rows(count, word), source=f"{word}.csv")
    attempt = f"attempt-{word}"
    do(ledger, ADMIT, new_attempt(attempt, owner.owner_id, realm=realm))
    settled = Settlement(
        attempt, AttemptState.SETTLED, 1, derived=False, request=b"{}", reply=b"{}"
    )
    do(ledger, SETTLE, settled)
    outputs = [("key-0", {"in": word})]
    stored = StoreResults(
        realm, "roadmaps", "enrich", MODEL, attempt, owner.owner_id, outputs, complete=False
    )
    do(ledger, STORE_LATE, stored)
    lease = do(ledger, LEASE_CHUNK, LeaseRequest(realm, "nov.0001", owner.owner_id))
    assert lease.fence == 1
    done = [ItemOutcome(0, Outcome.SUCCEEDED, cache_key="key-0")]
    assert do(ledger, FINISH_ITEMS, FinishItems(realm, "nov", "nov.0001", 1, done))
    do(ledger, RETIRE, owner.owner_id)


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_a_query_sees_its_own_realm_only(name: str, ledger_url: str) -> None:
    query = QUERIES[name]
    with open_ledger(ledger_url, "live") as live, open_ledger(ledger_url, "simulated") as simulated:
        with live.read() as connection:
            nothing = query(connection, "live")
        fill(simulated, "sim", 3)
        with live.read() as connection:
            assert query(connection, "live") == nothing
            seen = query(connection, "simulated")
        assert seen != nothing, "the query finds what is there: else the test proves nothing"
        fill(live, "live", 5)
        with simulated.read() as connection:
            assert query(connection, "simulated") == seen


def test_every_query_of_the_ledger_is_asked_above() -> None:
    public = {
        name
        for module in (batches, calls, jobs)
        for name, member in vars(module).items()
        if inspect.isfunction(member)
        and member.__module__ == module.__name__
        and not name.startswith("_")
        and "realm" in inspect.signature(member).parameters
    }
    assert public == set(QUERIES)


@pytest.mark.parametrize("realm", ["live", "simulated"])
def test_what_a_handle_changes_in_its_realm_leaves_the_other_alone(
    realm: Realm, ledger_url: str
) -> None:
    other: Realm = "live" if realm == "simulated" else "simulated"
    with open_ledger(ledger_url, realm) as here, open_ledger(ledger_url, other) as there:
        fill(here, "here", 3)
        fill(there, "there", 3)
        before = list(stream_items(there, "nov"))
        assert start_generation(here, "nov") == 1
        mark_launched(here, "nov", "run")
        assert list(stream_items(there, "nov")) == before
        with there.read() as connection:
            batch = batches.find_batch(connection, other, "nov")
        assert batch is not None
        assert (batch.generation, batch.launched_run_id) == (0, None)


def test_claims_pauses_leases_and_limits_of_the_realms_are_apart(ledger_url: str) -> None:
    with open_ledger(ledger_url, "live") as live, open_ledger(ledger_url, "simulated") as simulated:
        one, two = Owner.here("one"), Owner.here("two")
        for owner in (one, two):
            do(live, HEARTBEAT, owner)
        for ledger, owner in ((live, one), (simulated, two)):
            realm = ledger.realm
            ingest_rows(ledger, "nov", rows(2))
            asked = ClaimKeys(realm, owner.owner_id, "realtime", ["key-0"], [MODEL])
            assert do(ledger, CLAIM, asked).mine == {"key-0"}
            request = LeaseRequest(realm, "nov.0001", owner.owner_id)
            assert do(ledger, LEASE_CHUNK, request).fence == 1
            key = PauseKey(realm, "google", MODEL, "…abcd")
            reserve = Reserve(key, (6.0, None, None, None, None), [(1.0, 0.0, 0.0)])
            assert do(ledger, RESERVE, reserve).delays == [0.0], "its bucket is its own"
        until = live.clock.now() + 600.0
        paused = PauseKey("simulated", "google", MODEL, "…abcd")
        do(simulated, PAUSE, Pause(paused, until, "429"))
        assert do(live, ADMIT, new_attempt("a", one.owner_id, realm="live")).admitted
        assert not do(simulated, ADMIT, new_attempt("b", two.owner_id)).admitted
