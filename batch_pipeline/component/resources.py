"""What assets and sensors share: settings, ledger, rate limits, engine threads, listener.

What belongs here: the resource classes. What does not: their instances (defs/resources.py), and
what they stand for (settings.py, ledger/, limits/).

Nothing is read from the environment when a resource is made: code locations load long before a run
starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg
import sqlalchemy as sa
from dagster._utils.interrupts import capture_interrupts
from pydantic import PrivateAttr

from batch_pipeline.engine.job import Endpoint, Job, Progress
from batch_pipeline.engine.thread import EngineThread
from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.ledger.batches import Batch, find_batch
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import limit_rates, limits, owners, pauses
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
        per_minute: the lowest rate that a running owner declares, by dimension.
        runs: how many runs declare rates.
        busy_s: seconds until each bucket is next free, by dimension.
        paused_s: seconds that a provider's 429 still holds everyone back.
        pause_reason: what the provider said.
    """

    per_minute: dict[str, float]
    runs: int
    busy_s: dict[str, float]
    paused_s: float
    pause_reason: str

    def markdown(self) -> str:
        """A table for the UI."""
        lines = ["| limit | per minute | next free in |", "|---|---:|---:|"]
        for dimension in sorted({*self.per_minute, *self.busy_s}):
            rate = self.per_minute.get(dimension)
            shown = "-" if rate is None else f"{rate:,.0f}"
            lines.append(f"| {dimension} | {shown} | {self.busy_s.get(dimension, 0.0):.1f} s |")
        if len(lines) == 2:
            lines = ["No limit is set for this key and model."]
        lines.append("")
        lines.append(f"{self.runs} run(s) share it.")
        if self.paused_s > 0:
            lines.append(f"Paused for {self.paused_s:.0f} s more: {self.pause_reason}")
        return "\n".join(lines)


class RateLimitResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Rate limits shared by every run: this code location's ceilings, and the buckets' state.

    A ceiling holds whatever a workload's defs.yaml or a launchpad says; None is no ceiling. The
    buckets themselves are in the ledger and are moved by the engine's limiter.

    Attributes:
        workers: requests in flight at once, per run.
        rate_limit: requests per minute.
        input_tokens_per_min: prompt tokens per minute.
        output_tokens_per_min: output tokens per minute.
    """

    workers: int | None = None
    rate_limit: float | None = None
    input_tokens_per_min: float | None = None
    output_tokens_per_min: float | None = None

    def apply(self, config: WorkloadConfig) -> WorkloadConfig:
        """The knobs of a run, held below the ceilings."""
        lowered = {}
        for name in ("workers", "rate_limit", "input_tokens_per_min", "output_tokens_per_min"):
            ceiling, wanted = getattr(self, name), getattr(config, name)
            if ceiling is not None and (wanted is None or wanted > ceiling):
                lowered[name] = ceiling
        return config.with_options(lowered) if lowered else config

    def shared_limits(self, ledger: Ledger, endpoint: Endpoint) -> SharedLimits:
        """What the runs of all processes share about the endpoint's key and model."""
        with ledger.read() as connection:
            now = ledger.now(connection)
            live = sa.select(owners.c.owner_id).where(owners.c.lease_expires_at > now)
            declared = connection.execute(
                sa.select(
                    limit_rates.c.dimension, limit_rates.c.owner_id, limit_rates.c.per_second
                ).where(_of(limit_rates, ledger, endpoint), limit_rates.c.owner_id.in_(live))
            ).all()
            busy = connection.execute(
                sa.select(limits.c.dimension, limits.c.arrival_at).where(
                    _of(limits, ledger, endpoint)
                )
            ).all()
            pause = connection.execute(
                sa.select(pauses.c.paused_until, pauses.c.reason).where(
                    _of(pauses, ledger, endpoint)
                )
            ).first()
        per_minute: dict[str, float] = {}
        for dimension, _, rate in declared:
            per_minute[dimension] = min(per_minute.get(dimension, rate * 60), rate * 60)
        return SharedLimits(
            per_minute=per_minute,
            runs=len({owner for _, owner, _ in declared}),
            busy_s={dimension: max(0.0, arrival - now) for dimension, arrival in busy},
            paused_s=0.0 if pause is None else max(0.0, pause.paused_until - now),
            pause_reason="" if pause is None else pause.reason,
        )


class RunListener(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Hears how a run goes; a door that runs in its own process puts its own in place."""

    def progress(self, progress: Progress) -> None:
        """Called about four times a second."""

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


def _of(table: sa.Table, ledger: Ledger, endpoint: Endpoint) -> sa.ColumnElement[bool]:
    return sa.and_(
        table.c.realm == ledger.realm,
        table.c.provider == endpoint.provider,
        table.c.model == endpoint.label,
        table.c.key_id == endpoint.key_id,
    )
