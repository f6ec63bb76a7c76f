"""The asset `review_queue`: what waits, as the Dagster UI shows it, fresh after each run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pytest

from batch_pipeline.component.materialize import Tools
from batch_pipeline.component.resources import REALMS
from batch_pipeline.component.review_queue import show_queue
from batch_pipeline.definitions import build_defs
from batch_pipeline.doors import RunRequest, run_batch
from batch_pipeline.ledger.batches import read_items
from batch_pipeline.ledger.reviews import DecisionKind
from batch_pipeline.workloads.reviews import Verdict, decide_rows
from batch_pipeline.workloads.roadmaps.workload import RoadmapsWorkload
from batch_pipeline.workloads.runner import require_batch
from batch_pipeline_tests.dagster.installation import KNOBS, POISON, Installation
from batch_pipeline_tests.workloads.essays import WORKLOAD, blocked_batch

QUEUE = dg.AssetKey(["roadmaps", "review_queue"])


@pytest.fixture
def reviewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roadmaps with a queue."""
    monkeypatch.setattr(RoadmapsWorkload, "has_review_queue", True, raising=False)


def shown(instance: dg.DagsterInstance) -> Mapping[str, Any]:
    """The newest queue's metadata."""
    record = instance.fetch_materializations(QUEUE, limit=1).records[0]
    assert record.asset_materialization is not None
    return {name: entry.value for name, entry in record.asset_materialization.metadata.items()}


@pytest.mark.usefixtures("reviewed")
def test_after_a_run_the_queue_has_the_blocked_rows_until_they_are_decided(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    here.simulator.configure(faults=[{"kind": "refusal", "match": POISON}])
    table = here.table(3, poison=(2,), name="night")
    first = run_batch(
        RunRequest("roadmaps", source=str(table), batch_id="night", knobs={**KNOBS, "pack": 1})
    )
    assert first.outcomes["blocked"] == 1
    assert first.report_json is not None and first.report_json.is_file()
    queue = shown(instance)
    assert queue["waiting"] == queue["dagster/row_count"] == 1
    table_text = queue["queue (SIMULATED)"]
    assert "| night 2 |" in table_text and "refused: the model declined" in table_text
    assert "batch-pipeline review show night 2" in queue["look at it (SIMULATED)"]
    assert queue["oldest wait"].endswith((" s", "ms")) and queue["oldest since"] > 0

    with here.ledger() as ledger:
        with ledger.read() as connection:
            (item,) = read_items(connection, ledger.realm, "night", 1, 1)
        verdict = Verdict(DecisionKind.SKIP, "Ann", "Not wanted.")
        decide_rows(ledger, require_batch(ledger, "night"), [item], verdict)
    job = build_defs().resolve_job_def("roadmaps_report")
    assert job.execute_in_process(instance=instance, asset_selection=[QUEUE]).success
    assert shown(instance)["waiting"] == 0
    assert shown(instance)["queue"] == "No row waits for a decision."


def test_only_workloads_that_want_one_have_a_queue(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    graph = build_defs().resolve_asset_graph()
    assert QUEUE not in graph.get_all_asset_keys()


@pytest.mark.usefixtures("reviewed")
def test_a_queue_depends_on_the_report_and_is_part_of_its_job(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    defs = build_defs()
    graph = defs.resolve_asset_graph()
    assert graph.get(QUEUE).parent_keys == {dg.AssetKey(["roadmaps", "batch_report"])}
    assert graph.get(QUEUE).group_name == "roadmaps"
    names = {node.name for node in defs.resolve_job_def("roadmaps_report").nodes}
    assert names == {"roadmaps__batch_report", "roadmaps__review_queue"}


def test_both_realms_files_and_signoffs_are_shown_and_text_is_only_text(
    here: Installation, instance: dg.DagsterInstance
) -> None:
    topics = ["money | <b>", *(f"topic {at}" for at in range(60))]
    for realm in REALMS:
        with here.ledger(realm) as ledger:
            blocked_batch(ledger, topics if realm == "live" else ["cats"], batch_id=realm)
    folder = here.data / "outputs" / WORKLOAD / "live"
    folder.mkdir(parents=True)
    (folder / "job_live_0.md").write_text("All about it.")
    resources = build_defs().resources or {}
    tools = Tools(
        *(resources[name] for name in ("installation", "ledger", "limits", "listener", "engines"))
    )
    found = {name: entry.value for name, entry in show_queue(tools, WORKLOAD).items()}
    assert found["waiting"] == 62
    live = found["queue"]
    assert (
        "Sign-off needed. It is about money." in live
        and "<b>" not in live
        and "money \\| &lt;b" in live
    )
    assert "… and 11 more" in live and "job\\_live\\_0" in live
    assert found["files"] == f"- `{folder / 'job_live_0.md'}`"
    assert "cats" in found["queue (SIMULATED)"] and "files (SIMULATED)" not in found
