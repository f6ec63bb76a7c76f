"""Provider jobs in the ledger: written with their lines, held by one process, closed once."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from batch_pipeline.ledger.calls import (
    CLAIM,
    HEARTBEAT,
    SETTLE,
    ClaimKeys,
    Owner,
    Settlement,
)
from batch_pipeline.ledger.jobs import (
    CLOSE_JOB,
    HOLD_JOBS,
    MARK_JOB,
    OPEN_JOB,
    CloseJob,
    HoldJobs,
    MarkJob,
    OpenJob,
    Window,
    bodies_of,
    enqueued,
    find_job,
    find_job_by_name,
    lines_of,
    list_jobs,
    rows_under_way,
)
from batch_pipeline.ledger.spend import Account, Budget, Scope, read_balance
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import AttemptState, JobState, claims, owners
from batch_pipeline_tests.ledger.books import MODEL, do, new_attempt, open_ledger
from batch_pipeline_tests.ledger.machine import EXAMPLES, LedgerMachine, run_on_postgresql
from batch_pipeline_tests.postgres import Postgres

REALM = "simulated"
WORST = 5_000
ACCOUNT = Account(REALM, Scope.BATCH, "batch")


def a_job(
    name: str,
    holder_id: str = "run",
    lines: int = 2,
    tokens: int = 100,
    window: Window = Window(),  # noqa: B008 - frozen
    budgets: tuple[Budget, ...] = (),
    **fields: Any,
) -> OpenJob:
    """A job whose lines ask about two keys each."""
    keys = [f"{name}-{line}-{place}" for line in range(lines) for place in range(2)]
    attempts = [
        new_attempt(
            f"{name}-{line:05d}",
            name,
            lane="batch",
            worst_nano=WORST,
            budgets=budgets,
            members=orjson.dumps(
                [[2 * line + place, f"{name}-{line}-{place}"] for place in range(2)]
            ).decode(),
        )
        for line in range(lines)
    ]
    return OpenJob(
        **{
            "realm": REALM,
            "batch_id": "batch",
            "workload": "roadmaps",
            "step": "enrich",
            "provider": "google",
            "model": MODEL,
            "key_id": "…abcd",
            "owner_id": name,
            "holder_id": holder_id,
            "lines": [(attempt, b'{"line": %d}' % at) for at, attempt in enumerate(attempts)],
            "keys": keys,
            "tokens": tokens,
            "body_bytes": 100,
            "window": window,
            **fields,
        }
    )


@pytest.fixture
def ledger(ledger_url: str) -> Any:
    with open_ledger(ledger_url) as opened:
        do(opened, HEARTBEAT, Owner.here("run"))
        yield opened


def be(ledger: Ledger, owner_id: str) -> None:
    """Register a live owner of that name."""
    here = Owner.here("run")
    do(ledger, HEARTBEAT, Owner(owner_id, here.host, here.pid, "run"))


def test_a_job_is_written_with_its_lines_their_bodies_and_their_worst_case(ledger: Ledger) -> None:
    be(ledger, "run")
    job_id = do(ledger, OPEN_JOB, a_job("first")).job_id
    assert job_id == "batch.j0001"
    with ledger.read() as connection:
        job = find_job(connection, REALM, job_id)
        assert job is not None and job.state is JobState.INTENDED
        assert (job.line_count, job.item_count, job.worst_nano) == (2, 4, 2 * WORST)
        assert [line.state for line in lines_of(connection, job_id)] == [AttemptState.SENT] * 2
        assert bodies_of(connection, job_id) == [
            ("first-00000", b'{"line": 0}'),
            ("first-00001", b'{"line": 1}'),
        ]
        assert read_balance(connection, ACCOUNT).reserved == 2 * WORST
        assert rows_under_way(connection, REALM, "batch") == 4


def test_claims_go_over_to_the_job_and_outlive_the_run_that_opened_it(ledger: Ledger) -> None:
    be(ledger, "run")
    job = a_job("first", lines=1)
    do(ledger, CLAIM, ClaimKeys(REALM, "run", "realtime", job.keys, [MODEL]))
    job_id = str(do(ledger, OPEN_JOB, job).job_id)
    be(ledger, "another")
    asked = do(ledger, CLAIM, ClaimKeys(REALM, "another", "realtime", job.keys, [MODEL]))
    assert asked.mine == frozenset() and asked.enqueued == frozenset(job.keys)
    do(ledger, CLOSE_JOB, CloseJob(REALM, job_id, JobState.COLLECTED))
    asked = do(ledger, CLAIM, ClaimKeys(REALM, "another", "realtime", job.keys, [MODEL]))
    assert asked.mine == frozenset(job.keys)


def test_a_job_that_does_not_fit_into_a_budget_leaves_nothing_behind(ledger: Ledger) -> None:
    be(ledger, "run")
    budget = Budget(ACCOUNT, 3 * WORST)
    assert do(ledger, OPEN_JOB, a_job("first", budgets=(budget,))).job_id
    opened = do(ledger, OPEN_JOB, a_job("second", budgets=(budget,)))
    assert opened.job_id is None and opened.short is not None
    assert do(ledger, OPEN_JOB, a_job("third", lines=1, budgets=(budget,))).job_id
    with ledger.read() as connection:
        assert read_balance(connection, ACCOUNT).reserved == 3 * WORST
        assert len(list_jobs(connection, REALM)) == 2
        known = connection.execute(sa.select(owners.c.owner_id)).scalars().all()
    assert "second" not in known


def test_a_window_counts_tokens_of_a_model_and_jobs_of_a_key(ledger: Ledger) -> None:
    be(ledger, "run")
    window = Window(tokens=250, jobs=3)
    assert do(ledger, OPEN_JOB, a_job("a", window=window)).job_id
    assert do(ledger, OPEN_JOB, a_job("b", window=window)).job_id
    refused = do(ledger, OPEN_JOB, a_job("c", window=window))
    assert refused.job_id is None and refused.full is not None and refused.full.tokens == 200
    assert do(ledger, OPEN_JOB, a_job("d", window=window, model="google/other")).job_id
    refused = do(ledger, OPEN_JOB, a_job("e", tokens=1, window=window, model="google/other"))
    assert refused.job_id is None and refused.full is not None and refused.full.jobs == 3
    assert do(ledger, OPEN_JOB, a_job("f", window=window, key_id="…other")).job_id
    with ledger.read() as connection:
        assert enqueued(connection, REALM, "google", MODEL, "…abcd").tokens == 200


def test_a_job_larger_than_the_window_goes_up_alone(ledger: Ledger) -> None:
    be(ledger, "run")
    window = Window(tokens=50)
    assert do(ledger, OPEN_JOB, a_job("large", tokens=100, window=window)).job_id
    assert do(ledger, OPEN_JOB, a_job("small", tokens=1, window=window)).job_id is None


def test_marks_obey_state_and_holder_and_a_job_is_found_by_its_remote_name(ledger: Ledger) -> None:
    be(ledger, "run")
    job_id = str(do(ledger, OPEN_JOB, a_job("first")).job_id)
    submitted = {"state": JobState.SUBMITTED, "remote_name": "batches/1"}
    mark = MarkJob(REALM, job_id, submitted, [JobState.CREATING], "run")
    assert do(ledger, MARK_JOB, mark) is False, "it is not being created"
    mark = MarkJob(REALM, job_id, {"state": JobState.CREATING}, [JobState.INTENDED], "another")
    assert do(ledger, MARK_JOB, mark) is False, "another process holds it"
    mark = MarkJob(REALM, job_id, submitted, [JobState.INTENDED], "run")
    assert do(ledger, MARK_JOB, mark) is True
    with ledger.read() as connection:
        found = find_job_by_name(connection, REALM, "batches/1")
        assert found is not None and found.job_id == job_id
        assert find_job_by_name(connection, "live", "batches/1") is None


class JobMachine(LedgerMachine):
    """Processes open, hold, settle and close jobs, and die."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, str] = {}
        self.open_lines: dict[str, set[str]] = {}
        self.holders: dict[str, str] = {}

    processes = st.sampled_from(["one", "two", "three"])

    @rule(process=processes, tokens=st.integers(1, 100))
    def open(self, process: str, tokens: int) -> None:
        """A live process opens a job, where the window has room."""
        holder = self.beat(process)
        name = f"job{len(self.jobs)}-{len(self.open_lines)}-{process}"
        window = Window(tokens=200, jobs=4)
        job = a_job(name, holder, tokens=tokens, window=window)
        held = enqueued(self.connection, REALM, "google", MODEL, "…abcd")
        [opened] = self.apply(OPEN_JOB, job)
        room = held.jobs < 4 and (held.tokens + tokens <= 200 or not held.tokens)
        assert (opened.job_id is not None) == room
        if opened.job_id is not None:
            assert opened.job_id not in self.jobs, "an id is given once"
            self.jobs[opened.job_id] = name
            self.open_lines[opened.job_id] = {attempt.attempt_id for attempt, _ in job.lines}
            self.holders[opened.job_id] = holder

    @rule(process=processes)
    def hold(self, process: str) -> None:
        """A process takes what no live one holds."""
        me = self.beat(process)
        [mine] = self.apply(HOLD_JOBS, HoldJobs(REALM, me, list(self.jobs)))
        for job_id in self.jobs:
            holder = self.holders.get(job_id)
            free = holder is None or not self.alive(holder)
            assert (job_id in mine) == (free or holder == me), job_id
            if free:
                self.holders[job_id] = me

    @rule(which=st.integers(0, 9), cost=st.integers(0, WORST))
    def settle(self, which: int, cost: int) -> None:
        """One more line of a job has come to something; who comes late changes nothing."""
        left = sorted(line for lines in self.open_lines.values() for line in lines)
        if left:
            line = left[which % len(left)]
            self.apply(SETTLE, Settlement(line, AttemptState.SETTLED, cost))
            self.apply(SETTLE, Settlement(line, AttemptState.REFUNDED, 0))
            for lines in self.open_lines.values():
                lines.discard(line)

    @rule(which=st.integers(0, 9))
    def close(self, which: int) -> None:
        """A job whose lines are settled is closed, perhaps by two processes."""
        done = sorted(job_id for job_id, lines in self.open_lines.items() if not lines)
        if done:
            job_id = done[which % len(done)]
            closing = CloseJob(REALM, job_id, JobState.COLLECTED)
            self.apply(CLOSE_JOB, closing, closing)
            self.apply(CLOSE_JOB, CloseJob(REALM, job_id, JobState.ABANDONED))
            del self.open_lines[job_id]
            self.holders.pop(job_id, None)

    @rule(process=processes)
    def dies(self, process: str) -> None:
        """A process is killed, and that is noticed: its jobs stay."""
        self.kill(process)
        assert self.bury() == 0, "a line is not lost with the process that wrote it"

    @rule(seconds=st.sampled_from([1.0, 30.0, 86_400.0]))
    def time_passes(self, seconds: float) -> None:
        """Leases of processes end; those of jobs do not."""
        self.now += seconds

    @invariant()
    def open_jobs_hold_their_claims_lines_and_money(self) -> None:
        """What is open is reserved, claimed and enqueued; what is closed is not."""
        known = {job.job_id: job for job in list_jobs(self.connection, REALM)}
        assert set(known) == set(self.jobs)
        for job_id, job in known.items():
            assert job.is_open == (job_id in self.open_lines)
            assert job.is_open or job.state is JobState.COLLECTED
        lines = sum(len(lines) for lines in self.open_lines.values())
        balance = read_balance(self.connection, ACCOUNT)
        assert (balance.reserved, balance.lost) == (WORST * lines, 0)
        assert rows_under_way(self.connection, REALM, "batch") == 2 * lines
        mine = sa.select(sa.func.count()).select_from(claims)
        assert self.connection.execute(mine).scalar_one() == 0, "nobody claimed anything here"


def test_jobs_are_held_by_one_process_and_closed_once_whatever_happens() -> None:
    run_state_machine_as_test(JobMachine, settings=settings(EXAMPLES, max_examples=60))


def test_jobs_are_held_by_one_process_and_closed_once_on_postgresql(postgres: Postgres) -> None:
    run_on_postgresql(postgres, JobMachine)
