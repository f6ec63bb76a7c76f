"""Why a page could not be had: one type for each reason, in words for the row.

What belongs here: these types. What does not: finding out (the other modules of this room).
"""

from __future__ import annotations

from batch_pipeline.errors import BatchPipelineError


class FetchError(BatchPipelineError):
    """A page that could not be had.

    Attributes:
        passing: whether the same request may succeed a little later.
        retry_after_s: seconds that the server asked to wait, or None.
        status: HTTP status of the answer, or 0 where there was none.
    """

    def __init__(
        self,
        message: str,
        next_step: str = "",
        *,
        passing: bool = False,
        retry_after_s: float | None = None,
        status: int = 0,
    ) -> None:
        super().__init__(message, next_step)
        self.passing = passing
        self.retry_after_s = retry_after_s
        self.status = status


class BadUrlError(FetchError):
    """The text is no address of a web page that may be asked for."""


class RefusedAddressError(FetchError):
    """The host is, or resolves to, an address that is not on the public internet."""


class RobotsError(FetchError):
    """The site's robots.txt keeps programs away from the page, or cannot be had for now."""


class UnreachableError(FetchError):
    """No whole answer came: DNS, connection, TLS, or a broken reply."""


class SlowPageError(FetchError):
    """The answer took longer than the bound."""


class TooLargeError(FetchError):
    """The answer is larger than the bound, as sent or unpacked."""


class RedirectError(FetchError):
    """A redirect that is not followed: too many, to nowhere, or from https to http."""


class StatusError(FetchError):
    """The server answered with an error status."""


class NotAPageError(FetchError):
    """The answer is something else than HTML or text."""


class NoTextError(FetchError):
    """The page was fetched, and says nothing: it has no words, or no article text."""
