"""What a person sees of an article job that waits for a decision, and what an edit makes of it.

What belongs here: the articles' side of reviews (workloads/reviews.py). What does not: decisions
and their rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch, Item
from batch_pipeline.ledger.documents import Document
from batch_pipeline.workloads.articles.files import file_names
from batch_pipeline.workloads.articles.package import JobPackage
from batch_pipeline.workloads.articles.qc.report import QcReport
from batch_pipeline.workloads.articles.record import (
    PACKAGE,
    PREFLIGHT,
    QC,
    PackageRecord,
    QcRecord,
    job_id,
)
from batch_pipeline.workloads.operator_files import problems_of
from batch_pipeline.workloads.reviews import ReviewFacts, ReviewIssue

_BLOCKING = ("CRITICAL", "HIGH")


def name_of(batch: Batch, item: Item) -> str:
    """The job's id."""
    return job_id(batch.batch_id, batch.created_at, item.item_id)


def facts_of(batch: Batch, item: Item, documents: Mapping[str, Document]) -> ReviewFacts:
    """What a person needs to know about a job that was not delivered."""
    packed, checked = _records(item, documents)
    report = checked.report if checked is not None else packed.report if packed else None
    article = None if checked is None else checked.article
    row = item.row
    return ReviewFacts(
        headline=f"{row.get('publisher')} → {row.get('target')} ({row.get('anchor')})",
        why=_issues(item, report),
        signoff_required=report is not None and report.human_signoff_required,
        signoff_reason="" if report is None else report.signoff_reason,
        needs_writing=report is not None and article is None,
        summary=[] if packed is None else _summary(packed.package, checked),
        text="" if article is None else article.markdown,
        files=file_names(name_of(batch, item), item.outcome),
    )


def edited_documents(
    batch: Batch,
    item: Item,
    documents: Mapping[str, Document],
    edited: Mapping[str, Any] | None,
    accepted: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """The job package as a person wants it.

    Args:
        batch: the job's batch.
        item: the job.
        documents: those it has.
        edited: a whole job package; None keeps the one that is there.
        accepted: QC categories that shall not block the job any more.

    Raises:
        UsageError: there is no package, it does not validate, or it is another job's.
    """
    packed, _ = _records(item, documents)
    if edited is not None:
        package = _read(edited)
    elif packed is not None:
        package = packed.package
    else:
        raise UsageError(
            f"Job {name_of(batch, item)} has no job package yet.",
            "Run it again instead: `batch-pipeline retry`.",
        )
    name, given = name_of(batch, item), package.job_meta.job_id
    if given != name:
        raise UsageError(
            f"The package is of job {given}, and this is {name}.",
            "Edit the job's own file: its name begins with the job's id.",
        )
    anchor, proposed = package.input_minimal.anchor_text, package.anchor_profile.proposed_text
    if anchor.strip() != proposed.strip():
        # One is what the article is written with, the other what it is checked against.
        raise UsageError(
            f"The package names two link texts: input_minimal.anchor_text is {anchor!r}, "
            f"anchor_profile.proposed_text is {proposed!r}.",
            "Write the same in both.",
        )
    constraints = package.generation_constraints
    known = list(dict.fromkeys([*constraints.accepted_issues, *accepted]))
    package = package.model_copy(
        update={"generation_constraints": constraints.model_copy(update={"accepted_issues": known})}
    )
    log = packed.log if packed is not None else []
    return {PACKAGE: PackageRecord(package=package, log=log).model_dump(mode="json")}


def _read(edited: Mapping[str, Any]) -> JobPackage:
    try:
        return JobPackage.model_validate(dict(edited))
    except ValidationError as error:
        raise UsageError(
            f"The job package cannot be used: {problems_of(error, most=5)}.",
            "Its schema is batch_pipeline/workloads/articles/job_package.schema.json.",
        ) from error


def _records(
    item: Item, documents: Mapping[str, Document]
) -> tuple[PackageRecord | None, QcRecord | None]:
    """The job's package and what QC said; None where it did not get so far this time."""
    package = documents.get(PACKAGE)
    if package is None and item.error_kind == PREFLIGHT:
        package = documents.get(PREFLIGHT)
    checked = documents.get(QC)
    packed = None if package is None else PackageRecord.model_validate(package.content)
    if checked is None or (packed is not None and packed.report is not None):
        return packed, None
    if checked.made_at < item.fresh_at(QC):
        return packed, None
    return packed, QcRecord.model_validate(checked.content)


def _issues(item: Item, report: QcReport | None) -> list[ReviewIssue]:
    if report is None:
        error = (item.error or "").removeprefix(f"Row {item.number} ({item.item_id}): ")
        return [ReviewIssue(item.error_kind or "", "", error)] if error else []
    found = [
        ReviewIssue(
            one.category,
            one.severity,
            one.message,
            one.fix_suggestion,
            blocks=one.severity in _BLOCKING,
        )
        for one in report.issues
    ]
    if report.human_signoff_required and report.status != "BLOCKED":
        found.insert(0, ReviewIssue("signoff", "", report.signoff_reason))
    return found


def _summary(package: JobPackage, checked: QcRecord | None) -> list[tuple[str, str]]:
    """The job in a few lines."""
    intent, serp = package.intent_extension, package.serp_research_extension
    limits = package.generation_constraints
    alignment, anchor = intent.intent_alignment, package.anchor_profile
    lines = [
        ("publisher", package.publisher_profile.domain),
        ("target", f"{package.target_profile.title} ({package.target_profile.url})"),
        ("link text", f"{anchor.proposed_text} ({anchor.llm_classified_type})"),
        ("main query", f"{serp.main_query} ({package.job_meta.serp_source})"),
        (
            "intents",
            f"search {intent.serp_intent_primary}, target {intent.target_page_intent}, link text "
            f"{intent.anchor_implied_intent}, publisher {intent.publisher_role_intent}: "
            f"{alignment.overall}, bridge {intent.recommended_bridge_type}",
        ),
        ("language", limits.language),
        ("strategy", package.job_meta.mode),
    ]
    if limits.accepted_issues:
        lines.append(("accepted by a reviewer", ", ".join(limits.accepted_issues)))
    if checked is not None:
        lines.append(("written by", checked.model))
    return lines
