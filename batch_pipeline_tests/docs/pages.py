"""Reading Markdown pages for the tests of the documents.

What belongs here: finding pages, tables and links. What does not: what they should say.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """Every page of the project's documents."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return _CODE_BLOCK.sub("", path.read_text(encoding="utf-8"))


def table_rows(text: str) -> list[list[str]]:
    """Cells of the table rows in `text`, without the lines under the heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines
    ]
    return [row for row in rows if set("".join(row)) - set("-: ")]
