"""What came of a call: its attempt is settled with everything that follows from the reply.

What belongs here: settlement, the results and finished rows that go with it, and counting. What
does not: sending and choosing (calling.py), what is asked again (recovery.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from batch_pipeline.engine.answers import Answers, read_answers
from batch_pipeline.engine.finishing import Ending, Finisher
from batch_pipeline.engine.records import (
    Finished,
    Flight,
    Member,
    Newest,
    Through,
    chunks_of,
    share_of,
)
from batch_pipeline.engine.state import RunState
from batch_pipeline.ledger.batches import ItemOutcome
from batch_pipeline.ledger.calls import SETTLE, Settlement, StoreResults
from batch_pipeline.ledger.tables import NANO, AttemptState, Outcome
from batch_pipeline.limits.limiter import Ticket
from batch_pipeline.providers.base import ProviderError, Reply, Usage, WireReply


class Settler:
    """Settles the calls of one run.

    Args:
        state: the run.
        finisher: ends rows.

    Attributes:
        settled_one: set at each settlement: a budget may have room again.
    """

    def __init__(self, state: RunState, finisher: Finisher) -> None:
        self._state = state
        self._finisher = finisher
        self.settled_one = asyncio.Event()

    def settle(
        self,
        settlement: Settlement,
        endings: list[Ending] | None = None,
        through: Sequence[Through] = (),
    ) -> None:
        """Write a settlement; tell of the rows that it ends, or brings on, once it is committed."""
        self._state.post(SETTLE, settlement, partial(self._settled, endings or [], through))

    def _settled(self, endings: list[Ending], through: Sequence[Through], held: list[bool]) -> None:
        self.settled_one.set()
        self._finisher.ended(endings, held)
        for member, output, newest in through:
            # The first row has paid; those that share its question have not.
            chunk, item = member.rows[0]
            chunk.paid.add(item.ordinal)
            self._finisher.through(member, output, newest)

    def reply(self, flight: Flight, reply: Reply, wire: WireReply) -> Answers:
        """Validate a reply and settle it with all that follows; a validator's bug loses nothing."""
        pack, attempt_id, upstream = flight.pack, flight.attempt_id, flight.upstream
        latency_s = flight.latency_s
        usage = reply.usage or Usage()
        step = pack[0].step
        upstream.learn(step, usage, len(pack))
        cost = upstream.cost_nano(usage, flight.began)
        if reply.provider_cost_usd is not None:
            cost = round(reply.provider_cost_usd * NANO)
        upstream.gate.correct(flight.ticket, usage.input_tokens, usage.output_tokens)
        self._count_usage(pack, usage, cost, latency_s)
        settlement = partial(
            Settlement,
            attempt_id=attempt_id,
            state=AttemptState.SETTLED,
            cost_nano=cost,
            status=wire.status,
            answered_model=reply.model,
            input_tokens=usage.input_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
            output_tokens=usage.output_tokens,
            thinking_tokens=usage.thinking_tokens,
            latency_s=latency_s,
            request=flight.call.body,
            reply=wire.body,
        )
        try:
            answers = read_answers(step, len(pack), reply)
        except Exception:
            # The reply is paid: keep it, so that a later run derives it once the bug is mended.
            self.settle(settlement(derived=False))
            raise
        ended, through = self._succeeded(flight, answers)
        endings = self._finisher.endings(ended)
        results = StoreResults(
            realm=self._state.ledger.realm,
            workload=self._state.job.workload,
            step=step.name,
            model=upstream.label,
            attempt_id=attempt_id,
            owner_id=self._state.owner.owner_id,
            outputs=[(pack[place].key, output) for place, output in answers.valid.items()],
        )
        self.settle(
            settlement(
                derived=not answers.problems,
                results=results,
                finished=[request for request, _, _ in endings],
                unanswered=self._finisher.costs_of(member for member, _, _ in through),
            ),
            endings,
            through,
        )
        self._log_attempt("settled", flight, latency_s, cost, problems=len(answers.problems))
        return answers

    def _succeeded(self, flight: Flight, answers: Answers) -> tuple[list[Finished], list[Through]]:
        """Mark what a reply says on its members.

        Returns:
            The rows that it ends, and the members that it brings on to their next step.
        """
        pack = flight.pack
        for place, problem in answers.problems.items():
            member = pack[place]
            member.asks += 1
            member.error = problem
            member.refused = answers.refused
        entries: list[Finished] = []
        through: list[Through] = []
        for place, output in answers.valid.items():
            member = pack[place]
            newest = Newest(member.key, flight.upstream.label, flight.attempt_id)
            if not self._state.job.is_last(member.step):
                # It stays open until that is committed, so that the run does not end before.
                through.append((member, output, newest))
                continue
            self._state.close(member.key)
            for rank, (state, item) in enumerate(member.rows):
                outcome = ItemOutcome(
                    ordinal=item.ordinal,
                    outcome=Outcome.SUCCEEDED,
                    cached=rank > 0,
                    cache_key=member.key,
                    model=flight.upstream.label,
                    attempt_id=flight.attempt_id,
                    cost_nano=member.cost_nano if rank == 0 else 0,
                )
                entries.append((state, item, outcome))
        return entries, through

    def error(self, flight: Flight, error: ProviderError, wire: WireReply | None) -> None:
        """Settle a call without a usable reply; one that may be billed is lost at its worst."""
        latency_s = flight.latency_s
        usage = error.usage or Usage()
        lost = error.maybe_billed and error.usage is None
        upstream = flight.upstream
        cost = flight.worst_nano if lost else upstream.cost_nano(usage, flight.began)
        if error.provider_cost_usd is not None:
            cost = round(error.provider_cost_usd * NANO)
        self.settle(
            Settlement(
                attempt_id=flight.attempt_id,
                state=AttemptState.LOST if lost else AttemptState.SETTLED,
                cost_nano=cost,
                status=error.status,
                error_kind=error.kind.value,
                error=error.message[:2_000],
                input_tokens=usage.input_tokens,
                cached_input_tokens=usage.cached_input_tokens,
                cache_write_tokens=usage.cache_write_tokens + usage.cache_write_1h_tokens,
                output_tokens=usage.output_tokens,
                thinking_tokens=usage.thinking_tokens,
                latency_s=latency_s,
                request=flight.call.body,
                reply=None if wire is None else wire.body,
            )
        )
        upstream.gate.correct(flight.ticket, usage.input_tokens, usage.output_tokens)
        if lost:
            self._state.tally.lost_nano += cost
        else:
            self._count_usage(flight.pack, usage, cost, latency_s)
        event = "lost" if lost else error.kind.value
        self._log_attempt(
            event, flight, latency_s, cost, status=error.status, message=error.message
        )

    def _log_attempt(
        self, event: str, flight: Flight, latency_s: float, cost_nano: int, **fields: Any
    ) -> None:
        state, item = flight.pack[0].rows[0]
        self._state.log.event(
            event,
            chunk=state.chunk.chunk_key,
            item=item.item_id,
            items=len(flight.pack),
            attempt=flight.attempt_id,
            model=flight.upstream.label,
            duration_s=round(latency_s, 4),
            cost_usd=cost_nano / NANO,
            **fields,
        )

    # ---- counting ----

    def count_attempt(self, pack: list[Member], ticket: Ticket, *, first: bool) -> None:
        """Count a call that is about to be sent."""
        tallies = [self._state.tally, *(state.tally for state in chunks_of(pack))]
        for tally in tallies:
            tally.attempts += 1
            tally.requests += first
            tally.rate_wait_s += ticket.waited_s

    def _count_usage(
        self, pack: list[Member], usage: Usage, cost_nano: int, latency_s: float
    ) -> None:
        self._state.tally.add_usage(usage, cost_nano, 1.0)
        self._state.tally.latencies_s.append(latency_s)
        for state in chunks_of(pack):
            state.tally.latencies_s.append(latency_s)
        # The stated rule: an attempt's cost is split equally over the rows it asked about; the
        # first takes the rest.
        for place, member in enumerate(pack):
            member.cost_nano += share_of(cost_nano, len(pack), place)
            member.rows[0][0].tally.add_usage(usage, cost_nano / len(pack), 1.0 / len(pack))
