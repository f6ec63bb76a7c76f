"""What a partition's materialization shows of the calls that were made for it."""

from __future__ import annotations

from batch_pipeline.component.metadata import tally_metadata
from batch_pipeline.engine.job import Tally


def test_searches_stand_apart_and_only_where_there_were_any() -> None:
    without = tally_metadata(Tally(requests=3, attempts=4), "simulated", 1.0)
    assert (without["llm/requests"].value, without["llm/attempts"].value) == (3, 4)
    assert "llm/searches" not in without
    assert tally_metadata(Tally(searches=2), "simulated", 1.0)["llm/searches"].value == 2
