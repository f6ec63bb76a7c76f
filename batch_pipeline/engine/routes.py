"""The upstreams of one run: each made once, however many routes name it.

What belongs here: rows' routes. What does not: an upstream's own state, the choice along a route
(upstream.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from batch_pipeline.engine.finishing import Finisher
from batch_pipeline.engine.job import Endpoint
from batch_pipeline.engine.records import ChunkState
from batch_pipeline.engine.state import RunState
from batch_pipeline.engine.upstream import Route, Upstream
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Item


class Routes:
    """Routes of one run.

    Args:
        state: the run.
        finisher: ends rows whose own route cannot be used.

    Attributes:
        known: every upstream so far; grows as rows name others.
        run: the run's own route.
    """

    def __init__(self, state: RunState, finisher: Finisher) -> None:
        self._state = state
        self._finisher = finisher
        self._by_label: dict[str, Upstream] = {}
        self.known: list[Upstream] = state.upstreams
        self.run = self._of(state.job.route)

    async def of_rows(self, state: ChunkState, items: Sequence[Item]) -> list[tuple[Item, Route]]:
        """Each row's route; a row whose own route cannot be used ends here."""
        route_of = self._state.job.route_of
        if route_of is None:
            return [(item, self.run) for item in items]
        found = []
        for item in items:
            try:
                asked = route_of(item.row)
            except UsageError as error:
                self._finisher.unusable(state, item, str(error))
                continue
            route = self.run
            if asked is not None:
                before = len(self.known)
                route = state.routes[item.ordinal] = self._of(asked)
                for fresh in self.known[before:]:
                    await fresh.gate.open()
            found.append((item, route))
        return found

    def _of(self, endpoints: Sequence[Endpoint]) -> Route:
        state = self._state
        found = []
        for endpoint in endpoints:
            upstream = self._by_label.get(endpoint.label)
            if upstream is None:
                upstream = Upstream(
                    endpoint, state.ledger, state.clock, state.owner, state.job.settings
                )
                self._by_label[endpoint.label] = upstream
                self.known.append(upstream)
            found.append(upstream)
        return tuple(found)
