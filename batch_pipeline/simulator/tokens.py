"""Token counts by a real BPE (o200k): the simulator must not share the engine's own estimate."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import rs_bpe


@cache
def _tokenizer() -> Any:
    return rs_bpe.openai.o200k_base()


# Long repeated texts (system prompts, schemas) hit the cache; bounded: every user text is new.
@lru_cache(maxsize=4_096)
def count(text: str) -> int:
    """Return the number of tokens of a text."""
    return int(_tokenizer().count(text)) if text else 0


def truncate(text: str, limit: int) -> str:
    """Return the longest start of a text that has at most `limit` tokens."""
    encoded = _tokenizer().encode(text)
    for end in range(min(limit, len(encoded)), 0, -1):
        # A token boundary inside a character does not decode.
        decoded = _tokenizer().decode(encoded[:end])
        if decoded is not None:
            return str(decoded)
    return ""
