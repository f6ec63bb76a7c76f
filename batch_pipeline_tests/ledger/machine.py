"""The ledger's operations for state machines of hypothesis: many short lives of one ledger.

What belongs here: applying operations, owners, and time. What does not: the models and assertions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, TypeVar

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from batch_pipeline.ledger.calls import (
    BURY_DEAD,
    HEARTBEAT,
    OWNER_LEASE_S,
    RETIRE,
    Owner,
    this_host,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import metadata, owners
from batch_pipeline.ledger.writer import Operation
from batch_pipeline_tests.postgres import Postgres

T = TypeVar("T")

HOST = this_host()

EXAMPLES = settings(
    max_examples=300,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
FEWER = settings(EXAMPLES, max_examples=50)


@cache
def _in_memory() -> sa.Engine:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    metadata.create_all(engine)
    return engine


@cache
def gone_pid() -> int:
    """The pid of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(30)
    return ended.pid


class LedgerMachine(RuleBasedStateMachine):
    """Statements of the ledger within one transaction, which is never committed.

    A process is a name. Its owner is registered by its first heartbeat; when the lease of that one
    has ended, a new owner comes in its place, as a new run does.
    """

    engine: ClassVar[sa.Engine | None] = None
    start: ClassVar[float] = 1_800_000_000.0

    def __init__(self) -> None:
        super().__init__()
        self.connection = (self.engine or _in_memory()).connect()
        self.now = self.start
        self.alive_until: dict[str, float] = {}
        self.killed: set[str] = set()
        self._generations: dict[str, int] = {}

    def teardown(self) -> None:
        """Forget everything."""
        self.connection.rollback()
        self.connection.close()

    def apply(self, operation: Operation[T], *parameters: Any) -> list[T]:
        """One group of parameters, as the writer applies them."""
        return list(operation.apply(self.connection, self.now, parameters))

    def owner(self, name: str) -> str:
        """The latest owner id of a process."""
        return f"{name}.{self._generations.get(name, 0)}"

    def alive(self, owner_id: str) -> bool:
        """Whether an owner's lease goes on; that of a killed process does, until it is found."""
        return self.alive_until.get(owner_id, 0.0) > self.now

    def works(self, owner_id: str) -> bool:
        """Whether an owner's process still runs and holds its lease."""
        return self.alive(owner_id) and owner_id not in self.killed

    def beat(self, name: str) -> str:
        """A heartbeat of a process, or the first one of the run that comes after it; its owner."""
        owner_id = self.owner(name)
        if owner_id in self.alive_until and not self.works(owner_id):
            if owner_id not in self.killed:
                late = Owner(owner_id, HOST, os.getpid(), "late")
                assert self.apply(HEARTBEAT, late) == [False], "its lease has ended"
            self._generations[name] = self._generations.get(name, 0) + 1
            owner_id = self.owner(name)
        owner = Owner(owner_id, HOST, os.getpid(), owner_id)
        assert self.apply(HEARTBEAT, owner) == [True]
        self.alive_until[owner_id] = self.now + OWNER_LEASE_S
        return owner_id

    def kill(self, name: str) -> str:
        """A process dies: from now on its pid is nobody's."""
        owner_id = self.owner(name)
        if owner_id not in self.alive_until:
            return owner_id
        self.killed.add(owner_id)
        statement = owners.update().where(owners.c.owner_id == owner_id)
        self.connection.execute(statement.values(pid=gone_pid()))
        return owner_id

    def retire(self, name: str) -> str:
        """A process ends in order."""
        owner_id = self.owner(name)
        self.apply(RETIRE, owner_id)
        if owner_id in self.alive_until:
            self.alive_until[owner_id] = min(self.alive_until[owner_id], self.now)
        return owner_id

    def bury(self) -> int:
        """Killed processes are found; how many attempts were marked lost."""
        for owner_id in self.killed:
            self.alive_until[owner_id] = min(self.alive_until.get(owner_id, 0.0), self.now)
        [lost] = self.apply(BURY_DEAD, HOST)
        return lost


@contextmanager
def on_postgresql(postgres: Postgres) -> Iterator[sa.Engine]:
    """A migrated ledger on PostgreSQL."""
    url = postgres.empty_ledger()
    Ledger(url, "simulated").close()
    connect_args = {"options": "-csearch_path=batch_pipeline"}
    engine = sa.create_engine(url, connect_args=connect_args)
    try:
        yield engine
    finally:
        engine.dispose()


def run_on_postgresql(postgres: Postgres, machine: type[LedgerMachine]) -> None:
    """A few examples of a machine on PostgreSQL."""
    with on_postgresql(postgres) as engine:
        there = type(machine.__name__, (machine,), {"engine": engine})
        run_state_machine_as_test(there, settings=FEWER)
