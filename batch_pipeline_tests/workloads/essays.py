"""A workload whose rows have a plan that people may edit; and batches of it with blocked rows.

What belongs here: what tests of reviews need. What does not: assertions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import (
    FINISH_ITEMS,
    LEASE_CHUNK,
    UNLEASE_CHUNK,
    Batch,
    FinishItems,
    Item,
    ItemOutcome,
    LeaseRequest,
    NewItem,
    Unlease,
    chunk_key,
    ingest,
)
from batch_pipeline.ledger.calls import HEARTBEAT, Owner
from batch_pipeline.ledger.documents import KEEP_DOCUMENT, KeepDocument
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.workloads.reviews import Documents, ReviewFacts, ReviewIssue
from batch_pipeline_tests.ledger.books import do

WORKLOAD = "batch_pipeline_tests.workloads.essays:Essays"
PLAN, ESSAY = "plan", "essay"


class Plan(BaseModel):
    """What an essay is written from."""

    model_config = ConfigDict(extra="forbid")

    job: str
    words: int
    accepted: list[str] = []


class Essays:
    """Essays are written from plans; those about money need a sign-off by Ann or Bo."""

    signers: Sequence[str] = ("Ann", "Bo Ek")

    def review_name(self, batch: Batch, item: Item) -> str:
        """The row's job id."""
        return f"job_{batch.batch_id}_{item.ordinal}"

    def review_facts(self, batch: Batch, item: Item, documents: Documents) -> ReviewFacts:
        """What the documents say."""
        essay = documents.get(ESSAY)
        name = self.review_name(batch, item)
        return ReviewFacts(
            headline=f"An essay about {item.row['Topic']}",
            why=[
                ReviewIssue("length", "HIGH", "It is too short.", "Write more."),
                ReviewIssue("style", "LOW", "It is dry.", blocks=False),
            ],
            signoff_required="money" in item.row["Topic"],
            signoff_reason="It is about money.",
            needs_writing=essay is None,
            summary=[("topic", item.row["Topic"])],
            text="" if essay is None else essay.content["text"],
            files=[f"{name}.md", "never_written.md"],
        )

    def edit(
        self,
        batch: Batch,
        item: Item,
        documents: Documents,
        edited: Mapping[str, Any] | None,
        accepted: Sequence[str],
    ) -> Mapping[str, Mapping[str, Any]]:
        """The plan as a person wants it."""
        given = documents[PLAN].content if edited is None else edited
        try:
            plan = Plan.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UsageError(f"The plan's {field}: {first['msg']}.", "Correct it.") from error
        if plan.job != self.review_name(batch, item):
            raise UsageError(f"The plan is of job {plan.job}.", "Take the row's own plan.")
        plan = plan.model_copy(update={"accepted": [*plan.accepted, *accepted]})
        return {PLAN: plan.model_dump()}


def blocked_batch(
    ledger: Ledger,
    topics: Sequence[str],
    *,
    batch_id: str = "essays",
    workload: str = WORKLOAD,
    written: bool = True,
    kind: str = "qc",
    outcome: Outcome = Outcome.BLOCKED,
) -> Batch:
    """A batch in chunks of two rows, all of which ended as `outcome`."""
    batch, _ = ingest(
        ledger,
        batch_id=batch_id,
        workload=workload,
        table_name="essays",
        source="essays.csv",
        columns=["Topic"],
        rows=[
            NewItem(f"{batch_id}-{at}", at + 1, {"Topic": topic}) for at, topic in enumerate(topics)
        ],
        options={},
        chunk_size=2,
        launch="door",
        warnings=[],
    )
    for at, topic in enumerate(topics):
        kept: dict[str, dict[str, Any]] = {PLAN: {"job": f"job_{batch_id}_{at}", "words": 300}}
        if written:
            kept[ESSAY] = {"text": f"# {topic}\n\nAll about it."}
        for step, content in kept.items():
            document = KeepDocument(
                ledger.realm, batch_id, at, step, Outcome.SUCCEEDED, content, "run-1"
            )
            do(ledger, KEEP_DOCUMENT, document)
    owner = Owner.here("run-1")
    for position in range(batch.chunk_count):
        fence = lease(ledger, owner, batch, position)
        ended = [
            ItemOutcome(at, outcome, error_kind=kind, error="It is too short.", cost_nano=7)
            for at in range(2 * position, min(2 * position + 2, len(topics)))
        ]
        finish(ledger, batch, position, fence, ended)
        key = chunk_key(batch_id, position + 1)
        do(ledger, UNLEASE_CHUNK, Unlease(ledger.realm, key, owner.owner_id, fence))
    return batch


def lease(ledger: Ledger, owner: Owner, batch: Batch, position: int) -> int:
    """Let a run take a chunk; gives the fence."""
    assert do(ledger, HEARTBEAT, owner)
    key = chunk_key(batch.batch_id, position + 1)
    fence = do(ledger, LEASE_CHUNK, LeaseRequest(ledger.realm, key, owner.owner_id)).fence
    assert fence is not None
    return fence


def finish(
    ledger: Ledger, batch: Batch, position: int, fence: int, ended: list[ItemOutcome]
) -> bool:
    """Let a run end rows of a chunk; False where it does not hold the chunk any more."""
    key = chunk_key(batch.batch_id, position + 1)
    request = FinishItems(ledger.realm, batch.batch_id, key, fence, ended)
    return do(ledger, FINISH_ITEMS, request)
