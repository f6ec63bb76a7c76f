"""`limits show`, `set`, `pause`, `resume`: the rate limits that all runs share, while they go on.

What belongs here: reading and writing them for a person. What does not: SQL and arithmetic
(limits/shared.py, limits/by_hand.py).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output, duration, grid, iso, moment
from batch_pipeline.errors import UsageError

if TYPE_CHECKING:
    from batch_pipeline.limits.by_hand import Scope
    from batch_pipeline.limits.shared import SharedKey, SharedLimit
    from batch_pipeline.settings import Realm

app = typer.Typer(
    help="Rate limits that all runs share: see, set, pause, resume.", no_args_is_help=True
)

Target = Annotated[
    str,
    typer.Argument(
        metavar="PROVIDER[/MODEL]", help="A provider, one of its models, or a search provider."
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Only this key, as `limits show` names it."),
]

_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")


@app.callback()
def _group() -> None:
    """Rate limits hold per provider, model and key, over all runs of all processes."""


@app.command("show")
def show(
    simulate: opt.Simulate = None, json: opt.Json = False, verbose: opt.Verbose = False
) -> int:
    """List each limit with its source and present use, pauses, and the runs that share it."""
    from batch_pipeline.limits.shared import list_shared

    voice = Output(json, verbose)
    realm, ledger = opt.open_ledger(simulate)
    with ledger, ledger.read() as connection:
        found = list_shared(connection, ledger.now(connection), realm)
    voice.realm_notice(realm)
    voice.emit({"simulated": realm == "simulated", "keys": [_document(one) for one in found]})
    if not found:
        voice.note("Nothing was called today, nothing is set and no run goes on.")
        return OK
    table = grid("Model", "Key", "Limit", "Amount", "Source", "Present use", right=("Amount",))
    for one in found:
        name = one.provider if one.model == "*" else one.model
        key = "all keys" if one.key_id == "*" else one.key_id
        for limit in _shown(one):
            amount = "none" if limit.amount is None else f"{limit.amount:,.0f}"
            source = "" if limit.source is None else limit.source.value
            table.add_row(name, key, _UNITS[limit.dimension], amount, source, _use(one, limit))
            name = key = ""
        if one.paused_s > 0:
            end = "until resumed" if math.isinf(one.paused_s) else f"{duration(one.paused_s)} more"
            table.add_row(name, key, "paused", end, "", one.pause_reason, style="yellow")
    voice.out.print(table)
    working = [(one, run) for one in found for run in one.runs]
    if working:
        figures = ("Slots", "In flight", "Waiting")
        runs = grid("Run", "Batch", "Model", "Host", *figures, right=figures)
        for one, run in working:
            runs.add_row(
                run.run_id,
                run.batch_id,
                one.model,
                run.host,
                f"{run.held:,}" if run.held else "·",
                f"{run.in_flight:,}",
                f"{run.waiting:,}",
            )
        voice.out.print(runs)
    return OK


@app.command("set")
def set_(
    target: Target,
    requests_per_min: Annotated[
        float | None, typer.Option("--requests-per-min", min=0.001, help="Requests per minute.")
    ] = None,
    input_tokens_per_min: Annotated[
        float | None,
        typer.Option("--input-tokens-per-min", min=1, help="Prompt tokens per minute."),
    ] = None,
    output_tokens_per_min: Annotated[
        float | None,
        typer.Option("--output-tokens-per-min", min=1, help="Output tokens per minute."),
    ] = None,
    requests_per_day: Annotated[
        int | None,
        typer.Option("--requests-per-day", min=1, help="Requests per day of the provider."),
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option("--concurrent", min=1, help="Requests in flight at once, over all runs."),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Take back what was set for exactly this.")
    ] = False,
    key: Key = None,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Set limits that win over every other source until they are cleared.

    Runs that go on keep to them within a second.
    """
    from batch_pipeline.limits.by_hand import clear_limits, set_limits
    from batch_pipeline.limits.rates import DIMENSIONS

    given = (
        requests_per_min,
        input_tokens_per_min,
        output_tokens_per_min,
        requests_per_day,
        concurrent,
    )
    amounts = {
        dimension: float(amount)
        for dimension, amount in zip(DIMENSIONS, given, strict=True)
        if amount is not None
    }
    if clear == bool(amounts):
        raise UsageError(
            "Give either limits or --clear.",
            f"For example: batch-pipeline limits set {target} --requests-per-min 60",
        )
    voice = Output(json, verbose)
    realm, ledger = opt.open_ledger(simulate)
    with ledger, ledger.write() as connection:
        scope = _scope(realm, target, key)
        cleared, warnings = 0, []
        if clear:
            cleared = clear_limits(connection, scope)
        else:
            warnings = set_limits(connection, ledger.now(connection), scope, amounts)
    voice.realm_notice(realm)
    voice.emit(
        {
            **_head(scope),
            "set": amounts,
            "cleared": cleared,
            "warnings": warnings,
        }
    )
    for warning in warnings:
        voice.note(f"Warning: {warning}")
    if clear:
        voice.note(f"{cleared} limits of {scope.name} were cleared.")
    else:
        shown = ", ".join(f"{amount:,.0f} {_UNITS[name]}" for name, amount in amounts.items())
        voice.note(f"{scope.name}: {shown}, until `limits set {target} --clear`.")
    return OK


@app.command("pause")
def pause(
    target: Target,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="For so long: 90s, 10m, 2h; else until resume."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Shown by `limits show`.")] = "",
    key: Key = None,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Let no new call pass; calls in flight come back, and runs wait or take the next model."""
    from batch_pipeline.limits import by_hand

    seconds = None if for_ is None else _seconds(for_)
    voice = Output(json, verbose)
    realm, ledger = opt.open_ledger(simulate)
    with ledger, ledger.write() as connection:
        scope = _scope(realm, target, key)
        said = "by hand" + (f": {reason}" if reason else "")
        until = by_hand.pause(connection, ledger.now(connection), scope, seconds, said)
    voice.realm_notice(realm)
    voice.emit({**_head(scope), "paused_until": None if seconds is None else iso(until)})
    end = "resume" if seconds is None else f"{moment(until)} UTC"
    voice.note(f"{scope.name} is paused until {end}: `batch-pipeline limits resume {target}`.")
    return OK


@app.command("resume")
def resume(
    target: Target,
    key: Key = None,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """End pauses, also those that a provider's 429 asked for; runs go on within a second."""
    from batch_pipeline.limits import by_hand

    voice = Output(json, verbose)
    realm, ledger = opt.open_ledger(simulate)
    with ledger, ledger.write() as connection:
        scope = _scope(realm, target, key)
        ended, wider = by_hand.resume(connection, ledger.now(connection), scope)
    voice.realm_notice(realm)
    voice.emit({**_head(scope), "ended": ended, "still_paused_by": wider})
    voice.note(f"{ended} pauses of {scope.name} were ended.")
    for name in wider:
        voice.note(f"{name} is paused as a whole: `batch-pipeline limits resume {name}`.")
    return OK


_UNITS = {
    "requests": "requests / min",
    "input_tokens": "input tokens / min",
    "output_tokens": "output tokens / min",
    "requests_per_day": "requests / day",
    "concurrent": "at once",
}


def _scope(realm: Realm, target: str, key: str | None) -> Scope:
    from batch_pipeline.limits.by_hand import Scope
    from batch_pipeline.providers.registry import find_provider, parse_route
    from batch_pipeline.search.registry import SEARCH_PROVIDERS

    model = "*"
    searched = {one.limit_name for one in SEARCH_PROVIDERS.values()}
    if target.partition("/")[0].strip().lower() in searched:
        provider, _, endpoint = target.strip().lower().partition("/")
        if endpoint:
            raise UsageError(
                f"{provider} has one limit for all its endpoints.", f"Name {provider} alone."
            )
    elif "/" in target:
        refs = parse_route(target)
        if len(refs) != 1:
            raise UsageError(f"{target!r} names several models.", "Name one at a time.")
        provider, model = refs[0].provider, str(refs[0])
    else:
        provider = find_provider(target).name
    if key is not None and not re.fullmatch(r"…?[^\s*]+", key):
        raise UsageError(
            f"{key!r} is no key's name.", "Write it as `limits show` or `keys check` names it."
        )
    named = "*" if key is None else key if key.startswith(("…", "no-key")) else f"…{key}"
    return Scope(realm, provider, model, named)


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--for {text} is no length of time.", "Write it like 90s, 10m or 2h.")
    return float(found[1]) * _UNIT_S[found[2] or "s"]


def _shown(one: SharedKey) -> list[SharedLimit]:
    """Limits that are set, and for a key that is called also today's requests."""
    everywhere = one.model == "*" or one.key_id == "*"
    return [
        limit
        for limit in one.limits
        if limit.amount is not None
        or (not everywhere and (limit.dimension == "requests_per_day" or limit.used))
    ]


def _use(one: SharedKey, limit: SharedLimit) -> str:
    if one.model == "*" or one.key_id == "*":
        return ""
    if limit.free_in_s is not None:
        return f"next free in {duration(limit.free_in_s)}" if limit.free_in_s else "free"
    if limit.dimension == "requests_per_day":
        return f"{limit.used:,} today, next day {moment(one.resets_at)} UTC"
    return f"{limit.used:,} in use"


def _head(scope: Scope) -> dict[str, Any]:
    return {
        "simulated": scope.realm == "simulated",
        "provider": scope.provider,
        "model": scope.model,
        "key": scope.key_id,
    }


def _document(one: SharedKey) -> dict[str, Any]:
    return {
        "provider": one.provider,
        "model": one.model,
        "key": one.key_id,
        "limits": {
            limit.dimension: {
                "amount": limit.amount,
                "source": None if limit.source is None else limit.source.value,
                "used": limit.used,
                "free_in_s": None if limit.free_in_s is None else round(limit.free_in_s, 3),
            }
            for limit in one.limits
        },
        "day_resets_at": iso(one.resets_at),
        "paused": one.paused_s > 0,
        "paused_s": None if math.isinf(one.paused_s) else round(one.paused_s, 1),
        "pause_reason": one.pause_reason,
        "runs": [
            {
                "run_id": run.run_id,
                "batch": run.batch_id,
                "host": run.host,
                "pid": run.pid,
                "slots": run.held,
                "in_flight": run.in_flight,
                "waiting": run.waiting,
            }
            for run in one.runs
        ],
    }
