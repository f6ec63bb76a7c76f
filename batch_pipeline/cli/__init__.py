"""The command line, `batch-pipeline`: a thin door that starts Dagster runs and reads the ledger."""
