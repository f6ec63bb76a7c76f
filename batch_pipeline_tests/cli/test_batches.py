"""`batches`: a job from its submission to its results, by every name that it goes by."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_pipeline.cli.batches_show import icon, say
from batch_pipeline.cli.main import main
from batch_pipeline.cli.output import Output
from batch_pipeline_tests.cli.conftest import Cli, Ended
from batch_pipeline_tests.cli.test_reads import heavy_imports

NAME = "news_batch_001"
_SLOW = {"duration_s": 600.0, "per_line_s": 0.0, "duration_jitter": 0.0}


def articles(count: int, word: str) -> list[dict[str, str]]:
    """Articles of their own, the last one without a text."""
    found = [
        {
            "id": f"{word}-{number}",
            "title": f"{word.title()} story {number}",
            "contents": f"The bank of {word} raised its rate by {number} points on Monday. "
            "Its shares fell in the afternoon.",
        }
        for number in range(1, count)
    ]
    return [*found, {"id": f"{word}-{count}", "title": "Nothing", "contents": ""}]


def write_articles(path: Path, items: list[dict[str, str]]) -> Path:
    """A JSON file of articles."""
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


Look = Callable[..., Ended]


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Look:
    """Runs a command that starts no Dagster run in this very process, which is quicker."""

    def run(cli: Cli, *words: str) -> Ended:
        for name, value in cli.environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = main(words)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


@pytest.fixture(scope="module")
def submitted(make_cli: Callable[[], Cli]) -> Iterator[tuple[Cli, Ended]]:
    """A batch whose provider job takes ten minutes of the simulator's clock."""
    cli = make_cli()
    cli.simulator.configure(batches=[{"key_last4": cli.key[-4:], **_SLOW}])
    table = write_articles(cli.data / "contents.json", articles(5, "lisbon"))
    ended = cli("batches", "submit-contents", str(table), "--name", NAME)
    yield cli, ended
    cli.simulator.configure(batches=[])


def test_a_job_goes_from_submission_to_results(submitted: tuple[Cli, Ended], look: Look) -> None:
    cli, ended = submitted
    assert ended.code == 0, ended.err
    assert "Submitting batch with 5 pre-crawled items" in ended.out
    assert "Batch submitted successfully!" in ended.out
    assert f"  Job ID: {NAME}\n  Batch name: {NAME}\n" in ended.out
    assert f"batch-pipeline batches status {NAME}" in ended.out

    running = look(cli, "batches", "status", NAME, "--json").document
    assert running["state"] == "JOB_STATE_RUNNING"
    assert (running["completed_count"], running["total_count"]) == (1, 5)
    assert running["under_way"] == 4 and running["outcomes"]["skipped"] == 1
    (job,) = running["provider_jobs"]
    assert job["job_id"] == f"{NAME}.j0001" and job["remote_name"]

    early = look(cli, "batches", "results", NAME, NAME)
    assert early.code == 1 and "is not done: JOB_STATE_RUNNING, 1 of 5 rows" in early.err
    cli.simulator.advance(700)
    watched = look(cli, "batches", "status", f"batch_jobs/{NAME}", "--watch", "--every", "0.1")
    assert watched.code == 0, watched.err
    assert f"batches collect {NAME}" in watched.out
    answered = look(cli, "batches", "results", NAME, NAME)
    assert answered.code == 1 and f"batches collect {NAME}" in answered.err

    collected = cli("batches", "collect", "--json")
    assert collected.code == 0, collected.err
    (one,) = collected.document["batches"]
    assert one["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert one["job"]["progress_percent"] == 100.0
    assert one["run"]["outcomes"]["succeeded"] == 4

    for text in (NAME, f"batch_jobs/{NAME}", job["job_id"], job["remote_name"]):
        block = look(cli, "batches", "status", text)
        assert "State: JOB_STATE_SUCCEEDED" in block.out, (text, block.err)
        assert "Progress: 5/5\n  Completion: 100.0%\n" in block.out
    _results_are_whole(cli, look)
    _exports_are_whole(cli, look, job)

    listed = look(cli, "batches", "list").out.splitlines()
    (line,) = (row for row in listed if row.strip().startswith(NAME))
    assert "JOB_STATE_SUCCEEDED" in line and "5/5" in line
    assert len(cli.journal()) == 4


def _results_are_whole(cli: Cli, look: Look) -> None:
    shown = look(cli, "batches", "results", NAME, NAME, "--show-preview", "--output", str(cli.data))
    assert shown.code == 0, shown.err
    assert "Retrieved 4 results of 5 rows" in shown.out
    path = cli.data / f"results_{NAME}.json"
    assert f"Results saved to: {path}" in shown.out
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [row["id"] for row in rows] == [f"lisbon-{number}" for number in range(1, 6)]
    assert [row["outcome"] for row in rows] == ["succeeded"] * 4 + ["skipped"]
    financial = sum(row["is_financial"] == "Yes" for row in rows)
    assert f"  Financial news: {financial}/4 answered articles" in shown.out
    assert "  Sentiment breakdown (4 answered articles):" in shown.out
    assert shown.out.count("     Sentiment: ") == 3 and "  1. Lisbon story 1\n" in shown.out

    other = look(cli, "batches", "results", NAME, "news_batch_002")
    assert other.code == 64
    assert f"belongs to the batch '{NAME}', not to 'news_batch_002'" in other.err
    document = look(cli, "batches", "results", NAME, NAME, "--json").document
    assert document["retrieved_count"] == 4
    assert Path(document["results_json"]).is_file()


def _exports_are_whole(cli: Cli, look: Look, job: dict[str, Any]) -> None:
    folder = cli.data / "exports"
    done = look(cli, "batches", "export", NAME, "--output", str(folder), "--json")
    assert done.code == 0, done.err
    tracking = json.loads((folder / "job_tracking.json").read_text(encoding="utf-8"))
    assert [entry["job_id"] for entry in tracking] == [job["job_id"], f"{NAME}.rest"]
    assert [entry["item_count"] for entry in tracking] == [4, 1]
    first = tracking[0]
    assert (first["wave"], first["batch_num"], first["batch_name"]) == (1, 1, NAME)
    assert first["state"] == "JOB_STATE_SUCCEEDED" and first["submitted_at"]
    lines = [
        json.loads(line)
        for line in (folder / f"{NAME}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) == 4 and all(line.keys() == {"key", "request"} for line in lines)
    mapping = json.loads((folder / f"{NAME}_mapping.json").read_text(encoding="utf-8"))
    assert mapping.keys() == {line["key"] for line in lines}
    asked = [item["id"] for entry in mapping.values() for item in entry["items"]]
    assert sorted(asked) == [f"lisbon-{number}" for number in range(1, 5)]


def test_a_cancelled_job_says_so(cli: Cli, look: Look) -> None:
    table = write_articles(cli.data / "contents.json", articles(4, "porto"))
    cli.simulator.configure(batches=[{"key_last4": cli.key[-4:], **_SLOW}])
    try:
        assert cli("batches", "submit", str(table), "--name", "porto").code == 0
        asked = look(cli, "batches", "cancel", "porto")
        assert asked.code == 64
        assert "Cancel 1 provider jobs of batch porto, with 3 rows?" in asked.err
        cancelled = look(cli, "batches", "cancel", "porto", "--yes", "--json")
        assert cancelled.code == 0, cancelled.err
        assert cancelled.document["cancelled_jobs"] == 1
        cli.simulator.advance(60)
        ended = look(cli, "batches", "status", "porto", "--watch", "--every", "0.1", "--json")
        assert ended.document["provider_jobs"][0]["state"] == "JOB_STATE_CANCELLED"
    finally:
        cli.simulator.configure(batches=[])


def test_waiting_ends_with_the_results(cli: Cli) -> None:
    table = write_articles(cli.data / "contents.json", articles(4, "faro"))
    done = cli("batches", "submit-contents", str(table), "--wait", "--name", "faro", "--json")
    assert done.code == 0, done.err
    assert done.document["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert done.document["run"]["outcomes"] == {
        "succeeded": 3, "blocked": 0, "failed": 0, "skipped": 1,
    }  # fmt: skip


@pytest.mark.parametrize("words", ["list", f"status {NAME}", f"results {NAME} {NAME} --partial"])
def test_looking_at_jobs_loads_no_dagster(submitted: tuple[Cli, Ended], words: str) -> None:
    cli, _ = submitted
    assert not {
        name for name in heavy_imports(cli, "batches", *words.split()) if name.startswith("dagster")
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status", "nobody"), "no job 'nobody'"),
        (("results", "nobody", "nobody"), "no job 'nobody'"),
        (("collect", "x", "--all"), "both given"),
        (("submit-contents", "urls.txt"), "a list of URLs, not articles"),
        (("submit", "absent.json", "--name", "x"), "absent.json"),
        (("submit", "absent.json", "--lane", "train"), "train"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_next_step(
    submitted: tuple[Cli, Ended], look: Look, words: tuple[str, ...], said: str
) -> None:
    done = look(submitted[0], "batches", *words, "--json")
    assert done.code == 64, done.err
    error = done.document["error"]
    assert said in error["message"] and error["next_step"]


@pytest.mark.parametrize(
    ("encoding", "no_color", "first"),
    [("utf-8", "", "📊 Batch"), ("utf-8", "1", "Batch"), ("ascii", "", "Batch")],
)
def test_signs_are_left_out_where_they_may_not_be_shown(
    monkeypatch: pytest.MonkeyPatch, encoding: str, no_color: str, first: str
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)
    voice = Output()
    say(voice, f"{icon(voice, 'status')}Batch")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding).startswith(first)
