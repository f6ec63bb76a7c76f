"""What the local steps of rows gave: made in runs, or edited by a person.

What belongs here: statements on the table `documents`. What does not: what is in a document
(workloads/), or when a step runs (engine/local.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from batch_pipeline.ledger.calls import pack_bytes, unpack_bytes
from batch_pipeline.ledger.store import Ledger, upsert
from batch_pipeline.ledger.tables import Outcome, documents, items
from batch_pipeline.ledger.writer import Operation

_PAGE = 500
_KEYS = ["realm", "batch_id", "ordinal", "step"]
_VALUES = ["outcome", "content", "made_at", "run_id", "editor"]


@dataclass(frozen=True, slots=True)
class Document:
    """What one step gave for one row.

    Attributes:
        ordinal: the row's place in the batch, from 0.
        step: the step's name.
        outcome: what the step said of the row; SUCCEEDED where the row went on.
        content: JSON object.
        made_at: UTC seconds.
        run_id: the run that made it; of an edited one, the run whose document was edited.
        editor: who edited it; empty for what a run made.
    """

    ordinal: int
    step: str
    outcome: Outcome
    content: dict[str, Any]
    made_at: float
    run_id: str
    editor: str = ""


@dataclass(frozen=True, slots=True)
class KeepDocument:
    """A document to keep; it replaces the row's older one of that step.

    Attributes:
        cost_nano: what the row has cost so far that is not noted with it yet: it is with the
            document, because later runs may go on behind it.
    """

    realm: str
    batch_id: str
    ordinal: int
    step: str
    outcome: Outcome
    content: Mapping[str, Any]
    run_id: str
    editor: str = ""
    cost_nano: int = 0


def keep_documents(
    connection: sa.Connection, now: float, requests: Sequence[KeepDocument]
) -> list[float]:
    """Write documents; gives the time that each one now bears."""
    statement = upsert(connection.dialect.name, documents, _KEYS, update=_VALUES)
    for request in requests:
        connection.execute(
            statement,
            {
                "realm": request.realm,
                "batch_id": request.batch_id,
                "ordinal": request.ordinal,
                "step": request.step,
                "outcome": request.outcome.value,
                "content": pack_bytes(orjson.dumps(request.content)),
                "made_at": now,
                "run_id": request.run_id,
                "editor": request.editor,
            },
        )
        if request.cost_nano:
            connection.execute(
                sa.update(items)
                .where(
                    items.c.realm == request.realm,
                    items.c.batch_id == request.batch_id,
                    items.c.ordinal == request.ordinal,
                )
                .values(cost_nano=items.c.cost_nano + request.cost_nano)
            )
    return [now] * len(requests)


KEEP_DOCUMENT: Operation[float] = Operation("keep document", 45, keep_documents)


def read_documents(
    connection: sa.Connection,
    realm: str,
    batch_id: str,
    ordinals: Sequence[int] | None = None,
    *,
    steps: Sequence[str] | None = None,
) -> dict[int, dict[str, Document]]:
    """Documents of rows, by ordinal and step.

    Args:
        connection: of the ledger.
        realm: the realm.
        batch_id: the batch.
        ordinals: only these rows; None is all. Give all only for small batches.
        steps: only these steps; None is all.
    """
    chosen = [documents.c.realm == realm, documents.c.batch_id == batch_id]
    if steps is not None:
        chosen.append(documents.c.step.in_(list(steps)))
    found: dict[int, dict[str, Document]] = {}
    for page in _pages(ordinals):
        statement = sa.select(
            documents.c.ordinal,
            documents.c.step,
            documents.c.outcome,
            documents.c.content,
            documents.c.made_at,
            documents.c.run_id,
            documents.c.editor,
        ).where(*chosen, *([] if page is None else [documents.c.ordinal.in_(page)]))
        for row in connection.execute(statement):
            found.setdefault(row.ordinal, {})[row.step] = Document(
                ordinal=row.ordinal,
                step=row.step,
                outcome=Outcome(row.outcome),
                content=orjson.loads(unpack_bytes(row.content)),
                made_at=row.made_at,
                run_id=row.run_id,
                editor=row.editor,
            )
    return found


def documents_of(ledger: Ledger, batch_id: str, ordinal: int) -> dict[str, Document]:
    """One row's documents, by step."""
    with ledger.read() as connection:
        return read_documents(connection, ledger.realm, batch_id, [ordinal]).get(ordinal, {})


def _pages(ordinals: Sequence[int] | None) -> Iterator[list[int] | None]:
    if ordinals is None:
        yield None
        return
    for start in range(0, len(ordinals), _PAGE):
        yield list(ordinals[start : start + _PAGE])
