"""A circuit breaker: a provider that does not answer is left alone, and tried now and then.

Pure; time is passed in. What belongs here: when an upstream may be called. What does not: which
one is called instead (upstream.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens, and how long for.

    Attributes:
        failures: calls in a row that fail for passing reasons until it opens.
        refusals: rounds of 429s in a row, each sent after the pause that the one before asked for.
        cooldown_s: how long it stays open first; doubles with each probe that fails.
        max_cooldown_s: longest such time.
    """

    failures: int = 5
    refusals: int = 3
    cooldown_s: float = 5.0
    max_cooldown_s: float = 120.0


class Breaker:
    """One upstream's breaker: closed, open, or half-open while one probe is on its way.

    Args:
        rules: when it opens.
    """

    def __init__(self, rules: BreakerRules) -> None:
        self._rules = rules
        self._failures = 0
        self._refusals = 0
        self._refused_at = 0.0
        self._cooldown_s = rules.cooldown_s
        self._opened_at: float | None = None
        self._probe_at: float | None = None
        self.down_since: float | None = None

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        if self._opened_at is None:
            return "closed"
        return "open" if self._probe_at is None else "half-open"

    def wait_s(self, now: float) -> float:
        """Seconds until a call may be made: 0 when closed, or when a probe is due."""
        if self._opened_at is None:
            return 0.0
        if self._probe_at is not None:
            # The probe's own end decides; who waits looks again soon.
            return min(1.0, self._cooldown_s)
        return max(0.0, self._opened_at + self._cooldown_s - now)

    def begin(self, now: float) -> None:
        """A call is about to be made; while open, it is the probe."""
        if self._opened_at is not None:
            self._probe_at = now

    def give_up(self) -> None:
        """The call that began was not made after all."""
        self._probe_at = None

    def succeeded(self) -> bool:
        """A call was answered; gives whether that closes the breaker."""
        closes = self._opened_at is not None
        self._failures = self._refusals = 0
        self._refused_at = 0.0
        self._opened_at = self._probe_at = self.down_since = None
        self._cooldown_s = self._rules.cooldown_s
        return closes

    def failed(self, now: float, sent_at: float) -> bool:
        """A call failed for a passing reason; gives whether that opens the breaker."""
        if self._opened_at is not None:
            return self._reopen(now, sent_at)
        self._failures += 1
        if self._failures < self._rules.failures:
            return False
        return self._open(now)

    def refused(self, now: float, sent_at: float, *, may_open: bool) -> bool:
        """A call met a 429; gives whether that opens the breaker.

        Args:
            now: UTC seconds.
            sent_at: when it was sent: 429s of one moment are one.
            may_open: there is another upstream to call meanwhile.
        """
        if self._opened_at is not None:
            return self._reopen(now, sent_at)
        if sent_at >= self._refused_at:
            self._refusals += 1
            self._refused_at = now
        if not may_open or self._refusals < self._rules.refusals:
            return False
        return self._open(now)

    def _open(self, now: float) -> bool:
        self._opened_at = now
        self._probe_at = None
        if self.down_since is None:
            self.down_since = now
        return True

    def _reopen(self, now: float, sent_at: float) -> bool:
        """While open: only the probe's failure is news."""
        if self._probe_at is None or sent_at < self._probe_at:
            return False
        self._cooldown_s = min(self._rules.max_cooldown_s, 2 * self._cooldown_s)
        return self._open(now)
