"""Recovery from answers that cannot be used: what is asked again, in which packs, and how often.

What belongs here: re-asking, splitting and the bounds on both. What does not: sending and settling
a request, or outages and rate limits (engine.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from batch_pipeline.engine.packing import first_split, halve, most_requests
from batch_pipeline.engine.records import Asked, Member


class Asker(Protocol):
    """Asks a pack in one request, finishes the members it answers, and says what is left."""

    async def __call__(
        self, pack: list[Member], reason: str, parent: str | None, last_round: bool
    ) -> Asked:
        """Ask.

        Args:
            pack: the members.
            reason: `first`, `retry`, `re-ask` or `split`.
            parent: the request whose answer this one repairs.
            last_round: an outage now ends the members instead of putting them off.
        """
        ...


class Recovery:
    """Asks packs until each member is finished, put off, or left pending.

    Args:
        ask: asks a pack once.
        give_up: ends a member without a result.
        stopping: whether nothing more is to be asked.
    """

    def __init__(
        self,
        ask: Asker,
        give_up: Callable[[Member], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._ask = ask
        self._give_up = give_up
        self._stopping = stopping

    async def process(self, members: list[Member], reason: str, *, last_round: bool) -> None:
        """Ask a pack and recover.

        Args:
            members: the pack.
            reason: why it is asked: `first` or `retry`.
            last_round: an outage now ends the members instead of putting them off.
        """
        again: list[tuple[list[Member], str | None]] = [(members, None)]
        while again:
            pack, parent = again.pop()
            asked = await self._ask(pack, reason, parent, last_round)
            if asked.too_dear:
                # Near the end of a budget smaller requests still fit; nothing was asked yet.
                again.extend((part, parent) for part in reversed(halve(pack)))
                continue
            if asked.ended or not asked.bad:
                continue
            reason = "re-ask"
            whole = len(asked.bad) == len(pack)
            if len(pack) > 1 and whole and (asked.failure or pack[0].asks > 1):
                again.extend(await self._isolate(pack, asked.request_id, last_round))
            else:
                left = self._worth_asking(asked.bad)
                if left:
                    again.append((left, asked.request_id))

    def _worth_asking(self, bad: list[Member]) -> list[Member]:
        """Finish members that were asked often enough; gives the others."""
        left = []
        for member in bad:
            if member.refused or member.asks >= member.step.content_tries:
                self._give_up(member)
            else:
                left.append(member)
        return left

    async def _isolate(
        self, pack: list[Member], parent: str | None, last_round: bool
    ) -> list[tuple[list[Member], str | None]]:
        """Find the members that spoil a pack; the good ones get their answers on the way.

        The pack failed as a whole, so it is never sent as it was again. Halving follows one failing
        part and sets the other part aside, to be asked in one request at the end; `most_requests`
        bounds what one bad row takes.

        Returns:
            Packs still to be asked, each with the request whose answer it repairs.
        """
        allowed = most_requests(len(pack))
        spent = 0
        later: list[tuple[list[Member], str | None]] = []
        aside: list[Member] = []

        async def ask(part: list[Member]) -> bool:
            """Whether the part failed as a whole."""
            nonlocal spent
            spent += 1
            asked = await self._ask(part, "split", parent, last_round)
            if asked.too_dear:
                later.extend((half, parent) for half in halve(part))
                return False
            if asked.ended or not asked.bad:
                return False
            if len(asked.bad) == len(part) and (asked.failure or len(part) == 1):
                return True
            left = self._worth_asking(asked.bad)
            if left:
                later.append((left, asked.request_id))
            return False

        first, second, spare = first_split(pack)
        confirmed = True
        if await ask(first):
            suspects, aside = first, second
        elif not spare:
            suspects, confirmed = second, False
        elif await ask(second):
            suspects = second
        else:
            return later
        while len(suspects) > 1 and not self._stopping():
            part, rest = halve(suspects)
            if await ask(part):
                suspects, confirmed = part, True
                aside = rest + aside
            else:
                suspects, confirmed = rest, False
        alone = suspects[0]
        if not self._stopping() and len(suspects) == 1:
            failed = confirmed or await ask(suspects)
            while failed and not alone.refused and not self._stopping():
                if alone.asks >= 3 and spent + bool(aside) >= allowed:
                    break
                if alone.asks >= alone.step.content_tries:
                    break
                failed = await ask(suspects)
            if failed and not self._stopping():
                self._give_up(alone)
        if aside:
            later.append((aside, parent))
        return later
