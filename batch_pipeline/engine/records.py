"""What the engine keeps in memory of a run: chunks, questions and requests on their way.

Records without behaviour. What belongs here: what planning, asking and settling hand each other.
What does not: what is done with them (engine.py, recovery.py), or inputs and outputs (job.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from batch_pipeline.engine.job import FailedRow, Tally
from batch_pipeline.engine.step import Row, Step
from batch_pipeline.engine.upstream import Route, Upstream
from batch_pipeline.ledger.batches import Chunk, Item, ItemOutcome
from batch_pipeline.limits.limiter import Ticket
from batch_pipeline.providers.base import WireCall


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest answer of a model about a row: where it is stored, and who paid for it."""

    cache_key: str
    model: str
    attempt_id: str


@dataclass(slots=True)
class ChunkState:
    """A leased chunk and what is left of it in this run."""

    chunk: Chunk
    fence: int
    began: float
    left: int = 0
    loading: bool = True
    under_way: int = 0
    tally: Tally = field(default_factory=Tally)
    failed: list[FailedRow] = field(default_factory=list)
    # by ordinal: what the earlier steps of rows gave, by step, and what that cost
    outputs: dict[int, dict[str, Any]] = field(default_factory=dict)
    carried_nano: dict[int, int] = field(default_factory=dict)
    # by ordinal: the newest answer of a model, and whether this run has paid for any
    newest: dict[int, Newest] = field(default_factory=dict)
    # by ordinal: `provider/model` that answered, by step
    models: dict[int, dict[str, str]] = field(default_factory=dict)
    paid: set[int] = field(default_factory=set)
    # rows, by ordinal, that are through all of their branches of that name
    joined: set[tuple[int, str]] = field(default_factory=set)
    # rows, by ordinal, that this run has left pending or refused: once, whatever their branches say
    over: set[int] = field(default_factory=set)
    # by ordinal: routes of rows that name their own
    routes: dict[int, Route] = field(default_factory=dict)

    def known(self, item: Item) -> Row:
        """The row, with what its earlier steps gave."""
        earlier = self.outputs.get(item.ordinal)
        return {**item.row, **earlier} if earlier else item.row


@dataclass(slots=True)
class Member:
    """A question: one cache key, and the rows that share it; the first row pays."""

    step: Step
    key: str
    content: dict[str, Any]
    tokens: int
    rows: list[tuple[ChunkState, Item]]
    route: Route
    asks: int = 0
    error: str = ""
    refused: bool = False
    cost_nano: int = 0
    fresh_after: float = 0.0


Finished = tuple[ChunkState, Item, ItemOutcome]
"""A row, its chunk, and what it came to."""


Through = tuple[Member, dict[str, Any], Newest]
"""A question of a step that is not a row's last, its answer, and where that is stored."""


@dataclass(slots=True)
class Asked:
    """What came of asking a pack once.

    Attributes:
        bad: members without a usable answer, in pack order.
        failure: why the whole reply was of no use; empty when the trouble is with single members.
        ended: nothing more is to be done with `bad` here: they are finished, put off, or left
            pending.
        too_dear: no budget has room for the pack as a whole, but parts of it may fit.
        request_id: the request, for those that repair its answer.
    """

    bad: list[Member]
    failure: str = ""
    ended: bool = False
    too_dear: bool = False
    request_id: str | None = None


@dataclass(slots=True)
class Trip:
    """One request on its way, over all its attempts.

    Attributes:
        request_id: its name.
        parent: the request whose answer it repairs.
        reason: why it is asked.
        sent: at least one attempt was sent.
        probe: it tries whether an upstream that was down answers again.
        tries: attempts at each upstream that failed for passing reasons.
        pauses: 429s met so far at each upstream.
        refused_since: when the first of a row of 429s came (UTC seconds).
    """

    request_id: str
    parent: str | None
    reason: str
    sent: bool = False
    probe: bool = False
    tries: dict[str, int] = field(default_factory=dict)
    pauses: dict[str, int] = field(default_factory=dict)
    refused_since: float | None = None


def chunks_of(pack: Iterable[Member]) -> list[ChunkState]:
    """The chunks of the rows that pay for a pack."""
    return list({id(state): state for member in pack for state, _ in member.rows[:1]}.values())


@dataclass(frozen=True, slots=True)
class Built:
    """A pack as a call.

    Attributes:
        call: what is sent.
        user_bytes: length of the user message in it.
        input_tokens: estimated prompt tokens.
        output_bound: billable output tokens at most.
    """

    call: WireCall
    user_bytes: int
    input_tokens: int
    output_bound: int


@dataclass(slots=True)
class Flight:
    """One attempt on the wire; `worst_nano` is the most it can cost."""

    attempt_id: str
    pack: list[Member]
    upstream: Upstream
    ticket: Ticket
    call: WireCall
    worst_nano: int
    began: float
    latency_s: float = 0.0


def share_of(cost_nano: int, count: int, place: int) -> int:
    """What one item bears of an attempt's cost: equal shares, and the first takes the rest."""
    share = cost_nano // count
    return share + (cost_nano - share * count if place == 0 else 0)
