"""provider_jobs and llm_outputs as assets: what each does, alone and in one run with the other."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from batch_pipeline.component.automation import range_tags
from batch_pipeline.definitions import build_defs
from batch_pipeline_tests.dagster.installation import Installation

ROWS = 120
CHUNKS = 2


@pytest.fixture
def defs() -> dg.Definitions:
    return build_defs()


def _ingest(
    here: Installation, defs: dg.Definitions, instance: dg.DagsterInstance, **config: Any
) -> None:
    asked = {"source": str(here.table(ROWS)), "batch": "night", "simulate": True, **config}
    ended = defs.resolve_job_def("roadmaps_ingest").execute_in_process(
        run_config={"ops": {"roadmaps__input_table": {"config": asked}}}, instance=instance
    )
    assert ended.success


def _run(
    defs: dg.Definitions, instance: dg.DagsterInstance, *assets: str, **config: Any
) -> dg.ExecuteInProcessResult:
    """One run of some assets over all chunks, as the UI makes it of what is selected."""
    selected = [dg.AssetKey(["roadmaps", asset]) for asset in assets]
    asked = {"config": {"simulate": True, "poll_s": 0.1, **config}}
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=selected,
        run_config={"ops": {f"roadmaps__{asset}": asked for asset in assets}},
        tags=range_tags("night.0001", f"night.{CHUNKS:04d}"),
        instance=instance,
        raise_on_error=False,
    )


def _materialized(instance: dg.DagsterInstance, asset: str) -> int:
    return len(instance.get_materialized_partitions(dg.AssetKey(["roadmaps", asset])))


def test_jobs_go_up_and_come_back_as_two_assets(
    here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions
) -> None:
    _ingest(here, defs, instance)
    assert _run(defs, instance, "provider_jobs", lane="batch").success
    assert _materialized(instance, "provider_jobs") == CHUNKS
    assert _materialized(instance, "llm_outputs") == 0
    ended = _run(defs, instance, "llm_outputs", lane="batch", wait=True)
    assert ended.success
    assert _materialized(instance, "llm_outputs") == CHUNKS
    lanes = here.simulator.summary()["by_lane"]
    assert lanes["realtime"]["attempts"] == 0
    assert lanes["batch"]["attempts"] == ROWS / 20


@pytest.mark.parametrize("lane", ["realtime", "batch"])
def test_both_assets_in_one_run_ask_each_row_once(
    lane: str, here: Installation, instance: dg.DagsterInstance, defs: dg.Definitions
) -> None:
    _ingest(here, defs, instance)
    assert _run(defs, instance, "provider_jobs", "llm_outputs", lane=lane, wait=True).success
    assert _materialized(instance, "llm_outputs") == CHUNKS
    summary = here.simulator.summary()
    assert summary["items"] == ROWS
    assert summary["by_lane"][lane]["attempts"] == summary["attempts"] == ROWS / 20
    assert (_materialized(instance, "provider_jobs") > 0) == (lane == "batch")
