"""The news workload: is an article financial, about what and whom, in which mood; two summaries.

What belongs here: its rows, its step, its deliverables and its summary. What does not: knobs
(defs/news/), fetching pages (fetch/).
"""
