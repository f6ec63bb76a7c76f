"""Processes that begin where the imports end: forks of a server that has loaded the package.

What belongs here: starting, signalling and ending them. What does not: what they do. A process of
these has its own pid, environment, folder and output, dies of signals and leaves an exit code like
any other; it only spares the two to three seconds of imports that every command begins with.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

# What a run imports. A name that is gone makes its process slower, not wrong.
_LOADED = [
    "batch_pipeline.api.serving",
    "batch_pipeline.cli.main",
    "batch_pipeline.cli.plan",
    "batch_pipeline.cli.progress",
    "batch_pipeline.component.llm_workload",
    "batch_pipeline.component.polling",
    "batch_pipeline.dagster_home",
    "batch_pipeline.definitions",
    "batch_pipeline.defs.resources",
    "batch_pipeline.doors",
    "batch_pipeline.engine.lanes.batch",
    "batch_pipeline.engine.thread",
    "batch_pipeline.reports.console",
    "batch_pipeline.reports.charts",
    "batch_pipeline.reports.files",
    "batch_pipeline.reports.html",
    "batch_pipeline.reports.markdown",
    "batch_pipeline.runlog",
    "batch_pipeline.simulator.launch",
    "batch_pipeline.sinks.sheets",
    "batch_pipeline.workloads.articles.workload",
    "batch_pipeline.workloads.brands.workload",
    "batch_pipeline.workloads.estimate",
    "batch_pipeline.workloads.flashcards.workload",
    "batch_pipeline.workloads.news.workload",
    "batch_pipeline.workloads.roadmaps.workload",
    "batch_pipeline.workloads.write_back",
    "batch_pipeline.google_sheets.wire",
    "batch_pipeline.providers.batch_clients",
    "batch_pipeline_tests.engine.lanes.mortal",
    "batch_pipeline_tests.workloads.sheeted",
    "alembic.command",
    "anthropic",
    "dagster._core.secrets",
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage",
    "dagster._core.storage.schedules.sqlite.sqlite_schedule_storage",
    "dagster.components.core.load_defs",
    "google.genai",
    "google.genai.types",
    "httpcore",
    "matplotlib.backends.backend_svg",
    "openai",
    "pandas",
    "psycopg2",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "rich._emoji_codes",
    "rich.progress",
    "sqlite_utils",
    "tomlkit",
    "upath.implementations.local",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "uvloop",
    "watchdog.observers.polling",
    "batch_pipeline_tests.warm",
]

# The server is a fresh interpreter that only imports: no thread of Python's holds a lock when it
# forks, and the pools of OpenBLAS and jemalloc mend themselves in a fork.
# There is one server in a process: who forks from it elsewhere gives it no list of its own.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(_LOADED)


class Forked:
    """A process that runs a function; used as `subprocess.Popen` is.

    Args:
        work: what it runs, by its name in an importable module; what it gives is the exit code.
        arguments: of `work`, picklable.
        environment: its whole environment; None is this process's.
        folder: where it runs; None is where this process is.
        log: the file that its stderr is appended to; None is one of its own.
    """

    def __init__(
        self,
        work: Callable[..., int],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        log: Path | None = None,
    ) -> None:
        place = tempfile.mkdtemp(prefix="forked-")
        self._out = Path(place, "out")
        self._err = log or Path(place, "err")
        told = dict(os.environ if environment is None else environment)
        where = str(folder or Path.cwd())
        terms = work, arguments, told, where, str(self._out), str(self._err)
        self._process = SERVER.Process(target=_begin, args=terms)
        self._process.start()
        # It does not outlive this handle, nor keep the tests from ending.
        Finalize(self, _end, (self._process, place), exitpriority=1)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal it died of; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; gives the exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process.name), timeout or 0.0)
        return self.returncode

    @property
    def printed(self) -> str:
        """What it has written to stdout so far."""
        return self._out.read_text(encoding="utf-8") if self._out.exists() else ""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; gives what it wrote to stdout and stderr."""
        self.wait(timeout)
        return self.printed, self._err.read_text(encoding="utf-8") if self._err.exists() else ""

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.send_signal(signal.SIGKILL)


def command(script: str, *words: str) -> int:
    """A command of the console script."""
    from batch_pipeline.cli.main import main

    sys.argv = [script, *words]
    return main()


def _end(process: BaseProcess, place: str) -> None:
    if process.is_alive():
        process.kill()
    shutil.rmtree(place, ignore_errors=True)


def _begin(
    work: Callable[..., int],
    arguments: tuple[Any, ...],
    environment: Mapping[str, str],
    folder: str,
    out: str,
    err: str,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    code = work(*arguments)
    # multiprocessing ends its processes without them; an interpreter that ends runs them.
    atexit._run_exitfuncs()
    sys.exit(code)
