"""Ingest: a batch is written once, in chunks, with every row accounted for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.clock import ManualClock
from batch_pipeline.errors import UsageError
from batch_pipeline.ledger.batches import (
    INPUT_ERROR,
    MAX_CHUNKS,
    FinishItems,
    ItemOutcome,
    NewItem,
    batch_of,
    chunk_key,
    count_outcomes,
    find_batch,
    finish_items,
    list_chunks,
    read_items,
    start_generation,
    stream_items,
    unfinished_chunks,
)
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline_tests.ledger.books import ingest_rows, open_ledger, rows


def test_the_same_table_under_the_same_id_is_the_same_batch(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        first, is_new = ingest_rows(ledger, "nov", rows(30))
        again, is_new_again = ingest_rows(ledger, "nov", rows(30), source="a/copy.csv")
        assert (is_new, is_new_again) == (True, False)
        assert again == first
        assert len(list(stream_items(ledger, "nov"))) == 30


def test_another_table_under_the_same_id_is_an_error_that_names_both(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        ingest_rows(ledger, "nov", rows(30), source="first.csv")
        with pytest.raises(UsageError) as caught:
            ingest_rows(ledger, "nov", rows(1_200, "other"), source="second.csv")
        for part in ("'nov'", "first.csv", "(30 rows)", "second.csv", "(1,200 rows)"):
            assert part in caught.value.message
        assert "--batch" in caught.value.next_step
        assert [item.item_id for item in stream_items(ledger, "nov")][:2] == ["row-0", "row-1"]


@pytest.mark.parametrize(
    "change",
    [
        {"row": {"Topic": "changed"}},
        {"item_id": "changed"},
        {"problem": "no topic"},
    ],
)
def test_a_change_of_a_single_row_is_other_content(change: dict[str, Any], ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        given_rows = rows(5)
        ingest_rows(ledger, "nov", given_rows)
        given_rows[3] = dataclasses.replace(given_rows[3], **change)
        with pytest.raises(UsageError, match="other content"):
            ingest_rows(ledger, "nov", given_rows)


def test_a_table_of_another_workload_is_another_table(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        ingest_rows(ledger, "nov", rows(5))
        with pytest.raises(UsageError, match="other content"):
            ingest_rows(ledger, "nov", rows(5), workload="brands")


def test_a_table_without_rows_is_an_error_and_leaves_no_batch(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        with pytest.raises(UsageError, match=r"empty\.csv has no rows"):
            ingest_rows(ledger, "nov", [], source="empty.csv")
        with ledger.read() as connection:
            assert find_batch(connection, "simulated", "nov") is None


def test_a_table_that_breaks_off_leaves_nothing_behind(ledger_url: str) -> None:
    def broken() -> Iterator[NewItem]:
        yield from rows(1_500)
        raise UsageError("Row 1,501 cannot be read.")

    with open_ledger(ledger_url) as ledger:
        with pytest.raises(UsageError, match="Row 1,501"):
            ingest_rows(ledger, "nov", broken())
        assert list(stream_items(ledger, "nov")) == []
        assert ingest_rows(ledger, "nov", rows(10))[1] is True


@pytest.mark.parametrize(
    ("count", "chunk_size", "size", "chunks"),
    [
        (1, 100, 100, 1),
        (100, 100, 100, 1),
        (101, 100, 100, 2),
        (2_000, 10, 10, MAX_CHUNKS),
        (2_001, 10, 11, 182),
        (3_333, 1, 17, 197),
    ],
)
def test_chunks_cover_the_batch_without_gaps_and_are_at_most_200(
    count: int, chunk_size: int, size: int, chunks: int, ledger_url: str
) -> None:
    with open_ledger(ledger_url) as ledger:
        batch, _ = ingest_rows(ledger, "nov", rows(count), chunk_size=chunk_size)
        assert (batch.chunk_size, batch.chunk_count, batch.row_count) == (size, chunks, count)
        with ledger.read() as connection:
            found = list_chunks(connection, "simulated", "nov")
        assert len(found) == chunks <= MAX_CHUNKS
        assert [chunk.chunk_key for chunk in found] == [
            chunk_key("nov", at + 1) for at in range(chunks)
        ]
        reached = 0
        for chunk in found:
            assert chunk.first_ordinal == reached
            reached += chunk.row_count
        assert reached == count


def test_rows_that_cannot_be_read_fail_and_rows_without_a_question_are_skipped(
    ledger_url: str,
) -> None:
    given_rows = rows(4)
    given_rows[1] = dataclasses.replace(given_rows[1], problem="the row has 7 fields, not 5")
    given_rows[2] = dataclasses.replace(given_rows[2], skip="the topic is empty")
    with open_ledger(ledger_url) as ledger:
        ingest_rows(ledger, "nov", given_rows, chunk_size=2)
        items = list(stream_items(ledger, "nov"))
        assert [(item.outcome, item.error_kind, item.error) for item in items] == [
            (Outcome.PENDING, None, None),
            (Outcome.FAILED, INPUT_ERROR, "the row has 7 fields, not 5"),
            (Outcome.SKIPPED, "skipped", "the topic is empty"),
            (Outcome.PENDING, None, None),
        ]


def test_items_come_back_as_they_were_given_over_page_ends(ledger_url: str) -> None:
    values = {"Topic": "naïve ☃ 数", "n": 3, "none": None, "list": [1, {"a": 2.5}]}
    given_rows = [NewItem(f"i{at}", at + 2, {**values, "at": at}) for at in range(2_345)]
    with open_ledger(ledger_url) as ledger:
        ingest_rows(ledger, "nov", iter(given_rows), warnings=["a warning"], options={"d": ";"})
        found = list(stream_items(ledger, "nov", page=500))
        assert [(item.item_id, item.number, item.row) for item in found] == [
            (row.item_id, row.number, row.row) for row in given_rows
        ]
        with ledger.read() as connection:
            batch = find_batch(connection, "simulated", "nov")
            some = read_items(connection, "simulated", "nov", 998, 4)
        assert [item.ordinal for item in some] == [998, 999, 1000, 1001]
        assert batch is not None
        assert (batch.columns, batch.options, batch.warnings) == (
            ["Topic"],
            {"d": ";"},
            ["a warning"],
        )


@settings(deadline=None)
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}", fullmatch=True), st.integers(1, 200))
def test_a_chunk_key_tells_its_batch(batch_id: str, position: int) -> None:
    assert batch_of(chunk_key(batch_id, position)) == batch_id


@pytest.mark.parametrize("key", ["", "nov", "nov.", "nov.x", ".", "nov.0001.tmp"])
def test_what_is_no_chunk_key_is_named(key: str) -> None:
    with pytest.raises(UsageError, match="is no chunk key"):
        batch_of(key)


def end(ledger: Ledger, outcomes: dict[int, Outcome], batch_id: str = "nov") -> None:
    """End rows of the first chunk, as a run that holds no lease yet (fence 0)."""
    with ledger.write() as connection:
        held = finish_items(
            connection,
            ledger.clock.now(),
            [
                FinishItems(
                    ledger.realm,
                    batch_id,
                    chunk_key(batch_id, 1),
                    0,
                    [
                        ItemOutcome(at, outcome, cache_key=f"key-{at}", error="why", cost_nano=7)
                        for at, outcome in outcomes.items()
                    ],
                )
            ],
        )
    assert held == [True]


def outcomes(ledger: Ledger, batch_id: str = "nov") -> list[str]:
    return [item.outcome.value for item in stream_items(ledger, batch_id)]


def test_force_asks_finished_rows_again_but_not_unreadable_or_skipped_ones(ledger_url: str) -> None:
    given_rows = rows(6)
    given_rows[4] = dataclasses.replace(given_rows[4], problem="unreadable")
    given_rows[5] = dataclasses.replace(given_rows[5], skip="empty")
    clock = ManualClock()
    with open_ledger(ledger_url, clock=clock) as ledger:
        ingest_rows(ledger, "nov", given_rows)
        end(ledger, {0: Outcome.SUCCEEDED, 1: Outcome.FAILED, 2: Outcome.BLOCKED})
        assert start_generation(ledger, "nov") == 3
        assert outcomes(ledger) == ["pending"] * 4 + ["failed", "skipped"]
        fresh = [item.fresh_after for item in stream_items(ledger, "nov")]
        assert fresh == [clock.now()] * 3 + [0.0] * 3, "a row never asked may use an old answer"
        item = next(stream_items(ledger, "nov"))
        assert item.error is None
        assert item.cost_nano == 7, "what was spent on it stays spent"


def test_a_forced_run_that_was_killed_goes_on_and_one_that_ended_starts_anew(
    ledger_url: str,
) -> None:
    with open_ledger(ledger_url, clock=ManualClock()) as ledger:
        ingest_rows(ledger, "nov", rows(4))
        end(ledger, dict.fromkeys(range(4), Outcome.SUCCEEDED))
        assert start_generation(ledger, "nov") == 4
        end(ledger, {0: Outcome.SUCCEEDED, 1: Outcome.SUCCEEDED})
        # killed here
        assert start_generation(ledger, "nov") == 0
        assert outcomes(ledger) == ["succeeded"] * 2 + ["pending"] * 2
        end(ledger, {2: Outcome.SUCCEEDED, 3: Outcome.FAILED})
        assert start_generation(ledger, "nov") == 4
        with ledger.read() as connection:
            batch = find_batch(connection, "simulated", "nov")
        assert batch is not None and batch.generation == 2


def test_force_with_a_limit_resets_the_first_rows_only(ledger_url: str) -> None:
    with open_ledger(ledger_url, clock=ManualClock()) as ledger:
        ingest_rows(ledger, "nov", rows(6))
        end(ledger, dict.fromkeys(range(1, 6), Outcome.SUCCEEDED))
        assert start_generation(ledger, "nov", 2) == 2
        assert outcomes(ledger) == ["pending"] * 3 + ["succeeded"] * 3


def test_force_of_an_unknown_batch_says_so(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger, pytest.raises(UsageError, match="no batch 'typo'"):
        start_generation(ledger, "typo")


def test_counts_and_unfinished_chunks_follow_the_outcomes(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        ingest_rows(ledger, "nov", rows(6), chunk_size=3)
        end(ledger, {0: Outcome.SUCCEEDED, 1: Outcome.BLOCKED, 2: Outcome.SUCCEEDED})
        with ledger.read() as connection:
            chunks = list_chunks(connection, "simulated", "nov")
            assert unfinished_chunks(connection, "simulated", "nov") == chunks[1:]
            whole = count_outcomes(connection, "simulated", "nov")
            second = count_outcomes(connection, "simulated", "nov", chunks[1])
        assert set(whole) == set(Outcome)
        assert {outcome: count for outcome, count in whole.items() if count} == {
            Outcome.SUCCEEDED: 2,
            Outcome.BLOCKED: 1,
            Outcome.PENDING: 3,
        }
        assert second[Outcome.PENDING] == 3


def test_an_id_may_be_as_long_as_its_row_makes_it(ledger_url: str) -> None:
    given = rows(1)[0]
    long = dataclasses.replace(given, item_id="https://example.org/" + "x" * 1_000)
    with open_ledger(ledger_url) as ledger:
        batch, _ = ingest_rows(ledger, "nov", [long])
        assert [item.item_id for item in stream_items(ledger, batch.batch_id)] == [long.item_id]
