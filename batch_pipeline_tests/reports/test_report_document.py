"""docs/report.md describes every field of the report's JSON, in the model's own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batch_pipeline.reports.model import BatchReport

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "report.md"


def described_fields() -> str:
    """The tables of docs/report.md, made from the model: what this test wants to find there."""
    schema = BatchReport.model_json_schema(mode="serialization")
    parts = {"BatchReport": schema, **schema["$defs"]}
    blocks = []
    for name, part in parts.items():
        lines = [f"### {name}", "", part["description"].splitlines()[0], ""]
        lines += ["| field | type | meaning |", "|---|---|---|"]
        lines += [
            f"| `{field}` | {_kind(about)} | {about['description'].replace('|', chr(92) + '|')} |"
            for field, about in part["properties"].items()
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _kind(about: dict[str, Any]) -> str:
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in about:
        return " or ".join(_kind(option) for option in about["anyOf"])
    if about.get("type") == "array":
        return f"list of {_kind(about['items'])}"
    if values := about.get("enum", [about["const"]] if "const" in about else []):
        return " or ".join(f'`"{value}"`' for value in values)
    return str({"date-time": "time"}.get(about.get("format", ""), about.get("type", "any")))


def test_the_document_describes_every_field_as_the_model_does() -> None:
    assert described_fields() in DOCUMENT.read_text(encoding="utf-8")
