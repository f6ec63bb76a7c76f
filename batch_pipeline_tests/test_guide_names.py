"""The guides' names: prepare, submit, wait, retrieve; large sets in one call; their options."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from batch_pipeline.batch_processor import (
    BatchProcessor,
    ClassificationResultFromText,
    process_batch_workflow,
)
from batch_pipeline.cli.main import main
from batch_pipeline.errors import UsageError
from batch_pipeline.process_large_batch import (
    process_with_batch_api,
    process_with_realtime_api,
)
from batch_pipeline.workloads.job_results import NotReadyError
from batch_pipeline_tests.simulated import Simulator


def articles(count: int, word: str) -> list[dict[str, str]]:
    """Articles of their own; the last one is empty."""
    return [
        {
            "id": f"{word}-{number}",
            "title": f"{word.title()} {number}",
            "contents": f"The mine of {word} sold {number} tons of copper."
            if number < count
            else "",
        }
        for number in range(1, count + 1)
    ]


@pytest.fixture(autouse=True)
def installation(
    tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> Simulator:
    """A data folder and a working directory of the test's own, in the simulated realm."""
    monkeypatch.setenv("BATCH_PIPELINE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BATCH_PIPELINE_SIMULATE", "1")
    monkeypatch.setenv("BATCH_PIPELINE_SIMULATOR_URL", simulator.url)
    monkeypatch.setenv("GOOGLE_API_KEY", "")
    monkeypatch.chdir(tmp_path)
    return simulator


def test_the_guides_example_runs_from_preparation_to_collected_tracking(
    tmp_path: Path, installation: Simulator
) -> None:
    installation.configure(batches=[{"duration_s": 600.0, "duration_jitter": 0.0}])
    processor = BatchProcessor(gemini_key="AIza-of-the-test")
    file = processor.prepare_batch_from_contents(articles(4, "salta"), "news_batch_001")
    job_id = processor.submit_batch(file)
    status = processor.check_status(job_id)
    assert (status["state"], status["total_count"]) == ("JOB_STATE_RUNNING", 4)
    assert processor.wait_for_completion(job_id, poll_interval=0.01, max_wait_time=0.05) is False
    with pytest.raises(NotReadyError, match="is not done"):
        processor.retrieve_results(job_id, "news_batch_001")

    installation.configure(batches=[], clock={"speed": 1_000.0})
    assert processor.wait_for_completion(job_id, poll_interval=0.1, max_wait_time=60) is True
    results = processor.retrieve_results(job_id, "news_batch_001")

    assert [result.id for result in results] == ["salta-1", "salta-2", "salta-3"]
    assert all(isinstance(result, ClassificationResultFromText) for result in results)
    assert results[0].page_title == "Salta 1" and results[0].extracted_characters > 0
    with pytest.raises(UsageError, match="belongs to the batch 'news_batch_001'"):
        processor.retrieve_results(job_id, "news_batch_002")
    tracking = json.loads((tmp_path / "batch_jobs" / "job_tracking.json").read_bytes())
    collected = []
    for job in tracking:
        assert {"wave", "batch_num", "submitted_at"} <= job.keys()
        collected.extend(processor.retrieve_results(job["job_id"], job["batch_name"]))
    assert [result.id for result in collected] == [result.id for result in results]
    lines = (tmp_path / "batch_jobs" / "news_batch_001.jsonl").read_bytes().splitlines()
    mapping = json.loads((tmp_path / "batch_jobs" / "news_batch_001_mapping.json").read_bytes())
    assert len(lines) == len(mapping) == 3


def test_more_articles_than_a_batch_may_have_are_refused() -> None:
    processor = BatchProcessor(max_batch_size=2)
    with pytest.raises(ValueError, match=r"3 articles are more than max_batch_size \(2\)"):
        processor.prepare_batch_from_contents(articles(3, "lima"), "too_many")
    with pytest.raises(ValueError, match="max_batch_size"):
        asyncio.run(processor.prepare_batch_from_urls(["https://example.com"] * 3, "too_many"))


def test_the_whole_workflow_is_one_call() -> None:
    results = asyncio.run(
        process_batch_workflow(articles(3, "cusco"), "cusco", poll_interval=0.05, max_wait_time=60)
    )
    assert [result.id for result in results] == ["cusco-1", "cusco-2"]


def test_a_large_set_goes_through_the_batch_api_with_real_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = asyncio.run(process_with_batch_api(articles(6, "arica"), wait_for_waves=True))
    said = capsys.readouterr().out

    tracking = json.loads((tmp_path / "batch_results" / "job_tracking.json").read_bytes())
    assert jobs == [entry["job_id"] for entry in tracking if entry["provider"]]
    assert "PROCESSING WITH BATCH API" in said and "=" * 80 in said
    assert "   Max enqueued tokens: 10,000,000\n" in said
    assert "   Safe enqueued tokens: 9,000,000 (90% of limit)\n" in said
    assert "   Total articles: 6\n   To ask now: 5 in 5 requests\n" in said
    assert "   Provider jobs: about 1\n" in said
    assert "ALL JOBS COLLECTED" in said
    assert f"   Provider jobs: {len(jobs)} (0 still open)\n" in said
    assert "   Total articles: 6 (5 succeeded, 1 skipped)\n" in said
    assert f"Job tracking saved to: {Path('batch_results') / 'job_tracking.json'}" in said


def test_a_day_of_a_large_set_in_real_time_goes_on_the_next_day() -> None:
    items = articles(5, "tacna")
    first = asyncio.run(process_with_realtime_api(items, items_per_day=2))
    assert [result.id for result in first] == ["tacna-1", "tacna-2"]
    again = asyncio.run(process_with_realtime_api(items, items_per_day=2))
    assert [result.id for result in again] == ["tacna-1", "tacna-2"]
    more = asyncio.run(process_with_realtime_api(items, items_per_day=3))
    assert [result.id for result in more] == ["tacna-1", "tacna-2", "tacna-3"]


@pytest.mark.parametrize(
    "words",
    [
        "flashcards --mode exa --category 001_cybersecurity --limit 100 --batch-size 10 "
        "--batch-delay 2.0",
        "flashcards --mode web --category 001_cybersecurity --limit 1000 --batch-size 100 "
        "--concurrent 100",
        "flashcards --mode unified --category 001_cybersecurity --limit 100",
        "flashcards --mode web --category 001_cybersecurity --resume",
        "flashcards --limit 5000 --batch-size 100 --concurrent 100 --batch-delay 1.0 --force --yes",
        "flashcards --domain networks --subdomain transport --num-flashcards 15 --cleanup --yes",
        "brands --workers 8 --budget 50.0 --limit 100 --chunk-size 50 --force",
        "brands --workers 4 --limit 10",
    ],
)
def test_the_options_of_the_guides_commands_are_understood(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    workload, *options = words.split()
    assert main(["run", workload, "--input", "nowhere.csv", *options, "--json"]) == 64
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "nowhere.csv" in message, "nothing but the file is wrong"


def test_completion_has_the_guides_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["status"], ["failed"], ["clear"], ["export", "--output", "all.db"]):
        assert main(["completion", *words, "--json"]) == 0, capsys.readouterr().err
    assert main(["completion", "reset", "--topic", "path/to/topic.json", "--yes"]) == 64
    assert "path/to/topic.json" in capsys.readouterr().err
