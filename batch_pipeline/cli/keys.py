"""`keys check`: whether the keys work and reach the models of the routes, without spending.

What belongs here: the command. What does not: the checks (providers/keys.py, search/keys.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, SOME_FAILED, Output, grid

if TYPE_CHECKING:
    from batch_pipeline.providers.keys import KeyCheck
    from batch_pipeline.providers.registry import ModelRef
    from batch_pipeline.search.keys import SearchKeyCheck

app = typer.Typer(help="API keys.", no_args_is_help=True)

_REACHES = {True: "reachable", False: "not reachable", None: "not known"}
_NOT_CHECKED = "set"
"""Status of a key that cannot be checked without paying."""

_STYLES = {True: "green", False: "red", None: "dim"}


@app.callback()
def _group() -> None:
    """API keys: they come from the environment or .env, and are never shown."""


@dataclass(frozen=True)
class _Routed:
    """A model of a workload's route, and whether its key reaches it; None where nobody said."""

    workload: str
    model: ModelRef
    reachable: bool | None
    why: str


@app.command("check")
def check(
    simulate: opt.Simulate = None, json: opt.Json = False, verbose: opt.Verbose = False
) -> int:
    """Ask every provider at once whether its key works and reaches the models of the routes.

    By their model lists: nothing is spent. Ends with 1 if a key that is set does not work or does
    not reach a model of a route; a provider without a key is no error. Search providers are asked
    where they have a call that costs nothing.
    """
    import asyncio

    from rich.markup import escape

    from batch_pipeline.providers.keys import check_keys
    from batch_pipeline.providers.lookups import KeyStatus
    from batch_pipeline.search.keys import check_search_keys
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.runner import simulator_url

    voice = Output(json, verbose)
    settings = load_settings()
    realm = settings.realm(simulate)
    simulator = simulator_url(settings, realm)

    async def ask() -> tuple[list[KeyCheck], list[SearchKeyCheck]]:
        return await asyncio.gather(
            check_keys(os.environ, simulator_url=simulator),
            check_search_keys(os.environ, simulator_url=simulator),
        )

    checks, searches = asyncio.run(ask())
    routed = _routed(checks)
    fine = (KeyStatus.OK, KeyStatus.MISSING, None)
    both: list[KeyCheck | SearchKeyCheck] = [*checks, *searches]
    bad = [c for c in both if c.status not in fine]
    voice.realm_notice(realm)
    voice.emit(
        {
            "simulated": realm == "simulated",
            "keys": [
                {
                    "provider": c.provider,
                    "status": c.status.value,
                    "key": c.key_shown,
                    "detail": c.detail,
                    "credit_usd": c.credit_usd,
                    "models": list(c.models),
                }
                for c in checks
            ],
            "search": [
                {
                    "provider": c.provider,
                    "status": _status(c),
                    "key": c.key_shown,
                    "detail": c.detail,
                }
                for c in searches
            ],
            "routes": [
                {
                    "workload": r.workload,
                    "model": str(r.model),
                    "reachable": r.reachable,
                    "detail": r.why,
                }
                for r in routed
            ],
        }
    )
    for head, rows in (("Provider", checks), ("Search", searches)):
        table = grid(head, "Key", "Status", "")
        for row in rows:
            style = "red" if row in bad else "green" if row.status is KeyStatus.OK else "dim"
            word = f"[{style}]{_status(row)}[/]"
            table.add_row(row.provider, row.key_shown, word, escape(row.detail))
        voice.out.print(table)
    table = grid("Workload", "Model of its route", "", "")
    for r in routed:
        word = f"[{_STYLES[r.reachable]}]{_REACHES[r.reachable]}[/]"
        table.add_row(r.workload, escape(str(r.model)), word, escape(r.why))
    voice.out.print(table)
    if verbose:
        for c in checks:
            for model in c.models:
                voice.out.print(f"{c.provider}/{model}", markup=False)
    return SOME_FAILED if bad or any(r.reachable is False for r in routed) else OK


def _status(check: KeyCheck | SearchKeyCheck) -> str:
    return _NOT_CHECKED if check.status is None else check.status.value


def _routed(checks: Iterable[KeyCheck]) -> list[_Routed]:
    """Every model of every workload's route, held against what its key reaches."""
    from batch_pipeline.providers.lookups import KeyStatus, find_in
    from batch_pipeline.providers.registry import parse_route
    from batch_pipeline.workloads.base import workload_names
    from batch_pipeline.workloads.config import load_workload_config

    of_provider = {check.provider: check for check in checks}
    routed = []
    for workload in workload_names():
        route = load_workload_config(workload).route
        # `auto` names no model.
        for model in parse_route(route) if "/" in route else ():
            check = of_provider[model.provider]
            if check.status is not KeyStatus.OK:
                why = "no key" if check.status is KeyStatus.MISSING else "the key was not accepted"
                if check.status is KeyStatus.UNREACHABLE:
                    why = f"{model.provider} could not be reached"
                routed.append(_Routed(workload, model, None, why))
                continue
            found = find_in(check.models, model.provider, model.model)
            near = f"Did you mean {' or '.join(found.similar)}?" if found.similar else ""
            routed.append(_Routed(workload, model, found.found, near))
    return routed
