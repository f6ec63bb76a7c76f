"""docs/decisions/news.md has every row of the reference system's inventory, each once."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from batch_pipeline_tests.conftest import REFERENCE
from batch_pipeline_tests.docs.pages import DOCS, ROOT, prose, table_rows

PAGE = DOCS / "decisions" / "news.md"
INVENTORY = REFERENCE / "reference" / "INVENTORY.md"

_ID = re.compile(r"[FCW]2-\d+")
_PATH = re.compile(r"`((?:[\w-]+/)+(?:[\w-]+\.(?:py|md|yaml|j2))?)`")


def decided() -> list[list[str]]:
    """Rows of the page that begin with an id."""
    return [row for row in table_rows(prose(PAGE)) if _ID.fullmatch(row[0])]


def test_every_row_of_the_inventory_is_decided_once() -> None:
    if not INVENTORY.is_file():
        pytest.skip("the inventory (shared/reference beside the checkout) is not here")
    rows = table_rows(INVENTORY.read_text(encoding="utf-8"))
    wanted = {row[0] for row in rows if _ID.fullmatch(row[0])}
    counts = Counter(row[0] for row in decided())
    assert set(counts) == wanted
    assert [name for name, count in counts.items() if count > 1] == []


def test_every_feature_is_met_bettered_or_decided_and_has_all_its_cells() -> None:
    for name, *cells in decided():
        assert all(cells), name
        if name.startswith("F"):
            assert re.match(r"(met|bettered|decided)\b", cells[1]), name


def test_every_named_file_exists() -> None:
    for name, *cells in decided():
        for path in _PATH.findall(" ".join(cells[1:])):
            places = (ROOT / "batch_pipeline" / path, ROOT / "batch_pipeline_tests" / path)
            assert any(place.exists() for place in places), (name, path)
