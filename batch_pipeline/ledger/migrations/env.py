"""Alembic's entry: migrates through the connection that `Ledger` hands over, online only."""

from alembic import context

from batch_pipeline.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
