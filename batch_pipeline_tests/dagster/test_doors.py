"""A batch through its three Dagster runs, as the command line starts them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from batch_pipeline.component.automation import range_tags
from batch_pipeline.component.materialize import TAG_BATCH, TAG_REALM, TAG_WORKLOAD
from batch_pipeline.definitions import build_defs
from batch_pipeline.doors import RunRequest, run_batch
from batch_pipeline.engine.job import Progress
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import list_batches
from batch_pipeline.providers.registry import MissingKeyError
from batch_pipeline_tests.dagster.installation import KNOBS, OUTPUTS, Installation, once

METADATA = {
    "llm/cost_usd", "llm/requests", "llm/attempts", "llm/input_tokens", "llm/cached_input_tokens",
    "llm/output_tokens", "llm/items_succeeded", "llm/items_blocked", "llm/items_failed",
    "llm/items_skipped", "llm/cache_hits", "llm/wall_s", "llm/latency_p50_s", "llm/latency_p95_s",
    "llm/rate_wait_s", "llm/realm", "dagster/uri",
}  # fmt: skip


def test_a_batch_runs_to_its_report_and_a_second_run_pays_nothing(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    table = here.table(150)
    stages: list[str] = []
    first = run_batch(
        RunRequest("roadmaps", source=str(table), knobs={"rate_limit": 60_000.0, "workers": 8}),
        on_stage=stages.append,
    )

    assert stages == ["home", "load", "ingest", "llm", "report"]
    assert (first.status, first.realm, first.row_count) == ("done", "simulated", 150)
    assert first.outcomes["succeeded"] == 150
    assert first.summary["requests"] == first.summary["attempts"] == 8
    assert here.simulator.summary()["attempts"] == 8
    assert first.report_html is not None and first.report_html.is_file()
    assert {path.suffix for path in first.deliverables} == {".csv", ".jsonl", ".parquet", ".db"}
    assert here.statuses(instance) == {"0001": "MATERIALIZED", "0002": "MATERIALIZED"}

    second = here.run(table)
    assert second.batch_id == first.batch_id
    assert (second.summary["attempts"], second.summary["cache_hits"]) == (0, 150)


def test_the_runs_of_a_door_show_in_the_ui_with_their_numbers(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    result = here.run(here.table(150))

    names = {run.job_name for run in instance.get_runs()}
    assert names == {"roadmaps_ingest", "roadmaps_run", "roadmaps_report"}
    run = instance.get_run_by_id(result.run_id)
    assert run is not None and run.status is dg.DagsterRunStatus.SUCCESS
    assert run.remote_job_origin is not None
    assert run.remote_job_origin.location_name == "batch_pipeline"
    assert (run.tags[TAG_BATCH], run.tags[TAG_REALM], run.tags[TAG_WORKLOAD]) == (
        result.batch_id, "simulated", "roadmaps",
    )  # fmt: skip
    records = instance.fetch_materializations(OUTPUTS, limit=10).records
    assert len(records) == 2
    chunks = [record.asset_materialization for record in records]
    assert all(chunk is not None and chunk.metadata.keys() >= METADATA for chunk in chunks)
    cost = sum(float(str(chunk.metadata["llm/cost_usd"].value)) for chunk in chunks if chunk)
    assert cost == pytest.approx(result.summary["cost_nano"] / 1e9, abs=1e-8)
    report = instance.fetch_materializations(
        dg.AssetKey(["roadmaps", "batch_report"]), limit=1
    ).records[0]
    assert report.asset_materialization is not None
    assert report.asset_materialization.metadata["llm/requests"].value == 8


def test_poison_rows_fail_alone_and_a_second_run_calls_only_for_them(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    table = here.table(300, poison=(7, 250))
    here.poison()
    first = here.run(table)

    assert first.outcomes == {
        "succeeded": 298, "failed": 2, "pending": 0, "blocked": 0, "skipped": 0,
    }  # fmt: skip
    assert here.statuses(instance) == {
        "0001": "FAILED", "0002": "MATERIALIZED", "0003": "FAILED",
    }  # fmt: skip
    failure = _failure(instance, first.run_id)
    assert "2 chunks with failed rows" in failure
    assert "Row 7 " in failure and "Row 250 " in failure
    checks = _checks(instance, first.run_id)
    assert checks == {
        "every_row_has_one_outcome": True,
        "share_succeeded": True,
        "outputs_match_schema": True,
        "no_row_blocked": True,
    }

    here.simulator.configure()
    second = here.run(batch_id=first.batch_id)
    assert second.summary["attempts"] == 1
    assert second.outcomes["succeeded"] == 300
    assert set(here.statuses(instance).values()) == {"MATERIALIZED"}


def test_only_the_named_chunks_run(here: Installation, instance: dg.DagsterInstance) -> None:
    table = here.table(300, poison=(250,))
    here.poison()
    first = here.run(table)
    here.simulator.configure()

    second = here.run(batch_id=first.batch_id, chunk_keys=[f"{first.batch_id}.0003"])

    assert second.summary["outcomes"]["succeeded"] == 100
    assert set(here.statuses(instance).values()) == {"MATERIALIZED"}


def test_a_limit_leaves_the_rest_to_do_and_is_no_failure(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    result = here.run(here.table(150), knobs={"limit": 40})

    assert result.outcomes["succeeded"] == 40
    assert result.outcomes["pending"] == 110
    assert result.status == "done"
    run = instance.get_run_by_id(result.run_id)
    assert run is not None and run.is_success


def test_force_asks_finished_rows_again(here: Installation) -> None:
    table = here.table(40)
    here.run(table)
    assert here.run(table, force=True).summary["attempts"] == 2


def test_rows_are_exported_without_any_call(here: Installation) -> None:
    result = here.run(here.table(30), knobs={"no_enrich": True})

    assert result.status == "exported"
    assert here.simulator.summary()["attempts"] == 0
    lines = next(p for p in result.deliverables if p.suffix == ".jsonl").read_text().splitlines()
    assert len(lines) == 30
    assert json.loads(lines[0])["TLDR"] == ""


def test_one_interrupt_settles_what_is_in_flight_and_still_reports(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    table = here.table(200)
    here.simulator.configure(latency={"base_s": 0.6, "per_output_token_s": 0, "jitter_s": 0})
    interrupt = once(lambda: signal.raise_signal(signal.SIGINT))

    def on_progress(progress: Progress) -> None:
        if progress.attempts and progress.in_flight:
            interrupt()

    result = here.run(table, knobs={"workers": 2}, on_progress=on_progress)

    assert result.status == "interrupted"
    assert result.report_json is not None and result.report_json.is_file()
    assert 0 < result.outcomes["pending"] < 200
    assert result.outcomes["succeeded"] + result.outcomes["pending"] == 200
    assert here.count_sent() == here.count_attempts(state="settled") > 0
    run = instance.get_run_by_id(result.run_id)
    assert run is not None and run.status is dg.DagsterRunStatus.CANCELED

    paid = here.count_sent()
    here.simulator.configure()
    again = here.run(batch_id=result.batch_id)
    assert again.outcomes["succeeded"] == 200
    assert here.count_sent() == 10 and again.summary["attempts"] == 10 - paid


def test_a_run_marked_as_canceled_from_outside_stops(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    table = here.table(400)
    here.simulator.configure(latency={"base_s": 0.5, "per_output_token_s": 0, "jitter_s": 0})

    def cancel() -> None:
        running = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        instance.report_run_canceled(running[0])

    mark = once(cancel)
    result = here.run(
        table,
        knobs={"workers": 1, "pack": 5},
        on_progress=lambda progress: mark() if progress.attempts else None,
    )

    assert result.status == "interrupted"
    assert here.count_sent() == here.count_attempts(state="settled") < 40


def test_a_live_run_after_a_simulated_one_misses_its_key_and_sees_no_result(
    here: Installation,
) -> None:
    table = here.table(20)
    here.run(table)

    with pytest.raises(MissingKeyError, match="GOOGLE_API_KEY"):
        here.run(table, simulate=False)

    assert here.count_attempts("live") == 0
    with here.ledger("live") as ledger, ledger.read() as connection:
        assert list_batches(connection, "live") == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"batch_id": "never-seen"}, "no batch 'never-seen'"),
        ({}, "Neither a table nor a batch"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_called(
    here: Installation, request_: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        here.run(**request_)


def test_errors_inside_a_run_come_back_as_what_they_are(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    path = here.data / "wrong.csv"
    path.write_text("Name\nx\n")

    with pytest.raises(UsageError, match="Topic"):
        here.run(path)

    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert "Topic" in _failure(instance, run.run_id)


def _failure(instance: dg.DagsterInstance, run_id: str) -> str:
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    (event,) = (entry.dagster_event for entry in events)
    assert event is not None
    data = event.step_failure_data.user_failure_data
    assert data is not None and data.description is not None
    return str(data.description)


def _checks(instance: dg.DagsterInstance, run_id: str) -> dict[str, bool]:
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [entry.dagster_event for entry in events]
    return {
        event.asset_check_evaluation_data.check_name: event.asset_check_evaluation_data.passed
        for event in found
        if event is not None
    }


def test_an_interrupt_while_dagster_stores_an_event_stops_the_engine_too(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    table = here.table(400)
    batch = here.run(table, knobs={"no_enrich": True})
    here.simulator.configure(latency={"base_s": 0.3, "per_output_token_s": 0, "jitter_s": 0})
    interrupt = once(lambda: signal.raise_signal(signal.SIGINT))
    handle = instance.handle_new_event

    def handle_and_interrupt(event: dg.EventLogEntry, **options: Any) -> None:
        handle(event, **options)
        if event.dagster_event is not None and event.dagster_event.is_step_materialization:
            interrupt()

    instance.handle_new_event = handle_and_interrupt  # type: ignore[method-assign]
    job = build_defs().resolve_job_def("roadmaps_run")
    with pytest.raises(DagsterExecutionInterruptedError):
        job.execute_in_process(
            run_config={
                "ops": {"roadmaps__llm_outputs": {"config": {**KNOBS, "workers": 2, "pack": 10}}}
            },
            tags=range_tags(f"{batch.batch_id}.0001", f"{batch.batch_id}.0004"),
            instance=instance,
        )

    assert here.count_sent() == here.count_attempts(state="settled") < 30
    assert not [t for t in threading.enumerate() if t.name.startswith("engine ")]


def test_after_a_kill_the_next_run_ends_the_dead_one_and_finishes_the_batch(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    table = here.table(60)
    here.simulator.configure(latency={"base_s": 1.0, "per_output_token_s": 0, "jitter_s": 0})
    program = str(Path(sys.executable).parent / "batch-pipeline")
    options = ["--input", str(table), "--pack", "5", "--workers", "2", "--rate-limit", "60000"]
    killed = subprocess.Popen([program, "run", "roadmaps", *options], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while here.count_attempts(state="settled") < 1:
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    here.simulator.configure()
    result = here.run(table, knobs={"pack": 5})
    assert (result.status, result.outcomes["succeeded"]) == ("done", 60)
    statuses = [run.status.value for run in instance.get_runs()]
    assert statuses.count("FAILURE") == 1, "the killed run is ended, not left as started"
    assert "STARTED" not in statuses
    settled, in_flight = here.count_attempts(state="settled"), here.count_attempts(state="sent")
    # Two calls on the wire and one written ahead; each of the three workers may besides have had a
    # reply that was not committed yet.
    assert settled == 12 and 1 <= in_flight <= 6
    assert here.simulator.summary()["attempts"] <= settled + in_flight
