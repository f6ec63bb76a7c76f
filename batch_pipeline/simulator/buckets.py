"""Strict token buckets per provider, key and model, refilled continuously by the caller's clock.

What does not live here: how a provider says no (`wire`).
"""

from __future__ import annotations

from dataclasses import dataclass

from batch_pipeline.simulator.config import Limit

_TOLERANCE = 1e-6


class Bucket:
    """One token bucket; full at the start.

    A cost above the capacity is admitted when the bucket is full and leaves a debt: otherwise it
    could never pass.
    """

    def __init__(self, per_minute: float, capacity: float | None, now: float) -> None:
        self.per_minute = per_minute
        self.capacity = per_minute if capacity is None else capacity
        self._level = self.capacity
        self._at = now

    def level(self, now: float) -> float:
        """Return what is left at a moment."""
        self._level = min(self.capacity, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def wait_s(self, cost: float, now: float) -> float:
        """Return the seconds until `cost` would be admitted; 0 when it is now."""
        missing = min(cost, self.capacity) - self.level(now)
        # The tolerance absorbs float rounding of a client that arrives exactly on time.
        return missing * 60 / self.per_minute if missing > _TOLERANCE else 0.0

    def take(self, cost: float, now: float) -> None:
        """Take `cost` out."""
        self._level = self.level(now) - cost

    def full_in_s(self, now: float) -> float:
        """Return the seconds until the bucket is full again."""
        return (self.capacity - self.level(now)) * 60 / self.per_minute


@dataclass(frozen=True)
class Gauge:
    """What one limit looks like from outside, for the headers."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True)
class Excess:
    """Which limit a request broke, what it is, and how long to wait.

    Attributes:
        name: requests, input_tokens, output_tokens, concurrent or requests_per_day.
    """

    name: str
    limit: int
    wait_s: float


class Buckets:
    """All limits of one provider+key+model."""

    def __init__(self, limit: Limit, now: float) -> None:
        self.limit = limit
        self.in_flight = 0
        self._day = ""
        self._today = 0
        self._buckets = {
            "requests": Bucket(limit.requests_per_minute, limit.request_capacity, now),
            "input_tokens": Bucket(limit.input_tokens_per_minute, limit.input_token_capacity, now),
            "output_tokens": Bucket(
                limit.output_tokens_per_minute, limit.output_token_capacity, now
            ),
        }

    def admit(
        self,
        *,
        input_tokens: int,
        output_tokens: int,
        now: float,
        day: str = "",
        day_ends_in_s: float = 0.0,
    ) -> Excess | None:
        """Take a request's cost from every bucket, or from none and say which one refused."""
        if day != self._day:
            self._day, self._today = day, 0
        daily = self.limit.requests_per_day
        if daily is not None and self._today >= daily:
            return Excess("requests_per_day", daily, day_ends_in_s)
        costs = {"requests": 1, "input_tokens": input_tokens, "output_tokens": output_tokens}
        if self.in_flight >= self.limit.concurrent:
            return Excess("concurrent", self.limit.concurrent, 1.0)
        waits = {name: self._buckets[name].wait_s(cost, now) for name, cost in costs.items()}
        worst = max(waits, key=lambda name: waits[name])
        if waits[worst] > 0:
            return Excess(worst, int(self._buckets[worst].per_minute), waits[worst])
        for name, cost in costs.items():
            self._buckets[name].take(cost, now)
        self._today += 1
        return None

    def gauges(self, now: float) -> dict[str, Gauge]:
        """Return limit, remaining and time to full of each bucket."""
        return {
            name: Gauge(int(b.per_minute), max(0, int(b.level(now))), b.full_in_s(now))
            for name, b in self._buckets.items()
        }
