"""Alembic migrations of the ledger's schema; `Ledger` runs them on a database that is behind."""
