"""Rows that wait for a person, and what a decision about one comes to.

What belongs here: the seam for workloads that have more to show than an error, naming rows, and the
rules of each decision. What does not: statements (ledger/reviews.py), looks (cli/, api/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import sqlalchemy as sa

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import (
    INPUT_ERROR,
    Batch,
    Item,
    find_batch,
    read_items,
    stream_items,
)
from batch_pipeline.ledger.calls import find_results
from batch_pipeline.ledger.documents import Document, KeepDocument, read_documents
from batch_pipeline.ledger.reviews import (
    Decision,
    DecisionKind,
    NewDecision,
    ReviewConflictError,
    decide,
    place_of,
    read_history,
    waiting_rows,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome, items
from batch_pipeline.workloads.base import Workload, load_workload

_MOST_NUMBER = 2**31 - 1
_HEADLINE_CHARS = 100

Documents = Mapping[str, Document]
"""A row's documents by step."""


@dataclass(frozen=True, slots=True)
class ReviewIssue:
    """One thing that is wrong with a row.

    Attributes:
        category: what it is about, in a word.
        severity: how bad it is, in the workload's words; empty where it has none.
        message: what is wrong.
        suggestion: what would mend it.
        blocks: it is among the reasons why the row is blocked.
    """

    category: str
    severity: str
    message: str
    suggestion: str = ""
    blocks: bool = True


@dataclass(frozen=True, slots=True)
class ReviewFacts:
    """What a person needs to know to decide about a row.

    Attributes:
        headline: what the row is about, in one line.
        why: what is wrong with it, the worst first.
        signoff_required: to override it, somebody must vouch for it.
        signoff_reason: why.
        needs_writing: it was blocked before anything was written, so that there is no result yet.
        summary: what it was made of, as (label, text).
        text: what was written, as a person reads it.
        files: names of its files, within the batch's folder of deliverables.
    """

    headline: str
    why: Sequence[ReviewIssue]
    signoff_required: bool = False
    signoff_reason: str = ""
    needs_writing: bool = False
    summary: Sequence[tuple[str, str]] = ()
    text: str = ""
    files: Sequence[str] = ()


@runtime_checkable
class Reviewed(Protocol):
    """What a workload has besides `Workload` when there is more to its blocked rows than an error.

    A workload whose queue is to be an asset in the Dagster UI sets `has_review_queue` to true as
    well.
    """

    @property
    def signers(self) -> Sequence[str]:
        """Who may sign off; empty is anybody."""
        ...

    def review_name(self, batch: Batch, item: Item) -> str:
        """The name that users know a row by besides its id, such as a job id; empty for none."""
        ...

    def review_facts(self, batch: Batch, item: Item, documents: Documents) -> ReviewFacts:
        """What a person needs to know about a row that did not succeed."""
        ...

    def edit(
        self,
        batch: Batch,
        item: Item,
        documents: Documents,
        edited: Mapping[str, Any] | None,
        accepted: Sequence[str],
    ) -> Mapping[str, Mapping[str, Any]]:
        """Documents of a row as a person wants them, by step: the row goes on from them.

        Args:
            batch: its batch.
            item: the row.
            documents: those it has.
            edited: what the person wrote (for an article, its job package); None changes nothing.
            accepted: categories of issues that shall not block the row any more.

        Raises:
            UsageError: `edited` cannot be used; names the field. Or it is another row's.
        """
        ...


def has_review_queue(workload: Workload) -> bool:
    """Whether a workload's queue is an asset."""
    return bool(getattr(workload, "has_review_queue", False))


# ---- what waits ----------------------------------------------------------------------------------


class NoSuchRowError(UsageError):
    """The batch has no row of that name."""


@dataclass(frozen=True, slots=True)
class Case:
    """A row and all that a person needs to decide about it.

    Attributes:
        batch: its batch.
        item: the row.
        name: what users call it besides its id; may be empty.
        facts: what the workload says of it.
        files: those of its files that are there.
        history: the decisions so far, the first one first.
        since: when it ended as it did (UTC seconds); None for a pending one.
    """

    batch: Batch
    item: Item
    name: str
    facts: ReviewFacts
    files: Sequence[Path]
    history: Sequence[Decision]
    since: float | None


def find_row(ledger: Ledger, batch: Batch, name: str) -> Item:
    """The row that a person means: by its number, its item id, or its workload's own name for it.

    A number that is also some other row's item id means the row of that number.

    Raises:
        NoSuchRowError: there is none.
    """
    by_id = items.c.item_id == name
    wanted = by_id
    if name.isascii() and name.isdecimal() and len(name) < 11 and int(name) <= _MOST_NUMBER:
        wanted = sa.or_(by_id, items.c.number == int(name))
    with ledger.read() as connection:
        ordinal = connection.execute(
            sa.select(items.c.ordinal)
            .where(items.c.realm == ledger.realm, items.c.batch_id == batch.batch_id, wanted)
            .order_by(by_id)
        ).scalar()
        if ordinal is not None:
            return read_items(connection, ledger.realm, batch.batch_id, ordinal, 1)[0]
    seam = _seam(batch.workload)
    if seam is not None and name:
        for item in stream_items(ledger, batch.batch_id):
            if seam.review_name(batch, item) == name:
                return item
    raise NoSuchRowError(
        f"Batch {batch.batch_id} has no row {name!r}.",
        "Name it by its number (from 1, without the header) or its item id; "
        "`batch-pipeline review list` lists those that wait.",
    )


def read_case(ledger: Ledger, batch: Batch, item: Item, folder: Path | None = None) -> Case:
    """All about one row.

    Args:
        ledger: the ledger.
        batch: its batch.
        item: the row.
        folder: the batch's deliverables; None looks for no files.
    """
    with ledger.read() as connection:
        since = connection.execute(
            sa.select(items.c.settled_at).where(
                items.c.realm == ledger.realm,
                items.c.batch_id == batch.batch_id,
                items.c.ordinal == item.ordinal,
            )
        ).scalar()
        return _case(connection, ledger, batch, item, folder, since)


def list_cases(
    ledger: Ledger,
    folder_of: Callable[[Batch], Path],
    *,
    batch_id: str | None = None,
    workload: str | None = None,
    offset: int = 0,
    limit: int | None = None,
) -> list[Case]:
    """Blocked rows, those that wait longest first.

    Args:
        ledger: the ledger.
        folder_of: gives a batch's folder of deliverables.
        batch_id: only this batch; None is all but the small ones of `try`.
        workload: only this workload.
        offset: rows to leave out.
        limit: rows at most.
    """
    with ledger.read() as connection:
        waiting = waiting_rows(
            connection, ledger.realm,
            batch_id=batch_id, workload=workload, offset=offset, limit=limit,
        )  # fmt: skip
        known: dict[str, Batch] = {}
        for name in {row.batch_id for row in waiting}:
            found = find_batch(connection, ledger.realm, name)
            assert found is not None, "its rows are there"
            known[name] = found
        return [
            _case(
                connection,
                ledger,
                known[row.batch_id],
                row.item,
                folder_of(known[row.batch_id]),
                row.since,
            )
            for row in waiting
        ]


def _case(
    connection: sa.Connection,
    ledger: Ledger,
    batch: Batch,
    item: Item,
    folder: Path | None,
    since: float | None,
) -> Case:
    seam = _seam(batch.workload)
    documents = read_documents(connection, ledger.realm, batch.batch_id, [item.ordinal])
    facts = (
        _plain_facts(item)
        if seam is None
        else seam.review_facts(batch, item, documents.get(item.ordinal, {}))
    )
    return Case(
        batch=batch,
        item=item,
        name="" if seam is None else seam.review_name(batch, item),
        facts=facts,
        files=[] if folder is None else list(_existing(folder, facts.files)),
        history=read_history(connection, ledger.realm, batch.batch_id, item.ordinal),
        since=since,
    )


def _seam(workload: str) -> Reviewed | None:
    """The workload's side of reviews; None where it has none, or is gone."""
    try:
        found: Any = load_workload(workload)
    except UsageError:
        return None
    return found if isinstance(found, Reviewed) else None


def _plain_facts(item: Item) -> ReviewFacts:
    """What any row has: its values and its error."""
    values = [" ".join(str(value).split()) for value in item.row.values() if value]
    headline = " · ".join(values[:3])
    if len(headline) > _HEADLINE_CHARS:
        headline = headline[: _HEADLINE_CHARS - 1] + "…"
    error = _bare_error(item)
    return ReviewFacts(
        headline=headline,
        why=[ReviewIssue(item.error_kind or "", "", error)] if error else [],
        summary=[(name, str(value)) for name, value in item.row.items() if value],
    )


def _bare_error(item: Item) -> str:
    """A row's error without the row's name in front."""
    return (item.error or "").removeprefix(f"Row {item.number} ({item.item_id}): ")


def _existing(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        path = folder / name
        if path.is_file():
            yield path


# ---- decisions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a person says about rows.

    Attributes:
        kind: what is to be done.
        reviewer: who says so.
        reason: why.
        sign_off: the reviewer vouches for the rows.
        package: the row's edited document; `regenerate` of one row only.
    """

    kind: DecisionKind
    reviewer: str
    reason: str
    sign_off: bool = False
    package: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """A row and what was decided about it.

    Attributes:
        item: the row as it was before.
        decision: what was written.
        outcome: what the row is now; a pending one waits for the next run.
    """

    item: Item
    decision: Decision
    outcome: Outcome


def decide_rows(
    ledger: Ledger, batch: Batch, rows: Sequence[Item], verdict: Verdict
) -> list[Decided]:
    """Carry a person's verdict about rows out: for all of them, or for none.

    Raises:
        ReviewConflictError: a row is not one that can be decided now.
        UsageError: the verdict is not complete, or not one for these rows.
    """
    reviewer, reason = verdict.reviewer.strip(), verdict.reason.strip()
    if not reviewer:
        raise UsageError("A decision needs the reviewer's name.", "Say who decides (--by NAME).")
    if not reason:
        raise UsageError("A decision needs a reason.", "Say why (--reason TEXT).")
    if verdict.package is not None and len(rows) != 1:
        raise UsageError(
            "An edited package belongs to one row.", "Decide about the other rows by themselves."
        )
    unique = list({item.ordinal: item for item in rows}.values())
    new = [_plan(ledger, batch, item, verdict, reviewer, reason) for item in unique]
    written = decide(ledger, batch.batch_id, new)
    return [
        Decided(one.item, decision, one.outcome) for one, decision in zip(new, written, strict=True)
    ]


def _plan(
    ledger: Ledger, batch: Batch, item: Item, verdict: Verdict, reviewer: str, reason: str
) -> NewDecision:
    """What a verdict means for one row.

    Raises:
        ReviewConflictError: the row does not wait for one.
        UsageError: the verdict cannot be for this row.
    """
    with ledger.read() as connection:
        realm = ledger.realm
        # One view of all of it: what the caller has read may be older than the last decision.
        item = read_items(connection, realm, batch.batch_id, item.ordinal, 1)[0]
        history = read_history(connection, realm, batch.batch_id, item.ordinal)
        documents = read_documents(connection, realm, batch.batch_id, [item.ordinal]).get(
            item.ordinal, {}
        )
    _refuse_other_outcomes(item, verdict.kind, history)
    seam = _seam(batch.workload)
    facts = _plain_facts(item) if seam is None else seam.review_facts(batch, item, documents)
    signed_off = _sign_off(item, verdict, reviewer, facts, seam)
    issues = [
        {"category": one.category, "severity": one.severity, "message": one.message}
        for one in facts.why
    ]

    def decision(outcome: Outcome, **more: Any) -> NewDecision:
        more["details"] = {"issues": issues, **more.get("details", {})}
        return NewDecision(
            item, len(history), verdict.kind, reviewer, reason, outcome,
            signed_off=signed_off, **more,
        )  # fmt: skip

    def edited(accepted: Sequence[str]) -> list[KeepDocument]:
        assert seam is not None
        found = seam.edit(batch, item, documents, verdict.package, accepted)
        return [
            KeepDocument(
                realm=realm,
                batch_id=batch.batch_id,
                ordinal=item.ordinal,
                step=step,
                outcome=Outcome.SUCCEEDED,
                content=content,
                run_id=documents[step].run_id if step in documents else "",
                editor=reviewer,
            )
            for step, content in found.items()
        ]

    if verdict.kind is DecisionKind.SKIP:
        return decision(Outcome.SKIPPED, error=f"Skipped by {reviewer}: {reason}")
    if verdict.kind is DecisionKind.REGENERATE:
        if verdict.package is None:
            return decision(Outcome.PENDING, afresh=True, details={"edited": False})
        if seam is None:
            raise UsageError(
                f"Rows of the workload {batch.workload} have no package that could be edited.",
                "Leave the package out: the row is then asked anew as it is.",
            )
        return decision(
            Outcome.PENDING, afresh=True, documents=edited([]), details={"edited": True}
        )
    if seam is not None and facts.needs_writing:
        accepted = list(dict.fromkeys(one.category for one in facts.why if one.blocks))
        return decision(Outcome.PENDING, documents=edited(accepted), details={"accepted": accepted})
    if seam is None and not _has_answer(ledger, item):
        raise UsageError(
            f"{place_of(item)} has no answer that could be accepted: {_bare_error(item)}",
            "Have it asked again (`review regenerate`), or leave it out (`review skip`).",
        )
    return decision(Outcome.SUCCEEDED)


def _refuse_other_outcomes(item: Item, kind: DecisionKind, history: Sequence[Decision]) -> None:
    allowed = {Outcome.BLOCKED}
    if kind is not DecisionKind.OVERRIDE:
        allowed.add(Outcome.FAILED)
    if item.outcome not in allowed:
        decided = f" The last decision: {history[-1].words}" if history else ""
        raise ReviewConflictError(
            f"{place_of(item)} does not wait for a decision: it is {item.outcome.value}.{decided}",
            "`batch-pipeline review list` lists the rows that wait."
            if item.outcome is not Outcome.FAILED
            else "A failed row has nothing to accept: regenerate or skip it, or retry its batch.",
        )
    if kind is DecisionKind.REGENERATE and item.error_kind == INPUT_ERROR:
        raise UsageError(
            f"{place_of(item)} could not be read from the input: asking again cannot help.",
            "Correct the row in the input and run the corrected file, or skip it.",
        )


def _sign_off(
    item: Item, verdict: Verdict, reviewer: str, facts: ReviewFacts, seam: Reviewed | None
) -> bool:
    """Whether the reviewer vouches for the row.

    Raises:
        UsageError: somebody must, and does not or may not.
    """
    if verdict.kind is not DecisionKind.OVERRIDE:
        return False
    if facts.signoff_required and not verdict.sign_off:
        why = f": {facts.signoff_reason.rstrip('.')}" if facts.signoff_reason else ""
        raise UsageError(
            f"{place_of(item)} needs a sign-off{why}.",
            f'Add --sign-off (API: "sign_off": true). {_who(seam)}'.strip(),
        )
    if not verdict.sign_off:
        return False
    names = [] if seam is None else list(seam.signers)
    if names and reviewer.casefold() not in {name.strip().casefold() for name in names}:
        raise UsageError(f"{reviewer} may not sign off {place_of(item)}.", _who(seam))
    return True


def _who(seam: Reviewed | None) -> str:
    names = [] if seam is None else list(seam.signers)
    return f"These may sign off: {', '.join(names)}." if names else ""


def _has_answer(ledger: Ledger, item: Item) -> bool:
    if not item.cache_key or not item.model:
        return False
    with ledger.read() as connection:
        return item.cache_key in find_results(
            connection, ledger.realm, [item.cache_key], [item.model]
        )


def what_next(decided: Sequence[Decided]) -> str:
    """What happens after a decision, without a full stop: a door adds how to make it happen."""
    pending = sum(one.outcome is Outcome.PENDING for one in decided)
    if pending:
        rows = "1 row waits" if pending == 1 else f"{pending:,} rows wait"
        return f"{rows} for the next run of the batch"
    return "Report and deliverables follow with the next run of the batch"
