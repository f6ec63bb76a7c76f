"""`keys check`: whether the keys work, without spending.

What belongs here: the command. What does not: the checks (providers/keys.py).
"""

from __future__ import annotations

import os

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, SOME_FAILED, Output, grid

app = typer.Typer(help="API keys.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """API keys: they come from the environment or .env, and are never shown."""


@app.command("check")
def check(
    simulate: opt.Simulate = None, json: opt.Json = False, verbose: opt.Verbose = False
) -> int:
    """Ask every provider at once whether its key works, by its model list: nothing is spent.

    Ends with 1 if a key that is set does not work.
    """
    import asyncio

    from batch_pipeline.providers.keys import KeyStatus, check_keys
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.runner import simulator_url

    voice = Output(json, verbose)
    settings = load_settings()
    realm = settings.realm(simulate)
    checks = asyncio.run(check_keys(os.environ, simulator_url=simulator_url(settings, realm)))
    bad = [c for c in checks if c.status not in (KeyStatus.OK, KeyStatus.MISSING)]
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
                    "models": list(c.models),
                }
                for c in checks
            ],
        }
    )
    from rich.markup import escape

    table = grid("Provider", "Key", "Status", "")
    for c in checks:
        style = "red" if c in bad else "green" if c.status is KeyStatus.OK else "dim"
        table.add_row(c.provider, c.key_shown, f"[{style}]{c.status.value}[/]", escape(c.detail))
    voice.out.print(table)
    if verbose:
        for c in checks:
            for model in c.models:
                voice.out.print(f"{c.provider}/{model}", markup=False)
    return SOME_FAILED if bad else OK
