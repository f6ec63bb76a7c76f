"""Why rows of a batch were skipped, counted.

What belongs here: reading that. What does not: deciding it (workloads), looks.
"""

from __future__ import annotations

import sqlalchemy as sa

from batch_pipeline.ledger.batches import UNCHANGED
from batch_pipeline.ledger.tables import Outcome, items
from batch_pipeline.reports.model import SkipCause

_MOST = 5
_UNCHANGED = "Unchanged since an earlier run."
_OTHER = "Other reasons."


def read_skipped(connection: sa.Connection, realm: str, batch_id: str) -> list[SkipCause]:
    """Why rows were skipped, the most frequent reasons first; at most six.

    Rows that need no work because of what came of them before are one reason, whatever came.
    """
    unchanged = items.c.error_kind == UNCHANGED
    reason = sa.case((unchanged, _UNCHANGED), else_=sa.func.coalesce(items.c.error, ""))
    count = sa.func.count()
    rows = connection.execute(
        sa.select(reason.label("reason"), count.label("rows"))
        .where(
            items.c.realm == realm,
            items.c.batch_id == batch_id,
            items.c.outcome == Outcome.SKIPPED.value,
        )
        .group_by(reason)
        .order_by(count.desc(), reason)
    ).all()
    found = [SkipCause(reason=row.reason or _OTHER, rows=int(row.rows)) for row in rows[:_MOST]]
    if rest := sum(int(row.rows) for row in rows[_MOST:]):
        found.append(SkipCause(reason=_OTHER, rows=rest))
    return found
