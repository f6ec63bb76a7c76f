"""Limits that nobody told us: the rate is found by what is refused, the concurrency follows it.

What belongs here: the pure arithmetic of both; every method is told the time. What does not:
turns and pauses (limiter.py), workers (engine).

How the rate is found: a bucket that refuses holds less than one request. So between two refusals
it gave out what it was filled with: accepted calls divided by the time between them is the rate
to within one call, however deep the bucket. After a refusal the `Pacer` paces at that rate and
climbs slowly at first, then faster (a cubic), until the next refusal makes the figure sharper.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_WINDOW = 64.0
"""A rate is measured over about so many accepted calls: sharp to 2 %, and soon forgotten."""

_FIRST_WINDOW = 8.0
"""What the first guess is worth: the bucket's depth and other processes are in it."""

_MIN_WINDOW = 3.0

_SAME = 0.8
_FALLS = 4
_IGNORED = 64
"""So many falls one after the other, with calls accepted in between, and the next refusals are not
about the rate."""


_DEPTH = 2.0
"""What a shallow bucket makes good of a pause, in calls."""

_STEEP = 1.5
"""From here on two rates are not the same."""

_STEP = 1.02
"""The least rise that is worth telling the other processes."""

_FALL = 0.97
_DOUBT = 0.7
_COLLAPSE = 0.25
"""How far the rate falls on a refusal at least; when nothing was accepted since the last one; at
most, and when that happens again."""

_REACH = 1.6
_REACH_TOGETHER = 1.15
"""How far above the rate that was really driven it may climb, alone and with other processes."""

_FORGET = 0.9
_MAX_SHARERS = 64.0

_HEADROOM = 1.25
_USED = 0.8
_ASSUMED_LATENCY_S = 1.0
_LATENCIES = 64
_LATENCIES_PER_LOOK = 16
_HOLD_S = 1.0
_NAMED = 4.0
"""In a storm, a rate below a call in so many of the waits that the provider names falls no more."""
_STORM = 3
"""More refusals in a row than this, with nothing accepted in between, are one."""


@dataclass(frozen=True, slots=True)
class Change:
    """A limit moved.

    Attributes:
        before: what it was; None is no limit.
        after: what it is now.
        reason: why, for the log.
    """

    before: float | None
    after: float
    reason: str


@dataclass(slots=True)
class _Mark:
    """A refusal: the bucket was empty at `at`, and `taken` calls had been accepted by then.

    `idle_s` is what the pauses so far lasted beyond what a shallow bucket makes good.
    """

    at: float
    taken: float
    idle_s: float = 0.0


def _between(first: _Mark, last: _Mark) -> tuple[float, float]:
    """How many calls were accepted between two refusals, and in how many seconds."""
    seconds = last.at - first.at - (last.idle_s - first.idle_s)
    return last.taken - first.taken, max(seconds, 1e-3)


class Pacer:
    """Finds the rate that one key may call one model at. Paces nothing until the first refusal.

    Calls in flight count as accepted until they are refused: refusals come quickly.

    Args:
        max_pause_s: the longest pause it proposes where the provider names none.
    """

    def __init__(self, max_pause_s: float = 30.0) -> None:
        self._max_pause_s = max_pause_s
        self._rate: float | None = None
        self._taken = 0.0
        self._weight = 1.0
        self._gap_s = 0.0
        self._began_at: float | None = None
        self._half = _Mark(0.0, 0.0)
        self._whole = _Mark(0.0, 0.0)
        self._sent_at = 0.0
        self._paused_until = 0.0
        self._idle_s = 0.0
        # The rate climbs from `_base`; `_turns` calls were sent since, `_window` says how sharp it
        # is and `_patience` what a refusal costs.
        self._base = 0.0
        self._turns = 0.0
        self._window = _FIRST_WINDOW
        self._patience = 1.0
        self._changed_at = -math.inf
        self._older = _Mark(0.0, 0.0)
        self._newer = _Mark(0.0, 0.0)
        self._last = _Mark(0.0, 0.0)
        self._in_vain = 0
        self._falls = 0
        self._fell_from = 0.0
        self._measured: float | None = None
        self._ignored = 0
        self._refusal_s = 0.0
        self._pause_s = 0.0

    @property
    def rate(self) -> float | None:
        """Requests per second to declare and reserve by; None while no limit was met."""
        return self._rate

    def sent(self, now: float, shared_rate: float | None = None) -> Change | None:
        """A call is being sent.

        Args:
            now: seconds.
            shared_rate: the rate that several processes are held to together (the lowest declared);
                None when this process is alone.

        Returns:
            A change, when nothing was refused for long enough to try a higher rate.
        """
        if shared_rate is not None and shared_rate * _STEP < (self._base or math.inf):
            return self._adopt(now, shared_rate)
        # Who waits for turns all the time knows how many the others took meanwhile.
        weight = 1.0
        if shared_rate is not None and self._rate is not None:
            quiet_since = max(self._sent_at, min(self._paused_until, now))
            weight = min(max((now - quiet_since) * shared_rate, 1.0), _MAX_SHARERS)
        if self._rate is not None:
            gap_s = now - max(self._sent_at, min(self._paused_until, now))
            self._gap_s += (gap_s / weight - self._gap_s) * min(1.0, weight / 4.0)
        self._weight += (weight - self._weight) / 8.0
        self._sent_at = now
        self._taken += weight
        if self._rate is None:
            self._remember(now)
            return None
        self._turns += weight
        return self._climb(_REACH if shared_rate is None else _REACH_TOGETHER)

    def paused(self, now: float, until: float) -> None:
        """Somebody paused this key until then; what is refused of before belongs to that volley."""
        if until > self._paused_until:
            self._changed_at = now
        self._paused_until = max(self._paused_until, until)

    def refused(self, now: float, sent_at: float, retry_after_s: float | None) -> Change | None:
        """A call was refused with a 429.

        Args:
            now: seconds.
            sent_at: when that call was sent.
            retry_after_s: how long the provider asks to wait.

        Returns:
            The change; None for a call that was sent before the last change.
        """
        self._taken -= self._weight
        self._refusal_s = max(now - sent_at, _FORGET * self._refusal_s)
        if sent_at <= self._changed_at:
            # The rest of a volley: it was not accepted after all.
            self._last.taken = min(self._last.taken, self._taken)
            self._newer.taken = min(self._newer.taken, self._taken)
            self._older.taken = min(self._older.taken, self._taken)
            self._pause_s = 0.0 if retry_after_s is None else retry_after_s
            return None
        if self._ignored > 0:
            self._ignored -= 1
            self._pause_s = self._refusal_s if retry_after_s is None else retry_after_s
            return None
        before = self._rate
        # Calls sent after the refused one belong to what follows.
        later = min((before or 0.0) * (now - sent_at), self._turns)
        taken = self._taken - later
        accepted = taken - self._last.taken
        if before is not None and accepted > 0.0:
            kept_s = _DEPTH * (sent_at - self._last.at) / accepted
            self._idle_s += max(0.0, self._pause_s - kept_s)
        here = _Mark(sent_at, taken, self._idle_s)
        if before is None:
            rate, reason = self._first_guess(now, here)
        else:
            if self._weight > _STEEP:
                # Together the lowest rate was driven, not this one.
                before = min(before, 1.0 / self._gap_s)
            rate, reason = self._measure(before, here, retry_after_s)
            # Who names a wait keeps count.
            if retry_after_s is None and self._falls_in_vain(before, rate, accepted):
                rate, reason = (
                    self._fell_from,
                    "429s that do not follow the rate: not slowed by them",
                )
        self._last = here
        self._start_from(now, rate)
        self._pause_s = self._quiet_s(rate) if retry_after_s is None else retry_after_s
        # As long as a refusal takes to arrive, or a storm would not be noticed.
        self._pause_s = max(self._pause_s, min(self._refusal_s, self._max_pause_s))
        self._patience = math.sqrt(max(1.0, self._pause_s * rate))
        return Change(before, rate, reason)

    def pause_s(self) -> float:
        """How long everybody should pause after the refusal just told; 0 is no further pause.

        The provider's Retry-After where it gave one; else one interval of the new rate, which
        quadruples while nothing is accepted between two refusals.
        """
        return self._pause_s

    def _quiet_s(self, rate: float) -> float:
        return min(self._max_pause_s, 1.0 / rate)

    def _adopt(self, now: float, shared_rate: float) -> Change:
        """Start again from what another process found."""
        before = self._rate
        if before is None:
            self._older = self._newer = self._last = _Mark(now, self._taken)
        else:
            self._grow_surer(shared_rate)
        self._taken += self._weight
        self._sent_at = now
        self._start_from(now, shared_rate)
        return Change(before, shared_rate, "another process met the limit")

    def _falls_in_vain(self, before: float, rate: float, accepted: float) -> bool:
        """Whether refusals go on at the rate that was measured, again and again.

        A limit refuses nothing of what is sent at the rate that it lets through. A server that
        refuses by chance does, and would be paced ever more slowly.
        """
        if accepted < 0.5:
            return False
        last, self._measured = self._measured, rate
        if last is None or rate >= _SAME * last:
            self._falls, self._fell_from = 0, 0.0
            return False
        self._falls += 1
        self._fell_from = max(self._fell_from, before)
        if self._falls < _FALLS:
            return False
        self._falls = 0
        self._ignored = _IGNORED
        return True

    def _start_from(self, now: float, rate: float) -> None:
        self._rate = self._base = rate
        self._turns = 0.0
        self._gap_s = 1.0 / rate
        self._changed_at = now

    def _grow_surer(self, rate: float) -> None:
        """Figures that agree make the rate surer, and the next climb gentler."""
        agree = 1.0 / _STEEP < rate / self._base < _STEEP
        self._window = min(_WINDOW, 2.0 * self._window) if agree else self._window / 2.0
        self._window = max(_FIRST_WINDOW, self._window)

    def _remember(self, now: float) -> None:
        """Keep the moments when half as many and a quarter as many calls had been sent."""
        if self._began_at is None:
            self._began_at = now
            self._half = self._whole = _Mark(now, 0.0)
        elif self._taken >= 2.0 * self._whole.taken:
            self._half, self._whole = self._whole, _Mark(now, self._taken)

    def _first_guess(self, now: float, here: _Mark) -> tuple[float, str]:
        since = self._half
        accepted = max(1.0, here.taken - since.taken)
        rate = accepted / max(now - since.at, 1e-3)
        self._older = self._newer = here
        self._window = min(max(accepted, _MIN_WINDOW), _FIRST_WINDOW)
        return rate, (
            f"first 429: {accepted:.0f} calls were accepted in the last {now - since.at:.2f} s"
        )

    def _measure(
        self, before: float, here: _Mark, retry_after_s: float | None
    ) -> tuple[float, str]:
        """The rate between two refusals, over as many calls as tell about the present."""
        if here.taken - self._last.taken < 0.5:
            self._in_vain += 1
            self._window = _MIN_WINDOW
            self._older = self._newer = here
            alone = self._weight < _STEEP
            fall = _COLLAPSE if self._in_vain > 1 and alone else _DOUBT
            rate = before * fall
            if retry_after_s and self._in_vain > _STORM:
                # A dozen such falls would stand for hours after a storm that lasted seconds.
                rate = max(rate, min(before, 1.0 / (_NAMED * retry_after_s)))
            return rate, "429 again, nothing accepted in between"
        self._in_vain = 0
        accepted, seconds = _between(self._last, here)
        if before > _STEEP * self._base and before * seconds > _STEEP * accepted:
            # It climbed so steeply that the bucket ran over on the way: the limit lies in between.
            self._older = self._newer = here
            rate = math.sqrt(before * accepted / seconds)
        else:
            accepted, seconds = _between(self._older, here)
            rate = min(accepted / seconds, before * _FALL)
            if here.taken - self._newer.taken >= _WINDOW / 2.0:
                self._older, self._newer = self._newer, here
            rate = max(rate, before * _COLLAPSE)
        self._grow_surer(rate)
        return rate, f"429: {accepted:.0f} calls were accepted in {seconds:.2f} s"

    def _climb(self, reach: float) -> Change | None:
        rate = self._rate
        assert rate is not None
        # Turns whose refusal may still be on its way prove nothing.
        proven = self._turns - rate * self._refusal_s
        if proven <= 0.0:
            return None
        share = proven / (self._window * self._patience)
        higher = self._base * (1.0 + share**3 / self._window)
        # Held down by others, or short of work: what was not tried is not known to be good.
        higher = min(higher, reach / self._gap_s)
        if higher < rate * _STEP:
            return None
        self._rate = higher
        return Change(rate, higher, f"no 429 in {self._turns:.0f} calls")


class Concurrency:
    """How many requests may be in flight, for `workers: auto`.

    Without a known rate it doubles per round trip from one, while it is used. With one it is the
    rate times the server's latency, and a little more.

    Args:
        cap: the most that may ever be in flight.
    """

    def __init__(self, cap: int) -> None:
        self._cap = max(1, cap)
        self._limit = 1.0
        self._rate: float | None = None
        self._doubling = True
        self._peak = 0
        self._round_began_at = -math.inf
        self._round_limit = 1
        self._hold_until = -math.inf
        self._shrunk_at = -math.inf
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._looked = 0
        self._latency_s = 0.0

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._limit)

    def follow(self, now: float, rate: float | None) -> Change | None:
        """The known rate in requests per second, as it counts for this key now; None is unknown."""
        if rate == self._rate:
            return None
        self._rate = rate
        if rate is None:
            return None
        target = self._target(rate)
        if target < self._limit:
            return self._move(target, self._why(rate))
        if self._latency_s == 0.0 and self._peak == 0:
            # Known from the start: turns are paced, so nothing bursts.
            return self._move(target, self._why(rate))
        return None

    def sent(self, now: float, in_flight: int) -> None:
        """A request is being sent; `in_flight` counts it."""
        self._peak = max(self._peak, in_flight)

    def accepted(self, now: float, sent_at: float) -> Change | None:
        """A request was answered.

        Args:
            now: seconds.
            sent_at: when it was sent.

        Returns:
            A change, at most one per round trip while the limit doubles.
        """
        self._learn(now - sent_at)
        used = self._peak >= _USED * self.limit
        change: Change | None = None
        if used and now >= self._hold_until:
            if self._rate is not None:
                target = self._target(self._rate)
                if target > self._limit:
                    change = self._move(target, self._why(self._rate))
            elif self._doubling:
                self._limit = min(self._limit + 1.0, self._cap)
            else:
                self._limit = min(self._limit + 1.0 / self._limit, self._cap)
        if sent_at >= self._round_began_at:
            if self._rate is None and self.limit > self._round_limit:
                change = Change(
                    self._round_limit, self.limit, f"{self._peak} were in flight, no 429"
                )
            self._round_limit = self.limit
            self._round_began_at = now
            self._peak = 0
        return change

    def refused(self, now: float, sent_at: float) -> Change | None:
        """A request was refused with a 429; those of one volley shrink the limit once."""
        self._doubling = False
        if self._rate is not None or sent_at <= self._shrunk_at:
            return None
        self._shrunk_at = now
        return self._move(max(1.0, self._limit / 2.0), "429")

    def failed(self, now: float) -> None:
        """A server error or a timeout: no growth for a while."""
        self._hold_until = now + max(_HOLD_S, 2.0 * self._latency_s)

    def _learn(self, latency_s: float) -> None:
        self._latencies.append(latency_s)
        self._looked += 1
        if self._latency_s == 0.0 or self._looked >= min(_LATENCIES_PER_LOOK, len(self._latencies)):
            self._looked = 0
            ranked = sorted(self._latencies)
            self._latency_s = max(ranked[(len(ranked) * 9) // 10], 1e-4)

    def _target(self, rate: float) -> float:
        latency_s = self._latency_s or _ASSUMED_LATENCY_S
        return float(min(self._cap, math.ceil(rate * latency_s * _HEADROOM) + 1))

    def _why(self, rate: float) -> str:
        return f"{rate:.3g} requests/s x {self._latency_s or _ASSUMED_LATENCY_S:.2f} s"

    def _move(self, limit: float, reason: str) -> Change | None:
        before = self.limit
        self._limit = limit
        self._round_limit = self.limit
        return None if self.limit == before else Change(before, self.limit, reason)
