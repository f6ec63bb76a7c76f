"""Documents of rows, people's decisions about them, and more of what pages say."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what local steps and reviews need."""
    text = sa.String(length=200).with_variant(sa.Text(), "postgresql")
    empty = sa.text("''")
    op.add_column("pages", sa.Column("facts", sa.Text(), server_default="{}", nullable=False))
    op.create_table(
        "documents",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("batch_id", sa.String(length=200), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(length=100), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("made_at", sa.Float(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("editor", text, server_default=empty, nullable=False),
        sa.PrimaryKeyConstraint("realm", "batch_id", "ordinal", "step"),
    )
    op.create_table(
        "reviews",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("batch_id", sa.String(length=200), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("decision", sa.String(length=16), nullable=False),
        sa.Column("reviewer", text, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("signed_off", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("details", sa.Text(), server_default="{}", nullable=False),
        sa.Column("decided_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "batch_id", "ordinal", "sequence"),
    )
    op.create_index("reviews_by_time", "reviews", ["realm", "decided_at"])
