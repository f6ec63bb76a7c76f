"""Pages that were fetched: what they said and say of themselves, or why they could not be had.

What belongs here: statements on the table `pages`. What does not: fetching (fetch/).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from batch_pipeline.ledger.page_facts import PageFacts
from batch_pipeline.ledger.store import Ledger, execute_many, upsert
from batch_pipeline.ledger.tables import pages
from batch_pipeline.ledger.writer import Operation

_LOOKED_UP_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Page:
    """A page that was fetched, or that could not be.

    Attributes:
        url: as the user gave it.
        final_url: where its redirects led; `url` where it never answered.
        status: HTTP status, 0 where there was no answer.
        fetched_at: UTC seconds.
        title: of the page; empty where it has none, and for one with an error.
        text: its article, paragraphs on lines of their own; empty where none was found (a home
            page may have links and headings only), and for one with an error.
        error: why the page could not be had, with the next step; None for one that was.
        extractor: name and version of what found the text.
        facts: what else it says of itself.
    """

    url: str
    final_url: str
    status: int
    fetched_at: float
    title: str
    text: str
    error: str | None
    extractor: str
    facts: PageFacts = field(default_factory=PageFacts)


@dataclass(frozen=True, slots=True)
class KeepPage:
    """A page to keep, in a realm; it replaces what was kept of its URL."""

    realm: str
    page: Page


def url_hash(url: str) -> str:
    """The key of a URL: sha256, 64 hex digits."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def known_pages(
    ledger: Ledger,
    urls: Iterable[str],
    *,
    extractor: str,
    since: float,
    failures_since: float,
    text_required: bool = True,
) -> dict[str, Page]:
    """Those of `urls` that are kept and fresh enough, by URL.

    Args:
        ledger: whose realm counts.
        urls: as `Page.url`.
        extractor: what another one found in a page is not taken.
        since: UTC seconds; pages fetched before are not fresh.
        failures_since: the same for failures: pages with an error.
        text_required: whether a page without text is such a failure, too.
    """
    good: sa.ColumnElement[bool] = pages.c.error.is_(None)
    if text_required:
        good &= pages.c.text != ""
    hashes = [url_hash(url) for url in dict.fromkeys(urls)]
    found: dict[str, Page] = {}
    with ledger.read() as connection:
        for start in range(0, len(hashes), _LOOKED_UP_AT_ONCE):
            rows = connection.execute(
                sa.select(*_COLUMNS).where(
                    pages.c.realm == ledger.realm,
                    pages.c.url_hash.in_(hashes[start : start + _LOOKED_UP_AT_ONCE]),
                    pages.c.extractor == extractor,
                    pages.c.fetched_at >= sa.case((good, since), else_=failures_since),
                )
            )
            found.update({row.url: _page(row) for row in rows})
    return found


def _keep(connection: sa.Connection, _now: float, given: Sequence[KeepPage]) -> list[None]:
    # One of each URL: a statement cannot change the same row twice.
    latest = {(one.realm, url_hash(one.page.url)): one for one in given}
    execute_many(
        connection,
        _UPSERT[connection.dialect.name],
        [
            {"realm": realm, "url_hash": key, **_row(one.page)}
            for (realm, key), one in latest.items()
        ],
    )
    return [None] * len(given)


def _row(page: Page) -> dict[str, Any]:
    row = {name: getattr(page, name) for name in Page.__dataclass_fields__}
    return {**row, "facts": page.facts.model_dump_json(exclude_defaults=True)}


def _page(row: sa.Row[Any]) -> Page:
    values = row._asdict()
    return Page(**{**values, "facts": PageFacts.model_validate_json(values["facts"])})


KEEP_PAGE: Operation[None] = Operation("keep page", 80, _keep)

_COLUMNS = tuple(pages.c[name] for name in Page.__dataclass_fields__)
_UPSERT = {
    dialect: upsert(dialect, pages, ["realm", "url_hash"], update=list(Page.__dataclass_fields__))
    for dialect in ("sqlite", "postgresql")
}
