"""Between submission and collection nothing of ours runs but the sensor's tick."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import dagster as dg
import httpx
import pytest
import sqlalchemy as sa

from batch_pipeline.definitions import build_defs
from batch_pipeline.ledger.jobs import MARK_JOB, MarkJob, ProviderJob, list_jobs
from batch_pipeline.ledger.tables import JobState, owners, provider_jobs
from batch_pipeline.providers.registry import resolve_access
from batch_pipeline_tests.dagster.installation import Installation

SENSOR = "roadmaps_poll_jobs"
ANTHROPIC = "anthropic"
SUBMITTED = 30
OPEN = 500

_SUBMIT = """
import sys
from batch_pipeline.doors import RunRequest, run_batch
knobs = {"lane": "batch", "pack": 1, "job_items": 1, "poll_s": 0.01}
result = run_batch(RunRequest("roadmaps", sys.argv[1], batch_id="topics", knobs=knobs))
assert result.status == "submitted", result
"""


@pytest.fixture
def defs(instance: dg.DagsterInstance) -> dg.Definitions:
    return build_defs()


def _tick(defs: dg.Definitions, instance: dg.DagsterInstance) -> dg.SensorResult:
    resources = {name: (defs.resources or {})[name] for name in ("installation", "ledger")}
    context = dg.build_sensor_context(instance=instance, resources=resources, sensor_name=SENSOR)
    found = defs.resolve_sensor_def(SENSOR)(context)
    assert isinstance(found, dg.SensorResult)
    return found


def _execute(
    defs: dg.Definitions, instance: dg.DagsterInstance, request: dg.RunRequest
) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(request.job_name or "").execute_in_process(
        run_config=request.run_config,
        tags=dict(request.tags),
        instance=instance,
        raise_on_error=False,
    )


def _jobs(here: Installation) -> list[ProviderJob]:
    with here.ledger() as ledger, ledger.read() as connection:
        return list_jobs(connection, "simulated")


def _submit(here: Installation) -> None:
    """Put one provider job up for each row, from a process that ends then."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SUBMIT, str(here.table(SUBMITTED))],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def _open_many_more(here: Installation, count: int) -> None:
    """Jobs of the same batch at another provider, without the time that a run takes for them."""
    pattern = _jobs(here)[-1]
    access = resolve_access(ANTHROPIC, os.environ, here.simulator.url)
    message = {"role": "user", "content": "Hello"}
    params = {"model": "claude-haiku-5-5", "max_tokens": 100, "messages": [message]}
    body = {"requests": [{"custom_id": "one", "params": params}]}
    headers = {"x-api-key": access.key, "anthropic-version": "2023-06-01"}
    rows = []
    with httpx.Client(headers=headers) as client:
        for number in range(count):
            made = client.post(f"{access.base_url}/v1/messages/batches", json=body)
            rows.append(
                {
                    **{name: getattr(pattern, name) for name in ProviderJob.__slots__},
                    "job_id": f"{pattern.batch_id}.k{number:04d}",
                    "provider": ANTHROPIC,
                    "model": f"{ANTHROPIC}/claude-haiku-5-5",
                    "key_id": access.key_id,
                    "remote_name": made.json()["id"],
                    "results": "[]",
                }
            )
    with here.ledger() as ledger, ledger.write() as connection:
        connection.execute(provider_jobs.insert(), rows)


def _calls(here: Installation) -> Counter[str]:
    return Counter(here.simulator.summary()["other_calls"])


def _live_holders(here: Installation) -> set[str]:
    """Where the owners are whose leases have not run out; a job's own is at its provider."""
    with here.ledger() as ledger, ledger.read() as connection:
        live = owners.c.lease_expires_at > ledger.now(connection)
        return set(connection.execute(sa.select(owners.c.host).where(live)).scalars())


def _let_all_be_due(here: Installation) -> None:
    """Let the time for the next look come."""
    with here.ledger() as ledger:
        marks = [MarkJob(job.realm, job.job_id, {"next_poll_at": 0.0}) for job in _jobs(here)]
        for done in [ledger.writer.submit(MARK_JOB, mark) for mark in marks]:
            done.result()


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= set((task / "children").read_text().split())
    return found


def test_nothing_but_a_tick_of_a_few_calls_looks_after_500_open_jobs_until_they_end(
    here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions
) -> None:
    here.simulator.configure(
        clock={"frozen": True},
        batches=[{"provider": "google", "duration_s": 60}, {"duration_s": 80_000}],
    )
    _submit(here)
    assert _live_holders(here) == {"provider"}
    _open_many_more(here, OPEN - SUBMITTED)
    assert Counter(job.state for job in _jobs(here)) == {JobState.SUBMITTED: OPEN}
    before, threads, children = _calls(here), set(threading.enumerate()), _children()

    nothing_yet = _tick(defs, instance)

    assert f"looked at {OPEN} jobs" in str(nothing_yet.skip_reason)
    assert not nothing_yet.run_requests
    # Pages of 100: one by one would be 500.
    assert _calls(here) - before == {"google batches.list": 1, "anthropic batches.list": 5}
    assert set(threading.enumerate()) <= threads
    assert _children() <= children
    assert "No provider job is due" in str(_tick(defs, instance).skip_reason)
    assert (_calls(here) - before).total() == 6

    here.simulator.advance(600)
    _let_all_be_due(here)
    (launch,) = _tick(defs, instance).run_requests or []
    (again,) = _tick(defs, instance).run_requests or []
    assert launch.tags["batch_pipeline/batch"] == "topics"
    assert launch.run_key == again.run_key

    assert _execute(defs, instance, launch).success
    assert Counter((job.provider, job.state) for job in _jobs(here)) == {
        ("google", JobState.COLLECTED): SUBMITTED,
        (ANTHROPIC, JobState.SUBMITTED): OPEN - SUBMITTED,
    }
    assert not _tick(defs, instance).run_requests
    assert here.count_attempts(state="settled") == SUBMITTED
    assert here.simulator.summary()["billed"] == SUBMITTED
