"""Which day it is for a provider: daily limits and budgets turn over in its reset zone.

What belongs here: zones and days. What does not: what is counted per day (reservation.py,
ledger/spend.py).
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

RESET_ZONES = {"google": "America/Los_Angeles"}
"""Providers whose day does not turn over at midnight UTC."""

_SLOT_S = 900
"""A quarter of an hour: every zone's midnight falls on one, so a day never changes within it."""


@lru_cache
def reset_zone(provider: str) -> ZoneInfo:
    """The zone whose midnight resets a provider's daily limits; UTC for a workload's own budget."""
    return ZoneInfo(RESET_ZONES.get(provider, "UTC"))


def day_of(provider: str, at: float) -> str:
    """The provider's day (YYYY-MM-DD) at `at` (UTC seconds)."""
    return _day(provider, int(at // _SLOT_S))[0]


def next_day_at(provider: str, at: float) -> float:
    """When the provider's next day begins, in UTC seconds."""
    return _day(provider, int(at // _SLOT_S))[1]


@lru_cache(maxsize=256)
def _day(provider: str, slot: int) -> tuple[str, float]:
    zone = reset_zone(provider)
    today = datetime.fromtimestamp(slot * _SLOT_S, zone).date()
    midnight = datetime.combine(today + timedelta(days=1), time(), zone)
    return today.isoformat(), midnight.astimezone(UTC).timestamp()
