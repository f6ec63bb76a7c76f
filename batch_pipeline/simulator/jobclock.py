"""The clock of batch jobs and files: real time, faster, moved ahead, or stopped.

What does not live here: the clock of rate limits, latency and the journal, which is the real one.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from batch_pipeline.simulator.config import ClockSetting


class JobClock:
    """Seconds since the epoch as the simulated providers' job desks see them; never goes back."""

    def __init__(self, setting: ClockSetting, offset_s: float = 0.0) -> None:
        self.setting = setting
        self._real = time.monotonic()
        self._at = time.time() + offset_s

    def now(self) -> float:
        """Return the job time."""
        if self.setting.frozen:
            return self._at
        return self._at + (time.monotonic() - self._real) * self.setting.speed

    @property
    def offset_s(self) -> float:
        """How far the clock is ahead of real time."""
        return self.now() - time.time()

    def configure(self, setting: ClockSetting) -> None:
        """Go on from here at another speed."""
        self._rebase(self.now())
        self.setting = setting

    def advance(self, seconds: float) -> None:
        """Move ahead."""
        self._rebase(self.now() + seconds)

    def reset(self) -> None:
        """Go back to real time."""
        self._rebase(time.time())

    def real_s(self, until: float) -> float | None:
        """Return the real seconds until a job time; None while the clock stands."""
        if self.setting.frozen:
            return None
        return max(0.0, until - self.now()) / self.setting.speed

    def _rebase(self, at: float) -> None:
        self._real, self._at = time.monotonic(), at


def rfc3339(at: float) -> str:
    """Write a time as Anthropic and Google do."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
