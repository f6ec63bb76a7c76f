"""What a key may do with a model, who says so, and which of two opinions counts.

What belongs here: the limits as values. What does not: how they are kept (limiter.py, slots.py),
and where a provider's tiers are written down (tiers.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

REQUESTS = "requests"
INPUT_TOKENS = "input_tokens"
OUTPUT_TOKENS = "output_tokens"
REQUESTS_PER_DAY = "requests_per_day"
CONCURRENT = "concurrent"

BUCKETS = (REQUESTS, INPUT_TOKENS, OUTPUT_TOKENS)
"""The limits per minute; each is a bucket in the ledger."""

DIMENSIONS = (*BUCKETS, REQUESTS_PER_DAY, CONCURRENT)

UNITS = {
    REQUESTS: "requests a minute",
    INPUT_TOKENS: "input tokens a minute",
    OUTPUT_TOKENS: "output tokens a minute",
    REQUESTS_PER_DAY: "requests a day",
    CONCURRENT: "requests at once",
}

Amounts = tuple[float | None, float | None, float | None, float | None, float | None]
"""One amount for each of DIMENSIONS, in its unit; None is no limit."""


class Source(StrEnum):
    """Who says what a limit is."""

    USER = "user"  # a knob of the run
    TIER = "tier"  # the provider's published limits (tiers.yaml)
    HEADER = "header"  # the provider's replies
    LEARNED = "learned"  # what 429s taught (adaptive.py)
    HAND = "hand"  # `limits set`, while it is set


_ALL_USER = (Source.USER,) * len(DIMENSIONS)


@dataclass(frozen=True, slots=True)
class Rates:
    """What one key may do with one model; None is no limit.

    Attributes:
        requests: requests per minute.
        input_tokens: prompt tokens per minute.
        output_tokens: billable output tokens per minute.
        requests_per_day: requests in a day of the provider's reset zone.
        concurrent: requests in flight at once, over all processes.
        sources: who says so, in the order of DIMENSIONS.
    """

    requests: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    requests_per_day: float | None = None
    concurrent: float | None = None
    sources: tuple[Source, ...] = field(default=_ALL_USER, kw_only=True)

    @property
    def amounts(self) -> Amounts:
        """The limits in the order of DIMENSIONS."""
        return (
            self.requests,
            self.input_tokens,
            self.output_tokens,
            self.requests_per_day,
            self.concurrent,
        )

    def source(self, dimension: str) -> Source:
        """Who says what the limit of `dimension` is."""
        return self.sources[DIMENSIONS.index(dimension)]

    @property
    def unlimited(self) -> bool:
        """Whether nothing is limited."""
        return all(amount is None for amount in self.amounts)


NO_LIMITS = Rates()


def lowest(*opinions: Rates) -> Rates:
    """The lowest limit of each dimension; of equal ones the first opinion's."""
    amounts: list[float | None] = []
    sources: list[Source] = []
    for place in range(len(DIMENSIONS)):
        found: float | None = None
        source = Source.USER
        for rates in opinions:
            amount = rates.amounts[place]
            if amount is not None and (found is None or amount < found):
                found, source = amount, rates.sources[place]
        amounts.append(found)
        sources.append(source)
    return Rates(*amounts, sources=tuple(sources))


def resolve_limits(
    user: Rates, tier: Rates | None, tier_name: str = "the tier"
) -> tuple[Rates, list[str]]:
    """A run's limits: the user's where given, else the tier's.

    Args:
        user: the knobs of the run.
        tier: what the provider grants; None where nobody said which tier it is.
        tier_name: how messages call it, for example `google tier-1`.

    Returns:
        The limits, and a warning for each knob that is above the tier's limit.
    """
    if tier is None:
        return user, []
    amounts: list[float | None] = []
    sources: list[Source] = []
    warnings = []
    for place, dimension in enumerate(DIMENSIONS):
        wanted, granted = user.amounts[place], tier.amounts[place]
        if wanted is not None and granted is not None and wanted > granted:
            warnings.append(
                f"{wanted:,.0f} {UNITS[dimension]} are more than the {granted:,.0f} of "
                f"{tier_name}: the provider may refuse calls (429) and slow the run down."
            )
        amounts.append(granted if wanted is None else wanted)
        sources.append(tier.sources[place] if wanted is None else user.sources[place])
    return Rates(*amounts, sources=tuple(sources)), warnings
