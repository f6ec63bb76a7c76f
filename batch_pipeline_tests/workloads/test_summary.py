"""Counting labels: as most rows spell them, within a bound, and only where a workload sums up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.workloads import summary
from batch_pipeline.workloads.base import deliverable_formats, load_workload
from batch_pipeline.workloads.runner import ingest_batch, open_ledger
from batch_pipeline.workloads.summary import LabelCounts, Summarizing, SummaryTable, summarize_batch
from batch_pipeline_tests.simulated import Bench, Simulator

SAMPLE = Path(__file__).parents[2] / "data" / "samples" / "roadmaps" / "platform-engineer.csv"


def table(counts: LabelCounts, most: int = 10) -> SummaryTable:
    return counts.table("Sectors", 4, "articles", several=True, most=most)


def test_labels_that_differ_in_case_are_one_and_show_their_usual_spelling() -> None:
    counts = LabelCounts()
    for labels in (["banking", "Banking"], ["Banking", "Energy"], ["Banking"], ["BANKING"]):
        counts.add(labels)
    found = table(counts)
    assert [(entry.label, entry.rows) for entry in found.entries] == [("Banking", 4), ("Energy", 1)]
    assert found.more_labels == 0


def test_the_most_frequent_labels_are_shown_and_the_others_counted() -> None:
    counts = LabelCounts()
    counts.add(["c", "b", "a"])
    counts.add(["c"])
    found = table(counts, most=2)
    assert [entry.label for entry in found.entries] == ["c", "a"]
    assert found.more_labels == 1


def test_any_number_of_labels_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "_MOST_LABELS", 50)
    counts = LabelCounts()
    for number in range(500):
        counts.add(["common", f"rare {number}"])
    found = table(counts)
    assert (found.entries[0].label, found.entries[0].rows) == ("common", 500)
    assert len(found.entries) + found.more_labels == 501


def test_a_workload_without_a_summary_has_none(tmp_path: Path, simulator: Simulator) -> None:
    bench = Bench(tmp_path, simulator)
    with open_ledger(bench.settings, "simulated") as ledger:
        batch: Batch = ingest_batch(ledger, bench.config, str(SAMPLE))[0]
        assert summarize_batch(ledger, batch) is None
        # The report of a batch whose workload was taken away still works.
        gone = replace(batch, workload="batch_pipeline.nowhere:Gone")
        assert summarize_batch(ledger, gone) is None


def test_a_workload_may_choose_its_formats() -> None:
    assert "json" in deliverable_formats(load_workload("news"))
    assert "json" not in deliverable_formats(load_workload("roadmaps"))
    assert isinstance(load_workload("news"), Summarizing)
    assert not isinstance(load_workload("roadmaps"), Summarizing)
