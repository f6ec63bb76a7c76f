"""Words and entries of job_tracking.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.jobs import ProviderJob
from batch_pipeline.ledger.tables import JobState
from batch_pipeline.sinks.exports import results_name, state_word, tracking

_TEXTS = ("batch_id", "workload", "step", "key_id", "owner_id", "remote_state", "error_code")
_COUNTS = ("line_count", "item_count", "tokens", "body_bytes", "worst_nano", "next_poll_at")


def job(**values: Any) -> ProviderJob:
    """A provider job; what is not named is empty."""
    empty: dict[str, Any] = {
        **dict.fromkeys(ProviderJob.__slots__),
        **dict.fromkeys(_TEXTS, ""),
        **dict.fromkeys(_COUNTS, 0),
        "job_id": "nov.j0001",
        "provider": "google",
        "model": "google/gemini-3.1-flash-lite",
        "state": JobState.SUBMITTED,
        "results": (),
        "cancel_wanted": False,
        "error": "",
        "created_at": 0.0,
    }
    return ProviderJob(**{**empty, **values})


def batch(name: str) -> Batch:
    """A batch of which only the name matters."""
    return Batch(**{**dict.fromkeys(Batch.__slots__), "batch_id": name})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "remote", "word"),
    [
        (JobState.INTENDED, "", "JOB_STATE_PENDING"),
        (JobState.CREATING, "", "JOB_STATE_PENDING"),
        (JobState.SUBMITTED, "", "JOB_STATE_PENDING"),
        (JobState.SUBMITTED, "running", "JOB_STATE_RUNNING"),
        (JobState.SUBMITTED, "unknown", "JOB_STATE_RUNNING"),
        (JobState.ENDED, "succeeded", "JOB_STATE_SUCCEEDED"),
        (JobState.COLLECTED, "partially_succeeded", "JOB_STATE_PARTIALLY_SUCCEEDED"),
        (JobState.COLLECTED, "expired", "JOB_STATE_EXPIRED"),
        (JobState.COLLECTED, "gone", "JOB_STATE_EXPIRED"),
        (JobState.ABANDONED, "", "JOB_STATE_FAILED"),
    ],
)
def test_every_state_has_a_whole_word(state: JobState, remote: str, word: str) -> None:
    assert state_word(job(state=state, remote_state=remote)) == word


def test_a_failed_submission_and_the_rows_of_no_job_are_tracked_too() -> None:
    refused = job(state=JobState.ABANDONED, error_code="RESOURCE_EXHAUSTED", error="too many")
    later = replace(job(), job_id="nov.j0002", item_count=7, submitted_at=1_763_856_000.0)

    first, second, rest = tracking(batch("nov"), [refused, later], rest=3)

    assert (first["job_id"], first["state"]) == ("nov.j0001", "JOB_STATE_FAILED")
    assert first["error"] == "too many" and first["submitted_at"] is None
    assert (second["batch_num"], second["item_count"]) == (2, 7)
    assert second["submitted_at"] == "2025-11-23T00:00:00Z"
    assert (rest["job_id"], rest["batch_num"], rest["item_count"]) == ("nov.rest", 3, 3)
    assert first.keys() == second.keys() == rest.keys()
    assert all(entry["batch_name"] == "nov" and entry["wave"] == 1 for entry in (first, rest))
    assert tracking(batch("nov"), [], rest=0) == []


def test_results_have_the_guides_file_name() -> None:
    assert results_name("my_batch") == "results_my_batch.json"
