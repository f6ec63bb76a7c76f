"""A budget on the command line: the words, the exit code, going on, and lost calls settled."""

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

    again = cli("retry", first.document["batch"], "--json")
    assert again.code == 3, "the budget stays with the batch"
    assert again.document["outcomes"]["succeeded"] == done

    raised = cli("retry", first.document["batch"], "--budget", "5", "--json")
    assert raised.code == 0, raised.err
    assert raised.document["outcomes"]["succeeded"] == 60


def test_lost_calls_are_listed_and_settled_from_the_providers_records(
    cli: Cli, tmp_path: Path
) -> None:
    cli.simulator.configure(faults=[{"kind": "cut", "count": 2}, {"kind": "hang", "count": 1}])
    table = write_topics(cli.data / "rows.csv", topics(40, "lost"))
    ran = cli("run", "roadmaps", "--input", str(table), "--pack", "10", "--json")
    assert ran.code == 0, ran.err
    listed = cli("reconcile", "--json").document["lost"]
    assert len(listed) >= 2 and all(entry["worst_usd"] > 0 for entry in listed)
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
