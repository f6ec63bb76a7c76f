"""The ledger on SQLite files."""
