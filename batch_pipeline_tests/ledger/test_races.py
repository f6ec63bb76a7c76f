"""What several processes do to the same rows at the same moment, on each database.

Each ledger handle has connections and a writer thread of its own, as each process has.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.batches import (
    LEASE_CHUNK,
    LeaseRequest,
    chunk_key,
    find_batch,
    start_generation,
)
from batch_pipeline.ledger.calls import (
    ADMIT,
    BURY_DEAD,
    CLAIM,
    HEARTBEAT,
    PAUSE,
    SETTLE,
    ClaimKeys,
    Owner,
    Pause,
    PauseKey,
    Settlement,
    this_host,
)
from batch_pipeline.ledger.spend import Account, Budget, Scope
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import AttemptState, attempts, items, pauses, spend
from batch_pipeline.limits.reservation import RESERVE, Reserve
from batch_pipeline_tests.ledger.books import (
    MODEL,
    do,
    ingest_rows,
    new_attempt,
    open_ledger,
    rows,
)

T = TypeVar("T")

PROCESSES = 4
KEY = PauseKey("simulated", "google", MODEL, "…abcd")


@pytest.fixture
def ledgers(ledger_url: str) -> Iterator[list[Ledger]]:
    with ExitStack() as stack:
        yield [stack.enter_context(open_ledger(ledger_url)) for _ in range(PROCESSES)]


def at_once(ledgers: Sequence[Ledger], work: Callable[[Ledger, int], T]) -> list[T]:
    """Let all processes begin `work(ledger, place)` at one moment; their answers in order."""
    start = threading.Barrier(len(ledgers))

    def run(ledger: Ledger, place: int) -> T:
        _ = ledger.writer  # its thread runs by now
        start.wait(30)
        return work(ledger, place)

    with ThreadPoolExecutor(len(ledgers)) as pool:
        running = [pool.submit(run, ledger, place) for place, ledger in enumerate(ledgers)]
        return [each.result(60) for each in running]


def alive(ledgers: Sequence[Ledger]) -> list[Owner]:
    owners = [Owner.here(f"run {place}") for place in range(len(ledgers))]
    for ledger, owner in zip(ledgers, owners, strict=True):
        do(ledger, HEARTBEAT, owner)
    return owners


def test_each_chunk_is_leased_to_one_of_those_who_want_it(ledgers: list[Ledger]) -> None:
    ingest_rows(ledgers[0], "nov", rows(60), chunk_size=1)
    owners = alive(ledgers)

    def lease(ledger: Ledger, place: int) -> set[int]:
        wanted = list(range(1, 61))
        random.Random(place).shuffle(wanted)
        request = (
            (at, LeaseRequest("simulated", chunk_key("nov", at), owners[place].owner_id))
            for at in wanted
        )
        asked = [(at, ledger.writer.submit(LEASE_CHUNK, each)) for at, each in request]
        return {at for at, answer in asked if answer.result(30).fence is not None}

    granted = at_once(ledgers, lease)
    assert Counter(at for mine in granted for at in mine) == Counter(range(1, 61))


def test_each_question_is_claimed_by_one_of_those_who_ask_it(ledgers: list[Ledger]) -> None:
    owners = alive(ledgers)
    keys = [f"key-{index}" for index in range(300)]

    def claim(ledger: Ledger, place: int) -> set[str]:
        mine: set[str] = set()
        for start in range(0, 300, 20):
            wanted = keys[start : start + 20]
            random.Random(place).shuffle(wanted)
            request = ClaimKeys("simulated", owners[place].owner_id, "realtime", wanted, [MODEL])
            mine |= do(ledger, CLAIM, request).mine
        return mine

    claimed = at_once(ledgers, claim)
    assert Counter(key for mine in claimed for key in mine) == Counter(keys)


def test_a_budget_that_nobody_has_used_yet_is_not_passed(ledgers: list[Ledger]) -> None:
    owners = alive(ledgers)
    budgets = (Budget(Account("simulated", Scope.BATCH, "batch"), 100_000),)

    def admit(ledger: Ledger, place: int) -> int:
        answers = [
            do(
                ledger,
                ADMIT,
                new_attempt(f"{place}.{turn}", owners[place].owner_id, budgets=budgets),
            )
            for turn in range(12)
        ]
        return sum(answer.admitted for answer in answers)

    assert sum(at_once(ledgers, admit)) == 100_000 // 5_000


def test_turns_at_a_limit_that_nobody_has_used_yet_are_handed_out_once(
    ledgers: list[Ledger],
) -> None:
    alive(ledgers)
    limits = (20.0 * 60.0, None, None, None, None)

    def reserve(ledger: Ledger, _: int) -> list[float]:
        request = Reserve(KEY, limits, [(1.0, 0.0, 0.0)] * 3)
        answer = do(ledger, RESERVE, request)
        return [answer.now + delay for delay in answer.delays]

    turns = sorted(turn for mine in at_once(ledgers, reserve) for turn in mine)
    assert len(turns) == 3 * PROCESSES
    gaps = [later - earlier for earlier, later in itertools.pairwise(turns)]
    assert min(gaps) > 0.05 - 1e-4


def test_the_longest_of_many_pauses_stays(ledgers: list[Ledger]) -> None:
    def pause(ledger: Ledger, place: int) -> None:
        untils = [2e9 + place * 100 + turn for turn in range(40)]
        random.Random(place).shuffle(untils)
        for until in untils:
            do(ledger, PAUSE, Pause(KEY, until, "429"))

    at_once(ledgers, pause)
    with ledgers[0].read() as connection:
        [until] = connection.execute(sa.select(pauses.c.paused_until)).scalars()
    assert until == 2e9 + (PROCESSES - 1) * 100 + 39


def test_a_table_that_several_ingest_at_once_is_one_batch(ledgers: list[Ledger]) -> None:
    new = at_once(ledgers, lambda ledger, _: ingest_rows(ledger, "nov", rows(2_000))[1])
    assert Counter(new) == {True: 1, False: PROCESSES - 1}
    with ledgers[0].read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(items)).scalar() == 2_000


def test_a_batch_that_several_force_at_once_begins_one_generation(ledgers: list[Ledger]) -> None:
    ingest_rows(ledgers[0], "nov", rows(200))
    with ledgers[0].write() as connection:
        connection.execute(items.update().values(outcome="succeeded"))
    reset = at_once(ledgers, lambda ledger, _: start_generation(ledger, "nov"))
    assert Counter(reset) == {200: 1, 0: PROCESSES - 1}
    with ledgers[0].read() as connection:
        batch = find_batch(connection, "simulated", "nov")
    assert batch is not None and batch.generation == 1


def test_after_a_storm_of_writes_the_sums_equal_the_attempts(ledgers: list[Ledger]) -> None:
    """Admissions, settlements of one's own and of others, and burials, in any order."""
    owners = alive(ledgers)
    batches = ["one", "two", "three"]

    def work(ledger: Ledger, place: int) -> None:
        rng = random.Random(place)
        waiting: list[Future[Any]] = []
        for turn in range(150):
            attempt = new_attempt(
                f"{place}.{turn}",
                owners[place].owner_id,
                batch_id=rng.choice(batches),
                worst_nano=rng.randint(1, 10_000),
                timeout_s=rng.choice([-60.0, 30.0]),
                budgets=(
                    Budget(Account("simulated", Scope.PROVIDER, "google", "2026-11-21"), 10**9),
                ),
            )
            waiting.append(ledger.writer.submit(ADMIT, attempt))
            settled = Settlement(
                f"{rng.randrange(PROCESSES)}.{rng.randrange(turn + 1)}",
                rng.choice([AttemptState.SETTLED, AttemptState.LOST, AttemptState.REFUNDED]),
                rng.randint(0, 1_000),
            )
            waiting.append(ledger.writer.submit(SETTLE, settled))
            if turn % 20 == 0:
                waiting.append(ledger.writer.submit(BURY_DEAD, this_host()))
                waiting.append(ledger.writer.submit(HEARTBEAT, owners[place]))
            if turn % 7 == 0:
                waiting[-1].result(30)
        for each in waiting:
            each.result(30)

    at_once(ledgers, work)
    with ledgers[0].read() as connection:
        stored = {
            (row.scope, row.scope_id): (row.reserved_nano, row.settled_nano, row.lost_nano)
            for row in connection.execute(sa.select(spend))
        }
        written = connection.execute(sa.select(attempts)).all()
    assert len(written) == PROCESSES * 150
    for scope, column in (
        ("batch", "batch_id"),
        ("workload", "workload"),
        ("provider", "provider"),
    ):
        for name in {getattr(row, column) for row in written}:
            mine = [row for row in written if getattr(row, column) == name]
            assert stored[scope, name] == (
                sum(row.worst_nano for row in mine if row.state == "sent"),
                sum(row.cost_nano for row in mine if row.state == "settled"),
                sum(row.cost_nano for row in mine if row.state == "lost"),
            )


def test_a_reader_sees_one_state_however_long_it_reads(ledgers: list[Ledger]) -> None:
    ingest_rows(ledgers[0], "nov", rows(10))
    count = sa.select(sa.func.count()).select_from(items)
    with ledgers[0].read() as connection:
        assert connection.execute(count).scalar() == 10
        ingest_rows(ledgers[1], "dec", rows(5))
        assert connection.execute(count).scalar() == 10
    with ledgers[0].read() as connection:
        assert connection.execute(count).scalar() == 15
