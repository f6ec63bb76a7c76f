"""The report's people: which rows wait for their decision, and what they decided.

What belongs here: reading both from the ledger. What does not: fields (model.py), decisions
themselves (ledger/reviews.py, workloads/reviews.py), looks.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import sqlalchemy as sa

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.reviews import DecisionKind, decisions_of, waiting_rows
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import items
from batch_pipeline.reports.model import DecisionMade, Decisions, WaitingRow
from batch_pipeline.workloads.reviews import Case, read_case

MAX_WAITING = 50
MAX_DECISIONS = 200
_MAX_WHY_CHARS = 500


def read_waiting(ledger: Ledger, batch: Batch) -> list[WaitingRow]:
    """The blocked rows that wait longest."""
    with ledger.read() as connection:
        found = waiting_rows(connection, ledger.realm, batch_id=batch.batch_id, limit=MAX_WAITING)
    return [_waiting(read_case(ledger, batch, row.item)) for row in found]


def _waiting(case: Case) -> WaitingRow:
    facts = case.facts
    worst = [one for one in facts.why if one.blocks] or facts.why
    why = [f"{one.severity} {one.category}: {one.message}".strip() for one in worst]
    return WaitingRow(
        number=case.item.number,
        item_id=case.item.item_id,
        name=case.name,
        headline=facts.headline,
        why=" ".join(why)[:_MAX_WHY_CHARS],
        signoff_required=facts.signoff_required,
        since=None if case.since is None else datetime.fromtimestamp(case.since, UTC),
        command=f"batch-pipeline review show {case.batch.batch_id} {case.item.number}",
    )


def read_decisions(ledger: Ledger, batch: Batch) -> Decisions | None:
    """What people decided, of each row the last; None where they did not."""
    decided = decisions_of(ledger, batch.batch_id)
    if not decided:
        return None
    counts = Counter(one.kind for one in decided.values())
    newest = sorted(decided.values(), key=lambda one: (-one.decided_at, one.ordinal))
    newest = newest[:MAX_DECISIONS]
    with ledger.read() as connection:
        rows = {
            row.ordinal: row
            for row in connection.execute(
                sa.select(items.c.ordinal, items.c.number, items.c.item_id, items.c.outcome).where(
                    items.c.realm == ledger.realm,
                    items.c.batch_id == batch.batch_id,
                    items.c.ordinal.in_([one.ordinal for one in newest]),
                )
            )
        }
    return Decisions(
        total=len(decided),
        override=counts[DecisionKind.OVERRIDE],
        regenerate=counts[DecisionKind.REGENERATE],
        skip=counts[DecisionKind.SKIP],
        signed_off=sum(one.signed_off for one in decided.values()),
        rows=[
            DecisionMade(
                number=rows[one.ordinal].number,
                item_id=rows[one.ordinal].item_id,
                decision=one.kind.value,
                reviewer=one.reviewer,
                reason=one.reason,
                decided_at=datetime.fromtimestamp(one.decided_at, UTC),
                signed_off=one.signed_off,
                times=one.sequence,
                outcome_before=str(one.details.get("outcome", "")),
                outcome=rows[one.ordinal].outcome,
            )
            for one in newest
        ],
    )
