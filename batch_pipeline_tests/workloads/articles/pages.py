"""Pages and jobs for the tests of articles: a Swedish guide, an English one, and the saved ones.

What lives here: building them. What does not: serving them over HTTP (fetch/archive.py).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from batch_pipeline.fetch.extract import extract_article
from batch_pipeline.ledger.pages import Page
from batch_pipeline.workloads.articles.jobs import ArticleJob
from batch_pipeline_tests.fetch.archive import saved_pages

LAMP = "https://www.lampan.example/guider/valja-laslampa"
LAMP_HTML = """<!doctype html><html lang="sv"><head>
<title>Så väljer du rätt läslampa | Lampan</title>
<meta name="description" content="Guide till läslampor: ljusflöde, färgtemperatur och placering.">
<meta property="og:site_name" content="Lampan"></head><body>
<nav><h2>Meny</h2><a href="/">Hem</a></nav>
<article><h1>Så väljer du rätt läslampa</h1>
<p>En bra läslampa gör skillnad för ögonen. Lampan har testat läslampor med Ljuslabbet i Umeå, och
ljusflödet var det som skilde mest mellan dem. För en läslampa i vardagsrummet räcker 400 lumen.</p>
<h2>Ljusflöde och färgtemperatur</h2>
<p>Ljusflödet mäts i lumen och färgtemperaturen i kelvin. En läslampa med varm färgtemperatur passar
kvällen, medan ett kallare ljus håller dig vaken. Ljuslabbet mätte färgtemperaturen hos tolv
läslampor, och flera av dem låg långt från vad förpackningen lovade. Titta därför efter
uppmätta värden.</p>
<h2>Placering vid fåtöljen</h2>
<p>Ställ läslampan snett bakom axeln, så att ljuset faller på boken och inte i ögonen. Med en
golvlampa vid fåtöljen är det lätt att flytta ljuset. En dimmer gör att samma läslampa räcker både
till att läsa och till att titta på film. Ljuslabbet såg att en dimmer även förlängde
livslängden.</p>
<h2>Relaterade artiklar</h2></article></body></html>"""

SHOP = "https://skor.example/kop/loparskor"
SHOP_HTML = """<!doctype html><html lang="sv"><head>
<title>Köp löparskor online – fri frakt | Skor</title>
<meta name="description" content="Köp löparskor till bra pris med fri frakt och öppet köp.">
</head><body><article><h1>Köp löparskor online</h1>
<p>Hos oss köper du löparskor för asfalt, grus och stig. Alla löparskor skickas samma dag, och
du har öppet köp i trettio dagar. Dämpade löparskor passar långa pass på asfalt, lätta löparskor
passar tävling, och löparskor med grov sula passar stig och terräng.</p>
<p>Lägg dina löparskor i varukorgen och välj hur du vill betala. Fri frakt gäller alla löparskor,
och rabatten på förra årets löparskor dras av i kassan. Vi byter storlek utan kostnad.</p>
</article></body></html>"""

MAGAZINE_HTML = """<!doctype html><html lang="sv-SE"><head>
<title>Magasinet – nyheter och tips om hem</title>
<meta name="description" content="Magasinet är en tidning om hem, inredning och läslampor.">
<meta property="og:site_name" content="Magasinet"></head><body><main>
<h2>Inredning</h2><p>Läs om inredning, belysning och läslampor i varje nummer av tidningen.</p>
</main></body></html>"""


def page_of(url: str, html: str, *, status: int = 200) -> Page:
    """A page as the fetcher keeps it."""
    found = extract_article(html, html=True)
    return Page(url, url, status, 0.0, found.title, found.text, None, "test", found.facts)


def lamp_page() -> Page:
    """A Swedish guide."""
    return page_of(LAMP, LAMP_HTML)


def missing_page(url: str, status: int, why: str) -> Page:
    """A page that could not be had."""
    return Page(url, url, status, 0.0, "", "", why, "test")


def article_job(**given: Any) -> ArticleJob:
    """A job about the Swedish guide."""
    values: dict[str, Any] = {"publisher": "magasinet.example", "target": LAMP}
    return ArticleJob.model_validate({**values, "anchor": "välja läslampa", **given})


@cache
def saved_page(url: str) -> Page:
    """A page of the reference data; skips the test where they are absent."""
    body = saved_pages()[url].body
    return page_of(url, body if isinstance(body, str) else body.decode("utf-8", "replace"))
