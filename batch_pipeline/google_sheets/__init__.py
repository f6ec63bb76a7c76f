"""Google Sheets: which worksheet is meant, who asks, and calls within the account's limits.

What belongs here: what source and write-back share. What does not: what rows mean (workloads/),
reading a table (sources/sheets.py), what is written back (sinks/sheets.py).
"""
