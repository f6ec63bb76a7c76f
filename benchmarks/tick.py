"""The sensor that looks after provider jobs, evaluated twice.

`python -m benchmarks.tick FOLDER URL` is a fresh process, as the code server is after a start: the
first tick pays for the SDKs' import. What belongs here: timing it. What does not: submitting the
jobs (lane.py).
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

SENSOR = "roadmaps_poll_jobs"


def main() -> None:
    """Load the definitions, let every job be due, tick; and again."""
    os.environ["BATCH_PIPELINE_DATA"], os.environ["BATCH_PIPELINE_SIMULATOR_URL"] = sys.argv[1:]
    os.environ["BATCH_PIPELINE_SIMULATE"] = "1"
    began = time.perf_counter()
    import dagster as dg

    from batch_pipeline.definitions import build_defs
    from batch_pipeline.home import ensure_home
    from batch_pipeline.settings import load_settings

    settings = load_settings()
    ensure_home(settings)
    with dg.DagsterInstance.get() as instance:
        defs = build_defs()
        sensor = defs.resolve_sensor_def(SENSOR)
        resources = {name: (defs.resources or {})[name] for name in ("installation", "ledger")}
        figures: dict[str, Any] = {"load_s": time.perf_counter() - began}
        for name in ("first", "second"):
            _let_all_be_due()
            context = dg.build_sensor_context(
                instance=instance, resources=resources, sensor_name=SENSOR
            )
            began = time.perf_counter()
            found = sensor(context)
            figures[f"{name}_s"] = time.perf_counter() - began
            assert isinstance(found, dg.SensorResult)
            said = found.skip_reason.skip_message if found.skip_reason else ""
            figures[name] = {"launches": len(found.run_requests or []), "said": said}
    print(json.dumps(figures))


def _let_all_be_due() -> None:
    """As if the time for the next look had come."""
    from batch_pipeline.ledger.jobs import MARK_JOB, MarkJob, list_jobs
    from batch_pipeline.settings import load_settings
    from batch_pipeline.workloads.runner import open_ledger

    with open_ledger(load_settings(), "simulated") as ledger:
        with ledger.read() as connection:
            jobs = list_jobs(connection, ledger.realm)
        marks = [MarkJob(job.realm, job.job_id, {"next_poll_at": 0.0}) for job in jobs]
        for done in [ledger.writer.submit(MARK_JOB, mark) for mark in marks]:
            done.result()


if __name__ == "__main__":
    main()
