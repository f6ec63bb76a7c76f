"""Steps whose answers are kept when a row is asked anew, and notes on tables."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what says which steps of a row keep their answers, and what is said of a table."""
    op.add_column("items", sa.Column("kept_steps", sa.Text(), server_default="{}", nullable=False))
    op.add_column("batches", sa.Column("notes", sa.Text(), server_default="[]", nullable=False))
