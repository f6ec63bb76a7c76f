"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "attempts",
        sa.Column("attempt_id", sa.String(length=60), nullable=False),
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("workload", sa.String(length=100), nullable=False),
        sa.Column("step", sa.String(length=100), nullable=False),
        sa.Column("batch_id", sa.String(length=200), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=60), nullable=False),
        sa.Column("parent_request_id", sa.String(length=60), nullable=True),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=60), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=60), nullable=False),
        sa.Column("lane", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("owner_id", sa.String(length=40), nullable=False),
        sa.Column("item_count", sa.Integer(), nullable=False),
        sa.Column("members", sa.Text(), nullable=False),
        sa.Column("estimated_input_tokens", sa.Integer(), nullable=False),
        sa.Column("worst_nano", sa.BigInteger(), nullable=False),
        sa.Column("rate_wait_s", sa.Float(), nullable=False),
        sa.Column("sent_at", sa.Float(), nullable=False),
        sa.Column("deadline_at", sa.Float(), nullable=False),
        sa.Column("settled_at", sa.Float(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error_kind", sa.String(length=40), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("answered_model", sa.String(length=200), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "cached_input_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column(
            "cache_write_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column("output_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("thinking_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("latency_s", sa.Float(), nullable=True),
        sa.Column("derived", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("attempt_id"),
    )
    op.create_index("attempts_by_batch", "attempts", ["realm", "batch_id", "sent_at"], unique=False)
    op.create_index("attempts_by_state", "attempts", ["state", "owner_id"], unique=False)
    op.create_table(
        "batches",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("batch_id", sa.String(length=200), nullable=False),
        sa.Column("workload", sa.String(length=100), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("row_count", sa.Integer(), nullable=False),
        sa.Column("chunk_size", sa.Integer(), nullable=False),
        sa.Column("chunk_count", sa.Integer(), nullable=False),
        sa.Column("columns", sa.Text(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("warnings", sa.Text(), nullable=False),
        sa.Column("launch", sa.String(length=16), nullable=False),
        sa.Column("launched_run_id", sa.String(length=64), nullable=True),
        sa.Column("generation", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("fresh_after", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "batch_id"),
    )
    op.create_table(
        "chunks",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("chunk_key", sa.String(length=220), nullable=False),
        sa.Column("batch_id", sa.String(length=200), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("first_ordinal", sa.Integer(), nullable=False),
        sa.Column("row_count", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.String(length=40), nullable=True),
        sa.Column("fence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("realm", "chunk_key"),
    )
    op.create_index("chunks_by_batch", "chunks", ["realm", "batch_id", "position"], unique=False)
    op.create_table(
        "claims",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("cache_key", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=40), nullable=False),
        sa.Column("lane", sa.String(length=16), nullable=False),
        sa.Column("taken_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "cache_key"),
    )
    op.create_index("claims_by_owner", "claims", ["owner_id"], unique=False)
    op.create_table(
        "items",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("batch_id", sa.String(length=200), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.String(length=300), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("row", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("cached", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("cache_key", sa.String(length=64), nullable=True),
        sa.Column("model", sa.String(length=200), nullable=True),
        sa.Column("attempt_id", sa.String(length=60), nullable=True),
        sa.Column("error_kind", sa.String(length=40), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("cost_nano", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("fresh_after", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("settled_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("realm", "batch_id", "ordinal"),
    )
    op.create_index("items_by_item_id", "items", ["realm", "item_id"], unique=False)
    op.create_index("items_by_outcome", "items", ["realm", "batch_id", "outcome"], unique=False)
    op.create_table(
        "limit_rates",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=60), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=60), nullable=False),
        sa.Column("dimension", sa.String(length=30), nullable=False),
        sa.Column("owner_id", sa.String(length=40), nullable=False),
        sa.Column("per_second", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "provider", "model", "key_id", "dimension", "owner_id"),
    )
    op.create_table(
        "limits",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=60), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=60), nullable=False),
        sa.Column("dimension", sa.String(length=30), nullable=False),
        sa.Column("arrival_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "provider", "model", "key_id", "dimension"),
    )
    op.create_table(
        "owners",
        sa.Column("owner_id", sa.String(length=40), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("lease_expires_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id"),
    )
    op.create_table(
        "pauses",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=60), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=60), nullable=False),
        sa.Column("paused_until", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "provider", "model", "key_id"),
    )
    op.create_table(
        "replies",
        sa.Column("attempt_id", sa.String(length=60), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("reply", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("attempt_id"),
    )
    op.create_table(
        "results",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("cache_key", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("workload", sa.String(length=100), nullable=False),
        sa.Column("step", sa.String(length=100), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.Column("attempt_id", sa.String(length=60), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "cache_key", "model"),
    )
    op.create_index(
        "results_by_workload", "results", ["realm", "workload", "created_at"], unique=False
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("workload", sa.String(length=100), nullable=False),
        sa.Column("batch_id", sa.String(length=200), nullable=False),
        sa.Column("owner_id", sa.String(length=40), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("summary", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("runs_by_batch", "runs", ["realm", "batch_id", "started_at"], unique=False)
