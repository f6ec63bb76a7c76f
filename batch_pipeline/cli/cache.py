"""`cache stats` and `cache clear`: what is stored and need not be paid again.

What belongs here: the two commands. What does not: SQL (ledger/overview.py), the cache (engine).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output, grid, iso, moment, usd, usd_of

if TYPE_CHECKING:
    from batch_pipeline.settings import Settings

app = typer.Typer(help="Stored answers: what is there, and how to remove it.", no_args_is_help=True)

_DAY_S = 86_400.0


@app.command("stats")
def stats(
    simulate: opt.Simulate = None, json: opt.Json = False, verbose: opt.Verbose = False
) -> int:
    """Count stored answers by realm, workload and model, with the latest and the size."""
    from batch_pipeline.ledger.overview import REALMS, cache_lines
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import load_settings

    voice = Output(json, verbose)
    settings = load_settings()
    realms = REALMS if simulate is None else (settings.realm(simulate),)
    found = {}
    for realm in realms:
        with Ledger(settings.ledger_url, realm) as ledger, ledger.read() as connection:
            found[realm] = cache_lines(connection, realm)
    size = _ledger_bytes(settings)
    voice.emit(
        {
            "ledger_bytes": size,
            "realms": {
                realm: {
                    "entries": sum(line.entries for line in lines),
                    "latest": iso(max((line.latest for line in lines), default=None)),
                    "output_bytes": sum(line.output_bytes for line in lines),
                    "by_model": [
                        {
                            "workload": line.workload,
                            "step": line.step,
                            "model": line.model,
                            "entries": line.entries,
                            "latest": iso(line.latest),
                            "output_bytes": line.output_bytes,
                        }
                        for line in lines
                    ],
                }
                for realm, lines in found.items()
            },
        }
    )
    for realm, lines in found.items():
        total = sum(line.entries for line in lines)
        latest = max((line.latest for line in lines), default=None)
        newest = f" (latest: {moment(latest)})" if latest else ""
        voice.out.print(f"Cache, {realm}: {total:,} entries{newest}", markup=False)
        if lines:
            figures = ("Entries", "Size")
            table = grid("Workload", "Step", "Model", *figures, "Latest (UTC)", right=figures)
            for line in lines:
                table.add_row(
                    line.workload,
                    line.step,
                    line.model,
                    f"{line.entries:,}",
                    _size(line.output_bytes),
                    moment(line.latest),
                )
            voice.out.print(table)
    if size is not None:
        voice.out.print(f"The ledger, spend history and replies included: {_size(size)} on disk.")
    return OK


@app.command("clear")
def clear(
    workload: Annotated[
        str | None, typer.Option("--workload", help="Only this workload's answers.")
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Only answers older than this."),
    ] = None,
    yes: opt.Yes = False,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Remove stored answers; what was spent stays on record.

    Rows that stand on a removed answer are pending again: their next run asks, and pays, again.
    """
    from batch_pipeline.ledger import overview
    from batch_pipeline.ledger.store import Ledger
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.base import load_workload

    voice = Output(json, verbose)
    settings = load_settings()
    if workload is not None:
        load_workload(workload)
    realm = settings.realm(simulate)
    with Ledger(settings.ledger_url, realm) as ledger:
        with ledger.read() as connection:
            now = ledger.now(connection)
            before = None if older_than is None else now - older_than * _DAY_S
            plan = overview.plan_clearance(connection, realm, workload, before)
        cost = usd(usd_of(plan.cost_nano))
        what = f"{plan.entries:,} stored answers of the {realm} realm"
        cleared = False
        if plan.entries == 0:
            voice.note(f"There is nothing to remove in the {realm} realm.")
        elif voice.confirm(
            f"Remove {what}? {plan.rows:,} finished rows of {plan.batches:,} batches would be "
            f"asked again, for about {cost}. The spend history is kept.",
            yes=yes,
        ):
            with ledger.write() as connection:
                overview.clear(connection, now, realm, workload, before)
            cleared = True
            voice.note(f"Removed {what}, which had cost {cost}.")
        else:
            voice.note("Nothing was removed.")
    voice.emit(
        {
            "simulated": realm == "simulated",
            "cleared": cleared,
            "entries": plan.entries,
            "rows_open_again": plan.rows,
            "batches": plan.batches,
            "cost_to_ask_again_usd": usd_of(plan.cost_nano),
        }
    )
    return OK


def _ledger_bytes(settings: Settings) -> int | None:
    """Size of the ledger's files; None where it is a server."""
    import sqlalchemy as sa

    url = sa.engine.make_url(settings.ledger_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    path = Path(url.database)
    return sum(
        file.stat().st_size for file in (path, path.with_name(path.name + "-wal")) if file.is_file()
    )


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)
