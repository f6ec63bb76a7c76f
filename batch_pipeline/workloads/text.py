"""Small text rules that several workloads share.

What belongs here: pure functions on text without a domain. What does not: prompts and parsing.
"""

from __future__ import annotations


def cut_at_word(text: str, limit: int) -> str:
    """`text`, or its beginning of at most `limit` characters that ends with a whole word.

    A single word longer than the limit is cut inside.
    """
    if len(text) <= limit:
        return text
    head = text[:limit]
    if not text[limit].isspace() and not head[-1:].isspace():
        words = head.split()
        if len(words) > 1:
            head = head[: head.rindex(words[-1])]
    return head.rstrip()


def one_line(text: str) -> str:
    """`text` with every run of white space as one space."""
    return " ".join(text.split())
