"""How rows and chunks end: what each came to is written, then counted, then told.

What belongs here: outcomes, their writes and the events that follow. What does not: what a reply
says (answers.py), settling its attempt (calling.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from batch_pipeline.engine.job import ChunkDone, FailedRow
from batch_pipeline.engine.records import ChunkState, Finished, Member
from batch_pipeline.engine.state import RunState
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.batches import (
    FINISH_ITEMS,
    UNLEASE_CHUNK,
    FinishItems,
    Item,
    ItemOutcome,
    Unlease,
)
from batch_pipeline.ledger.calls import RELEASE, ReleaseKeys, StoredResult
from batch_pipeline.ledger.tables import Outcome

_MAX_FAILED_SHOWN = 20


class ChunkHeldError(BatchPipelineError):
    """Another run holds a chunk, and did not let go of it within the bound."""


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

    def cached(self, member: Member, hit: StoredResult) -> None:
        """End a member with an answer that was stored before."""
        self._finish(
            [
                (
                    state,
                    item,
                    ItemOutcome(
                        ordinal=item.ordinal,
                        outcome=Outcome.SUCCEEDED,
                        cached=True,
                        cache_key=member.key,
                        model=hit.model,
                        attempt_id=hit.attempt_id,
                    ),
                )
                for state, item in member.rows
            ]
        )

    def failed(self, member: Member, kind: str = "content", model: str | None = None) -> None:
        """End a member without a result; rows that share the question end with it."""
        if self._state.members.pop(member.key, None) is None:
            return
        outcome = Outcome.BLOCKED if member.refused else Outcome.FAILED
        self.release([member.key])
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
                        error_kind="refused" if member.refused else kind,
                        error=f"Row {item.number} ({item.item_id}): {member.error}",
                        cost_nano=member.cost_nano if rank == 0 else 0,
                    ),
                )
                for rank, (state, item) in enumerate(member.rows)
            ]
        )

    def unusable(self, state: ChunkState, item: Item, problem: str) -> None:
        """End a row that asks for something that cannot be done."""
        error = f"Row {item.number} ({item.item_id}): {problem}"
        self._finish(
            [
                (
                    state,
                    item,
                    ItemOutcome(item.ordinal, Outcome.FAILED, error_kind="route", error=error),
                )
            ]
        )

    def endings(self, entries: list[Finished]) -> list[Ending]:
        """One write for each chunk that `entries` touch."""
        by_chunk: dict[str, list[Finished]] = {}
        for entry in entries:
            by_chunk.setdefault(entry[0].chunk.chunk_key, []).append(entry)
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

    def leave_pending(self, state: ChunkState) -> None:
        """Count a row that this run does not ask about."""
        state.left -= 1
        for tally in (state.tally, self._state.tally):
            tally.outcomes[Outcome.PENDING] += 1

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
