"""The clients that are compared, and a run of one of them in a process of its own.

What belongs here: who they are and how they are started. What does not: what they are given
(load.py) and how a peer is used (peers/).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.envs import ROOT, NotInstalledError, environment, interpreter, version

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Peer:
    """Another client.

    Attributes:
        name: its script and requirements in benchmarks/peers.
        package: what it is called where it is published.
        limiter: what it is told a known limit with; empty where it has nothing of the kind.
        memory: what it finds finished work again with; empty where it has nothing of the kind.
    """

    name: str
    package: str
    limiter: str = ""
    memory: str = ""


FLOOR = Peer("aiohttp", "aiohttp")
PEERS = (
    Peer("lm_deluge", "lm-deluge", "max_requests_per_minute", "SqliteCache"),
    Peer("openai_python", "openai"),
    Peer(
        "curator",
        "bespokelabs-curator",
        "max_requests_per_minute",
        "its working folder",
    ),
    Peer("langchain", "langchain-openai", "InMemoryRateLimiter", "SQLiteCache"),
    Peer("instructor", "instructor", memory="DiskCache"),
    Peer("litellm", "litellm", "Router(rpm=...)", 'Cache(type="disk")'),
    Peer("pydantic_ai", "pydantic-ai-slim"),
)


@dataclass(frozen=True)
class Measured:
    """One run of one client.

    Attributes:
        done: rows with a usable answer.
        wall_s: from the first request's making to the last answer, in seconds.
        cpu_s: CPU seconds of the process over that time.
        peak_mb: its largest resident size.
        total_s: the whole process, imports and reading the rows included.
        errors: what it gave up with, by name.
        more: what only our own client says.
    """

    done: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    total_s: float
    errors: dict[str, int]
    more: dict[str, Any] = field(default_factory=dict)


class Client:
    """A client that can be started; what it is given comes as JSON on its stdin.

    Args:
        title: what tables call it.
        module: what `python -m` runs.
        python: with which interpreter.
        env: its environment variables, or None for this process's.
        peer: who it is, or None for our own.
        remembers: whether it is to keep its answers on disk with the means it has.
    """

    def __init__(
        self,
        title: str,
        module: str,
        python: Path,
        env: dict[str, str] | None = None,
        peer: Peer | None = None,
        remembers: bool = False,
    ) -> None:
        self.title = title
        self.peer = peer
        self.remembers = remembers
        self._python = python
        self._module = module
        self._command = [str(python), "-m", module]
        self._env = env

    def remembering(self) -> Client:
        """The same client, which keeps its answers on disk."""
        assert self.peer is not None
        title = f"{self.title}, {self.peer.memory}"
        return Client(title, self._module, self._python, self._env, self.peer, remembers=True)

    def start(self, work: dict[str, Any], folder: Path) -> Running:
        """Start it in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        given = folder / "job.json"
        given.write_text(json.dumps(work), encoding="utf-8")
        said = folder / "stderr.txt"
        with given.open("rb") as stdin, said.open("ab") as stderr:
            process = subprocess.Popen(
                self._command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT if self._env is None else folder,
                env=self._env,
            )
        return Running(self.title, process, said)

    def run(self, work: dict[str, Any], folder: Path) -> Measured:
        """Run it to its end.

        Raises:
            ClientFailedError: it ended without figures.
        """
        return self.start(work, folder).figures()


class ClientFailedError(Exception):
    """A client ended without figures."""


class Running:
    """A client's process."""

    def __init__(self, title: str, process: subprocess.Popen[bytes], said: Path) -> None:
        self.process = process
        self._title = title
        self._said = said
        self._began = time.perf_counter()

    def figures(self, timeout_s: float = TIMEOUT_S) -> Measured:
        """Wait for its end.

        Raises:
            ClientFailedError: it ended without figures, or did not end in time.
        """
        try:
            printed, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise ClientFailedError(f"{self._title} took over {timeout_s:.0f} s") from error
        total_s = time.perf_counter() - self._began
        lines = printed.splitlines()
        if self.process.returncode or not lines:
            last = self._said.read_text(errors="replace").strip().splitlines()[-1:]
            raise ClientFailedError(f"{self._title} failed: {' '.join(last)}")
        figures = json.loads(lines[-1])
        known = {name: figures.pop(name) for name in ("done", "wall_s", "cpu_s", "peak_mb")}
        return Measured(**known, total_s=total_s, errors=figures.pop("errors"), more=figures)

    def kill(self) -> None:
        """End it with SIGKILL, by its id."""
        self.process.kill()
        self.process.communicate()


def own(title: str = "**batch_pipeline**") -> Client:
    """Our engine, as a run of the pipeline uses it."""
    return Client(title, "benchmarks.ours", Path(sys.executable))


def peer_clients(home: Path, peers: Sequence[Peer]) -> tuple[list[Client], dict[str, str]]:
    """Those peers that can be installed, and for the others why not."""
    home.mkdir(parents=True, exist_ok=True)
    found: list[Client] = []
    missing: dict[str, str] = {}
    with ThreadPoolExecutor(2) as pool:
        pythons = [pool.submit(interpreter, peer.name) for peer in peers]
    for peer, python in zip(peers, pythons, strict=True):
        title = f"{peer.package} {version(peer.name, peer.package)}"
        module = f"benchmarks.peers.{peer.name}"
        try:
            found.append(Client(title, module, python.result(), environment(home), peer))
        except NotInstalledError as error:
            missing[title] = str(error)
    return found, missing
