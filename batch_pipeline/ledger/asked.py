"""Which rows of a batch were asked about in a span of time.

What belongs here: that one statement. What does not: what a day is (limits/days.py), what follows
from it (workloads/daily.py).
"""

from __future__ import annotations

import orjson
import sqlalchemy as sa

from batch_pipeline.ledger.tables import AttemptState, attempts


def rows_asked_since(connection: sa.Connection, realm: str, batch_id: str, since: float) -> int:
    """Different rows of a batch in calls and lines of provider jobs that were written since then.

    Rows that took a stored answer, or shared the call of an identical row, are not among them.
    """
    found: set[int] = set()
    for members in connection.execute(
        sa.select(attempts.c.members).where(
            attempts.c.realm == realm,
            attempts.c.batch_id == batch_id,
            attempts.c.sent_at >= since,
            attempts.c.state != AttemptState.REFUNDED.value,
        )
    ).scalars():
        found.update(int(ordinal) for ordinal, _ in orjson.loads(members))
    return len(found)
