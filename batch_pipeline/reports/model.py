"""BatchReport: what a batch came to, as data; docs/report.md describes its JSON field by field.

What belongs here: the fields, their units and denominators. What does not: reading the ledger
(build.py), looks.

The schema is stable: fields are added, never renamed or removed, within one `schema_version`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batch_pipeline.workloads.summary import Summary

SCHEMA_VERSION: Literal["1"] = "1"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Outcomes(_Part):
    """Rows by outcome; the five add up to the rows counted."""

    succeeded: int = Field(description="Rows with a checked result.")
    blocked: int = Field(description="Rows that a person must decide: the model declined them.")
    failed: int = Field(description="Rows without a result that may be retried or corrected.")
    skipped: int = Field(
        description="Rows with nothing to ask about, and rows that a person skips."
    )
    pending: int = Field(description="Rows not done yet.")

    @property
    def total(self) -> int:
        """All rows."""
        return self.succeeded + self.blocked + self.failed + self.skipped + self.pending

    @property
    def ended(self) -> int:
        """Rows that were to be answered and have ended: succeeded, blocked or failed."""
        return self.succeeded + self.blocked + self.failed


class Tokens(_Part):
    """Tokens as the providers billed them, over all attempts that came back."""

    input: int = Field(description="Prompt tokens, cached ones and cache writes included.")
    cached_input: int = Field(description="Of `input`, read from the provider's prompt cache.")
    cache_write: int = Field(description="Of `input`, written to the provider's prompt cache.")
    output: int = Field(description="Output tokens, thinking included.")
    thinking: int = Field(description="Of `output`, thinking.")


class LatencyBucket(_Part):
    """One bar of the latency distribution."""

    from_s: float = Field(description="Lower edge in seconds, inclusive.")
    to_s: float | None = Field(description="Upper edge in seconds; null: no upper edge.")
    attempts: int = Field(description="Attempts in this bucket.")


class Latency(_Part):
    """How long real-time attempts took from sending to the whole reply; those without left out."""

    attempts: int = Field(description="Attempts measured: the denominator of the percentiles.")
    p50_s: float | None = Field(description="Half of the attempts took at most this many seconds.")
    p95_s: float | None = Field(description="95 % of the attempts took at most this many seconds.")
    max_s: float | None = Field(description="The slowest attempt, in seconds.")
    distribution: list[LatencyBucket] = Field(
        description="Attempts by latency; the last bucket is open where there are outliers."
    )


class ThroughputBucket(_Part):
    """One slice of time."""

    offset_s: float = Field(description="Start of the slice, in seconds since `started_at`.")
    rows: int = Field(description="Rows that ended in this slice, cached ones included.")
    attempts: int = Field(description="Attempts that ended in this slice.")


class Throughput(_Part):
    """Rows and attempts over time, for the last run that made calls."""

    run_id: str | None = Field(description="That run; null when no run of this batch made calls.")
    started_at: datetime | None = Field(description="When that run started (UTC).")
    bucket_s: float = Field(description="Width of a slice in seconds.")
    buckets: list[ThroughputBucket] = Field(description="At most 60 slices, in order.")


class ModelUse(_Part):
    """What one model did for this batch."""

    model: str = Field(description="`provider/model` as asked, with the base URL if not its own.")
    answered_as: list[str] = Field(description="Model names in the replies (the first 5).")
    rows: int = Field(description="Succeeded rows whose result this model gave, cached included.")
    requests: int = Field(description="Requests sent to it.")
    attempts: int = Field(description="Wire calls sent to it.")
    tokens: Tokens = Field(description="Tokens it billed.")
    cost_usd: float = Field(description="Cost of its attempts that came back, in USD.")
    lost_cost_usd: float = Field(description="Worst case of its lost attempts, in USD.")
    priced: bool = Field(description="False: no price is known, so its cost counts as 0.")
    latency: Latency = Field(description="Its latency.")
    attempts_answered: int = Field(
        description="Of its attempts, those that brought a reply to read; this and the next five "
        "add up to `attempts`."
    )
    attempts_rate_limited: int = Field(description="Those refused for a rate limit (HTTP 429).")
    attempts_server_error: int = Field(description="Those answered with HTTP 5xx.")
    attempts_timed_out: int = Field(description="Those without a reply in time.")
    attempts_other_error: int = Field(
        description="Those that went wrong otherwise: no connection, a refused key, a cut reply, "
        "a process that died."
    )
    attempts_in_flight: int = Field(description="Those not known to have ended.")
    first_sent_at: datetime | None = Field(description="Its first attempt (UTC); null: none.")
    last_sent_at: datetime | None = Field(description="Its last attempt (UTC); null: none.")


class StepUse(_Part):
    """What one step of the workload asked models."""

    step: str = Field(description="Name of the step.")
    requests: int = Field(description="Requests sent for it.")
    attempts: int = Field(description="Wire calls sent for them.")
    tokens: Tokens = Field(description="Tokens that they were billed.")
    cost_usd: float = Field(description="Cost of its attempts that came back, in USD.")
    lost_cost_usd: float = Field(description="Worst case of its lost attempts, in USD.")
    latency: Latency = Field(description="Its latency.")


class SearchUse(_Part):
    """What a search provider was asked; no model is called for it."""

    endpoint: str = Field(description="`provider/endpoint`.")
    requests: int = Field(description="Queries asked; those known from earlier are not among them.")
    attempts: int = Field(description="Wire calls made for them.")
    attempts_failed: int = Field(description="Of `attempts`, those that brought no answer.")
    cached: int = Field(
        default=0,
        description="Queries of runs that have ended which needed no call: known from earlier, or "
        "being asked for another row.",
    )
    cost_usd: float = Field(
        description="What those that came back cost, in USD; 0 where a subscription pays."
    )
    lost_cost_usd: float = Field(
        description="Worst case of those whose reply never came, or is awaited, in USD."
    )
    rate_wait_s: float = Field(description="Seconds of waiting for its rate limit, summed.")
    latency: Latency = Field(description="Its latency.")


class SkipCause(_Part):
    """Rows that were skipped for the same reason."""

    reason: str = Field(description="Why.")
    rows: int = Field(description="How many.")


class FallbackCause(_Part):
    """Why rows were not answered by a model that their route names earlier."""

    model: str = Field(description="The model that was to answer.")
    kind: Literal[
        "key", "account", "model", "refused", "rate_limited", "no_answer", "not_called"
    ] = Field(
        description="`key`: it refused the key; `account`: no credit or quota left; `model`: "
        "it does not know the model; `refused`: it refused every call otherwise; "
        "`rate_limited`; `no_answer`: errors, timeouts, unreadable replies; `not_called`."
    )
    attempts: int = Field(description="Attempts that failed for it.")
    first_at: datetime | None = Field(description="The first of them ended then (UTC).")
    last_at: datetime | None = Field(description="The last of them ended then (UTC).")
    error: str = Field(description="One of its errors (the first 300 characters).")


class Fallback(_Part):
    """Rows that a model further down their route answered."""

    rows: int = Field(description="How many.")
    model: str = Field(description="The model that answered them.")
    causes: list[FallbackCause] = Field(description="The models before it, and what was wrong.")
    text: str = Field(description="All this in one sentence.")


class BudgetUse(_Part):
    """A budget that the runs of this batch keep to, and what is used of it."""

    scope: Literal["batch", "workload", "provider"] = Field(
        description="Whose spend it bounds; that of `workload` and `provider` holds for a day and "
        "over all batches."
    )
    name: str = Field(description="The batch, workload or provider.")
    day: str | None = Field(description="The day (YYYY-MM-DD, in its reset zone); null: none.")
    limit_usd: float = Field(description="The budget in USD.")
    settled_usd: float = Field(description="Paid, in USD.")
    lost_usd: float = Field(description="Worst case of lost calls, in USD.")
    reserved_usd: float = Field(description="Worst case of calls in flight, in USD.")
    used_share: float = Field(description="(settled + lost) / limit.")


class Money(_Part):
    """What was paid for this batch, what may have been, and what bounds it."""

    settled_usd: float = Field(description="Cost of the attempts that came back, in USD.")
    settled_calls: int = Field(description="How many came back.")
    lost_usd: float = Field(
        description="Worst case of calls whose reply never came, in USD, until "
        "`batch-pipeline reconcile` replaces it by what was billed."
    )
    lost_calls: int = Field(description="How many such calls.")
    reserved_usd: float = Field(description="Worst case of calls in flight now, in USD.")
    reserved_calls: int = Field(
        description="How many are in flight now, lines of provider jobs included."
    )
    reconciled_usd: float = Field(
        description="Of `settled_usd`, lost calls whose cost was reconciled."
    )
    reconciled_calls: int = Field(description="How many such calls.")
    budgets: list[BudgetUse] = Field(
        description="Budgets by the settings of the last run, and what is used of them now."
    )


class CacheUse(_Part):
    """What the provider's prompt cache did for one model."""

    model: str = Field(description="`provider/model`.")
    input_tokens: int = Field(description="All prompt tokens.")
    cached_tokens: int = Field(description="Of these, read from the cache.")
    write_tokens: int = Field(description="Of these, written to the cache.")
    saved_usd: float | None = Field(
        description="Cost with every prompt token at the fresh price, minus cost as it was, in "
        "USD; negative where writes cost more than reads saved; null: no price is known."
    )


class PromptCache(_Part):
    """What providers' prompt caches did for this batch."""

    input_tokens: int = Field(description="All prompt tokens.")
    cached_tokens: int = Field(description="Of these, read from a cache.")
    write_tokens: int = Field(description="Of these, written to a cache.")
    share: float | None = Field(description="cached / input; null: no prompt tokens.")
    hits: int = Field(description="Attempts that read from a cache.")
    saved_usd: float | None = Field(
        description="Sum over models whose price is known; null: no cache was used, or no price is "
        "known."
    )
    models: list[CacheUse] = Field(description="By model, those that used a cache.")


class EstimateLine(_Part):
    """One figure: as estimated, and as it came."""

    name: Literal[
        "requests",
        "input_tokens",
        "cached_input_tokens",
        "output_tokens",
        "searches",
        "cost_usd",
        "seconds",
    ] = Field(description="Which figure.")
    low: float | None = Field(description="The least it should come to; null: not estimated.")
    expected: float | None = Field(description="What it should come to; null: unknown.")
    worst: float | None = Field(description="The most it should come to; null: not estimated.")
    actual: float = Field(
        description="What it came to, over all runs; `seconds` of the batch lane are from the "
        "first line's submission to the last answer's collection."
    )
    deviation_percent: float | None = Field(
        description="(actual - expected) / expected, in percent; null while rows are pending, or "
        "where nothing was expected."
    )


class EstimateCheck(_Part):
    """The estimate that was made for this batch, beside what the batch took."""

    route: str = Field(description="The route of both.")
    lane: Literal["realtime", "batch"] = Field(default="realtime", description="The lane of both.")
    made: str = Field(description="When it was made: `ingest`, or `sample` after a sample run.")
    made_at: datetime = Field(description="The moment (UTC).")
    rows: int = Field(description="Rows estimated.")
    to_ask: int = Field(description="Of these, rows that needed a call.")
    basis: str = Field(description="What it rested on, in words.")
    bound_by: str = Field(description="What was to bound the time, in words.")
    complete: bool = Field(description="No row that it counted is pending.")
    lines: list[EstimateLine] = Field(description="Figure by figure.")


class LimitUsed(_Part):
    """A rate limit that the last run set out with."""

    model: str = Field(description="`provider/model`.")
    dimension: str = Field(
        description="`requests`, `input_tokens`, `output_tokens` (per minute), "
        "`requests_per_day` or `concurrent`."
    )
    amount: float = Field(description="The limit.")
    source: str = Field(description="`user`: a setting of the run; `tier`: the provider's tier.")


class Hint(_Part):
    """Something that would make the next run better."""

    title: str = Field(description="What was found, in short.")
    text: str = Field(description="The same in a sentence.")
    next_step: str = Field(description="What a user can do about it.")


class JobReport(_Part):
    """One provider job: lines that went up to a provider's Batch API together."""

    job_id: str = Field(description="Our name of it.")
    provider: str = Field(description="The provider that has it.")
    model: str = Field(description="`provider/model`, with the base URL if not its own.")
    remote_name: str | None = Field(description="The provider's name of it; null: not created yet.")
    state: str = Field(
        description="`intended`, `uploaded`, `creating`, `submitted`, `ended` (its answers wait to "
        "be collected), `collected`, or `abandoned` (never created)."
    )
    ended_as: str = Field(
        description="`succeeded`, `failed`, `expired`, `cancelled`, `gone` (the provider no longer "
        "has it) or `never created`; empty while it has not ended."
    )
    rows: int = Field(description="Rows that it asks about.")
    lines: int = Field(description="Its requests: the next four, and those still open, add up.")
    lines_answered: int = Field(
        description="Those with a reply; until it is collected, as the provider counts."
    )
    lines_failed: int = Field(description="Those that the provider refused or failed at.")
    lines_not_asked: int = Field(description="Those that were never asked, and cost nothing.")
    lines_lost: int = Field(description="Those without a result that may have been billed.")
    tokens: int = Field(description="Prompt tokens of its lines, estimated.")
    submitted_at: datetime | None = Field(description="When the provider took it (UTC).")
    ended_at: datetime | None = Field(description="When the provider was done with it (UTC).")
    collected_at: datetime | None = Field(description="When its answers were here (UTC).")
    took_s: float | None = Field(description="From submission to its end; null: not ended.")
    cost_usd: float = Field(description="Cost of its lines so far, in USD.")
    lost_cost_usd: float = Field(description="Worst case of its lost lines, in USD.")
    error: str = Field(description="What the provider said was wrong (the first 500 characters).")


class UnansweredLines(_Part):
    """Lines of provider jobs that ended without an answer for the same cause."""

    cause: Literal["expired", "cancelled", "failed", "gone", "missing", "not_submitted"] = Field(
        description="What became of them; `gone`: the provider no longer had the results; "
        "`missing`: the results did not have them; `not_submitted`: their job was never created."
    )
    lost: bool = Field(description="True: they may have been billed. False: they cost nothing.")
    lines: int = Field(description="How many.")
    rows: int = Field(description="Rows that they asked about; these were asked again, or failed.")
    worst_usd: float = Field(description="What lost ones may have cost at most, in USD.")
    text: str = Field(description="The same in words.")


class ProviderJobs(_Part):
    """The batch's jobs at providers' Batch APIs."""

    total: int = Field(description="How many; the next four add up to it.")
    open: int = Field(description="On their way up, or with the provider.")
    ended: int = Field(description="Done, and not collected yet.")
    collected: int = Field(description="Done, and their answers are here.")
    abandoned: int = Field(description="Never created: their rows went elsewhere.")
    failed: int = Field(
        description="Of all, those that failed, expired, were cancelled or never created."
    )
    cancelling: int = Field(description="Of the open ones, those that were asked to end.")
    rows_under_way: int = Field(description="Rows in jobs that are not collected.")
    took_p50_s: float | None = Field(
        description="Half of the jobs that ended took at most this many seconds; null: none ended."
    )
    took_p90_s: float | None = Field(description="90 % of them took at most this many seconds.")
    jobs: list[JobReport] = Field(description="The newest 100, oldest first.")
    unanswered: list[UnansweredLines] = Field(
        description="Lines that ended without an answer, by cause."
    )


class LaneUse(_Part):
    """What went through one lane."""

    lane: Literal["realtime", "batch"] = Field(description="Which lane.")
    attempts: int = Field(description="Wire calls, or lines of provider jobs.")
    tokens: Tokens = Field(description="Tokens that they were billed.")
    cost_usd: float = Field(description="Cost of those that came back, in USD.")
    lost_cost_usd: float = Field(description="Worst case of lost ones, in USD.")
    reserved_usd: float = Field(description="Worst case of those under way, in USD.")


class LaneSaving(_Part):
    """What the batch lane saved, computed: the same tokens at the standard price."""

    lines: int = Field(description="Paid lines of provider jobs whose standard price is known.")
    standard_usd: float = Field(description="What they would have cost in real time, in USD.")
    paid_usd: float = Field(description="What they cost, in USD.")
    saved_usd: float = Field(description="The difference, in USD.")
    saved_share: float | None = Field(description="saved / standard.")


class AttemptGroup(_Part):
    """Attempts that have something in common."""

    name: str = Field(description="What they have in common.")
    attempts: int = Field(description="How many.")
    cost_usd: float = Field(description="What they cost, lost ones at worst case, in USD.")


class ExampleRow(_Part):
    """A row to look at."""

    number: int = Field(description="1-based data row of the input.")
    item_id: str = Field(description="The row's item id.")


class ErrorCause(_Part):
    """Rows that ended without a result for the same cause."""

    outcome: Literal["failed", "blocked"] = Field(description="How these rows ended.")
    kind: str = Field(description="Class of the error, for example `content` or `transient`.")
    cause: str = Field(description="What went wrong, in words.")
    rows: int = Field(description="Rows with this cause.")
    examples: list[ExampleRow] = Field(description="Some of them (at most 3).")
    next_step: str = Field(description="What a user can do about it.")


class ProblemRow(_Part):
    """A failed or blocked row."""

    number: int = Field(description="1-based data row of the input.")
    item_id: str = Field(description="The row's item id.")
    outcome: Literal["failed", "blocked"] = Field(description="How it ended.")
    kind: str = Field(description="Class of the error.")
    error: str = Field(description="What went wrong (the first 500 characters).")


class WaitingRow(_Part):
    """A blocked row, which waits for a person."""

    number: int = Field(description="1-based data row of the input.")
    item_id: str = Field(description="The row's item id.")
    name: str = Field(description="What the workload calls it, a job's id; empty: nothing.")
    headline: str = Field(description="What the row is about, in one line.")
    why: str = Field(description="Why it is blocked, the worst first (500 characters).")
    signoff_required: bool = Field(description="To override it, somebody must vouch for it.")
    since: datetime | None = Field(description="When it was blocked (UTC).")
    command: str = Field(description="What shows it for a decision.")


class DecisionMade(_Part):
    """What a person decided about a row; of several decisions the last."""

    number: int = Field(description="1-based data row of the input.")
    item_id: str = Field(description="The row's item id.")
    decision: Literal["override", "regenerate", "skip"] = Field(description="What was decided.")
    reviewer: str = Field(description="Who.")
    reason: str = Field(description="Why.")
    decided_at: datetime = Field(description="When (UTC).")
    signed_off: bool = Field(description="The reviewer vouches for the row.")
    times: int = Field(description="How often the row was decided about.")
    outcome_before: str = Field(description="What the row had come to.")
    outcome: str = Field(description="What it is now.")


class Decisions(_Part):
    """What people decided about rows of this batch."""

    total: int = Field(description="Rows decided about; the next three add up to it.")
    override: int = Field(description="Rows accepted in spite of what blocked them.")
    regenerate: int = Field(description="Rows to be asked anew.")
    skip: int = Field(description="Rows left out.")
    signed_off: int = Field(description="Of `override`, those that somebody vouches for.")
    rows: list[DecisionMade] = Field(description="The newest 200, newest first.")


class ChunkReport(_Part):
    """One chunk, which is one Dagster partition."""

    chunk_key: str = Field(description="The partition key.")
    first_row: int = Field(description="Position in the batch of its first row, from 1.")
    rows: int = Field(description="Rows in it.")
    outcomes: Outcomes = Field(description="Its rows by outcome.")
    complete: bool = Field(description="No row is failed or pending: the partition materializes.")
    cache_hits: int = Field(description="Its succeeded rows that this batch did not pay for.")
    cost_usd: float = Field(
        description="Its ended rows' equal shares of the attempts that asked about them, in USD."
    )


class RunCounts(_Part):
    """What one run did."""

    outcomes: Outcomes = Field(description="Rows of its chunks by outcome, at its end.")
    cache_hits: int = Field(description="Succeeded rows that this run did not have to ask about.")
    requests: int = Field(description="Requests it sent to models.")
    attempts: int = Field(description="Wire calls it made for them.")
    searches: int = Field(default=0, description="Wire calls it made to search providers.")
    input_tokens: int = Field(description="Prompt tokens it used.")
    cached_input_tokens: int = Field(description="Of these, from the provider's prompt cache.")
    output_tokens: int = Field(description="Output tokens it used.")
    cost_usd: float = Field(description="What it cost, in USD, lost attempts left out.")
    lost_cost_usd: float = Field(description="Worst case of its lost attempts, in USD.")
    wall_s: float = Field(description="How long it took, in seconds.")
    rate_wait_s: float = Field(description="Waiting for rate limits, summed over its attempts.")
    errors: dict[str, int] = Field(description="Attempts that went wrong, by class of error.")
    calls_s: float = Field(
        default=0.0,
        description="Seconds of its real-time calls to models and search providers, summed: what "
        "they would have taken one at a time.",
    )


class RunReport(_Part):
    """One run of the batch."""

    run_id: str = Field(description="Its id, in the Dagster UI too.")
    status: str = Field(
        description="`running`, `done`, `submitted` (rows are in provider jobs), `interrupted`, "
        "`stopped`, `crashed`, `budget` or `daily_limit` (what is left waits for more money or "
        "another day)."
    )
    message: str = Field(description="Why it stopped, in words; empty when done.")
    started_at: datetime = Field(description="When it started (UTC).")
    ended_at: datetime | None = Field(description="When it ended (UTC); null: not known to have.")
    settings: dict[str, Any] = Field(description="The settings it used, by their defs.yaml names.")
    counts: RunCounts | None = Field(description="What it did; null until it has ended.")
    given_up: dict[str, str] = Field(
        description="Models that it sent nothing more to, and why; empty where it did not say."
    )


class BatchReport(_Part):
    """What a batch came to, over all its runs so far."""

    schema_version: Literal["1"] = Field(description="Version of this layout.")
    created_at: datetime = Field(description="When this report was made (UTC).")
    batch: str = Field(description="Batch id.")
    workload: str = Field(description="Workload name.")
    realm: Literal["live", "simulated"] = Field(description="Realm of every number here.")
    simulated: bool = Field(description="True: no provider was called and nothing was paid.")
    table: str = Field(description="Short name of the input table.")
    source: str = Field(description="What the user named as input.")
    ingested_at: datetime = Field(description="When the batch was read in (UTC).")
    rows: int = Field(description="Rows of the batch: the denominator of the outcomes.")
    outcomes: Outcomes = Field(description="All rows by outcome.")
    skipped: list[SkipCause] = Field(
        default=[], description="Why rows were skipped, most rows first (at most 6 reasons)."
    )
    success_rate: float | None = Field(
        description="succeeded / (succeeded + blocked + failed); null when none has ended."
    )
    cache_hits: int = Field(
        description="Of the succeeded rows, those whose result no attempt of this batch paid for."
    )
    duplicate_rows: int = Field(
        description="Succeeded rows answered by the call of an identical row of this batch."
    )
    requests: int = Field(description="LLM requests sent for this batch.")
    attempts: int = Field(
        description="Wire calls sent for them: the unit of spend; those of `searches` are apart."
    )
    attempts_lost: int = Field(description="Of `attempts`, those whose reply never came.")
    attempts_in_flight: int = Field(
        description="Of `attempts`, those not known to have ended, lines of provider jobs included."
    )
    tokens: Tokens = Field(description="Tokens of this batch's attempts.")
    cost_usd: float = Field(
        description="Cost of the attempts that came back, in USD, searches included."
    )
    lost_cost_usd: float = Field(
        description="Worst case of lost attempts, in USD, not part of `cost_usd`."
    )
    in_flight_cost_usd: float = Field(
        description="Worst case of attempts in flight, in USD, not part of `cost_usd`."
    )
    cost_per_1000_rows_usd: float | None = Field(
        description="`cost_usd` per 1,000 succeeded rows that are no cache hits; null without any."
    )
    wall_s: float = Field(description="Seconds that runs of this batch took, summed over runs.")
    calls_s: float = Field(
        default=0.0,
        description="Seconds of real-time calls to models and search providers, summed: what they "
        "would have taken one at a time.",
    )
    rate_wait_s: float = Field(
        description="Seconds of waiting for rate limits, summed over attempts, which wait side by "
        "side: it can exceed `wall_s`."
    )
    latency: Latency = Field(
        description="Latency of this batch's real-time attempts; provider jobs are in "
        "`provider_jobs`."
    )
    throughput: Throughput = Field(description="Rows and attempts over time.")
    models: list[ModelUse] = Field(description="By model, the dearest first.")
    steps: list[StepUse] = Field(
        default=[], description="By step of the workload that asks models, in its order."
    )
    searches: list[SearchUse] = Field(
        default=[], description="By endpoint of a search provider, where any was asked."
    )
    fallbacks: list[Fallback] = Field(
        description="Rows that were not answered by the first model of their route, and why."
    )
    provider_jobs: ProviderJobs | None = Field(
        default=None, description="Jobs at providers' Batch APIs; null: none."
    )
    lanes: list[LaneUse] = Field(
        default=[], description="What went through each lane that was used, real time first."
    )
    lane_saving: LaneSaving | None = Field(
        default=None,
        description="What the batch lane saved; null: not used, or a price is not known.",
    )
    money: Money = Field(description="What was paid, may have been paid, and may be.")
    prompt_cache: PromptCache = Field(description="What providers' prompt caches saved.")
    estimate: EstimateCheck | None = Field(
        description="Estimate against actual; null: none was made, or for another route or lane."
    )
    limits: list[LimitUsed] = Field(
        description="Rate limits of the last run by its settings; what replies taught it is in its "
        "log."
    )
    hints: list[Hint] = Field(description="What would make the next run better.")
    summary: Summary | None = Field(
        default=None,
        description="What the outputs say as a whole; null: the workload has no summary.",
    )
    attempts_by_reason: list[AttemptGroup] = Field(
        description="By why they were sent: `first`, `retry`, `re-ask`, `split`."
    )
    attempts_by_status: list[AttemptGroup] = Field(
        description="By HTTP status; `no reply` for broken calls, `in flight` for open ones."
    )
    attempts_by_error: list[AttemptGroup] = Field(
        description="Those that went wrong, by class of error."
    )
    errors: list[ErrorCause] = Field(
        description="Failed and blocked rows by cause, most rows first (at most 20 causes)."
    )
    problem_rows: list[ProblemRow] = Field(description="The first 200 failed or blocked rows.")
    waiting: list[WaitingRow] = Field(
        default=[], description="The 50 blocked rows that wait longest for a person's decision."
    )
    decisions: Decisions | None = Field(
        default=None, description="What people decided about rows; null: nothing."
    )
    chunks: list[ChunkReport] = Field(description="Every chunk, in order.")
    runs: list[RunReport] = Field(description="Runs of this batch, newest first (at most 50).")
    runs_total: int = Field(description="How many runs there were.")
    this_run: RunReport | None = Field(description="The run this report was made for, if any.")
    settings: dict[str, Any] = Field(description="Settings of `this_run`, else of the newest run.")
    warnings: list[str] = Field(description="What reading the table gave to say.")
    notes: list[str] = Field(
        description="What to know about the numbers: settings left out, unknown prices."
    )
    deliverables: list[str] = Field(description="Paths of the files written for this batch.")
