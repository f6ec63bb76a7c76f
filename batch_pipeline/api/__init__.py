"""The REST API: takes tables over HTTP, starts Dagster runs for them, and reads the ledger.

What belongs here: endpoints, their models, the queue of what was submitted. What does not: ingest,
runs and sums, which every door shares (doors.py, workloads/, reports/).
"""
