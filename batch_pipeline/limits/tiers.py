"""What a provider grants to a key of a tier, from tiers.yaml.

What belongs here: reading and finding. What does not: the figures (tiers.yaml), and whether a
user's own limit wins (rates.py).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from batch_pipeline.errors import UsageError
from batch_pipeline.limits.rates import DIMENSIONS, Rates, Source


class TierLimits(BaseModel):
    """One entry of tiers.yaml: what a tier grants for the models that fit a pattern.

    Attributes:
        model: shell pattern for the provider's model names.
        requests: per minute.
        input_tokens: per minute.
        output_tokens: per minute.
        requests_per_day: in the provider's reset zone.
        concurrent: requests at once.
        enqueued_tokens: prompt tokens in unfinished provider jobs.
        source: where the figures were found.
        as_of: when.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    requests: float | None = Field(default=None, gt=0)
    input_tokens: float | None = Field(default=None, gt=0)
    output_tokens: float | None = Field(default=None, gt=0)
    requests_per_day: float | None = Field(default=None, gt=0)
    concurrent: float | None = Field(default=None, gt=0)
    enqueued_tokens: int | None = Field(default=None, gt=0)
    source: str
    as_of: datetime.date

    @property
    def rates(self) -> Rates:
        """The limits."""
        amounts = (getattr(self, name) for name in DIMENSIONS)
        return Rates(*amounts, sources=(Source.TIER,) * len(DIMENSIONS))


Tiers = dict[str, dict[str, tuple[TierLimits, ...]]]


@cache
def load_tiers() -> Tiers:
    """Every provider's tiers: provider, tier, entries."""
    import yaml

    text = Path(__file__).with_name("tiers.yaml").read_text(encoding="utf-8")
    return TypeAdapter(Tiers).validate_python(yaml.safe_load(text))


def find_tier(provider: str, model: str, tier: str) -> Rates | None:
    """What `tier` grants for a model; None where its limits for this model are not known.

    Args:
        provider: provider name.
        model: the provider's model name, without the provider.
        tier: its name as in tiers.yaml; case, spaces and underscores do not matter.

    Raises:
        UsageError: the provider has no such tier.
    """
    entry = _first(_entries(provider, tier), model)
    return None if entry is None else entry.rates


def find_enqueued_tokens(provider: str, model: str, tier: str) -> int | None:
    """Prompt tokens that `tier` allows in unfinished provider jobs; None where not known.

    Raises:
        UsageError: the provider has no such tier.
    """
    entry = _first(_entries(provider, tier), model)
    return None if entry is None else entry.enqueued_tokens


def _entries(provider: str, tier: str) -> tuple[TierLimits, ...]:
    tiers = load_tiers().get(provider, {})
    name = "-".join(tier.lower().replace("_", " ").split())
    if name not in tiers:
        known = ", ".join(tiers)
        raise UsageError(
            f"No tier {tier!r} of {provider} is known.",
            f"Its tiers are: {known}." if known else "Set the limits themselves, as rate_limit.",
        )
    return tiers[name]


def granted(provider: str, model: str) -> list[tuple[str, Rates]]:
    """The name and limits of every tier of a provider that says something of the model."""
    found = []
    for name, entries in load_tiers().get(provider, {}).items():
        entry = _first(entries, model)
        if entry is not None:
            found.append((name, entry.rates))
    return found


def _first(entries: Iterable[TierLimits], model: str) -> TierLimits | None:
    return next((one for one in entries if fnmatchcase(model, one.model)), None)
