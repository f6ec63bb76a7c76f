"""The pages of docs/decisions hold the reference systems' inventory: each row once, with a verdict.

roadmaps.md, articles.md, flashcards.md and brands.md have every row of their system;
limits_and_money.md has a selection from all, among them rows that those have as well.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from batch_pipeline_tests.conftest import REFERENCE
from batch_pipeline_tests.docs.pages import DOCS, ROOT, prose, table_rows

ROADMAPS = DOCS / "decisions" / "roadmaps.md"
MONEY = DOCS / "decisions" / "limits_and_money.md"
SYSTEMS = {
    "articles": {"F0": 130, "C0": 21, "W0": 8},
    "flashcards": {"F1": 75, "C1": 9, "W1": 4},
    "brands": {"F4": 76, "C4": 13, "W4": 7},
}
"""Pages that have every row of one system, and how many those are."""

INVENTORY = REFERENCE / "reference" / "INVENTORY.md"
FAMILIES = re.compile(r"(?:F3|C3|X|W3)-\d+")

_ID = re.compile(r"(?:[FCW]\d|X)-\d+b?")
_PATH = re.compile(r"`((?:[\w-]+/)*[\w-]+(?:/|\.(?:py|md|yaml)))`")


def decided() -> list[list[str]]:
    """Rows of both pages that begin with an id."""
    pages = (ROADMAPS, MONEY)
    return [row for page in pages for row in table_rows(prose(page)) if _ID.fullmatch(row[0])]


def of_system(name: str) -> list[list[str]]:
    """Rows of a system's page that begin with an id."""
    page = DOCS / "decisions" / f"{name}.md"
    return [row for row in table_rows(prose(page)) if _ID.fullmatch(row[0])]


def inventory() -> list[list[str]]:
    """Rows of the inventory."""
    if not INVENTORY.is_file():
        pytest.skip("the inventory (shared/reference beside the checkout) is not here")
    rows = table_rows(INVENTORY.read_text(encoding="utf-8"))
    return [row for row in rows if _ID.fullmatch(row[0])]


def test_every_id_is_decided_once_and_has_all_its_cells() -> None:
    ids = [row[0] for row in decided()]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    own = Counter(name.split("-")[0] for name in ids if FAMILIES.fullmatch(name))
    assert own == {"F3": 64, "C3": 10, "X": 4, "W3": 7}
    assert {f"F3-{number:03}" for number in range(1, 65)} <= set(ids)
    assert all(all(row) for row in decided())


def test_no_id_of_the_inventory_is_missing() -> None:
    wanted = {row[0] for row in inventory() if FAMILIES.fullmatch(row[0])}
    assert wanted == {row[0] for row in decided() if FAMILIES.fullmatch(row[0])}


def test_no_id_is_made_up() -> None:
    assert {row[0] for row in decided()} <= {row[0] for row in inventory()}


def test_every_feature_is_met_bettered_or_decided() -> None:
    for name, _, verdict, *_ in (row for row in decided() if row[0].startswith("F")):
        assert re.match(r"(met|bettered|decided)\b", verdict), name


def test_every_tier_of_the_articles_guide_is_in_the_table() -> None:
    from batch_pipeline.limits.tiers import find_tier

    said = re.compile(r"(\w+) (tier \d|free|paid): ([\d,]+)(?: requests/min)?, ([\d,]+)", re.I)
    found = 0
    for row in (row for row in decided() if re.fullmatch(r"F0-0(6[89]|7[0-5])", row[0])):
        match = said.search(row[1])
        assert match, row
        provider, tier, requests, tokens = match.groups()
        rates = find_tier(provider.lower(), "any-model", tier)
        assert rates is not None
        assert (rates.requests, rates.input_tokens) == (
            float(requests.replace(",", "")),
            float(tokens.replace(",", "")),
        )
        found += 1
    assert found == 8


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_row_of_a_system_is_decided_once_and_has_all_its_cells(system: str) -> None:
    rows = of_system(system)
    assert Counter(row[0].split("-")[0] for row in rows) == SYSTEMS[system]
    assert len({row[0] for row in rows}) == len(rows)
    assert all(all(row) for row in rows)
    for name, _, verdict, *_ in (row for row in rows if row[0].startswith("F")):
        assert re.match(r"(met|bettered|decided|later)\b", verdict), name


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_row_of_a_system_is_missing_or_made_up(system: str) -> None:
    families = SYSTEMS[system].keys()
    wanted = {row[0] for row in inventory() if row[0].split("-")[0] in families}
    assert wanted == {row[0] for row in of_system(system)}


def test_a_row_of_two_pages_is_decided_the_same_way_on_both() -> None:
    verdicts = {
        row[0]: row[2] for system in SYSTEMS for row in of_system(system) if row[0].startswith("F")
    }
    both = [row for row in decided() if row[0] in verdicts]
    assert both
    for name, _, verdict, *_ in both:
        assert re.findall(r"\w+", verdict)[0] == re.findall(r"\w+", verdicts[name])[0], name


def test_every_named_file_exists() -> None:
    for name, *cells in [*decided(), *(row for one in SYSTEMS for row in of_system(one))]:
        for path in _PATH.findall(" ".join(cells[1:])):
            places = (ROOT / "batch_pipeline" / path, ROOT / "batch_pipeline_tests" / path)
            assert any(place.exists() for place in places), (name, path)
