"""Ledgers with rows, owners and attempts in them, for tests of the statements on them.

What belongs here: short ways to write. What does not: assertions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import orjson

from batch_pipeline.clock import Clock
from batch_pipeline.ledger.batches import Batch, NewItem, ingest
from batch_pipeline.ledger.calls import NewAttempt
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.writer import Operation
from batch_pipeline.settings import Realm

T = TypeVar("T")

MODEL = "google/gemini-3.1-flash-lite"


def open_ledger(
    where: str | Path, realm: Realm = "simulated", clock: Clock | None = None
) -> Ledger:
    """The ledger at a URL, or the SQLite file in a folder."""
    url = where if isinstance(where, str) else f"sqlite:///{where / 'ledger.db'}"
    return Ledger(url, realm, clock)


def do(ledger: Ledger, operation: Operation[T], parameters: Any) -> T:
    """Write, and wait until it is committed."""
    return ledger.writer.submit(operation, parameters).result(60)


def rows(count: int, word: str = "row") -> list[NewItem]:
    """Plain rows."""
    return [
        NewItem(item_id=f"{word}-{index}", number=index + 1, row={"Topic": f"{word} {index}"})
        for index in range(count)
    ]


def ingest_rows(
    ledger: Ledger, batch_id: str, given: Iterable[NewItem], **settings: Any
) -> tuple[Batch, bool]:
    """Ingest rows as a batch of the roadmaps workload."""
    defaults: dict[str, Any] = {
        "workload": "roadmaps",
        "table_name": "rows",
        "source": "rows.csv",
        "columns": ["Topic"],
        "options": {},
        "chunk_size": 100,
        "launch": "door",
        "warnings": [],
    }
    return ingest(ledger, batch_id=batch_id, rows=given, **{**defaults, **settings})


def new_attempt(attempt_id: str, owner_id: str, **fields: Any) -> NewAttempt:
    """An attempt about two cache keys, `key-0` and `key-1`."""
    defaults: dict[str, Any] = {
        "attempt_id": attempt_id,
        "realm": "simulated",
        "workload": "roadmaps",
        "step": "enrich",
        "batch_id": "batch",
        "run_id": "run",
        "request_id": "request",
        "parent_request_id": None,
        "reason": "first",
        "provider": "google",
        "model": MODEL,
        "key_id": "…abcd",
        "lane": "realtime",
        "owner_id": owner_id,
        "item_count": 2,
        "members": orjson.dumps([[0, "key-0"], [1, "key-1"]]).decode(),
        "estimated_input_tokens": 100,
        "worst_nano": 5_000,
        "rate_wait_s": 0.0,
        "workload_day": "2026-11-21",
        "provider_day": "2026-11-21",
        "timeout_s": 30.0,
    }
    return NewAttempt(**{**defaults, **fields})
