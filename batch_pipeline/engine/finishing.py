"""How rows and chunks end: what each came to is written, then counted, then told.

What belongs here: outcomes, their writes and the events that follow. What does not: what a reply
says (answers.py), settling its attempt (calling.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from batch_pipeline.engine.job import ChunkDone, FailedRow
from batch_pipeline.engine.records import ChunkState, Finished, Member, Newest, share_of
from batch_pipeline.engine.state import RunState
from batch_pipeline.engine.step import Done
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.batches import (
    FINISH_ITEMS,
    REFUSED,
    UNLEASE_CHUNK,
    FinishItems,
    Item,
    ItemOutcome,
    Unlease,
)
from batch_pipeline.ledger.calls import RELEASE, ReleaseKeys, StoredResult, Unanswered
from batch_pipeline.ledger.jobs import Line
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.providers.base import Usage

_MAX_FAILED_SHOWN = 20


class ChunkHeldError(BatchPipelineError):
    """Another run holds a chunk, and did not let go of it within the bound."""


_WENT_WELL = Done()

Ending = tuple[FinishItems, ChunkState, list[Finished]]
"""One write, the chunk that it touches, and the rows that it ends."""


class Finisher:
    """Ends rows and chunks of one run.

    Args:
        state: the run.
    """

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._realm = state.ledger.realm

    # ---- rows ----

    def cached(self, member: Member, hit: StoredResult, line: Line | None = None) -> None:
        """End a member with an answer that was stored before.

        Args:
            member: the question.
            hit: the answer.
            line: the line of this batch's own provider job that it came from: the row that it was
                asked for has paid, and is no cache hit.
        """
        asked = {} if line is None else dict(line.members)
        last = self._state.job.is_last(member.step)
        entries: list[Finished] = []
        for state, item in member.rows:
            paid = line is not None and asked.get(item.ordinal) == member.key
            if line is not None and paid:
                self._count_line(state, item.ordinal, line)
                if not last:
                    state.paid.add(item.ordinal)
                    self._carry(state, item, _share(line, item.ordinal))
            if not last:
                continue
            entries.append(
                (
                    state,
                    item,
                    ItemOutcome(
                        ordinal=item.ordinal,
                        outcome=Outcome.SUCCEEDED,
                        cached=not paid,
                        cache_key=member.key,
                        model=hit.model,
                        attempt_id=hit.attempt_id,
                        cost_nano=_share(line, item.ordinal) if line is not None and paid else 0,
                    ),
                )
            )
        if not last:
            self.through(member, hit.output, Newest(member.key, hit.model, hit.attempt_id))
            return
        self._finish(entries)

    def through(
        self, member: Member, output: dict[str, Any] | None, newest: Newest | None = None
    ) -> None:
        """Bring a member's rows on to their next step.

        Args:
            member: the question of the step that they are through.
            output: its answer; None where there is none, and the rows go on without.
            newest: where that is stored.
        """
        for state, item in member.rows:
            state.outputs.setdefault(item.ordinal, {})[member.step.name] = output
            if newest is not None:
                state.newest[item.ordinal] = newest
                state.models.setdefault(item.ordinal, {})[member.step.name] = newest.model
            route = state.routes.get(item.ordinal, member.route)
            self._state.advanced.append((state, item, route, member.step))
        self._state.close(member.key)
        self._state.on_advance()

    @staticmethod
    def _carry(state: ChunkState, item: Item, cost_nano: int) -> None:
        """Note what a row has cost that is not at its end, to be written with its outcome."""
        state.carried_nano[item.ordinal] = state.carried_nano.get(item.ordinal, 0) + cost_nano

    def at_its_end(self, state: ChunkState, item: Item, done: Done = _WENT_WELL) -> None:
        """End a row that has no step before it, or that a local step has ended.

        Args:
            state: its chunk.
            item: the row.
            done: what its last local step said of it.
        """
        newest = state.newest.get(item.ordinal)
        good = done.outcome is Outcome.SUCCEEDED
        outcome = ItemOutcome(
            ordinal=item.ordinal,
            outcome=done.outcome,
            cached=good and item.ordinal not in state.paid,
            cache_key=None if newest is None else newest.cache_key,
            model=None if newest is None else newest.model,
            attempt_id=None if newest is None else newest.attempt_id,
            error_kind=None if good else done.kind,
            error=None if good else f"Row {item.number} ({item.item_id}): {done.message}",
            ask_anew=done.ask_anew and not good,
            kept_steps={step: item.fresh_at(step) for step in done.keep},
        )
        self._finish([(state, item, outcome)])

    def costs_of(self, members: Iterable[Member]) -> list[Unanswered]:
        """Notes of what members cost that are not at their end: their first rows have paid."""
        return [
            Unanswered(self._realm, state.chunk.batch_id, item.ordinal, "", "", member.cost_nano)
            for member in members
            for state, item in member.rows[:1]
        ]

    @staticmethod
    def _count_line(state: ChunkState, ordinal: int, line: Line) -> None:
        """Count a row's share of its line for its chunk; the run counted it when it was read."""
        count = len(line.members)
        usage = Usage(
            input_tokens=line.input_tokens,
            cached_input_tokens=line.cached_input_tokens,
            output_tokens=line.output_tokens,
        )
        state.tally.add_usage(usage, line.cost_nano / count, 1.0 / count)
        if line.members[0][0] == ordinal:
            state.tally.requests += 1
            state.tally.attempts += 1

    def under_way(self, member: Member) -> None:
        """A provider job asks about a member: this run has nothing more to do with it."""
        self._state.close(member.key)
        for state, item in member.rows:
            if self.leave_pending(state, item):
                state.under_way += 1
                self._state.under_way += 1
                self.close_if_done(state)

    def wait_for_room(self, member: Member) -> None:
        """There is no room for a member in a provider job: it is asked by another run."""
        if self._state.close(member.key) is not None:
            self.release([member.key])
        for state, item in member.rows:
            if self.leave_pending(state, item):
                self._state.waiting += 1
                self.close_if_done(state)

    def failed(self, member: Member, kind: str = "content", model: str | None = None) -> None:
        """End a member without a result; rows that share the question end with it."""
        if self._state.close(member.key) is None:
            return
        outcome = Outcome.BLOCKED if member.refused else Outcome.FAILED
        self.release([member.key])
        if member.step.optional:
            state, item = member.rows[0]
            self._carry(state, item, member.cost_nano)
            self._state.log.event(
                "gone on without an answer",
                item=item.item_id,
                step=member.step.name,
                kind=kind,
                message=member.error,
            )
            self.through(member, None)
            return
        self._finish(
            [
                (
                    state,
                    item,
                    ItemOutcome(
                        ordinal=item.ordinal,
                        outcome=outcome,
                        cache_key=member.key,
                        model=model or member.route[0].label,
                        error_kind=REFUSED if member.refused else kind,
                        error=f"Row {item.number} ({item.item_id}): {member.error}",
                        cost_nano=member.cost_nano if rank == 0 else 0,
                    ),
                )
                for rank, (state, item) in enumerate(member.rows)
            ]
        )

    def unusable(self, state: ChunkState, item: Item, problem: str, kind: str = "route") -> None:
        """End a row that asks for something that cannot be done."""
        if item.ordinal in state.over:
            return
        state.over.add(item.ordinal)
        error = f"Row {item.number} ({item.item_id}): {problem}"
        self._finish(
            [
                (
                    state,
                    item,
                    ItemOutcome(item.ordinal, Outcome.FAILED, error_kind=kind, error=error),
                )
            ]
        )

    def endings(self, entries: list[Finished]) -> list[Ending]:
        """One write for each chunk that `entries` touch."""
        by_chunk: dict[str, list[Finished]] = {}
        for state, item, outcome in entries:
            state.outputs.pop(item.ordinal, None)
            state.newest.pop(item.ordinal, None)
            state.models.pop(item.ordinal, None)
            state.routes.pop(item.ordinal, None)
            if carried := state.carried_nano.pop(item.ordinal, 0):
                outcome = replace(outcome, cost_nano=outcome.cost_nano + carried)
            by_chunk.setdefault(state.chunk.chunk_key, []).append((state, item, outcome))
        return [
            (
                FinishItems(
                    realm=self._realm,
                    batch_id=ended[0][0].chunk.batch_id,
                    chunk_key=key,
                    fence=ended[0][0].fence,
                    outcomes=[outcome for _, _, outcome in ended],
                ),
                ended[0][0],
                ended,
            )
            for key, ended in by_chunk.items()
        ]

    def ended(self, endings: list[Ending], held: list[bool]) -> None:
        """The writes of `endings` are committed; `held` says which chunks were still ours."""
        for (_, state, entries), mine in zip(endings, held, strict=True):
            self._written(state, entries, mine)

    def count_as_done(self, state: ChunkState, item: Item) -> None:
        """Count a row that had ended before this run."""
        for tally in (state.tally, self._state.tally):
            tally.outcomes[item.outcome] += 1
            if item.outcome is Outcome.SUCCEEDED:
                tally.cache_hits += 1
        if item.outcome in (Outcome.FAILED, Outcome.BLOCKED):
            self._show_failed(state, item, item.outcome, item.error or "")

    def leave_pending(self, state: ChunkState, item: Item) -> bool:
        """Count a row that this run does not ask about, once; gives whether it was counted now."""
        if item.ordinal in state.over:
            return False
        state.over.add(item.ordinal)
        state.left -= 1
        for tally in (state.tally, self._state.tally):
            tally.outcomes[Outcome.PENDING] += 1
        return True

    def release(self, keys: Sequence[str]) -> None:
        """Give claims up without a result."""
        self._state.post(RELEASE, ReleaseKeys(self._realm, self._state.owner.owner_id, keys))

    def _finish(self, entries: list[Finished]) -> None:
        """Write what items came to without a call of their own; counts move once committed."""
        for request, state, ended in self.endings(entries):
            self._state.post(FINISH_ITEMS, request, partial(self._written, state, ended))

    def _written(self, state: ChunkState, ended: list[Finished], held: bool) -> None:
        if not held:
            self._state.break_off(
                ChunkHeldError(
                    f"Chunk {state.chunk.chunk_key} was taken over by another run.",
                    "Paid answers are kept; that run finishes the chunk.",
                )
            )
            return
        for _, item, outcome in ended:
            state.left -= 1
            for tally in (state.tally, self._state.tally):
                tally.outcomes[outcome.outcome] += 1
                tally.cache_hits += outcome.cached
            if outcome.outcome is not Outcome.SUCCEEDED:
                self._show_failed(state, item, outcome.outcome, outcome.error or "")
                self._state.log.event(
                    f"item {outcome.outcome.value}",
                    chunk=state.chunk.chunk_key,
                    item=item.item_id,
                    attempt=outcome.attempt_id,
                    kind=outcome.error_kind,
                )
        self.close_if_done(state)

    def _show_failed(self, state: ChunkState, item: Item, outcome: Outcome, error: str) -> None:
        if len(state.failed) < _MAX_FAILED_SHOWN:
            state.failed.append(FailedRow(item.number, item.item_id, outcome, error))

    # ---- chunks ----

    def close_if_done(self, state: ChunkState) -> None:
        """Let a chunk go, and say so, when no row of it is left to do in this run."""
        if state.loading or state.left > 0:
            return
        state.loading = True  # closes once
        self._state.chunks_done += 1
        outcomes = state.tally.outcomes
        key = state.chunk.chunk_key
        self._state.post(
            UNLEASE_CHUNK, Unlease(self._realm, key, self._state.owner.owner_id, state.fence)
        )
        done = ChunkDone(
            chunk_key=key,
            complete=outcomes[Outcome.FAILED] == 0 and outcomes[Outcome.PENDING] == 0,
            tally=state.tally,
            failed=state.failed,
            wall_s=self._state.clock.now() - state.began,
            under_way=state.under_way,
        )
        self._state.log.event(
            "chunk done",
            chunk=key,
            complete=done.complete,
            duration_s=round(done.wall_s, 3),
            cost_usd=round(state.tally.cost_usd, 9),
            **{outcome.value: count for outcome, count in outcomes.items() if count},
        )
        self._state.emit(done)


def _share(line: Line, ordinal: int) -> int:
    """What a row bears of its line's cost."""
    place = next(at for at, (row, _) in enumerate(line.members) if row == ordinal)
    return share_of(line.cost_nano, len(line.members), place)
