"""Commands that start no Dagster run: reads, estimate, try, cache, keys, simulator, refusals."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from batch_pipeline_tests.cli.conftest import SCRIPT, Cli, topics, until, write_topics

_HEAVY = ("dagster", "pandas", "pyarrow", "matplotlib", "openai", "anthropic", "google.genai")


@pytest.fixture(scope="module")
def tried(make_cli: Callable[[], Cli]) -> tuple[Cli, str]:
    """A data folder in which three rows were tried, and their batch."""
    cli = make_cli()
    table = write_topics(cli.data / "topics.csv", topics(5, "tried"))
    done = cli("try", "roadmaps", "--input", str(table), "--rows", "3", "--json")
    assert done.code == 0, done.err
    return cli, done.document["variants"][0]["batch"]


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "status",
        "status BATCH",
        "failed BATCH",
        "show BATCH:1",
        "cache stats",
        "simulator status",
        "completion status",
        "completion failed",
        "estimate roadmaps --input TABLE",
    ],
)
def test_a_read_imports_neither_dagster_nor_pandas_nor_an_sdk(
    tried: tuple[Cli, str], words: str
) -> None:
    cli, batch = tried
    table = str(cli.data / "topics.csv")
    given = [word.replace("BATCH", batch).replace("TABLE", table) for word in words.split()]
    assert not heavy_imports(cli, *given)


def heavy_imports(cli: Cli, *words: str) -> set[str]:
    """What a command imports of Dagster, pandas and the SDKs."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), *words],
        env=cli.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "batch_pipeline.cli.main" in imported
    below = {name for name in imported if name.startswith(tuple(f"{h}." for h in _HEAVY))}
    return below | imported.intersection(_HEAVY)


def test_every_read_answers_with_one_json_object(tried: tuple[Cli, str]) -> None:
    cli, batch = tried
    status = cli("status", batch, "--json").document
    assert status["outcomes"]["succeeded"] == status["rows"] == 3
    assert status["simulated"] is True and len(status["chunks"]) == 1
    listed = cli("status", "--all", "--json").document["batches"]
    assert [line["batch"] for line in listed] == [batch]
    assert cli("status", "--json").document["batches"] == []
    assert cli("failed", batch, "--json").document["rows"] == []
    stats = cli("cache", "stats", "--json").document
    assert stats["realms"]["simulated"]["entries"] == 3
    assert stats["realms"]["live"]["entries"] == 0 and stats["ledger_bytes"] > 0
    report = cli("report", batch, "--json").document
    assert report["report"]["outcomes"]["succeeded"] == 3
    assert Path(report["report_html"]).is_file()


def test_show_has_the_exact_request_and_reply_and_never_the_key(tried: tuple[Cli, str]) -> None:
    cli, batch = tried
    by_row = cli("show", f"{batch}:2", "--json")
    document = by_row.document
    assert document["row"] == 2 and document["input"]["Topic"] == "tried 2"
    assert document["result"]["challenge"] in ("practice", "expert")
    (attempt,) = document["attempts"]
    assert "tried 2" in json.dumps(attempt["request"]) and attempt["id_in_request"] == "1"
    assert document["result"]["tldr"] in json.dumps(attempt["reply"])
    assert attempt["status"] == 200 and attempt["rows"] == 3
    assert cli("show", document["item_id"], "--json").document == document
    shown = cli("show", f"{batch}:2", "--verbose")
    assert "Request of" in shown.out
    assert cli.key not in by_row.out + shown.out + shown.err


def test_two_prompts_stand_side_by_side_and_what_was_tried_is_not_paid_again(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(8, "compared"))
    other = cli.data / "other.md"
    other.write_text("Summarize each topic for a child.", encoding="utf-8")
    words = ("try", "roadmaps", "--input", str(table), "--rows", "4", "--prompt-b", str(other))
    first = cli(*words, "--json").document["variants"]
    assert [(v["name"], v["requests"], len(v["rows"])) for v in first] == [("A", 1, 4), ("B", 1, 4)]
    assert all(row["output"]["tldr"] for v in first for row in v["rows"])
    assert first[0]["paid_now_usd"] > 0
    again = cli(*words)
    assert again.code == 0 and "other.md" in again.out
    assert len(cli.journal()) == 2
    planned = cli("estimate", "roadmaps", "--input", str(table), "--json").document
    assert (planned["rows"], planned["cached"], planned["to_ask"]) == (8, 4, 4)


def test_a_cleared_cache_opens_its_rows_again_and_keeps_the_spend(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(2, "cleared"))
    words = ("try", "roadmaps", "--input", str(table), "--json")
    batch = cli(*words).document["variants"][0]["batch"]
    paid = cli("status", batch, "--json").document["cost_usd"]
    assert paid > 0

    refused = cli("cache", "clear", "--json")
    assert refused.code == 64 and "--yes" in refused.document["error"]["next_step"]
    assert cli("cache", "clear", "--older-than", "1", "--yes", "--json").document["entries"] == 0
    cleared = cli("cache", "clear", "--workload", "roadmaps", "--yes", "--json").document
    assert (cleared["cleared"], cleared["entries"], cleared["rows_open_again"]) == (True, 2, 2)
    assert cleared["cost_to_ask_again_usd"] == pytest.approx(paid)

    after = cli("status", batch, "--json").document
    assert (after["pending"], after["cost_usd"]) == (2, paid)
    assert cli(*words).document["variants"][0]["requests"] == 1


def test_a_live_run_without_a_key_names_the_variable_and_reads_nothing(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(2, "keyless"))
    done = cli("run", "roadmaps", "--input", str(table), "--live", "--json")
    assert done.code == 64
    assert "GOOGLE_API_KEY" in done.document["error"]["message"]
    assert "--simulate" in done.document["error"]["next_step"]
    assert "Traceback" not in done.err
    assert cli("status", "--json").document["batches"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run roadmaps --input missing.csv", "missing.csv does not exist"),
        ("run roadmaps", "no table and no batch"),
        ("run roadmaps --input a.csv --roadmap b", "--input and --roadmap"),
        ("run nothing --input a.csv", "There is no workload"),
        ("run roadmaps --batch nowhere", "There is no batch"),
        ("run roadmaps --workers many", "'many' is neither auto nor a number"),
        ("run roadmaps --workers 0", "--workers"),
        ("estimate roadmaps --workers none", "--workers"),
        ("run roadmaps --budget much", "--budget"),
        ("retry nowhere --budget 0", "--budget"),
        ("run roadmaps --no-such-option", "--no-such-option"),
        ("status nowhere", "There is no batch"),
        ("show nowhere:1", "There is no batch"),
        ("show nowhere", "There is no item"),
    ],
)
def test_a_command_that_cannot_be_carried_out_ends_with_64_and_says_why(
    tried: tuple[Cli, str], words: str, said: str
) -> None:
    cli, _ = tried
    done = cli(*words.split(), "--json")
    assert done.code == 64, done.err
    assert said in done.document["error"]["message"]
    assert done.document["error"]["next_step"]
    assert "Traceback" not in done.err


def test_force_asks_first_and_names_what_is_paid_again(cli: Cli) -> None:
    table = write_topics(cli.data / "topics.csv", topics(45, "forced"))
    done = cli("run", "roadmaps", "--input", str(table), "--force")
    assert done.code == 64
    assert "45 rows again in 3 requests" in done.err and "--yes" in done.err
    assert cli.journal() == []


def test_keys_are_checked_at_once_and_one_that_does_not_work_ends_with_1(cli: Cli) -> None:
    simulated = cli("keys", "check", "--json")
    assert simulated.code == 0, simulated.err
    found = {entry["provider"]: entry for entry in simulated.document["keys"]}
    assert found["google"]["status"] == "ok" and found["google"]["models"]
    assert cli.key not in simulated.out
    assert cli.journal() == []

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    cli.extra |= {
        "OPENAI_API_KEY": "sk-not-a-real-key-1234",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
    }
    live = cli("keys", "check", "--live", "--json")
    assert live.code == 1, live.out
    status = {entry["provider"]: entry["status"] for entry in live.document["keys"]}
    assert status["openai"] == "unreachable" and status["anthropic"] == "missing"
    assert "sk-not-a-real-key-1234" not in live.out + live.err


def test_the_simulator_is_served_found_and_stopped(cli: Cli) -> None:
    cli.extra["BATCH_PIPELINE_SIMULATOR_URL"] = ""
    assert cli("simulator", "status").code == 1
    process = subprocess.Popen(
        [str(SCRIPT), "simulator", "--latency", "0.01", "--json"],
        env=cli.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # An ended child stays a zombie until it is waited for, and `stop` waits until it is gone.
    waiting = threading.Thread(target=process.wait)
    waiting.start()
    try:
        until((cli.data / "simulator" / "simulator.json").is_file)
        found = cli("simulator", "status", "--json").document
        assert found["pid"] == process.pid and found["journal"]["attempts"] == 0
        second = cli("simulator", "--json")
        assert second.code == 64 and found["url"] in second.document["error"]["message"]
        assert cli("simulator", "stop", "--json").document == {"stopped": True}
        waiting.join(20)
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            waiting.join(20)


def test_roadmaps_are_listed_with_their_topics(tried: tuple[Cli, str]) -> None:
    cli, _ = tried
    found = cli("run", "roadmaps", "--list", "--json").document["roadmaps"]
    assert {"name": "data-engineer", "topics": 22} in found
