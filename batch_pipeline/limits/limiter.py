"""The gate: where the calls of one run with one key to one model wait for their turn.

What belongs here: waiting for turns, slots and pauses, and what a provider's replies say of its
limits. What does not: the statements (reservation.py, slots.py), how many calls a run wants in
flight, and what to do after a 429 but wait (engine).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

from batch_pipeline.clock import Clock
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.calls import PAUSE, Pause, PauseKey, PauseState
from batch_pipeline.ledger.writer import Writer
from batch_pipeline.limits.days import day_of, next_day_at
from batch_pipeline.limits.rates import (
    BUCKETS,
    DIMENSIONS,
    NO_LIMITS,
    REQUESTS_PER_DAY,
    UNITS,
    Amounts,
    Rates,
    Source,
    lowest,
)
from batch_pipeline.limits.reservation import (
    CORRECT,
    COUNT,
    DECLARE,
    HOLD_BACK,
    LOOK,
    REPORT,
    RESERVE,
    Correct,
    Cost,
    Count,
    Declare,
    HoldBack,
    Look,
    Report,
    Reserve,
    Terms,
)
from batch_pipeline.limits.slots import Slots
from batch_pipeline.providers.base import RateSignals

__all__ = ["NO_LIMITS", "DayLimitReached", "Gate", "Rates", "Ticket"]

_MAX_MISSES = 3
_DEEP_BUCKET_PER_MIN = 6_000.0

_AHEAD_S = 0.02
_MAX_AHEAD = 100

_LOOK_S = 1.0
"""What an operator sets by hand reaches every gate within this time."""

_REPORT_S = 2.0

_LONGEST_HOLD_BACK_S = 10.0
"""A header that says otherwise is not believed: its clock may be off."""


class DayLimitReached(BatchPipelineError):
    """The requests of the provider's day are used up.

    Attributes:
        limit: requests a day.
        resets_at: when the next day begins, in UTC seconds.
    """

    def __init__(self, key: PauseKey, limit: float, resets_at: float) -> None:
        again = datetime.fromtimestamp(resets_at, UTC).strftime("%Y-%m-%d %H:%M")
        super().__init__(
            f"The {limit:,.0f} requests a day to {key.model} are used up.",
            f"Rows not done stay pending; run again after {again} UTC, or raise the limit: "
            f"`batch-pipeline limits set {key.model} --requests-per-day N`.",
        )
        self.limit = limit
        self.resets_at = resets_at


@dataclass(slots=True)
class Ticket:
    """Leave to send.

    Attributes:
        go_at: not before this time (UTC seconds).
        waited_s: how long it took to get.
        cost: what was reserved for it.
        day: the provider's day in which it is counted; empty where it is not counted yet.
    """

    go_at: float
    waited_s: float
    cost: Cost
    day: str = ""


@dataclass(slots=True)
class _Turn:
    go_at: float
    cost: Cost
    day: str


@dataclass(slots=True)
class _Waiter:
    cost: Cost
    future: asyncio.Future[_Turn] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Gate:
    """Where the calls of one run with one key to one model wait for their turn.

    Args:
        writer: the process's ledger writer.
        clock: time and sleep.
        key: provider, model and key.
        owner_id: this run's owner.
        rates: what this run believes the limits to be.
    """

    def __init__(
        self, writer: Writer, clock: Clock, key: PauseKey, owner_id: str, rates: Rates
    ) -> None:
        self.key = key
        self._writer = writer
        self._clock = clock
        self._owner_id = owner_id
        self._given = rates
        self._by_header: dict[str, float] = {}
        self._learned: float | None = None
        self._own = rates
        self._terms = Terms()
        self._slots = Slots(writer, clock, key, owner_id)
        self._waiters: deque[_Waiter] = deque()
        self._reserver: asyncio.Task[None] | None = None
        self._paused_until = 0.0
        # Where many calls a second are allowed, turns are taken ahead for the next few moments, so
        # that most calls wait for no transaction; at worst so much of the rate goes unused.
        self._ahead = 0
        self._turns: deque[_Turn] = deque()
        self._recent: Cost = (1.0, 0.0, 0.0)
        # Host time minus ledger time, at its smallest seen: the clocks' difference plus the
        # quickest commit.
        self._offset_s = math.inf
        self._late_s = math.inf
        self._misses = 0
        self._passed = 0
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = -math.inf
        self._reported_at = -math.inf
        self._acquiring = 0
        self._said: set[str] = set()
        self._apply()

    async def open(self) -> None:
        """Tell the other processes this run's limits, and learn theirs; call once, first."""
        if not self._own.unlimited:
            await self._declare()
        await self._look()

    async def close(self) -> None:
        """Give back what was taken and not used; call once, when no call is left."""
        counts: dict[str, int] = {}
        reserver = self._reserver
        if reserver is not None and not reserver.done():
            if self._waiters:
                reserver.cancel()
            await asyncio.gather(reserver, return_exceptions=True)
        if self._looking is not None:
            await asyncio.gather(self._looking, return_exceptions=True)
        for turn in self._turns:
            counts[turn.day] = counts.get(turn.day, 0) - 1
        self._turns.clear()
        if self._passed:
            today = day_of(self.key.provider, self._ledger_now())
            counts[today] = counts.get(today, 0) + self._passed
            self._passed = 0
        if counts:
            await self._writer.post(COUNT, Count(self.key, counts))
        await self._slots.close()

    async def enter(self) -> None:
        """Wait for one of the slots that all processes share; `leave` when the call is back.

        Where no number of calls at once is set, and where a slot of this process is free, no
        transaction is made.
        """
        self._look_soon()
        await self._slots.enter()

    def leave(self) -> None:
        """Give the slot back."""
        self._slots.leave()

    async def acquire(self, input_tokens: float, output_tokens: float) -> Ticket:
        """Wait for a turn.

        Args:
            input_tokens: estimated prompt tokens.
            output_tokens: expected output tokens.

        Returns:
            A ticket. The caller may still have to sleep until `go_at`, which is at most a few
            milliseconds away. A ticket that is not used goes to `give_up`.

        Raises:
            DayLimitReached: no request is left of the provider's day.
        """
        began = self._clock.now()
        cost = (1.0, input_tokens, output_tokens)
        self._acquiring += 1
        try:
            while True:
                if self._paused_until > self._clock.now():
                    await self._wait_out_pause()
                if self._free:
                    self._look_soon()
                    now = self._clock.now()
                    self._passed += 1
                    return Ticket(now, now - began, cost)
                ticket = await self._ticket(cost, began)
                if ticket is not None:
                    return ticket
        finally:
            self._acquiring -= 1

    def missed(self, ticket: Ticket) -> bool:
        """Whether the ticket's turn has passed, so that a new one must be taken.

        A stalled process would otherwise send in bunches. One that is late all the time sends late.
        A missed ticket is given up.
        """
        if self._clock.now() <= ticket.go_at + self._late_s or self._misses >= _MAX_MISSES:
            self._misses = 0
            return False
        self._misses += 1
        self.give_up(ticket)
        return True

    def give_up(self, ticket: Ticket) -> None:
        """The ticket was not used: its request does not count in the day."""
        if ticket.day:
            self._uncount(ticket.day)
        else:
            self._passed -= 1

    def paused_s(self) -> float:
        """Seconds that a known pause goes on for."""
        return max(0.0, self._paused_until - self._clock.now())

    @property
    def requests_per_s(self) -> float | None:
        """The rate that holds now; None where none is known."""
        return self._per_second[0]

    @property
    def shared_requests_per_s(self) -> float | None:
        """The rate that holds now where other runs keep to it as well; None where none does."""
        return self._per_second[0] if self._terms.sharers > 1 else None

    def learn(self, pause: PauseState) -> None:
        """Take note of the shared pause, as the ledger told it at an admission."""
        self._paused_until = max(self._paused_until, self._here(pause.paused_until))

    async def pause(self, seconds: float, reason: str) -> None:
        """Stop every process's calls with this key to this model for `seconds`."""
        until = self._ledger_now() + seconds
        self.learn(await self._writer.post(PAUSE, Pause(self.key, until, reason)))

    def correct(self, ticket: Ticket, input_tokens: float, output_tokens: float) -> None:
        """Replace the ticket's estimates by the real usage."""
        _, input_rate, output_rate = self._per_second
        moved = (
            0.0,
            0.0 if input_rate is None else (input_tokens - ticket.cost[1]) / input_rate,
            0.0 if output_rate is None else (output_tokens - ticket.cost[2]) / output_rate,
        )
        if any(moved):
            self._writer.post(CORRECT, Correct(self.key, moved))

    def pace(self, requests_per_min: float | None) -> None:
        """Work with a rate that was learned from 429s; None forgets it."""
        if requests_per_min != self._learned:
            self._learned = requests_per_min
            self._settle_own()

    def observe(self, signals: RateSignals, in_flight: int) -> str | None:
        """Take note of what a reply's headers say of the provider's limits.

        A limit in a header counts where nobody gave one, and wins where it is lower than the one
        that was given; it never raises one. A bucket that the provider says is empty is held back
        for all processes until it can serve a request again.

        Args:
            signals: the headers.
            in_flight: calls of this run on their way, which the provider may not have counted.

        Returns:
            What to tell the user, once for each limit that is lower than was thought.
        """
        said = None
        changed = False
        hold_back = [0.0, 0.0, 0.0]
        for place, dimension in enumerate(BUCKETS):
            signal = getattr(signals, dimension)
            if signal is None or not signal.limit:
                continue
            paced = self._per_second[place] is not None
            if self._by_header.get(dimension) != signal.limit:
                self._by_header[dimension] = signal.limit
                changed = True
                said = self._lowered(dimension, place, signal.limit) or said
            if signal.remaining is not None:
                # Who keeps to a rate is refilled as fast as it sends: what is in flight is covered.
                due = self._recent[place] * (1 if paced else 1 + in_flight)
                wait_s = (due - signal.remaining) * 60.0 / signal.limit
                if wait_s > 0:
                    reset_s = _LONGEST_HOLD_BACK_S if signal.reset_s is None else signal.reset_s
                    hold_back[place] = min(wait_s, reset_s, _LONGEST_HOLD_BACK_S)
        if changed:
            self._settle_own()
        if any(hold_back):
            moved = (hold_back[0], hold_back[1], hold_back[2])
            self._writer.post(HOLD_BACK, HoldBack(self.key, moved))
        return said

    async def report(self, in_flight: int) -> None:
        """Write down, at most every 2 s, how this run stands here, for `limits show`."""
        now = self._clock.now()
        if now - self._reported_at < _REPORT_S:
            return
        self._reported_at = now
        waiting = self._acquiring + self._slots.waiting
        await self._writer.post(REPORT, Report(self.key, self._owner_id, in_flight, waiting))

    # ---- turns ----

    async def _ticket(self, cost: Cost, began: float) -> Ticket | None:
        """A turn, at its time; None where it has to be taken anew."""
        turn = await self._turn(cost)
        ticket = Ticket(turn.go_at, 0.0, turn.cost, turn.day)
        now = self._clock.now()
        # Wake a little early: the write-ahead of the attempt fits into the rest of the wait.
        if turn.go_at - now > 0.01:
            try:
                await self._clock.sleep(turn.go_at - now - 0.01)
            except asyncio.CancelledError:
                self.give_up(ticket)
                raise
            now = self._clock.now()
        ticket.waited_s = max(now, turn.go_at) - began
        # A turn that falls into a pause is given up; one after it stays good.
        if self._paused_until > now:
            self.give_up(ticket)
            return None
        return None if self.missed(ticket) else ticket

    async def _turn(self, cost: Cost) -> _Turn:
        """A go-time, with the cost that was reserved for it."""
        self._recent = cost
        while self._turns:
            turn = self._turns.popleft()
            if self._clock.now() <= turn.go_at + self._late_s:
                if len(self._turns) < self._ahead // 2:
                    self._wake_reserver()
                return turn
            self._uncount(turn.day)
        waiter = _Waiter(cost)
        self._waiters.append(waiter)
        self._wake_reserver()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                self._turns.appendleft(waiter.future.result())
            raise

    def _uncount(self, day: str) -> None:
        self._writer.post(COUNT, Count(self.key, {day: -1}))

    def _wake_reserver(self) -> None:
        if self._reserver is None or self._reserver.done():
            self._reserver = asyncio.create_task(self._reserve_for_waiters())

    async def _reserve_for_waiters(self) -> None:
        """Reserve for everyone who waits and some turns ahead, one shared statement at a time."""
        try:
            while self._waiters or len(self._turns) < self._ahead // 2:
                while self._waiters and self._waiters[0].future.done():
                    self._waiters.popleft()
                costs = [waiter.cost for waiter in self._waiters] + [self._recent] * self._ahead
                if not costs:
                    return
                retry_s = await self._reserve(costs)
                if not self._waiters:
                    return
                if retry_s > 0:
                    # Meanwhile an operator may have set another limit.
                    await self._clock.sleep(min(retry_s, _LOOK_S))
        except Exception as error:
            self._fail_waiters(error)

    async def _reserve(self, costs: list[Cost]) -> float:
        """Hand out turns; gives the seconds after which to ask for the rest."""
        request = Reserve(self.key, self._own.amounts, costs, self._terms)
        answer = await self._writer.post(RESERVE, request)
        self._take_terms(answer.terms, answer.now)
        asked = len(self._waiters)
        provider = self.key.provider
        today, ends_at = day_of(provider, answer.now), next_day_at(provider, answer.now)
        for delay, cost in zip(answer.delays, costs, strict=False):
            go_at = answer.now + delay
            day = today if go_at < ends_at else day_of(provider, go_at)
            turn = _Turn(go_at + self._offset_s, cost, day)
            # Who came meanwhile takes a turn that was reserved ahead.
            waiter = self._waiters.popleft() if self._waiters else None
            if waiter is None or waiter.future.done():
                self._turns.append(turn)
            else:
                waiter.future.set_result(turn)
        if answer.day_full and asked > len(answer.delays):
            limit = self._limits[DIMENSIONS.index(REQUESTS_PER_DAY)]
            self._fail_waiters(DayLimitReached(self.key, limit or 0, self._here(ends_at)))
        return answer.retry_s

    def _fail_waiters(self, error: Exception) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.future.done():
                waiter.future.set_exception(error)

    # ---- what holds ----

    async def _wait_out_pause(self) -> None:
        """Wait for the end of the pause, and for an operator who ends it sooner."""
        while (left := self._paused_until - self._clock.now()) > 0:
            await self._clock.sleep(min(left, _LOOK_S))
            now = self._clock.now()
            looking = self._looking is not None and not self._looking.done()
            # All who wait here share a look.
            if self._paused_until > now and (looking or now - self._looked_at >= _LOOK_S / 2):
                await self._look()

    def _look_soon(self) -> None:
        """Where nothing is reserved, see now and then whether that still holds."""
        if self._clock.now() - self._looked_at >= _LOOK_S:
            self._begin_to_look()

    async def _look(self) -> None:
        await asyncio.shield(self._begin_to_look())

    def _begin_to_look(self) -> asyncio.Task[None]:
        if self._looking is None or self._looking.done():
            self._looked_at = self._clock.now()
            self._looking = asyncio.create_task(self._look_once())
            # Who does not wait for it meets the same ledger at the next admission.
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._looking

    async def _look_once(self) -> None:
        passed, self._passed = self._passed, 0
        try:
            terms = await self._writer.post(LOOK, Look(self.key, passed))
        except BaseException:
            self._passed += passed
            raise
        self._take_terms(terms, terms.read_at)

    def _take_terms(self, terms: Terms, ledger_now: float) -> None:
        now = self._clock.now()
        self._offset_s = min(self._offset_s, now - ledger_now)
        if terms.read_at <= self._terms.read_at:
            return
        self._looked_at = now
        self._terms = terms
        # An operator may have ended a pause: what the ledger says holds, later or sooner.
        self._paused_until = self._here(terms.paused_until)
        self._apply()

    def _settle_own(self) -> None:
        """What this run works with has changed: tell the others."""
        per_header = Rates(
            *(self._by_header.get(dimension) for dimension in DIMENSIONS),
            sources=(Source.HEADER,) * len(DIMENSIONS),
        )
        learned = Rates(self._learned, sources=(Source.LEARNED,) * len(DIMENSIONS))
        self._own = lowest(self._given, per_header, learned)
        self._declare()
        self._apply()

    def _declare(self) -> asyncio.Future[None]:
        # What was read before may hold this run's own former limit.
        self._terms = Terms(self._terms.by_hand, paused_until=self._terms.paused_until)
        return self._writer.post(DECLARE, Declare(self.key, self._owner_id, self._own))

    def _apply(self) -> None:
        own = self._own.amounts
        self._limits: Amounts = self._terms.limits_of(own)
        requests, input_tokens, output_tokens, per_day, concurrent = self._limits
        self._per_second = (
            None if requests is None else requests / 60.0,
            None if input_tokens is None else input_tokens / 60.0,
            None if output_tokens is None else output_tokens / 60.0,
        )
        paced = any(rate is not None for rate in self._per_second)
        self._free = not paced and per_day is None
        self._late_s = _tolerated_lateness_s(requests) if paced else math.inf
        # Near the end of a day each request counts: none is taken that may not be used.
        ahead = 0.0 if requests is None or per_day is not None else requests / 60.0 * _AHEAD_S
        self._ahead = min(int(ahead), _MAX_AHEAD)
        self._slots.limit(own, limited=concurrent is not None)

    def _lowered(self, dimension: str, place: int, limit: float) -> str | None:
        given = self._given.amounts[place]
        if given is None or limit >= given or dimension in self._said:
            return None
        self._said.add(dimension)
        return (
            f"{self.key.model} allows {limit:,.0f} {UNITS[dimension]}, by its own headers: that "
            f"holds, not the {given:,.0f} of the {self._given.sources[place].value}."
        )

    def _here(self, ledger_time: float) -> float:
        """A ledger time by this host's clock."""
        return ledger_time + (self._offset_s if math.isfinite(self._offset_s) else 0.0)

    def _ledger_now(self) -> float:
        return self._clock.now() - (self._offset_s if math.isfinite(self._offset_s) else 0.0)


def _tolerated_lateness_s(requests_per_min: float | None) -> float:
    """Half the spacing of two requests, which a bucket of two forgives.

    Where requests may follow each other within a few milliseconds, buckets are deep and an event
    loop is never that punctual: a quarter of a second is tolerated.
    """
    if requests_per_min is None or requests_per_min >= _DEEP_BUCKET_PER_MIN:
        return 0.25
    return max(0.02, 30.0 / requests_per_min)
