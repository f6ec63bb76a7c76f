"""Counts in words, for every layer.

What belongs here: the words that every layer needs. What does not: figures of reports
(reports/words.py).
"""

from __future__ import annotations


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2,000 rows`; `many` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
