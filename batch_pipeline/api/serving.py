"""Serves the application with uvicorn until it is told to end.

What belongs here: the socket and the server's own settings. What does not: options (cli/serve.py).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import uvicorn

from batch_pipeline.api.app import build_app
from batch_pipeline.api.config import ApiConfig
from batch_pipeline.api.office import Office
from batch_pipeline.errors import UsageError
from batch_pipeline.settings import Settings

_GRACE_S = 5


def serve(settings: Settings, config: ApiConfig, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; runs that go on are ended cleanly and resume later.

    Args:
        settings: the installation's.
        config: the server's.
        ready: called with the server's URL once it can be reached.

    Raises:
        UsageError: the address cannot be used, or another server works with this data folder.
    """
    listener = _listen(config)
    with listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        office = Office.open(settings, config)
        server = uvicorn.Server(
            uvicorn.Config(
                build_app(office),
                log_level="info",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
                ws="none",
            )
        )
        # It listens already: whoever comes now is answered once the server runs.
        ready(f"http://{shown}:{port}")
        # uvicorn raises the signal that ended it once more, when all is closed.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def _listen(config: ApiConfig) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            config.host.strip("[]"), config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1_024)
    except OSError as error:
        raise UsageError(
            f"{config.host}:{config.port} cannot be served at: {error.strerror or error}.",
            "Choose another --port (0 lets the system choose), or end what uses it.",
        ) from error
    return listener
