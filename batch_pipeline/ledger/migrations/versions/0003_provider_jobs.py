"""Jobs at the providers' Batch APIs, and fetched pages."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what the batch lane and the page fetcher need."""
    op.add_column(
        "items",
        sa.Column("lane_tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column("attempts", sa.Column("job_id", sa.String(length=160), nullable=True))
    op.create_index("attempts_by_job", "attempts", ["job_id"])
    text = sa.String(length=300).with_variant(sa.Text(), "postgresql")
    empty = sa.text("''")
    op.create_table(
        "provider_jobs",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("job_id", sa.String(length=160), nullable=False),
        sa.Column("batch_id", sa.String(length=200), nullable=False),
        sa.Column("workload", sa.String(length=100), nullable=False),
        sa.Column("step", sa.String(length=100), nullable=False),
        sa.Column("provider", sa.String(length=60), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=60), nullable=False),
        sa.Column("owner_id", sa.String(length=40), nullable=False),
        sa.Column("holder_id", sa.String(length=40), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("remote_name", text, nullable=True),
        sa.Column("remote_state", sa.String(length=30), server_default=empty, nullable=False),
        sa.Column("file", text, nullable=True),
        sa.Column("results", sa.Text(), server_default="[]", nullable=False),
        sa.Column("line_count", sa.Integer(), nullable=False),
        sa.Column("item_count", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("body_bytes", sa.BigInteger(), nullable=False),
        sa.Column("worst_nano", sa.BigInteger(), nullable=False),
        sa.Column("succeeded", sa.Integer(), nullable=True),
        sa.Column("failed", sa.Integer(), nullable=True),
        sa.Column("cancel_wanted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("error_code", sa.String(length=100), server_default=empty, nullable=False),
        sa.Column("error", sa.Text(), server_default=empty, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("creating_at", sa.Float(), nullable=True),
        sa.Column("submitted_at", sa.Float(), nullable=True),
        sa.Column("polled_at", sa.Float(), nullable=True),
        sa.Column("next_poll_at", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("collected_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("realm", "job_id"),
    )
    op.create_index("provider_jobs_by_batch", "provider_jobs", ["realm", "batch_id", "created_at"])
    op.create_index("provider_jobs_by_state", "provider_jobs", ["realm", "state"])
    op.create_index("provider_jobs_by_name", "provider_jobs", ["realm", "remote_name"])
    op.create_table(
        "pages",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("url_hash", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("final_url", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("fetched_at", sa.Float(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("extractor", sa.String(length=60), nullable=False),
        sa.PrimaryKeyConstraint("realm", "url_hash"),
    )
