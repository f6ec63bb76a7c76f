"""`watch`: runs in other processes, seen from the ledger alone."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from batch_pipeline.cli import watch
from batch_pipeline.ledger.overview import LastRun
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline.ledger.watching import EndedRow, WatchedBatch
from batch_pipeline_tests import engine_process
from batch_pipeline_tests.cli.conftest import SCRIPT, Cli, topics, write_topics
from batch_pipeline_tests.cli.test_reads import heavy_imports
from batch_pipeline_tests.forked import Forked
from batch_pipeline_tests.simulated import Bench, Simulator
from batch_pipeline_tests.simulator.running import INSTANT
from batch_pipeline_tests.workloads.articles.ended import Books

_ROWS = 14


def start_watch(cli: Cli, *words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(SCRIPT), "watch", *words],
        env=cli.environment,
        cwd=cli.data,
        stdin=subprocess.DEVNULL,
        text=True,
        # Tests that are started in the background have Ctrl-C ignored, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@dataclass(frozen=True)
class Seen:
    """What two watchers saw of a run in a third process.

    Attributes:
        cli: the command line of that installation.
        looks: of one that began before the run.
        code: how it ended after Ctrl-C.
        last: the last look of one that began during the run, with --until-done.
    """

    cli: Cli
    looks: list[dict[str, Any]]
    code: int
    last: dict[str, Any]


@pytest.fixture(scope="module")
def seen(make_cli: Callable[[], Cli]) -> Iterator[Seen]:
    """A batch `topics`, watched from before its run until it was done."""
    cli = make_cli()
    bench = Bench(cli.data, Simulator(cli.simulator.url), pack=1, workers=2)
    bench.ingest(write_topics(cli.data / "topics.csv", topics(_ROWS, "watched")), "topics")
    slow = {"base_s": 0.4, "per_output_token_s": 0, "jitter_s": 0}
    cli.simulator.configure(latency=slow)
    first = start_watch(cli, "topics", "--interval", "0.2", "--json")
    started: list[subprocess.Popen[str] | Forked] = [first]
    try:
        assert first.stdout is not None
        looks = [json.loads(first.stdout.readline())]
        run = engine_process.start(bench, "topics", "run-1", check_keys=False)
        started.append(run)
        while not looks[-1]["at_work"]:
            looks.append(json.loads(first.stdout.readline()))
        second = start_watch(cli, "--until-done", "--interval", "0.2", "--json")
        started.append(second)
        while looks[-1]["at_work"]:
            looks.append(json.loads(first.stdout.readline()))
        first.send_signal(signal.SIGINT)
        engine_process.outcome(run)
        out, _ = second.communicate(timeout=60)
        yield Seen(cli, looks, first.wait(30), json.loads(out.splitlines()[-1]))
    finally:
        cli.simulator.configure(latency=INSTANT)
        for process in started:
            process.kill()
            process.communicate()


def test_a_run_in_another_process_is_seen_from_its_calls_to_its_end(seen: Seen) -> None:
    lines = [line for look in seen.looks for line in look["batches"]]
    assert {line["batch"] for line in lines} == {"topics"}
    assert all(line["simulated"] and line["rows"] == _ROWS for line in lines)
    done = [line["done"] for line in lines]
    assert done == sorted(done) and (done[0], done[-1]) == (0, _ROWS)
    assert any(line["in_flight"] for line in lines) and lines[-1]["in_flight"] == 0
    assert any(line["rows_per_minute"] and line["left_s"] for line in lines)
    assert lines[0]["state"] is None and lines[-1]["state"] == "done"
    assert "running" in {line["state"] for line in lines}
    assert lines[-1]["attempts"] == _ROWS and lines[-1]["cost_usd"] > 0


def test_each_row_that_ends_is_told_once_by_name(seen: Seen) -> None:
    told = [row["row"] for look in seen.looks for line in look["batches"] for row in line["ended"]]
    assert sorted(told) == list(range(1, _ROWS + 1))


def test_ctrl_c_ends_the_watching_with_0(seen: Seen) -> None:
    assert seen.code == 0


def test_until_done_ends_by_itself_when_nothing_is_at_work(seen: Seen) -> None:
    assert not seen.last["at_work"]
    assert [line["done"] for line in seen.last["batches"]] in ([], [_ROWS])


def test_when_nothing_runs_it_says_so_or_ends(seen: Seen) -> None:
    cli = seen.cli
    once = cli("watch", "--once")
    assert once.code == 0 and "no batch runs" in once.out
    unknown = cli("watch", "topcis")
    assert unknown.code == 64 and "no batch 'topcis'" in unknown.err


def test_a_named_batch_is_shown_as_one_line_where_no_terminal_is(seen: Seen) -> None:
    cli = seen.cli
    (line,) = cli("watch", "topics", "--until-done").out.splitlines()
    assert "topics (roadmaps, done, SIMULATED)" in line
    assert f"{_ROWS}/{_ROWS} rows · {_ROWS} succeeded" in line


def test_a_folder_means_the_batches_that_write_there(seen: Seen) -> None:
    cli = seen.cli
    folder = cli.data / "outputs" / "simulated" / "roadmaps" / "topics"
    folder.mkdir(parents=True)
    report = folder / "batch_report_20261122_080000.json"
    report.write_text("{}", encoding="utf-8")
    (line,) = cli("watch", f"{folder}/", "--once", "--json").document["batches"]
    assert (line["done"], line["report"]) == (_ROWS, str(report))
    above = cli("watch", str(cli.data / "outputs"), "--once")
    assert above.code == 0 and "is known to write" not in above.err
    elsewhere = cli("watch", "storage/batch_output/", "--once")
    assert elsewhere.code == 0
    assert "No batch is known to write to storage/batch_output/: all batches" in elsewhere.err


def test_on_a_terminal_the_table_is_drawn_again_in_place(seen: Seen) -> None:
    cli = seen.cli
    ours, theirs = pty.openpty()
    process = start_watch(cli, "topics", "--until-done", stdout=theirs)
    os.close(theirs)
    drawn = b""
    try:
        while part := os.read(ours, 65_536):
            drawn += part
    except OSError:  # the other end is closed: Linux's way to say so
        pass
    finally:
        os.close(ours)
        process.kill()
        process.communicate()
    assert b"topics" in drawn and f"{_ROWS} succeeded".encode() in drawn
    assert b"\x1b[" in drawn


def test_it_imports_neither_dagster_nor_pandas_nor_an_sdk(seen: Seen) -> None:
    cli = seen.cli
    assert not heavy_imports(cli, "watch", "topics", "--once")


def test_article_jobs_go_by_their_own_words(make_cli: Callable[[], Cli]) -> None:
    cli = make_cli()
    books = Books(cli.data, 3, realm="simulated")
    with books.ledger:
        books.write(0, at=10)
        books.end(1, Outcome.FAILED, 20, error="No answer.", error_kind="transient")
    (line,) = cli("watch", "client", "--until-done").out.splitlines()
    assert "client (articles, not started, SIMULATED) · 2/3 rows · 1 delivered, 1 aborted" in line


def test_the_table_fits_into_80_columns_and_names_what_has_ended() -> None:
    row = EndedRow("item-7", 8, Outcome.BLOCKED, "qc", "CRITICAL (intent): off.", 1_800_000_000.0)
    batch = WatchedBatch(
        batch_id="client-1f2e3d4c",
        workload="articles",
        realm="live",
        created_at=1_790_000_000.0,
        rows=500,
        outcomes={
            Outcome.PENDING: 200, Outcome.SUCCEEDED: 280, Outcome.BLOCKED: 12, Outcome.FAILED: 8,
            Outcome.SKIPPED: 0,
        },
        run=LastRun("run", "running", "", 1_800_000_000.0, {}),
        in_flight=12,
        in_jobs=0,
        attempts=1_312,
        cost_nano=12_340_000_000,
        lost_nano=0,
        rate_wait_s=312.0,
        per_minute=31.5,
        left_s=381.0,
        ended=[row],
        ended_count=30,
    )  # fmt: skip
    look = watch._Look(1_800_000_003.0, [batch], at_work=True, reports={})
    stream = io.StringIO()
    Console(file=stream, width=80, highlight=False).print(watch._face(look))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "client-1f2e3d4c", "300/500", "280 delivered", "12 blocked", "8 aborted",
        "12 in flight", "1,312 sent", "31.5 rows/min", "6 min 21 s", "$12.34",
        "blocked: CRITICAL (intent): off.", "and 29 more",
    ):  # fmt: skip
        assert words in text, words
