"""How long the topics of a batch took, by the calls that the ledger has.

What belongs here: that one pass over a batch's attempts. What does not: what they cost (items).
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import orjson
import sqlalchemy as sa

from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import AttemptState, attempts

_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class TopicTimes:
    """Times of a batch's rows by ordinal: 16 bytes a row, so that memory stays flat.

    Attributes:
        began: UTC seconds of a row's first call; NaN where none was made for it.
        worked: seconds from first call to last, summed over the runs that made them.
    """

    began: array[float]
    worked: array[float]

    def started_at(self, ordinal: int) -> float | None:
        """When a row was asked about first; None where stored answers were enough."""
        began = self.began[ordinal]
        return None if math.isnan(began) else began

    def duration_s(self, ordinal: int) -> float:
        """Seconds that a row took."""
        return self.worked[ordinal]


def read_times(ledger: Ledger, batch_id: str, rows: int) -> TopicTimes:
    """The times of a batch.

    Args:
        ledger: the ledger.
        batch_id: the batch.
        rows: how many it has.
    """
    nothing = array("d", [math.nan]) * rows
    began, worked = nothing[:], array("d", bytes(8 * rows))
    first, last = nothing[:], nothing[:]
    statement = (
        sa.select(attempts.c.run_id, attempts.c.members, attempts.c.sent_at, attempts.c.settled_at)
        .where(
            attempts.c.realm == ledger.realm,
            attempts.c.batch_id == batch_id,
            # what was never sent is no call
            attempts.c.state != AttemptState.REFUNDED.value,
        )
        .order_by(attempts.c.run_id, attempts.c.sent_at)
    )

    def close_run() -> None:
        for ordinal, start in enumerate(first):
            if not math.isnan(start):
                worked[ordinal] += last[ordinal] - start

    run_id = ""
    with ledger.read() as connection:
        streamed = connection.execution_options(yield_per=_PAGE).execute(statement)
        for row in streamed:
            if row.run_id != run_id:
                close_run()
                first, last, run_id = nothing[:], nothing[:], row.run_id
            end = row.sent_at if row.settled_at is None else row.settled_at
            for ordinal, _ in orjson.loads(row.members):
                if math.isnan(first[ordinal]):
                    first[ordinal] = row.sent_at
                last[ordinal] = end if math.isnan(last[ordinal]) else max(last[ordinal], end)
                if not began[ordinal] <= row.sent_at:
                    began[ordinal] = row.sent_at
    close_run()
    return TopicTimes(began, worked)
