"""docs/ledger.md describes every table and column of the ledger, and no others."""

from __future__ import annotations

import re

import sqlalchemy as sa

from batch_pipeline.ledger.tables import metadata
from batch_pipeline_tests.docs.pages import DOCS, prose, table_rows

_WORDS: dict[type, str] = {
    sa.String: "text",
    sa.LargeBinary: "bytes",
    sa.Boolean: "boolean",
    sa.Integer: "integer",
    sa.Float: "number",
}


def in_words(column: sa.Column[object]) -> str:
    """A column's type as the page writes it."""
    word = next(word for kind, word in _WORDS.items() if isinstance(column.type, kind))
    if column.primary_key:
        return f"{word}, key"
    return f"{word} or null" if column.nullable else word


def test_the_page_has_every_table_and_column_with_its_type_and_a_meaning() -> None:
    _, *sections = re.split(r"^### ", prose(DOCS / "ledger.md"), flags=re.MULTILINE)
    described = {}
    for section in sections:
        name, _, text = section.partition("\n")
        _, *rows = table_rows(text)
        assert all(meaning for _, _, meaning in rows), name
        described[name] = [(column.strip("`"), kind) for column, kind, _ in rows]
    assert described == {
        table.name: [(column.name, in_words(column)) for column in table.columns]
        for table in metadata.tables.values()
    }
