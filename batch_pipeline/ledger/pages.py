"""Pages that were fetched: what they said, or why they could not be had.

What belongs here: statements on the table `pages`. What does not: fetching (fetch/).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

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
        title: of the page; empty for one with an error.
        text: its article, paragraphs on lines of their own; empty for one with an error.
        error: why there is no text, with the next step; None for a page that has one.
        extractor: name and version of what found the text.
    """

    url: str
    final_url: str
    status: int
    fetched_at: float
    title: str
    text: str
    error: str | None
    extractor: str


@dataclass(frozen=True, slots=True)
class KeepPage:
    """A page to keep, in a realm; it replaces what was kept of its URL."""

    realm: str
    page: Page


def url_hash(url: str) -> str:
    """The key of a URL: sha256, 64 hex digits."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def known_pages(
    ledger: Ledger, urls: Iterable[str], *, since: float, failures_since: float
) -> dict[str, Page]:
    """Those of `urls` that are kept and fresh enough, by URL.

    Args:
        ledger: whose realm counts.
        urls: as `Page.url`.
        since: UTC seconds; pages fetched before are not fresh.
        failures_since: the same for pages with an error.
    """
    hashes = [url_hash(url) for url in dict.fromkeys(urls)]
    found: dict[str, Page] = {}
    with ledger.read() as connection:
        for start in range(0, len(hashes), _LOOKED_UP_AT_ONCE):
            rows = connection.execute(
                sa.select(*_COLUMNS).where(
                    pages.c.realm == ledger.realm,
                    pages.c.url_hash.in_(hashes[start : start + _LOOKED_UP_AT_ONCE]),
                    pages.c.fetched_at
                    >= sa.case((pages.c.error.is_(None), since), else_=failures_since),
                )
            )
            found.update({row.url: Page(*row) for row in rows})
    return found


def _keep(connection: sa.Connection, _now: float, given: Sequence[KeepPage]) -> list[None]:
    # One of each URL: a statement cannot change the same row twice.
    latest = {(one.realm, url_hash(one.page.url)): one for one in given}
    execute_many(
        connection,
        _UPSERT[connection.dialect.name],
        [
            {"realm": realm, "url_hash": key, **asdict(one.page)}
            for (realm, key), one in latest.items()
        ],
    )
    return [None] * len(given)


KEEP_PAGE: Operation[None] = Operation("keep page", 80, _keep)

_COLUMNS = tuple(pages.c[name] for name in Page.__dataclass_fields__)
_UPSERT = {
    dialect: upsert(dialect, pages, ["realm", "url_hash"], update=list(Page.__dataclass_fields__))
    for dialect in ("sqlite", "postgresql")
}
