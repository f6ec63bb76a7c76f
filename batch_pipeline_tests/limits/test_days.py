"""Which day it is for a provider, over the changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.limits.days import day_of, next_day_at

PACIFIC = ZoneInfo("America/Los_Angeles")


def at(text: str) -> float:
    return datetime.fromisoformat(text).astimezone(UTC).timestamp()


@pytest.mark.parametrize(
    ("moment", "day", "ends"),
    [
        ("2026-11-22T07:59:59+00:00", "2026-11-21", "2026-11-22T08:00:00+00:00"),
        ("2026-11-22T08:00:00+00:00", "2026-11-22", "2026-11-23T08:00:00+00:00"),
        # a day of 23 hours, and one of 25
        ("2026-03-08T09:00:00+00:00", "2026-03-08", "2026-03-09T07:00:00+00:00"),
        ("2026-11-01T07:30:00+00:00", "2026-11-01", "2026-11-02T08:00:00+00:00"),
    ],
)
def test_googles_day_turns_over_at_midnight_pacific(moment: str, day: str, ends: str) -> None:
    assert day_of("google", at(moment)) == day
    assert next_day_at("google", at(moment)) == at(ends)


def test_other_days_turn_over_at_midnight_utc() -> None:
    assert day_of("anthropic", at("2026-11-22T23:59:59+00:00")) == "2026-11-22"
    assert next_day_at("", at("2026-11-22T12:00:00+00:00")) == at("2026-11-23T00:00:00+00:00")


@settings(deadline=None)
@given(st.floats(1.7e9, 2.2e9))
def test_a_day_is_the_zones_own_date_and_ends_when_that_changes(moment: float) -> None:
    ends = next_day_at("google", moment)
    assert day_of("google", moment) == datetime.fromtimestamp(moment, PACIFIC).date().isoformat()
    assert moment < ends <= moment + 25 * 3_600
    assert day_of("google", ends - 0.001) == day_of("google", moment) != day_of("google", ends)
