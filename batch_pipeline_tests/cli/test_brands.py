"""Brands from a shell: `--limit` counts what needs work, and the next run takes up the rest."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from batch_pipeline_tests.cli.conftest import ROOT, Shell
from batch_pipeline_tests.sheets import HEADER, Book
from batch_pipeline_tests.simulated import Simulator
from batch_pipeline_tests.simulator.running import INSTANT

SAMPLE = ROOT / "data" / "samples" / "brands" / "brands.csv"
QUICK = ("--rate-limit", "6000", "--search-rate-limit", "6000", "--workers", "8")


def test_a_limited_run_is_taken_up_and_a_known_brand_needs_no_work(shell: Shell) -> None:
    shell.simulator.configure(latency=INSTANT, faults=[])
    header, *lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    table = shell.data / "brands.csv"
    table.write_text("\n".join([header, *lines[:4]]) + "\n", encoding="utf-8")
    words = ("run", "brands", "--input", str(table), "--batch", "first", *QUICK, "--json")

    limited = shell(*words, "--limit", "2", "--chunk-size", "2")
    assert limited.code == 0, limited.err
    assert (limited.document["outcomes"]["succeeded"], limited.document["pending"]) == (2, 2)
    shell.asked()
    resumed = shell(*words, "--resume")
    assert resumed.code == 0, resumed.err
    assert (resumed.document["outcomes"]["succeeded"], resumed.document["pending"]) == (4, 0)
    assert shell(*words).document["attempts"] == 0, "nothing is left to ask"
    folder = shell.data / "outputs" / "simulated" / "brands" / "first"
    assert len(list(folder.rglob("6_executive_summary.md"))) == 4
    shell.asked()

    # Another batch of the same brands and two more: only those are new, and the limit counts them.
    more = shell.data / "more.csv"
    more.write_text("\n".join([header, *lines[:6]]) + "\n", encoding="utf-8")
    words = ("run", "brands", "--input", str(more), "--batch", "second", *QUICK, "--json")
    later = shell(*words, "--limit", "1")
    assert later.code == 0, later.err
    counts = later.document["outcomes"]
    assert (counts["succeeded"], counts["skipped"], later.document["pending"]) == (1, 4, 1)
    asked = Counter(one["provider"] for one in shell.asked())
    assert asked == {"openrouter": 4, "tavily": 3}, "one brand, and nothing else"
    status = shell("status", "second", "--json").document
    assert status["cost_usd"] == pytest.approx(later.document["cost_usd"])
    known = (
        "Registry at ingest: 4 brands tracked (4 succeeded, 0 failed); 2 to do: 2 new; 4 unchanged."
    )
    assert later.document["notes"] == status["notes"] == [known]
    assert known not in later.document["warnings"] and f"\n{known}\n" in f"\n{later.err}"
    assert known in shell("status", "second").out
    report = json.loads((folder.parent / "second" / "batch_report.json").read_bytes())
    assert known in report["notes"] and known not in report["warnings"]


def test_a_sheet_is_written_back_unless_that_is_not_wanted(shell: Shell) -> None:
    book = Book(Simulator(shell.simulator.url), name="cli-brands")
    book.configure(faults=[])
    book.load(HEADER, ["Halden", "https://halden.example/", "", "", ""])
    words = ("run", "brands", "--input", "sheets:cli-brands/INPUT", "--batch", "sheet", *QUICK)
    ended = shell(*words, "--no-write-back", "--json")
    assert ended.code == 0, ended.err
    assert ended.document["outcomes"]["succeeded"] == 1
    assert book.rows()[1][3:] in ([], ["", ""]), "the sheet is as it was"
    again = shell("retry", "sheet", "--write-back", "--json")
    assert (again.code, again.document["attempts"]) == (0, 0), again.err
    assert book.rows()[1][3] == "Completed"
    refused = shell("run", "brands", "--input", "sheets:cli-brands/NOPE", "--batch", "no", "--json")
    assert refused.code == 64 and "NOPE" in refused.document["error"]["message"], refused.err
    assert "'INPUT'" in refused.document["error"]["next_step"]
