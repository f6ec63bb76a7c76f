"""Search calls of a run: from the ledger where they are known, else asked once and paid once.

What belongs here: a query's way through cache, single flight, limiter and budget. What does not: a
provider's wire protocol (search/), which queries are asked (workloads/).

A search call is an attempt like any other: written ahead, settled with what it gave, counted, and
part of every budget.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import orjson

from batch_pipeline.engine.records import ChunkState
from batch_pipeline.engine.state import RunState
from batch_pipeline.engine.upstream import budgets_at
from batch_pipeline.ledger.calls import (
    ADMIT,
    BURY_DEAD,
    CLAIM,
    RELEASE,
    SETTLE,
    ClaimKeys,
    NewAttempt,
    PauseKey,
    ReleaseKeys,
    Settlement,
    StoredResult,
    StoreResults,
    Unanswered,
    find_results,
    this_host,
)
from batch_pipeline.ledger.spend import Account, Balance, Short, may_ease, read_balance
from batch_pipeline.ledger.tables import NANO, AttemptState
from batch_pipeline.limits.days import day_of
from batch_pipeline.limits.limiter import Gate, Rates, Ticket
from batch_pipeline.providers.base import ErrorKind, ProviderError, WireReply
from batch_pipeline.providers.transport import Transport
from batch_pipeline.search.base import SearchAccess, SearchAnswer, SearchProvider, SearchQuery

STEP = "search"
"""What search attempts and their results stand under."""

_PARKED_POLL_S = 0.25
_ROOM_POLL_S = 0.25
_DAY_S = 86_400.0
_MOST_PAUSES = 8
_UNKNOWN_KEY = 401


class SearchUnavailableError(Exception):
    """A search provider cannot be asked: no key, or it refuses every call. The message says why."""


class LeftPendingError(Exception):
    """The run asks nothing more (budget, stop): the row stays pending."""


class Searcher:
    """Asks search providers for the rows of one run.

    Args:
        state: the run.
        transport: sends the calls.
        rng: jitter.

    Attributes:
        short: the budget that a call did not fit into.
    """

    def __init__(self, state: RunState, transport: Transport, rng: random.Random) -> None:
        self.short: Short | None = None
        self._state = state
        self._clock = state.clock
        self._transport = transport
        self._rng = rng
        self._access: dict[str, SearchAccess | None] = {}
        self._gates: dict[PauseKey, Gate] = {}
        self._opening = asyncio.Lock()
        self._refusing: dict[str, str] = {}
        self._asking: dict[str, asyncio.Task[SearchAnswer]] = {}
        self._room = asyncio.Lock()
        self._count = 0

    async def search(
        self, provider: str, query: SearchQuery, ordinal: int, chunk: ChunkState
    ) -> SearchAnswer:
        """The answer to a query.

        Args:
            provider: whom to ask.
            query: what.
            ordinal: the row that it is for; it pays where the query is new.
            chunk: its chunk.

        Raises:
            SearchUnavailableError: there is no key, or the provider refuses every call.
            ProviderError: this query cannot be answered.
            LeftPendingError: nothing more is asked in this run.
        """
        access = self._access_to(provider)
        key = _key(access.provider, query)
        task = self._asking.get(key)
        if task is not None:
            self._needs_no_call(access.provider)
        else:
            task = asyncio.create_task(self._answer(access, query, key, ordinal, chunk))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        # Others may wait for the same answer, and what is on the wire is paid.
        return await asyncio.shield(task)

    async def finish(self) -> None:
        """Wait until nothing is on the wire."""
        while self._asking:
            await asyncio.wait(list(self._asking.values()))

    async def close(self) -> None:
        """Give back what was taken and not used."""
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        for gate in self._gates.values():
            await gate.close()

    def _answered(self, key: str, task: asyncio.Task[SearchAnswer]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            # Whoever waits for it gets it; perhaps nobody does any more.
            task.exception()

    def _needs_no_call(self, provider: SearchProvider) -> None:
        """A query is known, or is being asked already."""
        known = self._state.tally.searches_known
        known[provider.endpoint] = known.get(provider.endpoint, 0) + 1

    def _access_to(self, name: str) -> SearchAccess:
        if name not in self._access:
            self._access[name] = self._state.job.search_access(name)
        access = self._access[name]
        if access is None:
            raise SearchUnavailableError(f"there is no key for {name}")
        self._unless_refused(access)
        return access

    def _unless_refused(self, access: SearchAccess) -> None:
        for name in (access.key_id, _at(access)):
            if reason := self._refusing.get(name):
                raise SearchUnavailableError(reason)

    async def _answer(
        self, access: SearchAccess, query: SearchQuery, key: str, ordinal: int, chunk: ChunkState
    ) -> SearchAnswer:
        state, provider = self._state, access.provider
        if hit := await asyncio.to_thread(self._look_up, provider, key):
            self._needs_no_call(provider)
            return _stored(hit)
        claim = ClaimKeys(
            state.ledger.realm, state.owner.owner_id, "realtime", [key], [provider.endpoint]
        )
        while True:
            claimed = await state.writer.post(CLAIM, claim)
            hit = claimed.results.get(key)
            if hit is not None and self._is_good(provider, hit):
                if key in claimed.mine:
                    self._release([key])
                self._needs_no_call(provider)
                return _stored(hit)
            if key in claimed.mine:
                break
            await state.wait(_PARKED_POLL_S)
            self._unless_stopping()
            await state.writer.post(BURY_DEAD, this_host())
        try:
            return await self._ask(access, query, key, ordinal, chunk)
        except BaseException:
            self._release([key])
            raise

    async def _ask(
        self, access: SearchAccess, query: SearchQuery, key: str, ordinal: int, chunk: ChunkState
    ) -> SearchAnswer:
        """Ask over the wire, again after passing failures."""
        settings = self._state.job.settings
        provider = access.provider
        call = provider.codec.build(query, key=access.key, base_url=access.base_url)
        gate = await self._gate_of(access)
        self._count += 1
        request_id = f"{self._state.owner.owner_id}-s{self._count}"
        sent = tries = pauses = 0
        while True:
            self._unless_stopping()
            self._unless_refused(access)
            ticket = await self._turn(gate)
            try:
                attempt = self._new_attempt(
                    access, query, key, ordinal, ticket, request_id, sent, provider.timeout_s
                )
                if not await self._written_ahead(attempt, gate, ticket):
                    continue
                for tally in (self._state.tally, chunk.tally):
                    tally.searches += 1
                    tally.rate_wait_s += ticket.waited_s
                sent += 1
                began = self._clock.now()
                wire: WireReply | None = None
                try:
                    wire = await self._transport.send(
                        call, timeout_s=provider.timeout_s, request_id=attempt.attempt_id
                    )
                    answer = provider.codec.read(wire).within(query)
                except ProviderError as error:
                    self._failed(attempt, error, wire, call.url, began)
                    failure = error
                else:
                    self._settle(attempt, answer, wire, call.url, began, key, ordinal, chunk)
                    return answer
            finally:
                gate.leave()
            if failure.kind is ErrorKind.RATE_LIMITED and pauses < _MOST_PAUSES:
                pauses += 1
                pause = failure.retry_after_s
                if pause is None:
                    longest = min(settings.max_backoff_s, 2.0**pauses)
                    pause = longest * self._rng.uniform(0.5, 1.0)
                if pause > settings.max_pause_s:
                    asks = f"{provider.name} asks to wait {pause:,.0f} s: {failure.message}"
                    raise self._given_up(_at(access), asks, provider) from failure
                await gate.pause(pause, failure.message)
            elif failure.kind is ErrorKind.TRANSIENT and tries + 1 < settings.transient_tries:
                tries += 1
                longest = min(settings.max_backoff_s, settings.backoff_s * 2.0**tries)
                await self._state.wait(self._rng.uniform(0.0, longest))
            elif failure.kind is ErrorKind.BATCH_FATAL:
                reason = f"{provider.name} refuses every call: {failure.message}"
                # A plan may lack one endpoint; a key that is not known is known nowhere.
                name = access.key_id if failure.status == _UNKNOWN_KEY else _at(access)
                raise self._given_up(name, reason, provider) from failure
            else:
                raise failure

    def _given_up(self, name: str, reason: str, provider: SearchProvider) -> SearchUnavailableError:
        """Nothing more is asked of a key or an endpoint in this run."""
        self._refusing[name] = reason
        self._state.log.event("search given up", provider=provider.name, message=reason)
        return SearchUnavailableError(reason)

    async def _written_ahead(self, attempt: NewAttempt, gate: Gate, ticket: Ticket) -> bool:
        """Write a call ahead and wait for its very moment; False where it must wait anew."""
        admission = await self._state.writer.post(ADMIT, attempt)
        gate.learn(admission.pause)
        if not admission.admitted:
            gate.give_up(ticket)
            short = admission.short
            if short is None:
                # Somebody has paused it: the gate waits.
                return False
            if short.may_ease:
                await self._wait_for_room(short)
                return False
            self.short = short
            self._state.run_out("budget", "")
            raise LeftPendingError
        left = ticket.go_at - self._clock.now()
        if left > 0:
            await self._clock.sleep(left)
        if not self._state.stopped_short and gate.paused_s() <= 0:
            return True
        gate.give_up(ticket)
        refund = Settlement(attempt.attempt_id, AttemptState.REFUNDED, 0)
        self._state.post(SETTLE, refund)
        return False

    async def _wait_for_room(self, short: Short) -> None:
        """Wait until what is in flight has settled for less than its worst case, or is over."""
        account = short.budget.account
        # One at a time: who waits behind would be refused as well.
        async with self._room:
            while not self._state.stopping:
                balance, easing = await asyncio.to_thread(self._read_room, account)
                if balance.taken + short.worst_nano <= short.budget.limit_nano or not easing:
                    return
                await self._state.wait(_ROOM_POLL_S)

    def _read_room(self, account: Account) -> tuple[Balance, bool]:
        ledger = self._state.ledger
        with ledger.read() as connection:
            balance = read_balance(connection, account)
            return balance, may_ease(connection, ledger.now(connection), account)

    async def _turn(self, gate: Gate) -> Ticket:
        task = asyncio.current_task()
        assert task is not None
        self._state.before_send.add(task)
        entered = False
        try:
            await gate.enter()
            entered = True
            return await gate.acquire(0.0, 0.0)
        except BaseException:
            if entered:
                gate.leave()
            raise
        finally:
            self._state.before_send.discard(task)

    async def _gate_of(self, access: SearchAccess) -> Gate:
        provider = access.provider
        name = provider.limit_name
        key = PauseKey(self._state.ledger.realm, name, name, access.key_id)
        async with self._opening:
            gate = self._gates.get(key)
            if gate is None:
                gate = Gate(
                    self._state.writer,
                    self._clock,
                    key,
                    self._state.owner.owner_id,
                    Rates(provider.requests_per_minute),
                )
                await gate.open()
                self._gates[key] = gate
        return gate

    def _new_attempt(
        self,
        access: SearchAccess,
        query: SearchQuery,
        key: str,
        ordinal: int,
        ticket: Ticket,
        request_id: str,
        sent: int,
        timeout_s: float,
    ) -> NewAttempt:
        job, provider, now = self._state.job, access.provider, self._clock.now()
        realm, spending = self._state.ledger.realm, job.settings.spending
        name = provider.limit_name
        days = day_of("", now), day_of(name, now)
        return NewAttempt(
            attempt_id=f"{request_id}.{sent + 1}.{round(now * 1e3)}",
            realm=realm,
            workload=job.workload,
            step=STEP,
            batch_id=job.batch_id,
            run_id=job.run_id,
            request_id=request_id,
            parent_request_id=None,
            reason="retry" if sent else "first",
            provider=provider.limit_name,
            model=provider.endpoint,
            key_id=access.key_id,
            lane="realtime",
            owner_id=self._state.owner.owner_id,
            item_count=1,
            members=orjson.dumps([[ordinal, key]]).decode(),
            estimated_input_tokens=0,
            worst_nano=round(provider.worst_usd(query) * NANO),
            rate_wait_s=ticket.waited_s,
            workload_day=days[0],
            provider_day=days[1],
            timeout_s=timeout_s,
            budgets=budgets_at(spending, realm, job.workload, job.batch_id, name, days)
            if spending.bounded
            else (),
        )

    def _settle(
        self,
        attempt: NewAttempt,
        answer: SearchAnswer,
        wire: WireReply,
        url: str,
        began: float,
        key: str,
        ordinal: int,
        chunk: ChunkState,
    ) -> None:
        cost = attempt.worst_nano if answer.cost_usd is None else round(answer.cost_usd * NANO)
        for tally in (self._state.tally, chunk.tally):
            tally.cost_nano += cost
        paid = Unanswered(attempt.realm, attempt.batch_id, ordinal, "", "", cost)
        output: dict[str, Any] = {"results": answer.results, "facts": answer.facts}
        self._state.post(
            SETTLE,
            Settlement(
                attempt_id=attempt.attempt_id,
                state=AttemptState.SETTLED,
                cost_nano=cost,
                status=wire.status,
                answered_model=attempt.model,
                latency_s=self._clock.now() - began,
                request=url.encode(),
                reply=wire.body,
                derived=True,
                results=StoreResults(
                    realm=attempt.realm,
                    workload=attempt.workload,
                    step=STEP,
                    model=attempt.model,
                    attempt_id=attempt.attempt_id,
                    owner_id=attempt.owner_id,
                    outputs=[(key, output)],
                ),
                unanswered=[paid] if cost else [],
            ),
        )

    def _failed(
        self,
        attempt: NewAttempt,
        error: ProviderError,
        wire: WireReply | None,
        url: str,
        began: float,
    ) -> None:
        tally = self._state.tally
        tally.errors[error.kind.value] = tally.errors.get(error.kind.value, 0) + 1
        lost = error.maybe_billed
        if lost:
            tally.lost_nano += attempt.worst_nano
        self._state.post(
            SETTLE,
            Settlement(
                attempt_id=attempt.attempt_id,
                state=AttemptState.LOST if lost else AttemptState.SETTLED,
                cost_nano=attempt.worst_nano if lost else 0,
                status=error.status,
                error_kind=error.kind.value,
                error=error.message[:2_000],
                latency_s=self._clock.now() - began,
                request=url.encode(),
                reply=None if wire is None else wire.body,
            ),
        )

    def _look_up(self, provider: SearchProvider, key: str) -> StoredResult | None:
        with self._state.ledger.read() as connection:
            realm = self._state.ledger.realm
            hit = find_results(connection, realm, [key], [provider.endpoint]).get(key)
        return hit if hit is not None and self._is_good(provider, hit) else None

    def _is_good(self, provider: SearchProvider, hit: StoredResult) -> bool:
        days = provider.kept_days
        if provider.empty_kept_days is not None and not hit.output["results"]:
            days = provider.empty_kept_days
        return hit.created_at >= self._clock.now() - days * _DAY_S

    def _release(self, keys: Sequence[str]) -> None:
        realm, owner = self._state.ledger.realm, self._state.owner.owner_id
        self._state.post(RELEASE, ReleaseKeys(realm, owner, keys))

    def _unless_stopping(self) -> None:
        if self._state.stopping:
            raise LeftPendingError


def _key(provider: SearchProvider, query: SearchQuery) -> str:
    parts = [provider.endpoint, *astuple(query)]
    return hashlib.blake2b(orjson.dumps(parts), digest_size=32).hexdigest()


def _at(access: SearchAccess) -> str:
    """The key and what is called with it."""
    return f"{access.key_id} {access.provider.endpoint}"


def _stored(hit: StoredResult) -> SearchAnswer:
    return SearchAnswer(hit.output["results"], hit.output["facts"])
