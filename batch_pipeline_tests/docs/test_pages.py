"""The documents hang together: links lead somewhere, pins have their reasons."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from batch_pipeline_tests.docs.pages import DOCS, ROOT, pages, prose, table_rows

_LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
_HEAD = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as forges make them."""
    return {
        re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-")
        for head in _HEAD.findall(prose(path))
    }


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_every_page() -> None:
    linked = {(DOCS / link).resolve() for link in _LINK.findall(prose(DOCS / "index.md"))}
    assert set(DOCS.rglob("*.md")) - {DOCS / "index.md"} <= linked


def test_every_odd_pin_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = {pin.partition(";")[0].strip() for pin in wanted if re.search(r"==|<", pin)}
    _, _, text = prose(DOCS / "develop.md").partition("## Pins")
    explained = {pin for cell, reason in table_rows(text) if reason for pin in cell.split("`")}
    assert pinned <= explained
