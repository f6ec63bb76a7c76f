"""Cache keys: what makes two rows the same question.

What belongs here: the hash and what goes into it. What does not: the results behind a key
(ledger/calls.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import orjson

from batch_pipeline.engine.step import Step


class KeyMaker:
    """Makes the cache keys of one step.

    In the key: the content that the prompt uses, step, prompt text, output schema, parameters, how
    the model may search the web, and the sample index. Not in it: the model (stored beside the
    result, so that a longer route pays nothing again), the pack, user ids, chunk and batch. The
    realm is a column of its own.
    """

    def __init__(self, step: Step) -> None:
        parts: dict[str, Any] = {
            "step": step.name,
            "prompt": step.system_prompt,
            "schema": step.item_schema,
            "temperature": step.temperature,
        }
        if step.web_search is not None:
            # Only there: keys of other steps stay as they were before there were searches.
            parts["web_search"] = asdict(step.web_search)
        prefix = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
        self._prefix = hashlib.blake2b(prefix, digest_size=32)

    def key(self, content: Mapping[str, Any], sample_index: int = 0) -> str:
        """The key of one item; `sample_index` tells several answers to one question apart."""
        digest = self._prefix.copy()
        digest.update(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
        if sample_index:
            digest.update(b"#%d" % sample_index)
        return digest.hexdigest()
