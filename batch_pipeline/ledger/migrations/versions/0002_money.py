"""Budgets, spend, daily counts, slots and limits set by hand."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what budgets and the complete limiter need; sum up what was spent before."""
    op.add_column("batches", sa.Column("budget_nano", sa.BigInteger(), nullable=True))
    op.add_column("batches", sa.Column("estimate", sa.Text(), server_default="{}", nullable=False))
    for name in ("workload_day", "provider_day"):
        op.add_column(
            "attempts",
            sa.Column(name, sa.String(length=10), server_default=sa.text("''"), nullable=False),
        )
    op.add_column("attempts", sa.Column("reconciled_at", sa.Float(), nullable=True))
    op.add_column(
        "limit_rates",
        sa.Column("source", sa.String(length=16), server_default="user", nullable=False),
    )
    # a rate counts while its run goes on, and none does while the ledger is being migrated
    op.execute("DELETE FROM limit_rates")
    op.execute("ALTER TABLE limit_rates RENAME COLUMN per_second TO amount")
    op.create_table(
        "spend",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("scope_id", sa.String(length=200), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("reserved_nano", sa.BigInteger(), nullable=False),
        sa.Column("settled_nano", sa.BigInteger(), nullable=False),
        sa.Column("lost_nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "scope", "scope_id", "day"),
    )
    op.create_table(
        "limit_overrides",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=60), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=60), nullable=False),
        sa.Column("dimension", sa.String(length=30), nullable=False),
        sa.Column("amount", sa.Float(), nullable=False),
        sa.Column("set_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "provider", "model", "key_id", "dimension"),
    )
    op.create_table(
        "day_counts",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=60), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=60), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "provider", "model", "key_id", "day"),
    )
    op.create_table(
        "gates",
        sa.Column("realm", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=60), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("key_id", sa.String(length=60), nullable=False),
        sa.Column("owner_id", sa.String(length=40), nullable=False),
        sa.Column("held", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("wanted", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("in_flight", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("waiting", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "provider", "model", "key_id", "owner_id"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("items", "item_id", type_=sa.Text())
        op.alter_column("attempts", "answered_model", type_=sa.Text())
    _sum_up()


def _sum_up() -> None:
    """Fill `spend` from the attempts of the first schema; their days are UTC days."""
    connection = op.get_bind()
    day = (
        "strftime('%Y-%m-%d', sent_at, 'unixepoch')"
        if connection.dialect.name == "sqlite"
        else "to_char(to_timestamp(sent_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
    )
    connection.exec_driver_sql(f"UPDATE attempts SET workload_day = {day}, provider_day = {day}")
    for scope, scope_id, of_day in (
        ("batch", "batch_id", "''"),
        ("workload", "workload", "workload_day"),
        ("provider", "provider", "provider_day"),
    ):
        connection.exec_driver_sql(
            "INSERT INTO spend "
            "(realm, scope, scope_id, day, reserved_nano, settled_nano, lost_nano) "
            f"SELECT realm, '{scope}', {scope_id}, {of_day}, "
            "SUM(CASE WHEN state = 'sent' THEN worst_nano ELSE 0 END), "
            "SUM(CASE WHEN state = 'settled' THEN cost_nano ELSE 0 END), "
            "SUM(CASE WHEN state = 'lost' THEN cost_nano ELSE 0 END) "
            "FROM attempts GROUP BY 1, 2, 3, 4"
        )
