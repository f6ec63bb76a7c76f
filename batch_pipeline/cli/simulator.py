"""`simulator`: run, find and stop the local server that stands in for the providers.

What belongs here: the commands. What does not: the server (batch_pipeline.simulator).
"""

from __future__ import annotations

import json as json_
import os
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, SOME_FAILED, Output, iso, moment, usd
from batch_pipeline.errors import BatchPipelineError, UsageError

if TYPE_CHECKING:
    from batch_pipeline.simulator.config import SimulatorConfig
    from batch_pipeline.simulator.state import State

app = typer.Typer(
    help="The local server that stands in for the providers; alone it serves in the foreground.",
    invoke_without_command=True,
)

_TIMEOUT_S = 10.0


@app.callback()
def serve(
    context: typer.Context,
    port: Annotated[int, typer.Option("--port", help="0 lets the system choose.")] = 0,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="JSON: limits, latency, faults, key_marks, seed."),
    ] = None,
    latency: Annotated[
        float | None, typer.Option("--latency", min=0, help="Seconds that every reply takes.")
    ] = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Serve the simulator in the foreground until Ctrl-C. A simulated run finds it by itself."""
    if context.invoked_subcommand is not None:
        return OK
    from batch_pipeline.settings import load_settings
    from batch_pipeline.simulator import server
    from batch_pipeline.simulator.launch import URL_VARIABLE, base_urls

    voice = Output(json, verbose)
    state_dir = load_settings().simulator_state
    running = _running(state_dir)
    if running is not None:
        raise UsageError(
            f"A simulator runs at {running[0]} already.",
            "Use that one, or end it with `batch-pipeline simulator stop`.",
        )

    def ready(state: State) -> None:
        voice.emit({"url": state.url, "pid": state.pid, "base_urls": base_urls(state.url)})
        voice.out.print(f"The simulator serves at {state.url}; Ctrl-C ends it.", markup=False)
        for provider, url in base_urls(state.url).items():
            voice.out.print(f"  {provider:<12} {url}", markup=False)
        voice.out.print(
            f"Simulated runs with the same data folder use it; others with "
            f"{URL_VARIABLE}={state.url}",
            markup=False,
            soft_wrap=True,
        )
        sys.stdout.flush()

    server.serve(state_dir=state_dir, port=port, config=_settings(config, latency), ready=ready)
    return OK


@app.command("stop")
def stop(json: opt.Json = False, verbose: opt.Verbose = False) -> int:
    """End the simulator of this data folder."""
    from batch_pipeline.settings import load_settings
    from batch_pipeline.simulator.launch import stop_simulator

    voice = Output(json, verbose)
    stopped = stop_simulator(load_settings().simulator_state)
    voice.emit({"stopped": stopped})
    voice.out.print("The simulator has ended." if stopped else "No simulator was running.")
    return OK


@app.command("status")
def status(json: opt.Json = False, verbose: opt.Verbose = False) -> int:
    """Say where the simulator is and what it has answered. Ends with 1 if none runs."""
    from batch_pipeline.settings import load_settings

    voice = Output(json, verbose)
    found = _running(load_settings().simulator_state)
    if found is None:
        voice.emit({"running": False})
        voice.out.print("No simulator runs; one starts by itself with a simulated run.")
        return SOME_FAILED
    url, health = found
    summary = _get(f"{url}/_sim/summary")
    voice.emit(
        {
            "running": True,
            "url": url,
            "pid": health["pid"],
            "started_at": iso(health["started_at"]),
            "journal": summary,
        }
    )
    say = voice.out.print
    say(f"Simulator at {url} (pid {health['pid']}), since {moment(health['started_at'])} UTC")
    say(
        f"{summary['attempts']:,} attempts, {summary['input_tokens']:,} input and "
        f"{summary['output_tokens']:,} output tokens, worth {usd(summary['price_usd'])}."
    )
    for status_code, count in summary["by_status"].items():
        say(f"  HTTP {status_code}: {count:,}" if status_code != "0" else f"  no reply: {count:,}")
    for fault, count in summary["by_fault"].items():
        say(f"  fault {fault}: {count:,}")
    return OK


def _settings(path: Path | None, latency: float | None) -> SimulatorConfig:
    from pydantic import ValidationError

    from batch_pipeline.simulator.config import Latency, SimulatorConfig

    config = SimulatorConfig()
    if path is not None:
        try:
            config = SimulatorConfig.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"]) or "the file"
            raise UsageError(
                f"{path} is no simulator configuration: {where}: {problem['msg']}.",
                "docs/simulator.md lists the settings.",
            ) from error
    if latency is not None:
        plain = Latency(base_s=latency, per_output_token_s=0, jitter_s=0)
        config = config.model_copy(update={"latency": plain})
    return config


def _running(state_dir: Path) -> tuple[str, dict[str, Any]] | None:
    """URL and health of the simulator in use: the one the environment names, else this folder's."""
    from batch_pipeline.simulator.launch import URL_VARIABLE
    from batch_pipeline.simulator.state import read_state

    named = os.environ.get(URL_VARIABLE, "").strip().rstrip("/")
    state = read_state(state_dir.resolve())
    url = named or (state.url if state else "")
    if not url:
        return None
    try:
        health = _get(f"{url}/_sim/health")
    except SimulatorSilentError:
        return None
    # A recorded port may belong to somebody else by now.
    ours = bool(named) or (state is not None and health.get("pid") == state.pid)
    return (url, health) if health.get("simulator") is True and ours else None


class SimulatorSilentError(BatchPipelineError):
    """The simulator does not answer."""


def _get(url: str) -> dict[str, Any]:
    # No proxy from the environment: it has no business on loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as reply:
            document = json_.load(reply)
    except (OSError, ValueError) as error:
        raise SimulatorSilentError(f"The simulator does not answer at {url}.") from error
    return document if isinstance(document, dict) else {}
