"""`python -m batch_pipeline.simulator`: runs one simulator in the foreground."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from batch_pipeline.simulator.bench import serve_bench
from batch_pipeline.simulator.config import SimulatorConfig
from batch_pipeline.simulator.server import serve


def main() -> int:
    """Read the options and serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m batch_pipeline.simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument(
        "--config", type=Path, help="JSON: limits, latency, faults, key_marks, seed"
    )
    parser.add_argument("--idle-exit-s", type=float, help="stop after so long without a request")
    parser.add_argument("--bench", action="store_true", help="pre-rendered answers, no journal")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="of --bench")
    options = parser.parse_args()
    if options.bench:
        serve_bench(
            state_dir=options.state_dir,
            port=options.port,
            latency_s=options.latency_ms / 1_000,
            idle_exit_s=options.idle_exit_s,
        )
        return 0
    config = SimulatorConfig()
    if options.config:
        try:
            config = SimulatorConfig.model_validate_json(options.config.read_bytes())
        except (OSError, ValidationError) as error:
            sys.stderr.write(f"{options.config} is no simulator configuration: {error}\n")
            return 64
    serve(
        state_dir=options.state_dir,
        port=options.port,
        config=config,
        idle_exit_s=options.idle_exit_s,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
