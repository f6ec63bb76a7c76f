"""Tokens and jobs that wait at each provider, per key and model: now, at most, and over time.

What does not live here: how a provider refuses a job above the limit (`batch_*`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from batch_pipeline.simulator.config import SimulatorConfig
from batch_pipeline.simulator.storage import Storage

Scope = tuple[str, str, str]
# Of Gemini, documented; the others bound tokens or lines instead.
_MAX_JOBS = {"google": 100}


@dataclass
class _Gauge:
    tokens: int = 0
    jobs: int = 0
    peak_tokens: int = 0
    peak_jobs: int = 0
    series: list[tuple[float, int, int]] = field(default_factory=list)

    def add(self, at: float, tokens: int, jobs: int) -> None:
        self.tokens, self.jobs = tokens, jobs
        self.peak_tokens = max(self.peak_tokens, tokens)
        self.peak_jobs = max(self.peak_jobs, jobs)
        self.series.append((at, tokens, jobs))


class Enqueued:
    """One gauge per provider, owner of the key and model."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._gauges: dict[Scope, _Gauge] = {}
        for provider, owner, model, at, tokens, jobs in storage.points():
            self._gauge((provider, owner, model)).add(at, tokens, jobs)

    def _gauge(self, scope: Scope) -> _Gauge:
        return self._gauges.setdefault(scope, _Gauge())

    def excess(self, config: SimulatorConfig, scope: Scope, tokens: int) -> str | None:
        """Name the limit that one more job with so many tokens would break, if any."""
        provider, owner, model = scope
        setting = config.batch_for(provider, model, owner)
        gauge = self._gauge(scope)
        if setting.enqueued_tokens is not None and gauge.tokens + tokens > setting.enqueued_tokens:
            return "enqueued_tokens"
        max_jobs = setting.max_jobs or _MAX_JOBS.get(provider)
        return "max_jobs" if max_jobs is not None and gauge.jobs >= max_jobs else None

    def change(self, scope: Scope, tokens: int, jobs: int, at: float) -> None:
        """Add a job and its tokens, or take them away."""
        gauge = self._gauge(scope)
        gauge.add(at, gauge.tokens + tokens, gauge.jobs + jobs)
        self._storage.note((*scope, at, gauge.tokens, gauge.jobs))

    def report(self, config: SimulatorConfig, *, series: bool) -> list[dict[str, Any]]:
        """Return every gauge beside its limits."""
        found = []
        for (provider, owner, model), gauge in sorted(self._gauges.items()):
            setting = config.batch_for(provider, model, owner)
            if not gauge.series:
                continue
            entry: dict[str, Any] = {
                "provider": provider,
                "key_last4": owner[-4:],
                "model": model,
                "limit": setting.enqueued_tokens,
                "now": gauge.tokens,
                "peak": gauge.peak_tokens,
                "max_jobs": setting.max_jobs or _MAX_JOBS.get(provider),
                "open_jobs": gauge.jobs,
                "peak_jobs": gauge.peak_jobs,
            }
            found.append(entry | {"series": list(gauge.series)} if series else entry)
        return found

    def clear(self) -> None:
        """Forget all gauges; the storage is cleared by its owner."""
        self._gauges.clear()
