"""What goes into an engine run and what comes out of it: settings, events, counts.

No behaviour beyond arithmetic. What belongs here: the frozen inputs and outputs of `Engine`. What
does not: the running (engine.py, thread.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from batch_pipeline.engine.breaker import BreakerRules
from batch_pipeline.engine.step import AnyStep, Branches, Row, Step, llm_steps
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.tables import NANO, Outcome
from batch_pipeline.limits.limiter import NO_LIMITS, Rates
from batch_pipeline.providers.base import Codec, Usage
from batch_pipeline.providers.batches import BatchApi
from batch_pipeline.search.base import SearchAccess


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model that can be called: where, as whom, and in which wire protocol.

    Attributes:
        provider: provider name.
        model: the provider's model name.
        key: API key; never logged.
        key_id: shown in place of the key.
        base_url: the provider's base URL for this run.
        codec: builds calls and reads replies.
        label: `provider/model`, with the base URL where it is not the provider's own: what results
            are stored under.
        rates: the limits of its key.
        enqueued_tokens: prompt tokens that may be in its open provider jobs; None is no limit.
    """

    provider: str
    model: str
    key: str = field(repr=False)
    key_id: str
    base_url: str
    codec: Codec
    label: str
    rates: Rates = NO_LIMITS
    enqueued_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Spending:
    """What may be spent, in nano-USD; None is no bound.

    Attributes:
        batch_nano: by all runs of the batch together.
        workload_day_nano: by all batches of the workload in a day (UTC).
        provider_day_nano: with each provider in a day of its reset zone, by all workloads.
    """

    batch_nano: int | None = None
    workload_day_nano: int | None = None
    provider_day_nano: int | None = None

    @property
    def bounded(self) -> bool:
        """Whether there is any budget."""
        return (self.batch_nano, self.workload_day_nano, self.provider_day_nano) != (None,) * 3


Lane = Literal["realtime", "batch", "auto"]

SETTLE_S = 60.0
"""How long a request that creates a provider job may be under way after its process died or its
reply was lost: only then is a job that the provider does not show one that was never made."""


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """How calls travel.

    Attributes:
        lane: `realtime`, `batch`, or `auto`: each row by price and time left.
        deadline_at: for `auto`: when every row must have ended (UTC seconds).
        submit_only: nothing is collected and nothing asked in real time: rows go up, and that is
            all.
        wait: the run stays until its provider jobs have ended and are collected.
        realtime_fallback: rows that `tries` jobs did not answer are asked in real time; otherwise
            they fail.
        tries: asks of a row in provider jobs before that.
        max_jobs: open jobs of a key.
        job_items: rows in a job at most; None is 1,000, or a twentieth of the enqueued tokens.
        poll_s: seconds between looks at a job; None goes by its age.
        settle_s: how long the creation of a job may be under way unseen.
    """

    lane: Lane = "realtime"
    deadline_at: float | None = None
    submit_only: bool = False
    wait: bool = False
    realtime_fallback: bool = True
    tries: int = 2
    max_jobs: int = 90
    job_items: int | None = None
    poll_s: float | None = None
    settle_s: float = SETTLE_S


_LANE = LaneSettings()
_BREAKER_RULES = BreakerRules()


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a run goes about its work.

    Attributes:
        workers: requests in flight at once; at most so many where `adaptive`.
        adaptive: how many really fly follows the limits and what the servers say.
        spending: budgets.
        limit: ask about at most so many rows; the rest stay pending.
        include_blocked: ask blocked rows again as well.
        transient_tries: wire calls of one request that may fail for passing reasons, in each of two
            rounds.
        backoff_s: first wait after a passing failure; doubles each time, with full jitter.
        max_backoff_s: longest such wait, and longest pause after a 429 that names no time.
        max_pause_s: a provider that asks for more patience than this has its rows left pending.
        chunk_wait_s: how long to wait for a chunk that another run holds.
        drain_s: after a stop, how long calls in flight may take to come back.
        breaker: when an upstream counts as down.
        patience_s: a longer pause after a 429 is not waited for while another upstream can answer.
        max_outage_s: a run all of whose upstreams are down for longer stops, its rows pending.
        check_keys: ask each provider, without spending, whether key and model are good before the
            first call.
        lane: how calls travel.
        chunk_interval_s: rows of a chunk are not begun before so many seconds after those of the
            chunk before it. Chunks without rows to do, and those that an earlier run has begun, do
            not wait.
    """

    workers: int = 8
    adaptive: bool = False
    spending: Spending = Spending()
    limit: int | None = None
    include_blocked: bool = False
    transient_tries: int = 3
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_pause_s: float = 900.0
    chunk_wait_s: float = 60.0
    drain_s: float = 20.0
    breaker: BreakerRules = _BREAKER_RULES
    patience_s: float = 5.0
    max_outage_s: float = 300.0
    check_keys: bool = True
    lane: LaneSettings = _LANE
    chunk_interval_s: float = 0.0


RouteOf = Callable[[Row], Sequence[Endpoint] | None]
"""The endpoints that a row asks for itself; None is the run's route.

Raises:
    UsageError: what the row asks for cannot be called.
"""


OpenBatchApi = Callable[[str, str], BatchApi]
"""Opens the Batch API of a provider with the key of an id.

Raises:
    UsageError: it has none, or the environment has no such key any more.
"""


def no_batch_api(provider: str, key_id: str) -> BatchApi:
    """For jobs that nobody gave a Batch API."""
    raise UsageError(f"There is no Batch API of {provider} here.", "Use the realtime lane.")


SearchAccessOf = Callable[[str], SearchAccess | None]
"""What it takes to call a search provider of that name; None where there is no key."""


def no_search(provider: str) -> SearchAccess | None:
    """For jobs that nobody gave search providers."""
    return None


@dataclass(frozen=True, slots=True)
class Job:
    """One run over chunks of one batch.

    Attributes:
        run_id: the Dagster run's id, or any unique name.
        workload: workload name.
        batch_id: the batch.
        chunk_keys: which of its chunks.
        steps: the tasks of a row, in order; what the last one that applies to it gives is the
            row's. Branches are not the last.
        route: the models to call, in order of preference.
        settings: how.
        route_of: rows' own routes, or None where rows have none.
        used: the settings as the user knows them, kept with the run for the report.
        log_folder: where the run's log goes; None writes none.
        open_batch_api: opens the providers' Batch APIs.
        search_access: gives the keys and addresses of search providers.
        batch_created_at: when the batch was ingested (UTC seconds).
        simulator: the simulator's address in the simulated realm, else None.
    """

    run_id: str
    workload: str
    batch_id: str
    chunk_keys: Sequence[str]
    steps: Sequence[AnyStep]
    route: Sequence[Endpoint]
    settings: RunSettings
    route_of: RouteOf | None = None
    log_folder: Path | None = None
    used: dict[str, Any] = field(default_factory=dict)
    open_batch_api: OpenBatchApi = no_batch_api
    search_access: SearchAccessOf = no_search
    batch_created_at: float = 0.0
    simulator: str | None = None

    def is_last(self, step: AnyStep) -> bool:
        """Whether no row has a step after `step`."""
        return step is self.steps[-1]

    def steps_after(self, step: AnyStep | None, row: Row) -> Iterator[AnyStep]:
        """The steps that a row has still before it.

        Args:
            step: the last one that it is through; None for none.
            row: as far as it is known, with the answers of earlier steps.
        """
        place = 0 if step is None else self._place(step) + 1
        return (later for later in self.steps[place:] if later.applies(row))

    def ahead(self, step: AnyStep, row: Row) -> frozenset[str]:
        """Names of the LLM steps that a row may reach after `step`."""
        return frozenset(later.name for later in llm_steps(list(self.steps_after(step, row))))

    def branches_of(self, step: AnyStep) -> Branches | None:
        """The branches that `step` is one of; None where it stands alone."""
        found = self.steps[self._place(step)]
        return found if isinstance(found, Branches) and found is not step else None

    def _place(self, step: AnyStep) -> int:
        return next(
            at
            for at, one in enumerate(self.steps)
            if one is step or (isinstance(one, Branches) and step in one.steps)
        )

    def step_named(self, name: str) -> Step:
        """The LLM step of that name."""
        return next(step for step in llm_steps(self.steps) if step.name == name)


@dataclass(slots=True)
class Tally:
    """Counts and sums of a chunk or a run; names follow the metadata of DESIGN 8.

    Token and cost sums of a chunk are its rows' equal shares of each attempt, so that chunks add
    up to the batch; `lost_nano` is the worst case of calls whose reply never came; it is not part
    of `cost_nano`. `attempts` of a chunk counts each attempt that held one of its rows, so packs
    over two chunks count in both. `requests` and `attempts` ask models; `searches` are calls to
    search providers, whose cost, waits and errors are part of the sums; `searches_known` are
    queries that needed none, by endpoint (of a run only).
    """

    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    cache_hits: int = 0
    requests: int = 0
    attempts: int = 0
    searches: int = 0
    searches_known: dict[str, int] = field(default_factory=dict)
    input_tokens: float = 0.0
    cached_input_tokens: float = 0.0
    output_tokens: float = 0.0
    cost_nano: float = 0.0
    lost_nano: float = 0.0
    rate_wait_s: float = 0.0
    latencies_s: array[float] = field(default_factory=lambda: array("f"))
    errors: dict[str, int] = field(default_factory=dict)

    def add_usage(self, usage: Usage, cost_nano: float, share: float) -> None:
        """Add `share` of an attempt's tokens, and `cost_nano` as given."""
        self.input_tokens += usage.input_tokens * share
        self.cached_input_tokens += usage.cached_input_tokens * share
        self.output_tokens += usage.output_tokens * share
        self.cost_nano += cost_nano

    @property
    def cost_usd(self) -> float:
        """Cost in USD."""
        return self.cost_nano / NANO

    def latency_s(self, share: float) -> float:
        """The latency in seconds below which `share` of the attempts came back; 0.0 for none."""
        if not self.latencies_s:
            return 0.0
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row that did not succeed, for messages."""

    number: int
    item_id: str
    outcome: Outcome
    error: str


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """No row of this chunk is left to do in this run.

    Attributes:
        chunk_key: the chunk.
        complete: no row is failed or pending: the partition materializes.
        tally: what this run did for it; `outcomes` cover all rows of the chunk, earlier runs
            included.
        failed: some of its rows that did not succeed (the first 20).
        wall_s: from lease to last commit, in seconds.
        under_way: rows that lines of provider jobs ask about; they are among the pending ones.
    """

    chunk_key: str
    complete: bool
    tally: Tally
    failed: list[FailedRow]
    wall_s: float
    under_way: int = 0


@dataclass(frozen=True, slots=True)
class RunDone:
    """The run's last event.

    Attributes:
        status: `done`, `submitted` (rows are in provider jobs, or wait for room there),
            `interrupted` (asked to stop), `stopped` (nothing more can succeed), `budget` or
            `daily_limit` (what is left must wait for more money or for another day).
        message: why it stopped, in words; empty when done.
        tally: what this run did.
        wall_s: seconds.
        error: the exception when the engine itself failed.
    """

    status: str
    message: str
    tally: Tally
    wall_s: float
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for a progress bar.

    `chunks_done` of its `chunks` have no row left to do in this run.
    """

    total: int
    done: int
    cached: int
    failed: int
    blocked: int
    requests: int
    attempts: int
    searches: int
    cost_usd: float
    rate_wait_s: float
    in_flight: int
    note: str
    succeeded: int = 0
    chunks_done: int = 0
    chunks: int = 0


Event = ChunkDone | RunDone
