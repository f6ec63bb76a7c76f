"""The one way onto the wire: a WireCall or a look-up out, a WireReply or ProviderError back.

What does not belong here: retries, limits, and the meaning of a reply (the codecs).
"""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from email.utils import formatdate
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from batch_pipeline.providers.base import ErrorKind, ProviderError, WireCall, WireReply
from batch_pipeline.providers.wire import KEY_REMOVED, redact

MAX_REPLY_BYTES = 64 * 1024 * 1024

CONNECT_TIMEOUT_S = 10.0

CLIENT_REQUEST_ID = "x-client-request-id"

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

# An answer may hold the word that is somebody's dummy key ("ollama"): in good replies only a string
# this long counts as a key.
_SURELY_A_KEY = 16


class Transport:
    """Sends calls over one shared aiohttp session. Use it as an async context manager.

    - Nothing is sent twice: no retries, no redirects (a key never follows one), no cookies.
    - Proxies come from the environment (HTTPS_PROXY, NO_PROXY), looked up once per host. aiohttp's
      own `trust_env` stays off: it looks them up per call and may send a .netrc password.
      Loopback addresses (the simulator, Ollama) are never proxied.
    - Replies are asked for uncompressed (they are small), and bounded after any decompression.
    - The key of a call is removed from its reply, so that an echo reaches no ledger and no log.

    Args:
        max_reply_bytes: longest reply body that is read.
    """

    def __init__(self, max_reply_bytes: int = MAX_REPLY_BYTES) -> None:
        self._max_reply_bytes = max_reply_bytes
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[str, str | None] = {}
        # A run posts to few addresses, with few timeouts: made once each.
        self._urls: dict[str, URL] = {}
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}

    async def __aenter__(self) -> Self:
        # limit=0: how many calls fly is the limiter's decision
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "batch-pipeline", "accept-encoding": "identity"},
            trust_env=False,
        )
        # aiohttp sends a GET whose connection broke a second time, and has no public switch for it:
        # past the limiter, and paid for again where a search is metered.
        self._session._retry_connection = False
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, call: WireCall, *, timeout_s: float, request_id: str = "") -> WireReply:
        """Send `call` once and read the whole reply, of whatever status.

        Args:
            call: what to send.
            timeout_s: seconds for the whole exchange.
            request_id: our name of the attempt (ASCII, at most 512 characters), sent along as
                `x-client-request-id`: with it OpenAI finds a call that never came back.

        Raises:
            ProviderError: TRANSIENT with status 0 where no whole reply came; `maybe_billed` unless
                the connection could not be made. BATCH_FATAL where the address itself is unusable.
        """
        headers = call.headers
        if request_id:
            headers = {**headers, CLIENT_REQUEST_ID: request_id}
        return await self._exchange(call.method, call.url, headers, call.body or None, timeout_s)

    async def get(self, url: str, headers: Mapping[str, str], *, timeout_s: float) -> WireReply:
        """Look something up: GET `url`, of whatever status, with the bounds of `send`.

        Args:
            url: where.
            headers: they hold the key.
            timeout_s: seconds for the whole exchange.

        Raises:
            ProviderError: as `send`.
        """
        return await self._exchange("GET", url, headers, None, timeout_s)

    async def _exchange(
        self,
        method: str,
        address: str,
        call_headers: Mapping[str, str],
        data: bytes | None,
        timeout_s: float,
    ) -> WireReply:
        if self._session is None:
            raise RuntimeError("Transport is used outside its `async with` block")
        url = self._urls.get(address)
        if url is None:
            url = URL(address)
            if method == "POST":
                # of searches, each has an address of its own
                self._urls[address] = url
        timeout = self._timeouts.get(timeout_s)
        if timeout is None:
            # connecting ends well before the whole: what ends later had been sent
            timeout = self._timeouts[timeout_s] = aiohttp.ClientTimeout(
                total=timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s / 2)
            )
        try:
            async with self._session.request(
                method,
                url,
                data=data,
                headers=call_headers,
                allow_redirects=False,
                proxy=self._proxy(url),
                timeout=timeout,
            ) as response:
                body = await self._read(response)
                headers = {name.lower(): value for name, value in response.headers.items()}
                status = response.status
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise _lost(ErrorKind.BATCH_FATAL, "The base URL is unusable", url) from error
        except aiohttp.ClientConnectorCertificateError as error:
            words = "The server's TLS certificate is not trusted"
            raise _lost(ErrorKind.BATCH_FATAL, words, url) from error
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ConnectionTimeoutError,
            aiohttp.ClientHttpProxyError,
        ) as error:
            words = f"No connection could be made ({_name(error)})"
            raise _lost(ErrorKind.TRANSIENT, words, url) from error
        except TimeoutError as error:
            words = f"No reply within {timeout_s:g} s"
            raise _lost(ErrorKind.TRANSIENT, words, url, maybe_billed=True) from error
        except (aiohttp.ClientError, OSError) as error:
            words = f"The connection broke before the reply was whole ({_name(error)})"
            raise _lost(ErrorKind.TRANSIENT, words, url, maybe_billed=True) from error
        if "retry-after" in headers:
            # a retry date is read against the reply's own date (wire.retry_after)
            headers.setdefault("date", formatdate(usegmt=True))
        return _without_key(WireReply(status, headers, body), call_headers)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        length = response.content_length
        if (
            length is not None
            and length <= self._max_reply_bytes
            and "content-encoding" not in response.headers
        ):
            # its size is known and small enough
            return await response.read()
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self._max_reply_bytes:
                # the rest is not read: the connection cannot be used again
                response.close()
                raise ProviderError(
                    ErrorKind.TRANSIENT,
                    f"The reply is longer than {self._max_reply_bytes} bytes.",
                    status=response.status,
                    code="reply_too_long",
                    maybe_billed=True,
                )
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _proxy(self, url: URL) -> str | None:
        host = url.host or ""
        if host in _LOOPBACK:
            return None
        origin = f"{url.scheme}://{host}"
        if origin not in self._proxies:
            found = urllib.request.getproxies()
            proxy = found.get(url.scheme) or found.get("all")
            self._proxies[origin] = None if urllib.request.proxy_bypass(host) else proxy
        return self._proxies[origin]


def _without_key(reply: WireReply, call_headers: Mapping[str, str]) -> WireReply:
    named = call_headers.get("x-goog-api-key") or call_headers.get("x-api-key")
    key = named or call_headers.get("authorization", "")
    key = key.removeprefix("Bearer ")
    if not key or (reply.status == 200 and len(key) < _SURELY_A_KEY):
        return reply
    encoded = key.encode()
    if encoded not in reply.body and not any(key in value for value in reply.headers.values()):
        return reply
    return WireReply(
        reply.status,
        {name: value.replace(key, KEY_REMOVED) for name, value in reply.headers.items()},
        reply.body.replace(encoded, KEY_REMOVED.encode()),
    )


def _name(error: Exception) -> str:
    # the type alone: texts of connection errors may quote addresses with proxy passwords
    return type(error).__name__


def _lost(kind: ErrorKind, words: str, url: URL, *, maybe_billed: bool = False) -> ProviderError:
    return ProviderError(
        kind,
        redact(f"{words}: {url.host or 'no host'}."),
        code="no_reply" if maybe_billed else "no_connection",
        maybe_billed=maybe_billed,
    )
