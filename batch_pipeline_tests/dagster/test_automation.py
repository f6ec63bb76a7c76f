"""What starts by itself: chunk keys, first runs, reports, the inbox, the night."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from batch_pipeline.component.automation import SETTLED_S, complete_files, inbox_files
from batch_pipeline.definitions import build_defs
from batch_pipeline.ledger.batches import Batch, list_batches
from batch_pipeline_tests.dagster.installation import KNOBS, Installation


@pytest.fixture
def defs(instance: dg.DagsterInstance) -> dg.Definitions:
    # After the instance: Dagster keeps the last one opened, closed or not, and asks it on loading.
    return build_defs()


def _resources(defs: dg.Definitions) -> dict[str, Any]:
    """What sensors and schedules use; the engine room is for runs."""
    return {name: (defs.resources or {})[name] for name in ("installation", "ledger")}


def _execute(
    defs: dg.Definitions, instance: dg.DagsterInstance, request: dg.RunRequest, job: str = ""
) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(request.job_name or job).execute_in_process(
        run_config=request.run_config,
        tags=dict(request.tags),
        instance=instance,
        raise_on_error=False,
    )


def _ingest(
    defs: dg.Definitions, instance: dg.DagsterInstance, table: Path, **config: Any
) -> dg.ExecuteInProcessResult:
    run_config = {"ops": {"roadmaps__input_table": {"config": {"source": str(table), **config}}}}
    return defs.resolve_job_def("roadmaps_ingest").execute_in_process(
        run_config=run_config, instance=instance
    )


def _tick(
    defs: dg.Definitions, name: str, instance: dg.DagsterInstance, cursor: str | None = None
) -> dg.SensorResult:
    context = dg.build_sensor_context(
        instance=instance, cursor=cursor, resources=_resources(defs), sensor_name=name
    )
    found = defs.resolve_sensor_def(name)(context)
    assert isinstance(found, dg.SensorResult)
    return found


def _batches(here: Installation) -> list[Batch]:
    with here.ledger() as ledger, ledger.read() as connection:
        return list_batches(connection, "simulated")


def test_a_table_ingested_in_the_ui_is_launched_once_with_the_options_it_came_with(
    here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions
) -> None:
    _ingest(defs, instance, here.table(130), pack=10, **KNOBS)
    assert len(instance.get_dynamic_partitions("roadmaps_chunks")) == 2
    assert here.count_sent() == 0

    (request,) = _tick(defs, "roadmaps_reconcile_chunks", instance).run_requests or []
    (batch,) = _batches(here)
    assert request.run_key == f"simulated:{batch.batch_id}"
    result = _execute(defs, instance, request)

    assert result.success
    assert here.count_sent() == 13
    assert here.statuses(instance) == {"0001": "MATERIALIZED", "0002": "MATERIALIZED"}
    assert not _tick(defs, "roadmaps_reconcile_chunks", instance).run_requests


def test_a_batch_of_a_door_is_never_launched_by_the_sensor_but_its_keys_are_kept(
    here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions
) -> None:
    result = here.run(here.table(150), knobs={"no_enrich": True})
    for key in instance.get_dynamic_partitions("roadmaps_chunks"):
        instance.delete_dynamic_partition("roadmaps_chunks", key)

    tick = _tick(defs, "roadmaps_reconcile_chunks", instance)

    assert not tick.run_requests
    (request,) = tick.dynamic_partitions_requests or []
    assert list(request.partition_keys) == [
        f"{result.batch_id}.0001",
        f"{result.batch_id}.0002",
    ]


def test_two_batches_in_one_range_run_one_after_the_other(
    here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions
) -> None:
    _ingest(defs, instance, here.table(110, name="first"))
    _ingest(defs, instance, here.table(20, name="second"))
    keys = instance.get_dynamic_partitions("roadmaps_chunks")
    config = {"ops": {"roadmaps__llm_outputs": {"config": dict(KNOBS)}}}
    request = dg.RunRequest(
        job_name="roadmaps_run",
        run_config=config,
        tags={
            "dagster/asset_partition_range_start": keys[0],
            "dagster/asset_partition_range_end": keys[-1],
        },
    )

    assert _execute(defs, instance, request).success

    assert [key.rpartition(".")[2] for key in keys] == ["0001", "0002", "0001"]
    assert len(_batches(here)) == 2
    assert here.count_attempts(state="settled") == 7


@pytest.mark.parametrize("poisoned", [False, True])
def test_every_ended_llm_run_gets_its_report(
    here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions, poisoned: bool
) -> None:
    here.poison()
    _ingest(defs, instance, here.table(20, poison=(3,) if poisoned else ()), **KNOBS)
    (launch,) = _tick(defs, "roadmaps_reconcile_chunks", instance).run_requests or []
    run = _execute(defs, instance, launch)
    assert run.success is not poisoned

    ending = "failure" if poisoned else "success"
    requests = _after_run(defs, instance, f"roadmaps_report_after_{ending}", run)

    (request,) = requests
    report = _execute(defs, instance, request, job="roadmaps_report")
    assert report.success
    (materialized,) = report.asset_materializations_for_node("roadmaps__batch_report")
    assert materialized.metadata["llm/items_failed"].value == int(poisoned)
    assert Path(str(materialized.metadata["report_html"].value)).is_file()


def test_a_run_of_a_door_gets_no_second_report(
    here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions
) -> None:
    result = here.run(here.table(20))
    assert _after_run(defs, instance, "roadmaps_report_after_success", result.run_id) == []


def _after_run(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    sensor: str,
    run: dg.ExecuteInProcessResult | str,
) -> list[dg.RunRequest]:
    run_id = run if isinstance(run, str) else run.run_id
    found = instance.get_run_by_id(run_id)
    assert found is not None
    ended = [
        entry.dagster_event
        for entry in instance.all_logs(run_id)
        if entry.dagster_event is not None and entry.dagster_event.is_job_event
    ]
    assert ended[-1] is not None
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor,
        dagster_instance=instance,
        dagster_run=found,
        dagster_event=ended[-1],
        resources=_resources(defs),
    )
    told: Any = defs.resolve_sensor_def(sensor)(context)
    return [entry for entry in told if isinstance(entry, dg.RunRequest)]


def test_a_file_is_taken_from_the_inbox_once_it_is_complete(
    here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions
) -> None:
    inbox = here.data / "inbox" / "roadmaps"
    inbox.mkdir(parents=True, exist_ok=True)
    dropped = here.table(20).rename(inbox / "topics.csv")
    (inbox / "link.csv").symlink_to("/etc/hostname")
    past = time.time() - 2 * SETTLED_S
    os.utime(dropped, (past, past))

    first = _tick(defs, "roadmaps_inbox", instance)
    assert not first.run_requests
    (request,) = _tick(defs, "roadmaps_inbox", instance, first.cursor).run_requests or []
    assert _execute(defs, instance, request, job="roadmaps_ingest").success

    assert not dropped.exists()
    assert (inbox / ".taken" / "topics.csv").is_file()
    assert (inbox / "link.csv").is_symlink()
    (batch,) = _batches(here)
    assert batch.launch == "sensor"


def test_a_file_that_still_grows_is_left_alone() -> None:
    now_s = 1_000.0
    old_ns, new_ns = int(900e9), int(998e9)
    assert complete_files({"a": [5, old_ns]}, {"a": (5, old_ns)}, now_s) == ["a"]
    assert complete_files({}, {"a": (5, old_ns)}, now_s) == []
    assert complete_files({"a": [4, old_ns]}, {"a": (5, old_ns)}, now_s) == []
    assert complete_files({"a": [5, new_ns]}, {"a": (5, new_ns)}, now_s) == []
    assert complete_files({"a": [0, old_ns]}, {"a": (0, old_ns)}, now_s) == []
    assert inbox_files(Path("no-such-folder")) == {}


def test_the_night_takes_up_what_is_not_done_and_leaves_the_rest(
    here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions
) -> None:
    here.run(here.table(20, name="done"))
    open_batch = here.run(here.table(120, name="half"), knobs={"limit": 20}).batch_id
    schedule = defs.resolve_schedule_def("roadmaps_nightly")

    def night() -> list[dg.RunRequest]:
        context = dg.build_schedule_context(
            instance=instance,
            resources=_resources(defs),
            scheduled_execution_time=datetime(2026, 11, 21, 23, 0, tzinfo=UTC),
        )
        return list(schedule.evaluate_tick(context).run_requests or [])

    (request,) = night()
    assert request.tags["batch_pipeline/batch"] == open_batch
    config = request.run_config["ops"]["roadmaps__llm_outputs"]["config"]
    assert config == {"simulate": True}
    config.update(KNOBS)
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    assert _execute(defs, instance, request, job="roadmaps_run").success
    assert night() == []


_TWO = """
import sys
from batch_pipeline.doors import RunRequest, run_batch
request = RunRequest("roadmaps", source=sys.argv[1], knobs={"rate_limit": 60000.0, "workers": 2})
result = run_batch(request)
assert result.outcomes["succeeded"] == 60, result
"""


def test_two_processes_on_one_batch_in_a_fresh_home_pay_once(here: Installation) -> None:
    here.simulator.configure(latency={"base_s": 0.5, "per_output_token_s": 0, "jitter_s": 0})
    table = here.table(60)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO, str(table)], stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert here.simulator.summary()["attempts"] == 3
    assert here.count_sent() == 3
