"""Web pages that do not exist: a plausible one for any address, the same every time.

What does not live here: the sentences (prose), the words of sites (pages.yaml), which addresses are
asked for here (the pipeline's fetch room).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

import yaml
from markdown_it import MarkdownIt
from pydantic import BaseModel, ConfigDict

from batch_pipeline.simulator.prose import Brief, write_article

Language = Literal["sv", "en"]

_HTML = "text/html; charset=utf-8"
_HOME_WORDS, _ARTICLE_WORDS = 320, 480
_LONGEST_SUBJECT = 60
_SAID: dict[str, Language] = {
    "sv": "sv",
    "se": "sv",
    "en": "en",
    "gb": "en",
    "uk": "en",
    "us": "en",
}
_PRODUCTS = frozenset(("product", "products", "produkt", "produkter", "shop", "butik"))
# Labels that say nothing of a site: `example.com` and its kin, `co.uk`, `www`.
_HOLLOW = frozenset(("www", "example", "test", "co", "com", "org", "net", "ac", "gov"))
_WORD = re.compile(r"[^\W_]+")
_ENDING = re.compile(r"\.(?:html?|php|aspx?)$")


@dataclass(frozen=True)
class WebPage:
    """What a web server answers."""

    body: bytes
    status: int = 200
    content_type: str = _HTML


class _Words(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    names: tuple[str, ...]
    words: dict[str, str]
    home: str
    about: str
    title: str
    description: str
    article: str
    headings: tuple[str, ...]
    home_headings: tuple[str, ...]


@cache
def _words() -> dict[Language, _Words]:
    text = Path(__file__).with_name("pages.yaml").read_text(encoding="utf-8")
    return {name: _Words.model_validate(said) for name, said in yaml.safe_load(text).items()}


# What segments of a path make of a page, for rehearsals of what goes wrong.
_WRONG = {
    "403": WebPage(b"<html><body><h1>403 Forbidden</h1></body></html>", 403),
    "404": WebPage(b"<html><body><h1>404 Not Found</h1></body></html>", 404),
    "empty": WebPage(b""),
    "pdf": WebPage(b"%PDF-1.7\n%%EOF\n", content_type="application/pdf"),
}


def page_of(url: str) -> WebPage:
    """The page at an address: a home page, or an article about what the path says.

    Args:
        url: the whole address, as it is asked for: ASCII, percent-encoded.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return _WRONG["404"]  # no address
    segments = [part for part in unquote(parts.path).split("/") if part]
    for segment in segments:
        if segment in _WRONG:
            return _WRONG[segment]
    site = _Site.of(parts)
    language = _language(site, segments)
    while segments and segments[0] in _SAID:
        segments.pop(0)
    if not segments:
        return _home(site, language, url)
    return _article(site, language, segments, url)


@dataclass(frozen=True)
class _Site:
    """A site as far as its host tells.

    Attributes:
        labels: of its host, but the ending.
        name: as it calls itself.
        subject: what it writes about.
        language: where its name tells.
    """

    labels: tuple[str, ...]
    name: str
    subject: str
    language: Language | None

    @classmethod
    def of(cls, parts: SplitResult) -> _Site:
        host = parts.hostname or "example"
        try:
            host = host.encode("ascii").decode("idna")
        except UnicodeError:
            pass  # it is shown as it came
        *labels, ending = host.rstrip(".").split(".")
        telling = [one for one in labels if one not in _HOLLOW and one not in _SAID]
        label = telling[-1] if telling else (labels or [ending])[-1]
        subject, language = _spelt(_WORD.findall(label)), _SAID.get(ending)
        for known, words in _words().items():
            for name in words.names:
                if label.endswith(name) and len(label) > len(name) + 2:
                    subject = _spelt(_WORD.findall(label.removesuffix(name)))
                    language = language or known
                elif label == name:
                    language = language or known
        name = " ".join(_WORD.findall(label)) or label
        return cls(tuple(labels), name[:1].upper() + name[1:], subject or name, language)


def _language(site: _Site, segments: Sequence[str]) -> Language:
    """By a part of the address that says it, then by its words; English where nothing tells."""
    for part in (*segments[:1], *site.labels):
        if part in _SAID:
            return _SAID[part]
    words = _WORD.findall(" ".join((*segments, site.name)).casefold())
    known = _words()["sv"].words
    if any(word in known or set(word) & set("åäö") for word in words):
        return "sv"
    return site.language or "en"


def _spelt(words: Sequence[str]) -> str:
    """Words of an address as a text spells them, in lower case."""
    known = _words()["sv"].words
    return " ".join(known.get(word.casefold(), word.casefold()) for word in words)


def _home(site: _Site, language: Language, url: str) -> WebPage:
    words = _words()[language]
    title = _put(words.title, site.subject, site.name)
    text = _text(title, words.home_headings, site.subject, language, _HOME_WORDS, url)
    description = _put(words.description, site.subject, site.name)
    return _page(site, language, title, description, "website", text)


def _article(site: _Site, language: Language, segments: Sequence[str], url: str) -> WebPage:
    words = _words()[language]
    found = [_WORD.findall(_ENDING.sub("", part)) for part in segments]
    # The last segment names the page, if it is no mere number.
    said = next((part for part in reversed(found) if any(map(str.isalpha, "".join(part)))), None)
    subject = _cut(_spelt(said)) if said else site.subject
    heading = subject[:1].upper() + subject[1:]
    kind = "product" if _PRODUCTS & set(segments[:-1]) else "article"
    text = _text(heading, words.headings, subject, language, _ARTICLE_WORDS, url)
    description = _put(words.article, subject, site.name)
    return _page(site, language, f"{heading} | {site.name}", description, kind, text)


def _text(
    title: str, headings: Sequence[str], subject: str, language: Language, words: int, url: str
) -> str:
    """The HTML of a text about a subject."""
    brief = Brief.read(
        {
            "language": language,
            "min_words": words,
            "max_words": words * 2,
            "target": {"topics": [subject]},
            "outline": {
                "title": title,
                "sections": [{"heading": _put(one, subject, "")} for one in headings],
            },
        }
    )
    markdown = write_article(brief, f"page/{url}").markdown
    return str(MarkdownIt("commonmark", {"html": False}).render(markdown))


def _page(
    site: _Site, language: Language, title: str, description: str, kind: str, text: str
) -> WebPage:
    words = _words()[language]
    locale = {"sv": "sv_SE", "en": "en_GB"}[language]
    html = f"""<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<title>{escape(title)}</title>
<meta name="description" content="{escape(description)}">
<meta property="og:title" content="{escape(title)}">
<meta property="og:site_name" content="{escape(site.name)}">
<meta property="og:type" content="{kind}">
<meta property="og:locale" content="{locale}">
</head>
<body>
<nav><a href="/">{words.home}</a> <a href="/about">{words.about}</a></nav>
<main><article>
{text}</article></main>
<footer>{escape(site.name)}</footer>
</body>
</html>
"""
    return WebPage(html.encode())


def _put(template: str, subject: str, name: str) -> str:
    return template.replace("{name}", name).replace("{t}", subject)


def _cut(subject: str) -> str:
    if len(subject) <= _LONGEST_SUBJECT:
        return subject
    return subject[:_LONGEST_SUBJECT].rpartition(" ")[0] or subject[:_LONGEST_SUBJECT]
