"""docs/decisions/roadmaps.md has every row of the reference system's inventory, once."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from batch_pipeline_tests.conftest import REFERENCE
from batch_pipeline_tests.docs.pages import DOCS, ROOT, prose, table_rows

PAGE = DOCS / "decisions" / "roadmaps.md"
INVENTORY = REFERENCE / "reference" / "INVENTORY.md"
FAMILIES = re.compile(r"(?:F3|C3|X|W3)-\d+")

_PATH = re.compile(r"`((?:[\w-]+/)*[\w-]+(?:/|\.(?:py|md|yaml)))`")


def decided() -> list[list[str]]:
    """Rows of the page that begin with an id of these families."""
    return [row for row in table_rows(prose(PAGE)) if FAMILIES.fullmatch(row[0])]


def test_every_id_is_decided_once_and_has_all_its_cells() -> None:
    ids = [row[0] for row in decided()]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert Counter(name.split("-")[0] for name in ids) == {"F3": 64, "C3": 10, "X": 4, "W3": 7}
    assert {f"F3-{number:03}" for number in range(1, 65)} <= set(ids)
    assert all(all(row) for row in decided())


def test_no_id_of_the_inventory_is_missing() -> None:
    if not INVENTORY.is_file():
        pytest.skip("the inventory (shared/reference beside the checkout) is not here")
    wanted = {
        row[0]
        for row in table_rows(INVENTORY.read_text(encoding="utf-8"))
        if FAMILIES.fullmatch(row[0])
    }
    assert wanted == {row[0] for row in decided()}


def test_every_feature_is_met_bettered_or_decided() -> None:
    for name, _, verdict, *_ in (row for row in decided() if row[0].startswith("F3")):
        assert re.match(r"(met|bettered|decided)\b", verdict), name


def test_every_named_file_exists() -> None:
    for name, *cells in decided():
        for path in _PATH.findall(" ".join(cells[1:])):
            places = (ROOT / "batch_pipeline" / path, ROOT / "batch_pipeline_tests" / path)
            assert any(place.exists() for place in places), (name, path)
