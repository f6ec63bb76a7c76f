"""Budgets and daily limits on the command line: words, exit code, going on, lost calls settled."""

from __future__ import annotations

import json
from pathlib import Path

from batch_pipeline_tests.cli.conftest import Cli, topics, write_topics

_DEAR = ("--route", "anthropic/claude-opus-5-5", "--pack", "1", "--rate-limit", "60000")


def test_a_budget_ends_the_run_with_code_3_and_a_raised_one_finishes_it(cli: Cli) -> None:
    table = write_topics(cli.data / "rows.csv", topics(60, "money"))
    run = ("run", "roadmaps", "--input", str(table), *_DEAR)
    first = cli(*run, "--budget", "0.10", "--json")
    assert first.code == 3, first.err
    done = first.document["outcomes"]["succeeded"]
    assert first.document["status"] == "budget"
    assert f"budget reached: {done} of 60 rows done" in first.document["message"]
    paid = sum(entry["price_usd"] for entry in cli.journal())
    assert 0.08 <= paid <= 0.10

    again = cli(*run)
    assert again.code == 3, "the budget stays with the batch"
    words = " ".join((again.out + again.err).split())
    assert f"Budget reached: {done} of 60 rows done" in words and "of 0.10 USD" in words
    assert "raise the budget and run again" in words

    raised = cli("retry", first.document["batch"], "--budget", "5", "--json")
    assert raised.code == 0, raised.err
    assert raised.document["outcomes"]["succeeded"] == 60


def test_lost_calls_are_listed_and_settled_from_the_providers_records(
    cli: Cli, tmp_path: Path
) -> None:
    cli.simulator.configure(faults=[{"kind": "cut", "count": 2}])
    table = write_topics(cli.data / "rows.csv", topics(40, "lost"))
    run = ("run", "roadmaps", "--input", str(table), "--pack", "10", "--rate-limit", "6000")
    try:
        ran = cli(*run, "--json")
    finally:
        cli.simulator.configure(faults=[])
    assert ran.code == 0, ran.err
    listed = cli("reconcile", "--json").document["lost"]
    assert len(listed) == 2 and all(entry["worst_usd"] > 0 for entry in listed)
    assert "x-client-request-id" in cli("reconcile").out

    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(entry) + "\n" for entry in cli.journal()))
    settled = cli("reconcile", "--from", str(records), "--yes", "--json").document
    assert settled["reconciled"] == len(listed) and settled["left"] == 0
    status = cli("reconcile").out
    assert "No call is open" in status


def test_what_reconcile_is_told_must_make_sense(cli: Cli, tmp_path: Path) -> None:
    assert cli("reconcile", "--cost", "1", "--not-billed").code == 64
    assert cli("reconcile", "--attempt", "nobody", "--not-billed").code == 64
    bad = tmp_path / "bad.csv"
    bad.write_text("attempt_id,cost_usd\none,lots\n")
    refused = cli("reconcile", "--from", str(bad))
    assert refused.code == 64 and "'lots'" in refused.err


def test_the_requests_of_a_day_end_the_run_with_code_3_and_the_rest_stays_pending(
    cli: Cli,
) -> None:
    model = "google/gemini-3.1-flash-lite"
    assert cli("limits", "set", model, "--requests-per-day", "2").code == 0
    table = write_topics(cli.data / "rows.csv", topics(40, "daily"))
    table_options = ("--input", str(table), "--pack", "10", "--rate-limit", "6000")
    run = ("run", "roadmaps", *table_options, "--workers", "1")
    ended = cli(*run, "--json")
    assert ended.code == 3, ended.err
    assert ended.document["status"] == "daily_limit"
    assert f"The 2 requests a day to {model} are used up" in ended.document["message"]
    assert "run again after" in ended.document["message"]
    assert (ended.document["outcomes"]["succeeded"], ended.document["pending"]) == (20, 20)
    assert cli("limits", "set", model, "--requests-per-day", "20").code == 0
    assert cli(*run, "--json").document["outcomes"]["succeeded"] == 40
