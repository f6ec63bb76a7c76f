"""Packs that wait for a worker.

What belongs here: their order. What does not: what is packed (packing.py), who takes them
(engine.py).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from batch_pipeline.engine.records import Member
from batch_pipeline.engine.step import AnyStep, llm_steps


class PackQueue:
    """Packs of later steps go first: rows that are begun end before others begin.

    A run that breaks off has then paid for few rows that it did not finish. Within a step, first
    come is first served.

    Args:
        steps: of the run, in order.
    """

    def __init__(self, steps: Sequence[AnyStep]) -> None:
        self._rank = {step.name: -place for place, step in enumerate(llm_steps(steps))}
        self._waiting: asyncio.PriorityQueue[tuple[float, int, list[Member] | None]]
        self._waiting = asyncio.PriorityQueue()
        self._count = 0

    def __len__(self) -> int:
        return self._waiting.qsize()

    def put(self, pack: list[Member]) -> None:
        """Let a pack wait."""
        self._add(self._rank[pack[0].step.name], pack)

    def close(self) -> None:
        """There will be no more packs: whoever waits behind the last one gets None."""
        self._add(math.inf, None)

    async def get(self) -> list[Member] | None:
        """The next pack; None when there is none and will be none."""
        _, _, pack = await self._waiting.get()
        if pack is None:
            # for the next one who asks
            self.close()
        return pack

    def _add(self, rank: float, pack: list[Member] | None) -> None:
        self._count += 1
        self._waiting.put_nowait((rank, self._count, pack))
