"""`completion`: where topics stand, from a first run over resets to the last; what is refused."""

from __future__ import annotations

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from batch_pipeline_tests.cli.conftest import ROOT, Shell
from batch_pipeline_tests.simulator.running import INSTANT

SAMPLE = str(ROOT / "data" / "samples" / "flashcards" / "topics.jsonl")
FIREWALL = "001_cybersecurity/002_networks/002_filtering/devices/rules/stateful-firewall/topic.json"
FEW = ("--mode", "web", "--num-flashcards", "4", "--category", "001_cybersecurity")


def test_without_a_topic_there_is_nothing_to_do(shell: Shell, tmp_path: Path) -> None:
    assert shell("completion", "status", "--json").document["topics"] == 0
    assert "No topic has failed" in shell("completion", "failed").out
    assert "There is no topic" in shell("completion", "clear").err
    unknown = shell("completion", "reset", "--topic", "a/topic.json", "--yes", "--json")
    assert unknown.code == 64
    assert "completion export" in unknown.document["error"]["next_step"]
    wrong = shell("completion", "export", "--output", str(tmp_path / "x.xlsx"))
    assert wrong.code == 64 and ".csv" in wrong.err


def test_topics_from_the_first_run_to_a_reset(shell: Shell, tmp_path: Path) -> None:
    too_large = {"kind": "status", "status": 413, "match": "Stateful Firewall"}
    shell.simulator.configure(latency=INSTANT, faults=[too_large])
    pace = ("--concurrent", "8", "--batch-size", "2", "--batch-delay", "0.1", "--resume")
    first = shell("run", "flashcards", "--input", SAMPLE, "--batch", "cyber", *FEW, *pace, "--json")
    assert first.code == 1 and "outcomes" in first.document, first.err + first.out
    assert first.document["outcomes"] == {"succeeded": 4, "blocked": 0, "failed": 1, "skipped": 0}
    assert "every run resumes" in first.err and "wins over" not in first.err
    shell.asked()

    found = shell("completion", "status", "--json").document
    assert {name: found[name] for name in ("topics", "completed", "failed", "remaining")} == {
        "topics": 5, "completed": 4, "failed": 1, "remaining": 0,
    }  # fmt: skip
    assert found["flashcards"] == 16
    assert found["cost_usd"] == pytest.approx(first.document["cost_usd"])
    assert found["started_at"] <= found["updated_at"]
    shown = shell("completion", "status")
    assert "4 (80.0 %)" in shown.out and "completion failed" in shown.out

    [bad] = shell("completion", "failed", "--json").document["topics"]
    assert (bad["topic"], bad["status"], bad["batch"]) == (FIREWALL, "failed", "cyber")
    assert bad["error"] and "Shorten or correct" in bad["next_step"]
    assert "stateful-firewall" in shell("completion", "failed").out

    # What failed is asked again, and nothing else; files that were deleted are written anew.
    shell.simulator.configure(latency=INSTANT, faults=[])
    folder = shell.data / "outputs" / "simulated" / "flashcards" / "cyber"
    stray = folder / "stray.txt"
    stray.write_text("from before", encoding="utf-8")
    refused = shell("run", "flashcards", "--batch", "cyber", *FEW[:4], "--cleanup", "--json")
    assert refused.code == 64 and stray.exists() and shell.asked() == []
    assert str(folder) in refused.document["error"]["message"]
    other = shell.data / "other.jsonl"
    other.write_text('{"topic_title": "Another topic"}\n', encoding="utf-8")
    mistaken = shell(
        "run", "flashcards", "--batch", "cyber", "--input", str(other), "--cleanup", "--yes"
    )
    assert mistaken.code == 64 and "exists with other content" in mistaken.err
    assert stray.exists(), "a table that is not the batch's deletes none of its files"
    words = ("run", "flashcards", "--batch", "cyber", *FEW[:4], "--cleanup", "--yes", "--json")
    second = shell(*words)
    assert second.code == 0, second.err
    assert not stray.exists() and (folder / "flashcards.csv").is_file()
    assert "files" in second.err and second.document["cache_hits"] >= 0
    assert {one["step"] for one in _attempts(shell, 5)} >= {"cards"}
    asked = len(shell.asked())
    assert asked == second.document["requests"] < 4

    # A reset topic alone is made anew.
    path = f"/somewhere/else/{FIREWALL}"
    unsure = shell("completion", "reset", "--topic", path)
    assert unsure.code == 64 and "cost" in unsure.err and "--yes" in unsure.err
    reset = shell("completion", "reset", "--topic", path, "--yes", "--json").document
    assert [one["was"] for one in reset["reset"]] == ["completed"]
    assert (reset["batches"], reset["completed"]) == (["cyber"], 1)
    again = shell("completion", "reset", "--topic", path, "--yes")
    assert "Nothing had to be reset" in again.err
    assert shell("completion", "status", "--json").document["remaining"] == 1
    third = shell("retry", "cyber", "--json")
    assert third.code == 0, third.err
    assert 0 < third.document["requests"] == len(shell.asked()) < 4

    # The same counts in the files.
    for name in ("all.db", "all.csv"):
        done = shell("completion", "export", "--output", str(tmp_path / name), "--json")
        assert done.document["topics"] == 5
    with closing(sqlite3.connect(tmp_path / "all.db")) as database:
        counts = database.execute("select status, count(*) from topic_completions group by 1")
        assert dict(counts.fetchall()) == {"completed": 5}
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as lines:
        assert {row["status"] for row in csv.DictReader(lines)} == {"completed"}
    twice = shell("completion", "export", "--output", str(tmp_path / "all.csv"))
    assert twice.code == 64 and "Write it anew?" in twice.err

    cost = shell("status", "cyber", "--json").document["cost_usd"]
    cleared = shell("completion", "clear", "--yes", "--json").document
    assert (cleared["cleared"], cleared["rows_open_again"]) == (True, 5)
    assert shell("status", "cyber", "--json").document["pending"] == 5
    assert shell("status", "cyber", "--json").document["cost_usd"] == cost


def test_what_to_do_goes_by_why_a_topic_is_not_completed(shell: Shell) -> None:
    faults = [
        {"kind": "votes_reject", "match": "Key Escrow"},
        {"kind": "status", "status": 413, "match": "Key Rotation"},
    ]
    shell.simulator.configure(latency=INSTANT, faults=faults)
    before = shell("completion", "status", "--json").document
    titles = ("Key Escrow", "Key Rotation", "Key Stretching", "", "Key Escrow")
    rows = [{"topic_title": title, "category_title": "Cryptography"} for title in titles]
    table = shell.data / "keys.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    unified = ("--mode", "unified", "--num-flashcards", "2")
    ran = shell("run", "flashcards", "--input", str(table), "--batch", "keys", *unified, "--json")
    assert ran.document["outcomes"] == {"succeeded": 1, "blocked": 1, "failed": 3, "skipped": 0}

    # Rows that could not be read are no topics; those that are have the advice of `failed`.
    topics = shell("completion", "failed", "--json").document["topics"]
    found = {one["kind"]: one for one in topics if one["batch"] == "keys"}
    told = {one["kind"]: one for one in shell("failed", "keys", "--json").document["rows"]}
    assert set(found) == set(told) - {"input"} == {"consensus", "item_permanent"}
    steps = {kind: one["next_step"] for kind, one in found.items()}
    assert steps == {kind: told[kind]["next_step"] for kind in steps}
    assert "retry keys --include-blocked" in steps["consensus"]
    assert "Shorten or correct them in the input" in steps["item_permanent"]
    shown = " ".join(shell("completion", "failed").out.split())
    for kind, count in (("consensus", "1 blocked"), ("item_permanent", "1 failed")):
        assert f"{count} in keys ({kind}): {steps[kind]}" in shown
    after = shell("completion", "status", "--json").document
    more = {name: after[name] - before[name] for name in ("topics", "completed", "failed")}
    assert more == {"topics": 3, "completed": 1, "failed": 1}


def _attempts(shell: Shell, row: int) -> list[dict[str, str]]:
    found = shell("show", f"cyber:{row}", "--json").document["attempts"]
    return [dict(one) for one in found]
