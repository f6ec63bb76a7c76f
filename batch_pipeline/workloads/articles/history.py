"""A job's way through its states, its execution log and its metrics.

What belongs here: pure functions from a JobRecord to these documents. What does not: reading jobs
(reading.py), files (files.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from batch_pipeline.ledger.documents import Document
from batch_pipeline.ledger.reviews import Decision
from batch_pipeline.ledger.tables import NANO, AttemptState, Outcome
from batch_pipeline.workloads.articles.package import SPEC_VERSION
from batch_pipeline.workloads.articles.qc.report import QcReport
from batch_pipeline.workloads.articles.reading import WRITING_STEPS, Call, JobRecord
from batch_pipeline.workloads.articles.record import PACKAGE, QC, EntryType, LogEntry, iso

State = Literal[
    "RECEIVE", "PREFLIGHT", "WRITE", "QC", "RESCUE", "DELIVER", "BLOCK", "ABORT", "SKIP"
]

ALLOWED: Mapping[State, Sequence[State]] = {
    "RECEIVE": ("PREFLIGHT", "ABORT", "SKIP"),
    "PREFLIGHT": ("WRITE", "QC", "BLOCK", "ABORT", "SKIP"),
    "WRITE": ("QC", "BLOCK", "ABORT", "SKIP"),
    "QC": ("DELIVER", "RESCUE", "BLOCK", "ABORT", "SKIP"),
    "RESCUE": ("QC", "ABORT"),
    "BLOCK": ("DELIVER", "SKIP"),
    "ABORT": (),
    "DELIVER": (),
    "SKIP": (),
}
"""State machine of a job. BLOCK and SKIP are ours: the origin had no end for a job that a person
must decide about, and none for one that a person took out. PREFLIGHT leads to QC where the package
alone is blocked, and to BLOCK where a model declines."""

FINAL_STATE: Mapping[Outcome, State | None] = {
    Outcome.SUCCEEDED: "DELIVER",
    Outcome.BLOCKED: "BLOCK",
    Outcome.FAILED: "ABORT",
    Outcome.SKIPPED: "SKIP",
    Outcome.PENDING: None,
}


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state; `before` is None for the first one."""

    at: float
    before: State | None
    after: State


def path_of(job: JobRecord) -> list[Transition]:
    """The states that a job went through, as far as its newest pass tells; times never go back."""
    path = _Path(job.batch.created_at)
    traces = [document.made_at for document in job.documents.values()]
    traces += [_seconds(entry.at) for entry in job.log]
    traces += [call.sent_at for call in job.calls]
    if traces:
        path.to("PREFLIGHT", min(traces))
    writing = [call.sent_at for call in _writing(job)]
    if writing or job.article is not None:
        package = job.documents.get(PACKAGE)
        path.to("WRITE", min(writing) if writing else package.made_at if package else path.at)
    judged = job.judged
    if judged is not None:
        noted = _noted_moves(judged)
        path.to("QC", noted.get(("WRITE", "QC"), judged.made_at))
        if job.qc is not None and job.qc.first_report is not None:
            path.to("RESCUE", noted.get(("QC", "RESCUE"), judged.made_at))
            path.to("QC", noted.get(("RESCUE", "QC"), judged.made_at))
    final = FINAL_STATE[job.item.outcome]
    decided = job.decision
    if decided is not None and judged is not None and judged.outcome is Outcome.BLOCKED:
        path.to("BLOCK", judged.made_at)
    if final is not None and final != path.state:
        settled_at = job.settled_at or path.at
        path.to(final, max(settled_at, decided.decided_at) if decided else settled_at)
    return path.transitions


def execution_log(job: JobRecord) -> dict[str, Any]:
    """The document `_execution_log.json`."""
    transitions = path_of(job)
    hashes = _hashes(job, transitions)
    entries = [_transition_entry(one, hashes) for one in transitions]
    # Steps note changes of state as well; those of all passes and people are in the path.
    entries += (entry for entry in job.log if entry.type != "state_transition")
    entries += map(_call_entry, job.calls)
    written_at = job.documents[QC].made_at if QC in job.documents else 0.0
    entries += (_cached_entry(step, written_at) for step in job.cached_steps)
    entries += _qc_entries(job)
    entries += map(_decision_entry, job.decisions)
    entries += (
        LogEntry(
            at=iso(document.made_at),
            type="info",
            message=f"{document.editor} edited the document of the step {step}.",
            details={"step": step, "editor": document.editor},
        )
        for step, document in job.documents.items()
        if document.editor
    )
    if job.item.error and job.item.outcome is not Outcome.SUCCEEDED:
        kind: EntryType = "error" if job.item.outcome is Outcome.FAILED else "warning"
        entries.append(
            LogEntry(
                at=iso(job.settled_at or transitions[-1].at),
                type=kind,
                message=job.item.error,
                details={"kind": job.item.error_kind},
            )
        )
    entries.sort(key=lambda entry: _seconds(entry.at))
    return {
        "metadata": {
            "job_id": job.job_id,
            "batch_id": job.batch.batch_id,
            "item_id": job.item.item_id,
            "row": job.item.number,
            "simulated": job.simulated,
            "spec_version": SPEC_VERSION,
            "runs": _runs(job),
            "publisher_domain": job.value("publisher"),
            "target_url": job.value("target"),
            "anchor_text": job.value("anchor"),
            "strategy": job.strategy,
        },
        "log_entries": [entry.model_dump() for entry in entries],
        "summary": {
            "status": job.status,
            "final_state": transitions[-1].after,
            "states": [one.after for one in transitions],
            "duration_seconds": round(job.duration_s, 3),
            "article_sha256": hashes,
            "decisions": len(job.decisions),
            "errors": sum(entry.type == "error" for entry in entries),
            "warnings": sum(entry.type == "warning" for entry in entries),
            "cost_usd": cost_usd(job.calls),
        },
    }


def metrics(job: JobRecord) -> dict[str, Any]:
    """The document `_metrics.json`: what the job took. All its calls are in it, once."""
    searches = job.search_calls
    return {
        "job_id": job.job_id,
        "status": job.status,
        "simulated": job.simulated,
        "generation": generation(job),
        "search": {
            "calls": len(searches),
            "units": sum(call.units for call in searches),
            "cost_usd": cost_usd(searches),
        },
        "waits": {"rate_limit_seconds": round(sum(call.rate_wait_s for call in job.calls), 3)},
        "duration_seconds": round(job.duration_s, 3),
        "cost_usd": cost_usd(job.calls),
        "lost_cost_usd": sum(call.lost_nano for call in job.calls) / NANO,
    }


def generation(job: JobRecord) -> dict[str, Any]:
    """What the models' part of a job took; `provider` and `model` are those that wrote it."""
    calls = job.model_calls
    writer = job.qc.model if job.qc is not None and job.qc.model else job.item.model or ""
    provider, _, model = writer.partition("/")
    answered = {
        call.step
        for call in calls
        if call.state == AttemptState.SETTLED.value and not call.error_kind
    }
    return {
        "provider": provider or None,
        "model": model or None,
        "strategy": job.strategy,
        "stages_completed": [
            step
            for step in WRITING_STEPS.get(job.strategy, ())
            if step in answered or step in job.cached_steps
        ],
        "stages_cached": job.cached_steps,
        "calls": len(calls),
        "retries": sum(call.reason != "first" for call in calls),
        "duration_seconds": round(sum(call.latency_s or 0.0 for call in calls), 3),
        "tokens": {
            "input": sum(call.input_tokens for call in calls),
            "output": sum(call.output_tokens for call in calls),
            "cached_input": sum(call.cached_input_tokens for call in calls),
        },
        "cost_usd": cost_usd(calls),
        "cached": job.cached,
    }


def cost_usd(calls: Sequence[Call]) -> float:
    """What calls cost that came back."""
    return sum(call.cost_nano for call in calls) / NANO


class _Path:
    """A way through the states, from RECEIVE on."""

    def __init__(self, received_at: float) -> None:
        self.transitions = [Transition(received_at, None, "RECEIVE")]

    @property
    def state(self) -> State:
        return self.transitions[-1].after

    @property
    def at(self) -> float:
        return self.transitions[-1].at

    def to(self, state: State, at: float) -> None:
        self.transitions.append(Transition(max(at, self.at), self.state, state))


def _writing(job: JobRecord) -> list[Call]:
    steps = {step for steps in WRITING_STEPS.values() for step in steps}
    return [call for call in job.calls if call.step in steps]


def _hashes(job: JobRecord, transitions: Sequence[Transition]) -> dict[str, str]:
    """SHA-256 of the article at each state that it is known in.

    Before the automatic repair it was another one, which is not kept.
    """
    if job.article is None:
        return {}
    digest = hashlib.sha256(job.article.markdown.encode()).hexdigest()
    states = [one.after for one in transitions]
    since = "RESCUE" if "RESCUE" in states else "WRITE"
    known = states[states.index(since) :] if since in states else []
    return {state: digest for state in known if state not in ("ABORT", "SKIP")}


def _transition_entry(one: Transition, hashes: Mapping[str, str]) -> LogEntry:
    details: dict[str, Any] = {"from": one.before, "to": one.after}
    if one.after in hashes:
        details["article_sha256"] = hashes[one.after]
    return LogEntry(
        at=iso(one.at),
        type="state_transition",
        message=f"{one.before} → {one.after}" if one.before else f"→ {one.after}",
        details=details,
    )


def _call_entry(call: Call) -> LogEntry:
    kind: EntryType = "info"
    what = "answered"
    if call.state == AttemptState.SENT.value:
        what = "was asked, its answer is awaited"
    elif call.state == AttemptState.LOST.value:
        kind, what = "warning", "was asked, no reply came"
    elif call.error_kind:
        kind, what = "warning", f"gave no usable answer ({call.error or call.error_kind})"
    return LogEntry(
        at=iso(call.sent_at),
        type=kind,
        message=f"{call.step}: {call.model} {what}",
        details={
            "step": call.step,
            "model": call.model,
            "attempt_id": call.attempt_id,
            "reason": call.reason,
            "lane": call.lane,
            "state": call.state,
            "http_status": call.status,
            "cached": False,
            "tokens": {
                "input": call.input_tokens,
                "output": call.output_tokens,
                "cached_input": call.cached_input_tokens,
            },
            "cost_usd": call.cost_nano / NANO,
            "lost_cost_usd": call.lost_nano / NANO,
            "latency_s": call.latency_s,
            "rate_wait_s": call.rate_wait_s,
        },
    )


def _cached_entry(step: str, at: float) -> LogEntry:
    return LogEntry(
        at=iso(at),
        type="info",
        message=f"{step}: a stored answer was used, nothing was paid",
        details={"step": step, "cached": True, "cost_usd": 0.0},
    )


def _qc_entries(job: JobRecord) -> list[LogEntry]:
    """QC's results and repairs, where the step itself did not note them."""
    if job.report is None or job.judged is None:
        return []
    at = job.judged.made_at
    noted = {entry.type for entry in job.log}
    entries = []
    if "qc_result" not in noted:
        first = job.qc.first_report if job.qc is not None else None
        entries += [_result_entry(one, at) for one in (first, job.report) if one]
    if "autofix" not in noted:
        entries += [
            LogEntry(at=iso(at), type="autofix", message=text) for text in job.report.autofix_logs
        ]
    return entries


def _result_entry(report: QcReport, at: float) -> LogEntry:
    return LogEntry(
        at=iso(at),
        type="qc_result",
        message=f"QC: {report.status}, {len(report.issues)} issues",
        details={
            "status": report.status,
            "issues": [f"{one.severity} {one.category}: {one.message}" for one in report.issues],
        },
    )


def _decision_entry(decision: Decision) -> LogEntry:
    return LogEntry(
        at=iso(decision.decided_at),
        type="info",
        message=decision.words,
        details={
            "decision": decision.kind.value,
            "reviewer": decision.reviewer,
            "reason": decision.reason,
            "signed_off": decision.signed_off,
        },
    )


def _noted_moves(document: Document) -> dict[tuple[str, str], float]:
    """When a step noted which change of state."""
    return {
        (entry["details"]["before"], entry["details"]["after"]): _seconds(entry["at"])
        for entry in document.content.get("log") or []
        if entry["type"] == "state_transition"
    }


def _runs(job: JobRecord) -> list[str]:
    named = [(document.made_at, document.run_id) for document in job.documents.values()]
    named += [(call.sent_at, call.run_id) for call in job.calls]
    return list(dict.fromkeys(run_id for _, run_id in sorted(named)))


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
