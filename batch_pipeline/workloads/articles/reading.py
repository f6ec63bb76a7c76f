"""The jobs of a batch as the ledger has them: row, documents, calls and decisions together.

What belongs here: JobRecord and its stream. What does not: what is made of it (history.py,
files.py, batch_report.py), statements that others need as well (ledger/).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import orjson
import sqlalchemy as sa

from batch_pipeline.engine.records import share_of
from batch_pipeline.ledger.batches import Batch, Item, read_items
from batch_pipeline.ledger.calls import find_results
from batch_pipeline.ledger.documents import Document, read_documents
from batch_pipeline.ledger.reviews import Decision, decisions_of, read_history
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import AttemptState, Outcome, attempts, items
from batch_pipeline.providers.registry import PROVIDERS
from batch_pipeline.settings import Realm
from batch_pipeline.workloads.articles.models import Article
from batch_pipeline.workloads.articles.package import JobPackage
from batch_pipeline.workloads.articles.qc.report import QcReport
from batch_pipeline.workloads.articles.record import (
    PACKAGE,
    PREFLIGHT,
    QC,
    LogEntry,
    PackageRecord,
    QcRecord,
    job_id,
)

WORKLOAD = "articles"

Status = Literal["DELIVERED", "BLOCKED", "ABORTED", "PENDING", "SKIPPED"]

STATUS_OF: Mapping[Outcome, Status] = {
    Outcome.SUCCEEDED: "DELIVERED",
    Outcome.BLOCKED: "BLOCKED",
    Outcome.FAILED: "ABORTED",
    Outcome.PENDING: "PENDING",
    Outcome.SKIPPED: "SKIPPED",
}

WRITING_STEPS: Mapping[str, Sequence[str]] = {
    "multi_stage": ("outline", "draft", "polish"),
    "single_shot": ("single_shot",),
}
"""LLM steps of each strategy, in order; the others profile."""

_PAGE = 200

# An attempt that was provably never sent is none to the user.
_WENT_OUT = (AttemptState.SENT.value, AttemptState.SETTLED.value, AttemptState.LOST.value)


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt, as far as one job bears it: tokens, cost and waiting in equal shares."""

    attempt_id: str
    step: str
    run_id: str
    reason: str
    provider: str
    model: str
    lane: str
    state: str
    sent_at: float
    settled_at: float | None
    status: int | None
    error_kind: str | None
    error: str | None
    latency_s: float | None
    rate_wait_s: float
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost_nano: int
    lost_nano: int
    counts: bool
    """Whether it is this job that counts the attempt: several may bear one."""
    units: int = 0
    """What a search provider counts beside money."""

    @property
    def is_search(self) -> bool:
        """Whether it asked a search provider, not a model."""
        return self.provider not in PROVIDERS


@dataclass(frozen=True)
class JobRecord:
    """All that the ledger has on one job.

    Attributes:
        batch: its batch.
        realm: the batch's realm.
        item: its row, and what it came to.
        settled_at: when the row ended (UTC seconds); None while it is pending.
        documents: what its local steps gave, by step; none of an earlier pass.
        calls: attempts made for it by this batch, in order.
        decisions: what people decided, in order.
    """

    batch: Batch
    realm: Realm
    item: Item
    settled_at: float | None
    documents: Mapping[str, Document]
    calls: Sequence[Call]
    decisions: Sequence[Decision]

    @property
    def simulated(self) -> bool:
        """Whether no provider was called for it."""
        return self.realm == "simulated"

    @cached_property
    def job_id(self) -> str:
        """Its id in files and reports."""
        return job_id(self.batch.batch_id, self.batch.created_at, self.item.item_id)

    @property
    def status(self) -> Status:
        """Its state, in the words of reports."""
        return STATUS_OF[self.item.outcome]

    def value(self, column: str) -> Any:
        """A value of its row; empty where the row could not be read."""
        return self.item.row.get(column, "")

    @cached_property
    def package(self) -> JobPackage | None:
        """What preflight found out; for a job that failed there, as far as it came."""
        if PACKAGE in self.documents:
            return PackageRecord.model_validate(self.documents[PACKAGE].content).package
        found = self._content(PREFLIGHT).get("package")
        return None if found is None else JobPackage.model_validate(found)

    @cached_property
    def qc(self) -> QcRecord | None:
        """What quality control left; None where the job did not come so far."""
        return QcRecord.model_validate(self._content(QC)) if QC in self.documents else None

    @cached_property
    def report(self) -> QcReport | None:
        """The last QC report: of the article, or of the package that stopped the job."""
        if self.qc is not None:
            return self.qc.report
        found = None if self._stopped is None else self._stopped.content.get("report")
        return None if found is None else QcReport.model_validate(found)

    @property
    def judged(self) -> Document | None:
        """What QC said its last word in."""
        return self.documents.get(QC) or self._stopped

    @property
    def _stopped(self) -> Document | None:
        """The package, where QC blocked the job for it before anything was written."""
        package = self.documents.get(PACKAGE)
        return package if package and package.outcome is Outcome.BLOCKED else None

    @property
    def article(self) -> Article | None:
        """The article as it is delivered."""
        return None if self.qc is None else self.qc.article

    @property
    def strategy(self) -> str:
        """How it is written."""
        if self.qc is not None:
            return self.qc.strategy
        if self.package is not None:
            return self.package.job_meta.mode
        return str(self.value("strategy") or "multi_stage")

    @cached_property
    def log(self) -> list[LogEntry]:
        """What its local steps noted, step by step."""
        entries = (
            self._content(step).get("log") or []
            for step in sorted(self.documents, key=lambda name: self.documents[name].made_at)
        )
        return [LogEntry.model_validate(entry) for entry in chain.from_iterable(entries)]

    @property
    def model_calls(self) -> list[Call]:
        """Calls of models, in order."""
        return [call for call in self.calls if not call.is_search]

    @property
    def search_calls(self) -> list[Call]:
        """Calls of search providers, in order."""
        return [call for call in self.calls if call.is_search]

    @cached_property
    def cached_steps(self) -> list[str]:
        """Writing steps that stored results answered: the article is there, and nobody asked."""
        if self.article is None:
            return []
        answered = {
            call.step
            for call in self.calls
            if call.state == AttemptState.SETTLED.value and not call.error_kind
        }
        return [step for step in WRITING_STEPS[self.strategy] if step not in answered]

    @property
    def cached(self) -> bool:
        """Whether it has an article that this batch called no model for."""
        return self.article is not None and not self.model_calls

    @property
    def decision(self) -> Decision | None:
        """The newest decision."""
        return self.decisions[-1] if self.decisions else None

    @cached_property
    def duration_s(self) -> float:
        """Seconds from its first trace to its last, summed over the runs that worked on it."""
        spans: dict[str, list[float]] = {}
        for document in self.documents.values():
            if not document.editor:
                spans.setdefault(document.run_id, []).append(document.made_at)
                spans[document.run_id] += (
                    datetime.fromisoformat(entry["at"]).timestamp()
                    for entry in document.content.get("log") or []
                )
        for call in self.calls:
            ended = call.sent_at if call.settled_at is None else call.settled_at
            spans.setdefault(call.run_id, []).extend((call.sent_at, ended))
        return sum(max(times) - min(times) for times in spans.values())

    def _content(self, step: str) -> dict[str, Any]:
        document = self.documents.get(step)
        return {} if document is None else document.content


def read_jobs(ledger: Ledger, batch: Batch) -> Iterator[JobRecord]:
    """The jobs of a batch, in order, page by page so that memory stays flat.

    Calls are as of the start, rows and documents as of their page.

    Args:
        ledger: the ledger, bound to the batch's realm.
        batch: a batch of the workload articles.
    """
    decided = decisions_of(ledger, batch.batch_id).keys()
    # Attempts name their rows in JSON, which no index helps to search: they are read once, and
    # looked up in a database of this process, which grows on disk.
    with closing(sqlite3.connect("")) as spool:
        _spool_calls(ledger, batch.batch_id, spool)
        first = 0
        while True:
            with ledger.read() as connection:
                page = list(_read_page(connection, ledger.realm, batch, first, spool, decided))
            if not page:
                return
            yield from page
            first = page[-1].item.ordinal + 1


def _read_page(
    connection: sa.Connection,
    realm: Realm,
    batch: Batch,
    first: int,
    spool: sqlite3.Connection,
    decided: Set[int],
) -> Iterator[JobRecord]:
    found = read_items(connection, realm, batch.batch_id, first, _PAGE)
    if not found:
        return
    ordinals = [item.ordinal for item in found]
    documents = read_documents(connection, realm, batch.batch_id, ordinals)
    decisions = {
        ordinal: read_history(connection, realm, batch.batch_id, ordinal)
        for ordinal in decided & set(ordinals)
    }
    settled: dict[int, float | None] = {
        row.ordinal: row.settled_at
        for row in connection.execute(
            sa.select(items.c.ordinal, items.c.settled_at).where(
                items.c.realm == realm,
                items.c.batch_id == batch.batch_id,
                items.c.ordinal.between(ordinals[0], ordinals[-1]),
            )
        )
    }
    calls = _page_calls(connection, realm, spool, ordinals)
    for item in found:
        yield JobRecord(
            batch=batch,
            realm=realm,
            item=item,
            settled_at=settled[item.ordinal],
            documents=_current(item, documents.get(item.ordinal, {})),
            calls=calls.get(item.ordinal, []),
            decisions=decisions.get(item.ordinal, []),
        )


def _page_calls(
    connection: sa.Connection, realm: Realm, spool: sqlite3.Connection, ordinals: Sequence[int]
) -> dict[int, list[Call]]:
    rows = [
        (ordinal, key, orjson.loads(text))
        for ordinal, key, text in spool.execute(
            "SELECT ordinal, key, call FROM calls WHERE ordinal BETWEEN ? AND ? ORDER BY ordinal, "
            "at",
            (ordinals[0], ordinals[-1]),
        )
    ]
    searched: dict[str, set[str]] = {}
    for _, key, values in rows:
        if values["provider"] not in PROVIDERS and not values["error_kind"]:
            searched.setdefault(values["model"], set()).add(key)
    units = {
        answer.attempt_id: answer.output.get("facts", {}).get("units")
        for endpoint, keys in searched.items()
        for answer in find_results(connection, realm, sorted(keys), [endpoint]).values()
    }
    calls: dict[int, list[Call]] = {}
    for ordinal, _, values in rows:
        counted = int(units.get(values["attempt_id"]) or 0)
        calls.setdefault(ordinal, []).append(Call(**values, units=counted))
    return calls


def _current(item: Item, documents: Mapping[str, Document]) -> dict[str, Document]:
    """Documents without those that an earlier pass left behind.

    A row that is done anew keeps its old documents until it comes to their steps again, and it may
    end before.
    """

    def is_of_this_pass(document: Document) -> bool:
        if document.made_at < item.fresh_at(document.step) and not document.editor:
            return False
        if item.outcome is Outcome.FAILED:
            return document.outcome is not Outcome.BLOCKED and document.step != QC
        if item.outcome is Outcome.BLOCKED and item.error_kind != "qc":
            return document.outcome is Outcome.SUCCEEDED and document.step != QC
        return True

    return {step: found for step, found in documents.items() if is_of_this_pass(found)}


_COPIED = (
    "attempt_id", "step", "run_id", "reason", "provider", "model", "lane", "state", "sent_at",
    "settled_at", "status", "error_kind", "error", "latency_s",
)  # fmt: skip
_SHARED = ("input_tokens", "cached_input_tokens", "output_tokens")


def _spool_calls(ledger: Ledger, batch_id: str, spool: sqlite3.Connection) -> None:
    """Write each row's share of each attempt of a batch to `spool`."""
    spool.execute("CREATE TABLE calls (ordinal INTEGER, at INTEGER, key TEXT, call BLOB)")
    columns = [attempts.c[name] for name in (*_COPIED, *_SHARED)]
    statement = (
        sa.select(attempts.c.members, attempts.c.cost_nano, attempts.c.rate_wait_s, *columns)
        .where(
            attempts.c.realm == ledger.realm,
            attempts.c.batch_id == batch_id,
            attempts.c.state.in_(_WENT_OUT),
        )
        .order_by(attempts.c.sent_at, attempts.c.attempt_id)
    )
    with ledger.read() as connection:
        streamed = connection.execution_options(yield_per=500).execute(statement)
        spool.executemany(
            "INSERT INTO calls VALUES (?, ?, ?, ?)",
            (
                (ordinal, at, key, orjson.dumps(call))
                for at, row in enumerate(streamed)
                for ordinal, key, call in _shares(row)
            ),
        )
    spool.execute("CREATE INDEX calls_by_ordinal ON calls (ordinal, at)")


def _shares(row: sa.Row[Any]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Of each row that an attempt asked about: its ordinal, the key of the question, its share."""
    members = orjson.loads(row.members)
    count = len(members)
    copied = {name: getattr(row, name) for name in _COPIED}
    for place, (ordinal, key) in enumerate(members):
        cost = share_of(row.cost_nano, count, place)
        share = {
            **copied,
            **{name: share_of(getattr(row, name), count, place) for name in _SHARED},
            "cost_nano": cost if row.state == AttemptState.SETTLED.value else 0,
            "lost_nano": cost if row.state == AttemptState.LOST.value else 0,
            "rate_wait_s": row.rate_wait_s / count,
            "counts": place == 0,
        }
        yield int(ordinal), str(key), share
