"""Finds, starts and stops the simulator of a state folder. Cheap to import: no aiohttp.

What does not live here: the server (`server`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from batch_pipeline.errors import BatchPipelineError
from batch_pipeline.simulator.state import forget_state, read_state

URL_VARIABLE = "BATCH_PIPELINE_SIMULATOR_URL"
LOG_NAME = "simulator.log"

_PATHS = {
    "google": "/google",
    "anthropic": "/anthropic",
    "openai": "/openai/v1",
    "openrouter": "/openrouter/api/v1",
}
_IDLE_EXIT_S = 1_800
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_HEALTH_TIMEOUT_S = 5.0
_POLL_S = 0.05


class SimulatorError(BatchPipelineError):
    """The simulator does not answer, or could not be started."""


def base_urls(url: str) -> dict[str, str]:
    """Return the SDK base URL for each provider name, given a simulator's own URL."""
    return {provider: f"{url.rstrip('/')}{path}" for provider, path in _PATHS.items()}


def ensure_simulator(state_dir: Path) -> str:
    """Return the URL of a live simulator, started in the background if there is none.

    A URL in `BATCH_PIPELINE_SIMULATOR_URL` wins. Processes that ask at once get the same one.

    Raises:
        SimulatorError: the one named there does not answer, or none could be started in time.
    """
    named = os.environ.get(URL_VARIABLE, "").strip().rstrip("/")
    if named:
        if _health(named) is None:
            raise SimulatorError(
                f"{URL_VARIABLE} is {named}, but no simulator answers there.",
                f"Start one (python -m batch_pipeline.simulator) or unset {URL_VARIABLE}.",
            )
        return named
    state_dir = state_dir.resolve()
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state_dir / "simulator.lock", timeout=2 * _START_TIMEOUT_S)
    try:
        with lock:
            return _live_url(state_dir) or _start(state_dir)
    except Timeout as error:
        raise SimulatorError(
            f"Another process has been starting a simulator in {state_dir} for too long.",
            f"See {state_dir / LOG_NAME}.",
        ) from error


def stop_simulator(state_dir: Path) -> bool:
    """End the simulator recorded in a state folder; say whether there was a live one."""
    state_dir = state_dir.resolve()
    state = read_state(state_dir)
    if state is None:
        return False
    # The pid may belong to somebody else by now: only a simulator that says it is the one is ended.
    answer = _health(state.url)
    if answer is None or answer.get("pid") != state.pid:
        forget_state(state_dir, state.pid)
        return False
    _signal(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _alive(state.pid):
        if time.monotonic() > deadline:
            _signal(state.pid, signal.SIGKILL)
            break
        time.sleep(_POLL_S)
    forget_state(state_dir, state.pid)
    return True


def _live_url(state_dir: Path) -> str | None:
    state = read_state(state_dir)
    if state is None or state.mode != "normal":
        return None
    answer = _health(state.url)
    return state.url if answer is not None and answer.get("pid") == state.pid else None


def _start(state_dir: Path) -> str:
    log_path = state_dir / LOG_NAME
    command = [
        sys.executable, "-m", "batch_pipeline.simulator",
        "--port", "0",
        "--state-dir", str(state_dir),
        "--idle-exit-s", str(_IDLE_EXIT_S),
    ]  # fmt: skip
    # It needs no keys: what it does not have it cannot leak.
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
            # The package may be a checkout that is not installed.
            cwd=Path(__file__).resolve().parents[2],
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        state = read_state(state_dir)
        if state and state.pid == process.pid and _health(state.url) is not None:
            return state.url
        if process.poll() is not None:
            break
        time.sleep(_POLL_S)
    process.kill()
    process.wait()
    raise SimulatorError(
        f"The simulator did not start within {_START_TIMEOUT_S:.0f} s.", f"See {log_path}."
    )


def _health(url: str) -> dict[str, Any] | None:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return None
    try:
        # A plain connection: a proxy from the environment has no business on loopback.
        connection = http.client.HTTPConnection(
            parts.hostname, parts.port, timeout=_HEALTH_TIMEOUT_S
        )
        with contextlib.closing(connection):
            connection.request("GET", "/_sim/health")
            answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    return answer if isinstance(answer, dict) and answer.get("simulator") is True else None


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _alive(pid: int) -> bool:
    # A child of this very process stays a zombie until it is waited for.
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
