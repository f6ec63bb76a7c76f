"""The reports of a brand for people: Markdown and one self-contained HTML page.

What belongs here: laying sections out, escaping. What does not: what they say (sections.py),
writing files (files.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from batch_pipeline.workloads.brands.record import BrandRecord
from batch_pipeline.workloads.brands.sections import (
    Facts,
    Labels,
    Section,
    Table,
    Texts,
    labels_in,
    sections_of,
)
from batch_pipeline.workloads.brands.text import direction

if TYPE_CHECKING:
    from jinja2 import Environment

_SUMMARY_SECTIONS = ("executive_summary", "overview", "campaigns")
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")
_LINE_START = re.compile(r"^(\s*)([-+=]|\d+(?=[.)]))", re.MULTILINE)


def executive_summary(record: BrandRecord) -> str:
    """6_executive_summary.md: what a decision maker reads."""
    labels = labels_in(record.language)
    by_name = {section.name: section for section in sections_of(record)}
    chosen = [by_name[name] for name in _SUMMARY_SECTIONS]
    return _markdown(record, labels.summary_of, chosen, labels)


def complete_report(record: BrandRecord) -> str:
    """complete_analysis_report.md: all twelve sections, and the sources."""
    labels = labels_in(record.language)
    return _markdown(record, labels.analysis, sections_of(record), labels, sources=True)


def html_report(record: BrandRecord) -> str:
    """brand_report.html: all twelve sections. It loads nothing and runs nothing.

    The page runs from right to left where the brand's texts are Persian; every text then has its
    own direction, and every name is kept apart from the text around it.
    """
    labels = labels_in(record.language)
    return (
        _environment()
        .get_template("brand.html.j2")
        .render(record=record, labels=labels, sections=sections_of(record))
    )


def escaped(text: str) -> str:
    """`text` so that Markdown shows it as it is."""
    return _LINE_START.sub(_behind_backslash, _MARKS.sub(r"\\\1", text))


def _behind_backslash(found: re.Match[str]) -> str:
    space, mark = found.groups()
    # before a digit a backslash is shown; it is the full stop behind it that makes a list
    return f"{space}{mark}\\" if mark.isdigit() else f"{space}\\{mark}"


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("batch_pipeline.workloads.brands", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["direction"] = direction
    environment.filters["web_address"] = _web_address
    environment.tests["facts"] = lambda block: isinstance(block, Facts)
    environment.tests["texts"] = lambda block: isinstance(block, Texts)
    return environment


def _web_address(text: str) -> str:
    """An address that may be a link, or empty: models and pages may say `javascript:`."""
    return text if re.match(r"https?://[^\s/]", text, re.IGNORECASE) else ""


def _markdown(
    record: BrandRecord,
    title: str,
    sections: Sequence[Section],
    labels: Labels,
    *,
    sources: bool = False,
) -> str:
    parts = [f"# {escaped(record.brand_name)}: {title}"]
    if record.simulated:
        parts.append(f"**{labels.simulated}**")
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_block(block, section.title) for block in section.blocks]
        if not section.blocks:
            parts.append(f"*{labels.nothing_known}*")
    if sources and record.sources:
        parts.append(f"## {labels.fields['sources']}")
        parts.append(
            "\n".join(
                f"{n}. {escaped(source.title)} ({escaped(source.url)})"
                for n, source in enumerate(record.sources, start=1)
            )
        )
    parts.append(f"{labels.made} {record.made}")
    text = "\n\n".join(parts)
    # Markdown has no direction of its own; what shows it takes that of the HTML around it.
    return (
        f'<div dir="rtl" lang="fa">\n\n{text}\n\n</div>\n'
        if record.direction == "rtl"
        else (f"{text}\n")
    )


def _block(block: Facts | Texts | Table, above: str) -> str:
    """A block; a title that stands above it already is not said again."""
    match block:
        case Facts(entries):
            return "\n".join(f"- {name}: {escaped(value)}" for name, value in entries)
        case Texts(title, texts, bullets):
            shown = [f"- {escaped(text)}" if bullets else escaped(text) for text in texts]
            body = ("\n" if bullets else "\n\n").join(shown)
            return _titled(title, above, body)
        case Table(title, columns, rows):
            lines = [
                f"| {' | '.join(columns)} |",
                f"|{'---|' * len(columns)}",
                *(f"| {' | '.join(escaped(cell) for cell in row)} |" for row in rows),
            ]
            return _titled(title, above, "\n".join(lines))


def _titled(title: str, above: str, body: str) -> str:
    return f"### {title}\n\n{body}" if title and title != above else body
