"""Token counts before a call, estimated from the text itself.

What belongs here: the estimator that packing and the limiter use. What does not: billed tokens
(they come from replies).
"""

from __future__ import annotations

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes per token of English prose and JSON in today's tokenizers; other scripts have fewer
bytes per character left after UTF-8 and so come out on the safe side."""


def estimate_tokens(text: str | bytes) -> int:
    """Estimated tokens of `text`, rounded up."""
    size = len(text) if isinstance(text, bytes) else len(text.encode())
    return int(size / BYTES_PER_TOKEN) + 1
