"""Articles from a shell: tables in, options that win, exit codes, retries, and how a job is shown.

Commands are called in this very process, for Dagster loads but once; one that is killed has its
own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.cli.main import main
from batch_pipeline_tests.cli.conftest import SCRIPT, Ended, until, write_topics
from batch_pipeline_tests.fetch.archive import Archive, saved_pages, shared_archive, whole
from batch_pipeline_tests.simulator.running import INSTANT, Running

COLUMNS = (
    "publisher", "target", "anchor", "llm_provider", "strategy", "country", "use_ahrefs",
    "enable_llm_profiling",
)  # fmt: skip
GEMINI = "gemini-3.1-flash-lite"
# Other providers' first tiers allow so few output tokens a minute that tests would wait for them.
QUICK = ("--rate-limit", "3000", "--parallel", "8")
BY = ("--by", "Ann", "--reason", "The client agrees.")


@dataclass
class Desk:
    """A shell with a data folder of its own, the saved pages, and a simulator.

    Attributes:
        data: the data folder.
        simulator: it is shared; calls are told apart by the key.
        archive: the web.
        jobs: the offline jobs, as dicts with all columns.
    """

    data: Path
    simulator: Running
    archive: Archive
    key: str
    jobs: list[dict[str, str]]
    seen: int = field(default=0)

    def __call__(self, *words: str) -> Ended:
        """Run a command to its end."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        return Ended(code, out.getvalue(), err.getvalue())

    def table(self, name: str, rows: list[dict[str, str]], columns: int = 8) -> str:
        """Write a table with so many of the columns; gives its path."""
        header = COLUMNS[:columns]
        lines = [",".join(header), *(",".join(row[name] for name in header) for row in rows)]
        path = self.data / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    def asked(self) -> Counter[str]:
        """Calls since the last look, by model."""
        records: list[dict[str, Any]] = []
        while page := self.simulator.journal(len(records)):
            records += page
        mine = [record for record in records if record["key_last4"] == self.key[-4:]]
        new, self.seen = mine[self.seen :], len(mine)
        return Counter(record["model"] for record in new)

    def fail(self, **kinds: str) -> None:
        """Let articles about these targets go wrong from now on, and no others."""
        faults = [{"kind": kind, "match": target} for kind, target in kinds.items()]
        self.simulator.configure(latency=INSTANT, faults=faults)

    def steps(self, batch: str, row: int) -> Counter[str]:
        """A row's attempts by step."""
        shown = self("show", f"{batch}:{row}", "--json")
        assert shown.code == 0, shown.err
        return Counter(attempt["step"] for attempt in shown.document["attempts"])

    def package(self, batch: str, row: int) -> dict[str, Any]:
        """A row's job package."""
        documents = self("show", f"{batch}:{row}", "--json").document["documents"]
        (found,) = (one for one in documents if one["step"] == "package")
        return dict(found["content"]["package"])


@pytest.fixture(scope="module")
def desk(
    one_simulator: Running, reference_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    data = tmp_path_factory.mktemp("articles")
    header, *lines = (reference_data / "articles" / "jobs_offline_36.csv").read_text().splitlines()
    jobs = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    key = f"sim-key-{os.urandom(8).hex()}"
    with shared_archive() as archive, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCH_PIPELINE_DATA", str(data))
        patch.setenv("BATCH_PIPELINE_SIMULATE", "1")
        patch.setenv("BATCH_PIPELINE_SIMULATOR_URL", one_simulator.url)
        patch.setenv("BATCH_PIPELINE_SIM_KEY", key)
        patch.setenv("BATCH_PIPELINE_FETCH_ARCHIVE", archive.url)
        patch.chdir(data)
        yield Desk(data, one_simulator, archive, key, jobs)
        one_simulator.configure(latency=INSTANT, faults=[])


def test_a_batch_from_its_table_to_the_last_retry(desk: Desk) -> None:
    plain, profiled, single = desk.jobs[0], desk.jobs[4], desk.jobs[3]
    forbidden = desk.jobs[12]
    table = desk.table("client.csv", [plain, profiled, single, forbidden])
    desk.fail(article_no_sources=profiled["target"])
    desk.archive.override(forbidden["target"], status=403)
    try:
        first = desk("run", "articles", "--input", table, "--batch", "client", *QUICK, "--json")
    finally:
        pages = saved_pages()
        desk.archive.pages[whole(forbidden["target"])] = pages[forbidden["target"]]
    assert first.code == 1, first.err
    assert "wins over" not in first.err, "nothing was overridden"
    assert first.document["outcomes"] == {"succeeded": 2, "blocked": 1, "failed": 1, "skipped": 0}
    writing = Counter({"outline": 1, "draft": 1, "polish": 1})
    assert desk.steps("client", 1) == writing
    profiles = Counter({"profile_publisher": 1, "profile_target": 1, "classify_anchor": 1})
    assert desk.steps("client", 2) == profiles + writing
    assert desk.steps("client", 3) == {"single_shot": 1}
    assert desk.steps("client", 4) == {}
    assert desk.asked() == {GEMINI: 3 + 6 + 1}

    rows = desk("failed", "client", "--json").document["rows"]
    assert [(row["row"], row["outcome"], row["kind"]) for row in rows] == [
        (2, "blocked", "qc"), (4, "failed", "preflight"),
    ]  # fmt: skip
    assert "review show client 2" in rows[0]["error"] and "403" in rows[1]["error"]
    assert all(row["next_step"] for row in rows)
    assert desk("status", "client", "--json").document["outcomes"]["blocked"] == 1

    # A retry asks failed jobs: the target can be read by now.
    second = desk("retry", "client", "--json")
    assert second.code == 2, second.err
    assert second.document["outcomes"] == {"succeeded": 3, "blocked": 1, "failed": 0, "skipped": 0}
    assert desk.asked() == {GEMINI: 3} and second.document["requests"] == 3

    # Blocked ones only when told to, and then they are really written anew.
    desk.fail()
    cost = desk("status", "client", "--json").document["cost_usd"]
    third = desk("retry", "client", "--include-blocked", "--json")
    assert third.code == 0, third.err
    assert desk.asked() == {GEMINI: 6}
    assert third.document["cost_usd"] > 0
    after = desk("status", "client", "--json").document["cost_usd"]
    assert after == pytest.approx(cost + third.document["cost_usd"])
    assert desk("retry", "client", "--json").document["requests"] == 0

    # What is cleared from the cache is written again, from the package on.
    cleared = desk("cache", "clear", "--workload", "articles", "--yes", "--json").document
    assert cleared["rows_open_again"] == 4
    assert desk("status", "client", "--json").document["pending"] == 4
    assert desk("retry", "client", "--json").code == 0
    assert desk.asked() == {GEMINI: 3 + 3 + 1 + 3}
    # Twice before, and now: all that was paid is told of the row.
    assert desk.steps("client", 2)["outline"] == 3


def test_options_win_over_columns_and_a_bad_row_holds_nobody_up(desk: Desk) -> None:
    bad = {**desk.jobs[1], "publisher": "not a domain"}
    rows = [desk.jobs[6], bad, {**desk.jobs[9], "country": "Sweden"}, desk.jobs[0]]
    table = desk.table("six.csv", rows, columns=6)
    options = (
        "--strategy", "single_shot", "--provider", "openai", "--no-ahrefs", "--option",
        "country=no", "--option", "enable_llm_profiling=false",
    )  # fmt: skip
    ended = desk("run", "articles", "--input", table, "--batch", "six", *QUICK, *options, "--json")
    assert ended.code == 1, ended.err
    assert ended.document["outcomes"] == {"succeeded": 2, "blocked": 0, "failed": 2, "skipped": 0}
    for said in (
        "All rows take the route openai: it wins over their own.",
        "strategy = single_shot wins over what the rows say of it.",
        "country = no wins over what the rows say of it.",
        "use_ahrefs = false wins over what the rows say of it.",
    ):
        assert said in ended.err
    assert set(desk.asked()) == {"gpt-6-luna"}
    errors = {row["row"]: row["error"] for row in desk("failed", "six", "--json").document["rows"]}
    assert "not a domain" in errors[2] and "Did you mean 'se'?" in errors[3]
    meta = desk.package("six", 4)["job_meta"]
    assert (meta["mode"], meta["serp_source"]) == ("single_shot", "mock")
    assert desk.steps("six", 4) == {"single_shot": 1}

    # A retry goes on with the same options, and says so; one more does not undo the others.
    again = desk("retry", "six", "--option", "strategy=", "--json")
    assert again.code == 1 and "country = no wins" in again.err
    assert "strategy =" not in again.err and "route openai" in again.err


def test_a_table_of_four_columns_and_a_file_of_jobs_are_read_with_the_defaults(desk: Desk) -> None:
    table = desk.table("four.csv", [desk.jobs[3]], columns=4)
    ended = desk("run", "articles", "--input", table, "--batch", "four", *QUICK, "--json")
    assert ended.code == 0, ended.err
    assert desk.package("four", 1)["job_meta"]["mode"] == "multi_stage"
    assert desk.steps("four", 1)["search"] >= 1, "with a key, results are real"
    desk.asked()
    job = {**desk.jobs[3], "use_ahrefs": False, "enable_llm_profiling": False}
    path = desk.data / "jobs.json"
    path.write_text(json.dumps({"jobs": [job]}), encoding="utf-8")
    known = desk("run", "articles", "--input", str(path), "--batch", "file", *QUICK, "--json")
    assert known.code == 0 and known.document["outcomes"]["succeeded"] == 1


def test_a_job_is_shown_so_that_a_person_can_read_it(desk: Desk) -> None:
    job = {**desk.jobs[8], "enable_llm_profiling": "false"}
    risky_job = {**desk.jobs[15], "anchor": "best"}
    table = desk.table("shown.csv", [job, risky_job])
    ended = desk("run", "articles", "--input", table, "--batch", "shown", *QUICK, "--json")
    assert ended.code == 2, ended.err
    good, risky = desk("show", "shown:1"), desk("show", "shown:2")
    title = desk.package("shown", 1)["target_profile"]["title"]
    for said in (
        "Row 1 of batch shown", "job_", "outline", "draft", "polish", "Documents", "preflight",
        "package", "went on", "Made of", f"target: {title}",
        "strategy: multi_stage", "Issues", "Written", f"]({job['target']})", "_article.md",
    ):  # fmt: skip
        assert said in good.out, said
    for said in ("None: no call asked about this row.", "ended there: blocked", "anchor: "):
        assert said in risky.out, said
    assert "Written" not in risky.out
    document = desk("show", "shown:1", "--json").document
    assert [one["step"] for one in document["documents"]] == ["preflight", "package", "qc"]
    assert all(one["bytes"] > 100 and one["run_id"] for one in document["documents"])
    assert document["result"]["article"]["markdown"].startswith("# ")
    assert document["name"].startswith("job_") and len(document["files"]) == 5
    assert {one["lane"] for one in document["attempts"]} == {"realtime"}

    # The whole way of a person's decision, in commands.
    (waiting,) = desk("review", "list", "shown", "--json").document["rows"]
    assert waiting["needs_writing"] and waiting["signoff_required"]
    refused = desk("review", "override", "shown", "2", *BY)
    assert refused.code == 64 and "--sign-off" in refused.err
    desk.asked()
    done = desk("review", "override", "shown", "2", *BY, "--sign-off", "--run", "--json")
    assert done.code == 0, done.err
    assert done.document["outcomes"]["succeeded"] == 2
    assert desk.asked() == {GEMINI: 1}, "one article, and nothing else"
    after = desk("review", "show", "shown", "2", "--article")
    assert f"[best]({risky_job['target']})" in after.out and "override by Ann" in after.out


def test_a_killed_retry_of_blocked_jobs_goes_on_where_it_was(desk: Desk) -> None:
    job = desk.jobs[24]
    table = desk.table("killed.csv", [job])
    desk.fail(article_no_link=job["target"])
    assert desk("run", "articles", "--input", table, "--batch", "killed", *QUICK).code == 2
    desk.simulator.configure(
        latency={"base_s": 1.0, "per_output_token_s": 0, "jitter_s": 0}, faults=[]
    )
    process = subprocess.Popen(
        [str(SCRIPT), "retry", "killed", "--include-blocked"],
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: desk.steps("killed", 1)["draft"] == 2 or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    desk.fail()
    assert desk("retry", "killed", "--include-blocked", "--json").code == 0
    steps = desk.steps("killed", 1)
    assert steps["outline"] == 2, "the outline of the killed run is not paid again"
    assert steps["draft"] in (2, 3) and steps["polish"] == 2


def test_a_few_jobs_are_tried_side_by_side(desk: Desk) -> None:
    desk.fail()
    table = desk.table("tried.csv", [desk.jobs[30]])
    tried = desk("try", "articles", "--input", table, "--rows", "1", "--json")
    assert tried.code == 0, tried.err
    (variant,) = tried.document["variants"]
    (row,) = variant["rows"]
    assert row["output"]["report"]["status"] in ("PASS", "WARNING")
    assert row["cost_usd"] == pytest.approx(variant["paid_now_usd"]) and row["cost_usd"] > 0
    shown = desk("try", "articles", "--input", table, "--rows", "1")
    assert "qc_status: " in shown.out and "title: " in shown.out and "1/1" in shown.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("articles --input JOBS --option nope=1", "nope: there is no such option"),
        ("articles --input JOBS --option strategy", "no NAME=VALUE"),
        ("articles --input JOBS --option country=xx", "'xx' is no ISO 3166 country code"),
        ("articles --input JOBS --strategy quick", "--strategy"),
        ("articles --input JOBS --provider nobody", "There is no provider 'nobody'"),
        ("articles --input JOBS --model nonsense", "does not say whom to ask"),
        ("articles --input JOBS --pack 5", "written one by one"),
        ("articles --input TOPICS", "lacks what every job needs"),
        ("roadmaps --input TOPICS --strategy single_shot", "has no options of its own"),
        ("roadmaps --input TOPICS --no-ahrefs", "has no options of its own"),
        ("news --input TOPICS --option country=se", "has no options of its own"),
    ],
)
def test_what_cannot_be_used_ends_with_64_before_anything_is_read(
    desk: Desk, words: str, said: str
) -> None:
    jobs = desk.table("jobs.csv", [desk.jobs[0]])
    topics = write_topics(desk.data / "topics.csv", ["one"])
    given = words.replace("JOBS", jobs).replace("TOPICS", str(topics)).split()
    ended = desk("run", *given, "--batch", "refused", "--json")
    assert ended.code == 64, ended.err
    assert said in ended.document["error"]["message"]
    assert ended.document["error"]["next_step"]
    assert "wins over" not in ended.err and "Traceback" not in ended.err
    listed = desk("status", "--json").document["batches"]
    assert "refused" not in {line["batch"] for line in listed}
