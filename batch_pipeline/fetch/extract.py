"""What a page says: its title and its article text.

What belongs here: trafilatura with the options that benchmarks/extraction.py found best. What does
not: running it apart from the event loop (extract_process.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version

from batch_pipeline.fetch.errors import NoTextError

EXTRACTOR = f"trafilatura/{version('trafilatura')}"
"""Name and version, kept with each page."""

MAX_TITLE_CHARS = 500

# `og:title` before the first heading: a heading may be the site's own name.
_TITLES = (
    "//head/title",
    "//meta[@property='og:title']/@content",
    "//meta[@name='og:title']/@content",
    "//h1",
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Article:
    """What a page says; paragraphs of the text stand on lines of their own."""

    title: str
    text: str


def extract_article(content: str, *, html: bool, fallback_title: str) -> Article:
    """Title and text of a page.

    Args:
        content: the page, decoded.
        html: False for plain text, which is its own article.
        fallback_title: for pages without a title, such as their address.

    Raises:
        NoTextError: nothing in the page reads like an article.
    """
    if not html:
        title, text = "", _clean(content.replace("\r\n", "\n").replace("\r", "\n")).strip()
    else:
        title, text = page_title(content), article_text(content)
    if not text:
        raise NoTextError(
            "No article text found in the page.",
            "Check that the address is that of an article, or submit its text instead.",
        )
    return Article(title or fallback_title, text)


def article_text(html: str) -> str:
    """The article text of a page, without menus, comments and boilerplate; empty if none."""
    import trafilatura

    # favor_precision has the best F1 on the benchmark: 0.966 against 0.958 of the defaults
    found = trafilatura.extract(html, favor_precision=True, include_comments=False)
    return _clean(found or "").strip()


def page_title(html: str) -> str:
    """The page's title on one line; empty if it has none."""
    import trafilatura

    tree = trafilatura.load_html(html)
    if tree is None:
        return ""
    for path in _TITLES:
        for found in tree.xpath(path):
            text = found if isinstance(found, str) else found.text_content()
            if title := " ".join(_clean(text).split()):
                return title[:MAX_TITLE_CHARS]
    return ""


def _clean(text: str) -> str:
    # PostgreSQL takes no NUL in a text, and no prompt needs the other control characters.
    return _CONTROL.sub("", text)
