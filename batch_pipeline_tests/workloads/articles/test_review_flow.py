"""Articles that wait for a person, from the block to the deliverables, by ledger and engine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.reviews import DecisionKind, ReviewConflictError
from batch_pipeline.workloads.articles.package import JobPackage
from batch_pipeline.workloads.articles.record import QcRecord, job_id
from batch_pipeline.workloads.reviews import Case, Decided, Verdict, decide_rows, read_case
from batch_pipeline.workloads.runner import deliver
from batch_pipeline_tests.engine.lanes.laning import attempts_of
from batch_pipeline_tests.fetch.archive import Archive, shared_archive
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish
from batch_pipeline_tests.workloads.articles.test_offline_jobs import kept

OVERRIDE, REGENERATE, SKIP = DecisionKind.OVERRIDE, DecisionKind.REGENERATE, DecisionKind.SKIP
GOOD, SOURCES, LANGUAGE, RISKY, LINK, EDITED, SKIPPED = range(7)
"""The jobs of the table, by what becomes of them."""
FAULTS = {
    SOURCES: "article_no_sources",
    LANGUAGE: "article_other_language",
    LINK: "article_no_link",
    SKIPPED: "article_no_sources",
}
RISKY_ANCHORS = (RISKY, EDITED)
WRITING = {"outline", "draft", "polish", "single_shot"}


@pytest.fixture(autouse=True)
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with shared_archive() as running:
        monkeypatch.setenv("BATCH_PIPELINE_FETCH_ARCHIVE", running.url)
        yield running


def write_jobs(source: Path, path: Path) -> list[str]:
    """Write seven of the offline jobs, two with a link text of high risk; gives their targets."""
    header, *lines = (source / "articles" / "jobs_offline_36.csv").read_text("utf-8").splitlines()
    rows = [line.split(",") for line in lines[: len(FAULTS) + 3]]
    for at in RISKY_ANCHORS:
        rows[at][2] = "best"
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", "utf-8")
    return [row[1] for row in rows]


class Desk:
    """One blocked batch, and what a person does with it."""

    def __init__(self, folder: Path, simulator: Simulator, source: Path, **knobs: Any) -> None:
        folder.mkdir(exist_ok=True)
        table = folder / "jobs.csv"
        self.targets = write_jobs(source, table)
        self.simulator = simulator
        self.fail(*FAULTS)
        self.bench = Bench(
            folder, simulator, workload="articles", options={"use_ahrefs": False}, **knobs
        )
        self.batch: Batch = self.bench.ingest(table, "client")
        self.out = folder / "out"
        self.runs = 0

    def fail(self, *rows: int) -> None:
        """Let articles of these jobs go wrong from now on, and no others."""
        self.simulator.configure(
            faults=[{"kind": FAULTS[at], "match": self.targets[at]} for at in rows]
        )

    def run(self) -> Ran:
        self.runs += 1
        job = self.bench.job(self.batch, f"run-{self.runs}")
        ran = finish(self.bench.start(job), job)
        with self.bench.open() as ledger:
            deliver(ledger, self.bench.config, self.batch, self.out)
        return ran

    def outcomes(self) -> list[str]:
        return [item.outcome.value for item in self.bench.items(self.batch)]

    def name(self, row: int) -> str:
        item = self.bench.items(self.batch)[row]
        return job_id(self.batch.batch_id, self.batch.created_at, item.item_id)

    def case(self, row: int) -> Case:
        with self.bench.open() as ledger:
            return read_case(ledger, self.batch, self.bench.items(self.batch)[row], self.out)

    def decide(self, kind: DecisionKind, *rows: int, **more: Any) -> list[Decided]:
        seen = [self.bench.items(self.batch)[row] for row in rows]
        verdict = Verdict(kind, "Ann", "The client agrees.", **more)
        with self.bench.open() as ledger:
            return decide_rows(ledger, self.batch, seen, verdict)

    def asked(self) -> Counter[tuple[int, str]]:
        """Paid calls by row and step."""
        return Counter(
            (orjson.loads(one["members"])[0][0], one["step"])
            for one in attempts_of(self.bench)
            if one["state"] == "settled"
        )

    def package(self, row: int, folder: str = "blocked") -> dict[str, Any]:
        path = self.out / folder / f"{self.name(row)}_job_package.json"
        return dict(json.loads(path.read_text("utf-8")))

    def qc(self, row: int) -> QcRecord:
        return QcRecord.model_validate(kept(self.bench, self.batch)[row]["qc"].content)

    def report(self) -> list[dict[str, Any]]:
        """Results of the newest batch report, in the order of the rows."""
        newest = max(self.out.glob("batch_report_*.json"), key=lambda path: path.stat().st_mtime)
        results: list[dict[str, Any]] = json.loads(newest.read_text("utf-8"))["results"]
        return results


@pytest.fixture
def desk(simulator: Simulator, reference_data: Path, tmp_path: Path) -> Desk:
    """The batch after its first run: one job delivered, six blocked."""
    found = Desk(tmp_path / "data", simulator, reference_data)
    assert found.run().outcomes == {"succeeded": 1, "blocked": 6}
    return found


@pytest.mark.usefixtures("either_database")
def test_every_decision_reaches_articles_files_and_report_and_nothing_else_is_paid_again(
    simulator: Simulator, reference_data: Path, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "data", simulator, reference_data)
    assert desk.run().outcomes == {"succeeded": 1, "blocked": 6}
    before = desk.asked()
    assert not any(step in WRITING for row, step in before if row in RISKY_ANCHORS)
    first = {row: desk.qc(row) for row in (GOOD, SOURCES, LANGUAGE)}

    desk.decide(OVERRIDE, SOURCES, RISKY, sign_off=True)
    desk.decide(OVERRIDE, LANGUAGE)
    desk.decide(REGENERATE, LINK)
    package = desk.package(EDITED)
    package["anchor_profile"]["proposed_text"] = "an open source answer"
    package["input_minimal"]["anchor_text"] = "an open source answer"
    package["intent_extension"]["required_subtopics"][0] = "maintenance"
    desk.decide(REGENERATE, EDITED, package=package)
    desk.decide(SKIP, SKIPPED)
    assert desk.outcomes() == [
        "succeeded", "succeeded", "succeeded", "pending", "pending", "pending", "skipped",
    ]  # fmt: skip
    desk.fail(SOURCES, LANGUAGE, SKIPPED)
    desk.run()
    assert desk.outcomes() == ["succeeded"] * 6 + ["skipped"]

    # What was accepted is delivered as it was; nobody wrote it again.
    assert {row: desk.qc(row) for row in first} == first
    new = desk.asked() - before
    assert {row for row, _ in new} == {RISKY, LINK, EDITED}
    assert all(count == 1 for count in new.values())
    assert {step for row, step in new if row in RISKY_ANCHORS} <= WRITING, "packages are kept"
    # The accepted issue is in the report, and does not block; the other one is gone.
    risky = desk.qc(RISKY).report
    (anchor,) = [one for one in risky.issues if one.category == "anchor"]
    assert (anchor.severity, anchor.details["accepted_by_reviewer"]) == ("LOW", True)
    assert risky.status in ("PASS", "WARNING") and not risky.human_signoff_required
    edited = desk.qc(EDITED)
    assert edited.article is not None
    assert f"[an open source answer]({desk.targets[EDITED]})" in edited.article.markdown
    assert "maintenance" in edited.article.markdown

    delivered = {path.name for path in desk.out.glob("*_article.md")}
    assert delivered == {f"{desk.name(row)}_article.md" for row in range(6)}
    assert not list((desk.out / "blocked").glob("*"))
    assert len(list((desk.out / "skipped").glob(f"{desk.name(SKIPPED)}_*"))) == 5
    results = desk.report()
    assert [one["status"] for one in results] == ["DELIVERED"] * 6 + ["SKIPPED"]
    decisions = [one["review"] and one["review"]["decision"] for one in results]
    assert decisions == [
        None, "override", "override", "override", "regenerate", "regenerate", "skip",
    ]  # fmt: skip
    assert results[SOURCES]["qc_report"]["status"] == "BLOCKED"
    assert (
        results[SOURCES]["review"]["signed_off"] and not results[LANGUAGE]["review"]["signed_off"]
    )
    assert desk.package(EDITED, "")["input_minimal"]["anchor_text"] == "an open source answer"
    rows = [
        json.loads(line)
        for line in (desk.out / "articles_client.jsonl").read_text("utf-8").splitlines()
    ]
    assert [row["reviewer"] for row in rows] == [None] + ["Ann"] * 6
    assert {row["reason"] for row in rows[1:]} == {"The client agrees."}

    known = desk.asked()
    assert desk.run().done.tally.attempts == 0
    assert desk.asked() == known


def test_a_person_sees_why_a_job_waits_and_what_it_is(desk: Desk) -> None:
    written, unwritten = desk.case(SOURCES).facts, desk.case(RISKY).facts
    assert written.why[0].category == "trust_sources" and written.why[0].blocks
    assert written.signoff_required and not written.needs_writing
    assert len(written.text.split()) > 300
    assert dict(written.summary)["strategy"] == "multi_stage"
    assert [one.category for one in unwritten.why if one.blocks] == ["anchor"]
    assert unwritten.needs_writing and unwritten.text == "" and unwritten.signoff_required
    assert not desk.case(LANGUAGE).facts.signoff_required
    for row in (SOURCES, RISKY):
        assert len(desk.case(row).files) == 5
        assert {path.parent.name for path in desk.case(row).files} == {"blocked"}


def test_what_critical_issues_block_needs_a_sign_off(desk: Desk) -> None:
    for row in (SOURCES, RISKY):
        with pytest.raises(UsageError, match="needs a sign-off"):
            desk.decide(OVERRIDE, row)
    with pytest.raises(UsageError, match="needs a sign-off"):
        desk.decide(OVERRIDE, LANGUAGE, SOURCES)
    assert desk.outcomes().count("blocked") == 6, "of several all are decided, or none"
    (done,) = desk.decide(OVERRIDE, SOURCES, sign_off=True)
    assert done.decision.signed_off
    with pytest.raises(ReviewConflictError, match="override by Ann"):
        desk.decide(SKIP, SOURCES)


def test_a_package_must_be_the_jobs_own_and_valid(desk: Desk) -> None:
    package = desk.package(EDITED)
    with pytest.raises(UsageError, match=f"is of job {desk.name(EDITED)}"):
        desk.decide(REGENERATE, RISKY, package=package)
    broken = {**package, "anchor_profile": {**package["anchor_profile"], "proposed_text": 7}}
    with pytest.raises(UsageError, match=r"anchor_profile\.proposed_text: .*string"):
        desk.decide(REGENERATE, EDITED, package=broken)
    package["input_minimal"]["anchor_text"] = "an open source answer"
    with pytest.raises(UsageError, match=r"two link texts: .*anchor_text.*proposed_text"):
        desk.decide(REGENERATE, EDITED, package=package)
    package.pop("intent_extension")
    with pytest.raises(UsageError, match="intent_extension: Field required") as caught:
        desk.decide(REGENERATE, EDITED, package=package)
    assert "job_package.schema.json" in caught.value.next_step
    assert desk.outcomes().count("blocked") == 6
    JobPackage.model_validate(desk.package(EDITED))


def test_an_edited_package_can_be_blocked_again_and_decided_again(desk: Desk) -> None:
    package = desk.package(RISKY)
    package["anchor_profile"]["proposed_text"] = "an open source answer"
    package["input_minimal"]["anchor_text"] = "an open source answer"
    package["intent_extension"]["intent_alignment"]["overall"] = "off"
    desk.decide(REGENERATE, RISKY, package=package)
    assert desk.run().outcomes == {"succeeded": 1, "blocked": 6}
    facts = desk.case(RISKY).facts
    assert [one.category for one in facts.why if one.blocks] == ["intent"]
    assert facts.text and not facts.needs_writing
    before = desk.asked()
    desk.decide(OVERRIDE, RISKY, sign_off=True)
    desk.run()
    assert desk.outcomes()[RISKY] == "succeeded" and desk.asked() == before
    assert [one.kind for one in desk.case(RISKY).history] == [REGENERATE, OVERRIDE]
    assert (desk.out / f"{desk.name(RISKY)}_article.md").is_file()
