"""The one writer of a process: groups, order, failures, and several processes at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import pauses
from batch_pipeline.ledger.writer import Operation
from batch_pipeline_tests.ledger.books import open_ledger

ROOT = Path(__file__).resolve().parents[2]

CROWD = """
import sys, threading
from batch_pipeline.ledger.calls import PAUSE, Pause, PauseKey
from batch_pipeline.ledger.store import Ledger
url, name = sys.argv[1:]
ledgers = [Ledger(url, "live") for _ in range(25)]
print("ready", flush=True)
sys.stdin.readline()
def work(place, ledger):
    for turn in range(4):
        key = PauseKey("live", name, str(place), str(turn))
        ledger.writer.submit(PAUSE, Pause(key, 1.0, "here")).result(60)
threads = [threading.Thread(target=work, args=pair) for pair in enumerate(ledgers)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for ledger in ledgers: ledger.close()
print("done")
"""


class Recorder:
    """Operations that write one row each and note how they were grouped."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.held = threading.Event()
        self.go = threading.Event()
        self.hold: Operation[None] = Operation("hold", 0, self._hold)
        self.put: Operation[str] = Operation("put", 10, self._put)
        self.late: Operation[str] = Operation("late", 90, self._put)
        self.early: Operation[str] = Operation("early", 5, self._put)

    def _hold(self, _: sa.Connection, now: float, asked: Sequence[Any]) -> list[None]:
        self.held.set()
        assert self.go.wait(30)
        return [None] * len(asked)

    def _put(self, connection: sa.Connection, now: float, names: Sequence[str]) -> list[str]:
        self.groups.append(list(names))
        for name in names:
            if name.startswith("bad"):
                raise ValueError(name)
            connection.execute(
                pauses.insert(),
                {
                    "realm": "live",
                    "provider": name,
                    "model": "m",
                    "key_id": "k",
                    "paused_until": now,
                    "reason": "",
                },
            )
        return [f"wrote {name}" for name in names]

    def wait_until_held(self, ledger: Ledger) -> Future[None]:
        """Keep the writer busy, so that what is submitted next is one group."""
        future = ledger.writer.submit(self.hold, None)
        assert self.held.wait(30)
        return future


def stored(ledger: Ledger) -> set[str]:
    with ledger.read() as connection:
        return set(connection.execute(sa.select(pauses.c.provider)).scalars())


def test_what_is_queued_during_a_commit_becomes_one_group_and_answers_stay_in_order(
    ledger_url: str,
) -> None:
    recorder = Recorder()
    with open_ledger(ledger_url) as ledger:
        recorder.wait_until_held(ledger)
        futures = [ledger.writer.submit(recorder.put, f"n{index}") for index in range(50)]
        recorder.go.set()
        assert [future.result(30) for future in futures] == [f"wrote n{i}" for i in range(50)]
        assert [len(group) for group in recorder.groups] == [50]
        assert len(stored(ledger)) == 50


def test_within_a_group_operations_run_in_their_stated_order(ledger_url: str) -> None:
    recorder = Recorder()
    with open_ledger(ledger_url) as ledger:
        recorder.wait_until_held(ledger)
        futures = [
            ledger.writer.submit(recorder.late, "third"),
            ledger.writer.submit(recorder.put, "second"),
            ledger.writer.submit(recorder.early, "first"),
        ]
        recorder.go.set()
        assert [future.result(30) for future in futures] == [
            "wrote third",
            "wrote second",
            "wrote first",
        ]
        assert recorder.groups == [["first"], ["second"], ["third"]]


def test_a_bad_operation_fails_alone_and_leaves_nothing_behind(ledger_url: str) -> None:
    recorder = Recorder()
    with open_ledger(ledger_url) as ledger:
        recorder.wait_until_held(ledger)
        names = ["a", "b", "bad one", "c", "bad two", "d"]
        futures = {name: ledger.writer.submit(recorder.put, name) for name in names}
        recorder.go.set()
        for name, future in futures.items():
            if name.startswith("bad"):
                with pytest.raises(ValueError, match=name):
                    future.result(30)
            else:
                assert future.result(30) == f"wrote {name}"
        assert stored(ledger) == {"a", "b", "c", "d"}
        assert ledger.writer.submit(recorder.put, "after").result(30) == "wrote after"


def test_a_row_that_exists_twice_fails_for_the_second_only(ledger_url: str) -> None:
    recorder = Recorder()
    with open_ledger(ledger_url) as ledger:
        recorder.wait_until_held(ledger)
        first = ledger.writer.submit(recorder.put, "same")
        second = ledger.writer.submit(recorder.put, "same")
        recorder.go.set()
        assert first.result(30) == "wrote same"
        with pytest.raises(sa.exc.IntegrityError):
            second.result(30)


def test_closing_commits_what_is_queued(ledger_url: str) -> None:
    recorder = Recorder()
    ledger = open_ledger(ledger_url)
    recorder.wait_until_held(ledger)
    futures = [ledger.writer.submit(recorder.put, f"n{index}") for index in range(3_000)]
    recorder.go.set()
    ledger.close()
    assert all(future.done() for future in futures)
    with open_ledger(ledger_url) as again:
        assert len(stored(again)) == 3_000


def test_event_loops_and_threads_share_the_writer(ledger_url: str) -> None:
    recorder = Recorder()
    answers: list[str] = []

    async def on_a_loop(ledger: Ledger, name: str) -> list[str]:
        waiting = [ledger.writer.post(recorder.put, f"{name} {turn}") for turn in range(40)]
        return list(await asyncio.gather(*waiting))

    def loop(ledger: Ledger, name: str) -> None:
        answers.extend(asyncio.run(on_a_loop(ledger, name)))

    def thread(ledger: Ledger, name: str) -> None:
        for turn in range(40):
            answers.append(ledger.writer.submit(recorder.put, f"{name} {turn}").result(30))

    with open_ledger(ledger_url) as ledger:
        threads = [
            threading.Thread(target=target, args=(ledger, f"{target.__name__} {index}"))
            for target in (loop, thread)
            for index in range(3)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
        assert len(answers) == len(stored(ledger)) == 6 * 40
        assert {f"wrote {name}" for name in stored(ledger)} == set(answers)


def test_a_loop_that_is_gone_does_not_stop_the_writer(ledger_url: str) -> None:
    recorder = Recorder()
    with open_ledger(ledger_url) as ledger:
        recorder.wait_until_held(ledger)

        async def leave() -> None:
            ledger.writer.post(recorder.put, "abandoned")

        asyncio.run(leave())
        recorder.go.set()
        assert ledger.writer.submit(recorder.put, "next").result(30) == "wrote next"
        assert stored(ledger) == {"abandoned", "next"}


def test_a_hundred_writers_in_four_processes_never_see_a_locked_database(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        url = ledger.url
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, url, f"process {index}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(4)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("write\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=120) for process in processes]
    assert printed == [("done\n", "")] * 4
    with open_ledger(tmp_path) as ledger, ledger.read() as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(pauses)).scalar_one()
    assert count == 4 * 25 * 4
