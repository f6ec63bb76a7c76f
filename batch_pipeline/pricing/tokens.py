"""Token counts before a call, estimated from the text itself.

What belongs here: the local counter that packing, the limiter and the estimate use. What does not:
billed tokens (they come from replies), and the ratio by which a model's own tokenizer differs
(workloads/estimate.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

# One match is about one token of the large vocabularies of today's models (100,000 to 260,000
# tokens): a word with the space before it, pieces of longer words, three digits, a run of marks.
# No vocabulary is needed, and none could be downloaded on every user's machine. Measured against
# o200k on texts of this project: English prose, Markdown, JSON and code within 10 %; other European
# languages 1.2 to 1.6 times, Chinese and Japanese 0.7 to 0.9 times as many as there are.
_PIECES = re.compile(
    r" ?[A-Z]?[a-z]{1,10}"
    r"| ?[A-Z]{1,4}"
    r"|[0-9]{1,3}"
    r"| ?[!-/:-@\[-`{-~]{1,3}"
    r"|\s+"
    r"| ?[\u00c0-\u07ff]{1,7}"
    r"| ?[\u0800-\u1fff]{1,4}"
    r"|[\u3040-\u30ff\u4e00-\u9fff]{1,2}"
    r"|[\uac00-\ud7af]{1,2}"
    r"|[^\x00-\x7f]"
    r"|."
)

_REQUEST_OVERHEAD_TOKENS = 8
"""What a provider wraps around the messages of a request, about."""

_TEXT_FIELDS = frozenset({"text", "content", "system"})
_SCHEMA_FIELDS = frozenset({"schema", "responseJsonSchema"})

_ITEM_OVERHEAD_TOKENS = 5
"""`"id":"12",` and the comma behind an item of a packed request."""


def estimate_tokens(text: str | bytes) -> int:
    """Estimated tokens of `text`, at least 1; about 100 ns for each token."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return len(_PIECES.findall(text)) or 1


def estimate_item_tokens(content: Mapping[str, Any]) -> int:
    """Estimated tokens of one item of a packed request."""
    return estimate_tokens(orjson.dumps(content)) + _ITEM_OVERHEAD_TOKENS


def estimate_body_tokens(body: bytes) -> int:
    """Estimated prompt tokens of a whole request, in any provider's wire format.

    Args:
        body: the JSON body as it is sent.
    """
    counts = (estimate_tokens(text) for text in prompt_texts(orjson.loads(body)))
    return _REQUEST_OVERHEAD_TOKENS + sum(counts)


def prompt_texts(node: Any) -> Iterator[str]:
    """The texts of a request's body that the model reads: messages, system prompt, schema."""
    if isinstance(node, list):
        for child in node:
            yield from prompt_texts(child)
    elif isinstance(node, dict):
        for name, child in node.items():
            if name in _SCHEMA_FIELDS and isinstance(child, dict):
                yield orjson.dumps(child).decode()
            elif name in _TEXT_FIELDS and isinstance(child, str):
                yield child
            else:
                yield from prompt_texts(child)
