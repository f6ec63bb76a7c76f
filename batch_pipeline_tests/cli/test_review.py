"""`review`: the queue, one row of it, and decisions, as a person at a shell meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.cli.main import main
from batch_pipeline.ledger.batches import Batch
from batch_pipeline.ledger.documents import documents_of
from batch_pipeline.ledger.store import Ledger
from batch_pipeline.ledger.tables import Outcome
from batch_pipeline_tests.cli.conftest import Cli, Ended, write_topics
from batch_pipeline_tests.simulated import Bench, Simulator
from batch_pipeline_tests.simulator.running import INSTANT
from batch_pipeline_tests.workloads.essays import WORKLOAD, blocked_batch

BY = ("--by", "Ann", "--reason", "It is fine.")


class Inside:
    """The program's commands, called in this very process."""

    def __init__(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data = data
        self._capsys = capsys

    def __call__(self, *words: str) -> Ended:
        """Run a command to its end."""
        code = main(words)
        out, err = self._capsys.readouterr()
        return Ended(code, out, err)


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Inside:
    """A command line with a fresh data folder."""
    monkeypatch.setenv("BATCH_PIPELINE_DATA", str(tmp_path))
    monkeypatch.setenv("BATCH_PIPELINE_SIMULATE", "1")
    return Inside(tmp_path, capsys)


def essays(cli: Inside, *topics: str, **more: Any) -> Batch:
    with Ledger(f"sqlite:///{cli.data / 'ledger.db'}", "simulated") as ledger:
        return blocked_batch(ledger, topics, **more)


def outcomes(cli: Inside, batch: str = "essays") -> dict[str, int]:
    document = cli("status", batch, "--json").document
    counts = {**document["outcomes"], "pending": document["pending"]}
    return {name: count for name, count in counts.items() if count}


def test_the_queue_lists_what_waits_and_how_to_look_at_it(here: Inside) -> None:
    essays(here, "cats", "money [bold]")
    listed = here("review", "list")
    assert listed.code == 0, listed.err
    assert "job_essays_0" in listed.out and "An essay about money [bold]" in listed.out
    assert "HIGH length: It is too short." in listed.out and "needed" in listed.out
    assert "2 rows wait since" in listed.out
    assert "batch-pipeline review show essays 1" in listed.out
    assert "SIMULATED" in listed.err

    document = here("review", "list", "essays", "--workload", WORKLOAD, "--json").document
    assert document["waiting"] == 2 and document["simulated"] is True
    second = document["rows"][1]
    assert (second["row"], second["name"], second["signoff_required"]) == (2, "job_essays_1", True)
    assert second["issues"][0] == {
        "severity": "HIGH", "category": "length", "message": "It is too short.",
        "suggestion": "Write more.", "blocks": True,
    }  # fmt: skip
    assert here("review", "list", "--workload", "news", "--json").document["waiting"] == 0
    assert "No row waits" in here("review", "list", "--live").out


def test_a_row_is_shown_with_its_issues_files_article_and_decisions(here: Inside) -> None:
    essays(here, "cats")
    folder = here.data / "outputs" / "simulated" / WORKLOAD / "essays"
    folder.mkdir(parents=True)
    (folder / "job_essays_0.md").write_text("All about it.")
    shown = here("review", "show", "essays", "job_essays_0")
    assert shown.code == 0, shown.err
    for said in (
        "Row 1 of batch essays · item essays-0 · job_essays_0",
        "An essay about cats",
        "It is too short.",
        "Write more.",
        "topic: cats",
        "--article prints it",
        "None.",
        str(folder / "job_essays_0.md"),
        "review override|regenerate|skip essays 1",
    ):
        assert said in shown.out, said
    assert "# cats" not in shown.out
    assert "# cats" in here("review", "show", "essays", "1", "--article").out
    assert here("review", "skip", "essays", "1", *BY).code == 0
    after = here("review", "show", "essays", "1", "--json").document
    assert after["outcome"] == "skipped" and after["article"].startswith("# cats")
    (decision,) = after["decisions"]
    assert (decision["decision"], decision["reviewer"]) == ("skip", "Ann")
    assert "1. skip by Ann at" in here("review", "show", "essays", "1").out


def test_several_rows_are_decided_at_once(here: Inside) -> None:
    essays(here, "cats", "dogs", "cows", "money")
    done = here("review", "override", "essays", "1", "essays-1", "job_essays_2", *BY, "--json")
    assert done.code == 0, done.err
    assert [one["outcome"] for one in done.document["rows"]] == ["succeeded"] * 3
    assert "batch-pipeline retry essays" in done.document["next_step"]
    assert outcomes(here) == {"succeeded": 3, "blocked": 1}
    again = here("review", "skip", "essays", "4", "2", *BY, "--json")
    assert again.code == 64
    assert "Row 2 (essays-1) does not wait for a decision" in again.document["error"]["message"]
    assert "override by Ann" in again.document["error"]["message"]
    assert outcomes(here)["blocked"] == 1


def test_a_sign_off_is_asked_for_and_only_signers_give_it(here: Inside) -> None:
    essays(here, "money")
    refused = here("review", "override", "essays", "1", *BY)
    assert refused.code == 64 and "needs a sign-off: It is about money." in refused.err
    assert "--sign-off" in refused.err and "Ann, Bo Ek" in refused.err
    other = here("review", "override", "essays", "1", "--by", "Cy", "--reason", "x", "--sign-off")
    assert other.code == 64 and "Cy may not sign off" in other.err
    signed = here("review", "override", "essays", "1", *BY, "--sign-off")
    assert signed.code == 0 and "signed off: It is fine." in signed.out


def test_an_edited_package_is_checked_and_kept(here: Inside) -> None:
    batch = essays(here, "cats")
    package = here.data / "edited.json"
    words = ("review", "regenerate", "essays", "1", *BY, "--package", str(package), "--json")
    for content, said in (
        (None, "cannot be read"), ("{", "is no JSON"), ("[]", "is no JSON object"),
        ('{"job": "job_essays_0", "words": "many"}', "The plan's words"),
        ('{"job": "job_essays_9", "words": 1}', "The plan is of job job_essays_9"),
    ):  # fmt: skip
        if content is not None:
            package.write_text(content)
        done = here(*words)
        assert done.code == 64 and said in done.document["error"]["message"], done.out
    package.write_text(json.dumps({"job": "job_essays_0", "words": 900}))
    done = here(*words)
    assert done.code == 0 and done.document["rows"][0]["outcome"] == "pending"
    with Ledger(f"sqlite:///{here.data / 'ledger.db'}", "simulated") as ledger:
        plan = documents_of(ledger, batch.batch_id, 0)["plan"]
    assert (plan.content["words"], plan.editor) == (900, "Ann")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("review list nowhere", "There is no batch"),
        ("review show essays 7", "has no row '7'"),
        ("review skip essays 1 --reason x", "--by"),
        ("review skip essays 1 --by Ann", "--reason"),
        ("review skip essays --by Ann --reason x", "ROW..."),
        ("review override failed 1 --by Ann --reason x", "it is failed"),
    ],
)
def test_what_cannot_be_done_ends_with_64_and_says_why(here: Inside, words: str, said: str) -> None:
    essays(here, "cats")
    essays(here, "cats", batch_id="failed", outcome=Outcome.FAILED)
    done = here(*words.split(), "--json")
    assert done.code == 64, done.err
    assert said.lower() in done.document["error"]["message"].lower()
    assert done.document["error"]["next_step"] and "Traceback" not in done.err


def test_a_declined_row_is_made_anew_by_a_run_that_starts_right_away(cli: Cli) -> None:
    bench = Bench(cli.data, Simulator(cli.simulator.url), pack=1)
    table = write_topics(cli.data / "topics.csv", ["fine", f"POISON {cli.key}"])
    fault = {"kind": "refusal", "match": f"POISON {cli.key}"}
    cli.simulator.configure(latency=INSTANT, faults=[fault])
    try:
        bench.run(bench.ingest(table, "night"))
    finally:
        cli.simulator.configure(latency=INSTANT, faults=[])
    (waiting,) = cli("review", "list", "--json").document["rows"]
    assert (waiting["row"], waiting["issues"][0]["category"]) == (2, "refused")

    done = cli("review", "regenerate", "night", "2", *BY, "--run", "--json")
    assert done.code == 0, done.err
    assert done.document["outcomes"]["succeeded"] == 2 and done.document["requests"] == 1
    assert "is pending now: regenerate by Ann" in done.err
    assert Path(done.document["report_json"]).is_file()
