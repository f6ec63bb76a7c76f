"""What the Batch API clients share: the HTTP client below an SDK, raw replies, errors, downloads.

What does not belong here: any provider's paths, field names and states (batches_*.py).
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson

from batch_pipeline.providers import wire
from batch_pipeline.providers.base import Codec, ErrorKind, ProviderError, WireReply
from batch_pipeline.providers.batches import JobState, ResultsGoneError

if TYPE_CHECKING:
    import httpx2

Sdk = TypeVar("Sdk")

CONNECT_TIMEOUT_S = 10.0

PAGE = 100
"""Jobs or files asked for at once; every provider allows it."""

_log = logging.getLogger(__name__)

# Names that providers give are data: what else than this could lead out of a URL's path.
_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")

# An answer may hold a word that is somebody's dummy key: in good replies only a string this long
# counts as a key.
_SURELY_A_KEY = 16


@dataclass(slots=True)
class _Exchange:
    """What one call of an SDK has brought so far.

    Attributes:
        needs: a header without which a reply is not the provider's.
        reply: the reply to the request sent last; None while there is none.
    """

    needs: str
    reply: WireReply | None = None


class _EnoughError(Exception):
    """Ends an SDK's call at a reply that it would otherwise answer with requests of its own."""


_EXCHANGE: ContextVar[_Exchange] = ContextVar("batch_api_exchange")


@cache
def trust() -> ssl.SSLContext:
    """The system's trust store, read once: that takes a tenth of a second."""
    return ssl.create_default_context()


class SdkWire(Generic[Sdk]):
    """An official SDK whose replies are read here, raw, before the SDK can lose any of them.

    The SDK builds and sends the requests, over an HTTP client of ours: nothing goes to another
    address than `base_url` (Google's SDK would upload to wherever a reply says), no proxy or
    password file of the environment is used, no redirect is followed, and a reply other than 200
    ends the call, so that no SDK repeats anything. What the SDK makes of a reply is not used:
    Google's drops a failed job's error and fails on error details. SDK and HTTP client are loaded
    with the first request, in a thread, because that takes a second.

    Args:
        codec: classifies replies that are errors.
        key: the secret.
        base_url: where everything goes, without a slash at the end.
        headers: authentication; wins over what the SDK finds in the environment.
        timeout_s: longest silence of the server, in seconds.
        make: the SDK's client, given the HTTP client to use.
    """

    def __init__(
        self,
        codec: Codec,
        key: str,
        base_url: str,
        headers: Mapping[str, str],
        timeout_s: float,
        make: Callable[[httpx2.AsyncClient], Sdk],
    ) -> None:
        self._codec = codec
        self._key = key
        self._base_url = base_url
        self._headers = headers
        self._timeout_s = timeout_s
        self._make = make
        self._opening = asyncio.Lock()
        self._open: tuple[Sdk, httpx2.AsyncClient] | None = None

    async def ask(
        self, call: Callable[[Sdk], Awaitable[object]], *, makes: bool = False, needs: str = ""
    ) -> WireReply:
        """Let the SDK make one call, and give the last reply as it came: its status is 200.

        Args:
            call: the call.
            makes: whether it makes something at the provider, so that an error which does not
                prove the contrary leaves open whether it did.
            needs: a header without which no reply is the provider's.

        Raises:
            ProviderError: classified as a real-time error.
        """
        sdk, _ = await self._opened()
        exchange = _Exchange(needs)
        token = _EXCHANGE.set(exchange)
        try:
            await call(sdk)
        except Exception as error:
            # an SDK that stumbles over a reply does no harm: the reply is what counts
            if exchange.reply is None:
                raise self._lost(error) from None
        finally:
            _EXCHANGE.reset(token)
        reply = exchange.reply
        if reply is None:
            raise RuntimeError("the SDK's call sent no request")
        if reply.status != 200:
            refused = self.refusal(reply)
            if makes and refused.kind is ErrorKind.TRANSIENT:
                refused.maybe_billed = True
            raise refused
        if needs and needs not in reply.headers:
            raise wire.unusable_200(reply)
        return reply

    async def ask_object(
        self, call: Callable[[Sdk], Awaitable[object]], *, makes: bool = False, needs: str = ""
    ) -> dict[str, Any]:
        """As `ask`; gives the JSON object in the reply.

        Raises:
            ProviderError: as `ask`; TRANSIENT and maybe billed where the body is none.
        """
        reply = await self.ask(call, makes=makes, needs=needs)
        data = wire.parse_object(reply)
        if data is None or not _is_resource(data):
            raise self.refusal(reply)
        return data

    async def lines(
        self, path: str, accept: str, is_gone: Callable[[ProviderError], bool]
    ) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a file, one per line, read as they arrive.

        Args:
            path: where it is, below the base URL.
            accept: the media type to ask for.
            is_gone: whether a refusal means that the provider has the file no more.

        Raises:
            ProviderError: TRANSIENT where the file ends early or is none; else by the status.
            ResultsGoneError: the file is gone.
        """
        _, http = await self._opened()
        url = self._base_url + path
        headers = {**self._headers, "accept": accept}
        read = unreadable = 0
        try:
            async with http.stream("GET", url, headers=headers) as response:
                if response.status_code != 200:
                    refused = self.refusal(await self._reply(response))
                    if is_gone(refused):
                        raise ResultsGoneError(refused.message)
                    raise refused
                sample = b""
                async for line, whole in split_lines(response.aiter_bytes()):
                    data = _object(self._without_key(line, 200))
                    if data is not None:
                        read += 1
                        yield data
                    elif not whole:
                        raise self._broken("The file ends in the middle of a line")
                    elif line.strip():
                        unreadable += 1
                        sample = sample or line
                if unreadable and not read:
                    raise wire.unusable_200(WireReply(200, _headers(response), sample))
        except (ProviderError, ResultsGoneError):
            raise
        except Exception as error:
            raise self._lost(error) from None
        if unreadable:
            # their rows have no result, which is reported with them
            _log.warning("%s lines of a results file are not JSON objects.", unreadable)

    def refusal(self, reply: WireReply) -> ProviderError:
        """The error that a real-time call would raise for `reply`."""
        try:
            self._codec.read(reply)
        except ProviderError as error:
            return error
        return wire.unusable_200(reply)

    async def aclose(self) -> None:
        """Close connections."""
        if self._open is not None:
            await self._open[1].aclose()
            self._open = None

    async def _opened(self) -> tuple[Sdk, httpx2.AsyncClient]:
        async with self._opening:
            if self._open is None:
                self._open = await asyncio.to_thread(self._load)
            return self._open

    def _load(self) -> tuple[Sdk, httpx2.AsyncClient]:
        import httpx2

        http = httpx2.AsyncClient(
            # the trust store of the real-time calls; trust_env would also bring proxies and .netrc
            verify=trust(),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(
                self._timeout_s, connect=min(CONNECT_TIMEOUT_S, self._timeout_s / 2)
            ),
            event_hooks={"request": [self._sending], "response": [self._received]},
        )
        return self._make(http), http

    async def _sending(self, request: httpx2.Request) -> None:
        import httpx2

        ours, theirs = httpx2.URL(self._base_url), request.url
        if (ours.scheme, ours.host, ours.port) != (theirs.scheme, theirs.host, theirs.port):
            raise ProviderError(
                ErrorKind.BATCH_FATAL,
                f"A reply of {ours.host} leads to {theirs.host}: nothing is sent there.",
                code="foreign_address",
            )
        for name, value in self._headers.items():
            if name in request.headers:
                request.headers[name] = value
        if exchange := _EXCHANGE.get(None):
            exchange.reply = None

    async def _received(self, response: httpx2.Response) -> None:
        exchange = _EXCHANGE.get(None)
        if exchange is None:
            return
        exchange.reply = await self._reply(response)
        if response.status_code != 200 or (
            exchange.needs and exchange.needs not in response.headers
        ):
            raise _EnoughError

    async def _reply(self, response: httpx2.Response) -> WireReply:
        body = self._without_key(await response.aread(), response.status_code)
        headers = _headers(response)
        if "retry-after" in headers:
            # a retry date is read against the reply's own date (wire.retry_after)
            headers.setdefault("date", formatdate(usegmt=True))
        return WireReply(response.status_code, headers, body)

    def _without_key(self, body: bytes, status: int) -> bytes:
        key = self._key
        if not key or (status == 200 and len(key) < _SURELY_A_KEY):
            return body
        encoded = key.encode()
        return body.replace(encoded, wire.KEY_REMOVED.encode()) if encoded in body else body

    def _lost(self, error: Exception) -> Exception:
        """The ProviderError for a request without a whole reply; any other error as it is."""
        import httpx2

        for cause in _causes(error):
            if isinstance(cause, ProviderError):
                return cause
            if isinstance(cause, ssl.SSLCertVerificationError):
                words = "The server's TLS certificate is not trusted"
                return self._broken(words, ErrorKind.BATCH_FATAL, sent=False)
            if isinstance(cause, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
                words = "The base URL is unusable"
                return self._broken(words, ErrorKind.BATCH_FATAL, sent=False)
        for cause in _causes(error):
            name = type(cause).__name__
            if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
                return self._broken(f"No connection could be made ({name})", sent=False)
            if isinstance(cause, httpx2.TimeoutException):
                return self._broken(f"No reply within {self._timeout_s:g} s")
            if isinstance(cause, httpx2.RequestError):
                return self._broken(f"The connection broke before the reply was whole ({name})")
        return error

    def _broken(
        self, words: str, kind: ErrorKind = ErrorKind.TRANSIENT, *, sent: bool = True
    ) -> ProviderError:
        return ProviderError(
            kind,
            wire.redact(f"{words}: {self._codec.provider}'s Batch API."),
            code="no_reply" if sent else "no_connection",
            maybe_billed=sent,
        )


def _is_resource(data: Mapping[str, Any]) -> bool:
    # an error inside a 200; Gemini's failed jobs carry an error too, beside their name
    return not data.get("error") or "name" in data or "id" in data


def _headers(response: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _causes(error: BaseException) -> Iterable[BaseException]:
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return seen


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return data if isinstance(data, dict) else None


async def split_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, bool]]:
    """Lines without their ends, and whether each had one; only a newline ends a line.

    (`str.splitlines`, which HTTP clients use, also splits at U+2028 inside a JSON text.)
    """
    parts: list[bytes] = []
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            parts.append(piece)
            yield b"".join(parts), True
            parts.clear()
        if rest:
            parts.append(rest)
    if parts:
        yield b"".join(parts), False


def checked_name(name: str, prefix: str = "") -> str:
    """`name`, which goes into a URL's path.

    Args:
        name: as the provider gave it.
        prefix: what it begins with.

    Raises:
        ProviderError: CONTENT, where it holds what no provider's name has.
    """
    if name.startswith(prefix) and _NAME.fullmatch(name.removeprefix(prefix)):
        return name
    raise ProviderError(
        ErrorKind.CONTENT,
        f"The provider names something {wire.redact(name)[:80]!r}, which is no name of it.",
        code="unusable_name",
        maybe_billed=True,
    )


def seconds(moment: Any) -> float | None:
    """UTC seconds of an RFC 3339 time, or of seconds given as a number; None for anything else."""
    if isinstance(moment, int | float) and not isinstance(moment, bool):
        return float(moment)
    try:
        parsed = datetime.fromisoformat(moment)
    except (ValueError, TypeError):
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def count(value: Any) -> int | None:
    """A count, as a number or (Google) as text; None where there is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return wire.as_count(value) if isinstance(value, int | float) else None


def has_output(state: JobState) -> bool:
    """Whether a job in this state must have results."""
    return state in (JobState.SUCCEEDED, JobState.PARTIAL)


def as_reply(status: int, body: Any, headers: Mapping[str, str] | None = None) -> WireReply:
    """What a real-time call would have got, from the part of a line that holds it."""
    return WireReply(status, dict(headers or {}), orjson.dumps(body))
