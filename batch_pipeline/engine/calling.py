"""One request on its way: which upstream, when, at what risk, and what came of it.

What belongs here: the order of admission, retries after passing failures, fallback along the
route. What does not: settling (settling.py), what is asked again after a bad answer (recovery.py),
where rows come from (engine.py), how they end (finishing.py).

A request's way: choose an upstream -> slot -> limiter -> write the attempt ahead, within every
budget -> send -> settle with the raw reply -> validate -> store results -> finish the items.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from batch_pipeline.engine.answers import Answers
from batch_pipeline.engine.finishing import Finisher
from batch_pipeline.engine.records import Asked, Built, Flight, Member, Trip
from batch_pipeline.engine.settling import Settler
from batch_pipeline.engine.state import RunState
from batch_pipeline.engine.upstream import Route, Upstream, budgets_of, choose
from batch_pipeline.ledger.calls import (
    ADMIT,
    NewAttempt,
    Settlement,
)
from batch_pipeline.ledger.spend import Balance, Scope, Short, may_ease, read_balance
from batch_pipeline.ledger.tables import AttemptState
from batch_pipeline.limits.adaptive import Change
from batch_pipeline.limits.days import next_day_at
from batch_pipeline.limits.limiter import DayLimitReached, Ticket
from batch_pipeline.pricing.tokens import estimate_body_tokens
from batch_pipeline.providers.base import (
    ErrorKind,
    LlmRequest,
    ProviderError,
    WireReply,
)
from batch_pipeline.providers.preflight import Target, check_endpoints
from batch_pipeline.providers.transport import Transport

_REFUSED_ALONE = 3
_ROOM_POLL_S = 0.25
_CHOICE_POLL_S = 1.0

_KEY_STATUSES = frozenset({401, 402, 403})
"""Fatal statuses that speak of the key: every model that is called with it is affected."""


class Caller:
    """Asks packs, one request each.

    Args:
        state: the run.
        transport: sends the calls.
        finisher: ends rows.
        upstreams: every endpoint that a row of the run may ask.
        rng: jitter.
    """

    def __init__(
        self,
        state: RunState,
        transport: Transport,
        finisher: Finisher,
        upstreams: Sequence[Upstream],
        rng: random.Random,
    ) -> None:
        self._state = state
        self._transport = transport
        self._finisher = finisher
        self._upstreams = upstreams
        self._rng = rng
        self._settings = state.job.settings
        self._clock = state.clock
        self._attempt_count = 0
        self._request_count = 0
        # Answers of one moment are worked off one by one, between sends: the wire comes first.
        self._desk = asyncio.Lock()
        self._ready: deque[asyncio.Future[None]] = deque()
        self._room = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._early_look: asyncio.Future[None] | None = None
        self._settler = Settler(state, finisher)
        self.short: Short | None = None

    async def ask(
        self, pack: list[Member], reason: str, parent: str | None, last_round: bool
    ) -> Asked:
        """Send one request, again after passing failures, and settle it.

        Members that it answers are finished.
        """
        opening = self._state.opening
        if opening is not None and not opening.done():
            await asyncio.wait([opening])
        self._request_count += 1
        name = f"{self._state.owner.owner_id}-r{self._request_count}"
        trip = Trip(name, parent, reason)
        built: dict[str, Built] = {}
        error: ProviderError | None = None
        while True:
            upstream = await self._next(pack[0].route, trip)
            if upstream is None:
                if self._state.stopping or error is None:
                    self._leave(pack)
                    return Asked(pack, ended=True)
                return self._outage(pack, error, last_round)
            if upstream.label not in built:
                built[upstream.label] = self.build(pack, upstream)
            probe = trip.probe = upstream.breaker.state != "closed"
            upstream.breaker.begin(self._clock.now())
            answer = None
            try:
                answer = await self._attempt(pack, trip, upstream, built[upstream.label])
            finally:
                if probe and not isinstance(answer, Answers | ProviderError):
                    upstream.breaker.give_up()
            if answer is None:
                continue
            if isinstance(answer, Answers):
                bad = [pack[place] for place in sorted(answer.problems)]
                return Asked(bad, failure=answer.failure, request_id=trip.request_id)
            if isinstance(answer, Short):
                asked = await self._no_room(answer, pack, upstream)
                if asked is not None:
                    return asked
                continue
            error = answer
            kind = error.kind.value
            errors = self._state.tally.errors
            errors[kind] = errors.get(kind, 0) + 1
            if error.kind is ErrorKind.BATCH_FATAL:
                self._give_up_on(upstream, error)
            elif error.kind is ErrorKind.RATE_LIMITED:
                await self._obey(upstream, trip, error)
            elif error.kind is ErrorKind.TRANSIENT:
                await self._back_off(upstream, trip, pack[0].route, error)
            else:
                return self._spoiled(pack, upstream, error, trip.request_id)

    # ---- which upstream ----

    async def _next(self, route: Route, trip: Trip) -> Upstream | None:
        """The upstream to call now, after waiting for one; None when there is none."""
        tries = self._settings.transient_tries
        first = route[0]
        if first.ready and not trip.tries and not self._state.stopping:
            self._state.note = ""
            return first
        while not self._state.stopping:
            exhausted = [one for one in route if trip.tries.get(one.label, 0) >= tries]
            now = self._clock.now()
            choice = choose(route, exhausted, now, self._settings.patience_s)
            if choice.upstream is not None:
                if self._settings.check_keys and not choice.upstream.looked:
                    await self.look_at_keys()
                    continue
                self._state.note = ""
                return choice.upstream
            if choice.wait_s == float("inf"):
                if all(one.dead for one in route):
                    self._leave_behind(route)
                return None
            left = [one for one in route if not one.dead and one not in exhausted]
            if all(one.quota_until > now for one in left):
                if all(one.dead or one.quota_until > now for one in self._upstreams):
                    self._state.run_out(*left[0].quota_why)
                else:
                    # Rows with another route go on.
                    self._state.left_behind = self._state.left_behind or left[0].quota_why
                return None
            self._check_outage(left, now)
            self._state.note = (
                f"{' and '.join(one.label for one in left)} do not answer: "
                f"trying again in {choice.wait_s:.0f} s"
            )
            await self._state.wait(min(choice.wait_s, _CHOICE_POLL_S))
        return None

    def look_ahead(self) -> None:
        """There will be calls: look at the keys meanwhile."""
        if self._settings.check_keys and self._early_look is None:
            self._early_look = asyncio.ensure_future(self.look_at_keys())

    async def close(self) -> None:
        """End what nobody waits for any more."""
        if self._early_look is not None:
            self._early_look.cancel()
            await asyncio.gather(self._early_look, return_exceptions=True)

    async def look_at_keys(self) -> None:
        """Ask, without spending, whether keys and models are good, all upstreams at once."""
        async with self._looking:
            fresh = [one for one in self._upstreams if not one.looked]
            if not fresh:
                return
            self._state.note = "looking at keys and models"
            targets = {
                one.label: Target(
                    one.endpoint.provider,
                    one.endpoint.model,
                    one.endpoint.key,
                    one.endpoint.key_id,
                    one.endpoint.base_url,
                )
                for one in fresh
            }
            found = await check_endpoints(self._transport, targets.values())
            problems = {one.target: one.message for one in found if one.is_problem}
            for upstream in fresh:
                upstream.looked = True
                message = problems.get(targets[upstream.label])
                if message is not None:
                    upstream.dead = (
                        f"{message} Rows not done stay pending. Check the key, the model name and "
                        "the account (`batch-pipeline keys check`), then run again."
                    )
                    self._state.log.event(
                        "upstream given up", model=upstream.label, message=message
                    )

    def _leave_behind(self, route: Route) -> None:
        """Nobody is left to ask these rows: they stay pending; others may go on."""
        message = " ".join(one.dead for one in route)
        self._state.left_behind = self._state.left_behind or ("stopped", message)
        if all(one.dead for one in self._upstreams):
            self._state.stop_for_good(message)

    def _check_outage(self, left: Sequence[Upstream], now: float) -> None:
        since = [one.breaker.down_since for one in left]
        bound = self._settings.max_outage_s
        if all(at is not None and now - at > bound for at in since):
            names = " and ".join(one.label for one in left)
            self._state.stop_for_good(
                f"{names} has not answered for {bound:,.0f} s. Rows not done stay pending; "
                "run again later."
            )

    def _give_up_on(self, upstream: Upstream, error: ProviderError) -> None:
        """Every call to this upstream would fail the same way."""
        message = fatal_message(upstream.label, error)
        of_key = error.status in _KEY_STATUSES or "API_KEY" in error.code
        for one in self._upstreams:
            same_key = (one.endpoint.provider, one.endpoint.key_id) == (
                upstream.endpoint.provider,
                upstream.endpoint.key_id,
            )
            if (one is upstream or (of_key and same_key)) and not one.dead:
                one.dead = message
                one.send_on()
                self._state.log.event("upstream given up", model=one.label, message=message)

    def _others(self, route: Route, upstream: Upstream) -> bool:
        """Whether the route has another upstream that is not given up."""
        return any(one is not upstream and not one.dead for one in route)

    # ---- after a failure ----

    async def _obey(self, upstream: Upstream, trip: Trip, error: ProviderError) -> None:
        """A 429: everyone pauses; uses up no try."""
        settings = self._settings
        now = self._clock.now()
        trip.refused_since = now if trip.refused_since is None else trip.refused_since
        pauses = trip.pauses.get(upstream.label, 0)
        trip.pauses[upstream.label] = pauses + 1
        pause = upstream.pause_s
        if pause is None:
            pause = min(settings.max_backoff_s, 2.0**pauses) * self._rng.uniform(0.5, 1.0)
        if max(pause, now - trip.refused_since) > settings.max_pause_s:
            message = (
                f"{upstream.label} asks to wait {pause:,.0f} s: {error.message} "
                "Rows not done stay pending; run again later."
            )
            upstream.quota_until = now + pause
            upstream.quota_why = ("stopped", message)
            if all(one.dead or one.quota_until > now for one in self._upstreams):
                self._state.stop_for_good(message)
            return
        if pause > 0:
            await upstream.gate.pause(pause, error.message)

    async def _back_off(
        self, upstream: Upstream, trip: Trip, route: Route, error: ProviderError
    ) -> None:
        """A passing failure: wait before the same upstream is called again."""
        settings = self._settings
        tries = trip.tries.get(upstream.label, 0) + 1
        trip.tries[upstream.label] = tries
        if tries >= settings.transient_tries:
            return
        chosen = choose(route, (), self._clock.now(), settings.patience_s).upstream
        if chosen is not None and chosen is not upstream:
            return
        longest = min(settings.max_backoff_s, settings.backoff_s * 2.0**tries)
        asked = min(error.retry_after_s or 0.0, settings.max_pause_s)
        await self._state.wait(max(self._rng.uniform(0.0, longest), asked))

    def _leave(self, pack: list[Member]) -> None:
        """Nobody is to be asked: rows of a pack stay pending."""
        self._state.leave(pack)
        if not self._state.stopping:
            # The same question by another route, which waits for this one, may be asked.
            for member in pack:
                self._state.close(member.key)
            self._finisher.release([member.key for member in pack])

    def _outage(self, pack: list[Member], error: ProviderError, last_round: bool) -> Asked:
        names = " and ".join(one.label for one in pack[0].route if not one.dead)
        for member in pack:
            member.error = f"{names} did not answer: {error.message}"
            member.refused = False
        self._state.leave(pack)
        if last_round:
            for member in pack:
                self._finisher.failed(member, ErrorKind.TRANSIENT.value)
        else:
            self._state.put_off.append(pack)
        return Asked(pack, ended=True)

    def _spoiled(
        self, pack: list[Member], upstream: Upstream, error: ProviderError, request_id: str
    ) -> Asked:
        """The request was refused for what is in it: find the row, or, if it is alone, end it."""
        for member in pack:
            member.asks += 1
            member.error = error.message
            member.refused = error.kind is ErrorKind.REFUSED
        if len(pack) == 1 and error.kind is ErrorKind.ITEM_PERMANENT:
            self._finisher.failed(pack[0], error.kind.value, upstream.label)
            upstream.refused_alone += 1
            if not upstream.answered and upstream.refused_alone >= _REFUSED_ALONE:
                # Nothing was ever answered and row after row is refused: the request is at fault.
                upstream.dead = fatal_message(upstream.label, error)
                if all(one.dead for one in self._upstreams):
                    self._state.stop_for_good(upstream.dead)
            return Asked(pack, ended=True)
        return Asked(pack, failure=error.message, request_id=request_id)

    # ---- budgets ----

    async def _no_room(self, short: Short, pack: list[Member], upstream: Upstream) -> Asked | None:
        """No budget has room for the pack now.

        Wait for calls in flight to settle for less than their worst case; when none is in flight,
        ask smaller packs; when not even one row fits, the budget is reached.

        Returns:
            What to do with the pack; None: try again.
        """
        if short.may_ease:
            await self._wait_for_room(short)
            return None
        if len(pack) > 1:
            return Asked(pack, too_dear=True)
        self.short = short
        if short.budget.account.scope is Scope.PROVIDER and self._others(pack[0].route, upstream):
            # Another provider may have a budget left.
            provider = upstream.endpoint.provider
            for one in self._upstreams:
                if one.endpoint.provider == provider:
                    one.quota_until = next_day_at(provider, self._clock.now())
                    one.quota_why = ("budget", "")
            return None
        self._state.run_out("budget", "")
        return Asked(pack, ended=True)

    async def _wait_for_room(self, short: Short) -> None:
        """Wait until the budget has room for what did not fit, or nothing is in flight on it."""
        account = short.budget.account
        need = short.worst_nano
        # One at a time: who waits behind would be refused as well.
        async with self._room:
            while not self._state.stopping:
                self._settler.settled_one.clear()
                balance, easing = await asyncio.to_thread(self._read_room, account)
                if balance.taken + need <= short.budget.limit_nano or not easing:
                    return
                waiter = asyncio.ensure_future(self._settler.settled_one.wait())
                try:
                    await asyncio.wait([waiter], timeout=_ROOM_POLL_S)
                finally:
                    waiter.cancel()

    def _read_room(self, account: Any) -> tuple[Balance, bool]:
        ledger = self._state.ledger
        with ledger.read() as connection:
            balance = read_balance(connection, account)
            return balance, may_ease(connection, ledger.now(connection), account)

    # ---- one wire call ----

    async def _attempt(
        self, pack: list[Member], trip: Trip, upstream: Upstream, built: Built
    ) -> Answers | ProviderError | Short | None:
        """One wire call: wait for a turn, write it ahead, send, settle.

        None: it was not sent; try again.
        """
        per_item = upstream.of_step(pack[0].step).output_per_item
        ticket = await self._turn(upstream, built.input_tokens, per_item * len(pack))
        if ticket is None:
            return None
        try:
            return await self._send(pack, trip, upstream, built, ticket)
        finally:
            upstream.gate.leave()

    async def _send(
        self, pack: list[Member], trip: Trip, upstream: Upstream, built: Built, ticket: Ticket
    ) -> Answers | ProviderError | Short | None:
        """Write a call ahead at its turn, send it, settle it."""
        self._attempt_count += 1
        attempt_id = f"{self._state.owner.owner_id}-{self._attempt_count}"
        attempt = self._new_attempt(attempt_id, pack, trip, upstream, built, ticket)
        admission = await self._state.writer.post(ADMIT, attempt)
        upstream.learn_pause(admission.pause, self._clock.now())
        if not admission.admitted:
            upstream.gate.give_up(ticket)
            return admission.short
        if upstream.gate.missed(ticket):
            self._settler.settle(Settlement(attempt_id, AttemptState.REFUNDED, 0))
            return None
        left = ticket.go_at - self._clock.now()
        if left > 0:
            await self._clock.sleep(left)
        await self._wire_slot()
        unwanted = upstream.is_left and not (trip.probe and not upstream.dead)
        if self._state.stopped_short or unwanted or upstream.gate.paused_s() > 0:
            # Meanwhile another call has learned that none should be sent.
            self._leave_wire()
            upstream.gate.give_up(ticket)
            self._settler.settle(Settlement(attempt_id, AttemptState.REFUNDED, 0))
            return None
        self._settler.count_attempt(pack, ticket, first=not trip.sent)
        trip.sent = True
        flight = Flight(
            attempt_id, pack, upstream, ticket, built.call, attempt.worst_nano, self._clock.now()
        )
        self._note_changes(upstream, upstream.sending(flight.began))
        wire: WireReply | None = None
        try:
            wire = await self._transport.send(
                built.call, timeout_s=pack[0].step.timeout_s, request_id=attempt_id
            )
            reply = upstream.endpoint.codec.read(wire)
        except ProviderError as error:
            self._failed(flight, error, wire)
            return error
        finally:
            self._leave_wire()
        flight.latency_s = self._clock.now() - flight.began
        self._answered(flight, wire)
        try:
            await self._desk.acquire()
        except asyncio.CancelledError:
            # It is paid: whatever becomes of the run, it is kept.
            self._settler.reply(flight, reply, wire)
            raise
        try:
            return self._settler.reply(flight, reply, wire)
        finally:
            self._desk.release()

    async def _wire_slot(self) -> None:
        """Wait until one more call may be on the wire, and count it."""
        state = self._state
        if state.in_flight < state.wire_limit and not self._ready:
            state.in_flight += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._leave_wire()
            raise

    def _leave_wire(self) -> None:
        state = self._state
        state.in_flight -= 1
        while self._ready and state.in_flight < state.wire_limit:
            waiter = self._ready.popleft()
            if not waiter.done():
                # The place is taken from here on, not when the waiter gets to run.
                state.in_flight += 1
                waiter.set_result(None)

    async def _turn(
        self, upstream: Upstream, input_tokens: int, output_tokens: float
    ) -> Ticket | None:
        """Wait at the gate for a slot and a turn; None when there is none to be had now."""
        state, gate = self._state, upstream.gate
        task = asyncio.current_task()
        assert task is not None
        state.before_send.add(task)
        entered = False
        try:
            upstream.waiting.add(task)
            await gate.enter()
            entered = True
            return await gate.acquire(input_tokens, output_tokens)
        except BaseException as error:
            if entered:
                gate.leave()
            if isinstance(error, DayLimitReached):
                upstream.quota_until = error.resets_at
                upstream.quota_why = ("daily_limit", str(error))
                state.log.event("daily limit reached", model=upstream.label, message=str(error))
                return None
            # Not `is_left`: it may answer again before who was sent on gets to run.
            expected = state.stopping or task not in upstream.waiting
            if not isinstance(error, asyncio.CancelledError) or not expected:
                raise
            task.uncancel()
            return None
        finally:
            state.before_send.discard(task)
            upstream.waiting.discard(task)

    def _note_changes(self, upstream: Upstream, changes: Sequence[Change | None]) -> None:
        """Log how limits moved, and let more workers start where more may fly."""
        moved = [change for change in changes if change is not None]
        for change in moved:
            self._state.log.event(
                "limit changed",
                model=upstream.label,
                before=change.before,
                after=change.after,
                reason=change.reason,
            )
        if moved:
            self._state.on_capacity()

    def _answered(self, flight: Flight, wire: WireReply) -> None:
        upstream = flight.upstream
        self._note_changes(upstream, upstream.served(self._clock.now(), flight.began))
        self._observe(upstream, wire)
        if upstream.breaker.succeeded():
            self._state.log.event("breaker closed", model=upstream.label)

    def _observe(self, upstream: Upstream, wire: WireReply) -> None:
        """Take note of the limits that a reply's headers name."""
        signals = upstream.endpoint.codec.rate_signals(wire.headers)
        if signals is not None:
            said = upstream.gate.observe(signals, upstream.in_flight)
            if said:
                self._state.note = said
                self._state.log.event("limit changed", model=upstream.label, reason=said)

    def _failed(self, flight: Flight, error: ProviderError, wire: WireReply | None) -> None:
        """Tell breaker, ledger and log of a call without a usable reply."""
        upstream, now = flight.upstream, self._clock.now()
        if error.kind is ErrorKind.RATE_LIMITED:
            changes = upstream.refused(now, flight.began, error.retry_after_s)
            self._note_changes(upstream, changes)
        elif error.kind is ErrorKind.TRANSIENT:
            upstream.struggled(now)
        else:
            self._note_changes(upstream, upstream.served(now, flight.began))
        if wire is not None:
            self._observe(upstream, wire)
        if error.kind is ErrorKind.TRANSIENT:
            opened = upstream.breaker.failed(now, flight.began)
        elif error.kind is ErrorKind.RATE_LIMITED:
            others = self._others(flight.pack[0].route, upstream)
            opened = upstream.breaker.refused(now, flight.began, may_open=others)
        else:
            # It answers, if not as we wish.
            upstream.breaker.succeeded()
            opened = False
        if opened:
            upstream.send_on()
            wait_s = round(upstream.breaker.wait_s(now), 1)
            self._state.log.event(
                "breaker opened", model=upstream.label, wait_s=wait_s, message=error.message
            )
        flight.latency_s = now - flight.began
        self._settler.error(flight, error, wire)

    def build(self, pack: list[Member], upstream: Upstream) -> Built:
        """The call for a pack."""
        step = pack[0].step
        note = "; ".join(
            f"earlier answer for id {place}: {member.error}"
            for place, member in enumerate(pack)
            if member.asks and member.error and not member.refused
        )
        bound = step.output_tokens_base + step.output_tokens_per_item * len(pack)
        if any(member.asks for member in pack):
            # The earlier answer may have been cut at the bound.
            bound *= 2
        user = step.user_message([member.content for member in pack], note[:1_000])
        request = LlmRequest(
            model=upstream.endpoint.model,
            system=step.system_prompt,
            user=user,
            schema=step.request_schema,
            schema_name=step.name,
            max_output_tokens=bound,
            temperature=step.temperature,
            web_search=step.web_search,
        )
        endpoint = upstream.endpoint
        call = endpoint.codec.build(request, key=endpoint.key, base_url=endpoint.base_url)
        learned = upstream.of_step(step)
        if learned.fixed_tokens is None:
            empty = replace(request, user=step.user_message([]))
            body = endpoint.codec.build(empty, key="", base_url=endpoint.base_url).body
            learned.fixed_tokens = estimate_body_tokens(body)
        estimated = learned.fixed_tokens + sum(member.tokens for member in pack)
        return Built(call, len(user.encode()), estimated, bound)

    def _new_attempt(
        self,
        attempt_id: str,
        pack: list[Member],
        trip: Trip,
        upstream: Upstream,
        built: Built,
        ticket: Ticket,
    ) -> NewAttempt:
        job, endpoint, now = self._state.job, upstream.endpoint, self._clock.now()
        realm = self._state.ledger.realm
        members = [[member.rows[0][1].ordinal, member.key] for member in pack]
        workload_day, provider_day = upstream.days(now)
        spending = self._settings.spending
        return NewAttempt(
            attempt_id=attempt_id,
            realm=realm,
            workload=job.workload,
            step=pack[0].step.name,
            batch_id=job.batch_id,
            run_id=job.run_id,
            request_id=trip.request_id,
            parent_request_id=trip.parent,
            reason="retry" if trip.sent else trip.reason,
            provider=endpoint.provider,
            model=endpoint.label,
            key_id=endpoint.key_id,
            lane="realtime",
            owner_id=self._state.owner.owner_id,
            item_count=len(pack),
            members=orjson.dumps(members).decode(),
            estimated_input_tokens=built.input_tokens,
            worst_nano=upstream.worst_nano(
                pack[0].step, len(built.call.body), built.user_bytes, built.output_bound, now
            ),
            rate_wait_s=ticket.waited_s,
            workload_day=workload_day,
            provider_day=provider_day,
            timeout_s=pack[0].step.timeout_s,
            budgets=budgets_of(spending, realm, job.workload, job.batch_id, upstream, now)
            if spending.bounded
            else (),
        )


def fatal_message(label: str, error: ProviderError) -> str:
    """What to tell of an upstream that refuses every call."""
    status = f"HTTP {error.status}: " if error.status else ""
    return (
        f"{label} refuses every call ({status}{error.message}). Nothing more is sent to it; rows "
        "not done stay pending. Check the key, the model name and the account "
        "(`batch-pipeline keys check`), then run again."
    )
