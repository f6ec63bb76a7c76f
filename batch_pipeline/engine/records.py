"""What the engine keeps in memory of a run: chunks, questions and requests on their way.

Records without behaviour. What belongs here: what planning, asking and settling hand each other.
What does not: what is done with them (engine.py, recovery.py), or inputs and outputs (job.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from batch_pipeline.engine.job import FailedRow, Tally
from batch_pipeline.ledger.batches import Chunk, Item, ItemOutcome
from batch_pipeline.limits.limiter import Ticket
from batch_pipeline.providers.base import Usage, WireCall


@dataclass(slots=True)
class ChunkState:
    """A leased chunk and what is left of it in this run."""

    chunk: Chunk
    fence: int
    began: float
    left: int = 0
    loading: bool = True
    tally: Tally = field(default_factory=Tally)
    failed: list[FailedRow] = field(default_factory=list)


@dataclass(slots=True)
class Member:
    """A question: one cache key, and the rows that share it; the first row pays."""

    key: str
    content: dict[str, Any]
    tokens: int
    rows: list[tuple[ChunkState, Item]]
    asks: int = 0
    error: str = ""
    refused: bool = False
    cost_nano: int = 0
    fresh_after: float = 0.0


Finished = tuple[ChunkState, Item, ItemOutcome]
"""A row, its chunk, and what it came to."""


@dataclass(slots=True)
class Asked:
    """What came of asking a pack once.

    Attributes:
        bad: members without a usable answer, in pack order.
        failure: why the whole reply was of no use; empty when the trouble is with single members.
        ended: nothing more is to be done with `bad` here: they are finished, put off, or left
            pending.
        request_id: the request, for those that repair its answer.
    """

    bad: list[Member]
    failure: str = ""
    ended: bool = False
    request_id: str | None = None


@dataclass(slots=True)
class Trip:
    """One request on its way, over all its attempts."""

    request_id: str
    parent: str | None
    reason: str
    sent: bool = False


def chunks_of(pack: Iterable[Member]) -> list[ChunkState]:
    """The chunks of the rows that pay for a pack."""
    return list({id(state): state for member in pack for state, _ in member.rows[:1]}.values())


@dataclass(frozen=True, slots=True)
class Flight:
    """One attempt on the wire; `worst` is the most it can use."""

    attempt_id: str
    pack: list[Member]
    ticket: Ticket
    call: WireCall
    worst: Usage
