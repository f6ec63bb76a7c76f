"""`review`: rows that wait for a person: list them, show one, decide.

What belongs here: options, and how the queue and a row look in a terminal. What does not: what a
decision means (workloads/reviews.py), running (run.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output, cut, grid, iso, moment, usd, usd_of
from batch_pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from batch_pipeline.ledger.batches import Batch
    from batch_pipeline.ledger.reviews import Decision
    from batch_pipeline.settings import Settings
    from batch_pipeline.workloads.reviews import Case, Decided

_SHOWN = 100
_PACKAGE_BYTES = 5 * 1024 * 1024

app = typer.Typer(
    help="Rows that wait for a person: list, show, override, regenerate, skip.",
    no_args_is_help=True,
)

_Row = Annotated[str, typer.Argument(metavar="ROW", help="Row number, item id, or job id (job_…).")]
_Rows = Annotated[
    list[str], typer.Argument(metavar="ROW...", help="Row numbers, item ids, or job ids (job_…).")
]
_Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded.")]
_By = Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides; it is recorded.")]
_Run = Annotated[
    bool,
    typer.Option(
        "--run", help="Run the batch again right away, as `retry` does: with --json, the object is "
        "the run's."
    ),
]  # fmt: skip


@app.command("list")
def list_(
    batch: Annotated[str | None, typer.Argument(metavar="[BATCH]", help="Only this batch.")] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="Only batches of this workload.")
    ] = None,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """List blocked rows, those that wait longest first."""
    from batch_pipeline.ledger.overview import find_realm
    from batch_pipeline.ledger.reviews import count_waiting
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.reviews import list_cases

    voice = Output(json, verbose)
    settings = load_settings()
    ledger = (
        Ledger(settings.ledger_url, settings.realm(simulate))
        if batch is None
        else find_realm(settings, batch, simulate)[0]
    )
    with ledger:
        with ledger.read() as connection:
            queue = count_waiting(connection, ledger.realm, batch_id=batch, workload=workload)
        cases = list_cases(
            ledger,
            _folder_of(settings, ledger.realm == "simulated"),
            batch_id=batch,
            workload=workload,
            limit=None if json or verbose else _SHOWN,
        )
    voice.realm_notice(ledger.realm)
    voice.emit(
        {
            "simulated": ledger.realm == "simulated",
            "waiting": queue.rows,
            "oldest": iso(queue.oldest),
            "rows": [_line_document(case) for case in cases],
        }
    )
    if not cases:
        voice.out.print("No row waits for a decision.")
        if ledger.realm == "live" and batch is None:
            voice.note("Rows of rehearsals are listed with --simulate.")
        return OK
    table = grid("Batch", "Row", "Item", "What", "Worst issue", "Since (UTC)", "Sign-off",
                 right=("Row",))  # fmt: skip
    for case in cases:
        table.add_row(
            case.batch.batch_id,
            f"{case.item.number}",
            _plain(case.name or case.item.item_id),
            _plain(cut(case.facts.headline, 60)),
            _plain(cut(_worst(case), 80)),
            moment(case.since),
            "needed" if case.facts.signoff_required else "",
        )
    voice.out.print(table)
    if len(cases) < queue.rows:
        voice.out.print(f"… and {queue.rows - len(cases):,} more: --verbose or --json has all.")
    first = cases[0]
    voice.out.print(
        f"{_rows(queue.rows)} since {moment(queue.oldest)} UTC. Look at one: `batch-pipeline "
        f"review show {first.batch.batch_id} {first.item.number}`.",
        markup=False,
        soft_wrap=True,
    )
    return OK


@app.command("show")
def show(
    batch: opt.BatchId,
    row: _Row,
    article: Annotated[
        bool, typer.Option("--article", help="Print what was written as well, whole.")
    ] = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Show a row with all that is needed to decide about it."""
    from batch_pipeline.ledger.overview import find_realm
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.reviews import find_row, read_case

    voice = Output(json, verbose)
    settings = load_settings()
    ledger, found = find_realm(settings, batch, simulate)
    with ledger:
        folder = _folder_of(settings, ledger.realm == "simulated")(found)
        case = read_case(ledger, found, find_row(ledger, found, row), folder)
    voice.realm_notice(ledger.realm)
    voice.emit({"simulated": ledger.realm == "simulated", **_case_document(case)})
    if not json:
        _print(voice, case, article)
    return OK


@app.command("override")
def override(
    batch: opt.BatchId,
    rows: _Rows,
    reason: _Reason,
    by: _By,
    sign_off: Annotated[
        bool, typer.Option("--sign-off", help="Vouch for the rows, where the policy asks for it.")
    ] = False,
    run: _Run = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Accept blocked rows as they are: they count as succeeded.

    A row that was blocked before anything was written is written by the next run, and the issues
    that it has now do not block it any more.
    """
    return _decide(
        "override", batch, rows, reason, by, Output(json, verbose), simulate, run, sign_off=sign_off
    )


@app.command("regenerate")
def regenerate(
    batch: opt.BatchId,
    rows: _Rows,
    reason: _Reason,
    by: _By,
    package: Annotated[
        Path | None,
        typer.Option("--package", metavar="FILE", help="The row's edited job package (JSON)."),
    ] = None,
    run: _Run = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Have blocked or failed rows made anew: no stored answer counts for them any more."""
    return _decide(
        "regenerate", batch, rows, reason, by, Output(json, verbose), simulate, run,
        package=None if package is None else _read_package(package),
    )  # fmt: skip


@app.command("skip")
def skip(
    batch: opt.BatchId,
    rows: _Rows,
    reason: _Reason,
    by: _By,
    run: _Run = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Leave blocked or failed rows out for good."""
    return _decide("skip", batch, rows, reason, by, Output(json, verbose), simulate, run)


def _decide(
    kind: str,
    batch: str,
    rows: list[str],
    reason: str,
    by: str,
    voice: Output,
    simulate: bool | None,
    run: bool,
    *,
    sign_off: bool = False,
    package: dict[str, Any] | None = None,
) -> int:
    from batch_pipeline.ledger.overview import find_realm
    from batch_pipeline.ledger.reviews import DecisionKind
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.reviews import Verdict, decide_rows, find_row, what_next

    verdict = Verdict(DecisionKind(kind), by, reason, sign_off, package)
    ledger, found = find_realm(load_settings(), batch, simulate)
    with ledger:
        decided = decide_rows(
            ledger, found, [find_row(ledger, found, row) for row in rows], verdict
        )
    say = voice.note if run else lambda text: voice.out.print(text, markup=False, soft_wrap=True)
    for one in decided:
        say(
            f"Row {one.item.number:,} ({one.item.item_id}) was {one.item.outcome.value} and is "
            f"{one.outcome.value} now: {one.decision.words}"
        )
    if run:
        from batch_pipeline.cli.run import retry

        return retry(
            batch, simulate=ledger.realm == "simulated", json=voice.json, verbose=voice.verbose
        )
    voice.realm_notice(ledger.realm)
    next_step = f"{what_next(decided)}: `batch-pipeline retry {batch}`."
    say(next_step)
    voice.emit(
        {
            "batch": batch,
            "simulated": ledger.realm == "simulated",
            "rows": [_decided_document(one) for one in decided],
            "next_step": next_step,
        }
    )
    return OK


def _read_package(path: Path) -> dict[str, Any]:
    import json as json_

    try:
        if path.stat().st_size > _PACKAGE_BYTES:
            raise UsageError(f"{path} is larger than 5 MB: it is no job package.")
        found = json_.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"The package {path} cannot be read: {error.strerror}.", "Name a JSON file."
        ) from error
    except ValueError as error:
        raise UsageError(
            f"The package {path} is no JSON: {error}.",
            "Edit a copy of the row's own package; `review show` names the file.",
        ) from error
    if not isinstance(found, dict):
        raise UsageError(
            f"The package {path} is no JSON object.",
            "Edit a copy of the row's own package; `review show` names the file.",
        )
    return found


def _folder_of(settings: Settings, simulated: bool) -> Callable[[Batch], Path]:
    from batch_pipeline.workloads.runner import batch_folder

    realm = settings.realm(simulated)
    return lambda batch: batch_folder(settings, realm, batch.workload, batch.batch_id)


# ---- how a row looks -----------------------------------------------------------------------------


def _print(voice: Output, case: Case, article: bool) -> None:
    def say(text: str, style: str | None = None) -> None:
        voice.out.print(text, markup=False, soft_wrap=True, style=style)

    item, facts, batch_id = case.item, case.facts, case.batch.batch_id
    named = f" · {case.name}" if case.name else ""
    say(f"Row {item.number:,} of batch {batch_id} · item {item.item_id}{named}", "bold")
    say(facts.headline)
    since = f" since {moment(case.since)} UTC" if case.since else ""
    say(f"{item.outcome.value.capitalize()}{since} · cost {usd(usd_of(item.cost_nano))}")
    if item.error:
        say(f"Error: {item.error}", "red")
    if facts.needs_writing:
        say("It was blocked before anything was written: nothing was paid for writing.")
    if facts.signoff_required:
        say(f"To override it, a sign-off is needed. {facts.signoff_reason}".strip(), "yellow")
    if facts.why:
        table = grid("Severity", "About", "What is wrong", "What would mend it")
        for one in facts.why:
            table.add_row(*map(_plain, (one.severity, one.category, one.message, one.suggestion)))
        say("\nIssues", "bold")
        voice.out.print(table)
    if facts.summary:
        say("\nMade of", "bold")
        for label, text in facts.summary:
            say(f"{label}: {text if voice.verbose else cut(text, 400)}")
    if article:
        say("\nArticle", "bold")
        say(facts.text or "Nothing was written.")
    elif facts.text:
        say(f"\nArticle: {len(facts.text.split()):,} words; --article prints it.")
    if case.files:
        say("\nFiles", "bold")
        for path in case.files:
            say(str(path))
    say("\nDecisions so far", "bold")
    for decision in case.history:
        say(f"{decision.sequence}. {decision.words}")
    if not case.history:
        say("None.")
    if item.outcome in ("blocked", "failed"):
        kinds = "override|regenerate|skip" if item.outcome == "blocked" else "regenerate|skip"
        say(f"\nDecide: batch-pipeline review {kinds} {batch_id} {item.number} "
            "--reason TEXT --by NAME")  # fmt: skip


def _worst(case: Case) -> str:
    if not case.facts.why:
        return ""
    one = case.facts.why[0]
    return f"{' '.join(filter(None, (one.severity, one.category)))}: {one.message}"


def _rows(count: int) -> str:
    return "1 row waits" if count == 1 else f"{count:,} rows wait"


def _line_document(case: Case) -> dict[str, Any]:
    return {
        "batch": case.batch.batch_id,
        "workload": case.batch.workload,
        "row": case.item.number,
        "item_id": case.item.item_id,
        "name": case.name,
        "outcome": case.item.outcome.value,
        "headline": case.facts.headline,
        "issues": [
            {
                "severity": one.severity,
                "category": one.category,
                "message": one.message,
                "suggestion": one.suggestion,
                "blocks": one.blocks,
            }
            for one in case.facts.why
        ],
        "since": iso(case.since),
        "signoff_required": case.facts.signoff_required,
        "signoff_reason": case.facts.signoff_reason,
        "needs_writing": case.facts.needs_writing,
    }


def _case_document(case: Case) -> dict[str, Any]:
    return {
        **_line_document(case),
        "error": case.item.error or "",
        "error_kind": case.item.error_kind or "",
        "cost_usd": usd_of(case.item.cost_nano),
        "summary": dict(case.facts.summary),
        "article": case.facts.text,
        "files": [str(path) for path in case.files],
        "decisions": [_decision_document(one) for one in case.history],
    }


def _decision_document(decision: Decision) -> dict[str, Any]:
    return {
        "sequence": decision.sequence,
        "decision": decision.kind.value,
        "reviewer": decision.reviewer,
        "reason": decision.reason,
        "signed_off": decision.signed_off,
        "decided_at": iso(decision.decided_at),
        "details": decision.details,
    }


def _decided_document(one: Decided) -> dict[str, Any]:
    return {
        "row": one.item.number,
        "item_id": one.item.item_id,
        "was": one.item.outcome.value,
        "outcome": one.outcome.value,
        **_decision_document(one.decision),
    }


def _plain(text: str) -> str:
    """Text of a user or a model, so that Rich does not take it for markup."""
    from rich.markup import escape

    return escape(text)
