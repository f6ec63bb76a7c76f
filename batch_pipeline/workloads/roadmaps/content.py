"""The text and the links of one topic's Markdown file.

What belongs here: that split. What does not: finding the file (folder.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# "- [@article@Title](https://...)"; a title may hold brackets and a URL may hold parentheses.
_LINK_ITEM = re.compile(r"^\s*[-*+]\s+\[(?P<title>.*)\]\((?P<url>\S+?)\)\s*$")
_HEADING = re.compile(r"^\s{0,3}#{1,6}(\s|$)")


@dataclass(frozen=True, slots=True)
class TopicContent:
    """What a topic's file says: its text without headings, and the links it lists."""

    description: str
    resources: tuple[str, ...]


def read_content(text: str) -> TopicContent:
    """Split a topic's Markdown.

    The sentence that announces the list of links (it ends with a colon right before them) belongs
    to neither part. Paragraphs are joined by a line break, lines of one paragraph by a space.
    """
    paragraphs: list[list[str]] = [[]]
    resources: list[str] = []
    for line in text.removeprefix("\ufeff").splitlines():
        if match := _LINK_ITEM.match(line):
            if not resources:
                _drop_announcement(paragraphs)
            resources.append(match["url"].strip("<>"))
        elif _HEADING.match(line) or not line.strip():
            paragraphs.append([])
        else:
            paragraphs[-1].append(line.strip())
    joined = (" ".join(lines) for lines in paragraphs if lines)
    return TopicContent("\n".join(joined), tuple(dict.fromkeys(resources)))


def _drop_announcement(paragraphs: list[list[str]]) -> None:
    while paragraphs and not paragraphs[-1]:
        paragraphs.pop()
    if paragraphs and paragraphs[-1][-1].endswith(":"):
        paragraphs[-1].pop()
    paragraphs.append([])
