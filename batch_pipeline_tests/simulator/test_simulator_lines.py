"""Reading the lines of a batch job's input without reading it as one value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_pipeline.simulator.lines import elements

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    before=st.dictionaries(st.text().filter(lambda name: name != "requests"), _VALUES, max_size=2),
    requests=st.lists(_VALUES, max_size=5),
    indent=st.sampled_from([None, 2]),
    after=_VALUES,
)
def test_elements_are_those_of_the_whole_value(
    before: dict[str, Any], requests: list[Any], indent: int | None, after: Any
) -> None:
    text = json.dumps({**before, "requests": requests, "requests ": after}, indent=indent)
    assert list(elements(text, "requests")) == requests
    assert list(elements(json.dumps(before), "requests")) == []


@pytest.mark.parametrize(
    "text", ["", " ", "[]", "{", '{"requests"', '{"requests": [1', '{"requests": {}}', '{"a" 1}']
)
def test_what_is_no_object_with_such_an_array_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        list(elements(text, "requests"))
