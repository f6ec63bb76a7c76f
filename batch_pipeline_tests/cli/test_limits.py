"""`limits show`, `set`, `pause` and `resume`, while a run goes on and before there was any."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.cli.main import main
from batch_pipeline.clock import SystemClock
from batch_pipeline.engine.job import RunDone
from batch_pipeline.ledger.calls import HEARTBEAT, Owner, PauseKey
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import attempts
from batch_pipeline.limits.limiter import Gate, Rates
from batch_pipeline_tests.cli.conftest import SCRIPT, Cli, Ended, topics, until, write_topics
from batch_pipeline_tests.simulated import Bench, Simulator

MODEL = "google/gemini-3.1-flash-lite"


class Limits:
    """`batch-pipeline limits` in this process: it is the same program, and starts at once."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *words: str) -> Ended:
        """Run a command to its end."""
        self._capture.readouterr()
        code = main(["limits", *words])
        said = self._capture.readouterr()
        return Ended(code, said.out, said.err)

    def shown(self, model: str = MODEL) -> list[dict[str, Any]]:
        """What `show` says of a model."""
        keys = self("show", "--json").document["keys"]
        return [key for key in keys if key["model"] == model]


@pytest.fixture
def limits(cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Limits:
    """The command with the data folder of `cli`."""
    for name, value in cli.environment.items():
        monkeypatch.setenv(name, value)
    return Limits(capsys)


def test_limits_are_set_and_cleared_before_any_run_used_the_model(limits: Limits) -> None:
    assert limits("show", "--json").document == {"simulated": True, "keys": []}
    done = limits("set", MODEL, "--requests-per-min", "50000", "--concurrent", "4", "--json")
    assert done.code == 0
    assert done.document["set"] == {"requests": 50_000.0, "concurrent": 4.0}
    [warning] = done.document["warnings"]
    assert "2,000 of google tier-1" in warning and warning in done.err
    [key] = limits.shown()
    assert key["limits"]["requests"]["amount"] == 50_000
    assert key["limits"]["concurrent"]["source"] == "hand" and key["key"] == "*"
    table = limits("show").out
    assert "requests / min" in table and "50,000" in table and "all keys" in table
    assert limits("set", MODEL, "--clear", "--json").document["cleared"] == 2
    assert limits.shown() == []


def test_search_providers_have_limits_too(limits: Limits) -> None:
    done = limits("set", "exa", "--requests-per-min", "120", "--json")
    assert done.code == 0 and done.document["warnings"] == []
    [key] = limits.shown("*")
    assert (key["provider"], key["limits"]["requests"]["amount"]) == ("exa", 120)
    assert limits("pause", "tavily", "--for", "1m", "--json").document["provider"] == "tavily"
    assert limits("resume", "tavily", "--json").document["ended"] == 1
    refused = limits("set", "ahrefs/serp-overview", "--requests-per-min", "10", "--json")
    assert refused.code == 64
    assert "one limit for all its endpoints" in refused.document["error"]["message"]
    assert limits("set", "exa", "--clear", "--json").document["cleared"] == 1


def test_limits_start_as_fast_as_any_read(cli: Cli) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), "limits", "show"],
        env=cli.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert "batch_pipeline" in imported
    assert not imported & {"dagster", "pandas", "pyarrow", "openai", "anthropic", "yaml"}


def test_a_pause_before_any_run_is_shown_and_ended(limits: Limits) -> None:
    done = limits("pause", "gemini", "--for", "10m", "--reason", "lunch", "--json")
    assert done.document["provider"] == "google" and done.document["paused_until"]
    [key] = limits.shown("*")
    assert key["paused"] and 590 < key["paused_s"] <= 600
    assert key["pause_reason"] == "by hand: lunch"
    assert "lunch" in limits("show").out
    model = limits("resume", MODEL, "--json")
    assert model.document["still_paused_by"] == ["google"]
    assert limits("resume", "google", "--json").document["ended"] == 1
    assert limits.shown("*") == []


def test_what_cannot_be_set_is_refused_with_the_next_step(limits: Limits) -> None:
    for words in (
        ["set", "google"],
        ["set", "google", "--clear", "--concurrent", "3"],
        ["set", "nobody", "--concurrent", "3"],
        ["pause", "google", "--for", "soon"],
        ["pause", "google", "--for", "0"],
        ["set", f"{MODEL}, openai/gpt-5", "--concurrent", "3"],
        ["set", "google", "--concurrent", "3", "--key", "a b"],
    ):
        refused = limits(*words, "--json")
        assert refused.code == 64, words
        assert refused.document["error"]["next_step"], words


@contextmanager
def running(cli: Cli, rows: int) -> Iterator[Bench]:
    """A run of single-row requests in this process, whose ledger the command line shares."""
    bench = Bench(cli.data, Simulator(cli.simulator.url), workers=8, pack=1)
    batch = bench.ingest(write_topics(cli.data / "topics.csv", topics(rows, "limits")))
    thread = bench.start(bench.job(batch))
    ended = threading.Event()

    def follow() -> None:
        for event in thread.events():
            if isinstance(event, RunDone):
                ended.set()

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        yield bench
    finally:
        thread.stop()
        follower.join(60)
        assert ended.is_set()


def test_a_run_that_goes_on_is_slowed_paused_and_released(cli: Cli, limits: Limits) -> None:
    with running(cli, rows=4_000) as bench:

        def calls() -> int:
            with bench.open() as ledger, ledger.read() as connection:
                return int(
                    connection.execute(
                        sa.select(sa.func.count()).select_from(attempts)
                    ).scalar_one()
                )

        until(lambda: calls() > 5)
        assert limits("set", "google", "--requests-per-min", "120").code == 0
        time.sleep(1.2)  # the reaction time that is promised
        before, began = calls(), time.monotonic()
        until(lambda: calls() >= before + 4)
        assert time.monotonic() - began >= 4 * 0.5 - 0.6
        until(lambda: bool(limits.shown()))
        [key] = [key for key in limits.shown() if key["key"] != "*"]
        assert key["limits"]["requests"]["amount"] == 120
        assert key["limits"]["requests_per_day"]["used"] > 5

        assert limits("pause", MODEL, "--reason", "enough").code == 0
        time.sleep(1.2)
        stopped_at = calls()
        assert "enough" in limits("show").out
        assert calls() <= stopped_at + 1
        assert limits("resume", MODEL).code == 0
        assert limits("set", "google", "--clear").code == 0
        until(lambda: calls() > stopped_at + 20, timeout_s=20)


def test_a_table_that_is_shown_names_who_waits(cli: Cli, limits: Limits) -> None:
    async def work() -> None:
        with Ledger(f"sqlite:///{cli.data / 'ledger.db'}", "simulated") as ledger:
            owner = Owner.here("run-that-waits")
            await ledger.writer.post(HEARTBEAT, owner)
            key = PauseKey("simulated", "google", MODEL, "…abcd-123456")
            gate = Gate(ledger.writer, SystemClock(), key, owner.owner_id, Rates(concurrent=2))
            await gate.open()
            await asyncio.gather(gate.enter(), gate.enter())
            waiting = [asyncio.ensure_future(gate.enter()) for _ in range(3)]
            # one round, in which all three begin to wait
            await asyncio.sleep(0)
            await gate.report(2)
            [found] = await asyncio.to_thread(limits.shown)
            [run] = found["runs"]
            assert run["run_id"] == "run-that-waits"
            assert (run["slots"], run["in_flight"], run["waiting"]) == (2, 2, 3)
            table = (await asyncio.to_thread(limits, "show")).out
            assert "run-that-waits" in table and "2 in use" in table and "…abcd-123456" in table
            for one in waiting:
                one.cancel()
            gate.leave()
            gate.leave()
            await gate.close()

    asyncio.run(work())
