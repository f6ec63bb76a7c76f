"""Which lane a row takes when the operator leaves it open.

Pure. What belongs here: the choice by price and time left. What does not: submitting (batch.py).
"""

from __future__ import annotations

from collections.abc import Sequence

TARGET_S = 86_400.0
"""What providers promise for a job, where nothing is known of how long theirs take."""

_SHARE = 0.9
_FEWEST = 3


def expected_job_s(durations: Sequence[float]) -> float:
    """How long a job takes, by the 90th percentile of the last ones; shortest first.

    Args:
        durations: of the last jobs at this model, in seconds, ascending.
    """
    if len(durations) < _FEWEST:
        return TARGET_S
    return durations[min(len(durations) - 1, int(_SHARE * len(durations)))]


def takes_batch_lane(
    now: float,
    deadline_at: float | None,
    job_s: float,
    realtime_s: float,
    *,
    cheaper: bool,
) -> bool:
    """Whether a row that is asked now goes into a provider job.

    Args:
        now: UTC seconds.
        deadline_at: when every row must have ended; None is whenever.
        job_s: how long a job takes, in seconds.
        realtime_s: how long what may be left over would take in real time, in seconds.
        cheaper: whether a job costs less than real time.
    """
    if not cheaper:
        return False
    return deadline_at is None or now + job_s + realtime_s <= deadline_at


def must_leave(now: float, deadline_at: float | None, realtime_s: float) -> bool:
    """Whether rows that are still in jobs have to be asked in real time to meet the deadline.

    Args:
        now: UTC seconds.
        deadline_at: when every row must have ended; None is whenever.
        realtime_s: how long they would take in real time, in seconds.
    """
    return deadline_at is not None and now + realtime_s >= deadline_at
