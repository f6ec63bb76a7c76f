"""Packs: every row in exactly one, in order, within the bounds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_pipeline.engine.packing import Packer, first_split, halve, most_requests


@dataclass(frozen=True)
class Sample:
    """A row with a size."""

    number: int
    tokens: int


def pack(sizes: list[int], max_items: int, max_tokens: int) -> list[list[Sample]]:
    packer: Packer[Sample] = Packer(max_items, max_tokens)
    packs = []
    for number, tokens in enumerate(sizes):
        packs += list(packer.add(Sample(number, tokens)))
    packs += list(packer.flush())
    assert list(packer.flush()) == [], "what was given is not given again"
    return packs


@settings(deadline=None)
@given(st.lists(st.integers(1, 1_000)), st.integers(1, 30), st.integers(1, 2_000))
def test_every_row_is_in_one_pack_in_order_and_within_the_bounds(
    sizes: list[int], max_items: int, max_tokens: int
) -> None:
    packs = pack(sizes, max_items, max_tokens)
    assert [row.number for each in packs for row in each] == list(range(len(sizes)))
    for each in packs:
        assert 1 <= len(each) <= max_items
        assert len(each) == 1 or sum(row.tokens for row in each) <= max_tokens


@settings(deadline=None)
@given(st.lists(st.integers(1, 1_000)), st.integers(1, 30), st.integers(1, 2_000))
def test_a_pack_ends_only_where_the_next_row_does_not_fit(
    sizes: list[int], max_items: int, max_tokens: int
) -> None:
    packs = pack(sizes, max_items, max_tokens)
    for each, following in itertools.pairwise(packs):
        full = len(each) == max_items
        assert full or sum(row.tokens for row in each) + following[0].tokens > max_tokens


@settings(deadline=None)
@given(st.lists(st.integers(1, 1_000), min_size=1), st.data())
def test_a_row_above_the_bound_goes_alone(sizes: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(sizes) - 1))
    sizes[place] = 5_000
    assert [Sample(place, 5_000)] in pack(sizes, 20, 4_000)


def test_rows_of_equal_size_fill_packs_of_twenty() -> None:
    assert [len(each) for each in pack([50] * 150, 20, 30_000)] == [20] * 7 + [10]


@settings(deadline=None)
@given(st.integers(2, 300))
def test_both_ways_of_splitting_lose_nothing_and_leave_two_parts(size: int) -> None:
    rows = [Sample(number, 1) for number in range(size)]
    for first, second in (first_split(rows)[:2], halve(rows)):
        assert first + second == rows
        assert first and second


def test_twenty_rows_are_split_so_that_a_pack_spoiled_by_chance_takes_two_requests() -> None:
    first, second, spare = first_split([Sample(number, 1) for number in range(20)])
    assert (len(first), len(second), spare) == (11, 9, True)


@pytest.mark.parametrize(
    ("size", "requests"), [(2, 3), (3, 4), (4, 4), (5, 5), (8, 5), (9, 6), (16, 6), (20, 7)]
)
def test_the_bound_is_2_and_the_logarithm(size: int, requests: int) -> None:
    assert most_requests(size) == requests
