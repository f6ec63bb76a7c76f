"""Articles through providers' Batch APIs: stages chain through jobs, at half the price."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.engine.job import Job
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.tables import NANO, AttemptState, attempts
from batch_pipeline.workloads.articles.record import QcRecord
from batch_pipeline_tests.engine.lanes.laning import assert_books_are_right, attempts_of
from batch_pipeline_tests.engine.test_crash import keys_settled
from batch_pipeline_tests.engine_process import start
from batch_pipeline_tests.fetch.archive import Archive, shared_archive
from batch_pipeline_tests.simulated import Bench, Ran, Simulator, finish
from batch_pipeline_tests.workloads.articles.test_offline_jobs import kept

JOBS = 12
MULTI, SINGLE, PROFILED = 6, 6, 8
"""Of the first twelve offline jobs."""


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with shared_archive() as running:
        monkeypatch.setenv("BATCH_PIPELINE_FETCH_ARCHIVE", running.url)
        yield running


@pytest.fixture
def table(reference_data: Path, tmp_path: Path) -> Path:
    """Twelve of the offline jobs: all providers, both strategies, with and without profiles."""
    lines = (reference_data / "articles" / "jobs_offline_36.csv").read_text("utf-8").splitlines()
    path = tmp_path / "twelve.csv"
    path.write_text("\n".join(lines[: JOBS + 1]) + "\n", encoding="utf-8")
    return path


def articles(folder: Path, simulator: Simulator, **knobs: Any) -> Bench:
    folder.mkdir(exist_ok=True)
    quick = {"lane": "batch", "wait": True, "poll_s": 0.1, "options": {"use_ahrefs": False}}
    return Bench(folder, simulator, workload="articles", **{**quick, **knobs})


def run(bench: Bench, batch: Batch, run_id: str) -> Ran:
    job: Job = bench.job(batch, run_id)
    return finish(bench.start(job), job)


def written(bench: Bench, batch: Batch) -> dict[int, tuple[str, str]]:
    """Each job's article and who wrote it."""
    records = {
        ordinal: QcRecord.model_validate(documents["qc"].content)
        for ordinal, documents in kept(bench, batch).items()
    }
    return {
        ordinal: (record.article.markdown if record.article else "", record.model)
        for ordinal, record in records.items()
    }


def paid_calls(bench: Bench) -> list[dict[str, Any]]:
    """Attempts that were answered, without those that were taken back before they were sent."""
    return [one for one in attempts_of(bench) if one["state"] == AttemptState.SETTLED.value]


@pytest.mark.usefixtures("archive")
def test_the_same_articles_come_through_provider_jobs_at_half_the_price(
    simulator: Simulator, table: Path, tmp_path: Path
) -> None:
    articles_of, paid = [], []
    for lane in ("realtime", "batch"):
        simulator.reset()
        bench = articles(tmp_path / lane, simulator, lane=lane)
        batch = bench.ingest(table)
        ran = run(bench, batch, "run")
        assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": JOBS})
        articles_of.append(written(bench, batch))
        calls = paid_calls(bench)
        assert {call["lane"] for call in calls} == {lane}
        paid.append({call["members"]: call["cost_nano"] for call in calls})
        asked = Counter(call["step"] for call in calls)
        assert (asked["outline"], asked["draft"], asked["polish"]) == (MULTI, MULTI, MULTI)
        assert asked["single_shot"] == SINGLE
        assert 0 < asked["profile_publisher"] <= PROFILED
        assert_books_are_right(bench, simulator)
    assert articles_of[0] == articles_of[1] and len(articles_of[0]) == JOBS
    realtime, batched = paid
    assert batched.keys() == realtime.keys()
    for question, cost in batched.items():
        assert cost * 2 == pytest.approx(realtime[question], abs=2), question


@pytest.mark.usefixtures("archive", "either_database")
def test_runs_that_do_not_wait_bring_jobs_on_a_stage_at_a_time_and_single_shots_end_first(
    simulator: Simulator, table: Path, tmp_path: Path
) -> None:
    bench = articles(tmp_path / "data", simulator, wait=False)
    batch = bench.ingest(table)
    ended: list[Counter[str]] = []
    for turn in range(100):
        ran = run(bench, batch, f"run {turn}")
        done = [item for item in bench.items(batch) if item.outcome.value == "succeeded"]
        ended.append(Counter(item.row["strategy"] for item in done))
        if ran.done.status != "submitted":
            break
        time.sleep(0.1)
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": JOBS})
    first = next(counts for counts in ended if counts)
    assert set(first) == {"single_shot"}, "who needs one call is not the last to end"
    assert any(
        counts["single_shot"] == SINGLE and counts["multi_stage"] < MULTI for counts in ended
    ), "jobs of one call waited for those of three"
    assert set(keys_settled(bench).values()) == {1}
    assert simulator.summary()["by_lane"]["realtime"]["attempts"] == 0
    assert_books_are_right(bench, simulator)


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize(("deadline", "lane"), [("72h", "batch"), ("1h", "realtime")])
def test_the_lane_auto_goes_by_the_time_that_is_left(
    deadline: str, lane: str, simulator: Simulator, table: Path, tmp_path: Path
) -> None:
    bench = articles(tmp_path / "data", simulator, lane="auto", deadline=deadline)
    batch = bench.ingest(table)
    assert run(bench, batch, "run").outcomes == {"succeeded": JOBS}
    assert {call["lane"] for call in paid_calls(bench)} == {lane}
    assert_books_are_right(bench, simulator)


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("stage", ["profile_target", "outline", "draft"])
def test_a_run_that_is_killed_between_stages_goes_on_and_nothing_settled_is_paid_twice(
    stage: str, simulator: Simulator, table: Path, tmp_path: Path
) -> None:
    bench = articles(tmp_path / "data", simulator)
    batch = bench.ingest(table)
    process = start(bench, batch.batch_id, "killed")
    try:
        deadline = time.monotonic() + 60
        while not settled(bench, stage) and process.poll() is None:
            assert time.monotonic() < deadline, f"{stage} was never settled"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    before = dict(keys_settled(bench))
    assert before, "nothing was settled by then: the test proves nothing"
    ran = run(bench, batch, "resumed")
    assert (ran.done.status, ran.outcomes) == ("done", {"succeeded": JOBS})
    assert set(keys_settled(bench).values()) == {1}
    assert before.items() <= dict(keys_settled(bench)).items()
    spent = sum(call["cost_nano"] for call in paid_calls(bench))
    assert spent / NANO == pytest.approx(simulator.summary()["price_usd"])
    assert {call["lane"] for call in paid_calls(bench)} == {"batch"}


def settled(bench: Bench, stage: str) -> int:
    count = (
        sa.select(sa.func.count())
        .select_from(attempts)
        .where(attempts.c.step == stage, attempts.c.settled_at.is_not(None))
    )
    with bench.open() as ledger, ledger.read() as connection:
        return int(connection.execute(count).scalar_one())
