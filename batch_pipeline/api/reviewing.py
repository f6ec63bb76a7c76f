"""Rows that wait for a person, over HTTP: list them, look at one, decide.

What belongs here: these endpoints and their models. What does not: what a decision means
(workloads/reviews.py), running the batch again (`POST /runs`).
"""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from batch_pipeline.api.models import MOST_ROWS
from batch_pipeline.api.office import Office
from batch_pipeline.api.problems import ApiError, not_found, problem_responses, unusable
from batch_pipeline.api.reading import iso
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, find_batch
from batch_pipeline.ledger.reviews import (
    Decision,
    DecisionKind,
    ReviewConflictError,
    count_waiting,
)
from batch_pipeline.ledger.tables import NANO
from batch_pipeline.workloads.reviews import (
    Case,
    NoSuchRowError,
    Verdict,
    decide_rows,
    find_row,
    list_cases,
    read_case,
    what_next,
)
from batch_pipeline.workloads.runner import batch_folder

_MOST_CASES = 200

_BatchId = Annotated[str, Path(max_length=200, description="The batch.", examples=["my_batch"])]
_RowName = Annotated[
    str,
    Path(
        max_length=300,
        description="The row's number (from 1), its item id, or its job id.",
        examples=["3"],
    ),
]


class ReviewIssueView(BaseModel):
    """One thing that is wrong with a row."""

    severity: str = Field(description="In the workload's words; empty where it has none.")
    category: str
    message: str
    suggestion: str = Field(description="What would mend it.")
    blocks: bool = Field(description="It is among the reasons why the row is blocked.")


class DecisionView(BaseModel):
    """What a person decided."""

    sequence: int = Field(description="1, 2, ... of the row; the last one counts.")
    decision: DecisionKind
    reviewer: str
    reason: str
    signed_off: bool
    decided_at: str
    details: dict[str, Any] = Field(description="What the row had come to, and why.")


class ReviewLine(BaseModel):
    """A row of the queue."""

    batch: str
    workload: str
    row: int = Field(description="Its number in the input, from 1.")
    item_id: str
    name: str = Field(description="What users call it besides, such as a job id; may be empty.")
    outcome: str
    headline: str
    issues: list[ReviewIssueView] = Field(description="The worst first.")
    since: str | None = Field(description="When it ended so.")
    signoff_required: bool = Field(description="To override it, somebody must vouch for it.")
    signoff_reason: str
    needs_writing: bool = Field(description="It was blocked before anything was written.")
    link: str = Field(description="All about it.")


_LINE_EXAMPLE: dict[str, Any] = {
    "batch": "nov-backlinks",
    "workload": "articles",
    "row": 3,
    "item_id": "9f2c51d07aa3c0de",
    "name": "job_20251107_140000_ab12cd34",
    "outcome": "blocked",
    "headline": "example.se -> https://shop.example/lan (låna pengar)",
    "issues": [
        {
            "severity": "HIGH",
            "category": "lsi",
            "message": "3 LSI terms near the link, at least 6 are wanted.",
            "suggestion": "Write more about the subject around the link.",
            "blocks": True,
        }
    ],
    "since": "2026-11-22T10:35:00Z",
    "signoff_required": False,
    "signoff_reason": "",
    "needs_writing": False,
    "link": "/reviews/nov-backlinks/3",
}
_DECISION_EXAMPLE: dict[str, Any] = {
    "sequence": 1,
    "decision": "regenerate",
    "reviewer": "Ann",
    "reason": "Wrong angle.",
    "signed_off": False,
    "decided_at": "2026-11-22T11:00:00Z",
    "details": {"outcome": "blocked", "error_kind": "qc", "edited": True},
}


class ReviewQueue(BaseModel):
    """A page of blocked rows, those that wait longest first."""

    reviews: list[ReviewLine]
    total: int = Field(description="Rows on all pages.")
    offset: int
    next: str | None
    oldest: str | None = Field(description="Since when the first of all waits.")
    simulated: bool

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "reviews": [_LINE_EXAMPLE],
                "total": 1,
                "offset": 0,
                "next": None,
                "oldest": "2026-11-22T10:35:00Z",
                "simulated": True,
            }
        }
    )


class ReviewCase(ReviewLine):
    """A row with all that is needed to decide about it."""

    error: str
    error_kind: str
    cost_usd: float
    summary: dict[str, str] = Field(description="What it was made of.")
    article: str = Field(description="What was written; empty where nothing was.")
    files: list[str] = Field(description="Names of its files among the batch's deliverables.")
    decisions: list[DecisionView] = Field(description="So far, the first one first.")
    simulated: bool

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                **_LINE_EXAMPLE,
                "error": "Row 3 (9f2c51d07aa3c0de): QC blocked it: lsi.",
                "error_kind": "qc",
                "cost_usd": 0.0123,
                "summary": {"publisher": "example.se"},
                "article": "# Title\n\nText.",
                "files": ["blocked/job_20251107_140000_ab12cd34_article.md"],
                "decisions": [_DECISION_EXAMPLE],
                "simulated": True,
            }
        }
    )


class Skipping(BaseModel):
    """Who decides, and why."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"reviewer": "Ann", "reason": "The client withdrew it."}},
    )

    reviewer: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)
    ] = Field(description="Who decides; it is recorded.")
    reason: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)
    ] = Field(description="Why; it is recorded.")


class Overriding(Skipping):
    """Who accepts the row as it is, and why."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"reviewer": "Ann", "reason": "The sources are fine.", "sign_off": True}
        },
    )

    sign_off: bool = Field(
        default=False, description="The reviewer vouches for it, where the policy asks for that."
    )


class Regenerating(Skipping):
    """Who has the row made anew, why, and of what."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"reviewer": "Ann", "reason": "The model was overloaded."}},
    )

    package: dict[str, Any] | None = Field(
        default=None, description="The row's edited job package; null takes what there is."
    )


class Reviewed(DecisionView):
    """What was decided, and what comes next."""

    batch: str
    row: int
    item_id: str
    was: str = Field(description="The row's outcome before.")
    outcome: str = Field(description="The row's outcome now; a pending one waits for the next run.")
    next_step: str
    simulated: bool

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                **_DECISION_EXAMPLE,
                "batch": "nov-backlinks",
                "row": 3,
                "item_id": "9f2c51d07aa3c0de",
                "was": "blocked",
                "outcome": "pending",
                "next_step": "1 row waits for the next run of the batch: POST /runs with "
                '{"workload": "articles", "batch": "nov-backlinks"}.',
                "simulated": True,
            }
        }
    )


def add_reviewing(router: APIRouter, office: Office) -> None:
    """The endpoints, on a router whose token rules they share."""
    _add_queue(router, office)
    _add_decisions(router, office)


def _add_queue(router: APIRouter, office: Office) -> None:
    ledger = office.ledger

    @router.get(
        "/reviews",
        tags=["reviews"],
        responses=problem_responses(404, 422),
        operation_id="list_reviews",
        summary="Blocked rows that wait for a person, the oldest first",
    )
    def list_reviews(
        batch: Annotated[str | None, Query(max_length=200)] = None,
        workload: Annotated[str | None, Query(max_length=100)] = None,
        offset: Annotated[int, Query(ge=0, le=MOST_ROWS)] = 0,
        limit: Annotated[int, Query(ge=1, le=_MOST_CASES)] = 50,
    ) -> ReviewQueue:
        if batch is not None:
            _batch(office, batch)
        with ledger.read() as connection:
            queue = count_waiting(connection, ledger.realm, batch_id=batch, workload=workload)
        cases = list_cases(
            ledger,
            lambda of: _folder(office, of),
            batch_id=batch,
            workload=workload,
            offset=offset,
            limit=limit,
        )
        following = offset + limit if offset + limit < queue.rows else None
        query: dict[str, Any] = {"offset": following, "limit": limit}
        query |= {"batch": batch} if batch else {}
        query |= {"workload": workload} if workload else {}
        return ReviewQueue(
            reviews=[ReviewLine(**_line(case)) for case in cases],
            total=queue.rows,
            offset=offset,
            next=None if following is None else f"/reviews?{urlencode(query)}",
            oldest=None if queue.oldest is None else iso(queue.oldest),
            simulated=office.desk.simulated,
        )

    @router.get(
        "/reviews/{batch_id}/{row}",
        tags=["reviews"],
        responses=problem_responses(404, 422),
        operation_id="get_review",
        summary="One row with all that is needed to decide about it",
    )
    def get_review(batch_id: _BatchId, row: _RowName) -> ReviewCase:
        batch = _batch(office, batch_id)
        folder = _folder(office, batch)
        try:
            case = read_case(ledger, batch, find_row(ledger, batch, row), folder)
        except NoSuchRowError as error:
            raise _no_row(batch, error) from error
        return ReviewCase(
            **_line(case),
            error=case.item.error or "",
            error_kind=case.item.error_kind or "",
            cost_usd=case.item.cost_nano / NANO,
            summary=dict(case.facts.summary),
            article=case.facts.text,
            files=[str(path.relative_to(folder)) for path in case.files],
            decisions=[DecisionView(**_decision(one)) for one in case.history],
            simulated=office.desk.simulated,
        )


def _add_decisions(router: APIRouter, office: Office) -> None:
    answers = problem_responses(400, 404, 409, 413, 422)

    @router.post(
        "/reviews/{batch_id}/{row}/override",
        tags=["reviews"],
        responses=answers,
        operation_id="override_row",
        summary="Accept a blocked row as it is",
    )
    def override_row(batch_id: _BatchId, row: _RowName, body: Overriding) -> Reviewed:
        verdict = Verdict(DecisionKind.OVERRIDE, body.reviewer, body.reason, body.sign_off)
        return _decide(office, batch_id, row, verdict)

    @router.post(
        "/reviews/{batch_id}/{row}/regenerate",
        tags=["reviews"],
        responses=answers,
        operation_id="regenerate_row",
        summary="Have a blocked or failed row made anew by the next run",
    )
    def regenerate_row(batch_id: _BatchId, row: _RowName, body: Regenerating) -> Reviewed:
        verdict = Verdict(DecisionKind.REGENERATE, body.reviewer, body.reason, package=body.package)
        return _decide(office, batch_id, row, verdict)

    @router.post(
        "/reviews/{batch_id}/{row}/skip",
        tags=["reviews"],
        responses=answers,
        operation_id="skip_row",
        summary="Leave a blocked or failed row out for good",
    )
    def skip_row(batch_id: _BatchId, row: _RowName, body: Skipping) -> Reviewed:
        return _decide(
            office, batch_id, row, Verdict(DecisionKind.SKIP, body.reviewer, body.reason)
        )


def _decide(office: Office, batch_id: str, row: str, verdict: Verdict) -> Reviewed:
    batch = _batch(office, batch_id)
    ledger = office.ledger
    try:
        (one,) = decide_rows(ledger, batch, [find_row(ledger, batch, row)], verdict)
    except NoSuchRowError as error:
        raise _no_row(batch, error) from error
    except ReviewConflictError as error:
        raise ApiError(
            409, "conflict", error.message, f"GET /reviews/{batch_id}/{row} shows it as it is now."
        ) from error
    except UsageError as error:
        raise unusable(error) from error
    again = f'POST /runs with {{"workload": "{batch.workload}", "batch": "{batch_id}"}}'
    return Reviewed(
        **_decision(one.decision),
        batch=batch_id,
        row=one.item.number,
        item_id=one.item.item_id,
        was=one.item.outcome.value,
        outcome=one.outcome.value,
        next_step=f"{what_next([one])}: {again}.",
        simulated=office.desk.simulated,
    )


def _batch(office: Office, batch_id: str) -> Batch:
    with office.ledger.read() as connection:
        batch = find_batch(connection, office.ledger.realm, batch_id)
    if batch is None:
        raise not_found(f"There is no batch {batch_id!r}.")
    return batch


def _folder(office: Office, batch: Batch) -> FilePath:
    return batch_folder(office.settings, office.ledger.realm, batch.workload, batch.batch_id)


def _no_row(batch: Batch, error: NoSuchRowError) -> ApiError:
    return not_found(error.message, f"GET /reviews?batch={batch.batch_id} lists those that wait.")


def _line(case: Case) -> dict[str, Any]:
    item, facts = case.item, case.facts
    return {
        "batch": case.batch.batch_id,
        "workload": case.batch.workload,
        "row": item.number,
        "item_id": item.item_id,
        "name": case.name,
        "outcome": item.outcome.value,
        "headline": facts.headline,
        "issues": [
            ReviewIssueView(
                severity=one.severity,
                category=one.category,
                message=one.message,
                suggestion=one.suggestion,
                blocks=one.blocks,
            )
            for one in facts.why
        ],
        "since": None if case.since is None else iso(case.since),
        "signoff_required": facts.signoff_required,
        "signoff_reason": facts.signoff_reason,
        "needs_writing": facts.needs_writing,
        "link": f"/reviews/{case.batch.batch_id}/{item.number}",
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "sequence": decision.sequence,
        "decision": decision.kind,
        "reviewer": decision.reviewer,
        "reason": decision.reason,
        "signed_off": decision.signed_off,
        "decided_at": iso(decision.decided_at),
        "details": decision.details,
    }
