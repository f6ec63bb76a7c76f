"""Which requests a fault rule hits. What the fault then does: `answers`, `work`, `server`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from batch_pipeline.simulator.config import (
    ANSWER_FAULTS,
    JOB_FAULTS,
    WIRE_FAULTS,
    FaultRule,
    Lane,
)
from batch_pipeline.simulator.draws import draw
from batch_pipeline.simulator.items import Item


@dataclass(frozen=True)
class Verdict:
    """What goes wrong with one request: one fault of the whole reply, else faults of its items."""

    whole: FaultRule | None = None
    items: tuple[FaultRule, ...] = ()

    @property
    def kind(self) -> str | None:
        """Name of what went wrong, for the journal."""
        if self.whole:
            return self.whole.kind
        return "+".join(rule.kind for rule in self.items) or None

    def billed(self, default: bool) -> bool:
        """Say whether the attempt is charged; a rule that says so wins."""
        said = [
            r.billed for r in (self.whole, *self.items) if r is not None and r.billed is not None
        ]
        return said[0] if said else default


class FaultPlan:
    """The rules and their counters.

    A draw depends on seed, rule, body and how often that body was seen, on nothing else: the order
    of arrival changes nothing, and a re-ask is drawn anew.
    """

    def __init__(self, rules: tuple[FaultRule, ...], seed: str) -> None:
        self._rules = rules
        self._seed = seed
        self._in_scope: Counter[int] = Counter()
        self._hits: Counter[int] = Counter()
        self._seen: Counter[str] = Counter()

    def judge(
        self,
        *,
        provider: str,
        model: str,
        key: str,
        body_sha: str,
        text: str,
        items: Sequence[Item],
        written: Collection[str],
        lane: Lane = "realtime",
    ) -> Verdict:
        """Draw what goes wrong with an admitted request or a line of a batch job.

        `written` has the kinds of what is written in the right answer, see `config`.
        """
        if not self._rules:
            return Verdict()
        self._seen[body_sha] += 1
        item_texts = [item.text for item in items]
        voters = {item.voter for item in items}
        item_rules = []
        for index, rule in enumerate(self._rules):
            per_item = rule.kind in ANSWER_FAULTS
            where = item_texts if per_item and item_texts else [text, *item_texts]
            if rule.kind in JOB_FAULTS or rule.lane not in (None, lane):
                continue
            if not rule.suits(written, voters):
                continue
            if lane == "batch" and rule.kind in WIRE_FAULTS:
                # A line has no connection that could break.
                continue
            if not self._hit(index, rule, provider, model, key, body_sha, where):
                continue
            if not per_item:
                return Verdict(whole=rule)
            item_rules.append(rule)
        return Verdict(items=tuple(item_rules))

    def strike(
        self,
        kinds: Collection[str],
        provider: str,
        model: str,
        key: str,
        seen: str,
        text: str,
        lane: Lane | None = None,
    ) -> FaultRule | None:
        """Return the first rule of these kinds that hits a call.

        Args:
            kinds: of faults.
            provider: whose API was called.
            model: that it is about, where it is known.
            key: of the call.
            seen: name of the call: draws depend on it and on how often it was seen.
            text: what `match` is searched in.
            lane: rules for another one do not count; None where a call has none.
        """
        counted = False
        for index, rule in enumerate(self._rules):
            if rule.kind not in kinds or (lane and rule.lane not in (None, lane)):
                continue
            if rule.voter is not None:
                continue  # of votes, and this call is none
            if not counted:
                self._seen[seen] += 1
                counted = True
            if self._hit(index, rule, provider, model, key, seen, [text]):
                return rule
        return None

    def _hit(
        self,
        index: int,
        rule: FaultRule,
        provider: str,
        model: str,
        key: str,
        seen: str,
        where: Iterable[str],
    ) -> bool:
        """Say whether a rule hits, and count it."""
        if not rule.covers(provider, model, key):
            return False
        if rule.match is not None and not any(rule.match in x for x in where):
            return False
        self._in_scope[index] += 1
        if self._in_scope[index] < rule.after:
            return False
        if rule.count is not None and self._hits[index] >= rule.count:
            return False
        if rule.share is not None and draw(self._seed, index, seen, self._seen[seen]) >= rule.share:
            return False
        self._hits[index] += 1
        return True
