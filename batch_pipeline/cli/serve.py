"""`serve`: the REST API on a port.

What belongs here: options and the words at the start. What does not: the server (api/).
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from batch_pipeline.cli import options as opt
from batch_pipeline.cli.output import OK, Output


def serve(
    host: Annotated[
        str,
        typer.Option("--host", help="Address; any but loopback needs BATCH_PIPELINE_API_TOKEN."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, help="0 lets the system choose.")
    ] = 8001,
    simulate: opt.Simulate = None,
    json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> int:
    """Serve the REST API until Ctrl-C. What it runs shows in the Dagster UI."""
    from batch_pipeline.api.config import load_api_config
    from batch_pipeline.api.serving import serve as serve_api
    from batch_pipeline.settings import load_settings

    voice = Output(json, verbose)
    settings = load_settings()
    config = load_api_config(settings, host=host, port=port, simulate=simulate)

    def ready(url: str) -> None:
        voice.emit({"url": url, "docs": f"{url}/docs", "simulated": config.realm == "simulated"})
        voice.out.print(f"The API serves at {url}; Ctrl-C ends it.", markup=False)
        voice.out.print(f"  Try it in a browser: {url}/docs", markup=False)
        sys.stdout.flush()

    voice.realm_notice(config.realm)
    serve_api(settings, config, ready)
    return OK
