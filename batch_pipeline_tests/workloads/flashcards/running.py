"""Topics for runs, and what the ledger has of them: helpers of several tests.

What belongs here: making tables, reading records and calls. What does not: assertions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.documents import Document, read_documents
from batch_pipeline.ledger.tables import AttemptState, attempts
from batch_pipeline.workloads.flashcards.record import RECORD, TopicRecord
from batch_pipeline_tests.simulated import Bench, Simulator


def topic(title: str, **changes: str) -> dict[str, str]:
    """A row of a table of topics."""
    return {
        "topic_title": title,
        "category_title": "Cybersecurity",
        "domain_title": "Identity",
        "subdomain_title": "Authentication",
        "context": f"{title} is a way to tell who somebody is.",
        **changes,
    }


def write_topics(path: Path, topics: Sequence[Mapping[str, str]]) -> Path:
    """A JSONL file of topics."""
    path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in topics))
    return path


def bench(folder: Path, simulator: Simulator, **options: Any) -> Bench:
    """An installation that makes flashcards, with options over those of defs.yaml."""
    knobs = options.pop("knobs", {})
    return Bench(folder, simulator, workload="flashcards", options=options, **knobs)


def documents(one: Bench, batch: Batch) -> dict[int, dict[str, Document]]:
    """What local steps left, by row and step."""
    with one.open() as ledger, ledger.read() as connection:
        return read_documents(connection, ledger.realm, batch.batch_id)


def records(one: Bench, batch: Batch) -> list[TopicRecord]:
    """The records of topics that came so far, in order."""
    kept = documents(one, batch)
    return [
        TopicRecord.model_validate(kept[at][RECORD].content)
        for at in sorted(kept)
        if RECORD in kept[at]
    ]


def calls(one: Bench) -> Counter[str]:
    """Calls that were settled, by step."""
    with one.open() as ledger, ledger.read() as connection:
        settled = attempts.c.state == AttemptState.SETTLED.value
        return Counter(connection.execute(sa.select(attempts.c.step).where(settled)).scalars())
