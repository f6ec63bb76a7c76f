"""One GET over a connection to an address that was checked, with every bound on the answer.

What belongs here: connecting, reading and unpacking a body. What does not: redirects, manners and
retries (fetcher.py).

It works on httpcore, the engine of httpx: it alone lets us say what a name resolves to, so that
the very address that was checked is connected to, while SNI, certificate and Host stay the name's.
It knows no proxies from the environment, no cookies and no redirects.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

import httpcore
import httpx

from batch_pipeline.errors import UsageError
from batch_pipeline.fetch.addresses import AddressRules, Resolver, port_of
from batch_pipeline.fetch.errors import (
    FetchError,
    NotAPageError,
    SlowPageError,
    TooLargeError,
    UnreachableError,
)
from batch_pipeline.fetch.settings import FetchSettings

_AGAIN = "Run again later; check the address if it stays so."
_MAX_ADDRESSES = 4
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_IDLE_S = 10.0

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered to one request.

    Attributes:
        url: what was asked for.
        status: HTTP status.
        headers: names in lower case; the first of each name counts.
        body: unpacked; empty where it was not wanted.
    """

    url: httpx.URL
    status: int
    headers: dict[str, str]
    body: bytes


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that the rules let through: the only place where names are resolved."""

    def __init__(self, rules: AddressRules, resolver: Resolver) -> None:
        self._rules = rules
        self._resolver = resolver
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of `host` that answers.

        Raises:
            RefusedAddressError: one of its addresses is refused.
        """
        async with asyncio.timeout(timeout):
            addresses = await self._rules.resolve(host, port, self._resolver)
        failure: Exception | None = None
        for address in addresses[:_MAX_ADDRESSES]:
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refused: a page is never behind a socket of this machine."""
        raise httpcore.UnsupportedProtocol("unix sockets are not fetched from")

    async def sleep(self, seconds: float) -> None:
        """Wait; httpcore asks for it between tries of its own, which are off."""
        await self._backend.sleep(seconds)


class Transport:
    """Sends single GET requests; use it as an async context manager.

    Args:
        settings: the bounds.
        resolver: what names resolve to.
    """

    def __init__(self, settings: FetchSettings, resolver: Resolver) -> None:
        self._settings = settings
        rules = settings.rules if settings.archive is None else settings.archive.rules
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=settings.concurrency * 2,
            max_keepalive_connections=settings.concurrency,
            keepalive_expiry=_IDLE_S,
            http1=True,
            http2=False,
            retries=0,
            network_backend=CheckedBackend(rules, resolver),
        )

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    async def get(
        self,
        url: httpx.URL,
        headers: Headers,
        *,
        within_s: float,
        cut: int | None = None,
        wanted: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """One request and its answer; a body is read from answers of status 200 to 299 only.

        Args:
            url: checked by the rules.
            headers: of the request.
            within_s: seconds for the whole exchange.
            cut: bytes of the body that are enough; None reads it all, and refuses one that is
                larger than the bounds.
            wanted: sees the answer before its body is read, and raises where it is not wanted.

        Raises:
            FetchError: there is no answer, or it is over a bound.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self._get(url, headers, cut, wanted)
        except FetchError:
            raise
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise _too_slow(error, self._settings, within_s) from error
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
            httpcore.ConnectionNotAvailable,
            OSError,
        ) as error:
            raise _unreachable(error, url) from error

    async def _get(
        self,
        url: httpx.URL,
        headers: Headers,
        cut: int | None,
        wanted: Callable[[Answer], None] | None,
    ) -> Answer:
        settings = self._settings
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=port_of(url), target=url.raw_path
        )
        timeouts = {
            "connect": settings.connect_s,
            "read": settings.read_s,
            "write": settings.read_s,
            "pool": None,  # requests wait at our own gates before they come here
        }
        async with self._pool.stream(
            "GET", target, headers=list(headers), extensions={"timeout": timeouts}
        ) as response:
            found: dict[str, str] = {}
            for name, value in response.headers:
                found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").strip())
            if wanted is not None:
                wanted(Answer(url, response.status, found, b""))
            body = b""
            if 200 <= response.status < 300:
                body = await self._body(response.aiter_stream(), found, cut)
            return Answer(url, response.status, found, body)

    async def _body(
        self, stream: AsyncIterator[bytes], headers: dict[str, str], cut: int | None
    ) -> bytes:
        settings = self._settings
        declared = headers.get("content-length", "")
        if cut is None and declared.isdigit() and int(declared) > settings.max_download:
            raise _too_large(f"is {int(declared):,} bytes long", settings.max_download)
        unpack = _Unpack(headers.get("content-encoding", ""), cut or settings.max_page)
        received = 0
        async for block in stream:
            received += len(block)
            if received > settings.max_download:
                if cut is not None:
                    break
                raise _too_large("is larger as sent", settings.max_download)
            unpack.feed(block)
            if unpack.full:
                if cut is not None:
                    break
                raise _too_large("is larger when unpacked", settings.max_page)
        else:
            unpack.finish()
        return unpack.unpacked()


class _Unpack:
    """A body as it comes, unpacked up to a bound: a small answer may hold a huge page."""

    def __init__(self, coding: str, bound: int) -> None:
        self._coding = coding.strip().lower()
        if self._coding in ("", "identity"):
            self._coding = ""
        elif self._coding not in _WINDOW:
            # also several codings on top of each other, which multiply what a bomb unpacks to
            raise NotAPageError(
                f"The page is packed as '{self._coding[:60]}', which was not asked for.",
                "Save its text and submit that instead.",
            )
        self._bound = bound
        self._parts: list[bytes] = []
        self._size = 0
        self._inflate = self._fresh()
        self._begun = False

    @property
    def full(self) -> bool:
        """Whether there is more than the bound."""
        return self._size > self._bound

    def feed(self, block: bytes) -> None:
        """Unpack a block, as far as the bound allows."""
        if not self._coding:
            self._keep(block)
            return
        try:
            self._feed(block)
        except zlib.error as error:
            raise UnreachableError(
                "The page's packed body cannot be unpacked.", _AGAIN, passing=True
            ) from error

    def finish(self) -> None:
        """Say that this was all; a packed body must have come to its own end."""
        if self._coding and self._begun and not self._inflate.eof:
            raise UnreachableError("The page's packed body breaks off.", _AGAIN, passing=True)

    def unpacked(self) -> bytes:
        """What was unpacked, up to the bound."""
        return b"".join(self._parts)[: self._bound]

    def _feed(self, block: bytes) -> None:
        if block and not self._begun:
            self._begun = True
            # Servers send both forms of deflate: with zlib's header, and bare.
            if self._coding == "deflate" and block[0] & 0x0F != 8:
                self._inflate = zlib.decompressobj(-15)
        while block and not self.full:
            if self._inflate.eof:
                if self._coding == "deflate":
                    return  # what follows the end is nobody's
                self._inflate = self._fresh()
            self._keep(self._inflate.decompress(block, self._bound - self._size + 1))
            block = self._inflate.unconsumed_tail or self._inflate.unused_data

    def _fresh(self) -> zlib._Decompress:
        return zlib.decompressobj(_WINDOW.get(self._coding, 31))

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)


def _tls() -> ssl.SSLContext:
    try:
        # SSL_CERT_FILE and SSL_CERT_DIR may add an organization's own authority
        return httpx.create_ssl_context()
    except OSError as error:
        raise UsageError(
            f"The certificates to trust cannot be read: {error}.",
            "Check SSL_CERT_FILE and SSL_CERT_DIR.",
        ) from error


def _too_large(what: str, bound: int) -> TooLargeError:
    return TooLargeError(
        f"The page {what} than the {bound:,} bytes that are read."
        if what.startswith("is larger")
        else f"The page {what}, more than the {bound:,} bytes that are read.",
        "Save its text and submit that instead.",
    )


def _too_slow(error: Exception, settings: FetchSettings, within_s: float) -> SlowPageError:
    if isinstance(error, httpcore.ConnectTimeout):
        wrong = f"No connection within {settings.connect_s:g} s."
    elif isinstance(error, httpcore.ReadTimeout | httpcore.WriteTimeout):
        wrong = f"The server was silent for {settings.read_s:g} s."
    else:
        wrong = f"The page did not come within {settings.total_s:g} s."
    return SlowPageError(wrong, _AGAIN, passing=True)


def _unreachable(error: Exception, url: httpx.URL) -> UnreachableError:
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return UnreachableError(
            f"The certificate of {_name(url)} does not hold: {cause.verify_message}.",
            "Check the address; for an organization's own authority set SSL_CERT_FILE.",
        )
    if isinstance(cause, ssl.SSLError):
        return UnreachableError(
            f"No encrypted connection to {_name(url)}: {cause.reason or cause}.", _AGAIN
        )
    if isinstance(error, httpcore.ProtocolError):
        return UnreachableError(
            f"The server's answer is no HTTP: {str(error)[:200] or type(error).__name__}.",
            _AGAIN,
            passing="disconnect" in str(error).lower() or "incomplete" in str(error).lower(),
        )
    wrong = "refused or dropped the connection"
    if isinstance(error, httpcore.ReadError | httpcore.WriteError):
        wrong = "broke off the connection"
    return UnreachableError(f"{_name(url)} {wrong}.", _AGAIN, passing=True)


def _name(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")
