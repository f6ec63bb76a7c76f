"""Sends replies over aiohttp, whole or broken.

What does not live here: what they say (`wire_*`, `batch_*`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from batch_pipeline.simulator.wire import Reply

_BLOCK = 64 * 1024


def send(reply: Reply) -> web.Response:
    """Turn a provider's reply into an HTTP response."""
    headers = {"content-type": "application/json", **reply.headers}
    return web.Response(status=reply.status, body=reply.payload, headers=headers)


def send_json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    """Send a JSON value."""
    return send(Reply(status, body, headers or {}))


def abort(request: web.Request) -> web.Response:
    """Cut the connection: the client gets no reply at all."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def send_start(
    request: web.Request, payload: bytes, part: float, reply: Reply
) -> web.StreamResponse:
    """Send the head of a reply and the first part of its body, then close the connection."""
    headers = {"content-type": "application/json", **reply.headers}
    response = web.StreamResponse(status=reply.status, headers=headers)
    response.content_length = len(payload)
    await response.prepare(request)
    await response.write(payload[: int(len(payload) * part)])
    _close(request)
    return response


async def send_file_start(
    request: web.Request, path: Path, mime: str, part: float
) -> web.StreamResponse:
    """Send the first part of a file under the head of the whole, then close the connection."""
    size = _size(path)
    response = web.StreamResponse(headers={"content-type": mime})
    response.content_length = size
    await response.prepare(request)
    left = int(size * part)
    with path.open("rb") as source:
        while left > 0:
            block = source.read(min(_BLOCK, left))
            left -= len(block)
            await response.write(block)
    _close(request)
    return response


def _size(path: Path) -> int:
    return path.stat().st_size


def _close(request: web.Request) -> None:
    if request.transport is not None:
        # Unlike abort(), close() lets out what was written.
        request.transport.close()
