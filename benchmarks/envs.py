"""A virtual environment for each peer, made when it is first needed.

What belongs here: making it, and what a peer's process may know of the world. What does not: which
peers there are (clients.py).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FOLDER = ROOT / ".bench-envs"
_INSTALL_S = 900.0

# Nothing is sent home, nothing is downloaded, no key of this machine is seen.
_QUIET = {
    "OPENAI_API_KEY": "sk-simulated",
    "DO_NOT_TRACK": "1",
    "TELEMETRY_ENABLED": "false",
    "CURATOR_VIEWER": "0",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
}


class NotInstalledError(Exception):
    """A peer's environment could not be made; the text is pip's last word."""


def interpreter(peer: str) -> Path:
    """The Python of a peer's environment, which is made or brought up to date when it is not there.

    Args:
        peer: name of a requirements file in benchmarks/peers.

    Raises:
        NotInstalledError: its requirements cannot be installed.
    """
    requirements = ROOT / "benchmarks" / "peers" / f"{peer}.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    folder = _FOLDER / peer
    python = folder / "bin" / "python"
    mark = folder / ".installed"
    if mark.exists() and mark.read_text() == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
    mark.write_text(wanted)
    return python


def environment(home: Path) -> dict[str, str]:
    """The environment variables of a peer's process, whose home is a folder of its own."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        **_QUIET,
    }


def version(peer: str, package: str) -> str:
    """The version of a package that a peer's requirements pin."""
    requirements = ROOT / "benchmarks" / "peers" / f"{peer}.txt"
    wanted = package.replace("-", "_").lower()
    for line in requirements.read_text().splitlines():
        name, _, pinned = line.partition("==")
        if name.replace("-", "_").lower() == wanted:
            return pinned.strip()
    raise LookupError(f"{requirements.name} does not pin {package}")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_INSTALL_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalledError(str(error)) from error
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
        raise NotInstalledError((said or ["pip failed"])[-1].removeprefix("ERROR: "))
