"""What to do with each kind of table, in Python: one package per workload.

What belongs here: row and output models, steps, checks, deliverables. What does not: the engine,
Dagster, operators' knobs.
"""
