"""The console script in processes of its own: one simulator, a data folder for each test."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.cli.main import main
from batch_pipeline_tests.forked import Forked, command
from batch_pipeline_tests.simulator.running import INSTANT, Running, running

SCRIPT = Path(sys.executable).with_name("batch-pipeline")
ROOT = Path(__file__).resolve().parents[2]
_KEY_VARIABLES = (
    "GOOGLE_API_KEY",
    "GEMINI_API_KEY",
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "OPENROUTER_API_KEY",
    "OPENAI_COMPATIBLE_API_KEY",
    "EXA_API_KEY",
    "TAVILY_API_KEY",
    "AHREFS_API_KEY",
)


@dataclass
class Ended:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass
class Cli:
    """`batch-pipeline` with a data folder and a key of its own."""

    data: Path
    simulator: Running
    key: str
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command: no key of this machine gets in, not even from a .env."""
        return {
            **{name: value for name, value in os.environ.items() if "_API_KEY" not in name},
            **dict.fromkeys(_KEY_VARIABLES, ""),
            "BATCH_PIPELINE_DATA": str(self.data),
            "BATCH_PIPELINE_SIMULATE": "1",
            "BATCH_PIPELINE_SIMULATOR_URL": self.simulator.url,
            "BATCH_PIPELINE_SIM_KEY": self.key,
            "COLUMNS": "140",
            **self.extra,
        }

    def __call__(self, *words: str) -> Ended:
        """Run a command to its end, in a process that has imported what the script imports."""
        process = Forked(
            command, str(SCRIPT), *words, environment=self.environment, folder=self.data
        )
        try:
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
        assert process.returncode is not None
        return Ended(process.returncode, out, err)

    def script(self, *words: str) -> Ended:
        """Run a command to its end with the installed script itself."""
        done = subprocess.run(
            [str(SCRIPT), *words],
            env=self.environment,
            cwd=self.data,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def interrupt(self, when: Callable[[], bool], *words: str) -> Ended:
        """Run a command and press Ctrl-C once `when` holds."""
        process = subprocess.Popen(
            [str(SCRIPT), *words],
            env=self.environment,
            cwd=self.data,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until(lambda: when() or process.poll() is not None)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
        return Ended(process.returncode, out, err)

    def journal(self) -> list[dict[str, Any]]:
        """The attempts that the simulator saw with this key."""
        records: list[dict[str, Any]] = []
        # The session's tests share the simulator, and it answers page by page.
        while page := self.simulator.journal(len(records)):
            records += page
        return [r for r in records if r["key_last4"] == self.key[-4:]]


class Shell:
    """`batch-pipeline` in this very process, for Dagster loads but once."""

    def __init__(self, cli: Cli) -> None:
        self.data = cli.data
        self.simulator = cli.simulator
        self._cli = cli
        self._seen = 0

    def __call__(self, *words: str) -> Ended:
        """Run a command to its end."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        return Ended(code, out.getvalue(), err.getvalue())

    def asked(self) -> list[dict[str, Any]]:
        """The attempts since the last look."""
        records = self._cli.journal()
        new, self._seen = records[self._seen :], len(records)
        return new


def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Poll until something holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.02)


def write_topics(path: Path, topics: Sequence[str]) -> Path:
    """A roadmaps table with these topics."""
    lines = ["Category,Subcategory,Topic,Description,Resources"]
    lines += [f"Basics,Tests,{topic},A page about {topic} and why it matters.," for topic in topics]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def topics(count: int, word: str) -> list[str]:
    """`count` different topics."""
    return [f"{word} {number}" for number in range(1, count + 1)]


@pytest.fixture(scope="session")
def one_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One simulator for the whole session; tests tell their calls apart by key."""
    with running(tmp_path_factory.mktemp("cli-simulator")) as simulator:
        simulator.configure(latency=INSTANT)
        yield simulator


@pytest.fixture(scope="module")
def make_cli(one_simulator: Running, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Cli]:
    """Makes a command line with a fresh data folder and a key that nobody else uses."""

    def make() -> Cli:
        data = tmp_path_factory.mktemp("data")
        return Cli(data, one_simulator, f"sim-key-{data.name[-1]}{os.urandom(8).hex()}")

    return make


@pytest.fixture
def cli(make_cli: Callable[[], Cli]) -> Cli:
    """A command line with a fresh data folder."""
    return make_cli()


@pytest.fixture(scope="module")
def shell(make_cli: Callable[[], Cli]) -> Iterator[Shell]:
    """A shell in this process, with a data folder of its own."""
    cli = make_cli()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cli.environment.items():
            patch.setenv(name, value)
        patch.chdir(cli.data)
        yield Shell(cli)
        cli.simulator.configure(latency=INSTANT, faults=[])
