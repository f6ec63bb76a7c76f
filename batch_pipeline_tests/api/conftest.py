"""API servers in processes of their own, on ports that the system chooses."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from batch_pipeline.ledger.store import Ledger
from batch_pipeline_tests.forked import Forked, command
from batch_pipeline_tests.simulator.running import INSTANT, Running, running

_KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY")
WORDS = ("banks", "shares", "rain", "football", "rates", "chips", "oil", "elections")


@dataclass
class Server:
    """A running server.

    Attributes:
        url: where it is.
        data: its data folder.
        process: its process.
        http: a client of it.
    """

    url: str
    data: Path
    process: Forked
    http: httpx.Client
    log: Path

    @property
    def ledger_url(self) -> str:
        """The ledger's address."""
        return f"sqlite:///{self.data / 'ledger.db'}"

    def open_ledger(self) -> Ledger:
        """The ledger, in the simulated realm."""
        return Ledger(self.ledger_url, "simulated")

    def get(self, path: str, **query: Any) -> httpx.Response:
        """GET."""
        return self.http.get(path, params=query or None)

    def submit(self, name: str, count: int = 3, **more: Any) -> httpx.Response:
        """Submit `count` small articles."""
        body = {"contents": articles(name, count), "batch_name": name, **more}
        return self.http.post("/batch/submit-contents", json=body)

    def status(self, job: str) -> dict[str, Any]:
        """A job's status."""
        reply = self.get(f"/batch/status/{job}")
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def ended(self, job: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """A job's status once it has ended."""
        until(lambda: bool(self.status(job)["done"]), timeout_s)
        return self.status(job)

    def stop(self, how: int = signal.SIGINT) -> int:
        """End the server."""
        self.process.send_signal(how)
        return self.process.wait(60)


@dataclass
class Place:
    """A data folder in which servers can be started."""

    data: Path
    simulator: Running
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a server: no key of this machine gets in."""
        return {
            **{name: value for name, value in os.environ.items() if "_API_KEY" not in name},
            **dict.fromkeys(_KEYS, ""),
            "BATCH_PIPELINE_DATA": str(self.data),
            "BATCH_PIPELINE_SIMULATE": "1",
            "BATCH_PIPELINE_SIMULATOR_URL": self.simulator.url,
            **self.extra,
        }

    @contextmanager
    def serve(self, **environment: str) -> Iterator[Server]:
        """A server; what it prints goes to `server.log` beside the data."""
        log = self.data.parent / f"{self.data.name}.log"
        process = Forked(
            command,
            *("batch-pipeline", "serve", "--port", "0", "--json"),
            environment={**self.environment, **environment},
            folder=self.data,
            log=log,
        )
        try:
            # A server that refuses to start prints an object too: it is waited for until it ends.
            until(lambda: "url" in _object(process.printed) or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            url = _object(process.printed)["url"]
            with httpx.Client(base_url=url, timeout=60) as client:
                yield Server(url, self.data, process, client, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(90)


def _object(printed: str) -> dict[str, Any]:
    """The JSON object that was printed, empty while it is not all there."""
    return dict(json.loads(printed)) if printed.rstrip().endswith("}") else {}


def articles(word: str, count: int) -> list[dict[str, str]]:
    """`count` different small articles."""
    return [
        {
            "id": f"{word}-{n}",
            "title": f"About {WORDS[n % len(WORDS)]} {n}",
            "contents": f"Number {n} of {word}: news of {WORDS[n % len(WORDS)]}. It was a day.",
        }
        for n in range(1, count + 1)
    ]


def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Poll until something holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def api_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One simulator for all servers."""
    with running(tmp_path_factory.mktemp("api-simulator")) as simulator:
        simulator.configure(latency=INSTANT)
        yield simulator


@pytest.fixture(scope="module")
def make_place(
    api_simulator: Running, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Place]:
    """Makes empty data folders."""
    return lambda: Place(tmp_path_factory.mktemp("api"), api_simulator)


@pytest.fixture(scope="module")
def quiet(make_place: Callable[[], Place]) -> Iterator[Server]:
    """A server that takes submissions and runs none."""
    with make_place().serve(BATCH_PIPELINE_API_RUNS="0") as server:
        yield server
