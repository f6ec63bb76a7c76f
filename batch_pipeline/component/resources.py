"""What assets and sensors share: settings, ledger, rate limits, engine threads, listener.

What belongs here: the resource classes. What does not: their instances (defs/resources.py), and
what they stand for (settings.py, ledger/, limits/).

Nothing is read from the environment when a resource is made: code locations load long before a run
starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg
from dagster._utils.interrupts import capture_interrupts
from pydantic import PrivateAttr

from batch_pipeline.engine.job import Endpoint, Job, Progress
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.batches import Batch, find_batch
from batch_pipeline.ledger.calls import PauseKey
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.limits.rates import BUCKETS, REQUESTS_PER_DAY, UNITS
from batch_pipeline.limits.shared import SharedKey, read_shared
from batch_pipeline.settings import Realm, Settings, load_settings
from batch_pipeline.workloads.config import WorkloadConfig
from batch_pipeline.workloads.runner import open_ledger, require_batch, simulator_url

REALMS: tuple[Realm, Realm] = ("live", "simulated")


class InstallationResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Paths, realm and simulator of this installation, as the environment has them by then."""

    def settings(self) -> Settings:
        """The settings of this moment."""
        return load_settings()

    def simulator(self, realm: Realm) -> str | None:
        """The simulator's address, started when needed; None in the live realm."""
        return simulator_url(self.settings(), realm)


class LedgerResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The ledger; a handle is always bound to one realm."""

    def open(self, realm: Realm) -> Ledger:
        """The ledger in `realm`; the caller closes it."""
        return open_ledger(load_settings(), realm)

    def find_realm(self, batch_id: str, simulate: bool | None) -> Realm:
        """Which realm is meant by a batch id.

        Args:
            batch_id: the batch.
            simulate: what the user asked for; None leaves it to where the batch exists, and where
                it exists in both to the environment.

        Raises:
            UsageError: the batch does not exist there.
        """
        wanted = load_settings().realm(simulate)
        if simulate is None:
            found = [realm for realm in REALMS if self._has(realm, batch_id)]
            if len(found) == 1:
                return found[0]
        with self.open(wanted) as ledger:
            require_batch(ledger, batch_id)
        return wanted

    def _has(self, realm: Realm, batch_id: str) -> bool:
        return self.find_batch(realm, batch_id) is not None

    def find_batch(self, realm: Realm, batch_id: str) -> Batch | None:
        """The batch, or None."""
        with self.open(realm) as ledger, ledger.read() as connection:
            return find_batch(connection, realm, batch_id)


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """What all running processes share about one key and model, at one moment.

    Attributes:
        key: limits, their sources, present use, pause and runs.
    """

    key: SharedKey

    @property
    def per_minute(self) -> dict[str, float]:
        """The limits per minute that hold, by dimension."""
        found = {name: self.key.limit(name).amount for name in BUCKETS}
        return {name: amount for name, amount in found.items() if amount is not None}

    def markdown(self) -> str:
        """A table for the UI."""
        lines = []
        for limit in self.key.limits:
            if limit.amount is None:
                continue
            if limit.free_in_s is not None:
                use = f"next free in {limit.free_in_s:.1f} s"
            else:
                use = f"{limit.used or 0:,} used"
            source = "" if limit.source is None else limit.source.value
            unit = UNITS[limit.dimension]
            lines.append(f"| {unit} | {limit.amount:,.0f} | {source} | {use} |")
        if lines:
            lines = ["| limit | amount | source | present use |", "|---|---:|---|---|", *lines]
        else:
            lines = ["No limit is set for this key and model."]
        today = self.key.limit(REQUESTS_PER_DAY)
        lines.append("")
        lines.append(f"{len(self.key.runs)} run(s) share it; {today.used or 0:,} requests today.")
        if self.key.paused_s > 0:
            end = "" if math.isinf(self.key.paused_s) else f" for {self.key.paused_s:.0f} s more"
            lines.append(f"Paused{end}: {self.key.pause_reason}")
        return "\n".join(lines)


_CEILINGS = (
    "workers",
    "rate_limit",
    "input_tokens_per_min",
    "output_tokens_per_min",
    "requests_per_day",
    "concurrent",
    "provider_budget_usd_per_day",
)


class RateLimitResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Rate limits shared by every run: this code location's ceilings, and the buckets' state.

    A ceiling holds whatever a workload's defs.yaml or a launchpad says; None is no ceiling. The
    buckets themselves are in the ledger and are moved by the engine's limiter.

    Attributes:
        workers: requests in flight at once, per run.
        rate_limit: requests per minute.
        input_tokens_per_min: prompt tokens per minute.
        output_tokens_per_min: output tokens per minute.
        requests_per_day: requests in a day of the provider's reset zone.
        concurrent: requests in flight at once, over all runs of the key.
        provider_budget_usd_per_day: USD that may be spent with each provider in a day.
    """

    workers: int | None = None
    rate_limit: float | None = None
    input_tokens_per_min: float | None = None
    output_tokens_per_min: float | None = None
    requests_per_day: int | None = None
    concurrent: int | None = None
    provider_budget_usd_per_day: float | None = None

    def apply(self, config: WorkloadConfig) -> WorkloadConfig:
        """The knobs of a run, held below the ceilings."""
        lowered = {}
        for name in _CEILINGS:
            ceiling, wanted = getattr(self, name), getattr(config, name)
            if ceiling is not None and (wanted in (None, "auto") or wanted > ceiling):
                lowered[name] = ceiling
        return config.with_options(lowered) if lowered else config

    def shared_limits(self, ledger: Ledger, endpoint: Endpoint) -> SharedLimits:
        """What the runs of all processes share about the endpoint's key and model."""
        key = PauseKey(ledger.realm, endpoint.provider, endpoint.label, endpoint.key_id)
        with ledger.read() as connection:
            return SharedLimits(read_shared(connection, ledger.now(connection), key))


class RunListener(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Hears how a run goes; a door that runs in its own process puts its own in place."""

    def progress(self, progress: Progress) -> None:
        """Called about four times a second."""

    def warn(self, text: str) -> None:
        """Called with what went wrong without hurting the run."""

    def ended(self, error: BatchPipelineError) -> None:
        """Called when a run ends with an error of ours, before Dagster turns it into text."""


class EngineRoom(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The engine threads of one run; none of them outlives it.

    Dagster tells a generator of an interrupt only while it is inside the generator. One that comes
    while Dagster stores an event just drops the generator, so the run's end is where the engine is
    stopped for certain.
    """

    _running: list[EngineThread] = PrivateAttr(default_factory=list)

    def start(self, open_ledger: Callable[[], Ledger], job: Job) -> EngineThread:
        """Start an engine run."""
        thread = EngineThread(open_ledger, job)
        self._running.append(thread)
        return thread.start()

    def ended(self, thread: EngineThread) -> None:
        """Its last event was taken."""
        self._running.remove(thread)

    def drain(self, thread: EngineThread) -> None:
        """Stop it, and wait until what is in flight is settled; nothing to do when it has ended."""
        if thread not in self._running:
            return
        self._running.remove(thread)
        # A second terminate must not cut the draining short: it would leave paid calls unsettled.
        with capture_interrupts():
            thread.stop_and_drain()

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Drain what a run has left behind."""
        for thread in list(self._running):
            self.drain(thread)
