"""How many calls fly at once over all processes: slots that are leased from the ledger.

What belongs here: the shares of the processes, the lease statement, and waiting for a slot. What
does not: rates (reservation.py), and how many a run wants to have in flight (engine).

A process asks for as many slots as it needs and uses them without a transaction. While others want
more than there is, everyone's share is as equal as whole slots allow, and who has more gives slots
back as its calls end. A lease ends with its owner's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from batch_pipeline.clock import Clock
from batch_pipeline.ledger.calls import PauseKey
from batch_pipeline.ledger.store import execute_many
from batch_pipeline.ledger.tables import gates, owners
from batch_pipeline.ledger.writer import Operation, Writer
from batch_pipeline.limits.rates import CONCURRENT, DIMENSIONS, Amounts
from batch_pipeline.limits.reservation import key_values, of_key, read_terms, upsert_gate

_POLL_S = 0.25
_IDLE_POLL_S = 1.0

_TURN_S = 2.0
"""Slots that cannot be shared equally go round in this time."""

_PLACE = DIMENSIONS.index(CONCURRENT)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one owner has and wants.

    Attributes:
        owner_id: the owner.
        used: slots that it holds, or calls that it has in flight where these are more.
        wanted: slots that it wants on top.
    """

    owner_id: str
    used: int
    wanted: int


def fair_shares(slots: int, demands: Sequence[int], turn: int) -> list[int]:
    """Divide slots so that nobody gets more than it wants, and nobody less than a greedier one.

    Args:
        slots: how many there are.
        demands: how many each wants.
        turn: who gets the slots that do not divide, from 0.
    """
    shares = [0] * len(demands)
    hungry = [place for place, demand in enumerate(demands) if demand > 0]
    left = slots
    while hungry and left >= len(hungry):
        each = left // len(hungry)
        fed = [place for place in hungry if demands[place] - shares[place] <= each]
        for place in fed or hungry:
            given = min(each, demands[place] - shares[place])
            shares[place] += given
            left -= given
        if not fed:
            break
        hungry = [place for place in hungry if place not in fed]
    for index in range(min(left, len(hungry))):
        place = hungry[(turn + index) % len(hungry)]
        shares[place] += 1
    return shares


def plan_lease(
    limit: int, mine: Demand, held: int, others: Sequence[Demand], turn: int
) -> tuple[int, int]:
    """How many slots an owner holds from now on, and up to how many it may use.

    Args:
        limit: slots of all owners together.
        mine: calls in flight as `used`, and calls that wait.
        held: slots that it held.
        others: the other live owners.
        turn: see `fair_shares`.

    Returns:
        Held and usable. More are held than are usable while calls of a process that has too many
        are still on their way.
    """
    free = max(0, limit - sum(other.used for other in others))
    need = mine.used + mine.wanted
    if any(other.wanted for other in others):
        everyone = sorted([*others, Demand(mine.owner_id, need, 0)], key=lambda one: one.owner_id)
        shares = fair_shares(limit, [one.used + one.wanted for one in everyone], turn)
        share = next(
            share
            for share, one in zip(shares, everyone, strict=True)
            if one.owner_id == mine.owner_id
        )
    else:
        # Slots between two calls are kept while nobody else wants them.
        share = max(need, held) if need else 0
    usable = min(share, free)
    return max(mine.used, usable), usable


@dataclass(frozen=True, slots=True)
class Lease:
    """A process asks for slots.

    Attributes:
        key: whose slots.
        owner_id: who asks.
        own: the limits that it works with.
        held: slots it has.
        inside: slots in use.
        wanted: slots it could use on top.
    """

    key: PauseKey
    owner_id: str
    own: Amounts
    held: int
    inside: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Leased:
    """The answer.

    Attributes:
        limit: slots of all processes together; None where there is no limit (any more).
        held: slots that count as this process's.
        usable: up to so many may be in use at once.
        good_s: seconds until the lease ends, unless the owner's heartbeat goes on.
    """

    limit: int | None
    held: int
    usable: int
    good_s: float


_OTHERS = (
    sa.select(gates.c.owner_id, gates.c.held, gates.c.in_flight, gates.c.wanted)
    .join(owners, owners.c.owner_id == gates.c.owner_id)
    .where(
        of_key(gates),
        gates.c.owner_id != sa.bindparam("owner_id"),
        owners.c.lease_expires_at > sa.bindparam("now"),
    )
)
_EXPIRES_AT = sa.select(owners.c.lease_expires_at).where(
    owners.c.owner_id == sa.bindparam("owner_id")
)


def _lease(connection: sa.Connection, now: float, requests: Sequence[Lease]) -> list[Leased]:
    answers = []
    statement = upsert_gate(
        connection.dialect.name, ("held", "wanted", "in_flight", "waiting", "updated_at")
    )
    for request in requests:
        terms = read_terms(connection, now, request.key)
        amount = terms.limits_of(request.own)[_PLACE]
        limit = None if amount is None else int(amount)
        expires_at = connection.execute(_EXPIRES_AT, {"owner_id": request.owner_id}).scalar()
        if expires_at is None or expires_at <= now:
            # Others count this owner's slots as free: it may use none.
            answers.append(Leased(limit, 0, 0, 0.0))
            continue
        held = usable = wanted = 0
        if limit is not None:
            named = {**key_values(request.key), "owner_id": request.owner_id, "now": now}
            others = [
                Demand(row.owner_id, max(row.held, row.in_flight), row.wanted)
                for row in connection.execute(_OTHERS, named)
            ]
            mine = Demand(request.owner_id, request.inside, request.wanted)
            held, usable = plan_lease(limit, mine, request.held, others, int(now // _TURN_S))
            wanted = max(0, request.inside + request.wanted - usable)
        execute_many(
            connection,
            statement,
            [
                {
                    **key_values(request.key),
                    "owner_id": request.owner_id,
                    "held": held,
                    "wanted": wanted,
                    "in_flight": request.inside,
                    "waiting": request.wanted,
                    "updated_at": now,
                }
            ],
        )
        answers.append(Leased(limit, held, usable, expires_at - now))
    return answers


LEASE: Operation[Leased] = Operation("lease slots", 3, _lease, overtakes=True)


class Slots:
    """The slots of one run at one gate.

    Without a limit, `enter` and `leave` only count.

    Args:
        writer: the process's ledger writer.
        clock: time and sleep.
        key: provider, model and key.
        owner_id: this run's owner.
    """

    def __init__(self, writer: Writer, clock: Clock, key: PauseKey, owner_id: str) -> None:
        self.inside = 0
        self._writer = writer
        self._clock = clock
        self._key = key
        self._owner_id = owner_id
        self._own: Amounts | None = None
        self._limited = False
        self._held = 0
        self._usable = 0
        self._good_until = 0.0
        # The most that was needed at once since the last lease: a call between two is not missed.
        self._peak = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._leaser: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot."""
        return len(self._waiters)

    def limit(self, own: Amounts, *, limited: bool) -> None:
        """Work with these limits from now on; `limited` says whether any process has one."""
        self._own = own
        if limited != self._limited:
            self._limited = limited
            if limited:
                self._held = self._usable = 0
                if self.inside:
                    self._wake()
            else:
                self._admit()

    async def enter(self) -> None:
        """Wait for a slot; one `leave` must follow."""
        if not self._limited:
            self.inside += 1
            return
        if not self._waiters and self._has_room():
            self._take()
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._peak = max(self._peak, self.inside + len(self._waiters))
        self._wake()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.leave()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def leave(self) -> None:
        """Give the slot back; the next in line takes it, where it is still ours to give."""
        self.inside -= 1
        if self._waiters:
            self._admit()

    async def close(self) -> None:
        """Give every slot back."""
        if self._leaser is not None:
            self._leaser.cancel()
            await asyncio.gather(self._leaser, return_exceptions=True)
        if self._held and self._own is not None:
            lease = Lease(self._key, self._owner_id, self._own, 0, 0, 0)
            await self._writer.post(LEASE, lease)
            self._held = self._usable = 0

    def _has_room(self) -> bool:
        # After a long stall the lease may have run out, and others may use what was ours.
        return self.inside < self._usable and self._clock.now() < self._good_until

    def _take(self) -> None:
        self.inside += 1
        self._peak = max(self._peak, self.inside)

    def _admit(self) -> None:
        while self._waiters and (not self._limited or self._has_room()):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._take()
                waiter.set_result(None)

    def _wake(self) -> None:
        if self._leaser is None or self._leaser.done():
            self._leaser = asyncio.create_task(self._lease_on())

    async def _lease_on(self) -> None:
        """Keep the lease in step with what is needed, until nothing is."""
        try:
            leased_at = -_IDLE_POLL_S
            while self._limited and (self._waiters or self.inside or self._held):
                now = self._clock.now()
                if self._waiters or now - leased_at >= _IDLE_POLL_S:
                    leased_at = now
                    await self._lease_once()
                if self._waiters or self.inside or self._held:
                    await self._clock.sleep(_POLL_S)
        except Exception as error:
            while self._waiters:
                waiter = self._waiters.popleft()
                if not waiter.done():
                    waiter.set_exception(error)

    async def _lease_once(self) -> None:
        assert self._own is not None
        inside = self.inside
        wanted = max(self._peak, inside + len(self._waiters)) - inside
        # What this statement may give away is not used meanwhile.
        self._usable = min(self._usable, inside)
        began = self._clock.now()
        lease = Lease(self._key, self._owner_id, self._own, self._held, inside, wanted)
        answer = await self._writer.post(LEASE, lease)
        self._peak = self.inside + len(self._waiters)
        self._held, self._usable = answer.held, answer.usable
        self._good_until = began + answer.good_s
        if answer.limit is None:
            self._limited = False
        self._admit()
