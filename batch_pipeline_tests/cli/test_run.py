"""`run`, `retry` and `demo` through real Dagster runs: the JSON object, exit codes, Ctrl-C."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.cli.output import exit_code
from batch_pipeline_tests.cli.conftest import Cli, topics, write_topics
from batch_pipeline_tests.simulator.running import INSTANT

_FAST = ("--rate-limit", "6000", "--json")
_FIELDS = {
    "batch", "workload", "simulated", "outcomes", "pending", "cache_hits", "requests", "attempts",
    "input_tokens", "cached_input_tokens", "output_tokens", "cost_usd", "wall_s", "rate_wait_s",
    "report_json", "report_html", "deliverables",
}  # fmt: skip


def _outcomes(**counts: int) -> dict[str, int]:
    return {"succeeded": 0, "blocked": 0, "failed": 0, "skipped": 0} | counts


def test_the_json_object_agrees_with_the_journal_and_a_second_run_asks_nothing(cli: Cli) -> None:
    table = write_topics(cli.data / "thirty.csv", topics(30, "agreement"))
    run = ("run", "roadmaps", "--input", str(table), "--pack", "10", *_FAST)

    planned = cli("estimate", "roadmaps", "--input", str(table), "--pack", "10", "--json").document
    first = cli(*run, "--limit", "20")
    assert first.code == 0, first.err
    part = first.document
    assert part.keys() >= _FIELDS
    assert (part["outcomes"], part["pending"]) == (_outcomes(succeeded=20), 10)
    assert part["simulated"] is True and part["workload"] == "roadmaps"
    assert "SIMULATED" in first.err
    seen = cli.journal()
    _agrees(part, seen)

    second = cli(*run)
    assert second.code == 0, second.err
    rest = second.document
    assert (rest["outcomes"], rest["pending"]) == (_outcomes(succeeded=30), 0)
    assert rest["cache_hits"] == 20
    _agrees(rest, cli.journal()[len(seen) :])
    assert part["requests"] + rest["requests"] == planned["requests"] == 3

    third = cli(*run).document
    assert (third["attempts"], third["requests"], third["cost_usd"]) == (0, 0, 0)
    assert third["cache_hits"] == 30
    assert len(cli.journal()) == 3
    _files_are_whole(third, rows=30)


def _agrees(document: dict[str, Any], journal: list[dict[str, Any]]) -> None:
    assert document["attempts"] == document["requests"] == len(journal) > 0
    for name in ("input_tokens", "cached_input_tokens", "output_tokens"):
        assert document[name] == sum(record[name] for record in journal), name
    assert document["cost_usd"] == pytest.approx(sum(r["price_usd"] for r in journal), abs=1e-9)


def _files_are_whole(document: dict[str, Any], rows: int) -> None:
    report = json.loads(Path(document["report_json"]).read_text(encoding="utf-8"))
    assert report["batch"] == document["batch"]
    assert Path(document["report_html"]).read_text(encoding="utf-8").startswith("<!")
    paths = {Path(path).suffix: Path(path) for path in document["deliverables"]}
    with paths[".csv"].open(encoding="utf-8-sig", newline="") as stream:
        delivered = list(csv.DictReader(stream))
    assert len(delivered) == rows and all(row["TLDR"] for row in delivered)


def test_a_failed_row_ends_with_1_is_named_and_is_all_that_a_retry_asks(cli: Cli) -> None:
    names = [*topics(9, "sound"), "marred topic"]
    table = write_topics(cli.data / "ten.csv", names)
    cli.simulator.configure(faults=[{"kind": "invalid_item", "match": "marred topic"}])
    try:
        ended = cli("run", "roadmaps", "--input", str(table), *_FAST)
        assert ended.code == 1, ended.err
        assert ended.document["outcomes"] == _outcomes(succeeded=9, failed=1)
        batch = ended.document["batch"]
        (row,) = cli("failed", batch, "--json").document["rows"]
        assert (row["row"], row["outcome"]) == (10, "failed")
        assert row["error"] and row["next_step"]
    finally:
        cli.simulator.configure(faults=[])
    before = len(cli.journal())

    again = cli("retry", batch, "--json")

    assert again.code == 0, again.err
    assert again.document["outcomes"] == _outcomes(succeeded=10)
    assert [record["items"] for record in cli.journal()[before:]] == [1]


def test_only_blocked_rows_end_with_2(cli: Cli) -> None:
    table = write_topics(cli.data / "declined.csv", ["plain topic", "declined topic"])
    cli.simulator.configure(faults=[{"kind": "refusal", "match": "declined topic"}])
    try:
        ended = cli("run", "roadmaps", "--input", str(table), "--pack", "1", *_FAST)
    finally:
        cli.simulator.configure(faults=[])
    assert ended.code == 2, ended.err
    assert ended.document["outcomes"] == _outcomes(succeeded=1, blocked=1)


def test_ctrl_c_ends_with_130_and_the_next_run_pays_for_nothing_twice(cli: Cli) -> None:
    table = write_topics(cli.data / "long.csv", topics(60, "interrupted"))
    run = ("run", "roadmaps", "--input", str(table), "--pack", "2", "--workers", "2", *_FAST)
    cli.simulator.configure(latency={"base_s": 0.3, "per_output_token_s": 0, "jitter_s": 0})
    try:
        stopped = cli.interrupt(lambda: len(cli.journal()) >= 3, *run)
    finally:
        cli.simulator.configure(latency=INSTANT)
    assert stopped.code == 130, stopped.err
    assert stopped.document["status"] == "interrupted"
    assert 0 < stopped.document["outcomes"]["succeeded"] < 60
    assert "run again to resume" in stopped.err.lower()

    resumed = cli(*run)

    assert resumed.code == 0, resumed.err
    assert resumed.document["outcomes"] == _outcomes(succeeded=60)
    assert sum(record["items"] for record in cli.journal()) == 60


def test_the_demo_says_that_it_is_simulated_and_where_to_look(cli: Cli) -> None:
    cli.extra["BATCH_PIPELINE_SIMULATE"] = ""
    ended = cli("demo")
    assert ended.code == 0, ended.err
    assert "everything is simulated" in ended.err
    assert "batch_report.html" in ended.out and "http://127.0.0.1:3000" in ended.out
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("status", "outcomes", "code"),
    [
        ("done", {"succeeded": 5}, 0),
        ("done", {"succeeded": 3, "skipped": 2}, 0),
        ("done", {"succeeded": 3, "pending": 2}, 0),
        ("exported", {"pending": 5}, 0),
        ("done", {"succeeded": 3, "blocked": 2}, 2),
        ("done", {"failed": 1, "blocked": 2}, 1),
        ("stopped", {"pending": 5}, 1),
        ("interrupted", {"failed": 1, "blocked": 1}, 130),
    ],
)
def test_of_several_reasons_the_gravest_decides_the_exit_code(
    status: str, outcomes: dict[str, int], code: int
) -> None:
    assert exit_code(status, outcomes) == code
