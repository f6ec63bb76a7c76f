"""The batch engine: plan, pack, admit, call, settle; knows neither Dagster nor an SDK."""
