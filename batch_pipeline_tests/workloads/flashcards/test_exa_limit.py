"""Mode exa in three processes: they keep Exa's limit together, without a refusal."""

from __future__ import annotations

from pathlib import Path

from batch_pipeline_tests.engine_process import outcome, start
from batch_pipeline_tests.simulated import Simulator
from batch_pipeline_tests.workloads.flashcards.running import bench, topic, write_topics

PROCESSES, TOPICS, PER_SECOND = 3, 16, 10


def test_three_processes_keep_exas_limit_together(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(exa_per_second=PER_SECOND)
    knobs = {"search_rate_limit": PER_SECOND * 60, "chunk_size": TOPICS}
    one = bench(tmp_path, simulator, mode="exa", num_flashcards=1, rounds=0, knobs=knobs)
    topics = [topic(f"Passkeys of kind {number}") for number in range(PROCESSES * TOPICS)]
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", topics), "many")
    keys = [f"{batch.batch_id}.{number:04}" for number in range(1, PROCESSES + 1)]
    running = [start(one, batch.batch_id, f"run {key}", [key]) for key in keys]
    for process in running:
        assert outcome(process)["status"] == "done"

    searches = sorted(
        float(entry["t"]) for entry in simulator.journal() if entry["provider"] == "exa"
    )
    assert len(searches) == PROCESSES * TOPICS
    assert simulator.summary()["rate_limited"] == 0
    # a bucket of one second's worth, as the provider's
    for first in range(len(searches) - 2 * PER_SECOND - 1):
        assert searches[first + 2 * PER_SECOND + 1] - searches[first] > 0.99
