"""`status` and `failed`: where batches stand, from the ledger alone.

What belongs here: reading and showing. What does not: SQL (ledger/overview.py), starting anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import (
    OK,
    Output,
    cut,
    grid,
    iso,
    moment,
    usd,
    usd_of,
)

if TYPE_CHECKING:
    from batch_pipeline.ledger.overview import BatchLine, LastRun
    from batch_pipeline.ledger.tables import Outcome

TRIAL_PREFIX = "try-"

_FIGURES = ("Rows", "Succeeded", "Blocked", "Failed", "Skipped", "Pending", "Cost")
_SHOWN_FAILED = 200


def status(
    batch: Annotated[
        str | None, typer.Argument(metavar="[BATCH]", help="One batch with its chunks.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="List the batches of `try` as well.")] = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """List batches and how their rows ended, in both realms; or one batch with its chunks."""
    voice = Output(json, verbose)
    return _one(voice, batch, simulate) if batch else _every(voice, simulate, all_)


def failed(
    batch: opt.BatchId,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """List a batch's failed and blocked rows: which, why, and what to do."""
    from batch_pipeline.ledger.overview import bad_rows, find_realm
    from batch_pipeline.reports.advice import next_step
    from batch_pipeline.settings import load_settings

    voice = Output(json, verbose)
    ledger, found = find_realm(load_settings(), batch, simulate)
    with ledger, ledger.read() as connection:
        rows = bad_rows(connection, ledger.realm, found.batch_id)
    voice.realm_notice(ledger.realm)
    voice.emit(
        {
            "batch": batch,
            "simulated": ledger.realm == "simulated",
            "rows": [
                {
                    "row": row.number,
                    "item_id": row.item_id,
                    "outcome": row.outcome.value,
                    "kind": row.error_kind,
                    "error": row.error,
                    "next_step": next_step(row.error_kind, batch, row.number),
                }
                for row in rows
            ],
        }
    )
    if not rows:
        voice.out.print(f"Batch {batch} has no failed and no blocked row.", markup=False)
        return OK
    table = grid("Row", "Item", "Outcome", "Error", right=("Row",))
    shown = rows if verbose else rows[:_SHOWN_FAILED]
    for row in shown:
        error = row.error.removeprefix(f"Row {row.number} ({row.item_id}): ")
        table.add_row(
            f"{row.number:,}",
            _plain(row.item_id),
            row.outcome.value,
            _plain(error if verbose else cut(error, 200)),
        )
    voice.out.print(table)
    if len(shown) < len(rows):
        voice.out.print(f"… and {len(rows) - len(shown):,} more: --verbose or --json has all.")
    kinds = {(row.outcome, row.error_kind): row for row in rows}
    for (outcome, kind), row in kinds.items():
        count = sum((other.outcome, other.error_kind) == (outcome, kind) for other in rows)
        advice = next_step(kind, batch, row.number)
        voice.out.print(f"{count:,} {outcome.value} ({kind}): {advice}", markup=False)
    return OK


def _every(voice: Output, simulate: bool | None, all_: bool) -> int:
    from batch_pipeline.ledger.overview import REALMS, list_lines
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import load_settings

    settings = load_settings()
    realms = REALMS if simulate is None else (settings.realm(simulate),)
    lines: list[BatchLine] = []
    for realm in realms:
        with Ledger(settings.ledger_url, realm) as ledger, ledger.read() as connection:
            lines += list_lines(connection, ledger.now(connection), realm)
    lines.sort(key=lambda line: line.created_at, reverse=True)
    shown = [line for line in lines if all_ or not line.batch_id.startswith(TRIAL_PREFIX)]
    hidden = len(lines) - len(shown)
    voice.emit({"batches": [_line_document(line) for line in shown]})
    if not shown:
        voice.out.print("No batch yet. `batch-pipeline demo` makes one without a key.")
    else:
        table = grid("Batch", "Workload", "Realm", *_FIGURES, "Last run (UTC)", right=_FIGURES)
        for line in shown:
            table.add_row(
                line.batch_id,
                line.workload,
                line.realm,
                f"{line.rows:,}",
                *_outcome_cells(line.outcomes),
                usd(usd_of(line.cost_nano)),
                _run_words(line.last_run),
            )
        voice.out.print(table)
    if hidden:
        voice.out.print(f"{hidden} small batches of `try` are not listed; --all lists them.")
    return OK


def _one(voice: Output, batch: str, simulate: bool | None) -> int:
    from batch_pipeline.ledger.batches import list_chunks
    from batch_pipeline.ledger.overview import batch_costs, chunk_outcomes, find_realm, last_runs
    from batch_pipeline.ledger.tables import Outcome
    from batch_pipeline.settings import load_settings

    ledger, found = find_realm(load_settings(), batch, simulate)
    with ledger, ledger.read() as connection:
        chunks = list_chunks(connection, ledger.realm, batch)
        by_chunk = chunk_outcomes(connection, found, ledger.realm)
        cost, lost = batch_costs(connection, ledger.realm, batch)
        last = last_runs(connection, ledger.now(connection), ledger.realm, batch).get(batch)
    outcomes = {kind: sum(counts.get(kind, 0) for counts in by_chunk.values()) for kind in Outcome}
    voice.realm_notice(ledger.realm)
    voice.emit(
        {
            "batch": batch,
            "workload": found.workload,
            "simulated": ledger.realm == "simulated",
            "source": found.source,
            "ingested_at": iso(found.created_at),
            "rows": found.row_count,
            **_outcome_document(outcomes),
            "cost_usd": usd_of(cost),
            "lost_cost_usd": usd_of(lost),
            "last_run": _run_document(last),
            "warnings": found.warnings,
            "notes": found.notes,
            "chunks": [
                {
                    "chunk": chunk.chunk_key,
                    "first_row": chunk.first_ordinal + 1,
                    "rows": chunk.row_count,
                    **_outcome_document(by_chunk.get(chunk.position, {})),
                }
                for chunk in chunks
            ],
        }
    )
    voice.out.print(
        f"Batch {batch} · {found.workload} · {ledger.realm} · {found.row_count:,} rows from "
        f"{found.source} · ingested {moment(found.created_at)} UTC",
        markup=False,
        soft_wrap=True,
    )
    money = f"Cost {usd(usd_of(cost))}"
    if lost:
        money += f", and at most {usd(usd_of(lost))} for calls whose reply never came"
    voice.out.print(f"{money}. Last run: {_run_words(last)}.", markup=False)
    if last is not None and last.message:
        voice.out.print(last.message, markup=False)
    for note in found.notes:
        voice.out.print(note, markup=False)
    for warning in found.warnings:
        voice.out.print(f"Warning: {warning}", markup=False)
    table = grid("Chunk", *_FIGURES[:-1], right=_FIGURES)
    for chunk in chunks:
        table.add_row(
            chunk.chunk_key,
            f"{chunk.row_count:,}",
            *_outcome_cells(by_chunk.get(chunk.position, {})),
        )
    if len(chunks) > 1:
        table.add_row("all", f"{found.row_count:,}", *_outcome_cells(outcomes), style="bold")
    voice.out.print(table)
    return OK


def _outcome_cells(outcomes: dict[Outcome, int]) -> list[str]:
    document = _outcome_document(outcomes)
    counts = {**document["outcomes"], "pending": document["pending"]}
    return [
        f"{counts[name]:,}" if counts[name] else "·"
        for name in ("succeeded", "blocked", "failed", "skipped", "pending")
    ]


def _outcome_document(outcomes: dict[Outcome, int]) -> dict[str, Any]:
    counts = {outcome.value: count for outcome, count in outcomes.items()}
    return {
        "outcomes": {
            name: counts.get(name, 0) for name in ("succeeded", "blocked", "failed", "skipped")
        },
        "pending": counts.get("pending", 0),
    }


def _line_document(line: BatchLine) -> dict[str, Any]:
    return {
        "batch": line.batch_id,
        "workload": line.workload,
        "simulated": line.realm == "simulated",
        "rows": line.rows,
        **_outcome_document(line.outcomes),
        "cost_usd": usd_of(line.cost_nano),
        "lost_cost_usd": usd_of(line.lost_nano),
        "ingested_at": iso(line.created_at),
        "last_run": _run_document(line.last_run),
    }


def _run_document(run: LastRun | None) -> dict[str, Any] | None:
    if run is None:
        return None
    return {
        "run_id": run.run_id,
        "status": run.status,
        "message": run.message,
        "started_at": iso(run.started_at),
    }


def _run_words(run: LastRun | None) -> str:
    return "never" if run is None else f"{moment(run.started_at)} {run.status}"


def _plain(text: str) -> str:
    """Text of a user or a model, so that Rich does not take it for markup."""
    from rich.markup import escape

    return escape(text)
