"""What a page says of itself besides its text: description, headings, language, site.

What belongs here: finding it in a parsed page. What does not: its article text (extract.py), the
record as it is kept (ledger/page_facts.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from batch_pipeline.ledger.page_facts import PageFacts

__all__ = ["PageFacts", "clean", "page_facts", "page_title"]

HtmlElement = Any  # lxml comes without types

MAX_TITLE_CHARS = 500
MAX_DESCRIPTION_CHARS = 1_000
MAX_HEADING_CHARS = 300
MAX_HEADINGS = 20
MAX_SITE_NAME_CHARS = 200

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Menus, imprints and side columns stand on every page of a site: they say nothing of this one.
_AROUND = frozenset({"nav", "footer", "aside", "template", "noscript", "dialog"})
# BCP 47 as far as pages use it; `sv_SE` of Open Graph and `en_US.UTF-8` are met as well.
_LANGUAGE = re.compile(
    r"(?P<language>[a-z]{2,3})(?:[-_](?P<script>[a-z]{4}))?(?:[-_](?P<region>[a-z]{2}|\d{3}))?"
    r"(?![a-z0-9])",
    re.IGNORECASE,
)
_NO_LANGUAGE = frozenset({"und", "mul", "mis", "zxx"})


def page_title(tree: HtmlElement) -> str:
    """The page's title on one line; empty if it has none."""
    # `og:title` before the first heading: a heading may be the site's own name.
    return _first(
        (*_texts(tree.xpath("//head/title")), *_meta(tree, "og:title"), *_texts(tree.iter("h1"))),
        MAX_TITLE_CHARS,
    )


def page_facts(tree: HtmlElement) -> PageFacts:
    """What the page says of itself, each on one line and bounded."""
    headings = (
        _line(_text(one))[:MAX_HEADING_CHARS] for one in tree.iter("h2", "h3") if _is_inside(one)
    )
    languages = (tree.get("lang"), tree.get("xml:lang"), *_meta(tree, "og:locale"))
    return PageFacts(
        description=_first(
            (*_meta(tree, "description"), *_meta(tree, "og:description")), MAX_DESCRIPTION_CHARS
        ),
        h1=_first(_texts(tree.iter("h1")), MAX_HEADING_CHARS),
        headings=list(islice(_different(headings), MAX_HEADINGS)),
        language=next(
            filter(None, map(language_tag, (*languages, *_meta(tree, "content-language")))), ""
        ),
        site_name=_first(_meta(tree, "og:site_name"), MAX_SITE_NAME_CHARS),
    )


def language_tag(declared: str | None) -> str:
    """A declared language as `sv` or `en-US`; empty where it names none.

    Args:
        declared: such as `en-us`, `sv_SE` or `sv, en` (the first one counts).
    """
    match = _LANGUAGE.match((declared or "").strip())
    if match is None or match["language"].lower() in _NO_LANGUAGE:
        return ""
    parts = (
        match["language"].lower(),
        (match["script"] or "").capitalize(),
        (match["region"] or "").upper(),
    )
    return "-".join(filter(None, parts))


def clean(text: str) -> str:
    """`text` without control characters: PostgreSQL takes no NUL, no prompt needs the others."""
    return _CONTROL.sub("", text)


def _line(text: str) -> str:
    return " ".join(clean(text).split())


def _first(texts: Iterable[str], longest: int) -> str:
    return next(filter(None, map(_line, texts)), "")[:longest]


def _meta(tree: HtmlElement, name: str) -> Iterator[str]:
    """What meta elements of a name say; sites confuse the attributes and the case."""
    for element in tree.iter("meta"):
        for attribute in ("name", "property", "http-equiv"):
            if element.get(attribute, "").strip().lower() == name:
                yield element.get("content", "")


def _texts(elements: Iterable[HtmlElement]) -> Iterator[str]:
    return map(_text, elements)


def _text(element: HtmlElement) -> str:
    inner = element.xpath(".//text()[not(parent::script or parent::style)] | .//br")
    return "".join(one if isinstance(one, str) else " " for one in inner)


def _is_inside(heading: HtmlElement) -> bool:
    return not any(one.tag in _AROUND for one in heading.iterancestors())


def _different(texts: Iterable[str]) -> Iterator[str]:
    seen = {""}
    for text in texts:
        if (key := text.casefold()) not in seen:
            seen.add(key)
            yield text
