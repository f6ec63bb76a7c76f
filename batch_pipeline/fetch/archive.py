"""Pages of a web archive, or of the simulator, instead of the web: rehearsals without a network.

What belongs here: which pages an archive has, where it keeps them, and where its redirects lead.
What does not: asking it (fetcher.py), checking addresses (addresses.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from batch_pipeline.errors import UsageError
from batch_pipeline.fetch.addresses import AddressRules, port_of

ARCHIVE_VARIABLE = "BATCH_PIPELINE_FETCH_ARCHIVE"

RESERVED_NAMES = ("example", "test", "example.com", "example.net", "example.org")
"""Names for examples and tests, with all below them: RFC 2606 and 6761. Nobody has a page there
that a job could be about."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A server that answers `GET <base>/<the whole URL>` as the page itself would.

    Attributes:
        base: its address, without a slash at the end.
        rules: let its server through, wherever it is, and nothing else that is not public.
        reserved_only: it has the pages of RESERVED_NAMES only; all others are on the web.
    """

    base: httpx.URL
    rules: AddressRules
    reserved_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Archive | None:
        """The archive at an address that the operator gives; None where none is given.

        Raises:
            UsageError: it is no web address of a server.
        """
        if not text.strip():
            return None
        try:
            base = httpx.URL(text.strip().rstrip("/"))
        except httpx.InvalidURL:
            base = httpx.URL()
        more = base.userinfo or base.query or base.fragment
        if base.scheme not in ("http", "https") or not base.host or more:
            raise _unreadable()
        try:
            return cls(base, _only(base))
        except UsageError:
            raise _unreadable() from None

    @classmethod
    def of_simulator(cls, address: str) -> Archive:
        """The pages of reserved names that the simulator at `address` writes."""
        base = httpx.URL(f"{address.rstrip('/')}/pages")
        return cls(base, _only(base), reserved_only=True)

    def has(self, url: httpx.URL) -> bool:
        """Whether it is asked for the page of `url`, not the web."""
        if not self.reserved_only:
            return True
        host = url.raw_host.decode("ascii").lower().rstrip(".")
        return host.endswith(tuple(f".{name}" for name in RESERVED_NAMES)) or (
            host in RESERVED_NAMES and "." in host
        )

    def place_of(self, url: httpx.URL) -> httpx.URL:
        """Where it keeps the page of `url`."""
        whole = url.raw_scheme + b"://" + url.netloc + url.raw_path
        return self.base.copy_with(raw_path=self.base.raw_path.rstrip(b"/") + b"/" + whole)

    def redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        """The page that a redirect from the page of `url` leads to.

        Args:
            url: the page that was asked for.
            location: as the archive answered it: rewritten to a place of its own, or as the page's
                own server answered it.

        Raises:
            httpx.InvalidURL: it is no address.
        """
        place = str(self.base.join(location))
        whole = place.removeprefix(f"{self.base}/")
        if whole != place and whole.startswith(("http://", "https://")):
            return httpx.URL(whole)
        return url.join(location)


def _only(base: httpx.URL) -> AddressRules:
    host = base.raw_host.decode("ascii")
    shown = f"[{host}]" if ":" in host else host
    return AddressRules.parse(f"{shown}:{port_of(base)}")


def _unreadable() -> UsageError:
    # the address is not repeated: it may hold somebody's password
    return UsageError(
        f"{ARCHIVE_VARIABLE} is not the address of an archive.",
        "Write for example http://127.0.0.1:8090, without user name, ? and #, or leave it out.",
    )
