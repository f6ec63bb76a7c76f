"""What a local step is told of its row, and what it may use of the run.

What belongs here: these two. What does not: steps (step.py), running them (local.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from batch_pipeline.clock import Clock
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.search.base import SearchAnswer, SearchQuery


@dataclass(frozen=True, slots=True)
class Place:
    """Which row a local step is at work on.

    Attributes:
        batch_id: the batch.
        batch_created_at: when it was ingested (UTC seconds).
        ordinal: the row's place in the batch, from 0.
        number: the row's number as users count, from 1.
        item_id: the row's id.
        run_id: the run.
        model: `provider/model` that gave the row's newest answer; empty before the first one.
        models: step -> `provider/model` that answered it, of the LLM steps that the row has passed
            (not of those before a checkpoint that it went on behind).
    """

    batch_id: str
    batch_created_at: float
    ordinal: int
    number: int
    item_id: str
    run_id: str
    model: str = ""
    models: Mapping[str, str] = field(default_factory=dict)


class Tools(Protocol):
    """What a local step may use; bound to the run's realm.

    Attributes:
        ledger: the ledger.
        clock: the run's clock.
        simulator: the simulator's address in the simulated realm, else None.
    """

    ledger: Ledger
    clock: Clock
    simulator: str | None

    async def search(self, provider: str, query: SearchQuery, place: Place) -> SearchAnswer:
        """Ask a search provider, through cache, single flight, limiter, budget and ledger.

        Raises:
            SearchUnavailableError: there is no key, or the provider refuses every call.
            ProviderError: this query cannot be answered.
        """
        ...
