"""So many rows of a batch a day: what is left of today, and what a run may still ask.

What belongs here: the knob `items_per_day`. What does not: requests a day, which the provider or an
operator sets for a key (limits/).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from batch_pipeline.ledger.asked import rows_asked_since
from batch_pipeline.ledger.batches import count_outcomes
from batch_pipeline.ledger.jobs import rows_under_way
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.limits.days import next_day_at
from batch_pipeline.workloads.config import WorkloadConfig

_DAY_S = 86_400.0
_UTC = ""  # a workload's own day, which is no provider's


@dataclass(frozen=True, slots=True)
class Today:
    """A batch's share of today.

    Attributes:
        allowed: rows that may be asked about in a day.
        asked: rows that were asked about today.
        left: rows that are still to be asked about; those in provider jobs are not.
        resets_at: when the next day begins, in UTC seconds.
    """

    allowed: int
    asked: int
    left: int
    resets_at: float

    @property
    def room(self) -> int:
        """Rows that may still be asked about today."""
        return max(0, self.allowed - self.asked)

    @property
    def is_full(self) -> bool:
        """Whether rows wait for no other reason than the day."""
        return self.left > 0 and self.room == 0

    @property
    def words(self) -> str:
        """What to tell the user of a full day."""
        again = datetime.fromtimestamp(self.resets_at, UTC).strftime("%Y-%m-%d %H:%M")
        asked = min(self.asked, self.allowed)
        return (
            f"{asked:,} of {self.allowed:,} items of today are done; {self.left:,} left, again "
            f"after {again} UTC."
        )


def read_today(ledger: Ledger, batch_id: str, config: WorkloadConfig) -> Today | None:
    """How far a batch is through today; None where nothing bounds its day."""
    if config.items_per_day is None:
        return None
    with ledger.read() as connection:
        resets_at = next_day_at(_UTC, ledger.now(connection))
        asked = rows_asked_since(connection, ledger.realm, batch_id, resets_at - _DAY_S)
        outcomes = count_outcomes(connection, ledger.realm, batch_id)
        under_way = rows_under_way(connection, ledger.realm, batch_id)
    open_rows = outcomes[Outcome.PENDING] + outcomes[Outcome.FAILED]
    if config.include_blocked:
        open_rows += outcomes[Outcome.BLOCKED]
    return Today(config.items_per_day, asked, max(0, open_rows - under_way), resets_at)


def keep_to_day(ledger: Ledger, batch_id: str, config: WorkloadConfig) -> WorkloadConfig:
    """The run's options with `limit` lowered to what is left of today.

    A limit of 0 asks nothing: stored answers are still taken, and provider jobs still collected.
    """
    today = read_today(ledger, batch_id, config)
    if today is None:
        return config
    room = today.room if config.limit is None else min(config.limit, today.room)
    return config.with_options({"limit": room})
