"""Many topics at a hundred workers, killed at ten points.

Each is paid once but for calls in flight, and completion, ledger and files say the same.
"""

from __future__ import annotations

import csv
import random
import signal
import time
from collections import Counter
from pathlib import Path

import sqlalchemy as sa

from batch_pipeline.ledger.tables import AttemptState, runs
from batch_pipeline.workloads.flashcards.completion_status import completion_counts, read_completion
from batch_pipeline.workloads.runner import deliver
from batch_pipeline_tests.engine.test_crash import keys_settled, states, wait_for_attempts
from batch_pipeline_tests.engine_process import outcome, start
from batch_pipeline_tests.simulated import Simulator
from batch_pipeline_tests.workloads.flashcards.running import bench, topic, write_topics

TOPICS, CARDS = 120, 5


def test_after_ten_kills_each_topic_is_completed_and_paid_once(
    simulator: Simulator, tmp_path: Path
) -> None:
    rng = random.Random(6)
    simulator.configure(latency={"base_s": 0.6, "per_output_token_s": 0.0, "jitter_s": 0.4})
    # fifteen calls a second, so that there is something left to kill
    knobs = {"workers": 100, "chunk_size": 30, "rate_limit": 900}
    one = bench(tmp_path, simulator, num_flashcards=CARDS, knobs=knobs)
    topics = [topic(f"Passkeys of kind {number}") for number in range(TOPICS)]
    batch = one.ingest(write_topics(tmp_path / "topics.jsonl", topics), "many")
    running = start(one, batch.batch_id, "killed 0")
    for kill in range(1, 11):
        before = int(simulator.summary()["attempts"])
        # the next one loads meanwhile, and takes over what the killed one held
        following = start(one, batch.batch_id, f"killed {kill}" if kill < 10 else "last")
        wait_for_attempts(simulator, before + rng.randint(1, 4))
        time.sleep(rng.random() * 0.4)  # the moment within a call is random, too
        running.send_signal(signal.SIGKILL)
        running.wait(30)
        running = following
    ran = outcome(running)
    assert ran["outcomes"] == {"succeeded": TOPICS}

    with one.open() as ledger, ledger.read() as connection:
        ended = Counter(connection.execute(sa.select(runs.c.status)).scalars())
    assert ended["done"] == 1 and ended["crashed"] >= 3, "kills met runs at work"
    known = states(one)
    in_flight = known[AttemptState.SENT.value] + known[AttemptState.LOST.value]
    assert in_flight, "no kill met a call in flight: the test proves nothing"
    assert simulator.summary()["attempts"] <= known[AttemptState.SETTLED.value] + in_flight
    assert set(keys_settled(one).values()) == {1}, "no settled question was asked again"

    out = tmp_path / "out"
    with one.open() as ledger:
        deliver(ledger, one.config, batch, out)
        counts = completion_counts(ledger)
        told = list(read_completion(ledger))
    assert counts == {"completed": TOPICS, "pending": 0, "failed": 0, "blocked": 0, "skipped": 0}
    assert len(told) == TOPICS == len(list((out / "topics").rglob("batch.json")))
    with (out / "flashcards.csv").open(newline="") as stream:
        by_topic = Counter(row["topic_path"] for row in csv.DictReader(stream))
    assert by_topic == {entry.topic_path: entry.flashcard_count for entry in told}
    assert sum(by_topic.values()) >= 0.8 * CARDS * TOPICS
    assert one.run(batch, "nothing to do").done.tally.attempts == 0
