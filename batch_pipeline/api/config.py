"""How the API serves: address, token, sizes, folders. Read from the environment in one place.

What belongs here: those settings and what makes them unusable. What does not: what they guard
(guard.py, inputs.py).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from batch_pipeline.errors import UsageError
from batch_pipeline.settings import Realm, Settings

TOKEN_VARIABLE = "BATCH_PIPELINE_API_TOKEN"
ROOTS_VARIABLE = "BATCH_PIPELINE_API_ROOTS"
BODY_VARIABLE = "BATCH_PIPELINE_API_MAX_BODY_MB"
UPLOAD_VARIABLE = "BATCH_PIPELINE_API_MAX_UPLOAD_MB"
RUNS_VARIABLE = "BATCH_PIPELINE_API_RUNS"
WAITING_VARIABLE = "BATCH_PIPELINE_API_MAX_WAITING"

DEFAULT_PORT = 8001
_MIB = 1024 * 1024
_SHORTEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """One server's settings.

    Attributes:
        realm: the one it works in.
        host: address to bind.
        port: 0 lets the system choose.
        token: what callers must show; empty asks for none.
        roots: folders that inputs may be named from, resolved.
        max_body_bytes: of a JSON request.
        max_upload_bytes: of a file upload.
        runs: how many batches run at once; 0 takes submissions and leaves them waiting.
        max_waiting: submissions that may wait for their turn.
    """

    realm: Realm
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str = field(default="", repr=False)
    roots: tuple[Path, ...] = ()
    max_body_bytes: int = 32 * _MIB
    max_upload_bytes: int = 512 * _MIB
    runs: int = 2
    max_waiting: int = 1_000

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    name = host.strip("[]")
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def load_api_config(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    simulate: bool | None = None,
    environ: Mapping[str, str] | None = None,
) -> ApiConfig:
    """The settings of a server.

    Args:
        settings: the installation's.
        host: address to bind.
        port: its port.
        simulate: the realm; None leaves it to the environment.
        environ: where the rest is read; by default this process's.

    Raises:
        UsageError: no token although others can reach the address, or a variable that is no number.
    """
    environ = os.environ if environ is None else environ
    token = environ.get(TOKEN_VARIABLE, "").strip()
    if not token and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and {TOKEN_VARIABLE} is not set.",
            f"Set {TOKEN_VARIABLE} to a secret that callers send as `Authorization: Bearer ...`, "
            "or serve on 127.0.0.1.",
        )
    if token and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UsageError(
            f"{TOKEN_VARIABLE} is too weak or holds characters that no header can carry.",
            f"Use at least {_SHORTEST_TOKEN} letters and digits, for example from "
            "`openssl rand -hex 32`.",
        )
    return ApiConfig(
        realm=settings.realm(simulate),
        host=host,
        port=port,
        token=token,
        roots=_roots(settings, environ.get(ROOTS_VARIABLE, "")),
        max_body_bytes=_number(environ, BODY_VARIABLE, 32, least=1) * _MIB,
        max_upload_bytes=_number(environ, UPLOAD_VARIABLE, 512, least=1) * _MIB,
        runs=_number(environ, RUNS_VARIABLE, 2, least=0),
        max_waiting=_number(environ, WAITING_VARIABLE, 1_000, least=1),
    )


def _roots(settings: Settings, text: str) -> tuple[Path, ...]:
    named = [Path(part).expanduser() for part in text.split(os.pathsep) if part.strip()]
    if relative := next((str(path) for path in named if not path.is_absolute()), None):
        raise UsageError(
            f"{ROOTS_VARIABLE} names {relative!r}, which is no absolute path.",
            f"Name folders by their full paths, with {os.pathsep!r} between them.",
        )
    return tuple(path.resolve() for path in named or [settings.inbox])


def _number(environ: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise UsageError(
            f"{name} is {text!r}.", f"Set it to a whole number from {least}, or leave it out."
        )
    return int(text)
