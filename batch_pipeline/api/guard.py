"""Who may ask, and how much: Host, Origin, token and size, before anything else is looked at.

What belongs here: an ASGI middleware that refuses. What does not: what paths inputs may have
(inputs.py).
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batch_pipeline.api.config import ApiConfig, is_loopback
from batch_pipeline.api.problems import Problem, known_problem, problem_response

UPLOAD_PATH = "/batch/submit-file"

# Nothing of the installation's is in these.
_PUBLIC = ("/health", "/openapi.json", "/docs")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Guard:
    """Refuses foreign requests, wrong tokens and bodies beyond the limit.

    On loopback the Host must name this machine: a page whose name resolves to 127.0.0.1 (DNS
    rebinding) is sent away. An Origin must be the server's own: pages of other sites cannot submit.

    Args:
        app: what it guards.
        config: token and sizes.
    """

    def __init__(self, app: ASGIApp, config: ApiConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
                headers.setdefault("content-security-policy", _DATA_POLICY)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            extra = {"connection": "close"}
            if refusal.status == 401:
                extra["www-authenticate"] = "Bearer"
            await problem_response(refusal, extra)(scope, receive, send_with_headers)
            return
        await self._app(scope, self._bounded(scope, receive), send_with_headers)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._config.on_loopback and not is_loopback(_host_name(host)):
            return known_problem(
                403, "The Host header does not name this machine.", "Use http://127.0.0.1."
            )
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, host):
            return known_problem(
                403, "Pages of other sites may not use this server.", "Call it from a program."
            )
        if not self._may_enter(scope["path"], headers):
            return known_problem(401)
        length = headers.get("content-length", "")
        limit = self._limit(scope)
        if length.isdecimal() and int(length) > limit:
            return known_problem(413, _too_large(limit))
        return None

    def _may_enter(self, path: str, headers: Headers) -> bool:
        if not self._config.token or path in _PUBLIC or path.startswith("/docs/"):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(
            given.strip().encode("utf-8", "replace"), self._config.token.encode()
        )
        return scheme.lower() == "bearer" and right

    def _limit(self, scope: Scope) -> int:
        upload = scope["path"] == UPLOAD_PATH
        return self._config.max_upload_bytes if upload else self._config.max_body_bytes

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, which stops a body that is longer than it said, or did not say."""
        limit = self._limit(scope)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    raise HTTPException(413, _too_large(limit), {"connection": "close"})
            return message

        return counted


def _too_large(limit: int) -> str:
    return f"The request is larger than {limit:,} bytes."


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same_origin(origin: str, host: str) -> bool:
    try:
        page = urlsplit(origin)
        ours = urlsplit(f"//{host}")
        usual = _DEFAULT_PORTS.get(page.scheme)
        return (
            usual is not None
            and page.hostname is not None
            and page.hostname == ours.hostname
            and (page.port or usual) == (ours.port or usual)
        )
    except ValueError:
        return False
