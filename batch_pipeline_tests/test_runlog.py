"""The log of runs: its lines, its files, several processes at once, and trouble with the disk."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batch_pipeline import runlog
from batch_pipeline.providers.wire import redact
from batch_pipeline.runlog import RunLog

ROOT = Path(__file__).resolve().parents[1]
RUN: dict[str, Any] = {
    "run_id": "0123456789abcdef",
    "batch": "nov-backlinks",
    "realm": "simulated",
    "workload": "roadmaps",
    "redact": redact,
}

_WRITER = """
import sys
from pathlib import Path
from batch_pipeline.runlog import RunLog
folder, name, count, size = sys.argv[1:]
with RunLog(Path(folder), run_id=name, batch="b", realm="live", workload="w", redact=str,
            max_file_bytes=int(size)) as log:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        log.event("settled", number=number, text="x" * (number % 400))
"""

_FULL_DISK = """
import resource, sys, time
from pathlib import Path
from batch_pipeline.runlog import RunLog
folder = Path(sys.argv[1])
def allow(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
def written():
    return b"".join(path.read_bytes() for path in folder.glob("*.jsonl"))
def until(word):
    for _ in range(1000):
        if word in written():
            return
        time.sleep(0.01)
    sys.exit(9)
log = RunLog(folder, run_id="r", batch="b", realm="live", workload="w", redact=str)
log.event("before")
until(b"before")
allow(len(written()) + 20)
for _ in range(3):
    log.event("lost")
    time.sleep(0.15)
allow(resource.RLIM_INFINITY)
log.event("after")
until(b"after")
log.close()
"""


def records(folder: Path) -> list[dict[str, Any]]:
    """Every JSON line of a folder; each must be whole."""
    return [
        json.loads(line)
        for path in sorted(folder.glob("batch_*.jsonl*"))
        for line in path.read_bytes().splitlines()
    ]


def lines(folder: Path) -> list[str]:
    return [
        line
        for path in sorted(folder.glob("batch_*.log*"))
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]
    ]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder's files, as another process would."""
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_an_event_is_one_json_line_and_one_readable_line(tmp_path: Path) -> None:
    with RunLog(tmp_path, **RUN) as log:
        log.event(
            "settled", item="row 7", attempt="a1", chunk="nov-backlinks.0001", duration_s=0.5,
            cost_usd=0.00012, status=200, note=None, message="", models=["a/b", "c/d"],
        )  # fmt: skip
    (record,) = records(tmp_path)
    at = record.pop("t")
    assert record == {
        "run": "0123456789abcdef",
        "batch": "nov-backlinks",
        "realm": "simulated",
        "workload": "roadmaps",
        "event": "settled",
        "item": "row 7",
        "attempt": "a1",
        "chunk": "nov-backlinks.0001",
        "duration_s": 0.5,
        "cost_usd": 0.00012,
        "status": 200,
        "models": "a/b, c/d",
    }
    assert lines(tmp_path) == [
        f'{at} simulated nov-backlinks 01234567 settled item="row 7" attempt=a1 '
        "chunk=nov-backlinks.0001 duration_s=0.5 cost_usd=0.00012 status=200 "
        'models="a/b, c/d"'
    ]
    (path,) = tmp_path.glob("*.jsonl")
    assert path.name == f"batch_{at[:10]}.jsonl" and at.endswith("Z")


def test_every_text_loses_what_looks_like_a_key(tmp_path: Path) -> None:
    key = "sk-ant-0123456789abcdef"
    with RunLog(tmp_path, **{**RUN, "batch": key}) as log:
        log.event("failed", item=key, error=f"no access with {key}", where=[key], path=Path(key))
    written = "".join(path.read_text() for path in tmp_path.glob("batch_*"))
    assert key not in written
    (record,) = records(tmp_path)
    assert record["error"] == "no access with [key removed]"


@pytest.mark.parametrize(
    "text",
    ["two\nlines\r\n", "bell\x07 \x1b[31mred", "half \ud83d a pair", "a\u2028b", '"; {"x":1}'],
)
def test_whatever_a_row_holds_stays_on_one_line(tmp_path: Path, text: str) -> None:
    with RunLog(tmp_path, **RUN) as log:
        log.event("failed", item=text, error=text)
        log.event("next")
    assert [record["event"] for record in records(tmp_path)] == ["failed", "next"]
    first, second = lines(tmp_path)
    assert first.isprintable() and second.endswith(" next")


def test_lines_of_several_processes_never_mix_and_none_is_lost_by_rotation(tmp_path: Path) -> None:
    each, names = 2_500, ["p1", "p2", "p3", "p4"]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), name, str(each), "300000"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in names
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.communicate(b"go\n", timeout=60)
        assert writer.returncode == 0
    found = Counter((record["run"], record["number"]) for record in records(tmp_path))
    assert found == Counter((name, number) for name in names for number in range(each))
    assert len(lines(tmp_path)) == each * len(names)
    assert len(list(tmp_path.glob("*.jsonl.*"))) >= 2


def test_an_event_never_waits_for_the_files(tmp_path: Path) -> None:
    log = RunLog(tmp_path, **RUN)
    with held(tmp_path):
        for number in range(1_000):
            log.event("sent", number=number)
        assert records(tmp_path) == []
    log.close()
    assert [record["number"] for record in records(tmp_path)] == list(range(1_000))


def test_a_log_that_falls_behind_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlog, "_MAX_WAITING", 10)
    with RunLog(tmp_path, **RUN) as log:
        for _ in range(100):
            log.event("sent")
    counts = Counter(record["event"] for record in records(tmp_path))
    (behind,) = (record for record in records(tmp_path) if record["event"] == "log_behind")
    assert counts["sent"] + behind["events_left_out"] == 100 and behind["events_left_out"] > 0


def test_an_event_goes_into_the_file_of_its_own_utc_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    midnight = time.time() // 86_400 * 86_400.0
    times = iter([midnight - 0.001, midnight])
    monkeypatch.setattr(runlog, "time", SimpleNamespace(time=lambda: next(times, midnight)))
    with RunLog(tmp_path, **RUN) as log:
        log.event("last")
        log.event("first")
    days = [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d}" for t in (midnight - 1, midnight)]
    names = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert names == [f"batch_{day}.jsonl" for day in days]
    assert [(r["event"], r["t"]) for r in records(tmp_path)] == [
        ("last", f"{days[0]}T23:59:59.999Z"),
        ("first", f"{days[1]}T00:00:00.000Z"),
    ]


def test_old_files_go_by_age_and_by_total_size_and_foreign_ones_stay(tmp_path: Path) -> None:
    now = time.time()
    for name, days, size in (
        ("batch_2020-01-01.jsonl", 40, 10),
        ("batch_2020-02-01.log.3", 5, 900),
        ("batch_2020-02-02.log", 3, 300),
        ("batch_2020-02-03.log", 2, 300),
        ("notes.txt", 400, 10_000),
    ):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, (now - days * 86_400,) * 2)
    with RunLog(tmp_path, **RUN, keep_days=30, keep_bytes=1_000) as log:
        log.event("started")
    kept = {path.name for path in tmp_path.iterdir() if path.name != ".lock"}
    assert {name for name in kept if "2020" in name or name == "notes.txt"} == {
        "batch_2020-02-02.log", "batch_2020-02-03.log", "notes.txt",
    }  # fmt: skip
    assert len(kept) == 5


def test_the_files_are_this_users_alone(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    before = os.umask(0)
    try:
        with RunLog(folder, **RUN) as log:
            log.event("started")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600} and len(list(folder.iterdir())) == 3


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("a file, not a folder")
    log = RunLog(tmp_path / "logs", **RUN)
    log.event("started")
    log.close()
    log.event("late")
    log.close()
    (said,) = caplog.records
    assert "cannot be written" in said.getMessage() and said.levelname == "WARNING"


def test_a_full_disk_is_said_once_and_what_comes_after_it_is_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written") == 1
    assert "Traceback" not in done.stderr
    events = []
    for path in tmp_path.glob("*.jsonl"):
        for line in path.read_bytes().splitlines():
            try:
                events.append(json.loads(line)["event"])
            except json.JSONDecodeError:
                events.append("half a line")
    assert events == ["before", "half a line", "after"]
