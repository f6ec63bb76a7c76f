"""What local steps may use of a run, and how the engine runs them.

What belongs here: Tools, and the running of local steps. What does not: what a step does
(workloads/), search calls (searching.py).
"""

from __future__ import annotations

from typing import Protocol

from batch_pipeline.clock import Clock
from batch_pipeline.engine.step import Place
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.search.base import SearchAnswer, SearchQuery


class SearchUnavailableError(Exception):
    """A search provider cannot be asked: no key, or it refuses every call. The message says why."""


class Tools(Protocol):
    """What a local step may use; bound to the run's realm."""

    ledger: Ledger
    clock: Clock

    async def search(self, provider: str, query: SearchQuery, place: Place) -> SearchAnswer:
        """Ask a search provider, through cache, single flight, limiter, budget and ledger.

        Raises:
            SearchUnavailableError: there is no key, or the provider refuses every call.
            ProviderError: this query cannot be answered.
        """
        ...
