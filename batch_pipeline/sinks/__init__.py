"""Deliverables out: streams of rows become CSV, JSONL, Parquet and SQLite files.

What belongs here: writing tables of any meaning. What does not: which columns a workload delivers
(workloads/).
"""
