"""A webserver on an installation's home.

What belongs here: starting and ending. What does not: fixtures (conftest.py), assertions.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from batch_pipeline_tests.simulated import http

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def webserver(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The UI on the home that the environment names; gives its address.

    Args:
        folder: for its log.
        environment: of its process.
    """
    port = _free_port()
    with (folder / "webserver.log").open("wb") as log:
        server = subprocess.Popen(
            [str(BIN / "dagster-webserver"), "-w", "workspace.yaml", "-p", str(port)],
            env=environment,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(url, server, Path(log.name))
            yield url
        finally:
            server.terminate()
            server.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path, bound_s: float = 90) -> None:
    deadline = time.monotonic() + bound_s
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2_000:]
        try:
            if http().get(f"{url}/server_info", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"the webserver did not come up:\n{log.read_text()[-2_000:]}")
