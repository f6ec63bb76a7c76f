"""The ledger's tables, as SQLAlchemy Core; one definition for SQLite and PostgreSQL.

What belongs here: columns, keys, indexes and the words that columns may hold. What does not:
statements (batches.py, attempts.py, claims.py, results.py) and migrations (migrations/).

Times are UTC seconds since the epoch. Money is integer nano-USD, so that sums are exact. JSON is
stored as text. `realm` is the first part of every key: `live` and `simulated` never mix.
"""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa

NANO = 1_000_000_000

metadata = sa.MetaData()


class Outcome(StrEnum):
    """How an item ended; `pending` has not ended."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    BLOCKED = "blocked"
    FAILED = "failed"
    SKIPPED = "skipped"


class AttemptState(StrEnum):
    """Where an attempt stands; `refunded` was written ahead and provably never sent."""

    SENT = "sent"
    SETTLED = "settled"
    LOST = "lost"
    REFUNDED = "refunded"


class JobState(StrEnum):
    """Where we stand with a provider job; what the provider says is in `remote_state`."""

    INTENDED = "intended"  # written down with its lines; nothing was sent
    UPLOADED = "uploaded"  # its file is with the provider
    CREATING = "creating"  # the request that creates it may be on its way
    SUBMITTED = "submitted"  # the provider has it, under `remote_name`
    ENDED = "ended"  # the provider is done with it; its results wait to be collected
    COLLECTED = "collected"  # every line has its end in `attempts`
    ABANDONED = "abandoned"  # never created: its lines were given back


OPEN_JOB_STATES = (JobState.INTENDED, JobState.UPLOADED, JobState.CREATING, JobState.SUBMITTED)
"""States in which a job's tokens count as enqueued."""

UNFINISHED_JOB_STATES = (*OPEN_JOB_STATES, JobState.ENDED)
"""States in which something of a job is still to come."""


def _text(length: int) -> sa.types.TypeEngine[str]:
    # Given by users and providers: SQLite keeps no text to a length, PostgreSQL would.
    return sa.String(length).with_variant(sa.Text(), "postgresql")


def _realm() -> sa.Column[str]:
    return sa.Column("realm", sa.String(16), primary_key=True)


batches = sa.Table(
    "batches",
    metadata,
    _realm(),
    sa.Column("batch_id", sa.String(200), primary_key=True),
    sa.Column("workload", sa.String(100), nullable=False),
    sa.Column("table_name", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("content_hash", sa.String(64), nullable=False),
    sa.Column("row_count", sa.Integer, nullable=False),
    sa.Column("chunk_size", sa.Integer, nullable=False),
    sa.Column("chunk_count", sa.Integer, nullable=False),
    sa.Column("columns", sa.Text, nullable=False),
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("warnings", sa.Text, nullable=False),
    sa.Column("notes", sa.Text, nullable=False, server_default="[]"),
    # who starts the LLM run: "door" (a CLI or API call that does it itself) or "sensor"
    sa.Column("launch", sa.String(16), nullable=False),
    sa.Column("launched_run_id", sa.String(64)),
    # a forced run asks finished rows again: results from before `fresh_after` are no hits for the
    # rows it reset
    sa.Column("generation", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("fresh_after", sa.Float, nullable=False, server_default=sa.text("0")),
    # the budget that was given for this batch: later runs keep to it, unless they are given another
    sa.Column("budget_nano", sa.BigInteger),
    sa.Column("estimate", sa.Text, nullable=False, server_default="{}"),  # JSON, made at ingest
    sa.Column("created_at", sa.Float, nullable=False),
)

chunks = sa.Table(
    "chunks",
    metadata,
    _realm(),
    sa.Column("chunk_key", sa.String(220), primary_key=True),
    sa.Column("batch_id", sa.String(200), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("first_ordinal", sa.Integer, nullable=False),
    sa.Column("row_count", sa.Integer, nullable=False),
    # a chunk is leased by an owner; the fence grows with each lease, and writes name the fence they
    # hold
    sa.Column("owner_id", sa.String(40)),
    sa.Column("fence", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Index("chunks_by_batch", "realm", "batch_id", "position"),
)

items = sa.Table(
    "items",
    metadata,
    _realm(),
    sa.Column("batch_id", sa.String(200), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True),  # 0-based position in the batch
    sa.Column("item_id", _text(300), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # 1-based data row in the input, for messages
    sa.Column("row", sa.Text, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("cached", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("cache_key", sa.String(64)),
    sa.Column("model", sa.String(200)),
    sa.Column("attempt_id", sa.String(60)),
    sa.Column("error_kind", sa.String(40)),
    sa.Column("error", sa.Text),
    sa.Column("cost_nano", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("fresh_after", sa.Float, nullable=False, server_default=sa.text("0")),
    # JSON: steps for which another moment holds, and that moment
    sa.Column("kept_steps", sa.Text, nullable=False, server_default="{}"),
    sa.Column("settled_at", sa.Float),
    # asks in provider jobs that gave the row no answer, since it last ended
    sa.Column("lane_tries", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Index("items_by_outcome", "realm", "batch_id", "outcome"),
    sa.Index("items_by_item_id", "realm", "item_id"),
)

owners = sa.Table(
    "owners",
    metadata,
    sa.Column("owner_id", sa.String(40), primary_key=True),
    sa.Column("host", sa.String(200), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("lease_expires_at", sa.Float, nullable=False),
)

claims = sa.Table(
    "claims",
    metadata,
    _realm(),
    sa.Column("cache_key", sa.String(64), primary_key=True),
    sa.Column("owner_id", sa.String(40), nullable=False),
    sa.Column("lane", sa.String(16), nullable=False),
    sa.Column("taken_at", sa.Float, nullable=False),
    sa.Index("claims_by_owner", "owner_id"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("attempt_id", sa.String(60), primary_key=True),
    sa.Column("realm", sa.String(16), nullable=False),
    sa.Column("workload", sa.String(100), nullable=False),
    sa.Column("step", sa.String(100), nullable=False),
    sa.Column("batch_id", sa.String(200), nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(60), nullable=False),  # attempts of one request share it
    sa.Column("parent_request_id", sa.String(60)),  # the request whose answer this one repairs
    sa.Column("reason", sa.String(16), nullable=False),  # first | retry | re-ask | split
    sa.Column("provider", sa.String(60), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("key_id", sa.String(60), nullable=False),
    sa.Column("lane", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("owner_id", sa.String(40), nullable=False),
    sa.Column("item_count", sa.Integer, nullable=False),
    sa.Column(
        "members", sa.Text, nullable=False
    ),  # JSON: [[ordinal, cache_key], ...] in pack order
    sa.Column("estimated_input_tokens", sa.Integer, nullable=False),
    sa.Column("worst_nano", sa.BigInteger, nullable=False),
    sa.Column("rate_wait_s", sa.Float, nullable=False),
    sa.Column("sent_at", sa.Float, nullable=False),
    sa.Column("deadline_at", sa.Float, nullable=False),
    sa.Column("settled_at", sa.Float),
    sa.Column("status", sa.Integer),
    sa.Column("error_kind", sa.String(40)),
    sa.Column("error", sa.Text),
    sa.Column("answered_model", _text(200)),
    sa.Column("input_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("cached_input_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("cache_write_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("output_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("thinking_tokens", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("cost_nano", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("latency_s", sa.Float),
    # the days whose budgets this attempt counts against (YYYY-MM-DD)
    sa.Column("workload_day", sa.String(10), nullable=False, server_default=sa.text("''")),
    sa.Column("provider_day", sa.String(10), nullable=False, server_default=sa.text("''")),
    sa.Column("reconciled_at", sa.Float),  # when a lost attempt got its real cost from outside
    sa.Column("job_id", sa.String(160)),  # the provider job whose line it is
    # whether every item answer in the stored reply has reached `results`
    sa.Column("derived", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("attempts_by_batch", "realm", "batch_id", "sent_at"),
    sa.Index("attempts_by_state", "state", "owner_id"),
    sa.Index("attempts_by_job", "job_id"),
)

# jobs at providers' Batch APIs; their lines are attempts of lane `batch`
provider_jobs = sa.Table(
    "provider_jobs",
    metadata,
    _realm(),
    sa.Column("job_id", sa.String(160), primary_key=True),  # ours: <batch>.j<nnnn>
    sa.Column("batch_id", sa.String(200), nullable=False),
    sa.Column("workload", sa.String(100), nullable=False),
    sa.Column("step", sa.String(100), nullable=False),
    sa.Column("provider", sa.String(60), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),  # label, as in `attempts`
    sa.Column("key_id", sa.String(60), nullable=False),
    # owns the lines and the claims on their questions, until the job is collected
    sa.Column("owner_id", sa.String(40), nullable=False),
    # the process that is at work on it now, while its lease lasts
    sa.Column("holder_id", sa.String(40)),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("remote_name", _text(300)),
    sa.Column("remote_state", sa.String(30), nullable=False, server_default=sa.text("''")),
    sa.Column("file", _text(300)),  # the provider's name of the uploaded lines
    sa.Column("results", sa.Text, nullable=False, server_default="[]"),  # JSON: where they are
    sa.Column("line_count", sa.Integer, nullable=False),
    sa.Column("item_count", sa.Integer, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),  # estimated prompt tokens of all lines
    sa.Column("body_bytes", sa.BigInteger, nullable=False),
    sa.Column("worst_nano", sa.BigInteger, nullable=False),
    sa.Column("succeeded", sa.Integer),  # lines, as the provider counts them
    sa.Column("failed", sa.Integer),
    sa.Column("cancel_wanted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("error_code", sa.String(100), nullable=False, server_default=sa.text("''")),
    sa.Column("error", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("creating_at", sa.Float),
    sa.Column("submitted_at", sa.Float),
    sa.Column("polled_at", sa.Float),
    sa.Column("next_poll_at", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("expires_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("collected_at", sa.Float),
    sa.Index("provider_jobs_by_batch", "realm", "batch_id", "created_at"),
    sa.Index("provider_jobs_by_state", "realm", "state"),
    sa.Index("provider_jobs_by_name", "realm", "remote_name"),
)

# pages that were fetched, shared by all batches
pages = sa.Table(
    "pages",
    metadata,
    _realm(),
    sa.Column("url_hash", sa.String(64), primary_key=True),  # sha256 of the URL
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("final_url", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("fetched_at", sa.Float, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("extractor", sa.String(60), nullable=False),  # name and version
    sa.Column("facts", sa.Text, nullable=False, server_default="{}"),  # JSON: fetch.facts.PageFacts
)

# what the local steps of a row gave: made by us, in the course of a run, or edited by a person
documents = sa.Table(
    "documents",
    metadata,
    _realm(),
    sa.Column("batch_id", sa.String(200), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True),
    sa.Column("step", sa.String(100), primary_key=True),
    sa.Column("outcome", sa.String(16), nullable=False),  # what the step said of the row
    sa.Column("content", sa.LargeBinary, nullable=False),  # JSON (pack_bytes)
    sa.Column("made_at", sa.Float, nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False),
    # who edited it; empty for what a run made
    sa.Column("editor", _text(200), nullable=False, server_default=sa.text("''")),
)

# what people decided about blocked rows; the newest decision of a row counts
reviews = sa.Table(
    "reviews",
    metadata,
    _realm(),
    sa.Column("batch_id", sa.String(200), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),  # 1, 2, ... of the row
    sa.Column("decision", sa.String(16), nullable=False),  # override | regenerate | skip
    sa.Column("reviewer", _text(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # the person vouches for the row where the policy asks for that
    sa.Column("signed_off", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("details", sa.Text, nullable=False, server_default="{}"),  # JSON
    sa.Column("decided_at", sa.Float, nullable=False),
    sa.Index("reviews_by_time", "realm", "decided_at"),
)

# sums over `attempts`, kept with every change of them: budgets are checked against these
spend = sa.Table(
    "spend",
    metadata,
    _realm(),
    sa.Column("scope", sa.String(16), primary_key=True),  # batch | workload | provider
    sa.Column("scope_id", sa.String(200), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),  # YYYY-MM-DD; empty for a batch
    sa.Column("reserved_nano", sa.BigInteger, nullable=False),  # worst case of what is in flight
    sa.Column("settled_nano", sa.BigInteger, nullable=False),
    sa.Column("lost_nano", sa.BigInteger, nullable=False),  # worst case of replies that never came
)

replies = sa.Table(
    "replies",
    metadata,
    sa.Column("attempt_id", sa.String(60), primary_key=True),
    sa.Column("request", sa.LargeBinary, nullable=False),  # the body as sent (pack_bytes)
    sa.Column("reply", sa.LargeBinary),  # the body as received
)

results = sa.Table(
    "results",
    metadata,
    _realm(),
    sa.Column("cache_key", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),  # provider/model that answered
    sa.Column("workload", sa.String(100), nullable=False),
    sa.Column("step", sa.String(100), nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("attempt_id", sa.String(60), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Index("results_by_workload", "realm", "workload", "created_at"),
)

limits = sa.Table(
    "limits",
    metadata,
    _realm(),
    sa.Column("provider", sa.String(60), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("key_id", sa.String(60), primary_key=True),
    sa.Column(
        "dimension", sa.String(30), primary_key=True
    ),  # requests | input_tokens | output_tokens
    # theoretical arrival time of the generic cell rate algorithm: the bucket is empty until then
    sa.Column("arrival_at", sa.Float, nullable=False),
)

# what each running owner believes a limit to be: the lowest one wins while several runs go on
limit_rates = sa.Table(
    "limit_rates",
    metadata,
    _realm(),
    sa.Column("provider", sa.String(60), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("key_id", sa.String(60), primary_key=True),
    sa.Column("dimension", sa.String(30), primary_key=True),
    sa.Column("owner_id", sa.String(40), primary_key=True),
    # per minute; per day for requests_per_day; a count for concurrent
    sa.Column("amount", sa.Float, nullable=False),
    # who says so: user | tier | header | learned
    sa.Column("source", sa.String(16), nullable=False, server_default="user"),
)

# what an operator set by hand while runs go on; `*` stands for every model or key
limit_overrides = sa.Table(
    "limit_overrides",
    metadata,
    _realm(),
    sa.Column("provider", sa.String(60), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("key_id", sa.String(60), primary_key=True),
    sa.Column("dimension", sa.String(30), primary_key=True),
    # per minute; per day for requests_per_day; a count for concurrent
    sa.Column("amount", sa.Float, nullable=False),
    sa.Column("set_at", sa.Float, nullable=False),
)

# requests of a day in the provider's reset zone
day_counts = sa.Table(
    "day_counts",
    metadata,
    _realm(),
    sa.Column("provider", sa.String(60), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("key_id", sa.String(60), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),  # YYYY-MM-DD
    sa.Column("requests", sa.Integer, nullable=False),
)

# one row for each run at a gate: its leased slots, and what it waits for
gates = sa.Table(
    "gates",
    metadata,
    _realm(),
    sa.Column("provider", sa.String(60), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("key_id", sa.String(60), primary_key=True),
    sa.Column("owner_id", sa.String(40), primary_key=True),
    sa.Column("held", sa.Integer, nullable=False, server_default=sa.text("0")),  # leased slots
    sa.Column("wanted", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("in_flight", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("waiting", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("updated_at", sa.Float, nullable=False),
)

pauses = sa.Table(
    "pauses",
    metadata,
    _realm(),
    sa.Column("provider", sa.String(60), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("key_id", sa.String(60), primary_key=True),
    sa.Column("paused_until", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("realm", sa.String(16), nullable=False),
    sa.Column("workload", sa.String(100), nullable=False),
    sa.Column("batch_id", sa.String(200), nullable=False),
    sa.Column("owner_id", sa.String(40), nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column(
        "status", sa.String(20), nullable=False
    ),  # running | done | submitted | interrupted | stopped | budget | daily_limit | crashed
    sa.Column("message", sa.Text, nullable=False, server_default=sa.text("''")),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("summary", sa.Text, nullable=False, server_default="{}"),
    sa.Index("runs_by_batch", "realm", "batch_id", "started_at"),
)
