"""What a page says: its title, its article text, and what it says of itself.

What belongs here: trafilatura with the options that benchmarks/extraction.py found best. What does
not: running it apart from the event loop (extract_process.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version

from batch_pipeline.fetch.errors import NoTextError
from batch_pipeline.fetch.facts import PageFacts, clean, page_facts, page_title

EXTRACTOR = f"trafilatura/{version('trafilatura')}+facts1"
"""Name and version, kept with each page: pages that another one read are fetched again."""


@dataclass(frozen=True, slots=True)
class Article:
    """What a page says.

    Attributes:
        title: empty where it has none.
        text: its article, paragraphs on lines of their own; empty where it has none.
        facts: what it says of itself.
    """

    title: str
    text: str
    facts: PageFacts = field(default_factory=PageFacts)


def extract_article(content: str, *, html: bool) -> Article:
    """Title, text and facts of a page.

    Args:
        content: the page, decoded.
        html: False for plain text, which is its own article.

    Raises:
        NoTextError: the page is empty. A page that has a title, headings or a description, but no
            article text, is no error here: a home page may be like that.
    """
    if not html:
        plain = clean(content.replace("\r\n", "\n").replace("\r", "\n")).strip()
        found = Article("", plain)
    else:
        title, facts = _head(content)
        found = Article(title, article_text(content), facts)
    facts = found.facts
    if not (found.text or found.title or facts.description or facts.h1 or facts.headings):
        raise NoTextError(
            "The page is empty: it has no title, no headings and no article text.",
            "Check the address; a page that only a browser can show must be submitted as text.",
        )
    return found


def article_text(html: str) -> str:
    """The article text of a page, without menus, comments and boilerplate; empty if none."""
    import trafilatura

    # favor_precision has the best F1 on the benchmark: 0.966 against 0.958 of the defaults
    found = trafilatura.extract(html, favor_precision=True, include_comments=False)
    return clean(found or "").strip()


def _head(html: str) -> tuple[str, PageFacts]:
    import trafilatura

    tree = trafilatura.load_html(html)
    return ("", PageFacts()) if tree is None else (page_title(tree), page_facts(tree))
