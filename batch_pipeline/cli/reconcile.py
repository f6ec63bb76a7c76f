"""`reconcile`: what calls really cost whose reply never came.

What belongs here: the command, and reading a provider's records. What does not: the books
(ledger/calls.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output, cut, grid, iso, moment, usd, usd_of
from batch_pipeline.errors import UsageError

if TYPE_CHECKING:
    from batch_pipeline.ledger.overview import LostAttempt

_ID_COLUMNS = ("attempt_id", "client_request_id", "x-client-request-id")
_COST_COLUMNS = ("cost_usd", "price_usd", "cost")
_WHY_LENGTH = 60


def reconcile(
    batch: Annotated[
        str | None, typer.Argument(metavar="[BATCH]", help="Only calls of this batch.")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="The provider's records: CSV or JSONL with client_request_id (or attempt_id) and "
            "cost_usd (or price_usd).",
        ),
    ] = None,
    attempt: Annotated[
        list[str] | None, typer.Option("--attempt", help="One call by its id; may be repeated.")
    ] = None,
    cost: Annotated[
        float | None,
        typer.Option("--cost", min=0, help="What each of these calls cost, in USD; 0: not billed."),
    ] = None,
    not_billed: Annotated[
        bool, typer.Option("--not-billed", help="The provider did not bill these calls.")
    ] = False,
    yes: opt.Yes = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Settle calls that were lost in a crash or a timeout; without options, list them.

    Until then each counts at its worst case against every budget.
    """
    from batch_pipeline.ledger.calls import RECONCILE, Reconcile
    from batch_pipeline.ledger.overview import lost_attempts
    from batch_pipeline.ledger.tables import NANO

    voice = Output(json, verbose)
    realm, ledger = opt.open_ledger(simulate)
    voice.realm_notice(realm)
    with ledger:
        with ledger.read() as connection:
            lost = lost_attempts(connection, realm, batch)
        costs = _costs(lost, from_, attempt or [], cost, not_billed)
        if costs is None:
            _list(voice, lost, simulated=realm == "simulated")
            return OK
        chosen = [one for one in lost if one.attempt_id in costs]
        worst = sum(one.worst_nano for one in chosen)
        real = round(sum(costs[one.attempt_id] for one in chosen) * NANO)
        question = (
            f"Settle {len(chosen)} of {len(lost)} lost calls at {usd(real / NANO)} instead of "
            f"{usd(worst / NANO)}?"
        )
        done = 0
        if chosen and voice.confirm(question, yes=yes):
            writes = [
                ledger.writer.submit(
                    RECONCILE, Reconcile(one.attempt_id, round(costs[one.attempt_id] * NANO))
                )
                for one in chosen
            ]
            done = sum(write.result(60) for write in writes)
        with ledger.read() as connection:
            left = lost_attempts(connection, realm, batch)
    voice.emit(
        {
            "simulated": realm == "simulated",
            "reconciled": done,
            "unknown": sorted(set(costs) - {one.attempt_id for one in lost}) if attempt else [],
            "left": len(left),
            "left_worst_usd": usd_of(sum(one.worst_nano for one in left)),
        }
    )
    voice.out.print(
        f"{done} calls settled; {len(left)} are still open, "
        f"{usd(sum(one.worst_nano for one in left) / NANO)} at worst."
    )
    return OK


def _costs(
    lost: list[LostAttempt],
    records: Path | None,
    named: list[str],
    cost: float | None,
    not_billed: bool,
) -> dict[str, float] | None:
    """USD by attempt id; None: nothing was asked for.

    Raises:
        UsageError: the options contradict each other, or a record cannot be used.
    """
    if cost is not None and not_billed:
        raise UsageError("--cost and --not-billed contradict each other.", "Give one of them.")
    if records is not None:
        if named or cost is not None or not_billed:
            raise UsageError("--from says what each call cost.", "Leave the other options out.")
        return _read_records(records)
    if cost is None and not not_billed:
        if named:
            raise UsageError(
                "It is not said what these calls cost.", "Add --cost USD or --not-billed."
            )
        return None
    known = {one.attempt_id for one in lost}
    if unknown := [name for name in named if name not in known]:
        raise UsageError(
            f"There is no lost call {unknown[0]!r}.", "`batch-pipeline reconcile` lists them."
        )
    return dict.fromkeys(named or known, 0.0 if not_billed else float(cost or 0.0))


def _read_records(path: Path) -> dict[str, float]:
    """What the provider's records say about each call."""
    from batch_pipeline.sources.files import open_table

    table = open_table(path.expanduser().resolve(), optional_columns=(*_ID_COLUMNS, *_COST_COLUMNS))
    found: dict[str, float] = {}
    for row in table.rows:
        name = _first(row.values, _ID_COLUMNS)
        if name is None or str(name).strip() == "":
            continue
        paid = _first(row.values, _COST_COLUMNS)
        try:
            found[str(name).strip()] = float(str(paid))
        except ValueError:
            raise UsageError(
                f"{row.place} of {path} has no cost that can be read: {paid!r}.",
                f"It needs one of the columns {', '.join(_COST_COLUMNS)}, in USD.",
            ) from None
    if not found:
        raise UsageError(
            f"{path} names no call.", f"It needs one of the columns {', '.join(_ID_COLUMNS)}."
        )
    return found


def _first(values: Any, names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _list(voice: Output, lost: list[LostAttempt], *, simulated: bool) -> None:
    voice.emit(
        {
            "simulated": simulated,
            "lost": [
                {
                    "attempt_id": one.attempt_id,
                    "batch": one.batch_id,
                    "workload": one.workload,
                    "provider": one.provider,
                    "model": one.model,
                    "rows": one.rows,
                    "sent_at": iso(one.sent_at),
                    "worst_usd": usd_of(one.worst_nano),
                    "error": one.error,
                }
                for one in lost
            ],
        }
    )
    if not lost:
        voice.out.print("No call is open: every reply came, or its cost is settled.")
        return
    from rich.markup import escape

    table = grid("Call", "Batch", "Model", "Rows", "Sent", "At worst", "Why", right=("Rows",))
    for one in lost:
        table.add_row(
            one.attempt_id,
            one.batch_id,
            one.model,
            str(one.rows),
            moment(one.sent_at),
            usd(usd_of(one.worst_nano)),
            escape(cut(one.error or "The process that sent it is gone.", _WHY_LENGTH)),
        )
    voice.out.print(table)
    voice.out.print(
        f"{len(lost)} calls, {usd(sum(usd_of(one.worst_nano) for one in lost))} at worst, count "
        "against the budgets. Each was sent with its id as x-client-request-id. Settle them with "
        "--from RECORDS, or with --not-billed, or with --cost USD and --attempt ID."
    )
