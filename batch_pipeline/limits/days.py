"""Which day it is for a provider: daily limits and budgets turn over in its reset zone.

What belongs here: zones and days. What does not: what is counted per day (limiter.py,
ledger/spend.py).
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

RESET_ZONES = {"google": "America/Los_Angeles"}
"""Providers whose day does not turn over at midnight UTC."""


@lru_cache
def reset_zone(provider: str) -> ZoneInfo:
    """The zone whose midnight resets a provider's daily limits; UTC for a workload's own budget."""
    return ZoneInfo(RESET_ZONES.get(provider, "UTC"))


def day_of(provider: str, at: float) -> str:
    """The provider's day (YYYY-MM-DD) at `at` (UTC seconds)."""
    return datetime.fromtimestamp(at, reset_zone(provider)).date().isoformat()


def next_day_at(provider: str, at: float) -> float:
    """When the provider's next day begins, in UTC seconds."""
    zone = reset_zone(provider)
    tomorrow = datetime.fromtimestamp(at, zone).date() + timedelta(days=1)
    return datetime.combine(tomorrow, time(), zone).astimezone(UTC).timestamp()
